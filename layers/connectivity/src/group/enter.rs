//! The operations of a member: coming in, going, keeping the record, and sending from outside.

use alloc::vec::Vec;

use dugnad_kernel::calls::AskerOf;
use dugnad_kernel::{NodeId, Peer};

use super::directory::{DirectoryAnswer, DirectoryAsk, GroupRecord, Mode, Policy};
use super::messages::{Answer, GroupId, Packet, Refusal, Request, Response, Welcome};
use super::{Ask, Groups, Outcome, Reply};
use crate::config::{GROUP_CALL, GROUP_PAUSE, GROUP_SAMPLE, GROUP_TRIES};

pub(crate) type Asker = AskerOf<Groups>;

/// Who does something about which group, and what makes its choices.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    pub(crate) me: Peer,
    pub(crate) gid: GroupId,
    /// The membership it is for.
    pub(crate) life: u32,
    /// Operations have no generator of their own.
    pub(crate) seed: u64,
}

/// What to do if the name is taken, or is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Create(Policy),
    Join,
    /// Join, or begin it.
    Either,
}

/// How somebody got in.
#[derive(Clone, Debug)]
pub enum Entry {
    /// As its first member, under this version of the record. Those were named by the record and
    /// did not answer.
    Founded {
        version: u64,
        record: GroupRecord,
        lost: Vec<Peer>,
    },
    Welcomed {
        by: Peer,
        welcome: Welcome,
    },
}

pub(super) async fn get(asker: &Asker, gid: GroupId) -> Option<(u64, Option<GroupRecord>)> {
    match asker.ask(Ask::Directory { gid, ask: DirectoryAsk::Get }).await {
        Reply::Directory(DirectoryAnswer::Is { version, value }) => {
            Some((version, value.as_deref().and_then(GroupRecord::decode)))
        }
        _ => None,
    }
}

async fn cas(
    asker: &Asker,
    gid: GroupId,
    expected: u64,
    record: Option<&GroupRecord>,
) -> DirectoryAnswer {
    let value = record.and_then(GroupRecord::encode);
    let ask = DirectoryAsk::Cas { expected, value };
    match asker.ask(Ask::Directory { gid, ask }).await {
        Reply::Directory(answer) => answer,
        _ => DirectoryAnswer::Failed,
    }
}

pub(super) async fn pause(asker: &Asker, rng: &mut fastrand::Rng) {
    asker.ask(Ask::Sleep(GROUP_PAUSE * rng.u32(50..150) / 100)).await;
}

pub(crate) async fn enter(asker: Asker, who: Who, how: How) -> Outcome {
    let result = try_enter(&asker, &who, how).await;
    Outcome::Entered { gid: who.gid, life: who.life, result }
}

async fn try_enter(asker: &Asker, who: &Who, how: How) -> Result<Entry, Answer> {
    let mut rng = fastrand::Rng::with_seed(who.seed);
    let mut silent = 0;
    for _ in 0..GROUP_TRIES {
        let Some((version, record)) = get(asker, who.gid).await else {
            pause(asker, &mut rng).await;
            continue;
        };
        let Some(record) = record else {
            let policy = match how {
                How::Create(policy) => policy,
                How::Either => Policy::Open,
                How::Join => return Err(Answer::Unknown),
            };
            let record = founded(who, policy, rng.u64(..));
            match cas(asker, who.gid, version, Some(&record)).await {
                DirectoryAnswer::Written { version } => {
                    return Ok(Entry::Founded { version, record, lost: Vec::new() });
                }
                DirectoryAnswer::Is { version, value } => {
                    // An answer that was lost: the record is mine all the same.
                    if value.as_deref().and_then(GroupRecord::decode).as_ref() == Some(&record) {
                        return Ok(Entry::Founded { version, record, lost: Vec::new() });
                    }
                }
                DirectoryAnswer::Failed => pause(asker, &mut rng).await,
            }
            continue;
        };
        let mine = record.creator == who.me.id && record.sample == [who.me.clone()];
        if matches!(how, How::Create(_)) && !mine {
            return Err(Answer::Exists);
        }
        let mut busy = false;
        let mut sample = record.sample.clone();
        rng.shuffle(&mut sample);
        for member in sample.into_iter().filter(|member| member.id != who.me.id) {
            let request = Request::Join { peer: who.me.clone() };
            match call(asker, &member, who.gid, request).await {
                Some(Response::Welcome(welcome)) => {
                    return Ok(Entry::Welcomed { by: member, welcome });
                }
                Some(Response::Refused(Refusal::Busy)) => busy = true,
                Some(_) | None => {}
            }
        }
        silent += u32::from(!busy);
        // Twice nobody: they are gone, or on the other side of a cut; then the two groups merge
        // later, for they have one id.
        if silent >= 2 {
            let lost = record.sample.clone();
            let size = 1;
            let mut record = record.next(&who.me, &[], size, rng.u64(..));
            record.epoch = record.epoch.saturating_add(1);
            if let DirectoryAnswer::Written { version } =
                cas(asker, who.gid, version, Some(&record)).await
            {
                return Ok(Entry::Founded { version, record, lost });
            }
        }
        pause(asker, &mut rng).await;
    }
    Err(Answer::Unreachable)
}

