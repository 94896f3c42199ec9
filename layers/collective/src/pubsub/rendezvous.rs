//! The rendezvous of a type: appends what is published, tells who subscribed.
//!
//! Requests wait while registers are read or written, and are then served together, so that many
//! events at a time cost one write. Subscriptions are kept in memory, for a while each: who
//! subscribes asks again, and finds another rendezvous with the place it had come to.

use alloc::collections::VecDeque;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::mem::take;

use dugnad_kernel::calls::Operates;
use dugnad_kernel::map::Map;
use dugnad_kernel::ops::CallId;
use dugnad_kernel::{Cx, Duration, Key, NodeId, Time};
use dugnad_resource::condition::Condition;

use super::log::{EVENT_BYTES, Log, Published};
use super::operations::{Asker, AskerExt, Outcome, Served, load};
use super::types::{self, Types, is_built_in, key_of};
use super::{
    FILTERS_BYTES, FILTERS_MAX, Msg, PubSub, Receiver, Request, Response, Start, TYPES_HERE_MAX,
    publish,
};
use crate::linear::register::{Change, Done};
use crate::linear::{Answer, Question};

/// How long a subscription lasts at a rendezvous without being renewed.
pub(super) const LEASE: Duration = Duration::from_secs(150);
/// Nodes that subscribe to one type.
const SUBSCRIBERS_MAX: usize = 1_024;
/// Requests that wait at one rendezvous.
const WAITING_MAX: usize = 256;
/// Nodes that are told directly; each tells its share of the others.
const FAN_OUT: usize = 2;
/// Bytes of events in one message.
const PAGE_BYTES: usize = 24 * 1024;
/// Times a log is written to before it is left for later: others append, too.
const WRITES: u32 = 24;
/// After so long a log is read once more, in case another rendezvous that nobody knows of appended.
const READ_AGAIN: Duration = Duration::from_secs(600);
/// How long events of a built-in type are kept after somebody subscribed, in milliseconds; said
/// anew when half of it is over.
const WANTED_MS: u64 = 30 * 60_000;

struct Subscriber {
    until: Time,
    /// The place up to which it knows that it was told.
    told: u64,
    /// The place up to which the events were looked at for it.
    seen: u64,
    filters: Vec<Condition>,
}

impl Subscriber {
    fn wants(&self, event: &Published) -> bool {
        wants(&self.filters, event)
    }
}

fn wants(filters: &[Condition], event: &Published) -> bool {
    filters.iter().any(|filter| filter.matches(event.attributes.as_slice()))
}

type Waiting = (NodeId, CallId, Request);

#[derive(Default)]
pub(super) struct Rendezvous {
    /// Which one it is: it may have moved away and come back while something was being served.
    number: u32,
    /// `None` until it was read.
    log: Option<Log>,
    /// When it was read: others append, too, while the ring is not one.
    read: Option<Time>,
    /// Until when the events of a built-in type are wanted; `None` if that was not read.
    wanted_ms: Option<u64>,
    waiting: VecDeque<Waiting>,
    /// What is being served now.
    serving: Vec<Waiting>,
    subscribers: Map<NodeId, Subscriber>,
}

impl Rendezvous {
    fn is_idle(&self) -> bool {
        self.serving.is_empty() && self.waiting.is_empty() && self.subscribers.is_empty()
    }
}

impl Request {
    fn name(&self) -> &str {
        match self {
            Self::Publish { name, .. } | Self::Subscribe { name, .. } | Self::Read { name, .. } => {
                name
            }
        }
    }

    /// Whether it is within its bounds.
    fn fits(&self) -> bool {
        types::valid_name(self.name()).is_ok()
            && match self {
                Self::Publish { event, .. } => event.bytes() <= EVENT_BYTES,
                Self::Subscribe { filters, .. } => {
                    let bytes = postcard::to_allocvec(filters).map_or(usize::MAX, |f| f.len());
                    bytes <= FILTERS_BYTES
                        && filters.len() <= FILTERS_MAX
                        && filters.iter().all(Condition::fits)
                }
                Self::Read { filter, .. } => filter.fits(),
            }
    }
}

impl PubSub {
    pub(super) fn on_request(
        &mut self,
        from: NodeId,
        call: CallId,
        request: Request,
        cx: &mut Cx<'_, Self>,
    ) {
        let name = request.name().to_string();
        if !request.fits() {
            self.count("event_request_unfit");
            return cx.send(from, Msg::Response { call, response: Response::Unfit });
        }
        let busy = self.meeting.get(&name).is_some_and(|m| m.waiting.len() >= WAITING_MAX);
        if !self.position.owns(key_of(&name)) || busy || !self.make_room(&name) {
            // Whoever asks tries again after a pause.
            return cx.send(from, Msg::Response { call, response: Response::NotHere });
        }
        if !self.meeting.contains_key(&name) {
            self.meetings = self.meetings.wrapping_add(1);
            let new = Rendezvous { number: self.meetings, ..Rendezvous::default() };
            self.meeting.insert(name.clone(), new);
        }
        if let Some(meeting) = self.meeting.get_mut(&name) {
            meeting.waiting.push_back((from, call, request));
        }
        self.serve(&name, cx);
    }

