//! Heartbeats: a follower of a silent replica can distinguish a quiet log from one that cannot be read.

use std::time::Duration;

use leasemux::model::limits::Limits;
use leasemux::model::proto::lease::ServiceLogsRequest;
use leasemux::model::proto::lease::replica_event::Kind;
use leasemux::model::proto::lease::source_state::State;
use leasemux::model::time::LogTime;
use tonic::Code;

use super::{follow, lines, one_backfill, one_run, replica, wide_lines};
use crate::support::gateway::{Setup, Stream};
use crate::support::loss_check::Received;

/// Requests heartbeats at the shortest interval.
fn with_heartbeats(request: ServiceLogsRequest) -> ServiceLogsRequest {
    ServiceLogsRequest { heartbeat: Some(prost_types::Duration { seconds: 1, nanos: 0 }), ..request }
}

async fn open(setup: &Setup) -> Stream {
    setup.open(with_heartbeats(follow(setup))).await.unwrap()
}

fn is(state: State, reason: &str) -> impl Fn(&Received) -> bool {
    move |received| received.last_source("web", 0) == Some((state, reason))
}

/// The number of heartbeats of `web/0`.
fn count(stream: &Stream) -> usize {
    stream.received.sources("web", 0).len()
}

#[tokio::test(start_paused = true)]
async fn only_followers_that_ask_get_heartbeats() {
    let (setup, run) = one_run(Limits::default());
    let platform = &setup.gateway.platform;
    platform.print(&run, lines(0..10));
    let (mut stream, mut without) = (open(&setup).await, setup.open(follow(&setup)).await.unwrap());
    stream.until(is(State::Live, "")).await;
    without.until(|seen| seen.lines("web", 0) == 10).await;
    let sent = || {
        ["leasemux_frames_encoded_total", "leasemux_messages_delivered_total"]
            .map(|name| setup.gateway.metric(name))
    };
    let before = sent();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(without.is_quiet().await);
    stream.until(|received| received.sources("web", 0).len() >= 60).await;
    assert_eq!((count(&without), sent()), (0, before));
    assert!(stream.received.sources("web", 0).iter().all(|source| source.state() == State::Live));
    // Lines take the place of heartbeats.
    let mut before = 0;
    for number in 10..40 {
        platform.print(&run, lines(number..number + 1));
        stream.until(|seen| seen.lines("web", 0) == number + 1).await;
        if number == 10 {
            before = count(&stream);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(count(&stream), before);
    assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn failing_log_is_reconnecting_until_it_is_read() {
    let (setup, run) = one_run(Limits::default());
    let platform = &setup.gateway.platform;
    platform.print(&run, lines(0..10));
    let mut stream = open(&setup).await;
    stream.until(is(State::Live, "")).await;
    let before = LogTime::now();
    platform.fail(&run, true);
    platform.print(&run, lines(10..20));
    stream.until(is(State::Reconnecting, "LogUnavailable")).await;
    let since = |stream: &Stream| stream.received.sources("web", 0).last().unwrap().since;
    let broke = since(&stream).unwrap();
    assert!((before.parts()..=LogTime::now().parts()).contains(&(broke.seconds, broke.nanos)));
    // Each attempt fails.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let seen = count(&stream);
    stream.until(|received| received.sources("web", 0).len() > seen + 50).await;
    assert_eq!(since(&stream), Some(broke));
    platform.fail(&run, false);
    stream.until(is(State::Live, "")).await;
    assert_eq!(since(&stream), None);
    assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
    // The same for a log whose older lines are read.
    platform.fail(&run, true);
    let mut later = open(&setup).await;
    later.until(is(State::Reconnecting, "LogUnavailable")).await;
    platform.fail(&run, false);
    later.until(is(State::Live, "")).await;
    assert_eq!(later.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn ended_run_is_waiting_with_the_reason() {
    let (setup, run) = one_run(Limits::default());
    let platform = &setup.gateway.platform;
    platform.print(&run, lines(0..10));
    let mut stream = open(&setup).await;
    stream.until(is(State::Live, "")).await;
    platform.end(&setup.lease, &replica("web", 0), 1);
    stream.until(|received| matches!(received.last_source("web", 0), Some((State::Waiting, _)))).await;
    platform.change(&setup.lease, |view| view.stale_since = Some(LogTime::from_nanos(9_000_000_000)));
    stream.until(is(State::Reconnecting, "PlatformUnreachable")).await;
    assert_eq!(stream.received.sources("web", 0).last().unwrap().since.unwrap().seconds, 9);
    platform.change(&setup.lease, |view| view.stale_since = None);
    let next = platform.start(&setup.lease, &replica("web", 0));
    platform.print(&next, lines(0..5));
    stream.until(is(State::Live, "")).await;
    assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&run, 0), (&next, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn backfill_that_waits_its_turn_is_backfilling() {
    let (setup, run) = one_run(one_backfill());
    let platform = &setup.gateway.platform;
    platform.print(&run, wide_lines(0..5_000));
    // Holds the only permit, and does not read.
    let mut slow = setup.open(setup.request()).await.unwrap();
    assert!(slow.next_if_ready().await.unwrap());
    let mut stream = open(&setup).await;
    stream.until(|received| received.sources("web", 0).len() == 5).await;
    for source in stream.received.sources("web", 0) {
        assert_eq!((source.state(), source.lines_left), (State::Backfilling, None));
    }
    assert_eq!(slow.end().await.code(), Code::Ok);
    stream.until(is(State::Live, "")).await;
    assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
    assert_eq!(slow.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn heartbeats_do_not_keep_a_rejected_stream() {
    let (setup, run) = one_run(one_backfill());
    setup.gateway.platform.print(&run, wide_lines(0..5_000));
    let mut slow = setup.open(setup.request()).await.unwrap();
    assert!(slow.next_if_ready().await.unwrap());
    // It waits for 30 s and is sent no line.
    let mut stream = open(&setup).await;
    assert_eq!(stream.end().await.code(), Code::ResourceExhausted);
    assert!((28..=30).contains(&count(&stream)), "{}", count(&stream));
    assert_eq!(slow.end().await.code(), Code::Ok);
}

#[tokio::test(start_paused = true)]
async fn read_without_follow_gets_heartbeats() {
    let (setup, run) = one_run(Limits::default());
    let platform = &setup.gateway.platform;
    platform.print(&run, lines(0..10));
    platform.fail(&run, true);
    let mut stream = setup.open(with_heartbeats(setup.request())).await.unwrap();
    assert_eq!(stream.end().await.code(), Code::Unavailable);
    assert!(is(State::Reconnecting, "LogUnavailable")(&stream.received), "{:?}", stream.received);
    platform.fail(&run, false);
    let mut stream = setup.open(with_heartbeats(setup.request())).await.unwrap();
    assert_eq!(stream.end().await.code(), Code::Ok);
    assert_eq!((count(&stream), stream.received.lines("web", 0)), (0, 10));
    assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn heartbeats_end_with_the_replica() {
    let setup = Setup::new(Limits::default(), &[("web", 2)]);
    let platform = &setup.gateway.platform;
    let runs = [0, 1].map(|index| platform.start(&setup.lease, &replica("web", index)));
    for run in &runs {
        platform.print(run, lines(0..10));
    }
    let mut stream = open(&setup).await;
    let both = |seen: &Received| (0..2).all(|index| seen.last_source("web", index).is_some());
    stream.until(both).await;
    platform.end(&setup.lease, &replica("web", 1), 0);
    platform.change(&setup.lease, |view| {
        view.services.values_mut().for_each(|service| _ = service.replicas.remove(&1));
    });
    stream.until(|received| received.events("web", 1).contains(&Kind::Gone)).await;
    let (before, ended) = (count(&stream), stream.received.sources("web", 1).len());
    stream.until(|received| received.sources("web", 0).len() > before + 8).await;
    assert_eq!(stream.received.sources("web", 1).len(), ended);
    for (index, run) in (0..).zip(&runs) {
        assert_eq!(stream.received.assert_complete(platform, "web", index, &[(run, 0)]), 0);
    }
}
