//! Runs that end and start, and replicas that are added and removed, while they are followed.

use leasemux::model::limits::Limits;
use leasemux::model::proto::lease::ServiceLogsRequest;
use leasemux::model::proto::lease::replica_event::Kind;
use leasemux::model::view::Run;
use tonic::Code;

use super::{follow, follow_from_now, lines, one_run, open_live, replica};
use crate::support::gateway::Setup;
use crate::support::loss_check::Seen;
use crate::support::reason;

#[tokio::test(start_paused = true)]
async fn crash_is_reported_and_next_run_followed() {
    let setup = Setup::new(Limits::default(), &[("web", 1)]);
    let platform = &setup.gateway.platform;
    let web = replica("web", 0);
    let first = platform.start(&setup.lease, &web);
    platform.print(&first, lines(0..10));
    let mut stream = setup.open(follow(&setup)).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) == 10).await;
    platform.print(&first, ["panic\n"]);
    platform.end(&setup.lease, &web, 1);
    stream.until(|seen| seen.events("web", 0) == [Kind::Ended, Kind::Waiting]).await;
    let second = platform.start(&setup.lease, &web);
    platform.print(&second, lines(0..10));
    stream.until(|seen| seen.lines("web", 0) == 21).await;
    assert_eq!(stream.received.events("web", 0), [Kind::Ended, Kind::Waiting, Kind::Started]);
    assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&first, 0), (&second, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn next_run_without_its_first_lines_begins_with_gap() {
    let setup = Setup::new(Limits::default(), &[("web", 1)]);
    let platform = &setup.gateway.platform;
    let web = replica("web", 0);
    let first = platform.start(&setup.lease, &web);
    platform.print(&first, lines(0..10));
    let mut live = setup.open(follow(&setup)).await.unwrap();
    live.until(|seen| seen.lines("web", 0) == 10).await;
    platform.end(&setup.lease, &web, 1);
    let second = platform.start(&setup.lease, &web);
    platform.print(&second, lines(0..20));
    platform.rotate(&second, 5);
    let text: String = lines(0..10).chain(lines(15..20)).collect();
    let mut late = setup.open(follow(&setup)).await.unwrap();
    for stream in [&mut live, &mut late] {
        stream.until(|seen| seen.lines("web", 0) == 15).await;
        assert_eq!(stream.received.text("web", 0), text);
        let gaps = stream.received.of("web", 0).iter().filter(|seen| matches!(seen, Seen::Gap(..)));
        assert_eq!(gaps.collect::<Vec<_>>(), [&Seen::Gap(0, 0, false)]);
    }
}

#[tokio::test(start_paused = true)]
async fn runs_missed_between_views_are_gap() {
    let setup = Setup::new(Limits::default(), &[("web", 1)]);
    let platform = &setup.gateway.platform;
    let web = replica("web", 0);
    let first = platform.start(&setup.lease, &web);
    platform.print(&first, lines(0..10));
    let mut stream = setup.open(follow(&setup)).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) == 10).await;
    platform.end(&setup.lease, &web, 1);
    stream.until(|seen| seen.events("web", 0) == [Kind::Ended, Kind::Waiting]).await;
    // Two runs start between two views.
    let unseen = platform.start(&setup.lease, &web);
    platform.print(&unseen, lines(0..10));
    platform.end(&setup.lease, &web, 1);
    let third = platform.start(&setup.lease, &web);
    platform.print(&third, lines(0..10));
    platform.change(&setup.lease, |view| {
        let replicas = &mut view.services.get_mut(&web.service).unwrap().replicas;
        replicas.get_mut(&web.index).unwrap().runs.drain(..2);
    });
    stream.until(|seen| seen.lines("web", 0) == 20).await;
    assert_eq!(stream.received.events("web", 0), [Kind::Ended, Kind::Waiting, Kind::Started]);
    let gaps = stream.received.of("web", 0).iter().filter(|seen| matches!(seen, Seen::Gap(_, _, false)));
    assert_eq!(gaps.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn previous_run_can_be_read() {
    let setup = Setup::new(Limits::default(), &[("web", 1), ("api", 1)]);
    let platform = &setup.gateway.platform;
    let web = replica("web", 0);
    platform.start(&setup.lease, &replica("api", 0));
    let request = ServiceLogsRequest { previous: true, ..setup.request() };
    let first = platform.start(&setup.lease, &web);
    let status = setup.open(request.clone()).await.err().unwrap();
    assert_eq!((status.code(), reason(&status)), (Code::NotFound, "PREVIOUS_NOT_FOUND".into()));
    platform.print(&first, lines(0..10));
    platform.end(&setup.lease, &web, 1);
    let second = platform.start(&setup.lease, &web);
    platform.print(&second, ["not this\n"]);
    let mut stream = setup.open(request.clone()).await.unwrap();
    assert_eq!(stream.end().await.code(), Code::Ok);
    assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&first, 0)]), 0);
    assert_eq!(stream.received.lines("web", 0), 10);
    // Two lines per nanosecond from 1000 on: 1003 is the time of lines 6 and 7.
    let since = Some(prost_types::Timestamp { seconds: 0, nanos: 1_003 });
    for (tail_lines, since, from) in
        [(Some(3), None, 7), (None, since, 6), (Some(9), since, 6), (Some(2), since, 8)]
    {
        let request = ServiceLogsRequest { tail_lines, since, ..request.clone() };
        let mut stream = setup.open(request).await.unwrap();
        assert_eq!(stream.end().await.code(), Code::Ok);
        let last: String = lines(from..10).collect();
        assert_eq!(stream.received.text("web", 0), last, "{tail_lines:?} {since:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn added_and_removed_replicas_are_followed() {
    let setup = Setup::new(Limits::default(), &[("web", 1)]);
    let platform = &setup.gateway.platform;
    let first = platform.start(&setup.lease, &replica("web", 0));
    let mut stream = open_live(&setup).await;
    let second = platform.start(&setup.lease, &replica("web", 1));
    platform.print(&second, lines(0..10));
    stream.until(|seen| seen.lines("web", 1) == 10).await;
    assert_eq!(stream.received.events("web", 1), [Kind::Started]);
    platform.end(&setup.lease, &replica("web", 1), 0);
    platform.change(&setup.lease, |view| {
        view.services.get_mut(&"web".parse().unwrap()).unwrap().replicas.remove(&1);
    });
    stream.until(|seen| seen.events("web", 1).last() == Some(&Kind::Gone)).await;
    platform.print(&first, lines(0..10));
    stream.until(|seen| seen.lines("web", 0) == 10).await;
    // The lease ends: the remaining lines are sent, then the reason.
    platform.print(&first, ["the end\n"]);
    platform.end(&setup.lease, &replica("web", 0), 0);
    platform.change(&setup.lease, |view| view.ended = true);
    let status = stream.end().await;
    assert_eq!((status.code(), reason(&status)), (Code::NotFound, "LEASE_ENDED".into()));
    assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&first, 0)]), 0);
    assert_eq!(stream.received.assert_complete(platform, "web", 1, &[(&second, 0)]), 0);
    assert!(stream.received.ends_with("web", 0, "the end\n"));
}

