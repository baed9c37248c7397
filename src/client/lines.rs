//! Joins the pieces of log lines. Pieces of several replicas, and of both streams of one, may alternate.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use memchr::memchr;
use tokio::time::Instant;

use super::ReplicaKey;
use crate::model::proto::lease::{LinePart, line_part};

/// Replica and stream of an unfinished line.
pub(super) type LineId = (ReplicaKey, i32);

/// Takes the pieces that are passed on.
pub(super) type Emit<'a> = dyn FnMut(&LineId, Piece<'_>) -> io::Result<()> + 'a;

/// Most bytes held of one line. The pieces of a longer line are passed on as they arrive.
const HELD_LINE_MAX_BYTES: usize = 1024 * 1024;

/// Most bytes held of all lines.
const HELD_MAX_BYTES: usize = 16 * 1024 * 1024;

/// Longest time a piece is held. Programs that read lines get almost all of them whole, and a progress bar
/// that never ends still shows.
const HELD_MAX: Duration = Duration::from_secs(5);

/// Line, or piece of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    /// Content without the newline.
    pub(super) bytes: &'a [u8],
    /// Whether the line starts here.
    pub(super) first: bool,
    /// Whether the line ends here.
    pub(super) last: bool,
}

/// When pieces of unfinished lines are passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PartialLines {
    /// As soon as they arrive.
    PassOn,
    /// After `HELD_MAX`, or when they are too long to hold.
    Hold,
    /// When they are too long to hold.
    HoldAll,
}

/// Joins pieces into lines, separately for each replica and stream.
#[derive(Debug)]
pub(super) struct LineJoiner {
    mode: PartialLines,
    unfinished: BTreeMap<LineId, Line>,
    held: usize,
}

#[derive(Debug)]
struct Line {
    held: Vec<u8>,
    /// Whether pieces of the line were passed on.
    started: bool,
    /// Arrival of its first piece.
    arrived: Instant,
}

// === impl LineJoiner ===

impl LineJoiner {
    pub(super) fn new(mode: PartialLines) -> Self {
        Self { mode, unfinished: BTreeMap::new(), held: 0 }
    }

    /// Takes log bytes of `key` and passes each line that is now whole to `emit`. Without a `part`, the bytes
    /// are whole lines; older gateways may end them with a piece.
    pub(super) fn push(
        &mut self,
        key: &ReplicaKey,
        part: Option<&LinePart>,
        data: &[u8],
        emit: &mut Emit<'_>,
    ) -> io::Result<()> {
        let Some(part) = part else {
            return self.push_lines(key, data, emit);
        };
        // Unknown streams count as one, which bounds the number of lines.
        let id = (key.clone(), part.stream().into());
        if !part.continues {
            // The previous line ended without a newline.
            self.end(&id, emit)?;
        }
        let bytes = data.strip_suffix(b"\n").unwrap_or(data);
        if part.more { self.push_piece(id, bytes, emit) } else { self.last_piece(&id, bytes, emit) }
    }

    /// Ends the line `id` if it is unfinished.
    pub(super) fn end(&mut self, id: &LineId, emit: &mut Emit<'_>) -> io::Result<()> {
        if self.unfinished.contains_key(id) {
            self.last_piece(id, b"", emit)?;
        }
        Ok(())
    }

    pub(super) fn unfinished(&self) -> Vec<LineId> {
        self.unfinished.keys().cloned().collect()
    }

    pub(super) fn unfinished_of(&self, key: &ReplicaKey) -> Vec<LineId> {
        self.unfinished.keys().filter(|(of, _)| of == key).cloned().collect()
    }

    /// Returns when [`LineJoiner::emit_overdue`] has to be called.
    pub(super) fn due(&self) -> Option<Instant> {
        if self.mode == PartialLines::HoldAll {
            return None;
        }
        let held = self.unfinished.values().filter(|line| !line.held.is_empty());
        held.map(|line| line.arrived + HELD_MAX).min()
    }

    /// Passes on pieces that have been held for `HELD_MAX`.
    pub(super) fn emit_overdue(&mut self, now: Instant, emit: &mut Emit<'_>) -> io::Result<()> {
        if self.mode == PartialLines::HoldAll {
            return Ok(());
        }
        for (id, line) in &mut self.unfinished {
            if !line.held.is_empty() && line.arrived + HELD_MAX <= now {
                self.held -= line.held.len();
                line.emit_held(id, emit)?;
            }
        }
        Ok(())
    }

    fn push_lines(&mut self, key: &ReplicaKey, data: &[u8], emit: &mut Emit<'_>) -> io::Result<()> {
        let id = (key.clone(), line_part::Stream::Unspecified.into());
        let mut rest = data;
        while let Some(end) = memchr(b'\n', rest) {
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            rest = after;
            self.last_piece(&id, line, emit)?;
        }
        if rest.is_empty() { Ok(()) } else { self.push_piece(id, rest, emit) }
    }

    fn push_piece(&mut self, id: LineId, piece: &[u8], emit: &mut Emit<'_>) -> io::Result<()> {
        let new = || Line { held: Vec::new(), started: false, arrived: Instant::now() };
        let line = self.unfinished.entry(id.clone()).or_insert_with(new);
        line.held.extend_from_slice(piece);
        self.held += piece.len();
        let at_once = self.mode == PartialLines::PassOn || line.started;
        if at_once || line.held.len() > HELD_LINE_MAX_BYTES || self.held > HELD_MAX_BYTES {
            self.held -= line.held.len();
            line.emit_held(&id, emit)?;
        }
        Ok(())
    }

