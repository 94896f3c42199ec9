//! What services are promised, and what they get, while machines come and go. By hand, for a month:
//! `cargo sim -- service --nodes 40 --days 30 --services 200 --churn office`.

#![expect(clippy::unwrap_used, reason = "tests")]

use dugnad_sim::promise::{Churn, Plan, churn, goals, parse, run};

/// Services with goals that can be reached get at least what they were promised, with fewer
/// replicas than the three one would guess; the others what was said they would get.
#[test]
fn what_was_promised_is_kept() {
    let (nodes, before, days) = (10, 7, 3);
    for (model, seed) in [(Churn::Home, 2), (Churn::Mixed, 3)] {
        let changes = churn(model, nodes, before + days, seed);
        let plan = Plan { nodes, seed, before, days, changes };
        let kept = run(&plan, &goals(10), |_| {}).unwrap();
        let said = |kept: &&dugnad_sim::promise::Kept| kept.promised.unwrap().up;
        let short = kept.iter().filter(|kept| kept.measured < said(kept)).count();
        let replicas = kept.iter().map(|kept| kept.replicas).max().unwrap();
        println!("{model:?}: {short} of 10 short, at most {replicas} thousandths of replicas");
        assert!(short == 0, "{model:?}: {kept:?}");
        assert!(replicas < 3_000, "{model:?}: {kept:?}");
    }
}

/// Where all machines lose power at the same hours, nobody is there to see it: they find out by
/// what they wrote down before. (They were promised 98.6 % and got 77 % when that was seldom.)
#[test]
fn hours_in_which_all_are_off_are_learned() {
    let (nodes, before, days, seed) = (5, 7, 14, 3);
    let changes = churn(Churn::Home, nodes, before + days, seed);
    let kept = run(&Plan { nodes, seed, before, days, changes }, &goals(1), |_| {}).unwrap();
    let (up, measured) = (kept[0].promised.unwrap().up, kept[0].measured);
    println!("promised {up}, got {measured} millionths");
    assert!(measured < 850_000, "somebody was up: the test says nothing");
    assert!(up < measured + 80_000, "promised {up}, got {measured}");
}

#[test]
fn a_trace_says_which_line_is_wrong() {
    let changes = parse("node,seconds,state\n# ours\n1,60,down\n0,5,down\n\n1,90,up\n", 2).unwrap();
    let told: Vec<_> = changes.iter().map(|c| (c.at, c.node, c.up)).collect();
    assert_eq!(told, [(5, 0, false), (60, 1, false), (90, 1, true)]);
    for (text, line) in [("0,1,up\n2,1,up", 2), ("0,-1,up", 1), ("0,1", 1), ("0,1,away", 1)] {
        let why = parse(text, 2).unwrap_err();
        assert!(why.starts_with(&format!("line {line}: ")), "{why}");
    }
}
