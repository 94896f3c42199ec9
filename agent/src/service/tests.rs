#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;

use super::*;

/// A folder with `s.toml` and what it may name; errors begin with "s.toml" instead of its path.
struct Case(tempfile::TempDir);

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("site")).unwrap();
        Self(dir)
    }

    fn program(&self, folder: &str, bytes: &[u8], mode: u32) {
        let folder = self.0.path().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("wiki"), bytes).unwrap();
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(folder.join("wiki"), mode).unwrap();
    }

    fn parse(&self, text: &str) -> Result<ServiceFile, String> {
        let path = self.0.path().join("s.toml");
        std::fs::write(&path, text).unwrap();
        let dir = format!("{}/", self.0.path().display());
        super::parse(&path).map_err(|error| error.to_string().replace(&dir, ""))
    }

    fn error(&self, text: &str) -> String {
        self.parse(text).unwrap_err()
    }
}

/// The first 20 bytes of a little-endian 64-bit program.
fn elf(machine: u16) -> Vec<u8> {
    let mut header = vec![0; 20];
    header[..6].copy_from_slice(b"\x7fELF\x02\x01");
    header[18..].copy_from_slice(&machine.to_le_bytes());
    header
}

const SITE: &str = "name = \"site\"\nkind = \"static\"\n[artifacts]\nany = \"site/\"\n";

fn process(more: &str) -> String {
    format!("name = \"wiki\"\ncommand = [\"/bin/true\"]\n{more}")
}

#[test]
fn defaults_are_filled_in() {
    let case = Case::new();
    let file = case.parse(SITE).unwrap();
    let tree = Tree { root: Hash([1; 32]), bytes: 5 };
    let spec = file.to_spec(vec![(None, tree)]);
    assert_eq!(spec.check(), Ok(()));
    assert_eq!((spec.kind, spec.want, spec.port), (Kind::Static, Want::Replicas(1), Port::Http));
    let needs = Amounts { memory: 64 << 20, cpu: 100, disk: 64 << 20, processes: 16 };
    assert_eq!(spec.needs, needs);
    let health = Health { check: Check::Port, interval_ms: 10_000, timeout_ms: 2_000, failures: 3 };
    assert_eq!(spec.health, health);
    assert_eq!((spec.stop_grace_ms, &spec.state), (10_000, &Keep::Nothing));
    assert_eq!(spec.artifacts, [(None, tree)]);
    assert_eq!(file.artifacts(), [(None, case.0.path().join("site/"))]);
}

#[test]
fn everything_written_arrives() {
    let case = Case::new();
    case.program("build/x86_64", &elf(62), 0o755);
    let text = "name = \"wiki\"\nkind = \"process\"\navailability = \"99.5%\"\n\
        command = [\"./wiki\", \"--port\", \"$PORT\"]\nstop_grace = \"3s\"\n\
        [env]\nLANG = \"C\"\n[artifacts]\nx86_64 = \"build/x86_64/\"\n\
        [needs]\nmemory = \"32M\"\ncpu = \"0.5\"\ndisk = \"1G\"\n\
         processes = 4\n[port]\ntcp = 6379\n\
        [health]\nexec = [\"./check\"]\ninterval = \"1m\"\ntimeout = \"500ms\"\nfailures = 5\n\
        [state]\nkeep = true\n";
    let file = case.parse(text).unwrap();
    let spec = file.to_spec(Vec::new());
    assert_eq!(spec.want, Want::Availability(995_000));
    assert_eq!(spec.command, ["./wiki", "--port", "$PORT"]);
    assert_eq!(spec.env, [("LANG".to_owned(), "C".to_owned())]);
    assert_eq!(spec.needs, Amounts { memory: 32 << 20, cpu: 500, disk: 1 << 30, processes: 4 });
    assert_eq!(spec.port, Port::Tcp(6379));
    let check = Check::Exec(vec!["./check".to_owned()]);
    let health = Health { check, interval_ms: 60_000, timeout_ms: 500, failures: 5 };
    assert_eq!(spec.health, health);
    assert_eq!((spec.stop_grace_ms, &spec.state), (3_000, &Keep::OnNode));
    let state = "[state]\nsnapshot = \"5m\"\nhook = [\"./save\", \"$STATE_DIRECTORY\"]\n";
    let spec = case.parse(&process(state)).unwrap().to_spec(Vec::new());
    let hook = ["./save", "$STATE_DIRECTORY"].map(str::to_owned).to_vec();
    assert_eq!(spec.state, Keep::Snapshots { every_ms: 300_000, hook });
    assert!(spec.one_at_a_time() && spec.want == Want::Replicas(1));
    let spec = case.parse(&process("single = true\n")).unwrap().to_spec(Vec::new());
    assert!(spec.one_at_a_time() && spec.want == Want::Single);
}

