//! What a service wrote goes with it, and one of which only one may run never runs twice: real
//! agents and processes.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::Duration;

use dugnad_cluster::{Community, PATIENCE, holds, processes_of, say, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longer than a lease lasts, and what is done before and after.
const LEASE: Duration = Duration::from_secs(90);

/// A service that writes a line into its diary at every start.
fn diary(community: &Community, more: &str) -> String {
    let text = format!(
        "name = \"diary\"\ncommand = [\"/bin/sh\", \"-c\", \
         \"echo $DUGNAD_NODE $DUGNAD_FENCE >> $STATE_DIRECTORY/diary; exec sleep 100000\"]\n\
         {more}[state]\nsnapshot = \"10s\"\n"
    );
    community.service_file("diary", &text)
}

/// The lines of the diary on a node where the service runs; of several folders the longest.
fn lines(community: &Community, node: usize) -> Vec<String> {
    let folders = fs::read_dir(community.nodes[node].dir.join("services")).into_iter().flatten();
    let diaries = folders.flatten().map(|folder| folder.path().join("state/diary"));
    let texts = diaries.filter_map(|diary| fs::read_to_string(diary).ok());
    let longest = texts.max_by_key(String::len).unwrap_or_default();
    longest.lines().map(str::to_owned).collect()
}

/// The node that runs it, when it is another than `before`, and that never two run meanwhile.
fn next(community: &Community, ask: usize, before: usize, limit: Duration) -> usize {
    until("another node runs it", limit, || {
        let running = processes_of(&community.mark, "diary");
        assert!(running.len() <= 1, "two run: {running:?}");
        let ready = community.ready_on(ask, "diary")?;
        ready.first().copied().filter(|node| *node != before).ok_or_else(|| format!("{ready:?}"))
    })
}

fn kept(community: &Community, node: usize) {
    until("a snapshot is kept", PATIENCE, || {
        let said = community.cli(node, &["why", "diary"]);
        let kept =
            said.out.lines().any(|line| line.contains("its state:") && line.contains("kept"));
        holds(kept && !said.out.contains("nothing kept"), || said.all())
    });
}

#[test]
fn a_diary_outlives_the_nodes_it_was_written_at() {
    let mut community = Community::new("diary", 4);
    let start = community.start;
    community.deploy(0, &diary(&community, ""));
    let first = community.ready_on(0, "diary").unwrap()[0];
    kept(&community, first);

    say(start, "its node leaves");
    let ask = (first + 1) % 4;
    community.ok(first, &["leave"]);
    assert!(community.wait_end(first).success());
    let second = next(&community, ask, first, PATIENCE);
    until("nothing is lost", PATIENCE, || {
        let lines = lines(&community, second);
        holds(lines.len() == 2, || format!("{lines:?}"))
    });
    kept(&community, second);
    let told = community.json(ask, &["ls", "state"]).unwrap();
    assert_eq!(told[0]["key"], "state/diary");

    say(start, "its node dies, and the service with it");
    // The snapshot with both lines.
    let both = lines(&community, second).join("\n").len() as u64;
    until("both lines are kept", PATIENCE, || {
        let said = community.cli(second, &["why", "diary"]);
        holds(said.out.contains(&format!("its state: {}", both + 1)), || said.all())
    });
    let victims = processes_of(&community.mark, "diary");
    community.kill(second);
    for (_, _, pid) in victims {
        // It may have ended with its parent.
        _ = kill(Pid::from_raw(-pid), Signal::SIGKILL);
    }
    let ask = (0..4).find(|node| community.runs(*node)).unwrap();
    let third = next(&community, ask, second, PATIENCE);
    until("it begins with the snapshot", PATIENCE, || {
        let lines = lines(&community, third);
        holds(lines.len() == 3, || format!("{lines:?}"))
    });

    say(start, "removed");
    community.ok(ask, &["rm", "diary"]);
    assert_eq!(community.json(ask, &["ls", "state"]).unwrap().as_array().map(Vec::len), Some(0));
}

#[test]
fn one_that_is_single_never_runs_twice() {
    let mut community = Community::new("single", 3);
    let start = community.start;
    until("three keep leases", PATIENCE, || {
        let said = community.cli(0, &["put", "reg/a", "--strong", "one"]);
        holds(said.err.contains("on a majority of 3 nodes"), || said.all())
    });
    community.deploy(0, &diary(&community, "single = true\n"));
    let first = community.ready_on(0, "diary").unwrap()[0];
    kept(&community, first);
    let name = |node: usize| community.nodes[node].name.clone();
    assert_eq!(lines(&community, first), [format!("{} 1", name(first))]);

    say(start, "its agent dies, and it runs on: until its lease is over");
    let expected = [format!("{} 1", name(first))];
    community.kill(first);
    let ask = (first + 1) % 3;
    let second = next(&community, ask, first, LEASE);
    until("the next has the next number", PATIENCE, || {
        let lines = lines(&community, second);
        let name = &community.nodes[second].name;
        let fence = lines.last().and_then(|line| line.strip_prefix(&format!("{name} ")));
        let grew = fence.and_then(|fence| fence.parse().ok()).is_some_and(|fence: u64| fence > 1);
        holds(lines.starts_with(&expected) && grew, || format!("{lines:?}"))
    });

    say(start, "the agent is back");
    community.start(first);
    community.wait_exactly(ask, "diary", 1, PATIENCE);
    community.ok(ask, &["rm", "diary"]);
}
