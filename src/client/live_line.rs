//! The unfinished line at the end of a terminal, redrawn in place as it grows.
//!
//! A carriage return starts the line again, as a progress bar does: only the text after the last one is
//! shown. Only the unfinished line that changed last is drawn, cut to the width of the terminal so that it
//! never wraps. Finished lines are printed above it, whole. Control characters are escaped.

use std::collections::BTreeMap;
use std::io::{self, Write};

use memchr::memrchr;

use super::lines::{LineId, Piece};
use super::terminal::{RESET, escape_line};

/// Erases the row of the cursor.
const ERASE_ROW: &[u8] = b"\r\x1b[K";

/// Most bytes held of an unfinished line. When a line exceeds it, the held part is printed, and the rest
/// becomes a line of its own.
const HELD_MAX_BYTES: usize = 64 * 1024;

/// Unfinished lines, of which the newest is drawn.
#[derive(Debug)]
pub(super) struct LiveLine {
    columns: fn() -> usize,
    /// Text of each unfinished line after its last carriage return.
    texts: BTreeMap<LineId, Vec<u8>>,
    /// Line that changed last.
    newest: Option<LineId>,
    /// Whether a row is drawn; the cursor is in it.
    is_drawn: bool,
    /// Whether the drawn row is out of date.
    is_stale: bool,
}

// === impl LiveLine ===

impl LiveLine {
    /// Creates a live line for a terminal with this many columns, which may change.
    pub(super) fn new(columns: fn() -> usize) -> Self {
        Self { columns, texts: BTreeMap::new(), newest: None, is_drawn: false, is_stale: false }
    }

    /// Takes a piece. Returns the text to print if the line is finished or too long to hold.
    pub(super) fn push(&mut self, id: &LineId, piece: Piece<'_>) -> Option<Vec<u8>> {
        let mut text = self.texts.remove(id).unwrap_or_default();
        text.extend_from_slice(piece.bytes);
        drop_overwritten(&mut text);
        self.is_stale = true;
        if piece.last || text.len() > HELD_MAX_BYTES {
            if self.newest.as_ref() == Some(id) {
                self.newest = self.texts.keys().next_back().cloned();
            }
            // The rest of a partly printed line may be empty.
            return (piece.first || !text.is_empty()).then_some(text);
        }
        self.texts.insert(id.clone(), text);
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
        let Some((id, text)) = self.newest.as_ref().and_then(|id| self.texts.get_key_value(id)) else {
            return Ok(());
        };
        let (mut row, used) = prefix(id);
        let mut safe = Vec::with_capacity(text.len());
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
            assert_eq!(line.push(&id("a"), piece(bytes, false)), None);
            line.draw(&mut out, prefix).unwrap();
        }
        // Unchanged, so not drawn again.
        line.draw(&mut out, prefix).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "a| 1 %\r\x1b[Ka| 3 %\r\x1b[Ka| 4 %");
        assert_eq!(line.push(&id("a"), piece(b"\r100 %", true)), Some(b"100 %".to_vec()));
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
            line.push(&id("a"), Piece { bytes: &[b"\r", text].concat(), first: false, last: false });
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
            printed += line.push(&id("a"), piece(&[b'x'; 1_000], false)).map_or(0, |text| text.len());
        }
        assert_eq!(printed, 66_000);
        assert_eq!(line.texts.len(), 1);
    }
}