#[test]
fn a_service_may_follow_its_load() {
    let case = Case::new();
    let want = |text: &str| {
        case.parse(&process(&format!("{text}[port]\nhttp = true\n")))
            .map(|file| file.to_spec(Vec::new()).want)
    };
    for (text, min, max, on) in [
        ("scale = { max = 6, on = \"rps>50\" }\n", 1, 6, Measure::Requests(50)),
        ("scale = { min = 2, max = 3, on = \"cpu > 70%\" }\n", 2, 3, Measure::Cpu(70)),
        ("scale = { max = 15, on = \"p95>300ms\" }\n", 1, 15, Measure::Answer(300)),
        ("scale = { max = 2, on = \"p95>2s\" }\n", 1, 2, Measure::Answer(2_000)),
    ] {
        assert_eq!(want(text).unwrap(), Want::Load(Scale { min, max, on }), "{text}");
    }
    // And be available besides.
    let both = "availability = \"99%\"\nscale = { max = 6, on = \"rps>5\" }\n[port]\nhttp = true\n";
    let spec = case.parse(&process(both)).unwrap().to_spec(Vec::new());
    assert_eq!(spec.goal(), Some(990_000));
    assert!(matches!(spec.want, Want::Load(_)));
    for (text, why) in [
        ("scale = { max = 6, on = \"load>5\" }\n", "is no measure"),
        ("scale = { max = 6, on = \"rps>0\" }\n", "is no measure"),
        ("scale = { max = 6, on = \"cpu>170%\" }\n", "is no measure"),
        ("scale = { max = 16, on = \"rps>5\" }\n", "at most 15"),
        ("scale = { min = 4, max = 3, on = \"rps>5\" }\n", "at least 1"),
        ("scale = { on = \"rps>5\" }\n", "max"),
        ("replicas = 2\nscale = { max = 6, on = \"rps>5\" }\n", "leave replicas"),
        ("scale = { max = 6, on = \"rps>5\" }\n[state]\nsnapshot = \"5m\"\n", "replicas = 1"),
    ] {
        let error = want(text).unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
}

#[test]
fn unknown_keys_and_wrong_types_are_shown() {
    let case = Case::new();
    assert_eq!(
        case.error(&process("[health]\nhtpt = \"/\"\n")),
        "s.toml:4:1: unknown key `htpt`, expected one of `http`, `exec`, `interval`, `timeout`, \
         `failures`\n  |\n4 | htpt = \"/\"\n  | ^^^^"
    );
    assert_eq!(
        case.error("name = \"wiki\"\nreplicas = \"three\"\n"),
        "s.toml:2:12: replicas: invalid type: string \"three\", expected u8\n  |\n\
         2 | replicas = \"three\"\n  |            ^^^^^^^"
    );
    assert_eq!(case.error("replicas = 3\n"), "s.toml: missing key `name`");
    assert_eq!(
        case.error("name = \"wiki\"\nkind = \"wasm\"\n"),
        "s.toml:2:8: kind: \"wasm\" is not \"static\" (a folder) or \"process\" (a program)\n  |\n\
         2 | kind = \"wasm\"\n  |        ^^^^^^"
    );
}

#[test]
fn a_bad_name_is_shown() {
    assert_eq!(
        Case::new().error("name = \"a/b\"\ncommand = [\"/bin/true\"]\n"),
        "s.toml:1:1: name may hold lower-case letters, digits and '-', not starting with '-'; \
         \"a/b\" does not fit\n  |\n1 | name = \"a/b\"\n  | ^^^^^^^^^^^^"
    );
}

#[test]
fn artifacts_are_looked_at() {
    let case = Case::new();
    let dir = case.0.path().display().to_string();
    let text = SITE.replace("site/", "nowhere/");
    assert_eq!(
        case.error(&text).replace(&dir, "D"),
        "s.toml:4:7: artifacts.any: nowhere/: No such file or directory (os error 2) (looked for \
         nowhere/)\n  |\n4 | any = \"nowhere/\"\n  |       ^^^^^^^^^^"
    );
    let wiki = |arch: &str| {
        format!("name = \"wiki\"\ncommand = [\"./wiki\"]\n[artifacts]\n{arch} = \"build\"\n")
    };
    assert_eq!(
        case.error(&wiki("arm").replace("build", "site")),
        "s.toml:4:1: artifacts.arm: no such CPU; known are `any`, `x86_64`, `aarch64`, `armv7`, \
         `armv6`, `mipsel`, `riscv64`\n  |\n4 | arm = \"site\"\n  | ^^^"
    );
    case.program("build", &elf(183), 0o755);
    assert_eq!(
        case.error(&wiki("x86_64")),
        "s.toml:4:10: artifacts.x86_64: build/wiki is a program for aarch64\n  |\n\
         4 | x86_64 = \"build\"\n  |          ^^^^^^^"
    );
    assert!(case.error(&wiki("any")).contains("for example aarch64 = \"build\""));
    assert!(case.parse(&wiki("aarch64")).is_ok());
    case.program("build", b"#!/bin/sh\n", 0o755);
    assert!(case.parse(&wiki("any")).is_ok(), "a script runs anywhere");
    case.program("build", &elf(62), 0o644);
    assert!(case.error(&wiki("x86_64")).contains("build/wiki is not executable: chmod +x"));
    std::fs::remove_file(case.0.path().join("build/wiki")).unwrap();
    assert!(case.error(&wiki("x86_64")).contains("build/wiki, which the command runs: No such"));
}

#[test]
fn commands_name_what_they_run() {
    let case = Case::new();
    let with = |word: &str| case.error(&format!("name = \"w\"\ncommand = [\"{word}\"]\n"));
    assert!(with("python3").contains("say \"./python3\" for a program of the package"));
    assert!(with("./wiki").contains("[artifacts] names none"));
    assert!(with("../wiki").contains("leads out of the package"));
    assert!(case.parse(&process("")).is_ok(), "a program of the host");
}

#[test]
fn contradictions_are_refused() {
    let case = Case::new();
    let has = |more: &str, words: &str| {
        let error = case.error(&process(more));
        assert!(error.contains(words), "{error}");
    };
    has("replicas = 2\navailability = \"99%\"\n", "s.toml:3:1: replicas: say how many replicas or");
    has("replicas = 0\n", "s.toml:3:1: replicas must be at least 1");
    has("replicas = 99\n", "replicas must be at most 15");
    has("availability = \"100%\"\n", "s.toml:3:1: availability must be between");
    has("[port]\nhttp = true\ntcp = 5\n", "port: say one of http = true, tcp and udp");
    has("[port]\nudp = 5\ntcp = 5\n", "port: say one of http = true, tcp and udp");
    has("[port]\nudp = 0\n", "port.udp: 0 is no port");
    has("[port]\ntcp = 5\nreliable = true\n", "port.reliable: is for programs that are asked");
    has("[port]\nudp = 5\n[health]\nhttp = \"/\"\n", "health.http: the service has no port");
    has("[port]\ntcp = 0\n", "port.tcp: 0 is no port");
    has("[health]\nhttp = \"/\"\n", "health.http: the service has no port");
    has("[health]\ninterval = \"1ms\"\n", "health.interval: must be between 100ms and 24h");
    has("[health]\nfailures = 0\n", "health.failures: must be at least 1");
    has("[env]\nPORT = \"1\"\n", "env.PORT: the agent sets this variable itself");
    has("[env]\n\"A=B\" = \"1\"\n", "env.A=B: a variable is named with");
    has(
        "replicas = 2\n[state]\nsnapshot = \"5m\"\n",
        "s.toml:5:1: state.snapshot needs replicas = 1",
    );
    has("[state]\nsnapshot = \"1s\"\n", "s.toml:4:1: state.snapshot: must be between 10s");
    has("[state]\nkeep = false\nsnapshot = \"1m\"\n", "state.snapshot: keep = false says");
    has("[state]\nhook = [\"./save\"]\n", "state.hook: is run before each snapshot");
    has("single = true\nreplicas = 2\n", "s.toml:3:1: single: one replica and never a second");
    has("kind = \"static\"\n", "command: a static service is a folder and runs no program");
    let error = case.error("name = \"site\"\nkind = \"static\"\n");
    assert_eq!(error, "s.toml: a static service needs a folder: [artifacts] any = \"site/\"");
    assert!(case.error(&SITE.replace("any", "x86_64")).contains("the same for all: say any"));
}

#[test]
fn the_files_that_come_with_dugnad_are_good() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/services");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "toml" || ending == "jsdl") {
            seen += 1;
            let file = super::parse(&path).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(path.file_stem().unwrap().to_str(), Some(file.name()));
        }
    }
    assert!(seen >= 2, "found {seen} service files");
}

