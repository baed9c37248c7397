//! `ServiceStatus`: what runs, told once or for as long as somebody listens.

use std::time::Duration;

use leasemux::model::id::ServiceName;
use leasemux::model::limits::{Limits, STREAM_REPLICAS_MAX};
use leasemux::model::proto::lease::replica_status::State;
use leasemux::model::proto::lease::{ServiceFilter, ServiceStatusRequest};
use leasemux::model::view::ReplicaState;
use tonic::Code;

use crate::support::gateway::Scene;
use crate::support::statuses::{Statuses, request};
use crate::support::{reason, replica};

fn web() -> ServiceName {
    "web".parse().unwrap()
}

fn only(service: &str, replicas: &[u32]) -> ServiceFilter {
    ServiceFilter { name: service.into(), replicas: replicas.into() }
}

/// How often a replica was restarted.
fn restarts(seen: &Statuses, service: &str, index: u32) -> Option<u32> {
    seen.replica(service, index).map(|replica| replica.restarts)
}

/// Changes how often `web/0` was restarted, and nothing else.
fn count_restarts(scene: &Scene, count: u32) {
    scene.gateway.world.change(&scene.lease, |view| {
        let service = view.services.get_mut(&web()).unwrap();
        service.replicas.get_mut(&0).unwrap().restarts = count;
    });
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_tells_each_replica_and_ends() {
    let scene = Scene::new(Limits::default(), &[("api", 1), ("web", 2)]);
    let world = &scene.gateway.world;
    let crashed = replica("web", 0);
    world.start(&scene.lease, &crashed);
    world.end(&scene.lease, &crashed, 3);
    let second = world.start(&scene.lease, &crashed);
    let mut seen = Statuses::open(&scene, request(&scene, false)).await.unwrap();
    assert_eq!(seen.end().await.code(), Code::Ok);
    assert_eq!(seen.answers, 1);
    let names: Vec<_> = seen.newest.services.iter().map(|service| service.name.clone()).collect();
    assert_eq!(names, ["api", "web"]);
    let counts = seen.newest.services[1].status.clone().unwrap();
    assert_eq!((counts.total, counts.ready_replicas, counts.available), (2, 1, 1));
    let told = seen.replica("web", 0).unwrap();
    assert_eq!((told.instance.as_str(), told.state(), told.ready), (second.as_str(), State::Running, true));
    assert_eq!((told.restarts, told.last_exit_code, told.last_reason.as_str()), (1, Some(3), "Error"));
    assert!(told.started_at.is_some());
    let other = seen.replica("web", 1).unwrap();
    assert_eq!((other.instance.as_str(), other.state(), other.ready), ("", State::Unknown, false));
}

#[tokio::test(start_paused = true)]
async fn a_follow_answers_when_what_was_asked_for_changed_and_only_then() {
    let scene = Scene::new(Limits::default(), &[("api", 1), ("web", 2)]);
    let world = &scene.gateway.world;
    let first = world.start(&scene.lease, &replica("web", 1));
    let filters = vec![only("web", &[1])];
    let mut seen =
        Statuses::open(&scene, ServiceStatusRequest { filters, ..request(&scene, true) }).await.unwrap();
    assert!(seen.next().await.unwrap());
    assert_eq!(seen.newest.services.len(), 1);
    assert!(seen.replica("web", 0).is_none());
    // What somebody else asked for, what is printed, and what comes to the same.
    world.start(&scene.lease, &replica("api", 0));
    world.print(&first, ["a line\n"]);
    count_restarts(&scene, 7);
    world.change(&scene.lease, |_| {});
    assert!(seen.is_quiet().await);
    // The other replica is not told, but the counts are those of the service.
    world.start(&scene.lease, &replica("web", 0));
    seen.until(|seen| seen.newest.services[0].status.as_ref().unwrap().available == 2).await;
    world.end(&scene.lease, &replica("web", 1), 1);
    seen.until(|seen| seen.replica("web", 1).unwrap().state() == State::Waiting).await;
    assert_eq!(seen.replica("web", 1).unwrap().message, "CrashLoopBackOff");
    assert!(seen.is_quiet().await);
    // A replica that goes, and its service.
    world.change(&scene.lease, |view| {
        view.services.get_mut(&web()).unwrap().replicas.remove(&1);
    });
    seen.until(|seen| seen.replica("web", 1).is_none()).await;
    world.change(&scene.lease, |view| {
        view.services.remove(&web());
    });
    seen.until(|seen| seen.newest.services.is_empty()).await;
    world.change(&scene.lease, |view| view.ended = true);
    assert_eq!(seen.end().await.code(), Code::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_told_the_newest_and_not_all_that_was() {
    // Answers of some size: see PROTOCOL.md on clients that take many small frames for an attack.
    let scene = Scene::new(Limits::default(), &[("web", 100)]);
    let world = &scene.gateway.world;
    world.start(&scene.lease, &replica("web", 0));
    let mut slow = Statuses::follow(&scene).await;
    let mut quick = Statuses::follow(&scene).await;
    let all = 300;
    for count in 1..=all {
        count_restarts(&scene, count);
        quick.until(|seen| restarts(seen, "web", 0) == Some(count)).await;
    }
    // What was under way when the slow one stopped taking anything, and then the newest.
    let mut told = Vec::new();
    while told.last() != Some(&all) {
        assert!(slow.next().await.unwrap());
        told.push(restarts(&slow, "web", 0).unwrap());
    }
    let jump = told[told.len() - 1] - told[told.len() - 2];
    assert!(jump > all / 2, "{jump} of {all} at once, after {} answers", told.len());
    assert!(told.is_sorted());
}

#[tokio::test(start_paused = true)]
async fn changes_at_one_moment_are_told_together() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let mut seen = Statuses::follow(&scene).await;
    assert!(seen.next().await.unwrap());
    for count in 1..=100 {
        count_restarts(&scene, count);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    seen.until(|seen| restarts(seen, "web", 0) == Some(100)).await;
    assert!(seen.answers <= 4, "{}", seen.answers);
}

#[tokio::test(start_paused = true)]
async fn an_answer_larger_than_what_is_handed_over_at_a_time_arrives_whole() {
    let scene = Scene::new(Limits::default(), &[("web", u32::try_from(STREAM_REPLICAS_MAX).unwrap())]);
    let message = "x".repeat(500);
    scene.gateway.world.change(&scene.lease, |view| {
        for slot in view.services.get_mut(&web()).unwrap().replicas.values_mut() {
            slot.state =
                ReplicaState::Waiting { reason: "ImagePullBackOff".into(), message: message.clone() };
        }
    });
    let mut seen = Statuses::open(&scene, request(&scene, false)).await.unwrap();
    assert_eq!(seen.end().await.code(), Code::Ok);
    let replicas = &seen.newest.services[0].replica_status;
    assert_eq!(replicas.len(), STREAM_REPLICAS_MAX);
    assert!(replicas.iter().all(|replica| replica.message == format!("ImagePullBackOff: {message}")));
}

#[tokio::test(start_paused = true)]
async fn each_end_is_told_as_that_of_a_log_stream() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    // The last change comes with the end.
    let mut ended = Statuses::follow(&scene).await;
    assert!(ended.next().await.unwrap());
    scene.gateway.world.change(&scene.lease, |view| {
        view.services.get_mut(&web()).unwrap().replicas.get_mut(&0).unwrap().restarts = 9;
        view.ended = true;
    });
    let status = ended.end().await;
    assert_eq!((status.code(), reason(&status)), (Code::NotFound, "LEASE_ENDED".into()));
    assert_eq!(restarts(&ended, "web", 0), Some(9));
    let status = Statuses::open(&scene, request(&scene, true)).await.err().unwrap();
    assert_eq!((status.code(), reason(&status)), (Code::NotFound, "LEASE_NOT_FOUND".into()));

    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let mut refused = Statuses::follow(&scene).await;
    assert!(refused.next().await.unwrap());
    scene.gateway.withdraw(scene.lease.owner());
    let status = refused.end().await;
    assert_eq!((status.code(), reason(&status)), (Code::Unauthenticated, "CERTIFICATE_WITHDRAWN".into()));

    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let mut drained = Statuses::follow(&scene).await;
    assert!(drained.next().await.unwrap());
    let drain = scene.gateway.drain.clone();
    let (clean, status) = tokio::join!(drain.finish(Duration::from_secs(10)), drained.end());
    assert!(clean);
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "DRAINING".into()));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_nothing_is_reset() {
    let replicas = 1_000;
    let scene = Scene::new(Limits::default(), &[("web", replicas)]);
    let stalled = Statuses::follow(&scene).await;
    for count in 1..=100 {
        // Each answer is a good part of the client's window.
        scene.gateway.world.change(&scene.lease, |view| {
            for slot in view.services.get_mut(&web()).unwrap().replicas.values_mut() {
                slot.restarts = count;
            }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    scene.gateway.eventually(|gateway| gateway.metric("leasemux_stalled_streams_total") == 1).await;
    drop(stalled);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_named() {
    let scene = Scene::new(Limits::default(), &[("web", 2)]);
    for (filter, missing, words) in [
        (only("nope", &[]), "SERVICE_NOT_FOUND", "the lease has no service nope"),
        (only("web", &[0, 5]), "REPLICA_NOT_FOUND", "service web has no replica 5"),
    ] {
        let asked = ServiceStatusRequest { filter: Some(filter), ..request(&scene, true) };
        let status = Statuses::open(&scene, asked).await.err().unwrap();
        assert_eq!((status.code(), reason(&status)), (Code::NotFound, missing.into()));
        assert_eq!(status.message(), words);
    }
}
