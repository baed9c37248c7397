//! The declaration of a metric: enough to register it, to generate `docs/METRICS.md`, and to check dashboard
//! and alerts.

use crate::model::label::LabelSet;

/// One metric, as it is declared.
#[derive(Clone, Copy, Debug)]
pub struct Declaration {
    /// Its name, by Prometheus' conventions: base units, `_total` for counters.
    pub name: &'static str,
    /// Whether it counts, shows a current value or collects samples.
    pub kind: MetricKind,
    /// The unit of its value.
    pub unit: Unit,
    /// Its labels, in the order in which they are written.
    pub labels: &'static [LabelSet],
    /// What it measures: one sentence without a full stop. Part of `/metrics`.
    pub help: &'static str,
    /// When an operator should look closer. Part of the generated page only.
    pub alert_hint: &'static str,
}

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MetricKind {
    /// A sum that only grows, until the process restarts.
    Counter,
    /// A value that rises and falls.
    Gauge,
    /// Samples, counted in buckets with these upper bounds.
    Histogram(&'static [f64]),
}

/// The unit of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A number of things; the metric's name says which.
    Count,
    /// A size, or an amount of data, in bytes.
    Bytes,
    /// A duration, or a time since the Unix epoch, in seconds.
    Seconds,
    /// None: the value is always 1, and the labels have the information.
    Info,
}

/// A section of the generated page.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Its heading on the page.
    pub title: &'static str,
    /// A sentence or two of introduction.
    pub about: &'static str,
    /// Its metrics, in their order on the page.
    pub metrics: &'static [Declaration],
}

// === impl MetricKind ===

impl MetricKind {
    /// Returns Prometheus' word for the type.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}
