//! Whether a service keeps to the room on disk it asked for.
//!
//! No file system of ours could stop it there. So it is looked at, and named when it has more; and
//! when all of this node together is above the owner's ceiling, it is stopped.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use dugnad_fabric::Bytes;
use dugnad_resource::execute::{ReplicaId, Run};
use smol::Timer;

use super::Shared;
use crate::usage;

/// Bytes by which all that the node has on disk is above the owner's ceiling.
pub(crate) type Over = Rc<dyn Fn() -> Pin<Box<dyn Future<Output = u64>>>>;

/// Between two looks, and while it has more than half of its room. Tests do not wait for it.
const LOOK: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 60_000 });
const LOOK_CLOSER: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 10_000 });
/// How many times as long as a look took until the next.
const PAYS: u32 = 100;
/// A service may always have so much beside its package: its log is in there.
const LEAST: u64 = 2 * super::keeper::HALF + (1 << 20);

/// What a service may have beside its package.
fn room(run: &Run) -> u64 {
    let package = run.package.map_or(0, |package| package.bytes);
    run.spec.needs.disk.saturating_sub(package).max(LEAST)
}

/// Returns when it has to stop, with the reason.
pub(super) async fn watch(shared: &Shared, id: ReplicaId, run: &Run) -> String {
    if run.spec.needs.disk == 0 {
        return std::future::pending().await;
    }
    let (folder, may) = (shared.folder(run), room(run));
    let mut told = false;
    loop {
        let (begun, all) = (Instant::now(), folder.0.clone());
        let has = smol::unblock(move || usage::taken(&all, &["package"])).await;
        let took = begun.elapsed();
        if has > may {
            let text = format!(
                "it has {} on disk, [needs] disk leaves it {} beside its package",
                Bytes(has),
                Bytes(may)
            );
            let over = (shared.config.over)().await;
            if over > 0 {
                return format!(
                    "{text}, and limits.disk of this node is passed by {}: what it has stays \
                     here, stopped",
                    Bytes(over)
                );
            }
            if !told {
                log::warn!("{}: {text}", folder.name());
            }
            shared.set_note(id, &text);
        } else if told {
            shared.set_note(id, "");
        }
        told = has > may;
        let pause = if has > may / 2 { LOOK_CLOSER } else { LOOK };
        Timer::after(pause.max(took * PAYS)).await;
    }
}
