//! `ServiceRestart`: one replica after the other, each with an outcome, while followers stay connected.

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

use crate::support::fake_platform::RestartBehavior;
use crate::support::gateway::{Setup, proto_lease};
use crate::support::statuses::Statuses;
use crate::support::{reason, replica};

/// A replica in a response: name, state, message.
type Reported = (String, State, String);

/// Returns a lease with two services, all of whose replicas run.
fn scenario() -> Setup {
    let scenario = Setup::new(Limits::default(), &[("api", 1), ("web", 3)]);
    for (service, count) in [("api", 1), ("web", 3)] {
        for index in 0..count {
            scenario.gateway.platform.start(&scenario.lease, &replica(service, index));
        }
    }
    scenario
}

/// Returns a request to restart all replicas and wait for `timeout`.
fn all(scenario: &Setup, timeout: Duration) -> ServiceRestartRequest {
    let timeout = prost_types::Duration {
        seconds: timeout.as_secs().try_into().unwrap(),
        nanos: timeout.subsec_nanos().try_into().unwrap(),
    };
    let lease_id = Some(proto_lease(&scenario.lease));
    ServiceRestartRequest { lease_id, timeout: Some(timeout), ..ServiceRestartRequest::default() }
}

/// Returns the same request for some replicas of `web`.
fn web(scenario: &Setup, replicas: &[u32], timeout: Duration) -> ServiceRestartRequest {
    let filter = Some(ServiceFilter { name: "web".into(), replicas: replicas.into() });
    ServiceRestartRequest { filter, ..all(scenario, timeout) }
}

async fn restart(scenario: &Setup, request: ServiceRestartRequest) -> Result<Vec<Reported>, Status> {
    let mut client = scenario.gateway.client(&scenario.certificate).await;
    Ok(report(client.service_restart(request).await?.into_inner()))
}

fn report(response: ServiceRestartResponse) -> Vec<Reported> {
    let each = response.status.into_iter().map(|status| {
        let state = status.state();
        (format!("{}/{}", status.service, status.replica), state, status.message.unwrap_or_default())
    });
    each.collect()
}

fn active(names: &[&str]) -> Vec<Reported> {
    names.iter().map(|name| ((*name).to_owned(), State::Active, String::new())).collect()
}

fn pending(names: &[&str]) -> Vec<Reported> {
    names.iter().map(|name| ((*name).to_owned(), State::Pending, String::new())).collect()
}

fn failure(name: &str, message: &str) -> Reported {
    (name.to_owned(), State::Failure, message.to_owned())
}

/// Longer than any successful restart here.
const LONG: Duration = Duration::from_secs(1_000);

#[tokio::test(start_paused = true)]
async fn lease_restarts_one_replica_at_a_time() {
    let scenario = scenario();
    let begin = Instant::now();
    let names = ["api/0", "web/0", "web/1", "web/2"];
    assert_eq!(restart(&scenario, all(&scenario, LONG)).await.unwrap(), active(&names));
    assert_eq!(scenario.gateway.platform.restarted(), names);
    assert!(
        begin.elapsed() >= 4 * STABLE_FOR,
        "a replica was not watched until it was stable: {:?}",
        begin.elapsed()
    );
    let mut seen = Statuses::follow(&scenario).await;
    seen.until(|_| true).await;
    let replica = seen.replica("web", 2).unwrap();
    assert_eq!((replica.restarts, replica.ready, replica.last_reason.as_str()), (1, true, "Restarted"));
    let counted = scenario.gateway.metric("leasemux_restarts_total{result=\"active\"}");
    assert_eq!(counted, 4);
}

#[tokio::test(start_paused = true)]
async fn followers_stay_connected_through_restart() {
    let scenario = scenario();
    let platform = &scenario.gateway.platform;
    let web1 = replica("web", 1);
    let mut statuses = Statuses::follow(&scenario).await;
    let mut logs = scenario.open(ServiceLogsRequest { follow: true, ..scenario.request() }).await.unwrap();
    let view = leasemux::platform::Platform::watch(platform, &scenario.lease).await.unwrap();
    let newest = || view.borrow().replica(&web1).unwrap().newest().unwrap().instance.clone();
    let mut runs = vec![newest()];
    for cycle in 0..5 {
        platform.print(runs.last().unwrap(), (0..100).map(|line| format!("cycle {cycle} line {line}\n")));
        assert_eq!(restart(&scenario, web(&scenario, &[1], LONG)).await.unwrap(), active(&["web/1"]));
        runs.push(newest());
    }
    platform.print(runs.last().unwrap(), ["the end\n"]);
    logs.until(|seen| seen.ends_with("web", 1, "the end\n")).await;
    let produced: Vec<_> = runs.iter().map(|run| (run, 0)).collect();
    assert_eq!(logs.received.assert_complete(platform, "web", 1, &produced), 0);
    statuses.until(|seen| seen.replica("web", 1).unwrap().restarts == 5).await;
    assert_eq!(statuses.replica("web", 1).unwrap().instance, runs[5].as_str());
    assert_eq!(scenario.gateway.metric("leasemux_streams{method=\"ServiceLogs\"}"), 1);
    assert_eq!(scenario.gateway.metric("leasemux_streams{method=\"ServiceStatus\"}"), 1);
}

