//! What a manager can make a host remember by reserving places.
#![allow(clippy::unwrap_used)]

use dugnad_fabric::{Amounts, Ceilings};
use dugnad_kernel::{Component, Cx, Effect, Id, Input, Time};
use dugnad_resource::execute::{Epoch, ReplicaId, ToHost, ToManager};
use dugnad_resource::executor::{Executor, RESERVATION, RESERVED_EACH, Timer};
use dugnad_resource::spec::Arch;

struct Host {
    executor: Executor,
    rng: fastrand::Rng,
    /// Timers under way.
    timers: Vec<(Time, Timer)>,
    now: Time,
}

impl Host {
    fn new() -> Self {
        let amounts = Amounts { memory: 1 << 30, cpu: 4_000, disk: 1 << 30, processes: 640 };
        let ceilings = Ceilings { amounts, upload: None };
        let executor = Executor::new(Id(1), "host".into(), Arch::X86_64, ceilings);
        Self { executor, rng: fastrand::Rng::with_seed(1), timers: Vec::new(), now: Time(0) }
    }

    fn step(&mut self, work: impl FnOnce(&mut Executor, &mut Cx<'_, Executor>)) -> Vec<ToManager> {
        let mut effects = Vec::new();
        work(&mut self.executor, &mut Cx::new(self.now, &mut self.rng, &mut effects));
        let mut answers = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send { msg, .. } => answers.push(msg),
                Effect::After { delay, timer } => self.timers.push((self.now + delay, timer)),
                Effect::Emit(_) => {}
            }
        }
        answers
    }

    fn reserve(&mut self, from: u128, service: u128) -> bool {
        let needs = Amounts { memory: 1 << 10, cpu: 1, disk: 1 << 10, processes: 1 };
        let id = ReplicaId { service: Id(service), number: 0 };
        let msg = ToHost::Reserve { id, epoch: Epoch::default(), needs };
        let answers = self.step(|executor, cx| executor.on_message(Id(from), msg, cx));
        matches!(answers[..], [ToManager::Reserved { .. }])
    }

    fn pass_until(&mut self, end: Time) {
        while let Some(at) = self.timers.iter().position(|(at, _)| *at <= end) {
            let (at, timer) = self.timers.remove(at);
            self.now = at;
            self.step(|executor, cx| executor.handle(Input::Timer(timer), cx));
        }
        self.now = end;
    }

    fn replicas(&self) -> usize {
        self.executor.replicas().count()
    }
}

#[test]
fn a_flood_of_reservations_costs_one_timer_and_its_share_of_places() {
    let mut host = Host::new();
    for round in 0..10_000 {
        let reserved = host.reserve(7, 100 + round);
        assert_eq!(reserved, round < RESERVED_EACH as u128, "{round}");
    }
    assert_eq!((host.timers.len(), host.replicas()), (1, RESERVED_EACH));
    // The same place again is no new one.
    assert!(host.reserve(7, 100));
    // Others still find room.
    host.pass_until(Time(0) + RESERVATION / 2);
    assert!(host.reserve(8, 5));
    assert_eq!(host.timers.len(), 1);
    host.pass_until(Time(0) + RESERVATION);
    assert_eq!(host.replicas(), 1, "only the later one waits");
    host.pass_until(Time(0) + RESERVATION * 2);
    assert_eq!((host.timers.len(), host.replicas()), (0, 0), "and nothing is left to wait for");
}