/// The program of `hello.toml` runs as its file says, and is what its health check expects.
#[test]
fn hello_answers_its_health_check() {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::process::{Command, Stdio};

    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/services");
    let file = super::parse(&folder.join("hello.toml")).unwrap();
    let spec = file.to_spec(Vec::new());
    if !Path::new(&spec.command[0]).exists() {
        eprintln!("skipped: this machine has no {}", spec.command[0]);
        return;
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut child = Command::new(&spec.command[0])
        .args(&spec.command[1..])
        .current_dir(&file.artifacts()[0].1)
        .env_clear()
        .env("PORT", port.to_string())
        .env("DUGNAD_NODE", "attic")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, format!("listening on 127.0.0.1:{port}\n"));
    let get = |path: &str| {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let Check::Http(path) = &spec.health.check else { panic!("no http check") };
    let (health, page) = (get(path), get("/"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(health.starts_with("HTTP/1.0 200") && health.ends_with("ok\n"), "{health}");
    assert!(page.ends_with("hello from replica ? of ? on node attic\n"), "{page}");
}

#[test]
fn what_it_needs_of_the_disk_holds_its_package() {
    let case = Case::new();
    let tree = |bytes| vec![(None, Tree { root: Hash([0; 32]), bytes })];
    let said = case.parse(&format!("{SITE}[needs]\ndisk = \"8M\"\n")).unwrap();
    assert_eq!(said.has_room(&tree(8 << 20)), Ok(()));
    let error = said.has_room(&tree(12 << 20)).unwrap_err();
    assert!(error.starts_with("site: needs.disk = \"8M\" is less than its package, which has 12M"));
    // Not said, it is as much as it takes.
    let open = case.parse(SITE).unwrap();
    assert_eq!(open.has_room(&tree(1 << 30)), Ok(()));
    assert_eq!(open.to_spec(tree(1 << 30)).needs.disk, 1 << 30);
    assert_eq!(open.to_spec(tree(5)).needs.disk, 64 << 20);
}

/// A job description with what is put into its parts; each on a line of its own.
fn job(program: &str, more: &str) -> String {
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<JobDefinition xmlns="http://schemas.ggf.org/jsdl/2005/11/jsdl"
    xmlns:posix="http://schemas.ggf.org/jsdl/2005/11/jsdl-posix">
  <JobDescription>
    <JobIdentification><JobName>fold</JobName><Description>all</Description></JobIdentification>
    <Application>
      <posix:POSIXApplication>
        <posix:Executable>/bin/true</posix:Executable>
{program}
      </posix:POSIXApplication>
    </Application>
{more}
  </JobDescription>
</JobDefinition>
"#
    )
}

#[test]
fn a_job_of_a_grid_becomes_a_service() {
    let case = Case::new();
    let program = r#"<posix:Argument>-n 3</posix:Argument>
<posix:Argument></posix:Argument>
<posix:Environment name="SEED">7</posix:Environment>
<posix:MemoryLimit>268435456</posix:MemoryLimit>
<posix:ProcessCountLimit>4</posix:ProcessCountLimit>"#;
    let more = r#"<Resources>
<CandidateHosts><HostName>attic</HostName><HostName>shed</HostName></CandidateHosts>
<OperatingSystem><OperatingSystemType>
<OperatingSystemName>LINUX</OperatingSystemName>
</OperatingSystemType></OperatingSystem>
<CPUArchitecture><CPUArchitectureName>arm</CPUArchitectureName></CPUArchitecture>
<IndividualCPUCount><Range>
<LowerBound>2.0</LowerBound><UpperBound exclusiveBound="true">9</UpperBound>
</Range></IndividualCPUCount>
<IndividualNetworkBandwidth>
<LowerBoundedRange>8000000.0</LowerBoundedRange>
</IndividualNetworkBandwidth>
<IndividualPhysicalMemory>
<LowerBoundedRange>1073741824.0</LowerBoundedRange>
</IndividualPhysicalMemory>
<IndividualDiskSpace><Exact>104857600</Exact></IndividualDiskSpace>
<TotalResourceCount><Exact>3</Exact></TotalResourceCount>
</Resources>
<DataStaging>
<FileName>.</FileName><CreationFlag>overwrite</CreationFlag>
<Source><URI>site/</URI></Source>
</DataStaging>"#;
    let file = case.parse(&job(program, more)).unwrap();
    let mut trees = Vec::new();
    for (arch, folder) in file.artifacts() {
        assert!(folder.ends_with("site"));
        trees.push((arch, Tree { root: Hash([1; 32]), bytes: 5 }));
    }
    assert_eq!(trees.len(), 1);
    let spec = file.to_spec(trees);
    assert_eq!(spec.check(), Ok(()));
    assert_eq!((spec.name.as_str(), spec.kind), ("fold", Kind::Process));
    assert_eq!((spec.want, spec.port), (Want::Replicas(3), Port::None));
    assert_eq!(spec.command, ["/bin/true", "-n 3", ""]);
    let needs = Amounts { memory: 256 << 20, cpu: 100, disk: 100 << 20, processes: 4 };
    assert_eq!(spec.needs, needs);
    let place = "name in attic,shed arch in aarch64,armv7,armv6 cores>=2 cores<9 uplink>=1000000";
    let env = [("SEED".to_owned(), "7".to_owned()), (spec::WHERE.to_owned(), place.to_owned())];
    assert_eq!(spec.env, env);
    assert!(spec.place().is_ok());
    // Where the program has no limit, what it asks of the machine is its share.
    let more = "<Resources><IndividualPhysicalMemory><Exact>99</Exact>\
                </IndividualPhysicalMemory></Resources>";
    assert_eq!(case.parse(&job("", more)).unwrap().to_spec(vec![]).needs.memory, 99);
}

/// What stands with the program, what beside it; the line of the error, and a part of it.
const IN_VAIN: &[(&str, &str, u32, &str)] = &[
    ("<posix:Output>out.txt</posix:Output>", "", 9, "Output has no meaning"),
    ("<posix:Environment>x</posix:Environment>", "", 9, "Environment says no name"),
    ("<posix:Environment name=\"PORT\">1</posix:Environment>", "", 9, "sets this variable"),
    ("<posix:MemoryLimit>-3</posix:MemoryLimit>", "", 9, "whole number above 0"),
    ("<posix:MemoryLimit>1.5</posix:MemoryLimit>", "", 9, "whole number above 0"),
    ("<posix:MemoryLimit><a/></posix:MemoryLimit>", "", 9, "a has no meaning"),
    ("<Argument>no such namespace</Argument>", "", 9, "Argument has no meaning"),
    ("", "<Resources>\n<FileSystem/></Resources>", 13, "FileSystem has no meaning"),
    ("", "<Resources>\n<ExclusiveExecution>true</ExclusiveExecution></Resources>", 13, "Excl"),
    (
        "",
        "<Resources><CPUArchitecture>\n<CPUArchitectureName>sparc</CPUArchitectureName>\
         </CPUArchitecture></Resources>",
        13,
        "no node has the processor \"sparc\"",
    ),
    (
        "",
        "<Resources><IndividualDiskSpace>\n<UpperBoundedRange>9</UpperBoundedRange>\
         </IndividualDiskSpace></Resources>",
        13,
        "an upper bound has no meaning",
    ),
    (
        "",
        "<Resources><IndividualCPUCount>\n<Exact epsilon=\"1\">9</Exact>\
         </IndividualCPUCount></Resources>",
        13,
        "epsilon has no meaning",
    ),
    (
        "",
        "<Resources>\n<TotalResourceCount><Exact>400</Exact></TotalResourceCount></Resources>",
        13,
        "replicas",
    ),
    (
        "",
        "<DataStaging><FileName>.</FileName><Source>\n<URI>http://example.org/x</URI>\
         </Source></DataStaging>",
        13,
        "only folders of this machine",
    ),
    (
        "",
        "<DataStaging><FileName>.</FileName><Source>\n<URI>file:nowhere</URI>\
         </Source></DataStaging>",
        13,
        "nowhere: No such file",
    ),
    ("</posix:Executable>", "", 9, "no well-formed XML"),
];

#[test]
fn what_a_job_wants_in_vain_is_an_error_with_its_line() {
    let case = Case::new();
    let says = |program: &str, more: &str| {
        let error = case.error(&job(program, more));
        let place = error.split(": ").next().unwrap().to_owned();
        (place, error.lines().next().unwrap().split_once(": ").unwrap().1.to_owned())
    };
    for (program, more, line, part) in IN_VAIN {
        let (place, says) = says(program, more);
        assert!(place.starts_with(&format!("s.toml:{line}:")), "{program}{more}: {place} {says}");
        assert!(says.contains(part), "{program}{more}: {says}");
    }
    assert!(case.error("<a/>").contains("no job description"));
    assert!(case.error("<").contains("no well-formed XML"));
    let bomb = "<!DOCTYPE a [<!ENTITY b \"b\">]><a>&b;</a>";
    assert!(case.error(bomb).contains("no well-formed XML"), "{}", case.error(bomb));
    let nameless = job("", "").replace("<JobName>fold</JobName>", "");
    assert!(case.error(&nameless).contains("JobName is missing"));
    let odd = job("", "").replace(">fold<", ">My Fold<");
    assert!(case.error(&odd).starts_with("s.toml:5:"), "{}", case.error(&odd));
}