#[tokio::test(start_paused = true)]
async fn zero_timeout_returns_pending_and_restart_continues() {
    let scenario = scenario();
    let begin = Instant::now();
    let at_once = restart(&scenario, web(&scenario, &[], Duration::ZERO)).await.unwrap();
    assert_eq!(at_once, pending(&["web/0", "web/1", "web/2"]));
    assert!(begin.elapsed() < STABLE_FOR);
    scenario.gateway.eventually(|gateway| gateway.platform.restarted().len() == 3).await;
}

#[tokio::test(start_paused = true)]
async fn restart_continues_after_timeout_or_disconnect() {
    let scenario = scenario();
    let partial = restart(&scenario, web(&scenario, &[], STABLE_FOR + STABLE_FOR / 2)).await.unwrap();
    assert_eq!(partial, [active(&["web/0"]), pending(&["web/1", "web/2"])].concat());
    scenario.gateway.eventually(|gateway| gateway.platform.restarted().len() == 3).await;
    let active = "leasemux_restarts_total{result=\"active\"}";
    scenario.gateway.eventually(|gateway| gateway.metric(active) == 3).await;
    let gone = tokio::time::timeout(STABLE_FOR / 2, restart(&scenario, web(&scenario, &[0, 1], LONG)));
    assert!(gone.await.is_err());
    scenario.gateway.eventually(|gateway| gateway.metric("leasemux_connections") == 0).await;
    scenario.gateway.eventually(|gateway| gateway.metric(active) == 5).await;
}

