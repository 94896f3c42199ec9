#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;

use super::*;
use crate::control::tests::{FakeAgent, status_value, with_agent};
use crate::identity::Community;
use crate::invite::Invitation;

/// What a command line did.
#[derive(Debug)]
struct Ran {
    exit: u8,
    out: String,
    err: String,
}

fn run_with(env: Env<'_>, words: &[&str]) -> Ran {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
    let hooks = Hooks { agent: |dirs, config| Err(format!("{dirs:?} {config:?}")) };
    let mut cx = Cx {
        env,
        root: false,
        dir: None,
        json: false,
        hooks: &hooks,
        out: &mut out,
        err: &mut err,
        bold: false,
        live: false,
        over: false,
    };
    let exit = run(&words, &mut cx);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { exit, out: text(out), err: text(err) }
}

fn run_in(dir: &Path, words: &[&str]) -> Ran {
    let mut all = words.to_vec();
    all.extend(["--dir", dir.to_str().unwrap()]);
    run_with(&|_| None, &all)
}

fn run_bare(words: &[&str]) -> Ran {
    run_with(&|_| None, words)
}

/// A fake agent on a thread of its own, as the command line blocks the thread it runs on.
struct Running {
    dir: PathBuf,
    stop: smol::channel::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn with(prepare: impl Fn(&FakeAgent) + Send + 'static) -> Self {
        let (started, socket) = mpsc::channel();
        let (stop, stopped) = smol::channel::bounded(1);
        let thread = std::thread::spawn(move || {
            with_agent(|socket, agent| async move {
                prepare(&agent);
                started.send(socket).unwrap();
                stopped.recv().await.unwrap();
            });
        });
        let socket: PathBuf = socket.recv().unwrap();
        Self { dir: socket.parent().unwrap().to_path_buf(), stop, thread: Some(thread) }
    }

    fn start() -> Self {
        Self::with(|_| {})
    }

