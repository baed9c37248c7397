//! Drives one follower: a stream of entries into a [`Sink`], through cuts and reconnects.
//!
//! A follow that is cut goes on exactly behind what the sink was given: nothing is lost or repeated while the gateway's
//! source still has the lines, and what it no longer has comes as a gap entry. A read without follow that is cut, or ends since
//! a log cannot be read at the moment, is tried `READ_RETRIES` times more. What is cut before the first answer is not
//! tried again. Dropping the future ends the follower at once.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use futures_util::FutureExt as _;

use rand::{Rng, RngExt as _};
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

use super::connect::{Client, ConnectError, Connector, innermost};
use super::progress::{Call, Progress};
use crate::model::limits::CURSORS_MAX;
use crate::model::proto::lease::{ServiceLogs, ServiceLogsRequest, ServiceLogsResponse};

/// Wait before the first reconnect; doubled each time.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);

/// Longest wait before a reconnect: a gateway that is back is found soon.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// How often a read without follow is tried again. A gateway tries a log for 5 s itself, so this takes half a minute or so: a person
/// who waits for an answer still waits. What it brought does not count: another replica may print all the time.
const READ_RETRIES: u32 = 4;

/// A stream that lived this long was a success: the next cut begins with a short wait again.
const BACKOFF_RESET_AFTER: Duration = BACKOFF_MAX;

/// How long the beginning of an answer may take: a gateway may have to ask others who the caller is.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Reason, in the error details, of a stream that was closed because its follower fell behind (`on_lag` = CLOSE).
const LAGGED_REASON: &str = "FOLLOWER_LAGGED";

/// Reasons of a `NOT_FOUND` that is about a part of the lease.
const PART_GONE_REASONS: [&str; 2] = ["SERVICE_NOT_FOUND", "REPLICA_NOT_FOUND"];

/// Takes what a follower receives.
pub trait Sink: Send {
    /// One entry, in the order of arrival. Events that a gateway repeats after a reconnect are left out.
    ///
    /// # Errors
    /// What keeps the sink from going on; it ends the follower.
    fn entry(&mut self, entry: &ServiceLogs) -> io::Result<()>;

    /// Nothing more is there just now.
    ///
    /// # Errors
    /// As for [`Sink::entry`].
    fn pause(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// When [`Sink::on_due`] is to be called, if nothing comes before.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// It is time.
    ///
    /// # Errors
    /// As for [`Sink::entry`].
    fn on_due(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// The connection was cut, or is there again.
    ///
    /// # Errors
    /// As for [`Sink::entry`].
    fn connection(&mut self, _turn: &ConnectionChange<'_>) -> io::Result<()> {
        Ok(())
    }
}

/// A turn in a follower's connection.
#[derive(Debug)]
pub enum ConnectionChange<'a> {
    /// It was cut, or a reconnect failed.
    Cut {
        /// Why.
        reason: &'a str,
        /// When the next attempt is made.
        retry_in: Duration,
    },
    /// A stream goes on where the last one was cut.
    Resumed,
}

/// How a stream came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Everything that was asked for was sent.
    Complete,
    /// The lease ended while it was followed.
    LeaseEnded,
}

/// Why a follower could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// No connection, at the first attempt or for good.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The gateway refused or ended the call.
    #[error("{}", status_text(.0))]
    Status(Box<Status>),
    /// The sink could not go on.
    #[error("cannot write: {0}")]
    Sink(#[from] io::Error),
    /// The follow was cut and there is no request that could resume it.
    #[error(
        "the follow was cut, and more than {CURSORS_MAX} replicas cannot be resumed: choose with --service"
    )]
    Unresumable,
}

/// One follower of one request.
#[derive(Debug)]
pub struct Follower {
    connector: Connector,
    /// An open connection for the first stream.
    client: Option<Client>,
    request: ServiceLogsRequest,
    progress: Progress,
    persistence: ReconnectState,
    /// Whether the sink was given [`Turn::Cut`], and not yet [`Turn::Resumed`].
    was_cut: bool,
}

/// Whether and when a call that was cut is made again.
#[derive(Debug)]
pub(super) struct ReconnectState {
    retries: Retries,
    /// Whether the gateway was ever there.
    pub(super) met: bool,
    backoff: Backoff,
}

/// How often a call is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retries {
    /// As often as it is of use: it follows.
    Unlimited,
    /// So many times more.
    Left(u32),
}

