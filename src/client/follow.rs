//! Drives one follower: delivers a stream of entries into a [`Sink`] and reconnects when the connection is
//! lost.
//!
//! A follow resumes from the cursors of the delivered entries, so nothing is lost or repeated; lines that the
//! gateway's source no longer has arrive as a gap. A read without follow is retried at most `READ_RETRIES`
//! times. An error before the first response is final.

use std::io;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::clock::ClockOffset;
use super::connect::{Client, Connector};
use super::error::CallError;
use super::progress::{Call, Progress};
use super::reconnect::{ReconnectState, Retries};
use super::request::{ANSWER_TIMEOUT, response};
use crate::model::proto::lease::{OnLag, ServiceLogs, ServiceLogsRequest, ServiceLogsResponse};
use crate::model::time::LogTime;

/// Retries of a read without follow. A gateway tries a log for 5 s by itself, so this adds up to about half a
/// minute, which a person still waits for. Received entries do not reset the count: another replica may print
/// all the time.
const READ_RETRIES: u32 = 4;

/// Receiver of a follower's entries. An error of any method ends the follower.
pub trait Sink: Send {
    /// Takes the next entry. Events that a gateway repeats after a reconnect are left out.
    fn entry(&mut self, entry: &ServiceLogs) -> io::Result<()>;

    /// Takes a heartbeat, which is no entry of the log. `now` is the gateway's time.
    fn heartbeat(&mut self, _heartbeat: &ServiceLogs, _now: LogTime) -> io::Result<()> {
        Ok(())
    }

    /// Called when no more entries are ready.
    fn pause(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Returns when to call [`Sink::on_due`] if no entry arrives first.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// Called at the time that [`Sink::due`] returned.
    fn on_due(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Called when the connection is lost or restored.
    fn connection(&mut self, _change: &ConnectionChange<'_>) -> io::Result<()> {
        Ok(())
    }
}

/// Change of a follower's connection.
#[derive(Debug)]
pub enum ConnectionChange<'a> {
    /// The connection was lost, or a reconnect failed.
    Lost {
        /// The error.
        error: &'a CallError,
        /// Delay before the next attempt.
        retry_in: Duration,
    },
    /// A new stream continues where the last one ended. Of an unattended follower, also the first stream.
    Resumed,
    /// The gateway does not support `on_lag` = REFILL, and the follower uses DROP there. Reported once.
    WithoutRefill,
}

/// How a stream ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All requested entries were sent.
    Complete,
    /// The lease ended during a follow.
    LeaseEnded,
}

/// One follower of one request.
#[derive(Debug)]
pub struct Follower {
    connector: Connector,
    /// Open connection for the first stream.
    client: Option<Client>,
    request: ServiceLogsRequest,
    progress: Progress,
    reconnect: ReconnectState,
    /// Whether the next stream is to be reported as [`ConnectionChange::Resumed`].
    is_disconnected: bool,
    /// Whether the sink was given [`ConnectionChange::WithoutRefill`].
    was_without_refill: bool,
}

// === impl Follower ===

impl Follower {
    /// Creates a follower that opens its connections with `connector`.
    pub fn new(connector: Connector, request: ServiceLogsRequest) -> Self {
        let retries = if request.follow { Retries::Unlimited } else { Retries::Left(READ_RETRIES) };
        let reconnect = ReconnectState::new(retries);
        let progress = Progress::default();
        Self {
            connector,
            client: None,
            request,
            progress,
            reconnect,
            is_disconnected: false,
            was_without_refill: false,
        }
    }

    /// Retries for as long as the request can succeed, and reads identity and trusted certificates again
    /// before each attempt. For calls that run unattended: see [`Retries::Persistent`].
    #[must_use]
    pub(crate) fn persistent(self) -> Self {
        Self { reconnect: ReconnectState::new(Retries::Persistent), is_disconnected: true, ..self }
    }

    /// Uses `client`, a new connection of the same connector, for the first stream.
    pub(super) fn with_client(self, client: Client) -> Self {
        Self { client: Some(client), ..self }
    }

    /// Runs until the stream has ended. Dropping the future ends the follower at once.
    ///
    /// # Errors
    /// [`CallError`], if it is final.
    pub async fn run(mut self, sink: &mut impl Sink) -> Result<Ended, CallError> {
        loop {
            let started = Instant::now();
            // Boxed, because it is large and part of the futures of all callers.
            let error = match Box::pin(self.stream(sink)).await {
                Ok(()) if self.reconnect.is_persistent() => {
                    Status::unavailable("the gateway ended the stream").into()
                }
                Ok(()) => return Ok(Ended::Complete),
                Err(error) => error,
            };
            if self.progress.resume(&self.request).is_none() && !self.request.follow {
                return Err(error);
            }
            let announce = |error: &CallError, retry_in| {
                sink.pause()?;
                sink.connection(&ConnectionChange::Lost { error, retry_in })
            };
            if !self.reconnect.wait(error, started, announce).await? {
                return Ok(Ended::LeaseEnded);
            }
            self.is_disconnected = true;
            if self.reconnect.is_persistent() {
                self.connector.reload();
            }
        }
    }