    /// Whether there is room for the rendezvous of one more type.
    fn make_room(&mut self, name: &str) -> bool {
        if self.meeting.len() >= TYPES_HERE_MAX && !self.meeting.contains_key(name) {
            self.meeting.retain(|_, meeting| !meeting.is_idle());
        }
        self.meeting.len() < TYPES_HERE_MAX || self.meeting.contains_key(name)
    }

    /// Begins to serve what waits, unless something is being served.
    fn serve(&mut self, name: &str, cx: &mut Cx<'_, Self>) {
        let (now_ms, types) = (self.now_ms(cx.now), self.known_types(cx.now));
        let Some(meeting) = self.meeting.get_mut(name) else { return };
        if !meeting.serving.is_empty() || meeting.waiting.is_empty() {
            return;
        }
        meeting.serving = take(&mut meeting.waiting).into();
        let mut events: Vec<Published> = Vec::new();
        for (_, _, request) in &meeting.serving {
            if let Request::Publish { event, .. } = request {
                if events.iter().all(|known| known.id != event.id) {
                    events.push(event.clone());
                }
            }
        }
        let wanted = meeting.serving.iter().any(|(.., r)| !matches!(r, Request::Publish { .. }));
        let fresh = !is_built_in(name)
            || meeting.wanted_ms.is_some_and(|until| until > now_ms + WANTED_MS / 2);
        if meeting.read.is_none_or(|read| cx.now.since(read) > READ_AGAIN) {
            (meeting.log, meeting.read) = (None, Some(cx.now));
        }
        let (log, wanted_ms) = (meeting.log.take(), meeting.wanted_ms);
        if events.is_empty() && log.is_some() && fresh {
            let number = meeting.number;
            let served = Served { number, log, wanted_ms, ..Served::default() };
            return self.on_served(name, served, cx);
        }
        let (number, name) = (meeting.number, name.to_string());
        let work = Work { name: name.clone(), log, events, wanted_ms, wanted, now_ms, types };
        if !self.start("serve events", |asker| work_off(asker, number, work), cx) {
            self.on_served(&name, Served { number, ..Served::default() }, cx);
        }
    }

    pub(super) fn on_served(&mut self, name: &str, served: Served, cx: &mut Cx<'_, Self>) {
        let meeting = self.meeting.get_mut(name).filter(|known| known.number == served.number);
        let Some(meeting) = meeting else { return };
        let Served { log, wanted_ms, nobody, unfit, unknown, .. } = served;
        (meeting.log, meeting.wanted_ms) = (log, wanted_ms);
        for (from, call, request) in take(&mut meeting.serving) {
            let response = match (request, &meeting.log) {
                _ if unknown => Response::Unfit,
                (Request::Publish { .. }, _) if nobody => Response::Published { place: 0 },
                (Request::Publish { event, .. }, _) if unfit.contains(&event.id) => Response::Unfit,
                (Request::Publish { event, .. }, Some(log)) => {
                    let place = log.place_of(event.id);
                    place.map_or(Response::Unavailable, |place| Response::Published { place })
                }
                (Request::Subscribe { from: place, filters, .. }, Some(log)) => {
                    let (response, next) = since(log, place, &filters);
                    let subscribers = &mut meeting.subscribers;
                    subscribers.retain(|_, known| known.until > cx.now);
                    if subscribers.len() < SUBSCRIBERS_MAX || subscribers.contains_key(&from) {
                        let until = cx.now + LEASE;
                        let new = Subscriber { until, told: next, seen: next, filters };
                        subscribers.insert(from, new);
                    }
                    response
                }
                (Request::Read { start, until, filter, .. }, Some(log)) => {
                    read(log, start, until, filter)
                }
                (_, None) => Response::Unavailable,
            };
            cx.send(from, Msg::Response { call, response });
        }
        if unknown && meeting.is_idle() {
            self.meeting.remove(name);
            return;
        }
        self.deliver(name, cx);
        self.serve(name, cx);
    }

