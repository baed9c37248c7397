//! What containers, their kubelets and runtimes do: they print, crash, and rotate logs.

use std::time::Duration;

use rand::RngExt as _;

use super::super::clock;
use super::super::files::Damage;
use super::super::outcome::Violation;
use super::actions::Action;
use super::{FilesKind, MILLISECOND, REPLICAS, SECOND, SERVICE, SITES, Scenario};
use crate::kube::cluster::RunKey;

impl Scenario {
    /// Returns the number and the key of the newest run of a replica.
    pub(super) fn newest(&self, replica: usize) -> (usize, RunKey) {
        let runs = &self.history.runs[replica];
        (runs.len() - 1, runs[runs.len() - 1].clone())
    }

    /// Returns the run whose lines followers can have, unless it has ended.
    fn followed(&self, replica: usize) -> Option<(usize, RunKey)> {
        let at = self.history.current[replica];
        let run = self.history.runs[replica][at].clone();
        (!self.history.cluster.ended(&run)).then_some((at, run))
    }

    /// Returns the newest run, if its container is restarted when it ends, and followers can have its lines.
    fn restartable(&self, replica: usize) -> Option<(usize, RunKey)> {
        let is_newest = |at: usize| at + 1 == self.history.runs[replica].len();
        self.followed(replica).filter(|(at, _)| is_newest(*at) && !self.is_replaced(replica, *at))
    }

    /// Returns the runs of a replica that have not ended: two while one pod replaces another.
    pub(super) fn open_runs(&self, replica: usize) -> Vec<(usize, RunKey)> {
        let runs = self.history.runs[replica].iter().cloned().enumerate();
        runs.filter(|(_, run)| !self.history.cluster.ended(run)).collect()
    }

    pub(super) fn any_open_run(&mut self, replica: usize) -> Option<(usize, RunKey)> {
        let open = self.open_runs(replica);
        (!open.is_empty()).then(|| open[self.random.random_range(0..open.len())].clone())
    }

    /// Rotates a log, or lets a container crash.
    pub(super) async fn end_file_or_run(&mut self, action: Action) -> Result<(), Violation> {
        let replica = self.replica();
        let is_crash = matches!(action, Action::Crash);
        let run = if is_crash { self.restartable(replica) } else { self.any_open_run(replica) };
        let Some((at, run)) = run else { return Ok(()) };
        if !is_crash && self.set_back.contains(&run) {
            return Ok(());
        }
        if is_crash || self.random.random() {
            self.catch_up().await?;
        }
        self.fault(action);
        if is_crash {
            let lines = self.random.random_range(0..20);
            self.print(replica, at, lines, 0, MILLISECOND);
            self.settle(&run);
            self.crash(replica, &run);
        } else {
            self.rotate(&run);
        }
        Ok(())
    }

    fn rotate(&mut self, run: &RunKey) {
        let Some(files) = self.history.files.as_mut().filter(|files| files.has(run)) else {
            self.history.cluster.rotate(run);
            return;
        };
        files.rotate(run, &mut self.random);
        if self.random.random() {
            self.settle(run);
        }
    }

    /// Completes the rotation of a log.
    pub(super) fn settle(&mut self, run: &RunKey) {
        if self.history.files.as_mut().is_some_and(|files| files.settle(run)) {
            self.history.cluster.rotate(run);
        }
    }

    /// Completes the rotations of the logs of a replica.
    pub(super) fn settle_all(&mut self, replica: usize) {
        for (_, run) in self.open_runs(replica) {
            self.settle(&run);
        }
    }

    /// Sets the clock of a node back.
    pub(super) fn set_back_clock(&mut self, action: Action) {
        let replica = self.replica();
        let Some((at, run)) = self.any_open_run(replica) else { return };
        self.settle(&run);
        let (lines, file) = self.history.cluster.extent(&run);
        // A file whose first line is older than the run cannot be placed.
        if lines > file {
            self.fault(action);
            self.print(replica, at, 1, 0, -3_600 * SECOND);
            self.set_back.insert(run);
        }
    }

    /// Ends the runs of all containers of the node, and all gateways. What was written last may be lost.
    pub(super) fn crash_machine(&mut self) {
        if self.files_kind != FilesKind::Damaged || self.is_replacing() {
            return;
        }
        self.fault(Action::CrashMachine);
        for site in 0..SITES {
            self.world.kill(site);
        }
        for replica in 0..REPLICAS {
            let (_, run) = self.newest(replica);
            let damage = self.one_of(&[
                Damage::None,
                Damage::CutActive,
                Damage::CutCompressed,
                Damage::EmptyCompressed,
                Damage::Zeros,
            ]);
            if let Some(files) = self.history.files.as_mut().filter(|files| files.has(&run)) {
                files.halt(&run);
                files.damage(&run, damage, &mut self.random);
                clock::record(format_args!("{}: {damage:?}", run.0));
                self.crash(replica, &run);
            }
        }
    }

