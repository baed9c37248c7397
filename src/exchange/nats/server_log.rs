//! Log lines about a connection, few enough for an outage of hours.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::Server;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::exchange::bus::Channel;

/// How often an error that stays the same is logged.
const REPEAT_AFTER: Duration = Duration::from_secs(60);

/// Minimum delay before another error of the same kind: several servers may fail in turn, and each replica
/// has subjects of its own.
const CHANGE_AFTER: Duration = Duration::from_secs(5);

/// Logs the events of one connection. The library also logs, which the program's filter turns off.
#[derive(Debug)]
pub(super) struct ServerLog {
    channel: Channel,
    /// The newest line of each kind.
    logged: Mutex<BTreeMap<Kind, (Instant, String)>>,
    /// The kind of error of the newest attempt to connect.
    failure: Mutex<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Attempt,
    Server,
    Stalled,
    Version,
}

// === impl ServerLog ===

impl ServerLog {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel, logged: Mutex::default(), failure: Mutex::default() }
    }

    pub(super) fn connected(&self) {
        self.logged.lock().remove(&Kind::Attempt);
        self.failure.lock().clear();
        tracing::info!(channel = ?self.channel, "connected to NATS");
    }

    pub(super) fn disconnected(&self) {
        tracing::warn!(channel = ?self.channel, "lost connection to NATS");
    }

    /// Remembers the kind of error of an attempt to connect.
    pub(super) fn failed_attempt(&self, error: &str) {
        error.clone_into(&mut self.failure.lock());
    }

    /// Logs the errors of earlier attempts to connect. `servers` has those of each.
    pub(super) fn attempt(&self, servers: &[Server]) {
        let failed = servers.iter().filter_map(|server| {
            let url = server.addr.as_url_str();
            server.last_error.as_ref().map(|error| format!("{url}: {error}"))
        });
        let mut errors: Vec<String> = failed.collect();
        // It is random otherwise.
        errors.sort_unstable();
        if errors.is_empty() {
            errors.extend(Some(self.failure.lock().clone()).filter(|failure| !failure.is_empty()));
        }
        let error = errors.join(", ");
        if !error.is_empty() && self.is_due(Kind::Attempt, &error) {
            tracing::warn!(channel = ?self.channel, error, "failed to connect to NATS; retrying");
        }
    }

    /// Logs an error that the server has reported, such as a missing permission.
    pub(super) fn server_error(&self, error: &str) {
        if self.is_due(Kind::Server, error) {
            tracing::warn!(channel = ?self.channel, error, "NATS server reported an error");
        }
    }

    pub(super) fn stalled(&self) {
        if self.is_due(Kind::Stalled, "") {
            tracing::warn!(channel = ?self.channel, "NATS server takes no messages; dropping them");
        }
    }

    pub(super) fn old_version(&self, version: &str) {
        if self.is_due(Kind::Version, version) {
            tracing::warn!(
                version,
                "NATS server is older than 2.10.26; a gateway that halts can delay all others"
            );
        }
    }

    fn is_due(&self, kind: Kind, text: &str) -> bool {
        let mut logged = self.logged.lock();
        let now = Instant::now();
        let is_due = logged.get(&kind).is_none_or(|(at, last)| {
            let wait = if last == text { REPEAT_AFTER } else { CHANGE_AFTER };
            now.duration_since(*at) >= wait
        });
        if is_due {
            logged.insert(kind, (now, text.to_owned()));
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn repeated_error_is_logged_once_a_minute() {
        let log = ServerLog::new(Channel::Control);
        let due = |text| log.is_due(Kind::Server, text);
        assert!(due("a") && !due("a") && !due("b") && log.is_due(Kind::Attempt, "a"));
        advance(CHANGE_AFTER).await;
        assert!(!due("a") && due("b") && !due("b"));
        advance(REPEAT_AFTER).await;
        assert!(due("b"));
    }
}
