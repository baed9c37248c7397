//! Text on a terminal: escapes of control characters, so that text cannot control it, and widths in columns.
//!
//! Output of a container is untrusted: escape sequences can overwrite earlier lines, set the title, or send
//! answers as if typed. On a terminal only colours (SGR), tabs and a carriage return at the end of a line
//! take effect; other control characters are shown as text.

use std::io::{self, Write};
use std::ops::Range;

use unicode_width::UnicodeWidthChar as _;

/// Switches all colours off.
pub(super) const RESET: &[u8] = b"\x1b[0m";

/// Erases the row of the cursor.
pub(super) const ERASE_ROW: &[u8] = b"\r\x1b[K";

/// Longest colour sequence that passes: 24-bit foreground and background with attributes.
const SGR_MAX_BYTES: usize = 64;

/// Selects the wide, coloured form of the preceding character.
const EMOJI_PRESENTATION: char = '\u{fe0f}';

/// Switches the highlight on and off. Reverse video changes no colour of the line, and is visible without
/// colours.
const HIGHLIGHT: (&[u8], &[u8]) = (b"\x1b[7m", b"\x1b[27m");

/// A part of a line that has one effect on a terminal.
#[derive(Clone, Copy, Debug)]
enum Item<'a> {
    /// A colour sequence.
    Sgr(&'a str),
    Char(char),
    /// Bytes that are not UTF-8.
    Invalid(&'a [u8]),
}

/// Switches the highlight of a line's parts on and off.
#[derive(Debug)]
struct Marker<'a> {
    /// Ranges of bytes that are to be highlighted and end after the current part.
    spans: &'a [Range<usize>],
    is_on: bool,
}

/// Appends `line`, which may end with a newline, to `out` with its control characters escaped.
pub(super) fn escape_line(line: &[u8], out: &mut Vec<u8>) {
    escape_marked(line, &[], out);
}

/// The same, with `spans` highlighted: sorted ranges of bytes that do not overlap. They may begin or end
/// within an escape sequence or a character, which is then highlighted as a whole.
pub(super) fn escape_marked(line: &[u8], spans: &[Range<usize>], out: &mut Vec<u8>) {
    let (text, end) = match line {
        [text @ .., b'\r', b'\n'] => (text, &b"\r\n"[..]),
        [text @ .., b'\n'] => (text, &b"\n"[..]),
        text => (text, &b""[..]),
    };
    let mut coloured = false;
    let mut marker = Marker { spans, is_on: false };
    each_item(text, |at, item| {
        marker.before(&at, item, out);
        match item {
            Item::Sgr(sequence) => {
                coloured = true;
                out.extend_from_slice(sequence.as_bytes());
                marker.after_colour(out);
            }
            Item::Char(c) => push_escaped(c, out),
            Item::Invalid(_) => out.extend_from_slice("\u{fffd}".as_bytes()),
        }
    });
    marker.finish(out);
    if coloured {
        out.extend_from_slice(RESET);
    }
    out.extend_from_slice(end);
}

