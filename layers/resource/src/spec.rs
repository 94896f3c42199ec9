//! What a service is: its file, parsed and bounded (`configs/services/README.md`).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use dugnad_fabric::Amounts;
use dugnad_kernel::{Hash, Key};
use serde::{Deserialize, Serialize};

use crate::attributes::NODE;
use crate::condition::{Condition, ParseError};

/// The variable of a service's environment that carries its condition on nodes.
pub const WHERE: &str = "DUGNAD_WHERE";

/// The variable that carries how available a service that follows its load is to be, in millionths.
pub const GOAL: &str = "DUGNAD_GOAL";

/// The variable that says that requests which may not be repeated are done at most once, and sent
/// again until they are answered.
pub const RELIABLE: &str = "DUGNAD_RELIABLE";

/// The variable that carries which replicas stay when there are too many.
pub const RECONCILE: &str = "DUGNAD_RECONCILE";

/// Which replicas stay when there are more than are wanted: the halves of a cut met, or a node that
/// was replaced came back. Of what serves only; what does not goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reconcile {
    /// Those the plan names: their visitors are there.
    #[default]
    KeepReplacement,
    /// Those that were replaced.
    KeepOriginal,
    /// Those that were started first.
    LongestRunning,
    /// Those on the better nodes (PROTOCOL.md 10.5).
    BestScore,
}

impl Reconcile {
    const NAMES: [(&str, Self); 4] = [
        ("keep_replacement", Self::KeepReplacement),
        ("keep_original", Self::KeepOriginal),
        ("longest_running", Self::LongestRunning),
        ("best_score", Self::BestScore),
    ];

    /// By the word of a service file.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|(name, _)| *name == word).map(|(_, which)| which)
    }
}

/// How a node says that it has state of a service: a hash as those of packages.
#[must_use]
pub fn state_mark(service: &str) -> Hash {
    Hash::of(alloc::format!("state of {service}").as_bytes())
}

/// Bounds on what a service file may say; a spec outside them is refused everywhere.
pub const NAME_MAX: usize = 48;
pub const WORDS_MAX: usize = 64;
pub const TEXT_MAX: usize = 4096;
/// Bytes of all texts of a spec: it travels in one message.
pub const ALL_TEXT_MAX: usize = 16 * 1024;
pub const REPLICAS_MAX: u8 = 15;
/// Milliseconds between two snapshots of state.
pub const SNAPSHOT_MS: core::ops::RangeInclusive<u32> = 10_000..=7 * 86_400_000;

/// A kind of processor, as `uname -m` would roughly say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Arch {
    X86_64,
    Aarch64,
    Armv7,
    Armv6,
    Mipsel,
    Riscv64,
}

impl Arch {
    pub const ALL: [Self; 6] =
        [Self::X86_64, Self::Aarch64, Self::Armv7, Self::Armv6, Self::Mipsel, Self::Riscv64];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
            Self::Armv7 => "armv7",
            Self::Armv6 => "armv6",
            Self::Mipsel => "mipsel",
            Self::Riscv64 => "riscv64",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|arch| arch.name() == text)
    }

    /// Whether a program built for `build` runs on a processor of this kind.
    #[must_use]
    pub fn runs(self, build: Self) -> bool {
        self == build || (self == Self::Armv7 && build == Self::Armv6)
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A stored folder: the hash of its index and what it weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tree {
    pub root: Hash,
    /// Bytes of all its files.
    pub bytes: u64,
}

impl Tree {
    /// Where on the ring the tree is kept.
    #[must_use]
    pub fn key(&self) -> Key {
        Key::of_name("tree", &self.root.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A folder, served by the agent itself.
    Static,
    /// A program.
    Process,
}

/// How many replicas somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Want {
    Replicas(u8),
    /// Millionths of the time: 990,000 is 99 %.
    Availability(u32),
    /// One, and never a second beside it: it holds a lease (PROTOCOL.md 10.14).
    Single,
    /// As many as the load takes.
    Load(Scale),
}

/// How the number of replicas follows the load (PROTOCOL.md 10.15).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    pub min: u8,
    pub max: u8,
    pub on: Measure,
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {} on {}", self.min, self.max, self.on)
    }
}

/// What is too much for a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Measure {
    /// More requests a second, or on a TCP port more new connections.
    Requests(u32),
    /// More of the processor time it needs, in percent.
    Cpu(u8),
    /// More than one answer in twenty that takes longer, in milliseconds to its head.
    Answer(u32),
}

impl Measure {
    /// `rps>50`, `cpu>70%`, `p95>300ms`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (name, bound) = text.split_once('>')?;
        let bound = bound.trim();
        let number = |unit: &str| bound.strip_suffix(unit)?.trim_end().parse::<u32>().ok();
        match name.trim() {
            "rps" => number("").filter(|n| *n > 0).map(Self::Requests),
            "cpu" => number("%")
                .and_then(|percent| u8::try_from(percent).ok())
                .filter(|percent| (1..=100).contains(percent))
                .map(Self::Cpu),
            "p95" => {
                let ms = number("ms").or_else(|| number("s")?.checked_mul(1_000))?;
                Some(Self::Answer(ms)).filter(|_| ms > 0)
            }
            _ => None,
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requests(most) => write!(f, "rps>{most}"),
            Self::Cpu(percent) => write!(f, "cpu>{percent}%"),
            Self::Answer(ms) => write!(f, "p95>{ms}ms"),
        }
    }
}

