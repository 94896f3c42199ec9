//! Having the right nodes keep a range: deciding on the next view, and bringing what the members of
//! the one before have (PROTOCOL.md 8.4).
//!
//! Whoever owns the first key of a range on the ring looks after it: it says who should be the
//! members, namely itself and those that follow it. Two that believe they own it do no harm: the
//! members decide, once.

use alloc::boxed::Box;
use alloc::vec::Vec;

use dugnad_kernel::calls::Operates;
use dugnad_kernel::{Cx, Duration, Key, NodeId, Time};

use super::operations::{Asker, AskerExt, Outcome, ask_members, hear};
use super::view::{Ballot, Known, MEMBERS, Member, Range, View, ViewId};
use super::{Event, Linear, Part, Request, Response, SYNC_AGAIN, Timer, is_left_out};

/// How long the ring must have been as it is: one more member, or another, because one is gone.
const GROW_AFTER: Duration = Duration::from_secs(5);
const REPLACE_AFTER: Duration = Duration::from_secs(30);
/// Fewer members: who is away mostly comes back, and brings its copy.
const SHRINK_AFTER: Duration = Duration::from_secs(600);
/// After this a check that failed is made again, doubled so often.
const CHECK_AGAIN: Duration = Duration::from_secs(10);
const DOUBLINGS: u32 = 5;
/// Nodes of the community for each range beyond which it is cut in two.
const NODES_A_RANGE: u64 = 16;
/// Who was in a view that is over tells those who come next after this, doubled so often: an hour.
const FINISH_AFTER: Duration = Duration::from_secs(30);
const FINISH_DOUBLINGS: u32 = 7;
/// How long new members are waited for, and how often they are asked.
const ENTER_TRIES: u32 = 20;
const ENTER_PAUSE: Duration = Duration::from_millis(500);

/// The ring moves in bursts; one message serves them all.
const INFORM_AFTER: Duration = Duration::from_secs(3);
/// While nobody could be told, or nobody knew, it is tried again, doubled so often.
const INFORM_DOUBLINGS: u32 = 6;

/// A look at a range that is appointed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Check {
    /// Names its timer.
    round: u32,
    /// How often in a row it failed.
    failures: u32,
    due: Time,
}

/// What a range needs.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Need {
    Nothing,
    /// Other members: these nodes, the best first.
    Members(Vec<NodeId>),
    Split,
    /// To be one with the other half.
    Merge(View),
}

impl Linear {
    /// The nodes that should keep a range this one owns the first key of.
    fn wanted(&self) -> Vec<NodeId> {
        let mut nodes = Vec::from([self.me]);
        for succ in self.position.succs.iter().map(|peer| peer.id) {
            if !nodes.contains(&succ) {
                nodes.push(succ);
            }
        }
        nodes
    }

    fn need(&self, view: &View) -> Need {
        let mut wanted = self.wanted();
        let count = match wanted.len() {
            0..3 => 1,
            3..5 => 3,
            _ => MEMBERS,
        };
        // Of two, the one that keeps it goes on; there is no majority of two to win by the other.
        let here = |member: &Member| wanted.contains(&member.node);
        let stays = wanted.len() == 2 && view.members.len() == 1 && view.members.iter().all(here);
        let members: Vec<NodeId> = view.members.iter().map(|member| member.node).collect();
        let right = |node: &NodeId| members.contains(node);
        wanted.truncate(count);
        if !(stays || members.len() == count && wanted.iter().all(right)) {
            return Need::Members(wanted);
        }
        let ranges = self.position.size / NODES_A_RANGE;
        if view.range.halves().is_some() && ranges >> view.range.bits >= 2 {
            return Need::Split;
        }
        if let Some((parent, other)) = view.range.parent() {
            let other = self.known.borrow().of(other.start).cloned().filter(|v| v.range == other);
            if let Some(other) = other.filter(|_| parent.start == view.range.start) {
                if (ranges << 1) >> parent.bits == 0 {
                    return Need::Merge(other);
                }
            }
        }
        Need::Nothing
    }