fn founded(who: &Who, policy: Policy, nonce: u64) -> GroupRecord {
    GroupRecord {
        epoch: 1,
        mode: Mode::Mesh,
        policy,
        creator: who.me.id,
        sample: Vec::from([who.me.clone()]),
        size: 1,
        seq: 1,
        nonce,
    }
}

async fn call(asker: &Asker, to: &Peer, gid: GroupId, request: Request) -> Option<Response> {
    let ask = Ask::Call { to: to.clone(), gid, request, limit: GROUP_CALL };
    match asker.ask(ask).await {
        Reply::Response(response) => response,
        _ => None,
    }
}

/// Takes me out of the record before I go, so that it never names only those who left; the last
/// one takes the record away.
pub(crate) async fn leave(asker: Asker, who: Who, others: Vec<Peer>) -> Outcome {
    let mut rng = fastrand::Rng::with_seed(who.seed);
    for _ in 0..GROUP_TRIES {
        let Some((version, record)) = get(&asker, who.gid).await else {
            pause(&asker, &mut rng).await;
            continue;
        };
        let Some(record) = record else { break };
        if record.sample.iter().all(|peer| peer.id != who.me.id) {
            break;
        }
        let rest = without(&record, who.me.id, &others, rng.u64(..));
        match cas(&asker, who.gid, version, rest.as_ref()).await {
            DirectoryAnswer::Written { .. } => break,
            DirectoryAnswer::Is { .. } => {}
            DirectoryAnswer::Failed => pause(&asker, &mut rng).await,
        }
    }
    Outcome::MayGo { gid: who.gid, life: who.life }
}

/// The record without one who leaves; `None` if nobody is left. `others` are known to be there,
/// the others of the sample only may be.
fn without(
    record: &GroupRecord,
    leaver: NodeId,
    others: &[Peer],
    nonce: u64,
) -> Option<GroupRecord> {
    let mut sample: Vec<Peer> = others.iter().take(GROUP_SAMPLE).cloned().collect();
    for peer in &record.sample {
        let known = peer.id == leaver || sample.iter().any(|other| other.id == peer.id);
        if !known && sample.len() < GROUP_SAMPLE {
            sample.push(peer.clone());
        }
    }
    let (size, seq) = (record.size.saturating_sub(1).max(1), record.seq.saturating_add(1));
    let left = GroupRecord { sample, size, seq, nonce, ..record.clone() };
    (!left.sample.is_empty()).then_some(left)
}

/// Writes what a member knows of the group over what the record says. If somebody else wrote
/// meanwhile, the outcome says what.
pub(crate) async fn write(
    asker: Asker,
    who: Who,
    expected: u64,
    record: Option<GroupRecord>,
) -> Outcome {
    let (gid, life) = (who.gid, who.life);
    let answer = match &record {
        Some(record) => cas(&asker, gid, expected, Some(record)).await,
        None => match get(&asker, gid).await {
            Some((version, record)) => {
                return Outcome::Record { gid, life, version, record, wrote: false };
            }
            None => DirectoryAnswer::Failed,
        },
    };
    match answer {
        DirectoryAnswer::Written { version } => {
            Outcome::Record { gid, life, version, record, wrote: true }
        }
        DirectoryAnswer::Is { version, value } => {
            let now = value.as_deref().and_then(GroupRecord::decode);
            let wrote = now.is_some() && now == record;
            Outcome::Record { gid, life, version, record: now, wrote }
        }
        DirectoryAnswer::Failed => Outcome::NoRecord { gid, life },
    }
}

/// From outside: to any member, which tells the others.
pub(crate) async fn send(
    asker: Asker,
    who: Who,
    packet: Packet,
    reliable: bool,
    ask: u32,
) -> Outcome {
    let answer = try_send(&asker, &who, packet, reliable).await;
    Outcome::Answer { ask, answer }
}

async fn try_send(asker: &Asker, who: &Who, packet: Packet, reliable: bool) -> Answer {
    let mut rng = fastrand::Rng::with_seed(who.seed);
    let mut last = Answer::Unreachable;
    for _ in 0..3 {
        match get(asker, who.gid).await {
            None => last = Answer::Unreachable,
            Some((_, None)) => return Answer::Unknown,
            Some((_, Some(record))) => {
                let mut sample = record.sample;
                rng.shuffle(&mut sample);
                for member in sample.into_iter().filter(|member| member.id != who.me.id) {
                    let request = Request::Send { packet: packet.clone(), reliable };
                    match call(asker, &member, who.gid, request).await {
                        Some(Response::Sent) => return Answer::Done,
                        Some(Response::Refused(Refusal::MembersOnly)) => return Answer::NotMember,
                        Some(Response::Refused(Refusal::Busy)) => last = Answer::Busy,
                        Some(_) | None => {}
                    }
                }
            }
        }
        pause(asker, &mut rng).await;
    }
    last
}
