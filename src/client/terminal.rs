//! What a line may do to a terminal: show text and colours, and nothing else.
//!
//! A container's output is not its reader's to trust: escape sequences can rewrite what stands above, set the title, or
//! answer as if typed. So on a terminal everything that steers it is shown instead of obeyed, but for colours (SGR), the tab,
//! and a carriage return at the end of a line. What is not a terminal gets every byte as it is.

/// Switches all colours off.
const RESET: &[u8] = b"\x1b[0m";

/// Longest colour sequence that is let through, in bytes: 24-bit foreground and background with attributes.
const SGR_MAX_BYTES: usize = 64;

/// Appends `line` (with its newline, if it has one) to `out`, made harmless.
pub(super) fn neutralise(line: &[u8], out: &mut Vec<u8>) {
    let (text, end) = match line {
        [text @ .., b'\r', b'\n'] => (text, &b"\r\n"[..]),
        [text @ .., b'\n'] => (text, &b"\n"[..]),
        text => (text, &b""[..]),
    };
    let mut coloured = false;
    for chunk in text.utf8_chunks() {
        let mut rest = chunk.valid();
        while let Some(next) = rest.chars().next() {
            let taken = if let Some(sequence) = sgr(rest) {
                coloured = true;
                out.extend_from_slice(sequence.as_bytes());
                sequence.len()
            } else {
                show(next, out);
                next.len_utf8()
            };
            rest = rest.get(taken..).unwrap_or_default();
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    if coloured {
        out.extend_from_slice(RESET);
    }
    out.extend_from_slice(end);
}

/// Returns `text`, which may have several lines, made harmless.
pub fn harmless(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        neutralise(line.as_bytes(), &mut out);
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The colour sequence that `text` begins with, if it does.
fn sgr(text: &str) -> Option<&str> {
    let parameters = text.strip_prefix("\x1b[")?;
    let end = parameters.find(|c: char| !matches!(c, '0'..='9' | ';' | ':'))?;
    let whole = "\x1b[".len() + end + 1;
    (parameters[end..].starts_with('m') && whole <= SGR_MAX_BYTES).then(|| &text[..whole])
}

/// Whether `c` steers a terminal though it is not ASCII: C1 controls, and the embeddings, overrides and isolates that reorder the
/// text around them.
pub(super) fn steers_beyond_ascii(c: char) -> bool {
    matches!(c, '\u{80}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn show(c: char, out: &mut Vec<u8>) {
    match c {
        '\t' => out.push(b'\t'),
        // As `cat -v` does: ^[ for escape, ^? for delete.
        '\0'..='\x1f' | '\x7f' => out.extend_from_slice(&[b'^', (c as u8) ^ 0x40]),
        c if steers_beyond_ascii(c) => {
            out.extend_from_slice(format!("<U+{:04X}>", c as u32).as_bytes());
        }
        _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(line: &[u8]) -> String {
        let mut out = Vec::new();
        neutralise(line, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_and_colours_pass() {
        for same in ["plain\n", "tab\there\n", "crlf\r\n", "häßlich 🦀\n", "no newline", "", "\n"] {
            assert_eq!(shown(same.as_bytes()), same);
        }
        assert_eq!(shown(b"\x1b[1;31mred\x1b[0m\n"), "\x1b[1;31mred\x1b[0m\x1b[0m\n");
        assert_eq!(shown(b"\x1b[38;2;1;2;3mrgb\n"), "\x1b[38;2;1;2;3mrgb\x1b[0m\n");
    }

    #[test]
    fn what_steers_is_shown() {
        assert_eq!(shown(b"\x1b]0;title\x07\n"), "^[]0;title^G\n");
        assert_eq!(shown(b"\x1b[2Jgone\n"), "^[[2Jgone\n");
        assert_eq!(shown(b"over\rwrite\n"), "over^Mwrite\n");
        assert_eq!(shown(b"\x1b[31\n"), "^[[31\n");
        assert_eq!(shown("\u{9b}2J\u{202e}\n".as_bytes()), "<U+009B>2J<U+202E>\n");
        assert_eq!(shown(b"bad \xff\xfe utf\n"), "bad \u{fffd}\u{fffd} utf\n");
        let long = format!("\x1b[{}m\n", "1;".repeat(50));
        assert!(shown(long.as_bytes()).starts_with("^[["));
    }

    #[test]
    fn lines_of_a_text_are_neutralised_one_by_one() {
        assert_eq!(harmless("a \x1b[2J\n\u{9b}b\r\n\u{202e}c"), "a ^[[2J\n<U+009B>b\r\n<U+202E>c");
    }

    proptest! {
        #[test]
        fn no_escape_but_colours_ever(line in proptest::collection::vec(prop_oneof![
            Just(0x1b_u8), Just(b'['), Just(b'm'), Just(b';'), Just(b'3'), Just(0x9b), Just(0xc2), any::<u8>()
        ], 0..60)) {
            let shown = shown(&line);
            for (at, _) in shown.match_indices('\x1b') {
                let rest = &shown[at + 1..];
                let end = rest.find(|c: char| !"[;:0123456789".contains(c)).unwrap();
                prop_assert!(rest.starts_with('[') && rest[end..].starts_with('m'), "{shown:?}");
            }
        }
    }
}
