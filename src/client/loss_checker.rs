//! The loss oracle: *delivered ∪ reported gaps = produced, in order, without repeats.*
//!
//! It is fed with what a follower receives and knows what was produced because the producer counts: each line of a replica
//! begins with a number and a space, `1 …`, `2 …`, from 1 in every run of the container. So every line must continue where
//! the last line and the gaps behind it ended. Lines without a number are counted but prove nothing; in a run that has some,
//! a gap may be larger than the hole between its neighbours. It is pure: any stream of entries can be judged.
//!
//! A producer that counts over standard output and standard error together writes to two pipes, and whoever merges them may
//! read one ahead of the other ([`Order::TwoPipes`]): then a line may be late, but still comes once, or is reported.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use memchr::memchr;

use self::sequence::Sequence;
use super::follow::Sink;
use crate::model::limits::STREAM_REPLICAS_MAX;
use crate::model::proto::lease::{Gap, LinePart, ServiceLogs, line_part};

mod sequence;

/// Bytes of a line's beginning that are looked at: the digits of any counter, and the space behind it.
const HEAD_BYTES: usize = 20;

/// Bytes of a line that a report of a violation shows.
const SHOWN_BYTES: usize = 80;

/// With what a follower's first line of a replica must begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With line 1 of a run: the follower asked for all history, and all of it can still be read.
    First,
    /// With any line: history was limited.
    Anywhere,
}

/// In which order a producer's lines are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they are numbered: the producer writes to one pipe.
    Exact,
    /// Nearly as they are numbered: it writes to two pipes.
    TwoPipes,
}

/// Judges what one follower receives.
#[derive(Debug)]
pub struct LossChecker {
    start: Start,
    order: Order,
    /// By service and index.
    replicas: BTreeMap<String, BTreeMap<u32, Replica>>,
    replica_count: usize,
    verdict: Verdict,
}

#[derive(Debug, Default)]
struct Verdict {
    tally: Tally,
    violation: Option<Violation>,
}

/// What was received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Whole lines.
    pub lines: u64,
    /// Of these, lines with a number, which were checked.
    pub checked: u64,
    /// Bytes of log, newlines included.
    pub bytes: u64,
    /// Gap entries.
    pub gaps: u64,
    /// Lines reported as lost.
    pub lost_lines: u64,
    /// Bytes reported as lost.
    pub lost_bytes: u64,
}

/// The first thing that was wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// `service/replica`.
    pub replica: String,
    /// The run.
    pub instance: String,
    /// What is wrong.
    pub fault: Fault,
    /// The beginning of the line at which it showed.
    pub line: String,
}

/// What may be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Lines are missing that no gap tells of, or fewer than a gap tells of.
    Hole {
        /// The number before the hole; 0 before the first line of a run.
        after: u64,
        /// Lines reported as lost since it was last right.
        reported: u64,
        /// The number behind the hole.
        got: u64,
    },
    /// A line came again, or out of order.
    Repeat {
        /// The last number received.
        after: u64,
        /// The number that came.
        got: u64,
    },
    /// A run came again after another one.
    RunRepeated,
    /// There were more replicas than are judged.
    TooManyReplicas,
}

#[derive(Debug)]
struct Replica {
    /// `service/index`.
    name: String,
    instance: Option<String>,
    /// Whether there was a run before this one.
    has_earlier_runs: bool,
    sequence: Sequence,
    /// The lines that have not ended: of a stream that is not known, of standard output, of standard error.
    lines: [Option<Unfinished>; 3],
}

/// A line that has not ended.
#[derive(Debug, Default)]
struct Unfinished {
    /// Its beginning.
    head: Vec<u8>,
    /// Whether its first pieces were not received: then it counts for nothing.
    torn: bool,
}

// === impl LossChecker ===

impl LossChecker {
    /// An oracle that has seen nothing.
    pub fn new(start: Start, order: Order) -> Self {
        Self { start, order, replicas: BTreeMap::new(), replica_count: 0, verdict: Verdict::default() }
    }

    /// Judges one entry.
    pub fn feed(&mut self, entry: &ServiceLogs) {
        let known = self.replicas.get(&entry.name).is_some_and(|all| all.contains_key(&entry.replica));
        if !known && !self.admit(entry) {
            return;
        }
        let slot = self.replicas.get_mut(&entry.name).and_then(|all| all.get_mut(&entry.replica));
        if let Some(replica) = slot {
            replica.feed(entry, &mut self.verdict);
        }
    }

