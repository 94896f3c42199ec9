//! The service file: what somebody wants to run, as written and as the community sees it.
//!
//! Two steps, because packages must be stored before they have a name: [`parse`] checks everything
//! that can be known from the file and the folders beside it, [`ServiceFile::artifacts`] says
//! which folders to store, and [`ServiceFile::to_spec`] makes the spec with what storing gave.

mod elf;
mod jsdl;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use dugnad_fabric::{Amounts, Bytes};
use dugnad_kernel::Hash;
use dugnad_resource::attributes::NODE;
use dugnad_resource::condition::{Condition, ParseError};
use dugnad_resource::spec::{
    self, Arch, Check, Health, Keep, Kind, Measure, Port, Reconcile, SNAPSHOT_MS, Scale, Spec,
    Tree, Want,
};
use serde::Deserialize;
use toml::Spanned;

use crate::config::file;
pub(crate) use crate::config::file::Error;
use crate::config::units::{Cpu, Share, Size, Span, Unit, from_text};
use crate::host::{NAMESPACES, USES};

/// Variables the agent sets; a file must not.
const RESERVED: &[&str] = &["PORT", "HOST", "STATE_DIRECTORY"];
const RESERVED_PREFIXES: &[&str] = &["DUGNAD_", "LISTEN_"];

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: String,
    kind: Option<Word>,
    availability: Option<Share>,
    replicas: Option<u8>,
    scale: Option<RawScale>,
    #[serde(default)]
    single: bool,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    env: BTreeMap<Spanned<String>, String>,
    #[serde(default)]
    artifacts: BTreeMap<Spanned<String>, Spanned<String>>,
    #[serde(default)]
    needs: RawNeeds,
    #[serde(default)]
    port: RawPort,
    #[serde(default)]
    health: RawHealth,
    #[serde(default)]
    state: RawState,
    #[serde(default)]
    store: RawStore,
    #[serde(default)]
    partition: RawPartition,
    #[serde(default)]
    uses: Vec<String>,
    stop_grace: Option<Span>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "{ max = 6, on = \"rps>50\" }")]
struct RawScale {
    min: Option<u8>,
    max: u8,
    on: String,
}

#[derive(Clone, Copy, Debug)]
struct Word(Kind);

impl Unit for Word {
    const WHAT: &'static str = "\"static\" (a folder) or \"process\" (a program)";

    fn read(text: &str) -> Option<Self> {
        match text {
            "static" => Some(Self(Kind::Static)),
            "process" => Some(Self(Kind::Process)),
            _ => None,
        }
    }
}