/// Appends `line` with `spans` highlighted and nothing escaped, for outputs that are not a terminal. The
/// highlight never begins or ends within a colour sequence or a character.
pub(super) fn mark(line: &[u8], spans: &[Range<usize>], out: &mut Vec<u8>) {
    let mut marker = Marker { spans, is_on: false };
    each_item(line, |at, item| {
        marker.before(&at, item, out);
        match item {
            Item::Sgr(sequence) => {
                out.extend_from_slice(sequence.as_bytes());
                marker.after_colour(out);
            }
            Item::Char(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            Item::Invalid(bytes) => out.extend_from_slice(bytes),
        }
    });
    marker.finish(out);
}

/// Calls `take` with the parts of `text` and their ranges of bytes.
fn each_item(text: &[u8], mut take: impl FnMut(Range<usize>, Item<'_>)) {
    let mut at = 0;
    for chunk in text.utf8_chunks() {
        let mut rest = chunk.valid();
        while let Some(next) = rest.chars().next() {
            let (item, length) = match sgr(rest) {
                Some(sequence) => (Item::Sgr(sequence), sequence.len()),
                None => (Item::Char(next), next.len_utf8()),
            };
            take(at..at + length, item);
            at += length;
            rest = rest.get(length..).unwrap_or_default();
        }
        let invalid = chunk.invalid();
        if !invalid.is_empty() {
            take(at..at + invalid.len(), Item::Invalid(invalid));
            at += invalid.len();
        }
    }
}

// === impl Marker ===

impl Marker<'_> {
    /// Appends what has to precede the part at `at`. A colour sequence has no width, so the highlight does
    /// not change at it.
    fn before(&mut self, at: &Range<usize>, item: Item<'_>, out: &mut Vec<u8>) {
        if matches!(item, Item::Sgr(_)) || (self.spans.is_empty() && !self.is_on) {
            return;
        }
        let passed = self.spans.iter().take_while(|span| span.end <= at.start).count();
        self.spans = self.spans.get(passed..).unwrap_or_default();
        let is_on = self.spans.first().is_some_and(|span| span.start < at.end);
        if is_on != std::mem::replace(&mut self.is_on, is_on) {
            out.extend_from_slice(if is_on { HIGHLIGHT.0 } else { HIGHLIGHT.1 });
        }
    }

    /// Switches the highlight on again, which a colour sequence may have switched off.
    fn after_colour(&self, out: &mut Vec<u8>) {
        if self.is_on {
            out.extend_from_slice(HIGHLIGHT.0);
        }
    }

    fn finish(self, out: &mut Vec<u8>) {
        if self.is_on {
            out.extend_from_slice(HIGHLIGHT.1);
        }
    }
}

/// Escapes the control characters of `text`, which may have several lines.
pub fn escape(text: &str) -> String {
    text.split_inclusive('\n').map(escape_to_line).collect()
}

/// Escapes the control characters of `text`, a newline within it included.
pub(super) fn escape_to_line(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    escape_line(text.as_bytes(), &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// Writes a message of the program to `err`, as one line.
pub(super) fn write_message(err: &mut (impl Write + ?Sized), text: &str) -> io::Result<()> {
    writeln!(err, "leasemux: {}", escape_to_line(text))
}

/// Returns the colour sequence at the start of `text`.
fn sgr(text: &str) -> Option<&str> {
    let parameters = text.strip_prefix("\x1b[")?;
    let end = parameters.find(|c: char| !matches!(c, '0'..='9' | ';' | ':'))?;
    let whole = "\x1b[".len() + end + 1;
    (parameters[end..].starts_with('m') && whole <= SGR_MAX_BYTES).then(|| &text[..whole])
}

/// Returns whether `c` controls a terminal without being ASCII: C1 controls, and the embeddings, overrides
/// and isolates that reorder the text around them.
pub(super) fn is_non_ascii_control(c: char) -> bool {
    matches!(c, '\u{80}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn push_escaped(c: char, out: &mut Vec<u8>) {
    match c {
        '\t' => out.push(b'\t'),
        // As `cat -v`: ^[ for escape, ^? for delete.
        '\0'..='\x1f' | '\x7f' => out.extend_from_slice(&[b'^', (c as u8) ^ 0x40]),
        c if is_non_ascii_control(c) => {
            out.extend_from_slice(format!("<U+{:04X}>", c as u32).as_bytes());
        }
        _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

/// Returns an upper bound of the columns that `text`, which must be escaped, takes.
///
/// Sequences of emoji count as their parts: some terminals draw one glyph, others draw every part. Too many
/// columns only leave space; too few wrap the line, which is then not erased.
pub(super) fn columns(text: &str) -> usize {
    text.chars().map(of_char).sum()
}

/// Returns `text`, cut with an ellipsis if it does not fit into `columns`.
pub(super) fn cut(text: &str, columns: usize) -> String {
    let mut used = 0;
    // End of the text that leaves room for the ellipsis.
    let mut end = 0;
    for (at, c) in text.char_indices() {
        used += of_char(c);
        if used > columns {
            return format!("{}…", &text[..end]);
        }
        if used < columns {
            end = at + c.len_utf8();
        }
    }
    text.to_owned()
}

fn of_char(c: char) -> usize {
    if c == EMOJI_PRESENTATION { 1 } else { c.width().unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(line: &[u8]) -> String {
        let mut out = Vec::new();
        escape_line(line, &mut out);
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
    fn control_characters_are_escaped() {
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
    #[expect(clippy::single_range_in_vec_init, reason = "lists of ranges")]
    fn highlight_keeps_escapes_and_colours_whole() {
        type Case = (&'static [u8], &'static [Range<usize>], &'static str);
        let cases: [Case; 7] = [
            (b"an error here\n", &[3..8], "an <error> here\n"),
            // Begins within a character, ends within another.
            ("aäöb".as_bytes(), &[2..4], "a<äö>b"),
            // An escaped sequence is not a colour; each of its characters is one part.
            (b"a\x1b[2Jb", &[1..3], "a<^[[>2Jb"),
            // Begins within a colour, and covers another that would end it.
            (b"\x1b[31mred\x1b[0m end", &[2..15], "\x1b[31m<red\x1b[0m< en>d\x1b[0m"),
            // Only the bytes of a colour.
            (b"x\x1b[31my", &[1..6], "x\x1b[31my\x1b[0m"),
            (b"a\xff\xfeb\r\n", &[1..2, 3..4], "a<\u{fffd}>\u{fffd}<b>\r\n"),
            (b"aab", &[0..1, 1..2], "<aa>b"),
        ];
        for (line, spans, expected) in cases {
            let expected = expected.replace('<', "\x1b[7m").replace('>', "\x1b[27m");
            let (mut out, mut plain) = (Vec::new(), Vec::new());
            escape_marked(line, spans, &mut out);
            assert_eq!(String::from_utf8(out.clone()).unwrap(), expected, "{line:?}");
            mark(line, spans, &mut plain);
            let marks = |bytes: &[u8]| memchr::memmem::find_iter(bytes, b"\x1b[7m").count();
            assert_eq!(marks(&plain), marks(&out), "{line:?}");
            let mut without = String::from_utf8_lossy(&plain).replace("\x1b[7m", "");
            without = without.replace("\x1b[27m", "");
            assert_eq!(without, String::from_utf8_lossy(line));
        }
    }

    proptest! {
        #[test]
        fn highlight_adds_no_other_sequence(
            line in proptest::collection::vec(prop_oneof![
                Just(0x1b_u8), Just(b'['), Just(b'm'), Just(b';'), Just(b'3'), Just(0x9b), Just(0xc2), any::<u8>()
            ], 0..40),
            cuts in proptest::collection::btree_set(0..40_usize, 0..8),
        ) {
            let cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut <= line.len()).collect();
            let spans: Vec<_> = cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
            let (mut out, mut plain) = (Vec::new(), Vec::new());
            escape_marked(&line, &spans, &mut out);
            escape_line(&line, &mut plain);
            // Those of the line itself are the same with and without.
            let without = |bytes: &[u8]| {
                String::from_utf8(bytes.to_vec()).unwrap().replace("\x1b[7m", "").replace("\x1b[27m", "")
            };
            prop_assert_eq!(without(&out), without(&plain));
        }
    }

    #[test]
    fn text_is_escaped_line_by_line() {
        assert_eq!(escape("a \x1b[2J\n\u{9b}b\r\n\u{202e}c"), "a ^[[2J\n<U+009B>b\r\n<U+202E>c");
    }

    proptest! {
        #[test]
        fn no_escape_sequence_but_colours_passes(line in proptest::collection::vec(prop_oneof![
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

    #[test]
    fn columns_match_terminals() {
        for (text, expected) in [
            ("", 0),
            ("abc…", 4),
            ("日本語", 6),
            ("e\u{301}", 1),
            ("\u{1f980}", 2),
            ("\u{2764}\u{fe0f}", 2),
            ("ｱﾊﾟ", 3),
            ("Ａ", 2),
        ] {
            assert_eq!(columns(text), expected, "{text}");
        }
    }

    #[test]
    fn text_is_cut_by_columns() {
        for (text, room, expected) in [
            ("abc", 3, "abc"),
            ("abcd", 3, "ab…"),
            ("日本語", 6, "日本語"),
            ("日本語", 5, "日本…"),
            ("日本語", 4, "日…"),
            ("日本語", 1, "…"),
            ("e\u{301}e\u{301}e\u{301}", 2, "e\u{301}…"),
            ("abc", 0, "…"),
        ] {
            assert_eq!(cut(text, room), expected, "{text} in {room}");
        }
    }
}
