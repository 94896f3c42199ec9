#![allow(clippy::unwrap_used)]

//! Real processes in real boxes: as root with all layers, as anybody else with what is left.

use std::fs;
use std::future::Future;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use dugnad_fabric::Amounts;
use dugnad_kernel::{Hash, Id};
use dugnad_platform::process::Process;
use dugnad_resource::spec::{Check, Health, Keep, Kind, Port, Spec, Want};
use smol::Timer;

use super::*;

mod lease;
mod room;
mod state;

const ARCH: Arch = if cfg!(target_arch = "aarch64") { Arch::Aarch64 } else { Arch::X86_64 };
/// Bounds every test.
const LIMIT: Duration = Duration::from_secs(60);

struct World {
    ex: Rc<LocalExecutor<'static>>,
    host: Rc<Host>,
    reports: Receiver<Report>,
    dir: PathBuf,
}

fn tree(name: &str) -> Tree {
    Tree { root: Hash::of(name.as_bytes()), bytes: 1 }
}

/// A package that is kept: a file as long as it is.
struct Kept(PathBuf);

impl Drop for Kept {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

fn open(ex: &Rc<LocalExecutor<'static>>, dir: &Path) -> (Rc<Host>, Receiver<Report>) {
    open_with(ex, dir, Rc::new(state::Community::default()), no_lease())
}

fn no_lease() -> AskLease {
    Rc::new(|_, _| panic!("no lease is needed"))
}

fn open_with(
    ex: &Rc<LocalExecutor<'static>>,
    dir: &Path,
    state: Rc<dyn StateStore>,
    lease: AskLease,
) -> (Rc<Host>, Receiver<Report>) {
    let (sender, reports) = smol::channel::unbounded();
    let (stored, over) = (dir.join("stored"), dir.join("over"));
    let unpack: Unpack = Rc::new(move |tree, to| {
        let from = stored.join(tree.root.to_string());
        Box::pin(smol::unblock(move || {
            let status = Command::new("cp").arg("-r").arg(&from).arg(&to).status()?;
            if status.success() { Ok(()) } else { Err(io::Error::other("no such tree")) }
        }))
    });
    let config = HostConfig {
        dir: dir.join("d"),
        // Groups are named after the node: one a test.
        node_id: Id::of_name("test", dir.as_os_str().as_encoded_bytes()),
        node_name: "kitchen".to_owned(),
        gateway: Some(([127, 0, 0, 1], 7480).into()),
        arch: ARCH,
        ceilings: Ceilings {
            amounts: Amounts { memory: 512 << 20, cpu: 2000, disk: 0, processes: 200 },
            upload: None,
        },
        socket: dir.join("d/run/dugnad.sock"),
        door: Rc::new(|socket, _, _| {
            fs::write(socket, "")?;
            Ok(Box::new(()))
        }),
        hold: {
            let kept = dir.join("kept");
            Rc::new(move |_| {
                fs::OpenOptions::new().write(true).create_new(true).open(&kept)?;
                Ok(Box::new(Kept(kept.clone())))
            })
        },
        unpack,
        state,
        lease,
        over: Rc::new(move || Box::pin(std::future::ready(u64::from(over.exists()) << 20))),
    };
    (Host::new(Rc::clone(ex), config, sender).unwrap(), reports)
}

/// Runs `test` with a host in a new folder, then stops everything.
fn with_host<F: Future<Output = World>>(test: impl FnOnce(World) -> F) {
    let tmp = tempfile::tempdir().unwrap();
    let ex = Rc::new(LocalExecutor::new());
    let work = async {
        let (host, reports) = open(&ex, tmp.path());
        let world = World { ex: Rc::clone(&ex), host, reports, dir: tmp.path().to_path_buf() };
        let world = test(world).await;
        world.host.stop_all().await;
    };
    let late = async {
        Timer::after(LIMIT).await;
        panic!("the test takes longer than {LIMIT:?}");
    };
    smol::block_on(ex.run(smol::future::or(work, late)));
}

fn spec(name: &str, command: &[&str]) -> Spec {
    Spec {
        name: name.to_owned(),
        kind: Kind::Process,
        want: Want::Replicas(1),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        env: Vec::new(),
        artifacts: Vec::new(),
        needs: Amounts { memory: 64 << 20, cpu: 100, disk: 0, processes: 20 },
        port: Port::None,
        health: Health { check: Check::Port, interval_ms: 50, timeout_ms: 2000, failures: 2 },
        stop_grace_ms: 5000,
        state: Keep::Nothing,
    }
}

fn sh(name: &str, script: &str) -> Spec {
    spec(name, &["/bin/sh", "-c", script])
}

fn httpd(name: &str) -> Spec {
    let mut spec = spec(name, &["/bin/busybox", "httpd", "-f", "-p", "$HOST:$PORT", "-h", "."]);
    spec.port = Port::Http;
    spec
}

fn run(spec: Spec) -> Run {
    let package = spec.artifacts.first().map(|(_, tree)| *tree);
    Run { id: ReplicaId { service: spec.key(), number: 0 }, generation: 1, spec, package }
}

impl World {
    fn start(&self, spec: Spec) -> ReplicaId {
        let run = run(spec);
        let id = run.id;
        self.host.order(Order::Start(run));
        id
    }

