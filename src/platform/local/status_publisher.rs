//! What is told of one replica: its part of the lease's view, and when the log of the present run ends.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::model::id::{Instance, Replica};
use crate::model::limits::RUNS_MAX;
use crate::model::time::LogTime;
use crate::model::view::{LeaseView, ReplicaState, ReplicaView, Run, RunEnd};

/// Tells of one replica.
#[derive(Debug)]
pub(super) struct StatusPublisher {
    view: Arc<watch::Sender<Arc<LeaseView>>>,
    replica: Replica,
    /// The pod's, so to speak.
    uid: String,
    /// The present run, and what is cancelled once all of its log is written.
    present: Mutex<Option<(Instance, CancellationToken)>>,
}

// === impl Board ===

impl StatusPublisher {
    pub(super) fn new(view: Arc<watch::Sender<Arc<LeaseView>>>, replica: Replica, uid: String) -> Self {
        Self { view, replica, uid, present: Mutex::new(None) }
    }

    /// The name of run `restarts`.
    pub(super) fn instance(&self, restarts: u32) -> Option<Instance> {
        // Service names and uids are of the right form.
        Instance::new(&self.uid, self.replica.service.as_str(), restarts).ok()
    }

    /// A run is about to begin.
    pub(super) fn creating(&self, restarts: u32) {
        self.set(self.instance(restarts).map(|instance| (instance, CancellationToken::new())));
        self.update(|slot| {
            slot.restarts = restarts;
            slot.state = creating();
        });
    }

    /// Its process runs, and its log can be read.
    pub(super) fn started(&self, restarts: u32, started: LogTime) {
        self.update(|slot| {
            self.list(slot, restarts, started, None);
            slot.state = ReplicaState::Running;
            slot.ready = true;
        });
    }

    /// It ended, and all of its log is written. What the replica does `next` is told with it.
    pub(super) fn ended(&self, restarts: u32, started: LogTime, end: RunEnd, next: ReplicaState) {
        if let Some((_, written)) = self.set(None) {
            written.cancel();
        }
        self.update(|slot| {
            let instance = self.instance(restarts);
            match slot.runs.iter_mut().find(|run| Some(&run.instance) == instance.as_ref()) {
                Some(run) => run.end = Some(end),
                // It never got as far as running.
                None => self.list(slot, restarts, started, Some(end)),
            }
            slot.ready = false;
            slot.state = next;
        });
    }

    /// No run any more.
    pub(super) fn terminated(&self) {
        self.update(|slot| slot.state = ReplicaState::Terminated);
    }

    /// The logs of the runs before `oldest` are gone.
    pub(super) fn forget_before(&self, oldest: u32) {
        let gone = |run: &Run| run.instance.parts().2 < oldest;
        self.view.send_if_modified(|view| {
            let any = view.replica(&self.replica).is_some_and(|slot| slot.runs.iter().any(gone));
            if any {
                self.change(view, |slot| slot.forget(gone));
            }
            any
        });
    }

    /// What is cancelled once all of the log of `instance` is written: now, if it is not the present run.
    pub(super) fn written(&self, instance: &Instance) -> CancellationToken {
        let present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        match &*present {
            Some((run, written)) if run == instance => written.clone(),
            _ => {
                let written = CancellationToken::new();
                written.cancel();
                written
            }
        }
    }

    fn set(&self, run: Option<(Instance, CancellationToken)>) -> Option<(Instance, CancellationToken)> {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *present, run)
    }

    fn list(&self, slot: &mut ReplicaView, restarts: u32, started: LogTime, end: Option<RunEnd>) {
        slot.runs.extend(self.instance(restarts).map(|instance| Run {
            instance,
            started,
            end,
            log_is_gone: false,
        }));
        if slot.runs.len() > RUNS_MAX {
            let oldest = slot.runs.first().map(|run| run.instance.clone());
            slot.forget(|run| Some(&run.instance) == oldest.as_ref());
        }
    }

    fn update(&self, change: impl FnOnce(&mut ReplicaView)) {
        self.view.send_modify(|view| self.change(view, change));
    }

    fn change(&self, view: &mut Arc<LeaseView>, change: impl FnOnce(&mut ReplicaView)) {
        let service = Arc::make_mut(view).services.get_mut(&self.replica.service);
        if let Some(slot) = service.and_then(|service| service.replicas.get_mut(&self.replica.index)) {
            change(slot);
        }
    }
}

impl Drop for StatusPublisher {
    /// A run that is given up has written all that it will: nobody should wait for more.
    fn drop(&mut self) {
        if let Some((_, written)) = self.set(None) {
            written.cancel();
        }
    }
}

/// What a replica does that will run in a moment.
pub(super) fn creating() -> ReplicaState {
    ReplicaState::Waiting { reason: "ContainerCreating".to_owned(), message: String::new() }
}
