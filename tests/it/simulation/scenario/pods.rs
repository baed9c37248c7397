//! Pods that are replaced: deleted by a rollout or an operator, deleted by force, or evicted by their node.
//!
//! What happens to the old pod and to the new one is in steps, between which everything else happens. The
//! container of a pod that is being deleted prints until it ends; its kubelet then reports the end, removes
//! the log and lets the API server remove the pod, in about this order. The new pod is created and starts
//! meanwhile.
//!
//! Bounds:
//! - One pod of a replica is replaced at a time, and [all gateways know it](Scenario::is_replaceable): a pod
//!   that starts and is gone unseen is not read.
//! - All pods have their index written on them by then. Until it is, a gateway that lists them all at once
//!   may number them otherwise for a moment.
//! - Before a container ends for good, all readers have read its lines, and follow its log: what comes after
//!   a follow was interrupted is lost with the log.
//! - Followers have [more than one read](Scenario::is_replaceable) of older lines at a time: two that wait
//!   for more lines of a pod that ends take turns, and new followers get none until it has ended.

use std::collections::VecDeque;
use std::time::Duration;

use rand::RngExt as _;

use super::super::clock;
use super::super::outcome::Violation;
use super::actions::Action;
use super::{MILLISECOND, REPLICAS, SERVICE, Scenario};
use crate::kube::cluster::{LogAnswer, RunKey};

/// Time after all faults within which each gateway follows each log again: one that a kubelet could not
/// follow is read every 2 s for half a minute, before that is tried again.
const FOLLOWED_AGAIN: Duration = Duration::from_secs(40);

/// How long a container runs on after its pod was deleted by force, in milliseconds.
const FORCED_MAX: u64 = 3_000;

/// A pod that is being replaced.
#[derive(Debug)]
pub(super) struct Replacement {
    /// The name of the old pod.
    old: String,
    /// Number of the old pod's last run.
    at: usize,
    of_old: VecDeque<OldStep>,
    of_new: VecDeque<NewStep>,
}

/// A step of the pod that is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OldStep {
    /// Its container ends.
    End,
    /// Its kubelet reports the end, and the reason of the pod.
    Report(&'static str),
    /// Its kubelet removes the log.
    RemoveLog,
    /// The API server removes the pod.
    Remove,
}

/// A step of the pod that replaces another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NewStep {
    Create,
    Start,
}

/// Why a pod is replaced.
#[derive(Clone, Copy, Debug)]
enum Cause {
    /// A new version. The controllers of the two replica sets do not wait for each other.
    Rollout,
    Deletion,
    ForcedDeletion,
    /// By its node. The object of the pod remains.
    Eviction,
}

impl Scenario {
    pub(super) fn is_replacing(&self) -> bool {
        self.replacements.iter().any(Option::is_some)
    }

    /// Whether the pod of a run is being replaced, or was.
    pub(super) fn is_replaced(&self, replica: usize, at: usize) -> bool {
        self.replacements[replica].as_ref().is_some_and(|replacement| at <= replacement.at)
    }

    /// Whether the log of the old pod is gone, but not the pod. A follower that has not read all of it waits
    /// for its end to be reported, or for its kubelet to know it again.
    pub(super) fn is_log_removed(&self, replica: usize) -> bool {
        self.replacements[replica].as_ref().is_some_and(|Replacement { of_old, .. }| {
            !of_old.is_empty() && !of_old.contains(&OldStep::RemoveLog)
        })
    }

    /// Whether all pods have their index, and all gateways know that the pod of this replica has run.
    async fn is_replaceable(&self, replica: usize) -> bool {
        let namespace = self.world.lease.namespace();
        let has_index = |pod: &String| self.history.cluster.annotation(&namespace, pod).is_some();
        let (at, run) = self.newest(replica);
        !self.has_one_read
            && self.replacements[replica].is_none()
            && at == self.history.current[replica]
            && self.replacements.iter().flatten().all(|other| !other.of_new.contains(&NewStep::Create))
            && self.pods.iter().all(has_index)
            && self.world.is_known(replica, &run).await
    }

