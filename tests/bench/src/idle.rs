//! What one idle node of five costs.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use dugnad_cluster::{Community, Options, program};

use crate::Row;

/// After the last change stabilisation is fast for a minute; then the community is idle.
const SETTLE: Duration = Duration::from_secs(100);
const MINUTES: u64 = 2;

struct Sample {
    /// Clock ticks of CPU, user and system.
    ticks: u64,
    switches: u64,
    sent: u64,
    received: u64,
    frames: u64,
    written: u64,
}

/// The number after `key` in a file of /proc.
fn number(path: &str, key: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn switches(pid: i32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .map(|task| {
            let path = task.path().join("status");
            let path = path.to_string_lossy();
            number(&path, "voluntary_ctxt_switches:") + number(&path, "nonvoluntary_ctxt_switches:")
        })
        .sum()
}

fn sample(community: &Community, node: usize) -> Sample {
    let pid = community.pid(node).as_raw();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in brackets may hold spaces.
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |place: usize| fields.get(place).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    Sample {
        switches: switches(pid),
        ticks: field(11) + field(12),
        sent: community.counter(node, "bytes_out"),
        received: community.counter(node, "bytes_in"),
        frames: community.counter(node, "frames_in") + community.counter(node, "frames_out"),
        written: number(&format!("/proc/{pid}/io"), "write_bytes:"),
    }
}

/// What one node did in the minutes between two samples of it.
fn node_rows(community: &Community, node: usize, before: &Sample, kind: &str) -> Vec<Row> {
    let after = sample(community, node);
    let status = format!("/proc/{}/status", community.pid(node).as_raw());
    let (rss, anonymous) = (number(&status, "VmRSS:"), number(&status, "RssAnon:"));
    let per_minute = |to: u64, from: u64| (to - from) / MINUTES;
    let ticks_per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
    let ticks_per_second = ticks_per_second.ok().flatten().unwrap_or(100) as f64;
    let cpu = (after.ticks - before.ticks) as f64 / ticks_per_second / MINUTES as f64;
    let switches = per_minute(after.switches, before.switches);
    let wire = per_minute(after.sent + after.received, before.sent + before.received);
    let frames = per_minute(after.frames, before.frames);
    let written = after.written - before.written;
    let row = |what: &str, budget, measured| Row::new(format!("{what}{kind}"), budget, measured);
    vec![
        row("idle memory, resident", "≤ 6 MB", format!("{:.1} MB", rss as f64 / 1024.0))
            .kept(rss <= 6 * 1024),
        row("of it anonymous", "≤ 3 MB", format!("{:.1} MB", anonymous as f64 / 1024.0))
            .kept(anonymous <= 3 * 1024),
        row("idle CPU", "≤ 0.05 s/min", format!("{cpu:.3} s/min")).kept(cpu <= 0.05),
        row("idle wakeups, all threads", "≤ 600/min", format!("{switches}/min"))
            .kept(switches <= 600),
        row(
            "idle traffic, both ways, without TCP headers",
            "≤ 10 kB/min",
            format!("{:.1} kB/min in {frames} frames", wire as f64 / 1e3),
        )
        .kept(wire <= 10_000),
        row(
            &format!("idle disk writes in {MINUTES} minutes"),
            "0 bytes in 10 minutes",
            format!("{written} bytes"),
        )
        .kept(written == 0),
    ]
}

/// With `DUGNAD_BOARDS`, one of the five runs the static program, and is measured beside the other.
pub(crate) fn rows() -> Vec<Row> {
    let mut programs = vec![program().to_path_buf(); 3];
    let mut measured = vec![(2, "")];
    if let Some(folder) = std::env::var_os("DUGNAD_BOARDS").map(PathBuf::from) {
        programs.push(folder.join("dugnad-x86_64"));
        measured.push((3, "; static"));
    }
    let community = Community::with("bench-idle", 5, Options { programs, ..Options::default() });
    let site = community.folder("site");
    dugnad_cluster::write(&site.join("index.html"), "<h1>idle</h1>");
    let file = format!(
        "name = \"site\"\nkind = \"static\"\nreplicas = 3\n[artifacts]\nany = \"{}\"\n",
        site.display()
    );
    community.deploy(0, &community.service_file("site", &file));
    eprintln!("settling for {SETTLE:?}, then measuring for {MINUTES} minutes");
    std::thread::sleep(SETTLE);
    let before: Vec<Sample> = measured.iter().map(|&(node, _)| sample(&community, node)).collect();
    std::thread::sleep(Duration::from_secs(60 * MINUTES));
    let nodes = measured.iter().zip(&before);
    nodes.flat_map(|(&(node, kind), before)| node_rows(&community, node, before, kind)).collect()
}
