//! The account of a canary: which lines of the counting service arrived, were reported as lost, or neither.
//!
//! Each replica counts its lines in one order, so every line must continue where the previous line and the
//! gaps after it ended. Unlike the loss checker, which stops at the first violation, the account continues
//! and counts each kind. It does no I/O and reads no clock.
//!
//! **Runs.** A run is an instance of the container and the identifier in its lines. Its first number is 1.
//! Only at the first run of a replica any number may be first, because the canary starts with new lines. The
//! last lines of a run can be missing without being noticed: nothing says how many there were.
//!
//! **Late lines.** Missing lines form a hole. A line of it that arrives late is out of order, not lost; lines
//! still missing after `SETTLE_AFTER` count as unreported, as far as no gap covers them.
//!
//! **Gaps.** Reported lines cover the missing lines before the next line. At a new run, they may also be the
//! last ones of the previous run. An inexact gap covers any number.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use tokio::time::Instant;

use super::line::{HEAD_MAX_BYTES, Line, Numbered};
use crate::loss_checker::line_heads::LineHeads;
use crate::model::label::LabelValue as _;
use crate::model::limits::STREAM_REPLICAS_MAX;
use crate::model::metrics::CanaryLossCause;
use crate::model::proto::lease::gap::Cause;
use crate::model::proto::lease::replica_event::Kind;
use crate::model::proto::lease::{Gap, ServiceLogs};
use crate::model::time::LogTime;

/// Time for which a missing line may still arrive. A gateway never reorders lines, so that any value would
/// do; this one is shorter than the evaluation of alerts.
const SETTLE_AFTER: Duration = Duration::from_secs(10);

/// Holes of a run that are kept. If there are more, the oldest settles early.
const HOLES_MAX: usize = 16;

/// Late lines of a hole that are kept. If there are more, the hole settles early.
const FOUND_MAX: usize = 32;

/// Earlier runs of a replica that are recognised. A service that crashes at once has a new run every few
/// seconds, and a gateway that repeats one repeats a recent one.
const EARLIER_RUNS_MAX: usize = 4;

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Numbered lines, each once.
    pub(super) delivered: u64,
    /// Lines reported as lost, by cause.
    pub(super) lost: [u64; CanaryLossCause::ALL.len()],
    /// Lines missing without a report.
    pub(super) unreported: u64,
    pub(super) repeated: u64,
    /// Delivered lines that came after a later one.
    pub(super) out_of_order: u64,
    /// Lines reported as lost that were not missing.
    pub(super) overreported: u64,
    pub(super) malformed: u64,
    pub(super) foreign: u64,
    pub(super) exact_gaps: u64,
    pub(super) inexact_gaps: u64,
    pub(super) runs: u64,
}

/// The current time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    /// By the system's clock, for delays.
    pub(super) wall: LogTime,
    /// By the monotonic clock, for late lines.
    pub(super) instant: Instant,
}

/// Observation about one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A line arrived this many nanoseconds after its own time; negative if that is in the future.
    Delay(i64),
    /// A run began.
    Run,
    /// Of the lines `from` to `to`, this many are missing without a report.
    Unreported {
        from: u64,
        to: u64,
        lines: u64,
    },
    Repeated {
        number: u64,
        after: u64,
    },
    OutOfOrder {
        number: u64,
        after: u64,
    },
    /// More lines were reported as lost than are missing before this one.
    Overreported {
        number: u64,
        lines: u64,
    },
}

/// Takes observations, each with its replica.
pub(super) type Report<'a> = dyn FnMut(&ReplicaKey, Event) + 'a;

/// Service and number of a replica.
pub(super) type ReplicaKey = (String, u32);

/// The account of one canary.
#[derive(Debug)]
pub(super) struct Account {
    /// Lines from before this time have no meaningful delay.
    started: LogTime,
    replicas: BTreeMap<ReplicaKey, Replica>,
    totals: Totals,
}

#[derive(Debug)]
struct Replica {
    heads: LineHeads,
    /// Hash of the current instance.
    instance: u64,
    /// The newest run last. Empty before the first line.
    runs: VecDeque<Run>,
    reported: Reported,
    /// Time at which the last numbered line arrived; before the first one, time of the first entry.
    last_line: LogTime,
    /// Lead of the service's clock at that line, in nanoseconds.
    clock_ahead: i64,
    /// Whether the replica is no longer part of the lease.
    is_gone: bool,
}

