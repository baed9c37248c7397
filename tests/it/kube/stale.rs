//! Views of a cluster whose API server is gone say so, over gRPC and in a metric, and are current again when it is back.

use std::time::Duration;

use leasemux::model::proto::lease::{ServiceFilter, ServiceStatusRequest};
use tonic::Code;

use super::{Stage, pass};
use crate::support::statuses::{Statuses, request};

/// Has time pass until `condition` holds, where half a minute must pass for it. What is sent has real time.
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
    panic!("it does not hold");
}

/// Whether the view is stale, as an answer and the metric say.
async fn is_stale(stage: &Stage) -> bool {
    let mut statuses = Statuses::open(&stage.scene, request(&stage.scene, false)).await.unwrap();
    assert_eq!(statuses.end().await.code(), Code::Ok);
    let told = statuses.newest.stale_since.is_some();
    let text = stage.exporter.render();
    let counted = text.lines().find_map(|line| line.strip_prefix("leasemux_views_stale ")).unwrap();
    told && counted == "1"
}

/// How calls about a lease, and a service, that were not there when the cluster was last known are answered.
async fn codes_of_unknown(stage: &Stage) -> [Code; 2] {
    let lease = request(&stage.scene, false);
    let mut other = lease.clone();
    other.lease_id.as_mut().unwrap().dseq += 1;
    let filter = Some(ServiceFilter { name: "later".into(), replicas: Vec::new() });
    let mut codes = Vec::new();
    for request in [other, ServiceStatusRequest { filter, ..lease }] {
        codes.push(Statuses::open(&stage.scene, request).await.err().unwrap().code());
    }
    codes.try_into().unwrap()
}

#[tokio::test]
async fn status_is_stale_while_the_api_server_is_gone() {
    let stage = Stage::new(1).await;
    stage.run("a");
    stage.shows(&[1]).await;
    assert!(!is_stale(&stage).await);
    assert_eq!(codes_of_unknown(&stage).await, [Code::NotFound; 2]);
    let mut follower = Statuses::follow(&stage.scene).await;
    follower.until(|seen| !seen.newest.services.is_empty()).await;
    stage.cluster.go_away().await;
    in_time(async || is_stale(&stage).await).await;
    // What was known is told on.
    follower.until(|seen| seen.newest.stale_since.is_some()).await;
    assert_eq!(follower.replica("web", 0).map(|one| one.ready), Some(true));
    assert_eq!(codes_of_unknown(&stage).await, [Code::Unavailable; 2]);
    stage.cluster.come_back().await;
    // Nothing has changed meanwhile, so no watch has anything to tell.
    in_time(async || !is_stale(&stage).await).await;
    follower.until(|seen| seen.newest.stale_since.is_none()).await;
}
