//! How a node is described to those who look for a place (paper 3.3).

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use dugnad_fabric::Amounts;
use dugnad_kernel::{Hash, Peer};
use serde::{Deserialize, Serialize};

use crate::availability::Availability;
use crate::condition::{Condition, Test, Value};
use crate::spec::Arch;

/// Bounds: descriptions travel in messages of 64 KiB, many at a time.
pub const NAME_MAX: usize = 32;
pub const PROGRAMS_MAX: usize = 16;
/// Words of one list: tags, features.
pub const WORDS_MAX: usize = 16;

/// What a node calls itself, cut to [`NAME_MAX`] characters: others remember many of them.
#[must_use]
pub fn clip_name(name: &str) -> String {
    name.chars().take(NAME_MAX).collect()
}

/// What the machine is, found out once at the start of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// What the processor can do beyond its kind, as Linux names it.
    pub features: Vec<String>,
    pub cores: u16,
    /// Megabytes a second that one core hashes.
    pub speed: u32,
    /// Bytes of memory in all.
    pub ram: u64,
}

/// What its owner says of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    /// Nodes of one zone fail together. Empty: its home stands for it.
    pub zone: String,
    pub tags: Vec<String>,
    /// Bytes a second its owner gives to others; `None` is no limit.
    pub uplink: Option<u64>,
}

/// What does not change while the agent runs, but for the owner's file. The agent fills it in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// What its owner calls it.
    pub name: String,
    pub arch: Arch,
    /// Replicas on the same home fail together: a hash of the zone, or of the network the node
    /// sees itself in.
    pub home: u32,
    /// Version of the agent.
    pub version: String,
    pub machine: Machine,
    pub labels: Labels,
}

impl Profile {
    /// A node of which nothing special is known.
    #[must_use]
    pub fn plain(name: &str, arch: Arch, home: u32) -> Self {
        let (version, machine, labels) = (String::from("0"), Machine::default(), Labels::default());
        Self { name: name.to_string(), arch, home, version, machine, labels }
    }

    /// What fails together with it: its zone as its owner says it, else its home.
    #[must_use]
    pub fn fails_with(&self) -> u32 {
        if self.labels.zone.is_empty() {
            return self.home;
        }
        let hash = Hash::of(self.labels.zone.as_bytes()).0;
        u32::from_le_bytes([hash[0], hash[1], hash[2], hash[3]])
    }
}

/// A node at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    pub peer: Peer,
    pub profile: Profile,
    /// What is not promised to anybody yet.
    pub free: Amounts,
    /// What its owner gives in all.
    pub gives: Amounts,
    /// Whether it takes new work.
    pub takes_work: bool,
    /// Seconds since its agent started.
    pub up_secs: u32,
    /// Replicas it runs.
    pub replicas: u16,
    /// Packages it already holds, of those that were asked about.
    pub holds: Vec<Hash>,
    /// Programs of the host it has, of those that were asked about.
    pub programs: Vec<String>,
    /// How much of the time it is up.
    pub availability: Availability,
}

fn number(value: u64) -> Value {
    Value::Number(i64::try_from(value).unwrap_or(i64::MAX))
}

impl Description {
    /// The attributes of [`crate::attributes::NODE`], as conditions see them. What is not known is
    /// left out.
    #[must_use]
    pub fn attributes(&self) -> Vec<(String, Value)> {
        let (profile, machine) = (&self.profile, &self.profile.machine);
        let used = self.gives.cpu.saturating_sub(self.free.cpu);
        let load = u64::from(used) * 1_000_000 / u64::from(self.gives.cpu.max(1));
        let mut all = Vec::new();
        let mut say = |name: &str, value: Value| all.push((name.to_string(), value));
        say("name", Value::Text(profile.name.clone()));
        say("node", Value::Text(self.peer.id.short().to_string()));
        say("zone", Value::Text(self.zone()));
        say("tags", Value::Words(profile.labels.tags.clone()));
        say("arch", Value::Text(profile.arch.name().to_string()));
        say("features", Value::Words(machine.features.clone()));
        for (name, value) in [
            ("cores", u64::from(machine.cores)),
            ("speed", u64::from(machine.speed)),
            ("ram", machine.ram),
        ] {
            if value > 0 {
                say(name, number(value));
            }
        }
        say("memory", number(self.free.memory));
        say("memory_given", number(self.gives.memory));
        say("cpu", number(self.free.cpu.into()));
        say("cpu_given", number(self.gives.cpu.into()));
        say("disk", number(self.free.disk));
        say("disk_given", number(self.gives.disk));
        say("processes", number(self.free.processes.into()));
        if let Some(uplink) = profile.labels.uplink {
            say("uplink", number(uplink));
        }
        say("load", number(load.min(1_000_000)));
        say("up", number(self.availability.up().into()));
        say("session", number(self.availability.session.into()));
        say("uptime", number(self.up_secs.into()));
        say("replicas", number(self.replicas.into()));
        say("work", Value::Text(if self.takes_work { "yes" } else { "no" }.to_string()));
        say("programs", Value::Words(self.programs.clone()));
        all
    }

    /// Where it stands: as its owner says, or its home.
    #[must_use]
    pub fn zone(&self) -> String {
        match self.profile.labels.zone.as_str() {
            "" => format!("home-{:08x}", self.profile.home),
            zone => zone.to_string(),
        }
    }

    /// Cuts what others say of themselves to the bounds.
    pub fn clip(&mut self) {
        let Profile { name, version, machine, labels, .. } = &mut self.profile;
        for text in [name, version, &mut labels.zone] {
            *text = clip_name(text);
        }
        for words in [&mut machine.features, &mut labels.tags] {
            words.truncate(WORDS_MAX);
            for word in words {
                *word = clip_name(word);
            }
        }
        self.programs.truncate(PROGRAMS_MAX);
        self.availability.clip();
    }
}

/// The programs of the host that a condition names; a node says only of these whether it has them.
#[must_use]
pub fn programs(condition: &Condition) -> Vec<String> {
    let mut named = Vec::new();
    for (name, test) in condition.tests() {
        if let (Test::Words { has, lacks }, "programs") = (test, name.as_str()) {
            named.extend(has.iter().chain(lacks).take(PROGRAMS_MAX).cloned());
        }
    }
    named
}

/// What a census counts of a node: small, for all of them travel together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brief {
    pub arch: Arch,
    pub zone: String,
    pub cores: u16,
    pub gives: Amounts,
    pub free: Amounts,
    pub replicas: u16,
    /// Millionths of the time it is up.
    pub up: u32,
    pub takes_work: bool,
}

impl Brief {
    #[must_use]
    pub fn of(node: &Description) -> Self {
        Self {
            arch: node.profile.arch,
            zone: node.zone(),
            cores: node.profile.machine.cores,
            gives: node.gives,
            free: node.free,
            replicas: node.replicas,
            up: node.availability.up(),
            takes_work: node.takes_work,
        }
    }

    /// Whether it is within the bounds; others say it of themselves.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.zone.len() <= NAME_MAX && self.up <= 1_000_000
    }
}
