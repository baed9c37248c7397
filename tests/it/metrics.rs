//! Metrics as declared, and the report of lagging followers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use leasemux::access::refusal::Refusal;
use leasemux::model::limits::Limits;
use leasemux::model::metrics::{Declaration, LabelSet, MetricKind, canary, catalogue};
use leasemux::model::proto::lease::lease_rpc_client::LeaseRpcClient;
use leasemux::model::proto::lease::{ServiceFilter, ServiceLogsRequest, ServiceStatusRequest};
use tonic::Code;

use crate::support::gateway::{Gateway, Setup};
use crate::support::loss_check::Seen;
use crate::support::replica;
use crate::support::statuses::{Statuses, request};

/// A label that Prometheus reserves.
const LE: &str = "le";

#[test]
fn every_refusal_reason_is_a_label() {
    let reasons: BTreeSet<_> = Refusal::ALL.iter().map(|refusal| refusal.reason()).collect();
    let metric = catalogue::each().find(|metric| metric.name == "leasemux_auth_refusals_total").unwrap();
    let labels: BTreeSet<_> = metric.labels[0].values.iter().copied().collect();
    assert_eq!(labels, reasons);
}

/// Returns the names of a metric's series; of a histogram, those of its sample count.
fn series(metric: &Declaration) -> BTreeSet<String> {
    let name = match metric.kind {
        MetricKind::Histogram(_) => format!("{}_count", metric.name),
        MetricKind::Counter | MetricKind::Gauge => metric.name.to_owned(),
    };
    let mut labels = vec![String::new()];
    for LabelSet { name, values } in metric.labels {
        let longer = labels.iter().flat_map(|shorter| {
            let comma = if shorter.is_empty() { "" } else { "," };
            values.iter().map(move |value| format!("{shorter}{comma}{name}=\"{value}\""))
        });
        labels = longer.collect();
    }
    let braced = |labels: String| if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    labels.into_iter().map(|labels| format!("{name}{}", braced(labels))).collect()
}

#[tokio::test(start_paused = true)]
async fn first_scrape_matches_declarations() {
    let gateway = Gateway::new(Limits::default());
    let text = gateway.metrics();
    let mut found: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let name = series.split('{').next().unwrap();
        if name.ends_with("_bucket") || name.ends_with("_sum") {
            continue;
        }
        found.entry(name.strip_suffix("_count").unwrap_or(name)).or_default().insert(series.to_owned());
    }
    for metric in catalogue::each() {
        let Declaration { name, help, .. } = metric;
        assert!(text.contains(&format!("# HELP {name} {help}\n")), "{name}");
        assert!(text.contains(&format!("# TYPE {name} {}\n", metric.kind.word())), "{name}");
        let found = found.remove(name).unwrap_or_else(|| panic!("no {name} in\n{text}"));
        if metric.labels.iter().any(|label| label.values.is_empty()) {
            assert_eq!(found.len(), 1, "{found:?}");
            continue;
        }
        assert_eq!(found, series(metric));
    }
    assert!(found.is_empty(), "not declared: {found:?}");
}