/// Lines reported as lost since the last numbered line.
#[derive(Clone, Copy, Debug)]
struct Reported {
    lines: u64,
    is_exact: bool,
    /// Cause of the newest gap.
    cause: CanaryLossCause,
}

#[derive(Debug)]
struct Run {
    /// Hash of the container's instance. Its text has no bound.
    instance: u64,
    id: Box<str>,
    /// First number that arrived, if any may be first; otherwise 1.
    first: u64,
    /// Greatest number that arrived.
    last: u64,
    /// In order of their numbers, without overlap.
    holes: VecDeque<Hole>,
    /// Whether other lines came, which a gap may include.
    has_unknown: bool,
}

/// Missing lines.
#[derive(Debug)]
struct Hole {
    from: u64,
    to: u64,
    /// Lines that no gap covers. It is unknown which of them.
    unreported: u64,
    /// Numbers that arrived since.
    found: Vec<u64>,
    since: Instant,
}

// === impl Account ===

impl Account {
    pub(super) fn new(started: LogTime) -> Self {
        Self { started, replicas: BTreeMap::new(), totals: Totals::default() }
    }

    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    /// Returns the number of replicas that sent an entry and are part of the lease.
    pub(super) fn replicas(&self) -> usize {
        self.current().count()
    }

    /// Returns the time of the last line of the replica that has been silent longest: a replica whose lines
    /// no longer come is noticed while the others go on. Without replicas, it is the start.
    pub(super) fn last_line(&self) -> LogTime {
        self.current().map(|replica| replica.last_line).min().unwrap_or(self.started)
    }

    /// Returns the greatest lead of a service's clock at its last line, in nanoseconds.
    pub(super) fn clock_ahead(&self) -> i64 {
        self.current().map(|replica| replica.clock_ahead).max().unwrap_or_default()
    }

    fn current(&self) -> impl Iterator<Item = &Replica> {
        self.replicas.values().filter(|replica| !replica.is_gone)
    }

    /// Takes the next entry of the stream.
    pub(super) fn entry(&mut self, entry: &ServiceLogs, now: Now, report: &mut Report<'_>) {
        // Otherwise a stream that is never idle would put it off.
        self.settle(now.instant, report);
        let key = (entry.name.clone(), entry.replica);
        if let Some(event) = &entry.event {
            if event.kind() == Kind::Gone
                && let Some(replica) = self.replicas.get_mut(&key)
            {
                replica.is_gone = true;
            }
            return;
        }
        // A gateway may name any number of replicas, but serves a limited number.
        if self.replicas.len() >= STREAM_REPLICAS_MAX && !self.replicas.contains_key(&key) {
            return;
        }
        let Self { started, replicas, totals } = self;
        let replica = replicas.entry(key.clone()).or_insert_with(|| Replica::new(now.wall));
        replica.is_gone = false;
        let mut heads = std::mem::replace(&mut replica.heads, LineHeads::new(HEAD_MAX_BYTES));
        let mut take = |replica: &mut Replica, line: &[u8]| {
            let report = &mut |event: Event| report(&key, event);
            replica.line(Line::parse(line), *started, now, totals, report);
        };
        if let Some(cursor) = entry.cursor.as_ref().filter(|_| entry.gap.is_some() || !entry.logs.is_empty())
        {
            let instance = hash(&cursor.instance);
            if instance != replica.instance {
                heads.finish(&mut |line| take(replica, line));
                replica.instance = instance;
            }
        }
        match &entry.gap {
            Some(gap) => {
                heads.clear();
                replica.gap(gap, totals);
            }
            None => heads.push(entry.part, &entry.logs, &mut |line| take(replica, line)),
        }
        replica.heads = heads;
    }

    /// Returns when [`Account::settle`] has to be called.
    pub(super) fn due(&self) -> Option<Instant> {
        self.holes().map(|hole| hole.since + SETTLE_AFTER).min()
    }

    /// Counts the missing lines that can no longer arrive.
    pub(super) fn settle(&mut self, now: Instant, report: &mut Report<'_>) {
        self.settle_holes(|hole| hole.since + SETTLE_AFTER <= now, report);
    }

