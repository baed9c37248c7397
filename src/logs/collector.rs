//! Collects the answer of a unary `ServiceLogs` call: the newest lines of each replica, within limits. Pure.
//!
//! Lines are those of the merged output: bytes up to a newline, whichever stream they come from. The
//! collector evicts whole lines, oldest first, of the replica that is over its limit or, for the total limit,
//! of the replica that holds most. So a quiet replica keeps its lines beside a busy one. An eviction is
//! reported as the first line of the replica.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

use super::message::{self, Gap};
use super::notice::{Notice, NoticeKind, Notices};
use crate::model::id::Replica;
use crate::model::line::GapCause;
use crate::model::proto::lease;
use crate::model::published::{ServiceLogs, ServiceLogsResponse};
use crate::model::time::LogTime;

/// Bytes that a line costs besides its text: its element in [`Slot::lines`], rounded up. Bounds the memory
/// for many short lines.
const LINE_OVERHEAD_BYTES: usize = 32;

/// Bytes that an entry costs besides its text and name: tags and lengths of its fields, rounded up.
const ENTRY_OVERHEAD_BYTES: usize = 16;

/// Unused elements of a buffer that are not worth a copy.
const SHRINK_ABOVE: usize = 16;

/// Limits of a [`Collector`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct CollectorLimits {
    /// Maximum lines of one replica, notices included.
    pub(crate) replica_lines: usize,
    /// Maximum bytes of one replica, overhead included.
    pub(crate) replica_bytes: usize,
    /// Maximum bytes of all replicas, overhead included, reports of evictions excluded.
    pub(crate) total_bytes: usize,
}

/// The newest lines of the replicas of a call.
#[derive(Debug)]
pub(crate) struct Collector {
    limits: CollectorLimits,
    notices: Notices,
    slots: Vec<Slot>,
    /// The cost of each slot with its index: the last one holds most.
    by_cost: BTreeSet<(usize, usize)>,
    total: usize,
}

/// The lines of one replica.
#[derive(Debug)]
struct Slot {
    replica: Replica,
    /// Consecutive lines under one name; the last one is current.
    runs: VecDeque<NamedRun>,
    lines: VecDeque<StoredLine>,
    /// The bytes of `lines`, back to back.
    data: VecDeque<u8>,
    /// Whether the last line has not ended.
    is_open: bool,
    cost: usize,
    /// `cost` as [`Collector::by_cost`] and [`Collector::total`] have it.
    counted_cost: usize,
    /// Lines of the log that have arrived, without notices.
    received: usize,
    /// What was evicted.
    evicted: Evicted,
}

#[derive(Debug)]
struct NamedRun {
    name: String,
    /// Elements of [`Slot::lines`] that belong to it.
    lines: usize,
}

#[derive(Debug)]
struct StoredLine {
    bytes: usize,
    time: LogTime,
    kind: LineKind,
}

#[derive(Debug)]
enum LineKind {
    Log,
    /// The notice of a gap. Its eviction adds the gap to the report.
    Gap(Box<Gap>),
    /// Any other notice.
    Notice,
}

#[derive(Debug, Default)]
struct Evicted {
    lines: u64,
    bytes: u64,
    /// Whether a gap of unknown size was evicted.
    is_inexact: bool,
}

impl From<&lease::Gap> for Gap {
    fn from(gap: &lease::Gap) -> Self {
        use lease::gap::Cause;
        let cause = match gap.cause() {
            Cause::Lag => GapCause::Lag,
            Cause::Rotated => GapCause::Rotated,
            Cause::Limit => GapCause::Limit,
            Cause::Source | Cause::Unspecified => GapCause::Source,
        };
        Self { cause, lines: gap.lines, bytes: gap.bytes, exact: gap.exact, from: None, to: None }
    }
}

// === impl CollectorLimits ===

