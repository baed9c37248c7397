//! The metrics of `leasemux canary`. A gateway does not have them.

use metrics::{Counter, Gauge, Histogram, Recorder};

use super::catalogue::catalogue;
use super::declare::{Declaration, Group, MetricKind, Unit};
use super::handle::{Family, declare, register};
use super::labels::{CanaryDisconnect, CanaryLossCause, Exactness, UnknownLine};

/// From a gateway in the same network, by the hundredths of a second of the counter, to a long outage.
const DELAY_BUCKETS_SECONDS: &[f64] =
    &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0];

/// Returns all metrics of a canary.
pub fn each() -> impl Iterator<Item = &'static Declaration> {
    GROUPS.iter().flat_map(|group| group.metrics)
}

catalogue! {
    group "The canary",
        "`leasemux canary` has its own port for these metrics (`--metrics-listen`). Delivered, lost and \
         unreported lines, less the overreported ones, are the lines that the service printed." {
        /// Numbered lines that arrived, each once
        delivered: Counter = "leasemux_canary_lines_delivered_total",
            "It stops growing: the service does not print, or the gateway does not deliver.";

        /// Lines that the gateway reported as lost, by cause
        lost: Family<Counter, CanaryLossCause> = "leasemux_canary_lines_lost_total",
            "`lag`: the canary was too slow, and the log no longer had the lines. For the other causes see \
             `leasemux_lines_lost_total`.";

        /// Lines that are missing without a report: no gap covers their numbers. Counted after ten seconds,
        /// because a line may be late
        unreported: Counter = "leasemux_canary_lines_unreported_total",
            "Any: the gateway broke its promise. The log of the canary has the numbers of the lines.";

        /// Lines that arrived again
        repeated: Counter = "leasemux_canary_lines_repeated_total",
            "Any: the gateway broke its promise.";

        /// Lines that arrived after a later line
        out_of_order: Counter = "leasemux_canary_lines_out_of_order_total",
            "Any: the gateway broke its promise.";

        /// Lines that were reported as lost and were not missing
        overreported: Counter = "leasemux_canary_lines_overreported_total",
            "Any: the gateway reported a wrong number.";

        /// Lines that are not counted: a damaged line of the counter (malformed), or output of something else
        /// (foreign)
        unknown: Family<Counter, UnknownLine> = "leasemux_canary_lines_unknown_total",
            "`malformed`: lines are damaged or cut. `foreign`: the service prints more than the counter, \
             or it is the wrong service.";

        /// Reports of lost lines, by whether their number is exact
        gaps: Family<Counter, Exactness> = "leasemux_canary_gaps_total",
            "`false`: the numbers are lower bounds, and every missing line at that place counts as \
             reported.";

        /// Delay of a line, in seconds: from the time that the service printed in it to its arrival at the
        /// canary. A line from the future counts as 0
        delay: Histogram = "leasemux_canary_delay_seconds" (Seconds) in DELAY_BUCKETS_SECONDS,
            "The 99th percentile exceeds a second while the canary is connected. It includes the \
             difference between the clocks of the service and the canary, and the time of an interruption.";

        /// Lead of the service's clock over that of the canary at the last line, in seconds; the greatest one
        /// of the replicas. At least this much of the delays is missing
        clock_ahead: Gauge = "leasemux_canary_clock_ahead_seconds" (Seconds),
            "It exceeds the delays that you want to see. Synchronise the clocks.";

        /// Runs of the service that were seen: each replica starts to count again with a new identifier
        runs: Counter = "leasemux_canary_runs_total",
            "It grows without a restart of the service: the service crashes.";

        /// Replicas that are followed and part of the lease
        replicas: Gauge = "leasemux_canary_replicas",
            "It is below the number of replicas of the service.";

        /// Whether the stream is open: 1 or 0
        connected: Gauge = "leasemux_canary_connected",
            "It is 0 for minutes: tenants most likely cannot follow their logs either.";

        /// Streams that ended or could not be opened, by reason; another attempt follows each
        disconnects: Family<Counter, CanaryDisconnect> = "leasemux_canary_disconnects_total",
            "`rejected`: the credentials were refused or a quota is used up. `not_found`: the lease or the \
             service is gone. `unavailable` without a restart of the gateway: see its log.";

        /// Time at which the last numbered line arrived, in seconds since the Unix epoch, of the replica that
        /// has been silent longest. Before its first line, the time at which the canary began to follow it
        last_line: Gauge = "leasemux_canary_last_line_timestamp_seconds" (Seconds),
            "It is older than several intervals of the service.";
    }
}
