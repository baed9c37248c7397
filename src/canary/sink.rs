//! Receives the entries of a canary: keeps the account, exports it as metrics and logs what is wrong.

use std::io;
use std::time::Duration;

use tokio::time::Instant;

use super::account::{Account, Event, Now, ReplicaKey, Totals};
use crate::client::error::CallError;
use crate::client::exit::Exit;
use crate::client::follow::{ConnectionChange, Sink};
use crate::edge::admin::Readiness;
use crate::model::label::LabelValue as _;
use crate::model::metrics::canary::Handles;
use crate::model::metrics::labels::{Exactness, UnknownLine};
use crate::model::metrics::{CanaryDisconnect, CanaryLossCause};
use crate::model::proto::lease::{Gap, ServiceLogs};
use crate::model::time::LogTime;

/// Interval of the limit on log messages about lines.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Messages about lines per interval. Enough to see what happens; a broken gateway could cause one per line.
const LOG_MAX: u32 = 20;

/// Sink of a canary's follower.
pub(super) struct CanarySink {
    account: Account,
    metrics: Handles,
    /// Whether the stream is open, for probes.
    readiness: Readiness,
    log: LogLimit,
}

/// Limits the log messages about lines.
#[derive(Debug)]
struct LogLimit {
    interval_start: Instant,
    logged: u32,
    suppressed: u64,
}

// === impl CanarySink ===

impl CanarySink {
    pub(super) fn new(metrics: Handles, readiness: Readiness) -> Self {
        let log = LogLimit { interval_start: Instant::now(), logged: 0, suppressed: 0 };
        let sink = Self { account: Account::new(LogTime::now()), metrics, readiness, log };
        sink.export();
        sink
    }

    /// Counts the lines that are still missing. Returns the totals.
    pub(super) fn finish(&mut self) -> Totals {
        let Self { account, log, .. } = self;
        account.finish(&mut |key, event| log.event(key, event));
        self.export();
        self.account.totals()
    }

    fn mark_connected(&self, is_connected: bool) {
        self.readiness.set(is_connected);
        self.metrics.connected.set(f64::from(u8::from(is_connected)));
    }

    fn gap(&mut self, entry: &ServiceLogs, gap: &Gap) {
        if self.log.may_log() {
            let replica = replica(&entry.name, entry.replica);
            let cause = gap.cause().as_str_name();
            tracing::warn!(
                replica,
                lines = gap.lines,
                exact = gap.exact,
                cause,
                "lines were reported as lost"
            );
        }
    }

    /// Copies the totals to the metrics.
    fn export(&self) {
        let (totals, metrics) = (self.account.totals(), &self.metrics);
        metrics.delivered.absolute(totals.delivered);
        for cause in CanaryLossCause::ALL {
            metrics.lost.of(*cause).absolute(totals.lost[cause.index()]);
        }
        metrics.unreported.absolute(totals.unreported);
        metrics.repeated.absolute(totals.repeated);
        metrics.out_of_order.absolute(totals.out_of_order);
        metrics.overreported.absolute(totals.overreported);
        metrics.unknown.of(UnknownLine::Malformed).absolute(totals.malformed);
        metrics.unknown.of(UnknownLine::Foreign).absolute(totals.foreign);
        metrics.gaps.of(Exactness::Exact).absolute(totals.exact_gaps);
        metrics.gaps.of(Exactness::AtLeast).absolute(totals.inexact_gaps);
        metrics.runs.absolute(totals.runs);
        #[expect(clippy::cast_precision_loss, reason = "bounded")]
        metrics.replicas.set(self.account.replicas() as f64);
        metrics.clock_ahead.set(seconds(self.account.clock_ahead()));
        metrics.last_line.set(seconds(self.account.last_line().as_nanos()));
    }
}

