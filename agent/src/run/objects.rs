//! Objects: the bytes of long values, who on this node watches which object, and the doors of
//! services.

use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use dugnad_kernel::NodeId;
use dugnad_kernel::map::Map;
use dugnad_node::{Address, Answer, ObjectAnswer, ObjectQuestion, Room};
use dugnad_resource::execute::Report;
use dugnad_resource::spec::{Spec, Tree};
use smol::LocalExecutor;
use smol::channel::{Sender, bounded};

use super::{Agent, people};
use crate::blobs::{Incoming, WORTH_ASKING};
use crate::control::{AgentApi, Changes, Hold, ServiceDoor, Who};
use crate::host::NAMESPACES;

/// Changes that wait for a slow reader; then it is not told any more.
const QUEUE: usize = 64;
/// How long it is believed who has room.
const ROOM_FOR: Duration = Duration::from_secs(30);
/// Readers of one object.
const READERS_MAX: usize = 64;

/// Who watches what.
pub(super) type Readers = Map<Address, Vec<Sender<ObjectAnswer>>>;

impl Agent {
    /// Stores a value; the node must know of it before it is asked to have it kept.
    pub(super) async fn keep_value(self: Rc<Self>, from: Incoming) -> io::Result<Tree> {
        let room = async |bytes| if bytes < WORTH_ASKING { None } else { self.room().await };
        let (tree, room) = self.blobs.keep_value(from, room).await?;
        if let (Some(room), Some((_, known))) = (room, &mut *self.room.borrow_mut()) {
            *known = room;
        }
        self.report(Report::Kept { tree }).await;
        Ok(tree)
    }

    /// Where in the community there is room, as it was a moment ago; `None` if there is no choice.
    async fn room(self: &Rc<Self>) -> Option<Room> {
        let known = self.room.borrow().clone().filter(|(at, _)| at.elapsed() < ROOM_FOR);
        let room = match known {
            Some((_, room)) => room,
            None => {
                let room = match Rc::clone(self).ask(ObjectQuestion::Sums).await {
                    Answer::Object(ObjectAnswer::Sums { nodes, complete: true }) => {
                        Room::new(nodes)
                    }
                    // The usual places do as well; nobody waits for who does not answer again.
                    _ => Room::default(),
                };
                self.room.replace(Some((Instant::now(), room.clone())));
                room
            }
        };
        room.has_choice().then_some(room)
    }

    /// Who may have a blob that its owners have not.
    pub(super) async fn beside(self: Rc<Self>, tree: Tree) -> Vec<NodeId> {
        let me = self.me.id;
        match self.ask(ObjectQuestion::Beside(tree)).await {
            Answer::Object(ObjectAnswer::Beside(nodes)) => {
                nodes.into_iter().filter(|node| *node != me).collect()
            }
            other => {
                log::debug!("nobody beside the owners of tree {:?}: {other:?}", tree.root);
                Vec::new()
            }
        }
    }

    /// Others have the value, or nobody is to have it.
    pub(super) fn let_go(self: &Rc<Self>, tree: Tree) {
        let agent = Rc::clone(self);
        self.detach(async move { agent.report(Report::LetGo { tree }).await });
    }

    /// How an object is, and what becomes of it.
    pub(super) async fn changes(self: Rc<Self>, address: Address) -> Result<Changes, ObjectAnswer> {
        let (to, changes) = bounded(QUEUE);
        {
            let mut readers = self.readers.borrow_mut();
            let all = readers.entry(address.clone()).or_default();
            if all.len() >= READERS_MAX {
                let text = format!("{READERS_MAX} watch it on this node already");
                return Err(ObjectAnswer::Refused(text));
            }
            all.push(to);
        }
        let agent = Rc::clone(&self);
        let watched = address.clone();
        let hold = Hold::new(move || agent.end_watch(watched));
        let question = ObjectQuestion::Watch(address);
        match self.ask(question).await {
            Answer::Object(first @ (ObjectAnswer::Found { .. } | ObjectAnswer::Absent { .. })) => {
                Ok((hold, changes, first))
            }
            Answer::Object(other) => Err(other),
            Answer::Failed(text) => Err(ObjectAnswer::Failed(text)),
            other => Err(ObjectAnswer::Failed(format!("unexpected answer {other:?}"))),
        }
    }

    pub(super) fn object_changed(&self, address: &Address, answer: &ObjectAnswer) {
        let mut readers = self.readers.borrow_mut();
        if let Some(all) = readers.get_mut(address) {
            // Who is too slow, or gone, is told no more: its stream ends, and it may ask again.
            all.retain(|to| to.try_send(answer.clone()).is_ok());
        }
    }

    /// One of those who watched an object has gone.
    fn end_watch(self: &Rc<Self>, address: Address) {
        let mut readers = self.readers.borrow_mut();
        if let Some(all) = readers.get_mut(&address) {
            all.retain(|to| !to.is_closed());
            if all.is_empty() {
                readers.remove(&address);
            }
        }
        if !readers.contains_key(&address) {
            let agent = Rc::clone(self);
            self.detach(async move {
                // It may be watched again meanwhile.
                if !agent.readers.borrow().contains_key(&address) {
                    _ = agent.ask(ObjectQuestion::Unwatch(address)).await;
                }
            });
        }
    }

    /// The door of one replica.
    pub(super) fn open_door(
        self: &Rc<Self>,
        socket: PathBuf,
        user: Option<u32>,
        spec: &Spec,
    ) -> io::Result<ServiceDoor> {
        let named = spec.env.iter().find(|(name, _)| name == NAMESPACES);
        let named = named.map_or("", |(_, names)| names.as_str()).split_whitespace();
        let namespaces = named.map(str::to_owned).collect();
        let who = Who::Service { name: spec.name.clone(), namespaces };
        let backend = Rc::new(people::Api(Rc::clone(self))) as Rc<dyn AgentApi>;
        let ex: Rc<LocalExecutor<'static>> = Rc::clone(&self.ex);
        ServiceDoor::open(ex, socket, user, who, backend)
    }
}
