//! How much of the time this node is up (PROTOCOL.md 10.3).
//!
//! It writes down that it lives after a quarter of an hour, half an hour, and so on, up to an
//! eighth of the time it mostly runs, and when it is ended. So a node that does nothing writes next
//! to nothing; but after its power failed it knows only that it lived at least so long. Who was
//! linked with it knows better, and tells it when it is back; where all went off together, nobody
//! can.

use alloc::vec::Vec;

use dugnad_kernel::{Cx, Duration, NodeId, Peer, Time};
use dugnad_resource::availability::{Availability, History};
use serde::{Deserialize, Serialize};

use crate::asked::Writer;
use crate::disk::DiskKey;
use crate::{Msg, Node, Timer};

/// The first note of a run is written after this; each next one after twice as long, but not longer
/// than this part of the time between two ends: so much of a night is lost to a node that is
/// switched off every night.
const FIRST: u64 = 15 * 60_000;
const PART: u64 = 8;
const MOST: u64 = 24 * 3_600_000;
/// So long others have to tell a node that is back since when it was away.
const SETTLE: u64 = 120_000;
/// A clock that is set ahead by more than this was not just corrected.
const SLEPT: u64 = 60_000;
/// Nodes that were lost of late.
const LOST_MAX: usize = 64;

/// What lies on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// Up to `alive`.
    pub history: History,
    /// When the run began, and until when it surely lasted: milliseconds since 1970. The same
    /// where it was ended in order, which is in the history.
    pub began: u64,
    pub alive: u64,
}

#[derive(Default)]
pub(crate) struct Life {
    history: History,
    /// What the machine's clock said at a moment.
    clock: Option<(u64, Time)>,
    /// When this run began, and up to when it is in the history.
    run: Option<(u64, u64)>,
    /// Of the run before, until others had the time to say when it ended.
    before: Option<Noted>,
    /// Whether, and until when, somebody saw that run.
    seen: Option<u64>,
    /// Of the timer that notes it next.
    round: u32,
    /// Who was lost, in which life, and when.
    lost: Vec<(NodeId, u32, u64)>,
}

impl Life {
    fn now(&self, now: Time) -> Option<u64> {
        let (at, since) = self.clock?;
        Some(at.saturating_add(millis(now.since(since))))
    }

    /// What the disk held.
    pub(crate) fn restore(&mut self, noted: Noted) {
        self.before = Some(noted);
    }

    /// A node was lost: when it is back in another life, it is told since when.
    pub(crate) fn lost(&mut self, id: NodeId, life: u32, now: Time) {
        let Some(now) = self.now(now) else { return };
        // It was silent first, and then its line was closed: the first counts.
        if self.lost.iter().any(|(known, of, _)| (*known, *of) == (id, life)) {
            return;
        }
        self.lost.retain(|(known, ..)| *known != id);
        if self.lost.len() >= LOST_MAX {
            self.lost.remove(0);
        }
        self.lost.push((id, life, now));
    }

    /// Since when a node that is linked again was away, if it has begun anew.
    pub(crate) fn back(&mut self, peer: &Peer) -> Option<u64> {
        let at = self.lost.iter().position(|(known, ..)| *known == peer.id)?;
        let (_, life, since) = self.lost.swap_remove(at);
        (life != peer.inc).then_some(since)
    }

    /// Somebody saw the run before this one until then.
    pub(crate) fn was_seen(&mut self, since: u64) {
        let (Some(before), Some((began, _))) = (&self.before, self.run) else { return };
        // What is told of other times is of another run, or made up.
        if (before.alive..=began).contains(&since) {
            self.seen = self.seen.max(Some(since));
        }
    }

    /// Takes the run before this one into the history, and the gap between the two.
    fn settle(&mut self) {
        let (Some(before), Some((began, _))) = (self.before.take(), self.run) else { return };
        self.history = before.history;
        let alive = self.seen.take().unwrap_or(before.alive);
        self.history.saw(before.alive, alive, true);
        let run = alive.saturating_sub(before.began);
        let in_order = before.alive <= before.began;
        // Until the next note was due it may have been up: that stretch counts neither way.
        let unsure =
            if in_order || alive > before.alive { 0 } else { until_next(&self.history, run) };
        self.history.saw(alive.saturating_add(unsure), began, false);
        if !in_order {
            self.history.ended(run);
        }
    }

    /// It is ended now; what is to be written down, if it is known how the run before ended.
    fn end(&mut self, now: u64) -> Option<Noted> {
        let (began, _) = self.run.filter(|_| self.before.is_none())?;
        self.count(now);
        self.history.ended(now.saturating_sub(began));
        Some(Noted { history: self.history.clone(), began: now, alive: now })
    }

