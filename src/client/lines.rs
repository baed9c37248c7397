//! Whole lines out of entries: a long line comes in pieces, and pieces of several replicas may come by turns.

use std::collections::BTreeMap;
use std::io;

use memchr::memchr;

/// A replica, as entries name it.
pub(super) type Key = (String, u32);

/// Most bytes of a line that are held until the line is whole. Of a longer one the pieces are passed on as they come.
const HELD_LINE_MAX_BYTES: usize = 1024 * 1024;

/// Most bytes held of all replicas' lines.
const HELD_MAX_BYTES: usize = 16 * 1024 * 1024;

/// A line, or a piece of one that was too long to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    /// Its bytes; without the newline.
    pub(super) bytes: &'a [u8],
    /// Whether a line begins with it.
    pub(super) first: bool,
    /// Whether the line ends with it.
    pub(super) last: bool,
}

/// Joins pieces to lines, for each replica on its own.
#[derive(Debug, Default)]
pub(super) struct Lines {
    unfinished: BTreeMap<Key, Unfinished>,
    held: usize,
}

#[derive(Debug, Default)]
struct Unfinished {
    held: Vec<u8>,
    /// Whether pieces of the line were passed on.
    begun: bool,
}

// === impl Lines ===

impl Lines {
    /// Takes what came from `key`, and passes on every line that is whole now.
    pub(super) fn push(
        &mut self,
        key: &Key,
        data: &[u8],
        mut emit: impl FnMut(Piece<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut rest = data;
        while let Some(end) = memchr(b'\n', rest) {
            let (line, behind) = (&rest[..end], &rest[end + 1..]);
            rest = behind;
            self.last_piece(key, line, &mut emit)?;
        }
        if rest.is_empty() {
            return Ok(());
        }
        let line = self.unfinished.entry(key.clone()).or_default();
        line.held.extend_from_slice(rest);
        self.held += rest.len();
        if line.begun || line.held.len() > HELD_LINE_MAX_BYTES || self.held > HELD_MAX_BYTES {
            self.held -= line.held.len();
            emit(Piece { bytes: &line.held, first: !line.begun, last: false })?;
            line.held = Vec::new();
            line.begun = true;
        }
        Ok(())
    }

    /// The line of `key` that is not whole never will be: it ends here.
    pub(super) fn end(
        &mut self,
        key: &Key,
        mut emit: impl FnMut(Piece<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.unfinished.contains_key(key) {
            self.last_piece(key, b"", &mut emit)?;
        }
        Ok(())
    }

    /// Who has a line that is not whole.
    pub(super) fn unfinished(&self) -> Vec<Key> {
        self.unfinished.keys().cloned().collect()
    }

    fn last_piece(
        &mut self,
        key: &Key,
        piece: &[u8],
        emit: &mut impl FnMut(Piece<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(mut line) = self.unfinished.remove(key) else {
            return emit(Piece { bytes: piece, first: true, last: true });
        };
        self.held -= line.held.len();
        line.held.extend_from_slice(piece);
        emit(Piece { bytes: &line.held, first: !line.begun, last: true })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(name: &str) -> Key {
        (name.to_owned(), 0)
    }

    fn pushed(lines: &mut Lines, name: &str, data: &[u8]) -> Vec<(usize, bool, bool)> {
        let mut out = Vec::new();
        let emit = |piece: Piece<'_>| {
            out.push((piece.bytes.len(), piece.first, piece.last));
            Ok(())
        };
        lines.push(&key(name), data, emit).unwrap();
        out
    }

    #[test]
    fn a_line_too_long_to_hold_is_passed_on_in_pieces() {
        let mut lines = Lines::default();
        assert_eq!(pushed(&mut lines, "a", &vec![b'x'; HELD_LINE_MAX_BYTES]), []);
        assert_eq!(pushed(&mut lines, "b", b"1\n2"), [(1, true, true)]);
        assert_eq!(pushed(&mut lines, "a", b"x"), [(HELD_LINE_MAX_BYTES + 1, true, false)]);
        assert_eq!(pushed(&mut lines, "a", b"yy"), [(2, false, false)]);
        assert_eq!(pushed(&mut lines, "a", b"z\n\n"), [(1, false, true), (0, true, true)]);
        assert_eq!(lines.unfinished(), [key("b")]);
        assert_eq!(lines.held, 1);
    }

    #[test]
    fn all_replicas_together_are_bounded() {
        let mut lines = Lines::default();
        for n in 0..40 {
            pushed(&mut lines, &n.to_string(), &vec![b'x'; HELD_LINE_MAX_BYTES]);
            assert!(lines.held <= HELD_MAX_BYTES);
        }
    }

    proptest! {
        /// However the bytes are cut, the same lines come out, in each replica's order.
        #[test]
        fn cuts_do_not_matter(
            text in "[ab\n]{0,40}",
            cuts in proptest::collection::vec((0..40_usize, any::<bool>()), 0..10),
        ) {
            let mut lines = Lines::default();
            let mut out: BTreeMap<Key, Vec<u8>> = BTreeMap::new();
            let mut at = [0, 0];
            for (to, second) in cuts.into_iter().chain([(40, false), (40, true)]) {
                let from = &mut at[usize::from(second)];
                let to = to.min(text.len()).max(*from);
                let key = key(if second { "b" } else { "a" });
                let mut emit = |piece: Piece<'_>| {
                    assert!(piece.first && piece.last && !piece.bytes.contains(&b'\n'));
                    let out = out.entry(key.clone()).or_default();
                    out.extend_from_slice(piece.bytes);
                    out.push(b'\n');
                    Ok(())
                };
                lines.push(&key, &text.as_bytes()[*from..to], &mut emit).unwrap();
                if to == text.len() {
                    lines.end(&key, &mut emit).unwrap();
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
