//! From what the layers know to what people are shown.

use alloc::string::String;
use alloc::vec::Vec;
use dugnad_kernel::map::Set;

use dugnad_collective::deployment::client::ServiceAnswer;
use dugnad_fabric::Amounts;
use dugnad_kernel::{Counters, Cx, NodeId};
use dugnad_resource::describe::Description;
use dugnad_resource::execute::{HostState, ReplicaId};

use crate::{Answer, AskId, Node, NodeState, NodeView, PlanView, ReplicaState, Status};

/// The node's own question after it joined; no person waits for it.
pub(crate) const PORTS_ASK: AskId = AskId::MAX;

impl Node {
    pub(crate) fn on_reply(&mut self, ask: AskId, reply: ServiceAnswer, cx: &mut Cx<'_, Self>) {
        let answer = match reply {
            ServiceAnswer::Ports(ports) => {
                for (name, port) in ports {
                    self.remember_port(name, Some(port));
                }
                self.tell_ports(cx);
                return;
            }
            _ if ask == PORTS_ASK => return,
            ServiceAnswer::Nodes(descriptions) => Answer::Nodes(self.node_views(descriptions)),
            ServiceAnswer::Plan { want, because, predicted, choice, notes } => {
                let chosen = choice.candidates.into_iter().map(|c| (c.node, c.name, c.why));
                let (chosen, refused) = (chosen.collect(), choice.refused);
                Answer::Plan(PlanView { want, because, predicted, chosen, refused, notes })
            }
            ServiceAnswer::Deployed { view, missing } => {
                Answer::Deployed { service: view, missing }
            }
            ServiceAnswer::Ps { views, complete } => Answer::Ps { services: views, complete },
            ServiceAnswer::Why(lines) => Answer::Why(lines),
            ServiceAnswer::Resolved(view) => Answer::Resolved(view),
            ServiceAnswer::Done => Answer::Done,
            ServiceAnswer::Unmet(reasons) => Answer::Unmet(reasons),
            ServiceAnswer::Unknown => Answer::Unknown,
            ServiceAnswer::Conflict(text) => Answer::Conflict(text),
            ServiceAnswer::Failed(text) => Answer::Failed(text),
        };
        self.answer_known(ask, answer, cx);
    }

    fn node_views(&mut self, descriptions: Vec<Description>) -> Vec<NodeView> {
        for description in &descriptions {
            self.remember_name(description.peer.id, &description.profile.name);
        }
        let (me, detector) = (self.connectivity.ring().me().id, self.connectivity.detector());
        let answered: Set<NodeId> = descriptions.iter().map(|d| d.peer.id).collect();
        let mut views: Vec<NodeView> = descriptions
            .into_iter()
            .map(|d| NodeView {
                state: if detector.is_suspect(d.peer.id) {
                    NodeState::Suspect
                } else {
                    NodeState::Alive
                },
                linked: detector.is_linked(d.peer.id),
                me: d.peer.id == me,
                profile: Some(d.profile),
                name: String::new(),
                free: d.free,
                gives: d.gives,
                up_secs: d.up_secs,
                replicas: d.replicas,
                availability: Some(d.availability),
                peer: d.peer,
            })
            .collect();
        // Met before, silent now.
        for peer in self.overlay().book().filter(|peer| !answered.contains(&peer.id)) {
            let linked = detector.is_linked(peer.id);
            views.push(NodeView {
                peer: peer.clone(),
                state: if linked { NodeState::Suspect } else { NodeState::Gone },
                linked,
                me: false,
                profile: None,
                name: String::new(),
                free: Amounts::default(),
                gives: Amounts::default(),
                up_secs: 0,
                replicas: 0,
                availability: None,
            });
        }
        for view in &mut views {
            view.name = self.names.get(&view.peer.id).cloned().unwrap_or_default();
        }
        views.sort_by(|a, b| a.name.cmp(&b.name));
        views
    }

    /// Whether the ring needs this node: it comes right before or after.
    #[must_use]
    pub fn is_neighbour(&self, id: NodeId) -> bool {
        let ring = self.connectivity.ring();
        ring.is_member() && (ring.pred().id == id || ring.succs().iter().any(|succ| succ.id == id))
    }

    /// What this node knows of itself without asking anybody.
    #[must_use]
    pub fn status(&self) -> Status {
        use dugnad_connectivity::ring::Status as Ring;
        let ring = self.connectivity.ring();
        let state = match ring.status() {
            Ring::Out | Ring::JoinReq | Ring::Joining => "joining",
            Ring::Leaving | Ring::Gone => "left",
            _ if ring.alone() => "alone",
            _ => "member",
        };
        let replica = |(id, name, state): (ReplicaId, &str, HostState)| {
            (id, String::from(name), ReplicaState::of_host(state))
        };
        let mut counters = Counters::default();
        counters.extend(self.connectivity.counters());
        counters.extend(self.collective.counters());
        counters.add("refused_epochs", self.executor.refused_epochs());
        counters.add("refused_orders", self.executor.refused_orders());
        counters.add("malformed_records", self.malformed_records);
        Status {
            me: ring.me().clone(),
            state,
            predecessor: ring.is_member().then(|| ring.pred().id),
            successors: ring.succs().iter().map(|peer| peer.id).collect(),
            size: self.overlay().size(),
            ceilings: *self.executor.ledger().ceilings(),
            promised: self.executor.ledger().promised(),
            replicas: self.executor.replicas().map(replica).collect(),
            managed: self.collective.managers().map(|(_, m)| String::from(m.name())).collect(),
            records: self.collective.store().len(),
            trees: self.collective.trees().iter().copied().collect(),
            operations: self.collective.operations().collect(),
            counters: counters.iter().collect(),
        }
    }
}
