//! State that the community keeps for a service: where it comes from when a replica starts, and
//! where it goes while it runs and when it stops (PROTOCOL.md 10.13).
//!
//! Who may write to the state of a service says a note beside it: a replica on a node, and a turn
//! that grows with every change of hands. A replica takes its turn before it starts, when the one
//! before has ended or cannot be reached, and writes snapshots as long as nobody has taken a later
//! turn. The number of the turn also lies beside the folder: then what is in it is the newest
//! there is, and nothing has to be fetched.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use dugnad_kernel::{Id, NodeId};
use dugnad_resource::execute::{ReplicaId, Run};
use dugnad_resource::spec::{Keep, Tree, Want};
use serde::{Deserialize, Serialize};
use smol::Timer;
use smol::lock::Mutex;

use super::launch::{Prepared, take_up_state};
use super::record::Folder;
use super::running::Running;
use super::{AGAIN, Shared, State};
use crate::blobs::{Seen, Snapshot};
use crate::clock::now_unix;
use crate::stream::Later;

/// So often state may fail to arrive; then the replica belongs on another node.
const ARRIVALS: u32 = 5;
/// How long a replica that was stopped may try to hand its last state over.
const HAND_OVER: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 60 });
/// How long a hook may take.
const HOOK: Duration = Duration::from_secs(600);
/// Writes that may be overtaken in a row.
const OVERTAKEN: u32 = 4;

/// Who may write to the state of a service, as JSON beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// Grows with every change of hands.
    pub(crate) turn: u64,
    pub(crate) replica: u32,
    /// The node it is on, in hexadecimal digits.
    node: String,
    pub(crate) node_name: String,
    /// When the snapshot beside it was taken, in seconds since 1970; 0: there is none.
    pub(crate) taken: u64,
    /// The replica has ended, and this is the last it wrote.
    pub(crate) closed: bool,
}

impl Note {
    pub(crate) fn node(&self) -> Option<NodeId> {
        u128::from_str_radix(&self.node, 16).ok().map(Id)
    }

    /// How long ago the snapshot was taken, for people.
    pub(crate) fn age(&self) -> String {
        let since = Duration::from_secs(now_unix().saturating_sub(self.taken));
        format!("{} ago", humantime::format_duration(since))
    }
}

/// What the community has of the state of a service.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) note: Note,
    /// Nobody has written a snapshot yet if there is none.
    pub(crate) tree: Option<Tree>,
    pub(crate) sources: Vec<NodeId>,
    pub(crate) version: u64,
}

/// What came of writing it.
pub(crate) enum Written {
    At(u64),
    /// It is at another version than expected.
    Overtaken,
    Failed(String),
}

/// Where the community keeps state.
pub(crate) trait StateStore {
    /// What there is of a service; an error: it cannot be known now.
    fn read(&self, service: &str) -> Later<Result<Option<Found>, String>>;
    /// Writes it if it is at version `expect` (0: there is none).
    fn write(&self, service: &str, note: Note, tree: Option<Tree>, expect: u64) -> Later<Written>;
    /// Returns when a replica on that node has ended, or that node cannot be reached.
    fn ended(&self, node: NodeId, id: ReplicaId) -> Later<()>;
    /// Stores a folder; see [`crate::blobs::Blobs::snapshot`].
    fn snapshot(&self, dir: PathBuf, before: Seen, most: u64) -> Later<io::Result<Snapshot>>;
    /// Gets a snapshot and makes a folder of it.
    fn restore(&self, tree: Tree, sources: Vec<NodeId>, to: PathBuf) -> Later<Result<(), String>>;
}

/// What one replica has to do with the state of its service.
pub(super) struct Keeping {
    shared: Rc<Shared>,
    id: ReplicaId,
    turn: Mutex<Option<Turn>>,
}

/// A replica's turn.
#[derive(Default)]
struct Turn {
    number: u64,
    /// Of the note, as far as it is known.
    version: Option<u64>,
    /// The last snapshot that was written.
    tree: Option<Tree>,
    seen: Seen,
    /// Keeps its chunks here, so that the next snapshot is small.
    snapshot: Option<Snapshot>,
    /// Somebody has a later turn: what is in the folder is not wanted any more.
    over: bool,
    /// What was said last of what goes wrong.
    told: String,
}

