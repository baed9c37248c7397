//! Services that record how much they print, and checks of followers against these records.
//!
//! A [`LossChecker`] finds holes between lines. It does not know how many lines followed the last one that a
//! follower received of a run, or which runs a follower never saw. The services here number their lines,
//! their runs and their replicas by themselves, so [`CheckedFollower`] finds that too. The gateway's word is
//! not needed.

use std::collections::BTreeMap;

use leasemux::loss_checker::{LossChecker, Order, Start, Tally};
use leasemux::model::proto::lease::gap::Cause;
use leasemux::model::proto::lease::{Gap, ServiceLogs};

use super::process::Workspace;

/// Lines that each run printed, by replica (`web-0`) and number of the run, as far as it has recorded them.
pub(crate) type Printed = BTreeMap<(String, u64), u64>;

/// Everything that one follower received, through all its connections.
#[derive(Debug)]
pub(crate) struct CheckedFollower {
    start: Start,
    checker: LossChecker,
    /// Totals of earlier connections that did not resume.
    before: Tally,
    replicas: BTreeMap<(String, u32), CurrentRun>,
    changes: Vec<RunChange>,
    faults: Vec<String>,
}

/// The run of which a follower received lines last.
#[derive(Debug, Default)]
struct CurrentRun {
    number: u64,
    /// Number of the last complete line.
    last: u64,
    /// The unfinished line.
    line: Vec<u8>,
    lost: Lost,
}

/// Loss that was reported after the last line.
#[derive(Clone, Copy, Debug, Default)]
struct Lost {
    lines: u64,
    /// Whether a report was a lower bound.
    is_inexact: bool,
    /// Whether the logs of that place were removed.
    is_rotated: bool,
}

/// A follower's step from one run of a replica to a later one.
#[derive(Debug)]
pub(crate) struct RunChange {
    pub(crate) replica: String,
    pub(crate) run: u64,
    /// Number of the last line that was received of the run.
    pub(crate) last: u64,
    next_run: u64,
    lost: Lost,
}

