//! What the node says to everybody, and answers when everybody is asked.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use dugnad_collective::cast::{CastBody, CastPart};
use dugnad_collective::objects::sums::NodeSums;
use dugnad_collective::{self as collective, Seeker};
use dugnad_connectivity::overlay;
use dugnad_connectivity::tree::bulk::Reach;
use dugnad_kernel::arc::in_oo;
use dugnad_kernel::{Arc, Cx, Hash, NodeId};
use dugnad_resource::condition::{Condition, Value};
use dugnad_resource::describe::Brief;
use dugnad_resource::describe::{self, Description, PROGRAMS_MAX, clip_name};
use dugnad_resource::execute::Order;
use dugnad_resource::executor::clip_note;
use dugnad_resource::spec::{Port, valid_name};

use crate::asked::Why;
use crate::{Event, Happened, Node, UNSAID, program_hash};

impl Node {
    /// Tells everybody, or the nodes on an arc. `seeker`: who waits for what they answer, if
    /// somebody does.
    pub(crate) fn cast(
        &mut self,
        seeker: Option<Seeker>,
        mut body: CastBody,
        arc: Option<Arc>,
        cx: &mut Cx<'_, Self>,
    ) {
        if let CastBody::Happened { by_name, .. } = &mut body {
            by_name.clone_from(&self.profile.name);
        }
        // Plain data into memory cannot fail.
        if let Ok(body) = postcard::to_allocvec(&body) {
            let call = seeker.map(|seeker| self.asked.call(Why::Feedback(seeker)));
            let command = match arc {
                None => {
                    let (feedback, call) = (call.is_some(), call.unwrap_or_default());
                    overlay::Command::Cast { call, body, feedback }
                }
                Some(arc) => {
                    let (arcs, reach) = (Vec::from([arc]), Reach::Nodes);
                    overlay::Command::Bulk { arcs, reach, body, call }
                }
            };
            self.ring(command, cx);
        }
    }

    pub(crate) fn announce(
        &mut self,
        service: Option<String>,
        text: String,
        cx: &mut Cx<'_, Self>,
    ) {
        let (by, by_name) = (self.connectivity.ring().me().id, String::new());
        self.cast(None, CastBody::Happened { by, by_name, service, text }, None, cx);
    }

    /// A broadcast arrived; what this node has to say to it.
    pub(crate) fn on_cast(&mut self, body: &[u8], cx: &mut Cx<'_, Self>) -> Option<Vec<u8>> {
        let part = match postcard::from_bytes(body).ok()? {
            CastBody::Describe { trees, programs } => {
                CastPart::Node(Box::new(self.description(&trees, &programs, cx)))
            }
            CastBody::Find { condition, brief } => self.prospected(&condition, brief, cx)?,
            CastBody::Sample { share } if cx.rng.u32(0..1_000_000) < share => {
                CastPart::Node(Box::new(self.description(&[], &[], cx)))
            }
            CastBody::Sample { .. } => return None,
            CastBody::Services => {
                let views = self.collective.views();
                if views.is_empty() {
                    return None;
                }
                CastPart::Services(views)
            }
            CastBody::Ports => CastPart::Ports(self.managed_ports()),
            CastBody::Objects { namespace } => CastPart::Objects(Box::new(NodeSums {
                name: self.profile.name.clone(),
                given: self.executor.ledger().ceilings().amounts.disk,
                ..self.collective.sums(namespace.as_deref())
            })),
            CastBody::Views(views) => {
                self.community(collective::Command::Views(views), cx);
                return None;
            }
            CastBody::Changed { name, port, removed } => {
                self.on_changed(name, port, removed, cx);
                return None;
            }
            CastBody::Removed { service } => {
                cx.emit(Event::Host(Order::ForgetState { service }));
                return None;
            }
            CastBody::Happened { by, by_name, service, text } => {
                self.remember_name(by, &by_name);
                let by_name = clip_name(&by_name);
                let service = service.filter(|name| valid_name(name).is_ok());
                let text = clip_note(&text);
                cx.emit(Event::Happened(Happened { by, by_name, service, text }));
                return None;
            }
        };
        postcard::to_allocvec(&part).ok()
    }

    pub(crate) fn description(
        &self,
        trees: &[Hash],
        programs: &[String],
        cx: &Cx<'_, Self>,
    ) -> Description {
        let known = self.collective.trees().iter().map(|tree| tree.root);
        let packages = self.executor.packages().map(|tree| tree.root);
        let held: Vec<Hash> =
            known.chain(packages).chain(self.kept_state.iter().copied()).collect();
        let has = |program: &&String| self.has_program(program);
        let up = self.started.map_or(0, |started| cx.now.since(started).as_secs());
        let mut profile = self.profile.clone();
        profile.home = profile.fails_with();
        Description {
            peer: self.connectivity.ring().me().clone(),
            profile,
            free: self.executor.ledger().free(),
            gives: self.executor.ledger().ceilings().amounts,
            takes_work: self.executor.takes_work(),
            up_secs: u32::try_from(up).unwrap_or(u32::MAX),
            replicas: u16::try_from(self.executor.replicas().count()).unwrap_or(u16::MAX),
            holds: trees.iter().copied().filter(|root| held.contains(root)).collect(),
            programs: programs.iter().take(PROGRAMS_MAX).filter(has).cloned().collect(),
            availability: self.life.availability(cx.now),
        }
    }