    fn run(&self, words: &[&str]) -> Ran {
        run_in(&self.dir, words)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.send_blocking(()).unwrap();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

#[test]
fn no_agent_is_exit_4_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    let ran = run_in(dir.path(), &["status"]);
    let at = dir.path().display();
    assert_eq!(ran.exit, 4);
    assert_eq!(
        ran.err,
        format!(
            "dugnad: no agent answers at {at}/dugnad.sock; start it with: dugnad agent --dir {at}\n"
        )
    );
    assert_eq!(ran.out, "");
}

#[test]
fn wrong_usage_is_exit_2_and_says_what_is_meant() {
    let of = |words: &[&str]| {
        let ran = run_bare(words);
        assert_eq!((ran.exit, ran.out.as_str()), (2, ""), "{words:?}");
        ran.err
    };
    assert_eq!(
        of(&["deplyo", "x"]),
        "dugnad: no command `deplyo` (did you mean `deploy`?); see: dugnad help\n"
    );
    assert_eq!(of(&["frobnicate"]), "dugnad: no command `frobnicate`; see: dugnad help\n");
    assert_eq!(of(&["ps", "-o", "yaml"]), "dugnad: -o yaml: the output is table or json\n");
    assert_eq!(of(&["ps", "--dir"]), "dugnad: --dir needs a value\n");
    assert_eq!(of(&["stop", "x", "-o", "json"]), "dugnad: `stop` has nothing to tell as json\n");
    assert!(of(&["deploy"]).contains("file"));
    assert!(of(&["nodes", "--fast"]).contains("--fast"));
    assert!(of(&["why", "a/b"]).starts_with("dugnad: \"a/b\" is no service: name may hold"));
    assert!(of(&["demo", "--nodes", "2"]).contains("5 to 20"));
}

#[test]
fn help_begins_every_level_and_shows_an_example() {
    for words in [&["--help"][..], &["help"], &[]] {
        let ran = run_bare(words);
        assert_eq!((ran.exit, ran.err.as_str()), (0, ""));
        assert!(ran.out.contains("dugnad init --name attic"), "{}", ran.out);
        assert!(ran.out.contains("--dir D"), "{}", ran.out);
        assert!(!ran.out.contains("demo-server"));
    }
    for command in commands().filter(|command| *command != "help") {
        let ran = run_bare(&["help", command]);
        assert_eq!(ran.exit, 0, "{command}");
        assert!(ran.out.contains(&format!("dugnad {command} ")), "{}", ran.out);
        assert_eq!(run_bare(&[command, "--help"]).out, ran.out);
    }
}

#[test]
fn help_is_had_in_short_and_for_service_files() {
    for words in [&["-h"][..], &["deploy", "-h"], &["-h", "ps"]] {
        let ran = run_bare(words);
        assert_eq!((ran.exit, ran.err.as_str()), (exit::DONE, ""), "{words:?}");
        assert!(ran.out.starts_with("Usage: dugnad"), "{ran:?}");
    }
    let reference = run_bare(&["help", "service-file"]);
    assert_eq!(reference.exit, exit::DONE);
    for word in ["# Service files", "`availability`", "`DUGNAD_SOCKET`", "130 interrupted"] {
        assert!(reference.out.contains(word), "{word}");
    }
}

#[test]
fn the_same_line_is_told_once() {
    let lines = ["a", "b", "a", "a"].map(str::to_owned);
    assert_eq!(counted(&lines), ["a (3 times)", "b"]);
}

#[test]
fn json_is_printed_as_the_agent_gave_it_wherever_the_flags_stand() {
    let agent = Running::start();
    let dir = agent.dir.to_str().unwrap();
    let after = run_bare(&["status", "--dir", dir, "-o", "json"]);
    let before = run_bare(&["-o", "json", &format!("--dir={dir}"), "status"]);
    assert_eq!((after.exit, after.err.as_str()), (0, ""));
    assert_eq!(after.out, before.out);
    assert_eq!(serde_json::from_str::<Value>(&after.out).unwrap(), status_value());
    let env = |name: &str| match name {
        "DUGNAD_DIR" => Some(OsString::from(dir)),
        "DUGNAD_OUTPUT" => Some(OsString::from("json")),
        _ => None,
    };
    assert_eq!(run_with(&env, &["status"]).out, after.out);
    let ps: Value = serde_json::from_str(&agent.run(&["ps", "-o", "json"]).out).unwrap();
    assert_eq!(ps[0]["replicas"][1]["state"], "starting");
    let nodes: Value = serde_json::from_str(&agent.run(&["nodes", "-o", "json"]).out).unwrap();
    assert_eq!(nodes[1]["state"], "suspect");
    let version: Value = serde_json::from_str(&run_bare(&["version", "-o", "json"]).out).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn tables_are_for_people() {
    let agent = Running::start();
    let ran = agent.run(&["nodes"]);
    assert_eq!(
        ran.out,
        "\
NODE          ARCH     STATE    LINK    UP      AVAIL   FREE CPU  FREE MEMORY  REPLICAS
0000-attic    aarch64  alive    direct  1m 30s  70.0%?  50%       128M         1
0000-kjøkken  aarch64  suspect  direct  1m 30s  70.0%?  50%       128M         1
0000          -        gone     none    -       -       -         -            -
"
    );
    let ran = agent.run(&["ps"]);
    assert_eq!(
        ran.out,
        "\
SERVICE  VERSION  WANT  READY  PORT  WHERE
wiki     7        3     1      http  0000-attic  0000-kjøkken (starting)  0000-garage (lost)
"
    );
    assert_eq!(ran.err, "part of the community did not answer: the list may be incomplete\n");
    assert_eq!(
        agent.run(&["status"]).out,
        "\
0400-attic  member of \"els-veins\"  up 1m 1s  dugnad 0.1.0 aarch64  4M (agent)
listens on 0.0.0.0:7407  way in http://127.0.0.1:7480/SERVICE/  about 3 nodes in the community

           CEILING    PROMISED
cpu        50%        10%
memory     128M       64M
disk       2G         0
processes  64         16
upload     unlimited  -

replicas here: none
not acted upon yet: policy.network = \"members\"
"
    );
    assert_eq!(agent.run(&["why", "wiki"]).out, "it was asked for\n");
}

fn service_file(dir: &Path) -> String {
    std::fs::create_dir_all(dir.join("pages")).unwrap();
    std::fs::write(dir.join("pages/index.html"), "hello").unwrap();
    let file = dir.join("wiki.toml");
    let text = "name = \"wiki\"\nkind = \"static\"\nreplicas = 3\n[artifacts]\nany = \"pages\"\n";
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn a_plan_is_shown_and_short_of_places_is_exit_3() {
    let agent = Running::start();
    let files = tempfile::tempdir().unwrap();
    let ran = agent.run(&["plan", &service_file(files.path())]);
    assert_eq!(
        ran.out,
        "\
wiki: availability 99.0% → 2 replicas
  + 0400-attic    has data, 64M free
  + 0800-kjøkken  other home
not chosen: 0C00-zero (memory: needs 64M, free 32M)
note: one home only
"
    );
    assert_eq!(ran.exit, 0);
}

#[test]
fn a_site_without_a_file_is_refused() {
    let agent = Running::start();
    let files = tempfile::tempdir().unwrap();
    let file = service_file(files.path());
    let pages = files.path().join("pages");
    std::fs::remove_file(pages.join("index.html")).unwrap();
    std::fs::create_dir_all(pages.join("deep/er")).unwrap();
    let ran = agent.run(&["deploy", &file]);
    assert_eq!(ran.exit, 1);
    let text = format!("dugnad: {}: there is no file in it, so nothing to show\n", pages.display());
    assert_eq!(ran.err, text);
    std::fs::write(pages.join("deep/er/a.txt"), "").unwrap();
    assert_ne!(agent.run(&["deploy", &file]).err, text);
}

/// Times differ from run to run.
fn without_times(text: &str) -> String {
    let is_time =
        |word: &str| word.ends_with('s') && word.trim_end_matches('s').parse::<f32>().is_ok();
    let words = text.split(' ').map(|word| if is_time(word) { "T" } else { word });
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_deploy_tells_progress_and_what_is_missing() {
    let files = tempfile::tempdir().unwrap();
    let file = service_file(files.path());
    let ran = Running::start().run(&["deploy", &file]);
    assert_eq!(ran.exit, 0, "{ran:?}");
    assert_eq!(without_times(&ran.out), "wiki v7 3/3 ready in T http://127.0.0.1:7480/wiki/\n");
    assert!(ran.err.contains("package for any CPU stored: 9\n"), "{}", ran.err);
    assert!(ran.err.contains(" attic: replica 0 started\n"), "{}", ran.err);
    let short = Running::with(|agent| {
        agent.missing.borrow_mut().extend(["zero: memory".to_owned(), "disk".to_owned()]);
    });
    let ran = short.run(&["deploy", &file]);
    assert_eq!(ran.exit, 3);
    assert!(ran.err.ends_with("missing: zero: memory\nmissing: disk\n"), "{}", ran.err);
    let ran = short.run(&["deploy", &file, "-o", "json"]);
    let value: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.exit, &value["missing"][1]), (3, &json!("disk")));
    std::fs::write(&file, "nmae = \"wiki\"\n").unwrap();
    let ran = short.run(&["deploy", &file]);
    assert_eq!(ran.exit, 1);
    assert!(ran.err.starts_with(&format!("dugnad: {file}:1:1: unknown key `nmae`")), "{}", ran.err);
}

#[test]
fn orders_say_what_came_of_them() {
    let agent = Running::start();
    let ran = agent.run(&["rm", "wiki"]);
    assert_eq!((ran.exit, ran.err.as_str()), (0, "wiki removed\n"));
    let ran = agent.run(&["stop", "wiki"]);
    assert_eq!((ran.exit, ran.err.as_str()), (3, "dugnad: it cannot be met now\n  - a\n  - b\n"));
    let ran = agent.run(&["rm", "wiki", "--keep-state"]);
    assert!(ran.exit == 0 && ran.err.contains("stays"), "{}", ran.err);
    let ran = agent.run(&["rm", "blog"]);
    let text = "dugnad: no service is called \"blog\" here; see: dugnad ps\n";
    assert_eq!((ran.exit, ran.err.as_str()), (1, text));
    let ran = agent.run(&["rollback", "wiki"]);
    assert_eq!(ran.exit, 0, "{}", ran.err);
    assert!(ran.out.contains("3/3 ready"), "{}", ran.out);
    let ran = agent.run(&["rollback", "theirs"]);
    assert_eq!((ran.exit, ran.err.as_str()), (5, "dugnad: node 1A2B was first\n"));
    let ran = agent.run(&["leave"]);
    assert_eq!(ran.exit, 3);
    assert!(ran.err.contains("dugnad leave --now") && ran.err.contains("no place for wiki"));
    assert_eq!(agent.run(&["leave", "--now"]).exit, 0);
    assert_eq!(agent.run(&["reload"]).err, "limits.cpu\n");
}

#[test]
fn streams_are_printed_line_by_line() {
    let agent = Running::start();
    assert_eq!(agent.run(&["logs", "wiki", "--tail", "3"]).out, "2 | tail 3 follow false\n");
    let ran = agent.run(&["logs", "blog"]);
    assert_eq!((ran.exit, ran.err.as_str()), (1, "dugnad: no log of blog here\n"));
    assert_eq!(agent.run(&["events"]).out, "2026-01-01T00:00:00.000Z attic kept\n");
    let event: Value = serde_json::from_str(&agent.run(&["events", "-o", "json"]).out).unwrap();
    assert_eq!(event["text"], "kept");
}

#[test]
fn groups_are_told_and_listened_to() {
    let agent = Running::start();
    let ran = agent.run(&["group", "create", "choir", "--members-only"]);
    assert_eq!((ran.exit, ran.err.as_str()), (0, "choir created; this node is its first member\n"));
    assert_eq!(agent.run(&["group", "join", "choir"]).err, "joined choir\n");
    assert_eq!(agent.run(&["group", "leave", "choir"]).err, "left choir\n");
    assert_eq!(agent.run(&["group", "send", "choir", "at eight"]).exit, 0);
    let ran = agent.run(&["group", "send", "nowhere", "x"]);
    assert_eq!((ran.exit, ran.err.as_str()), (1, "dugnad: there is no group nowhere\n"));
    let ran = agent.run(&["group", "listen", "choir", "--count", "1"]);
    assert_eq!(
        (ran.out.as_str(), ran.err.as_str()),
        ("0000-attic hello\n", "listening to choir\n")
    );
    let list = agent.run(&["group", "list"]).out;
    let line = "choir  3        mesh  member  yes   2          7";
    assert_eq!(list.lines().nth(1), Some(line), "{list}");
    let list: Value =
        serde_json::from_str(&agent.run(&["group", "list", "-o", "json"]).out).unwrap();
    assert_eq!(list[0]["form"], "mesh");
    assert_eq!(agent.run(&["group", "join", "No Such"]).exit, 2);
    assert_eq!(agent.run(&["group"]).exit, 2);
}

#[test]
fn objects_are_put_got_listed_and_watched() {
    let agent = Running::start();
    let ran = agent.run(&["put", "notes/today", "hola"]);
    assert_eq!(ran.exit, 0, "{}", ran.err);
    assert!(ran.err.starts_with("notes/today kept on 2 nodes, version "), "{}", ran.err);
    assert_eq!(agent.run(&["get", "notes/today"]).out, "hola");
    let ran = agent.run(&["get", "votes/a"]);
    assert_eq!((ran.exit, ran.out.as_str()), (0, "1\n2\n"));
    assert!(ran.err.contains("2 values stand beside each other"), "{}", ran.err);
    let got: Value =
        serde_json::from_str(&agent.run(&["get", "votes/a", "-o", "json"]).out).unwrap();
    assert_eq!(got["values"][1]["text"], "2");
    assert!(agent.run(&["rm", "notes/today"]).err.starts_with("notes/today removed on 2 nodes"));
    let list = agent.run(&["ls", "notes"]).out;
    assert_eq!(list.lines().count(), 3, "two pages of one key each, and a head: {list}");
    let ran = agent.run(&["watch", "notes/today", "--now", "--count", "3"]);
    assert_eq!(ran.out, "notes/today first\nnotes/today today\nnotes/today (removed)\n");
    assert!(agent.run(&["store"]).out.contains("1 to fetch"));
    let told = agent.run(&["namespace", "notes", "--share", "blog", "--quota", "1M"]).out;
    assert_eq!(told, "notes: the last write counts, writable, up to 1M, shared with blog, wiki\n");
    for (words, exit, says) in [
        (&["get", "notes/gone"][..], 1, "there is no notes/gone"),
        (&["put", "notes/full", "x"], 3, "the namespace is full"),
        (&["put", "notes/locked", "x"], 5, "read-only"),
        (&["put", "notes", "x"], 2, "is no key"),
        (&["put", "notes/x", "--any", "--strong", "x"], 2, "not both"),
        (&["ls", "No"], 2, "begins no key"),
        (&["namespace", "notes", "--merge"], 5, "cannot change"),
        (&["namespace", "notes", "--quota", "much"], 2, "--quota"),
    ] {
        let ran = agent.run(words);
        assert_eq!(ran.exit, exit, "{words:?}: {}", ran.err);
        assert!(ran.err.contains(says), "{words:?}: {}", ran.err);
    }
}

#[test]
fn a_strong_write_says_its_revision() {
    let agent = Running::start();
    let ran = agent.run(&["put", "all/reg", "--strong", "x"]);
    assert_eq!(ran.err, "ok rev 8: all/reg kept on a majority of 3 nodes\n");
    let ran = agent.run(&["cas", "all/reg", "7", "x"]);
    assert_eq!((ran.exit, ran.err.as_str()), (1, "dugnad: all/reg is now revision 9\n"));
    let ran = agent.run(&["put", "all/reg", "x"]);
    assert_eq!(ran.exit, 3, "{}", ran.err);
    assert!(ran.err.contains("unavailable"), "{}", ran.err);
    assert_eq!(agent.run(&["lock", "job"]).exit, 2);
}

#[test]
fn waiting_has_an_end() {
    let never = smol::future::pending::<Result<(), Failure>>();
    let failure = smol::block_on(within(Duration::from_millis(1), never)).unwrap_err();
    assert_eq!((failure.exit, failure.text.as_str()), (6, "no answer within 1ms"));
}

#[test]
fn init_invite_and_join_make_two_nodes_of_one_community() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let init =
        ["init", "--name", "attic", "--community", "els-veins", "--overlay", "127.0.0.1:17407"];
    let ran = run_in(&one, &init);
    assert_eq!((ran.exit, ran.out.as_str()), (0, ""), "{}", ran.err);
    assert!(ran.err.contains("-attic\n"), "{}", ran.err);
    assert_eq!(
        std::fs::read_to_string(one.join("dugnad.toml")).unwrap(),
        "# The owner's file. Every key and its default: configs/dugnad.toml\n\n[node]\nname = \
         \"attic\"\n\n[listen]\noverlay = \"127.0.0.1:17407\"\n"
    );
    let again = run_in(&one, &init);
    assert_eq!(again.exit, 1);
    let there = format!("dugnad: {} already holds a node of \"els-veins\"; ", one.display());
    assert!(again.err.starts_with(&there), "{}", again.err);

    let ran = run_in(&one, &["invite", "--expires", "2h"]);
    assert_eq!((ran.exit, ran.out.lines().count(), ran.err.as_str()), (0, 1, ""));
    let token = ran.out.trim();
    // What the owner wrote before joining stays.
    std::fs::create_dir(&two).unwrap();
    std::fs::write(two.join("dugnad.toml"), "[limits]\ncpu = \"10%\" # mine\n").unwrap();
    let ran = run_in(&two, &["join", token, "--name", "garage"]);
    assert_eq!(ran.exit, 0, "{}", ran.err);
    assert_eq!(
        std::fs::read_to_string(two.join("dugnad.toml")).unwrap(),
        "[limits]\ncpu = \"10%\" # mine\n\n[node]\nname = \"garage\"\n\n[community]\nseeds = \
         [\"127.0.0.1:17407\"]\n"
    );
    assert_eq!(Community::load(&one).unwrap(), Community::load(&two).unwrap());
    let load = |dir: &Path| crate::identity::Identity::load(dir).unwrap().public_key();
    assert_ne!(load(&one), load(&two));
    assert_eq!(run_in(&two, &["join", token]).exit, 1);
    let ran = run_in(&two, &["agent", "--log", "debug"]);
    assert_eq!(ran.exit, 1);
    assert!(ran.err.contains("name: \"garage\"") && ran.err.contains("log: Debug"), "{}", ran.err);
}

/// The standard input of tests holds no token.
#[test]
fn a_dash_reads_the_invitation_from_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let ran = run_in(dir.path(), &["join", "-", "--name", "attic"]);
    assert_eq!(ran.exit, exit::REFUSED, "{ran:?}");
    assert!(ran.err.contains("invitation") && !ran.err.contains("Unrecognized"), "{ran:?}");
}

