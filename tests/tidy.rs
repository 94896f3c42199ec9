//! Checks the rules of CONTRIBUTING.md that no compiler checks. No crate of the workspace, so that
//! it needs nothing but `rustc`: `tests/run tidy`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A layer may import those before it.
const LAYERS: [&str; 6] = ["kernel", "fabric", "connectivity", "resource", "collective", "node"];
const COLUMNS_MAX: usize = 100;
/// Lines of a file that are neither blank, nor comment, nor tests.
const CODE_MAX: usize = 600;
/// Lines of a function, its first and last ones included.
const FUNCTION_MAX: usize = 70;
/// Files that import each other, and may: ARCHITECTURE.md, "Circles", says why.
const CIRCLES: [&str; 7] = [
    "agent/src/link/admit",
    "agent/src/link/book",
    "agent/src/link/inner",
    "agent/src/link/session",
    "layers/connectivity/src/overlay/tree/broadcast",
    "layers/connectivity/src/overlay/tree/bulk",
    "layers/connectivity/src/overlay/tree/feedback",
];
/// What the code refers to by section.
const PROTOCOL: &str = "layers/PROTOCOL.md";
/// In two parts, so that this file does not find itself.
const NEVER: [&str; 5] = [
    concat!("to", "do!("),
    concat!("unimpl", "emented!("),
    concat!("FIX", "ME"),
    concat!("db", "g!("),
    concat!("XX", "X"),
];
/// Folders that exist on one machine only.
const MACHINE_PATHS: [&str; 4] =
    [concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/wo", "rk/"), concat!("/Us", "ers/")];
/// Texts by their ending; everything else is not read.
const TEXTS: [&str; 7] = ["rs", "toml", "md", "sh", "service", "txt", "py"];

fn main() -> ExitCode {
    let root = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| ".".to_owned()));
    match check(&root) {
        Ok(wrong) if wrong.is_empty() => ExitCode::SUCCESS,
        Ok(wrong) => {
            for line in &wrong {
                println!("{line}");
            }
            println!("{} things are not tidy", wrong.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("tidy: {error}");
            ExitCode::FAILURE
        }
    }
}

fn check(root: &Path) -> io::Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut files = Vec::new();
    list(root, &mut files)?;
    files.sort();
    let sections = sections(
        &fs::read_to_string(root.join(PROTOCOL))
            .map_err(|error| io::Error::new(error.kind(), format!("{PROTOCOL}: {error}")))?,
    );
    for file in &files {
        let name = file.strip_prefix(root).unwrap_or(file).display().to_string();
        let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or("");
        let bytes = fs::read(file)?;
        let script = bytes.starts_with(b"#!/");
        if script && fs::metadata(file)?.permissions().mode() & 0o111 == 0 {
            wrong.push(format!("{name}: a script, but not executable: chmod +x {name}"));
        }
        if !script && !TEXTS.contains(&ending) {
            continue;
        }
        let Ok(text) = String::from_utf8(bytes) else {
            wrong.push(format!("{name}: not UTF-8"));
            continue;
        };
        wrong.extend(words(&name, &text));
        wrong.extend(references(&name, &text, &sections));
        if script || ending == "rs" {
            wrong.extend(columns(&name, &text));
        }
        if ending == "rs" {
            let lines = code_lines(&text);
            if lines > CODE_MAX {
                wrong.push(format!("{name}: {lines} lines of code, at most {CODE_MAX}: split it"));
            }
            wrong.extend(functions(&name, &text));
        }
        if name.ends_with("Cargo.toml") {
            wrong.extend(manifest(&name, &text));
        }
    }
    for src in ["agent/src", "platform/src"] {
        wrong.extend(circles(root, src)?);
    }
    for layer in LAYERS {
        wrong.extend(circles(root, &format!("layers/{layer}/src"))?);
        let file = format!("layers/{layer}/src/lib.rs");
        let text = fs::read_to_string(root.join(&file))
            .map_err(|error| io::Error::new(error.kind(), format!("{file}: {error}")))?;
        if !text.contains("#![cfg_attr(not(test), no_std)]") {
            wrong.push(format!("{file}: lacks #![cfg_attr(not(test), no_std)]"));
        }
    }
    Ok(wrong)
}

