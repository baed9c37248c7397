//! Checks that *delivered ∪ reported gaps = produced, in order, without repeats.*
//!
//! The checker is fed with the entries that a follower receives. The producer numbers its lines: each line
//! starts with a number and a space, `1 …`, `2 …`, from 1 in every run of the container. So every line must
//! continue where the previous line and the gaps after it ended. Lines without a number are counted but not
//! checked; in a run that has some, a gap may be larger than the difference of the numbers around it. The
//! checker does no I/O.
//!
//! A producer that numbers lines across standard output and standard error writes to two pipes, which may be
//! merged in a slightly different order ([`Order::TwoPipes`]). Then a line may be late, but still comes once
//! or is reported as lost.

use std::collections::BTreeMap;
use std::fmt;

use memchr::memchr;

use self::line_heads::LineHeads;
use self::sequence::Sequence;

use crate::model::limits::STREAM_REPLICAS_MAX;
use crate::model::proto::lease::{Gap, ServiceLogs};

pub(crate) mod line_heads;
mod sequence;

/// Bytes of a line that are searched for a number: the longest `u64`.
const HEAD_BYTES: usize = 20;

/// Bytes of a line that a [`Violation`] shows.
const SHOWN_BYTES: usize = 80;

/// Expected first line of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Line 1 of a run: all lines were requested and can still be read.
    First,
    /// Any line: the backfill was limited.
    Anywhere,
}

/// Order of a producer's lines in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As numbered: the producer writes to one pipe.
    Exact,
    /// Nearly as numbered: it writes to two pipes.
    TwoPipes,
}

/// Checks the entries of one follower.
#[derive(Debug)]
pub struct LossChecker {
    start: Start,
    order: Order,
    /// By service and replica number.
    replicas: BTreeMap<String, BTreeMap<u32, Replica>>,
    verdict: Verdict,
}

#[derive(Debug, Default)]
struct Verdict {
    tally: Tally,
    violation: Option<Violation>,
}

/// Received lines, bytes and gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Whole lines.
    pub lines: u64,
    /// Lines with a number, which were checked.
    pub checked: u64,
    /// Log bytes, newlines included.
    pub bytes: u64,
    /// Entries that report a gap.
    pub gaps: u64,
    /// Lines reported as lost.
    pub lost_lines: u64,
    /// Bytes reported as lost.
    pub(crate) lost_bytes: u64,
}

/// First violation in a replica's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// `service/replica`.
    pub(crate) replica: String,
    pub(crate) instance: String,
    pub(crate) fault: Fault,
    /// Start of the line at which it was found.
    pub(crate) line: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Lines are missing without a report, or more are reported than are missing.
    Hole {
        /// Number before the missing lines; 0 at the start of a run.
        after: u64,
        /// Lines reported as lost since the numbers last added up.
        reported: u64,
        /// Number after the missing lines.
        got: u64,
    },
    /// Line `got` came after a line `after` that is not smaller.
    Repeat { after: u64, got: u64 },
    /// A run came again after a later one.
    RunRepeated,
    /// More replicas than `STREAM_REPLICAS_MAX`.
    TooManyReplicas,
}

#[derive(Debug)]
struct Replica {
    name: String,
    instance: Option<String>,
    /// Whether an earlier run was seen.
    has_earlier_runs: bool,
    sequence: Sequence,
    lines: LineHeads,
}

// === impl LossChecker ===

impl LossChecker {
    /// Creates a checker of one follower, which has received nothing yet.
    pub fn new(start: Start, order: Order) -> Self {
        Self { start, order, replicas: BTreeMap::new(), verdict: Verdict::default() }
    }

    /// Checks the next entry.
    pub fn feed(&mut self, entry: &ServiceLogs) {
        let is_known = self.replicas.get(&entry.name).is_some_and(|all| all.contains_key(&entry.replica));
        if !is_known && !self.add_replica(entry) {
            return;
        }
        let slot = self.replicas.get_mut(&entry.name).and_then(|all| all.get_mut(&entry.replica));
        if let Some(replica) = slot {
            replica.feed(entry, &mut self.verdict);
        }
    }

    /// Returns the counts if no violation was found.
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

    /// Returns the counts, violations or not.
    pub fn tally(&self) -> Tally {
        self.verdict.tally
    }

