//! Whom a host obeys, and what it can be made to remember.
#![allow(clippy::unwrap_used)]

use dugnad_fabric::{Amounts, Ceilings};
use dugnad_kernel::{Component, Cx, Effect, Id, Input, NodeId, Time};
use dugnad_resource::execute::{Epoch, ReplicaId, TERM_STEP, ToHost, ToManager};
use dugnad_resource::executor::orders::WAITING_MAX;
use dugnad_resource::executor::{
    Command, Event, Executor, RESERVATION, RESERVED_EACH, SEARCH_AGAIN, Timer,
};
use dugnad_resource::spec::Arch;

type Work = Box<dyn FnOnce(&mut Executor, &mut Cx<'_, Executor>)>;

struct Host {
    executor: Executor,
    rng: fastrand::Rng,
    /// Timers under way.
    timers: Vec<(Time, Timer)>,
    now: Time,
    /// Who answers for all services, as the ring says.
    manager: Option<NodeId>,
    lookups: usize,
}

impl Host {
    fn new() -> Self {
        let amounts = Amounts { memory: 1 << 30, cpu: 4_000, disk: 1 << 30, processes: 640 };
        let ceilings = Ceilings { amounts, upload: None };
        let executor = Executor::new(Id(1), "host".into(), Arch::X86_64, ceilings);
        Self {
            executor,
            rng: fastrand::Rng::with_seed(1),
            timers: Vec::new(),
            now: Time(0),
            manager: None,
            lookups: 0,
        }
    }

    fn step(&mut self, work: Work) -> Vec<ToManager> {
        let mut effects = Vec::new();
        work(&mut self.executor, &mut Cx::new(self.now, &mut self.rng, &mut effects));
        let mut answers = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send { msg, .. } => answers.push(msg),
                Effect::After { delay, timer } => self.timers.push((self.now + delay, timer)),
                Effect::Emit(Event::FindManager(service)) => {
                    self.lookups += 1;
                    let found = Command::Manager { service, manager: self.manager };
                    answers.extend(self.input(Input::Command(found)));
                }
                Effect::Emit(_) => {}
            }
        }
        answers
    }

    fn input(&mut self, input: Input<Executor>) -> Vec<ToManager> {
        self.step(Box::new(|executor, cx| executor.handle(input, cx)))
    }

    fn hears(&mut self, from: u128, msg: ToHost) -> Vec<ToManager> {
        self.step(Box::new(move |executor, cx| executor.on_message(Id(from), msg, cx)))
    }

    fn reserve(&mut self, from: u128, service: u128) -> bool {
        let needs = Amounts { memory: 1 << 10, cpu: 1, disk: 1 << 10, processes: 1 };
        let id = ReplicaId { service: Id(service), number: 0 };
        let msg = ToHost::Reserve { id, epoch: Epoch::default(), needs };
        self.manager = Some(Id(from));
        let answers = self.hears(from, msg);
        matches!(answers[..], [ToManager::Reserved { .. }])
    }

    fn pass_until(&mut self, end: Time) {
        while let Some(at) = self.timers.iter().position(|(at, _)| *at <= end) {
            let (at, timer) = self.timers.remove(at);
            self.now = at;
            self.input(Input::Timer(timer));
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

fn probe(service: u128, term: u64, manager: u128) -> ToHost {
    let epoch = Epoch { term, manager: Id(manager) };
    ToHost::Probe { service: Id(service), epoch }
}

#[test]
fn only_the_node_that_answers_for_a_service_is_obeyed() {
    let mut host = Host::new();
    host.manager = Some(Id(7));
    let nothing = [ToManager::Nothing { service: Id(5) }];
    assert_eq!(host.hears(7, probe(5, 1, 7)), nothing, "looked up, and found to be right");
    assert_eq!(host.lookups, 1);
    assert_eq!(host.hears(7, probe(5, 1, 7)), nothing);
    assert_eq!(host.lookups, 1, "it is known now");
    // However high the term of a stranger is: it waits, and is dropped in the end.
    assert_eq!(host.hears(66, probe(5, 9, 66)), []);
    host.pass_until(host.now + SEARCH_AGAIN * 10);
    assert_eq!((host.executor.refused_orders(), host.timers.len()), (1, 0));
    assert_eq!(host.hears(7, probe(5, 1, 7)), nothing, "its term was not taken over");
    // A new manager is obeyed as soon as the ring knows it.
    assert_eq!(host.hears(8, probe(5, 2, 8)), []);
    host.manager = Some(Id(8));
    host.pass_until(host.now + SEARCH_AGAIN);
    assert_eq!((host.executor.refused_orders(), host.timers.len()), (1, 0));
    assert_eq!(host.hears(8, probe(5, 2, 8)), nothing);
    // Without a ring there is nobody else to obey.
    host.manager = None;
    assert_eq!(host.hears(9, probe(6, 1, 9)), [ToManager::Nothing { service: Id(6) }]);
}

#[test]
fn a_flood_of_strange_orders_is_bounded() {
    let mut host = Host::new();
    host.manager = Some(Id(7));
    for service in 0..1_000 {
        host.hears(66, probe(service, 1, 66));
    }
    assert!(host.lookups <= WAITING_MAX && host.timers.len() <= WAITING_MAX);
    host.pass_until(host.now + SEARCH_AGAIN * 10);
    assert_eq!(host.executor.refused_orders(), 1_000);
    assert_eq!(host.timers.len(), 0);
}

/// A term far above what is known would be the last one for ever.
#[test]
fn nobody_jumps_to_the_last_term() {
    let mut host = Host::new();
    host.manager = Some(Id(7));
    let nothing = [ToManager::Nothing { service: Id(5) }];
    assert_eq!(host.hears(7, probe(5, 7, 7)), nothing);
    for term in [u64::MAX, u64::from(u32::MAX) - 2, 7 + TERM_STEP + 1] {
        assert_eq!(host.hears(7, probe(5, term, 7)), [], "{term}");
    }
    assert_eq!(host.executor.refused_epochs(), 3);
    assert_eq!(host.hears(7, probe(5, 8, 7)), nothing, "the next one is obeyed as ever");
}