/// Returns the script of a service that prints `burst` lines, then waits, and so on: `12 web-0.3 …` is line
/// 12 of the third run of replica 0 of `web`. It writes the number of its lines to `$GATES/web-0.3`, exactly
/// when it is asked to end. At each start it ensures that it is the only process of its replica; if not, the
/// file `$GATES/doubled` appears. A `stubborn` one ignores that, and that nothing reads what it prints.
pub(crate) fn counting_service(burst: u32, wait: &str, stubborn: bool) -> String {
    let (trap, without_reader) =
        if stubborn { ("''", "{ n=$((n-1)); sleep 0.05; }") } else { ("'echo $n >$count; exit'", "exit") };
    // The line and its number are one command, so that the number is right whenever the trap runs. Without a
    // reader the shell would be killed before it has recorded its number.
    format!(
        "n=0
         count=/dev/null
         trap {trap} TERM
         trap '' PIPE
         replica=${{HOME##*_}}
         exec 9>>alone
         flock -n 9 || echo $replica >>$GATES/doubled
         run=$(($(cat run 2>/dev/null || echo 0) + 1))
         echo $run >run.new && mv run.new run
         count=$GATES/$replica.$run
         while :; do
           i=0
           while [ $i -lt {burst} ]; do
             i=$((i+1))
             echo \"$((n=n+1)) $replica.$run of a service that counts its lines and its runs\" || {without_reader}
           done
           echo $n >$count
           sleep {wait}
         done"
    )
}

/// Splits a line of a [`counting_service`] into its number, replica and run.
pub(crate) fn parse_line(line: &[u8]) -> Option<(u64, &str, u64)> {
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let number = words.next()?.parse().ok()?;
    let (replica, run) = words.next()?.split_once('.')?;
    Some((number, replica, run.parse().ok()?))
}

// === impl Workspace ===

impl Workspace {
    /// Returns what all [`counting_service`]s have recorded.
    pub(crate) fn printed(&self) -> Printed {
        let files = std::fs::read_dir(self.path("gates")).unwrap().flatten();
        let counts = files.filter_map(|file| {
            let name = file.file_name().into_string().ok()?;
            let (replica, run) = name.split_once('.')?;
            Some(((replica.to_owned(), run.parse().ok()?), self.number(&name)))
        });
        counts.collect()
    }

    /// Asserts that no replica ever had two processes.
    pub(crate) fn assert_no_double(&self) {
        let doubled = std::fs::read_to_string(self.path("gates/doubled"));
        assert!(doubled.is_err(), "two processes at a time: {doubled:?}");
    }
}

// === impl CheckedFollower ===

impl CheckedFollower {
    pub(crate) fn new(start: Start) -> Self {
        Self {
            start,
            checker: LossChecker::new(start, Order::Exact),
            before: Tally::default(),
            replicas: BTreeMap::new(),
            changes: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// Takes the next entry.
    pub(crate) fn feed(&mut self, entry: &ServiceLogs) {
        self.checker.feed(entry);
        let replica = format!("{}-{}", entry.name, entry.replica);
        let run = self.replicas.entry((entry.name.clone(), entry.replica)).or_default();
        if let Some(gap) = &entry.gap {
            run.lost.add(gap);
            run.line.clear();
            return;
        }
        let Some(line) = run.last_line(entry) else { return };
        match parse_line(&line) {
            Some((number, of, at)) if of == replica && at >= run.number => {
                if at > run.number {
                    let change = RunChange {
                        replica,
                        run: run.number,
                        last: run.last,
                        next_run: at,
                        lost: std::mem::take(&mut run.lost),
                    };
                    if change.run > 0 {
                        self.changes.push(change);
                    }
                }
                (run.number, run.last, run.lost) = (at, number, Lost::default());
            }
            _ => {
                let line = String::from_utf8_lossy(&line);
                self.faults
                    .push(format!("{replica}, after line {} of run {}: {line:?}", run.last, run.number));
            }
        }
    }

    /// Starts again: the next connection does not resume.
    pub(crate) fn reconnect_anew(&mut self) {
        if let Err(violation) = self.checker.verdict() {
            self.faults.push(violation.to_string());
        }
        self.before.add(&self.checker.tally());
        self.checker = LossChecker::new(self.start, Order::Exact);
        self.replicas.clear();
    }

    pub(crate) fn tally(&self) -> Tally {
        let mut tally = self.before;
        tally.add(&self.checker.tally());
        tally
    }

    /// Returns the newest run of a replica from which it has lines, and the number of the last line.
    pub(crate) fn position(&self, service: &str, replica: u32) -> (u64, u64) {
        let run = self.replicas.get(&(service.to_owned(), replica));
        run.map_or((0, 0), |run| (run.number, run.last))
    }

    pub(crate) fn changes(&self) -> &[RunChange] {
        &self.changes
    }

    /// Returns all that is wrong: unexplained losses, repeats, and lines of a wrong replica.
    pub(crate) fn faults(&self, printed: &Printed) -> Vec<String> {
        let violation = self.checker.verdict().err().map(|violation| violation.to_string());
        let ends = self.changes.iter().filter_map(|change| change.fault(printed));
        self.faults.iter().cloned().chain(violation).chain(ends).collect()
    }
}

// === impl CurrentRun ===

impl CurrentRun {
    /// Returns the last line that ends in an entry.
    fn last_line(&mut self, entry: &ServiceLogs) -> Option<Vec<u8>> {
        // The unfinished line of the previous run never ends.
        if entry.part.as_ref().is_some_and(|part| !part.continues) {
            self.line.clear();
        }
        let Some(whole) = entry.logs.strip_suffix(b"\n") else {
            self.line.extend_from_slice(&entry.logs);
            return None;
        };
        let mut line = std::mem::take(&mut self.line);
        match memchr::memrchr(b'\n', whole) {
            Some(end) => line = whole[end + 1..].to_vec(),
            None => line.extend_from_slice(whole),
        }
        Some(line)
    }
}

// === impl Lost ===

impl Lost {
    fn add(&mut self, gap: &Gap) {
        self.lines += gap.lines;
        self.is_inexact |= !gap.exact;
        self.is_rotated |= gap.cause() == Cause::Rotated;
    }
}

// === impl RunChange ===

impl RunChange {
    /// Whether its lost lines were reported as removed from disk.
    pub(crate) fn is_rotated(&self) -> bool {
        self.lost.is_rotated
    }

    /// Returns the fault if lines at the end of the run, or of skipped runs, are missing without a report.
    fn fault(&self, printed: &Printed) -> Option<String> {
        let Self { replica, run, last, next_run, lost } = self;
        let count = |run: u64| printed.get(&(replica.clone(), run)).copied().unwrap_or_default();
        let missing = count(*run).saturating_sub(*last) + (run + 1..*next_run).map(count).sum::<u64>();
        let is_explained = missing <= lost.lines || lost.is_inexact;
        let fault = || {
            format!(
                "{replica}: {missing} lines are missing between line {last} of run {run} and run {next_run}, {} \
                 reported lost",
                lost.lines
            )
        };
        (!is_explained).then(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leasemux::model::proto::lease::Cursor;

    /// Feeds words such as `1.4` (line 4 of run 1), `g2` (an exact gap) and `i0` (an inexact one).
    fn faults(words: &str) -> Vec<String> {
        let mut follower = CheckedFollower::new(Start::First);
        let mut instance = String::new();
        for word in words.split(' ') {
            let mut entry = ServiceLogs { name: "web".to_owned(), ..ServiceLogs::default() };
            if let Some(lines) = word.strip_prefix(['g', 'i']) {
                let (lines, exact) = (lines.parse().unwrap(), word.starts_with('g'));
                entry.gap = Some(Gap { lines, exact, ..Gap::default() });
            } else {
                let (run, line) = word.split_once('.').unwrap();
                instance = format!("uid/web/{run}");
                entry.logs = format!("{line} web-0.{run} text\n").into_bytes().into();
            }
            entry.cursor = Some(Cursor { instance: instance.clone(), ..Cursor::default() });
            follower.feed(&entry);
        }
        let printed = [(1, 4), (2, 3), (3, 0), (4, 9)].map(|(run, lines)| (("web-0".to_owned(), run), lines));
        follower.faults(&printed.into())
    }

    #[test]
    fn loss_at_run_end_needs_a_report() {
        for right in [
            "1.1 1.2 1.3 1.4 2.1 2.2",
            "1.1 1.2 g2 2.1",
            "1.1 i0 2.1",
            "1.1 g6 4.1",
            "1.1 1.2 1.3 1.4 2.1 2.2 2.3 4.1",
        ] {
            assert_eq!(faults(right), Vec::<String>::new(), "{right}");
        }
        for wrong in
            ["1.1 1.2 2.1", "1.1 g2 2.1", "1.1 1.2 1.3 1.4 4.1", "1.1 1.2 1.3 1.4 2.1 1.1", "1.1 1.3"]
        {
            assert!(!faults(wrong).is_empty(), "{wrong}");
        }
    }
}
