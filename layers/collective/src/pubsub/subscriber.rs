//! What this node's people subscribed to.
//!
//! A node has one feed for each type, however many of its people want it, with the place up to
//! which it was told. Pushed events continue it or show a gap, and a gap is asked for. Who
//! subscribes late, or where somebody left off, is first told what lies before.

use alloc::collections::VecDeque;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use dugnad_kernel::calls::Operates;
use dugnad_kernel::map::Map;
use dugnad_kernel::{Cx, Duration, NodeId};
use dugnad_resource::condition::Condition;

use super::log::Published;
use super::operations::{Asker, AskerExt, Opened, Outcome};
use super::types::{self, Types, is_built_in, key_of};
use super::{
    Begin, Event, EventAnswer, FILTERS_BYTES, FILTERS_MAX, PubSub, Request, Response,
    SUBSCRIPTIONS_MAX, Start, TYPES_HERE_MAX, Timer, Told, publish,
};

/// How often it is looked whether there are new types.
const LOOK: Duration = Duration::from_secs(120);
/// How often a rendezvous is told that its events are still wanted.
const RENEW: Duration = Duration::from_secs(60);
/// Pause after nobody answered, doubled each time up to [`RENEW`].
const AGAIN: Duration = Duration::from_secs(2);
/// Tries to reach a rendezvous in a row, and the pause between.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(300);
/// Events kept for subscribers that are still told what lies before.
const TAIL_MAX: usize = 512;

/// The events of one type, as they come to this node.
#[derive(Default)]
pub(super) struct Feed {
    /// The place of the next event; `None` before the rendezvous answered the first time.
    next: Option<u64>,
    at: Option<NodeId>,
    /// What came while somebody is still told what lies before.
    tail: VecDeque<(u64, Published)>,
    /// Of the timer that renews it next.
    round: u32,
    /// Renewals begun, and whether one is under way; `again`: another one is needed after it.
    begun: u32,
    renewing: bool,
    again: bool,
    failures: u32,
}

/// How far a subscription has come with a type.
enum Progress {
    /// It waits for the renewal of this number.
    Waits { renewal: u32, begin: Option<Start> },
    /// It is told what lies before this place.
    Reads { until: u64 },
    /// It was told up to this place.
    At(u64),
}

pub(super) struct Subscription {
    name: String,
    condition: Condition,
    types: Map<String, Progress>,
}

/// What somebody wants to subscribe to.
pub(super) struct Wanted {
    pub(super) sub: u64,
    pub(super) name: String,
    pub(super) condition: String,
    pub(super) begin: Begin,
}

impl PubSub {
    pub(super) fn on_opened(&mut self, ask: u64, opened: Opened, cx: &mut Cx<'_, Self>) {
        let Opened { sub, name, condition, begin, types } = opened;
        let known = self.subscriptions.contains_key(&sub);
        if !known && self.subscriptions.len() >= SUBSCRIPTIONS_MAX {
            let text = alloc::format!("{SUBSCRIPTIONS_MAX} subscribe at this node already");
            return cx.emit(Event::Answer { ask, answer: EventAnswer::Failed(text) });
        }
        if !known {
            let types = Map::new();
            let grows = !is_built_in(&name);
            self.subscriptions.insert(sub, Subscription { name, condition, types });
            if grows && !core::mem::replace(&mut self.looking, true) {
                cx.after(LOOK, Timer::Descendants);
            }
            cx.emit(Event::Answer { ask, answer: EventAnswer::Done });
        }
        for name in types {
            let begin = match &begin {
                Begin::Now => None,
                Begin::Since(ms) => Some(Start::Since(*ms)),
                Begin::After(places) => {
                    let place = places.iter().find(|(known, _)| *known == name);
                    // A type it had not heard of is new: all of it.
                    Some(Start::Place(place.map_or(1, |(_, place)| place.saturating_add(1))))
                }
            };
            self.attach(sub, name, begin, cx);
        }
    }

    /// One more type for a subscription.
    fn attach(&mut self, sub: u64, name: String, begin: Option<Start>, cx: &mut Cx<'_, Self>) {
        let Some(subscription) = self.subscriptions.get_mut(&sub) else { return };
        if subscription.types.contains_key(&name) {
            return;
        }
        if self.feeds.len() >= TYPES_HERE_MAX && !self.feeds.contains_key(&name) {
            return self.count("event_feeds_overflow");
        }
        let feed = self.feeds.entry(name.clone()).or_default();
        // The next renewal to begin says what this subscription wants, too.
        let renewal = feed.begun.wrapping_add(1);
        subscription.types.insert(name.clone(), Progress::Waits { renewal, begin });
        self.renew_now(&name, cx);
    }

