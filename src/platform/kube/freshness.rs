//! Detects failing watches, so that views can state since when they may be out of date.
//!
//! A working watch is silent while nothing changes. So the time of the last event does not count, but whether
//! the API server accepted the watch: [`Freshness::opened`], called by the HTTP client.

use std::collections::BTreeMap;
use std::time::Duration;

use metrics::Gauge;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::namespace::BUILT_IN;
use super::store::Store;
use crate::model::label::LabelValue as _;
use crate::model::metrics::labels::Watched;
use crate::model::time::LogTime;

/// Time that a watch fails before views are stale. A broken watch is back within a second or two, and an API
/// server behind a load balancer that is updated to a new version within less than this.
const STALE_AFTER: Duration = Duration::from_secs(10);

/// Time that an accepted watch must last to count as working: an API server in trouble accepts a watch and
/// ends it at once with an error.
const WORKS_AFTER: Duration = Duration::from_secs(1);

/// The watches that fail, of [`BUILT_IN`] only: a cluster may lose the definition of the others,
/// which is no outage. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Freshness(watch::Sender<BTreeMap<Watched, Failing>>);

/// A watch that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failing {
    /// When it failed first.
    since: Instant,
    /// Wall-clock time of the first failure, shown in views.
    time: LogTime,
    /// When it was accepted after its last failure.
    opened: Option<Instant>,
}

// === impl Freshness ===

impl Freshness {
    /// Notes that the watch of a kind failed.
    pub(super) fn failed(&self, kind: Watched) {
        if !BUILT_IN.contains(&kind) {
            return;
        }
        self.0.send_modify(|failing| {
            let fresh = Failing { since: Instant::now(), time: LogTime::now(), opened: None };
            failing.entry(kind).or_insert(fresh).opened = None;
        });
    }

    /// Notes that the API server accepted the watch of a kind.
    pub(super) fn opened(&self, kind: Watched) {
        self.0.send_if_modified(|failing| {
            let found = failing.get_mut(&kind).filter(|failing| failing.opened.is_none());
            found.map(|failing| failing.opened = Some(Instant::now())).is_some()
        });
    }

    /// Notes that the watch of a kind sent an event.
    pub(super) fn note_working(&self, kind: Watched) {
        self.0.send_if_modified(|failing| failing.remove(&kind).is_some());
    }

    /// Marks the views of `store` as stale or current, and sets the gauge `stale`. Never returns.
    pub(super) async fn mark(self, store: Store, stale: Gauge) {
        let mut failing = self.0.subscribe();
        let mut marked: Option<LogTime> = None;
        loop {
            let now = Instant::now();
            self.0.send_if_modified(|failing| {
                let before = failing.len();
                failing.retain(|_, one| one.opened.is_none_or(|opened| now - opened < WORKS_AFTER));
                failing.len() < before
            });
            let known = failing.borrow_and_update().clone();
            let first = known.values().min_by_key(|one| one.since);
            let is_stale = first.is_some_and(|first| now - first.since >= STALE_AFTER);
            match (first, marked) {
                (Some(first), None) if is_stale => {
                    let kinds: Vec<&str> = known.keys().map(|kind| kind.label()).collect();
                    let kinds = kinds.join(", ");
                    tracing::warn!(since = %first.time, kinds, "watches fail, views are stale");
                    marked = Some(first.time);
                    store.set_stale(marked);
                    stale.set(1.0);
                }
                (None, Some(since)) => {
                    tracing::info!(%since, "watches work again, views are current");
                    marked = None;
                    store.set_stale(None);
                    stale.set(0.0);
                }
                _ => {}
            }
            let due = first.filter(|_| marked.is_none()).map(|first| first.since + STALE_AFTER);
            let works = known.values().filter_map(|one| Some(one.opened? + WORKS_AFTER));
            let next = due.into_iter().chain(works).min();
            tokio::select! {
                // Never fails, because the sender is in `self`.
                _ = failing.changed() => {}
                () = sleep_until(next.unwrap_or(now)), if next.is_some() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use metrics::NoopRecorder;
    use tokio_util::task::AbortOnDropHandle;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::model::metrics::Metrics;

    const MOMENT: Duration = Duration::from_millis(10);

    struct Marked {
        freshness: Freshness,
        store: Store,
        _marks: AbortOnDropHandle<()>,
    }

    impl Marked {
        fn new() -> Self {
            let (freshness, store) = (Freshness::default(), Store::new("provider.example.com".to_owned()));
            let stale = Metrics::register(&NoopRecorder).views_stale.clone();
            let marks = TaskTracker::new().spawn(freshness.clone().mark(store.clone(), stale));
            Self { freshness, store, _marks: AbortOnDropHandle::new(marks) }
        }

        async fn is_stale_after(&self, time: Duration) -> bool {
            tokio::time::sleep(time + MOMENT).await;
            self.store.stale_since().is_some()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn views_are_stale_while_a_watch_fails() {
        let marked = Marked::new();
        marked.freshness.failed(Watched::Pods);
        let failed = LogTime::now();
        assert!(!marked.is_stale_after(STALE_AFTER / 2).await);
        marked.freshness.failed(Watched::Services);
        assert!(marked.is_stale_after(STALE_AFTER / 2).await);
        assert!(marked.store.stale_since().is_some_and(|since| since <= failed));
        // One of two is not enough.
        marked.freshness.note_working(Watched::Pods);
        assert!(marked.is_stale_after(10 * STALE_AFTER).await);
        marked.freshness.note_working(Watched::Services);
        assert!(!marked.is_stale_after(Duration::ZERO).await);
    }

    #[tokio::test(start_paused = true)]
    async fn accepted_watch_that_lasts_ends_staleness() {
        let marked = Marked::new();
        marked.freshness.failed(Watched::Pods);
        assert!(marked.is_stale_after(STALE_AFTER).await);
        marked.freshness.opened(Watched::Pods);
        assert!(marked.is_stale_after(Duration::ZERO).await);
        assert!(!marked.is_stale_after(WORKS_AFTER).await);
    }

    #[tokio::test(start_paused = true)]
    async fn watch_that_is_accepted_and_ended_stays_stale() {
        let marked = Marked::new();
        for _ in 0..40 {
            marked.freshness.failed(Watched::Pods);
            tokio::time::sleep(STALE_AFTER / 20).await;
            marked.freshness.opened(Watched::Pods);
            tokio::time::sleep(WORKS_AFTER / 2).await;
        }
        assert!(marked.is_stale_after(Duration::ZERO).await);
        assert!(!marked.is_stale_after(WORKS_AFTER).await);
    }

    #[tokio::test(start_paused = true)]
    async fn brief_failure_leaves_views_current() {
        let marked = Marked::new();
        for _ in 0..5 {
            marked.freshness.failed(Watched::Pods);
            assert!(!marked.is_stale_after(STALE_AFTER / 2).await);
            marked.freshness.opened(Watched::Pods);
            assert!(!marked.is_stale_after(STALE_AFTER).await);
        }
        // A removed definition is no outage.
        marked.freshness.failed(Watched::Hosts);
        assert!(!marked.is_stale_after(10 * STALE_AFTER).await);
    }
}
