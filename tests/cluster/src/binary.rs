//! Which `dugnad` is tested.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The program under test: `DUGNAD_BIN`, else built by cargo once, in the profile of the test.
///
/// # Panics
/// There is none, and none can be built.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(program) = std::env::var_os("DUGNAD_BIN").map(PathBuf::from) {
            assert!(program.is_file(), "DUGNAD_BIN: {} is not there", program.display());
            return std::path::absolute(program).unwrap_or_else(|error| panic!("{error}"));
        }
        build()
    })
}

fn build() -> PathBuf {
    let cargo = std::env::var_os("CARGO");
    let cargo = cargo.unwrap_or_else(|| panic!("no cargo here: set DUGNAD_BIN to a built dugnad"));
    // PROFILE/deps/TEST-hash, or PROFILE/PROGRAM
    let own = std::env::current_exe().unwrap_or_else(|error| panic!("{error}"));
    let folders = own.ancestors().skip(1).filter_map(Path::file_name);
    let folder = folders.into_iter().find(|name| *name != "deps");
    let profile = match folder.and_then(|name| name.to_str()) {
        None | Some("debug") => "dev",
        Some(other) => other,
    };
    let output = Command::new(cargo)
        .args(["build", "--package", "dugnad", "--profile", profile])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|error| panic!("cargo: {error}"));
    assert!(output.status.success(), "dugnad does not build; set DUGNAD_BIN to a built one");
    let built = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "dugnad")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    built.unwrap_or_else(|| panic!("cargo built no dugnad; set DUGNAD_BIN to a built one"))
}

/// The program without what only debuggers read: small enough to be sent around as a package.
///
/// # Panics
/// It cannot be copied.
pub fn slim_program(to: &Path) {
    let stripped = Command::new("strip").arg("-o").arg(to).arg(program()).status();
    if !stripped.is_ok_and(|status| status.success()) {
        std::fs::copy(program(), to).unwrap_or_else(|error| panic!("{}: {error}", to.display()));
    }
}
