//! The scenarios a reader should know, as texts in `transcripts/`: what the overlays that ship say
//! to each other, and what that changes. `(c, d]` is what d owns after c; `#1` is the operation
//! number of the first join or leave; what stabilisation and failure detector say is told where it
//! changes something.
//!
//! `TRANSCRIPT=write cargo test --profile sim -p dugnad-proof --test transcripts` writes them anew.

use std::path::PathBuf;

use dugnad_connectivity::config::SUCCESSORS;
use dugnad_connectivity::{Command, overlay};
use dugnad_proof::stage::{Stage, Tell};
use dugnad_proof::transcript;
use dugnad_proof::words::node;

fn check(name: &str, about: &str, text: &str) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("transcripts");
    transcript::check(&folder, name, about, text, "dugnad-proof");
}

fn ring(letters: &str) -> Stage {
    let mut stage = Stage::ring(letters, SUCCESSORS);
    stage.tell(Tell::Story);
    stage
}

#[test]
fn join() {
    let mut stage = ring("aceg");
    stage.starts('d', 'g');
    stage.run(1_000);
    let about = "A join (PROTOCOL.md 2.4, J1 to J6): d enters between c and e.";
    check("join", about, &stage.end());
}

#[test]
fn leave() {
    let mut stage = ring("acdeg");
    stage.command('d', "leaves", Command::Leave);
    stage.run(3_000);
    let about = "A leave (PROTOCOL.md 2.4, L1 to L7): d goes, e takes over what it owned.";
    check("leave", about, &stage.end());
}

#[test]
fn two_neighbours_leave_at_once() {
    let mut stage = ring("acdeg");
    stage.command('c', "leaves", Command::Leave);
    stage.command('d', "leaves, too", Command::Leave);
    stage.run(4_000);
    let about = "Two neighbours leave at once: d is locked by its own leave and refuses c, which \
                 lets go of its lock and tries again, then at e.";
    check("two-neighbours-leave", about, &stage.end());
}

#[test]
fn two_joins_into_one_arc() {
    let mut stage = ring("aeg");
    stage.starts('c', 'a');
    stage.starts('d', 'a');
    stage.run(2_000);
    let about = "Two joins into one arc: e gives one of them its lock and refuses the other, \
                 which comes again.";
    check("two-joins-one-arc", about, &stage.end());
}

#[test]
fn a_leave_while_a_join_is_under_way() {
    let mut stage = ring("aceg");
    stage.starts('d', 'a');
    stage.until_sent('e', 'd', "JoinPoint");
    stage.command('c', "leaves; it is the predecessor of d that is not in yet", Command::Leave);
    stage.command('e', "leaves; it has the lock that d needs", Command::Leave);
    stage.run(4_000);
    let about = "Two leaves while a join is under way. e, which lets d in, waits with its own \
                 leave until that is over. c asks the successor it knows, e, and is refused: e's \
                 predecessor is d now.";
    check("leave-during-join", about, &stage.end());
}

#[test]
fn the_joiner_crashes_after_the_join_point() {
    let mut stage = ring("aceg");
    stage.starts('d', 'a');
    stage.until_sent('e', 'd', "JoinPoint");
    stage.crashes('d');
    stage.run(15_000);
    let about = "The joiner crashes after the join point: (c, d] is d's already, and nobody \
                 answers for it until e finds d dead and hears from c.";
    check("joiner-crashes", about, &stage.end());
}

#[test]
fn the_successor_crashes_after_the_join_point() {
    let mut stage = ring("aceg");
    stage.starts('d', 'a');
    stage.until_sent('d', 'c', "NewSucc");
    stage.crashes('e');
    stage.run(15_000);
    let about = "The successor crashes after the join point: d got e's list with it, so it knows \
                 whose predecessor it is without e.";
    check("successor-crashes", about, &stage.end());
}

#[test]
fn the_predecessor_crashes_before_new_succ() {
    let mut stage = ring("aceg");
    stage.starts('d', 'a');
    stage.until_sent('d', 'c', "NewSucc");
    stage.crashes('c');
    stage.run(15_000);
    let about = "The predecessor crashes before NewSucc: nobody acknowledges, so the locks end \
                 with their leases, and a finds d by stabilisation.";
    check("predecessor-crashes", about, &stage.end());
}

#[test]
fn a_lock_lease_ends() {
    let mut stage = ring("aceg");
    stage.command('c', "leaves", Command::Leave);
    stage.until_sent('e', 'c', "LeaveGrant");
    stage.sleeps('c');
    stage.run(9_000);
    stage.wakes('c');
    stage.run(10_000);
    let about = "A lock lease ends (PROTOCOL.md 2.7): c asks for e's lock and falls asleep, a \
                 laptop that is shut. e takes its lock back. What c says when it wakes is too \
                 late: it carries an operation that holds no lock any more.";
    check("lease-ends", about, &stage.end());
}

#[test]
fn a_lookup_while_the_point_moves() {
    let mut stage = ring("aceg");
    stage.slow('d', 'c', 200);
    stage.starts('d', 'g');
    stage.until_sent('d', 'c', "NewSucc");
    let key = node('d');
    stage.command(
        'c',
        "looks up d: it still counts on e",
        Command::Overlay(overlay::Command::Lookup { call: 1, key }),
    );
    stage.run(2_000);
    let about = "A lookup while the point moves (PROTOCOL.md 2.5): c has not heard of d yet and \
                 sends to e what is d's already. e hands it on, on the link on which the join \
                 point came: it cannot overtake it.";
    check("lookup-during-join", about, &stage.end());
}

#[test]
fn crash_and_rectify() {
    let mut stage = ring("acdeg");
    stage.tell(Tell::Stabilization);
    stage.crashes('d');
    stage.run(5_000);
    let about = "A crash (PROTOCOL.md 2.8): c's successor is dead, c tells the next in its list \
                 that it is its predecessor, and e, which found d dead as well, takes c.";
    check("crash", about, &stage.end());
}

#[test]
fn two_rings_merge() {
    let mut stage = ring("abcdef");
    stage.tell(Tell::Nothing);
    stage.cut("ace");
    stage.run(60_000);
    stage.say("a minute later there are two rings");
    stage.list();
    stage.tell(Tell::Story);
    stage.heal();
    stage.run(90_000);
    let about = "Two rings that were one (PROTOCOL.md 6): each side remembers whom it found dead \
                 and asks them now and then. The first that answers makes the rings one again, \
                 place by place.";
    check("merge", about, &stage.end());
}

#[test]
fn a_broadcast_with_feedback_and_a_crash() {
    let mut stage = Stage::ring("abcdefghijkl", 2);
    stage.tell(Tell::Story);
    let cast = Command::Overlay(overlay::Command::Cast { call: 1, body: vec![1], feedback: true });
    stage.command('a', "asks all", cast);
    stage.until_sent('c', 'f', "Down");
    stage.crashes('f');
    stage.run(6_000);
    let about = "A broadcast with feedback (PROTOCOL.md 4.2, 4.3) in a ring with lists of two. f, \
                 which was to reach g and h as well, crashes on the way; c gives its part to \
                 others.";
    check("broadcast", about, &stage.end());
}