    /// The ring moved, or views are others: which ranges need something.
    pub(super) fn check_all(&mut self, cx: &mut Cx<'_, Self>) {
        let views: Vec<View> = self.known.borrow().iter().cloned().collect();
        for view in views {
            let newest = self.known.borrow().of(view.range.start).cloned();
            if newest.as_ref() != Some(&view) || !self.position.owns(view.range.start) {
                continue;
            }
            let after = match self.need(&view) {
                Need::Nothing => continue,
                Need::Members(nodes) if nodes.len() > view.members.len() => GROW_AFTER,
                Need::Members(nodes) if nodes.len() < view.members.len() => SHRINK_AFTER,
                _ => REPLACE_AFTER,
            };
            // What is needed now may be more urgent than what a look was appointed for.
            let sooner = |check: &Check| check.failures == 0 && cx.now + after < check.due;
            if self.checking.get(&view.range).is_none_or(sooner) {
                self.plan_check(view.range, after, 0, cx);
            }
        }
    }

    fn plan_check(&mut self, range: Range, after: Duration, failures: u32, cx: &mut Cx<'_, Self>) {
        let round = self.checking.get(&range).map_or(0, |check| check.round.wrapping_add(1));
        self.checking.insert(range, Check { round, failures, due: cx.now + after });
        cx.after(after, Timer::Check { range, round });
    }

    pub(super) fn on_check(&mut self, range: Range, round: u32, cx: &mut Cx<'_, Self>) {
        let Some(Check { round: known, failures, .. }) = self.checking.get(&range).copied() else {
            return;
        };
        if known != round {
            return;
        }
        let view = self.known.borrow().of(range.start).cloned();
        let mine = self.position.owns(range.start);
        let Some(view) = view.filter(|view| view.range == range && mine) else {
            self.checking.remove(&range);
            return;
        };
        let need = self.need(&view);
        if need == Need::Nothing {
            self.checking.remove(&range);
            return;
        }
        if !self.reconfiguring.insert(range) {
            return self.plan_check(range, CHECK_AGAIN, failures, cx);
        }
        self.attempts = self.attempts.wrapping_add(1);
        let by =
            Proposer { me: self.me, attempt: u64::from(self.inc) << 32 | u64::from(self.attempts) };
        if !self.start("reconfigure", |asker| reconfigure(asker, by, view, need), cx) {
            self.on_checked(range, false, &[], cx);
        }
    }

    pub(super) fn on_checked(
        &mut self,
        range: Range,
        done: bool,
        news: &[View],
        cx: &mut Cx<'_, Self>,
    ) {
        self.reconfiguring.remove(&range);
        let failures = self.checking.get(&range).map_or(0, |check| check.failures);
        if done {
            self.checking.remove(&range);
        } else {
            self.count("reconfiguration_failed");
            let after = CHECK_AGAIN * (1 << failures.min(DOUBLINGS));
            self.plan_check(range, after, failures.saturating_add(1), cx);
        }
        self.learn(news, cx);
        if !news.is_empty() {
            cx.emit(Event::Tell(news.to_vec()));
        }
        self.check_all(cx);
    }

    pub(super) fn plan_inform(&mut self, cx: &mut Cx<'_, Self>) {
        let alone = self.position.succs.iter().all(|peer| peer.id == self.me);
        if !alone && !core::mem::replace(&mut self.informing, true) {
            cx.after(INFORM_AFTER * (1 << self.uninformed.min(INFORM_DOUBLINGS)), Timer::Inform);
        }
    }

    /// Somebody could not be told, or did not know: once more, later.
    pub(super) fn on_uninformed(&mut self, cx: &mut Cx<'_, Self>) {
        self.uninformed = self.uninformed.saturating_add(1);
        self.plan_inform(cx);
    }

