//! Splits the bytes of a log response into lines with times. Pure.
//!
//! With `timestamps=true` the kubelet puts a time and a space before each line. Text without a time is a
//! message of the kubelet (errors come as text in a response with status 200), or the rest of a line that
//! began elsewhere. It is never delivered as output of the tenant.

use memchr::memchr;

use crate::model::limits::LINE_HELD_MAX_BYTES;
use crate::model::time::LogTime;
use crate::platform::cri::Parser;

/// Longest time before a line, with its space: twice the length of `2026-11-23T12:00:00.123456789+00:00 `.
const PREFIX_MAX_BYTES: usize = 72;

/// Longest part of a text without a time that is kept, for the log.
const FOREIGN_MAX_BYTES: usize = 512;

/// A part of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// A whole line with its newline, or a piece of a long or unfinished one. `ends` with the last piece.
    Piece { time: LogTime, bytes: &'a [u8], ends: bool },
    /// A line without a time, or the beginning of it.
    Foreign(&'a [u8]),
}

/// The splitter of one response.
#[derive(Debug, Default)]
pub(super) struct Lines {
    parser: Parser,
    line: LineHeader,
    /// Bytes of the current line that were not returned.
    held: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LineHeader {
    /// Its time was not read yet.
    #[default]
    Unread,
    /// It has this time. All held bytes are content.
    Timed(LogTime),
    /// It has no time.
    Foreign,
}

// === impl Lines ===

impl Lines {
    /// Takes further bytes, and passes the lines in them to `out`.
    pub(super) fn push(&mut self, mut data: &[u8], out: &mut impl FnMut(Found<'_>)) {
        while let Some(end) = memchr(b'\n', data) {
            let (line, rest) = data.split_at(end + 1);
            data = rest;
            if self.held.is_empty() && self.line == LineHeader::Unread {
                out(match timed(&mut self.parser, line) {
                    Some((time, bytes)) => Found::Piece { time, bytes, ends: true },
                    None => Found::Foreign(clip(line)),
                });
            } else {
                self.held.extend_from_slice(line);
                self.end_line(out);
            }
        }
        for portion in data.chunks(LINE_HELD_MAX_BYTES) {
            self.held.extend_from_slice(portion);
            self.split_long(out);
        }
    }

    /// Takes the unfinished line, and begins anew. A line that was returned in pieces always has a rest,
    /// perhaps an empty one.
    pub(super) fn take_rest(&mut self) -> Rest {
        self.read_time();
        let held = std::mem::take(&mut self.held);
        match std::mem::take(&mut self.line) {
            LineHeader::Timed(time) => Rest::Line(time, held),
            LineHeader::Unread if held.is_empty() => Rest::Nothing,
            LineHeader::Unread | LineHeader::Foreign => Rest::Foreign(held),
        }
    }

    /// Returns whether bytes of an unfinished line were not returned.
    pub(super) fn holds_unfinished(&self) -> bool {
        !self.held.is_empty() && self.line != LineHeader::Foreign
    }

    /// Takes the received part of an unfinished line, if the line is not older than `not_before`.
    pub(super) fn take_unfinished(&mut self, not_before: Option<LogTime>) -> Option<(LogTime, Vec<u8>)> {
        self.read_time();
        let LineHeader::Timed(time) = self.line else { return None };
        let is_due = !self.held.is_empty() && not_before.is_none_or(|earliest| time >= earliest);
        is_due.then(|| (time, std::mem::take(&mut self.held)))
    }

    /// Removes the time from the held bytes, if it was not read before and all of it has come.
    fn read_time(&mut self) {
        if self.line == LineHeader::Unread
            && let Some((time, content)) = timed(&mut self.parser, &self.held)
        {
            let skip = self.held.len() - content.len();
            self.held.drain(..skip);
            self.line = LineHeader::Timed(time);
        }
    }

    fn end_line(&mut self, out: &mut impl FnMut(Found<'_>)) {
        self.read_time();
        out(match std::mem::take(&mut self.line) {
            LineHeader::Timed(time) => Found::Piece { time, bytes: &self.held, ends: true },
            LineHeader::Unread | LineHeader::Foreign => Found::Foreign(clip(&self.held)),
        });
        self.held.clear();
        self.held.shrink_to(LINE_HELD_MAX_BYTES / 16);
    }

    /// Returns pieces of a line that is too long to be held. Holds the newest piece back, because it may be
    /// the last one.
    fn split_long(&mut self, out: &mut impl FnMut(Found<'_>)) {
        if self.held.len() > PREFIX_MAX_BYTES {
            self.read_time();
            if self.line == LineHeader::Unread {
                self.line = LineHeader::Foreign;
            }
        }
        match self.line {
            LineHeader::Timed(time) => {
                while self.held.len() > LINE_HELD_MAX_BYTES {
                    out(Found::Piece { time, bytes: &self.held[..LINE_HELD_MAX_BYTES], ends: false });
                    self.held.drain(..LINE_HELD_MAX_BYTES);
                }
            }
            LineHeader::Foreign => self.held.truncate(FOREIGN_MAX_BYTES),
            LineHeader::Unread => {}
        }
    }
}

/// The unfinished line at the end of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// The response ended with a newline.
    Nothing,
    /// A line, or the rest of one, without a newline.
    Line(LogTime, Vec<u8>),
    /// A text without a time.
    Foreign(Vec<u8>),
}

/// Splits a line into its time and its content.
fn timed<'a>(parser: &mut Parser, line: &'a [u8]) -> Option<(LogTime, &'a [u8])> {
    let head = &line[..line.len().min(PREFIX_MAX_BYTES)];
    let at = memchr(b' ', head)?;
    Some((parser.time(&line[..at])?, &line[at + 1..]))
}

fn clip(text: &[u8]) -> &[u8] {
    &text[..text.len().min(FOREIGN_MAX_BYTES)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// (nanoseconds, text, ends), or the foreign text.
    type Out = Vec<Result<(i64, Vec<u8>, bool), Vec<u8>>>;

    fn split(text: &[u8], cuts: &[usize]) -> (Out, Rest) {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        let mut take = |found: Found<'_>| {
            out.push(match found {
                Found::Piece { time, bytes, ends } => Ok((time.as_nanos(), bytes.to_vec(), ends)),
                Found::Foreign(text) => Err(text.to_vec()),
            });
        };
        let mut at = 0;
        for cut in cuts.iter().map(|cut| cut % (text.len() + 1)).filter(|cut| *cut > 0) {
            if cut > at {
                lines.push(&text[at..cut], &mut take);
                at = cut;
            }
        }
        lines.push(&text[at..], &mut take);
        (out, lines.take_rest())
    }

    #[test]
    fn text_without_time_is_foreign() {
        let text = b"1970-01-01T00:00:01.5Z one\n1970-01-01T01:00:02+01:00  two\r\n\
            unable to retrieve container logs for containerd://x\n1970-01-01T00:00:03Z \n";
        let (out, rest) = split(text, &[]);
        let expected = [
            Ok((1_500_000_000, b"one\n".to_vec(), true)),
            Ok((2_000_000_000, b" two\r\n".to_vec(), true)),
            Err(b"unable to retrieve container logs for containerd://x\n".to_vec()),
            Ok((3_000_000_000, b"\n".to_vec(), true)),
        ];
        assert_eq!((out.as_slice(), rest), (expected.as_slice(), Rest::Nothing));
        let (out, rest) = split(b"1970-01-01T00:00:01Z unfinished", &[]);
        assert_eq!(
            (out, rest),
            (vec![], Rest::Line(LogTime::from_nanos(1_000_000_000), b"unfinished".to_vec()))
        );
        let (_, rest) = split(b"unable to retrieve", &[]);
        assert_eq!(rest, Rest::Foreign(b"unable to retrieve".to_vec()));
    }

    #[test]
    fn endless_line_comes_in_pieces_and_foreign_text_is_clipped() {
        let mut lines = Lines::default();
        let (mut pieces, mut bytes) = (0, 0);
        lines.push(b"1970-01-01T00:00:01Z ", &mut |_| panic!());
        for _ in 0..100 {
            lines.push(&vec![b'x'; 65_536], &mut |found| match found {
                Found::Piece { bytes: piece, ends: false, .. } => {
                    pieces += 1;
                    bytes += piece.len();
                }
                other => panic!("{other:?}"),
            });
        }
        assert!(lines.held.len() <= LINE_HELD_MAX_BYTES && !lines.held.is_empty());
        assert_eq!((pieces, bytes + lines.held.len()), (24, 100 * 65_536));
        let mut foreign = Lines::default();
        for _ in 0..100 {
            foreign.push(&vec![b'x'; 65_536], &mut |_| panic!());
        }
        assert!(foreign.held.len() <= FOREIGN_MAX_BYTES);
    }

    #[test]
    fn unfinished_line_comes_in_pieces() {
        let (mut lines, time) = (Lines::default(), LogTime::from_nanos);
        let mut ended = Vec::new();
        let mut take = |found: Found<'_>| match found {
            Found::Piece { time, bytes, ends } => ended.push((time, bytes.to_vec(), ends)),
            Found::Foreign(text) => panic!("{text:?}"),
        };
        lines.push(b"1970-01-01T00:00:00.00000", &mut take);
        assert_eq!(lines.take_unfinished(None), None);
        lines.push(b"0009Z 1 %", &mut take);
        assert_eq!(lines.take_unfinished(Some(time(10))), None);
        assert_eq!(lines.take_unfinished(Some(time(9))), Some((time(9), b"1 %".to_vec())));
        assert_eq!(lines.take_unfinished(None), None);
        lines.push(b"\r2 %", &mut take);
        assert!(lines.holds_unfinished());
        assert_eq!(lines.take_unfinished(None), Some((time(9), b"\r2 %".to_vec())));
        assert!(!lines.holds_unfinished());
        lines.push(b"\n", &mut take);
        assert_eq!(ended, [(time(9), b"\n".to_vec(), true)]);
    }

    proptest! {
        #[test]
        fn random_portions_give_the_same_lines(
            lines in proptest::collection::vec((any::<bool>(), 0_u32..5, "[a-z \r]{0,90}"), 0..12),
            cuts in proptest::collection::vec(any::<usize>(), 0..20),
            unfinished in any::<bool>(),
        ) {
            let mut text = String::new();
            for (timed, second, content) in &lines {
                if *timed {
                    text.extend(format!("1970-01-01T00:00:0{second}.000000001Z ").chars());
                }
                text.push_str(content);
                text.push('\n');
            }
            if unfinished {
                text.pop();
            }
            let mut cuts = cuts;
            cuts.sort_unstable();
            let whole = split(text.as_bytes(), &[]);
            prop_assert_eq!(split(text.as_bytes(), &cuts), whole);
        }
    }
}