    /// Begins to replace a pod.
    pub(super) async fn replace_pod(&mut self) -> Result<(), Violation> {
        let replica = self.replica();
        let cause = self.one_of(&[Cause::Rollout, Cause::Deletion, Cause::ForcedDeletion, Cause::Eviction]);
        if !self.is_replaceable(replica).await {
            return Ok(());
        }
        self.fault(Action::ReplacePod);
        *self.outcome.faults.entry(format!("{cause:?}")).or_default() += 1;
        let (at, run) = self.newest(replica);
        let old = self.pods[replica].clone();
        clock::record(format_args!("{cause:?} of {old}"));
        let mut ends = vec![OldStep::Report(""), OldStep::RemoveLog, OldStep::Remove];
        if self.random.random_range(0..4) == 0 {
            // The log goes first, or last.
            let other = self.one_of(&[0, 2]);
            ends.swap(1, other);
        }
        let of_old = match cause {
            Cause::Rollout | Cause::Deletion => std::iter::once(OldStep::End).chain(ends).collect(),
            Cause::ForcedDeletion => VecDeque::from([OldStep::RemoveLog]),
            Cause::Eviction => VecDeque::from([OldStep::RemoveLog, OldStep::Remove]),
        };
        let of_new = VecDeque::from([NewStep::Create, NewStep::Start]);
        let is_created_first = matches!(cause, Cause::Rollout) && self.random.random();
        self.replacements[replica] = Some(Replacement { old, at, of_old, of_new });
        match cause {
            Cause::Rollout => {
                if is_created_first {
                    self.step_new(replica);
                }
                self.mark_deleted(replica);
                if !is_created_first {
                    self.step_new(replica);
                }
            }
            Cause::Deletion => self.mark_deleted(replica),
            Cause::ForcedDeletion => self.delete_by_force(replica, at, &run).await?,
            Cause::Eviction => {
                self.end_container(replica).await?;
                self.report_end(replica, "Evicted");
            }
        }
        Ok(())
    }

    fn mark_deleted(&self, replica: usize) {
        let Some(Replacement { old, .. }) = &self.replacements[replica] else { return };
        let second = i64::try_from(clock::elapsed().as_secs()).unwrap();
        self.history.cluster.mark_deleted_at(&self.world.lease, old, second);
    }

    /// The API server removes a pod at once. Its container prints until its kubelet has ended it.
    async fn delete_by_force(&mut self, replica: usize, at: usize, run: &RunKey) -> Result<(), Violation> {
        self.catch_up().await?;
        self.pass(FOLLOWED_AGAIN).await?;
        self.remove_pod(replica);
        let millis = self.random.random_range(0..FORCED_MAX);
        for _ in 0..self.random.random_range(0..3) {
            let lines = self.random.random_range(0..20);
            self.print(replica, at, lines, 0, MILLISECOND);
            self.pass(Duration::from_millis(millis / 3)).await?;
        }
        self.settle(run);
        self.history.cluster.end(run);
        Ok(())
    }

    /// Does the next step of a pod that is replaced, or of the one that replaces it.
    pub(super) async fn step_pod(&mut self) -> Result<(), Violation> {
        let replacing: Vec<usize> = (0..REPLICAS).filter(|at| self.replacements[*at].is_some()).collect();
        if replacing.is_empty() {
            return Ok(());
        }
        let replica = self.one_of(&replacing);
        let of_new = self.random.random();
        self.step(replica, of_new).await
    }

    /// Completes all replacements.
    pub(super) async fn finish_replacements(&mut self) -> Result<(), Violation> {
        while self.is_replacing() {
            self.step_pod().await?;
            self.turn().await?;
        }
        Ok(())
    }

    async fn step(&mut self, replica: usize, of_new: bool) -> Result<(), Violation> {
        let Some(replacement) = &self.replacements[replica] else { return Ok(()) };
        let of_new = replacement.of_old.is_empty() || (of_new && !replacement.of_new.is_empty());
        if of_new {
            self.step_new(replica);
        } else {
            self.step_old(replica).await?;
        }
        let is_done = |of: &Replacement| of.of_old.is_empty() && of.of_new.is_empty();
        if self.replacements[replica].as_ref().is_some_and(is_done) {
            self.replacements[replica] = None;
        }
        Ok(())
    }

