//! A demo's followers: one that prints, and others that only check. Each has its own connection.

use std::io::{self, Stderr, Stdout};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::super::connect::Connector;
use super::super::follow::{Ended, FollowError, Follower, Sink, Turn};
use super::super::oracle::{Oracle, Start, Tally, Violation};
use super::super::print::Printer;
use super::DemoError;
use crate::model::proto::lease::{ServiceLogs, ServiceLogsRequest};

/// Followers that connect at a time: a handshake costs a millisecond on both sides, and none should time out for it.
const CONNECTING_MAX: usize = 64;

/// All followers of a demo. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Crowd {
    printing: JoinSet<(Outcome, Printer<Stdout, Stderr>)>,
    /// Taken when the printing follower has ended.
    printed: Option<Outcome>,
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
    oracle: Oracle,
    attached: bool,
    /// Given back once the stream is open.
    connecting: Option<OwnedSemaphorePermit>,
    inner: S,
}

/// Hands on to nobody.
struct Nobody;

// === impl Crowd ===

impl Crowd {
    pub(super) fn start(
        connector: &Connector,
        request: &ServiceLogsRequest,
        followers: usize,
        printer: Printer<Stdout, Stderr>,
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
                run(follower, Checker::new(permit, Nobody), stop).await.0
            });
        }
        Self {
            printing,
            printed: None,
            checking,
        }
    }

    /// Waits for the end of the follower that prints, which should not come by itself.
    pub(super) async fn printing_ended(&mut self) -> DemoError {
        let Some(Ok((mut outcome, _))) = self.printing.join_next().await else {
            return DemoError::EndedEarly;
        };
        let ended = outcome.ended.take();
        self.printed = Some(outcome);
        match ended {
            Some(Err(FollowError::Sink(error))) => DemoError::Write(error),
            Some(Err(error)) => DemoError::Follower(error),
            _ => DemoError::EndedEarly,
        }
    }

    /// How all of them fared, the printing one first, once they were told to stop.
    pub(super) async fn outcomes(mut self) -> Vec<Outcome> {
        let mut outcomes: Vec<Outcome> = self.printed.take().into_iter().collect();
        while let Some(Ok((outcome, mut printer))) = self.printing.join_next().await {
            // What is on its way still belongs on the screen; that it cannot be written is no fault of the demo.
            let _ = printer.finish();
            outcomes.push(outcome);
        }
        while let Some(Ok(outcome)) = self.checking.join_next().await {
            outcomes.push(outcome);
        }
        outcomes
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
        // The demo's logs are whole: it began with them.
        Self {
            oracle: Oracle::new(Start::First),
            attached: false,
            connecting,
            inner,
        }
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

    fn connection(&mut self, turn: &Turn<'_>) -> io::Result<()> {
        self.inner.connection(turn)
    }
}

// === impl Nobody ===

impl Sink for Nobody {
    fn entry(&mut self, _: &ServiceLogs) -> io::Result<()> {
        Ok(())
    }
}
