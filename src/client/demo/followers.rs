//! A demo's followers: one that prints, and others that only check. Each has its own connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::super::connect::Connector;
use super::super::follow::{ConnectionChange, Ended, FollowError, Follower, Sink};
use super::super::loss_checker::{LossChecker, Order, Start, Tally, Violation};
use super::DemoError;
use crate::model::proto::lease::{ServiceLogs, ServiceLogsRequest};

/// Followers that connect at a time: a handshake costs a millisecond on both sides, and none should time out for it.
const CONNECTING_MAX: usize = 64;

/// How long the printing follower may take to end: it may hang in a write to a pipe that nobody reads.
const PRINTED_WITHIN: Duration = Duration::from_secs(1);

/// All followers of a demo. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Crowd<P> {
    printing: JoinSet<(Outcome, P)>,
    /// Set when the printing follower has ended.
    printed: Option<(Outcome, P)>,
    checking: JoinSet<Outcome>,
}

/// How one follower fared.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Whether its stream ever opened.
    pub(super) attached: bool,
    pub(super) tally: Tally,
    pub(super) violation: Option<Box<Violation>>,
    /// Why it ended, if it was not told to.
    pub(super) ended: Option<Result<Ended, FollowError>>,
}

/// Checks, and hands on.
struct Checker<S> {
    oracle: LossChecker,
    attached: bool,
    /// Given back once the stream is open.
    connecting: Option<OwnedSemaphorePermit>,
    inner: S,
}

/// Hands on to nobody.
struct Nobody;

// === impl Crowd ===

impl<P: Sink + 'static> Crowd<P> {
    /// Starts one follower into `printer` and so many others. They run until `stop`.
    pub(super) fn start(
        connector: &Connector,
        request: &ServiceLogsRequest,
        followers: usize,
        printer: P,
        stop: &CancellationToken,
    ) -> Self {
        let (mut printing, mut checking) = (JoinSet::new(), JoinSet::new());
        let follower = Follower::new(connector.clone(), request.clone());
        printing.spawn(run(follower, Checker::new(None, printer), stop.clone()));
        let connecting = Arc::new(Semaphore::new(CONNECTING_MAX));
        for _ in 0..followers {
            let follower = Follower::new(connector.clone(), request.clone());
            let (connecting, stop) = (connecting.clone(), stop.clone());
            checking.spawn(async move {
                let permit = stop.run_until_cancelled(connecting.acquire_owned()).await;
                let permit = permit.and_then(Result::ok);
                let (outcome, Nobody) = run(follower, Checker::new(permit, Nobody), stop).await;
                outcome
            });
        }
        Self { printing, printed: None, checking }
    }

    /// Waits for the end of the follower that prints, which should not come by itself.
    pub(super) async fn printing_ended(&mut self) -> DemoError {
        let Some(Ok((mut outcome, printer))) = self.printing.join_next().await else {
            return DemoError::EndedEarly;
        };
        let ended = outcome.ended.take();
        self.printed = Some((outcome, printer));
        match ended {
            Some(Err(FollowError::Sink(error))) => DemoError::Write(error),
            Some(Err(error)) => DemoError::Follower(error),
            _ => DemoError::EndedEarly,
        }
    }

    /// How all of them fared, once they were told to stop; and the printer, unless it hangs.
    pub(super) async fn outcomes(mut self) -> (Vec<Outcome>, Option<P>) {
        if self.printed.is_none() {
            let printed = tokio::time::timeout(PRINTED_WITHIN, self.printing.join_next()).await;
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

async fn run<S: Sink>(follower: Follower, mut checker: Checker<S>, stop: CancellationToken) -> (Outcome, S) {
    let ended = stop.run_until_cancelled(follower.run(&mut checker)).await;
    let outcome = Outcome {
        attached: checker.attached,
        tally: checker.oracle.tally(),
        violation: checker.oracle.verdict().err(),
        ended,
    };
    (outcome, checker.inner)
}

// === impl Checker ===

impl<S> Checker<S> {
    fn new(connecting: Option<OwnedSemaphorePermit>, inner: S) -> Self {
        // The demo's logs are whole: it began with them. The sample counts over both of its outputs.
        Self { oracle: LossChecker::new(Start::First, Order::TwoPipes), attached: false, connecting, inner }
    }

    fn attached(&mut self) {
        self.attached = true;
        self.connecting = None;
    }
}

impl<S: Sink> Sink for Checker<S> {
    fn entry(&mut self, entry: &ServiceLogs) -> io::Result<()> {
        self.attached();
        self.oracle.feed(entry);
        self.inner.entry(entry)
    }

    fn pause(&mut self) -> io::Result<()> {
        self.attached();
        self.inner.pause()
    }

    fn connection(&mut self, turn: &ConnectionChange<'_>) -> io::Result<()> {
        self.inner.connection(turn)
    }
}

// === impl Nobody ===

impl Sink for Nobody {
    fn entry(&mut self, _: &ServiceLogs) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::fake::{FakeGateway, Step};
    use crate::client::loss_checker::Fault;

    fn request() -> ServiceLogsRequest {
        ServiceLogsRequest { follow: true, ..Default::default() }
    }

    /// Tells when so many followers have the last line of their script.
    struct Tell(Arc<Semaphore>);

    impl Sink for Tell {
        fn entry(&mut self, _: &ServiceLogs) -> io::Result<()> {
            self.0.add_permits(1);
            Ok(())
        }
    }

    #[tokio::test]
    async fn each_follower_is_judged_for_itself() {
        let script = |text| vec![Step::lines("1 a\n2 b\n"), Step::lines(text), Step::Hang];
        let answers = vec![script("3 c\n"), script("3 c\n"), script("2 d\n")];
        let gateway = FakeGateway::start(answers).await;
        let connector = Connector::new(&gateway.target()).unwrap();
        let stop = CancellationToken::new();
        let seen = Arc::new(Semaphore::new(0));
        // All of them tell: the crowd itself has nobody to tell.
        let mut all = JoinSet::new();
        for _ in 0..3 {
            let follower = Follower::new(connector.clone(), request());
            all.spawn(run(follower, Checker::new(None, Tell(seen.clone())), stop.clone()));
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
    async fn a_crowd_stops_when_told_and_tells_who_ended_before() {
        let gateway = FakeGateway::start(vec![vec![Step::lines("1 a\n"), Step::Hang]]).await;
        let connector = Connector::new(&gateway.target()).unwrap();
        let stop = CancellationToken::new();
        let seen = Arc::new(Semaphore::new(0));
        let crowd = Crowd::start(&connector, &request(), 0, Tell(seen.clone()), &stop);
        let _ = seen.acquire().await.unwrap();
        stop.cancel();
        let (outcomes, printer) = crowd.outcomes().await;
        assert!(printer.is_some());
        assert_eq!((outcomes.len(), outcomes[0].tally.lines, outcomes[0].attached), (1, 1, true));

        // The script is over: every call from now on is refused.
        let stop = CancellationToken::new();
        let mut crowd = Crowd::start(&connector, &request(), 2, Nobody, &stop);
        let error = crowd.printing_ended().await;
        assert!(matches!(error, DemoError::Follower(FollowError::Status(_))), "{error}");
        while !crowd.checking.is_empty() && gateway.requests().len() < 4 {
            tokio::task::yield_now().await;
        }
        let (outcomes, _) = crowd.outcomes().await;
        assert_eq!(outcomes.len(), 3);
        assert!(outcomes[1..].iter().all(|outcome| !outcome.attached && outcome.ended.is_some()));
    }
}
