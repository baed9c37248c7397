//! **The actor**: one per replica. It tails the replica's log once and fans chunks out through its ring.
//!
//! It lives from the first follower until some idle time after the last. It watches the view by itself: when a run ends it
//! reads that log to its end, then opens the next one's. Nothing is awaited outside its one `select!`, so a hung source delays no
//! subscriber; dropping the handle's task ends everything it holds. However it ends, its ring is closed, and who still follows
//! notices.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::chunk::{Chunk, Chunker};
use super::frame::{Event, Gap};
use super::ring::Ring;
use crate::model::id::{Instance, LeaseId, Replica};
use crate::model::limits::{Limits, MAILBOX_MESSAGES};
use crate::model::line::{GapCause, LineBatch, SourceGap};
use crate::model::metrics::{ActorEnd, GaugeGuard, Metrics, PlatformName, Read};
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::model::view::{LeaseView, ReplicaState, ReplicaView, Run};
use crate::platform::{self, From, Platform, TailItem, TailRequest};

mod handle;
mod source;

use handle::{Followers, Subscribe};
pub use handle::{Handle, Subscription};
use source::{Answer, Source};

/// First pause after the source failed; doubled with each failure, up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest pause after the source failed: short enough for a follower not to give up.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What an actor needs to know of the world.
#[derive(Clone, Debug)]
pub struct World {
    /// Where lines come from.
    pub platform: Arc<dyn Platform>,
    /// How much, how long.
    pub limits: Arc<Limits>,
    /// What is counted.
    pub metrics: Metrics,
}

struct Actor {
    world: World,
    lease: LeaseId,
    replica: Replica,
    view: watch::Receiver<Arc<LeaseView>>,
    view_is_closed: bool,
    mailbox: mpsc::Receiver<Subscribe>,
    followers: Arc<Followers>,
    ring: Arc<Ring>,
    run: Option<CurrentRun>,
    source: Source,
    /// Chunks on their way to the ring; kept for its memory.
    chunks: Vec<Chunk>,
    /// When what waits in the chunker is due; `None` if nothing waits.
    due: Option<Instant>,
    /// Nothing leaves before this, but full chunks.
    paced_until: Instant,
    failures: u32,
    /// What it would have to say if it ended now.
    end: ActorEnd,
    /// The reason last told for why nothing runs, so that it is told once.
    waiting_for: Option<String>,
}

/// The run whose log is, or was last, read.
struct CurrentRun {
    instance: Instance,
    chunker: Chunker,
    /// When the oldest line that waits in the chunker was read.
    read_at: Instant,
    /// Time of the newest line.
    last_time: Option<LogTime>,
    /// Whether it had ended before anybody followed: no news, then.
    end_is_old: bool,
    /// Whether it was told that its log cannot be read.
    gap_was_told: bool,
}

/// What the actor's loop does next.
enum Turn {
    Subscribe(Subscribe),
    View(bool),
    Due,
    Source(Answer),
    Left,
    End(ActorEnd),
}

/// Makes an actor: its handle, and its life, which is for the caller to run. `id` tells it from every other actor.
pub fn new(
    world: World,
    lease: LeaseId,
    replica: Replica,
    view: watch::Receiver<Arc<LeaseView>>,
    id: u64,
    cancel: CancellationToken,
) -> (Handle, impl Future<Output = ()> + Send + 'static) {
    let (sender, mailbox) = mpsc::channel(MAILBOX_MESSAGES);
    world.metrics.actor_starts.increment(1);
    let ring = Arc::new(Ring::new(replica.clone(), world.limits.ring_max_bytes, &world.metrics));
    let handle = Handle { mailbox: sender, ring: Arc::downgrade(&ring), id };
    let mut actor = Actor {
        world,
        lease,
        replica,
        view,
        view_is_closed: false,
        mailbox,
        followers: Arc::default(),
        ring,
        run: None,
        source: Source::Idle,
        chunks: Vec::new(),
        due: None,
        paced_until: Instant::now(),
        failures: 0,
        end: ActorEnd::Aborted,
        waiting_for: None,
    };
    (handle, async move { actor.run(cancel).await })
}

// === impl World ===

impl World {
    /// Counts an error of the platform.
    pub fn count_error(&self, error: &platform::Error) {
        let platform = PlatformName::of(self.platform.name());
        self.metrics.source_errors.of((error.kind(), platform)).increment(1);
    }
}

// === impl Actor ===

