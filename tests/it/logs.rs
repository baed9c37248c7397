//! Following logs, over a fake world with paused time.

use leasemux::model::id::Replica;
use leasemux::model::limits::Limits;
use leasemux::model::proto::lease::replica_event::Kind;
use leasemux::model::proto::lease::{OnLag, ServiceLogsRequest};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::gateway::Scene;
use crate::support::oracle::Seen;
use crate::support::reason;

mod failing;
mod history;

fn replica(service: &str, index: u32) -> Replica {
    Replica { service: service.parse().unwrap(), index }
}

fn lines(range: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    range.map(|number| format!("line {number}\n"))
}

#[tokio::test(start_paused = true)]
async fn what_was_is_sent_and_then_the_stream_ends() {
    let scene = Scene::new(Limits::default(), &[("web", 2)]);
    let world = &scene.gateway.world;
    let first = world.start(&scene.lease, &replica("web", 0));
    let second = world.start(&scene.lease, &replica("web", 1));
    world.print(&first, lines(0..5_000));
    world.print(&second, ["only\n"]);
    let mut stream = scene.open(scene.request()).await.unwrap();
    assert_eq!(stream.end().await.code(), tonic::Code::Ok);
    assert_eq!(stream.received.ask(world, "web", 0, &[(&first, 0)]), 0);
    assert_eq!(stream.received.lines("web", 0), 5_000);
    assert_eq!(stream.received.text("web", 1), "only\n");
    assert_eq!(world.follows(), 0);
    assert_eq!(world.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn history_joins_live_without_hole_or_repeat() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let world = &scene.gateway.world;
    let run = world.start(&scene.lease, &replica("web", 0));
    world.print(&run, lines(0..3_000));
    let mut request = scene.request();
    request.follow = true;
    let mut stream = scene.open(request).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) >= 1).await;
    for step in 0..50 {
        world.print(&run, lines(3_000 + 10 * step..3_010 + 10 * step));
        stream.until(|seen| seen.lines("web", 0) >= 3_000).await;
    }
    stream.until(|seen| seen.lines("web", 0) == 3_500).await;
    assert!(stream.is_quiet().await);
    assert_eq!(stream.received.ask(world, "web", 0, &[(&run, 0)]), 0);
    // The follower's own read has ended; only the one live tail is open.
    assert_eq!(world.open(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_followed_and_told() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let world = &scene.gateway.world;
    let web = replica("web", 0);
    let first = world.start(&scene.lease, &web);
    world.print(&first, lines(0..10));
    let mut request = scene.request();
    request.follow = true;
    let mut stream = scene.open(request).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) == 10).await;
    world.print(&first, ["panic\n"]);
    world.end(&scene.lease, &web, 1);
    stream.until(|seen| seen.events("web", 0) == [Kind::Ended, Kind::Waiting]).await;
    let second = world.start(&scene.lease, &web);
    world.print(&second, lines(0..10));
    stream.until(|seen| seen.lines("web", 0) == 21).await;
    assert_eq!(stream.received.events("web", 0), [Kind::Ended, Kind::Waiting, Kind::Started]);
    assert_eq!(stream.received.ask(world, "web", 0, &[(&first, 0), (&second, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn runs_that_came_and_went_unseen_are_a_gap() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let world = &scene.gateway.world;
    let web = replica("web", 0);
    let first = world.start(&scene.lease, &web);
    world.print(&first, lines(0..10));
    let mut stream = scene.open(ServiceLogsRequest { follow: true, ..scene.request() }).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) == 10).await;
    world.end(&scene.lease, &web, 1);
    stream.until(|seen| seen.events("web", 0) == [Kind::Ended, Kind::Waiting]).await;
    // Between two looks: one more, and the next.
    let unseen = world.start(&scene.lease, &web);
    world.print(&unseen, lines(0..10));
    world.end(&scene.lease, &web, 1);
    let third = world.start(&scene.lease, &web);
    world.print(&third, lines(0..10));
    world.change(&scene.lease, |view| {
        let slots = &mut view.services.get_mut(&web.service).unwrap().replicas;
        slots.get_mut(&web.index).unwrap().runs.drain(..2);
    });
    stream.until(|seen| seen.lines("web", 0) == 20).await;
    assert_eq!(stream.received.events("web", 0), [Kind::Ended, Kind::Waiting, Kind::Started]);
    let gaps = stream.received.of("web", 0).iter().filter(|seen| matches!(seen, Seen::Gap(_, _, false)));
    assert_eq!(gaps.count(), 1);
}

fn wide_lines(range: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    range.map(|number| format!("line {number:0200}\n"))
}

/// A ring of a few entries, and no pause between chunks.
fn small_ring() -> Limits {
    Limits { ring_max_bytes: 64 * 1024, ..Limits::default() }
}

#[tokio::test(start_paused = true)]
async fn who_falls_behind_is_told_exactly_what_is_missing_and_delays_nobody() {
    let scene = Scene::new(small_ring(), &[("web", 1)]);
    let world = &scene.gateway.world;
    let run = world.start(&scene.lease, &replica("web", 0));
    let request = || {
        let mut request = scene.request();
        (request.follow, request.tail_lines) = (true, Some(0));
        request
    };
    let mut slow = scene.open(request()).await.unwrap();
    slow.until(|seen| !seen.cursors.is_empty()).await;
    let mut quick = scene.open(request()).await.unwrap();
    quick.until(|seen| !seen.cursors.is_empty()).await;
    // Far more than ring, stream buffer, pipe and the client's window hold together.
    for step in 0..400 {
        world.print(&run, wide_lines(100 * step..100 * (step + 1)));
        quick.until(|seen| seen.lines("web", 0) == 100 * (step + 1)).await;
    }
    assert_eq!(quick.received.ask(world, "web", 0, &[(&run, 0)]), 0);
    world.print(&run, ["the end\n"]);
    slow.until(|seen| seen.ends_with("web", 0, "the end\n")).await;
    let lost = slow.received.ask(world, "web", 0, &[(&run, 0)]);
    assert!(lost > 0);
    let total = world.printed(&run).len() as u64;
    assert_eq!(scene.gateway.metric("leasemux_lines_lost_total{cause=\"lag\"}"), lost);
    assert_eq!(scene.gateway.metric("leasemux_lines_delivered_total"), total + total - lost);
    assert_eq!(scene.gateway.metric("leasemux_lines_in_total"), total);
    assert!(scene.gateway.metric("leasemux_ring_bytes") <= 64 * 1024);
    // Encoded once each, and tailed once, for both.
    let encoded = scene.gateway.metric("leasemux_frames_encoded_total");
    assert!(scene.gateway.metric("leasemux_messages_delivered_total") > encoded);
    assert_eq!(world.follows(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_asked_to_be_closed_when_behind_is_closed_with_cursors_and_goes_on_without_loss() {
    let scene = Scene::new(small_ring(), &[("web", 1)]);
    let world = &scene.gateway.world;
    let run = world.start(&scene.lease, &replica("web", 0));
    let mut request = scene.request();
    (request.follow, request.tail_lines, request.on_lag) = (true, Some(0), OnLag::Close.into());
    let mut stream = scene.open(request).await.unwrap();
    stream.until(|seen| !seen.cursors.is_empty()).await;
    let mut other = scene.open(ServiceLogsRequest { follow: true, ..scene.request() }).await.unwrap();
    for step in 0..400 {
        world.print(&run, wide_lines(100 * step..100 * (step + 1)));
        other.until(|seen| seen.lines("web", 0) == 100 * (step + 1)).await;
    }
    let status = stream.end().await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.get_details_error_info().unwrap().reason, "FOLLOWER_LAGGED");
    assert_eq!(stream.received.missing("web", 0), 0);
    let mut again = scene.resume(stream, ServiceLogsRequest { follow: true, ..scene.request() }).await;
    again.until(|seen| seen.lines("web", 0) == 40_000).await;
    assert_eq!(again.received.ask(world, "web", 0, &[(&run, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn one_tail_serves_many() {
    let scene = Scene::new(Limits::default(), &[("web", 2)]);
    let world = &scene.gateway.world;
    let runs = [0, 1].map(|index| world.start(&scene.lease, &replica("web", index)));
    let request = ServiceLogsRequest { follow: true, tail_lines: Some(0), ..scene.request() };
    let mut streams = Vec::new();
    for _ in 0..50 {
        let mut stream = scene.open(request.clone()).await.unwrap();
        stream.until(|seen| seen.cursors.len() == 2).await;
        streams.push(stream);
    }
    for run in &runs {
        world.print(run, lines(0..1_000));
    }
    for stream in &mut streams {
        stream.until(|seen| [0, 1].iter().all(|index| seen.lines("web", *index) == 1_000)).await;
        for (index, run) in runs.iter().enumerate() {
            assert_eq!(stream.received.ask(world, "web", u32::try_from(index).unwrap(), &[(run, 0)]), 0);
        }
    }
    assert_eq!(world.follows(), 2);
    assert_eq!(scene.gateway.metric("leasemux_source_opens_total{read=\"live\"}"), 2);
    assert_eq!(scene.gateway.metric("leasemux_source_opens_total{read=\"history\"}"), 0);
    assert_eq!(scene.gateway.metric("leasemux_actors"), 2);
    assert_eq!(scene.gateway.metric("leasemux_followers"), 100);
    // When all have gone, so does the actor, after some idle time.
    drop(streams);
    scene.gateway.eventually(|gateway| gateway.metric("leasemux_actors") == 0).await;
    assert_eq!(world.open(), 0);
    assert_eq!(scene.gateway.metric("leasemux_followers"), 0);
    assert_eq!(scene.gateway.metric("leasemux_ring_bytes"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_backlog_within_the_ring_costs_no_further_read() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let world = &scene.gateway.world;
    let run = world.start(&scene.lease, &replica("web", 0));
    let mut first = scene
        .open(ServiceLogsRequest { follow: true, tail_lines: Some(0), ..scene.request() })
        .await
        .unwrap();
    first.until(|seen| !seen.cursors.is_empty()).await;
    world.print(&run, lines(0..1_000));
    first.until(|seen| seen.lines("web", 0) == 1_000).await;
    for tail in [1, 2, 17, 999] {
        let request = ServiceLogsRequest { follow: true, tail_lines: Some(tail), ..scene.request() };
        let mut stream = scene.open(request).await.unwrap();
        let wanted = usize::try_from(tail).unwrap();
        stream.until(|seen| seen.lines("web", 0) == wanted).await;
        assert!(stream.is_quiet().await);
        assert_eq!(stream.received.ask(world, "web", 0, &[(&run, 1_000 - wanted)]), 0);
    }
    assert_eq!(world.follows(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_last_lines_are_taken_across_runs_and_not_older_than_asked() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let world = &scene.gateway.world;
    let web = replica("web", 0);
    let first = world.start(&scene.lease, &web);
    world.print(&first, lines(0..10));
    world.end(&scene.lease, &web, 1);
    let second = world.start(&scene.lease, &web);
    world.print(&second, lines(0..4));
    for (tail, from_first, from_second) in [(3, 10, 1), (4, 10, 0), (6, 8, 0), (14, 0, 0), (99, 0, 0)] {
        let request = ServiceLogsRequest { tail_lines: Some(tail), ..scene.request() };
        let mut stream = scene.open(request).await.unwrap();
        assert_eq!(stream.end().await.code(), Code::Ok);
        let runs = [(&first, from_first), (&second, from_second)];
        assert_eq!(stream.received.ask(world, "web", 0, &runs), 0, "tail {tail}");
        let expected = (10 - from_first) + (4 - from_second);
        assert_eq!(stream.received.lines("web", 0), expected, "tail {tail}");
    }
    // The fake gives two lines to each nanosecond from 1000 on: so 1003 is line 6 and 7.
    let since = Some(prost_types::Timestamp { seconds: 0, nanos: 1_003 });
    let mut stream = scene.open(ServiceLogsRequest { since, ..scene.request() }).await.unwrap();
    stream.end().await;
    assert_eq!(
        stream.received.text("web", 0),
        "line 6\nline 7\nline 8\nline 9\nline 0\nline 1\nline 2\nline 3\n"
    );
    let request = ServiceLogsRequest { since, tail_lines: Some(20), ..scene.request() };
    let mut stream = scene.open(request).await.unwrap();
    stream.end().await;
    assert!(stream.received.text("web", 0).starts_with("line 6\n"));
}

#[tokio::test(start_paused = true)]
async fn what_is_older_than_asked_is_not_taken_from_the_ring_either() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let world = &scene.gateway.world;
    let run = world.start(&scene.lease, &replica("web", 0));
    let request = ServiceLogsRequest { follow: true, tail_lines: Some(0), ..scene.request() };
    let mut first = scene.open(request.clone()).await.unwrap();
    first.until(|seen| !seen.cursors.is_empty()).await;
    world.print(&run, lines(0..10));
    first.until(|seen| seen.lines("web", 0) == 10).await;
    // Two lines to each nanosecond from 1000 on: so 1003 is line 6 and 7, and nothing is of 2000 yet.
    let mut streams = Vec::new();
    for (tail, since, from) in [(9, 1_003, 6), (9, 2_000, 10), (2, 1_003, 8)] {
        let since = Some(prost_types::Timestamp { seconds: 0, nanos: since });
        let request = ServiceLogsRequest { tail_lines: Some(tail), since, ..request.clone() };
        let mut stream = scene.open(request).await.unwrap();
        stream.until(|seen| seen.lines("web", 0) == 10 - from && !seen.cursors.is_empty()).await;
        assert!(stream.is_quiet().await);
        streams.push((stream, from));
    }
    world.print(&run, lines(10..12));
    for (stream, from) in &mut streams {
        stream.until(|seen| seen.lines("web", 0) == 12 - *from).await;
        assert_eq!(stream.received.ask(world, "web", 0, &[(&run, *from)]), 0);
    }
    assert_eq!(world.open(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_run_before_can_be_read() {
    let scene = Scene::new(Limits::default(), &[("web", 1), ("api", 1)]);
    let world = &scene.gateway.world;
    let web = replica("web", 0);
    world.start(&scene.lease, &replica("api", 0));
    let request = ServiceLogsRequest { previous: true, ..scene.request() };
    let first = world.start(&scene.lease, &web);
    let status = scene.open(request.clone()).await.err().unwrap();
    assert_eq!((status.code(), reason(&status)), (Code::NotFound, "PREVIOUS_NOT_FOUND".into()));
    world.print(&first, lines(0..10));
    world.end(&scene.lease, &web, 1);
    let second = world.start(&scene.lease, &web);
    world.print(&second, ["not this\n"]);
    let mut stream = scene.open(request.clone()).await.unwrap();
    assert_eq!(stream.end().await.code(), Code::Ok);
    assert_eq!(stream.received.ask(world, "web", 0, &[(&first, 0)]), 0);
    assert_eq!(stream.received.lines("web", 0), 10);
    // Two lines to each nanosecond from 1000 on: so 1003 is line 6 and 7.
    let since = Some(prost_types::Timestamp { seconds: 0, nanos: 1_003 });
    for (tail_lines, since, from) in
        [(Some(3), None, 7), (None, since, 6), (Some(9), since, 6), (Some(2), since, 8)]
    {
        let request = ServiceLogsRequest { tail_lines, since, ..request.clone() };
        let mut stream = scene.open(request).await.unwrap();
        assert_eq!(stream.end().await.code(), Code::Ok);
        let last: String = lines(from..10).collect();
        assert_eq!(stream.received.text("web", 0), last, "{tail_lines:?} {since:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn timestamps_stand_before_each_line_in_history_and_live() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let world = &scene.gateway.world;
    let run = world.start(&scene.lease, &replica("web", 0));
    world.print(&run, lines(0..2));
    let request = ServiceLogsRequest { follow: true, timestamps: true, ..scene.request() };
    let mut stream = scene.open(request).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) == 2).await;
    world.print(&run, lines(2..4));
    stream.until(|seen| seen.lines("web", 0) == 4).await;
    let stamp = |nanos: u32| format!("1970-01-01T00:00:00.00000{nanos}Z");
    let expected: Vec<_> =
        (0..4).map(|number| format!("{} line {number}\n", stamp(1_000 + number / 2))).collect();
    assert_eq!(stream.received.text("web", 0), expected.concat());
}

#[tokio::test(start_paused = true)]
async fn replicas_that_appear_and_go_are_followed_and_told() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let world = &scene.gateway.world;
    let first = world.start(&scene.lease, &replica("web", 0));
    let request = ServiceLogsRequest { follow: true, tail_lines: Some(0), ..scene.request() };
    let mut stream = scene.open(request).await.unwrap();
    stream.until(|seen| !seen.cursors.is_empty()).await;
    let second = world.start(&scene.lease, &replica("web", 1));
    world.print(&second, lines(0..10));
    stream.until(|seen| seen.lines("web", 1) == 10).await;
    assert_eq!(stream.received.events("web", 1), [Kind::Started]);
    world.end(&scene.lease, &replica("web", 1), 0);
    world.change(&scene.lease, |view| {
        view.services.get_mut(&"web".parse().unwrap()).unwrap().replicas.remove(&1);
    });
    stream.until(|seen| seen.events("web", 1).last() == Some(&Kind::Gone)).await;
    world.print(&first, lines(0..10));
    stream.until(|seen| seen.lines("web", 0) == 10).await;
    // The lease ends: what is left is sent, and then it is said why.
    world.print(&first, ["the end\n"]);
    world.end(&scene.lease, &replica("web", 0), 0);
    world.change(&scene.lease, |view| view.ended = true);
    let status = stream.end().await;
    assert_eq!((status.code(), reason(&status)), (Code::NotFound, "LEASE_ENDED".into()));
    assert_eq!(stream.received.ask(world, "web", 0, &[(&first, 0)]), 0);
    assert_eq!(stream.received.ask(world, "web", 1, &[(&second, 0)]), 0);
    assert!(stream.received.ends_with("web", 0, "the end\n"));
}

#[tokio::test(start_paused = true)]
async fn a_replica_for_which_there_was_no_place_is_followed_once_there_is() {
    let mut limits = Limits::default();
    limits.quota.replicas_per_request = 1;
    let scene = Scene::new(limits, &[("web", 1)]);
    let world = &scene.gateway.world;
    let first = world.start(&scene.lease, &replica("web", 0));
    let request = ServiceLogsRequest { follow: true, tail_lines: Some(0), ..scene.request() };
    let mut stream = scene.open(request).await.unwrap();
    world.print(&first, lines(0..10));
    stream.until(|seen| seen.lines("web", 0) == 10).await;
    let second = world.start(&scene.lease, &replica("web", 1));
    world.print(&second, lines(0..10));
    world.end(&scene.lease, &replica("web", 0), 0);
    world.change(&scene.lease, |view| {
        view.services.get_mut(&"web".parse().unwrap()).unwrap().replicas.remove(&0);
    });
    stream.until(|seen| seen.events("web", 0).last() == Some(&Kind::Gone)).await;
    // Nothing else happens that would wake anybody.
    stream.until(|seen| seen.lines("web", 1) == 10).await;
    assert_eq!(stream.received.ask(world, "web", 0, &[(&first, 0)]), 0);
    assert_eq!(stream.received.ask(world, "web", 1, &[(&second, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_is_opened_again_without_loss() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let world = &scene.gateway.world;
    let run = world.start(&scene.lease, &replica("web", 0));
    let mut stream = scene.open(ServiceLogsRequest { follow: true, ..scene.request() }).await.unwrap();
    world.print(&run, lines(0..10));
    stream.until(|seen| seen.lines("web", 0) == 10).await;
    world.fail(&run, true);
    world.print(&run, lines(10..20));
    assert!(stream.is_quiet().await);
    world.fail(&run, false);
    stream.until(|seen| seen.lines("web", 0) == 20).await;
    assert_eq!(stream.received.ask(world, "web", 0, &[(&run, 0)]), 0);
    assert!(
        scene.gateway.metric("leasemux_source_errors_total{kind=\"unavailable\",platform=\"other\"}") >= 1
    );
}

#[tokio::test(start_paused = true)]
async fn what_the_source_lost_is_told_once_to_everyone_and_after_a_resume_not_again() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let world = &scene.gateway.world;
    let run = world.start(&scene.lease, &replica("web", 0));
    world.print(&run, lines(0..3));
    world.lose(&run, 4);
    world.print(&run, lines(7..10));
    let request = ServiceLogsRequest { follow: true, ..scene.request() };
    let mut stream = scene.open(request.clone()).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) == 6).await;
    world.print(&run, lines(10..12));
    world.lose(&run, 5);
    stream.until(|seen| seen.missing("web", 0) == 9).await;
    let mut again = scene.resume(stream, request.clone()).await;
    world.print(&run, lines(17..18));
    again.until(|seen| seen.lines("web", 0) == 9).await;
    assert_eq!(again.received.missing("web", 0), 9);
    let mut late = scene.open(request).await.unwrap();
    late.until(|seen| seen.lines("web", 0) == 9).await;
    assert_eq!(late.received.missing("web", 0), 9);
}

#[tokio::test(start_paused = true)]
async fn lines_far_longer_than_a_chunk_arrive_whole_or_are_lost_whole() {
    let scene = Scene::new(small_ring(), &[("web", 1)]);
    let world = &scene.gateway.world;
    let run = world.start(&scene.lease, &replica("web", 0));
    let request = ServiceLogsRequest { follow: true, tail_lines: Some(0), ..scene.request() };
    let mut slow = scene.open(request.clone()).await.unwrap();
    slow.until(|seen| !seen.cursors.is_empty()).await;
    let mut quick = scene.open(request).await.unwrap();
    quick.until(|seen| !seen.cursors.is_empty()).await;
    for step in 0..100 {
        let long = format!("{step:0length$}\n", length = 1_000 + 997 * (step % 37));
        world.print(&run, [long, format!("short {step}\n")]);
        quick.until(|seen| seen.lines("web", 0) == 2 * (step + 1)).await;
    }
    world.print(&run, ["the end\n"]);
    slow.until(|seen| seen.ends_with("web", 0, "the end\n")).await;
    assert_eq!(quick.received.ask(world, "web", 0, &[(&run, 0)]), 0);
    assert!(slow.received.ask(world, "web", 0, &[(&run, 0)]) > 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_takes_nothing_is_reset_and_costs_no_memory_beyond_its_buffer() {
    let scene = Scene::new(small_ring(), &[("web", 1)]);
    let world = &scene.gateway.world;
    let run = world.start(&scene.lease, &replica("web", 0));
    let request = ServiceLogsRequest { follow: true, tail_lines: Some(0), ..scene.request() };
    let mut stalled = scene.open(request.clone()).await.unwrap();
    stalled.until(|seen| !seen.cursors.is_empty()).await;
    let mut quick = scene.open(request).await.unwrap();
    quick.until(|seen| !seen.cursors.is_empty()).await;
    for step in 0..100 {
        world.print(&run, wide_lines(100 * step..100 * (step + 1)));
        quick.until(|seen| seen.lines("web", 0) == 100 * (step + 1)).await;
    }
    // Taken in by HTTP/2 for the stalled one: its window and its buffer, and not all that was printed.
    let delivered = scene.gateway.metric("leasemux_bytes_delivered_total");
    let printed = world.printed(&run).iter().map(|line| line.len() as u64).sum::<u64>();
    assert!(delivered < printed + 512 * 1024, "{delivered} of {printed}");
    scene.gateway.eventually(|gateway| gateway.metric("leasemux_stalled_streams_total") == 1).await;
    assert_eq!(scene.gateway.metric("leasemux_streams{method=\"ServiceLogs\"}"), 1);
    assert_eq!(quick.received.ask(world, "web", 0, &[(&run, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn draining_sends_what_is_held_then_cursors_and_says_unavailable() {
    let scene = Scene::new(Limits::default(), &[("web", 2)]);
    let world = &scene.gateway.world;
    let runs = [0, 1].map(|index| world.start(&scene.lease, &replica("web", index)));
    let mut stream = scene.open(ServiceLogsRequest { follow: true, ..scene.request() }).await.unwrap();
    world.print(&runs[0], lines(0..100));
    stream.until(|seen| seen.lines("web", 0) == 100).await;
    let drain = scene.gateway.drain.clone();
    let finish = async { drain.finish(std::time::Duration::from_secs(10)).await };
    let (clean, status) = tokio::join!(finish, stream.end());
    assert!(clean);
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "DRAINING".into()));
    assert!(status.get_details_retry_info().is_some());
    assert_eq!(stream.received.cursors.len(), 2);
    assert_eq!(stream.received.ask(world, "web", 0, &[(&runs[0], 0)]), 0);
    // Another gateway goes on from there.
    let second = scene.successor();
    world.print(&runs[0], lines(100..200));
    world.print(&runs[1], lines(0..5));
    let request = ServiceLogsRequest { follow: true, ..scene.request() };
    let mut again = second.resume(stream, request).await;
    again.until(|seen| seen.lines("web", 0) == 200 && seen.lines("web", 1) == 5).await;
    assert_eq!(again.received.ask(world, "web", 0, &[(&runs[0], 0)]), 0);
    assert_eq!(again.received.ask(world, "web", 1, &[(&runs[1], 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn who_is_no_longer_trusted_is_cut_off_reading_or_not() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let world = &scene.gateway.world;
    let run = world.start(&scene.lease, &replica("web", 0));
    let request = ServiceLogsRequest { follow: true, ..scene.request() };
    let mut reading = scene.open(request.clone()).await.unwrap();
    let mut stalled = scene.open(request.clone()).await.unwrap();
    world.print(&run, wide_lines(0..10_000));
    stalled.until(|seen| seen.lines("web", 0) >= 1).await;
    reading.until(|seen| seen.lines("web", 0) == 10_000).await;
    scene.gateway.withdraw(scene.lease.owner());
    let status = reading.end().await;
    assert_eq!((status.code(), reason(&status)), (Code::Unauthenticated, "CERTIFICATE_WITHDRAWN".into()));
    let started = tokio::time::Instant::now();
    scene.gateway.eventually(|gateway| gateway.metric("leasemux_streams{method=\"ServiceLogs\"}") == 0).await;
    assert!(started.elapsed() <= std::time::Duration::from_secs(2));
    let status = scene.open(request).await.err().unwrap();
    assert_eq!((status.code(), reason(&status)), (Code::Unauthenticated, "CERTIFICATE_UNKNOWN".into()));
    reading.received.ask(world, "web", 0, &[(&run, 0)]);
}

#[tokio::test(start_paused = true)]
async fn a_position_whose_lines_were_rotated_away_is_told_as_a_gap() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let world = &scene.gateway.world;
    let run = world.start(&scene.lease, &replica("web", 0));
    world.print(&run, lines(0..10));
    let request = ServiceLogsRequest { follow: true, ..scene.request() };
    let mut stream = scene.open(request.clone()).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) == 10).await;
    let resume: Vec<_> = stream.received.cursors.values().cloned().collect();
    drop(stream);
    scene.gateway.eventually(|gateway| gateway.metric("leasemux_actors") == 0).await;
    world.print(&run, lines(10..20));
    world.rotate(&run, 5);
    let mut stream =
        scene.open(ServiceLogsRequest { resume: resume.clone(), ..request.clone() }).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) == 5).await;
    assert_eq!(stream.received.of("web", 0)[0], Seen::Gap(0, 0, false));
    assert!(stream.received.text("web", 0).starts_with("line 15\n"));
    // The same if the whole run is no longer there.
    let mut resume = resume;
    resume[0].instance = "other/web/0".into();
    let mut stream = scene.open(ServiceLogsRequest { resume, ..request }).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) == 5).await;
    assert_eq!(stream.received.of("web", 0)[0], Seen::Gap(0, 0, false));
}

#[tokio::test(start_paused = true)]
async fn who_comes_late_is_told_each_turn_once_and_in_order() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let world = &scene.gateway.world;
    let web = replica("web", 0);
    let first = world.start(&scene.lease, &web);
    world.print(&first, lines(0..10));
    let request = ServiceLogsRequest { follow: true, ..scene.request() };
    let mut early = scene.open(request.clone()).await.unwrap();
    early.until(|seen| seen.lines("web", 0) == 10).await;
    world.end(&scene.lease, &web, 1);
    early.until(|seen| seen.events("web", 0) == [Kind::Ended, Kind::Waiting]).await;
    let mut while_waiting = scene.open(request.clone()).await.unwrap();
    while_waiting.until(|seen| seen.events("web", 0) == [Kind::Ended, Kind::Waiting]).await;
    assert!(while_waiting.is_quiet().await);
    // The next run prints nothing yet: what the ring holds is all about the one before.
    let second = world.start(&scene.lease, &web);
    early.until(|seen| seen.events("web", 0).last() == Some(&Kind::Started)).await;
    let mut late = scene.open(request).await.unwrap();
    late.until(|seen| seen.events("web", 0) == [Kind::Ended, Kind::Started]).await;
    assert!(late.is_quiet().await);
    world.print(&second, lines(0..3));
    for stream in [&mut early, &mut while_waiting, &mut late] {
        stream.until(|seen| seen.lines("web", 0) == 13).await;
        assert_eq!(stream.received.ask(world, "web", 0, &[(&first, 0), (&second, 0)]), 0);
    }
    assert_eq!(late.received.events("web", 0), [Kind::Ended, Kind::Started]);
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_no_history_is_told_once_that_nothing_runs() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let world = &scene.gateway.world;
    let web = replica("web", 0);
    let first = world.start(&scene.lease, &web);
    world.print(&first, lines(0..10));
    world.end(&scene.lease, &web, 1);
    let request = ServiceLogsRequest { follow: true, tail_lines: Some(0), ..scene.request() };
    let mut streams = Vec::new();
    // The first one wakes the shared reader, which finds out by itself; and the others come later.
    for _ in 0..3 {
        let mut stream = scene.open(request.clone()).await.unwrap();
        stream.until(|seen| !seen.cursors.is_empty() && !seen.events("web", 0).is_empty()).await;
        assert!(stream.is_quiet().await);
        streams.push(stream);
    }
    let second = world.start(&scene.lease, &web);
    world.print(&second, lines(0..3));
    for stream in &mut streams {
        stream.until(|seen| seen.lines("web", 0) == 3).await;
        assert_eq!(stream.received.events("web", 0), [Kind::Waiting, Kind::Started]);
        assert_eq!(stream.received.ask(world, "web", 0, &[(&second, 0)]), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn stamps_made_for_some_count_for_the_ring_as_long_as_they_are_held() {
    let scene = Scene::new(small_ring(), &[("web", 1)]);
    let world = &scene.gateway.world;
    let run = world.start(&scene.lease, &replica("web", 0));
    let request =
        ServiceLogsRequest { follow: true, timestamps: true, tail_lines: Some(0), ..scene.request() };
    let mut stream = scene.open(request).await.unwrap();
    stream.until(|seen| !seen.cursors.is_empty()).await;
    for step in 0..200 {
        // Far shorter than their stamps.
        world.print(&run, std::iter::repeat_n("x\n", 400));
        stream.until(|seen| seen.lines("web", 0) == 400 * (step + 1)).await;
        let held = scene.gateway.metric("leasemux_ring_bytes");
        // Each line with its stamp: 31 bytes and 2.
        assert!((400 * 33..=64 * 1024).contains(&held), "{held}");
    }
    drop(stream);
    scene.gateway.eventually(|gateway| gateway.metric("leasemux_ring_bytes") == 0).await;
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_or_only_watches_health_does_not_hold_the_end() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let silent = scene.gateway.connect(None);
    let channel = scene.gateway.channel_of(None).await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
    let mut watch = health.watch(request).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    assert!(scene.gateway.drain.finish(std::time::Duration::from_secs(10)).await);
    assert!(watch.message().await.is_err());
    drop(silent);
    // A peer that never calls is let go also while nothing drains.
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    let _silent = scene.gateway.connect(None);
    scene.gateway.eventually(|gateway| gateway.metric("leasemux_connections") == 1).await;
    scene.gateway.eventually(|gateway| gateway.metric("leasemux_connections") == 0).await;
}