impl Turn {
    /// The turn that a folder says it is for.
    fn of(number: u64) -> Self {
        Self { number, ..Self::default() }
    }
}

/// Why a turn was not taken.
enum NotYet {
    /// Somebody else was faster: look again.
    Changed,
    Wait(String),
    /// The state does not arrive here.
    Arrival(String),
}

impl Keeping {
    pub(super) fn new(shared: Rc<Shared>, id: ReplicaId) -> Self {
        Self { shared, id, turn: Mutex::new(None) }
    }

    /// Waits until it may write to its state, which is in its folder then. `adopted`: it runs.
    ///
    /// # Errors
    /// Why this is not the place for it.
    pub(super) async fn begin(&self, run: &Run, adopted: bool) -> Result<(), String> {
        if !matches!(run.spec.state, Keep::Snapshots { .. }) || self.turn.lock().await.is_some() {
            return Ok(());
        }
        let turn = if adopted {
            self.shared.folder(run).turn().map(Turn::of)
        } else {
            self.shared.set_state(self.id, State::Starting, "");
            Some(self.take_turn(run).await?)
        };
        *self.turn.lock().await = turn;
        Ok(())
    }

    /// Nobody wants what it wrote.
    pub(super) async fn forget(&self) {
        *self.turn.lock().await = None;
    }

    /// Takes its turn: waits for the replica before, and has its state in the folder then.
    ///
    /// # Errors
    /// Why this is not the place for it.
    async fn take_turn(&self, run: &Run) -> Result<Turn, String> {
        let mut arrivals = 0;
        loop {
            let why = match self.try_turn(run).await {
                Ok(turn) => return Ok(turn),
                Err(NotYet::Changed) => continue,
                Err(NotYet::Wait(why)) => why,
                Err(NotYet::Arrival(why)) => {
                    arrivals += 1;
                    if arrivals >= ARRIVALS {
                        return Err(why);
                    }
                    why
                }
            };
            self.shared.waits(self.id, &why).await;
            Timer::after(AGAIN).await;
        }
    }

    async fn try_turn(&self, run: &Run) -> Result<Turn, NotYet> {
        let (store, me) = (&self.shared.config.state, self.shared.config.node_id);
        let folder = self.shared.folder(run);
        let local = self.turn_here(&folder).await?;
        let found = match (store.read(&run.spec.name).await, local) {
            (Ok(found), _) => found,
            // It had the turn when it ended here: better to run on than to wait for a line.
            (Err(why), Some(number)) => {
                log::warn!("{} goes on with its state as it is here: {why}", folder.name());
                return Ok(Turn::of(number));
            }
            (Err(why), None) => {
                return Err(NotYet::Wait(format!("waits for its state to be found: {why}")));
            }
        };
        let Some(found) = found else {
            let number = local.unwrap_or(0) + 1;
            let version = self.open(run, number, 0, None, 0).await?;
            self.set_turn(&folder, number).await?;
            return Ok(Turn { version: Some(version), ..Turn::of(number) });
        };
        let before = &found.note;
        let here = before.node() == Some(me);
        let mine = here && before.replica == self.id.number;
        if !before.closed && !mine {
            self.wait_for(run, before).await;
        }
        let local = if here { self.turn_here(&folder).await? } else { local };
        if here && local == Some(before.turn) {
            let mut version = Some(found.version);
            if before.closed || !mine {
                let (taken, tree) = (before.taken, found.tree);
                version = Some(self.open(run, before.turn, taken, tree, found.version).await?);
            }
            return Ok(Turn { version, tree: found.tree, ..Turn::of(before.turn) });
        }
        self.take_over(run, &folder, found, mine).await
    }

