//! Lines out of entries: some come in pieces, and pieces of several replicas and of both streams may come by turns.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use memchr::memchr;
use tokio::time::Instant;

use crate::model::proto::lease::{LinePart, line_part};

/// A replica, as entries name it.
pub(super) type Key = (String, u32);

/// An unfinished line: the replica and the stream that it belongs to.
pub(super) type LineId = (Key, i32);

/// Most bytes of a line that are held until the line is whole. Of a longer one the pieces are passed on as they come.
const HELD_LINE_MAX_BYTES: usize = 1024 * 1024;

/// Most bytes held of all replicas' lines.
const HELD_MAX_BYTES: usize = 16 * 1024 * 1024;

/// How long a line is held until it is whole. Then its pieces are passed on: programs that read lines get almost all of them whole, and
/// a progress bar that never ends is not withheld.
const HELD_MAX: Duration = Duration::from_secs(5);

/// A line, or a piece of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    /// Its bytes; without the newline.
    pub(super) bytes: &'a [u8],
    /// Whether a line begins with it.
    pub(super) first: bool,
    /// Whether the line ends with it.
    pub(super) last: bool,
}

/// When pieces of unfinished lines are passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfinished {
    /// As they come.
    AtOnce,
    /// Once they have been held for long, or are long.
    Held,
}

/// Joins pieces to lines, for each replica and stream on its own.
#[derive(Debug)]
pub(super) struct Lines {
    mode: Unfinished,
    unfinished: BTreeMap<LineId, Line>,
    held: usize,
}

#[derive(Debug)]
struct Line {
    held: Vec<u8>,
    /// Whether pieces of the line were passed on.
    begun: bool,
    /// When it began.
    since: Instant,
}

// === impl Lines ===

impl Lines {
    /// Joins lines from nothing.
    pub(super) fn new(mode: Unfinished) -> Self {
        Self { mode, unfinished: BTreeMap::new(), held: 0 }
    }

