//! Publishes the state of one replica: its part of the lease view, and when the log of the current run is
//! complete.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::model::id::{Instance, Replica};
use crate::model::limits::RUNS_MAX;
use crate::model::time::LogTime;
use crate::model::view::{LeaseView, ReplicaState, ReplicaView, Run, RunEnd};

#[derive(Debug)]
pub(super) struct StatusPublisher {
    view: Arc<watch::Sender<Arc<LeaseView>>>,
    replica: Replica,
    /// Takes the place of a pod's uid.
    uid: String,
    /// The current run, if its log will grow.
    current: Mutex<Option<CurrentRun>>,
}

#[derive(Debug)]
struct CurrentRun {
    instance: Instance,
    /// Cancelled when the log is complete.
    completed: CancellationToken,
    /// Cancels it, also for a run that is abandoned, which releases its followers.
    _guard: DropGuard,
}

// === impl StatusPublisher ===

impl StatusPublisher {
    pub(super) fn new(view: Arc<watch::Sender<Arc<LeaseView>>>, replica: Replica, uid: String) -> Self {
        Self { view, replica, uid, current: Mutex::new(None) }
    }

    /// Returns the name of run `run_number`.
    pub(super) fn instance(&self, run_number: u32) -> Option<Instance> {
        // Valid because service names and uids are.
        Instance::new(&self.uid, self.replica.service.as_str(), run_number).ok()
    }

    /// Publishes that a run is being started.
    pub(super) fn creating(&self, run_number: u32) {
        let completed = CancellationToken::new();
        *self.current.lock() = self.instance(run_number).map(|instance| CurrentRun {
            instance,
            completed: completed.clone(),
            _guard: completed.drop_guard(),
        });
        self.update(|replica| {
            replica.restarts = run_number;
            replica.state = creating();
        });
    }

    /// Publishes that the run's process is up and its log can be read.
    pub(super) fn started(&self, run_number: u32, started: LogTime) {
        self.update(|replica| {
            self.add_run(replica, run_number, started, None);
            replica.state = ReplicaState::Running;
            replica.ready = true;
        });
    }

    /// Publishes that the run ended, its log is complete, and the replica is in the state `next`.
    pub(super) fn ended(&self, run_number: u32, started: LogTime, end: RunEnd, next: ReplicaState) {
        // Dropped without the lock, because that wakes the followers.
        let run = self.current.lock().take();
        drop(run);
        self.update(|replica| {
            let instance = self.instance(run_number);
            match replica.runs.iter_mut().find(|run| Some(&run.instance) == instance.as_ref()) {
                Some(run) => run.end = Some(end),
                // It ended before it was up.
                None => self.add_run(replica, run_number, started, Some(end)),
            }
            replica.ready = false;
            replica.state = next;
        });
    }

    /// Publishes that no run will follow.
    pub(super) fn terminated(&self) {
        self.update(|replica| replica.state = ReplicaState::Terminated);
    }

    /// Removes runs before `oldest`, whose logs were removed.
    pub(super) fn forget_before(&self, oldest: u32) {
        let is_removed = |run: &Run| run.instance.run_number() < oldest;
        self.view.send_if_modified(|view| {
            let any = view.replica(&self.replica).is_some_and(|replica| replica.runs.iter().any(is_removed));
            if any {
                self.change(view, |replica| replica.forget(is_removed));
            }
            any
        });
    }

    /// Returns a token that is cancelled when the log of `instance` is complete. It is cancelled already
    /// unless that is the current run.
    pub(super) fn log_completed(&self, instance: &Instance) -> CancellationToken {
        match &*self.current.lock() {
            Some(run) if run.instance == *instance => run.completed.clone(),
            _ => {
                let completed = CancellationToken::new();
                completed.cancel();
                completed
            }
        }
    }

    fn add_run(&self, replica: &mut ReplicaView, run_number: u32, started: LogTime, end: Option<RunEnd>) {
        let instance = self.instance(run_number);
        replica.runs.extend(instance.map(|instance| Run {
            instance,
            started,
            end,
            log_is_gone: false,
            later_unknown: false,
        }));
        if replica.runs.len() > RUNS_MAX {
            let oldest = replica.runs.first().map(|run| run.instance.clone());
            replica.forget(|run| Some(&run.instance) == oldest.as_ref());
        }
    }

    fn update(&self, change: impl FnOnce(&mut ReplicaView)) {
        self.view.send_modify(|view| self.change(view, change));
    }

    fn change(&self, view: &mut Arc<LeaseView>, change: impl FnOnce(&mut ReplicaView)) {
        let service = Arc::make_mut(view).services.get_mut(&self.replica.service);
        if let Some(replica) = service.and_then(|service| service.replicas.get_mut(&self.replica.index)) {
            change(replica);
        }
    }
}

/// The state of a replica whose next run starts now.
pub(super) fn creating() -> ReplicaState {
    ReplicaState::Waiting { reason: "ContainerCreating".to_owned(), message: String::new() }
}
