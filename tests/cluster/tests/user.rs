//! Agents without root: weaker boxes, honest about it, and the same services.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use dugnad_cluster::http::get_text;
use dugnad_cluster::{
    Community, Options, PATIENCE, installed, processes_of, root, say, skip, until, write,
};

/// A web server of the host, as a service.
fn server(community: &Community, replicas: usize) -> String {
    write(&community.folder("files-hi/pkg").join("index.html"), "hi from a user");
    community.service_file(
        "hi",
        &format!(
            "name = \"hi\"\nreplicas = {replicas}\nstop_grace = \"1s\"\n\
             command = [\"/usr/bin/python3\", \"-m\", \"http.server\", \
             \"--bind\", \"$HOST\", \"$PORT\"]\n\
             [artifacts]\nany = \"pkg/\"\n[port]\nhttp = true\n\
             [needs]\nmemory = \"48M\"\ncpu = \"5%\"\ndisk = \"8M\"\nprocesses = 16\n"
        ),
    )
}

#[test]
fn a_community_of_ordinary_users() {
    let test = "a_community_of_ordinary_users";
    if installed(&["/usr/bin/python3"]).is_none() {
        return skip(test, "no /usr/bin/python3");
    }
    let mut options = Options::default();
    if root() {
        let Some(setpriv) = installed(&["/usr/bin/setpriv"]) else {
            return skip(test, "no /usr/bin/setpriv to become another user with");
        };
        let words = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        options.before = std::iter::once(setpriv).chain(words.map(str::to_owned)).collect();
        options.owner = Some(65534);
    }
    let mut community = Community::with("user", 3, options);
    let status = community.status(0);
    let layers = status["services"].to_string();
    say(community.start, &format!("status says: {layers}"));
    assert!(!layers.contains("own uid") && layers.contains("no_new_privs"), "{layers}");
    let file = server(&community, 2);
    community.deploy(0, &file);
    for node in &community.nodes {
        until("it answers", Duration::from_secs(20), || get_text(node.gateway, "/hi/"));
    }
    let before = processes_of(&community.mark, "hi");
    (0..3).for_each(|node| community.kill(node));
    assert_eq!(processes_of(&community.mark, "hi"), before, "services outlive their agents");
    (0..3).for_each(|node| community.start(node));
    community.wait_whole();
    community.wait_exactly(0, "hi", 2, PATIENCE);
    assert_eq!(processes_of(&community.mark, "hi"), before, "adopted, not started again");
    community.ok(1, &["rm", "hi"]);
    until("removed", Duration::from_secs(20), || {
        let left = processes_of(&community.mark, "hi");
        dugnad_cluster::holds(left.is_empty(), || format!("{left:?}"))
    });
}

/// A container of an ordinary user: root there is nobody outside, and there are no other users to
/// give a service.
#[test]
fn a_container_where_only_root_exists() {
    let test = "a_container_where_only_root_exists";
    let alone = ["unshare", "--user", "--map-root-user"];
    if installed(&["/usr/bin/python3"]).is_none() {
        return skip(test, "no /usr/bin/python3");
    }
    let works = std::process::Command::new(alone[0]).args(&alone[1..]).arg("true").status();
    if !works.is_ok_and(|status| status.success()) {
        return skip(test, "no user namespaces here");
    }
    let before = alone.map(str::to_owned).to_vec();
    let community = Community::with("alone", 1, Options { before, ..Options::default() });
    let status = community.status(0);
    assert!(!status["services"].to_string().contains("own uid"), "{}", status["services"]);
    let warnings = status["warnings"].to_string();
    assert!(warnings.contains("only root exists here"), "{warnings}");
    community.deploy(0, &server(&community, 1));
    until("it answers", Duration::from_secs(20), || get_text(community.nodes[0].gateway, "/hi/"));
}
