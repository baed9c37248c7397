//! Log streams over a fake platform, with paused time.

use leasemux::model::id::{Instance, Replica};
use leasemux::model::limits::{Limits, QuotaLimits};
use leasemux::model::proto::lease::ServiceLogsRequest;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::gateway::{Setup, Stream};
use crate::support::loss_check::Seen;
use crate::support::reason;

mod backfill;
mod failing;
mod heartbeats;
mod lag;
mod overload;
mod refill;
mod runs;
mod unfinished;
mod unreadable;

fn replica(service: &str, index: u32) -> Replica {
    Replica { service: service.parse().unwrap(), index }
}

fn lines(range: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    range.map(|number| format!("line {number}\n"))
}

fn wide_lines(range: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    range.map(|number| format!("line {number:0200}\n"))
}

/// Limits with a ring of a few entries.
fn small_ring() -> Limits {
    Limits { ring_max_bytes: 64 * 1024, ..Limits::default() }
}

/// Limits with one backfill at a time.
fn one_backfill() -> Limits {
    Limits { quota: QuotaLimits { history_reads: 1, ..QuotaLimits::default() }, ..Limits::default() }
}

/// Returns a gateway with a lease of one replica, `web/0`, and the replica's first run.
fn one_run(limits: Limits) -> (Setup, Instance) {
    let setup = Setup::new(limits, &[("web", 1)]);
    let run = setup.gateway.platform.start(&setup.lease, &replica("web", 0));
    (setup, run)
}

/// Returns a request for all lines and all that follow.
fn follow(setup: &Setup) -> ServiceLogsRequest {
    ServiceLogsRequest { follow: true, ..setup.request() }
}

/// Returns a request for lines from now on.
fn follow_from_now(setup: &Setup) -> ServiceLogsRequest {
    ServiceLogsRequest { tail_lines: Some(0), ..follow(setup) }
}

/// Returns a stream that follows live, from now on.
async fn open_live(setup: &Setup) -> Stream {
    let mut stream = setup.open(follow_from_now(setup)).await.unwrap();
    stream.until(|seen| !seen.cursors.is_empty()).await;
    stream
}

#[tokio::test(start_paused = true)]
async fn request_without_follow_ends_after_existing_lines() {
    let setup = Setup::new(Limits::default(), &[("web", 2)]);
    let platform = &setup.gateway.platform;
    let first = platform.start(&setup.lease, &replica("web", 0));
    let second = platform.start(&setup.lease, &replica("web", 1));
    platform.print(&first, lines(0..5_000));
    platform.print(&second, ["only\n"]);
    let mut stream = setup.open(setup.request()).await.unwrap();
    assert_eq!(stream.end().await.code(), tonic::Code::Ok);
    assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&first, 0)]), 0);
    assert_eq!(stream.received.lines("web", 0), 5_000);
    assert_eq!(stream.received.text("web", 1), "only\n");
    assert_eq!(platform.follows(), 0);
    assert_eq!(platform.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn backfill_joins_live_without_gap_or_repeat() {
    let (setup, run) = one_run(Limits::default());
    let platform = &setup.gateway.platform;
    platform.print(&run, lines(0..3_000));
    let mut stream = setup.open(follow(&setup)).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) >= 1).await;
    for step in 0..50 {
        platform.print(&run, lines(3_000 + 10 * step..3_010 + 10 * step));
        stream.until(|seen| seen.lines("web", 0) >= 3_000).await;
    }
    stream.until(|seen| seen.lines("web", 0) == 3_500).await;
    assert!(stream.is_quiet().await);
    assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
    // The backfill has ended: only the live tail is open.
    assert_eq!(platform.open(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_tail_serves_many_followers() {
    let setup = Setup::new(Limits::default(), &[("web", 2)]);
    let platform = &setup.gateway.platform;
    let runs = [0, 1].map(|index| platform.start(&setup.lease, &replica("web", index)));
    let request = follow_from_now(&setup);
    let mut streams = Vec::new();
    for _ in 0..50 {
        let mut stream = setup.open(request.clone()).await.unwrap();
        stream.until(|seen| seen.cursors.len() == 2).await;
        streams.push(stream);
    }
    for run in &runs {
        platform.print(run, lines(0..1_000));
    }
    for stream in &mut streams {
        stream.until(|seen| [0, 1].iter().all(|index| seen.lines("web", *index) == 1_000)).await;
        for (index, run) in runs.iter().enumerate() {
            assert_eq!(
                stream.received.assert_complete(platform, "web", u32::try_from(index).unwrap(), &[(run, 0)]),
                0
            );
        }
    }
    assert_eq!(platform.follows(), 2);
    assert_eq!(setup.gateway.metric("leasemux_source_opens_total{read=\"live\"}"), 2);
    assert_eq!(setup.gateway.metric("leasemux_source_opens_total{read=\"history\"}"), 0);
    assert_eq!(setup.gateway.metric("leasemux_actors"), 2);
    assert_eq!(setup.gateway.metric("leasemux_followers"), 100);
    // The actor ends some idle time after the last follower has left.
    drop(streams);
    setup.gateway.eventually(|gateway| gateway.metric("leasemux_actors") == 0).await;
    assert_eq!(platform.open(), 0);
    assert_eq!(setup.gateway.metric("leasemux_followers"), 0);
    assert_eq!(setup.gateway.metric("leasemux_ring_bytes"), 0);
}

#[tokio::test(start_paused = true)]
async fn last_lines_within_ring_open_no_log() {
    let (setup, run) = one_run(Limits::default());
    let platform = &setup.gateway.platform;
    let mut first = open_live(&setup).await;
    platform.print(&run, lines(0..1_000));
    first.until(|seen| seen.lines("web", 0) == 1_000).await;
    for tail in [1, 2, 17, 999] {
        let request = ServiceLogsRequest { tail_lines: Some(tail), ..follow(&setup) };
        let mut stream = setup.open(request).await.unwrap();
        let wanted = usize::try_from(tail).unwrap();
        stream.until(|seen| seen.lines("web", 0) == wanted).await;
        assert!(stream.is_quiet().await);
        assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&run, 1_000 - wanted)]), 0);
    }
    assert_eq!(platform.follows(), 1);
}

