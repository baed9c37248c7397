//! The metrics of one server, and their Prometheus export.

use std::fmt::Write as _;
use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use super::followers::Followers;
use crate::model::metrics::{MetricKind, Metrics, catalogue};
use crate::sys::process::{self, Usage};

/// How often samples are moved into buckets, so that they do not pile up when nothing scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The metrics of one server. Cloning is cheap.
#[derive(Clone)]
pub struct Exporter {
    /// The metrics.
    pub metrics: Metrics,
    /// Source of the number of lagging followers.
    pub followers: Followers,
    handle: PrometheusHandle,
}

// === impl Exporter ===

impl Exporter {
    /// Registers all metrics, at zero.
    ///
    /// # Errors
    /// The buckets of a histogram are empty, which they are not.
    pub fn new() -> Result<Self, BuildError> {
        let mut builder = PrometheusBuilder::new();
        for metric in catalogue::each() {
            if let MetricKind::Histogram(bounds) = metric.kind {
                builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), bounds)?;
            }
        }
        let recorder = builder.build_recorder();
        let metrics = Metrics::register(&recorder);
        Ok(Self { metrics, followers: Followers::default(), handle: recorder.handle() })
    }

    /// Returns all metrics in Prometheus' text format. Looks up those that are not counted.
    pub fn render(&self) -> String {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        self.metrics.followers_lagging.set(self.followers.lagging(0).total as f64);
        let usage = process::usage().ok();
        if let Some(usage) = &usage {
            self.set_process(usage);
        }
        let mut text = self.handle.render();
        if let Some(usage) = usage {
            let metric = &self.metrics.process_cpu.0;
            let (name, help, kind) = (metric.name, metric.help, metric.kind.word());
            // Writing to a string cannot fail.
            let _ =
                writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {}", usage.cpu_seconds);
        }
        text
    }

    /// Moves samples into buckets while it is polled. There are samples only while streams are open.
    pub async fn upkeep(&self) {
        let mut tick = tokio::time::interval(UPKEEP_INTERVAL);
        loop {
            tick.tick().await;
            self.handle.run_upkeep();
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "far below 2^52, or close to infinite")]
    fn set_process(&self, usage: &Usage) {
        let metrics = &self.metrics;
        metrics.process_resident.set(usage.resident_bytes as f64);
        metrics.process_virtual.set(usage.virtual_bytes as f64);
        metrics.process_open_files.set(usage.open_files as f64);
        metrics.process_max_files.set(usage.max_files.map_or(f64::INFINITY, |max| max as f64));
        metrics.process_threads.set(usage.threads as f64);
        metrics.process_start.set(usage.started_seconds);
    }
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exporter")
    }
}