#[test]
fn a_bad_invitation_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("node");
    let ran = run_in(&to, &["join", "dugnad1:abc"]);
    assert_eq!(ran.exit, 5);
    let invitation = Invitation {
        community: Community::create("els-veins").unwrap(),
        addrs: vec!["127.0.0.1:7407".parse().unwrap()],
        expires_unix: Some(1_600_000_000),
    };
    let ran = run_in(&to, &["join", &invitation.to_string()]);
    assert_eq!(ran.exit, 5);
    assert!(ran.err.starts_with("dugnad: the invitation expired at 2020-09-13"), "{}", ran.err);
    let fresh = Invitation { expires_unix: None, ..invitation };
    let ran = run_in(&to, &["join", &fresh.to_string(), "--overlay", "here"]);
    assert_eq!(ran.exit, 1);
    assert!(ran.err.starts_with("dugnad: --overlay: \"here\" is not an address"), "{}", ran.err);
    assert!(!to.exists());
    let ran = run_in(&to, &["invite"]);
    assert!(
        ran.err.contains("holds no node yet; begin a community with: dugnad init --dir"),
        "{}",
        ran.err
    );
}

#[test]
fn a_running_agent_is_asked_for_invitations() {
    let agent = Running::start();
    assert_eq!(agent.run(&["invite", "--expires", "1h"]).out, "token-3600\n");
}

#[test]
fn near_words_are_found() {
    let known: Vec<&str> = commands().collect();
    assert_eq!(suggest("depoly", &known), Some("deploy"));
    assert_eq!(suggest("node", &known), Some("nodes"));
    assert_eq!(suggest("sttaus", &known), Some("status"));
    assert_eq!(suggest("xyzzy", &known), None);
}
