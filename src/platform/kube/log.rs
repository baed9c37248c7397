//! The log of one run, read through the Kubernetes API.
//!
//! The [`machine`] decides what to request and interprets the responses; the [`Reader`] does the I/O. A tail
//! has one response open at a time, and now and then a probe beside it. The stream reads only when it is
//! polled.

mod lines;
mod machine;
mod overlap;
mod pod_log;
mod poll_delay;
mod served_run;
mod tail_buffer;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_core::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use self::machine::{Action, Event, IdleVerdict, Machine};
pub(super) use self::pod_log::PodLog;
use self::poll_delay::PollDelay;
use super::jittered;
use super::open_limiter::Reached;
use crate::model::id::{Instance, Replica};
use crate::model::time::LogTime;
use crate::model::view::LeaseView;
use crate::platform::log_files::UNFINISHED_WAIT;
use crate::platform::{Error, Tail, TailItem, TailRequest};

/// Longest wait for the next bytes of a response that ends.
const STALL_MAX: Duration = Duration::from_secs(30);

/// Silence of a follow after which the last line is probed: a rotation or a proxy may have left the stream
/// dead without an end.
const PROBE_AFTER: Duration = Duration::from_secs(60);

/// If a reopened follow is silent this long before the resume point came, it does not contain it.
const OVERLAP_MAX: Duration = Duration::from_secs(3);

/// Silence that shows that a kubelet can follow again: one that cannot follow reports that directly after
/// the existing lines.
const TRIAL_MAX: Duration = Duration::from_secs(2);

/// Most bytes of a response to [`LogQuery::PROBE`]. The last line of a longer one is not looked for.
const PROBE_MAX_BYTES: usize = 4 * 1024 * 1024;

/// Lines requested to check whether a silent stream has missed some: more than the pieces of any but the
/// longest line.
const PROBE_LINES: u64 = 64;

/// Bytes requested to check whether any line exists: about the length of its time.
const EXISTS_BYTES: u64 = 64;

/// A request for log lines. It always names the container and always asks for times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LogQuery {
    /// Whether the response continues with new lines.
    follow: bool,
    /// Return only the last lines of the file, this many.
    tail_lines: Option<u64>,
    /// Return only lines of this second or later. Used to look, never to resume.
    since_second: Option<i64>,
    /// Return about this many bytes at most.
    limit_bytes: Option<u64>,
    /// Ask for the kubelet's *previous* run. Used when the run that is read may have ended although the API
    /// server still calls it the newest.
    previous: bool,
    /// Check that the kubelet serves the run that the API server calls the newest: it may have started the
    /// next one without a report. For responses in which no known line identifies the run.
    checks_run: bool,
}

/// The body of a response. It is complete at its end; an item with an error means that it broke off.
type Response = BoxStream<'static, Result<Bytes, String>>;

/// The reason why a log was not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
enum OpenError {
    /// The log does not exist, and will not.
    Gone(String),
    /// It could not be opened this time.
    NotNow(String),
    /// The kubelet serves a later run than the API server knows, or may do so if `unclear`.
    LaterRun { why: String, unclear: bool },
    /// The API server or the kubelet cannot be reached. The next request waits until an attempt is
    /// worthwhile.
    Unreachable(Reached, String),
}

/// Watches the lease's view for the end of a run.
#[derive(Clone, Debug)]
pub(in crate::platform) struct RunWatch {
    pub(super) view: watch::Receiver<Arc<LeaseView>>,
    pub(super) replica: Replica,
    pub(super) instance: Instance,
}

/// A tail. It does I/O only while it is polled.
struct Reader {
    log: PodLog,
    run: RunWatch,
    machine: Machine,
    response: Option<Response>,
    next: Action,
    delay: PollDelay,
    /// When the unfinished line is delivered as a piece.
    due: Option<Instant>,
}

/// Opens a log. See [`Tail`].
///
/// # Errors
/// [`Error::NotFound`] if the log does not exist; [`Error::Unavailable`] if it cannot be read this time.
pub(super) async fn open(
    log: PodLog,
    run: RunWatch,
    request: &TailRequest,
    started: LogTime,
) -> Result<Tail, Error> {
    let mut machine =
        Machine::new(request.from, request.follow, started).with_oldest_read(request.oldest_read);
    if let Some(lines) = request.lines_after {
        machine = machine.with_lines_after(lines);
    }
    let next = Action::Open(machine.query());
    let delay = PollDelay::default();
    let mut reader = Reader { log, run, machine, response: None, next, delay: delay.clone(), due: None };
    let start = loop {
        if let Some(start) = reader.machine.start() {
            break start;
        }
        if !reader.step().await? {
            return Err(Error::Broken("a log ended before it began".to_owned()));
        }
    };
    let unfinished = [!start.at_line_start(), false];
    let items = delay.watch(stream::try_unfold(reader, Reader::next).boxed());
    let items = items.map_ok(|items| stream::iter(items).map(Ok)).try_flatten().boxed();
    Ok(Tail { start, unfinished, items })
}

// === impl LogQuery ===

impl LogQuery {
    /// The whole file as it is.
    const WHOLE: Self = Self {
        follow: false,
        tail_lines: None,
        since_second: None,
        limit_bytes: None,
        previous: false,
        checks_run: false,
    };

    /// The whole file of the previous run.
    const PREVIOUS: Self = Self { previous: true, ..Self::WHOLE };

    /// The last lines, requested beside a stream that has been silent for long.
    const PROBE: Self = Self { tail_lines: Some(PROBE_LINES), ..Self::WHOLE };

    /// Requests the last `lines` lines.
    const fn last(lines: u64) -> Self {
        Self { tail_lines: Some(lines), ..Self::WHOLE }
    }