    /// Counts all missing lines: the stream has ended.
    pub(super) fn finish(&mut self, report: &mut Report<'_>) {
        self.settle_holes(|_| true, report);
    }

    fn settle_holes(&mut self, is_due: impl Fn(&Hole) -> bool, report: &mut Report<'_>) {
        let Self { replicas, totals, .. } = self;
        for (key, replica) in replicas {
            for run in &mut replica.runs {
                run.holes.retain(|hole| {
                    let is_due = is_due(hole);
                    if is_due {
                        hole.settle(totals, &mut |event| report(key, event));
                    }
                    !is_due
                });
            }
        }
    }

    fn holes(&self) -> impl Iterator<Item = &Hole> {
        self.replicas.values().flat_map(|replica| &replica.runs).flat_map(|run| &run.holes)
    }
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

// === impl Totals ===

impl Totals {
    /// Returns the number of lines that the gateway reported as lost.
    pub(super) fn all_lost(&self) -> u64 {
        self.lost.iter().copied().fold(0, u64::saturating_add)
    }

    /// Returns whether the gateway kept its promise: each line once and in order, or reported as lost.
    pub(super) fn is_sound(&self) -> bool {
        self.unreported == 0 && self.repeated == 0 && self.out_of_order == 0 && self.overreported == 0
    }

    /// Adds lines that the gateway reported. Its numbers are untrusted and may overflow.
    fn lose(&mut self, cause: CanaryLossCause, lines: u64) {
        let lost = &mut self.lost[cause.index()];
        *lost = lost.saturating_add(lines);
    }
}

// === impl Replica ===

impl Replica {
    fn new(now: LogTime) -> Self {
        Self {
            heads: LineHeads::new(HEAD_MAX_BYTES),
            instance: hash(""),
            runs: VecDeque::new(),
            reported: Reported::NONE,
            last_line: now,
            clock_ahead: 0,
            is_gone: false,
        }
    }

    fn gap(&mut self, gap: &Gap, totals: &mut Totals) {
        let cause = match gap.cause() {
            Cause::Lag => CanaryLossCause::Lag,
            Cause::Rotated => CanaryLossCause::Rotated,
            Cause::Source => CanaryLossCause::Source,
            Cause::Limit => CanaryLossCause::Limit,
            Cause::Unspecified => CanaryLossCause::Other,
        };
        if gap.exact {
            totals.exact_gaps += 1;
        } else {
            totals.inexact_gaps += 1;
        }
        totals.lose(cause, gap.lines);
        let Reported { lines, is_exact, .. } = self.reported;
        self.reported =
            Reported { lines: lines.saturating_add(gap.lines), is_exact: is_exact && gap.exact, cause };
    }

    fn line(
        &mut self,
        line: Line<'_>,
        started: LogTime,
        now: Now,
        totals: &mut Totals,
        report: &mut dyn FnMut(Event),
    ) {
        let line = match line {
            Line::Numbered(line) => line,
            other => {
                *(if other == Line::Malformed { &mut totals.malformed } else { &mut totals.foreign }) += 1;
                if let Some(run) = self.runs.back_mut() {
                    run.has_unknown = true;
                }
                return;
            }
        };
        if self.number(line, now.instant, totals, report) {
            totals.delivered += 1;
            let delay = now.wall.as_nanos().saturating_sub(line.at.as_nanos());
            (self.last_line, self.clock_ahead) = (now.wall, delay.saturating_neg().max(0));
            if line.at >= started {
                report(Event::Delay(delay));
            }
        }
    }

