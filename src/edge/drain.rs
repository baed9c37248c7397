//! The end, in phases: no new work; streams end by themselves; a hard deadline; and the log names who held the door.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;

/// Most connections that the log names when they did not end in time.
const NAMED_MAX: usize = 10;

/// The phases of the end, for everything on the edge. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    soft: CancellationToken,
    hard: CancellationToken,
    closed: CancellationToken,
    tasks: TaskTracker,
    beside: TaskTracker,
    doors: Arc<Mutex<OpenConnections>>,
    /// When somebody last asked whether the gateway takes calls.
    asked: Arc<Mutex<Option<Instant>>>,
}

/// Who has something open.
#[derive(Debug, Default)]
struct OpenConnections {
    next: u64,
    open: BTreeMap<u64, Option<SocketAddr>>,
    /// Whether anybody has.
    any: watch::Sender<bool>,
}

/// A connection that holds the door open for as long as it lives.
#[derive(Debug)]
pub struct ConnectionGuard {
    drain: Drain,
    id: u64,
}

// === impl Drain ===

impl Drain {
    /// Asks everything to end by itself.
    pub fn begin(&self) {
        self.soft.cancel();
        self.tasks.close();
    }

    /// Whether that was asked.
    pub fn is_draining(&self) -> bool {
        self.soft.is_cancelled()
    }

    /// Waits until that is asked.
    pub fn draining(&self) -> WaitForCancellationFuture<'_> {
        self.soft.cancelled()
    }

    /// What is cancelled when that is asked; less for a stream to keep than all of this.
    pub fn soft(&self) -> CancellationToken {
        self.soft.clone()
    }

    /// Waits until nobody may wait any longer.
    pub async fn cut(&self) {
        self.hard.cancelled().await;
    }

    /// Notes that somebody asked whether the gateway takes calls: they are to learn of its end before it comes.
    pub fn note_asked(&self) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether somebody asked that so recently.
    pub fn was_asked_within(&self, recently: Duration) -> bool {
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.is_some_and(|asked| asked.elapsed() <= recently)
    }

    /// Runs a task that the end waits for.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Runs a task that goes on through the end, until [`Drain::close`].
    pub fn spawn_beside(&self, task: impl Future<Output = ()> + Send + 'static) {
        let closed = self.closed.clone();
        self.beside.spawn(async move {
            tokio::select! {
                biased;
                () = closed.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// The last step: ends what went on beside.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// Counts a connection as open.
    pub fn door(&self, peer: Option<SocketAddr>) -> ConnectionGuard {
        let mut doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        let id = doors.next;
        doors.next += 1;
        doors.open.insert(id, peer);
        doors.tell();
        ConnectionGuard { drain: self.clone(), id }
    }

    /// Runs what `task` makes whenever a connection is open, and drops it when none is: it need not wake an idle gateway.
    pub async fn while_open<F: Future<Output = ()>>(&self, task: impl Fn() -> F) {
        let mut any = self.doors.lock().unwrap_or_else(PoisonError::into_inner).any.subscribe();
        // The sender is kept as long as this is.
        while any.wait_for(|any| *any).await.is_ok() {
            tokio::select! {
                () = task() => {}
                _ = any.wait_for(|any| !*any) => {}
            }
        }
    }

    /// Waits until everything has ended, at most so long after [`Drain::begin`]; then cuts what has not. Answers whether all
    /// ended by itself.
    pub async fn finish(&self, deadline: Duration) -> bool {
        self.begin();
        if tokio::time::timeout(deadline, self.tasks.wait()).await.is_ok() {
            self.hard.cancel();
            return true;
        }
        {
            let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
            let named: Vec<_> = doors.open.values().flatten().take(NAMED_MAX).collect();
            tracing::warn!(connections = doors.open.len(), first = ?named, ?deadline, "did not end in time, cut off");
        }
        self.hard.cancel();
        self.tasks.wait().await;
        false
    }
}

// === impl Doors ===

impl OpenConnections {
    fn tell(&self) {
        let any = !self.open.is_empty();
        self.any.send_if_modified(|told| std::mem::replace(told, any) != any);
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let mut doors = self.drain.doors.lock().unwrap_or_else(PoisonError::into_inner);
        doors.open.remove(&self.id);
        doors.tell();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_runs_while_a_connection_is_open_wakes_nobody_otherwise() {
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
                let (one, two) = (drain.door(None), drain.door(None));
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
            () = drain.while_open(tick) => panic!("it does not end by itself"),
            () = watch => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_asked_long_ago_need_not_be_waited_for() {
        let drain = Drain::default();
        let recently = Duration::from_secs(60);
        assert!(!drain.was_asked_within(recently));
        drain.note_asked();
        tokio::time::advance(recently).await;
        assert!(drain.was_asked_within(recently));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!drain.was_asked_within(recently));
    }
}