/// Every file below `dir` that belongs to the project.
fn list(dir: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let name = entry.file_name();
        if kind.is_dir() {
            if !(name == "target" || name == ".git") {
                list(&path, files)?;
            }
        } else if kind.is_file() && name != "Cargo.lock" && name != ".git" {
            files.push(path);
        }
    }
    Ok(())
}

fn words(name: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for word in NEVER.into_iter().filter(|word| line.contains(word)) {
            wrong.push(format!("{name}:{}: {word}", number + 1));
        }
        for path in MACHINE_PATHS.into_iter().filter(|path| line.contains(path)) {
            wrong.push(format!("{name}:{}: a path of one machine ({path})", number + 1));
        }
    }
    wrong
}

fn columns(name: &str, text: &str) -> Vec<String> {
    let wide = |(_, line): &(usize, &str)| line.chars().count() > COLUMNS_MAX;
    let told = |(number, line): (usize, &str)| {
        format!("{name}:{}: {} columns, at most {COLUMNS_MAX}", number + 1, line.chars().count())
    };
    text.lines().enumerate().filter(wide).map(told).collect()
}

/// Lines of code before the tests, which come last in a file.
fn code_lines(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let tests = (0..lines.len()).find(|&at| {
        lines[at] == "#[cfg(test)]"
            && lines[at + 1..].iter().any(|line| line.starts_with("mod ") && line.ends_with('{'))
            && lines[at + 1..]
                .iter()
                .find(|line| !line.starts_with("#["))
                .is_some_and(|line| line.starts_with("mod ") && line.ends_with('{'))
    });
    let code = |line: &&&str| !line.is_empty() && !line.starts_with("//");
    lines[..tests.unwrap_or(lines.len())].iter().filter(code).count()
}

/// Functions that are too long. What rustfmt wrote ends a function where it began.
fn functions(name: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut wrong = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let mut words = code.split(' ').skip_while(|word| {
            ["const", "async", "unsafe", "extern", "\"C\""].contains(word)
                || word.starts_with("pub")
        });
        if words.next() != Some("fn") || line.ends_with('}') || line.ends_with(';') {
            continue;
        }
        let called = words.next().unwrap_or("").split(['(', '<']).next().unwrap_or("");
        let end = format!("{}}}", &line[..line.len() - code.len()]);
        let length = lines[at..].iter().position(|line| *line == end).map_or(0, |last| last + 1);
        if length > FUNCTION_MAX {
            let told = format!("{called} has {length} lines, at most {FUNCTION_MAX}: split it");
            wrong.push(format!("{name}:{}: {told}", at + 1));
        }
    }
    wrong
}

/// The numbers of the headings: `2`, `2.4`.
fn sections(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let numbers = headings.filter_map(|line| line.trim_start_matches('#').split(' ').nth(1));
    numbers
        .map(|number| number.trim_end_matches('.'))
        .filter(|number| number.starts_with(|c: char| c.is_ascii_digit()))
        .map(str::to_owned)
        .collect()
}

/// References to sections of [`PROTOCOL`] that are not there: `PROTOCOL.md 2.4, 2.5 and 3.1-3.4`.
fn references(name: &str, text: &str, sections: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for rest in line.split("PROTOCOL.md ").skip(1) {
            let words = rest.split([' ', ',', '-', '(', ')', ';', ':']);
            let words = words.filter(|word| !["", "and", "to"].contains(word));
            let numbers = words.map(|word| word.trim_end_matches('.'));
            let is_number = |word: &&str| {
                !word.is_empty() && word.chars().all(|c| c.is_ascii_digit() || c == '.')
            };
            for section in numbers.take_while(is_number) {
                if !sections.iter().any(|known| known == section) {
                    wrong.push(format!("{name}:{}: {PROTOCOL} has no {section}", number + 1));
                }
            }
        }
    }
    wrong
}