    /// How this node is, if the condition is true of it.
    pub(crate) fn described_if(
        &self,
        condition: &Condition,
        cx: &Cx<'_, Self>,
    ) -> Option<Description> {
        let node = self.description(&[], &describe::programs(condition), cx);
        condition.matches(node.attributes().as_slice()).then_some(node)
    }

    /// This node's part in a search, or in a census if it is to be brief.
    fn prospected(
        &self,
        condition: &Condition,
        brief: bool,
        cx: &Cx<'_, Self>,
    ) -> Option<CastPart> {
        if !condition.fits() {
            return None;
        }
        let node = self.description(&[], &describe::programs(condition), cx);
        Some(match (condition.matches(node.attributes().as_slice()), brief) {
            (false, _) => CastPart::NotMeant,
            (true, true) => CastPart::Brief(Box::new(Brief::of(&node))),
            (true, false) => CastPart::Node(Box::new(node)),
        })
    }

    /// Something about this node, for who subscribed to it.
    pub(crate) fn saw_self(&mut self, name: &'static str, cx: &mut Cx<'_, Self>) {
        let mut attributes = self.description(&[], &[], cx).attributes();
        attributes.retain(|(name, _)| name != "programs");
        attributes.sort_by(|a, b| a.0.cmp(&b.0));
        let me = self.connectivity.ring().me();
        let of = (name == "node.leave").then_some((me.id, u64::from(me.inc)));
        self.community(collective::Command::Saw { name, attributes, of }, cx);
    }

    /// Tells everybody that a node is gone.
    fn say_gone(&mut self, id: NodeId, cx: &mut Cx<'_, Self>) {
        let text = alloc::format!("{} is gone", self.name_of(id));
        self.announce(None, text, cx);
        self.saw_gone(id, cx);
    }

    /// One voice is enough for a death: the living node before it, which watches those behind it
    /// and so finds out about each of several that die together. It speaks when nobody is left
    /// between the two.
    pub(crate) fn say_unsaid(&mut self, cx: &mut Cx<'_, Self>) {
        self.unsaid.retain(|(_, at)| cx.now.since(*at) < UNSAID);
        let ring = self.connectivity.ring();
        let (me, succ) = (ring.me().id, ring.succ().id);
        let mine = |(id, _): &(NodeId, _)| ring.is_member() && in_oo(me, *id, succ);
        if let Some(at) = self.unsaid.iter().position(mine) {
            let (id, _) = self.unsaid.swap_remove(at);
            self.say_gone(id, cx);
            self.say_unsaid(cx);
        }
    }

    /// The life of a node that this one knows of, so that everybody names its end alike.
    fn life_of(&self, id: NodeId) -> Option<u64> {
        let known = self.overlay().book().find(|peer| peer.id == id);
        known.map(|peer| u64::from(peer.inc))
    }

    /// Another node is gone; what it was like nobody knows any more.
    fn saw_gone(&mut self, id: NodeId, cx: &mut Cx<'_, Self>) {
        let (name, node) = (self.name_of(id), id.short().to_string());
        let attributes = [("name", name), ("node", node)]
            .map(|(name, text)| (String::from(name), Value::Text(text)));
        let (name, of) = ("node.leave", self.life_of(id).map(|life| (id, life)));
        self.community(collective::Command::Saw { name, attributes: attributes.into(), of }, cx);
    }

    /// A program with its full path, or by its name in one of the usual folders.
    fn has_program(&self, program: &str) -> bool {
        let known = |path: &str| self.programs.binary_search(&program_hash(path)).is_ok();
        if program.starts_with('/') {
            return known(program);
        }
        let folders = ["/usr/bin/", "/bin/", "/usr/local/bin/", "/usr/sbin/", "/sbin/"];
        folders.iter().any(|folder| known(&[folder, program].concat()))
    }

    fn managed_ports(&self) -> Vec<(String, Port)> {
        let views = self.collective.views().into_iter();
        views
            .filter(|view| view.want > 0)
            .filter_map(|view| Some((view.name, view.port.of_every_node()?)))
            .collect()
    }

    fn on_changed(&mut self, name: String, port: Port, removed: bool, cx: &mut Cx<'_, Self>) {
        let before = self.ports.get(&name).copied();
        let after = port.of_every_node().filter(|_| !removed);
        if before == after {
            return;
        }
        self.remember_port(name, after);
        self.tell_ports(cx);
    }

    pub(crate) fn tell_ports(&self, cx: &mut Cx<'_, Self>) {
        let ports = self.ports.iter().map(|(name, port)| (name.clone(), *port)).collect();
        cx.emit(Event::Ports(ports));
    }
}