    /// Whoever looks after a range has to know of it: the first member tells it. Who knows of none
    /// asks the next on the ring.
    pub(super) fn inform(&mut self, cx: &mut Cx<'_, Self>) {
        self.informing = false;
        if self.position.range.is_none() {
            return;
        }
        if !self.known.borrow().is_whole() {
            let nodes: Vec<NodeId> = self.wanted().into_iter().skip(1).collect();
            self.start("learn views", |asker| ask_around(asker, nodes), cx);
        }
        // It may have heard of a view since the ring moved, on the way of a write.
        self.check_all(cx);
        let views = self.keeper.read().led();
        for view in views {
            if !self.position.owns(view.range.start) {
                let me = self.me;
                self.start("tell owner", |asker| tell_owner(asker, me, view), cx);
            }
        }
    }

    /// Collects what is missing in views this node entered.
    pub(super) fn sync_all(&mut self, cx: &mut Cx<'_, Self>) {
        let entered = self.keeper.read().syncing();
        for id in entered {
            if !self.syncing.contains_key(&id) {
                self.sync(id, cx);
            }
        }
    }

    pub(super) fn sync(&mut self, id: ViewId, cx: &mut Cx<'_, Self>) {
        let Some((prior, next)) = self.keeper.read().decree(id) else {
            self.syncing.remove(&id);
            return;
        };
        self.syncing.entry(id).or_default();
        if !self.start("sync range", |asker| sync(asker, id, prior, next), cx) {
            self.on_synced(id, false, cx);
        }
    }

    pub(super) fn on_synced(&mut self, id: ViewId, all: bool, cx: &mut Cx<'_, Self>) {
        if all {
            // It may answer only with what is on disk: that it does so is written after all that.
            self.whole.insert(id, self.tokens);
            if self.unsent.is_empty() {
                self.enter_whole(self.tokens, cx);
            }
            return;
        }
        let failures = self.syncing.entry(id).or_default();
        let after = SYNC_AGAIN * (1 << (*failures).min(DOUBLINGS));
        *failures = failures.saturating_add(1);
        cx.after(after, Timer::Sync { view: id });
    }

    /// Views that are over since: somebody must see that those who come next enter, though whoever
    /// proposed them may be gone.
    pub(super) fn plan_finish(&mut self, before: &[ViewId], cx: &mut Cx<'_, Self>) {
        let sealed = self.keeper.read().sealed();
        for view in sealed.into_iter().filter(|view| !before.contains(view)) {
            let part = cx.rng.u32(50..150);
            cx.after(FINISH_AFTER * part / 100, Timer::Finish { view, tries: 0 });
        }
    }

    pub(super) fn finish(&mut self, view: ViewId, tries: u32, cx: &mut Cx<'_, Self>) {
        let Some((prior, next)) = self.keeper.read().ended(view) else { return };
        let op = move |asker: Asker| async move {
            enter(&asker, &prior, &next, 1).await;
            Outcome::Told { view, tries }
        };
        if !self.start("finish view", op, cx) {
            self.on_told_again(view, tries, cx);
        }
    }

    pub(super) fn on_told_again(&mut self, view: ViewId, tries: u32, cx: &mut Cx<'_, Self>) {
        if self.keeper.read().ended(view).is_some() {
            let after = FINISH_AFTER * (1 << tries.min(FINISH_DOUBLINGS));
            cx.after(after, Timer::Finish { view, tries: tries.saturating_add(1) });
        }
    }

    /// All writes up to this one are on disk.
    pub(super) fn enter_whole(&mut self, token: u64, cx: &mut Cx<'_, Self>) {
        let whole = self.whole.iter().filter(|(_, last)| **last <= token);
        let whole: Vec<ViewId> = whole.map(|(id, _)| *id).collect();
        for id in whole {
            self.whole.remove(&id);
            self.syncing.remove(&id);
            if self.keeper.write().activate(id) {
                self.save(Vec::new(), Vec::from([id]), true, cx);
            }
        }
    }

    /// It answers in a view from now on.
    pub(super) fn on_entered(&mut self, id: ViewId, cx: &mut Cx<'_, Self>) {
        let view = self.keeper.read().replica(id).map(|replica| replica.view.clone());
        if let Some(view) = view {
            self.learn(&[view], cx);
        }
    }
}

