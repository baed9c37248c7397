//! `ServiceRestart`: one replica after the other, each judged, and nobody who follows is lost on the way.

mod gateways;
mod random;

use std::time::Duration;

use leasemux::model::limits::Limits;
use leasemux::model::proto::lease::service_restart_status::State;
use leasemux::model::proto::lease::{
    ServiceFilter, ServiceLogsRequest, ServiceRestartRequest, ServiceRestartResponse,
};
use leasemux::restart::probation::{PROGRESS_DEADLINE, STABLE_FOR};
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::gateway::{Scene, proto_lease};
use crate::support::statuses::Statuses;
use crate::support::world::Comeback;
use crate::support::{reason, replica};

/// What a call says of one replica.
type Told = (String, State, String);

/// Two services, all of whose replicas run.
fn scene() -> Scene {
    let scene = Scene::new(Limits::default(), &[("api", 1), ("web", 3)]);
    for (service, count) in [("api", 1), ("web", 3)] {
        for index in 0..count {
            scene.gateway.world.start(&scene.lease, &replica(service, index));
        }
    }
    scene
}

/// A request to restart all that runs, and to wait so long.
fn all(scene: &Scene, timeout: Duration) -> ServiceRestartRequest {
    let timeout = prost_types::Duration {
        seconds: timeout.as_secs().try_into().unwrap(),
        nanos: timeout.subsec_nanos().try_into().unwrap(),
    };
    let lease_id = Some(proto_lease(&scene.lease));
    ServiceRestartRequest { lease_id, timeout: Some(timeout), ..ServiceRestartRequest::default() }
}

/// The same for some replicas of `web`.
fn web(scene: &Scene, replicas: &[u32], timeout: Duration) -> ServiceRestartRequest {
    let filter = Some(ServiceFilter { name: "web".into(), replicas: replicas.into() });
    ServiceRestartRequest { filter, ..all(scene, timeout) }
}

async fn restart(scene: &Scene, request: ServiceRestartRequest) -> Result<Vec<Told>, Status> {
    let mut client = scene.gateway.client(&scene.certificate).await;
    Ok(told(client.service_restart(request).await?.into_inner()))
}

fn told(response: ServiceRestartResponse) -> Vec<Told> {
    let each = response.status.into_iter().map(|status| {
        let state = status.state();
        (format!("{}/{}", status.service, status.replica), state, status.message.unwrap_or_default())
    });
    each.collect()
}

fn active(names: &[&str]) -> Vec<Told> {
    names.iter().map(|name| ((*name).to_owned(), State::Active, String::new())).collect()
}

fn pending(names: &[&str]) -> Vec<Told> {
    names.iter().map(|name| ((*name).to_owned(), State::Pending, String::new())).collect()
}

fn failure(name: &str, message: &str) -> Told {
    (name.to_owned(), State::Failure, message.to_owned())
}

/// More than any restart here takes that comes to a good end.
const LONG: Duration = Duration::from_secs(1_000);

#[tokio::test(start_paused = true)]
async fn a_whole_lease_restarts_one_replica_after_the_other() {
    let scene = scene();
    let begin = Instant::now();
    let names = ["api/0", "web/0", "web/1", "web/2"];
    assert_eq!(restart(&scene, all(&scene, LONG)).await.unwrap(), active(&names));
    assert_eq!(scene.gateway.world.restarted(), names);
    assert!(begin.elapsed() >= 4 * STABLE_FOR, "each was waited for: {:?}", begin.elapsed());
    let mut seen = Statuses::follow(&scene).await;
    seen.until(|_| true).await;
    let told = seen.replica("web", 2).unwrap();
    assert_eq!((told.restarts, told.ready, told.last_reason.as_str()), (1, true, "Restarted"));
    let counted = scene.gateway.metric("leasemux_restarts_total{result=\"active\"}");
    assert_eq!(counted, 4);
}

