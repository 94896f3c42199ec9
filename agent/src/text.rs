//! Text that came from elsewhere, made fit to be shown.

/// The text without control characters.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The same as one line of a log.
pub(crate) fn one_line(text: &str) -> String {
    plain(&text.trim_end().replace('\n', " | "))
}

/// Percent-decoding of a path. `None` for what no part of one can be called.
pub(crate) fn percent_decode(raw: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        let byte = u8::try_from(high * 16 + low).ok()?;
        // An encoded slash is not a separator, and no name holds one.
        if byte == b'/' || byte == 0 {
            return None;
        }
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok()
}

/// A path as it stands in a URL: what is no letter, digit or one of `-._~/` is encoded.
pub(crate) fn percent_encode(path: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing into a String cannot fail.
            let _: Result<(), std::fmt::Error> = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_log_moves_the_cursor() {
        let seen = one_line("a\x1b[2Jb\r\u{9b}31m\nc\n");
        assert_eq!(seen, "a?[2Jb??31m | c");
    }

    #[test]
    fn paths_are_decoded_once() {
        assert_eq!(percent_decode("/bl%C3%A5/%e5%b1%b1").as_deref(), Some("/blå/山"));
        assert_eq!(percent_decode("/%252e").as_deref(), Some("/%2e"));
        for bad in ["/..%2fetc", "/a%00", "/%", "/%4", "/%zz", "/%ff"] {
            assert_eq!(percent_decode(bad), None, "{bad}");
        }
        for path in ["notes/a b?c#d%", "blå/山", "x/~y-._"] {
            assert_eq!(percent_decode(&percent_encode(path)).as_deref(), Some(path));
        }
        assert_eq!(percent_encode("a b/ø"), "a%20b/%C3%B8");
    }
}
