//! docs/METRICS.md, from the same declarations as `/metrics`.
//!
//! After a change of the catalogue or the labels: `UPDATE_DOCS=1 cargo test made_from_the_code`.

use std::fmt::Write as _;

use super::catalogue::GROUPS;
use super::declare::{Declaration, Group, LabelSet, MetricKind};

const HEAD: &str = "\
# Metrics

*Made from the code by `UPDATE_DOCS=1 cargo test made_from_the_code`; a test holds it. Change the declarations in
`src/model/metrics/catalogue.rs`.*

`/metrics` on the admin port, in Prometheus' text format. Every series is there, at zero, from the first scrape on. No label names a tenant, a lease or a
service: their number has no bound, and whoever reads metrics is not meant to know them. [deploy/](../deploy/README.md) has a dashboard and alerts.

## Who lags

`/followers` on the admin port lists the followers that lag now, the one that has waited longest first, at most 1000: for people as a table, with
`?format=json` for programs. A follower lags once lines have waited for it for a second, or were overwritten before it took them, or its peer has taken nothing
of what it was sent for a second.

| column | JSON | |
|---|---|---|
| `WAITING` | `waiting_seconds` | how long the oldest of what is held for it and that it has not taken has waited, or its peer has taken nothing if that is longer |
| `STALLED` | `stalled_seconds` | how long its peer has taken nothing of what its stream was sent |
| `UNSENT` | `unsent_bytes` | bytes of its stream that were handed to HTTP/2, and that its peer does not take |
| `ENTRIES`, `LINES`, `BYTES` | `behind_…` | what the ring has had since the place where it stands |
| `LOST LINES` | `lost_lines`, `lost_bytes` | what of that was overwritten: it will be reported to it as missing |
| `STREAM` | `stream` | the number of its stream, until the gateway is restarted |
| `PEER` | `peer` | the address that it comes from |
| `REPLICA`, `LEASE` | `replica`, `lease`, `owner` | whose log it is |

**This is why the admin port must stay private.** It asks nobody who they are, and this list names tenants, their leases and services, and their addresses. It listens
on loopback unless told otherwise (`--admin-listen`); where Prometheus is elsewhere, let a network policy or an authenticating proxy stand before it, and pass
on `/metrics` only.
";

/// The page: every metric, with what it means and when to worry.
pub fn page() -> String {
    let mut page = HEAD.to_owned();
    for Group { title, about, metrics } in GROUPS {
        // Writing to a string does not fail.
        let _ = write!(page, "\n## {title}\n\n{about}\n");
        for metric in *metrics {
            let Declaration { name, kind, unit, labels, help, alert_hint: worry } = metric;
            let _ = write!(page, "\n### `{name}`\n\n{}, {}", kind.word(), unit.word());
            page.extend(labels.iter().map(told));
            if let MetricKind::Histogram(bounds) = kind {
                let bounds: Vec<_> = bounds.iter().map(ToString::to_string).collect();
                let _ = write!(page, " · buckets up to {}", bounds.join(", "));
            }
            let _ = write!(page, "\n\n{help}.\n\n*When to worry:* {worry}\n");
        }
    }
    page
}

fn told(label: &LabelSet) -> String {
    if label.values.is_empty() {
        return format!(" · `{}`", label.name);
    }
    let values: Vec<_> = label.values.iter().map(|value| format!("`{value}`")).collect();
    format!(" · `{}`: {}", label.name, values.join(", "))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_of_metrics_is_made_from_the_code() {
        crate::docs::check_page("METRICS.md", &super::page());
    }
}