    /// The turn was another replica's: first in the name of all, then in the folder.
    async fn take_over(
        &self,
        run: &Run,
        folder: &Folder,
        found: Found,
        mine: bool,
    ) -> Result<Turn, NotYet> {
        let Found { note: before, tree, sources, version } = found;
        let (number, version) = if mine {
            // Its state did not arrive the last time.
            (before.turn, version)
        } else {
            let number = before.turn + 1;
            (number, self.open(run, number, before.taken, tree, version).await?)
        };
        let arrived =
            |error: String| NotYet::Arrival(format!("its state does not arrive: {error}"));
        set_aside(folder).await.map_err(|error| arrived(error.to_string()))?;
        if let Some(tree) = tree {
            let store = &self.shared.config.state;
            store.restore(tree, sources, folder.state()).await.map_err(arrived)?;
            let (age, node) = (before.age(), &before.node_name);
            log::info!(
                "{} has the state that replica {} on {node} had {age}",
                folder.name(),
                before.replica
            );
        }
        self.set_turn(folder, number).await?;
        Ok(Turn { version: Some(version), tree, ..Turn::of(number) })
    }

    async fn wait_for(&self, run: &Run, before: &Note) {
        // Whoever has the lease knows that nobody else runs.
        let Some(node) = before.node().filter(|_| run.spec.want != Want::Single) else { return };
        self.shared
            .waits(
                self.id,
                &format!("waits for replica {} on {}", before.replica, before.node_name),
            )
            .await;
        let id = ReplicaId { number: before.replica, ..self.id };
        self.shared.config.state.ended(node, id).await;
    }

    /// The turn the folder is for, with what an earlier replica left here.
    async fn turn_here(&self, folder: &Folder) -> Result<Option<u64>, NotYet> {
        let (services, folder) = (self.shared.services.clone(), folder.clone());
        let taken = smol::unblock(move || {
            folder.make()?;
            take_up_state(&services, &folder)?;
            Ok(folder.turn())
        });
        taken.await.map_err(|error: io::Error| NotYet::Arrival(error.to_string()))
    }

    async fn set_turn(&self, folder: &Folder, number: u64) -> Result<(), NotYet> {
        let folder = folder.clone();
        let set = smol::unblock(move || folder.set_turn(Some(number))).await;
        set.map_err(|error| NotYet::Arrival(error.to_string()))
    }

    /// Says that this replica has the turn; the version of that.
    async fn open(
        &self,
        run: &Run,
        turn: u64,
        taken: u64,
        tree: Option<Tree>,
        expect: u64,
    ) -> Result<u64, NotYet> {
        let note = Note { taken, ..self.note(turn, false) };
        match self.shared.config.state.write(&run.spec.name, note, tree, expect).await {
            Written::At(version) => Ok(version),
            Written::Overtaken => Err(NotYet::Changed),
            Written::Failed(why) => Err(NotYet::Wait(format!("waits for its state: {why}"))),
        }
    }

    fn note(&self, turn: u64, closed: bool) -> Note {
        let config = &self.shared.config;
        Note {
            turn,
            replica: self.id.number,
            node: config.node_id.to_string(),
            node_name: config.node_name.clone(),
            taken: now_unix(),
            closed,
        }
    }

    /// Takes snapshots for as long as it is polled.
    pub(super) async fn take_snapshots<T>(
        &self,
        run: &Run,
        running: &Running,
        prepared: &Prepared,
    ) -> T {
        let Keep::Snapshots { every_ms, hook } = &run.spec.state else {
            return std::future::pending().await;
        };
        loop {
            Timer::after(Duration::from_millis(u64::from(*every_ms))).await;
            if !running.was_ready.get() {
                continue;
            }
            let hooked = match hook.as_slice() {
                [] => Ok(()),
                hook => prepared.exec(hook, running, HOOK).await,
            };
            let mut turn = self.turn.lock().await;
            let Some(turn) = turn.as_mut() else { continue };
            let kept = match hooked {
                Ok(()) => self.keep_state(run, turn, false).await,
                Err(why) => Err(format!("its hook: {why}")),
            };
            self.tell_kept(run, turn, kept);
        }
    }

