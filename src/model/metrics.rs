//! Every metric: its name, its help text, its labels; and the guards that keep gauges true.
//!
//! The handles are made once per server from a recorder that is passed in, so several servers in one process do not share
//! them. No label ever names a tenant, lease or service.

use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, Unit};

use super::line::GapCause;

/// Upper bounds of the buckets of the delivery delay, in seconds: from the pace of a lone line to a follower that is close to
/// being dropped.
pub const DELAY_BUCKETS_SECONDS: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// Name of the histogram that [`DELAY_BUCKETS_SECONDS`] belongs to.
pub const DELAY_NAME: &str = "leasemux_delivery_delay_seconds";

/// Whether lines were read for all followers of a replica, or for one who asked for older ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// The one live tail of a replica.
    Live,
    /// One follower's own read.
    History,
}

/// The handles to all metrics of one server. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Handles>);

/// The handles behind [`Metrics`].
#[derive(Debug)]
#[expect(missing_docs, reason = "each has its help text where it is registered, below")]
pub struct Handles {
    pub followers: Gauge,
    pub streams: Gauge,
    pub actors: Gauge,
    pub ring_bytes: Gauge,
    pub connections: Gauge,
    pub source_opens: [Counter; 2],
    pub source_errors: Counter,
    pub lines_in: Counter,
    pub bytes_in: Counter,
    pub frames_encoded: Counter,
    pub lines_delivered: Counter,
    pub bytes_delivered: Counter,
    pub messages_delivered: Counter,
    pub gaps: [Counter; GapCause::ALL.len()],
    pub lines_lost: [Counter; GapCause::ALL.len()],
    pub bytes_lost: [Counter; GapCause::ALL.len()],
    pub stalled_streams: Counter,
    pub delivery_delay: Histogram,
}

/// Adds one to a gauge for as long as it lives.
#[must_use]
pub struct GaugeGuard(Gauge);

// === impl Read ===

impl Read {
    /// Both, in the order of [`Read::index`].
    pub const ALL: [Self; 2] = [Self::Live, Self::History];

    /// The metric label's value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::History => "history",
        }
    }

    /// Index into an array over [`Read::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

// === impl Metrics ===

impl Metrics {
    /// Registers every metric with `recorder`.
    pub fn register(recorder: &dyn Recorder) -> Self {
        let register = Registrar(recorder);
        Self(Arc::new(Handles {
            followers: register.gauge(
                "leasemux_followers",
                "Replicas being followed now, counted once for each stream that follows them",
            ),
            streams: register.gauge("leasemux_streams", "Log streams open now"),
            actors: register.gauge("leasemux_actors", "Replica actors running now"),
            ring_bytes: register.gauge("leasemux_ring_bytes", "Bytes held in the rings of all actors"),
            connections: register.gauge("leasemux_connections", "Connections open now"),
            source_opens: register.counters(
                "leasemux_source_opens_total",
                "Logs opened at the platform: a live tail for each run that an actor reads (and again after a failure), and history reads for who asks for older lines",
                "read",
                Read::ALL.map(Read::label),
            ),
            source_errors: register
                .counter("leasemux_source_errors_total", "Errors while opening or reading logs at the platform"),
            lines_in: register.counter("leasemux_lines_in_total", "Lines read by live tails"),
            bytes_in: register.counter("leasemux_bytes_in_total", "Log bytes read by live tails"),
            frames_encoded: register.counter(
                "leasemux_frames_encoded_total",
                "Messages encoded by actors, each once per representation however many follow",
            ),
            lines_delivered: register
                .counter("leasemux_lines_delivered_total", "Lines handed to HTTP/2, counted for each stream"),
            bytes_delivered: register
                .counter("leasemux_bytes_delivered_total", "Log bytes handed to HTTP/2, counted for each stream"),
            messages_delivered: register
                .counter("leasemux_messages_delivered_total", "Messages handed to HTTP/2, counted for each stream"),
            gaps: register.by_cause("leasemux_gaps_total", "Gap entries sent to followers"),
            lines_lost: register.by_cause("leasemux_lines_lost_total", "Lines reported to followers as missing"),
            bytes_lost: register.by_cause("leasemux_bytes_lost_total", "Log bytes reported to followers as missing"),
            stalled_streams: register.counter(
                "leasemux_stalled_streams_total",
                "Streams reset because their peer took nothing for too long",
            ),
            delivery_delay: register.histogram(
                DELAY_NAME,
                "Time from reading a line to handing it to HTTP/2, in seconds; the oldest line of each hand-over",
            ),
        }))
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

/// Says the same few things for each metric.
struct Registrar<'a>(&'a dyn Recorder);

const METADATA: Metadata<'static> = Metadata::new("leasemux", Level::INFO, Some(module_path!()));

impl Registrar<'_> {
    fn unit(name: &str) -> Option<Unit> {
        if name.contains("_bytes") {
            Some(Unit::Bytes)
        } else if name.ends_with("_seconds") {
            Some(Unit::Seconds)
        } else {
            None
        }
    }

    fn gauge(&self, name: &'static str, help: &'static str) -> Gauge {
        self.0.describe_gauge(KeyName::from_const_str(name), Self::unit(name), help.into());
        let gauge = self.0.register_gauge(&Key::from_static_name(name), &METADATA);
        gauge.set(0.0);
        gauge
    }

    fn counter(&self, name: &'static str, help: &'static str) -> Counter {
        self.0.describe_counter(KeyName::from_const_str(name), Self::unit(name), help.into());
        let counter = self.0.register_counter(&Key::from_static_name(name), &METADATA);
        counter.increment(0);
        counter
    }

    fn counters<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        label: &'static str,
        values: [&'static str; N],
    ) -> [Counter; N] {
        self.0.describe_counter(KeyName::from_const_str(name), Self::unit(name), help.into());
        values.map(|value| {
            let key = Key::from_parts(name, vec![Label::from_static_parts(label, value)]);
            let counter = self.0.register_counter(&key, &METADATA);
            counter.increment(0);
            counter
        })
    }

    fn by_cause(&self, name: &'static str, help: &'static str) -> [Counter; GapCause::ALL.len()] {
        self.counters(name, help, "cause", GapCause::ALL.map(GapCause::label))
    }

    fn histogram(&self, name: &'static str, help: &'static str) -> Histogram {
        self.0.describe_histogram(KeyName::from_const_str(name), Self::unit(name), help.into());
        self.0.register_histogram(&Key::from_static_name(name), &METADATA)
    }
}
