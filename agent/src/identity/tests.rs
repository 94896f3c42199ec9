#![allow(clippy::unwrap_used)]

use super::*;
use dugnad_kernel::Peer;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn an_identity_comes_back_and_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let made = Identity::create(dir.path()).unwrap();
    assert_eq!(mode(&dir.path().join("identity")), 0o600);
    assert_eq!(Identity::load(dir.path()).unwrap().public_key(), made.public_key());
    assert!(Identity::create(dir.path()).is_err(), "never overwritten");
    let other = tempfile::tempdir().unwrap();
    assert_ne!(Identity::create(other.path()).unwrap().public_key(), made.public_key());
}

#[test]
fn a_bad_identity_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identity");
    let error = |needle: &str| {
        let text = Identity::load(dir.path()).err().unwrap().to_string();
        assert!(text.contains(needle) && text.contains("identity"), "{text}");
    };
    error("dugnad join");
    write_synced(dir.path(), "identity", b"abcd\n").unwrap();
    error("found 4 bytes");
    write_synced(dir.path(), "identity", "07".repeat(32).as_bytes()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    error("chmod 600");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(Identity::load(dir.path()).is_ok());
}

#[test]
fn incarnations_grow_even_over_damage() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(next_incarnation(dir.path()).unwrap(), 1);
    let second = next_incarnation(dir.path()).unwrap();
    assert!(second > 1);
    // A directory restored from a copy of the first start goes on above the second.
    fs::write(dir.path().join("incarnation"), "1\n").unwrap();
    assert!(next_incarnation(dir.path()).unwrap() >= second);
    for damage in [&b"x\n"[..], b"", b"\xff\xfe"] {
        fs::write(dir.path().join("incarnation"), damage).unwrap();
        let after = next_incarnation(dir.path()).unwrap();
        assert!(after > 1 << 24, "{after}");
        assert_eq!(next_incarnation(dir.path()).unwrap(), after + 1);
    }
}

#[test]
fn a_community_comes_back_and_keeps_its_secret_out_of_logs() {
    let dir = tempfile::tempdir().unwrap();
    let made = Community::create("Øvre \"gata\" \\ 7").unwrap();
    made.save(dir.path()).unwrap();
    assert_eq!(mode(&dir.path().join("community.toml")), 0o600);
    assert_eq!(Community::load(dir.path()).unwrap(), made);
    assert!(!format!("{made:?}").contains(&hex(&made.secret)));
    assert!(Community::create("").is_err());
    assert!(Community::create("a\nb").is_err());
    fs::write(dir.path().join("community.toml"), "name = \"a\"\nsecret = \"12\"\n").unwrap();
    assert!(Community::load(dir.path()).is_err());
}

#[test]
fn a_directory_of_another_node_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let community = Community { name: "a".into(), secret: [1; 32] };
    let id = node_id(&Identity::ephemeral(1), &community);
    record_node(dir.path(), id).unwrap();
    assert!(check_node(dir.path(), id).is_ok());
    let other = node_id(&Identity::ephemeral(2), &community);
    let text = check_node(dir.path(), other).unwrap_err().to_string();
    assert!(text.contains(&id.to_string()) && text.contains("dugnad join"), "{text}");
}

#[test]
fn one_agent_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let lock = DirLock::take(dir.path()).unwrap();
    let text = DirLock::take(dir.path()).err().unwrap().to_string();
    assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
    drop(lock);
    assert!(DirLock::take(dir.path()).is_ok());
}

fn peer(n: u128, port: u16) -> Peer {
    let mut peer = Peer::new(Id(n));
    peer.addrs.push(std::net::SocketAddr::from(([10, 0, 0, 1], port))).unwrap();
    peer
}

#[test]
fn peers_are_remembered_and_written_only_on_change() {
    let dir = tempfile::tempdir().unwrap();
    let mut all = Remembered::load(dir.path());
    assert!(!all.save_if_changed().unwrap(), "nothing to write");
    assert!(!all.note(&Peer::new(Id(1))), "no address, nothing learnt");
    assert!(all.note(&peer(1, 7)));
    assert!(!all.note(&peer(1, 7)));
    assert!(all.note(&peer(2, 8)));
    assert!(all.save_if_changed().unwrap());
    assert!(all.save_due().is_none());
    assert!(all.note(&peer(1, 9)));
    assert!(!all.save_if_changed().unwrap(), "at most once a minute");
    assert!(all.save_due().is_some());
    all.save_now().unwrap();
    let again: Vec<Peer> = Remembered::load(dir.path()).peers().collect();
    assert_eq!(again, [peer(1, 9), peer(2, 8)]);
    assert!(all.forget(Id(1)) && !all.forget(Id(1)));
}

#[test]
fn remembered_peers_are_bounded_and_survive_damage() {
    let dir = tempfile::tempdir().unwrap();
    let mut all = Remembered::load(dir.path());
    for n in 0..100 {
        all.note(&peer(n, 7));
    }
    assert_eq!(all.peers().count(), 64);
    all.save_now().unwrap();
    let mut text = fs::read_to_string(dir.path().join("peers")).unwrap();
    text.push_str("rubbish\n");
    text = text.replacen("10.0.0.1:7", "10.0.0.999:7", 1);
    fs::write(dir.path().join("peers"), text).unwrap();
    let mut again = Remembered::load(dir.path());
    assert_eq!(again.peers().count(), 63);
    // None of the loaded was seen in this run, so newcomers replace them.
    assert!(again.note(&peer(1000, 7)) && again.note(&peer(1001, 7)));
    assert_eq!(again.peers().count(), 64);
    assert!(again.peers().any(|peer| peer.id == Id(1001)));
}

/// A directory that is a copy starts nothing, until it is a node of its own.
#[test]
fn a_copy_becomes_a_node_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let first = Identity::create(dir.path()).unwrap().public_key();
    let community = Community::create("els-veins").unwrap();
    community.save(dir.path()).unwrap();
    next_incarnation(dir.path()).unwrap();
    fs::create_dir(dir.path().join("records")).unwrap();
    assert!(check_copy(dir.path()).is_ok());
    record_copy(dir.path()).unwrap();
    let why = check_copy(dir.path()).unwrap_err().to_string();
    assert!(why.contains("dugnad init --new-identity"), "{why}");
    let second = Identity::replace(dir.path()).unwrap().public_key();
    assert_ne!(first, second);
    assert!(check_copy(dir.path()).is_ok() && !dir.path().join("records").exists());
    assert_eq!(next_incarnation(dir.path()).unwrap(), 1, "its first start");
    assert_eq!(Community::load(dir.path()).unwrap(), community);
}
