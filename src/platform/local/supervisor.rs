//! The life of one replica: run after run, with a wait between them.

use std::time::Duration;

use super::backoff::{Backoff, Waits};
use super::status_publisher::{StatusPublisher, creating};
use super::stop_signal::StopSignal;
use crate::model::time::LogTime;
use crate::model::view::{ReplicaState, RunEnd};

/// Makes one run after the other.
pub(super) trait Runs: Send {
    /// Makes run `restarts`, telling `board` when it has started, and returns when nothing of it is left and all of its log is
    /// written. Ends it early if `stop` says so.
    fn run(
        &mut self,
        restarts: u32,
        board: &StatusPublisher,
        stop: &mut StopSignal,
    ) -> impl Future<Output = Outcome> + Send;
}

/// How a run went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) started: LogTime,
    pub(super) end: RunEnd,
    /// How long it was up.
    pub(super) up: Duration,
    /// What went wrong, for people, if there is more to say than exit code and signal.
    pub(super) message: Option<String>,
}

/// Runs a replica until `stop`, beginning with run `restarts`.
pub(super) async fn supervise(
    board: impl std::ops::Deref<Target = StatusPublisher> + Send,
    mut runs: impl Runs,
    mut restarts: u32,
    backoff: Backoff,
    mut stop: StopSignal,
) {
    let mut waits = Waits::new(backoff);
    while !stop.is_final() {
        board.creating(restarts);
        let outcome = runs.run(restarts, &board, &mut stop).await;
        let mut wait = None;
        let next = if stop.is_final() {
            ReplicaState::Terminated
        } else if stop.makes_way(restarts) {
            creating()
        } else {
            let after = waits.after(outcome.up);
            wait = Some(after);
            let message = format!("back-off {after:?} restarting: {}", outcome.cause());
            ReplicaState::Waiting { reason: "CrashLoopBackOff".to_owned(), message }
        };
        board.ended(restarts, outcome.started, outcome.end, next);
        let waited = async {
            if let Some(wait) = wait {
                tokio::time::sleep(wait).await;
            }
        };
        tokio::select! {
            biased;
            () = stop.asked_to_make_way(restarts) => waits = Waits::new(backoff),
            () = waited => {}
        }
        restarts = restarts.saturating_add(1);
    }
    board.terminated();
}

// === impl Outcome ===

