//! Records → lines. Pure; what comes out depends on the records alone, not on when or in what portions they were read.
//!
//! A runtime writes a long line in pieces, and lines of the other stream may lie between them. So:
//! - The pieces of a line are held until it ends. Lines come in the order in which they end.
//! - A line longer than [`LINE_HELD_MAX_BYTES`] flows: it comes piece by piece, always one behind, so that its last piece is known
//!   as such. What the other stream writes meanwhile is held back until the long line ends.
//! - Should that exceed [`LINE_HELD_MAX_BYTES`] too, the long line is ended there, without a newline; what follows of it is a line
//!   of its own.
//! - At a gap, and at the end of the run, all lines end where they are: first the one that flows, then the older one.

use crate::model::limits::LINE_HELD_MAX_BYTES;
use crate::model::line::SourceGap;
use crate::model::time::LogTime;
use crate::platform::cri::{Record, Stream};

use crate::platform::emit::Emitter;

/// Joins the pieces of lines.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    stdout: Held,
    stderr: Held,
    /// The stream whose line comes piece by piece; its last piece is still held.
    flowing: Option<Stream>,
    deferred: Deferred,
}

/// A line that has not ended.
#[derive(Debug, Default)]
struct Held {
    data: Vec<u8>,
    /// The time of its first piece; `None` if no line has begun.
    time: Option<LogTime>,
}

/// Whole lines of one stream that wait for the end of the other's long line.
#[derive(Debug, Default)]
struct Deferred {
    /// The lines, each with its newline.
    data: Vec<u8>,
    /// Where each ends, and its time.
    lines: Vec<(usize, LogTime)>,
}

// === impl Assembler ===

impl Assembler {
    /// Takes the next record.
    #[inline]
    pub(super) fn push(&mut self, record: &Record<'_>, out: &mut Emitter) {
        if let Some(lost) = record.lost {
            self.finish(out);
            out.lost(lost, record.time);
        } else if !record.partial && self.flowing.is_none() && self.held(record.stream).time.is_none() {
            out.line(record.content, record.time);
        } else {
            self.push_piece(record, out);
        }
    }

    /// Lines are missing here, perhaps the rest of those that have not ended.
    pub(super) fn gap(&mut self, gap: SourceGap, out: &mut Emitter) {
        self.finish(out);
        out.gap(gap);
    }

    /// Ends all lines.
    pub(super) fn finish(&mut self, out: &mut Emitter) {
        if let Some(stream) = self.flowing.take() {
            self.held(stream).end(out);
        }
        self.deferred.flush(out);
        let stderr_first = match (self.stdout.time, self.stderr.time) {
            (Some(stdout), Some(stderr)) => stderr < stdout,
            _ => false,
        };
        if stderr_first {
            self.stderr.end(out);
        }
        self.stdout.end(out);
        self.stderr.end(out);
    }

    /// Whether no line is held.
    pub(super) fn is_idle(&self) -> bool {
        // While one flows, its last piece is held.
        self.stdout.time.is_none() && self.stderr.time.is_none()
    }

    /// Gives back memory that is not in use.
    pub(super) fn release(&mut self) {
        self.stdout.data.shrink_to_fit();
        self.stderr.data.shrink_to_fit();
        self.deferred.data.shrink_to_fit();
        self.deferred.lines.shrink_to_fit();
    }

