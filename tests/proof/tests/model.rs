//! T2.7 of PROTOCOL.md 2.12: every interleaving of a few joins, leaves, failures and rounds of
//! stabilisation in a small ring, with lists of two. Z1 to Z6 at every state, I-OWN while nothing
//! failed, and from every state with nothing under way the ring becomes ideal (Z7).
//!
//! Each test says how many states there are. `MODEL=20000000 cargo test --profile sim -p
//! dugnad-proof --test model bigger -- --nocapture --test-threads 1` looks at so many states of
//! larger ones, too (some 400 bytes and 20 microseconds each).

use dugnad_proof::explore::{Report, explore};
use dugnad_proof::model::Bounds;

/// More than any of these has.
const LIMIT: usize = 2_000_000;

/// All states; `at_least` so many, or the bounds have become tame.
fn all(name: &str, bounds: Bounds, at_least: usize) -> Report {
    match explore(bounds, LIMIT) {
        Ok(report) => {
            println!("{name}: {report}");
            assert!(!report.cut, "{name}: more than {LIMIT} states");
            assert!(report.states >= at_least, "{name}: only {} states", report.states);
            report
        }
        Err(wrong) => panic!("{name}: {wrong}"),
    }
}

fn four() -> Bounds {
    Bounds { inside: "abcd", outside: "", ..Bounds::default() }
}

fn five() -> Bounds {
    Bounds { inside: "abde", outside: "c", ..Bounds::default() }
}

/// Nobody fails, and there may be fewer than three.
fn graceful() -> Bounds {
    Bounds { principals: false, ..Bounds::default() }
}

#[test]
fn one_becomes_four_and_any_three_leave() {
    let bounds = Bounds { inside: "a", outside: "bcd", leaves: 3, ..graceful() };
    all("a ring of one, three join, three leave", bounds, 150_000);
}

#[test]
fn four_leave_at_once() {
    let bounds = Bounds { inside: "abcd", outside: "", leaves: 4, rounds: 1, ..graceful() };
    all("four leave, one round", bounds, 10_000);
}

#[test]
fn joins_beside_each_other() {
    let bounds = Bounds { inside: "ab", outside: "cd", leaves: 2, rounds: 1, ..graceful() };
    all("two of four join, two leave, one round", bounds, 50_000);
    let bounds = Bounds { inside: "ac", outside: "bd", leaves: 2, rounds: 1, ..graceful() };
    all("two join in different places, two leave, one round", bounds, 50_000);
}

#[test]
fn a_join_and_a_leave() {
    all("one joins, one leaves, two rounds", Bounds { leaves: 1, rounds: 2, ..graceful() }, 15_000);
    let bounds = Bounds { leaves: 1, rounds: 2, ..Bounds::default() };
    all("one joins, one leaves, two rounds, three principals", bounds, 10_000);
}

#[test]
fn a_join_and_a_failure() {
    let bounds = Bounds { fails: 1, rounds: 2, ..Bounds::default() };
    all("one joins, one fails, two rounds", bounds, 300_000);
}

#[test]
fn a_failure_of_four() {
    all("one of four fails, one round", Bounds { fails: 1, rounds: 1, ..four() }, 30_000);
    let bounds = Bounds { fails: 1, forgets: true, ..four() };
    all("one of four fails, the dead are forgotten", bounds, 100_000);
}

#[test]
fn a_failure_of_five_while_one_joins() {
    all("one of four joins and one fails", Bounds { fails: 1, ..five() }, 200_000);
}

#[test]
fn a_failure_while_two_join() {
    let bounds = Bounds { inside: "abd", outside: "ce", fails: 1, ..Bounds::default() };
    all("two join and one fails", bounds, 200_000);
}

#[test]
fn a_lease_that_ends_too_early() {
    let bounds = Bounds { leases: 1, rounds: 1, ..Bounds::default() };
    all("one joins, a lease ends too early, one round", bounds, 900);
    let bounds = Bounds { leases: 1, leaves: 1, rounds: 1, ..four() };
    all("one of four leaves, a lease ends too early, one round", bounds, 40_000);
}

/// Guards the checks.
#[test]
fn without_fifo_it_fails() {
    let bounds = Bounds { leaves: 1, rounds: 1, fifo: false, ..graceful() };
    let wrong = explore(bounds, LIMIT).err();
    println!("without FIFO: {}", wrong.as_deref().unwrap_or("nothing"));
    assert!(wrong.is_some_and(|wrong| wrong.contains("own")), "the checks are too tame");
}

#[test]
fn bigger() {
    let Some(limit) = std::env::var("MODEL").ok().and_then(|limit| limit.parse().ok()) else {
        return;
    };
    let models = [
        ("join, leave, fail of five", Bounds { fails: 1, leaves: 1, ..five() }),
        ("join and two fail of five", Bounds { fails: 2, ..five() }),
        ("join, fail, lease of five", Bounds { fails: 1, leases: 1, ..five() }),
        ("join and fail, three rounds", Bounds { fails: 1, rounds: 3, ..Bounds::default() }),
        ("two fail of five", Bounds { inside: "abcde", outside: "", fails: 2, ..five() }),
    ];
    for (name, bounds) in models {
        match explore(bounds, limit) {
            Ok(report) => println!("{name}: {report}"),
            Err(wrong) => panic!("{name}: {wrong}"),
        }
    }
}