    /// What was received, if all of it was right.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn verdict(&self) -> Result<Tally, Box<Violation>> {
        if let Some(violation) = &self.verdict.violation {
            return Err(Box::new(violation.clone()));
        }
        for replica in self.replicas.values().flat_map(BTreeMap::values) {
            if let Err(fault) = replica.sequence.stop() {
                return Err(Box::new(replica.violation(fault, b"")));
            }
        }
        Ok(self.verdict.tally)
    }

    /// What was received, right or not.
    pub fn tally(&self) -> Tally {
        self.verdict.tally
    }

    fn admit(&mut self, entry: &ServiceLogs) -> bool {
        let name = format!("{}/{}", entry.name, entry.replica);
        let replica = Replica {
            name,
            instance: None,
            has_earlier_runs: false,
            sequence: Sequence::new(self.order, self.start),
            lines: Default::default(),
        };
        if self.replica_count == STREAM_REPLICAS_MAX {
            self.verdict.violate(&replica, Fault::TooManyReplicas, b"");
            return false;
        }
        self.replica_count += 1;
        let service = self.replicas.entry(entry.name.clone()).or_default();
        service.insert(entry.replica, replica);
        true
    }
}

// === impl Verdict ===

impl Verdict {
    fn violate(&mut self, replica: &Replica, fault: Fault, line: &[u8]) {
        self.violation.get_or_insert_with(|| replica.violation(fault, line));
    }
}

// === impl Tally ===

impl Tally {
    /// Adds what another follower received.
    pub fn add(&mut self, other: &Self) {
        self.lines += other.lines;
        self.checked += other.checked;
        self.bytes += other.bytes;
        self.gaps += other.gaps;
        self.lost_lines = self.lost_lines.saturating_add(other.lost_lines);
        self.lost_bytes = self.lost_bytes.saturating_add(other.lost_bytes);
    }
}

impl Sink for LossChecker {
    fn entry(&mut self, entry: &ServiceLogs) -> io::Result<()> {
        self.feed(entry);
        Ok(())
    }
}

// === impl Replica ===

impl Replica {
    fn feed(&mut self, entry: &ServiceLogs, verdict: &mut Verdict) {
        if let Some(cursor) = &entry.cursor
            && (entry.gap.is_some() || !entry.logs.is_empty())
            && self.instance.as_deref() != Some(cursor.instance.as_str())
        {
            self.next_run(&cursor.instance, verdict);
        }
        if let Some(gap) = &entry.gap {
            verdict.tally.gaps += 1;
            // What a gateway claims may be anything.
            let Tally { lost_lines, lost_bytes, .. } = &mut verdict.tally;
            *lost_lines = lost_lines.saturating_add(gap.lines);
            *lost_bytes = lost_bytes.saturating_add(gap.bytes);
            self.report(gap);
        } else if entry.event.is_none() {
            verdict.tally.bytes += entry.logs.len() as u64;
            match &entry.part {
                Some(part) => self.piece(*part, &entry.logs, verdict),
                None => self.whole_lines(&entry.logs, verdict),
            }
        }
    }

    /// Takes whole lines; or, of a gateway that does not say so, a piece of one.
    fn whole_lines(&mut self, data: &[u8], verdict: &mut Verdict) {
        let mut rest = data;
        while let Some(end) = memchr(b'\n', rest) {
            let piece = &rest[..end];
            if let Some(mut line) = self.lines[0].take() {
                extend(&mut line.head, piece);
                self.finished(&line, verdict);
            } else {
                self.whole_line(piece, verdict);
            }
            rest = &rest[end + 1..];
        }
        if !rest.is_empty() {
            extend(&mut self.lines[0].get_or_insert_default().head, rest);
        }
    }