impl Outcome {
    fn cause(&self) -> String {
        match (&self.message, self.end.exit_code, self.end.signal) {
            (Some(message), ..) => message.clone(),
            (None, Some(code), _) => format!("it ended with exit code {code}"),
            (None, None, Some(signal)) => format!("signal {signal} ended it"),
            (None, None, None) => "it ended, nobody knows how".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;
    use tokio::time::Instant;

    use super::*;
    use crate::model::id::Replica;
    use crate::model::view::{LeaseView, ReplicaState, ReplicaView, ServiceView};

    /// Runs that last so long each, and the moments at which they began.
    struct Script {
        lasts: std::vec::IntoIter<Duration>,
        begun: Arc<std::sync::Mutex<Vec<Duration>>>,
        epoch: Instant,
    }

    impl Runs for Script {
        async fn run(&mut self, restarts: u32, board: &StatusPublisher, stop: &mut StopSignal) -> Outcome {
            self.begun.lock().unwrap().push(self.epoch.elapsed());
            let started = LogTime::from_nanos(restarts.into());
            board.started(restarts, started);
            let up = self.lasts.next().unwrap_or(Duration::MAX);
            let asked = tokio::select! {
                asked = stop.asked(restarts) => Some(asked),
                () = tokio::time::sleep(up) => None,
            };
            Outcome {
                started,
                end: RunEnd {
                    time: started,
                    exit_code: asked.is_none().then_some(3),
                    signal: asked.map(|_| 15),
                    reason: asked.map_or("Error", |asked| asked.reason).to_owned(),
                },
                up,
                message: None,
            }
        }
    }

    fn replica() -> Replica {
        Replica { service: "web".parse().unwrap(), index: 0 }
    }

    fn board() -> (Arc<StatusPublisher>, watch::Receiver<Arc<LeaseView>>) {
        let mut view = LeaseView::default();
        let replicas = [(0, ReplicaView::default())].into();
        view.services.insert(replica().service, ServiceView { count: 1, replicas, ..ServiceView::default() });
        let (sender, receiver) = watch::channel(Arc::new(view));
        let board = StatusPublisher::new(Arc::new(sender), replica(), "uid".to_owned());
        (Arc::new(board), receiver)
    }

    /// What asks for the end of everything, of one run, and who listens.
    fn orders() -> (watch::Sender<Option<Duration>>, watch::Sender<Option<u32>>, StopSignal) {
        let (stop, stopped) = watch::channel(None);
        let (restart, restarted) = watch::channel(None);
        (stop, restart, StopSignal::new(stopped, restarted, Duration::from_secs(10)))
    }

    fn script(seconds: impl IntoIterator<Item = u64>) -> (Script, Arc<std::sync::Mutex<Vec<Duration>>>) {
        let begun: Arc<std::sync::Mutex<Vec<Duration>>> = Arc::default();
        let lasts = seconds.into_iter().map(Duration::from_secs).collect::<Vec<_>>().into_iter();
        (Script { lasts, begun: Arc::clone(&begun), epoch: Instant::now() }, begun)
    }

    fn slot(view: &watch::Receiver<Arc<LeaseView>>) -> ReplicaView {
        view.borrow().replica(&replica()).unwrap().clone()
    }

    #[tokio::test(start_paused = true)]
    async fn runs_follow_one_another_with_growing_waits() {
        let (board, view) = board();
        let (stop, _restart, asked) = orders();
        let (runs, begun) = script([0, 0, 0, 600, 0]);
        let life = supervise(board, runs, 5, Backoff::default(), asked);
        let ask = async {
            let up = |slot: &ReplicaView| slot.restarts == 10 && slot.state == ReplicaState::Running;
            let mut views = view.clone();
            let mut waits = Vec::new();
            while !up(&slot(&views)) {
                views.changed().await.unwrap();
                if let ReplicaState::Waiting { reason, message } = slot(&views).state
                    && reason == "CrashLoopBackOff"
                {
                    waits.push(message);
                    assert!(slot(&views).runs.iter().all(|run| run.end.is_some()));
                }
            }
            assert_eq!(waits.len(), 5);
            assert_eq!(waits[1], "back-off 2s restarting: it ended with exit code 3");
            stop.send_replace(Some(Duration::ZERO));
        };
        tokio::join!(life, ask);
        let begun: Vec<u64> = begun.lock().unwrap().iter().map(Duration::as_secs).collect();
        assert_eq!(begun, [0, 1, 3, 7, 608, 610]);
        let slot = slot(&view);
        assert_eq!((slot.state, slot.ready, slot.restarts), (ReplicaState::Terminated, false, 10));
        let ends: Vec<_> = slot.runs.iter().map(|run| run.end.clone().unwrap()).collect();
        assert_eq!(ends.len(), 6);
        assert_eq!((ends[5].signal, ends[4].exit_code), (Some(15), Some(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_cuts_a_wait_short() {
        let (board, view) = board();
        let (stop, _restart, asked) = orders();
        let (runs, _) = script([0]);
        let life = supervise(board, runs, 0, Backoff::default(), asked);
        let ask = async {
            let waits = |view: &Arc<LeaseView>| {
                let slot = view.replica(&replica()).unwrap();
                slot.runs.iter().any(|run| run.end.is_some()) && slot.state != ReplicaState::Running
            };
            view.clone().wait_for(waits).await.unwrap();
            stop.send_replace(Some(Duration::ZERO));
        };
        let begin = Instant::now();
        tokio::join!(life, ask);
        assert!(begin.elapsed() < Duration::from_secs(1));
        assert_eq!(slot(&view).state, ReplicaState::Terminated);
    }

    #[tokio::test(start_paused = true)]
    async fn a_restart_ends_this_run_alone_and_is_not_held_up_by_a_back_off() {
        let (board, view) = board();
        let (stop, restart, asked) = orders();
        // The first three crash at once, the fourth goes on.
        let (runs, begun) = script([0, 0, 0]);
        let life = supervise(board, runs, 0, Backoff::default(), asked);
        let ask = async {
            let mut views = view.clone();
            let mut until = async |wanted: fn(&ReplicaView) -> bool| {
                views.wait_for(|view| wanted(view.replica(&replica()).unwrap())).await.unwrap();
            };
            // In the back-off of four seconds.
            until(|slot| slot.restarts == 2 && slot.runs.last().is_some_and(|run| run.end.is_some())).await;
            restart.send_replace(Some(2));
            until(|slot| slot.restarts == 3 && slot.state == ReplicaState::Running).await;
            // An order for a run that is over.
            restart.send_replace(Some(2));
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(slot(&view).restarts, 3);
            restart.send_replace(Some(3));
            until(|slot| slot.restarts == 4 && slot.state == ReplicaState::Running).await;
            stop.send_replace(Some(Duration::ZERO));
        };
        tokio::join!(life, ask);
        let begun: Vec<u64> = begun.lock().unwrap().iter().map(Duration::as_secs).collect();
        assert_eq!(begun, [0, 1, 3, 3, 8]);
        let slot = slot(&view);
        let reasons: Vec<_> = slot.runs.iter().map(|run| run.end.clone().unwrap().reason).collect();
        assert_eq!(reasons, ["Error", "Error", "Error", "Restarted", "GatewayStopped"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_log_is_told_before_the_end_of_the_run_and_to_late_comers() {
        let (board, view) = board();
        board.creating(0);
        let instance = board.instance(0).unwrap();
        let written = board.written(&instance);
        board.started(0, LogTime::MIN);
        assert!(!written.is_cancelled());
        assert!(board.written(&board.instance(1).unwrap()).is_cancelled());
        let end =
            RunEnd { time: LogTime::MIN, exit_code: Some(0), signal: None, reason: "Completed".to_owned() };
        board.ended(0, LogTime::MIN, end, ReplicaState::Terminated);
        assert!(written.is_cancelled() && board.written(&instance).is_cancelled());
        board.forget_before(1);
        assert!(slot(&view).runs.is_empty());
    }
}