/// What follows from the end of a call.
#[derive(Debug)]
pub(super) enum Next {
    /// Nothing: the lease has ended.
    LeaseEnded,
    /// Another call.
    Again {
        /// What happened to this one.
        reason: String,
        /// When.
        retry_in: Duration,
    },
}

/// Waits that double, each with a random part, so that followers that were cut together do not come back together.
#[derive(Debug)]
struct Backoff(Duration);

// === impl Follower ===

impl Follower {
    /// A follower that makes its own connections with `connector`.
    pub fn new(connector: Connector, request: ServiceLogsRequest) -> Self {
        let retries = if request.follow { Retries::Unlimited } else { Retries::Left(READ_RETRIES) };
        let persistence = ReconnectState::retrying(retries);
        Self { connector, client: None, request, progress: Progress::default(), persistence, was_cut: false }
    }

    /// Uses `client`, a new connection of the same connector, for the first stream.
    pub(super) fn with_client(self, client: Client) -> Self {
        Self { client: Some(client), ..self }
    }

    /// Runs until the stream has ended.
    ///
    /// # Errors
    /// [`FollowError`]. A follow that was once connected ends with a connection error only if trying again is of no use.
    pub async fn run(mut self, sink: &mut impl Sink) -> Result<Ended, FollowError> {
        loop {
            let began = Instant::now();
            let error = match self.stream(sink).await {
                Ok(()) => return Ok(Ended::Complete),
                Err(error) => error,
            };
            if self.progress.resume(&self.request).is_none() && !self.request.follow {
                return Err(error);
            }
            match self.persistence.after(error, began)? {
                Next::LeaseEnded => return Ok(Ended::LeaseEnded),
                Next::Again { reason, retry_in } => {
                    sink.pause()?;
                    sink.connection(&ConnectionChange::Cut { reason: &reason, retry_in })?;
                    self.was_cut = true;
                    tokio::time::sleep(retry_in).await;
                }
            }
        }
    }

    /// Everything from where the last stream ended. Of several calls, one that finds a log unreadable does not keep the others
    /// from being made.
    async fn stream(&mut self, sink: &mut impl Sink) -> Result<(), FollowError> {
        let calls = self.progress.resume(&self.request).ok_or(FollowError::Unresumable)?;
        let mut unavailable = None;
        for call in calls {
            match self.call(call, sink).await {
                Err(error) if error.is_unavailable() => unavailable = unavailable.or(Some(error)),
                ended => ended?,
            }
        }
        unavailable.map_or(Ok(()), Err)
    }

    /// One call, to its end.
    async fn call(&mut self, call: Call, sink: &mut impl Sink) -> Result<(), FollowError> {
        let Call { request, without } = call;
        let mut client = match self.client.take() {
            Some(client) => client,
            // Boxed: connecting takes far more room than following, and is soon over.
            None => Box::pin(self.connector.connect()).await?,
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.service_logs(request)).await;
        let answer = answer.map_err(|_| Status::unavailable("the gateway did not answer in time"))?;
        let mut stream = answer?.into_inner();
        self.persistence.met = true;
        if std::mem::take(&mut self.was_cut) {
            sink.connection(&ConnectionChange::Resumed)?;
        }
        while let Some(response) = next(&mut stream, sink).await? {
            for entry in response.services {
                if !without.is_empty() && without.contains(&(entry.name.clone(), entry.replica)) {
                    continue;
                }
                if self.progress.is_news(&entry) {
                    sink.entry(&entry)?;
                }
                self.progress.told(entry);
            }
        }
        sink.pause()?;
        Ok(())
    }
}

