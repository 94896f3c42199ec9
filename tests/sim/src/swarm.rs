//! Random communities under random faults. One seed chooses everything; after the faults the
//! world is made whole, and then the ring must be right and every service as wanted.

use std::collections::BTreeMap;

use dugnad_kernel::{Duration, Key, NodeId};
use dugnad_node::{Answer, AskId, Command, ServiceQuestion};

use crate::net::{Latency, NetOptions};
use crate::report::{community, site};
use crate::world::Crash;
use crate::{Options, World, check};

/// How long a whole world has to be in order again.
pub const LIMIT: Duration = Duration::from_secs(300);

struct Swarm {
    world: World,
    /// Replicas of each service, as the last answered or unanswered order left it.
    wanted: BTreeMap<String, u8>,
    /// Orders without an answer yet: they may or may not have been heard.
    open: Vec<(AskId, String)>,
    next: u32,
    first: NodeId,
    story: Vec<String>,
}

/// One run; what is wrong at its end, with the story of its faults.
///
/// # Errors
/// The first thing that is not as it should be.
pub fn swarm(seed: u64, verbose: bool) -> Result<World, String> {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x0073_7761_726d);
    let least = rng.u64(1..30);
    let net = NetOptions {
        latency: Latency::Range(least..least + rng.u64(1..100)),
        loss: if rng.bool() { rng.f64() * 0.03 } else { 0.0 },
        ..NetOptions::default()
    };
    let size = rng.usize(3..26);
    let mut world = World::new(Options { net, ..Options::seed(seed) });
    world.verbose = verbose;
    let first = community(&mut world, size)[0];
    let mut swarm = Swarm {
        world,
        wanted: BTreeMap::new(),
        open: Vec::new(),
        next: 0,
        first,
        story: Vec::new(),
    };
    swarm.say(&format!("{size} nodes"));
    for _ in 0..rng.usize(1..6) {
        swarm.deploy(&mut rng);
    }
    swarm.world.run_for(Duration::from_secs(20));
    let end = swarm.world.now + Duration::from_secs(rng.u64(120..300));
    while swarm.world.now < end {
        let pause = Duration::from_millis(rng.u64(0..20_000));
        swarm.world.run_for(pause);
        swarm.fault(&mut rng);
    }
    swarm.make_whole();
    swarm.settle()
}

impl Swarm {
    fn say(&mut self, what: &str) {
        let line = format!("{:7.1} s  {what}", self.world.now.0 as f64 / 1e6);
        if self.world.verbose {
            eprintln!("{line}");
        }
        self.story.push(line);
    }

    fn some(&self, rng: &mut fastrand::Rng) -> Option<NodeId> {
        rng.choice(&self.world.alive()).copied()
    }

    fn fault(&mut self, rng: &mut fastrand::Rng) {
        let dead: Vec<NodeId> = self.down();
        let many = self.world.alive().len() > 2;
        match rng.u8(0..20) {
            0..=3 if many => self.crash(Crash::Process, rng),
            4..=6 if many => self.crash(Crash::Power, rng),
            7..=10 => {
                if let Some(id) = rng.choice(&dead).copied() {
                    self.say(&format!("{} starts again", id.short()));
                    self.world.start(id);
                }
            }
            11 => {
                let groups = self.world.ids().into_iter().map(|id| (id, rng.u32(0..2))).collect();
                self.say("the network is cut in two");
                self.world.partition(groups);
            }
            12..=13 => {
                self.say("the network is whole again");
                self.world.net.heal();
            }
            14 if many => self.leave(rng),
            15 => self.join(rng),
            16..=17 => self.deploy(rng),
            18 => self.remove(rng),
            19 => {
                if let Some(id) = self.some(rng) {
                    let ms = rng.u64(0..1_500);
                    self.say(&format!("the disk of {} takes {ms} ms to sync", id.short()));
                    self.world.slow_disk(id, Duration::from_millis(ms));
                }
            }
            _ => {}
        }
    }

    /// Machines that are off, except those that left for good.
    fn down(&self) -> Vec<NodeId> {
        let off = self.world.machines.iter().filter(|(_, m)| m.node.is_none() && !m.left);
        off.map(|(id, _)| *id).collect()
    }

    fn crash(&mut self, kind: Crash, rng: &mut fastrand::Rng) {
        if let Some(id) = self.some(rng) {
            self.say(&format!("{} stops ({kind:?})", id.short()));
            self.world.crash(id, kind);
        }
    }

    fn leave(&mut self, rng: &mut fastrand::Rng) {
        let Some(id) = self.some(rng).filter(|id| *id != self.first) else { return };
        self.say(&format!("{} leaves", id.short()));
        self.world.command(id, Command::Leave);
        // The agent ends when the ring lets it go; services end with it.
        let gone = |w: &World| w.machines.get(&id).is_none_or(|m| m.left);
        self.world.run_until(Duration::from_secs(30), Duration::from_millis(100), gone);
        self.world.crash(id, Crash::Power);
        if let Some(machine) = self.world.machines.get_mut(&id) {
            machine.left = true;
        }
    }