    pub(super) fn unsubscribe(&mut self, sub: u64) {
        self.subscriptions.remove(&sub);
        let subscriptions = &self.subscriptions;
        self.feeds
            .retain(|name, _| subscriptions.values().any(|known| known.types.contains_key(name)));
    }

    /// Types that came after somebody subscribed; it costs one register read.
    pub(super) fn on_descendants(&mut self, cx: &mut Cx<'_, Self>) {
        self.looking = self.subscriptions.values().any(|known| !is_built_in(&known.name));
        if self.looking {
            cx.after(LOOK, Timer::Descendants);
            let known = self.types.as_ref().map(|(types, _)| types.clone());
            self.start("look for types", |asker| publish::look(asker, known), cx);
        }
    }

    /// There are other types than before.
    pub(super) fn on_grown(&mut self, types: &Types, cx: &mut Cx<'_, Self>) {
        let all = self.subscriptions.iter();
        let below = all.map(|(sub, known)| (*sub, types.below(&known.name)));
        for (sub, names) in below.collect::<Vec<_>>() {
            for name in names {
                // What is new is wanted from its beginning.
                self.attach(sub, name, Some(Start::Place(1)), cx);
            }
        }
    }

    /// What this node wants of a type, in few conditions.
    fn filters(&self, name: &str) -> Vec<Condition> {
        let mut all: Vec<Condition> = Vec::new();
        for subscription in self.subscriptions.values() {
            let condition = &subscription.condition;
            if !subscription.types.contains_key(name) || all.iter().any(|c| c.covers(condition)) {
                continue;
            }
            all.retain(|known| !condition.covers(known));
            all.push(condition.clone());
        }
        let bytes = postcard::to_allocvec(&all).map_or(usize::MAX, |all| all.len());
        if all.len() > FILTERS_MAX || bytes > FILTERS_BYTES {
            return Vec::from([Condition::default()]);
        }
        all
    }

    pub(super) fn on_renew(&mut self, name: String, round: u32, cx: &mut Cx<'_, Self>) {
        if self.feeds.get(&name).is_some_and(|feed| feed.round == round) {
            self.renew_now(&name, cx);
        }
    }

    /// Asks the rendezvous, whoever it is now, to tell this node, and for what it missed.
    pub(super) fn renew_now(&mut self, name: &str, cx: &mut Cx<'_, Self>) {
        let filters = self.filters(name);
        let Some(feed) = self.feeds.get_mut(name) else { return };
        if feed.renewing {
            feed.again = true;
            return;
        }
        feed.round = feed.round.wrapping_add(1);
        feed.begun = feed.begun.wrapping_add(1);
        (feed.renewing, feed.again) = (true, false);
        let (name, from, at) = (name.to_string(), feed.next, feed.at);
        if !self.start("renew feed", |asker| renew(asker, name.clone(), at, from, filters), cx) {
            self.on_renewed(&name, None, None, cx);
        }
    }

    pub(super) fn on_renewed(
        &mut self,
        name: &str,
        at: Option<NodeId>,
        response: Option<Response>,
        cx: &mut Cx<'_, Self>,
    ) {
        let Some(feed) = self.feeds.get_mut(name) else { return };
        feed.renewing = false;
        feed.at = at;
        let Some(Response::Events { events, next, lost }) = response else {
            feed.failures = (feed.failures + 1).min(6);
            let again = AGAIN * (1 << feed.failures.saturating_sub(1));
            let (name, round) = (name.to_string(), feed.round);
            return cx.after(again.min(RENEW), Timer::Renew { name, round });
        };
        feed.failures = 0;
        let more = !events.is_empty() || feed.again;
        let first = feed.next.is_none();
        let timer = Timer::Renew { name: name.to_string(), round: feed.round };
        if lost > 0 && !first {
            self.tell_lost(name, lost, cx);
        }
        self.advance(name, events, next, cx);
        self.begin_waiting(name, cx);
        if more {
            self.renew_now(name, cx);
        } else {
            cx.after(RENEW, timer);
        }
    }

    fn tell_lost(&self, name: &str, count: u64, cx: &mut Cx<'_, Self>) {
        for (sub, known) in self.subscriptions.iter() {
            if matches!(known.types.get(name), Some(Progress::At(_))) {
                cx.emit(Event::Lost { sub: *sub, name: name.to_string(), count });
            }
        }
    }

