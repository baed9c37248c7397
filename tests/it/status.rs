//! `ServiceStatus`: single snapshots and followed status.

use std::time::Duration;

use leasemux::model::id::ServiceName;
use leasemux::model::limits::{Limits, STREAM_REPLICAS_MAX};
use leasemux::model::proto::lease::replica_status::State;
use leasemux::model::proto::lease::{ServiceFilter, ServiceStatusRequest};
use leasemux::model::view::ReplicaState;
use tonic::Code;

use crate::support::gateway::Setup;
use crate::support::statuses::{Statuses, request};
use crate::support::{reason, replica};

fn web() -> ServiceName {
    "web".parse().unwrap()
}

fn only(service: &str, replicas: &[u32]) -> ServiceFilter {
    ServiceFilter { name: service.into(), replicas: replicas.into() }
}

/// Returns the number of restarts of a replica.
fn restarts(seen: &Statuses, service: &str, index: u32) -> Option<u32> {
    seen.replica(service, index).map(|replica| replica.restarts)
}

/// Sets the number of restarts of `web/0`, and changes nothing else.
fn set_restarts(scenario: &Setup, count: u32) {
    scenario.gateway.platform.change(&scenario.lease, |view| {
        let service = view.services.get_mut(&web()).unwrap();
        service.replicas.get_mut(&0).unwrap().restarts = count;
    });
}

#[tokio::test(start_paused = true)]
async fn snapshot_has_each_replica_and_ends() {
    let scenario = Setup::new(Limits::default(), &[("api", 1), ("web", 2)]);
    let platform = &scenario.gateway.platform;
    let crashed = replica("web", 0);
    platform.start(&scenario.lease, &crashed);
    platform.end(&scenario.lease, &crashed, 3);
    let second = platform.start(&scenario.lease, &crashed);
    let mut seen = Statuses::open(&scenario, request(&scenario, false)).await.unwrap();
    assert_eq!(seen.end().await.code(), Code::Ok);
    assert_eq!(seen.answers, 1);
    let names: Vec<_> = seen.newest.services.iter().map(|service| service.name.clone()).collect();
    assert_eq!(names, ["api", "web"]);
    let counts = seen.newest.services[1].status.clone().unwrap();
    assert_eq!((counts.total, counts.ready_replicas, counts.available), (2, 1, 1));
    let replica = seen.replica("web", 0).unwrap();
    assert_eq!(
        (replica.instance.as_str(), replica.state(), replica.ready),
        (second.as_str(), State::Running, true)
    );
    assert_eq!(
        (replica.restarts, replica.last_exit_code, replica.last_reason.as_str()),
        (1, Some(3), "Error")
    );
    assert!(replica.started_at.is_some());
    let other = seen.replica("web", 1).unwrap();
    assert_eq!((other.instance.as_str(), other.state(), other.ready), ("", State::Unknown, false));
}

#[tokio::test(start_paused = true)]
async fn follow_sends_only_selected_changes() {
    let scenario = Setup::new(Limits::default(), &[("api", 1), ("web", 2)]);
    let platform = &scenario.gateway.platform;
    let first = platform.start(&scenario.lease, &replica("web", 1));
    let filters = vec![only("web", &[1])];
    let mut seen = Statuses::open(&scenario, ServiceStatusRequest { filters, ..request(&scenario, true) })
        .await
        .unwrap();
    assert!(seen.next().await.unwrap());
    assert_eq!(seen.newest.services.len(), 1);
    assert!(seen.replica("web", 0).is_none());
    // Changes outside the filter, output, and updates without a change send nothing.
    platform.start(&scenario.lease, &replica("api", 0));
    platform.print(&first, ["a line\n"]);
    set_restarts(&scenario, 7);
    platform.change(&scenario.lease, |_| {});
    assert!(seen.is_quiet().await);
    // The other replica is not included, but the counts cover the whole service.
    platform.start(&scenario.lease, &replica("web", 0));
    seen.until(|seen| seen.newest.services[0].status.as_ref().unwrap().available == 2).await;
    platform.end(&scenario.lease, &replica("web", 1), 1);
    seen.until(|seen| seen.replica("web", 1).unwrap().state() == State::Waiting).await;
    assert_eq!(seen.replica("web", 1).unwrap().message, "CrashLoopBackOff");
    assert!(seen.is_quiet().await);
    // Removal of the replica, then of its service.
    platform.change(&scenario.lease, |view| {
        view.services.get_mut(&web()).unwrap().replicas.remove(&1);
    });
    seen.until(|seen| seen.replica("web", 1).is_none()).await;
    platform.change(&scenario.lease, |view| {
        view.services.remove(&web());
    });
    seen.until(|seen| seen.newest.services.is_empty()).await;
    platform.change(&scenario.lease, |view| view.ended = true);
    assert_eq!(seen.end().await.code(), Code::NotFound);
}