impl Actor {
    async fn run(&mut self, cancel: CancellationToken) {
        let _alive = GaugeGuard::new(&self.world.metrics.actors);
        tracing::debug!(lease = %self.lease, replica = %self.replica, "actor started");
        self.begin();
        let idle = tokio::time::sleep(self.world.limits.actor_idle);
        let due = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(idle, due);
        loop {
            if let Some(at) = self.due
                && due.deadline() != at
            {
                due.as_mut().reset(at);
            }
            let waits = self.due.is_some();
            let unfollowed = self.followers.is_empty();
            let turn = tokio::select! {
                biased;
                () = cancel.cancelled() => Turn::End(ActorEnd::Stopped),
                Some(subscribe) = self.mailbox.recv() => Turn::Subscribe(subscribe),
                changed = self.view.changed(), if !self.view_is_closed => Turn::View(changed.is_ok()),
                () = &mut due, if waits => Turn::Due,
                read = self.source.next() => Turn::Source(read),
                () = self.followers.left() => Turn::Left,
                () = &mut idle, if unfollowed => Turn::End(ActorEnd::Idle),
            };
            match turn {
                Turn::Subscribe(subscribe) => self.subscribe(subscribe),
                Turn::View(open) => {
                    // Closed means that the lease has ended; what it printed is still read to its end.
                    self.view_is_closed = !open;
                    self.view_changed();
                }
                Turn::Due => self.flush(),
                Turn::Source(read) => self.read(read),
                Turn::Left => reset(&mut idle, self.world.limits.actor_idle),
                Turn::End(end) => {
                    self.end = end;
                    break;
                }
            }
            if self.is_gone() {
                self.end = ActorEnd::Gone;
                break;
            }
        }
        // Who has asked already gets no answer, and asks for another actor.
        self.mailbox.close();
        self.flush();
        tracing::debug!(lease = %self.lease, replica = %self.replica, end = ?self.end, "actor ended");
    }

    fn subscribe(&mut self, subscribe: Subscribe) {
        let follower = self.followers.add(&self.world.metrics.followers);
        // A caller that has gone meanwhile drops the answer, and with it counts no more.
        let _ = subscribe.reply.send(Subscription { reader: self.ring.reader(), _follower: follower });
    }

    fn slot(&self) -> Option<ReplicaView> {
        self.view.borrow().replica(&self.replica).cloned()
    }

    /// Opens the newest run's log at its end: what is older is for those to read who ask for it.
    fn begin(&mut self) {
        match self.slot().as_ref().and_then(ReplicaView::newest) {
            Some(run) => {
                self.run = Some(CurrentRun { end_is_old: run.end.is_some(), ..CurrentRun::new(run) });
                self.open(From::Last(0));
            }
            None => self.idle(),
        }
    }

    fn open(&mut self, from: From) {
        let Some(run) = &self.run else { return };
        let request = TailRequest {
            lease: self.lease.clone(),
            replica: self.replica.clone(),
            instance: run.instance.clone(),
            from,
            follow: true,
        };
        self.world.metrics.source_opens.of(Read::Live).increment(1);
        let platform = Arc::clone(&self.world.platform);
        self.source = Source::Opening(Box::pin(async move { platform.tail(request).await }));
    }

    fn read(&mut self, read: Answer) {
        match read {
            Answer::Again => match &self.run {
                Some(run) if self.is_begun() => self.open(From::After(run.chunker.position())),
                _ => self.open(From::Last(0)),
            },
            Answer::Opened(Ok(tail)) => {
                if !self.is_begun()
                    && let Some(run) = &mut self.run
                {
                    run.chunker = Chunker::new(tail.start);
                    self.ring.begin(&run.instance, tail.start);
                }
                self.source = Source::Reading(tail.items);
            }
            Answer::Item(Some(Ok(TailItem::Lines(batch)))) => {
                self.failures = 0;
                self.lines(&batch);
            }
            Answer::Item(Some(Ok(TailItem::Gap(gap)))) => self.source_gap(gap),
            Answer::Opened(Err(error)) | Answer::Item(Some(Err(error))) => self.failed(&error),
            Answer::Item(None) => self.log_ended(),
        }
    }

    /// Whether the ring knows where the present run's log stands.
    fn is_begun(&self) -> bool {
        let tip = self.ring.tip_instance();
        self.run.as_ref().is_some_and(|run| tip.as_ref() == Some(&run.instance))
    }

    fn lines(&mut self, batch: &LineBatch) {
        let Some(run) = &mut self.run else { return };
        let now = Instant::now();
        let metrics = &self.world.metrics;
        metrics.lines_in.increment(batch.lines.iter().filter(|line| line.ends).count() as u64);
        metrics.bytes_in.increment(batch.data.len() as u64);
        if run.chunker.is_empty() {
            run.read_at = now;
        }
        if let Some(line) = batch.lines.last() {
            run.last_time = Some(line.time);
        }
        run.gap_was_told = false;
        run.chunker.push(batch, &mut self.chunks);
        if now >= self.paced_until {
            self.flush();
            return;
        }
        if !self.chunks.is_empty() {
            self.ring.push_lines(&run.instance, &mut self.chunks, run.read_at);
            run.read_at = now;
        }
        self.due = (!run.chunker.is_empty()).then_some(self.paced_until);
    }

    /// Sends what waits; what comes within the pace from now on waits.
    fn flush(&mut self) {
        self.due = None;
        let Some(run) = &mut self.run else { return };
        self.chunks.extend(run.chunker.flush());
        if self.chunks.is_empty() {
            return;
        }
        self.ring.push_lines(&run.instance, &mut self.chunks, run.read_at);
        self.paced_until = Instant::now() + self.world.limits.pace;
    }

