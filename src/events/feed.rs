//! The events of one lease: merged by a task, read by followers.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::stream::{BoxStream, Stream as _};
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::ring::{Batch, Ring};
use super::{Encode, synthetic};
use crate::model::event::{EVENTS_MAX, LeaseEvent};
use crate::model::id::LeaseId;
use crate::model::metrics::{EventOrigin, GaugeGuard, Metrics};
use crate::model::time::LogTime;
use crate::model::view::{Filter, LeaseView};
use crate::platform::NativeEvents;

/// Time for which a feed continues without followers: one that reconnects, or polls, needs no new watch.
const GRACE: Duration = Duration::from_secs(10);

/// Longest wait for the platform's list of events. Clients wait for their first event meanwhile; then they
/// get synthetic ones. A list takes some milliseconds.
const LIST_MAX: Duration = Duration::from_secs(2);

/// The events of a lease, for its followers.
#[derive(Debug, Default)]
pub(super) struct Feed {
    ring: Mutex<Ring>,
    /// Notifies readers. Each has one receiver, so that readers are counted.
    changed: watch::Sender<()>,
}

/// Reads the events of a lease from its own position.
pub(crate) struct EventReader {
    feed: Arc<Feed>,
    /// Number of the event that was read last; `None` before the first read.
    position: Option<u64>,
    changes: BoxStream<'static, ()>,
}

/// Merges the events of a lease and fills its feed.
pub(super) struct FeedTask {
    lease: LeaseId,
    feed: Arc<Feed>,
    view: watch::Receiver<Arc<LeaseView>>,
    /// The view from which synthetic events were derived last.
    known: Option<Arc<LeaseView>>,
    /// Events of the platform; `None` if it has none.
    native: Option<BoxStream<'static, NativeEvents>>,
    source: Source,
    /// Counts the feed by its source; `None` while it starts.
    counted: Option<GaugeGuard>,
    encode: Encode,
    metrics: Metrics,
}

/// Where a feed takes its events from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// Waits for the platform's list, for [`LIST_MAX`] at most. Becomes `Native` or `Synthetic`.
    Starting,
    /// The platform, and ends of runs from the view. Becomes `Synthetic` if the platform's events are no
    /// longer available.
    Native,
    /// The view. Becomes `Native` with the platform's next list.
    Synthetic,
}

// === impl Feed ===

impl Feed {
    /// Returns a reader, which starts at the oldest event in the ring.
    pub(super) fn subscribe(feed: &Arc<Self>) -> EventReader {
        let changes = futures_util::stream::unfold(feed.changed.subscribe(), |mut changed| async {
            changed.changed().await.ok()?;
            Some(((), changed))
        });
        EventReader { feed: Arc::clone(feed), position: None, changes: changes.boxed() }
    }

    pub(super) fn has_readers(&self) -> bool {
        self.changed.receiver_count() > 0
    }

    /// Waits until it has had no readers for the grace period. It may have new ones then.
    pub(super) async fn unused(&self) {
        self.changed.closed().await;
        tokio::time::sleep(GRACE).await;
    }

    fn update(&self, update: impl FnOnce(&mut Ring)) {
        update(&mut self.ring.lock());
        self.changed.send_replace(());
    }
}

// === impl EventReader ===

impl EventReader {
    /// Reads the next events that `filter` selects, up to about `max_bytes`.
    pub(crate) fn read(&mut self, filter: &Filter, max_bytes: usize) -> Batch {
        self.feed.ring.lock().read(&mut self.position, filter, max_bytes)
    }

    /// Waits until there may be more to read. Cancel safe.
    pub(crate) fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Never ends, because the reader keeps the sender.
        Pin::new(&mut self.changes).poll_next(cx).map(drop)
    }
}

// === impl FeedTask ===

impl FeedTask {
    /// Creates the task of `feed`. `native` are the events of the platform, if it has any.
    pub(super) fn new(
        lease: LeaseId,
        feed: Arc<Feed>,
        view: watch::Receiver<Arc<LeaseView>>,
        native: Option<BoxStream<'static, NativeEvents>>,
        encode: Encode,
        metrics: Metrics,
    ) -> Self {
        Self {
            lease,
            feed,
            view,
            known: None,
            native,
            source: Source::Starting,
            counted: None,
            encode,
            metrics,
        }
    }

    /// Fills the feed until the lease ends.
    pub(super) async fn run(mut self) {
        if self.native.is_none() {
            self.use_synthetic();
        }
        let mut late = pin!(tokio::time::sleep(LIST_MAX));
        loop {
            let is_starting = self.source == Source::Starting;
            tokio::select! {
                biased;
                news = next(&mut self.native) => match news {
                    NativeEvents::Listed(events) => self.use_native(events),
                    NativeEvents::Changed(event) => self.push(vec![*event]),
                    NativeEvents::Unavailable => self.use_synthetic(),
                },
                () = &mut late, if is_starting => self.use_synthetic(),
                changed = self.view.changed(), if !is_starting => {
                    let events = self.derive();
                    // Most changes of a view are no events, and wake no reader.
                    if !events.is_empty() {
                        self.push(events);
                    }
                    if changed.is_err() || self.view.borrow().ended {
                        self.feed.update(Ring::close);
                        return;
                    }
                }
            }
        }
    }

    /// Takes a list of the platform: all events at first, later those that were missed.
    fn use_native(&mut self, listed: Vec<LeaseEvent>) {
        self.set_source(Source::Native, EventOrigin::Native);
        // Times are whole seconds: a run's end comes before the events that follow from it.
        let mut events = self.derive();
        events.extend(listed);
        events.sort_by_key(LeaseEvent::time);
        events.drain(..events.len().saturating_sub(EVENTS_MAX));
        self.push(events);
    }

    /// Derives all events from the view from now on.
    fn use_synthetic(&mut self) {
        self.set_source(Source::Synthetic, EventOrigin::Synthetic);
        let events = self.derive();
        self.push(events);
    }

    fn set_source(&mut self, source: Source, origin: EventOrigin) {
        if self.source != source {
            self.source = source;
            self.counted = Some(GaugeGuard::new(self.metrics.event_feeds.of(origin)));
        }
    }

    /// Returns the events between the last view and the newest one that the platform does not report itself.
    fn derive(&mut self) -> Vec<LeaseEvent> {
        let view = Arc::clone(&self.view.borrow_and_update());
        let mut events = synthetic::changes(&self.lease, self.known.as_deref(), &view, LogTime::now());
        if self.source == Source::Native {
            events.retain(synthetic::is_end);
        }
        self.known = Some(view);
        events
    }

    fn push(&self, events: Vec<LeaseEvent>) {
        // Encoded before the lock, for which readers wait.
        let encoded: Vec<_> = events.iter().map(|event| (event, (self.encode)(event))).collect();
        self.feed.update(|ring| {
            for (event, frame) in encoded {
                ring.push(&event.uid, event.service.clone(), frame);
            }
            // The first events are all that exist.
            ring.set_ready();
        });
    }
}

/// Waits for the platform's next news. Cancel safe.
async fn next(native: &mut Option<BoxStream<'static, NativeEvents>>) -> NativeEvents {
    let Some(stream) = native else { return std::future::pending().await };
    if let Some(news) = stream.next().await {
        return news;
    }
    *native = None;
    NativeEvents::Unavailable
}