/// Files of one crate that import each other in a circle. A file may import from the modules it
/// lies in: they are the face of their folder. [`CIRCLES`] are known.
fn circles(root: &Path, src: &str) -> io::Result<Vec<String>> {
    let mut files = Vec::new();
    list(&root.join(src), &mut files)?;
    files.sort();
    let mut modules: BTreeMap<Vec<String>, String> = BTreeMap::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|ending| ending == "rs")) {
        let name = file.strip_prefix(root.join(src)).unwrap_or(file).display().to_string();
        let mut path: Vec<String> =
            name.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if path.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
            path.pop();
        }
        if !path.iter().any(|part| part == "tests") {
            modules.insert(path, fs::read_to_string(file)?);
        }
    }
    let mut edges: Edges<'_> = BTreeMap::new();
    for (from, text) in &modules {
        for path in imports(from, text) {
            let known = (0..=path.len()).rev().map(|length| &path[..length]);
            let to = known.into_iter().find_map(|path| modules.get_key_value(path));
            if let Some((to, _)) = to.filter(|(to, _)| !from.starts_with(to)) {
                edges.entry(from).or_default().insert(to);
            }
        }
    }
    let all: Edges<'_> = edges.keys().map(|from| (*from, reached(from, &edges))).collect();
    let mut found = BTreeSet::new();
    for (from, to) in &all {
        let circle: Vec<String> = to
            .iter()
            .filter(|other| to.contains(from) && all.get(**other).is_some_and(|o| o.contains(from)))
            .map(|module| module.join("/"))
            .collect();
        let known = |name: &String| CIRCLES.contains(&format!("{src}/{name}").as_str());
        if !circle.is_empty() && !circle.iter().all(known) {
            found.insert(format!("{src}: import each other in a circle: {}", circle.join(", ")));
        }
    }
    Ok(found.into_iter().collect())
}

/// Modules by path, and what each imports.
type Edges<'a> = BTreeMap<&'a [String], BTreeSet<&'a [String]>>;

/// All that a module imports, and what that imports.
fn reached<'a>(from: &[String], edges: &Edges<'a>) -> BTreeSet<&'a [String]> {
    let mut seen = BTreeSet::new();
    let mut next: Vec<&[String]> = edges.get(from).into_iter().flatten().copied().collect();
    while let Some(module) = next.pop() {
        for to in edges.get(module).into_iter().flatten() {
            if seen.insert(*to) {
                next.push(to);
            }
        }
    }
    // The first ones are reached, too.
    seen.extend(edges.get(from).into_iter().flatten());
    seen
}

/// What the `use` lines of a module name, as paths from the root of its crate.
fn imports(from: &[String], text: &str) -> Vec<Vec<String>> {
    let code = text.split("#[cfg(test)]\n#[allow").next().unwrap_or(text);
    let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or(code);
    let mut paths = Vec::new();
    for (at, _) in code.match_indices("use ") {
        let line = code[..at].rsplit('\n').next().unwrap_or("").trim();
        if !line.is_empty() && !line.starts_with("pub") {
            continue;
        }
        let statement = code[at + 4..].split(';').next().unwrap_or("");
        let words: String = statement.split_whitespace().collect::<Vec<_>>().join(" ");
        for path in spread(&words) {
            let mut parts = path.split("::").peekable();
            let mut full = match parts.peek() {
                Some(&"crate") => Vec::new(),
                _ => from.to_vec(),
            };
            while let Some(part) = parts.next_if(|part| ["crate", "self", "super"].contains(part)) {
                if part == "super" {
                    full.pop();
                }
            }
            full.extend(parts.map(|part| part.split(' ').next().unwrap_or(part).to_owned()));
            paths.push(full);
        }
    }
    paths
}

/// `a::{b, c::{d, e}}` as `a::b`, `a::c::d`, `a::c::e`.
fn spread(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.trim().to_owned()] };
    let inside = rest.strip_suffix('}').unwrap_or(rest);
    let (mut depth, mut part, mut parts) = (0_usize, String::new(), Vec::new());
    for c in inside.chars().chain([',']) {
        match c {
            ',' if depth == 0 => parts.push(std::mem::take(&mut part)),
            _ => {
                depth = depth + usize::from(c == '{') - usize::from(c == '}');
                part.push(c);
            }
        }
    }
    let parts = parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty());
    parts.flat_map(|part| spread(&format!("{before}{part}"))).collect()
}

