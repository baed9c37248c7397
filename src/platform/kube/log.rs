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

use self::machine::{Action, Event, IdleVerdict, Machine, POLL_INTERVAL};
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

/// The same after a probe that failed: the log may be readable again.
const PROBE_AGAIN_AFTER: Duration = Duration::from_secs(10);

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
    /// The same, because at least two later runs were started. So the log was removed long after it ended.
    Superseded(String),
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
    /// When the last probe was sent, if it failed and nothing came since.
    failed_probe: Option<LogTime>,
    interruption: Interruption,
}

/// Whether a follow was interrupted, as its items report it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interruption {
    /// Not reported: the read does not follow.
    Unreported,
    No,
    /// The log is not open, or was silent and then could not be probed.
    Since(LogTime),
    /// The log was opened again at this time, but no byte came yet. If it breaks within [`OVERLAP_MAX`], the
    /// interruption goes on.
    Reopened(LogTime, Instant),
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
    let interruption = if request.follow { Interruption::No } else { Interruption::Unreported };
    let delay = PollDelay::default();
    let mut reader = Reader {
        log,
        run,
        machine,
        response: None,
        next,
        delay: delay.clone(),
        due: None,
        failed_probe: None,
        interruption,
    };
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

    /// Returns whether the pod was removed before the end of the run was reported.
    pub(in crate::platform) fn is_end_unreported(&self) -> bool {
        let view = self.view.borrow();
        let run = view.replica(&self.replica).and_then(|replica| replica.run(&self.instance));
        run.and_then(|run| run.end.as_ref()).is_some_and(|end| end.exit_code.is_none())
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
            let mut items = self.machine.take();
            if items.last() == Some(&TailItem::FollowUnavailable) {
                self.log.follow_unavailable();
            }
            items.extend(self.interruption_change());
            if !items.is_empty() {
                return Ok(Some((items, self)));
            }
            if !self.step().await? {
                return Ok(None);
            }
        }
    }

    /// Returns an item if the follow was interrupted, or resumed, since the last call.
    fn interruption_change(&mut self) -> Option<TailItem> {
        match (&self.next, self.interruption) {
            (Action::Pause(_), Interruption::No | Interruption::Reopened(..)) => {
                let since = match self.interruption {
                    Interruption::Reopened(since, at) if at.elapsed() < OVERLAP_MAX => since,
                    _ => LogTime::now(),
                };
                Some(self.interrupted(since))
            }
            (Action::Read, Interruption::No | Interruption::Reopened(..)) => {
                self.failed_probe.map(|since| self.interrupted(since))
            }
            (Action::Read, Interruption::Since(since)) if self.failed_probe.is_none() => {
                self.interruption = Interruption::Reopened(since, Instant::now());
                Some(TailItem::Resumed)
            }
            _ => None,
        }
    }

    fn interrupted(&mut self, since: LogTime) -> TailItem {
        self.interruption = Interruption::Since(since);
        TailItem::Interrupted(since)
    }

    /// Performs the next action. Returns `false` if the log is complete. Not cancel safe: a dropped call
    /// leaves [`Action::Finish`] behind. The stream owns the call, so both are dropped together.
    async fn step(&mut self) -> Result<bool, Error> {
        self.next = match std::mem::replace(&mut self.next, Action::Finish) {
            Action::Read => self.read().await,
            Action::Open(query) => self.open(query).await,
            Action::Pause(pause) => self.pause(pause).await,
            Action::AwaitPoll => self.pause(POLL_INTERVAL).await,
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

    async fn pause(&mut self, pause: Duration) -> Action {
        self.response = None;
        // While the run has not ended, its end is the change to wait for.
        let waits = !self.run.has_ended();
        tokio::select! {
            () = tokio::time::sleep(jittered(pause)) => {}
            () = self.run.ended(), if waits => {}
        }
        self.on(Event::Resumed { ended: self.run.has_ended() })
    }

    async fn open(&mut self, query: LogQuery) -> Action {
        (self.response, self.due, self.failed_probe) = (None, None, None);
        // Read before the request: if the run has ended by then, the response has all lines.
        let ended = self.run.has_ended();
        let event = match self.log.open(query).await {
            Ok(response) => {
                self.response = Some(response);
                Event::Opened { ended }
            }
            Err(OpenError::Gone(why)) => Event::Gone(why),
            Err(OpenError::Superseded(why)) => {
                // Meanwhile a log that had ended would have been read again, and to its end.
                self.machine.delayed();
                Event::Gone(why)
            }
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
                IdleVerdict::Quiet if self.failed_probe.is_some() => PROBE_AGAIN_AFTER,
                IdleVerdict::Quiet => PROBE_AFTER,
                IdleVerdict::Unplaced => OVERLAP_MAX,
                IdleVerdict::Trial => TRIAL_MAX,
            };
            Instant::now() + longest
        });
        match timeout_at(until, response.next()).await {
            Ok(item) => self.received(item),
            Err(_) if self.due.take().is_some() => self.on(Event::Unfinished),
            Err(_) => self.idle(verdict).await,
        }
    }

    /// Continues after an item of the response, or its end.
    fn received(&mut self, item: Option<Result<Bytes, String>>) -> Action {
        match item {
            Some(Ok(data)) => {
                self.failed_probe = None;
                if let Interruption::Reopened(..) = self.interruption {
                    self.interruption = Interruption::No;
                }
                let next = self.on(Event::Data(&data));
                let due = self.due.unwrap_or_else(|| Instant::now() + UNFINISHED_WAIT);
                self.due = self.machine.holds_unfinished().then_some(due);
                next
            }
            Some(Err(why)) => self.on(Event::Broken(why)),
            None => self.on(Event::Complete { ended: self.run.has_ended() }),
        }
    }

    /// Continues after nothing came for the time that `verdict` allows.
    async fn idle(&mut self, verdict: IdleVerdict) -> Action {
        match verdict {
            IdleVerdict::Slow => self.on(Event::Broken("nothing came for too long".to_owned())),
            IdleVerdict::Unplaced | IdleVerdict::Trial => self.on(Event::Idle),
            // The response should have completed with the run. The rest, if any, is requested.
            IdleVerdict::Quiet if self.run.has_ended() => self.on(Event::RunEnded),
            IdleVerdict::Quiet => self.probe().await,
        }
    }

    /// Finds out whether a silent response has missed lines.
    async fn probe(&mut self) -> Action {
        let Some(response) = &mut self.response else { return Action::Read };
        let sent = LogTime::now();
        let last = tokio::select! {
            biased;
            item = response.next() => return self.received(item),
            last = timeout(STALL_MAX, last_lines(&self.log)) => last.unwrap_or_else(|late| Err(late.to_string())),
        };
        match last {
            Ok(last) => {
                self.failed_probe = None;
                last.map_or(Action::Read, |last| self.on(Event::Probed(&last)))
            }
            // The response may be alive all the same. The connection's own keepalive finds out whether it is
            // dead: see `client`.
            Err(why) => {
                tracing::debug!(why, "failed to probe silent log");
                self.failed_probe.get_or_insert(sent);
                Action::Read
            }
        }
    }
}

/// Reads the last lines of the file. Returns `None` if they are too large, or if the file is gone or that of
/// another run.
///
/// # Errors
/// If the file cannot be read at present.
async fn last_lines(log: &PodLog) -> Result<Option<BytesMut>, String> {
    let mut response = match log.open(LogQuery::PROBE).await {
        Ok(response) => response,
        Err(OpenError::NotNow(why) | OpenError::Unreachable(_, why)) => return Err(why),
        Err(OpenError::Gone(_) | OpenError::Superseded(_) | OpenError::LaterRun { .. }) => return Ok(None),
    };
    let last = read_start(&mut response, PROBE_MAX_BYTES).await?;
    Ok((last.len() <= PROBE_MAX_BYTES).then_some(last))
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
