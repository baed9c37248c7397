//! Waiting for the cluster at the start, with the reason in the log.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::store::ObjectKind;
use super::watches::watched;
use crate::model::metrics::LabelValue;
use crate::model::metrics::labels::Watched;
use crate::platform::Error;

/// Pause before the API server is asked again: a gateway is ready soon after the server is.
const RETRY: Duration = Duration::from_secs(2);

/// An answer must be there within this. The questions are small, and a server that accepts connections and never answers would be
/// waited for without a word.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(30);

/// How often the log names the kinds that are still being listed: soon enough for a person who waits for readiness.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Failures in a row to reach the API server.
#[derive(Debug)]
pub(super) struct StartWait<'a> {
    /// The address.
    server: &'a str,
    failures: u32,
}

// === impl StartWait ===

impl<'a> StartWait<'a> {
    pub(super) const fn new(server: &'a str) -> Self {
        Self { server, failures: 0 }
    }

    /// Waits before the next attempt. The log says why, after the failures 1, 2, 4, 8 and so on.
    pub(super) async fn after(&mut self, error: &str) {
        self.failures = self.failures.saturating_add(1);
        if self.failures.is_power_of_two() {
            let (server, failures) = (self.server, self.failures);
            tracing::warn!(server, failures, error, "failed to reach the API server, will try again");
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// What is wrong with a server that does not answer within [`ANSWER_MAX`].
pub(super) fn no_answer() -> String {
    format!("no answer within {ANSWER_MAX:?}")
}

/// Waits until all of `needed` were listed.
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
        let missing: Vec<&str> = needed.difference(&listed).map(|kind| name(*kind)).collect();
        tracing::info!(
            waiting_for = missing.join(", "),
            waited = ?began.elapsed(),
            "still listing the cluster"
        );
    }
}

/// How the API, and a metric, call a kind.
fn name(kind: ObjectKind) -> &'static str {
    let kind = watched(kind);
    <Watched as LabelValue>::SET.values.get(kind.index()).copied().unwrap_or_default()
}
