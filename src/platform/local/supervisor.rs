//! The life of one replica: run after run, with a wait between them.

use std::time::Duration;

use tokio::sync::watch;

use super::backoff::{Backoff, Waits};
use super::board::Board;
use crate::model::time::LogTime;
use crate::model::view::RunEnd;

/// Set once the platform stops: the run is ended within this grace. May be set again, to less.
pub(super) type Stop = watch::Receiver<Option<Duration>>;

/// Makes one run after the other.
pub(super) trait Runs: Send {
    /// Makes run `restarts`, telling `board` when it has started, and returns when nothing of it is left and all of its log is
    /// written. Ends it early if `stop` says so.
    fn run(&mut self, restarts: u32, board: &Board, stop: &mut Stop) -> impl Future<Output = Outcome> + Send;
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
    board: impl std::ops::Deref<Target = Board> + Send,
    mut runs: impl Runs,
    mut restarts: u32,
    backoff: Backoff,
    mut stop: Stop,
) {
    let mut waits = Waits::new(backoff);
    while stop.borrow().is_none() {
        board.creating(restarts);
        let outcome = runs.run(restarts, &board, &mut stop).await;
        let cause = outcome.cause();
        board.ended(restarts, outcome.started, outcome.end);
        if stop.borrow().is_some() {
            break;
        }
        let wait = waits.after(outcome.up);
        board.waiting("CrashLoopBackOff", format!("back-off {wait:?} restarting: {cause}"));
        tokio::select! {
            _ = stop.wait_for(Option::is_some) => break,
            () = tokio::time::sleep(wait) => {}
        }
        restarts = restarts.saturating_add(1);
    }
    board.terminated();
}

/// Waits until the platform stops (again); tells the grace. Nothing is lost if it is cancelled.
pub(super) async fn stop_asked(stop: &mut Stop) -> Duration {
    loop {
        if stop.changed().await.is_err() {
            // The platform is dropped: its tasks are about to be.
            std::future::pending::<()>().await;
        }
        let grace = *stop.borrow_and_update();
        if let Some(grace) = grace {
            return grace;
        }
    }
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
        async fn run(&mut self, restarts: u32, board: &Board, stop: &mut Stop) -> Outcome {
            self.begun.lock().unwrap().push(self.epoch.elapsed());
            let started = LogTime::from_nanos(restarts.into());
            board.started(restarts, started);
            let up = self.lasts.next().unwrap_or(Duration::MAX);
            let asked = tokio::select! {
                grace = stop_asked(stop) => Some(grace),
                () = tokio::time::sleep(up) => None,
            };
            Outcome {
                started,
                end: RunEnd {
                    time: started,
                    exit_code: asked.is_none().then_some(3),
                    signal: asked.map(|_| 15),
                    reason: "Error".to_owned(),
                },
                up,
                message: None,
            }
        }
    }

    fn replica() -> Replica {
        Replica { service: "web".parse().unwrap(), index: 0 }
    }

    fn board() -> (Arc<Board>, watch::Receiver<Arc<LeaseView>>) {
        let mut view = LeaseView::default();
        let replicas = [(0, ReplicaView::default())].into();
        view.services.insert(replica().service, ServiceView { count: 1, replicas });
        let (sender, receiver) = watch::channel(Arc::new(view));
        let board = Board::new(Arc::new(sender), replica(), "uid".to_owned());
        (Arc::new(board), receiver)
    }

    fn slot(view: &watch::Receiver<Arc<LeaseView>>) -> ReplicaView {
        view.borrow().replica(&replica()).unwrap().clone()
    }

    #[tokio::test(start_paused = true)]
    async fn runs_follow_one_another_with_growing_waits() {
        let (board, view) = board();
        let (stop, asked) = watch::channel(None);
        let begun = Arc::default();
        let runs = Script {
            lasts: [0, 0, 0, 600, 0].map(Duration::from_secs).to_vec().into_iter(),
            begun: Arc::clone(&begun),
            epoch: Instant::now(),
        };
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
        let (stop, asked) = watch::channel(None);
        let runs =
            Script { lasts: vec![Duration::ZERO].into_iter(), begun: Arc::default(), epoch: Instant::now() };
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
        board.ended(0, LogTime::MIN, end);
        assert!(written.is_cancelled() && board.written(&instance).is_cancelled());
        board.forget_before(1);
        assert!(slot(&view).runs.is_empty());
    }
}
