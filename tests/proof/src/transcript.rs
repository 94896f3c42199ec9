//! Texts that tell a scenario, compared with what is kept of them.

use std::path::Path;

/// Compares `text` with `folder/name.txt`, or writes it if `TRANSCRIPT` is `write`.
///
/// # Panics
/// If they differ, naming the line and the command that writes it anew.
pub fn check(folder: &Path, name: &str, about: &str, text: &str, package: &str) {
    let file = folder.join(format!("{name}.txt"));
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let text = format!("{}\n\n{}\n", wrapped(about), lines.join("\n").trim_start());
    if std::env::var("TRANSCRIPT").is_ok_and(|what| what == "write") {
        assert!(std::fs::write(&file, text).is_ok(), "cannot write {}", file.display());
        return;
    }
    let known = std::fs::read_to_string(&file).unwrap_or_default();
    let differ = text.lines().zip(known.lines()).position(|(new, old)| new != old);
    let at = differ.unwrap_or_else(|| text.lines().count().min(known.lines().count()));
    assert!(
        text == known,
        "{} differs in line {}:\n  it was  {}\n  it is   {}\nIf that is right, write it anew: \
         TRANSCRIPT=write cargo test --profile sim -p {package} --test transcripts",
        file.display(),
        at + 1,
        known.lines().nth(at).unwrap_or("(no more)"),
        text.lines().nth(at).unwrap_or("(no more)"),
    );
}

/// In lines of 90 columns.
fn wrapped(text: &str) -> String {
    let (mut out, mut column) = (String::new(), 0);
    for word in text.split_whitespace() {
        let fits = column + word.len() < 90;
        let between = if fits { " " } else { "\n" };
        out.push_str(if column == 0 { "" } else { between });
        out.push_str(word);
        column = word.len() + if fits { column + 1 } else { 0 };
    }
    out
}