    /// Says what goes wrong with its state, once, and when it is right again.
    fn tell_kept(&self, run: &Run, turn: &mut Turn, kept: Result<(), String>) {
        let why = kept.err().unwrap_or_default();
        if why != turn.told {
            let name = format!("{} {}", run.spec.name, self.id.number);
            match why.as_str() {
                "" => log::info!("{name}: its state is kept again"),
                why => log::warn!("{name}: its state is not kept: {why}"),
            }
            let note = if why.is_empty() { why.clone() } else { format!("state not kept: {why}") };
            self.shared.set_note(self.id, &note);
            turn.told = why;
        }
    }

    /// It has ended, or never began: what it wrote goes to the community.
    pub(super) async fn close(&self, run: &Run) {
        let Some(mut turn) = self.turn.lock().await.take() else { return };
        let until = Instant::now() + HAND_OVER;
        loop {
            let kept = self.keep_state(run, &mut turn, true).await;
            let done = kept.is_ok() || turn.over || Instant::now() >= until;
            self.tell_kept(run, &mut turn, kept);
            if done {
                break;
            }
            Timer::after(AGAIN).await;
        }
        if turn.over {
            if let Err(error) = set_aside(&self.shared.folder(run)).await {
                log::warn!("{error}");
            }
        }
    }

    /// A snapshot, and that it is the newest.
    async fn keep_state(&self, run: &Run, turn: &mut Turn, closed: bool) -> Result<(), String> {
        let (store, folder) = (&self.shared.config.state, self.shared.folder(run));
        let most = if run.spec.needs.disk > 0 { run.spec.needs.disk } else { u64::MAX };
        let seen = std::mem::take(&mut turn.seen);
        let taken = now_unix();
        let mut snapshot =
            store.snapshot(folder.state(), seen, most).await.map_err(|error| error.to_string())?;
        turn.seen = std::mem::take(&mut snapshot.seen);
        let (tree, left_out) = (snapshot.tree, std::mem::take(&mut snapshot.left_out));
        log::debug!("{}: {} bytes read for its snapshot", folder.name(), snapshot.read);
        if !left_out.is_empty() {
            log::debug!("{}: not in its snapshot: {left_out}", folder.name());
        }
        turn.snapshot = Some(snapshot);
        if turn.tree == Some(tree) && turn.version.is_some() && !closed {
            return Ok(());
        }
        for _ in 0..OVERTAKEN {
            let expect = match turn.version {
                Some(version) => version,
                None => self.look_again(run, turn, &folder).await?,
            };
            let note = Note { taken, ..self.note(turn.number, closed) };
            match store.write(&run.spec.name, note, Some(tree), expect).await {
                Written::At(version) => {
                    (turn.version, turn.tree) = (Some(version), Some(tree));
                    return Ok(());
                }
                Written::Overtaken => turn.version = None,
                Written::Failed(why) => {
                    // It may have been written.
                    turn.version = None;
                    return Err(why);
                }
            }
        }
        Err("others write at the same time".to_owned())
    }

    /// The version of what there is, if this replica may write over it.
    async fn look_again(&self, run: &Run, turn: &mut Turn, folder: &Folder) -> Result<u64, String> {
        let Some(found) = self.shared.config.state.read(&run.spec.name).await? else {
            return Ok(0);
        };
        let theirs = &found.note;
        let mine = theirs.node() == Some(self.shared.config.node_id);
        turn.over = theirs.turn > turn.number || (theirs.turn == turn.number && !mine);
        if turn.over && !theirs.closed {
            let (replica, node) = (theirs.replica, &theirs.node_name);
            return Err(format!("replica {replica} on {node} has taken over"));
        }
        if turn.over {
            // Whoever took over has ended, and this one is the one that stayed.
            turn.over = false;
            turn.number = theirs.turn + 1;
            let (folder, number) = (folder.clone(), turn.number);
            let set = smol::unblock(move || folder.set_turn(Some(number))).await;
            set.map_err(|error| error.to_string())?;
        }
        Ok(found.version)
    }
}

/// What is in the folder is not the newest, and waits in the trash in case somebody misses it.
async fn set_aside(folder: &Folder) -> io::Result<()> {
    let folder = folder.clone();
    smol::unblock(move || {
        folder.set_turn(None)?;
        folder.set_state_aside()?;
        match fs::remove_dir_all(folder.state()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    })
    .await
}