impl CollectorLimits {
    /// The limits of a unary call. Clients accept messages of 4 MiB: the difference is for up to 1,024
    /// reports of evictions.
    pub(crate) const UNARY: Self =
        Self { replica_lines: 1_000, replica_bytes: 1024 * 1024, total_bytes: 3_584 * 1024 };

    /// Returns how many last lines to read from each replica: one more than the limit, which then shows that
    /// there are older ones.
    pub(crate) const fn lines_to_read(self) -> u64 {
        self.replica_lines as u64 + 1
    }
}

// === impl Collector ===

impl Collector {
    pub(crate) fn new(limits: CollectorLimits, notices: Notices) -> Self {
        Self { limits, notices, slots: Vec::new(), by_cost: BTreeSet::new(), total: 0 }
    }

    /// Adds an entry of a draft stream. `name_of` returns the name of a replica in the run of an instance,
    /// which may be empty: unknown. Then the name of the last entry stays. Entries of no replica are left
    /// out.
    pub(crate) fn push_entry(
        &mut self,
        entry: &lease::ServiceLogs,
        name_of: impl FnOnce(&Replica, &str) -> String,
    ) {
        let Ok(service) = entry.name.parse() else { return };
        let replica = Replica { service, index: entry.replica };
        let (cursor, event) = (entry.cursor.as_ref(), entry.event.as_ref());
        let instance = event.map(|event| &event.instance).or(cursor.map(|cursor| &cursor.instance));
        let current = self.known_slot(&replica).and_then(|index| self.slots[index].name());
        let name = match (instance.map(String::as_str).unwrap_or_default(), current) {
            ("", Some(name)) => name.to_owned(),
            (instance, _) => name_of(&replica, instance),
        };
        let stamp = event.and_then(|event| event.time).or(cursor.and_then(|cursor| cursor.time));
        let time = stamp.and_then(|stamp| LogTime::from_parts(stamp.seconds, stamp.nanos));
        let time = time.unwrap_or(LogTime::MIN);
        if let Some(gap) = &entry.gap {
            self.push_gap(&replica, &name, time, Gap::from(gap));
        } else if let Some(event) = event {
            let notice = Notice::of_event(Some(replica.index), event);
            match notice.filter(|notice| self.notices.includes(notice.kind)) {
                Some(notice) => self.push_line(&replica, &name, time, &notice.line()),
                None => self.end_line(&replica),
            }
        } else {
            self.push_logs(&replica, &name, time, &entry.logs);
        }
    }

    /// Adds the next bytes of a replica's log, whose newest line has this time. A change of `name` ends an
    /// unfinished line.
    pub(crate) fn push_logs(&mut self, replica: &Replica, name: &str, time: LogTime, logs: &[u8]) {
        if logs.is_empty() {
            return;
        }
        let index = self.slot(replica, name);
        for piece in logs.split_inclusive(|byte| *byte == b'\n') {
            self.slots[index].append(piece, time);
            self.enforce(index);
        }
    }

    /// Adds a gap.
    pub(crate) fn push_gap(&mut self, replica: &Replica, name: &str, time: LogTime, gap: Gap) {
        if self.notices.includes(NoticeKind::Gap) {
            let line = message::notice(&gap);
            self.push_notice(replica, name, time, &line, LineKind::Gap(Box::new(gap)));
        } else {
            self.end_line(replica);
        }
    }

    /// Ends an unfinished line that does not continue, because of a gap or because its run has ended.
    fn end_line(&mut self, replica: &Replica) {
        if let Some(index) = self.known_slot(replica) {
            self.slots[index].end_line();
            self.enforce(index);
        }
    }

    /// Adds another notice, without its newline.
    pub(crate) fn push_line(&mut self, replica: &Replica, name: &str, time: LogTime, line: &str) {
        self.push_notice(replica, name, time, &format!("{line}\n"), LineKind::Notice);
    }

    fn push_notice(&mut self, replica: &Replica, name: &str, time: LogTime, line: &str, kind: LineKind) {
        let index = self.slot(replica, name);
        let slot = &mut self.slots[index];
        slot.end_line();
        slot.push(line.as_bytes(), time, kind);
        self.enforce(index);
    }