    /// Tells subscribers of the events that are new since they were looked at for them.
    fn deliver(&mut self, name: &str, cx: &mut Cx<'_, Self>) {
        let Some(meeting) = self.meeting.get_mut(name) else { return };
        let Some(log) = &meeting.log else { return };
        meeting.subscribers.retain(|_, known| known.until > cx.now);
        let next = log.next();
        let Some(oldest) = meeting.subscribers.values().map(|known| known.seen).min() else {
            return;
        };
        let (mut events, mut bytes): (Vec<(u64, Published)>, usize) = (Vec::new(), 0);
        let mut to = Vec::new();
        for (place, event) in log.from(oldest) {
            let wants = |known: &Subscriber| known.seen <= place && known.wants(event);
            if meeting.subscribers.values().any(wants) {
                bytes += event.bytes();
                events.push((place, event.clone()));
            }
        }
        for (node, known) in meeting.subscribers.iter_mut() {
            if events.iter().any(|(place, event)| known.seen <= *place && known.wants(event)) {
                to.push(Receiver::new(*node, known.told));
                known.told = next;
            }
            known.seen = next;
        }
        if bytes > PAGE_BYTES {
            // Too much at a time: they see a gap, and ask for what lies in it.
            events.clear();
            to.iter_mut().for_each(|told| told.up_to = next);
        }
        // In the middle of the others it would have to pass on a share of them, too.
        match to.iter().any(|told| told.node() == self.me) {
            true => self.on_events(name, events, next, &to, cx),
            false => fan_out(name, &events, next, &to, cx),
        }
    }

    /// What is for this node, and what it is to tell others.
    pub(super) fn on_events(
        &mut self,
        name: &str,
        events: Vec<(u64, Published)>,
        next: u64,
        to: &[Receiver],
        cx: &mut Cx<'_, Self>,
    ) {
        if to.len() > SUBSCRIBERS_MAX || events.iter().any(|(_, e)| e.bytes() > EVENT_BYTES) {
            return self.count("events_unfit");
        }
        let others: Vec<Receiver> =
            to.iter().filter(|told| told.node() != self.me).copied().collect();
        if others.len() == to.len() {
            // Not meant for this node: nor is it to pass them on.
            return self.count("events_unfit");
        }
        fan_out(name, &events, next, &others, cx);
        if let Some(told) = to.iter().find(|told| told.node() == self.me) {
            self.on_feed(name, events, told.up_to, next, cx);
        }
    }

    /// What this node does not answer for any more, others do.
    pub(super) fn leave_meetings(&mut self, cx: &mut Cx<'_, Self>) {
        let position = &self.position;
        let gone = self.meeting.keys().filter(|name| !position.owns(key_of(name)));
        for name in gone.cloned().collect::<Vec<_>>() {
            let Some(meeting) = self.meeting.remove(&name) else { continue };
            for (from, call, _) in meeting.waiting.into_iter().chain(meeting.serving) {
                cx.send(from, Msg::Response { call, response: Response::NotHere });
            }
            for (node, _) in meeting.subscribers {
                cx.send(node, Msg::Moved { name: name.clone() });
            }
        }
        // Whoever is near now may have had a part of the ring of its own.
        self.meeting.iter_mut().for_each(|(_, meeting)| meeting.read = None);
    }

    pub(super) fn forget_subscriber(&mut self, node: NodeId) {
        for (_, meeting) in self.meeting.iter_mut() {
            meeting.subscribers.remove(&node);
        }
    }
}

/// Sends events to a few of the nodes, each with a share of the others: the list gets shorter with
/// every step.
fn fan_out(
    name: &str,
    events: &[(u64, Published)],
    next: u64,
    to: &[Receiver],
    cx: &mut Cx<'_, PubSub>,
) {
    for share in to.chunks(to.len().div_ceil(FAN_OUT).max(1)) {
        let (name, events, to) = (name.to_string(), events.to_vec(), share.to_vec());
        if let Some(first) = share.first() {
            cx.send(first.node(), Msg::Events { name, events, next, to });
        }
    }
}

/// The events from `place` on that are wanted, as many as fit a message, and where to go on.
fn page(
    log: &Log,
    place: u64,
    until: u64,
    wanted: impl Fn(&Published) -> bool,
) -> (Vec<(u64, Published)>, u64) {
    let (mut events, mut bytes): (Vec<(u64, Published)>, usize) = (Vec::new(), 0);
    for (at, event) in log.from(place).take_while(|(at, _)| *at < until) {
        if !wanted(event) {
            continue;
        }
        bytes += event.bytes();
        if bytes > PAGE_BYTES {
            return (events, at);
        }
        events.push((at, event.clone()));
    }
    (events, until)
}

fn since(log: &Log, place: Option<u64>, filters: &[Condition]) -> (Response, u64) {
    let end = log.next();
    // A log that was lost begins anew: what is further is not there.
    let place = place.filter(|place| *place <= end).unwrap_or(end);
    let lost = log.first().saturating_sub(place);
    let (events, next) = page(log, place, end, |event| wants(filters, event));
    (Response::Events { events, next, lost }, next)
}

