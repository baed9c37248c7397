//! Every metric: declared, with its meaning and its labels ([`catalogue`]); held by handles; and the guards that keep gauges true.
//!
//! The handles are made once per server from a recorder that is passed in, so several servers in one process do not share
//! them. No label ever names a tenant, lease or service.
//!
//! A new metric is a declaration in the catalogue, a line in one of its groups, and a handle in [`Handles`]. Then
//! `docs/METRICS.md` is printed anew ([`page`]).

use std::marker::PhantomData;
use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram, Recorder};

use super::line::GapCause;
use super::quota::Quota;
use catalogue as all;
pub use declare::{Declaration, Group, LabelSet, LabelValue, Labels, MetricKind, Unit};
pub use labels::{
    ActorEnd, ChainAnswer, ChainQuery, ChainResult, Code, ConnectionEnd, ConnectionRefusal, Handshake,
    Method, PlatformName, ReadKind, Restarted, SourceError, Watched,
};
use register::Registrar;

pub mod catalogue;
pub mod declare;
pub mod labels;
pub mod page;
mod register;

/// The handles to all metrics of one server. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Handles>);

/// The handles behind [`Metrics`].
#[derive(Debug)]
#[expect(missing_docs, reason = "each is told in the catalogue, under its name")]
pub struct Handles {
    pub followers: Gauge,
    pub followers_lagging: Gauge,
    pub lines_in: Counter,
    pub bytes_in: Counter,
    pub frames_encoded: Counter,
    pub lines_delivered: Counter,
    pub bytes_delivered: Counter,
    pub messages_delivered: Counter,
    pub gaps: Family<Counter, GapCause>,
    pub lines_lost: Family<Counter, GapCause>,
    pub bytes_lost: Family<Counter, GapCause>,
    pub delivery_delay: Histogram,
    pub stalled_streams: Counter,

    pub actors: Gauge,
    pub actor_starts: Counter,
    pub actor_ends: Family<Counter, ActorEnd>,
    pub ring_bytes: Gauge,
    pub source_opens: Family<Counter, ReadKind>,
    pub source_errors: Family<Counter, (SourceError, PlatformName)>,
    pub restarts: Family<Counter, Restarted>,
    pub watch_failures: Family<Counter, Watched>,
    pub watch_lists: Family<Counter, Watched>,
    pub views_stale: Gauge,

    pub requests: Family<Counter, (Method, Code)>,
    pub first_answer: Family<Histogram, Method>,
    pub call_duration: Family<Histogram, Method>,
    pub streams: Family<Gauge, Method>,
    pub auth_refusals: ByReason,
    pub quota_refusals: Family<Counter, Quota>,
    pub connections: Gauge,
    pub connections_accepted: Counter,
    pub connections_refused: Family<Counter, ConnectionRefusal>,
    pub connections_closed: Family<Counter, ConnectionEnd>,
    pub handshakes: Family<Counter, Handshake>,
    pub handshake_time: Histogram,
    pub certificate_end: Gauge,
    pub ca_certificate_end: Gauge,

    pub chain_queries: Family<Counter, (ChainQuery, ChainResult)>,
    pub chain_query_time: Histogram,
    pub chain_answers: Family<Counter, ChainAnswer>,
    pub chain_on_grace: Gauge,

    pub process: ProcessHandles,
}

/// What the system tells of the process; set when somebody asks for it. The processor's time is not among them: the counters of
/// this library are whole numbers.
#[derive(Debug)]
#[expect(missing_docs, reason = "each is told in the catalogue, under its name")]
pub struct ProcessHandles {
    pub resident: Gauge,
    pub virtual_memory: Gauge,
    pub open_files: Gauge,
    pub max_files: Gauge,
    pub threads: Gauge,
    pub start_time: Gauge,
}

/// One metric with labels: a handle for each combination of their values.
#[derive(Debug)]
pub struct Family<H, L> {
    handles: Box<[H]>,
    labels: PhantomData<fn(L)>,
}

/// A counter for each reason of a refusal ([`labels::REFUSAL_REASONS`]).
#[derive(Debug)]
pub struct ByReason(Box<[Counter]>);

/// Adds one to a gauge for as long as it lives.
#[must_use]
pub struct GaugeGuard(Gauge);

// === impl Metrics ===