    /// The clock was set. Far ahead: the machine slept, or was off and had kept the time of its
    /// last moment; what was skipped it was down.
    fn set(&mut self, at: u64, now: Time) {
        let expected = self.now(now);
        self.clock = Some((at, now));
        let Some(expected) = expected.filter(|_| self.run.is_some()) else { return };
        if at > expected.saturating_add(SLEPT) {
            self.settle();
            self.count(expected);
            self.history.saw(expected, at, false);
            let began = self.run.map_or(at, |(began, _)| began);
            self.history.ended(expected.saturating_sub(began));
            self.run = Some((at, at));
        } else if let Some((began, counted)) = &mut self.run {
            (*began, *counted) = ((*began).min(at), (*counted).min(at));
        }
    }

    /// Counts this run up to now.
    fn count(&mut self, now: u64) {
        if let Some((_, counted)) = &mut self.run {
            self.history.saw(*counted, now, true);
            *counted = now;
        }
    }

    /// How it is now.
    pub(crate) fn availability(&self, now: Time) -> Availability {
        let Some((now, (began, counted))) = self.now(now).zip(self.run) else {
            return Availability::default();
        };
        let before = self.before.as_ref().map(|before| &before.history);
        let mut history = before.unwrap_or(&self.history).clone();
        history.saw(counted, now, true);
        history.availability(now.saturating_sub(began))
    }
}