    fn join(&mut self, rng: &mut fastrand::Rng) {
        let seeds: Vec<NodeId> = self.world.alive().into_iter().take(4).collect();
        if self.world.machines.len() < 40 && rng.bool() {
            let id = self.world.add(&seeds);
            self.say(&format!("{} is new", id.short()));
            self.world.start(id);
        }
    }

    fn deploy(&mut self, rng: &mut fastrand::Rng) {
        let Some(from) = self.some(rng) else { return };
        let replicas = rng.u8(1..4);
        let name = format!("site-{}", self.next);
        self.next += 1;
        let spec = site(&name, replicas);
        for (_, tree) in &spec.artifacts {
            self.world.give_tree(from, *tree);
        }
        self.say(&format!("{} deploys {replicas} of {name}", from.short()));
        let ask = self.world.ask(from, ServiceQuestion::Deploy(spec));
        self.wanted.insert(name.clone(), replicas);
        self.open.push((ask, name));
    }

    fn remove(&mut self, rng: &mut fastrand::Rng) {
        self.close();
        let known: Vec<String> = self.wanted.keys().cloned().collect();
        let (Some(from), Some(name)) = (self.some(rng), rng.choice(&known).cloned()) else {
            return;
        };
        if self.open.iter().any(|(_, open)| *open == name) {
            return;
        }
        self.say(&format!("{} removes {name}", from.short()));
        let ask = self.world.ask(from, ServiceQuestion::Remove(name.clone()));
        self.wanted.insert(name.clone(), 0);
        self.open.push((ask, name));
    }

    fn close(&mut self) {
        let answers = &self.world.answers;
        self.open.retain(|(ask, _)| !answers.contains_key(ask));
    }

    fn make_whole(&mut self) {
        self.say("everything is made whole");
        self.world.net.heal();
        for id in self.world.ids() {
            self.world.slow_disk(id, Duration::ZERO);
        }
        for id in self.down() {
            // Who was away for long is dialled by hand if need be.
            let seeds = self.world.alive().into_iter().take(4).collect();
            self.world.set_seeds(id, seeds);
            self.world.start(id);
        }
        // Orders whose asker died, or that failed, are given again by a person.
        self.world.run_for(Duration::from_secs(60));
    }

    /// Gives the orders again that were not answered with success.
    fn ask_again(&mut self) {
        for (name, replicas) in self.wanted.clone() {
            let Some(from) = self.world.alive().first().copied() else { return };
            let question = if replicas == 0 {
                ServiceQuestion::Remove(name.clone())
            } else {
                let spec = site(&name, replicas);
                for (_, tree) in &spec.artifacts {
                    self.world.give_tree(from, *tree);
                }
                ServiceQuestion::Deploy(spec)
            };
            let ask = self.world.ask(from, question);
            self.open.push((ask, name));
        }
    }

    /// What the managers say about it.
    fn why(&self) -> String {
        let mut lines = Vec::new();
        for id in self.world.alive() {
            let Some(node) = self.world.node(id) else { continue };
            for view in node.collective().views() {
                let slots: Vec<String> = view
                    .slots
                    .iter()
                    .map(|s| {
                        format!(
                            "{}@{} g{} {:?} {}",
                            s.number,
                            s.node.short(),
                            s.generation,
                            s.state,
                            s.note
                        )
                    })
                    .collect();
                lines.push(format!(
                    "{} manages {} ({} want {} ready {}): {slots:?} {:?}",
                    id.short(),
                    view.name,
                    view.service.short(),
                    view.want,
                    view.ready,
                    view.blocked
                ));
            }
        }
        for (ask, name) in &self.open {
            lines.push(format!("{name}: {:?}", self.world.answers.get(ask)));
        }
        lines.join("\n")
    }

    fn settle(mut self) -> Result<World, String> {
        self.close();
        let doubtful = !self.open.is_empty()
            || self
                .world
                .answers
                .values()
                .any(|a| !matches!(a, Answer::Done | Answer::Deployed { .. }));
        if doubtful {
            self.say("orders are given again");
            self.ask_again();
        }
        let nodes = self.world.alive().len();
        let wanted: BTreeMap<Key, usize> = self
            .wanted
            .iter()
            .map(|(name, count)| (site(name, 1).key(), usize::from(*count).min(nodes)))
            .collect();
        let fine = |w: &World| check::ideal_ring(w).and_then(|()| check::services(w, &wanted));
        let second = Duration::from_secs(1);
        self.world.run_until(LIMIT, second, |w| fine(w).is_ok());
        let told = |wrong| format!("{wrong}\n{}\n{}", self.story.join("\n"), self.why());
        fine(&self.world).map_err(told)?;
        Ok(self.world)
    }
}