    /// Returns the response: one entry per replica and name, ordered by the time of the first line.
    pub(crate) fn finish(self) -> ServiceLogsResponse {
        let mut entries = Vec::new();
        for slot in self.slots {
            slot.finish(&self.limits, self.notices, &mut entries);
        }
        entries.sort_by_key(|(time, _)| *time);
        ServiceLogsResponse { services: entries.into_iter().map(|(_, entry)| entry).collect() }
    }

    /// Returns the index of the slot of `replica`, if it has one.
    fn known_slot(&self, replica: &Replica) -> Option<usize> {
        // Linear: entries of one replica mostly follow one another, and there are at most 1,024.
        self.slots.iter().rposition(|slot| slot.replica == *replica)
    }

    /// Returns the index of the slot of `replica`, whose current run then has this name.
    fn slot(&mut self, replica: &Replica, name: &str) -> usize {
        let index = self.known_slot(replica).unwrap_or_else(|| {
            self.slots.push(Slot::new(replica.clone()));
            self.by_cost.insert((0, self.slots.len() - 1));
            self.slots.len() - 1
        });
        self.slots[index].begin_run(name);
        index
    }

    /// Evicts lines until all limits hold again after a change of the slot at `index`.
    fn enforce(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        while slot.ended_lines() > self.limits.replica_lines {
            slot.evict(usize::MAX);
        }
        while slot.cost > self.limits.replica_bytes && slot.evict(slot.cost - self.limits.replica_bytes) {}
        self.update_cost(index);
        while self.total > self.limits.total_bytes
            && let Some((_, largest)) = self.by_cost.last().copied()
            && self.slots[largest].evict(self.total - self.limits.total_bytes)
        {
            self.update_cost(largest);
        }
    }

    /// Updates `by_cost` and `total` after a change of the slot at `index`.
    fn update_cost(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        if slot.cost != slot.counted_cost {
            self.by_cost.remove(&(slot.counted_cost, index));
            self.by_cost.insert((slot.cost, index));
            self.total = self.total + slot.cost - slot.counted_cost;
            slot.counted_cost = slot.cost;
        }
    }
}

// === impl Slot ===

impl Slot {
    fn new(replica: Replica) -> Self {
        Self {
            replica,
            runs: VecDeque::new(),
            lines: VecDeque::new(),
            data: VecDeque::new(),
            is_open: false,
            cost: 0,
            counted_cost: 0,
            received: 0,
            evicted: Evicted::default(),
        }
    }

    fn ended_lines(&self) -> usize {
        self.lines.len() - usize::from(self.is_open)
    }

    /// Returns the name of the current run.
    fn name(&self) -> Option<&str> {
        self.runs.back().map(|run| run.name.as_str())
    }

    /// Makes the run with this name the current one.
    fn begin_run(&mut self, name: &str) {
        if self.name() == Some(name) {
            return;
        }
        self.end_line();
        // Runs without lines would have no bound.
        if self.runs.back().is_some_and(|run| run.lines == 0)
            && let Some(empty) = self.runs.pop_back()
        {
            self.cost -= empty.name.len() + ENTRY_OVERHEAD_BYTES;
        }
        self.runs.push_back(NamedRun { name: name.to_owned(), lines: 0 });
        self.cost += name.len() + ENTRY_OVERHEAD_BYTES;
    }

    /// Appends bytes with at most one newline, at their end.
    fn append(&mut self, piece: &[u8], time: LogTime) {
        match self.lines.back_mut() {
            Some(line) if self.is_open => {
                line.bytes += piece.len();
                self.data.extend(piece);
                self.cost += piece.len();
            }
            _ => self.push(piece, time, LineKind::Log),
        }
        self.is_open = !piece.ends_with(b"\n");
        self.received += usize::from(!self.is_open);
    }

