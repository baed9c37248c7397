//! The loss check of a follower: each line comes once and in order, and a gap stands where lines are missing.

use std::ops::Range;

use leasemux::model::proto::lease::{Cursor, Gap, ServiceLogs};

use super::files::NodeFiles;
use super::outcome::{Outcome, Violation};
use crate::kube::cluster::{Cluster, RunKey};

/// A place in the lines of a replica: number of the run among those of all its pods, line.
pub(super) type Place = (usize, usize);

/// Everything that was printed, by replica and run.
pub(super) struct History {
    pub(super) cluster: Cluster,
    pub(super) runs: Vec<Vec<RunKey>>,
    /// Per replica: the newest run whose lines followers can have. A pod that replaces another one is read
    /// after the end of that one.
    pub(super) current: Vec<usize>,
    /// The log files of the node, if a gateway reads them.
    pub(super) files: Option<NodeFiles>,
}

/// Where a follower begins to read a replica.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    /// At this place or before it.
    Until(Place),
    /// At an unknown place: it asked for some last lines.
    Anywhere,
}

/// What a follower received of one replica.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) start: Start,
    /// The first line, or the first one after the newest gap of unknown size.
    began: Option<Place>,
    /// The place of the next line. `None`: no line was received.
    pub(super) next: Option<Place>,
    pub(super) cursor: Option<Cursor>,
    /// The beginning of a line.
    partial: Vec<u8>,
    /// What the gateway of the present stream reads.
    reads: Reads,
    since: GatewaysSince,
    /// Whether a gap came within a line, so that the rest of that line may follow.
    torn: bool,
    gap: PendingGap,
}

/// The logs that a gateway reads.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reads {
    /// Whether it reads the files of the node.
    pub(super) files: bool,
    /// Whether new lines may come from the API's log: by itself, or by another gateway of its fleet.
    pub(super) live_api: bool,
}

/// The gateways of all streams since the last line.
#[derive(Clone, Copy, Debug, Default)]
struct GatewaysSince {
    /// Whether one may have lines of the API's log.
    was_api: bool,
    /// Whether one did not know the pod of that line.
    pod_was_unknown: bool,
}

/// The gaps since the last line.
#[derive(Debug, Default)]
struct PendingGap {
    count: usize,
    lines: u64,
    inexact: bool,
}

// === impl History ===

impl History {
    /// The place after the last printed line that followers can have.
    pub(super) fn end(&self, replica: usize) -> Place {
        let current = self.current[replica];
        (current, self.cluster.extent(&self.runs[replica][current]).0)
    }

    /// Whether the log of a run is on the node whose files gateways may read.
    pub(super) fn is_on_node(&self, run: &RunKey) -> bool {
        self.files.as_ref().is_some_and(|files| files.has(run))
    }

    /// The first line that can be read of the newest run.
    pub(super) fn oldest(&self, replica: usize, reads_files: bool) -> Place {
        let newest = self.runs[replica].len() - 1;
        (newest, self.oldest_line(replica, newest, reads_files))
    }

    /// The first line that can be read of a run.
    fn oldest_line(&self, replica: usize, run: usize, reads_files: bool) -> usize {
        let key = &self.runs[replica][run];
        let (end, file) = self.cluster.extent(key);
        match &self.files {
            Some(files) if reads_files && files.has(key) => files.oldest(key).unwrap_or(end),
            _ => file,
        }
    }

    /// The lines between two places, by run.
    fn between(&self, replica: usize, from: Place, to: Place) -> Vec<(usize, Range<usize>)> {
        let runs = from.0..=to.0;
        let lines = runs.map(|run| {
            let first = if run == from.0 { from.1 } else { 0 };
            let end = if run == to.0 { to.1 } else { self.cluster.extent(&self.runs[replica][run]).0 };
            (run, first..end)
        });
        lines.collect()
    }
}

// === impl Progress ===

impl Progress {
    pub(super) fn new(start: Start) -> Self {
        Self {
            start,
            began: None,
            next: None,
            cursor: None,
            partial: Vec::new(),
            reads: Reads::default(),
            since: GatewaysSince::default(),
            torn: false,
            gap: PendingGap::default(),
        }
    }

    /// A stream begins. `is_known`: its gateway knows the pod of the last line.
    pub(super) fn begin(&mut self, reads: Reads, is_known: bool) {
        self.reads = reads;
        self.since.pod_was_unknown |= !is_known;
        self.since.was_api |= reads.live_api;
    }

    /// Whether all lines were received.
    pub(super) fn is_at(&self, place: Place) -> bool {
        self.next.is_some_and(|next| next >= place)
    }

    /// Whether a gap of unknown size came after the newest line.
    pub(super) fn has_unknown_gap(&self) -> bool {
        self.gap.inexact
    }

