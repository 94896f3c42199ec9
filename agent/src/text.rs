//! Text that came from elsewhere, made fit to be shown.

/// The text without control characters.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The same as one line of a log.
pub(crate) fn one_line(text: &str) -> String {
    plain(&text.trim_end().replace('\n', " | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_log_moves_the_cursor() {
        let seen = one_line("a\x1b[2Jb\r\u{9b}31m\nc\n");
        assert_eq!(seen, "a?[2Jb??31m | c");
    }
}
