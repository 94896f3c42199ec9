//! What the owner wrote ([`Raw`]) and what it means ([`Config`]).
//!
//! [`Dirs::resolve`] says where the file lies, [`Config::load`] reads it. A flag wins over a
//! variable of the environment, that over the file, that over the default. An unknown key or a
//! value out of range is an error with its line, never ignored. What is understood but not yet
//! acted upon is named by [`Config::not_enforced`], so that `status` can say so.

mod dirs;
pub(crate) mod file;
#[cfg(test)]
mod tests;
pub(crate) mod units;

use std::net::SocketAddr;
use std::path::Path;

use dugnad_fabric::{Amounts, Ceilings};
use dugnad_resource::describe::{Labels, WORDS_MAX};
use serde::Deserialize;

pub(crate) use dirs::{Dirs, Env};
pub(crate) use file::Error;
use units::{Cpu, Rate, Share, Size, Unit, from_text};

pub(crate) const OVERLAY_PORT: u16 = 7407;
pub(crate) const GATEWAY_PORT: u16 = 7480;

/// Keys that something acts upon. The others are named by [`Config::not_enforced`] as soon as
/// their value asks for anything; whoever makes one true adds it here.
const ACTED_UPON: &[&str] = &["limits.cpu", "limits.memory", "limits.disk", "limits.processes"];

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Raw {
    node: RawNode,
    community: RawCommunity,
    listen: RawListen,
    limits: RawLimits,
    when: RawWhen,
    policy: RawPolicy,
    log: RawLog,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawNode {
    name: Option<Name>,
    zone: Option<Name>,
    tags: Vec<Name>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawCommunity {
    seeds: Vec<Seed>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawListen {
    overlay: Option<Listen>,
    gateway: Option<Gateway>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawLimits {
    cpu: Option<Cpu>,
    memory: Option<Size>,
    disk: Option<Size>,
    processes: Option<u32>,
    upload: Option<Rate>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawWhen {
    schedule: Option<Schedule>,
    on_battery: Option<OnBattery>,
    busy_above: Option<Share>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawPolicy {
    allow: Option<Vec<String>>,
    network: Option<Network>,
    require: Option<Vec<Protection>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawLog {
    level: Option<Level>,
}

/// What a node is called: 1 to 32 visible characters without spaces.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name(String);

impl Unit for Name {
    const WHAT: &'static str = "a name of 1 to 32 letters, digits, '-', '_' or '.'";

    fn read(text: &str) -> Option<Self> {
        let fits = (1..=dugnad_resource::describe::NAME_MAX).contains(&text.len());
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
        (fits && text.chars().all(plain)).then(|| Self(text.to_owned()))
    }
}

/// Where a member can be dialled: address or host name, and port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seed(String);

impl Unit for Seed {
    const WHAT: &'static str = "an address and port such as \"203.0.113.9:7407\"";

    fn read(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        let named = !host.is_empty() && host.chars().all(host_name);
        let port = port.parse::<u16>().ok().filter(|&port| port != 0);
        let usable = match text.parse::<SocketAddr>() {
            Ok(addr) => !addr.ip().is_unspecified() && addr.port() != 0,
            Err(_) => named && port.is_some(),
        };
        usable.then(|| Self(text.to_owned()))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listen(SocketAddr);

impl Unit for Listen {
    const WHAT: &'static str = "an address and port such as \"0.0.0.0:7407\"";

    fn read(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gateway(Option<SocketAddr>);

impl Unit for Gateway {
    const WHAT: &'static str = "an address and port such as \"127.0.0.1:7480\", or \"off\"";

    fn read(text: &str) -> Option<Self> {
        if text == "off" {
            Some(Self(None))
        } else {
            text.parse().ok().map(|addr| Self(Some(addr)))
        }
    }
}

/// When the node takes work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Schedule {
    Always,
    /// Minutes after midnight, local time; past midnight if `to` is not after `from`.
    Daily {
        from: u16,
        to: u16,
    },
}

impl Unit for Schedule {
    const WHAT: &'static str = "\"always\" or hours such as \"22:00-07:00\"";

    fn read(text: &str) -> Option<Self> {
        if text == "always" {
            return Some(Self::Always);
        }
        let (from, to) = text.split_once('-')?;
        let minutes = |clock: &str| {
            let (hour, minute) = clock.trim().split_once(':').filter(|(_, m)| m.len() == 2)?;
            let (hour, minute) = (hour.parse::<u16>().ok()?, minute.parse::<u16>().ok()?);
            (hour < 24 && minute < 60).then_some(hour * 60 + minute)
        };
        let (from, to) = (minutes(from)?, minutes(to)?);
        (from != to).then_some(Self::Daily { from, to })
    }
}

/// A value that is one of a few words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident $what:literal { $($variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $($variant),* }

        impl $name {
            pub(crate) const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }

        impl Unit for $name {
            const WHAT: &'static str = $what;

            fn read(text: &str) -> Option<Self> {
                match text { $($word => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

words!(
    /// What happens to services when the node runs on its battery.
    OnBattery "\"pause\" or \"run\"" { Pause = "pause", Run = "run" }
);
words!(
    /// Whom services may talk to.
    Network "\"members\", \"internet\" or \"none\"" {
        Members = "members",
        Internet = "internet",
        None = "none",
    }
);
words!(
    /// A layer of the box without which nothing may run here.
    Protection "one of \"seccomp\", \"landlock\", \"userns\", \"cgroup\"" {
        Seccomp = "seccomp",
        Landlock = "landlock",
        Userns = "userns",
        Cgroup = "cgroup",
    }
);
words!(
    /// How much is logged.
    Level "one of \"error\", \"warn\", \"info\", \"debug\"" {
        Error = "error",
        Warn = "warn",
        Info = "info",
        Debug = "debug",
    }
);

from_text!(Name, Seed, Listen, Gateway, Schedule, OnBattery, Network, Protection, Level);

/// What flags or the environment say; it wins over the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) name: Option<String>,
    pub(crate) overlay: Option<String>,
    pub(crate) gateway: Option<String>,
    pub(crate) log: Option<String>,
}

/// Facts of the host that defaults depend on.
#[derive(Clone, Debug)]
pub(crate) struct HostFacts {
    pub(crate) name: String,
    /// Bytes of memory in all.
    pub(crate) memory: u64,
}

/// What the owner means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) name: String,
    /// Where it stands; empty if its owner does not say.
    pub(crate) zone: String,
    pub(crate) tags: Vec<String>,
    /// `HOST:PORT` each; a host may be a name that still has to be looked up.
    pub(crate) seeds: Vec<String>,
    pub(crate) overlay: SocketAddr,
    /// `None` is off.
    pub(crate) gateway: Option<SocketAddr>,
    pub(crate) limits: Ceilings,
    pub(crate) schedule: Schedule,
    pub(crate) on_battery: OnBattery,
    /// Millionths of the processor.
    pub(crate) busy_above: u32,
    pub(crate) allow: Vec<String>,
    pub(crate) network: Network,
    pub(crate) require: Vec<Protection>,
    pub(crate) log: Level,
}

impl Config {
    /// Reads the owner's file (its absence means all defaults) and lays `flags` and the
    /// environment (`DUGNAD_NAME`, `DUGNAD_OVERLAY`, `DUGNAD_GATEWAY`, `DUGNAD_LOG`) over it.
    ///
    /// # Errors
    /// The first thing that is wrong, with file and line, or with the flag or variable.
    pub(crate) fn load(dirs: &Dirs, flags: &Overrides, env: Env<'_>) -> Result<Self, String> {
        let path = &dirs.config;
        let text = match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            _ => file::read(path).map_err(|error| error.to_string())?,
        };
        let mut config =
            Self::parse(path, &text, &HostFacts::probe()).map_err(|error| error.to_string())?;
        config.lay_over(flags, env)?;
        Ok(config)
    }

    /// What `text` means on a host; `path` is only for messages.
    pub(crate) fn parse(path: &Path, text: &str, host: &HostFacts) -> Result<Self, Error> {
        file::parse::<Raw>(path, text).map(|raw| Self::resolve(raw, host))
    }

    fn resolve(raw: Raw, host: &HostFacts) -> Self {
        let limits = &raw.limits;
        let amounts = Amounts {
            // A quarter of a small board's memory, never more than a careful 128M.
            memory: limits.memory.map_or_else(|| (host.memory / 4).min(128 << 20), |size| size.0),
            cpu: limits.cpu.map_or(500, |cpu| cpu.0),
            disk: limits.disk.map_or(2 << 30, |size| size.0),
            processes: limits.processes.unwrap_or(64),
        };
        let upload = limits.upload.map_or(Some(300 << 10), |rate| rate.0);
        let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
        let loopback = SocketAddr::from(([127, 0, 0, 1], GATEWAY_PORT));
        Self {
            name: raw.node.name.map_or_else(|| host.name.clone(), |name| name.0),
            zone: raw.node.zone.map_or_else(String::new, |zone| zone.0),
            tags: raw.node.tags.into_iter().map(|tag| tag.0).take(WORDS_MAX).collect(),
            seeds: raw.community.seeds.into_iter().map(|seed| seed.0).collect(),
            overlay: raw.listen.overlay.map_or_else(|| any(OVERLAY_PORT), |listen| listen.0),
            gateway: raw.listen.gateway.map_or(Some(loopback), |gateway| gateway.0),
            limits: Ceilings { amounts, upload },
            schedule: raw.when.schedule.unwrap_or(Schedule::Always),
            on_battery: raw.when.on_battery.unwrap_or(OnBattery::Pause),
            busy_above: raw.when.busy_above.map_or(800_000, |share| share.0),
            allow: raw.policy.allow.unwrap_or_else(|| vec!["*".to_owned()]),
            // What holds today, until a box without a network can be made.
            network: raw.policy.network.unwrap_or(Network::Internet),
            require: raw.policy.require.unwrap_or_default(),
            log: raw.log.level.unwrap_or(Level::Info),
        }
    }

    fn lay_over(&mut self, flags: &Overrides, env: Env<'_>) -> Result<(), String> {
        let said = |flag: &Option<String>, option: &str, variable: &str| {
            let from_env = || {
                let value = env(variable)?.to_str()?.to_owned();
                (!value.is_empty()).then(|| (value, variable.to_owned()))
            };
            flag.clone().map(|value| (value, option.to_owned())).or_else(from_env)
        };
        if let Some(name) = over::<Name>(said(&flags.name, "--name", "DUGNAD_NAME"))? {
            self.name = name.0;
        }
        let overlay = said(&flags.overlay, "--overlay", "DUGNAD_OVERLAY");
        if let Some(overlay) = over::<Listen>(overlay)? {
            self.overlay = overlay.0;
        }
        let gateway = said(&flags.gateway, "--gateway", "DUGNAD_GATEWAY");
        if let Some(gateway) = over::<Gateway>(gateway)? {
            self.gateway = gateway.0;
        }
        if let Some(level) = over::<Level>(said(&flags.log, "--log", "DUGNAD_LOG"))? {
            self.log = level;
        }
        Ok(())
    }

    /// What conditions may ask of a node that only its owner knows.
    #[must_use]
    pub(crate) fn labels(&self) -> Labels {
        let (zone, tags) = (self.zone.clone(), self.tags.clone());
        Labels { zone, tags, uplink: self.limits.upload }
    }

    /// The owner's ceilings.
    #[must_use]
    pub(crate) fn ceilings(&self) -> Ceilings {
        self.limits
    }

    /// What the owner asks for (by writing or by default) that nothing acts upon yet, as
    /// `key = value`.
    /// Rules about foreign work that this version cannot hold. While there are any, none is taken:
    /// an owner's rule is never ignored.
    #[must_use]
    pub(crate) fn cannot_hold(&self) -> Vec<String> {
        let all = self.not_enforced();
        all.into_iter().filter(|text| text.starts_with("policy.")).collect()
    }

    #[must_use]
    pub(crate) fn not_enforced(&self) -> Vec<String> {
        let quoted = |key: &'static str, word: &str| (key, format!("{key} = \"{word}\""));
        let mut asked = Vec::new();
        if let Some(rate) = self.limits.upload {
            asked.push(quoted("limits.upload", &format!("{}/s", dugnad_fabric::Bytes(rate))));
        }
        if let Schedule::Daily { from, to } = self.schedule {
            let hours = format!("{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60);
            asked.push(quoted("when.schedule", &hours));
        }
        if self.on_battery == OnBattery::Pause {
            asked.push(quoted("when.on_battery", self.on_battery.word()));
        }
        if self.busy_above < 1_000_000 {
            asked.push(quoted("when.busy_above", &format!("{}%", self.busy_above / 10_000)));
        }
        if self.allow != ["*"] {
            asked.push(("policy.allow", format!("policy.allow = {:?}", self.allow)));
        }
        if self.network != Network::Internet {
            asked.push(quoted("policy.network", self.network.word()));
        }
        if !self.require.is_empty() {
            let words: Vec<_> = self.require.iter().map(|layer| layer.word()).collect();
            asked.push(("policy.require", format!("policy.require = {words:?}")));
        }
        asked.retain(|(key, _)| !ACTED_UPON.contains(key));
        asked.into_iter().map(|(_, text)| text).collect()
    }
}

fn over<T: Unit>(said: Option<(String, String)>) -> Result<Option<T>, String> {
    said.map(|(text, from)| T::parse(&text).map_err(|error| format!("{from}: {error}"))).transpose()
}

impl HostFacts {
    /// Name and memory of this machine; both have a fallback, as defaults must always exist.
    pub(crate) fn probe() -> Self {
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        let short = host.as_deref().and_then(|name| name.split('.').next()).and_then(Name::read);
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kilobytes = total.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok());
        Self {
            name: short.map_or_else(|| "node".to_owned(), |name| name.0),
            memory: kilobytes.map_or(256 << 20, |kilobytes: u64| kilobytes << 10),
        }
    }
}