    fn piece(&mut self, part: LinePart, data: &[u8], verdict: &mut Verdict) {
        let slot = match part.stream() {
            line_part::Stream::Unspecified => 0,
            line_part::Stream::Stdout => 1,
            line_part::Stream::Stderr => 2,
        };
        let mut line = match self.lines[slot].take() {
            Some(line) if part.continues => line,
            line => {
                // The line before ended without a newline.
                if let Some(line) = line {
                    self.finished(&line, verdict);
                }
                Unfinished { head: Vec::new(), torn: part.continues }
            }
        };
        extend(&mut line.head, data.strip_suffix(b"\n").unwrap_or(data));
        if part.more {
            self.lines[slot] = Some(line);
        } else {
            self.finished(&line, verdict);
        }
    }

    fn finished(&mut self, line: &Unfinished, verdict: &mut Verdict) {
        if !line.torn {
            self.whole_line(&line.head, verdict);
        }
    }

    fn whole_line(&mut self, line: &[u8], verdict: &mut Verdict) {
        verdict.tally.lines += 1;
        let Some(number) = number(line) else {
            self.sequence.unnumbered();
            return;
        };
        verdict.tally.checked += 1;
        if let Err(fault) = self.sequence.line(number) {
            verdict.violate(self, fault, line);
        }
    }

    fn next_run(&mut self, instance: &str, verdict: &mut Verdict) {
        // The last lines of the run that ended had no newline.
        for line in std::mem::take(&mut self.lines).into_iter().flatten() {
            self.finished(&line, verdict);
        }
        if let Some(before) = &self.instance {
            let counts = restarts(before).zip(restarts(instance));
            if counts.is_some_and(|((pod, before), (now, after))| pod == now && after <= before) {
                verdict.violate(self, Fault::RunRepeated, b"");
            }
            let (next, ended) = self.sequence.next();
            if let Err(fault) = ended {
                verdict.violate(self, fault, b"");
            }
            self.sequence = next;
            self.has_earlier_runs = true;
        }
        self.instance = Some(instance.to_owned());
    }

    fn report(&mut self, gap: &Gap) {
        self.sequence.gap(gap.lines, gap.exact, self.has_earlier_runs);
        // A line counts as lost if any piece of it is, so the pieces that came count for nothing.
        self.lines = Default::default();
    }

    fn violation(&self, fault: Fault, line: &[u8]) -> Violation {
        let shown = line.get(..SHOWN_BYTES).unwrap_or(line);
        Violation {
            replica: self.name.clone(),
            instance: self.instance.clone().unwrap_or_default(),
            fault,
            line: String::from_utf8_lossy(shown).into_owned(),
        }
    }
}

/// Adds to the beginning of a line what fits.
fn extend(head: &mut Vec<u8>, piece: &[u8]) {
    let room = SHOWN_BYTES.saturating_sub(head.len());
    head.extend_from_slice(piece.get(..room).unwrap_or(piece));
}

/// The number that a line begins with.
fn number(head: &[u8]) -> Option<u64> {
    let digits = head.get(..HEAD_BYTES.min(head.len()))?;
    let end = memchr(b' ', digits).unwrap_or(digits.len());
    let ends = end < digits.len() || head.len() <= HEAD_BYTES;
    let digits = std::str::from_utf8(&digits[..end]).ok().filter(|_| ends)?;
    digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()))
}

/// Pod and restart count of an instance, `uid/container/restarts`.
fn restarts(instance: &str) -> Option<(&str, u64)> {
    let (pod, count) = instance.rsplit_once('/')?;
    Some((pod, count.parse().ok()?))
}

// === impl Violation ===

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { replica, instance, fault, line } = self;
        write!(f, "{replica}, run {instance}: ")?;
        match fault {
            Fault::Hole { after, reported, got } => {
                write!(
                    f,
                    "between line {after} and line {got} lines are missing, and {reported} were reported"
                )?;
            }
            Fault::Repeat { after, got } => write!(f, "line {got} came after line {after}")?,
            Fault::RunRepeated => write!(f, "this run came after a later one")?,
            Fault::TooManyReplicas => write!(f, "more than {STREAM_REPLICAS_MAX} replicas")?,
        }
        if line.is_empty() { Ok(()) } else { write!(f, ": {line:?}") }
    }
}

impl std::error::Error for Violation {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::proto::lease::Cursor;

    fn entry(instance: &str, logs: &[u8], gap: Option<(u64, bool)>) -> ServiceLogs {
        let cursor = Cursor { service: "web".into(), instance: instance.into(), ..Default::default() };
        let gap = gap.map(|(lines, exact)| Gap { lines, exact, bytes: lines * 10, ..Default::default() });
        ServiceLogs {
            name: "web".into(),
            replica: 0,
            logs: logs.to_vec().into(),
            cursor: Some(cursor),
            part: None,
            gap,
            event: None,
        }
    }

