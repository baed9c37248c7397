//! Followers of the demo: one prints, the others only check. Each has its own connection.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::DemoError;
use crate::client::connect::Connector;
use crate::client::error::CallError;
use crate::client::follow::{ConnectionChange, Ended, Follower, Sink};
use crate::loss_checker::{LossChecker, Order, Start, Tally, Violation};
use crate::model::limits::STREAM_REPLICAS_MAX;
use crate::model::proto::lease::{ServiceLogs, ServiceLogsRequest};
use crate::model::time::LogTime;

/// Followers that connect at the same time. A handshake costs a millisecond on both sides; more of them at
/// once could time out.
const CONNECTING_MAX: usize = 64;

/// Limit on stopping the printing follower, which may be blocked in a write to a full pipe.
const PRINTER_STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Time of the newest line that a follower has, by replica.
pub(super) type LineTimes = BTreeMap<String, LogTime>;

/// All followers of a demo. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Followers<P> {
    request: ServiceLogsRequest,
    stop: CancellationToken,
    connecting: Arc<Semaphore>,
    printing: JoinSet<(Outcome, P)>,
    /// Set when the printing follower has ended.
    printed: Option<(Outcome, P)>,
    checking: JoinSet<Outcome>,
}

/// Outcome of one follower.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Whether its stream ever opened.
    pub(super) attached: bool,
    pub(super) tally: Tally,
    pub(super) violation: Option<Box<Violation>>,
    /// Set if it ended before it was stopped.
    pub(super) ended: Option<Result<Ended, CallError>>,
}

/// Sink that checks entries and passes them on.
struct CheckingSink<S> {
    checker: LossChecker,
    attached: bool,
    /// Released once the stream is open.
    connecting: Option<OwnedSemaphorePermit>,
    line_times: Option<watch::Sender<LineTimes>>,
    inner: S,
}

/// Sink that drops all entries.
struct Discard;

// === impl Followers ===

impl<P: Sink + 'static> Followers<P> {
    /// Creates no followers of `request` yet. They run until `stop` is cancelled.
    pub(super) fn new(request: ServiceLogsRequest, stop: CancellationToken) -> Self {
        Self {
            request,
            stop,
            connecting: Arc::new(Semaphore::new(CONNECTING_MAX)),
            printing: JoinSet::new(),
            printed: None,
            checking: JoinSet::new(),
        }
    }

    /// Starts the follower into `printer`. Returns the times of its lines.
    pub(super) fn print(&mut self, connector: &Connector, printer: P) -> watch::Receiver<LineTimes> {
        let (sender, line_times) = watch::channel(LineTimes::new());
        let follower = Follower::new(connector.clone(), self.request.clone());
        let sink = CheckingSink { line_times: Some(sender), ..CheckingSink::new(None, printer) };
        self.printing.spawn(run(follower, sink, self.stop.clone()));
        line_times
    }

    /// Starts `number` further followers. Returns the times of the first one's lines.
    pub(super) fn check(&mut self, connector: &Connector, number: usize) -> watch::Receiver<LineTimes> {
        let (sender, line_times) = watch::channel(LineTimes::new());
        let mut sender = Some(sender);
        for _ in 0..number {
            let follower = Follower::new(connector.clone(), self.request.clone());
            let (connecting, stop, line_times) = (self.connecting.clone(), self.stop.clone(), sender.take());
            self.checking.spawn(async move {
                let permit = stop.run_until_cancelled(connecting.acquire_owned()).await;
                let permit = permit.and_then(Result::ok);
                let sink = CheckingSink { line_times, ..CheckingSink::new(permit, Discard) };
                let (outcome, Discard) = run(follower, sink, stop).await;
                outcome
            });
        }
        line_times
    }

    /// Waits until the printing follower ends by itself, which is an error. Cancel safe.
    pub(super) async fn printing_ended(&mut self) -> DemoError {
        let Some(Ok((mut outcome, printer))) = self.printing.join_next().await else {
            return DemoError::EndedEarly;
        };
        let ended = outcome.ended.take();
        self.printed = Some((outcome, printer));
        match ended {
            Some(Err(CallError::Sink(error))) => DemoError::Write(error),
            Some(Err(error)) => DemoError::Follower(error),
            _ => DemoError::EndedEarly,
        }
    }

    /// Returns the outcomes of all followers, after `stop` was cancelled, and the printer unless it is
    /// blocked.
    pub(super) async fn outcomes(mut self) -> (Vec<Outcome>, Option<P>) {
        if self.printed.is_none() {
            let printed = tokio::time::timeout(PRINTER_STOP_TIMEOUT, self.printing.join_next()).await;
            self.printed = printed.ok().flatten().and_then(Result::ok);
        }
        let (outcome, printer) = self.printed.take().unzip();
        let mut outcomes: Vec<Outcome> = outcome.into_iter().collect();
        while let Some(Ok(outcome)) = self.checking.join_next().await {
            outcomes.push(outcome);
        }
        (outcomes, printer)
    }
}

async fn run<S: Sink>(
    follower: Follower,
    mut sink: CheckingSink<S>,
    stop: CancellationToken,
) -> (Outcome, S) {
    let ended = stop.run_until_cancelled(follower.run(&mut sink)).await;
    let outcome = Outcome {
        attached: sink.attached,
        tally: sink.checker.tally(),
        violation: sink.checker.verdict().err(),
        ended,
    };
    (outcome, sink.inner)
}

