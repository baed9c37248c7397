//! Requests without follow while a log cannot be read or no run is running: the caller can distinguish the
//! cases.

use std::time::Duration;

use leasemux::model::id::Instance;
use leasemux::model::limits::Limits;
use leasemux::model::proto::lease::replica_event::Kind;
use leasemux::model::proto::lease::{ReplicaEvent, ServiceFilter, ServiceLogsRequest, ServiceLogsResponse};
use leasemux::model::view::ReplicaState;
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{follow, lines, one_backfill, one_run, replica, wide_lines};
use crate::support::gateway::Setup;
use crate::support::loss_check::Seen;
use crate::support::reason;

/// Upper bound on the time until the caller gets the error.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Two replicas of ten lines each.
fn two_replicas() -> (Setup, [Instance; 2]) {
    let setup = Setup::new(Limits::default(), &[("web", 2)]);
    let runs = [0, 1].map(|index| setup.gateway.platform.start(&setup.lease, &replica("web", index)));
    for run in &runs {
        setup.gateway.platform.print(run, lines(0..10));
    }
    (setup, runs)
}

#[track_caller]
fn assert_unavailable(status: &Status) {
    assert_eq!((status.code(), reason(status)), (Code::Unavailable, "PLATFORM_UNAVAILABLE".into()));
    assert!(status.get_details_retry_info().and_then(|info| info.retry_delay).is_some());
}