/// What one node measured of a service in [`Load::WINDOW_MS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Requests answered, or connections made, through this node.
    pub requests: u32,
    /// Of these, answers that took longer than [`Measure::Answer`] says.
    pub slow: u32,
    /// Processor time of its replicas on this node, in thousandths of a core.
    pub cpu: u32,
}

impl Load {
    /// Milliseconds that one report is about.
    pub const WINDOW_MS: u32 = 5_000;

    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// What becomes of the state directory of a replica that stops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keep {
    /// It goes with the replica.
    Nothing,
    /// It stays on that node, for the next replica there.
    OnNode,
    /// The community keeps it, and it goes where the next replica starts (PROTOCOL.md 10.13).
    Snapshots {
        /// Milliseconds between two snapshots of a running replica.
        every_ms: u32,
        /// Run before each of them, in the box of the replica; none if empty.
        hook: Vec<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Port {
    /// No port: it only computes.
    None,
    /// Reached as `http://any-node:7480/NAME/`.
    Http,
    /// Reached on this TCP port of every node.
    Tcp(u16),
    /// Reached on this UDP port of every node.
    Udp(u16),
}

impl Port {
    /// The port every node keeps for the service, if there is one.
    #[must_use]
    pub fn of_every_node(self) -> Option<Self> {
        matches!(self, Self::Tcp(_) | Self::Udp(_)).then_some(self)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no port"),
            Self::Http => f.write_str("HTTP"),
            Self::Tcp(port) => write!(f, "TCP port {port}"),
            Self::Udp(port) => write!(f, "UDP port {port}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Check {
    /// Ready as soon as the port accepts (or, without a port, as soon as it runs).
    Port,
    /// GET of this path answers 2xx or 3xx.
    Http(String),
    /// This command ends with 0.
    Exec(Vec<String>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub check: Check,
    /// Milliseconds between two checks of a ready replica.
    pub interval_ms: u32,
    /// Milliseconds one check may take.
    pub timeout_ms: u32,
    /// Failed checks in a row after which a replica is restarted.
    pub failures: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Letters, digits and `-`, at most [`NAME_MAX`], not starting with `-`.
    pub name: String,
    pub kind: Kind,
    pub want: Want,
    /// Program and arguments; `$PORT` and other variables of the contract are replaced.
    pub command: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Packages, by what they run on; `None` is any.
    pub artifacts: Vec<(Option<Arch>, Tree)>,
    pub needs: Amounts,
    pub port: Port,
    pub health: Health,
    /// Milliseconds between SIGTERM and SIGKILL.
    pub stop_grace_ms: u32,
    pub state: Keep,
}

impl Spec {
    /// Where on the ring the service is managed.
    #[must_use]
    pub fn key(&self) -> Key {
        key_of(&self.name)
    }

    /// The package for a processor: the exact one, else a compatible one, else the one for any.
    #[must_use]
    pub fn artifact(&self, arch: Arch) -> Option<Tree> {
        let of = |wanted: &dyn Fn(Option<Arch>) -> bool| {
            self.artifacts.iter().find(|(build, _)| wanted(*build)).map(|(_, tree)| *tree)
        };
        of(&|build| build == Some(arch))
            .or_else(|| of(&|build| build.is_some_and(|build| arch.runs(build))))
            .or_else(|| of(&|build| build.is_none()))
    }

    /// Whether what a replica wrote outlives it.
    #[must_use]
    pub fn keeps_state(&self) -> bool {
        self.state != Keep::Nothing
    }

    /// Whether a replica must have ended before its successor begins: only one may write.
    #[must_use]
    pub const fn one_at_a_time(&self) -> bool {
        matches!(self.state, Keep::Snapshots { .. }) || matches!(self.want, Want::Single)
    }

    /// The program of the host it runs, if it brings none of its own.
    #[must_use]
    pub fn host_program(&self) -> Option<&str> {
        match self.kind {
            Kind::Process => {
                self.command.first().map(String::as_str).filter(|p| p.starts_with('/'))
            }
            Kind::Static => None,
        }
    }

    /// What a node must be like to run it; true of all if the file says nothing. It travels in the
    /// environment, so that what is on disk keeps its form.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn place(&self) -> Result<Condition, ParseError> {
        let said = self.env.iter().find(|(name, _)| name == WHERE);
        Condition::parse(said.map_or("", |(_, typed)| typed), &NODE)
    }

    /// Of the time it is to answer, in millionths, if that was said.
    #[must_use]
    pub fn goal(&self) -> Option<u32> {
        let said = || self.env.iter().find(|(name, _)| name == GOAL)?.1.parse().ok();
        match self.want {
            Want::Availability(goal) => Some(goal),
            Want::Load(_) => said().filter(|goal| (1..1_000_000).contains(goal)),
            Want::Replicas(_) | Want::Single => None,
        }
    }

    /// Which replicas stay when there are too many.
    #[must_use]
    pub fn reconcile(&self) -> Reconcile {
        let said = self.env.iter().find(|(name, _)| name == RECONCILE);
        said.and_then(|(_, word)| Reconcile::parse(word)).unwrap_or_default()
    }

    /// Whether the gateways see to it that each request is done at most once.
    #[must_use]
    pub fn reliable(&self) -> bool {
        self.env.iter().any(|(name, _)| name == RELIABLE)
    }

    fn hook(&self) -> &[String] {
        match &self.state {
            Keep::Snapshots { hook, .. } => hook,
            Keep::Nothing | Keep::OnNode => &[],
        }
    }

    fn check_want(&self) -> Result<(), &'static str> {
        match self.want {
            Want::Replicas(0) => Err("replicas must be at least 1"),
            Want::Replicas(n) if n > REPLICAS_MAX => Err("replicas must be at most 15"),
            Want::Availability(ppm) if !(1..1_000_000).contains(&ppm) => {
                Err("availability must be between 0% and 100%, both excluded")
            }
            Want::Load(Scale { min, max, .. }) if min == 0 || max < min || max > REPLICAS_MAX => {
                Err("scale must go from at least 1 to at most 15")
            }
            Want::Load(Scale { on: Measure::Cpu(_), .. }) if self.kind == Kind::Static => {
                Err("a static service uses no processor of its own: scale it on rps or p95")
            }
            Want::Load(Scale { on: Measure::Requests(_) | Measure::Answer(_), .. })
                if self.port == Port::None =>
            {
                Err("a service without a port has no requests: scale it on cpu")
            }
            Want::Load(Scale { on: Measure::Answer(_), .. }) if self.port != Port::Http => {
                Err("only answers over http are timed: scale it on rps or cpu")
            }
            Want::Replicas(_) | Want::Availability(_) | Want::Single | Want::Load(_) => Ok(()),
        }
    }

    /// Checks the bounds; specs come from other nodes, too.
    ///
    /// # Errors
    /// What is wrong, for a person to read.
    pub fn check(&self) -> Result<(), &'static str> {
        valid_name(&self.name)?;
        let long = |text: &String| text.len() > TEXT_MAX;
        if self.command.len() > WORDS_MAX || self.command.iter().any(long) {
            return Err("command is too long");
        }
        if self.env.len() > WORDS_MAX || self.env.iter().any(|(k, v)| long(k) || long(v)) {
            return Err("env is too long");
        }
        let words = self.command.iter().chain(self.env.iter().flat_map(|(k, v)| [k, v]));
        let words = words.chain(self.hook());
        if words.map(String::len).sum::<usize>() > ALL_TEXT_MAX {
            return Err("command and env together are longer than 16 KB");
        }
        if self.artifacts.len() > Arch::ALL.len() + 1 {
            return Err("too many artifacts");
        }
        if self.place().is_err() {
            return Err("needs.where is no condition on nodes");
        }
        self.check_want()?;
        if let Keep::Snapshots { every_ms, hook } = &self.state {
            if !SNAPSHOT_MS.contains(every_ms) {
                return Err("state.snapshot must be between 10s and 7days");
            }
            if hook.len() > WORDS_MAX || hook.iter().any(long) {
                return Err("state.hook is too long");
            }
            if !matches!(self.want, Want::Replicas(1) | Want::Single) {
                return Err(
                    "state.snapshot needs replicas = 1: each replica has a state of its own; \
                            what several share belongs into the store",
                );
            }
        }
        match self.kind {
            Kind::Static if self.one_at_a_time() => {
                Err("kind \"static\" has no state and may run twice: leave single and state out")
            }
            Kind::Static if self.artifacts.is_empty() => {
                Err("a static service needs a folder: [artifacts] any = \"site/\"")
            }
            Kind::Static if self.port != Port::Http => {
                Err("a static service is reached over http: leave [port] out or say http = true")
            }
            Kind::Process if self.command.is_empty() => {
                Err("a process needs a command: command = [\"./program\"]")
            }
            Kind::Process if self.artifacts.is_empty() && self.host_program().is_none() => Err(
                "a process needs a package in [artifacts] or a host's program with its full path",
            ),
            Kind::Static | Kind::Process => Ok(()),
        }
    }
}

/// Where on the ring a service of this name is managed.
#[must_use]
pub fn key_of(service: &str) -> Key {
    Key::of_name("svc", service.as_bytes())
}

/// # Errors
/// What is wrong with the name, for a person to read.
pub fn valid_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > NAME_MAX {
        return Err("name must have 1 to 48 characters");
    }
    if name.starts_with('-')
        || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    {
        return Err("name may hold lower-case letters, digits and '-', not starting with '-'");
    }
    Ok(())
}