#[tokio::test(start_paused = true)]
async fn replica_over_quota_is_followed_once_another_ends() {
    let mut limits = Limits::default();
    limits.quota.replicas_per_request = 1;
    let setup = Setup::new(limits, &[("web", 1)]);
    let platform = &setup.gateway.platform;
    let first = platform.start(&setup.lease, &replica("web", 0));
    let request = follow_from_now(&setup);
    let mut stream = setup.open(request).await.unwrap();
    platform.print(&first, lines(0..10));
    stream.until(|seen| seen.lines("web", 0) == 10).await;
    let second = platform.start(&setup.lease, &replica("web", 1));
    platform.print(&second, lines(0..10));
    platform.end(&setup.lease, &replica("web", 0), 0);
    platform.change(&setup.lease, |view| {
        view.services.get_mut(&"web".parse().unwrap()).unwrap().replicas.remove(&0);
    });
    stream.until(|seen| seen.events("web", 0).last() == Some(&Kind::Gone)).await;
    // No other event wakes the stream.
    stream.until(|seen| seen.lines("web", 1) == 10).await;
    assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&first, 0)]), 0);
    assert_eq!(stream.received.assert_complete(platform, "web", 1, &[(&second, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn late_follower_gets_each_event_once_in_order() {
    let setup = Setup::new(Limits::default(), &[("web", 1)]);
    let platform = &setup.gateway.platform;
    let web = replica("web", 0);
    let first = platform.start(&setup.lease, &web);
    platform.print(&first, lines(0..10));
    let request = follow(&setup);
    let mut early = setup.open(request.clone()).await.unwrap();
    early.until(|seen| seen.lines("web", 0) == 10).await;
    platform.end(&setup.lease, &web, 1);
    early.until(|seen| seen.events("web", 0) == [Kind::Ended, Kind::Waiting]).await;
    let mut while_waiting = setup.open(request.clone()).await.unwrap();
    while_waiting.until(|seen| seen.events("web", 0) == [Kind::Ended, Kind::Waiting]).await;
    assert!(while_waiting.is_quiet().await);
    // The next run has printed nothing yet: the ring has entries of the run before only.
    let second = platform.start(&setup.lease, &web);
    early.until(|seen| seen.events("web", 0).last() == Some(&Kind::Started)).await;
    let mut late = setup.open(request).await.unwrap();
    late.until(|seen| seen.events("web", 0) == [Kind::Ended, Kind::Started]).await;
    assert!(late.is_quiet().await);
    platform.print(&second, lines(0..3));
    for stream in [&mut early, &mut while_waiting, &mut late] {
        stream.until(|seen| seen.lines("web", 0) == 13).await;
        assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&first, 0), (&second, 0)]), 0);
    }
    assert_eq!(late.received.events("web", 0), [Kind::Ended, Kind::Started]);
}