/// Asks one after the other until somebody knows of all ranges.
async fn ask_around(asker: Asker, nodes: Vec<NodeId>) -> Outcome {
    let mut known = Known::default();
    for node in nodes {
        if let Some(Response::Views { views, .. }) = asker.call(node, Request::Views).await {
            views.iter().for_each(|view| _ = known.learn(view));
        }
        if known.is_whole() {
            break;
        }
    }
    asker.report(Outcome::Heard(known.iter().cloned().collect()));
    if known.is_whole() { Outcome::Nothing } else { Outcome::Uninformed }
}

async fn tell_owner(asker: Asker, me: NodeId, view: View) -> Outcome {
    match asker.find(view.range.start).await {
        Some(to) if to != me => Outcome::Tell { to, views: Vec::from([view]) },
        // The ring was moving.
        _ => Outcome::Uninformed,
    }
}

/// Who proposes, and which attempt of it this is.
#[derive(Clone, Copy)]
struct Proposer {
    me: NodeId,
    attempt: u64,
}

/// Has the members of `view` decide on what comes next, and sees that it is entered.
async fn reconfigure(asker: Asker, by: Proposer, view: View, need: Need) -> Outcome {
    let range = view.range;
    let Some(wanted) = proposal(&asker, &view, need).await else {
        return Outcome::Checked { range, done: false, news: Vec::new() };
    };
    let Some(next) = decide(&asker, by, &view, wanted).await else {
        return Outcome::Checked { range, done: false, news: Vec::new() };
    };
    let mut prior = Vec::from([view]);
    if let [one] = next.as_slice() {
        if one.range != range {
            // It is to be one with the other half, which has to decide the same.
            match decide_other_half(&asker, by, &prior[0], &next).await {
                Some(other) => prior.push(other),
                None => return Outcome::Checked { range, done: false, news: Vec::new() },
            }
        }
    }
    let done = enter(&asker, &prior, &next, ENTER_TRIES).await;
    // Nobody may look for it before there is somebody.
    Outcome::Checked { range, done, news: if done { next } else { Vec::new() } }
}

/// The views to propose.
async fn proposal(asker: &Asker, view: &View, need: Need) -> Option<Vec<View>> {
    let number = view.number.checked_add(1)?;
    match need {
        Need::Nothing => None,
        Need::Members(nodes) => {
            let mut members = Vec::new();
            let calls: Vec<_> =
                nodes.iter().map(|node| asker.call(*node, Request::Views)).collect();
            for (node, call) in nodes.iter().zip(calls) {
                if let Some(Response::Views { inc, .. }) = call.await {
                    members.push(Member { node: *node, inc });
                }
            }
            // One that does not answer is no use; and an even number is no better than one less.
            members.truncate(members.len().saturating_sub(1) / 2 * 2 + 1);
            let next = View { range: view.range, number, members };
            (next.fits() && next.members != view.members).then(|| Vec::from([next]))
        }
        Need::Split => {
            let [left, right] = view.range.halves()?;
            let half = |range| View { range, number, members: view.members.clone() };
            Some(Vec::from([half(left), half(right)]))
        }
        Need::Merge(other) => {
            let (parent, _) = view.range.parent()?;
            // Far above both: the other half may go on for a while before it decides the same.
            let number = view.number.max(other.number).checked_add(MERGED)?;
            Some(Vec::from([View { range: parent, number, members: view.members.clone() }]))
        }
    }
}