    fn push(&mut self, bytes: &[u8], time: LogTime, kind: LineKind) {
        self.lines.push_back(StoredLine { bytes: bytes.len(), time, kind });
        self.data.extend(bytes);
        self.cost += bytes.len() + LINE_OVERHEAD_BYTES;
        if let Some(run) = self.runs.back_mut() {
            run.lines += 1;
        }
    }

    fn end_line(&mut self) {
        if self.is_open {
            self.append(b"\n", LogTime::MIN);
        }
    }

    /// Evicts the oldest line. If it is the only one, evicts `excess` bytes at its beginning. Returns `false`
    /// if there is none.
    fn evict(&mut self, excess: usize) -> bool {
        let is_only = self.lines.len() == 1;
        let Some(line) = self.lines.front_mut() else {
            return false;
        };
        if is_only && line.bytes > excess {
            line.bytes -= excess;
            self.data.drain(..excess);
            self.cost -= excess;
            self.evicted.bytes += excess as u64;
            return true;
        }
        self.data.drain(..line.bytes);
        self.cost -= line.bytes + LINE_OVERHEAD_BYTES;
        match &line.kind {
            LineKind::Log => {
                self.evicted.bytes += line.bytes as u64;
                // An unfinished line counts when the rest of it is evicted.
                self.evicted.lines += u64::from(!(is_only && self.is_open));
            }
            LineKind::Gap(gap) => {
                self.evicted.lines = self.evicted.lines.saturating_add(gap.lines);
                self.evicted.bytes = self.evicted.bytes.saturating_add(gap.bytes);
                self.evicted.is_inexact |= !gap.exact;
            }
            LineKind::Notice => {}
        }
        self.lines.pop_front();
        shrink(&mut self.lines);
        shrink(&mut self.data);
        self.is_open &= !is_only;
        while let Some(run) = self.runs.front_mut() {
            if run.lines > 0 {
                run.lines -= 1;
                break;
            }
            self.cost -= run.name.len() + ENTRY_OVERHEAD_BYTES;
            self.runs.pop_front();
        }
        true
    }

    /// Appends the entries of this replica, each with the time of its first line.
    fn finish(
        mut self,
        limits: &CollectorLimits,
        notices: Notices,
        entries: &mut Vec<(LogTime, ServiceLogs)>,
    ) {
        // May be one line over the limit: until now the unfinished one did not count.
        self.end_line();
        if self.lines.len() > limits.replica_lines {
            self.evict(usize::MAX);
        }
        let mut report = self.eviction_report(limits, notices);
        let mut times = self.lines.iter().map(|line| (line.bytes, line.time));
        let mut rest: &[u8] = self.data.make_contiguous();
        let mut earliest = LogTime::MIN;
        let runs_left = self.runs.len();
        for (number, run) in self.runs.into_iter().enumerate() {
            // A run without lines has an entry only if the report needs one.
            if run.lines == 0 && (report.is_none() || number + 1 < runs_left) {
                continue;
            }
            let mut bytes = 0;
            for (index, (length, time)) in times.by_ref().take(run.lines).enumerate() {
                bytes += length;
                if index == 0 {
                    // Not before the entry of the replica's former run, even if the clock was set back.
                    earliest = earliest.max(time);
                }
            }
            let (of_run, after) = rest.split_at(bytes);
            rest = after;
            // Copied, so that no memory beyond the lines is kept until the response is encoded.
            let logs = [report.take().unwrap_or_default().as_bytes(), of_run].concat();
            entries.push((earliest, ServiceLogs { name: run.name, logs: Bytes::from(logs) }));
        }
    }

    /// Returns the notice of the evicted lines, if there are any.
    fn eviction_report(&self, limits: &CollectorLimits, notices: Notices) -> Option<String> {
        let Evicted { lines, bytes, is_inexact } = self.evicted;
        if (lines, bytes) == (0, 0) || !notices.includes(NoticeKind::Gap) {
            return None;
        }
        // More lines than the limit arrived: there may be older ones, which were not read.
        let exact = !is_inexact && self.received <= limits.replica_lines;
        Some(message::notice(&Gap { cause: GapCause::Limit, lines, bytes, exact, from: None, to: None }))
    }
}