#[tokio::test(start_paused = true)]
async fn last_lines_span_runs_and_respect_since() {
    let setup = Setup::new(Limits::default(), &[("web", 1)]);
    let platform = &setup.gateway.platform;
    let web = replica("web", 0);
    let first = platform.start(&setup.lease, &web);
    platform.print(&first, lines(0..10));
    platform.end(&setup.lease, &web, 1);
    let second = platform.start(&setup.lease, &web);
    platform.print(&second, lines(0..4));
    for (tail, from_first, from_second) in [(3, 10, 1), (4, 10, 0), (6, 8, 0), (14, 0, 0), (99, 0, 0)] {
        let request = ServiceLogsRequest { tail_lines: Some(tail), ..setup.request() };
        let mut stream = setup.open(request).await.unwrap();
        assert_eq!(stream.end().await.code(), Code::Ok);
        let runs = [(&first, from_first), (&second, from_second)];
        assert_eq!(stream.received.assert_complete(platform, "web", 0, &runs), 0, "tail {tail}");
        let expected = (10 - from_first) + (4 - from_second);
        assert_eq!(stream.received.lines("web", 0), expected, "tail {tail}");
    }
    // The fake stamps two lines per nanosecond from 1000 on: 1003 is the time of lines 6 and 7.
    let since = Some(prost_types::Timestamp { seconds: 0, nanos: 1_003 });
    let mut stream = setup.open(ServiceLogsRequest { since, ..setup.request() }).await.unwrap();
    stream.end().await;
    // The times of the second run start again, so all of its lines are older.
    assert_eq!(stream.received.text("web", 0), "line 6\nline 7\nline 8\nline 9\n");
    let request = ServiceLogsRequest { since, tail_lines: Some(20), ..setup.request() };
    let mut stream = setup.open(request).await.unwrap();
    stream.end().await;
    assert!(stream.received.text("web", 0).starts_with("line 6\n"));
}

