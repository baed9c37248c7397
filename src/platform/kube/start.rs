//! Waits for the cluster at the start, and logs why.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::namespace::ObjectKind;
use crate::platform::Error;

/// Pause before the next attempt. Short, so that a gateway is ready soon after the API server.
const RETRY: Duration = Duration::from_secs(2);

/// Longest wait for a response at the start. The requests are small, and a server that accepts connections
/// and never responds would otherwise be waited for silently.
pub(super) const RESPONSE_MAX: Duration = Duration::from_secs(30);

/// Interval of log messages that name the kinds still being listed: soon enough for a person who waits.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Failures in a row to reach the API server.
#[derive(Debug)]
pub(super) struct StartWait<'a> {
    server: &'a str,
    failures: u32,
}

// === impl StartWait ===

impl<'a> StartWait<'a> {
    pub(super) const fn new(server: &'a str) -> Self {
        Self { server, failures: 0 }
    }

    /// Waits before the next attempt. Logs the failures 1, 2, 4, 8 and so on.
    pub(super) async fn after(&mut self, error: &str) {
        self.failures = self.failures.saturating_add(1);
        if self.failures.is_power_of_two() {
            let (server, failures) = (self.server, self.failures);
            tracing::warn!(server, failures, error, "failed to reach the API server, retrying");
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The error of a server that does not respond within [`RESPONSE_MAX`].
pub(super) fn no_response() -> String {
    format!("no response within {RESPONSE_MAX:?}")
}

/// Waits until all of `needed` are listed.
///
/// # Errors
/// [`Error::Broken`] if the watches have ended.
pub(super) async fn listed(
    listed: &mut watch::Receiver<BTreeSet<ObjectKind>>,
    needed: &BTreeSet<ObjectKind>,
) -> Result<(), Error> {
    let began = Instant::now();
    loop {
        let all = async { listed.wait_for(|listed| needed.is_subset(listed)).await.map(drop) };
        if let Ok(ended) = tokio::time::timeout(PROGRESS_EVERY, all).await {
            return ended.map_err(|_| Error::Broken("the watches ended".to_owned()));
        }
        let listed = listed.borrow().clone();
        let missing: Vec<&str> = needed.difference(&listed).map(|kind| kind.plural()).collect();
        tracing::info!(
            waiting_for = missing.join(", "),
            waited = ?began.elapsed(),
            "still listing the cluster"
        );
    }
}