#[test]
fn declarations_follow_conventions() {
    let mut names = BTreeSet::new();
    for metric in catalogue::each().chain(canary::each()) {
        let Declaration { name, help, alert_hint, labels, .. } = metric;
        assert!(names.insert(name), "{name} is declared twice");
        assert!(name.starts_with("leasemux_") || name.starts_with("process_"), "{name}");
        assert_eq!(name.ends_with("_total"), metric.kind == MetricKind::Counter, "{name}");
        assert!(help.len() > 10 && !help.ends_with('.') && !help.contains('\n'), "{name}: {help}");
        assert!(alert_hint.ends_with('.') && !alert_hint.contains('\n'), "{name}: {alert_hint}");
        for LabelSet { name: label, .. } in *labels {
            assert!(
                !["owner", "tenant", "lease", "service", "replica", LE].contains(label),
                "{name} {label}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn lag_report_lists_only_lagging_followers() {
    let setup = Setup::new(Limits { ring_max_bytes: 64 * 1024, ..Limits::default() }, &[("web", 1)]);
    let platform = &setup.gateway.platform;
    let run = platform.start(&setup.lease, &replica("web", 0));
    let request = ServiceLogsRequest { follow: true, tail_lines: Some(0), ..setup.request() };
    let mut slow = setup.open(request.clone()).await.unwrap();
    slow.until(|seen| !seen.cursors.is_empty()).await;
    let mut quick = setup.open(request).await.unwrap();
    quick.until(|seen| !seen.cursors.is_empty()).await;
    assert_eq!(setup.gateway.lagging(10).total, 0);
    for step in 0..400 {
        platform.print(&run, (0..100).map(|number| format!("{step} {number:0200}\n")));
        quick.until(|seen| seen.lines("web", 0) == 100 * (step + 1)).await;
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(setup.gateway.metric("leasemux_followers_lagging"), 1);
    let lagging = setup.gateway.lagging(10);
    assert_eq!((lagging.total, lagging.worst.len()), (1, 1));
    let follower = &lagging.worst[0];
    assert_eq!((&follower.lease, &follower.replica), (&setup.lease, &replica("web", 0)));
    assert!(
        follower.stalled > Duration::from_secs(29) && follower.waiting >= follower.stalled,
        "{follower:?}"
    );
    assert!(follower.unsent_bytes > 0);
    let (backlog, lost) = (follower.backlog, follower.lost);
    // When it reads on now, it loses exactly the reported lines.
    slow.until(|seen| seen.ends_with("web", 0, &format!("399 {:0200}\n", 99))).await;
    assert_eq!(slow.received.assert_complete(platform, "web", 0, &[(&run, 0)]), lost.lines);
    let before = slow.received.of("web", 0).iter().take_while(|seen| !matches!(seen, Seen::Gap(..)));
    let before = before.map(|seen| match seen {
        Seen::Logs(_, bytes) => memchr::memchr_iter(b'\n', bytes).count() as u64,
        _ => 0,
    });
    assert_eq!(backlog.lines, 40_000 - before.sum::<u64>());
    assert!(backlog.bytes > backlog.lines * 200 && backlog.entries > lost.entries);
    assert_eq!(setup.gateway.lagging(10).total, 0);
    assert_eq!(setup.gateway.metric("leasemux_followers_lagging"), 0);
    quick.received.assert_complete(platform, "web", 0, &[(&run, 0)]);
}

/// A gateway with the values of its metrics at the last check.
struct Watched<'a> {
    gateway: &'a Gateway,
    before: BTreeMap<String, String>,
    moved: BTreeSet<String>,
}

impl<'a> Watched<'a> {
    fn new(gateway: &'a Gateway) -> Self {
        Self { gateway, before: values(&gateway.metrics()), moved: BTreeSet::new() }
    }

    /// Waits until all of these metrics have changed since the last check. Others may have changed too.
    #[track_caller]
    fn moves(&mut self, names: &[&str]) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(1_000);
            loop {
                let now = values(&self.gateway.metrics());
                let unchanged: Vec<_> =
                    names.iter().filter(|name| now[**name] == self.before[**name]).collect();
                if unchanged.is_empty() {
                    self.before = now;
                    break;
                }
                assert!(
                    tokio::time::Instant::now() < deadline,
                    "{caller}: these do not change: {unchanged:?}"
                );
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            self.moved.extend(names.iter().map(|name| (*name).to_owned()));
        }
    }
}

/// Returns the value of each series.
fn values(text: &str) -> BTreeMap<String, String> {
    let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    samples
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[tokio::test(start_paused = true)]
#[expect(clippy::too_many_lines, reason = "one scenario, in order")]
async fn every_metric_changes_with_its_event() {
    let limits = Limits { ring_max_bytes: 64 * 1024, ..Limits::default() };
    let setup = Setup::new(limits, &[("web", 1), ("many", 1_025)]);
    let platform = &setup.gateway.platform;
    let mut watched = Watched::new(&setup.gateway);
    let web = replica("web", 0);
    let run = platform.start(&setup.lease, &web);
    platform.print(&run, ["first\n"]);
    let only = |filter: &str| ServiceLogsRequest {
        filter: Some(ServiceFilter { name: filter.to_owned(), replicas: Vec::new() }),
        ..setup.request()
    };
    let follow = ServiceLogsRequest { follow: true, ..only("web") };

    // A follower connects.
    let mut stream = setup.open(ServiceLogsRequest { tail_lines: Some(0), ..follow.clone() }).await.unwrap();
    stream.until(|seen| !seen.cursors.is_empty()).await;
    watched
        .moves(&[
            "leasemux_streams{method=\"ServiceLogs\"}",
            "leasemux_first_answer_seconds_count{method=\"ServiceLogs\"}",
            "leasemux_connections",
            "leasemux_followers",
            "leasemux_actors",
            "leasemux_actor_starts_total",
            "leasemux_source_opens_total{read=\"live\"}",
        ])
        .await;
    platform.print(&run, ["second\n"]);
    stream.until(|seen| seen.lines("web", 0) == 1).await;
    watched
        .moves(&[
            "leasemux_lines_in_total",
            "leasemux_bytes_in_total",
            "leasemux_frames_encoded_total",
            "leasemux_lines_delivered_total",
            "leasemux_bytes_delivered_total",
            "leasemux_messages_delivered_total",
            "leasemux_delivery_delay_seconds_count",
            "leasemux_ring_bytes",
        ])
        .await;
    platform.lose(&run, 3);
    stream.until(|seen| seen.missing("web", 0) == 3).await;
    let of = |cause: &str| {
        ["gaps", "lines_lost", "bytes_lost"].map(|name| format!("leasemux_{name}_total{{cause=\"{cause}\"}}"))
    };
    let source = of("source");
    watched.moves(&source.each_ref().map(String::as_str)).await;

    // The log cannot be read for a while.
    platform.fail(&run, true);
    watched.moves(&["leasemux_source_errors_total{kind=\"unavailable\",platform=\"other\"}"]).await;
    platform.fail(&run, false);

    // A request without follow completes.
    let mut whole = setup.open(only("web")).await.unwrap();
    assert_eq!(whole.end().await.code(), Code::Ok);
    watched
        .moves(&[
            "leasemux_source_opens_total{read=\"history\"}",
            "leasemux_requests_total{method=\"ServiceLogs\",code=\"OK\"}",
            "leasemux_call_duration_seconds_count{method=\"ServiceLogs\"}",
        ])
        .await;

    // A follower stalls, loses lines and reads on; it stalls again and is reset.
    let mut quick = setup.open(ServiceLogsRequest { tail_lines: Some(0), ..follow.clone() }).await.unwrap();
    quick.until(|seen| !seen.cursors.is_empty()).await;
    for round in 1..=2 {
        for step in 1..=200 {
            platform.print(&run, (0..100).map(|number| format!("{number:0200}\n")));
            quick.until(|seen| seen.lines("web", 0) == (round - 1) * 20_001 + step * 100).await;
        }
        watched.moves(&["leasemux_followers_lagging"]).await;
        if round == 2 {
            watched
                .moves(&[
                    "leasemux_stalled_streams_total",
                    "leasemux_requests_total{method=\"ServiceLogs\",code=\"CANCELLED\"}",
                ])
                .await;
            break;
        }
        platform.print(&run, ["the end\n"]);
        stream.until(|seen| seen.ends_with("web", 0, "the end\n")).await;
        quick.until(|seen| seen.ends_with("web", 0, "the end\n")).await;
        let lag = of("lag");
        watched.moves(&lag.each_ref().map(String::as_str)).await;
    }

    // Lines after a cursor are rotated away.
    let resume: Vec<_> = stream.received.cursors.values().cloned().collect();
    platform.rotate(&run, 5);
    let mut rotated = setup.open(ServiceLogsRequest { resume, ..only("web") }).await.unwrap();
    assert_eq!(rotated.end().await.code(), Code::Ok);
    watched.moves(&["leasemux_gaps_total{cause=\"rotated\"}"]).await;

    // Requests are refused for missing credentials, permissions or quota.
    let mut stranger = LeaseRpcClient::new(setup.gateway.channel_of(None).await);
    assert_eq!(stranger.service_logs(setup.request()).await.unwrap_err().code(), Code::Unauthenticated);
    watched
        .moves(&[
            "leasemux_auth_refusals_total{reason=\"CREDENTIALS_MISSING\"}",
            "leasemux_requests_total{method=\"ServiceLogs\",code=\"UNAUTHENTICATED\"}",
        ])
        .await;
    let (_, other) = setup.gateway.tenant();
    let mut other = setup.gateway.client(&other).await;
    assert_eq!(other.service_logs(setup.request()).await.unwrap_err().code(), Code::PermissionDenied);
    watched
        .moves(&[
            "leasemux_auth_refusals_total{reason=\"LEASE_NOT_YOURS\"}",
            "leasemux_requests_total{method=\"ServiceLogs\",code=\"PERMISSION_DENIED\"}",
        ])
        .await;
    assert_eq!(setup.open(only("many")).await.err().unwrap().code(), Code::ResourceExhausted);
    watched
        .moves(&[
            "leasemux_quota_refusals_total{quota=\"replicas_per_stream\"}",
            "leasemux_requests_total{method=\"ServiceLogs\",code=\"RESOURCE_EXHAUSTED\"}",
        ])
        .await;

    // A status stream ends when its credential is revoked.
    let mut statuses =
        Statuses::open(&setup, ServiceStatusRequest { filter: only("web").filter, ..request(&setup, true) })
            .await
            .unwrap();
    assert!(statuses.next().await.unwrap());
    watched
        .moves(&[
            "leasemux_streams{method=\"ServiceStatus\"}",
            "leasemux_first_answer_seconds_count{method=\"ServiceStatus\"}",
        ])
        .await;
    setup.gateway.withdraw(setup.lease.owner());
    assert_eq!(statuses.end().await.code(), Code::Unauthenticated);
    watched
        .moves(&[
            "leasemux_auth_refusals_total{reason=\"CERTIFICATE_WITHDRAWN\"}",
            "leasemux_requests_total{method=\"ServiceStatus\",code=\"UNAUTHENTICATED\"}",
            "leasemux_call_duration_seconds_count{method=\"ServiceStatus\"}",
        ])
        .await;
    // The last follower has left.
    watched.moves(&["leasemux_actor_ends_total{reason=\"idle\"}", "leasemux_actors"]).await;

    let families: BTreeSet<_> = watched
        .moved
        .iter()
        .map(|series| {
            let name = series.split('{').next().unwrap();
            name.strip_suffix("_count").unwrap_or(name)
        })
        .collect();
    let unchanged: Vec<_> = catalogue::each()
        .map(|metric| metric.name)
        .filter(|name| !families.contains(name) && !name.starts_with("process_"))
        .collect();
    assert_eq!(unchanged, TESTED_ELSEWHERE, "each metric must change here, or in another test");
}

/// Metrics of other tests: refills in `logs/refill.rs`; the memory budget in `logs/overload.rs`; restarts in
/// `restart.rs`; watches in `kube.rs` and `kube/stale.rs`; events in `kube/events.rs`; calls of the published
/// proto in `published.rs`; connections and handshakes in `prometheus.rs` and `secure.rs`; certificates in
/// `certificates.rs`; REST and forwarded calls in `front.rs`; fleets in `fleet/`; chain queries in
/// `chain.rs`; tasks in `gateway.rs`. The build never changes.
const TESTED_ELSEWHERE: [&str; 55] = [
    "leasemux_refills_total",
    "leasemux_refilled_lines_total",
    "leasemux_refilled_bytes_total",
    "leasemux_memory_budget_bytes",
    "leasemux_memory_used_bytes",
    "leasemux_ring_shrunk_bytes_total",
    "leasemux_restarts_total",
    "leasemux_watch_failures_total",
    "leasemux_watch_lists_total",
    "leasemux_views_stale",
    "leasemux_published_calls_total",
    "leasemux_connections_accepted_total",
    "leasemux_connections_refused_total",
    "leasemux_connections_closed_total",
    "leasemux_tls_handshakes_total",
    "leasemux_tls_handshake_seconds",
    "leasemux_certificate_expiry_timestamp_seconds",
    "leasemux_ca_certificate_expiry_timestamp_seconds",
    "leasemux_rest_requests_total",
    "leasemux_rest_filter_total",
    "leasemux_ws_streams",
    "leasemux_ws_streams_ended_total",
    "leasemux_event_feeds",
    "leasemux_event_watch_failures_total",
    "leasemux_events_skipped_total",
    "leasemux_rest_upstream_seconds",
    "leasemux_rest_upstream_failures_total",
    "leasemux_passthrough_connections",
    "leasemux_forwarded_calls_total",
    "leasemux_grpc_upstream_seconds",
    "leasemux_grpc_upstream_failures_total",
    "leasemux_fleet_bus_usable",
    "leasemux_fleet_gateways",
    "leasemux_fleet_replicas",
    "leasemux_fleet_members",
    "leasemux_fleet_frames_total",
    "leasemux_fleet_bytes_total",
    "leasemux_fleet_missed_total",
    "leasemux_fleet_duplicates_total",
    "leasemux_fleet_repairs_total",
    "leasemux_fleet_elections_total",
    "leasemux_fleet_takeover_seconds",
    "leasemux_fleet_conflicts_total",
    "leasemux_fleet_rejected_total",
    "leasemux_fleet_unsent_total",
    "leasemux_fleet_overflowed_total",
    "leasemux_fleet_slow_total",
    "leasemux_chain_queries_total",
    "leasemux_chain_query_seconds",
    "leasemux_chain_answers_total",
    "leasemux_chain_on_grace",
    "leasemux_spans_exported_total",
    "leasemux_spans_dropped_total",
    "leasemux_build_info",
    "leasemux_tasks",
];
