//! Events of leases: one feed per lease that is followed, which all its followers share.
//!
//! A feed merges the events that the platform has with [`synthetic`] ones, which it derives from changes of
//! the lease view: all changes where the platform has no events, else only the ends of runs. It encodes each
//! event once, and keeps the newest ones in a `ring`. Each follower reads from its own position.

mod feed;
mod ring;
mod synthetic;

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

pub(crate) use self::feed::EventReader;
use self::feed::{Feed, FeedTask};
pub(crate) use self::ring::{After, Batch};
use crate::model::event::LeaseEvent;
use crate::model::id::LeaseId;
use crate::model::metrics::Metrics;
use crate::model::view::LeaseView;
use crate::platform::Platform;

/// Encodes an event for all its followers.
pub(crate) type Encode = fn(&LeaseEvent) -> Bytes;

/// The feeds of all leases that are followed. Owns their tasks: dropping the last clone ends them. Cheap to
/// clone.
#[derive(Clone, Debug)]
pub(crate) struct EventFeeds(Arc<Shared>);

/// At most one per followed lease, so bounded by the number of streams.
type Feeds = Mutex<HashMap<LeaseId, OwnedFeed>>;

#[derive(Debug)]
struct Shared {
    platform: Arc<dyn Platform>,
    metrics: Metrics,
    /// Events of the platform are used, if it has any.
    is_native: bool,
    encode: Encode,
    feeds: Arc<Feeds>,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct OwnedFeed {
    feed: Arc<Feed>,
    _task: AbortOnDropHandle<()>,
}

// === impl EventFeeds ===

impl EventFeeds {
    /// Creates an empty registry. `is_native`: events of the platform are used, if it has any.
    pub(crate) fn new(
        platform: Arc<dyn Platform>,
        metrics: Metrics,
        is_native: bool,
        encode: Encode,
    ) -> Self {
        let (feeds, tasks) = (Arc::default(), TaskTracker::new());
        Self(Arc::new(Shared { platform, metrics, is_native, encode, feeds, tasks }))
    }

    /// Returns a reader of the events of `lease`, from the oldest one in the ring. Starts the feed if it does
    /// not run.
    pub(crate) fn subscribe(&self, lease: &LeaseId, view: watch::Receiver<Arc<LeaseView>>) -> EventReader {
        let shared = &self.0;
        let mut feeds = shared.feeds.lock();
        let owned = feeds.entry(lease.clone()).or_insert_with(|| {
            let feed = Arc::new(Feed::default());
            let native = shared.is_native.then(|| shared.platform.events(lease)).flatten();
            let metrics = shared.metrics.clone();
            let task = FeedTask::new(lease.clone(), Arc::clone(&feed), view, native, shared.encode, metrics);
            let run = run(task, lease.clone(), Arc::clone(&feed), Arc::downgrade(&shared.feeds));
            OwnedFeed { feed, _task: AbortOnDropHandle::new(shared.tasks.spawn(run)) }
        });
        // Subscribes within the lock, in which a feed without readers is removed.
        Feed::subscribe(&owned.feed)
    }
}

/// Runs the task of a feed until the lease ends or it has had no reader for a while. Removes the feed then.
async fn run(task: FeedTask, lease: LeaseId, feed: Arc<Feed>, feeds: Weak<Feeds>) {
    let mut run = pin!(task.run());
    loop {
        let is_unused = tokio::select! {
            () = &mut run => false,
            () = feed.unused() => true,
        };
        let Some(feeds) = feeds.upgrade() else { return };
        let mut feeds = feeds.lock();
        if !(is_unused && feed.has_readers()) {
            // Readers of a lease that has ended still have its events.
            feeds.remove(&lease);
            return;
        }
    }
}