// === impl CheckingSink ===

impl<S> CheckingSink<S> {
    fn new(connecting: Option<OwnedSemaphorePermit>, inner: S) -> Self {
        // The demo's logs are complete from the first line. The sample numbers lines across standard output
        // and standard error.
        let checker = LossChecker::new(Start::First, Order::TwoPipes);
        Self { checker, attached: false, connecting, line_times: None, inner }
    }

    fn mark_attached(&mut self) {
        self.attached = true;
        self.connecting = None;
    }

    fn note_time(&self, entry: &ServiceLogs) {
        let Some(line_times) = self.line_times.as_ref().filter(|_| !entry.logs.is_empty()) else {
            return;
        };
        let time = entry.cursor.as_ref().and_then(|cursor| cursor.time.as_ref());
        let Some(time) = time.and_then(LogTime::from_proto) else {
            return;
        };
        let replica = format!("{}/{}", entry.name, entry.replica);
        line_times.send_modify(|times| {
            if times.len() < STREAM_REPLICAS_MAX || times.contains_key(&replica) {
                times.insert(replica, time);
            }
        });
    }
}

impl<S: Sink> Sink for CheckingSink<S> {
    fn entry(&mut self, entry: &ServiceLogs) -> io::Result<()> {
        self.mark_attached();
        self.checker.feed(entry);
        self.note_time(entry);
        self.inner.entry(entry)
    }

    fn pause(&mut self) -> io::Result<()> {
        self.mark_attached();
        self.inner.pause()
    }

    fn due(&self) -> Option<Instant> {
        self.inner.due()
    }

    fn on_due(&mut self) -> io::Result<()> {
        self.inner.on_due()
    }

    fn connection(&mut self, change: &ConnectionChange<'_>) -> io::Result<()> {
        self.inner.connection(change)
    }
}

// === impl Discard ===

impl Sink for Discard {
    fn entry(&mut self, _: &ServiceLogs) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::testing::{FakeGateway, Step};
    use crate::loss_checker::Fault;

    fn request() -> ServiceLogsRequest {
        ServiceLogsRequest { follow: true, ..Default::default() }
    }

    /// Sink that adds a permit for each entry.
    struct CountEntries(Arc<Semaphore>);

    impl Sink for CountEntries {
        fn entry(&mut self, _: &ServiceLogs) -> io::Result<()> {
            self.0.add_permits(1);
            Ok(())
        }
    }

    #[tokio::test]
    async fn each_follower_is_checked_separately() {
        let script = |text| vec![Step::lines("1 a\n2 b\n"), Step::lines(text), Step::Hang];
        let answers = vec![script("3 c\n"), script("3 c\n"), script("2 d\n")];
        let gateway = FakeGateway::start(answers).await;
        let connector = Connector::new(&gateway.target()).unwrap();
        let stop = CancellationToken::new();
        let seen = Arc::new(Semaphore::new(0));
        let mut all = JoinSet::new();
        for _ in 0..3 {
            let follower = Follower::new(connector.clone(), request());
            all.spawn(run(follower, CheckingSink::new(None, CountEntries(seen.clone())), stop.clone()));
        }
        let _ = seen.acquire_many(6).await.unwrap();
        stop.cancel();
        let outcomes = all.join_all().await;
        assert!(outcomes.iter().all(|(outcome, _)| outcome.attached && outcome.ended.is_none()));
        let faults: Vec<_> = outcomes.into_iter().filter_map(|(outcome, _)| outcome.violation).collect();
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].fault, Fault::Repeat { after: 2, got: 2 });
    }

    #[tokio::test]
    async fn followers_stop_and_report_those_that_ended_early() {
        let gateway = FakeGateway::start(vec![vec![Step::lines("1 a\n"), Step::Hang]]).await;
        let connector = Connector::new(&gateway.target()).unwrap();
        let stop = CancellationToken::new();
        let seen = Arc::new(Semaphore::new(0));
        let mut followers = Followers::new(request(), stop.clone());
        let _ = followers.print(&connector, CountEntries(seen.clone()));
        let _ = seen.acquire().await.unwrap();
        stop.cancel();
        let (outcomes, printer) = followers.outcomes().await;
        assert!(printer.is_some());
        assert_eq!((outcomes.len(), outcomes[0].tally.lines, outcomes[0].attached), (1, 1, true));

        // The script has ended, so further calls are rejected.
        let mut followers = Followers::new(request(), CancellationToken::new());
        let _ = followers.print(&connector, Discard);
        let _ = followers.check(&connector, 2);
        let error = followers.printing_ended().await;
        assert!(matches!(error, DemoError::Follower(CallError::Status(_))), "{error}");
        while !followers.checking.is_empty() && gateway.requests().len() < 4 {
            tokio::task::yield_now().await;
        }
        let (outcomes, _) = followers.outcomes().await;
        assert_eq!(outcomes.len(), 3);
        assert!(outcomes[1..].iter().all(|outcome| !outcome.attached && outcome.ended.is_some()));
    }
}
