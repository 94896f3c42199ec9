//! What one input brings to the components, worked off first in, first out.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use dugnad_kernel::{Arc, Input, NodeId};

use crate::Seeker;
use crate::deployment::{self, Deployment};
use crate::linear::{self, Linear};
use crate::objects::{self, Objects};
use crate::packages::{self, Packages};
use crate::persistence::{self, Persistence};
use crate::position::RingPosition;
use crate::prospector::{self, Prospector};
use crate::pubsub::{self, PubSub};

/// What one of the components is to handle next.
pub(crate) enum Work {
    Persistence(Input<Persistence>),
    Packages(Input<Packages>),
    Deployment(Input<Deployment>),
    Objects(Input<Objects>),
    Linear(Input<Linear>),
    Prospector(Input<Prospector>),
    PubSub(Input<PubSub>),
}

/// What one input brings to the components, first in, first out: an answer to what a component
/// asked comes after everything else it said in the same breath.
pub(crate) type Queue = VecDeque<Work>;

/// Something for a component to do.
pub(crate) trait Give {
    fn persist(&mut self, command: persistence::Command);
    fn package(&mut self, command: packages::Command);
    fn deploy(&mut self, command: deployment::Command);
    fn object(&mut self, command: objects::Command);
    fn line(&mut self, command: linear::Command);
    fn prospect(&mut self, command: prospector::Command);
    fn event(&mut self, command: pubsub::Command);
}

impl Give for Queue {
    fn persist(&mut self, command: persistence::Command) {
        self.push_back(Work::Persistence(Input::Command(command)));
    }

    fn package(&mut self, command: packages::Command) {
        self.push_back(Work::Packages(Input::Command(command)));
    }

    fn deploy(&mut self, command: deployment::Command) {
        self.push_back(Work::Deployment(Input::Command(command)));
    }

    fn object(&mut self, command: objects::Command) {
        self.push_back(Work::Objects(Input::Command(command)));
    }

    fn line(&mut self, command: linear::Command) {
        self.push_back(Work::Linear(Input::Command(command)));
    }

    fn prospect(&mut self, command: prospector::Command) {
        self.push_back(Work::Prospector(Input::Command(command)));
    }

    fn event(&mut self, command: pubsub::Command) {
        self.push_back(Work::PubSub(Input::Command(command)));
    }
}

/// What a lookup found, to who asked for it.
pub(crate) fn found(seeker: Seeker, owner: Option<NodeId>, queue: &mut Queue) {
    match seeker {
        Seeker::Persistence(call) => queue.persist(persistence::Command::Found { call, owner }),
        Seeker::Deployment(call) => queue.deploy(deployment::Command::Found { call, owner }),
        Seeker::Objects(call) => queue.object(objects::Command::Found { call, owner }),
        Seeker::Linear(call) => queue.line(linear::Command::Found { call, owner }),
        Seeker::PubSub(call) => queue.event(pubsub::Command::Found { call, owner }),
        Seeker::Prospector(call) => queue.prospect(prospector::Command::Found { call, owner }),
    }
}

/// What a broadcast brought back, to who waits for it.
pub(crate) fn feedback(seeker: Seeker, parts: Vec<Vec<u8>>, complete: bool, queue: &mut Queue) {
    match seeker {
        Seeker::Deployment(call) => {
            queue.deploy(deployment::Command::Feedback { call, parts, complete });
        }
        Seeker::Objects(call) => queue.object(objects::Command::Feedback { call, parts, complete }),
        Seeker::Prospector(call) => {
            queue.prospect(prospector::Command::Feedback { call, parts, complete });
        }
        // They tell nobody anything.
        Seeker::Persistence(_) | Seeker::Linear(_) | Seeker::PubSub(_) => {}
    }
}

/// What this node answers for now, to all who stand somewhere on the ring.
pub(crate) fn moved(position: &RingPosition, gained: Option<Arc>, queue: &mut Queue) {
    queue.persist(persistence::Command::Moved { position: position.clone(), gained });
    queue.deploy(deployment::Command::Moved(position.clone()));
    queue.object(objects::Command::Moved(position.clone()));
    queue.line(linear::Command::Moved(position.clone()));
    queue.prospect(prospector::Command::Moved(position.clone()));
    queue.event(pubsub::Command::Moved(position.clone()));
    queue.package(packages::Command::Moved(position.clone()));
}

/// A node will not answer any more, or not as the one it was.
pub(crate) fn gone(node: NodeId, queue: &mut Queue) {
    queue.persist(persistence::Command::Gone(node));
    queue.object(objects::Command::Gone(node));
    queue.line(linear::Command::Gone(node));
    queue.event(pubsub::Command::Gone(node));
    queue.prospect(prospector::Command::Gone(node));
}

/// What a node was asked it may not have heard.
pub(crate) fn link_down(node: NodeId, queue: &mut Queue) {
    queue.persist(persistence::Command::LinkDown(node));
    queue.object(objects::Command::LinkDown(node));
    queue.line(linear::Command::LinkDown(node));
    queue.event(pubsub::Command::LinkDown(node));
    queue.prospect(prospector::Command::LinkDown(node));
    queue.deploy(deployment::Command::LinkDown(node));
}
