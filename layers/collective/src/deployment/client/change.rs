//! Changes to a service that is there: how many replicas, and starting them anew.

use alloc::format;
use alloc::string::ToString;

use dugnad_kernel::{Key, NodeId};
use dugnad_resource::spec::{Want, key_of};

use super::{
    Ended, NO_ROOM, NOBODY, ServiceAnswer, Stored, conflict, decode, follow, next_generation,
    not_ready, store, wait_ready,
};
use crate::deployment::service::{Desired, SPEC, Service, ServiceView};
use crate::deployment::{Asker, AskerExt};
use crate::persistence::record::Record;

/// What is wanted of a service now, and the record that says so; or the answer why not.
async fn running(asker: &Asker, service: Key) -> Result<(Service, Option<Record>), ServiceAnswer> {
    let Ok(known) = asker.get((service, SPEC.to_vec())).await else {
        return Err(ServiceAnswer::Failed(NOBODY.to_string()));
    };
    let old = known.as_ref().and_then(decode).filter(|old| old.desired == Desired::Running);
    old.map(|old| (old, known)).ok_or(ServiceAnswer::Unknown)
}

/// All replicas begin anew, one after the other, as with a new version.
pub(super) async fn restart(asker: &Asker, name: &str, me: NodeId, size: u64) -> ServiceAnswer {
    let service = key_of(name);
    let (old, known) = match running(asker, service).await {
        Ok(running) => running,
        Err(answer) => return answer,
    };
    let generation = next_generation(known.as_ref(), Some(&old));
    let new = Service { generation, ..old };
    match store(asker, &new, known.as_ref(), me, size).await {
        Stored::Yes => wait_ready(asker, service, generation).await,
        Stored::No => ServiceAnswer::Failed(NO_ROOM.to_string()),
        Stored::Taken(other) => ServiceAnswer::Conflict(conflict(name, other.as_ref())),
    }
}

/// So many replicas from now on. Those that stay are not touched.
pub(super) async fn scale(
    asker: &Asker,
    name: &str,
    count: u8,
    me: NodeId,
    size: u64,
) -> ServiceAnswer {
    let service = key_of(name);
    let (mut new, known) = match running(asker, service).await {
        Ok(running) => running,
        Err(answer) => return answer,
    };
    if new.spec.want == Want::Single && count != 1 {
        return ServiceAnswer::Failed(format!(
            "{name} is single: it never has a second replica; its file says so"
        ));
    }
    if new.spec.want != Want::Single {
        new.spec.want = Want::Replicas(count);
    }
    if let Err(why) = new.spec.check() {
        return ServiceAnswer::Failed(why.to_string());
    }
    match store(asker, &new, known.as_ref(), me, size).await {
        Stored::Yes => {}
        Stored::No => return ServiceAnswer::Failed(NO_ROOM.to_string()),
        Stored::Taken(other) => return ServiceAnswer::Conflict(conflict(name, other.as_ref())),
    }
    let scaled = |view: &ServiceView| {
        view.want == count && view.ready >= count && view.slots.len() <= usize::from(count)
    };
    match follow(asker, service, None, scaled).await {
        Ok(view) => ServiceAnswer::Deployed { view, missing: alloc::vec::Vec::new() },
        Err(Ended::Quiet(Some(view)) | Ended::Failed { view, .. }) => not_ready(view),
        Err(Ended::Quiet(None)) => ServiceAnswer::Failed(NOBODY.to_string()),
    }
}
