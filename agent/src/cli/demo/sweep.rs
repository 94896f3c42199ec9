//! Finds the processes a demo started, also those whose agent was killed, by the demo's own mark:
//! agents carry it as `DUGNAD_DEMO`, services as an argument, and helpers of this same program
//! (keepers of logs) are at home in the demo's folder. Never by the program's name alone.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(super) const VARIABLE: &str = "DUGNAD_DEMO";

/// Processes that carry `mark`, or run our own program in `dir`; not this one.
fn marked(mark: &str, dir: &Path) -> Vec<Pid> {
    let program = fs::read_link("/proc/self/exe").ok();
    let variable = format!("{VARIABLE}={mark}");
    let own = Pid::this();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let number: i32 = entry.file_name().to_str()?.parse().ok()?;
            // Unreadable ones belong to others, or are gone already.
            let has = |file: &str, word: &str| {
                let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
                bytes.split(|&byte| byte == 0).any(|found| found == word.as_bytes())
            };
            let link = |file: &str| fs::read_link(entry.path().join(file)).ok();
            let at_home = || {
                link("cwd").is_some_and(|cwd| cwd.starts_with(dir))
                    && program.is_some()
                    && link("exe") == program
            };
            (has("cmdline", mark) || has("environ", &variable) || at_home())
                .then(|| Pid::from_raw(number))
        })
        .filter(|pid| *pid != own)
        .collect()
}

/// Ends all processes that carry `mark`, or run our own program in `dir`. How many could not be
/// ended.
pub(super) fn end(mark: &str, dir: &Path) -> usize {
    // A process may start another while we look: look until there is none.
    for _ in 0..100 {
        let found = marked(mark, dir);
        if found.is_empty() {
            return 0;
        }
        for pid in found {
            // It may have ended by itself; the next look tells.
            let _: nix::Result<()> = kill(pid, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    marked(mark, dir).len()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn only_what_carries_the_mark_is_ended() {
        let nowhere = Path::new("/nonexistent");
        let mark = format!("sweep-test-{}", std::process::id());
        let other = format!("{mark}-other");
        let start = |variable: &str, argument: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", "read _", argument]).env(VARIABLE, variable);
            command.stdin(Stdio::piped()).spawn().unwrap()
        };
        let mut marked = [start(&mark, "x"), start("x", &mark)];
        let mut spared = start(&other, &other);
        // Until exec, a child still shows its parent's words: wait for its own.
        while super::marked(&mark, nowhere).len() < 2 {
            std::thread::yield_now();
        }
        // Whoever is waited for is no longer found; zombies have neither words nor variables.
        assert_eq!(end(&mark, nowhere), 0);
        for child in &mut marked {
            assert!(!child.wait().unwrap().success());
        }
        assert!(spared.try_wait().unwrap().is_none());
        drop(spared.stdin.take());
        spared.wait().unwrap();
    }
}