    /// Receives everything after the last entry. A call that finds a log unavailable does not prevent the
    /// other calls.
    async fn stream(&mut self, sink: &mut impl Sink) -> Result<(), CallError> {
        let calls = self.progress.resume(&self.request).ok_or(CallError::Unresumable)?;
        let mut unavailable = None;
        for call in calls {
            match self.call(call, sink).await {
                Err(error) if error.is_unavailable() => unavailable = unavailable.or(Some(error)),
                ended => ended?,
            }
        }
        unavailable.map_or(Ok(()), Err)
    }

    async fn call(&mut self, call: Call, sink: &mut impl Sink) -> Result<(), CallError> {
        let Call { request, without } = call;
        let mut client = match self.client.take() {
            Some(client) => client,
            // Boxed: the future that connects is far larger than the one that follows, and short-lived.
            None => Box::pin(self.connector.connect()).await?,
        };
        let mut sent = LogTime::now();
        let mut answer = response(ANSWER_TIMEOUT, client.service_logs(request.clone())).await;
        if request.on_lag() == OnLag::Refill && answer.as_ref().is_err_and(CallError::is_unimplemented) {
            // For this stream only: the next gateway may be a newer one.
            let request = ServiceLogsRequest { on_lag: OnLag::Drop.into(), ..request };
            sent = LogTime::now();
            answer = response(ANSWER_TIMEOUT, client.service_logs(request)).await;
            if answer.is_ok() && !std::mem::replace(&mut self.was_without_refill, true) {
                sink.connection(&ConnectionChange::WithoutRefill)?;
            }
        }
        let answer = answer?;
        let clock = ClockOffset::from_response(answer.metadata(), sent);
        let mut stream = answer.into_inner();
        self.reconnect.was_connected = true;
        if std::mem::take(&mut self.is_disconnected) {
            sink.connection(&ConnectionChange::Resumed)?;
        }
        while let Some(response) = next(&mut stream, sink).await? {
            for entry in response.services {
                if !without.is_empty() && without.contains(&(entry.name.clone(), entry.replica)) {
                    continue;
                }
                if entry.source.is_some() {
                    sink.heartbeat(&entry, clock.now())?;
                } else if self.progress.is_new(&entry) {
                    sink.entry(&entry)?;
                }
                self.progress.record(entry);
            }
            // While messages are always ready, signals and timers of the same task run too.
            tokio::task::consume_budget().await;
        }
        sink.pause()?;
        Ok(())
    }
}

/// Returns the next message. Calls the sink while it waits.
async fn next(
    stream: &mut Streaming<ServiceLogsResponse>,
    sink: &mut impl Sink,
) -> Result<Option<ServiceLogsResponse>, CallError> {
    // Cancel safe: polling `message` once loses nothing.
    if let Some(ready) = stream.message().now_or_never() {
        return Ok(ready?);
    }
    sink.pause()?;
    while let Some(due) = sink.due() {
        if let Ok(message) = tokio::time::timeout_at(due, stream.message()).await {
            return Ok(message?);
        }
        sink.on_due()?;
    }
    Ok(stream.message().await?)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FakeGateway, LEASE, Step};
    use super::*;
    use crate::model::id::LeaseId;

    /// Takes so long for an entry that the next one is ready.
    struct SlowSink;

    impl Sink for SlowSink {
        fn entry(&mut self, _: &ServiceLogs) -> io::Result<()> {
            std::thread::sleep(Duration::from_millis(5));
            Ok(())
        }
    }

    /// The gateway runs on the other threads, and fills the stream meanwhile.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn busy_follower_lets_its_task_do_other_work() {
        let gateway = FakeGateway::start(vec![(0..2_000).map(|_| Step::lines("a\n")).collect()]).await;
        let lease: LeaseId = LEASE.parse().unwrap();
        let request =
            ServiceLogsRequest { lease_id: Some((&lease).into()), follow: true, ..Default::default() };
        let follower = Follower::new(Connector::new(&gateway.target()).unwrap(), request);
        let began = Instant::now();
        let mut sink = SlowSink;
        tokio::select! {
            ended = follower.run(&mut sink) => panic!("{ended:?}"),
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
        // All entries take ten seconds.
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
}