    /// Events that were pushed; `told` is where the rendezvous thinks this node is.
    pub(super) fn on_feed(
        &mut self,
        name: &str,
        events: Vec<(u64, Published)>,
        told: u64,
        next: u64,
        cx: &mut Cx<'_, Self>,
    ) {
        match self.feeds.get(name).and_then(|feed| feed.next) {
            None => self.count("events_nobody_wants"),
            Some(place) if told > place => self.renew_now(name, cx),
            // Known already, by another way.
            Some(place) if next <= place => {}
            Some(_) => self.advance(name, events, next, cx),
        }
    }

    /// The feed goes on to `next`: everybody who has come so far is told.
    fn advance(
        &mut self,
        name: &str,
        mut events: Vec<(u64, Published)>,
        next: u64,
        cx: &mut Cx<'_, Self>,
    ) {
        let Some(feed) = self.feeds.get_mut(name) else { return };
        let before = feed.next.unwrap_or(next);
        events.retain(|(place, _)| *place >= before && *place < next);
        // A log that was lost begins anew, and so does who follows it.
        feed.next = Some(next);
        let mut reading = false;
        for (sub, known) in self.subscriptions.iter_mut() {
            match known.types.get_mut(name) {
                Some(Progress::At(place)) => {
                    tell(*sub, name, &known.condition, &events, *place, cx);
                    *place = next;
                }
                Some(Progress::Reads { .. }) => reading = true,
                Some(Progress::Waits { .. }) | None => {}
            }
        }
        if reading {
            feed.tail.extend(events);
            while feed.tail.len() > TAIL_MAX {
                feed.tail.pop_front();
            }
        } else {
            feed.tail.clear();
        }
    }

    /// Subscriptions that waited for the renewal that just ended.
    fn begin_waiting(&mut self, name: &str, cx: &mut Cx<'_, Self>) {
        let Some(feed) = self.feeds.get(name) else { return };
        let (begun, Some(next)) = (feed.begun, feed.next) else { return };
        let mut reads = Vec::new();
        for (sub, known) in self.subscriptions.iter_mut() {
            let Some(progress) = known.types.get_mut(name) else { continue };
            let Progress::Waits { renewal, begin } = progress else { continue };
            if *renewal > begun {
                continue;
            }
            match *begin {
                None => *progress = Progress::At(next),
                Some(start) => {
                    reads.push((*sub, start, known.condition.clone()));
                    *progress = Progress::Reads { until: next };
                }
            }
        }
        for (sub, start, filter) in reads {
            let read = Reading { sub, name: name.to_string(), start, until: next, filter };
            if !self.start("read events", |asker| catch_up(asker, read), cx) {
                self.on_caught_up(sub, name, Vec::new(), 0, cx);
            }
        }
    }

    pub(super) fn on_caught_up(
        &mut self,
        sub: u64,
        name: &str,
        read: Vec<(u64, Published)>,
        lost: u64,
        cx: &mut Cx<'_, Self>,
    ) {
        let Some(feed) = self.feeds.get_mut(name) else { return };
        let Some(known) = self.subscriptions.get_mut(&sub) else { return };
        let Some(Progress::Reads { until }) = known.types.get(name) else { return };
        let (until, next) = (*until, feed.next.unwrap_or(*until));
        if lost > 0 {
            cx.emit(Event::Lost { sub, name: name.to_string(), count: lost });
        }
        tell(sub, name, &known.condition, &read, 0, cx);
        // The tail holds what came since, if not too much did.
        let held = feed.tail.len() < TAIL_MAX || feed.tail.front().is_some_and(|e| e.0 <= until);
        if held {
            let tail: Vec<(u64, Published)> = feed.tail.iter().cloned().collect();
            tell(sub, name, &known.condition, &tail, until, cx);
            known.types.insert(name.to_string(), Progress::At(next));
            return;
        }
        known.types.insert(name.to_string(), Progress::Reads { until: next });
        let (start, filter) = (Start::Place(until), known.condition.clone());
        let read = Reading { sub, name: name.to_string(), start, until: next, filter };
        self.start("read events", |asker| catch_up(asker, read), cx);
    }

    /// A rendezvous says that it is none any more.
    pub(super) fn on_moved(&mut self, from: NodeId, name: &str, cx: &mut Cx<'_, Self>) {
        if let Some(feed) = self.feeds.get_mut(name).filter(|feed| feed.at == Some(from)) {
            feed.at = None;
            self.renew_now(name, cx);
        }
    }