    /// The first line comes after the time in which kubelets do not rotate.
    pub(super) fn print_first(&mut self, replica: usize) {
        let (at, _) = self.newest(replica);
        self.print(replica, at, 1, 0, 3 * SECOND);
    }

    /// Lets a run of a replica print.
    pub(super) fn print(&mut self, replica: usize, at: usize, lines: usize, length: usize, step: i64) {
        let run = self.history.runs[replica][at].clone();
        let from = self.history.cluster.extent(&run).0;
        let text = |number| format!("{at}/{number} {}", "x".repeat(length));
        let lines: Vec<String> = (from..from + lines).map(text).collect();
        // The first line of a file is later than the last one of the file before.
        let is_first_of_file = from == self.history.cluster.extent(&run).1
            && (self.files_kind != FilesKind::OneNanosecond || from == 0 || !self.history.is_on_node(&run));
        let (first, rest) = lines.split_at(usize::from(is_first_of_file).min(lines.len()));
        self.history.cluster.print_lines(&run, first, step.max(MILLISECOND));
        self.history.cluster.print_lines(&run, rest, step);
        self.write(&run, from + lines.len());
        self.outcome.printed += lines.len() as u64;
        clock::record(format_args!("{} prints {from} to {}, step {step}", run.0, from + lines.len()));
    }

    /// Writes the lines up to `end` to the file.
    fn write(&mut self, run: &RunKey, end: usize) {
        let cluster = self.history.cluster.clone();
        if let Some(files) = &mut self.history.files {
            files.write(&cluster, run, end, &mut self.random);
        }
    }

    /// Ends a run and starts the next one of its container.
    fn crash(&mut self, replica: usize, run: &RunKey) {
        self.history.cluster.end(run);
        let pod = self.pods[replica].clone();
        let next = self.history.cluster.start_pod(&self.world.lease, SERVICE, &pod, run.2 + 1);
        self.begin(replica, next);
        self.history.current[replica] = self.newest(replica).0;
    }

    /// Begins the log of a run of the pod that lives.
    pub(super) fn begin(&mut self, replica: usize, run: RunKey) {
        let pod = &self.pods[replica];
        if let Some(files) = self.history.files.as_mut().filter(|_| !pod.starts_with("far")) {
            files.begin(pod, &run);
        }
        self.history.runs[replica].push(run);
        self.print_first(replica);
    }

    /// Lets a kubelet lag with a log.
    pub(super) async fn lag_kubelet(&mut self) -> Result<(), Violation> {
        let replica = self.replica();
        let Some((_, run)) = self.followed(replica) else { return Ok(()) };
        if self.set_back.contains(&run) {
            return Ok(());
        }
        self.catch_up().await?;
        self.settle(&run);
        self.fault(Action::LagKubelet);
        // A newest file of one line, sent twice, looks like two equal lines.
        let newest = self.random.random_range(2..50);
        let left_out: Vec<usize> =
            (0..self.random.random_range(0..3)).map(|_| self.random.random_range(2..50)).collect();
        let (rest, step) = (self.random.random_range(0..50), self.one_of(&[1, MILLISECOND, 2 * SECOND]));
        let mut end = self.history.cluster.extent(&run).0 + rest;
        self.history.cluster.lag(&run, rest, &left_out, newest, step);
        self.write(&run, end);
        for lines in left_out.iter().copied().chain([newest]) {
            if let Some(files) = &mut self.history.files {
                files.rotate(&run, &mut self.random);
                files.settle(&run);
            }
            end += lines;
            self.write(&run, end);
        }
        self.outcome.printed += (rest + newest + left_out.iter().sum::<usize>()) as u64;
        Ok(())
    }

    /// Restarts a container once or twice before the API server learns of it.
    pub(super) async fn crash_unreported(&mut self) -> Result<(), Violation> {
        let replica = self.replica();
        if self.restartable(replica).is_none() {
            return Ok(());
        }
        self.catch_up().await?;
        self.fault(Action::CrashUnreported);
        // A response that completes just before the run ends looks like the end of the run.
        self.pass(Duration::from_secs(2)).await?;
        for _ in 0..self.random.random_range(1..3) {
            let (at, run) = self.newest(replica);
            self.settle(&run);
            let next = self.history.cluster.crash_unreported(&run);
            self.begin(replica, next);
            self.history.current[replica] = at + 1;
            let lines = self.random.random_range(0..5);
            self.print(replica, at + 1, lines, 0, MILLISECOND);
        }
        let seconds = self.random.random_range(0..15);
        self.pass(Duration::from_secs(seconds)).await?;
        let (_, run) = self.newest(replica);
        self.history.cluster.start_pod(&self.world.lease, SERVICE, &self.pods[replica], run.2);
        Ok(())
    }
}
