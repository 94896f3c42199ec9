//! The programs for boards: what they weigh, and how long each takes from its start until it and a
//! node of this machine see each other. `DUGNAD_BOARDS` is the folder cross/build writes to; run
//! it by `cross/binfmt.py`, so that the kernel hands the programs to their emulators.

use std::path::{Path, PathBuf};
use std::time::Instant;

use dugnad_cluster::{Community, Options, program};

use crate::{Row, seconds};

const TARGETS: [&str; 6] = ["x86_64", "aarch64", "armv7", "armv6", "riscv64", "mipsel"];
const ROUNDS: usize = 3;

fn joins(board: &Path) -> f64 {
    let programs = vec![program().to_path_buf(), board.to_path_buf()];
    let mut community = Community::found("bench", 2, Options { programs, ..Options::default() });
    community.ends_silent = false;
    community.start(0);
    let start = Instant::now();
    community.start(1);
    community.wait_whole();
    start.elapsed().as_secs_f64()
}

pub(crate) fn rows() -> Vec<Row> {
    let Some(folder) = std::env::var_os("DUGNAD_BOARDS").map(PathBuf::from) else {
        return vec![Row::new("boards", "", "not measured: no DUGNAD_BOARDS".to_owned())];
    };
    let mut rows = Vec::new();
    for target in TARGETS {
        let board = folder.join(format!("dugnad-{target}"));
        let Ok(meta) = board.metadata() else { continue };
        let (joined, _) = seconds((0..ROUNDS).map(|_| joins(&board)).collect());
        let measured = format!("{} bytes; start to joined {joined}", meta.len());
        rows.push(Row::new(format!("program for {target}"), "", measured));
    }
    rows
}