    /// A script: `A1 A2 g3 A6` are lines of run A and an exact gap of three; `i2` an inexact one; `Ax` a line without number.
    fn judge(start: Start, script: &str) -> Result<Tally, Fault> {
        let mut oracle = LossChecker::new(start, Order::Exact);
        let mut run = "A".to_owned();
        for word in script.split(' ') {
            let (kind, rest) = word.split_at(1);
            let lines = rest.parse().ok();
            match kind {
                "g" => oracle.feed(&entry(
                    &format!("p/c/{}", run_number(&run)),
                    b"",
                    Some((lines.unwrap(), true)),
                )),
                "i" => oracle.feed(&entry(
                    &format!("p/c/{}", run_number(&run)),
                    b"",
                    Some((lines.unwrap(), false)),
                )),
                _ => {
                    run = kind.to_owned();
                    let line = format!("{rest} text\n");
                    oracle.feed(&entry(&format!("p/c/{}", run_number(&run)), line.as_bytes(), None));
                }
            }
        }
        oracle.verdict().map_err(|violation| violation.fault)
    }

    fn run_number(run: &str) -> u32 {
        u32::from(run.as_bytes()[0] - b'A')
    }

    #[test]
    fn what_is_right_is_counted() {
        for script in [
            "A1 A2 A3",
            "A1 A2 g3 A6",
            "g5 A6 A7",
            "A1 g1 g2 A5",
            "A1 i2 A4",
            "A1 i2 A9",
            "A1 i0 A2",
            "A1 A2 B1 B2 C1",
            "A1 g4 B1",
            "A1 g4 B3",
            "A1 g4 B5",
            "A1 Ax A2 g3 A3",
            "A1 Ax g3 A5",
            "Ax Ax",
        ] {
            assert!(judge(Start::First, script).is_ok(), "{script}: {:?}", judge(Start::First, script));
        }
        assert!(judge(Start::Anywhere, "A7 A8 g1 A10 B1").is_ok());
        let tally = judge(Start::First, "A1 A2 g3 A6 Ax").unwrap();
        let expected = Tally { lines: 4, checked: 3, bytes: 28, gaps: 1, lost_lines: 3, lost_bytes: 30 };
        assert_eq!(tally, expected);
    }

    #[test]
    fn what_is_wrong_is_found() {
        let hole = |after, reported, got| Err(Fault::Hole { after, reported, got });
        let repeat = |after, got| Err(Fault::Repeat { after, got });
        for (script, verdict) in [
            ("A2", hole(0, 0, 2)),
            ("A1 A3", hole(1, 0, 3)),
            ("A1 g2 A3", hole(1, 2, 3)),
            ("A1 g2 A5", hole(1, 2, 5)),
            ("A1 g2 A2", hole(1, 2, 2)),
            ("A1 i2 A3", hole(1, 2, 3)),
            ("A1 A1", repeat(1, 1)),
            ("A1 A2 A3 A2", repeat(3, 2)),
            ("A1 g1 A1", repeat(1, 1)),
            ("A1 B2", hole(0, 0, 2)),
            ("A1 g3 B5", hole(0, 3, 5)),
            ("A1 g3 B4 B6", hole(4, 0, 6)),
            ("A1 Ax A5", hole(1, 0, 5)),
            ("A1 B1 A2", Err(Fault::RunRepeated)),
        ] {
            assert_eq!(judge(Start::First, script), verdict, "{script}");
        }
        assert_eq!(judge(Start::Anywhere, "A7 A9"), hole(7, 0, 9));
        assert_eq!(judge(Start::Anywhere, "A7 B2"), hole(0, 0, 2));
        assert_eq!(judge(Start::Anywhere, "A7 A7"), repeat(7, 7));
    }