#[tokio::test(start_paused = true)]
async fn replicas_after_failure_are_not_attempted() {
    let second = replica("web", 1);
    let not_attempted = failure("web/2", "not attempted: the restart of web/1 failed");
    for (behavior, why) in [
        (RestartBehavior::Never, "the replica is not ready 600 s after the restart"),
        (RestartBehavior::Crash, "the new run exited with code 1 (Error)"),
    ] {
        let scenario = scenario();
        let platform = &scenario.gateway.platform;
        platform.set_restart_behavior(&second, behavior);
        let outcomes = restart(&scenario, web(&scenario, &[], LONG)).await.unwrap();
        assert_eq!(outcomes[0], active(&["web/0"])[0]);
        assert_eq!(outcomes[1..], [failure("web/1", why), not_attempted.clone()]);
        assert_eq!(platform.restarted(), ["web/0", "web/1"]);
        let counted =
            |result| scenario.gateway.metric(&format!("leasemux_restarts_total{{result=\"{result}\"}}"));
        assert_eq!((counted("active"), counted("failure"), counted("not_attempted")), (1, 1, 1));
        if behavior == RestartBehavior::Crash {
            // A replica that does not run can be restarted too.
            platform.set_restart_behavior(&second, RestartBehavior::Up);
            assert_eq!(restart(&scenario, web(&scenario, &[1], LONG)).await.unwrap(), active(&["web/1"]));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn unavailable_platform_is_retried_and_broken_one_hidden() {
    let scenario = scenario();
    let platform = &scenario.gateway.platform;
    let web0 = replica("web", 0);
    platform.set_restart_behavior(&web0, RestartBehavior::Unavailable);
    let recovers = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        platform.set_restart_behavior(&web0, RestartBehavior::Up);
    };
    let (outcomes, ()) = tokio::join!(restart(&scenario, web(&scenario, &[0], LONG)), recovers);
    assert_eq!(outcomes.unwrap(), active(&["web/0"]));
    platform.set_restart_behavior(&web0, RestartBehavior::Unavailable);
    let outcomes = restart(&scenario, web(&scenario, &[0], LONG)).await.unwrap();
    assert_eq!(outcomes, [failure("web/0", "the platform did not answer within 60 s")]);
    platform.set_restart_behavior(&web0, RestartBehavior::Broken);
    let outcomes = restart(&scenario, web(&scenario, &[0], LONG)).await.unwrap().remove(0);
    assert_eq!(outcomes.1, State::Failure);
    assert!(outcomes.2.starts_with("internal error ") && !outcomes.2.contains("marker"), "{}", outcomes.2);
}

#[tokio::test(start_paused = true)]
async fn calls_for_same_replica_join_and_others_queue() {
    let scenario = scenario();
    let (first, second, third) = tokio::join!(
        restart(&scenario, web(&scenario, &[0, 1], LONG)),
        restart(&scenario, web(&scenario, &[1, 2], LONG)),
        restart(&scenario, web(&scenario, &[0], LONG)),
    );
    assert_eq!(first.unwrap(), active(&["web/0", "web/1"]));
    assert_eq!(second.unwrap(), active(&["web/1", "web/2"]));
    assert_eq!(third.unwrap(), active(&["web/0"]));
    let mut restarted = scenario.gateway.platform.restarted();
    restarted.sort();
    assert_eq!(restarted, ["web/0", "web/1", "web/2"], "each replica restarts once");
    // A later call restarts it again.
    assert_eq!(restart(&scenario, web(&scenario, &[0], LONG)).await.unwrap(), active(&["web/0"]));
    assert_eq!(scenario.gateway.platform.restarted().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn call_that_joins_failed_replica_stops() {
    let scenario = scenario();
    scenario.gateway.platform.set_restart_behavior(&replica("web", 0), RestartBehavior::Never);
    let pending_one = restart(&scenario, web(&scenario, &[0], Duration::ZERO)).await.unwrap();
    assert_eq!(pending_one, pending(&["web/0"]));
    let outcomes = restart(&scenario, web(&scenario, &[0, 1], LONG)).await.unwrap();
    assert_eq!(outcomes[1], failure("web/1", "not attempted: the restart of web/0 failed"));
    assert_eq!(scenario.gateway.platform.restarted(), ["web/0"]);
}

#[tokio::test(start_paused = true)]
async fn replica_not_attempted_by_one_call_runs_in_another() {
    let scenario = scenario();
    scenario.gateway.platform.set_restart_behavior(&replica("web", 0), RestartBehavior::Never);
    let (both, second) = tokio::join!(
        restart(&scenario, web(&scenario, &[0, 1], LONG)),
        restart(&scenario, web(&scenario, &[1], LONG))
    );
    assert_eq!(both.unwrap()[1].1, State::Failure);
    assert_eq!(second.unwrap(), active(&["web/1"]));
}

#[tokio::test(start_paused = true)]
async fn request_id_identifies_call_for_one_hour() {
    let scenario = scenario();
    let named = |request| ServiceRestartRequest { request_id: "deploy-7".into(), ..request };
    let call = || named(web(&scenario, &[0], LONG));
    let (first, second) = tokio::join!(restart(&scenario, call()), restart(&scenario, call()));
    assert_eq!(first.unwrap(), active(&["web/0"]));
    assert_eq!(second.unwrap(), active(&["web/0"]));
    // The repetition may have another timeout, and gets the recorded outcome.
    scenario.gateway.platform.set_restart_behavior(&replica("web", 0), RestartBehavior::Crash);
    let again = restart(&scenario, named(web(&scenario, &[0], Duration::ZERO))).await;
    assert_eq!(again.unwrap(), active(&["web/0"]));
    assert_eq!(scenario.gateway.platform.restarted().len(), 1);
    for other in [web(&scenario, &[1], LONG), all(&scenario, LONG)] {
        let status = restart(&scenario, named(other)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "request_id");
    }
    // The same id of another tenant is another call.
    let (owner, certificate) = scenario.gateway.tenant();
    let lease =
        leasemux::model::id::LeaseId::new(owner.as_str(), 7, 1, 1, scenario.lease.provider().as_str())
            .unwrap();
    scenario.gateway.platform.add_lease(&lease, &[("web", 1)]);
    scenario.gateway.platform.set_restart_behavior(&replica("web", 0), RestartBehavior::Up);
    let mut client = scenario.gateway.client(&certificate).await;
    let foreign = ServiceRestartRequest { lease_id: Some(proto_lease(&lease)), ..call() };
    assert_eq!(report(client.service_restart(foreign).await.unwrap().into_inner()), active(&["web/0"]));
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert_eq!(restart(&scenario, call()).await.unwrap(), active(&["web/0"]));
    assert_eq!(scenario.gateway.platform.restarted().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn drain_finishes_only_current_replica() {
    let scenario = scenario();
    let end = async {
        scenario.gateway.eventually(|gateway| gateway.platform.restarted().len() == 1).await;
        let deadline = Duration::from_secs(10);
        tokio::join!(scenario.gateway.drain.finish(deadline), scenario.gateway.restarts.finish(deadline)).0
    };
    let (outcomes, clean) = tokio::join!(restart(&scenario, web(&scenario, &[], LONG)), end);
    let skipped = |name| failure(name, "not attempted: the gateway is shutting down");
    assert_eq!(outcomes.unwrap(), [active(&["web/0"]), vec![skipped("web/1"), skipped("web/2")]].concat());
    assert!(clean, "the caller got its response before the deadline");
    assert_eq!(scenario.gateway.platform.restarted(), ["web/0"]);
}

#[tokio::test(start_paused = true)]
async fn drain_abandons_replica_at_deadline() {
    let scenario = scenario();
    scenario.gateway.platform.set_restart_behavior(&replica("web", 0), RestartBehavior::Never);
    let end = async {
        scenario.gateway.eventually(|gateway| gateway.platform.restarted().len() == 1).await;
        let (all, restarts) = (Duration::from_secs(10), Duration::from_secs(8));
        tokio::join!(scenario.gateway.drain.finish(all), scenario.gateway.restarts.finish(restarts)).0
    };
    let (outcomes, clean) = tokio::join!(restart(&scenario, web(&scenario, &[0, 1], LONG)), end);
    let outcomes = outcomes.unwrap();
    assert_eq!((outcomes[0].1, outcomes[1].1), (State::Pending, State::Failure));
    assert_eq!(outcomes[1].2, "not attempted: the gateway is shutting down");
    assert!(outcomes[0].2.contains("shut down"), "{}", outcomes[0].2);
    assert!(clean);
    assert_eq!(scenario.gateway.metric("leasemux_restarts_total{result=\"abandoned\"}"), 1);
}

#[tokio::test(start_paused = true)]
async fn revoked_caller_stops_waiting_and_restart_continues() {
    let scenario = scenario();
    let end = async {
        scenario.gateway.eventually(|gateway| gateway.platform.restarted().len() == 1).await;
        scenario.gateway.withdraw(scenario.lease.owner());
    };
    let (outcomes, ()) = tokio::join!(restart(&scenario, web(&scenario, &[0, 1], LONG)), end);
    let status = outcomes.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unauthenticated, "CERTIFICATE_WITHDRAWN".into()));
    scenario.gateway.eventually(|gateway| gateway.platform.restarted().len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn invalid_request_is_rejected_without_effect() {
    let scenario = scenario();
    let hour = prost_types::Duration { seconds: 3_601, nanos: 0 };
    let before = prost_types::Duration { seconds: -1, nanos: 0 };
    let request = || all(&scenario, LONG);
    for (case, field) in [
        (ServiceRestartRequest { timeout: Some(hour), ..request() }, "timeout"),
        (ServiceRestartRequest { timeout: Some(before), ..request() }, "timeout"),
        (ServiceRestartRequest { request_id: "two words".into(), ..request() }, "request_id"),
        (ServiceRestartRequest { lease_id: None, ..request() }, "lease_id"),
    ] {
        let status = restart(&scenario, case).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, field);
    }
    let status = restart(&scenario, web(&scenario, &[0, 7], LONG)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "service web has no replica 7"));
    assert!(scenario.gateway.platform.restarted().is_empty());
    assert!(PROGRESS_DEADLINE < LONG, "LONG is too short for failures");
}

#[tokio::test(start_paused = true)]
async fn remembered_replicas_per_owner_are_bounded() {
    let scenario = Setup::new(Limits::default(), &[("web", 1_000)]);
    let mut rejected = None;
    for number in 0..10 {
        let named =
            ServiceRestartRequest { request_id: format!("n{number}"), ..web(&scenario, &[], Duration::ZERO) };
        if let Err(status) = restart(&scenario, named).await {
            rejected = Some((number, status));
            break;
        }
    }
    let (number, status) = rejected.expect("no call was rejected");
    assert_eq!(
        (number, status.code(), reason(&status).as_str()),
        (4, Code::ResourceExhausted, "QUOTA_USED_UP")
    );
    let violation = status.get_details_quota_failure().unwrap().violations.remove(0);
    assert_eq!(violation.quota_id, "restarts_remembered");
    assert!(status.get_details_retry_info().is_some());
}
