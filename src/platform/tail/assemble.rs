//! Records → lines and pieces of lines. Pure; the result depends on the records alone, not on when or in what portions they are read.
//!
//! Output is handed on in the order of the records, each at once. So a finished line never waits for an unfinished one of the other
//! stream, and any prefix of the file gives a prefix of the output. A line that its runtime recorded in several pieces may have
//! output of the other stream between them; each piece says which stream it belongs to and whether it begins a line.
//!
//! At a gap, and at the end of the run, all lines end where they are.

use crate::model::line::SourceGap;
use crate::model::time::LogTime;
use crate::platform::batcher::{LineBatcher, Piece};
use crate::platform::cri::{Record, Stream};

/// Tracks the unfinished line of each stream. Holds no output.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Assembler {
    /// Times of the first pieces of unfinished lines.
    stdout: Option<LogTime>,
    stderr: Option<LogTime>,
}

// === impl Assembler ===

impl Assembler {
    /// Takes the next record.
    #[inline]
    pub(super) fn push(&mut self, record: &Record<'_>, out: &mut LineBatcher) {
        if let Some(lost) = record.lost {
            self.finish(out);
            out.lost(lost, record.time);
            return;
        }
        if record.partial && record.content.is_empty() {
            return;
        }
        let begun = match record.stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let (time, continues) = (begun.unwrap_or(record.time), begun.is_some());
        *begun = record.partial.then_some(time);
        let piece = Piece { time, continues, stream: Some(record.stream) };
        out.record(record.content, record.partial, record.time, piece);
    }

    /// Whether a line of standard output and one of standard error have begun and not ended.
    pub(super) fn unfinished(&self) -> [bool; 2] {
        [self.stdout.is_some(), self.stderr.is_some()]
    }

    /// Lines are missing here, perhaps the rest of those that have not ended.
    pub(super) fn gap(&mut self, gap: SourceGap, out: &mut LineBatcher) {
        self.finish(out);
        out.gap(gap);
    }

    /// Ends all lines.
    pub(super) fn finish(&mut self, out: &mut LineBatcher) {
        *self = Self::default();
        out.end_line();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::line::GapCause;
    use crate::model::position::Position;
    use crate::platform::TailItem;
    use crate::platform::batcher::StartFilter;
    use crate::platform::cri;

    /// What came out: `stream text`, with `+` before the text of a rest and behind the text of what goes on; or a gap.
    #[derive(Debug, PartialEq)]
    enum Out {
        Line(String, i64, Position),
        Gap(SourceGap),
    }

    /// Records as `seconds stream tags content`.
    fn run(records: &[&str], finish: bool) -> Vec<Out> {
        let mut emitter = LineBatcher::new(Position::START, 0, StartFilter::All);
        let mut assembler = Assembler::default();
        let mut out = Vec::new();
        for record in records {
            let (second, rest) = record.split_once(' ').unwrap();
            let record = format!("1970-01-01T00:00:0{second}Z {rest}");
            assembler.push(&cri::parse(record.as_bytes()).unwrap(), &mut emitter);
        }
        if finish {
            assembler.finish(&mut emitter);
        }
        for item in emitter.take(true) {
            match item {
                TailItem::Gap(gap) => out.push(Out::Gap(gap)),
                TailItem::FollowUnavailable => {}
                TailItem::Lines(batch) => {
                    for (index, line) in batch.lines.iter().enumerate() {
                        let stream = line.stream.unwrap().name();
                        let text = std::str::from_utf8(batch.bytes(index)).unwrap();
                        let (before, behind) =
                            (["", "+"][usize::from(line.continues)], ["+", ""][usize::from(line.ends)]);
                        let text = format!("{stream} {before}{text}{behind}");
                        out.push(Out::Line(text, line.time.as_nanos() / 1_000_000_000, line.after));
                    }
                }
            }
        }
        out
    }

    fn at(second: i64, ordinal: u64, offset: u64) -> Position {
        Position { time: LogTime::from_nanos(second * 1_000_000_000), ordinal, offset }
    }

    fn line(text: &str, second: i64, after: Position) -> Out {
        Out::Line(text.to_owned(), second, after)
    }

    #[test]
    fn finished_line_never_waits_for_the_other_stream() {
        let records =
            ["1 stdout P a", "2 stderr P b", "3 stderr F c", "4 stdout F d", "5 stdout F ", "6 stderr F e"];
        let in_file_order = [
            line("stdout a+", 1, Position { offset: 1, ..Position::START }),
            line("stderr bc\n", 2, at(1, 1, 0)),
            line("stdout +d\n", 1, at(4, 1, 0)),
            line("stdout \n", 5, at(5, 1, 0)),
            line("stderr e\n", 6, at(6, 1, 0)),
        ];
        assert_eq!(run(&records, false), in_file_order);
    }

    #[test]
    fn positions_are_those_of_the_merged_output() {
        // As kubectl prints it: "ab\n" with the time 1, then "c\n" with the time 3.
        let records = ["1 stdout P a", "2 stderr F b", "3 stdout F c"];
        let out = run(&records, false);
        assert_eq!(out[1], line("stderr b\n", 2, at(1, 1, 0)));
        assert_eq!(out[2], line("stdout +c\n", 1, at(3, 1, 0)));
    }

    #[test]
    fn unfinished_line_ends_with_the_run() {
        let records = ["1 stderr P a", "2 stdout P ", "3 stdout P b", "4 stdout F c", "5 stdout P d"];
        let mut expected = vec![
            line("stderr a+", 1, Position { offset: 1, ..Position::START }),
            line("stdout bc\n", 3, at(1, 1, 0)),
            line("stdout d+", 5, at(1, 1, 1)),
        ];
        assert_eq!(run(&records, false), expected);
        expected[2] = line("stdout d", 5, at(5, 1, 0));
        assert_eq!(run(&records, true), expected);
        assert_eq!(run(&["1 stdout P "], true), []);
    }

    #[test]
    fn lost_output_is_a_gap_and_ends_lines() {
        // A line a second, and then the record itself.
        let after = at(1, 1, 0).after_line(LogTime::from_nanos(2_000_000_000));
        let gap = SourceGap { cause: GapCause::Source, lines: 12, bytes: 3456, exact: true, after };
        assert_eq!(
            run(&["1 stdout P a", "2 stderr F:lost=12/3456 notice", "3 stdout F b"], false),
            [line("stdout a", 1, at(1, 1, 0)), Out::Gap(gap), line("stdout b\n", 3, at(3, 1, 0))]
        );
    }
}
