//! What the agent of the tests answers.

use dugnad_fabric::Amounts;
use dugnad_kernel::{Id, Peer};
use dugnad_node::{Desired, NodeState, NodeView, PlanView, ReplicaState, ServiceView, Slot};
use dugnad_resource::describe::Profile;
use dugnad_resource::spec::{self, Arch, Kind, Port};

pub(super) const AMOUNTS: Amounts =
    Amounts { memory: 128 << 20, cpu: 500, disk: 2 << 30, processes: 64 };

pub(super) fn wiki(ready: u8) -> ServiceView {
    let slot = |number: u32, state| Slot {
        number,
        node: Id(u128::from(number) + 1),
        node_name: ["attic", "kjøkken", "garage"][number as usize].to_owned(),
        generation: 7,
        state,
        note: String::new(),
    };
    ServiceView {
        name: "wiki".to_owned(),
        service: spec::key_of("wiki"),
        generation: 7,
        desired: Desired::Running,
        port: Port::Http,
        reliable: false,
        kind: Kind::Process,
        want: 3,
        because: String::new(),
        predicted: None,
        scale: None,
        ready,
        manager: Id(2),
        revision: 1,
        slots: vec![
            slot(0, ReplicaState::Ready),
            slot(1, ReplicaState::Reserved),
            slot(2, ReplicaState::Lost),
        ],
        blocked: Vec::new(),
    }
}

pub(super) fn plan() -> PlanView {
    let place = |id: u128, name: &str, why: &str| (Id(id << 120), name.to_owned(), why.to_owned());
    PlanView {
        want: 2,
        because: "availability 99.0%".to_owned(),
        predicted: None,
        chosen: vec![place(1, "attic", "has data, 64M free"), place(2, "kjøkken", "other home")],
        refused: vec![place(3, "zero", "memory: needs 64M, free 32M")],
        notes: vec!["one home only".to_owned()],
    }
}

pub(super) fn node(id: u128, name: Option<&str>, state: NodeState) -> NodeView {
    let mut peer = Peer::new(Id(id));
    peer.addrs.push("192.0.2.1:7407".parse().unwrap()).unwrap();
    let name = name.map(ToOwned::to_owned);
    let profile = name.clone().map(|name| Profile {
        version: "0.1.0".to_owned(),
        ..Profile::plain(&name, Arch::Aarch64, 7)
    });
    NodeView {
        me: false,
        name: name.clone().unwrap_or_default(),
        peer,
        state,
        linked: name.is_some(),
        profile,
        free: AMOUNTS,
        gives: AMOUNTS,
        up_secs: 90,
        replicas: 1,
        availability: Some(Default::default()),
    }
}