#[tokio::test(start_paused = true)]
async fn since_omits_older_lines_of_ring() {
    let (setup, run) = one_run(Limits::default());
    let platform = &setup.gateway.platform;
    let mut first = open_live(&setup).await;
    platform.print(&run, lines(0..10));
    first.until(|seen| seen.lines("web", 0) == 10).await;
    // Two lines per nanosecond from 1000 on: 1003 is the time of lines 6 and 7, and no line is as new as
    // 2000.
    let mut streams = Vec::new();
    for (tail, since, from) in [(9, 1_003, 6), (9, 2_000, 10), (2, 1_003, 8)] {
        let since = Some(prost_types::Timestamp { seconds: 0, nanos: since });
        let request = ServiceLogsRequest { tail_lines: Some(tail), since, ..follow(&setup) };
        let mut stream = setup.open(request).await.unwrap();
        stream.until(|seen| seen.lines("web", 0) == 10 - from && !seen.cursors.is_empty()).await;
        assert!(stream.is_quiet().await);
        streams.push((stream, from));
    }
    platform.print(&run, lines(10..12));
    for (stream, from) in &mut streams {
        stream.until(|seen| seen.lines("web", 0) == 12 - *from).await;
        assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&run, *from)]), 0);
    }
    assert_eq!(platform.open(), 1);
}

#[tokio::test(start_paused = true)]
async fn timestamps_prefix_backfilled_and_live_lines() {
    let (setup, run) = one_run(Limits::default());
    let platform = &setup.gateway.platform;
    platform.print(&run, lines(0..2));
    let request = ServiceLogsRequest { timestamps: true, ..follow(&setup) };
    let mut stream = setup.open(request).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) == 2).await;
    platform.print(&run, lines(2..4));
    stream.until(|seen| seen.lines("web", 0) == 4).await;
    let timestamp = |nanos: u32| format!("1970-01-01T00:00:00.00000{nanos}Z");
    let expected: Vec<_> =
        (0..4).map(|number| format!("{} line {number}\n", timestamp(1_000 + number / 2))).collect();
    assert_eq!(stream.received.text("web", 0), expected.concat());
}

#[tokio::test(start_paused = true)]
async fn failed_source_is_reopened_without_loss() {
    let (setup, run) = one_run(Limits::default());
    let platform = &setup.gateway.platform;
    let mut stream = setup.open(follow(&setup)).await.unwrap();
    platform.print(&run, lines(0..10));
    stream.until(|seen| seen.lines("web", 0) == 10).await;
    platform.fail(&run, true);
    platform.print(&run, lines(10..20));
    assert!(stream.is_quiet().await);
    platform.fail(&run, false);
    stream.until(|seen| seen.lines("web", 0) == 20).await;
    assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
    assert!(
        setup.gateway.metric("leasemux_source_errors_total{kind=\"unavailable\",platform=\"other\"}") >= 1
    );
}

#[tokio::test(start_paused = true)]
async fn source_gap_is_reported_once_per_follower() {
    let (setup, run) = one_run(Limits::default());
    let platform = &setup.gateway.platform;
    platform.print(&run, lines(0..3));
    platform.lose(&run, 4);
    platform.print(&run, lines(7..10));
    let request = follow(&setup);
    let mut stream = setup.open(request.clone()).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) == 6).await;
    platform.print(&run, lines(10..12));
    platform.lose(&run, 5);
    stream.until(|seen| seen.missing("web", 0) == 9).await;
    let mut resumed = setup.resume(stream, request.clone()).await;
    platform.print(&run, lines(17..18));
    resumed.until(|seen| seen.lines("web", 0) == 9).await;
    assert_eq!(resumed.received.missing("web", 0), 9);
    let mut late = setup.open(request).await.unwrap();
    late.until(|seen| seen.lines("web", 0) == 9).await;
    assert_eq!(late.received.missing("web", 0), 9);
}

