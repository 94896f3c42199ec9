//! What the node says to everybody, and answers when everybody is asked.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use dugnad_collective::cast::{CastBody, CastPart};
use dugnad_collective::objects::sums::NodeSums;
use dugnad_collective::{self as collective, Seeker};
use dugnad_connectivity::overlay;
use dugnad_kernel::{Cx, Hash};
use dugnad_resource::describe::{Description, clip_name};
use dugnad_resource::execute::Order;
use dugnad_resource::executor::clip_note;
use dugnad_resource::spec::{Port, valid_name};

use crate::asked::Why;
use crate::{Event, Happened, Node, program_hash};

impl Node {
    /// Tells everybody. `seeker`: who waits for what they answer, if somebody does.
    pub(crate) fn cast(
        &mut self,
        seeker: Option<Seeker>,
        mut body: CastBody,
        cx: &mut Cx<'_, Self>,
    ) {
        if let CastBody::Happened { by_name, .. } = &mut body {
            by_name.clone_from(&self.profile.name);
        }
        // Plain data into memory cannot fail.
        if let Ok(body) = postcard::to_allocvec(&body) {
            let feedback = seeker.is_some();
            let call = seeker.map_or(0, |seeker| self.asked.call(Why::Feedback(seeker)));
            self.ring(overlay::Command::Cast { call, body, feedback }, cx);
        }
    }

    pub(crate) fn announce(
        &mut self,
        service: Option<String>,
        text: String,
        cx: &mut Cx<'_, Self>,
    ) {
        let (by, by_name) = (self.connectivity.ring().me().id, String::new());
        self.cast(None, CastBody::Happened { by, by_name, service, text }, cx);
    }

    /// A broadcast arrived; what this node has to say to it.
    pub(crate) fn on_cast(&mut self, body: &[u8], cx: &mut Cx<'_, Self>) -> Option<Vec<u8>> {
        let part = match postcard::from_bytes(body).ok()? {
            CastBody::Describe { trees, program } => {
                CastPart::Node(Box::new(self.description(&trees, program.as_deref(), cx)))
            }
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
        program: Option<&str>,
        cx: &Cx<'_, Self>,
    ) -> Description {
        let known = self.collective.trees().iter().map(|tree| tree.root);
        let packages = self.executor.packages().map(|tree| tree.root);
        let held: Vec<Hash> =
            known.chain(packages).chain(self.kept_state.iter().copied()).collect();
        let has = |program: &&str| self.programs.binary_search(&program_hash(program)).is_ok();
        let up = self.started.map_or(0, |started| cx.now.since(started).as_secs());
        Description {
            peer: self.connectivity.ring().me().clone(),
            profile: self.profile.clone(),
            free: self.executor.ledger().free(),
            gives: self.executor.ledger().ceilings().amounts,
            takes_work: self.executor.takes_work(),
            up_secs: u32::try_from(up).unwrap_or(u32::MAX),
            replicas: u16::try_from(self.executor.replicas().count()).unwrap_or(u16::MAX),
            holds: trees.iter().copied().filter(|root| held.contains(root)).collect(),
            programs: program.into_iter().filter(has).map(ToString::to_string).collect(),
        }
    }

    fn managed_ports(&self) -> Vec<(String, u16)> {
        let views = self.collective.views().into_iter();
        views
            .filter_map(|view| match view.port {
                Port::Tcp(port) if view.want > 0 => Some((view.name, port)),
                Port::Tcp(_) | Port::Http | Port::None => None,
            })
            .collect()
    }

    fn on_changed(&mut self, name: String, port: Port, removed: bool, cx: &mut Cx<'_, Self>) {
        let before = self.ports.get(&name).copied();
        let after = match port {
            Port::Tcp(port) if !removed => Some(port),
            Port::Tcp(_) | Port::Http | Port::None => None,
        };
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