/// Frees memory that a busy replica needed before the others were read. So all buffers together have at most
/// twice the bytes in them.
fn shrink<T>(buffer: &mut VecDeque<T>) {
    if buffer.capacity() > 2 * buffer.len() + SHRINK_ABOVE {
        buffer.shrink_to(buffer.len() + buffer.len() / 2);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SMALL: CollectorLimits = CollectorLimits { replica_lines: 4, replica_bytes: 400, total_bytes: 700 };

    fn replica(index: u32) -> Replica {
        Replica { service: "web".parse().unwrap(), index }
    }

    fn at(nanos: i64) -> LogTime {
        LogTime::from_nanos(nanos)
    }

    fn entries(collector: Collector) -> Vec<(String, String)> {
        let text = |logs: Bytes| String::from_utf8(logs.into()).unwrap();
        collector.finish().services.into_iter().map(|one| (one.name, text(one.logs))).collect()
    }

    fn pair(name: &str, logs: &str) -> (String, String) {
        (name.to_owned(), logs.to_owned())
    }

    #[test]
    fn entries_are_runs_ordered_by_time() {
        let mut collector = Collector::new(SMALL, Notices::All);
        collector.push_logs(&replica(1), "web-b", at(5), b"b1\n");
        collector.push_logs(&replica(0), "web-a", at(3), b"a1\na2");
        collector.push_logs(&replica(0), "web-a", at(4), b" rest\nopen");
        collector.push_logs(&replica(0), "web-c", at(9), b"c1");
        assert_eq!(
            entries(collector),
            [pair("web-a", "a1\na2 rest\nopen\n"), pair("web-b", "b1\n"), pair("web-c", "c1\n")]
        );
    }

    #[test]
    fn runs_of_a_replica_stay_in_order_if_the_clock_is_set_back() {
        let mut collector = Collector::new(SMALL, Notices::All);
        collector.push_logs(&replica(0), "first", at(9), b"x\n");
        collector.push_logs(&replica(0), "second", at(1), b"y\n");
        assert_eq!(entries(collector), [pair("first", "x\n"), pair("second", "y\n")]);
    }

    #[test]
    fn excess_lines_are_reported_as_a_lower_bound() {
        let mut collector = Collector::new(SMALL, Notices::All);
        collector.push_logs(&replica(0), "web-0", at(1), b"1\n2\n3\n4\n5\n");
        let report = "[leasemux: at least 1 line (2 bytes) missing here: a limit of the gateway cut them]\n";
        assert_eq!(entries(collector), [pair("web-0", &format!("{report}2\n3\n4\n5\n"))]);
        let mut collector = Collector::new(SMALL, Notices::None);
        collector.push_logs(&replica(0), "web-0", at(1), b"1\n2\n3\n4\n5\n");
        assert_eq!(entries(collector), [pair("web-0", "2\n3\n4\n5\n")]);
        assert_eq!(CollectorLimits::UNARY.lines_to_read(), 1_001);
    }

    #[test]
    fn excess_bytes_are_reported_exactly() {
        let mut collector = Collector::new(SMALL, Notices::All);
        let long = "x".repeat(200);
        collector.push_logs(&replica(0), "web-0", at(1), format!("{long}\n{long}\nend\n").as_bytes());
        let report = "[leasemux: 1 line (201 bytes) missing here: a limit of the gateway cut them]\n";
        assert_eq!(entries(collector), [pair("web-0", &format!("{report}{long}\nend\n"))]);
    }

    #[test]
    fn unfinished_line_counts_at_the_end() {
        let mut collector = Collector::new(SMALL, Notices::All);
        collector.push_logs(&replica(0), "web-0", at(1), b"1\n2\n3\n4\n5");
        let report = "[leasemux: at least 1 line (2 bytes) missing here: a limit of the gateway cut them]\n";
        assert_eq!(entries(collector), [pair("web-0", &format!("{report}2\n3\n4\n5\n"))]);
    }

    #[test]
    fn line_over_the_limit_keeps_its_end() {
        let mut collector = Collector::new(SMALL, Notices::All);
        for _ in 0..10 {
            collector.push_logs(&replica(0), "web-0", at(1), &[b'x'; 100]);
        }
        collector.push_logs(&replica(0), "web-0", at(1), b"end");
        let found = entries(collector).remove(0).1;
        let (report, kept) = found.split_once('\n').unwrap();
        let cut: usize =
            report.split(['(', ' ']).find_map(|word| word.parse().ok().filter(|n| *n > 0)).unwrap();
        assert!(kept.ends_with("xend\n") && cut + kept.len() == 1_004, "{report} {}", kept.len());
    }

    #[test]
    fn quiet_replica_keeps_its_lines() {
        let mut collector = Collector::new(SMALL, Notices::All);
        collector.push_logs(&replica(0), "quiet", at(1), b"one\ntwo\n");
        for busy in 1..4 {
            for line in 0..4 {
                let text = format!("{line}{}\n", "x".repeat(60));
                collector.push_logs(&replica(busy), &format!("busy-{busy}"), at(2), text.as_bytes());
            }
        }
        assert!(collector.total <= SMALL.total_bytes);
        let found = entries(collector);
        assert_eq!(found[0], pair("quiet", "one\ntwo\n"));
        for (_, logs) in &found[1..] {
            assert!(logs.starts_with("[leasemux: ") && logs.contains("\n3xxx"), "{logs}");
        }
    }

    #[test]
    fn entries_of_a_draft_stream_are_collected() {
        let entry = |logs: &'static str, instance: &str| lease::ServiceLogs {
            name: "web".into(),
            logs: Bytes::from_static(logs.as_bytes()),
            cursor: Some(lease::Cursor { instance: instance.to_owned(), ..lease::Cursor::default() }),
            ..lease::ServiceLogs::default()
        };
        let gap = lease::Gap { lines: 2, bytes: 9, exact: true, cause: 1, ..lease::Gap::default() };
        let event = lease::ReplicaEvent { kind: 1, instance: "b".into(), ..lease::ReplicaEvent::default() };
        let mut collector = Collector::new(SMALL, Notices::All);
        for entry in [
            entry("one\n", "a"),
            lease::ServiceLogs { cursor: None, gap: Some(gap), ..entry("[leasemux: …]\n", "") },
            lease::ServiceLogs { event: Some(event), ..entry("", "a") },
            entry("two\n", "b"),
            lease::ServiceLogs::default(),
        ] {
            collector.push_entry(&entry, |replica, instance| format!("{}-{instance}", replica.service));
        }
        let gap = "[leasemux: 2 lines (9 bytes) missing here: the follower fell behind]\n";
        let expected =
            [pair("web-a", &format!("one\n{gap}")), pair("web-b", "[leasemux: replica 0 started]\ntwo\n")];
        assert_eq!(entries(collector), expected);
    }

    /// A restarted container keeps its pod, so the name does not separate the runs.
    #[test]
    fn unfinished_line_ends_although_notices_are_left_out() {
        let entry = |logs: &'static str| lease::ServiceLogs {
            name: "web".into(),
            logs: Bytes::from_static(logs.as_bytes()),
            ..lease::ServiceLogs::default()
        };
        let event = |kind| lease::ServiceLogs {
            event: Some(lease::ReplicaEvent { kind, ..lease::ReplicaEvent::default() }),
            ..entry("")
        };
        let gap = lease::Gap { lines: 1, cause: 3, ..lease::Gap::default() };
        let gap = lease::ServiceLogs { gap: Some(gap), ..entry("[leasemux: …]\n") };
        let mut collector = Collector::new(SMALL, Notices::None);
        for entry in
            [entry("bye"), event(2), event(1), entry("piece"), entry(" rest\ncut"), gap, entry("on\n")]
        {
            collector.push_entry(&entry, |_, _| "web-0".to_owned());
        }
        assert_eq!(entries(collector), [pair("web-0", "bye\npiece rest\ncut\non\n")]);
    }

    /// Replicas are read one after the other if few reads are permitted.
    #[test]
    fn memory_is_bounded_if_replicas_come_one_by_one() {
        let limits = CollectorLimits { replica_lines: 100, replica_bytes: 64 << 10, total_bytes: 224 << 10 };
        let mut collector = Collector::new(limits, Notices::All);
        for index in 0..100 {
            for _ in 0..100 {
                let line = format!("{index:0600}\n");
                collector.push_logs(&replica(index), "web", at(1), line.as_bytes());
            }
        }
        let memory = |slot: &Slot| slot.data.capacity() + slot.lines.capacity() * size_of::<StoredLine>();
        let memory: usize = collector.slots.iter().map(memory).sum();
        let rest = 100 * SHRINK_ABOVE * (1 + size_of::<StoredLine>());
        assert!(memory <= 2 * limits.total_bytes + rest, "{memory} bytes for {}", collector.total);
        assert!(size_of::<StoredLine>() <= LINE_OVERHEAD_BYTES);
        let bytes: usize = collector.finish().services.iter().map(|entry| entry.logs.len()).sum();
        assert!(bytes > limits.total_bytes / 2, "{bytes}");
    }

    #[test]
    fn evicted_gap_is_part_of_the_report() {
        let mut collector = Collector::new(SMALL, Notices::All);
        let gap = Gap { cause: GapCause::Rotated, lines: 7, bytes: 70, exact: true, from: None, to: None };
        collector.push_logs(&replica(0), "web-0", at(1), b"open");
        collector.push_gap(&replica(0), "web-0", at(1), gap);
        collector.push_line(&replica(0), "web-0", at(1), "[leasemux: replica 0 started]");
        collector.push_logs(&replica(0), "web-0", at(1), b"1\n2\n3\n4\n");
        let report =
            "[leasemux: at least 8 lines (75 bytes) missing here: a limit of the gateway cut them]\n";
        assert_eq!(entries(collector), [pair("web-0", &format!("{report}1\n2\n3\n4\n"))]);
    }

    proptest! {
        #[test]
        fn kept_lines_are_the_newest_and_counted(
            pushes in prop::collection::vec((0_u32..3, "[ab\n]{0,90}"), 0..60),
        ) {
            let mut collector = Collector::new(SMALL, Notices::All);
            let mut sent = vec![String::new(); 3];
            for (index, logs) in &pushes {
                let name = format!("web-{index}");
                collector.push_logs(&replica(*index), &name, at(1), logs.as_bytes());
                sent[*index as usize].push_str(logs);
                prop_assert!(collector.total <= SMALL.total_bytes);
                let costs: usize = collector.slots.iter().map(|slot| slot.cost).sum();
                prop_assert_eq!(costs, collector.total);
            }
            for slot in &collector.slots {
                let kept: usize = slot.lines.iter().map(|line| line.bytes).sum();
                let sent = sent[slot.replica.index as usize].len() as u64;
                prop_assert_eq!(kept, slot.data.len());
                prop_assert_eq!(slot.evicted.bytes + kept as u64, sent);
                prop_assert!(slot.ended_lines() <= SMALL.replica_lines);
            }
            for (name, logs) in entries(collector) {
                let index: usize = name.strip_prefix("web-").unwrap().parse().unwrap();
                let mut all = sent[index].clone();
                if !all.is_empty() && !all.ends_with('\n') {
                    all.push('\n');
                }
                let kept = match logs.strip_prefix("[leasemux: ") {
                    Some(rest) => rest.split_once('\n').unwrap().1,
                    None => &logs,
                };
                prop_assert!(all.ends_with(kept), "{:?} {:?}", all, kept);
            }
        }
    }
}
