//! Logs that the API server refuses or that it cannot be asked for, read without follow over gRPC.

use std::future::Future;
use std::time::Duration;

use hyper::StatusCode;
use leasemux::model::proto::lease::ServiceLogsRequest;
use leasemux::model::proto::lease::replica_event::Kind;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{SERVICE, Stage, pass};
use crate::support::gateway::Stream;
use crate::support::oracle::Seen;
use crate::support::reason;

/// Has time pass until something has come of `task`: its pauses, and none of what is sent.
async fn in_time<T>(task: impl Future<Output = T>) -> T {
    let mut task = std::pin::pin!(task);
    for _ in 0..400 {
        match tokio::time::timeout(Duration::from_millis(10), &mut task).await {
            Ok(done) => return done,
            Err(_) => pass(Duration::from_millis(500)).await,
        }
    }
    panic!("nothing comes of it")
}

async fn read(stage: &Stage, request: ServiceLogsRequest) -> (Stream, Status) {
    let mut stream = stage.scene.open(request).await.unwrap();
    let status = in_time(stream.end()).await;
    (stream, status)
}

#[track_caller]
fn assert_unavailable(status: &Status, what: &str) {
    let told = (status.code(), reason(status));
    assert_eq!(told, (Code::Unavailable, "PLATFORM_UNAVAILABLE".into()), "{what}: {status}");
    assert!(status.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some()), "{what}");
}

#[tokio::test]
async fn refused_log_request_is_unavailable_and_no_gap() {
    let stage = Stage::new(1).await;
    let first = stage.run("a");
    stage.cluster.print(&first, 10, 1_000);
    let run = stage.cluster.crash(stage.lease(), "a", &first);
    stage.cluster.print(&run, 10, 1_000);
    stage.shows(&[2]).await;
    let requests = [
        stage.scene.request(),
        ServiceLogsRequest { tail_lines: Some(5), ..stage.scene.request() },
        ServiceLogsRequest { previous: true, ..stage.scene.request() },
    ];
    for code in [500, 503, 403] {
        stage.cluster.refuse_logs(Some(StatusCode::from_u16(code).unwrap()));
        for request in &requests {
            let (stream, status) = read(&stage, request.clone()).await;
            assert_unavailable(&status, &format!("{code}, {request:?}"));
            assert_eq!(stream.received.of(SERVICE, 0), []);
        }
    }
    stage.cluster.refuse_logs(None);
    let (stream, status) = read(&stage, stage.scene.request()).await;
    assert_eq!(status.code(), Code::Ok);
    let printed = [stage.cluster.printed(&first), stage.cluster.printed(&run)].concat();
    assert_eq!(stream.received.ask_lines(SERVICE, 0, &printed), 0);
}

#[tokio::test]
async fn read_without_api_server_is_unavailable_and_no_gap() {
    let stage = Stage::new(1).await;
    let run = stage.run("a");
    stage.cluster.print(&run, 10, 1_000);
    stage.shows(&[1]).await;
    stage.cluster.go_away().await;
    let (stream, status) = read(&stage, stage.scene.request()).await;
    assert_unavailable(&status, "away");
    assert_eq!(stream.received.of(SERVICE, 0), []);
    stage.cluster.come_back().await;
    let (stream, status) = loop {
        let (stream, status) = read(&stage, stage.scene.request()).await;
        if status.code() != Code::Unavailable {
            break (stream, status);
        }
    };
    assert_eq!(status.code(), Code::Ok);
    assert_eq!(stream.received.ask_lines(SERVICE, 0, &stage.cluster.printed(&run)), 0);
}

#[tokio::test]
async fn removed_log_of_a_previous_run_stays_a_gap() {
    let stage = Stage::new(1).await;
    // The API server tells of a run before, and its kubelet has no log of that any more.
    let run = stage.cluster.run(stage.lease(), SERVICE, "a", 1);
    stage.cluster.print(&run, 10, 1_000);
    stage.shows(&[2]).await;
    let (stream, status) = read(&stage, stage.scene.request()).await;
    assert_eq!(status.code(), Code::Ok);
    assert_eq!(stream.received.ask_lines(SERVICE, 0, &stage.cluster.printed(&run)), 1);
    let (stream, status) = read(&stage, ServiceLogsRequest { previous: true, ..stage.scene.request() }).await;
    assert_eq!(status.code(), Code::Ok);
    assert_eq!(stream.received.of(SERVICE, 0), [Seen::Gap(0, 0, false)]);
}

#[tokio::test]
async fn pod_that_cannot_start_and_missing_pod_are_waiting() {
    let stage = Stage::new(2).await;
    stage.shows(&[0, 0]).await;
    stage.cluster.stuck(stage.lease(), SERVICE, "a");
    let all = in_time(async {
        loop {
            let (all, status) = stage.scene.responses(stage.scene.request()).await;
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
    let told: Vec<_> = all.iter().map(|(index, kind, reason, _)| (*index, *kind, &**reason)).collect();
    assert_eq!(told, [(0, Kind::Waiting, "ImagePullBackOff"), (1, Kind::Waiting, "Pending")]);
    assert_eq!(all[0].3, "no such image");
}