/// Returns the events of a replica in these responses.
fn events(responses: &[ServiceLogsResponse], service: &str, index: u32) -> Vec<ReplicaEvent> {
    let entries = responses.iter().flat_map(|response| &response.services);
    entries
        .filter(|one| (&*one.name, one.replica) == (service, index))
        .filter_map(|one| one.event.clone())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn unreadable_log_is_unavailable_after_other_logs() {
    let (setup, runs) = two_replicas();
    let platform = &setup.gateway.platform;
    platform.fail(&runs[1], true);
    let began = Instant::now();
    let mut stream = setup.open(setup.request()).await.unwrap();
    let status = stream.end().await;
    assert_unavailable(&status);
    assert!(status.message().contains("web/1") && !status.message().contains("web/0"), "{status}");
    assert!(began.elapsed() < ANSWER_MAX);
    assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&runs[0], 0)]), 0);
    assert_eq!((stream.received.lines("web", 0), stream.received.of("web", 1)), (10, &[][..]));
    assert_eq!(platform.open(), 0);
    // Resumes from the cursors.
    platform.fail(&runs[1], false);
    for run in &runs {
        platform.print(run, lines(10..20));
    }
    let mut resumed = setup.resume(stream, setup.request()).await;
    assert_eq!(resumed.end().await.code(), Code::Ok);
    for (index, run) in (0..).zip(&runs) {
        assert_eq!(resumed.received.lines("web", index), 20);
        assert_eq!(resumed.received.assert_complete(platform, "web", index, &[(run, 0)]), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn last_response_has_cursors_of_complete_replicas_too() {
    let (setup, runs) = two_replicas();
    setup.gateway.platform.fail(&runs[1], true);
    let (all, status) = setup.responses(setup.request()).await;
    assert_unavailable(&status);
    let last = &all.last().unwrap().services;
    assert!(last.iter().all(|entry| entry.logs.is_empty() && entry.cursor.is_some()), "{last:?}");
    let named: Vec<_> = last.iter().map(|entry| (&*entry.name, entry.replica)).collect();
    assert_eq!(named, [("web", 0)]);
    // Without lines there are no cursors.
    setup.gateway.platform.fail(&runs[0], true);
    let (all, status) = setup.responses(setup.request()).await;
    assert_unavailable(&status);
    assert!(all.is_empty(), "{all:?}");
}

#[tokio::test(start_paused = true)]
async fn failed_read_resumes_from_its_cursor() {
    let (setup, run) = one_run(Limits::default());
    let platform = &setup.gateway.platform;
    platform.print(&run, wide_lines(0..10_000));
    let mut stream = setup.open(setup.request()).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) >= 1).await;
    platform.fail(&run, true);
    assert_unavailable(&stream.end().await);
    let read = stream.received.lines("web", 0);
    assert!((1..10_000).contains(&read), "{read}");
    platform.fail(&run, false);
    let mut resumed = setup.resume(stream, setup.request()).await;
    assert_eq!(resumed.end().await.code(), Code::Ok);
    assert_eq!(resumed.received.lines("web", 0), 10_000);
    assert_eq!(resumed.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
}

/// A replica of two runs, ten lines each.
fn two_runs() -> (Setup, [Instance; 2]) {
    let setup = Setup::new(Limits::default(), &[("web", 1)]);
    let (platform, web) = (&setup.gateway.platform, replica("web", 0));
    let first = platform.start(&setup.lease, &web);
    platform.print(&first, lines(0..10));
    platform.end(&setup.lease, &web, 1);
    let second = platform.start(&setup.lease, &web);
    platform.print(&second, lines(10..20));
    (setup, [first, second])
}

#[tokio::test(start_paused = true)]
async fn unreadable_previous_run_or_count_is_unavailable() {
    let (setup, runs) = two_runs();
    let platform = &setup.gateway.platform;
    for run in &runs {
        platform.fail(run, true);
    }
    for request in [
        ServiceLogsRequest { previous: true, ..setup.request() },
        ServiceLogsRequest { tail_lines: Some(15), ..setup.request() },
        setup.request(),
    ] {
        let (all, status) = setup.responses(request).await;
        assert_unavailable(&status);
        assert!(all.is_empty(), "{all:?}");
    }
    for run in &runs {
        platform.fail(run, false);
    }
    let request = ServiceLogsRequest { previous: true, ..setup.request() };
    let mut stream = setup.open(request).await.unwrap();
    assert_eq!(stream.end().await.code(), Code::Ok);
    assert_eq!(stream.received.text("web", 0), lines(0..10).collect::<String>());
}

#[tokio::test(start_paused = true)]
async fn removed_run_is_gap_if_next_run_is_readable() {
    let (setup, runs) = two_runs();
    let platform = &setup.gateway.platform;
    // The container was removed, and the kubelet reports that as an error of its own.
    platform.fail(&runs[0], true);
    let mut stream = setup.open(setup.request()).await.unwrap();
    assert_eq!(stream.end().await.code(), Code::Ok);
    assert!(stream.received.of("web", 0).contains(&Seen::Gap(0, 0, false)));
    assert_eq!(stream.received.text("web", 0).matches("line 1").count(), 10, "lines from 10 on");
    assert_eq!(stream.received.lines("web", 0), 10);
}

#[tokio::test(start_paused = true)]
async fn follower_waits_for_unreadable_log_without_gap() {
    let (setup, runs) = two_replicas();
    let platform = &setup.gateway.platform;
    platform.fail(&runs[1], true);
    let mut stream = setup.open(follow(&setup)).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) == 10).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    platform.fail(&runs[1], false);
    stream.until(|seen| seen.lines("web", 1) == 10).await;
    assert_eq!(stream.received.assert_complete(platform, "web", 1, &[(&runs[1], 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn unreadable_log_frees_its_permit() {
    let setup = Setup::new(one_backfill(), &[("web", 2)]);
    let platform = &setup.gateway.platform;
    let runs = [0, 1].map(|index| platform.start(&setup.lease, &replica("web", index)));
    for run in &runs {
        platform.print(run, lines(0..10));
    }
    platform.fail(&runs[0], true);
    let only = |index, follow| {
        let filter = Some(ServiceFilter { name: "web".into(), replicas: vec![index] });
        ServiceLogsRequest { filter, follow, ..setup.request() }
    };
    let _waiting = setup.open(only(0, true)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let mut other = setup.open(only(1, false)).await.unwrap();
    assert_eq!(other.end().await.code(), Code::Ok);
    assert_eq!(other.received.assert_complete(platform, "web", 1, &[(&runs[1], 0)]), 0);
}

fn set_waiting(setup: &Setup, index: u32, reason: &str) {
    setup.gateway.platform.change(&setup.lease, |view| {
        let replica =
            view.services.get_mut(&"web".parse().unwrap()).unwrap().replicas.get_mut(&index).unwrap();
        replica.state = ReplicaState::Waiting { reason: reason.into(), message: "no such image".into() };
    });
}

#[tokio::test(start_paused = true)]
async fn replica_without_log_is_reported_as_waiting() {
    let (setup, runs) = two_replicas();
    setup.gateway.platform.add_lease(&setup.lease, &[("web", 2)]);
    set_waiting(&setup, 1, "ImagePullBackOff");
    let (all, status) = setup.responses(setup.request()).await;
    assert_eq!(status.code(), Code::Ok);
    let events = events(&all, "web", 1);
    let [event] = events.as_slice() else { panic!("{all:?}") };
    assert_eq!(
        (event.kind(), &*event.reason, &*event.message),
        (Kind::Waiting, "ImagePullBackOff", "no such image")
    );
    drop(runs);
}

#[tokio::test(start_paused = true)]
async fn crashed_replica_is_waiting_only_without_output() {
    let setup = Setup::new(Limits::default(), &[("web", 2)]);
    let platform = &setup.gateway.platform;
    let runs = [0, 1].map(|index| platform.start(&setup.lease, &replica("web", index)));
    platform.print(&runs[0], lines(0..10));
    (0..2).for_each(|index| platform.end(&setup.lease, &replica("web", index), 1));
    let mut stream = setup.open(setup.request()).await.unwrap();
    assert_eq!(stream.end().await.code(), Code::Ok);
    assert_eq!(stream.received.events("web", 0), []);
    assert_eq!(stream.received.events("web", 1), [Kind::Waiting]);
    assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&runs[0], 0)]), 0);
    // A client that resumes from a cursor has received the event.
    let mut resumed = setup.resume(stream, setup.request()).await;
    assert_eq!(resumed.end().await.code(), Code::Ok);
    assert_eq!(resumed.received.events("web", 0), []);
}

#[tokio::test(start_paused = true)]
async fn running_replica_without_output_sends_nothing() {
    let setup = Setup::new(Limits::default(), &[("web", 1)]);
    setup.gateway.platform.start(&setup.lease, &replica("web", 0));
    let (all, status) = setup.responses(setup.request()).await;
    assert_eq!((status.code(), all.len()), (Code::Ok, 0), "{all:?}");
}

#[tokio::test(start_paused = true)]
async fn lease_without_replicas_reports_nothing_deployed() {
    for services in [&[][..], &[("web", 0)]] {
        let setup = Setup::new(Limits::default(), services);
        let (all, status) = setup.responses(setup.request()).await;
        assert_eq!(status.code(), Code::Ok);
        let events = events(&all, "", 0);
        let [event] = events.as_slice() else { panic!("{all:?}") };
        assert_eq!((event.kind(), &*event.reason), (Kind::Waiting, "NothingDeployed"));
        // A follower gets the event, and its stream stays open.
        let platform = &setup.gateway.platform;
        let request = follow(&setup);
        let mut stream = setup.open(request).await.unwrap();
        stream.until(|seen| seen.events("", 0) == [Kind::Waiting]).await;
        let run = platform.start(&setup.lease, &replica("web", 0));
        platform.print(&run, lines(0..3));
        stream.until(|seen| seen.lines("web", 0) == 3).await;
        assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
    }
}
