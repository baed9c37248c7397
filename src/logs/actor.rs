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

use self::handle::{Followers, Subscribe};
use self::runs::CurrentRun;
use self::source::{Source, SourceEvent};
use super::chunk::Chunk;
use super::ring::Ring;
use crate::model::id::{Instance, LeaseId, Replica};
use crate::model::limits::{Limits, MAILBOX_MESSAGES};
use crate::model::metrics::{ActorEnd, GaugeGuard, Metrics, PlatformName};
use crate::model::view::{LeaseView, ReplicaView};
use crate::platform::{self, Platform};

mod handle;
mod reading;
mod runs;
mod source;

pub use self::handle::{Handle, Subscription};

/// What an actor needs to know of the world.
#[derive(Clone, Debug)]
pub struct ActorContext {
    /// Where lines come from.
    pub platform: Arc<dyn Platform>,
    /// How much, how long.
    pub limits: Arc<Limits>,
    /// What is counted.
    pub metrics: Metrics,
}

struct Actor {
    world: ActorContext,
    lease: LeaseId,
    replica: Replica,
    view: watch::Receiver<Arc<LeaseView>>,
    view_is_closed: bool,
    mailbox: mpsc::Receiver<Subscribe>,
    followers: Arc<Followers>,
    ring: Arc<Ring>,
    run: Option<CurrentRun>,
    /// The newest run of each container that was read, is read, or was there before the first one was read. None of them and none before
    /// them is read again. At most as many as the view names.
    passed: Vec<Instance>,
    source: Source,
    /// Chunks on their way to the ring; kept for its memory.
    chunks: Vec<Chunk>,
    /// When what waits in the chunker is due; `None` if nothing waits.
    due: Option<Instant>,
    /// Nothing leaves before this, but full chunks.
    paced_until: Instant,
    failures: u32,
    /// How many of them there have been since the lease ended or the replica went.
    last_tries: u32,
    /// What it would have to say if it ended now.
    end: ActorEnd,
    /// The reason last told for why nothing runs, so that it is told once.
    waiting_for: Option<String>,
    /// Whether followers have come since it was last reported that the log cannot be followed.
    has_new_followers: bool,
}

/// What the actor's loop does next.
enum ActorEvent {
    Subscribe(Subscribe),
    View(bool),
    Due,
    Source(SourceEvent),
    Left,
    End(ActorEnd),
}

/// Makes an actor: its handle, and its life, which is for the caller to run. `id` tells it from every other actor.
pub fn new(
    world: ActorContext,
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
        passed: Vec::new(),
        source: Source::Idle,
        chunks: Vec::new(),
        due: None,
        paced_until: Instant::now(),
        failures: 0,
        last_tries: 0,
        end: ActorEnd::Aborted,
        waiting_for: None,
        has_new_followers: true,
    };
    (handle, async move { actor.run(cancel).await })
}

// === impl World ===

impl ActorContext {
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
                () = cancel.cancelled() => ActorEvent::End(ActorEnd::Stopped),
                Some(subscribe) = self.mailbox.recv() => ActorEvent::Subscribe(subscribe),
                changed = self.view.changed(), if !self.view_is_closed => ActorEvent::View(changed.is_ok()),
                () = &mut due, if waits => ActorEvent::Due,
                read = self.source.next() => ActorEvent::Source(read),
                () = self.followers.left() => ActorEvent::Left,
                () = &mut idle, if unfollowed => ActorEvent::End(ActorEnd::Idle),
            };
            match turn {
                ActorEvent::Subscribe(subscribe) => self.subscribe(subscribe),
                ActorEvent::View(open) => {
                    // Closed means that the lease has ended; what it printed is still read to its end.
                    self.view_is_closed = !open;
                    self.view_changed();
                }
                ActorEvent::Due => self.flush(),
                ActorEvent::Source(read) => self.read(read),
                ActorEvent::Left => reset(&mut idle, self.world.limits.actor_idle),
                ActorEvent::End(end) => {
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
        self.has_new_followers = true;
        // A caller that has gone meanwhile drops the answer, and with it counts no more.
        let _ = subscribe.reply.send(Subscription { reader: self.ring.reader(), _follower: follower });
    }

    fn slot(&self) -> Option<ReplicaView> {
        self.view.borrow().replica(&self.replica).cloned()
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.world.metrics.actor_ends.of(self.end).increment(1);
        self.ring.close(self.end == ActorEnd::Gone);
    }
}

fn reset(sleep: &mut std::pin::Pin<&mut Sleep>, pause: Duration) {
    sleep.as_mut().reset(Instant::now() + pause);
}