#[tokio::test(start_paused = true)]
async fn followers_of_logs_and_status_stay_through_a_restart() {
    let scene = scene();
    let world = &scene.gateway.world;
    let slot = replica("web", 1);
    let mut statuses = Statuses::follow(&scene).await;
    let mut logs = scene.open(ServiceLogsRequest { follow: true, ..scene.request() }).await.unwrap();
    let view = leasemux::platform::Platform::watch(world, &scene.lease).await.unwrap();
    let newest = || view.borrow().replica(&slot).unwrap().newest().unwrap().instance.clone();
    let mut runs = vec![newest()];
    for turn in 0..5 {
        world.print(runs.last().unwrap(), (0..100).map(|line| format!("turn {turn} line {line}\n")));
        assert_eq!(restart(&scene, web(&scene, &[1], LONG)).await.unwrap(), active(&["web/1"]));
        runs.push(newest());
    }
    world.print(runs.last().unwrap(), ["the end\n"]);
    logs.until(|seen| seen.ends_with("web", 1, "the end\n")).await;
    let produced: Vec<_> = runs.iter().map(|run| (run, 0)).collect();
    assert_eq!(logs.received.ask(world, "web", 1, &produced), 0);
    statuses.until(|seen| seen.replica("web", 1).unwrap().restarts == 5).await;
    assert_eq!(statuses.replica("web", 1).unwrap().instance, runs[5].as_str());
    assert_eq!(scene.gateway.metric("leasemux_streams{method=\"ServiceLogs\"}"), 1);
    assert_eq!(scene.gateway.metric("leasemux_streams{method=\"ServiceStatus\"}"), 1);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_wait_is_told_at_once_and_it_goes_on() {
    let scene = scene();
    let begin = Instant::now();
    let at_once = restart(&scene, web(&scene, &[], Duration::ZERO)).await.unwrap();
    assert_eq!(at_once, pending(&["web/0", "web/1", "web/2"]));
    assert!(begin.elapsed() < STABLE_FOR);
    scene.gateway.eventually(|gateway| gateway.world.restarted().len() == 3).await;
}

#[tokio::test(start_paused = true)]
async fn it_goes_on_after_the_timeout_and_after_the_caller_has_gone() {
    let scene = scene();
    let some = restart(&scene, web(&scene, &[], STABLE_FOR + STABLE_FOR / 2)).await.unwrap();
    assert_eq!(some, [active(&["web/0"]), pending(&["web/1", "web/2"])].concat());
    scene.gateway.eventually(|gateway| gateway.world.restarted().len() == 3).await;
    let active = "leasemux_restarts_total{result=\"active\"}";
    scene.gateway.eventually(|gateway| gateway.metric(active) == 3).await;
    let gone = tokio::time::timeout(STABLE_FOR / 2, restart(&scene, web(&scene, &[0, 1], LONG)));
    assert!(gone.await.is_err());
    scene.gateway.eventually(|gateway| gateway.metric("leasemux_connections") == 0).await;
    scene.gateway.eventually(|gateway| gateway.metric(active) == 5).await;
}

#[tokio::test(start_paused = true)]
async fn what_comes_behind_a_failure_is_left_alone() {
    let second = replica("web", 1);
    let not_attempted = failure("web/2", "not attempted: the restart of web/1 failed");
    for (comeback, why) in [
        (Comeback::Never, "the replica is not ready 600 s after the restart"),
        (Comeback::Crash, "the new run exited with code 1 (Error)"),
    ] {
        let scene = scene();
        let world = &scene.gateway.world;
        world.set_comeback(&second, comeback);
        let told = restart(&scene, web(&scene, &[], LONG)).await.unwrap();
        assert_eq!(told[0], active(&["web/0"])[0]);
        assert_eq!(told[1..], [failure("web/1", why), not_attempted.clone()]);
        assert_eq!(world.restarted(), ["web/0", "web/1"]);
        let counted =
            |result| scene.gateway.metric(&format!("leasemux_restarts_total{{result=\"{result}\"}}"));
        assert_eq!((counted("active"), counted("failure"), counted("not_attempted")), (1, 1, 1));
        if comeback == Comeback::Crash {
            // What does not run is restarted as well, and comes back.
            world.set_comeback(&second, Comeback::Up);
            assert_eq!(restart(&scene, web(&scene, &[1], LONG)).await.unwrap(), active(&["web/1"]));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_platform_that_cannot_now_is_asked_again_and_one_that_cannot_at_all_is_no_ones_business() {
    let scene = scene();
    let world = &scene.gateway.world;
    let slot = replica("web", 0);
    world.set_comeback(&slot, Comeback::Unavailable);
    let mends = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        world.set_comeback(&slot, Comeback::Up);
    };
    let (told, ()) = tokio::join!(restart(&scene, web(&scene, &[0], LONG)), mends);
    assert_eq!(told.unwrap(), active(&["web/0"]));
    world.set_comeback(&slot, Comeback::Unavailable);
    let told = restart(&scene, web(&scene, &[0], LONG)).await.unwrap();
    assert_eq!(told, [failure("web/0", "the platform did not answer within 60 s")]);
    world.set_comeback(&slot, Comeback::Broken);
    let told = restart(&scene, web(&scene, &[0], LONG)).await.unwrap().remove(0);
    assert_eq!(told.1, State::Failure);
    assert!(told.2.starts_with("internal error ") && !told.2.contains("marker"), "{}", told.2);
}

#[tokio::test(start_paused = true)]
async fn calls_for_the_same_replica_join_and_those_of_one_lease_queue() {
    let scene = scene();
    let (first, second, third) = tokio::join!(
        restart(&scene, web(&scene, &[0, 1], LONG)),
        restart(&scene, web(&scene, &[1, 2], LONG)),
        restart(&scene, web(&scene, &[0], LONG)),
    );
    assert_eq!(first.unwrap(), active(&["web/0", "web/1"]));
    assert_eq!(second.unwrap(), active(&["web/1", "web/2"]));
    assert_eq!(third.unwrap(), active(&["web/0"]));
    let mut restarted = scene.gateway.world.restarted();
    restarted.sort();
    assert_eq!(restarted, ["web/0", "web/1", "web/2"], "each once");
    // Not one that comes later.
    assert_eq!(restart(&scene, web(&scene, &[0], LONG)).await.unwrap(), active(&["web/0"]));
    assert_eq!(scene.gateway.world.restarted().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn who_joins_a_failure_goes_no_further_either() {
    let scene = scene();
    scene.gateway.world.set_comeback(&replica("web", 0), Comeback::Never);
    let begun = restart(&scene, web(&scene, &[0], Duration::ZERO)).await.unwrap();
    assert_eq!(begun, pending(&["web/0"]));
    let told = restart(&scene, web(&scene, &[0, 1], LONG)).await.unwrap();
    assert_eq!(told[1], failure("web/1", "not attempted: the restart of web/0 failed"));
    assert_eq!(scene.gateway.world.restarted(), ["web/0"]);
}

#[tokio::test(start_paused = true)]
async fn what_one_call_leaves_alone_another_may_attempt() {
    let scene = scene();
    scene.gateway.world.set_comeback(&replica("web", 0), Comeback::Never);
    let (both, second) =
        tokio::join!(restart(&scene, web(&scene, &[0, 1], LONG)), restart(&scene, web(&scene, &[1], LONG)));
    assert_eq!(both.unwrap()[1].1, State::Failure);
    assert_eq!(second.unwrap(), active(&["web/1"]));
}

#[tokio::test(start_paused = true)]
async fn the_same_request_id_is_the_same_call_for_an_hour() {
    let scene = scene();
    let named = |request| ServiceRestartRequest { request_id: "deploy-7".into(), ..request };
    let call = || named(web(&scene, &[0], LONG));
    let (first, second) = tokio::join!(restart(&scene, call()), restart(&scene, call()));
    assert_eq!(first.unwrap(), active(&["web/0"]));
    assert_eq!(second.unwrap(), active(&["web/0"]));
    // It need not be waited for as long, and what it was about may be gone.
    scene.gateway.world.set_comeback(&replica("web", 0), Comeback::Crash);
    let again = restart(&scene, named(web(&scene, &[0], Duration::ZERO))).await;
    assert_eq!(again.unwrap(), active(&["web/0"]));
    assert_eq!(scene.gateway.world.restarted().len(), 1);
    for other in [web(&scene, &[1], LONG), all(&scene, LONG)] {
        let status = restart(&scene, named(other)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "request_id");
    }
    // Another tenant's is another one.
    let (owner, certificate) = scene.gateway.tenant();
    let lease =
        leasemux::model::id::LeaseId::new(owner.as_str(), 7, 1, 1, scene.lease.provider().as_str()).unwrap();
    scene.gateway.world.add_lease(&lease, &[("web", 1)]);
    scene.gateway.world.set_comeback(&replica("web", 0), Comeback::Up);
    let mut client = scene.gateway.client(&certificate).await;
    let theirs = ServiceRestartRequest { lease_id: Some(proto_lease(&lease)), ..call() };
    assert_eq!(told(client.service_restart(theirs).await.unwrap().into_inner()), active(&["web/0"]));
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert_eq!(restart(&scene, call()).await.unwrap(), active(&["web/0"]));
    assert_eq!(scene.gateway.world.restarted().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_the_replica_in_hand_and_no_other() {
    let scene = scene();
    let end = async {
        scene.gateway.eventually(|gateway| gateway.world.restarted().len() == 1).await;
        let deadline = Duration::from_secs(10);
        tokio::join!(scene.gateway.drain.finish(deadline), scene.gateway.restarts.finish(deadline)).0
    };
    let (told, clean) = tokio::join!(restart(&scene, web(&scene, &[], LONG)), end);
    let left = |name| failure(name, "not attempted: the gateway is shutting down");
    assert_eq!(told.unwrap(), [active(&["web/0"]), vec![left("web/1"), left("web/2")]].concat());
    assert!(clean, "the caller was told in time");
    assert_eq!(scene.gateway.world.restarted(), ["web/0"]);
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_forever() {
    let scene = scene();
    scene.gateway.world.set_comeback(&replica("web", 0), Comeback::Never);
    let end = async {
        scene.gateway.eventually(|gateway| gateway.world.restarted().len() == 1).await;
        let (all, restarts) = (Duration::from_secs(10), Duration::from_secs(8));
        tokio::join!(scene.gateway.drain.finish(all), scene.gateway.restarts.finish(restarts)).0
    };
    let (told, clean) = tokio::join!(restart(&scene, web(&scene, &[0, 1], LONG)), end);
    let told = told.unwrap();
    assert_eq!((told[0].1, told[1].1), (State::Pending, State::Failure));
    assert_eq!(told[1].2, "not attempted: the gateway is shutting down");
    assert!(told[0].2.contains("shut down"), "{}", told[0].2);
    assert!(clean);
    assert_eq!(scene.gateway.metric("leasemux_restarts_total{result=\"abandoned\"}"), 1);
}

#[tokio::test(start_paused = true)]
async fn who_may_not_any_more_does_not_go_on_waiting() {
    let scene = scene();
    let end = async {
        scene.gateway.eventually(|gateway| gateway.world.restarted().len() == 1).await;
        scene.gateway.withdraw(scene.lease.owner());
    };
    let (told, ()) = tokio::join!(restart(&scene, web(&scene, &[0, 1], LONG)), end);
    let status = told.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unauthenticated, "CERTIFICATE_WITHDRAWN".into()));
    scene.gateway.eventually(|gateway| gateway.world.restarted().len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_is_refused_and_nothing_is_touched() {
    let scene = scene();
    let hour = prost_types::Duration { seconds: 3_601, nanos: 0 };
    let before = prost_types::Duration { seconds: -1, nanos: 0 };
    let request = || all(&scene, LONG);
    for (case, field) in [
        (ServiceRestartRequest { timeout: Some(hour), ..request() }, "timeout"),
        (ServiceRestartRequest { timeout: Some(before), ..request() }, "timeout"),
        (ServiceRestartRequest { request_id: "two words".into(), ..request() }, "request_id"),
        (ServiceRestartRequest { lease_id: None, ..request() }, "lease_id"),
    ] {
        let status = restart(&scene, case).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, field);
    }
    let status = restart(&scene, web(&scene, &[0, 7], LONG)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "service web has no replica 7"));
    assert!(scene.gateway.world.restarted().is_empty());
    assert!(PROGRESS_DEADLINE < LONG, "else the tests above would see nothing but pending");
}

#[tokio::test(start_paused = true)]
async fn one_owner_is_not_remembered_without_bound() {
    let scene = Scene::new(Limits::default(), &[("web", 1_000)]);
    let mut refused = None;
    for number in 0..10 {
        let named =
            ServiceRestartRequest { request_id: format!("n{number}"), ..web(&scene, &[], Duration::ZERO) };
        if let Err(status) = restart(&scene, named).await {
            refused = Some((number, status));
            break;
        }
    }
    let (number, status) = refused.expect("a bound");
    assert_eq!(
        (number, status.code(), reason(&status).as_str()),
        (4, Code::ResourceExhausted, "QUOTA_USED_UP")
    );
    let violation = status.get_details_quota_failure().unwrap().violations.remove(0);
    assert_eq!(violation.quota_id, "restarts_remembered");
    assert!(status.get_details_retry_info().is_some());
}
