//! The limit of spliced connections and tunnels together.

use std::sync::Arc;

use metrics::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::metrics::GaugeGuard;

/// Maximum spliced connections and tunnels. Each has two buffers of 16 KiB, so all have 32 MiB.
pub(crate) const TUNNELS_MAX: usize = 1_024;

/// Limits spliced connections and tunnels. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct TunnelLimiter {
    permits: Arc<Semaphore>,
    open: Gauge,
}

/// Allows one spliced connection or tunnel, until it is dropped.
#[derive(Debug)]
pub(crate) struct TunnelPermit {
    _permit: OwnedSemaphorePermit,
    _open: GaugeGuard,
}

impl TunnelLimiter {
    /// Creates a limiter of at most `max` permits ([`TUNNELS_MAX`] but in tests). `open` counts them.
    pub(crate) fn new(max: usize, open: Gauge) -> Self {
        Self { permits: Arc::new(Semaphore::new(max)), open }
    }

    /// Returns a permit, if one is free.
    pub(crate) fn try_acquire(&self) -> Option<TunnelPermit> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        Some(TunnelPermit { _permit: permit, _open: GaugeGuard::new(&self.open) })
    }
}