    fn add_replica(&mut self, entry: &ServiceLogs) -> bool {
        let name = format!("{}/{}", entry.name, entry.replica);
        let replica = Replica {
            name,
            instance: None,
            has_earlier_runs: false,
            sequence: Sequence::new(self.order, self.start),
            lines: LineHeads::new(SHOWN_BYTES),
        };
        if self.replicas.values().map(BTreeMap::len).sum::<usize>() == STREAM_REPLICAS_MAX {
            self.verdict.violate(&replica, Fault::TooManyReplicas, b"");
            return false;
        }
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
    /// Adds the counts of another follower.
    pub fn add(&mut self, other: &Self) {
        self.lines += other.lines;
        self.checked += other.checked;
        self.bytes += other.bytes;
        self.gaps += other.gaps;
        self.lost_lines = self.lost_lines.saturating_add(other.lost_lines);
        self.lost_bytes = self.lost_bytes.saturating_add(other.lost_bytes);
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
            // Counts from a gateway are untrusted and may overflow.
            let Tally { lost_lines, lost_bytes, .. } = &mut verdict.tally;
            *lost_lines = lost_lines.saturating_add(gap.lines);
            *lost_bytes = lost_bytes.saturating_add(gap.bytes);
            self.report(gap);
        } else if entry.event.is_none() {
            verdict.tally.bytes += entry.logs.len() as u64;
            self.with_lines(|replica, lines| {
                lines.push(entry.part, &entry.logs, &mut |line| replica.whole_line(line, verdict));
            });
        }
    }

    /// Lends the joiner of lines to `work`.
    fn with_lines(&mut self, work: impl FnOnce(&mut Self, &mut LineHeads)) {
        let mut lines = std::mem::replace(&mut self.lines, LineHeads::new(SHOWN_BYTES));
        work(self, &mut lines);
        self.lines = lines;
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
        self.with_lines(|replica, lines| lines.finish(&mut |line| replica.whole_line(line, verdict)));
        if let Some(before) = &self.instance {
            let numbers = run_number(before).zip(run_number(instance));
            if numbers.is_some_and(|((container, before), (now, after))| container == now && after <= before)
            {
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
        self.lines.clear();
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

/// Parses the number at the start of a line.
fn number(head: &[u8]) -> Option<u64> {
    let digits = head.get(..HEAD_BYTES.min(head.len()))?;
    let end = memchr(b' ', digits).unwrap_or(digits.len());
    let is_whole = end < digits.len() || head.len() <= HEAD_BYTES;
    let digits = std::str::from_utf8(&digits[..end]).ok().filter(|_| is_whole)?;
    digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()))
}

/// Splits an instance into its container, `uid/name`, and the number of the run.
fn run_number(instance: &str) -> Option<(&str, u64)> {
    let (container, number) = instance.rsplit_once('/')?;
    Some((container, number.parse().ok()?))
}

// === impl Violation ===

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { replica, instance, fault, line } = self;
        write!(f, "{replica}, run {instance}: ")?;
        match fault {
            Fault::Hole { after, reported, got } => {
                write!(f, "lines are missing between line {after} and line {got}, {reported} reported lost")?;
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
            gap,
            ..Default::default()
        }
    }

    /// Checks a script: `A1 A2 g3 A6` are lines of run A and an exact gap of three; `i2` is an inexact gap;
    /// `Ax` is a line without a number.
    fn check(start: Start, script: &str) -> Result<Tally, Fault> {
        let mut checker = LossChecker::new(start, Order::Exact);
        let mut run = 0;
        for word in script.split(' ') {
            let (kind, rest) = word.split_at(1);
            let is_gap = matches!(kind, "g" | "i");
            if !is_gap {
                run = kind.as_bytes()[0] - b'A';
            }
            let instance = format!("p/c/{run}");
            checker.feed(&if is_gap {
                entry(&instance, b"", Some((rest.parse().unwrap(), kind == "g")))
            } else {
                entry(&instance, format!("{rest} text\n").as_bytes(), None)
            });
        }
        checker.verdict().map_err(|violation| violation.fault)
    }

    #[test]
    fn complete_logs_pass_and_are_counted() {
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
            assert!(check(Start::First, script).is_ok(), "{script}: {:?}", check(Start::First, script));
        }
        assert!(check(Start::Anywhere, "A7 A8 g1 A10 B1").is_ok());
        let tally = check(Start::First, "A1 A2 g3 A6 Ax").unwrap();
        let expected = Tally { lines: 4, checked: 3, bytes: 28, gaps: 1, lost_lines: 3, lost_bytes: 30 };
        assert_eq!(tally, expected);
    }