#[tokio::test(start_paused = true)]
async fn follower_without_backfill_gets_waiting_event_once() {
    let setup = Setup::new(Limits::default(), &[("web", 1)]);
    let platform = &setup.gateway.platform;
    let web = replica("web", 0);
    let first = platform.start(&setup.lease, &web);
    platform.print(&first, lines(0..10));
    platform.end(&setup.lease, &web, 1);
    let request = follow_from_now(&setup);
    let mut streams = Vec::new();
    // The first follower starts the actor, which sends the event; the others subscribe later.
    for _ in 0..3 {
        let mut stream = setup.open(request.clone()).await.unwrap();
        stream.until(|seen| !seen.cursors.is_empty() && !seen.events("web", 0).is_empty()).await;
        assert!(stream.is_quiet().await);
        streams.push(stream);
    }
    let second = platform.start(&setup.lease, &web);
    platform.print(&second, lines(0..3));
    for stream in &mut streams {
        stream.until(|seen| seen.lines("web", 0) == 3).await;
        assert_eq!(stream.received.events("web", 0), [Kind::Waiting, Kind::Started]);
        assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&second, 0)]), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn run_that_view_names_again_is_read_on() {
    // Whether a line is printed before the view names the run again.
    for prints_before in [false, true] {
        let (setup, run) = one_run(Limits::default());
        let platform = &setup.gateway.platform;
        platform.print(&run, lines(0..10));
        let mut stream = setup.open(follow(&setup)).await.unwrap();
        let mut away = setup.open(follow(&setup)).await.unwrap();
        for stream in [&mut stream, &mut away] {
            stream.until(|seen| seen.lines("web", 0) == 10).await;
        }
        // The pod has another index for a moment, so its log ends here.
        let mut runs = Vec::new();
        let swap = |runs: &mut Vec<Run>| {
            platform.change(&setup.lease, |view| {
                let web = view.services.get_mut(&"web".parse().unwrap()).unwrap();
                std::mem::swap(&mut web.replicas.get_mut(&0).unwrap().runs, runs);
            });
        };
        swap(&mut runs);
        platform.set_log_ends(&run, true);
        assert!(stream.is_quiet().await && away.is_quiet().await);
        let mut moved = setup.resume(away, follow(&setup)).await;
        assert!(moved.is_quiet().await);
        platform.set_log_ends(&run, false);
        if prints_before {
            platform.print(&run, lines(10..11));
        }
        swap(&mut runs);
        assert_eq!(stream.is_quiet().await, !prints_before);
        platform.print(&run, lines(10 + usize::from(prints_before)..20));
        for stream in [&mut stream, &mut moved] {
            stream.until(|seen| seen.lines("web", 0) == 20).await;
            assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
            assert_eq!(stream.received.events("web", 0), []);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn log_that_ends_while_its_run_goes_on_is_opened_again() {
    let (setup, run) = one_run(Limits::default());
    let platform = &setup.gateway.platform;
    platform.print(&run, lines(0..10));
    let mut stream = setup.open(follow(&setup)).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) == 10).await;
    platform.set_log_ends(&run, true);
    assert!(stream.is_quiet().await);
    platform.set_log_ends(&run, false);
    platform.print(&run, lines(10..20));
    tokio::time::sleep(std::time::Duration::from_secs(7 * 60)).await;
    stream.until(|seen| seen.lines("web", 0) == 20).await;
    assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
}
