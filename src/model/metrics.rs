//! Metrics: their declarations ([`catalogue`]) and the handles that the code counts with.
//!
//! Each server registers its own handles with a recorder that it passes in, so servers in one process do not
//! share counts. No label names a tenant, a lease or a service.
//!
//! A new metric is one entry in the catalogue. Then update docs/METRICS.md:
//! `UPDATE_DOCS=1 cargo test made_from_the_code`.

use std::sync::Arc;

use metrics::{Gauge, Recorder};

pub use super::label::{LabelSet, LabelValue, Labels};
pub use catalogue::Handles;
pub use declare::{Declaration, Group, MetricKind, Unit};
pub(crate) use labels::{
    ActorEnd, CanaryDisconnect, CanaryLossCause, ChainAnswerOrigin, ChainQuery, ChainResult, Code,
    ConnectionRejection, EventOrigin, EventWatchFailure, FleetDirection, FleetElection, FleetNoticed,
    FleetRejection, FleetRepair, FleetRole, ForwardedMethod, Handshake, Method, PlatformName,
    PublishedMethod, ReadKind, RefillStart, RestartResult, RouteTemplate, SpanLoss, UpstreamFailure,
    WebsocketEnd,
};
pub use labels::{ConnectionEnd, FilterSpelling, SourceError, StreamKind};

pub mod canary;
pub mod catalogue;
pub(crate) mod declare;
mod handle;
pub mod labels;

/// The handles to all metrics of one server. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Handles>);

/// Adds one to a gauge until it is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct GaugeGuard(Gauge);

impl Metrics {
    /// Registers every series with `recorder`, at zero, so that all exist from the first scrape on.
    pub fn register(recorder: &dyn Recorder) -> Self {
        let handles = Handles::register(recorder);
        handles.build_info.0.set(1.0);
        Self(Arc::new(handles))
    }
}

impl std::ops::Deref for Metrics {
    type Target = Handles;

    fn deref(&self) -> &Handles {
        &self.0
    }
}

// === impl GaugeGuard ===

impl GaugeGuard {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
