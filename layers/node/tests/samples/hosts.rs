//! Between managers and hosts, and what a node keeps of its own life.

use dugnad_node::Msg;
use dugnad_node::life::Noted;
use dugnad_resource::availability::History;
use dugnad_resource::execute::{HostState, ToHost, ToManager};
use dugnad_resource::spec::Load;

use super::{Lines, amounts, epoch, replica, spec};

pub(super) fn messages() -> Vec<Msg> {
    let (id, epoch, service) = (replica(), epoch(), replica().service);
    let beat = ToManager::Beat {
        id,
        generation: 2,
        state: HostState::Unready,
        note: "ended with 1".into(),
        node_name: "pi".into(),
    };
    let to_host = [
        ToHost::Reserve { id, epoch, needs: amounts() },
        ToHost::Start { id, epoch, generation: 2, spec: spec(), sources: vec![service] },
        ToHost::Stop { id, epoch, forget: true },
        ToHost::Probe { service, epoch },
        ToHost::BeatAck { service, epoch },
        ToHost::NotManager { service },
    ];
    let to_manager = [
        ToManager::Reserved { id, epoch },
        ToManager::Refused { id, epoch, reason: "no room".into() },
        beat,
        ToManager::Nothing { service },
        ToManager::Deposed { service, epoch },
        ToManager::Leaving { service, leaving: true },
        ToManager::Load { service, load: Load { requests: 500, slow: 3, cpu: 70 } },
    ];
    let away = [Msg::Away { since: 1_800_000_000_000 }];
    let hosts = to_host.map(Msg::ToHost).into_iter().chain(to_manager.map(Msg::ToManager));
    hosts.chain(away).collect()
}

pub(super) fn stored(lines: &mut Lines) {
    let mut history = History::default();
    history.saw(1_800_000_000_000, 1_800_003_600_000, true);
    history.ended(3_600_000);
    let (began, alive) = (1_800_000_000_000, 1_800_003_600_000);
    lines.stored("life", &Noted { history, began, alive });
}
