//! An overlay inside a group (PROTOCOL.md 4.5): it has a ring, a table and broadcasts of its own,
//! but links and failure detector are those of the main overlay. It sends no pings: it says whom it
//! wants watched, and is told who died.

use dugnad_kernel::map::Set;

use dugnad_kernel::{Cx, Input, NodeId, Peer};

use crate::detector::{self, Detector};
use crate::route::Routes;
use crate::tree::broadcast::Casts;
use crate::{Event, Overlay};

#[derive(Debug, Default)]
pub(crate) struct Nested {
    wanted: Set<NodeId>,
}

impl Overlay {
    /// `instance` counts the nested overlays of one node, so that what an earlier one numbered is
    /// not taken for what this one does.
    #[must_use]
    pub fn nested(me: Peer, instance: u32) -> Self {
        Self {
            routes: Routes::of_life(instance),
            casts: Casts::of_life(instance),
            nested: Some(Nested::default()),
            ..Self::new(me)
        }
    }

    /// Whom a nested overlay wants watched.
    pub fn wants_watched(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nested.iter().flat_map(|nested| nested.wanted.iter().copied())
    }

    /// What the detector here has to handle; in a nested overlay hardly anything.
    pub(crate) fn judged_here(
        &mut self,
        input: Input<Detector>,
        cx: &mut Cx<'_, Self>,
    ) -> Option<Input<Detector>> {
        let Some(nested) = self.nested.as_mut() else { return Some(input) };
        match input {
            Input::Command(detector::Command::Watch { near, far }) => {
                nested.wanted = near.iter().chain(&far).copied().collect();
            }
            Input::Command(detector::Command::Doubt(id)) => cx.emit(Event::Doubt(id)),
            // Who is linked is worth knowing: it may be asked the way.
            Input::Command(detector::Command::Heard(_) | detector::Command::Closed(_)) => {
                return Some(input);
            }
            _ => self.count("nested_detector"),
        }
        None
    }

    /// The main overlay is sure.
    pub(crate) fn on_told_dead(&mut self, id: NodeId, cx: &mut Cx<'_, Self>) {
        if self.nested.is_some() && self.book.contains_key(&id) {
            self.detect(Input::Command(detector::Command::Closed(id)), cx);
            self.on_dead(id, cx);
        }
    }

    /// It lives, but not in this ring.
    pub(crate) fn on_outside(&mut self, id: NodeId, cx: &mut Cx<'_, Self>) {
        if self.nested.is_some() {
            self.detect(Input::Command(detector::Command::Closed(id)), cx);
            self.forget_dead(id);
            self.leave_out(id, cx);
            self.on_way_in_closed(id, cx);
        }
    }
}