#[tokio::test(start_paused = true)]
async fn drain_sends_ring_then_cursors_then_unavailable() {
    let setup = Setup::new(Limits::default(), &[("web", 2)]);
    let platform = &setup.gateway.platform;
    let runs = [0, 1].map(|index| platform.start(&setup.lease, &replica("web", index)));
    let mut stream = setup.open(follow(&setup)).await.unwrap();
    platform.print(&runs[0], lines(0..100));
    stream.until(|seen| seen.lines("web", 0) == 100).await;
    let drain = setup.gateway.drain.clone();
    let finish = async { drain.finish(std::time::Duration::from_secs(10)).await };
    let (clean, status) = tokio::join!(finish, stream.end());
    assert!(clean);
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "DRAINING".into()));
    assert!(status.get_details_retry_info().is_some());
    assert_eq!(stream.received.cursors.len(), 2);
    assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&runs[0], 0)]), 0);
    // Another gateway continues from the cursors.
    let second = setup.successor();
    platform.print(&runs[0], lines(100..200));
    platform.print(&runs[1], lines(0..5));
    let request = follow(&setup);
    let mut resumed = second.resume(stream, request).await;
    resumed.until(|seen| seen.lines("web", 0) == 200 && seen.lines("web", 1) == 5).await;
    assert_eq!(resumed.received.assert_complete(platform, "web", 0, &[(&runs[0], 0)]), 0);
    assert_eq!(resumed.received.assert_complete(platform, "web", 1, &[(&runs[1], 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn revoked_credential_ends_reading_and_stalled_streams() {
    let (setup, run) = one_run(Limits::default());
    let platform = &setup.gateway.platform;
    let request = follow(&setup);
    let mut reading = setup.open(request.clone()).await.unwrap();
    let mut stalled = setup.open(request.clone()).await.unwrap();
    platform.print(&run, wide_lines(0..10_000));
    stalled.until(|seen| seen.lines("web", 0) >= 1).await;
    reading.until(|seen| seen.lines("web", 0) == 10_000).await;
    setup.gateway.withdraw(setup.lease.owner());
    let status = reading.end().await;
    assert_eq!((status.code(), reason(&status)), (Code::Unauthenticated, "CERTIFICATE_WITHDRAWN".into()));
    let started = tokio::time::Instant::now();
    setup.gateway.eventually(|gateway| gateway.metric("leasemux_streams{method=\"ServiceLogs\"}") == 0).await;
    assert!(started.elapsed() <= std::time::Duration::from_secs(2));
    let status = setup.open(request).await.err().unwrap();
    assert_eq!((status.code(), reason(&status)), (Code::Unauthenticated, "CERTIFICATE_UNKNOWN".into()));
    reading.received.assert_complete(platform, "web", 0, &[(&run, 0)]);
}

#[tokio::test(start_paused = true)]
async fn cursor_into_rotated_lines_gets_gap() {
    let (setup, run) = one_run(Limits::default());
    let platform = &setup.gateway.platform;
    platform.print(&run, lines(0..10));
    let request = follow(&setup);
    let mut stream = setup.open(request.clone()).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) == 10).await;
    let resume: Vec<_> = stream.received.cursors.values().cloned().collect();
    drop(stream);
    setup.gateway.eventually(|gateway| gateway.metric("leasemux_actors") == 0).await;
    platform.print(&run, lines(10..20));
    platform.rotate(&run, 5);
    let mut stream =
        setup.open(ServiceLogsRequest { resume: resume.clone(), ..request.clone() }).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) == 5).await;
    assert_eq!(stream.received.of("web", 0)[0], Seen::Gap(0, 0, false));
    assert!(stream.received.text("web", 0).starts_with("line 15\n"));
    // The same if the run no longer exists.
    let mut resume = resume;
    resume[0].instance = "other/web/0".into();
    let mut stream = setup.open(ServiceLogsRequest { resume, ..request }).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) == 5).await;
    assert_eq!(stream.received.of("web", 0)[0], Seen::Gap(0, 0, false));
}

#[tokio::test(start_paused = true)]
async fn silent_or_health_connection_does_not_delay_drain() {
    let setup = Setup::new(Limits::default(), &[("web", 1)]);
    let silent = setup.gateway.connect(None);
    let channel = setup.gateway.channel_of(None).await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
    let mut watch = health.watch(request).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    assert!(setup.gateway.drain.finish(std::time::Duration::from_secs(10)).await);
    assert!(watch.message().await.is_err());
    drop(silent);
    // A connection without calls is closed even without a drain.
    let setup = Setup::new(Limits::default(), &[("web", 1)]);
    let _silent = setup.gateway.connect(None);
    setup.gateway.eventually(|gateway| gateway.metric("leasemux_connections") == 1).await;
    setup.gateway.eventually(|gateway| gateway.metric("leasemux_connections") == 0).await;
}
