//! Idle HTTP/1.1 connections to the provider.

use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Maximum idle connections. Bursts of status requests reuse them; a handshake is cheap for the rest.
const IDLE_MAX: usize = 32;

/// Time for which an idle connection is reused. Shorter than the idle timeout of servers, so that a request
/// rarely meets a connection that the provider is closing: such a request fails, because it is not repeated.
/// The Akash provider allows 3 s for the head of a request; servers built with an older Go count them from
/// the response before.
const REUSE_WITHIN: Duration = Duration::from_secs(2);

/// Time limit for a connection to accept a request. Its task needs a moment after a response; it needs longer
/// only if the provider responded before it had the whole request.
const READY_TIMEOUT: Duration = Duration::from_millis(20);

/// Idle connections. Cloning is cheap.
#[derive(Debug)]
pub(super) struct Pool<B>(Arc<Mutex<Vec<Idle<B>>>>);

#[derive(Debug)]
struct Idle<B> {
    sender: SendRequest<B>,
    since: Instant,
}

// === impl Pool ===

impl<B> Pool<B> {
    /// Returns the connection that was used last, if it accepts a request.
    pub(super) async fn take(&self) -> Option<SendRequest<B>> {
        loop {
            let Idle { mut sender, since } = self.0.lock().pop()?;
            if since.elapsed() > REUSE_WITHIN {
                // The others are older.
                self.0.lock().clear();
                return None;
            }
            if let Ok(Ok(())) = tokio::time::timeout(READY_TIMEOUT, sender.ready()).await {
                return Some(sender);
            }
        }
    }

    /// Keeps a connection whose response was received whole. Drops it, which closes it, if there are too
    /// many.
    pub(super) fn put(&self, sender: SendRequest<B>) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.0.lock();
        idle.retain(|one| !one.sender.is_closed() && one.since.elapsed() <= REUSE_WITHIN);
        if idle.len() < IDLE_MAX {
            idle.push(Idle { sender, since: Instant::now() });
        }
    }
}

impl<B> Clone for Pool<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B> Default for Pool<B> {
    fn default() -> Self {
        Self(Arc::default())
    }
}