    fn source_gap(&mut self, gap: SourceGap) {
        self.flush();
        let Some(run) = &mut self.run else { return };
        let SourceGap { cause, lines, bytes, exact, after } = gap;
        run.chunker.skip_to(after);
        let told = Gap { cause, lines, bytes, exact, from: run.last_time, to: None };
        self.ring.push_gap(&run.instance, told, after);
    }

    /// Lines may be missing behind the newest one.
    fn unknown_gap(&mut self, cause: GapCause) {
        let Some(run) = &self.run else { return };
        let after = run.chunker.position();
        self.source_gap(SourceGap { cause, lines: 0, bytes: 0, exact: false, after });
    }

    fn failed(&mut self, error: &platform::Error) {
        self.flush();
        self.world.count_error(error);
        let (lease, replica) = (&self.lease, &self.replica);
        if error.is_retryable() {
            let pause = RETRY_MAX.min(RETRY_FIRST * 2_u32.saturating_pow(self.failures));
            self.failures = self.failures.saturating_add(1);
            tracing::warn!(%lease, %replica, error = error as &dyn std::error::Error, ?pause, "source failed, will be opened again");
            self.source = Source::Retry(Instant::now() + pause);
            return;
        }
        tracing::warn!(%lease, %replica, error = error as &dyn std::error::Error, "log is not readable");
        self.unreadable();
    }

    /// Says once that lines may be missing. A run that goes on may yet be readable: its log may have been removed, or replaced.
    fn unreadable(&mut self) {
        let slot = self.slot().unwrap_or_default();
        let is_begun = self.is_begun();
        let Some(run) = &mut self.run else { return };
        let goes_on = slot.run(&run.instance).is_some_and(|run| run.end.is_none());
        if !is_begun {
            self.ring.begin(&run.instance, Position::START);
        }
        if !std::mem::replace(&mut run.gap_was_told, true) {
            self.unknown_gap(GapCause::Source);
        }
        if goes_on {
            self.source = Source::Retry(Instant::now() + RETRY_MAX);
        } else {
            self.log_ended();
        }
    }

    fn log_ended(&mut self) {
        self.flush();
        self.source = Source::Ended;
        self.view_changed();
    }

    /// Goes on to the next run once the present one's log has ended and the view says how.
    fn view_changed(&mut self) {
        match self.source {
            Source::Idle => self.next_run(),
            Source::Ended => {
                let slot = self.slot().unwrap_or_default();
                let Some(run) = &self.run else { return };
                match slot.run(&run.instance).map(Event::ended) {
                    // The log has ended, but the view does not know yet.
                    Some(None) if !self.lease_ended() => return,
                    Some(Some(event)) if !run.end_is_old => self.ring.push_event(Some(&run.instance), &event),
                    _ => {}
                }
                self.source = Source::Idle;
                self.next_run();
            }
            Source::Opening(_) | Source::Reading(_) | Source::Retry(_) => {}
        }
    }

    fn next_run(&mut self) {
        let Some(slot) = self.slot() else { return };
        let next = match &self.run {
            Some(run) => slot.run_behind(&run.instance),
            None => slot.runs.first(),
        };
        match next {
            Some(run) => {
                let skips = self.run.as_ref().is_some_and(|last| last.instance.skips_to(&run.instance));
                self.start(run);
                if skips {
                    // Those between came and went unseen.
                    self.unknown_gap(GapCause::Rotated);
                }
            }
            None => self.idle(),
        }
    }

    fn start(&mut self, run: &Run) {
        self.waiting_for = None;
        self.run = Some(CurrentRun::new(run));
        self.ring.start(&run.instance, &Event::started(run));
        self.open(From::Start);
    }

    /// Tells once why nothing runs.
    fn idle(&mut self) {
        self.source = Source::Idle;
        let Some(ReplicaView { state: ReplicaState::Waiting { reason, message }, .. }) = self.slot() else {
            return;
        };
        if self.waiting_for.as_ref() == Some(&reason) {
            return;
        }
        self.waiting_for = Some(reason.clone());
        self.ring.push_event(self.run.as_ref().map(|run| &run.instance), &Event::waiting(reason, message));
    }

    fn lease_ended(&self) -> bool {
        let view = self.view.borrow();
        view.ended || view.replica(&self.replica).is_none() || self.view_is_closed
    }

    /// Whether the replica is no longer part of the lease and its log was read to its end; says so.
    fn is_gone(&mut self) -> bool {
        let gone = self.lease_ended() && matches!(self.source, Source::Idle);
        if gone {
            self.ring.push_event(self.run.as_ref().map(|run| &run.instance), &Event::gone());
        }
        gone
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.world.metrics.actor_ends.of(self.end).increment(1);
        self.ring.close();
    }
}

fn reset(sleep: &mut std::pin::Pin<&mut Sleep>, pause: Duration) {
    sleep.as_mut().reset(Instant::now() + pause);
}

// === impl CurrentRun ===

impl CurrentRun {
    fn new(run: &Run) -> Self {
        Self {
            instance: run.instance.clone(),
            chunker: Chunker::new(Position::START),
            read_at: Instant::now(),
            last_time: None,
            end_is_old: false,
            gap_was_told: false,
        }
    }
}