    /// Takes an entry about this replica.
    pub(super) fn take(
        &mut self,
        entry: ServiceLogs,
        history: &History,
        outcome: &mut Outcome,
    ) -> Result<(), Violation> {
        let replica = entry.replica as usize;
        if let Some(gap) = &entry.gap {
            self.take_gap(gap, outcome);
        } else if entry.event.is_none() {
            self.partial.extend_from_slice(&entry.logs);
            let instance = entry.cursor.as_ref().map_or("", |cursor| &cursor.instance);
            while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.partial.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line[..end]).into_owned();
                self.take_line(&line, instance, replica, history, outcome)?;
            }
        }
        if entry.cursor.is_some() {
            self.cursor = entry.cursor;
        }
        Ok(())
    }

    fn take_gap(&mut self, gap: &Gap, outcome: &mut Outcome) {
        let known = outcome.gaps.entry(gap.cause().as_str_name().to_lowercase()).or_default();
        (known.0, known.1) = (known.0 + 1, known.1 + gap.lines);
        self.gap.count += 1;
        self.gap.lines += gap.lines;
        self.gap.inexact |= !gap.exact;
        self.torn |= !self.partial.is_empty();
        self.partial.clear();
    }

    fn take_line(
        &mut self,
        line: &str,
        instance: &str,
        replica: usize,
        history: &History,
        outcome: &mut Outcome,
    ) -> Result<(), Violation> {
        let torn = std::mem::take(&mut self.torn);
        let place = parse(line).filter(|(run, at)| {
            let key = history.runs[replica].get(*run);
            key.is_some_and(|key| history.cluster.line(key, *at).as_deref() == Some(line))
        });
        let Some(place) = place else {
            // The gap has counted this line.
            return if torn { Ok(()) } else { Err(Violation::wrong(format!("{line:?} was not printed"))) };
        };
        let (uid, container, number) = &history.runs[replica][place.0];
        if instance != format!("{uid}/{container}/{number}") {
            return Err(Violation::wrong(format!("{line:?} under {instance}")));
        }
        let gap = std::mem::take(&mut self.gap);
        match self.next {
            None => self.check_start(place, replica, &gap, history, outcome)?,
            // docs/KUBERNETES.md, "Known limits": the gateway begins with the runs that it knows, and then
            // with the lines of this one that are left.
            Some(next) if place < next && self.since.pod_was_unknown && gap.count > 0 => {
                outcome.excuse("resumed in an unknown pod", 1);
            }
            // The same: the ring has lines of this time that were in an older file.
            Some(next) if place < next && self.began_within_a_time(place, next, replica, history) => {
                outcome.excuse("rotated between lines of one nanosecond", 1);
            }
            Some(next) if place < next => {
                return Err(Violation::repeat(format!("{place:?} after {next:?}")));
            }
            Some(next) => self.check_gap(next, place, replica, &gap, history, outcome)?,
        }
        self.since = GatewaysSince { was_api: self.reads.live_api, pod_was_unknown: false };
        if self.began.is_none() || gap.inexact {
            self.began = Some(place);
        }
        self.next = Some((place.0, place.1 + 1));
        outcome.lines += 1;
        Ok(())
    }

    /// Whether the follower began with a line whose time the line before has, too, and all lines from `place`
    /// to `next` have that time.
    fn began_within_a_time(&self, place: Place, next: Place, replica: usize, history: &History) -> bool {
        let Some((run, first)) = self.began.filter(|(_, first)| *first > 0) else { return false };
        let time = |at| history.cluster.stamped_line(&history.runs[replica][run], at).0;
        let has_time = |at| time(at) == time(first);
        run == place.0 && run == next.0 && has_time(first - 1) && (place.1..next.1).all(has_time)
    }

    fn check_start(
        &self,
        place: Place,
        replica: usize,
        gap: &PendingGap,
        history: &History,
        outcome: &mut Outcome,
    ) -> Result<(), Violation> {
        let Start::Until(limit) = self.start else { return Ok(()) };
        if place <= limit || gap.count > 0 {
            return Ok(());
        }
        // Its files may have been rotated away since: nothing was read, so nothing is known to be missing. In
        // a fleet, the lines of a run that began later may come from a gateway that reads the API's log.
        if place.1 <= history.oldest_line(replica, place.0, !self.reads.live_api) {
            outcome.excuse("rotated before the first line", 1);
            return Ok(());
        }
        Err(Violation::loss(format!("begins at {place:?}, not until {limit:?}")))
    }

    /// Checks what is missing between two lines.
    fn check_gap(
        &self,
        next: Place,
        place: Place,
        replica: usize,
        gap: &PendingGap,
        history: &History,
        outcome: &mut Outcome,
    ) -> Result<(), Violation> {
        let (mut missing, mut unexplained) = (0, 0);
        for (run, lines) in history.between(replica, next, place) {
            let key = &history.runs[replica][run];
            let (left_out, file) = (history.cluster.left_out(key), history.cluster.extent(key).1);
            let was_api = self.since.was_api || !history.is_on_node(key);
            let cut_off = history.files.as_ref().map_or(0..0, |files| files.cut_off(key));
            missing += lines.len();
            for at in lines {
                // docs/KUBERNETES.md, "Known limits": these are reported later, or never.
                if cut_off.contains(&at) {
                    outcome.excuse("cut off by a crash of the machine", 1);
                } else if !was_api {
                    unexplained += 1;
                } else if left_out.iter().any(|lines| lines.contains(&at)) {
                    outcome.excuse("left out by the kubelet", 1);
                } else if run > next.0 && at < file {
                    outcome.excuse("rotated before the first line of a run", 1);
                } else {
                    unexplained += 1;
                }
            }
        }
        if gap.count == 0 && unexplained > 0 {
            return Err(Violation::loss(format!(
                "{unexplained} of {missing} lines between {next:?} and {place:?}"
            )));
        }
        let is_exact = gap.count > 0 && !gap.inexact && unexplained == missing;
        if is_exact && gap.lines != missing as u64 {
            let text = format!("a gap of {} lines, {missing} between {next:?} and {place:?}", gap.lines);
            return Err(Violation::wrong(text));
        }
        Ok(())
    }
}

/// Parses the beginning of a line: run, line.
fn parse(line: &str) -> Option<Place> {
    let (run, rest) = line.split_once('/')?;
    let number = rest.split_once(' ').map_or(rest, |(number, _)| number);
    Some((run.parse().ok()?, number.parse().ok()?))
}