    /// Takes what came from `key`, and passes on every line that is whole now. Without a `part` these are whole lines, or of a
    /// gateway that does not say so a piece at their end.
    pub(super) fn push(
        &mut self,
        key: &Key,
        part: Option<&LinePart>,
        data: &[u8],
        mut emit: impl FnMut(&LineId, Piece<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(part) = part else {
            return self.push_lines(key, data, &mut emit);
        };
        // A stream that is not known counts as one, so that the number of lines is bounded.
        let id = (key.clone(), part.stream().into());
        if !part.continues {
            // The line before ended without a newline.
            self.end(&id, &mut emit)?;
        }
        let bytes = data.strip_suffix(b"\n").unwrap_or(data);
        if part.more { self.push_piece(id, bytes, &mut emit) } else { self.last_piece(&id, bytes, &mut emit) }
    }

    /// The line `id` goes on no more: it ends here.
    pub(super) fn end(
        &mut self,
        id: &LineId,
        mut emit: impl FnMut(&LineId, Piece<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.unfinished.contains_key(id) {
            self.last_piece(id, b"", &mut emit)?;
        }
        Ok(())
    }

    /// The lines that are not whole.
    pub(super) fn unfinished(&self) -> Vec<LineId> {
        self.unfinished.keys().cloned().collect()
    }

    /// The lines of `key` that are not whole.
    pub(super) fn unfinished_of(&self, key: &Key) -> Vec<LineId> {
        self.unfinished.keys().filter(|(of, _)| of == key).cloned().collect()
    }

    /// When [`Lines::pass_on`] has something to do, if nothing comes before.
    pub(super) fn due(&self) -> Option<Instant> {
        let held = self.unfinished.values().filter(|line| !line.held.is_empty());
        held.map(|line| line.since + HELD_MAX).min()
    }

    /// Passes on pieces that have been held for as long as they may be.
    pub(super) fn pass_on(
        &mut self,
        now: Instant,
        mut emit: impl FnMut(&LineId, Piece<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        for (id, line) in &mut self.unfinished {
            if !line.held.is_empty() && line.since + HELD_MAX <= now {
                self.held -= line.held.len();
                line.flow(id, &mut emit)?;
            }
        }
        Ok(())
    }

    fn push_lines(
        &mut self,
        key: &Key,
        data: &[u8],
        emit: &mut impl FnMut(&LineId, Piece<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let id = (key.clone(), line_part::Stream::Unspecified.into());
        let mut rest = data;
        while let Some(end) = memchr(b'\n', rest) {
            let (line, behind) = (&rest[..end], &rest[end + 1..]);
            rest = behind;
            self.last_piece(&id, line, emit)?;
        }
        if rest.is_empty() { Ok(()) } else { self.push_piece(id, rest, emit) }
    }

    fn push_piece(
        &mut self,
        id: LineId,
        piece: &[u8],
        emit: &mut impl FnMut(&LineId, Piece<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let new = || Line { held: Vec::new(), begun: false, since: Instant::now() };
        let line = self.unfinished.entry(id.clone()).or_insert_with(new);
        line.held.extend_from_slice(piece);
        self.held += piece.len();
        let at_once = self.mode == Unfinished::AtOnce || line.begun;
        if at_once || line.held.len() > HELD_LINE_MAX_BYTES || self.held > HELD_MAX_BYTES {
            self.held -= line.held.len();
            line.flow(&id, emit)?;
        }
        Ok(())
    }

    fn last_piece(
        &mut self,
        id: &LineId,
        piece: &[u8],
        emit: &mut impl FnMut(&LineId, Piece<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(mut line) = self.unfinished.remove(id) else {
            return emit(id, Piece { bytes: piece, first: true, last: true });
        };
        self.held -= line.held.len();
        line.held.extend_from_slice(piece);
        emit(id, Piece { bytes: &line.held, first: !line.begun, last: true })
    }
}

// === impl Line ===

impl Line {
    /// Passes on the part that is held.
    fn flow(
        &mut self,
        id: &LineId,
        emit: &mut impl FnMut(&LineId, Piece<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        let first = !std::mem::replace(&mut self.begun, true);
        emit(id, Piece { bytes: &held, first, last: false })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::line_part::Stream::{Stderr, Stdout};
    use super::*;

    fn key(name: &str) -> Key {
        (name.to_owned(), 0)
    }

    fn id(name: &str) -> LineId {
        (key(name), 0)
    }

    fn pushed(lines: &mut Lines, name: &str, data: &[u8]) -> Vec<(usize, bool, bool)> {
        let mut out = Vec::new();
        let emit = |_: &LineId, piece: Piece<'_>| {
            out.push((piece.bytes.len(), piece.first, piece.last));
            Ok(())
        };
        lines.push(&key(name), None, data, emit).unwrap();
        out
    }

    #[test]
    fn a_line_too_long_to_hold_is_passed_on_in_pieces() {
        let mut lines = Lines::new(Unfinished::Held);
        assert_eq!(pushed(&mut lines, "a", &vec![b'x'; HELD_LINE_MAX_BYTES]), []);
        assert_eq!(pushed(&mut lines, "b", b"1\n2"), [(1, true, true)]);
        assert_eq!(pushed(&mut lines, "a", b"x"), [(HELD_LINE_MAX_BYTES + 1, true, false)]);
        assert_eq!(pushed(&mut lines, "a", b"yy"), [(2, false, false)]);
        assert_eq!(pushed(&mut lines, "a", b"z\n\n"), [(1, false, true), (0, true, true)]);
        assert_eq!(lines.unfinished(), [id("b")]);
        assert_eq!(lines.held, 1);
    }

    #[test]
    fn all_replicas_together_are_bounded() {
        let mut lines = Lines::new(Unfinished::Held);
        for n in 0..40 {
            pushed(&mut lines, &n.to_string(), &vec![b'x'; HELD_LINE_MAX_BYTES]);
            assert!(lines.held <= HELD_MAX_BYTES);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn unfinished_line_is_passed_on_after_five_seconds() {
        let mut lines = Lines::new(Unfinished::Held);
        assert_eq!(lines.due(), None);
        assert_eq!(pushed(&mut lines, "a", b"Password: "), []);
        let due = lines.due().unwrap();
        assert_eq!(due, Instant::now() + HELD_MAX);
        let mut out = Vec::new();
        for now in [due - Duration::from_millis(1), due] {
            lines
                .pass_on(now, |_, piece| {
                    out.push((piece.bytes.to_vec(), piece.first, piece.last));
                    Ok(())
                })
                .unwrap();
        }
        assert_eq!((out, lines.due()), (vec![(b"Password: ".to_vec(), true, false)], None));
        assert_eq!(pushed(&mut lines, "a", b"\n"), [(0, false, true)]);
    }

    #[test]
    fn pieces_of_two_streams_are_joined_each_by_itself() {
        let mut lines = Lines::new(Unfinished::Held);
        let mut out = Vec::new();
        let mut push = |stream: line_part::Stream, continues, more, data: &[u8]| {
            let part = LinePart { stream: stream.into(), continues, more };
            let emit = |id: &LineId, piece: Piece<'_>| {
                out.push((id.1, String::from_utf8(piece.bytes.to_vec()).unwrap()));
                Ok(())
            };
            lines.push(&key("a"), Some(&part), data, emit).unwrap();
        };
        push(Stdout, false, true, b"be");
        push(Stderr, false, true, b"\r 1 %");
        push(Stdout, true, false, b"gin\n");
        push(Stderr, true, false, b"\n");
        // A line that began and never ended.
        push(Stdout, false, true, b"dies");
        push(Stdout, false, false, b"next\n");
        let expected = [(1, "begin"), (2, "\r 1 %"), (1, "dies"), (1, "next")];
        assert_eq!(out, expected.map(|(stream, line)| (stream, line.to_owned())));
        assert_eq!(lines.held, 0);
    }

    proptest! {
        /// However the bytes are cut, the same lines come out, in each replica's order.
        #[test]
        fn cuts_do_not_matter(
            text in "[ab\n]{0,40}",
            cuts in proptest::collection::vec((0..40_usize, any::<bool>()), 0..10),
        ) {
            let mut lines = Lines::new(Unfinished::Held);
            let mut out: BTreeMap<Key, Vec<u8>> = BTreeMap::new();
            let mut at = [0, 0];
            for (to, second) in cuts.into_iter().chain([(40, false), (40, true)]) {
                let from = &mut at[usize::from(second)];
                let to = to.min(text.len()).max(*from);
                let key = key(if second { "b" } else { "a" });
                let mut emit = |(key, _): &LineId, piece: Piece<'_>| {
                    assert!(piece.first && piece.last && !piece.bytes.contains(&b'\n'));
                    let out = out.entry(key.clone()).or_default();
                    out.extend_from_slice(piece.bytes);
                    out.push(b'\n');
                    Ok(())
                };
                lines.push(&key, None, &text.as_bytes()[*from..to], &mut emit).unwrap();
                if to == text.len() {
                    lines.end(&(key.clone(), 0), &mut emit).unwrap();
                }
                *from = to;
            }
            let whole = if text.is_empty() || text.ends_with('\n') { text } else { text + "\n" };
            for key in [key("a"), key("b")] {
                prop_assert_eq!(out.remove(&key).unwrap_or_default(), whole.as_bytes());
            }
            prop_assert_eq!(lines.held, 0);
        }
    }
}