    /// Asks whether a line of this second or a later one exists.
    const fn exists_since(second: i64) -> Self {
        Self { since_second: Some(second), limit_bytes: Some(EXISTS_BYTES), ..Self::WHOLE }
    }
}

// === impl RunWatch ===

impl RunWatch {
    /// Returns whether the run has ended or is no longer known.
    pub(in crate::platform) fn has_ended(&self) -> bool {
        let view = self.view.borrow();
        let run = view.replica(&self.replica).and_then(|replica| replica.run(&self.instance));
        run.is_none_or(|run| run.end.is_some())
    }

    /// Waits until the run has ended. Cancel safe.
    pub(in crate::platform) async fn ended(&mut self) {
        while !self.has_ended() {
            if self.view.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

// === impl Reader ===

impl Reader {
    async fn next(mut self) -> Result<Option<(Vec<TailItem>, Self)>, Error> {
        loop {
            let items = self.machine.take();
            if items.last() == Some(&TailItem::FollowUnavailable) {
                self.log.follow_unavailable();
            }
            if !items.is_empty() {
                return Ok(Some((items, self)));
            }
            if !self.step().await? {
                return Ok(None);
            }
        }
    }

    /// Performs the next action. Returns `false` if the log is complete. Not cancel safe: a dropped call
    /// leaves [`Action::Finish`] behind. The stream owns the call, so both are dropped together.
    async fn step(&mut self) -> Result<bool, Error> {
        self.next = match std::mem::replace(&mut self.next, Action::Finish) {
            Action::Read => self.read().await,
            Action::Open(query) => self.open(query).await,
            Action::Pause(pause) => {
                self.response = None;
                // While the run has not ended, its end is the change to wait for.
                let waits = !self.run.has_ended();
                tokio::select! {
                    () = tokio::time::sleep(jittered(pause)) => {}
                    () = self.run.ended(), if waits => {}
                }
                self.on(Event::Resumed { ended: self.run.has_ended() })
            }
            Action::Finish => return Ok(false),
            Action::Fail(error) => return Err(error),
        };
        Ok(true)
    }

    fn on(&mut self, event: Event<'_>) -> Action {
        let is_late = self.delay.take();
        if is_late {
            self.machine.delayed();
        }
        let next = self.machine.on(event);
        if is_late {
            // Also the response that the event has begun.
            self.machine.delayed();
        }
        next
    }

    async fn open(&mut self, query: LogQuery) -> Action {
        (self.response, self.due) = (None, None);
        // Read before the request: if the run has ended by then, the response has all lines.
        let ended = self.run.has_ended();
        let event = match self.log.open(query).await {
            Ok(response) => {
                self.response = Some(response);
                Event::Opened { ended }
            }
            Err(OpenError::Gone(why)) => Event::Gone(why),
            Err(OpenError::NotNow(why)) => Event::Broken(why),
            Err(OpenError::LaterRun { why, unclear }) => Event::LaterRun { why, unclear },
            Err(OpenError::Unreachable(_, why)) => Event::Unreachable(why),
        };
        self.on(event)
    }

    async fn read(&mut self) -> Action {
        let Some(response) = &mut self.response else {
            return self.on(Event::Broken("there is no response".to_owned()));
        };
        let verdict = self.machine.idle_verdict();
        let until = self.due.unwrap_or_else(|| {
            let longest = match verdict {
                IdleVerdict::Slow => STALL_MAX,
                IdleVerdict::Quiet => PROBE_AFTER,
                IdleVerdict::Unplaced => OVERLAP_MAX,
                IdleVerdict::Trial => TRIAL_MAX,
            };
            Instant::now() + longest
        });
        let event = match timeout_at(until, response.next()).await {
            Ok(Some(Ok(data))) => {
                let next = self.on(Event::Data(&data));
                let due = self.due.unwrap_or_else(|| Instant::now() + UNFINISHED_WAIT);
                self.due = self.machine.holds_unfinished().then_some(due);
                return next;
            }
            Ok(Some(Err(why))) => Event::Broken(why),
            Ok(None) => Event::Complete { ended: self.run.has_ended() },
            Err(_) if self.due.take().is_some() => Event::Unfinished,
            Err(_) => return self.idle(verdict).await,
        };
        self.on(event)
    }

    /// Continues after nothing came for the time that `verdict` allows.
    async fn idle(&mut self, verdict: IdleVerdict) -> Action {
        match verdict {
            IdleVerdict::Slow => self.on(Event::Broken("nothing came for too long".to_owned())),
            IdleVerdict::Unplaced | IdleVerdict::Trial => self.on(Event::Idle),
            // The response should have completed with the run. The rest, if any, is requested.
            IdleVerdict::Quiet if self.run.has_ended() => self.on(Event::RunEnded),
            IdleVerdict::Quiet => match timeout(STALL_MAX, probe(&self.log)).await {
                Ok(Some(last)) => self.on(Event::Probed(&last)),
                // The connection's own keepalive finds out whether it is dead: see `client`.
                Ok(None) | Err(_) => Action::Read,
            },
        }
    }
}

/// Reads the last lines of the file.
async fn probe(log: &PodLog) -> Option<BytesMut> {
    let mut response = log.open(LogQuery::PROBE).await.ok()?;
    let last = read_start(&mut response, PROBE_MAX_BYTES).await.ok()?;
    (last.len() <= PROBE_MAX_BYTES).then_some(last)
}

/// Reads a response until its end, or until more than `max` bytes have come.
async fn read_start(response: &mut Response, max: usize) -> Result<BytesMut, String> {
    let mut data = BytesMut::new();
    while data.len() <= max
        && let Some(portion) = response.next().await
    {
        data.extend_from_slice(&portion?);
    }
    Ok(data)
}
