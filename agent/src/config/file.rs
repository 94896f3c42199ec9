//! Reading a TOML file a person wrote: what is wrong is said with file, line, key and a caret.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Files people write are small; a larger one is a mistake (or a device).
const BYTES_MAX: u64 = 256 << 10;

/// What is wrong with a file, for a person to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Error {
    file: PathBuf,
    at: Option<At>,
    message: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct At {
    /// Both from 1; the column counts characters.
    line: usize,
    column: usize,
    excerpt: String,
    width: usize,
}

impl Error {
    /// An error about the whole file.
    pub(crate) fn whole(file: &Path, message: impl Into<String>) -> Self {
        Self { file: file.to_path_buf(), at: None, message: message.into() }
    }

    /// An error about some bytes of it.
    pub(crate) fn at(file: &Path, text: &str, span: Range<usize>, message: &str) -> Self {
        let at = At::of(text, span);
        Self { file: file.to_path_buf(), at, message: message.to_owned() }
    }
}

impl At {
    /// `None` if the span says nothing more than "this file".
    fn of(text: &str, span: Range<usize>) -> Option<Self> {
        let before = text.get(..span.start)?;
        if span.start == 0 && (span.is_empty() || span.end >= text.trim_end().len()) {
            return None;
        }
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let excerpt = text[line_start..].lines().next().unwrap_or_default();
        let column = text[line_start..span.start].chars().count() + 1;
        let end = span.end.min(line_start + excerpt.len());
        let width = text.get(span.start..end).map_or(1, |marked| marked.chars().count().max(1));
        let line = before.matches('\n').count() + 1;
        Some(Self { line, column, excerpt: excerpt.to_owned(), width })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(at) = &self.at else {
            return write!(f, "{}: {}", self.file.display(), self.message);
        };
        writeln!(f, "{}:{}:{}: {}", self.file.display(), at.line, at.column, self.message)?;
        let number = at.line.to_string();
        let margin = " ".repeat(number.len());
        // Tabs stay tabs in front of the caret, so that it stands where it should.
        let lead: String = at.excerpt.chars().take(at.column - 1).map(tab_or_space).collect();
        writeln!(f, "{margin} |")?;
        writeln!(f, "{number} | {}", at.excerpt)?;
        write!(f, "{margin} | {lead}{}", "^".repeat(at.width))
    }
}

fn tab_or_space(c: char) -> char {
    if c == '\t' { '\t' } else { ' ' }
}

/// The text of a file.
///
/// # Errors
/// It cannot be read, is larger than 256K or is no text.
pub(crate) fn read(path: &Path) -> Result<String, Error> {
    let fail = |error: std::io::Error| Error::whole(path, format!("cannot read: {error}"));
    let bytes = std::fs::metadata(path).map_err(fail)?;
    if bytes.is_dir() {
        return Err(Error::whole(path, "is a folder; name the file in it"));
    }
    if bytes.len() > BYTES_MAX {
        return Err(Error::whole(path, format!("is larger than {}K", BYTES_MAX >> 10)));
    }
    std::fs::read_to_string(path).map_err(fail)
}

/// What the text says; `path` is only for the message.
///
/// # Errors
/// The first thing that is wrong, where it is.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, Error> {
    toml::from_str(text).map_err(|error| {
        let message = error.message().replace("unknown field", "unknown key");
        let message = message.replace("missing field", "missing key").replace('\n', ", ");
        let Some(span) = error.span() else { return Error::whole(path, message) };
        match key_at(text, span.start) {
            // The message already names an unknown key.
            Some(key)
                if !message.starts_with("unknown key") && At::of(text, span.clone()).is_some() =>
            {
                Error::at(path, text, span, &format!("{key}: {message}"))
            }
            _ => Error::at(path, text, span, &message),
        }
    })
}

/// The dotted key whose value begins at (or contains) `offset`.
fn key_at(text: &str, offset: usize) -> Option<String> {
    let line_end = text[offset..].find('\n').map_or(text.len(), |end| offset + end);
    let (mut section, mut key) = ("", None);
    for line in text.get(..line_end)?.lines() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            // An array element on its own line begins with '[' only in nested arrays.
            if !header.contains(['"', ',']) || header.starts_with('"') {
                (section, key) = (header.trim_matches(['[', ' ']), None);
                continue;
            }
        }
        if let Some((name, _)) = line.split_once('=').filter(|_| !line.starts_with(['#', '"'])) {
            key = Some(name.trim().trim_matches('"'));
        }
    }
    let key = key?;
    Some(if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") })
}

/// Where `key` (dotted, as in `health.http`) is written in the text, if it is.
pub(crate) fn find_key(text: &str, key: &str) -> Option<Range<usize>> {
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    let mut here = "";
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim();
        if let Some(header) = trimmed.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            here = header.trim();
            if here == key {
                let start = offset + line.find('[').unwrap_or(0);
                return Some(start..start + trimmed.len());
            }
        } else if here == section {
            let written = trimmed.split_once('=').map(|(name, _)| name.trim());
            if written == Some(name) {
                let start = offset + (line.len() - line.trim_start().len());
                return Some(start..offset + line.trim_end().len());
            }
        }
        offset += line.len();
    }
    None
}

/// The text with `key = value` in `[section]`, everything else as it was. `value` is TOML on one
/// line, and so must be what it replaces; the caller reads the result back to be sure.
pub(crate) fn set(text: &str, section: &str, key: &str, value: &str) -> String {
    let line = format!("{key} = {value}");
    if let Some(span) = find_key(text, &format!("{section}.{key}")) {
        return format!("{}{line}{}", &text[..span.start], &text[span.end..]);
    }
    if let Some(span) = find_key(text, section).filter(|span| text[span.clone()].starts_with('[')) {
        let end = text[span.end..].find('\n').map_or(text.len(), |newline| span.end + newline);
        return format!("{}\n{line}{}", &text[..end], &text[end..]);
    }
    let gap = if text.is_empty() || text.ends_with("\n\n") {
        ""
    } else if text.ends_with('\n') {
        "\n"
    } else {
        "\n\n"
    };
    format!("{text}{gap}[{section}]\n{line}\n")
}