#[tokio::test(start_paused = true)]
async fn slow_follower_skips_to_newest_status() {
    // Large responses: see PROTOCOL.md on clients that treat many small frames as an attack.
    let scenario = Setup::new(Limits::default(), &[("web", 100)]);
    let platform = &scenario.gateway.platform;
    platform.start(&scenario.lease, &replica("web", 0));
    let mut slow = Statuses::follow(&scenario).await;
    let mut quick = Statuses::follow(&scenario).await;
    let all = 300;
    for count in 1..=all {
        set_restarts(&scenario, count);
        quick.until(|seen| restarts(seen, "web", 0) == Some(count)).await;
    }
    // First the responses that were already in transit, then the newest.
    let mut counts = Vec::new();
    while counts.last() != Some(&all) {
        assert!(slow.next().await.unwrap());
        counts.push(restarts(&slow, "web", 0).unwrap());
    }
    let jump = counts[counts.len() - 1] - counts[counts.len() - 2];
    assert!(jump > all / 2, "skipped {jump} of {all}, after {} responses", counts.len());
    assert!(counts.is_sorted());
}

#[tokio::test(start_paused = true)]
async fn changes_in_quick_succession_are_sent_together() {
    let scenario = Setup::new(Limits::default(), &[("web", 1)]);
    let mut seen = Statuses::follow(&scenario).await;
    assert!(seen.next().await.unwrap());
    for count in 1..=100 {
        set_restarts(&scenario, count);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    seen.until(|seen| restarts(seen, "web", 0) == Some(100)).await;
    assert!(seen.answers <= 4, "{}", seen.answers);
}

#[tokio::test(start_paused = true)]
async fn response_larger_than_send_portion_arrives_whole() {
    let scenario = Setup::new(Limits::default(), &[("web", u32::try_from(STREAM_REPLICAS_MAX).unwrap())]);
    let message = "x".repeat(500);
    scenario.gateway.platform.change(&scenario.lease, |view| {
        for slot in view.services.get_mut(&web()).unwrap().replicas.values_mut() {
            slot.state =
                ReplicaState::Waiting { reason: "ImagePullBackOff".into(), message: message.clone() };
        }
    });
    let mut seen = Statuses::open(&scenario, request(&scenario, false)).await.unwrap();
    assert_eq!(seen.end().await.code(), Code::Ok);
    let replicas = &seen.newest.services[0].replica_status;
    assert_eq!(replicas.len(), STREAM_REPLICAS_MAX);
    assert!(replicas.iter().all(|replica| replica.message == format!("ImagePullBackOff: {message}")));
}

#[tokio::test(start_paused = true)]
async fn status_stream_ends_like_log_stream() {
    let scenario = Setup::new(Limits::default(), &[("web", 1)]);
    // The last change arrives before the end.
    let mut ended = Statuses::follow(&scenario).await;
    assert!(ended.next().await.unwrap());
    scenario.gateway.platform.change(&scenario.lease, |view| {
        view.services.get_mut(&web()).unwrap().replicas.get_mut(&0).unwrap().restarts = 9;
        view.ended = true;
    });
    let status = ended.end().await;
    assert_eq!((status.code(), reason(&status)), (Code::NotFound, "LEASE_ENDED".into()));
    assert_eq!(restarts(&ended, "web", 0), Some(9));
    let status = Statuses::open(&scenario, request(&scenario, true)).await.err().unwrap();
    assert_eq!((status.code(), reason(&status)), (Code::NotFound, "LEASE_NOT_FOUND".into()));

    let scenario = Setup::new(Limits::default(), &[("web", 1)]);
    let mut revoked = Statuses::follow(&scenario).await;
    assert!(revoked.next().await.unwrap());
    scenario.gateway.withdraw(scenario.lease.owner());
    let status = revoked.end().await;
    assert_eq!((status.code(), reason(&status)), (Code::Unauthenticated, "CERTIFICATE_WITHDRAWN".into()));

    let scenario = Setup::new(Limits::default(), &[("web", 1)]);
    let mut drained = Statuses::follow(&scenario).await;
    assert!(drained.next().await.unwrap());
    let drain = scenario.gateway.drain.clone();
    let (clean, status) = tokio::join!(drain.finish(Duration::from_secs(10)), drained.end());
    assert!(clean);
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "DRAINING".into()));
}

#[tokio::test(start_paused = true)]
async fn stalled_follower_is_reset() {
    let replicas = 1_000;
    let scenario = Setup::new(Limits::default(), &[("web", replicas)]);
    let stalled = Statuses::follow(&scenario).await;
    for count in 1..=100 {
        // Each response fills a large part of the client's window.
        scenario.gateway.platform.change(&scenario.lease, |view| {
            for slot in view.services.get_mut(&web()).unwrap().replicas.values_mut() {
                slot.restarts = count;
            }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    scenario.gateway.eventually(|gateway| gateway.metric("leasemux_stalled_streams_total") == 1).await;
    drop(stalled);
}

#[tokio::test(start_paused = true)]
async fn absent_item_is_named() {
    let scenario = Setup::new(Limits::default(), &[("web", 2)]);
    for (filter, missing, message) in [
        (only("nope", &[]), "SERVICE_NOT_FOUND", "the lease has no service nope"),
        (only("web", &[0, 5]), "REPLICA_NOT_FOUND", "service web has no replica 5"),
    ] {
        let request = ServiceStatusRequest { filter: Some(filter), ..request(&scenario, true) };
        let status = Statuses::open(&scenario, request).await.err().unwrap();
        assert_eq!((status.code(), reason(&status)), (Code::NotFound, missing.into()));
        assert_eq!(status.message(), message);
    }
}