    fn held(&mut self, stream: Stream) -> &mut Held {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    #[cold]
    fn push_piece(&mut self, record: &Record<'_>, out: &mut Emitter) {
        let flowing = self.flowing;
        let held = self.held(record.stream);
        let time = *held.time.get_or_insert(record.time);
        if flowing == Some(record.stream) && record.partial && !record.content.is_empty() {
            out.piece(&held.data, time, false);
            held.data.clear();
        }
        let known = held.data.len();
        held.data.extend_from_slice(record.content);
        if !record.partial {
            held.data.push(b'\n');
        }
        match (flowing == Some(record.stream), record.partial) {
            (true, true) => {}
            (true, false) => {
                held.end(out);
                self.flowing = None;
                self.deferred.flush(out);
            }
            (false, _) if flowing.is_some() => self.defer(record, out),
            (false, false) => held.end(out),
            (false, true) => self.flow_if_long(record.stream, known, out),
        }
    }

    /// `stream` has got a piece while the other's line flows.
    fn defer(&mut self, record: &Record<'_>, out: &mut Emitter) {
        let (held, deferred) = match record.stream {
            Stream::Stdout => (&mut self.stdout, &mut self.deferred),
            Stream::Stderr => (&mut self.stderr, &mut self.deferred),
        };
        if !record.partial {
            deferred.push(held);
        }
        if deferred.bytes() + held.data.len() <= LINE_HELD_MAX_BYTES {
            return;
        }
        let known = held.data.len().saturating_sub(record.content.len());
        if let Some(stream) = self.flowing.take() {
            self.held(stream).end(out);
        }
        self.deferred.flush(out);
        self.flow_if_long(record.stream, known, out);
    }

    /// Lets the line of `stream` flow if it is too long to be held; `known` bytes came before its last piece.
    fn flow_if_long(&mut self, stream: Stream, known: usize, out: &mut Emitter) {
        let held = self.held(stream);
        if held.data.len() <= LINE_HELD_MAX_BYTES {
            return;
        }
        if let Some(time) = held.time.filter(|_| known > 0) {
            out.piece(&held.data[..known], time, false);
            held.data.drain(..known);
        }
        self.flowing = Some(stream);
    }
}

// === impl Held ===

impl Held {
    /// Hands out what is held as the end of its line.
    fn end(&mut self, out: &mut Emitter) {
        if let Some(time) = self.time.take().filter(|_| !self.data.is_empty()) {
            out.piece(&self.data, time, true);
        }
        self.data.clear();
    }
}

// === impl Deferred ===

impl Deferred {
    fn push(&mut self, line: &mut Held) {
        if let Some(time) = line.time.take() {
            self.data.extend_from_slice(&line.data);
            self.lines.push((self.data.len(), time));
            line.data.clear();
        }
    }

    /// What is held, the index included: even empty lines cost something.
    fn bytes(&self) -> usize {
        self.data.len() + self.lines.len() * size_of::<(usize, LogTime)>()
    }