    fn last_piece(&mut self, id: &LineId, piece: &[u8], emit: &mut Emit<'_>) -> io::Result<()> {
        let Some(mut line) = self.unfinished.remove(id) else {
            return emit(id, Piece { bytes: piece, first: true, last: true });
        };
        self.held -= line.held.len();
        line.held.extend_from_slice(piece);
        emit(id, Piece { bytes: &line.held, first: !line.started, last: true })
    }
}

// === impl Line ===

impl Line {
    /// Passes on the held part.
    fn emit_held(&mut self, id: &LineId, emit: &mut Emit<'_>) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        let first = !std::mem::replace(&mut self.started, true);
        emit(id, Piece { bytes: &held, first, last: false })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::line_part::Stream::{Stderr, Stdout};
    use super::*;

    fn key(name: &str) -> ReplicaKey {
        (name.to_owned(), 0)
    }

    fn id(name: &str) -> LineId {
        (key(name), 0)
    }

    fn push(lines: &mut LineJoiner, name: &str, data: &[u8]) -> Vec<(usize, bool, bool)> {
        let mut out = Vec::new();
        let mut emit = |_: &LineId, piece: Piece<'_>| {
            out.push((piece.bytes.len(), piece.first, piece.last));
            Ok(())
        };
        lines.push(&key(name), None, data, &mut emit).unwrap();
        out
    }

    #[test]
    fn overlong_line_is_passed_on_in_pieces() {
        let mut lines = LineJoiner::new(PartialLines::Hold);
        assert_eq!(push(&mut lines, "a", &vec![b'x'; HELD_LINE_MAX_BYTES]), []);
        assert_eq!(push(&mut lines, "b", b"1\n2"), [(1, true, true)]);
        assert_eq!(push(&mut lines, "a", b"x"), [(HELD_LINE_MAX_BYTES + 1, true, false)]);
        assert_eq!(push(&mut lines, "a", b"yy"), [(2, false, false)]);
        assert_eq!(push(&mut lines, "a", b"z\n\n"), [(1, false, true), (0, true, true)]);
        assert_eq!(lines.unfinished(), [id("b")]);
        assert_eq!(lines.held, 1);
    }

    #[test]
    fn held_bytes_of_all_replicas_are_bounded() {
        let mut lines = LineJoiner::new(PartialLines::Hold);
        for n in 0..40 {
            push(&mut lines, &n.to_string(), &vec![b'x'; HELD_LINE_MAX_BYTES]);
            assert!(lines.held <= HELD_MAX_BYTES);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn unfinished_line_is_passed_on_after_five_seconds() {
        let mut lines = LineJoiner::new(PartialLines::Hold);
        assert_eq!(lines.due(), None);
        assert_eq!(push(&mut lines, "a", b"Password: "), []);
        let due = lines.due().unwrap();
        assert_eq!(due, Instant::now() + HELD_MAX);
        let mut out = Vec::new();
        for now in [due - Duration::from_millis(1), due] {
            lines
                .emit_overdue(now, &mut |_, piece| {
                    out.push((piece.bytes.to_vec(), piece.first, piece.last));
                    Ok(())
                })
                .unwrap();
        }
        assert_eq!((out, lines.due()), (vec![(b"Password: ".to_vec(), true, false)], None));
        assert_eq!(push(&mut lines, "a", b"\n"), [(0, false, true)]);
    }

    #[tokio::test(start_paused = true)]
    async fn unfinished_line_is_held_for_a_filter() {
        let mut lines = LineJoiner::new(PartialLines::HoldAll);
        assert_eq!(push(&mut lines, "a", b"connecting... "), []);
        assert_eq!(lines.due(), None);
        lines.emit_overdue(Instant::now() + 2 * HELD_MAX, &mut |_, _| panic!("held")).unwrap();
        assert_eq!(push(&mut lines, "a", b"failed\n"), [(20, true, true)]);
        assert_eq!(
            push(&mut lines, "a", &vec![b'x'; HELD_LINE_MAX_BYTES + 1]),
            [(HELD_LINE_MAX_BYTES + 1, true, false)]
        );
    }

    #[test]
    fn pieces_of_two_streams_are_joined_separately() {
        let mut lines = LineJoiner::new(PartialLines::Hold);
        let mut out = Vec::new();
        let mut push = |stream: line_part::Stream, continues, more, data: &[u8]| {
            let part = LinePart { stream: stream.into(), continues, more };
            let mut emit = |id: &LineId, piece: Piece<'_>| {
                out.push((id.1, String::from_utf8(piece.bytes.to_vec()).unwrap()));
                Ok(())
            };
            lines.push(&key("a"), Some(&part), data, &mut emit).unwrap();
        };
        push(Stdout, false, true, b"be");
        push(Stderr, false, true, b"\r 1 %");
        push(Stdout, true, false, b"gin\n");
        push(Stderr, true, false, b"\n");
        // A line that started and never ended.
        push(Stdout, false, true, b"dies");
        push(Stdout, false, false, b"next\n");
        let expected = [(1, "begin"), (2, "\r 1 %"), (1, "dies"), (1, "next")];
        assert_eq!(out, expected.map(|(stream, line)| (stream, line.to_owned())));
        assert_eq!(lines.held, 0);
    }

    proptest! {
        /// The same lines come out wherever the bytes are cut, in each replica's order.
        #[test]
        fn lines_are_the_same_for_all_cuts(
            text in "[ab\n]{0,40}",
            cuts in proptest::collection::vec((0..40_usize, any::<bool>()), 0..10),
        ) {
            let mut lines = LineJoiner::new(PartialLines::Hold);
            let mut out: BTreeMap<ReplicaKey, Vec<u8>> = BTreeMap::new();
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
