//! Graceful shutdown: no new work, streams end by themselves, and a deadline after which the rest is cut.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;

/// Most open connections that the log names at the deadline.
const NAMED_MAX: usize = 10;

/// The phases of shutdown, and the tasks of the network side. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    pub(super) draining: CancellationToken,
    deadline: CancellationToken,
    closed: CancellationToken,
    tasks: TaskTracker,
    background: TaskTracker,
    connections: Arc<Mutex<OpenConnections>>,
    /// When a client last polled readiness.
    last_poll: Arc<Mutex<Option<Instant>>>,
}

/// The open connections and their peers.
#[derive(Debug, Default)]
struct OpenConnections {
    next_id: u64,
    open: BTreeMap<u64, Option<SocketAddr>>,
    /// Whether `open` has entries.
    any: watch::Sender<bool>,
}

/// Counts a connection as open. Released on drop.
#[derive(Debug)]
pub(super) struct ConnectionGuard {
    drain: Drain,
    id: u64,
}

// === impl Drain ===

impl Drain {
    /// Starts draining: asks all tasks to end by themselves.
    pub fn begin(&self) {
        self.draining.cancel();
        self.tasks.close();
    }

    /// Returns whether draining has started.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Waits until draining starts. Cancel safe.
    pub(super) fn draining(&self) -> WaitForCancellationFuture<'_> {
        self.draining.cancelled()
    }

    /// Waits until the deadline has passed, or all tasks have ended. Cancel safe.
    pub(super) async fn deadline(&self) {
        self.deadline.cancelled().await;
    }

    /// Records that a client polled readiness. It needs time to notice a shutdown.
    pub(super) fn note_readiness_poll(&self) {
        *self.last_poll.lock() = Some(Instant::now());
    }

    /// Returns whether a client polled readiness within `period`.
    pub(crate) fn was_polled_within(&self, period: Duration) -> bool {
        self.last_poll.lock().is_some_and(|polled| polled.elapsed() <= period)
    }

    /// Runs a task that [`Drain::finish`] waits for.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Runs a task until [`Drain::close`]. [`Drain::finish`] does not wait for it.
    pub fn spawn_background(&self, task: impl Future<Output = ()> + Send + 'static) {
        let closed = self.closed.clone();
        self.background.spawn(async move {
            tokio::select! {
                biased;
                () = closed.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Ends the background tasks: the last step of shutdown.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// Counts a connection as open.
    pub(super) fn track_connection(&self, peer: Option<SocketAddr>) -> ConnectionGuard {
        let mut connections = self.connections.lock();
        let id = connections.next_id;
        connections.next_id += 1;
        connections.open.insert(id, peer);
        connections.notify();
        ConnectionGuard { drain: self.clone(), id }
    }

    /// Runs the future that `task` creates while at least one connection is open, and drops it otherwise. A
    /// periodic task then does not wake an idle gateway.
    pub(crate) async fn while_open<F: Future<Output = ()>>(&self, task: impl Fn() -> F) {
        let mut any = self.connections.lock().any.subscribe();
        // Fails only when the sender is dropped, and `self` keeps it.
        while any.wait_for(|any| *any).await.is_ok() {
            tokio::select! {
                () = task() => {}
                _ = any.wait_for(|any| !*any) => {}
            }
        }
    }

    /// Drains, and waits until all tasks have ended. After `deadline` cuts the rest. Returns whether all
    /// ended in time.
    pub async fn finish(&self, deadline: Duration) -> bool {
        self.begin();
        if tokio::time::timeout(deadline, self.tasks.wait()).await.is_ok() {
            self.deadline.cancel();
            return true;
        }
        {
            let connections = self.connections.lock();
            let first: Vec<_> = connections.open.values().flatten().take(NAMED_MAX).collect();
            let count = connections.open.len();
            tracing::warn!(
                connections = count,
                ?first,
                ?deadline,
                "drain deadline passed, cutting connections"
            );
        }
        self.deadline.cancel();
        self.tasks.wait().await;
        false
    }
}

// === impl OpenConnections ===

impl OpenConnections {
    fn notify(&self) {
        let any = !self.open.is_empty();
        self.any.send_if_modified(|before| std::mem::replace(before, any) != any);
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let mut connections = self.drain.connections.lock();
        connections.open.remove(&self.id);
        connections.notify();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn while_open_runs_only_with_open_connections() {
        let drain = Drain::default();
        let ticks = AtomicUsize::new(0);
        let tick = || async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                ticks.fetch_add(1, Ordering::Relaxed);
            }
        };
        let watch = async {
            let counted = || ticks.load(Ordering::Relaxed);
            let pass = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
            pass(100).await;
            assert_eq!(counted(), 0);
            for before in [0, 10] {
                let (one, two) = (drain.track_connection(None), drain.track_connection(None));
                tokio::time::sleep(Duration::from_millis(5500)).await;
                drop(one);
                assert_eq!(counted(), before + 5);
                pass(5).await;
                drop(two);
                pass(100).await;
                assert_eq!(counted(), before + 10);
            }
        };
        tokio::select! {
            () = drain.while_open(tick) => panic!("it must not end by itself"),
            () = watch => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn readiness_poll_expires() {
        let drain = Drain::default();
        let period = Duration::from_secs(60);
        assert!(!drain.was_polled_within(period));
        drain.note_readiness_poll();
        tokio::time::advance(period).await;
        assert!(drain.was_polled_within(period));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!drain.was_polled_within(period));
    }
}