/// How long after a note the next is written, in a run that lasts so long.
fn until_next(history: &History, run: u64) -> u64 {
    let session = u64::from(history.availability(run).session).saturating_mul(1_000);
    run.min(session / PART).clamp(FIRST, MOST)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

impl Node {
    pub(crate) fn on_clock(&mut self, unix_ms: Option<u64>, cx: &mut Cx<'_, Self>) {
        match unix_ms {
            Some(at) => self.life.set(at, cx.now),
            None => self.life.clock = None,
        }
        let (Some(now), None) = (unix_ms, self.life.run) else { return };
        let up = self.started.map_or(0, |started| millis(cx.now.since(started)));
        let began = now.saturating_sub(up);
        self.life.run = Some((began, began));
        self.note_first(cx);
    }

    /// Both what the disk held and what the clock says may come first.
    pub(crate) fn note_first(&mut self, cx: &mut Cx<'_, Self>) {
        if self.life.run.is_some() {
            let lived = self.life.before.is_some();
            self.note_later(if lived { SETTLE } else { FIRST }, cx);
        }
    }

    fn note_later(&mut self, after: u64, cx: &mut Cx<'_, Self>) {
        self.life.round = self.life.round.wrapping_add(1);
        cx.after(Duration::from_millis(after), Timer::Note { round: self.life.round });
    }

    /// Writes down that it lives.
    pub(crate) fn on_note(&mut self, round: u32, cx: &mut Cx<'_, Self>) {
        let Some((now, (began, _))) = self.life.now(cx.now).zip(self.life.run) else { return };
        if round != self.life.round {
            return;
        }
        self.life.settle();
        self.life.count(now);
        let noted = Noted { history: self.life.history.clone(), began, alive: now };
        self.write_noted(&noted, cx);
        self.note_later(until_next(&noted.history, now.saturating_sub(began)), cx);
    }

    /// The agent is ended in order: from now on this node is down.
    pub(crate) fn note_end(&mut self, cx: &mut Cx<'_, Self>) {
        let now = self.life.now(cx.now);
        if let Some(noted) = now.and_then(|now| self.life.end(now)) {
            self.write_noted(&noted, cx);
            // No note of a run that goes on after this one.
            self.life.run = None;
        }
    }

    fn write_noted(&mut self, noted: &Noted, cx: &mut Cx<'_, Self>) {
        // Plain data into memory cannot fail.
        if let Ok(value) = postcard::to_allocvec(noted) {
            let writes = Vec::from([(DiskKey::Life, Some(value))]);
            self.write(Writer::Nobody, writes, cx);
        }
    }

    pub(crate) fn life_lost(&mut self, id: NodeId, now: Time) {
        let known = self.overlay().book().find(|peer| peer.id == id).map(|peer| peer.inc);
        if let Some(life) = known {
            self.life.lost(id, life, now);
        }
    }

    pub(crate) fn life_back(&mut self, peer: &Peer, cx: &mut Cx<'_, Self>) {
        if let Some(since) = self.life.back(peer) {
            cx.send(peer.id, Msg::Away { since });
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use dugnad_kernel::Id;

    const HOUR: u64 = 3_600_000;
    /// A Monday.
    const START: u64 = 2_800 * 168 * HOUR + 96 * HOUR;

    fn after(noted: Noted, began: u64, seen: Option<u64>) -> Life {
        let mut life = Life { clock: Some((began, Time(0))), ..Life::default() };
        life.restore(noted);
        life.run = Some((began, began));
        seen.into_iter().for_each(|since| life.was_seen(since));
        life.settle();
        life
    }

    fn noted(alive: u64) -> Noted {
        Noted { history: History::default(), began: START, alive: START + alive }
    }

    #[test]
    fn a_gap_counts_from_when_others_saw_the_end() {
        let told = after(noted(8 * HOUR), START + 20 * HOUR, Some(START + 10 * HOUR));
        let mut expected = History::default();
        expected.saw(START + 8 * HOUR, START + 10 * HOUR, true);
        expected.saw(START + 10 * HOUR, START + 20 * HOUR, false);
        expected.ended(10 * HOUR);
        assert_eq!(told.history, expected);
        // Nobody saw it: until the next note was due it may have been up.
        let alone = after(noted(8 * HOUR), START + 20 * HOUR, None);
        let mut expected = History::default();
        expected.saw(START + 8 * HOUR, START + 8 * HOUR, true);
        expected.saw(START + 10 * HOUR, START + 20 * HOUR, false);
        expected.ended(8 * HOUR);
        assert_eq!(alone.history, expected);
    }

    #[test]
    fn a_gap_counts_from_an_end_in_order() {
        let mut life = Life { clock: Some((START, Time(0))), ..Life::default() };
        life.run = Some((START, START));
        let noted = life.end(START + 3 * HOUR).unwrap();
        let back = after(noted, START + 20 * HOUR, None);
        let mut expected = History::default();
        expected.saw(START, START + 3 * HOUR, true);
        expected.ended(3 * HOUR);
        expected.saw(START + 3 * HOUR, START + 20 * HOUR, false);
        assert_eq!(back.history, expected);
        let mut again = after(super::tests::noted(HOUR), START + 2 * HOUR, None);
        again.before = Some(super::tests::noted(HOUR));
        assert_eq!(again.end(START + HOUR), None, "how the run before ended is not known yet");
    }

    #[test]
    fn notes_come_seldom_where_a_node_mostly_runs() {
        let mut often = History::default();
        (0..20).for_each(|_| often.ended(16 * HOUR));
        for (run, after) in [(0, 15), (20, 20), (60, 60), (16 * 60, 122), (48 * 60, 134)] {
            let minutes = until_next(&often, run * 60_000) / 60_000;
            assert_eq!(minutes, after, "{run} minutes");
        }
        let (mut run, mut notes) = (FIRST, 1);
        while run < 30 * 24 * HOUR {
            (run, notes) = (run + until_next(&History::default(), run), notes + 1);
        }
        assert!(notes <= 64, "{notes} notes in 30 days");
    }

    #[test]
    fn what_cannot_be_is_not_believed() {
        for lie in [0, START, START + 8 * HOUR - 1, START + 20 * HOUR + 1, u64::MAX] {
            let told = after(noted(8 * HOUR), START + 20 * HOUR, Some(lie));
            assert_eq!(told.history, after(noted(8 * HOUR), START + 20 * HOUR, None).history);
        }
        // The clock went back: nothing is counted twice or below zero.
        let back = after(noted(8 * HOUR), START - HOUR, None);
        assert!(back.availability(Time(0)).up() > 0);
    }

    #[test]
    fn a_night_asleep_is_a_night_down() {
        let mut life = Life { clock: Some((START, Time(0))), ..Life::default() };
        life.run = Some((START, START));
        let second = |seconds: u64| Time(seconds * 1_000_000);
        life.set(START + 10 * 3_600_000, second(2 * 3_600));
        let mut expected = History::default();
        expected.saw(START, START + 2 * HOUR, true);
        expected.saw(START + 2 * HOUR, START + 10 * HOUR, false);
        expected.ended(2 * HOUR);
        assert_eq!(life.history, expected);
        // A correction is none, and a clock that goes back counts nothing twice.
        life.set(START + 10 * HOUR + 30_000, second(2 * 3_600));
        life.set(START + 9 * HOUR, second(2 * 3_600));
        life.count(START + 9 * HOUR + 1);
        expected.saw(START + 9 * HOUR, START + 9 * HOUR + 1, true);
        assert_eq!(life.history, expected);
    }

    #[test]
    fn only_who_begins_anew_is_told() {
        let mut life = Life { clock: Some((START, Time(0))), ..Life::default() };
        let mut peer = Peer::new(Id(7));
        (peer.inc, life.run) = (3, Some((START, START)));
        life.lost(peer.id, 3, Time(5_000_000));
        assert_eq!(life.back(&peer), None, "its line was away, not it");
        life.lost(peer.id, 3, Time(5_000_000));
        peer.inc = 4;
        assert_eq!(life.back(&peer), Some(START + 5_000));
        assert_eq!(life.back(&peer), None, "once");
        for id in 0..200 {
            life.lost(Id(id), 1, Time(0));
        }
        assert_eq!(life.lost.len(), LOST_MAX);
    }
}