    #[test]
    fn violations_are_found() {
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
            assert_eq!(check(Start::First, script), verdict, "{script}");
        }
        assert_eq!(check(Start::Anywhere, "A7 A9"), hole(7, 0, 9));
        assert_eq!(check(Start::Anywhere, "A7 B2"), hole(0, 0, 2));
        assert_eq!(check(Start::Anywhere, "A7 A7"), repeat(7, 7));
    }

    #[test]
    fn gap_across_runs_may_be_reported_in_either() {
        for (run, next, right) in
            [(0, 3, true), (1, 3, true), (1, 1, true), (1, 5, true), (1, 6, false), (0, 6, false)]
        {
            let mut checker = LossChecker::new(Start::First, Order::Exact);
            checker.feed(&entry("p/c/0", b"1 a\n", None));
            checker.feed(&entry(&format!("p/c/{run}"), b"", Some((4, true))));
            checker.feed(&entry("p/c/1", format!("{next} b\n").as_bytes(), None));
            assert_eq!(checker.verdict().is_ok(), right, "{run} {next}");
        }
    }

    #[test]
    fn huge_gap_counts_saturate() {
        let gap = Some(Gap { lines: u64::MAX, bytes: u64::MAX, exact: true, ..Default::default() });
        let mut checker = LossChecker::new(Start::First, Order::Exact);
        for _ in 0..2 {
            checker.feed(&ServiceLogs { gap, ..entry("p/c/0", b"", None) });
        }
        let mut tally = checker.tally();
        tally.add(&checker.tally());
        assert_eq!((tally.gaps, tally.lost_lines, tally.lost_bytes), (4, u64::MAX, u64::MAX));
    }

    #[test]
    fn line_with_a_lost_piece_is_lost() {
        let mut checker = LossChecker::new(Start::First, Order::Exact);
        checker.feed(&entry("p/c/0", b"1 a\n2 begin", None));
        checker.feed(&entry("p/c/0", b"", Some((2, true))));
        checker.feed(&entry("p/c/0", b"4 d\n", None));
        assert_eq!(checker.verdict().unwrap().lines, 2);
    }

    #[test]
    fn last_line_without_newline_is_counted() {
        let mut checker = LossChecker::new(Start::First, Order::Exact);
        checker.feed(&entry("p/c/0", b"1 a\n2 dies", None));
        checker.feed(&entry("p/c/1", b"1 a\n", None));
        assert_eq!(checker.verdict().unwrap().lines, 3);
        checker.feed(&entry("p/c/1", b"3 dies", None));
        checker.feed(&entry("p/c/2", b"1 a\n", None));
        let violation = checker.verdict().unwrap_err();
        assert_eq!(violation.fault, Fault::Hole { after: 1, reported: 0, got: 3 });
        assert_eq!(
            violation.to_string(),
            "web/0, run p/c/1: lines are missing between line 1 and line 3, 0 reported lost: \"3 dies\""
        );
    }

    #[test]
    fn number_is_parsed_from_line_start() {
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
        /// Numbered lines, cut anywhere into entries, with some lines replaced by exact gaps, pass. They fail
        /// if the count of a gap is changed or a line is left out.
        #[test]
        fn every_unreported_loss_is_found(
            kept in proptest::collection::vec(any::<bool>(), 3..40),
            width in 1..30_usize,
            victim in any::<prop::sample::Index>(),
        ) {
            let mut kept = kept;
            kept.push(true);
            let feed = |skip: Option<usize>, add: u64| {
                let mut checker = LossChecker::new(Start::First, Order::Exact);
                let mut text = Vec::new();
                let mut lost = 0;
                for (at, kept) in kept.iter().enumerate() {
                    let sent = *kept && skip != Some(at);
                    if *kept && lost > 0 {
                        checker.feed(&entry("p/c/0", b"", Some((lost + add, true))));
                        lost = 0;
                    }
                    if sent {
                        text.extend_from_slice(format!("{} line\n", at + 1).as_bytes());
                    }
                    if !kept {
                        lost += 1;
                    }
                    for piece in std::mem::take(&mut text).chunks(width) {
                        checker.feed(&entry("p/c/0", piece, None));
                    }
                }
                checker.verdict().is_ok()
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