    /// Takes the number of a line. Returns whether it is new.
    fn number(
        &mut self,
        line: Numbered<'_>,
        now: Instant,
        totals: &mut Totals,
        report: &mut dyn FnMut(Event),
    ) -> bool {
        let number = line.number;
        let known = self.runs.iter().position(|run| run.instance == self.instance && *run.id == *line.run);
        let is_newest = known.is_some_and(|known| known + 1 == self.runs.len());
        match known.and_then(|known| self.runs.get_mut(known)) {
            Some(run) if number <= run.last => run.late(number, totals, report),
            Some(run) if is_newest => {
                let missing = number - run.last - 1;
                let (after, has_unknown) = (run.last, run.has_unknown);
                run.last = number;
                let reported = std::mem::replace(&mut self.reported, Reported::NONE);
                let unreported = reported.cover(missing, totals);
                let surplus = reported.lines.saturating_sub(missing);
                if surplus > 0 && !has_unknown {
                    totals.overreported = totals.overreported.saturating_add(surplus);
                    report(Event::Overreported { number, lines: surplus });
                }
                run.add_hole(after, number, unreported, now, totals, report);
                true
            }
            // A line of an earlier run that never came.
            Some(run) => {
                let after = std::mem::replace(&mut run.last, number);
                totals.out_of_order += 1;
                report(Event::OutOfOrder { number, after });
                true
            }
            None => {
                totals.runs += 1;
                report(Event::Run);
                let is_first = self.runs.is_empty();
                let first = if is_first { number } else { 1 };
                let mut run = Run::new(self.instance, line.run, first, number);
                let reported = std::mem::replace(&mut self.reported, Reported::NONE);
                if !is_first {
                    let unreported = reported.cover(number - 1, totals);
                    run.add_hole(0, number, unreported, now, totals, report);
                }
                if self.runs.len() > EARLIER_RUNS_MAX
                    && let Some(forgotten) = self.runs.pop_front()
                {
                    forgotten.holes.iter().for_each(|hole| hole.settle(totals, report));
                }
                self.runs.push_back(run);
                true
            }
        }
    }
}

// === impl Reported ===

impl Reported {
    const NONE: Self = Self { lines: 0, is_exact: true, cause: CanaryLossCause::Other };

    /// Returns how many of the `missing` lines are not covered. Adds those beyond a lower bound to the
    /// reported ones.
    fn cover(self, missing: u64, totals: &mut Totals) -> u64 {
        let beyond = missing.saturating_sub(self.lines);
        if self.is_exact {
            return beyond;
        }
        totals.lose(self.cause, beyond);
        0
    }
}

// === impl Run ===

impl Run {
    fn new(instance: u64, id: &str, first: u64, last: u64) -> Self {
        Self { instance, id: id.into(), first, last, holes: VecDeque::new(), has_unknown: false }
    }

    /// Adds the missing lines between two that arrived, if there are any.
    fn add_hole(
        &mut self,
        after: u64,
        before: u64,
        unreported: u64,
        since: Instant,
        totals: &mut Totals,
        report: &mut dyn FnMut(Event),
    ) {
        if after + 1 == before {
            return;
        }
        if self.holes.len() == HOLES_MAX
            && let Some(oldest) = self.holes.pop_front()
        {
            oldest.settle(totals, report);
        }
        let found = Vec::new();
        self.holes.push_back(Hole { from: after + 1, to: before - 1, unreported, found, since });
    }

    /// Takes a number that is not greater than the last one. Returns whether it is new.
    fn late(&mut self, number: u64, totals: &mut Totals, report: &mut dyn FnMut(Event)) -> bool {
        let after = self.last;
        let hole = self.holes.iter().position(|hole| (hole.from..=hole.to).contains(&number));
        let is_new = match hole.and_then(|at| Some((at, self.holes.get_mut(at)?))) {
            Some((_, hole)) if hole.found.contains(&number) => false,
            Some((at, hole)) => {
                hole.found.push(number);
                if hole.unreported > 0 {
                    hole.unreported -= 1;
                } else {
                    totals.overreported += 1;
                    report(Event::Overreported { number, lines: 1 });
                }
                if hole.found.len() >= FOUND_MAX
                    && let Some(hole) = self.holes.remove(at)
                {
                    hole.settle(totals, report);
                }
                true
            }
            // Older than the first line of the canary.
            None => number < self.first,
        };
        if is_new {
            totals.out_of_order += 1;
            report(Event::OutOfOrder { number, after });
        } else {
            totals.repeated += 1;
            report(Event::Repeated { number, after });
        }
        is_new
    }
}

// === impl Hole ===

impl Hole {
    fn settle(&self, totals: &mut Totals, report: &mut dyn FnMut(Event)) {
        let Self { from, to, unreported: lines, .. } = *self;
        if lines > 0 {
            totals.unreported = totals.unreported.saturating_add(lines);
            report(Event::Unreported { from, to, lines });
        }
    }
}

#[cfg(test)]
mod tests;