    #[test]
    fn a_gap_over_the_end_of_a_run_may_be_reported_in_either() {
        for (run, next, right) in
            [(0, 3, true), (1, 3, true), (1, 1, true), (1, 5, true), (1, 6, false), (0, 6, false)]
        {
            let mut oracle = LossChecker::new(Start::First, Order::Exact);
            oracle.feed(&entry("p/c/0", b"1 a\n", None));
            oracle.feed(&entry(&format!("p/c/{run}"), b"", Some((4, true))));
            oracle.feed(&entry("p/c/1", format!("{next} b\n").as_bytes(), None));
            assert_eq!(oracle.verdict().is_ok(), right, "{run} {next}");
        }
    }

    #[test]
    fn a_gateway_may_claim_anything() {
        let gap = Some(Gap { lines: u64::MAX, bytes: u64::MAX, exact: true, ..Default::default() });
        let mut oracle = LossChecker::new(Start::First, Order::Exact);
        for _ in 0..2 {
            oracle.feed(&ServiceLogs { gap, ..entry("p/c/0", b"", None) });
        }
        let mut tally = oracle.tally();
        tally.add(&oracle.tally());
        assert_eq!((tally.gaps, tally.lost_lines, tally.lost_bytes), (4, u64::MAX, u64::MAX));
    }

    #[test]
    fn a_line_of_which_a_piece_is_lost_is_lost() {
        let mut oracle = LossChecker::new(Start::First, Order::Exact);
        oracle.feed(&entry("p/c/0", b"1 a\n2 begin", None));
        oracle.feed(&entry("p/c/0", b"", Some((2, true))));
        oracle.feed(&entry("p/c/0", b"4 d\n", None));
        assert_eq!(oracle.verdict().unwrap().lines, 2);
    }

    #[test]
    fn a_last_line_without_newline_counts() {
        let mut oracle = LossChecker::new(Start::First, Order::Exact);
        oracle.feed(&entry("p/c/0", b"1 a\n2 dies", None));
        oracle.feed(&entry("p/c/1", b"1 a\n", None));
        assert_eq!(oracle.verdict().unwrap().lines, 3);
        oracle.feed(&entry("p/c/1", b"3 dies", None));
        oracle.feed(&entry("p/c/2", b"1 a\n", None));
        let violation = oracle.verdict().unwrap_err();
        assert_eq!(violation.fault, Fault::Hole { after: 1, reported: 0, got: 3 });
        assert_eq!(
            violation.to_string(),
            "web/0, run p/c/1: between line 1 and line 3 lines are missing, and 0 were reported: \"3 dies\""
        );
    }

    #[test]
    fn numbers() {
        for (head, expected) in [
            ("1 x", Some(1)),
            ("1", Some(1)),
            ("18446744073709551615", Some(u64::MAX)),
            ("99999999999999999999 x", None),
            ("", None),
            (" 1", None),
            ("+1 x", None),
            ("1x", None),
            ("1234567890123456789012345", None),
        ] {
            assert_eq!(number(head.as_bytes()), expected, "{head}");
        }
    }

    proptest! {
        /// Lines of growing number, cut anywhere into entries, some runs of lines replaced by exact gaps: right. The same
        /// with one gap's count changed, or one line left out: wrong.
        #[test]
        fn every_unreported_loss_is_found(
            kept in proptest::collection::vec(any::<bool>(), 3..40),
            width in 1..30_usize,
            victim in any::<prop::sample::Index>(),
        ) {
            let mut kept = kept;
            kept.push(true);
            let feed = |skip: Option<usize>, add: u64| {
                let mut oracle = LossChecker::new(Start::First, Order::Exact);
                let mut text = Vec::new();
                let mut lost = 0;
                for (at, kept) in kept.iter().enumerate() {
                    let sent = *kept && skip != Some(at);
                    if *kept && lost > 0 {
                        oracle.feed(&entry("p/c/0", b"", Some((lost + add, true))));
                        lost = 0;
                    }
                    if sent {
                        text.extend_from_slice(format!("{} line\n", at + 1).as_bytes());
                    }
                    if !kept {
                        lost += 1;
                    }
                    for piece in std::mem::take(&mut text).chunks(width) {
                        oracle.feed(&entry("p/c/0", piece, None));
                    }
                }
                oracle.verdict().is_ok()
            };
            prop_assert!(feed(None, 0));
            let first = victim.index(kept.len() - 1);
            if kept[first] {
                prop_assert!(!feed(Some(first), 0));
            }
            if kept.contains(&false) {
                prop_assert!(!feed(None, 1));
            }
        }
    }
}