/// The next message; the sink is told if it has to be waited for.
async fn next(
    stream: &mut Streaming<ServiceLogsResponse>,
    sink: &mut impl Sink,
) -> Result<Option<ServiceLogsResponse>, FollowError> {
    // Receiving is cancel safe: a message that is not there yet is not lost by asking once.
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

// === impl ReconnectState ===

impl ReconnectState {
    /// For a call that `stays` for as long as it is of use, or else is made once.
    pub(super) fn new(stays: bool) -> Self {
        Self::retrying(if stays { Retries::Unlimited } else { Retries::Left(0) })
    }

    fn retrying(retries: Retries) -> Self {
        Self { retries, met: false, backoff: Backoff(BACKOFF_FIRST) }
    }

    /// What follows from `error`, with which a call ended that began then. The error itself, if it is final.
    pub(super) fn after(&mut self, error: FollowError, began: Instant) -> Result<Next, FollowError> {
        if !self.met {
            return Err(error);
        }
        match self.retries {
            Retries::Unlimited if error.is_lease_gone() => return Ok(Next::LeaseEnded),
            Retries::Unlimited if error.is_retryable() => {}
            Retries::Left(left) if left > 0 && error.is_unavailable() => {
                self.retries = Retries::Left(left - 1);
            }
            _ => return Err(error),
        }
        if began.elapsed() >= BACKOFF_RESET_AFTER {
            self.backoff = Backoff(BACKOFF_FIRST);
        }
        let retry_in = self.backoff.next(&mut rand::rng()).max(error.retry_after());
        Ok(Next::Again { reason: error.to_string(), retry_in })
    }
}

// === impl FollowError ===

impl FollowError {
    fn is_retryable(&self) -> bool {
        let is_told = |status| is_lagged(status) || is_paced(status);
        self.is_unavailable() || matches!(self, Self::Status(status) if is_told(status))
    }

    /// Whether the gateway, or what was asked for, is not there at the moment.
    fn is_unavailable(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_retryable(),
            Self::Status(status) => self.is_cut() || status.code() == Code::Unavailable,
            Self::Sink(_) | Self::Unresumable => false,
        }
    }

    /// Whether the connection was cut under the call.
    pub(super) fn is_cut(&self) -> bool {
        // What the gateway itself said has no source; what happened to the connection has.
        matches!(self, Self::Status(status) if status.source().is_some())
    }

    /// Whether it is the lease that is no longer there, and not a service or replica of it.
    pub(super) fn is_lease_gone(&self) -> bool {
        let Self::Status(status) = self else { return false };
        let part =
            status.get_details_error_info().is_some_and(|info| PART_GONE_REASONS.contains(&&*info.reason));
        status.code() == Code::NotFound && !part
    }

    /// How long the gateway asks to be left alone.
    fn retry_after(&self) -> Duration {
        let Self::Status(status) = self else {
            return Duration::ZERO;
        };
        let asked = status.get_details_retry_info().and_then(|info| info.retry_delay);
        asked.unwrap_or_default().min(BACKOFF_MAX)
    }
}

impl From<Status> for FollowError {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

fn is_lagged(status: &Status) -> bool {
    let info = status.get_details_error_info();
    status.code() == Code::ResourceExhausted && info.is_some_and(|info| info.reason == LAGGED_REASON)
}

/// Whether a quota is used up that will be there again: all of an owner's streams may have come back at once.
fn is_paced(status: &Status) -> bool {
    let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
    status.code() == Code::ResourceExhausted && retry.is_some()
}

/// What a person should read: the gateway's own words, or what happened to the connection.
fn status_text(status: &Status) -> String {
    if is_lagged(status) {
        return "this side could not keep up".to_owned();
    }
    match status.source() {
        Some(source) if is_closed(source) => "the gateway closed the connection".to_owned(),
        Some(source) => format!("the connection was cut: {}", innermost(source)),
        None if status.message().is_empty() => format!("the gateway says: {}", status.code()),
        None => format!("the gateway says: {}", status.message()),
    }
}

/// Whether the other side closed the connection without a word.
fn is_closed(error: &(dyn StdError + 'static)) -> bool {
    let mut error = Some(error);
    while let Some(layer) = error {
        let io = layer.downcast_ref::<io::Error>();
        if io.is_some_and(|io| io.kind() == io::ErrorKind::UnexpectedEof) {
            return true;
        }
        error = layer.source();
    }
    false
}

// === impl Backoff ===

impl Backoff {
    fn next(&mut self, random: &mut impl Rng) -> Duration {
        let wait = self.0.mul_f64(random.random_range(0.5..=1.0));
        self.0 = (self.0 * 2).min(BACKOFF_MAX);
        wait
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_quota_is_waited_for_if_waiting_helps() {
        let refused = |retry_after: Option<Duration>| {
            let mut details = ErrorDetails::new();
            details.set_error_info("QUOTA_USED_UP", "leasemux", std::collections::HashMap::new());
            if retry_after.is_some() {
                details.set_retry_info(retry_after);
            }
            FollowError::from(Status::with_error_details(Code::ResourceExhausted, "no more", details))
        };
        let paced = refused(Some(Duration::from_secs(3)));
        assert!(paced.is_retryable());
        assert_eq!(paced.retry_after(), Duration::from_secs(3));
        assert!(!refused(None).is_retryable());
    }
}
