//! Logs that the API server refuses, or that cannot be requested, read without follow over gRPC.

use std::future::Future;
use std::time::Duration;

use hyper::StatusCode;
use leasemux::model::proto::lease::ServiceLogsRequest;
use leasemux::model::proto::lease::replica_event::Kind;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{SERVICE, Scenario, pass};
use crate::support::gateway::Stream;
use crate::support::loss_check::Seen;
use crate::support::reason;

/// Advances the clock until `task` completes. Network traffic has real time.
async fn in_time<T>(task: impl Future<Output = T>) -> T {
    let mut task = std::pin::pin!(task);
    for _ in 0..400 {
        match tokio::time::timeout(Duration::from_millis(10), &mut task).await {
            Ok(done) => return done,
            Err(_) => pass(Duration::from_millis(500)).await,
        }
    }
    panic!("the task does not complete")
}

async fn read(scenario: &Scenario, request: ServiceLogsRequest) -> (Stream, Status) {
    let mut stream = scenario.setup.open(request).await.unwrap();
    let status = in_time(stream.end()).await;
    (stream, status)
}

#[track_caller]
fn assert_unavailable(status: &Status, what: &str) {
    let outcome = (status.code(), reason(status));
    assert_eq!(outcome, (Code::Unavailable, "PLATFORM_UNAVAILABLE".into()), "{what}: {status}");
    assert!(status.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some()), "{what}");
}

#[tokio::test]
async fn refused_log_request_is_unavailable_and_no_gap() {
    let scenario = Scenario::new(1).await;
    let first = scenario.run("a");
    scenario.cluster.print(&first, 10, 1_000);
    let run = scenario.cluster.crash(scenario.lease(), "a", &first);
    scenario.cluster.print(&run, 10, 1_000);
    scenario.shows(&[2]).await;
    let requests = [
        scenario.setup.request(),
        ServiceLogsRequest { tail_lines: Some(5), ..scenario.setup.request() },
        ServiceLogsRequest { previous: true, ..scenario.setup.request() },
    ];
    for code in [500, 503, 403] {
        scenario.cluster.refuse_logs(Some(StatusCode::from_u16(code).unwrap()));
        for request in &requests {
            let (stream, status) = read(&scenario, request.clone()).await;
            assert_unavailable(&status, &format!("{code}, {request:?}"));
            assert_eq!(stream.received.of(SERVICE, 0), []);
        }
    }
    scenario.cluster.refuse_logs(None);
    let (stream, status) = read(&scenario, scenario.setup.request()).await;
    assert_eq!(status.code(), Code::Ok);
    let printed = [scenario.cluster.printed(&first), scenario.cluster.printed(&run)].concat();
    assert_eq!(stream.received.assert_ordered(SERVICE, 0, &printed), 0);
}

#[tokio::test]
async fn read_without_api_server_is_unavailable_and_no_gap() {
    let scenario = Scenario::new(1).await;
    let run = scenario.run("a");
    scenario.cluster.print(&run, 10, 1_000);
    scenario.shows(&[1]).await;
    scenario.cluster.stop().await;
    let (stream, status) = read(&scenario, scenario.setup.request()).await;
    assert_unavailable(&status, "away");
    assert_eq!(stream.received.of(SERVICE, 0), []);
    scenario.cluster.resume().await;
    let (stream, status) = loop {
        let (stream, status) = read(&scenario, scenario.setup.request()).await;
        if status.code() != Code::Unavailable {
            break (stream, status);
        }
    };
    assert_eq!(status.code(), Code::Ok);
    assert_eq!(stream.received.assert_ordered(SERVICE, 0, &scenario.cluster.printed(&run)), 0);
}

#[tokio::test]
async fn removed_log_of_a_previous_run_stays_a_gap() {
    let scenario = Scenario::new(1).await;
    // The API server knows a previous run, whose log the kubelet no longer has.
    let run = scenario.cluster.run(scenario.lease(), SERVICE, "a", 1);
    scenario.cluster.print(&run, 10, 1_000);
    scenario.shows(&[2]).await;
    let (stream, status) = read(&scenario, scenario.setup.request()).await;
    assert_eq!(status.code(), Code::Ok);
    assert_eq!(stream.received.assert_ordered(SERVICE, 0, &scenario.cluster.printed(&run)), 1);
    let (stream, status) =
        read(&scenario, ServiceLogsRequest { previous: true, ..scenario.setup.request() }).await;
    assert_eq!(status.code(), Code::Ok);
    assert_eq!(stream.received.of(SERVICE, 0), [Seen::Gap(0, 0, false)]);
}

#[tokio::test]
async fn pod_that_cannot_start_and_missing_pod_are_waiting() {
    let scenario = Scenario::new(2).await;
    scenario.shows(&[0, 0]).await;
    scenario.cluster.stuck(scenario.lease(), SERVICE, "a");
    let all = in_time(async {
        loop {
            let (all, status) = scenario.setup.responses(scenario.setup.request()).await;
            assert_eq!(status.code(), Code::Ok);
            let entries = all.into_iter().flat_map(|response| response.services);
            let events = entries.filter_map(|one| Some((one.replica, one.event?)));
            let mut all: Vec<_> =
                events.map(|(index, one)| (index, one.kind(), one.reason, one.message)).collect();
            all.sort();
            if all.iter().any(|(_, _, reason, _)| reason != "Pending") {
                return all;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let outcome: Vec<_> = all.iter().map(|(index, kind, reason, _)| (*index, *kind, &**reason)).collect();
    assert_eq!(outcome, [(0, Kind::Waiting, "ImagePullBackOff"), (1, Kind::Waiting, "Pending")]);
    assert_eq!(all[0].3, "no such image");
}
