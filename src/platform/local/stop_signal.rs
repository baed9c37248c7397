//! What ends a run, or the wait for the next one, early: the platform's end, or a restart of this replica.

use std::time::Duration;

use tokio::sync::watch;

/// What one replica listens to.
#[derive(Debug)]
pub(super) struct StopSignal {
    /// Set once the platform stops: runs are ended within this grace. May be set again, to less.
    platform: watch::Receiver<Option<Duration>>,
    /// The number of the newest run that is to make way for the next.
    restart: watch::Receiver<Option<u32>>,
    /// How long a run may take to make way.
    grace: Duration,
}

/// That a run is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// By itself, within this.
    pub(super) grace: Duration,
    /// What it will be said to have ended of.
    pub(super) reason: &'static str,
}

// === impl Stop ===

impl StopSignal {
    pub(super) fn new(
        platform: watch::Receiver<Option<Duration>>,
        restart: watch::Receiver<Option<u32>>,
        grace: Duration,
    ) -> Self {
        Self { platform, restart, grace }
    }

    /// Whether no run will follow.
    pub(super) fn is_final(&self) -> bool {
        self.platform.borrow().is_some()
    }

    /// Whether run `number` is to make way for the next.
    pub(super) fn makes_way(&self, number: u32) -> bool {
        *self.restart.borrow() >= Some(number)
    }

    /// Waits until run `number` is to end (again). Nothing is lost if it is cancelled.
    pub(super) async fn asked(&mut self, number: u32) -> Asked {
        loop {
            let platform = tokio::select! {
                biased;
                () = changed(&mut self.platform) => true,
                () = changed(&mut self.restart) => false,
            };
            if let Some(grace) = *self.platform.borrow() {
                if platform {
                    return Asked { grace, reason: "GatewayStopped" };
                }
            } else if self.makes_way(number) {
                return Asked { grace: self.grace, reason: "Restarted" };
            }
        }
    }

    /// Waits until the run that follows run `number` need not be waited for: it is to begin at once, or there will be none.
    pub(super) async fn asked_to_make_way(&mut self, number: u32) {
        tokio::select! {
            _ = self.platform.wait_for(Option::is_some) => {}
            _ = self.restart.wait_for(|newest| *newest >= Some(number)) => {}
        }
    }
}

async fn changed<T>(order: &mut watch::Receiver<T>) {
    if order.changed().await.is_err() {
        // The platform is dropped: its tasks are about to be.
        std::future::pending::<()>().await;
    }
}
