//! The log of one run, read through the Kubernetes API.
//!
//! What is asked and what an answer means is for the [`machine`]; here the world is asked. One response is open at a time for a tail,
//! and beside it now and then a glance at the last lines. The stream reads on when polled and never waits for anybody else.

pub(super) mod behind;
mod lines;
mod machine;
mod overlap;
mod step;
mod tail_buffer;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::{StreamExt as _, stream};
use rand::RngExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use self::machine::Machine;
pub(super) use self::step::LogQuery;
use self::step::{Action, Event, IdleVerdict};
use crate::model::id::{Instance, Replica};
use crate::model::time::LogTime;
use crate::model::view::LeaseView;
use crate::platform::{Error, ReadFrom, Tail, TailItem};

/// A response that ends is not waited for longer than this from one portion to the next.
const STALL_MAX: Duration = Duration::from_secs(30);

/// After so long a silence it is asked whether the last line is the one that was read: a rotation or a proxy may have left the
/// stream behind without an end.
const PROBE_AFTER: Duration = Duration::from_secs(60);

/// How long an unfinished line waits for its end before it is delivered as a piece: as in [`tail`](crate::platform::tail).
const UNFINISHED_WAIT: Duration = Duration::from_millis(100);

/// Within this the known lines must have come of a log that is opened again.
const PLACE_MAX: Duration = Duration::from_secs(3);

/// A kubelet that could not follow a log says so at the end of the lines that there are: after so long a silence it follows.
const TRIAL_MAX: Duration = Duration::from_secs(2);

/// Most bytes of an answer to [`LogQuery::PROBE`]; of a longer one the last line is not looked for.
const PROBE_MAX_BYTES: usize = 4 * 1024 * 1024;

/// Where the log of one run can be asked for.
pub(super) trait LogApi: Send + Sync + 'static {
    /// Asks. The response is that of this very run, and of no other.
    fn open(&self, ask: LogQuery) -> BoxFuture<'_, Result<Response, OpenError>>;

    /// Takes note that the kubelet cannot follow the log.
    fn follow_unavailable(&self) {}
}

/// A response: portions of it, or why it broke off. Complete at its end.
pub(super) type Response = BoxStream<'static, Result<Bytes, String>>;

/// Why there is no response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum OpenError {
    /// There is no such log, and will be none.
    Gone(String),
    /// Not this time.
    NotNow(String),
    /// The kubelet serves a later run than the API server knows of; if `unclear`, it may.
    Behind { why: String, unclear: bool },
    /// The API server or the kubelet is not reached. Asked again, it waits until that is worth a try.
    Away(String),
}

/// Whether a run has ended, as the lease's view tells.
#[derive(Clone, Debug)]
pub(in crate::platform) struct RunWatch {
    /// What runs.
    pub(super) view: watch::Receiver<Arc<LeaseView>>,
    /// The slot.
    pub(super) replica: Replica,
    /// The run.
    pub(super) instance: Instance,
}

/// Reads on when polled.
struct Reader<A> {
    api: A,
    run: RunWatch,
    machine: Machine,
    response: Option<Response>,
    next: Action,
    ready: VecDeque<TailItem>,
    /// When the unfinished line that was read is delivered as a piece.
    due: Option<Instant>,
}

/// Opens a log. See [`Tail`].
///
/// # Errors
/// [`Error::NotFound`] if there is no such log; [`Error::Unavailable`] if it cannot be read this time.
pub(super) async fn open<A: LogApi>(
    api: A,
    run: RunWatch,
    from: ReadFrom,
    follow: bool,
    started: LogTime,
) -> Result<Tail, Error> {
    let machine = Machine::new(from, follow, started);
    let next = Action::Ask(machine.ask());
    let mut reader = Reader { api, run, machine, response: None, next, ready: VecDeque::new(), due: None };
    let start = loop {
        if let Some(start) = reader.machine.start() {
            break start;
        }
        if !reader.step().await? {
            return Err(Error::Broken("a log ended before it began".to_owned()));
        }
    };
    let unfinished = [!start.at_line_start(), false];
    Ok(Tail { start, unfinished, items: stream::try_unfold(reader, Reader::next).boxed() })
}

// === impl RunWatch ===

impl RunWatch {
    /// Whether the run has ended, or is no longer known of.
    pub(in crate::platform) fn has_ended(&self) -> bool {
        let view = self.view.borrow();
        let run = view.replica(&self.replica).and_then(|slot| slot.run(&self.instance));
        run.is_none_or(|run| run.end.is_some())
    }