    fn flush(&mut self, out: &mut Emitter) {
        let mut start = 0;
        for (end, time) in self.lines.drain(..) {
            out.piece(&self.data[start..end], time, true);
            start = end;
        }
        self.data.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::line::GapCause;
    use crate::model::position::Position;
    use crate::platform::TailItem;
    use crate::platform::cri;
    use crate::platform::emit::Filter;

    /// What came out: (bytes, nanoseconds, ends), or a gap.
    #[derive(Debug, PartialEq)]
    enum Out {
        Line(String, i64, bool),
        Gap(SourceGap),
    }

    /// Records as `seconds stream tags content`; the content `*N` is N times `x`.
    fn run(records: &[&str], finish: bool) -> Vec<Out> {
        let mut emitter = Emitter::new(Position::START, 0, Filter::All);
        let mut assembler = Assembler::default();
        for record in records {
            let (second, rest) = record.split_once(' ').unwrap();
            let (head, content) = rest.rsplit_once(' ').unwrap();
            let content =
                content.strip_prefix('*').map_or(content.to_owned(), |n| "x".repeat(n.parse().unwrap()));
            let record = format!("1970-01-01T00:00:0{second}Z {head} {content}");
            assembler.push(&cri::parse(record.as_bytes()).unwrap(), &mut emitter);
        }
        if finish {
            assembler.finish(&mut emitter);
            assert!(assembler.is_idle());
        }
        let mut out = Vec::new();
        let mut at = Position::START;
        for item in emitter.take(true) {
            match item {
                TailItem::Gap(gap) => out.push(Out::Gap(gap)),
                TailItem::Lines(batch) => {
                    for (index, line) in batch.lines.iter().enumerate() {
                        let bytes = batch.bytes(index);
                        at = if line.ends { at.after_line(line.time) } else { at.after_bytes(bytes.len()) };
                        assert_eq!(line.after, at);
                        let text = String::from_utf8(bytes.to_vec()).unwrap();
                        let text = if text.len() > 40 { format!("*{}", text.len()) } else { text };
                        out.push(Out::Line(text, line.time.as_nanos() / 1_000_000_000, line.ends));
                    }
                }
            }
        }
        out
    }

    fn line(text: &str, second: i64) -> Out {
        Out::Line(text.to_owned(), second, true)
    }

    fn piece(text: &str, second: i64) -> Out {
        Out::Line(text.to_owned(), second, false)
    }

    #[test]
    fn pieces_are_joined_by_stream_and_lines_come_as_they_end() {
        let records =
            ["1 stdout P a", "2 stderr P b", "3 stderr F c", "4 stdout F d", "5 stdout F ", "6 stderr F e"];
        assert_eq!(run(&records, false), [line("bc\n", 2), line("ad\n", 1), line("\n", 5), line("e\n", 6)]);
    }

    #[test]
    fn an_unfinished_line_waits_and_ends_with_the_run() {
        let records = ["1 stderr P a", "2 stdout P ", "3 stdout P b", "4 stdout F c", "5 stdout P d"];
        assert_eq!(run(&records, false), [line("bc\n", 2)]);
        assert_eq!(run(&records, true), [line("bc\n", 2), line("a", 1), line("d", 5)]);
        assert_eq!(run(&["1 stdout P "], true), []);
    }

    #[test]
    fn a_long_line_flows_and_the_other_stream_waits() {
        let records = [
            "1 stdout P *262144",
            "2 stdout P a",
            "3 stderr F b",
            "4 stdout P c",
            "5 stderr P d",
            "6 stdout F e",
        ];
        let flowed = [piece("*262144", 1), piece("a", 1), line("ce\n", 1), line("b\n", 3)];
        assert_eq!(run(&records, false), flowed);
        let mut ended = Vec::from(flowed);
        ended.push(line("d", 5));
        assert_eq!(run(&records, true), ended);
        assert_eq!(run(&["1 stdout P *262144", "2 stdout P a"], true), [piece("*262144", 1), line("a", 1)]);
    }

    #[test]
    fn a_long_line_is_ended_when_the_other_stream_has_waited_enough() {
        let records =
            ["1 stdout P *262144", "2 stdout P a", "3 stderr F b", "4 stderr F *262144", "5 stdout F c"];
        assert_eq!(
            run(&records, false),
            [
                piece("*262144", 1),
                line("a", 1),
                line("b\n", 3),
                piece("*262144", 4),
                line("\n", 4),
                line("c\n", 5)
            ]
        );
        let records = [
            "1 stdout P *262144",
            "2 stdout P a",
            "3 stderr P *262144",
            "4 stderr P b",
            "5 stdout F c",
            "6 stderr F d",
        ];
        assert_eq!(
            run(&records, false),
            [piece("*262144", 1), line("a", 1), piece("*262144", 3), line("bd\n", 3), line("c\n", 5)]
        );
    }

    #[test]
    fn empty_lines_do_not_wait_without_bound() {
        let mut records = vec!["1 stdout P *262145"];
        records.resize(20_000, "2 stderr F ");
        let out = run(&records, false);
        assert_eq!(out[0], line("*262145", 1).unlimited());
        assert_eq!(out.len(), 20_000 + 1);
    }

    impl Out {
        /// A piece over the limit comes as two.
        fn unlimited(self) -> Self {
            match self {
                Self::Line(_, second, _) => piece("*262144", second),
                gap @ Self::Gap(_) => gap,
            }
        }
    }

    #[test]
    fn lost_output_is_a_gap_and_ends_lines() {
        // A line a second, and then the record itself.
        let after = Position::START
            .after_line(LogTime::from_nanos(1_000_000_000))
            .after_line(LogTime::from_nanos(2_000_000_000));
        let gap = SourceGap { cause: GapCause::Source, lines: 12, bytes: 3456, exact: true, after };
        assert_eq!(
            run(&["1 stdout P a", "2 stderr F:lost=12/3456 notice", "3 stdout F b"], false),
            [line("a", 1), Out::Gap(gap), line("b\n", 3)]
        );
    }
}
