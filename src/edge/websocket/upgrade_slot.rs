//! Hands a connection over after the answer to a request for an upgrade.

use std::future::Future;
use std::sync::Arc;

use futures_core::future::BoxFuture;
use parking_lot::Mutex;

/// The task that follows the last request of a connection: a websocket or a tunnel. It runs as a part of the
/// connection, so that the connection's permits are held as long as it runs.
#[derive(Clone, Default)]
pub(crate) struct UpgradeSlot(Arc<Mutex<Option<BoxFuture<'static, ()>>>>);

// === impl UpgradeSlot ===

impl UpgradeSlot {
    /// Sets the task that takes the connection over after the response was sent.
    pub(crate) fn set(&self, task: impl Future<Output = ()> + Send + 'static) {
        *self.0.lock() = Some(Box::pin(task));
    }

    /// Takes the task. Called when HTTP has ended.
    pub(crate) fn take(&self) -> Option<BoxFuture<'static, ()>> {
        self.0.lock().take()
    }
}