fn read(log: &Log, start: Start, until: u64, filter: Condition) -> Response {
    let filters = [filter];
    let until = until.min(log.next());
    match start {
        Start::Place(place) => {
            let lost = log.first().min(until).saturating_sub(place);
            let (events, next) = page(log, place, until, |event| wants(&filters, event));
            Response::Events { events, next, lost }
        }
        Start::Since(ms) => {
            let wanted = |event: &Published| event.at_ms >= ms && wants(&filters, event);
            let (events, next) = page(log, 0, until, wanted);
            Response::Events { events, next, lost: 0 }
        }
    }
}

/// What a rendezvous has to do with registers.
struct Work {
    name: String,
    log: Option<Log>,
    events: Vec<Published>,
    wanted_ms: Option<u64>,
    /// Somebody subscribes or reads.
    wanted: bool,
    now_ms: u64,
    types: Option<Types>,
}

async fn work_off(asker: Asker, number: u32, work: Work) -> Outcome {
    let name = work.name.clone();
    // Without a majority nothing is known any more: the next request reads anew.
    let served = served(&asker, work).await.unwrap_or_default();
    Outcome::Served { name, served: Served { number, ..served } }
}

/// `Err` if no majority answers.
async fn served(asker: &Asker, work: Work) -> Result<Served, ()> {
    let Work { name, mut log, mut events, mut wanted_ms, wanted, now_ms, types } = work;
    let mut unfit = Vec::new();
    if is_built_in(&name) {
        let until = match wanted_ms {
            Some(until) => until,
            None => wanted_until(asker, &name).await?,
        };
        wanted_ms = Some(until);
        if wanted && until <= now_ms + WANTED_MS / 2 {
            let until = now_ms + WANTED_MS;
            want_until(asker, &name, until).await?;
            wanted_ms = Some(until);
        } else if !wanted && until <= now_ms {
            return Ok(Served { log, wanted_ms, nobody: true, ..Served::default() });
        }
    }
    if !events.is_empty() || log.is_none() {
        let types = match is_built_in(&name) {
            true => Types::with(Vec::new(), 0),
            false => {
                publish::types(asker, types.filter(|known| known.get(&name).is_some())).await?
            }
        };
        if types.get(&name).is_none() {
            return Ok(Served { unknown: true, ..Served::default() });
        }
        let schema = types.schema(&name);
        let bad = |event: &Published| !types::conform(&event.attributes, &schema);
        unfit.extend(events.iter().filter(|event| bad(event)).map(|event| event.id));
        events.retain(|event| !unfit.contains(&event.id));
    }
    let mut log = match log.take() {
        Some(log) => log,
        None => load(asker, &name).await?,
    };
    append(asker, &name, &mut log, events).await?;
    Ok(Served { log: Some(log), wanted_ms, unfit, ..Served::default() })
}

/// Brings the events into the log, each once, whoever else appends. What is not in it then could
/// not be brought in.
async fn append(
    asker: &Asker,
    name: &str,
    log: &mut Log,
    mut events: Vec<Published>,
) -> Result<(), ()> {
    for _ in 0..WRITES {
        events.retain(|event| log.place_of(event.id).is_none());
        if events.is_empty() {
            break;
        }
        let step = log.step(&events);
        let value = postcard::to_allocvec(&step.slot).ok();
        let key = super::log::key(name, step.index);
        let change = Change::Cas { revision: step.revision, value };
        let label = alloc::format!("events {name} {}", step.index);
        match asker.linear(Question::Change { key, name: label, change }).await {
            Answer::Done { done: Done::Written { revision }, .. } => log.wrote(step, revision),
            Answer::Unavailable => return Err(()),
            // Somebody else appended, or this may be written: the registers tell.
            _ => *log = load(asker, name).await?,
        }
    }
    Ok(())
}

fn wanted_key(name: &str) -> Key {
    Key::of_name("events wanted", name.as_bytes())
}

async fn wanted_until(asker: &Asker, name: &str) -> Result<u64, ()> {
    let (_, value) = asker.read(wanted_key(name)).await?;
    Ok(value.and_then(|bytes| postcard::from_bytes(&bytes).ok()).unwrap_or(0))
}

async fn want_until(asker: &Asker, name: &str, until: u64) -> Result<(), ()> {
    let value = postcard::to_allocvec(&until).ok();
    let (key, label) = (wanted_key(name), alloc::format!("events {name} wanted"));
    let question = Question::Change { key, name: label, change: Change::Put { value } };
    match asker.linear(question).await {
        Answer::Done { .. } => Ok(()),
        _ => Err(()),
    }
}