    /// Resolves once the run has ended. Nothing is lost if it is cancelled.
    pub(in crate::platform) async fn ended(&mut self) {
        while !self.has_ended() {
            if self.view.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

// === impl Reader ===

impl<A: LogApi> Reader<A> {
    async fn next(mut self) -> Result<Option<(TailItem, Self)>, Error> {
        loop {
            if self.ready.is_empty() {
                self.ready.extend(self.machine.take());
                if self.ready.back() == Some(&TailItem::FollowUnavailable) {
                    self.api.follow_unavailable();
                }
            }
            if let Some(item) = self.ready.pop_front() {
                return Ok(Some((item, self)));
            }
            if !self.step().await? {
                return Ok(None);
            }
        }
    }

    /// Does what is to be done; `false` if that is nothing.
    async fn step(&mut self) -> Result<bool, Error> {
        self.next = match std::mem::replace(&mut self.next, Action::Finish) {
            Action::Read => self.read().await,
            Action::Ask(ask) => self.ask(ask).await,
            Action::Pause(pause) => {
                self.response = None;
                // While it has not ended yet, its end is what may change.
                let waits = !self.run.has_ended();
                tokio::select! {
                    () = tokio::time::sleep(jittered(pause)) => {}
                    () = self.run.ended(), if waits => {}
                }
                self.machine.on(Event::Woken { ended: self.run.has_ended() })
            }
            Action::Finish => return Ok(false),
            Action::Fail(error) => return Err(error),
        };
        Ok(true)
    }

    async fn ask(&mut self, ask: LogQuery) -> Action {
        (self.response, self.due) = (None, None);
        // Asked before, so that what is read is all there will be.
        let ended = self.run.has_ended();
        match self.api.open(ask).await {
            Ok(response) => {
                self.response = Some(response);
                self.machine.on(Event::Opened { ended })
            }
            Err(OpenError::Gone(why)) => self.machine.on(Event::Gone(why)),
            Err(OpenError::NotNow(why)) => self.machine.on(Event::Broken(why)),
            Err(OpenError::Behind { why, unclear }) => self.machine.on(Event::Behind { why, unclear }),
            Err(OpenError::Away(why)) => self.machine.on(Event::Away(why)),
        }
    }

    fn data(&mut self, data: &[u8]) -> Action {
        let next = self.machine.on(Event::Data(data));
        let due = self.due.unwrap_or_else(|| Instant::now() + UNFINISHED_WAIT);
        self.due = self.machine.holds_unfinished().then_some(due);
        next
    }

    async fn read(&mut self) -> Action {
        let Some(response) = &mut self.response else {
            return self.machine.on(Event::Broken("there is no response".to_owned()));
        };
        if let Some(due) = self.due {
            match timeout_at(due, response.next()).await {
                Ok(Some(Ok(data))) => return self.data(&data),
                Ok(Some(Err(why))) => return self.machine.on(Event::Broken(why)),
                Ok(None) => return self.machine.on(Event::Complete { ended: self.run.has_ended() }),
                Err(_) => {
                    self.due = None;
                    return self.machine.on(Event::Unfinished);
                }
            }
        }
        let silence = self.machine.silence();
        let longest = match silence {
            IdleVerdict::Slow => STALL_MAX,
            IdleVerdict::Quiet => PROBE_AFTER,
            IdleVerdict::Unplaced => PLACE_MAX,
            IdleVerdict::Trial => TRIAL_MAX,
        };
        match (timeout(longest, response.next()).await, silence) {
            (Ok(Some(Ok(data))), _) => self.data(&data),
            (Ok(Some(Err(why))), _) => self.machine.on(Event::Broken(why)),
            (Ok(None), _) => self.machine.on(Event::Complete { ended: self.run.has_ended() }),
            (Err(_), IdleVerdict::Slow) => {
                self.machine.on(Event::Broken("nothing came for too long".to_owned()))
            }
            (Err(_), IdleVerdict::Unplaced | IdleVerdict::Trial) => self.machine.on(Event::Silent),
            // It ought to have ended with the run: what is left, if anything, is asked for.
            (Err(_), IdleVerdict::Quiet) if self.run.has_ended() => self.machine.on(Event::Left),
            (Err(_), IdleVerdict::Quiet) => match timeout(STALL_MAX, probe(&self.api)).await {
                Ok(Some(last)) => self.machine.on(Event::Probed(&last)),
                // Then the connection itself tells whether it lives: see `client`.
                Ok(None) | Err(_) => Action::Read,
            },
        }
    }
}

/// The last lines of the file.
async fn probe(api: &impl LogApi) -> Option<Bytes> {
    let mut response = api.open(LogQuery::PROBE).await.ok()?;
    let mut last = BytesMut::new();
    while let Some(data) = response.next().await {
        last.extend_from_slice(&data.ok()?);
        if last.len() > PROBE_MAX_BYTES {
            return None;
        }
    }
    Some(last.freeze())
}

/// About so long: many that wait for the same thing shall not come all at once.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.5))
}
