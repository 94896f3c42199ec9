//! What nodes say to each other about services, and what comes of it, in words: for `transcripts/`.

use std::fmt::Write as _;

use dugnad_collective::deployment::service::{FAILED, PLAN, PREVIOUS, SPEC};
use dugnad_collective::persistence::record::Record;
use dugnad_collective::{Msg as Collective, deployment, packages, persistence};
use dugnad_kernel::{NodeId, Time};
use dugnad_node::Msg;
use dugnad_resource::execute::{Order, ReplicaId, ToHost, ToManager};

use crate::World;

/// The lines so far, while somebody listens.
#[derive(Debug, Default)]
pub(crate) struct Story {
    text: String,
}

impl Story {
    fn line(&mut self, now: Time, who: &str, what: &str) {
        let seconds = now.0 as f64 / 1e6;
        // Writing into memory cannot fail.
        _ = writeln!(self.text, "{seconds:8.3}  {who:9} {what}");
    }
}

impl World {
    /// From now on everything about services is told.
    pub fn begin_story(&mut self) {
        self.story = Some(Story::default());
    }

    #[must_use]
    pub fn end_story(&mut self) -> String {
        self.story.take().map(|story| story.text).unwrap_or_default()
    }

    /// A sentence between the lines.
    pub fn narrate(&mut self, what: &str) {
        if let Some(story) = &mut self.story {
            _ = writeln!(story.text, "\n-- {what}");
        }
    }

    pub(crate) fn tell_message(&mut self, from: NodeId, to: NodeId, msg: &Msg) {
        if self.story.is_none() {
            return;
        }
        if let Some(words) = self.words(msg) {
            let who = format!("{} -> {}", self.name(from), self.name(to));
            let now = self.now;
            self.story.iter_mut().for_each(|story| story.line(now, &who, &words));
        }
    }

    pub(crate) fn tell_order(&mut self, at: NodeId, order: &Order) {
        if self.story.is_none() {
            return;
        }
        let words = match order {
            Order::Start(run) => format!("starts {}", replica(run.id)),
            Order::Stop { id, .. } => format!("stops {}", replica(*id)),
            Order::Fetch { .. } => "fetches the package, to run it".to_owned(),
            Order::KeepPackage { from, .. } => {
                format!("fetches the package from {}, to keep it", self.names(from))
            }
            Order::Drop { .. } => "drops the package".to_owned(),
            Order::ForgetState { .. } => "forgets the state that was kept".to_owned(),
        };
        let (now, who) = (self.now, format!("     {}:", self.name(at)));
        self.story.iter_mut().for_each(|story| story.line(now, &who, &words));
    }

    fn name(&self, id: NodeId) -> &str {
        self.machines.get(&id).map_or("?", |machine| &machine.name)
    }

    fn names(&self, ids: &[NodeId]) -> String {
        let names: Vec<&str> = ids.iter().map(|id| self.name(*id)).collect();
        names.join(" ")
    }

    fn words(&self, msg: &Msg) -> Option<String> {
        Some(match msg {
            Msg::Collective(Collective::Persistence(msg)) => self.persistence(msg)?,
            Msg::Collective(Collective::Packages(msg)) => match msg {
                packages::Msg::Held { .. } => "Held: the package is here, too".to_owned(),
                packages::Msg::Mirror { origin, .. } => {
                    format!("Mirror: keep the package, too; {} waits", self.name(*origin))
                }
                packages::Msg::NotHeld { reason, beside, .. } => match beside {
                    None => format!("NotHeld: {reason}"),
                    Some(other) => format!("NotHeld: {reason}; {} is asked", other.short()),
                },
            },
            Msg::Collective(Collective::Deployment(msg)) => self.deployment(msg),
            // None of these stories is about objects, registers or events.
            Msg::Collective(
                Collective::Objects(_)
                | Collective::Linear(_)
                | Collective::PubSub(_)
                | Collective::Prospector(_),
            ) => return None,
            Msg::ToHost(msg) => to_host(msg)?,
            Msg::ToManager(msg) => to_manager(msg),
            Msg::Connectivity(_) | Msg::Away { .. } => return None,
        })
    }

