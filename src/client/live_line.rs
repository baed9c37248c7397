//! The unfinished line at the end of a terminal, redrawn in place as it grows.
//!
//! A carriage return starts the line again, as a progress bar does: only the text after the last one is
//! shown. Only the unfinished line that changed last is drawn, cut to the width of the terminal so that it
//! never wraps. Finished lines are printed above it, whole. Control characters are escaped.

use std::collections::BTreeMap;
use std::io::{self, Write};

use memchr::memrchr;

use super::lines::{LineId, Piece};
use super::terminal::{ERASE_ROW, RESET, escape_line};

/// Most bytes held of an unfinished line. When a line exceeds it, the held part is printed, and the rest
/// becomes a line of its own.
const HELD_MAX_BYTES: usize = 64 * 1024;

/// Unfinished lines, of which the newest is drawn.
#[derive(Debug)]
pub(super) struct LiveLine {
    columns: fn() -> usize,
    rows: BTreeMap<LineId, Row>,
    /// Line that changed last.
    newest: Option<LineId>,
    /// Whether a row is drawn; the cursor is in it.
    is_drawn: bool,
    /// Whether the drawn row is out of date.
    is_stale: bool,
}

/// An unfinished line, or a finished one to print.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    /// Its time with the space after it, if lines have times. Carriage returns do not overwrite it.
    pub(super) time: String,
    /// Its text after the last carriage return.
    pub(super) text: Vec<u8>,
}

// === impl LiveLine ===

impl LiveLine {
    /// Creates a live line for a terminal with this many columns, which may change.
    pub(super) fn new(columns: fn() -> usize) -> Self {
        Self { columns, rows: BTreeMap::new(), newest: None, is_drawn: false, is_stale: false }
    }

    /// Takes a piece, and the time of its line if it is the first one. Returns what to print if the line is
    /// finished or too long to hold.
    pub(super) fn push(&mut self, id: &LineId, time: Option<String>, piece: Piece<'_>) -> Option<Row> {
        let mut row = self.rows.remove(id).unwrap_or_default();
        row.time.extend(time);
        row.text.extend_from_slice(piece.bytes);
        drop_overwritten(&mut row.text);
        self.is_stale = true;
        if piece.last || row.text.len() > HELD_MAX_BYTES {
            if self.newest.as_ref() == Some(id) {
                self.newest = self.rows.keys().next_back().cloned();
            }
            // The rest of a partly printed line may be empty.
            return (piece.first || row != Row::default()).then_some(row);
        }
        self.rows.insert(id.clone(), row);
        self.newest = Some(id.clone());
        None
    }

    /// Erases the drawn row.
    pub(super) fn erase(&mut self, out: &mut impl Write) -> io::Result<()> {
        self.is_stale = true;
        if std::mem::take(&mut self.is_drawn) { out.write_all(ERASE_ROW) } else { Ok(()) }
    }

    /// Draws the newest line. `prefix` returns its prefix and the prefix's width in columns.
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
        let Some((id, Row { time, text })) = self.newest.as_ref().and_then(|id| self.rows.get_key_value(id))
        else {
            return Ok(());
        };
        let (mut row, used) = prefix(id);
        let mut safe = time.clone().into_bytes();
        escape_line(text.strip_suffix(b"\r").unwrap_or(text), &mut safe);
        // The last column stays free: after writing it, some terminals move the cursor to the next row.
        cut(&String::from_utf8_lossy(&safe), (self.columns)().saturating_sub(used + 1), &mut row);
        self.is_drawn = true;
        out.write_all(&row)
    }
}

/// Removes the text that a carriage return overwrites.
pub(super) fn drop_overwritten(text: &mut Vec<u8>) {
    let end = text.len().saturating_sub(1);
    if let Some(at) = memrchr(b'\r', &text[..end]) {
        text.drain(..=at);
    }
}

/// Appends as much of the escaped `text` to `row` as fits into `columns`. A character that is not ASCII
/// counts as two columns.
fn cut(text: &str, columns: usize, row: &mut Vec<u8>) {
    let mut left = columns;
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        if next == '\x1b' {
            // A colour; `escape_line` lets no other sequence pass.
            let end = rest.find('m').map_or(rest.len(), |end| end + 1);
            row.extend_from_slice(&rest.as_bytes()[..end]);
            rest = &rest[end..];
            continue;
        }
        // The width of a tab varies, so it is shown as a space.
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
            assert_eq!(line.push(&id("a"), None, piece(bytes, false)), None);
            line.draw(&mut out, prefix).unwrap();
        }
        // Unchanged, so not drawn again.
        line.draw(&mut out, prefix).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "a| 1 %\r\x1b[Ka| 3 %\r\x1b[Ka| 4 %");
        let finished = line.push(&id("a"), None, piece(b"\r100 %", true));
        assert_eq!(finished, Some(Row { time: String::new(), text: b"100 %".to_vec() }));
    }

    #[test]
    fn time_of_a_line_is_kept_and_cannot_be_overwritten() {
        let mut line = LiveLine::new(|| 12);
        let mut out = Vec::new();
        assert_eq!(line.push(&id("a"), Some("12:00 ".to_owned()), piece(b"1 %", false)), None);
        line.draw(&mut out, prefix).unwrap();
        assert_eq!(line.push(&id("a"), None, piece(b"\r13:00 2 %", false)), None);
        line.draw(&mut out, prefix).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "a|12:00 1 %\r\x1b[Ka|12:00 13:");
        let finished = line.push(&id("a"), None, piece(b"\r3 %", true));
        assert_eq!(finished, Some(Row { time: "12:00 ".to_owned(), text: b"3 %".to_vec() }));
    }

    #[test]
    fn row_never_wraps_and_is_escaped() {
        let mut line = LiveLine::new(|| 10);
        for (text, shown) in [
            (&b"0123456789"[..], "a|0123456"),
            ("äöü€🦀".as_bytes(), "a|äöü"),
            (b"\x1b[2J\x1b]0;x\x07", "a|^[[2J^["),
            (b"\x1b[31mred\x1b[0m and", "a|\x1b[31mred\x1b[0m and\x1b[0m"),
        ] {
            let mut out = Vec::new();
            line.push(&id("a"), None, Piece { bytes: &[b"\r", text].concat(), first: false, last: false });
            line.is_drawn = false;
            line.draw(&mut out, prefix).unwrap();
            assert_eq!(String::from_utf8(out).unwrap().replace("\x1b[0m\x1b[0m", "\x1b[0m"), shown);
        }
    }

    #[test]
    fn endless_line_is_held_in_bounded_memory() {
        let mut line = LiveLine::new(|| 80);
        let mut printed = 0;
        for _ in 0..100 {
            printed +=
                line.push(&id("a"), None, piece(&[b'x'; 1_000], false)).map_or(0, |row| row.text.len());
        }
        assert_eq!(printed, 66_000);
        assert_eq!(line.rows.len(), 1);
    }
}