/// Paxos among the members of a view on the one thing that comes after it: what is decided, which
/// may be what somebody else proposed.
async fn decide(asker: &Asker, by: Proposer, view: &View, wanted: Vec<View>) -> Option<Vec<View>> {
    let mut counter = 0_u64;
    for _ in 0..DECIDE_TRIES {
        counter = counter.saturating_add(1);
        let ballot = Ballot { counter, by: by.me, attempt: by.attempt };
        let request = Request::Propose { view: view.id(), ballot };
        let is_promise = |answer: &Response| {
            matches!(answer, Response::Proposed { .. } | Response::Decided { .. })
        };
        let answers = ask_members(asker, view, &request, view.majority(), is_promise).await;
        hear(asker, &answers);
        let mut newest: Option<(Ballot, Vec<View>)> = None;
        let mut promises = 0;
        for answer in &answers {
            match answer {
                Response::Decided { next } => return Some(next.clone()),
                Response::Proposed { accepted } => {
                    promises += 1;
                    if let Some((ballot, next)) = accepted {
                        if newest.as_ref().is_none_or(|(known, _)| known < ballot) {
                            newest = Some((*ballot, next.clone()));
                        }
                    }
                }
                Response::Refused { promised } => counter = counter.max(promised.counter),
                _ => {}
            }
        }
        if promises < view.majority() {
            if answers.len() < view.majority() {
                return None;
            }
            asker.jitter(DECIDE_PAUSE).await;
            continue;
        }
        let next = newest.map_or_else(|| wanted.clone(), |(_, next)| next);
        let request = Request::Choose { view: view.id(), ballot, next: next.clone() };
        let is_chosen =
            |answer: &Response| matches!(answer, Response::Chosen | Response::Decided { .. });
        let answers = ask_members(asker, view, &request, view.majority(), is_chosen).await;
        hear(asker, &answers);
        let decided = answers.iter().find_map(|answer| match answer {
            Response::Decided { next } => Some(next.clone()),
            _ => None,
        });
        if decided.is_some() {
            return decided;
        }
        let chosen = answers.iter().filter(|answer| matches!(answer, Response::Chosen)).count();
        if chosen >= view.majority() {
            return Some(next);
        }
        asker.jitter(DECIDE_PAUSE).await;
    }
    None
}

const DECIDE_TRIES: u32 = 6;
const DECIDE_PAUSE: Duration = Duration::from_millis(100);

/// How far the number of a view of two halves lies above theirs.
const MERGED: u32 = 10_000;

/// The other half of `view` decides to be one with it, in whatever view it is by now; that view.
async fn decide_other_half(
    asker: &Asker,
    by: Proposer,
    view: &View,
    next: &[View],
) -> Option<View> {
    let (_, other) = view.range.parent()?;
    let nodes: Vec<NodeId> =
        next.iter().chain([view]).flat_map(|view| &view.members).map(|m| m.node).collect();
    for _ in 0..DECIDE_TRIES {
        let other = gather(asker, by, other, &nodes).await?;
        let decided = decide(asker, by, &other, next.to_vec()).await?;
        if decided == next {
            return Some(other);
        }
        // Something else was decided there meanwhile; that has to be entered first.
        enter(asker, core::slice::from_ref(&other), &decided, ENTER_TRIES).await;
    }
    None
}

/// The view of a range by now. If it was cut in two, its halves are put together first.
async fn gather(asker: &Asker, by: Proposer, range: Range, nodes: &[NodeId]) -> Option<View> {
    let known = known_to(asker, nodes).await;
    let newest = known.of(range.start)?;
    if newest.range == range {
        return Some(newest.clone());
    }
    // Otherwise it is part of a wider one already.
    let [left, right] = range.halves().filter(|_| range.covers(&newest.range))?;
    for _ in 0..DECIDE_TRIES {
        let left = Box::pin(gather(asker, by, left, nodes)).await?;
        let right = Box::pin(gather(asker, by, right, nodes)).await?;
        let number = left.number.max(right.number).checked_add(1)?;
        let whole = View { range, number, members: left.members.clone() };
        let decided = decide(asker, by, &left, Vec::from([whole])).await?;
        match decided.as_slice() {
            [whole] if whole.range == range => {
                if decide(asker, by, &right, decided.clone()).await? == decided {
                    enter(asker, &[left, right], &decided, ENTER_TRIES).await;
                    return Some(whole.clone());
                }
            }
            _ => _ = enter(asker, core::slice::from_ref(&left), &decided, ENTER_TRIES).await,
        }
    }
    None
}

