//! What an operator sees: metrics that are what they are declared to be, and who lags.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use leasemux::access::refusal::Refusal;
use leasemux::model::limits::Limits;
use leasemux::model::metrics::labels::REFUSAL_REASONS;
use leasemux::model::metrics::{Declaration, Kind, LabelSet, catalogue};
use leasemux::model::proto::lease::ServiceLogsRequest;

use crate::support::gateway::{Gateway, Scene};
use crate::support::oracle::Seen;
use crate::support::replica;

/// Labels that Prometheus has for its own purposes.
const LE: &str = "le";

#[test]
fn every_reason_of_a_refusal_is_a_label() {
    let reasons: BTreeSet<_> = Refusal::ALL.iter().map(|refusal| refusal.reason()).collect();
    let labels: BTreeSet<_> = REFUSAL_REASONS.values.iter().copied().collect();
    let differ: Vec<_> = labels.symmetric_difference(&reasons).collect();
    assert!(differ.is_empty(), "in `access::refusal` or `model::metrics::labels`, not in both: {differ:?}");
}

/// The names of the series of a metric, without values; histograms by what counts their samples.
fn series(metric: &Declaration) -> BTreeSet<String> {
    let name = match metric.kind {
        Kind::Histogram(_) => format!("{}_count", metric.name),
        Kind::Counter | Kind::Gauge => metric.name.to_owned(),
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
async fn metrics_are_as_they_are_declared_from_the_first_scrape_on() {
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
fn declarations_keep_to_the_conventions() {
    let mut names = BTreeSet::new();
    for metric in catalogue::each() {
        let Declaration { name, help, worry, labels, .. } = metric;
        assert!(names.insert(name), "{name} is declared twice");
        assert!(name.starts_with("leasemux_") || name.starts_with("process_"), "{name}");
        assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
        assert!(help.len() > 10 && !help.ends_with('.') && !help.contains('\n'), "{name}: {help}");
        assert!(worry.ends_with('.') && !worry.contains('\n'), "{name}: {worry}");
        for LabelSet { name: label, .. } in *labels {
            assert!(
                !["owner", "tenant", "lease", "service", "replica", LE].contains(label),
                "{name} {label}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_lags_is_listed_and_who_does_not_is_not() {
    let scene = Scene::new(Limits { ring_max_bytes: 64 * 1024, ..Limits::default() }, &[("web", 1)]);
    let world = &scene.gateway.world;
    let run = world.start(&scene.lease, &replica("web", 0));
    let request = ServiceLogsRequest { follow: true, tail_lines: Some(0), ..scene.request() };
    let mut slow = scene.open(request.clone()).await.unwrap();
    slow.until(|seen| !seen.cursors.is_empty()).await;
    let mut quick = scene.open(request).await.unwrap();
    quick.until(|seen| !seen.cursors.is_empty()).await;
    assert_eq!(scene.gateway.lagging(10).total, 0);
    for step in 0..400 {
        world.print(&run, (0..100).map(|number| format!("{step} {number:0200}\n")));
        quick.until(|seen| seen.lines("web", 0) == 100 * (step + 1)).await;
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(scene.gateway.metric("leasemux_followers_lagging"), 1);
    let lagging = scene.gateway.lagging(10);
    assert_eq!((lagging.total, lagging.worst.len()), (1, 1));
    let laggard = &lagging.worst[0];
    assert_eq!((&laggard.lease, &laggard.replica), (&scene.lease, &replica("web", 0)));
    assert!(laggard.stalled > Duration::from_secs(29) && laggard.waiting >= laggard.stalled, "{laggard:?}");
    assert!(laggard.unsent_bytes > 0);
    let (behind, lost) = (laggard.behind, laggard.lost);
    // What it loses if it goes on now is what was said to be lost.
    slow.until(|seen| seen.ends_with("web", 0, &format!("399 {:0200}\n", 99))).await;
    assert_eq!(slow.received.ask(world, "web", 0, &[(&run, 0)]), lost.lines);
    let before = slow.received.of("web", 0).iter().take_while(|seen| !matches!(seen, Seen::Gap(..)));
    let before = before.map(|seen| match seen {
        Seen::Logs(_, bytes) => memchr::memchr_iter(b'\n', bytes).count() as u64,
        _ => 0,
    });
    assert_eq!(behind.lines, 40_000 - before.sum::<u64>());
    assert!(behind.bytes > behind.lines * 200 && behind.entries > lost.entries);
    assert_eq!(scene.gateway.lagging(10).total, 0);
    assert_eq!(scene.gateway.metric("leasemux_followers_lagging"), 0);
    quick.received.ask(world, "web", 0, &[(&run, 0)]);
}