impl Metrics {
    /// Registers every metric with `recorder`.
    pub fn register(recorder: &dyn Recorder) -> Self {
        let register = Registrar(recorder);
        register.info(
            &all::BUILD_INFO,
            &[env!("CARGO_PKG_VERSION"), env!("LEASEMUX_COMMIT"), env!("LEASEMUX_RUSTC")],
        );
        register.describe(&all::PROCESS_CPU);
        Self(Arc::new(Handles {
            followers: register.gauge(&all::FOLLOWERS),
            followers_lagging: register.gauge(&all::FOLLOWERS_LAGGING),
            lines_in: register.counter(&all::LINES_IN),
            bytes_in: register.counter(&all::BYTES_IN),
            frames_encoded: register.counter(&all::FRAMES_ENCODED),
            lines_delivered: register.counter(&all::LINES_DELIVERED),
            bytes_delivered: register.counter(&all::BYTES_DELIVERED),
            messages_delivered: register.counter(&all::MESSAGES_DELIVERED),
            gaps: register.counters(&all::GAPS),
            lines_lost: register.counters(&all::LINES_LOST),
            bytes_lost: register.counters(&all::BYTES_LOST),
            delivery_delay: register.histogram(&all::DELIVERY_DELAY),
            stalled_streams: register.counter(&all::STALLED_STREAMS),
            actors: register.gauge(&all::ACTORS),
            actor_starts: register.counter(&all::ACTOR_STARTS),
            actor_ends: register.counters(&all::ACTOR_ENDS),
            ring_bytes: register.gauge(&all::RING_BYTES),
            source_opens: register.counters(&all::SOURCE_OPENS),
            source_errors: register.counters(&all::SOURCE_ERRORS),
            restarts: register.counters(&all::RESTARTS),
            watch_failures: register.counters(&all::WATCH_FAILURES),
            watch_lists: register.counters(&all::WATCH_LISTS),
            views_stale: register.gauge(&all::VIEWS_STALE),
            requests: register.counters(&all::REQUESTS),
            first_answer: register.histograms(&all::FIRST_ANSWER),
            call_duration: register.histograms(&all::CALL_DURATION),
            streams: register.gauges(&all::STREAMS),
            auth_refusals: ByReason(register.each(&all::AUTH_REFUSALS, Registrar::one_counter)),
            quota_refusals: register.counters(&all::QUOTA_REFUSALS),
            connections: register.gauge(&all::CONNECTIONS),
            connections_accepted: register.counter(&all::CONNECTIONS_ACCEPTED),
            connections_refused: register.counters(&all::CONNECTIONS_REFUSED),
            connections_closed: register.counters(&all::CONNECTIONS_CLOSED),
            handshakes: register.counters(&all::HANDSHAKES),
            handshake_time: register.histogram(&all::HANDSHAKE_TIME),
            certificate_end: register.gauge(&all::CERTIFICATE_END),
            ca_certificate_end: register.gauge(&all::CA_CERTIFICATE_END),
            chain_queries: register.counters(&all::CHAIN_QUERIES),
            chain_query_time: register.histogram(&all::CHAIN_QUERY_TIME),
            chain_answers: register.counters(&all::CHAIN_ANSWERS),
            chain_on_grace: register.gauge(&all::CHAIN_ON_GRACE),
            process: ProcessHandles {
                resident: register.gauge(&all::PROCESS_RESIDENT),
                virtual_memory: register.gauge(&all::PROCESS_VIRTUAL),
                open_files: register.gauge(&all::PROCESS_OPEN_FILES),
                max_files: register.gauge(&all::PROCESS_MAX_FILES),
                threads: register.gauge(&all::PROCESS_THREADS),
                start_time: register.gauge(&all::PROCESS_START),
            },
        }))
    }
}

impl std::ops::Deref for Metrics {
    type Target = Handles;

    fn deref(&self) -> &Handles {
        &self.0
    }
}

// === impl Family ===

impl<H, L: Labels> Family<H, L> {
    fn new(handles: Box<[H]>) -> Self {
        Self { handles, labels: PhantomData }
    }

    /// The handle of these labels' series.
    pub fn of(&self, labels: L) -> &H {
        // There is one for each combination: `Registrar::each` goes through the same sets.
        &self.handles[labels.index()]
    }
}

// === impl ByReason ===

impl ByReason {
    /// Counts a refusal for this reason. One that is not declared, which a test forbids, is not counted.
    pub fn count(&self, reason: &str) {
        let index = labels::REFUSAL_REASONS.values.iter().position(|known| *known == reason);
        if let Some(counter) = index.and_then(|index| self.0.get(index)) {
            counter.increment(1);
        }
    }
}

// === impl GaugeGuard ===

impl GaugeGuard {
    /// Counts until the guard is dropped.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

impl std::fmt::Debug for GaugeGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GaugeGuard")
    }
}