from_text!(Word);

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawNeeds {
    memory: Option<Size>,
    cpu: Option<Cpu>,
    disk: Option<Size>,
    processes: Option<u32>,
    #[serde(rename = "where")]
    place: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawPort {
    http: Option<bool>,
    tcp: Option<u16>,
    udp: Option<u16>,
    reliable: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawHealth {
    http: Option<String>,
    exec: Option<Vec<String>>,
    interval: Option<Span>,
    timeout: Option<Span>,
    failures: Option<u8>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawState {
    keep: Option<bool>,
    snapshot: Option<Span>,
    hook: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawPartition {
    reconcile: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawStore {
    namespaces: Vec<String>,
}

/// A service file that was found good.
#[derive(Clone, Debug)]
pub(crate) struct ServiceFile {
    /// All but the artifacts.
    spec: Spec,
    artifacts: Vec<(Option<Arch>, PathBuf)>,
    /// Whether `needs.disk` stands in the file.
    disk_said: bool,
}

impl ServiceFile {
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        &self.spec.name
    }

    #[must_use]
    pub(crate) fn is_static(&self) -> bool {
        self.spec.kind == Kind::Static
    }

    /// Folders to store, by what they run on (`None` is any). They exist.
    #[must_use]
    pub(crate) fn artifacts(&self) -> Vec<(Option<Arch>, PathBuf)> {
        self.artifacts.clone()
    }

    /// Whether what it needs of the disk holds its packages; they count.
    ///
    /// # Errors
    /// What to write instead.
    pub(crate) fn has_room(&self, trees: &[(Option<Arch>, Tree)]) -> Result<(), String> {
        let (said, largest) = (Bytes(self.spec.needs.disk), Bytes(largest(trees)));
        if !self.disk_said || said.0 >= largest.0 {
            return Ok(());
        }
        Err(format!(
            "{}: needs.disk = \"{said}\" is less than its package, which has {largest} ({} bytes): \
             say more, or leave it out",
            self.name(),
            largest.0
        ))
    }

    /// The spec, with what storing the folders gave.
    #[must_use]
    pub(crate) fn to_spec(&self, trees: Vec<(Option<Arch>, Tree)>) -> Spec {
        let mut spec = self.spec.clone();
        if !self.disk_said {
            spec.needs.disk = spec.needs.disk.max(largest(&trees));
        }
        Spec { artifacts: trees, ..spec }
    }
}

fn largest(trees: &[(Option<Arch>, Tree)]) -> u64 {
    trees.iter().map(|(_, tree)| tree.bytes).max().unwrap_or(0)
}

/// Reads and checks a service file and the folders it names (relative to it).
///
/// # Errors
/// The first thing that is wrong, with file, line and what is allowed.
pub(crate) fn parse(path: &Path) -> Result<ServiceFile, Error> {
    let text = file::read(path)?;
    let (raw, places) = if jsdl::is_xml(&text) {
        let job = jsdl::parse(path, &text)?;
        (job.raw, Some(job.places))
    } else {
        (file::parse(path, &text)?, None)
    };
    Checker { path, text: &text, places }.resolve(&raw)
}

struct Checker<'a> {
    path: &'a Path,
    text: &'a str,
    /// Where each key comes from, if the file is not written in keys.
    places: Option<Vec<(&'static str, Range<usize>)>>,
}

impl Checker<'_> {
    /// Where the file says what a key would.
    fn find(&self, key: &str) -> Option<Range<usize>> {
        let Some(places) = &self.places else { return file::find_key(self.text, key) };
        places.iter().find(|(known, _)| *known == key).map(|(_, span)| span.clone())
    }

    /// An error about a key, shown at its line if it is written.
    fn wrong(&self, key: &str, message: &str) -> Error {
        match self.find(key) {
            Some(span) => Error::at(self.path, self.text, span, &format!("{key}: {message}")),
            None => Error::whole(self.path, format!("{key}: {message}")),
        }
    }

    fn wrong_at(&self, span: Range<usize>, message: &str) -> Error {
        Error::at(self.path, self.text, span, message)
    }

    fn resolve(&self, raw: &Raw) -> Result<ServiceFile, Error> {
        // The first words of the messages name the key already.
        spec::valid_name(&raw.name).map_err(|why| {
            let span = self.find("name").unwrap_or(0..0);
            self.wrong_at(span, &format!("{why}; \"{}\" does not fit", raw.name))
        })?;
        let kind = match raw.kind {
            Some(Word(kind)) => kind,
            None if raw.command.is_empty() => Kind::Static,
            None => Kind::Process,
        };
        if kind == Kind::Static && !raw.command.is_empty() {
            return Err(self.wrong("command", "a static service is a folder and runs no program"));
        }
        let port = self.port(kind, &raw.port)?;
        let spec = Spec {
            name: raw.name.clone(),
            kind,
            want: self.want(raw)?,
            command: raw.command.clone(),
            env: self.env(raw, port)?,
            artifacts: Vec::new(),
            needs: Amounts {
                memory: raw.needs.memory.map_or(64 << 20, |size| size.0),
                cpu: raw.needs.cpu.map_or(100, |cpu| cpu.0),
                disk: raw.needs.disk.map_or(64 << 20, |size| size.0),
                processes: raw.needs.processes.unwrap_or(16),
            },
            port,
            health: self.health(port, &raw.health)?,
            stop_grace_ms: self.millis("stop_grace", raw.stop_grace, 10_000)?,
            state: self.state(&raw.state)?,
        };
        let artifacts = self.artifacts(&spec, &raw.artifacts)?;
        self.bounds(&spec, &artifacts)?;
        Ok(ServiceFile { spec, artifacts, disk_said: raw.needs.disk.is_some() })
    }

    fn state(&self, raw: &RawState) -> Result<Keep, Error> {
        let Some(Span(every)) = raw.snapshot else {
            if !raw.hook.is_empty() {
                let why = "is run before each snapshot: say how often, such as snapshot = \"5m\"";
                return Err(self.wrong("state.hook", why));
            }
            return Ok(if raw.keep == Some(true) { Keep::OnNode } else { Keep::Nothing });
        };
        if raw.keep == Some(false) {
            let why = "keep = false says that nothing is kept: leave one of the two out";
            return Err(self.wrong("state.snapshot", why));
        }
        let every = u32::try_from(every.as_millis()).ok().filter(|ms| SNAPSHOT_MS.contains(ms));
        let every =
            every.ok_or_else(|| self.wrong("state.snapshot", "must be between 10s and 7days"));
        Ok(Keep::Snapshots { every_ms: every?, hook: raw.hook.clone() })
    }

    fn want(&self, raw: &Raw) -> Result<Want, Error> {
        if let Some(scale) = &raw.scale {
            if raw.single || raw.replicas.is_some() {
                let why = "the load says how many: leave replicas and single out";
                return Err(self.wrong("scale", why));
            }
            let on = Measure::parse(&scale.on).ok_or_else(|| {
                let why = format!(
                    "\"{}\" is no measure: \"rps>50\" (requests a second to a replica), \
                     \"cpu>70%\" (of [needs] cpu) and \"p95>300ms\" (answers) are",
                    scale.on
                );
                self.wrong("scale", &why)
            })?;
            return Ok(Want::Load(Scale { min: scale.min.unwrap_or(1), max: scale.max, on }));
        }
        if raw.single {
            if raw.availability.is_some() || raw.replicas.is_some_and(|count| count != 1) {
                let why = "one replica and never a second: leave replicas and availability out";
                return Err(self.wrong("single", why));
            }
            return Ok(Want::Single);
        }
        match (raw.availability, raw.replicas) {
            (Some(_), Some(_)) => {
                Err(self.wrong("replicas", "say how many replicas or which availability, not both"))
            }
            (Some(share), None) => Ok(Want::Availability(share.0)),
            (None, replicas) => Ok(Want::Replicas(replicas.unwrap_or(1))),
        }
    }

    fn env(&self, raw: &Raw, port: Port) -> Result<Vec<(String, String)>, Error> {
        let Raw { env, store, uses, needs, .. } = raw;
        if let Some(bad) = uses.iter().find(|name| spec::valid_name(name).is_err()) {
            return Err(self.wrong("uses", &format!("\"{bad}\" is no name of a service")));
        }
        if let Some(bad) = store.namespaces.iter().find(|name| spec::valid_name(name).is_err()) {
            let why = format!("\"{bad}\" is no namespace: letters, digits and '-' make one");
            return Err(self.wrong("store.namespaces", &why));
        }
        for (key, value) in env {
            let name = key.get_ref();
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let wrong = |why: &str| Err(self.wrong_at(key.span(), &format!("env.{name}: {why}")));
            if name.is_empty() || !name.chars().all(plain) {
                return wrong("a variable is named with letters, digits and '_'");
            }
            let reserved = RESERVED.contains(&name.as_str())
                || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            if reserved {
                return wrong("the agent sets this variable itself");
            }
            if value.contains('\0') {
                return wrong("a value cannot hold a zero byte");
            }
        }
        let mut all: Vec<(String, String)> =
            env.iter().map(|(key, value)| (key.get_ref().clone(), value.clone())).collect();
        if !uses.is_empty() {
            all.push((USES.to_owned(), uses.join(" ")));
        }
        if !store.namespaces.is_empty() {
            all.push((NAMESPACES.to_owned(), store.namespaces.join(" ")));
        }
        if let (Some(_), Some(goal)) = (&raw.scale, raw.availability) {
            all.push((spec::GOAL.to_owned(), goal.0.to_string()));
        }
        if let Some(word) = &raw.partition.reconcile {
            if Reconcile::parse(word).is_none() {
                let why = format!(
                    "\"{word}\" is none of keep_replacement, keep_original, longest_running and \
                     best_score"
                );
                return Err(self.wrong("partition.reconcile", &why));
            }
            all.push((spec::RECONCILE.to_owned(), word.clone()));
        }
        if raw.port.reliable == Some(true) {
            if port != Port::Http || raw.command.is_empty() {
                let why =
                    "is for programs that are asked by HTTP: say http = true, or leave it out";
                return Err(self.wrong("port.reliable", why));
            }
            all.push((spec::RELIABLE.to_owned(), "1".to_owned()));
        }
        if let Some(place) = &needs.place {
            let wrong = |error: ParseError| self.wrong("needs.where", &error.to_string());
            Condition::parse(place, &NODE).map_err(wrong)?;
            all.push((spec::WHERE.to_owned(), place.clone()));
        }
        Ok(all)
    }

    fn port(&self, kind: Kind, raw: &RawPort) -> Result<Port, Error> {
        let zero = |key| Err(self.wrong(key, "0 is no port; say one of 1 to 65535"));
        match (raw.http.unwrap_or(false), raw.tcp, raw.udp) {
            (true, Some(_), _) | (true, _, Some(_)) | (_, Some(_), Some(_)) => {
                Err(self.wrong("port", "say one of http = true, tcp and udp"))
            }
            (_, Some(0), _) => zero("port.tcp"),
            (_, _, Some(0)) => zero("port.udp"),
            (_, Some(port), None) => Ok(Port::Tcp(port)),
            (_, None, Some(port)) => Ok(Port::Udp(port)),
            (true, None, None) => Ok(Port::Http),
            (false, None, None) if kind == Kind::Static && raw.http.is_none() => Ok(Port::Http),
            (false, None, None) => Ok(Port::None),
        }
    }

    fn health(&self, port: Port, raw: &RawHealth) -> Result<Health, Error> {
        let check = match (&raw.http, &raw.exec) {
            (Some(_), Some(_)) => {
                return Err(self.wrong("health", "say http or exec, not both"));
            }
            (Some(_), None) if matches!(port, Port::None | Port::Udp(_)) => {
                let why = "the service has no port for it: say [port] http = true, or exec";
                return Err(self.wrong("health.http", why));
            }
            (Some(path), None) if !path.starts_with('/') || path.contains([' ', '\r', '\n']) => {
                return Err(self.wrong("health.http", "a path such as \"/healthz\" is expected"));
            }
            (Some(path), None) => Check::Http(path.clone()),
            (None, Some(command)) if command.is_empty() => {
                let why = "a command such as [\"./check\"] is expected";
                return Err(self.wrong("health.exec", why));
            }
            (None, Some(command)) => Check::Exec(command.clone()),
            (None, None) => Check::Port,
        };
        if raw.failures == Some(0) {
            return Err(self.wrong("health.failures", "must be at least 1"));
        }
        Ok(Health {
            check,
            interval_ms: self.millis("health.interval", raw.interval, 10_000)?,
            timeout_ms: self.millis("health.timeout", raw.timeout, 2_000)?,
            failures: raw.failures.unwrap_or(3),
        })
    }

    /// Milliseconds of a duration from 100 ms (less would be a busy loop) to a day.
    fn millis(&self, key: &str, span: Option<Span>, default: u32) -> Result<u32, Error> {
        let Some(Span(span)) = span else { return Ok(default) };
        let grace = key == "stop_grace";
        if span > Duration::from_secs(86_400) || (!grace && span < Duration::from_millis(100)) {
            let least = if grace { "0s" } else { "100ms" };
            return Err(self.wrong(key, &format!("must be between {least} and 24h")));
        }
        Ok(u32::try_from(span.as_millis()).unwrap_or(default))
    }

    fn artifacts(
        &self,
        spec: &Spec,
        raw: &BTreeMap<Spanned<String>, Spanned<String>>,
    ) -> Result<Vec<(Option<Arch>, PathBuf)>, Error> {
        let program = self.program(spec, raw.is_empty())?;
        let mut artifacts = Vec::new();
        for (key, folder) in raw {
            let name = key.get_ref();
            let arch = match Arch::parse(name) {
                None if name != "any" => {
                    let known = Arch::ALL.map(|arch| format!("`{arch}`")).join(", ");
                    let why = format!("artifacts.{name}: no such CPU; known are `any`, {known}");
                    return Err(self.wrong_at(key.span(), &why));
                }
                arch => arch,
            };
            let said = folder.get_ref();
            let wrong =
                |why: &str| Err(self.wrong_at(folder.span(), &format!("artifacts.{name}: {why}")));
            if spec.kind == Kind::Static && arch.is_some() {
                return wrong("the folder of a static service is the same for all: say any");
            }
            let path = self.path.parent().unwrap_or(Path::new("")).join(said);
            let full = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
            match std::fs::metadata(&full) {
                Err(error) => {
                    return wrong(&format!("{said}: {error} (looked for {})", full.display()));
                }
                Ok(found) if !found.is_dir() => {
                    return wrong(&format!("{said} is not a folder; put the file into one"));
                }
                Ok(_) => {}
            }
            if let Some(program) = &program {
                if let Err(why) = elf::check_program(&full, Path::new(said), program, arch) {
                    return wrong(&why);
                }
            }
            artifacts.push((arch, full));
        }
        Ok(artifacts)
    }

    /// The program inside the package, relative to it; `None` if it is one of the host.
    fn program(&self, spec: &Spec, no_package: bool) -> Result<Option<PathBuf>, Error> {
        let Some(word) = spec.command.first() else { return Ok(None) };
        let path = Path::new(word);
        if path.is_absolute() {
            return Ok(None);
        }
        let inside =
            path.components().all(|c| matches!(c, Component::CurDir | Component::Normal(_)));
        if !word.contains('/') {
            let why = format!(
                "\"{word}\" is looked for nowhere: say \"./{word}\" for a program of the package, \
                 or the full path of one of the host such as \"/usr/bin/{word}\""
            );
            return Err(self.wrong("command", &why));
        }
        if !inside {
            let why = format!("\"{word}\" leads out of the package");
            return Err(self.wrong("command", &why));
        }
        if no_package {
            let why = format!(
                "\"{word}\" is a program of a package, but [artifacts] names none: add for \
                 example x86_64 = \"build/x86_64/\""
            );
            return Err(self.wrong("command", &why));
        }
        let plain = path.components().filter(|c| matches!(c, Component::Normal(_)));
        Ok(Some(plain.collect()))
    }

    /// The bounds every node holds a spec to.
    fn bounds(&self, spec: &Spec, artifacts: &[(Option<Arch>, PathBuf)]) -> Result<(), Error> {
        let stand_in = Tree { root: Hash([0; 32]), bytes: 0 };
        let trees = artifacts.iter().map(|(arch, _)| (*arch, stand_in)).collect();
        let whole = Spec { artifacts: trees, ..spec.clone() };
        whole.check().map_err(|why| {
            // Shown at the key the message begins with, if it is written.
            let key = why.split(' ').next().unwrap_or_default();
            match self.find(key) {
                Some(span) => self.wrong_at(span, why),
                None => Error::whole(self.path, why),
            }
        })
    }
}