    fn persistence(&self, msg: &persistence::Msg) -> Option<String> {
        use persistence::{Msg, Request, Response};
        Some(match msg {
            Msg::Request { request, .. } => match request {
                Request::Put(record) => format!("Put {}", written(record)),
                Request::Copy(record) => format!("Copy of {}", written(record)),
                Request::Get((_, name)) => format!("Get {}", called(name)),
                Request::Claim { record, expected } => {
                    format!("Claim: {}, if {expected} came before", written(record))
                }
                Request::Decide { .. } => return None,
            },
            Msg::Response { response, .. } => match response {
                Response::Put { holders, .. } => {
                    format!("it is on disk at {}", self.names(holders))
                }
                Response::Copied => "it is on disk".to_owned(),
                Response::Get(Some(record)) => format!("here is {}", written(record)),
                Response::Get(None) => "there is none".to_owned(),
                Response::Refused => "Refused".to_owned(),
                Response::NotOwner => "NotOwner".to_owned(),
                Response::Taken(_) => "Taken: somebody wrote first".to_owned(),
                Response::Decided(_) => return None,
            },
            // Comparing is no part of these stories.
            Msg::Sync(_) => return None,
        })
    }

    fn deployment(&self, msg: &deployment::Msg) -> String {
        use deployment::{Msg, Request, Response};
        match msg {
            Msg::Request { request, .. } => match request {
                Request::Query { .. } => "Query: how does it stand, once it is news?".to_owned(),
                Request::Why { .. } => "Why".to_owned(),
                Request::Recall { .. } => "Recall: what do you know of the service?".to_owned(),
            },
            Msg::Response { response, .. } => match response {
                Response::View(view) => {
                    let (ready, want, version) = (view.ready, view.want, view.generation);
                    format!("View: {ready} of {want} ready, version {version}")
                }
                Response::Unknown => "Unknown".to_owned(),
                Response::NotManager => "NotManager".to_owned(),
                Response::Why(_) => "here is why".to_owned(),
                Response::Recalled(records) => {
                    let known: Vec<String> = records.iter().map(written).collect();
                    if known.is_empty() {
                        return "nothing".to_owned();
                    }
                    format!("I have {}", known.join(", "))
                }
            },
        }
    }
}

fn called(name: &[u8]) -> String {
    match name {
        SPEC => "what is wanted".to_owned(),
        PLAN => "the plan".to_owned(),
        PREVIOUS => "what was wanted before".to_owned(),
        FAILED => "what failed".to_owned(),
        name if name.len() == 16 => "who needs the package".to_owned(),
        name => String::from_utf8_lossy(name).into_owned(),
    }
}

fn written(record: &Record) -> String {
    let gone = if record.value.is_none() { ", a tombstone" } else { "" };
    format!("{}{gone}", called(&record.name))
}

fn replica(id: ReplicaId) -> String {
    format!("replica {}", id.number)
}

/// The answer to a beat says nothing new.
fn to_host(msg: &ToHost) -> Option<String> {
    Some(match msg {
        ToHost::Reserve { id, epoch, .. } => {
            format!("Reserve {}, in term {}", replica(*id), epoch.term)
        }
        ToHost::Start { id, epoch, generation, .. } => {
            format!("Start {}, version {generation}, in term {}", replica(*id), epoch.term)
        }
        ToHost::Stop { id, epoch, .. } => format!("Stop {}, in term {}", replica(*id), epoch.term),
        ToHost::Probe { epoch, .. } => format!("Probe: what do you run? In term {}", epoch.term),
        ToHost::NotManager { .. } => "NotManager: look for the new one".to_owned(),
        ToHost::BeatAck { .. } => return None,
    })
}

fn to_manager(msg: &ToManager) -> String {
    match msg {
        ToManager::Reserved { id, .. } => format!("Reserved {}", replica(*id)),
        ToManager::Refused { id, reason, .. } => format!("Refused {}: {reason}", replica(*id)),
        ToManager::Beat { id, generation, state, .. } => {
            format!("Beat: {} of version {generation} is {state:?}", replica(*id))
        }
        ToManager::Nothing { .. } => "Nothing: I run none".to_owned(),
        ToManager::Deposed { epoch, .. } => format!("Deposed: I obey term {}", epoch.term),
        ToManager::Leaving { leaving: true, .. } => "Leaving: take my replica over".to_owned(),
        ToManager::Leaving { .. } => "Leaving no more".to_owned(),
        ToManager::Load { load, .. } => format!("Load: {} requests", load.requests),
    }
}