/// What these nodes know of views, together.
async fn known_to(asker: &Asker, nodes: &[NodeId]) -> Known {
    let calls: Vec<_> = nodes.iter().map(|node| asker.call(*node, Request::Views)).collect();
    let mut known = Known::default();
    for call in calls {
        if let Some(Response::Views { views, .. }) = call.await {
            views.iter().for_each(|view| _ = known.learn(view));
        }
    }
    known
}

/// Tells everybody concerned what was decided, until all new members answer; then what is over is
/// let go. Whether a majority of each next view answers.
async fn enter(asker: &Asker, prior: &[View], next: &[View], tries: u32) -> bool {
    let members = |views: &[View]| {
        let mut nodes: Vec<NodeId> =
            views.iter().flat_map(|view| view.members.iter().map(|m| m.node)).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    };
    let (before, after) = (members(prior), members(next));
    let mut all = before.clone();
    all.extend(after.iter().filter(|node| !before.contains(node)));
    let mut active: Vec<NodeId> = Vec::new();
    for _ in 0..tries {
        let waiting: Vec<NodeId> =
            all.iter().copied().filter(|node| !active.contains(node)).collect();
        let commit = Request::Commit { prior: prior.to_vec(), next: next.to_vec() };
        let calls: Vec<_> = waiting.iter().map(|node| asker.call(*node, commit.clone())).collect();
        for (node, call) in waiting.iter().zip(calls) {
            if let Some(Response::Committed { active: true }) = call.await {
                active.push(*node);
            }
        }
        if after.iter().all(|node| active.contains(node)) {
            let releases: Vec<_> = prior
                .iter()
                .flat_map(|view| all.iter().map(move |node| (view.id(), *node)))
                .map(|(view, node)| asker.call(node, Request::Release { view }))
                .collect();
            for release in releases {
                release.await;
            }
            return true;
        }
        asker.sleep(ENTER_PAUSE).await;
    }
    let entered = |view: &View| {
        let count = view.members.iter().filter(|member| active.contains(&member.node)).count();
        count >= view.majority()
    };
    next.iter().all(entered)
}

/// Collects what the members of the views before have, from a majority of each. Whoever proposed
/// it may be gone: so members that have not heard are told.
async fn sync(asker: Asker, id: ViewId, prior: Vec<View>, next: Vec<View>) -> Outcome {
    let commit = Request::Commit { prior: prior.clone(), next: next.clone() };
    let mut all = true;
    for view in &prior {
        let need = if is_left_out(Part::SyncFromMajority) { 1 } else { view.majority() };
        let mut whole = 0;
        for member in &view.members {
            let mut given = pull(&asker, id, view, member.node).await;
            if !given && asker.call(member.node, commit.clone()).await.is_some() {
                given = pull(&asker, id, view, member.node).await;
            }
            whole += usize::from(given);
            if whole >= need {
                break;
            }
        }
        all &= whole >= need;
    }
    if all {
        for node in next.iter().flat_map(|view| &view.members).map(|member| member.node) {
            // It goes out; nobody waits for what comes back.
            drop(asker.call(node, commit.clone()));
        }
    }
    Outcome::Synced { view: id, all }
}

/// All that one member has of a view that is over; whether it gave it.
async fn pull(asker: &Asker, id: ViewId, prior: &View, node: NodeId) -> bool {
    let mut after: Option<Key> = None;
    loop {
        let request = Request::Pull { view: prior.id(), range: id.0, after };
        match asker.call(node, request).await {
            Some(Response::Pulled { registers, more }) => {
                let last = registers.last().map(|(key, _)| *key);
                asker.report(Outcome::Page { view: id, registers });
                match last.filter(|_| more) {
                    Some(last) if after.is_none_or(|after| last > after) => after = Some(last),
                    _ => return true,
                }
            }
            _ => return false,
        }
    }
}