    async fn next(&self) -> Report {
        self.reports.recv().await.unwrap()
    }

    /// The next report of something that went wrong. On a busy machine a service may be ready
    /// before that.
    async fn trouble(&self) -> Report {
        loop {
            match self.next().await {
                Report::Started { .. } | Report::Ready { .. } => {}
                report => return report,
            }
        }
    }

    async fn ready(&self, id: ReplicaId) {
        assert_eq!(self.next().await, Report::Started { id });
        assert_eq!(self.next().await, Report::Ready { id });
    }

    async fn stop(&self, id: ReplicaId, forget: bool) {
        self.host.order(Order::Stop { id, forget });
        assert_eq!(self.next().await, Report::Stopped { id });
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.dir.join("d/services").join(name)
    }

    fn pid(&self, id: ReplicaId) -> Process {
        let view = self.host.running().into_iter().find(|view| view.id == id).unwrap();
        Process::of(view.pid.unwrap()).unwrap()
    }

    /// Lines of the log until one is `last`.
    async fn log_until(&self, service: &str, last: &str) -> Vec<String> {
        let lines = self.host.logs(key_of(service), usize::MAX, true);
        let mut all = Vec::new();
        loop {
            all.push(lines.recv().await.unwrap().text);
            if all.last().unwrap() == last {
                return all;
            }
        }
    }

    fn port(&self, id: ReplicaId) -> SocketAddr {
        match self.host.endpoint(id) {
            Some(Endpoint::Port(addr)) => addr,
            other => panic!("no port: {other:?}"),
        }
    }