    /// Somebody does not answer any more: what it was the rendezvous of has another one.
    pub(super) fn rendezvous_gone(&mut self, node: NodeId, cx: &mut Cx<'_, Self>) {
        let lost = self.feeds.iter().filter(|(_, feed)| feed.at == Some(node));
        for name in lost.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            if let Some(feed) = self.feeds.get_mut(&name) {
                feed.at = None;
            }
            self.renew_now(&name, cx);
        }
    }
}

/// Tells a subscription the events from a place on that it wants.
fn tell(
    sub: u64,
    name: &str,
    condition: &Condition,
    events: &[(u64, Published)],
    from: u64,
    cx: &mut Cx<'_, PubSub>,
) {
    for (place, event) in events.iter().filter(|(place, _)| *place >= from) {
        if condition.matches(event.attributes.as_slice()) {
            let told = Told { name: name.to_string(), place: *place, event: event.clone() };
            cx.emit(Event::Told { sub, told });
        }
    }
}

pub(super) async fn open(asker: Asker, ask: u64, known: Option<Types>, wanted: Wanted) -> Outcome {
    match opened(&asker, known, wanted).await {
        Ok(opened) => Outcome::Opened { ask, opened },
        Err(answer) => Outcome::Answer { ask, answer },
    }
}

async fn opened(
    asker: &Asker,
    mut known: Option<Types>,
    wanted: Wanted,
) -> Result<Opened, EventAnswer> {
    let Wanted { sub, name, condition, begin } = wanted;
    types::valid_name(&name).map_err(|why| EventAnswer::Wrong(why.to_string()))?;
    if known.as_ref().is_some_and(|known| known.get(&name).is_none()) {
        // It may have been defined a moment ago.
        known = None;
    }
    let types = publish::types(asker, known).await.map_err(|()| EventAnswer::Unavailable)?;
    if types.get(&name).is_none() {
        return Err(EventAnswer::Wrong(types.unknown(&name)));
    }
    let schema = types.schema(&name);
    let condition = Condition::parse(&condition, &types::attributes(&schema))
        .map_err(|error| EventAnswer::Wrong(error.to_string()))?;
    Ok(Opened { sub, condition, begin, types: types.below(&name), name })
}

/// Has the rendezvous tell this node, and hears what it missed.
async fn renew(
    asker: Asker,
    name: String,
    mut known: Option<NodeId>,
    from: Option<u64>,
    filters: Vec<Condition>,
) -> Outcome {
    for _ in 0..TRIES {
        // Who it was the last time says so if it is not any more.
        let at = match known.take() {
            Some(at) => Some(at),
            None => asker.find(key_of(&name)).await,
        };
        if let Some(at) = at {
            let (name, filters) = (name.clone(), filters.clone());
            match asker.call(at, Request::Subscribe { name: name.clone(), from, filters }).await {
                Some(response @ Response::Events { .. }) => {
                    return Outcome::Renewed { name, at: Some(at), response: Some(response) };
                }
                // Trying again at once would not help.
                Some(Response::Unavailable | Response::Unfit) => break,
                Some(Response::NotHere | Response::Published { .. }) | None => {}
            }
        }
        asker.sleep(PAUSE).await;
    }
    Outcome::Renewed { name, at: None, response: None }
}

/// What lies before a subscription.
struct Reading {
    sub: u64,
    name: String,
    start: Start,
    until: u64,
    filter: Condition,
}

/// Reads it, page by page.
async fn catch_up(asker: Asker, reading: Reading) -> Outcome {
    let Reading { sub, name, mut start, until, filter } = reading;
    let (mut read, mut lost) = (Vec::new(), 0);
    let mut tries = 0;
    while tries < TRIES {
        let Some(at) = asker.find(key_of(&name)).await else {
            tries += 1;
            asker.sleep(PAUSE).await;
            continue;
        };
        let request = Request::Read { name: name.clone(), start, until, filter: filter.clone() };
        match asker.call(at, request).await {
            Some(Response::Events { events, next, lost: missed }) => {
                lost += missed;
                read.extend(events);
                if next >= until {
                    break;
                }
                start = Start::Place(next);
            }
            _ => {
                tries += 1;
                asker.sleep(PAUSE).await;
            }
        }
    }
    Outcome::CaughtUp { sub, name, read, lost }
}