/// The crates of ours that a manifest names, and whether it takes the workspace's lints.
fn manifest(name: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut section = "";
    let mut takes_lints = false;
    let mut uses = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
        } else if section.ends_with("dependencies") && section != "workspace.dependencies" {
            let key = line.split(['.', '=', ' ']).next().unwrap_or("");
            uses.extend(key.strip_prefix("dugnad-"));
        } else if section == "lints" && line == "workspace = true" {
            takes_lints = true;
        }
    }
    if !takes_lints && name != "Cargo.toml" && name != "platform/Cargo.toml" {
        wrong.push(format!("{name}: lacks [lints] workspace = true"));
    }
    let may: &[&str] = if let Some(rest) = name.strip_prefix("layers/") {
        let layer = rest.split('/').next().unwrap_or("");
        &LAYERS[..LAYERS.iter().position(|known| *known == layer).unwrap_or(0)]
    } else if name == "platform/Cargo.toml" {
        &[]
    } else if name == "tests/sim/Cargo.toml" {
        // No host, no agent: what ships must not need them to be simulated. The proofs do not
        // either.
        uses.retain(|used| *used != "proof");
        &LAYERS
    } else {
        return wrong;
    };
    for used in uses.into_iter().filter(|used| !may.contains(used)) {
        wrong.push(format!("{name}: may not import dugnad-{used}"));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_imports_only_those_before_it() {
        let text = "[lints]\nworkspace = true\n[dependencies]\ndugnad-kernel.workspace = true\n\
                    dugnad-node = { path = \"../node\" }\nserde.workspace = true\n";
        let wrong = manifest("layers/fabric/Cargo.toml", text);
        assert_eq!(wrong, ["layers/fabric/Cargo.toml: may not import dugnad-node"]);
        assert!(manifest("agent/Cargo.toml", text).is_empty());
        assert_eq!(manifest("platform/Cargo.toml", text).len(), 2);
        assert_eq!(manifest("agent/Cargo.toml", "[dependencies]\n").len(), 1);
    }

    #[test]
    fn comments_blanks_and_tests_are_no_code() {
        let text = "//! Why.\n\nuse a;\n#[cfg(test)]\nmod tests;\nfn f() {\n    // so\n}\n\
                    #[cfg(test)]\n#[allow(unused)]\nmod more {\n    fn g() {}\n}\n";
        assert_eq!(code_lines(text), 5);
    }

    #[test]
    fn functions_are_short() {
        let long = |lines| {
            format!("impl A {{\n    pub(super) async fn f(\n{}    }}\n}}\n", "\n".repeat(lines))
        };
        assert!(functions("f", &long(FUNCTION_MAX - 3)).is_empty());
        let wrong = functions("f", &long(FUNCTION_MAX));
        assert_eq!(wrong, ["f:2: f has 72 lines, at most 70: split it"]);
        assert!(functions("f", "fn a() {}\ntrait T {\n    fn b();\n}\n").is_empty());
    }

    #[test]
    fn a_section_that_is_not_there_is_found() {
        let known = sections("# The protocol\n## 2. Ring\n### 2.4 Points\n### 3.1 Pointers\n");
        assert_eq!(known, ["2", "2.4", "3.1"]);
        let of = |text: &str| references("f", text, &known).len();
        assert_eq!(of("// see PROTOCOL.md 2.4, I-OWN; 9 of 10"), 0);
        assert_eq!(of("// (PROTOCOL.md 2.4, 3.1-3.4; Ghodsi p. 57)"), 1);
        assert_eq!(of("// T2.1 of PROTOCOL.md 2.12."), 1);
    }

    #[test]
    fn imports_are_paths_from_the_root() {
        let from = ["a".to_owned(), "b".to_owned()];
        let text = "pub(super) use super::c::{D, e::{f, G as H}};\nuse crate::x;\nuse self::y::z;\n\
                    // use nothing;\n#[cfg(test)]\nmod tests {\n    use crate::never;\n}\n";
        let all: Vec<String> = imports(&from, text).iter().map(|path| path.join("::")).collect();
        assert_eq!(all, ["a::c::D", "a::c::e::f", "a::c::e::G", "x", "a::b::y::z"]);
    }

    #[test]
    fn columns_are_characters_and_words_are_found() {
        assert!(columns("f", &"ä".repeat(100)).is_empty());
        assert_eq!(columns("f", &"a".repeat(101)).len(), 1);
        assert_eq!(words("f", &format!("fine\nlet a = {});", NEVER[0])).len(), 1);
        assert_eq!(words("f", &format!("at {}me/dugnad", MACHINE_PATHS[1])).len(), 1);
    }
}
