#![allow(clippy::unwrap_used)]

use std::ffi::OsString;

use super::*;

const ANNOTATED: &str = include_str!("../../../configs/dugnad.toml");
const MINIMAL: &str = include_str!("../../../configs/minimal.toml");

fn host() -> HostFacts {
    HostFacts { name: "attic".to_owned(), memory: 8 << 30 }
}

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("d/dugnad.toml"), text, &host()).map_err(|error| error.to_string())
}

#[test]
fn the_annotated_file_says_every_key_and_its_default() {
    assert_eq!(parse(ANNOTATED).unwrap(), parse("").unwrap());
    let keys = [
        "node.name",
        "node.zone",
        "node.tags",
        "community.seeds",
        "listen.overlay",
        "listen.gateway",
        "limits.cpu",
        "limits.memory",
        "limits.disk",
        "limits.processes",
        "limits.upload",
        "when.schedule",
        "when.on_battery",
        "when.busy_above",
        "policy.allow",
        "policy.network",
        "policy.require",
        "log.level",
    ];
    // The defaults of name and zone are the host's own: they stand there as comments.
    let written = ANNOTATED.replace("# name", "name").replace("# zone", "zone");
    for key in keys {
        assert!(file::find_key(&written, key).is_some(), "{key} is missing");
    }
    let count = written.lines().filter(|l| !l.starts_with('#') && l.contains('=')).count();
    assert_eq!(count, keys.len(), "a key was added without being named here");
}

#[test]
fn the_minimal_file_is_one() {
    let config = parse(MINIMAL).unwrap();
    assert_eq!(config.seeds, ["203.0.113.9:7407"]);
}

#[test]
fn defaults_are_careful() {
    let config = parse("").unwrap();
    let amounts = config.ceilings().amounts;
    assert_eq!((amounts.cpu, amounts.memory), (500, 128 << 20));
    assert_eq!((amounts.disk, amounts.processes), (2 << 30, 64));
    assert_eq!(config.name, "attic");
    let board = HostFacts { name: "board".to_owned(), memory: 256 << 20 };
    let small = Config::parse(Path::new("x"), "", &board).unwrap();
    assert_eq!(small.ceilings().amounts.memory, 64 << 20);
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let text = "[limits]\ncpu = \"50%\"\nmemmory = \"64M\"\n";
    assert_eq!(
        parse(text).unwrap_err(),
        "d/dugnad.toml:3:1: unknown key `memmory`, expected one of `cpu`, `memory`, `disk`, \
         `processes`, `upload`\n  |\n3 | memmory = \"64M\"\n  | ^^^^^^^"
    );
    let text = "# one\n\n[limit]\n";
    assert_eq!(
        parse(text).unwrap_err(),
        "d/dugnad.toml:3:2: unknown key `limit`, expected one of `node`, `community`, `listen`, \
         `limits`, `when`, `policy`, `log`\n  |\n3 | [limit]\n  |  ^^^^^"
    );
}

#[test]
fn a_wrong_value_is_shown_with_what_is_allowed() {
    assert_eq!(
        parse("[limits]\ncpu = \"half\"\n").unwrap_err(),
        "d/dugnad.toml:2:7: limits.cpu: \"half\" is not a share of a processor: \"50%\" of one \
         core, or a number of cores such as \"2.0\"\n  |\n2 | cpu = \"half\"\n  |       ^^^^^^"
    );
    assert_eq!(
        parse("[limits]\nmemory = 64\n").unwrap_err(),
        "d/dugnad.toml:2:10: limits.memory: invalid type: integer `64`, expected a size such as \
         \"64M\" or \"1G\" (units K, M, G of 1024)\n  |\n2 | memory = 64\n  |          ^^"
    );
    let text = "[community]\nseeds = [\n  \"203.0.113.9:7407\",\n  \"0.0.0.0:7407\",\n]\n";
    assert_eq!(
        parse(text).unwrap_err(),
        "d/dugnad.toml:4:3: community.seeds: \"0.0.0.0:7407\" is not an address and port such as \
         \"203.0.113.9:7407\"\n  |\n4 |   \"0.0.0.0:7407\",\n  |   ^^^^^^^^^^^^^^"
    );
    assert!(parse("[when]\nschedule = \"22:00-7\"").unwrap_err().contains("\"22:00-07:00\""));
    assert!(parse("[policy]\nrequire = [\"magic\"]").unwrap_err().contains("\"landlock\""));
}

#[test]
fn broken_toml_says_where() {
    let error = parse("[limits]\ncpu = \"50%\nmemory = 3\n").unwrap_err();
    assert!(error.starts_with("d/dugnad.toml:2:"), "{error}");
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = Dirs::resolve(Some(dir.path()), &|_| None, false).unwrap();
    std::fs::write(&dirs.config, "[listen]\noverlay = \"0.0.0.0:1\"\ngateway = \"off\"\n").unwrap();
    let env = |name: &str| {
        matches!(name, "DUGNAD_OVERLAY" | "DUGNAD_NAME").then(|| match name {
            "DUGNAD_NAME" => OsString::from("env"),
            _ => OsString::from("0.0.0.0:2"),
        })
    };
    let flags = Overrides { overlay: Some("0.0.0.0:3".to_owned()), ..Overrides::default() };
    let config = Config::load(&dirs, &flags, &env).unwrap();
    assert_eq!((config.overlay.port(), config.gateway), (3, None));
    assert_eq!(config.name, "env");
    let config = Config::load(&dirs, &Overrides::default(), &|_| None).unwrap();
    assert_eq!(config.overlay.port(), 1);
    let flags = Overrides { gateway: Some("here".to_owned()), ..Overrides::default() };
    assert_eq!(
        Config::load(&dirs, &flags, &|_| None).unwrap_err(),
        "--gateway: \"here\" is not an address and port such as \"127.0.0.1:7480\", or \"off\""
    );
}

#[test]
fn what_is_not_acted_upon_is_named() {
    let quiet = "[limits]\nupload = \"unlimited\"\n[when]\non_battery = \"run\"\n\
                 busy_above = \"100%\"\n[policy]\nnetwork = \"internet\"\n";
    assert_eq!(parse(quiet).unwrap().not_enforced(), Vec::<String>::new());
    let asking = quiet.replace("busy_above = \"100%\"", "schedule = \"22:00-07:05\"");
    let named = parse(&asking).unwrap().not_enforced();
    assert_eq!(named, ["when.schedule = \"22:00-07:05\"", "when.busy_above = \"80%\""]);
}

#[test]
fn setting_a_key_leaves_the_rest_as_it_was() {
    let seeds = "[\"203.0.113.9:7407\"]";
    let cases = [
        ("", "[community]\nseeds = [\"203.0.113.9:7407\"]\n"),
        (
            "[limits]\ncpu = \"1%\"",
            "[limits]\ncpu = \"1%\"\n\n[community]\nseeds = [\"203.0.113.9:7407\"]\n",
        ),
        ("[community] # us\n[log]\n", "[community] # us\nseeds = [\"203.0.113.9:7407\"]\n[log]\n"),
        (
            "[community]\nseeds = []\n[log]\n",
            "[community]\nseeds = [\"203.0.113.9:7407\"]\n[log]\n",
        ),
    ];
    for (before, after) in cases {
        assert_eq!(file::set(before, "community", "seeds", seeds), after);
        assert_eq!(parse(after).unwrap().seeds, ["203.0.113.9:7407"]);
    }
}