    fn store(&self, name: &str, files: &[(&str, &[u8])]) -> Tree {
        use std::os::unix::fs::PermissionsExt;
        let tree = tree(name);
        let dir = self.dir.join("stored").join(tree.root.to_string());
        fs::create_dir_all(&dir).unwrap();
        for (file, bytes) in files {
            fs::write(dir.join(file), bytes).unwrap();
            fs::set_permissions(dir.join(file), fs::Permissions::from_mode(0o700)).unwrap();
        }
        tree
    }
}

#[test]
fn the_contract_is_kept() {
    with_host(|world| async move {
        let program = b"#!/bin/sh\nenv | sort\npwd\necho \"$@\"\n\
            echo x > $STATE_DIRECTORY/x && echo x > $TMPDIR/x && echo wrote\n\
            echo socket: $(ls ${DUGNAD_SOCKET%/*})\n\
            read nothing || echo no input\necho END\nexec sleep 100\n";
        let tree = world.store("contract", &[("prog", program)]);
        let mut spec = spec("contract", &["./prog", "--port=$PORT", "${DUGNAD_NODE}", "$OWN"]);
        spec.artifacts = vec![(None, tree)];
        spec.port = Port::None;
        spec.env = vec![
            ("OWN".to_owned(), "mine".to_owned()),
            ("DUGNAD_NODE".to_owned(), "forged".to_owned()),
        ];
        let id = world.start(spec);
        world.ready(id).await;
        let lines = world.log_until("contract", "END").await;
        let folder = fs::canonicalize(world.folder("contract.0")).unwrap();
        let state = folder.join("state");
        for wanted in [
            "DUGNAD_NODE=kitchen".to_owned(),
            "DUGNAD_URL=http://127.0.0.1:7480".to_owned(),
            "DUGNAD_SERVICE=contract".to_owned(),
            "DUGNAD_REPLICA=0".to_owned(),
            format!("DUGNAD_ARCH={ARCH}"),
            format!("STATE_DIRECTORY={}", state.display()),
            format!("HOME={}", state.display()),
            "OWN=mine".to_owned(),
            folder.join("package").display().to_string(),
            "--port=$PORT kitchen mine".to_owned(),
            "wrote".to_owned(),
            "no input".to_owned(),
            "socket: dugnad.sock".to_owned(),
        ] {
            assert!(lines.contains(&wanted), "{wanted} is not in {lines:#?}");
        }
        assert!(!lines.iter().any(|line| line.starts_with("LISTEN_FDS")));
        assert!(!lines.iter().any(|line| line.starts_with("CARGO")), "the agent's own leaks");
        assert_eq!(fs::read_to_string(state.join("x")).unwrap(), "x\n");
        world
    });
}

#[test]
fn an_end_is_explained_and_a_crash_loop_is_given_up() {
    with_host(|world| async move {
        let id = world.start(sh("crash", "echo no luck; exit 3"));
        for times in 1..=4 {
            // Below the reason are the last lines of its log.
            let log = "\nno luck".repeat(times);
            let reason = format!("exited with 3; it last wrote: no luck{log}");
            assert_eq!(world.trouble().await, Report::Unready { id, reason });
        }
        let Report::Failed { reason, .. } = world.trouble().await else { panic!("not given up") };
        assert!(reason.contains("exited with 3") && reason.contains("5 starts"), "{reason}");
        assert_eq!(world.host.running()[0].state, State::Failed);
        assert_eq!(world.host.running()[0].restarts, 4);
        world.stop(id, true).await;
        assert!(!world.folder("crash.0").exists());
        assert!(world.host.running().is_empty());

        let id = world.start(sh("signal", "kill -9 $$$$"));
        let Report::Unready { reason, .. } = world.trouble().await else { panic!() };
        assert_eq!(reason, "killed by signal 9");
        world.host.order(Order::Stop { id, forget: false });
        while world.next().await != (Report::Stopped { id }) {}
        world
    });
}

#[test]
fn what_can_never_start_fails_at_once_and_says_why() {
    with_host(|world| async move {
        let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0".to_vec();
        elf.extend(if ARCH == Arch::Aarch64 { [62, 0] } else { [183, 0] });
        let tree = world.store("wrong", &[("prog", &elf)]);
        let mut wrong = spec("wrong", &["./prog"]);
        wrong.artifacts = vec![(None, tree)];
        let id = world.start(wrong);
        let other = if ARCH == Arch::Aarch64 { "x86_64" } else { "aarch64" };
        let reason = format!("artifact for {other} cannot run on {ARCH}");
        assert_eq!(world.next().await, Report::Failed { id, reason });

        world.start(spec("absent", &["/does/not/exist"]));
        let Report::Failed { reason, .. } = world.next().await else { panic!() };
        assert!(reason.contains("/does/not/exist"), "{reason}");

        let tree = world.store("script", &[("prog", b"#!/no/such/shell\n")]);
        let mut script = spec("script", &["./prog"]);
        script.artifacts = vec![(None, tree)];
        world.start(script);
        let Report::Failed { reason, .. } = world.next().await else { panic!() };
        assert!(reason.contains("interpreter"), "{reason}");
        world
    });
}

#[test]
fn a_server_is_ready_when_its_port_answers() {
    with_host(|world| async move {
        let tree = world.store("site", &[("index.html", b"hello")]);
        let mut spec = httpd("site");
        spec.artifacts = vec![(None, tree)];
        let id = world.start(spec);
        world.ready(id).await;
        let addr = world.port(id);
        smol::unblock(move || TcpStream::connect(addr).unwrap()).await;
        assert_eq!(world.host.local(id.service), [(id, State::Ready, Endpoint::Port(addr))]);
        let before = world.pid(id);
        // The same again changes nothing but the report.
        world.host.order(Order::Start(run(httpd("site"))));
        world.ready(id).await;
        assert_eq!(world.pid(id), before);
        // A new generation is another process.
        let mut newer = run(httpd("site"));
        newer.generation = 2;
        newer.package = Some(tree);
        world.host.order(Order::Start(newer));
        world.ready(id).await;
        assert_ne!(world.pid(id), before);
        assert!(!before.is_alive());
        world.stop(id, false).await;
        assert_eq!(world.host.endpoint(id), None);
        world
    });
}

#[test]
fn http_health_decides_and_a_sick_service_is_restarted() {
    with_host(|world| async move {
        let tree = world.store("web", &[("index.html", b"hello")]);
        let mut spec = httpd("web");
        spec.artifacts = vec![(None, tree)];
        spec.command = [
            "/bin/sh",
            "-c",
            "cd $STATE_DIRECTORY; echo ok > healthz; exec busybox httpd -f -p $PORT -h .",
        ]
        .map(str::to_owned)
        .to_vec();
        spec.health.check = Check::Http("/healthz".to_owned());
        let id = world.start(spec);
        world.ready(id).await;
        let before = world.pid(id);
        fs::remove_file(world.folder("web.0/state/healthz")).unwrap();
        let Report::Unready { reason, .. } = world.next().await else { panic!() };
        assert_eq!(reason, "health check failed 2 times: GET /healthz answered 404");
        world.ready(id).await;
        assert!(!before.is_alive());
        world
    });
}

#[test]
fn a_command_can_be_the_health_check() {
    with_host(|world| async move {
        let mut spec = sh("exec", "sleep 0.2; echo 1 > $STATE_DIRECTORY/up; exec sleep 100");
        let check = ["/bin/sh", "-c", "test -e up && test $DUGNAD_SERVICE = exec"];
        spec.health.check = Check::Exec(check.map(str::to_owned).to_vec());
        let id = world.start(spec);
        world.ready(id).await;
        fs::remove_file(world.folder("exec.0/state/up")).unwrap();
        let Report::Unready { reason, .. } = world.next().await else { panic!() };
        assert!(reason.contains("ended with exit status: 1"), "{reason}");
        world.ready(id).await;
        world
    });
}

#[test]
fn a_stubborn_service_is_killed_with_all_its_children() {
    with_host(|world| async move {
        let script = "trap '' TERM; (trap '' TERM; sleep 1000; sleep 1000) & \
                      setsid sh -c \"trap '' TERM; echo \\$\\$ > child; sleep 1000; sleep 1000\" & \
                      while ! test -e child; do sleep 0.02; done; echo GO; sleep 1000; sleep 1000";
        let mut spec = sh("stubborn", script);
        spec.stop_grace_ms = 100;
        spec.state = Keep::OnNode;
        let id = world.start(spec);
        world.log_until("stubborn", "GO").await;
        assert_eq!(world.next().await, Report::Started { id });
        let child = fs::read_to_string(world.folder("stubborn.0/state/child")).unwrap();
        let child = Process::of(child.trim().parse().unwrap()).unwrap();
        let first = world.pid(id);
        world.host.order(Order::Stop { id, forget: false });
        while world.next().await != (Report::Stopped { id }) {}
        assert!(!first.is_alive() && !child.is_alive());
        assert!(world.folder("stubborn.0/state/child").exists(), "state was to be kept");
        // Kept state survives the tidying after a boot, too.
        let World { ex, host, dir, .. } = world;
        drop(host);
        let (host, reports) = open(&ex, &dir);
        let world = World { ex, host, reports, dir };
        world.host.forget_unordered();
        assert_eq!(world.next().await, Report::Stopped { id });
        assert!(world.folder("stubborn.0/state/child").exists(), "state was to be kept");
        // Removed, it waits a day for whoever regrets it.
        world.host.forget_state(id.service);
        assert_eq!(world.next().await, Report::Stopped { id });
        assert!(!world.folder("stubborn.0").exists());
        let services = world.dir.join("d/services");
        let in_trash = || -> Vec<PathBuf> {
            let entries = fs::read_dir(record::trash(&services)).unwrap();
            entries.map(|entry| entry.unwrap().path()).collect()
        };
        let state = in_trash();
        assert!(state.len() == 1 && state[0].join("child").exists(), "{state:?}");
        let now = SystemTime::now();
        record::empty_trash(&services, now + Duration::from_secs(23 * 3600)).unwrap();
        assert_eq!(in_trash(), state);
        record::empty_trash(&services, now + Duration::from_secs(25 * 3600)).unwrap();
        assert!(in_trash().is_empty());
        world
    });
}

/// State is the service's: the next replica finds it, whatever its number; and after the service
/// was removed it is gone.
#[test]
fn the_next_replica_takes_up_the_state() {
    with_host(|world| async move {
        let mut spec = sh("diary", "echo entry >> diary; cat diary; exec sleep 1000");
        spec.state = Keep::OnNode;
        for number in 0..3 {
            let id = ReplicaId { service: spec.key(), number };
            let run = Run { id, generation: 1, spec: spec.clone(), package: None };
            world.host.order(Order::Start(run));
            world.ready(id).await;
            let diary = fs::read_to_string(world.folder(&format!("diary.{number}/state/diary")));
            assert_eq!(diary.unwrap().lines().count(), 1 + number as usize);
            assert!(world.host.kept_state().is_empty(), "it is in use");
            world.stop(id, false).await;
            let kept = world.host.kept_state();
            assert_eq!(kept.len(), 1, "{kept:?}");
            assert_eq!(kept[0].service, "diary");
            assert_eq!(kept[0].bytes, Some(6 * (1 + u64::from(number))), "lines of \"entry\"");
        }
        world.host.order(Order::ForgetState { service: spec.key() });
        while !world.host.kept_state().is_empty() {
            world.next().await;
        }
        assert!(!world.folder("diary.2").exists());
        world
    });
}

#[test]
fn too_much_memory_ends_a_service_and_is_named() {
    with_host(|world| async move {
        let held = world.host.enforced()[0].1;
        let python = "/usr/bin/python3";
        if !Path::new(python).exists() {
            eprintln!("SKIPPED: needs {python}");
            return world;
        }
        let hog = "x = []\nwhile True: x.append(bytearray(1 << 20))";
        let id = world.start(spec("hog", &[python, "-c", hog]));
        let Report::Unready { reason, .. } = world.trouble().await else { panic!() };
        if held.starts_with("cgroup") {
            assert_eq!(reason, "killed for memory (limit 64M)");
        } else {
            eprintln!("SKIPPED in part: memory is held by {held}");
            assert!(reason.contains("MemoryError") || reason.contains("killed for memory"));
        }
        world.host.order(Order::Stop { id, forget: true });
        while world.next().await != (Report::Stopped { id }) {}
        world
    });
}

#[test]
fn the_owner_s_ceiling_holds_on_the_sum() {
    with_host(|world| async move {
        let python = "/usr/bin/python3";
        let held = world.host.enforced()[0].1;
        if !held.starts_with("cgroup") || !Path::new(python).exists() {
            eprintln!("SKIPPED: needs a cgroup for memory (it is held by {held}) and {python}");
            return world;
        }
        // Each stays below its own 64 MB; together they are above 48 MB.
        let amounts = Amounts { memory: 48 << 20, cpu: 2000, disk: 0, processes: 200 };
        world.host.set_ceilings(Ceilings { amounts, upload: None });
        let eat = "import time\nx = bytearray(30 << 20)\ntime.sleep(1000)";
        let first = world.start(spec("one", &[python, "-c", eat]));
        let second = world.start(spec("two", &[python, "-c", eat]));
        let Report::Unready { reason, .. } = world.trouble().await else { panic!() };
        assert!(reason.contains("all services together"), "{reason}");
        for id in [first, second] {
            world.host.order(Order::Stop { id, forget: true });
        }
        world
    });
}

#[test]
fn a_service_has_no_more_processes_than_it_asked_for() {
    with_host(|world| async move {
        let held = world.host.enforced()[2].1;
        if !held.starts_with("cgroup") {
            eprintln!("SKIPPED: processes are held by {held}");
            return world;
        }
        let script = "n=0; while test $n -lt 100; do n=$((n+1)); sleep 1000 & done; echo forked";
        let id = world.start(sh("forks", script));
        let Report::Unready { reason, .. } = world.trouble().await else { panic!() };
        assert!(reason.to_lowercase().contains("fork") && !reason.contains("forked"), "{reason}");
        world.host.order(Order::Stop { id, forget: true });
        world
    });
}

#[test]
fn a_flood_of_output_stays_within_the_ring() {
    with_host(|world| async move {
        let script = "head -c 60000000 /dev/zero | tr '\\0' 'x' | fold -w 99; \
            echo; echo END; exec sleep 100";
        let id = world.start(sh("flood", script));
        world.ready(id).await;
        let lines = world.log_until("flood", "END").await;
        assert!(lines.iter().any(|line| line.contains("skipped")), "somebody says so");
        let size = |name: &str| fs::metadata(world.folder("flood.0").join(name)).unwrap().len();
        assert!(size("log") <= keeper::HALF && size("log.1") <= keeper::HALF);
        let tail = world.host.logs(id.service, 1, false);
        assert_eq!(tail.recv().await.unwrap().text, "END");
        assert!(tail.recv().await.is_err(), "it ends");
        world
    });
}

#[test]
fn a_static_service_has_no_process() {
    with_host(|world| async move {
        let mut spec = spec("pages", &[]);
        spec.kind = Kind::Static;
        spec.port = Port::Http;
        spec.artifacts = vec![(None, tree("pages"))];
        let id = world.start(spec.clone());
        world.ready(id).await;
        assert_eq!(world.host.endpoint(id), Some(Endpoint::Static(tree("pages"))));
        let kept = world.dir.join("kept");
        assert!(kept.exists(), "it may not be swept away while it is served");
        world.stop(id, false).await;
        assert!(!kept.exists());
        // It went before it was started: another node may have it.
        fs::write(&kept, "").unwrap();
        world.start(spec);
        assert!(matches!(world.next().await, Report::Failed { .. }));
        world
    });
}

#[test]
fn services_outlive_the_host_and_are_adopted() {
    with_host(|world| async move {
        let mut served = httpd("stays");
        served.stop_grace_ms = 2000;
        let id = world.start(served.clone());
        world.ready(id).await;
        let other = world.start(sh("goes", "exec sleep 1000"));
        world.ready(other).await;
        let (before, gone, addr) = (world.pid(id), world.pid(other), world.port(id));
        let World { ex, host, dir, .. } = world;
        drop(host);
        assert!(before.is_alive());

        let (host, reports) = open(&ex, &dir);
        assert_eq!(host.adopted().len(), 2);
        let world = World { ex, host, reports, dir };
        let mut news = vec![];
        for _ in 0..4 {
            news.push(world.next().await);
        }
        assert!(
            news.contains(&Report::Ready { id }) && news.contains(&Report::Ready { id: other })
        );
        assert_eq!(world.port(id), addr);
        // What the core orders at boot does not restart it.
        world.host.order(Order::Start(run(served)));
        world.ready(id).await;
        assert_eq!(world.pid(id), before);
        fs::create_dir(world.folder("old.7")).unwrap();
        world.host.forget_unordered();
        let old = ReplicaId { service: key_of("old"), number: 7 };
        let stopped = [world.next().await, world.next().await];
        assert!(stopped.contains(&Report::Stopped { id: other }), "{stopped:?}");
        assert!(stopped.contains(&Report::Stopped { id: old }), "{stopped:?}");
        assert!(!gone.is_alive() && !world.folder("goes.0").exists());
        assert!(!world.folder("old.7").exists());
        // An adopted service is stopped, and started again when it ends, like any other.
        dugnad_platform::process::kill(before.pid);
        let Report::Unready { .. } = world.next().await else { panic!() };
        world.ready(id).await;
        assert_ne!(world.pid(id), before);
        world.stop(id, true).await;
        world
    });
}

/// Not a test: an agent that [`services_survive_an_agent_that_is_killed`] kills.
#[test]
fn the_agent_process() {
    let Some(dir) = std::env::var_os("DUGNAD_TEST_AGENT") else { return };
    let ex = Rc::new(LocalExecutor::new());
    smol::block_on(ex.run(async {
        let (host, reports) = open(&ex, Path::new(&dir));
        host.order(Order::Start(run(sh("survivor", SURVIVOR))));
        while !matches!(reports.recv().await.unwrap(), Report::Ready { .. }) {}
        println!("READY");
        std::future::pending::<()>().await;
    }));
}

/// Writes for as long as it lives: it would feel a log that nobody reads.
const SURVIVOR: &str = "n=0; while test $n -lt 2000; do n=$((n+1)); \
    echo \"line $n of a log that is longer than any pipe holds when nobody reads\"; \
    done; echo x > wrote; exec sleep 1000";

#[test]
fn services_survive_an_agent_that_is_killed() {
    let tmp = tempfile::tempdir().unwrap();
    let mut agent = Command::new("/proc/self/exe")
        .args(["--exact", "host::tests::the_agent_process", "--nocapture"])
        .env("DUGNAD_TEST_AGENT", tmp.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = io::BufRead::lines(io::BufReader::new(agent.stdout.take().unwrap()));
    assert!(lines.any(|line| line.is_ok_and(|line| line.contains("READY"))));
    agent.kill().unwrap();
    agent.wait().unwrap();
    let ex = Rc::new(LocalExecutor::new());
    let work = async {
        let (host, reports) = open(&ex, tmp.path());
        let world = World { ex: Rc::clone(&ex), host, reports, dir: tmp.path().to_path_buf() };
        let id = world.host.adopted().first().unwrap().id;
        world.ready(id).await;
        let last = "line 2000 of a log that is longer than any pipe holds when nobody reads";
        assert_eq!(world.log_until("survivor", last).await.len(), 2000);
        world.stop(id, true).await;
    };
    let late = async {
        Timer::after(LIMIT).await;
        panic!("the test takes longer than {LIMIT:?}");
    };
    smol::block_on(ex.run(smol::future::or(work, late)));
}
