//! `docs/METRICS.md`, generated from the same declarations as `/metrics`.

use std::fmt::Write as _;

use leasemux::model::metrics::{Declaration, Group, LabelSet, MetricKind, Unit, canary, catalogue};

const HEAD: &str = "\
# Metrics

*Generated from `src/model/metrics/catalogue.rs` and `canary.rs` by `UPDATE_DOCS=1 cargo test made_from_the_code`; a test compares them.*

The admin port serves `/metrics` in Prometheus' text format. Every series exists, at zero, from the first scrape on.
No label names a tenant, a lease or a service: their number is unbounded, and readers of metrics should not learn them.
[deploy/](../deploy/README.md) has a dashboard and alerts.

## Lagging followers

`/followers` on the admin port lists the followers that lag now, at most 1000, the longest wait first. It is a table
for people, or JSON with `?format=json`. A follower lags when one of these conditions holds:

- lines have waited for it for a second;
- lines were evicted from the ring before it took them;
- its peer has taken none of the sent data for a second.

| column | JSON | meaning |
|---|---|---|
| `WAITING` | `waiting_seconds` | age of the oldest entry in the ring that it has not taken, or `STALLED` if that is longer |
| `STALLED` | `stalled_seconds` | time since its peer took any sent data |
| `UNSENT` | `unsent_bytes` | bytes of its stream that were handed to HTTP/2 and not taken by its peer |
| `ENTRIES`, `LINES`, `BYTES` | `behind_…` | distance from its position to the head of the ring |
| `LOST LINES` | `lost_lines`, `lost_bytes` | the evicted part of that distance; it will be reported as a gap. 0 during a refill |
| `STREAM` | `stream` | number of its stream, until the gateway restarts |
| `PEER` | `peer` | address of its peer |
| `REPLICA`, `LEASE` | `replica`, `lease`, `owner` | the followed log |

**Keep the admin port private.** It has no authentication, and this list names tenants, their leases and services, and
their addresses. By default it listens on loopback (`--admin-listen`). If Prometheus runs elsewhere, restrict access by
a network policy or an authenticating proxy, and forward `/metrics` only.
";

fn page() -> String {
    let mut page = HEAD.to_owned();
    for Group { title, about, metrics } in catalogue::GROUPS.iter().chain(canary::GROUPS) {
        // Writing to a string cannot fail.
        let _ = write!(page, "\n## {title}\n\n{about}\n");
        for metric in *metrics {
            let Declaration { name, kind, unit, labels, help, alert_hint } = metric;
            let _ = write!(page, "\n### `{name}`\n\n{}, {}", kind.word(), word(*unit));
            page.extend(labels.iter().map(describe));
            if let MetricKind::Histogram(bounds) = kind {
                let bounds: Vec<_> = bounds.iter().map(ToString::to_string).collect();
                let _ = write!(page, " · buckets up to {}", bounds.join(", "));
            }
            let _ = write!(page, "\n\n{help}.\n\n*When to look closer:* {alert_hint}\n");
        }
    }
    page
}

fn describe(label: &LabelSet) -> String {
    if label.values.is_empty() {
        return format!(" · `{}`", label.name);
    }
    let values: Vec<_> = label.values.iter().map(|value| format!("`{value}`")).collect();
    format!(" · `{}`: {}", label.name, values.join(", "))
}

fn word(unit: Unit) -> &'static str {
    match unit {
        Unit::Count => "number",
        Unit::Bytes => "bytes",
        Unit::Seconds => "seconds",
        Unit::Info => "always 1",
    }
}

#[test]
fn docs_metrics_is_made_from_the_code() {
    super::check_page("METRICS.md", &page());
}