impl Sink for CanarySink {
    fn entry(&mut self, entry: &ServiceLogs) -> io::Result<()> {
        if let Some(gap) = &entry.gap {
            self.gap(entry, gap);
        }
        let before = self.account.totals();
        let now = Now { wall: LogTime::now(), instant: Instant::now() };
        let Self { account, metrics, log, .. } = self;
        account.entry(entry, now, &mut |key, event| match event {
            Event::Delay(nanos) => metrics.delay.record(seconds(nanos.max(0))),
            event => log.event(key, event),
        });
        let after = account.totals();
        if (before.malformed, before.foreign) == (0, 0) && (after.malformed, after.foreign) != (0, 0) {
            let replica = replica(&entry.name, entry.replica);
            tracing::warn!(replica, "the service printed a line that is not of the counter");
        }
        self.export();
        Ok(())
    }

    fn due(&self) -> Option<Instant> {
        self.account.due()
    }

    fn on_due(&mut self) -> io::Result<()> {
        let Self { account, log, .. } = self;
        account.settle(Instant::now(), &mut |key, event| log.event(key, event));
        self.export();
        Ok(())
    }

    fn connection(&mut self, change: &ConnectionChange<'_>) -> io::Result<()> {
        match change {
            ConnectionChange::Lost { error, retry_in } => {
                self.mark_connected(false);
                // The next stream continues after the newest line, so missing lines can no longer arrive.
                self.finish();
                let reason = reason(error);
                self.metrics.disconnects.of(reason).increment(1);
                let (reason, retry_in) = (reason.label(), retry_in.as_secs_f64());
                let error = error.to_string().escape_debug().to_string();
                tracing::warn!(reason, retry_in, error, "no stream");
            }
            ConnectionChange::Resumed => {
                self.mark_connected(true);
                tracing::info!("stream open");
            }
            ConnectionChange::WithoutRefill => {
                tracing::warn!("the gateway does not support refills; a slow canary loses lines");
            }
        }
        Ok(())
    }
}

/// Returns the name of a replica for the log. A gateway may send any text.
fn replica(service: &str, replica: u32) -> String {
    format!("{}/{replica}", service.escape_debug())
}

#[expect(clippy::cast_precision_loss, reason = "microseconds do not matter after decades")]
fn seconds(nanos: i64) -> f64 {
    nanos as f64 / 1e9
}

pub(super) fn reason(error: &CallError) -> CanaryDisconnect {
    if error.is_lagged() {
        return CanaryDisconnect::Lagged;
    }
    match Exit::from(error) {
        Exit::Unavailable => CanaryDisconnect::Unavailable,
        Exit::Rejected => CanaryDisconnect::Rejected,
        Exit::NotFound => CanaryDisconnect::NotFound,
        _ => CanaryDisconnect::Other,
    }
}

// === impl LogLimit ===

impl LogLimit {
    fn event(&mut self, key: &ReplicaKey, event: Event) {
        if matches!(event, Event::Delay(_)) || !self.may_log() {
            return;
        }
        let replica = replica(&key.0, key.1);
        match event {
            Event::Delay(_) => {}
            Event::Run => tracing::info!(replica, "new run of the service"),
            Event::Unreported { from, to, lines } => {
                tracing::error!(replica, lines, from, to, "lines are missing without a report");
            }
            Event::Repeated { number, after } => {
                tracing::error!(replica, number, after, "line was repeated");
            }
            Event::OutOfOrder { number, after } => {
                tracing::error!(replica, number, after, "line is out of order");
            }
            Event::Overreported { number, lines } => {
                tracing::error!(replica, number, lines, "lines were reported as lost and are not missing");
            }
        }
    }

    /// Returns whether another message may be logged. Logs how many were not.
    fn may_log(&mut self) -> bool {
        if self.interval_start.elapsed() >= LOG_INTERVAL {
            if self.suppressed > 0 {
                tracing::warn!(messages = self.suppressed, "more messages about lines were not logged");
            }
            *self = Self { interval_start: Instant::now(), logged: 0, suppressed: 0 };
        }
        let may_log = self.logged < LOG_MAX;
        if may_log {
            self.logged += 1;
        } else {
            self.suppressed += 1;
        }
        may_log
    }
}
