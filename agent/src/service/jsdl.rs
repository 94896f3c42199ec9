//! Job descriptions of grids (JSDL 1.0, GFD.56) read as service files: `dugnad deploy job.jsdl`.
//!
//! What has a meaning here becomes the key of a service file with that meaning (PROTOCOL.md 9.1
//! has the table); names, versions and descriptions for people are read over. Any other element is
//! an error at its line: a job that asks for more than it would get is not started.

use std::ops::Range;
use std::path::Path;

use roxmltree::{Document, Node};
use toml::Spanned;

use super::{Error, Raw, Size};

const JSDL: &str = "http://schemas.ggf.org/jsdl/2005/11/jsdl";
const POSIX: &str = "http://schemas.ggf.org/jsdl/2005/11/jsdl-posix";
const HPC: &str = "http://schemas.ggf.org/jsdl/2006/07/jsdl-hpcpa";

/// What a service file would say, and where each of its keys comes from.
pub(super) struct Job {
    pub(super) raw: Raw,
    pub(super) places: Vec<(&'static str, Range<usize>)>,
}

/// Whether a file holds XML; TOML never begins so.
pub(super) fn is_xml(text: &str) -> bool {
    text.trim_start_matches('\u{feff}').trim_start().starts_with('<')
}

/// Reads a job description; `path` is only for messages.
///
/// # Errors
/// It is no XML, no JSDL, or has an element or a value that means nothing here.
pub(super) fn parse(path: &Path, text: &str) -> Result<Job, Error> {
    let document = Document::parse(text).map_err(|error| {
        let start = offset(text, error.pos());
        Error::at(path, text, start..start, &format!("no well-formed XML: {error}"))
    })?;
    let job = Job { raw: Raw::default(), places: Vec::new() };
    let mut reader = Reader { path, text, job, place: Vec::new() };
    reader.definition(document.root_element())?;
    Ok(reader.job)
}

fn offset(text: &str, pos: roxmltree::TextPos) -> usize {
    let line = usize::try_from(pos.row).unwrap_or(1).saturating_sub(1);
    let before: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
    let rest = text.get(before..).unwrap_or_default();
    let column = usize::try_from(pos.col).unwrap_or(1).saturating_sub(1);
    before + rest.char_indices().nth(column).map_or(0, |(at, _)| at)
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    job: Job,
    /// Predicates of `needs.where`.
    place: Vec<String>,
}

type Element<'a> = Node<'a, 'a>;

impl Reader<'_> {
    fn wrong(&self, element: Element<'_>, message: &str) -> Error {
        Error::at(self.path, self.text, self.span(element), message)
    }

    /// Where an element begins: its tag.
    fn span(&self, element: Element<'_>) -> Range<usize> {
        let whole = element.range();
        let tag = self.text.get(whole.clone()).unwrap_or_default();
        whole.start..whole.start + tag.find('>').map_or(tag.len(), |end| end + 1)
    }

    fn unsupported(&self, element: Element<'_>) -> Error {
        let name = element.tag_name().name();
        let why = format!(
            "{name} has no meaning for a service here: take it out, or write a service file"
        );
        self.wrong(element, &why)
    }

    fn says(&mut self, key: &'static str, element: Element<'_>) {
        let span = self.span(element);
        self.job.places.push((key, span));
    }

