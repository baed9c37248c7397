//! How long a connection has had nothing to do.

use std::time::Duration;

use tokio::sync::watch;

/// Counts the open streams of one connection. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub(super) struct StreamCount(watch::Sender<usize>);

/// A stream that is open for as long as it lives.
#[derive(Debug)]
pub(super) struct Open(StreamCount);

// === impl StreamCount ===

impl StreamCount {
    /// One more stream.
    pub(super) fn open(&self) -> Open {
        self.0.send_modify(|open| *open += 1);
        Open(self.clone())
    }

    /// Waits until no stream was open for `time`; a stream that was open for a moment is noticed too.
    pub(super) async fn idle(&self, time: Duration) {
        let mut open = self.0.subscribe();
        loop {
            // The sender lives as long as `self`, so that a change is all that can be told.
            if *open.borrow_and_update() > 0 {
                let _ = open.changed().await;
            } else if tokio::time::timeout(time, open.changed()).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.send_modify(|open| *open -= 1);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn idle_is_who_has_had_nothing_open_for_so_long() {
        let activity = StreamCount::default();
        let began = Instant::now();
        activity.idle(10 * SECOND).await;
        assert_eq!(began.elapsed(), 10 * SECOND);

        let calls = async {
            for _ in 0..5 {
                tokio::time::sleep(9 * SECOND).await;
                // Over before anybody could look.
                drop(activity.open());
            }
            let long = activity.open();
            tokio::time::sleep(100 * SECOND).await;
            drop(long);
        };
        let began = Instant::now();
        tokio::join!(activity.idle(10 * SECOND), calls);
        assert_eq!(began.elapsed(), (45 + 100 + 10) * SECOND);
    }
}