    fn step_new(&mut self, replica: usize) {
        let Some(replacement) = &mut self.replacements[replica] else { return };
        let Some(step) = replacement.of_new.pop_front() else { return };
        let at = replacement.at;
        let cluster = self.history.cluster.clone();
        match step {
            NewStep::Create => {
                let kind = self.one_of(&["p", "p", "p", "far"]);
                let (name, number) = (format!("{kind}{}", self.pods_created), self.pods_created);
                self.pods_created += 1;
                cluster.create_pod(&self.world.lease, SERVICE, "set", &name, number);
                self.pods[replica] = name;
            }
            NewStep::Start => {
                let name = self.pods[replica].clone();
                let last = cluster.last_second(&self.history.runs[replica][at]);
                cluster.start_at(&name, last + self.random.random_range(1..10));
                let run = cluster.start_pod(&self.world.lease, SERVICE, &name, 0);
                self.begin(replica, run);
                if self.is_end_known(replica) {
                    self.history.current[replica] = at + 1;
                }
            }
        }
        clock::record(format_args!("{step:?} of {}", self.pods[replica]));
    }

    /// Whether the API server knows that the old pod's container has ended.
    fn is_end_known(&self, replica: usize) -> bool {
        self.replacements[replica].as_ref().is_none_or(|replacement| {
            let is_unknown = |step: &OldStep| matches!(step, OldStep::Report(_));
            !replacement.of_old.iter().any(is_unknown)
        })
    }

    async fn step_old(&mut self, replica: usize) -> Result<(), Violation> {
        let Some(replacement) = &mut self.replacements[replica] else { return Ok(()) };
        let Some(step) = replacement.of_old.pop_front() else { return Ok(()) };
        let (old, at) = (replacement.old.clone(), replacement.at);
        let run = self.history.runs[replica][at].clone();
        match step {
            OldStep::End => self.end_container(replica).await?,
            OldStep::Report(reason) => self.report_end(replica, reason),
            OldStep::RemoveLog => {
                let answer = self.one_of(&[
                    LogAnswer::Message,
                    LogAnswer::Refuse,
                    LogAnswer::Forgot,
                    LogAnswer::CutOff,
                ]);
                self.history.cluster.answer_logs(&run, answer);
                if let Some(files) = &mut self.history.files {
                    files.remove_pod(&run.0);
                }
            }
            OldStep::Remove => self.remove_pod(replica),
        }
        clock::record(format_args!("{step:?} of {old}"));
        Ok(())
    }

    /// The container of the old pod ends. Its last lines come directly before.
    async fn end_container(&mut self, replica: usize) -> Result<(), Violation> {
        self.catch_up().await?;
        self.pass(FOLLOWED_AGAIN).await?;
        let Some(Replacement { at, .. }) = self.replacements[replica] else { return Ok(()) };
        let lines = self.random.random_range(0..20);
        self.print(replica, at, lines, 0, MILLISECOND);
        let run = self.history.runs[replica][at].clone();
        self.settle(&run);
        self.history.cluster.end(&run);
        Ok(())
    }

    fn report_end(&mut self, replica: usize, reason: &str) {
        let Some(Replacement { old, at, .. }) = &self.replacements[replica] else { return };
        let run = &self.history.runs[replica][*at];
        self.history.cluster.report_end(&self.world.lease, old, run, reason);
        self.history.current[replica] = self.newest(replica).0;
    }

    /// Removes the old pod. Sometimes no watch is told.
    fn remove_pod(&mut self, replica: usize) {
        let quietly = self.random.random_range(0..8) == 0;
        let Some(Replacement { old, .. }) = &self.replacements[replica] else { return };
        let cluster = &self.history.cluster;
        cluster.remove("pods", &self.world.lease.namespace(), old, quietly);
        if quietly {
            cluster.forget_history();
        }
        self.history.current[replica] = self.newest(replica).0;
    }
}
