//! Supervises one replica: starts run after run, with a back-off between them, until it is stopped.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::sync::watch;

use super::status_publisher::{StatusPublisher, creating};
use crate::model::time::LogTime;
use crate::model::view::{ReplicaState, RunEnd};

/// The delays between the runs of a replica. Each is twice the previous one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The first delay.
    pub first: Duration,
    /// The longest delay.
    pub longest: Duration,
    /// A run at least this long resets the delay to the first.
    pub reset_after: Duration,
}

/// Executes runs. Implemented by [`Launcher`](super::launch::Launcher), and by a script in tests.
pub(super) trait Runner: Send {
    /// Executes run `run_number`: publishes its start to `status`, ends it early if `stop` requests it, and
    /// returns when all its processes are gone and its log is complete.
    fn run(
        &mut self,
        run_number: u32,
        status: &StatusPublisher,
        stop: &mut StopSignal,
    ) -> impl Future<Output = RunOutcome> + Send;
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RunOutcome {
    pub(super) started: LogTime,
    pub(super) end: RunEnd,
    /// How long its process was up.
    pub(super) up: Duration,
    /// An error message, if exit code and signal do not explain the end.
    pub(super) message: Option<String>,
}

/// Receives requests to end a run, or to skip the delay before the next one: the platform stops, or the
/// replica is restarted.
#[derive(Debug)]
pub(super) struct StopSignal {
    /// Set to a grace period when the platform stops. May be set again, to a shorter one.
    pub(super) platform: watch::Receiver<Option<Duration>>,
    /// Number of the newest run whose restart was requested.
    pub(super) restart: watch::Receiver<Option<u32>>,
    /// Grace period of a run that is restarted.
    pub(super) restart_grace: Duration,
}

/// A request to end a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StopRequest {
    /// Time until the run is killed.
    pub(super) grace: Duration,
    /// The reason of the run's end, as the lease view shows it.
    pub(super) reason: &'static str,
}

/// Runs a replica until `stop` is final, beginning with run `run_number`.
pub(super) async fn supervise(
    status: Arc<StatusPublisher>,
    mut runner: impl Runner,
    mut run_number: u32,
    backoff: Backoff,
    mut stop: StopSignal,
) {
    let mut delays = backoff.delays();
    while !stop.is_final() {
        status.creating(run_number);
        let outcome = runner.run(run_number, &status, &mut stop).await;
        if outcome.up >= backoff.reset_after {
            delays = backoff.delays();
        }
        let mut delay = Duration::ZERO;
        let next = if stop.is_final() {
            ReplicaState::Terminated
        } else if stop.is_restarted(run_number) {
            creating()
        } else {
            delay = delays.next().unwrap_or(backoff.longest);
            let message = format!("back-off {delay:?} restarting: {}", outcome.cause());
            ReplicaState::Waiting { reason: "CrashLoopBackOff".to_owned(), message }
        };
        status.ended(run_number, outcome.started, outcome.end, next);
        tokio::select! {
            biased;
            () = stop.delay_skipped(run_number) => delays = backoff.delays(),
            () = tokio::time::sleep(delay) => {}
        }
        run_number = run_number.saturating_add(1);
    }
    status.terminated();
}

// === impl Backoff ===

impl Backoff {
    fn delays(self) -> impl Iterator<Item = Duration> + Send {
        ExponentialBuilder::new()
            .with_min_delay(self.first.min(self.longest))
            .with_max_delay(self.longest)
            .without_max_times()
            .build()
    }
}

impl Default for Backoff {
    /// From 1 s to 5 min, reset after 10 min: as the kubelet, except for its first delay of 10 s, which is
    /// too long for a person at a terminal.
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(300),
            reset_after: Duration::from_secs(600),
        }
    }
}

// === impl RunOutcome ===

impl RunOutcome {
    fn cause(&self) -> String {
        match (&self.message, self.end.exit_code, self.end.signal) {
            (Some(message), ..) => message.clone(),
            (None, Some(code), _) => format!("it ended with exit code {code}"),
            (None, None, Some(signal)) => format!("signal {signal} ended it"),
            (None, None, None) => "it ended for an unknown reason".to_owned(),
        }
    }
}

// === impl StopSignal ===

impl StopSignal {
    /// Whether the platform stops, so that no run will follow.
    pub(super) fn is_final(&self) -> bool {
        self.platform.borrow().is_some()
    }

    /// Whether a restart was requested for run `run_number`.
    fn is_restarted(&self, run_number: u32) -> bool {
        *self.restart.borrow() >= Some(run_number)
    }

