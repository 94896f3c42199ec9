//! How the release binary is linked: without unwind tables (see `no-unwind.ld`).

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=no-unwind.ld");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    // Every profile that inherits from `release` aborts on a panic (the workspace's Cargo.toml).
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_OS", "linux") {
        let here = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
        println!("cargo::rustc-link-arg-bins=-Wl,--no-eh-frame-hdr,-T,{here}/no-unwind.ld");
    }
}
