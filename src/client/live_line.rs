//! The unfinished line at the end of a terminal: drawn at once, and drawn anew in place as it grows.
//!
//! A carriage return begins a line anew, as a progress bar does: only the text behind the last one is shown. Control characters of the
//! container never act on the terminal. One unfinished line is shown at a time, the one that changed last, cut to the width of the
//! terminal so that it never wraps. Finished lines are printed above it, whole.

use std::collections::BTreeMap;
use std::io::{self, Write};

use memchr::memrchr;

use super::lines::{LineId, Piece};
use super::terminal::neutralise;

/// Takes away the row that the cursor is in.
const ERASE_ROW: &[u8] = b"\r\x1b[K";

/// Switches all colours off.
const RESET: &[u8] = b"\x1b[0m";

/// Most bytes of an unfinished line that are held. A longer one is printed as far as it came, and its rest as a line of its own.
const HELD_MAX_BYTES: usize = 64 * 1024;

/// Unfinished lines, and which of them is drawn.
#[derive(Debug)]
pub(super) struct LiveLine {
    columns: fn() -> usize,
    /// The text of each unfinished line behind its last carriage return.
    texts: BTreeMap<LineId, Vec<u8>>,
    /// The line that changed last.
    newest: Option<LineId>,
    /// Whether the cursor is in a row that is drawn.
    is_drawn: bool,
    /// Whether the drawn row is out of date.
    is_stale: bool,
}

// === impl LiveLine ===

impl LiveLine {
    /// On a terminal with so many `columns`, which may change.
    pub(super) fn new(columns: fn() -> usize) -> Self {
        Self { columns, texts: BTreeMap::new(), newest: None, is_drawn: false, is_stale: false }
    }

    /// Takes a piece. Returns the text to print if the line ends with it, or cannot be held.
    pub(super) fn push(&mut self, id: &LineId, piece: Piece<'_>) -> Option<Vec<u8>> {
        let mut text = self.texts.remove(id).unwrap_or_default();
        text.extend_from_slice(piece.bytes);
        begin_anew(&mut text);
        self.is_stale = true;
        if piece.last || text.len() > HELD_MAX_BYTES {
            if self.newest.as_ref() == Some(id) {
                self.newest = self.texts.keys().next_back().cloned();
            }
            // The rest of a line that was printed in part may be empty.
            return (piece.first || !text.is_empty()).then_some(text);
        }
        self.texts.insert(id.clone(), text);
        self.newest = Some(id.clone());
        None
    }

    /// Takes away the row that is drawn, so that something else can be printed there.
    pub(super) fn erase(&mut self, out: &mut impl Write) -> io::Result<()> {
        self.is_stale = true;
        if std::mem::take(&mut self.is_drawn) { out.write_all(ERASE_ROW) } else { Ok(()) }
    }

    /// Draws the line that changed last, behind the prefix that `prefix` gives for it: its bytes, and its columns.
    pub(super) fn draw(
        &mut self,
        out: &mut impl Write,
        prefix: impl FnOnce(&LineId) -> (Vec<u8>, usize),
    ) -> io::Result<()> {
        if !std::mem::take(&mut self.is_stale) {
            return Ok(());
        }
        self.erase(out)?;
        self.is_stale = false;
        let Some((id, text)) = self.newest.as_ref().and_then(|id| self.texts.get_key_value(id)) else {
            return Ok(());
        };
        let (mut row, used) = prefix(id);
        let mut safe = Vec::with_capacity(text.len());
        neutralise(text.strip_suffix(b"\r").unwrap_or(text), &mut safe);
        // The last column stays free: a cursor behind it may stand in the next row.
        cut(&String::from_utf8_lossy(&safe), (self.columns)().saturating_sub(used + 1), &mut row);
        self.is_drawn = true;
        out.write_all(&row)
    }
}

/// Drops everything before the last carriage return that has something behind it.
fn begin_anew(text: &mut Vec<u8>) {
    let behind = text.len().saturating_sub(1);
    if let Some(at) = memrchr(b'\r', &text[..behind]) {
        text.drain(..=at);
    }
}

/// Appends as much of `text`, which is safe to show, as fits into so many columns. What is not ASCII counts as two.
fn cut(text: &str, columns: usize, row: &mut Vec<u8>) {
    let mut left = columns;
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        if next == '\x1b' {
            // A colour: nothing else is left by `neutralise`.
            let end = rest.find('m').map_or(rest.len(), |end| end + 1);
            row.extend_from_slice(&rest.as_bytes()[..end]);
            rest = &rest[end..];
            continue;
        }
        // A tab is as wide as it likes.
        let (shown, width) =
            if next == '\t' { (' ', 1) } else { (next, if next.is_ascii() { 1 } else { 2 }) };
        let Some(after) = left.checked_sub(width) else { break };
        left = after;
        row.extend_from_slice(shown.encode_utf8(&mut [0; 4]).as_bytes());
        rest = &rest[next.len_utf8()..];
    }
    if text.contains('\x1b') {
        row.extend_from_slice(RESET);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> LineId {
        ((name.to_owned(), 0), 1)
    }

    fn prefix(id: &LineId) -> (Vec<u8>, usize) {
        (format!("{}|", id.0.0).into_bytes(), 2)
    }

    fn piece(bytes: &[u8], last: bool) -> Piece<'_> {
        Piece { bytes, first: false, last }
    }

    #[test]
    fn progress_bar_shows_its_last_state() {
        let mut line = LiveLine::new(|| 12);
        let mut out = Vec::new();
        for bytes in [&b"\r 1 %"[..], b"\r 2 %\r 3 %\r", b"\r\x1b[2J\r 4 %"] {
            assert_eq!(line.push(&id("a"), piece(bytes, false)), None);
            line.draw(&mut out, prefix).unwrap();
        }
        // Nothing new: not drawn again.
        line.draw(&mut out, prefix).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "a| 1 %\r\x1b[Ka| 3 %\r\x1b[Ka| 4 %");
        assert_eq!(line.push(&id("a"), piece(b"\r100 %", true)), Some(b"100 %".to_vec()));
    }

    #[test]
    fn row_never_wraps_and_nothing_steers_the_terminal() {
        let mut line = LiveLine::new(|| 10);
        for (text, shown) in [
            (&b"0123456789"[..], "a|0123456"),
            ("äöü€🦀".as_bytes(), "a|äöü"),
            (b"\x1b[2J\x1b]0;x\x07", "a|^[[2J^["),
            (b"\x1b[31mred\x1b[0m and", "a|\x1b[31mred\x1b[0m and\x1b[0m"),
        ] {
            let mut out = Vec::new();
            line.push(&id("a"), Piece { bytes: &[b"\r", text].concat(), first: false, last: false });
            line.is_drawn = false;
            line.draw(&mut out, prefix).unwrap();
            assert_eq!(String::from_utf8(out).unwrap().replace("\x1b[0m\x1b[0m", "\x1b[0m"), shown);
        }
    }

    #[test]
    fn line_without_end_is_printed_in_bounded_memory() {
        let mut line = LiveLine::new(|| 80);
        let mut printed = 0;
        for _ in 0..100 {
            printed += line.push(&id("a"), piece(&[b'x'; 1_000], false)).map_or(0, |text| text.len());
        }
        assert_eq!(printed, 66_000);
        assert_eq!(line.texts.len(), 1);
    }
}