    /// The words in an element, which must hold nothing else.
    fn words<'a>(&self, element: Element<'a>) -> Result<&'a str, Error> {
        if let Some(inner) = elements(element).next() {
            return Err(self.unsupported(inner));
        }
        let words = element.text().unwrap_or_default().trim();
        if words.is_empty() {
            let name = element.tag_name().name();
            return Err(self.wrong(element, &format!("{name} is empty")));
        }
        Ok(words)
    }

    /// A number of one or more; JSDL writes all as decimals.
    fn number(&self, element: Element<'_>) -> Result<u64, Error> {
        let words = self.words(element)?;
        let (whole, fraction) = words.split_once('.').unwrap_or((words, ""));
        let whole = whole.parse().ok().filter(|number| *number > 0);
        whole.filter(|_| fraction.bytes().all(|digit| digit == b'0')).ok_or_else(|| {
            self.wrong(element, &format!("a whole number above 0 is expected, not \"{words}\""))
        })
    }

    fn definition(&mut self, root: Element<'_>) -> Result<(), Error> {
        if root.tag_name().name() != "JobDefinition" || !is_of(root, &[JSDL]) {
            let why =
                format!("no job description: its first element must be JobDefinition of {JSDL}");
            return Err(self.wrong(root, &why));
        }
        for description in elements(root) {
            if named(description) != Some("JobDescription") {
                return Err(self.unsupported(description));
            }
            for part in elements(description) {
                match named(part) {
                    Some("JobIdentification") => self.identification(part)?,
                    Some("Application") => self.application(part)?,
                    Some("Resources") => self.resources(part)?,
                    Some("DataStaging") => self.staging(part)?,
                    _ => return Err(self.unsupported(part)),
                }
            }
        }
        if self.job.raw.name.is_empty() {
            let why = "JobIdentification with a JobName is missing: services have a name";
            return Err(self.wrong(root, why));
        }
        if self.job.raw.command.is_empty() {
            let why = "Application with a POSIXApplication and its Executable is missing";
            return Err(self.wrong(root, why));
        }
        self.job.raw.needs.place = Some(self.place.join(" ")).filter(|place| !place.is_empty());
        Ok(())
    }

    fn identification(&mut self, part: Element<'_>) -> Result<(), Error> {
        for element in elements(part) {
            match named(element) {
                Some("JobName") => {
                    self.job.raw.name = self.words(element)?.to_owned();
                    self.says("name", element);
                }
                Some("Description" | "JobAnnotation" | "JobProject") => {}
                _ => return Err(self.unsupported(element)),
            }
        }
        Ok(())
    }

    fn application(&mut self, part: Element<'_>) -> Result<(), Error> {
        for element in elements(part) {
            match (element.tag_name().name(), element.tag_name().namespace()) {
                ("ApplicationName" | "ApplicationVersion" | "Description", Some(JSDL)) => {}
                ("POSIXApplication", Some(POSIX)) | ("HPCProfileApplication", Some(HPC)) => {
                    self.program(element)?;
                }
                _ => return Err(self.unsupported(element)),
            }
        }
        Ok(())
    }

    fn program(&mut self, part: Element<'_>) -> Result<(), Error> {
        let mut arguments = Vec::new();
        for element in elements(part) {
            if !is_of(element, &[POSIX, HPC]) {
                return Err(self.unsupported(element));
            }
            match element.tag_name().name() {
                "Executable" => {
                    self.job.raw.command = vec![self.words(element)?.to_owned()];
                    self.says("command", element);
                }
                // An empty argument is one, too.
                "Argument" => arguments.push(element.text().unwrap_or_default().trim().to_owned()),
                "Environment" => {
                    let Some(name) = element.attribute("name") else {
                        return Err(self.wrong(element, "Environment says no name"));
                    };
                    let value = element.text().unwrap_or_default().trim().to_owned();
                    let name = Spanned::new(self.span(element), name.to_owned());
                    self.job.raw.env.insert(name, value);
                }
                "MemoryLimit" => {
                    self.job.raw.needs.memory = Some(Size(self.number(element)?));
                    self.says("needs.memory", element);
                }
                "ProcessCountLimit" => {
                    let count = u32::try_from(self.number(element)?).unwrap_or(u32::MAX);
                    self.job.raw.needs.processes = Some(count);
                    self.says("needs.processes", element);
                }
                _ => return Err(self.unsupported(element)),
            }
        }
        self.job.raw.command.append(&mut arguments);
        Ok(())
    }

    fn resources(&mut self, part: Element<'_>) -> Result<(), Error> {
        for element in elements(part) {
            match named(element) {
                Some("CandidateHosts") => self.hosts(element)?,
                Some("OperatingSystem") => self.system(element)?,
                Some("CPUArchitecture") => self.processor(element)?,
                Some("IndividualCPUCount") => self.bounds("cores", element)?,
                // JSDL counts bits, conditions count bytes.
                Some("IndividualNetworkBandwidth") => self.bounds("uplink", element)?,
                Some("IndividualPhysicalMemory") => {
                    let least = Size(self.least(element)?);
                    if self.job.raw.needs.memory.is_none() {
                        self.job.raw.needs.memory = Some(least);
                        self.says("needs.memory", element);
                    }
                }
                Some("IndividualDiskSpace") => {
                    self.job.raw.needs.disk = Some(Size(self.least(element)?));
                    self.says("needs.disk", element);
                }
                Some("TotalResourceCount") => {
                    let count = self.least(element)?;
                    self.job.raw.replicas = Some(u8::try_from(count).unwrap_or(u8::MAX));
                    self.says("replicas", element);
                }
                Some("ExclusiveExecution") if element.text().map(str::trim) == Some("false") => {}
                Some("Description") => {}
                _ => return Err(self.unsupported(element)),
            }
        }
        Ok(())
    }

    fn hosts(&mut self, part: Element<'_>) -> Result<(), Error> {
        let mut names = Vec::new();
        for element in elements(part) {
            if named(element) != Some("HostName") {
                return Err(self.unsupported(element));
            }
            names.push(self.word(element)?);
        }
        if names.is_empty() {
            return Err(self.wrong(part, "CandidateHosts names no HostName"));
        }
        self.is_placed(part, format!("name in {}", names.join(",")));
        Ok(())
    }

    /// One word, as conditions have them.
    fn word<'a>(&self, element: Element<'a>) -> Result<&'a str, Error> {
        let words = self.words(element)?;
        if words.contains([' ', '\t', '\n', ',', '"']) {
            return Err(self.wrong(element, &format!("one word is expected, not \"{words}\"")));
        }
        Ok(words)
    }

    fn is_placed(&mut self, element: Element<'_>, predicate: String) {
        self.place.push(predicate);
        self.says("needs.where", element);
    }

    fn system(&self, part: Element<'_>) -> Result<(), Error> {
        for element in elements(part) {
            match named(element) {
                Some("Description") => {}
                Some("OperatingSystemType") => self.system(element)?,
                Some("OperatingSystemName") => {
                    let name = self.words(element)?;
                    if !name.eq_ignore_ascii_case("linux") {
                        let why = format!("all nodes run LINUX, none {name}");
                        return Err(self.wrong(element, &why));
                    }
                }
                _ => return Err(self.unsupported(element)),
            }
        }
        Ok(())
    }

    fn processor(&mut self, part: Element<'_>) -> Result<(), Error> {
        for element in elements(part) {
            if named(element) != Some("CPUArchitectureName") {
                return Err(self.unsupported(element));
            }
            let known = match self.words(element)? {
                "x86_64" => "arch=x86_64",
                "arm" => "arch in aarch64,armv7,armv6",
                "mips" => "arch=mipsel",
                other => {
                    let why = format!(
                        "no node has the processor \"{other}\": x86_64, arm and mips can be had; \
                         for riscv64 write a service file"
                    );
                    return Err(self.wrong(element, &why));
                }
            };
            self.is_placed(element, known.to_owned());
        }
        Ok(())
    }

    /// Bounds of an attribute of nodes, as predicates.
    fn bounds(&mut self, attribute: &str, part: Element<'_>) -> Result<(), Error> {
        for (sign, element) in self.ranges(part)? {
            let mut number = self.number(element)?;
            if attribute == "uplink" {
                number = number.div_ceil(8);
            }
            self.is_placed(element, format!("{attribute}{sign}{number}"));
        }
        Ok(())
    }

    /// The lower bound of what is set aside for the service. One above says nothing here.
    fn least(&self, part: Element<'_>) -> Result<u64, Error> {
        let ranges = self.ranges(part)?;
        let upper = ranges.iter().find(|(sign, _)| sign.starts_with('<'));
        if let Some((_, element)) = upper {
            let why = "an upper bound has no meaning here: say what is needed at least";
            return Err(self.wrong(*element, why));
        }
        match ranges.as_slice() {
            [(_, element)] => self.number(*element),
            _ => Err(self.wrong(part, "one Exact or LowerBoundedRange is expected")),
        }
    }

    /// What a range value says: `=`, `>`, `>=`, `<` or `<=`, and the element with the number.
    fn ranges<'a>(&self, part: Element<'a>) -> Result<Vec<(&'static str, Element<'a>)>, Error> {
        let mut out = Vec::new();
        for element in elements(part) {
            match named(element) {
                Some("Range") => {
                    for bound in elements(element) {
                        out.push((self.sign(bound)?, bound));
                    }
                }
                _ => out.push((self.sign(element)?, element)),
            }
        }
        if out.is_empty() {
            let name = part.tag_name().name();
            let why = format!(
                "{name} says nothing: Exact, LowerBoundedRange, UpperBoundedRange or Range is \
                 expected"
            );
            return Err(self.wrong(part, &why));
        }
        Ok(out)
    }

    fn sign(&self, element: Element<'_>) -> Result<&'static str, Error> {
        let exclusive = matches!(element.attribute("exclusiveBound"), Some("true" | "1"));
        if let Some(other) = element.attributes().find(|a| a.name() != "exclusiveBound") {
            let why = format!("{} has no meaning here: take it out", other.name());
            return Err(self.wrong(element, &why));
        }
        match (named(element), exclusive) {
            (Some("Exact"), false) => Ok("="),
            (Some("LowerBoundedRange" | "LowerBound"), false) => Ok(">="),
            (Some("LowerBoundedRange" | "LowerBound"), true) => Ok(">"),
            (Some("UpperBoundedRange" | "UpperBound"), false) => Ok("<="),
            (Some("UpperBoundedRange" | "UpperBound"), true) => Ok("<"),
            _ => Err(self.unsupported(element)),
        }
    }

    /// A folder beside the file that goes with the job is its package.
    fn staging(&mut self, part: Element<'_>) -> Result<(), Error> {
        let mut folder = None;
        for element in elements(part) {
            match named(element) {
                Some("FileName") => {
                    let name = self.words(element)?;
                    if !matches!(name, "." | "./") {
                        let why =
                            "a package is unpacked where the job runs: FileName must be \".\"";
                        return Err(self.wrong(element, why));
                    }
                }
                Some("CreationFlag") => {}
                Some("Source") => {
                    for source in elements(element) {
                        if named(source) != Some("URI") {
                            return Err(self.unsupported(source));
                        }
                        folder = Some((source, self.folder(source)?));
                    }
                }
                _ => return Err(self.unsupported(element)),
            }
        }
        let Some((source, folder)) = folder else {
            return Err(self.wrong(part, "DataStaging has no Source with a URI"));
        };
        if !self.job.raw.artifacts.is_empty() {
            return Err(self.wrong(part, "a service has one package: put all into one folder"));
        }
        let span = self.span(source);
        let folder = Spanned::new(span.clone(), folder);
        self.job.raw.artifacts.insert(Spanned::new(span, "any".to_owned()), folder);
        Ok(())
    }

    fn folder(&self, source: Element<'_>) -> Result<String, Error> {
        let uri = self.words(source)?;
        match uri.strip_prefix("file://").or_else(|| uri.strip_prefix("file:")) {
            Some(path) => Ok(path.to_owned()),
            None if uri.contains("://") => {
                let why = "only folders of this machine can be sent along: file:PATH, or a path";
                Err(self.wrong(source, why))
            }
            None => Ok(uri.to_owned()),
        }
    }
}

fn elements<'a>(of: Element<'a>) -> impl Iterator<Item = Element<'a>> {
    of.children().filter(Node::is_element)
}

fn is_of(element: Element<'_>, spaces: &[&str]) -> bool {
    element.tag_name().namespace().is_some_and(|space| spaces.contains(&space))
}

/// The name of an element of JSDL's own.
fn named<'a>(element: Element<'a>) -> Option<&'a str> {
    is_of(element, &[JSDL]).then(|| element.tag_name().name())
}
