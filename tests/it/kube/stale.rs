//! Views are stale while the API server is down, over gRPC and in a metric, and current again when it is
//! back.

use std::time::Duration;

use leasemux::model::proto::lease::{ServiceFilter, ServiceStatusRequest};
use tonic::Code;

use super::{Scenario, eventually, pass};
use crate::support::statuses::{Statuses, request};

/// Advances the clock until `condition` holds, in steps that leave real time for network traffic.
async fn in_time(mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..400 {
        for _ in 0..5 {
            if condition().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        pass(Duration::from_millis(500)).await;
    }
    panic!("condition not met");
}

/// Whether the view is stale according to a response and to the metric.
async fn is_stale(scenario: &Scenario) -> bool {
    let mut statuses = Statuses::open(&scenario.setup, request(&scenario.setup, false)).await.unwrap();
    assert_eq!(statuses.end().await.code(), Code::Ok);
    let is_stale = statuses.newest.stale_since.is_some();
    let text = scenario.exporter.render();
    let counted = text.lines().find_map(|line| line.strip_prefix("leasemux_views_stale ")).unwrap();
    is_stale && counted == "1"
}

/// Status codes of calls about an unknown lease and an unknown service.
async fn codes_of_unknown(scenario: &Scenario) -> [Code; 2] {
    let lease = request(&scenario.setup, false);
    let mut other = lease.clone();
    other.lease_id.as_mut().unwrap().dseq += 1;
    let filter = Some(ServiceFilter { name: "later".into(), replicas: Vec::new() });
    let mut codes = Vec::new();
    for request in [other, ServiceStatusRequest { filter, ..lease }] {
        codes.push(Statuses::open(&scenario.setup, request).await.err().unwrap().code());
    }
    codes.try_into().unwrap()
}

#[tokio::test]
async fn status_is_stale_while_the_api_server_is_gone() {
    let scenario = Scenario::new(1).await;
    scenario.run("a");
    scenario.shows(&[1]).await;
    assert!(!is_stale(&scenario).await);
    assert_eq!(codes_of_unknown(&scenario).await, [Code::NotFound; 2]);
    let mut follower = Statuses::follow(&scenario.setup).await;
    follower.until(|seen| !seen.newest.services.is_empty()).await;
    scenario.cluster.stop().await;
    in_time(async || is_stale(&scenario).await).await;
    // Known state is still served.
    follower.until(|seen| seen.newest.stale_since.is_some()).await;
    assert_eq!(follower.replica("web", 0).map(|one| one.ready), Some(true));
    assert_eq!(codes_of_unknown(&scenario).await, [Code::Unavailable; 2]);
    scenario.cluster.resume().await;
    // Nothing has changed meanwhile, so no watch sends an event.
    in_time(async || !is_stale(&scenario).await).await;
    follower.until(|seen| seen.newest.stale_since.is_none()).await;
}

#[tokio::test]
async fn failing_list_is_retried_with_back_off() {
    let scenario = Scenario::new(1).await;
    scenario.run("a");
    scenario.shows(&[1]).await;
    // The watches must list again, and the API server stops before any list is complete.
    scenario.cluster.hold_lists(true);
    scenario.cluster.forget_history();
    eventually(async || scenario.counted("failures", "pods") >= 1).await;
    scenario.cluster.stop().await;
    let before = scenario.counted("failures", "pods");
    for _ in 0..120 {
        pass(Duration::from_millis(500)).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let failures = scenario.counted("failures", "pods") - before;
    assert!((5..=40).contains(&failures), "{failures} in a minute");
}