    /// Waits for the next request to end run `run_number`. Cancel safe.
    ///
    /// Waits for changes and not for values, because the caller asks again: each request is returned once.
    /// A change before the call that was not seen counts too.
    pub(super) async fn requested(&mut self, run_number: u32) -> StopRequest {
        loop {
            let is_platform = tokio::select! {
                biased;
                () = changed(&mut self.platform) => true,
                () = changed(&mut self.restart) => false,
            };
            if let Some(grace) = *self.platform.borrow() {
                if is_platform {
                    return StopRequest { grace, reason: "GatewayStopped" };
                }
            } else if self.is_restarted(run_number) {
                return StopRequest { grace: self.restart_grace, reason: "Restarted" };
            }
        }
    }

    /// Waits for a reason to skip the delay after run `run_number`: its restart, or the end of the platform.
    async fn delay_skipped(&mut self, run_number: u32) {
        tokio::select! {
            _ = self.platform.wait_for(Option::is_some) => {}
            _ = self.restart.wait_for(|newest| *newest >= Some(run_number)) => {}
        }
    }
}

async fn changed<T>(order: &mut watch::Receiver<T>) {
    if order.changed().await.is_err() {
        // The platform was dropped, so this task is about to be aborted.
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use tokio::time::Instant;

    use super::*;
    use crate::model::id::Replica;
    use crate::model::view::{LeaseView, ReplicaState, ReplicaView, ServiceView};

    /// Runs of scripted durations. Records when they began.
    struct Script {
        lasts: std::vec::IntoIter<Duration>,
        begun: Arc<Mutex<Vec<Duration>>>,
        epoch: Instant,
    }

    impl Runner for Script {
        async fn run(
            &mut self,
            run_number: u32,
            status: &StatusPublisher,
            stop: &mut StopSignal,
        ) -> RunOutcome {
            self.begun.lock().push(self.epoch.elapsed());
            let started = LogTime::from_nanos(run_number.into());
            status.started(run_number, started);
            let up = self.lasts.next().unwrap_or(Duration::MAX);
            let request = tokio::select! {
                request = stop.requested(run_number) => Some(request),
                () = tokio::time::sleep(up) => None,
            };
            RunOutcome {
                started,
                end: RunEnd {
                    time: started,
                    exit_code: request.is_none().then_some(3),
                    signal: request.map(|_| 15),
                    reason: request.map_or("Error", |request| request.reason).to_owned(),
                },
                up,
                message: None,
            }
        }
    }

    fn replica() -> Replica {
        Replica { service: "web".parse().unwrap(), index: 0 }
    }

    fn publisher() -> (Arc<StatusPublisher>, watch::Receiver<Arc<LeaseView>>) {
        let mut view = LeaseView::default();
        let replicas = [(0, ReplicaView::default())].into();
        view.services.insert(replica().service, ServiceView { count: 1, replicas, ..ServiceView::default() });
        let (sender, receiver) = watch::channel(Arc::new(view));
        let status = StatusPublisher::new(Arc::new(sender), replica(), "uid".to_owned());
        (Arc::new(status), receiver)
    }

    /// Returns the senders for a stop and for a restart, and the receiver of both.
    fn signals() -> (watch::Sender<Option<Duration>>, watch::Sender<Option<u32>>, StopSignal) {
        let (stop, stopped) = watch::channel(None);
        let (restart, restarted) = watch::channel(None);
        (
            stop,
            restart,
            StopSignal { platform: stopped, restart: restarted, restart_grace: Duration::from_secs(10) },
        )
    }

    fn script(seconds: impl IntoIterator<Item = u64>) -> (Script, Arc<Mutex<Vec<Duration>>>) {
        let begun: Arc<Mutex<Vec<Duration>>> = Arc::default();
        let lasts = seconds.into_iter().map(Duration::from_secs).collect::<Vec<_>>().into_iter();
        (Script { lasts, begun: Arc::clone(&begun), epoch: Instant::now() }, begun)
    }

    fn shown(view: &watch::Receiver<Arc<LeaseView>>) -> ReplicaView {
        view.borrow().replica(&replica()).unwrap().clone()
    }

    #[test]
    fn delays_double_up_to_the_longest() {
        let delays: Vec<u64> = Backoff::default().delays().take(11).map(|delay| delay.as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        let short =
            Backoff { first: Duration::from_secs(9), longest: Duration::from_secs(7), ..Backoff::default() };
        assert_eq!(short.delays().next(), Some(Duration::from_secs(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn runs_follow_with_growing_delays() {
        let (status, view) = publisher();
        let (stop, _restart, signal) = signals();
        // 599 s is too short for a reset of the delay.
        let (runner, begun) = script([0, 0, 599, 600, 0]);
        let supervised = supervise(status, runner, 5, Backoff::default(), signal);
        let control = async {
            let up = |replica: &ReplicaView| replica.restarts == 10 && replica.state == ReplicaState::Running;
            let mut views = view.clone();
            let mut waits = Vec::new();
            while !up(&shown(&views)) {
                views.changed().await.unwrap();
                if let ReplicaState::Waiting { reason, message } = shown(&views).state
                    && reason == "CrashLoopBackOff"
                {
                    waits.push(message);
                    assert!(shown(&views).runs.iter().all(|run| run.end.is_some()));
                }
            }
            assert_eq!(waits.len(), 5);
            assert_eq!(waits[1], "back-off 2s restarting: it ended with exit code 3");
            stop.send_replace(Some(Duration::ZERO));
        };
        tokio::join!(supervised, control);
        let begun: Vec<u64> = begun.lock().iter().map(Duration::as_secs).collect();
        assert_eq!(begun, [0, 1, 3, 606, 1_207, 1_209]);
        let replica = shown(&view);
        assert_eq!((replica.state, replica.ready, replica.restarts), (ReplicaState::Terminated, false, 10));
        let ends: Vec<_> = replica.runs.iter().map(|run| run.end.clone().unwrap()).collect();
        assert_eq!(ends.len(), 6);
        assert_eq!((ends[5].signal, ends[4].exit_code), (Some(15), Some(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn stop_cuts_delay_short() {
        let (status, view) = publisher();
        let (stop, _restart, signal) = signals();
        let (runner, _) = script([0]);
        let supervised = supervise(status, runner, 0, Backoff::default(), signal);
        let control = async {
            let waits = |view: &Arc<LeaseView>| {
                let replica = view.replica(&replica()).unwrap();
                replica.runs.iter().any(|run| run.end.is_some()) && replica.state != ReplicaState::Running
            };
            view.clone().wait_for(waits).await.unwrap();
            stop.send_replace(Some(Duration::ZERO));
        };
        let begin = Instant::now();
        tokio::join!(supervised, control);
        assert!(begin.elapsed() < Duration::from_secs(1));
        assert_eq!(shown(&view).state, ReplicaState::Terminated);
    }

    #[tokio::test(start_paused = true)]
    async fn restart_ends_one_run_and_skips_delay() {
        let (status, view) = publisher();
        let (stop, restart, signal) = signals();
        // The first three crash at once, the fourth keeps running.
        let (runner, begun) = script([0, 0, 0]);
        let supervised = supervise(status, runner, 0, Backoff::default(), signal);
        let control = async {
            let mut views = view.clone();
            let mut until = async |wanted: fn(&ReplicaView) -> bool| {
                views.wait_for(|view| wanted(view.replica(&replica()).unwrap())).await.unwrap();
            };
            // Within the delay of four seconds.
            until(|replica| {
                replica.restarts == 2 && replica.runs.last().is_some_and(|run| run.end.is_some())
            })
            .await;
            restart.send_replace(Some(2));
            until(|replica| replica.restarts == 3 && replica.state == ReplicaState::Running).await;
            // A request for a run that has ended.
            restart.send_replace(Some(2));
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(shown(&view).restarts, 3);
            restart.send_replace(Some(3));
            until(|replica| replica.restarts == 4 && replica.state == ReplicaState::Running).await;
            stop.send_replace(Some(Duration::ZERO));
        };
        tokio::join!(supervised, control);
        let begun: Vec<u64> = begun.lock().iter().map(Duration::as_secs).collect();
        assert_eq!(begun, [0, 1, 3, 3, 8]);
        let replica = shown(&view);
        let reasons: Vec<_> = replica.runs.iter().map(|run| run.end.clone().unwrap().reason).collect();
        assert_eq!(reasons, ["Error", "Error", "Error", "Restarted", "GatewayStopped"]);
    }

    #[tokio::test(start_paused = true)]
    async fn log_end_is_known_before_run_end() {
        let (status, view) = publisher();
        status.creating(0);
        let instance = status.instance(0).unwrap();
        let completed = status.log_completed(&instance);
        status.started(0, LogTime::MIN);
        assert!(!completed.is_cancelled());
        assert!(status.log_completed(&status.instance(1).unwrap()).is_cancelled());
        let end =
            RunEnd { time: LogTime::MIN, exit_code: Some(0), signal: None, reason: "Completed".to_owned() };
        status.ended(0, LogTime::MIN, end, ReplicaState::Terminated);
        assert!(completed.is_cancelled() && status.log_completed(&instance).is_cancelled());
        status.forget_before(1);
        assert!(shown(&view).runs.is_empty());
    }
}
