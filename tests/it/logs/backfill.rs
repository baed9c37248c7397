//! Backfill: reads all older lines, and does not block other backfills while it waits.

use leasemux::model::id::Instance;
use leasemux::model::limits::Limits;
use leasemux::model::proto::lease::replica_event::Kind;
use leasemux::model::proto::lease::{ServiceFilter, ServiceLogsRequest};
use tonic::Code;

use super::{follow, lines, one_backfill, one_run, replica, small_ring, wide_lines};
use crate::support::fake_platform::FakePlatform;
use crate::support::gateway::{Setup, Stream};
use crate::support::loss_check::Seen;
use crate::support::reason;

/// Returns a follower in the middle of the backfill of a log that is far longer than ring, stream buffer,
/// pipe and window together.
async fn open_in_backfill(setup: &Setup) -> Stream {
    let mut stream = setup.open(follow(setup)).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) >= 1).await;
    stream
}

#[tokio::test(start_paused = true)]
async fn backfill_completes_although_lease_ends() {
    let setup = Setup::new(small_ring(), &[("web", 1)]);
    let platform = &setup.gateway.platform;
    let web = replica("web", 0);
    let first = platform.start(&setup.lease, &web);
    platform.print(&first, wide_lines(0..10_000));
    platform.end(&setup.lease, &web, 1);
    let second = platform.start(&setup.lease, &web);
    platform.print(&second, wide_lines(0..10_000));
    let mut stream = open_in_backfill(&setup).await;
    platform.end(&setup.lease, &web, 0);
    platform.change(&setup.lease, |view| view.ended = true);
    setup.gateway.eventually(|gateway| gateway.metric("leasemux_actors") == 0).await;
    let status = stream.end().await;
    assert_eq!((status.code(), reason(&status)), (Code::NotFound, "LEASE_ENDED".into()));
    assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&first, 0), (&second, 0)]), 0);
    assert_eq!(stream.received.lines("web", 0), 20_000);
    assert_eq!(
        stream.received.events("web", 0),
        [Kind::Ended, Kind::Started, Kind::Ended, Kind::Waiting, Kind::Gone]
    );
}

#[tokio::test(start_paused = true)]
async fn backfill_completes_although_replica_is_removed() {
    let setup = Setup::new(small_ring(), &[("web", 1)]);
    let platform = &setup.gateway.platform;
    let web = replica("web", 0);
    let run = platform.start(&setup.lease, &web);
    platform.print(&run, wide_lines(0..10_000));
    let mut stream = open_in_backfill(&setup).await;
    platform.end(&setup.lease, &web, 0);
    platform.change(&setup.lease, |view| {
        view.services.get_mut(&web.service).unwrap().replicas.remove(&web.index);
    });
    setup.gateway.eventually(|gateway| gateway.metric("leasemux_actors") == 0).await;
    stream.until(|seen| seen.events("web", 0).last() == Some(&Kind::Gone)).await;
    assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
    assert_eq!(stream.received.lines("web", 0), 10_000);
}

#[tokio::test(start_paused = true)]
async fn run_that_view_no_longer_names_is_gap() {
    let setup = Setup::new(small_ring(), &[("web", 1)]);
    let platform = &setup.gateway.platform;
    let web = replica("web", 0);
    let first = platform.start(&setup.lease, &web);
    platform.print(&first, wide_lines(0..10_000));
    platform.end(&setup.lease, &web, 1);
    let second = platform.start(&setup.lease, &web);
    platform.print(&second, lines(0..10));
    let mut stream = open_in_backfill(&setup).await;
    platform.end(&setup.lease, &web, 0);
    platform.change(&setup.lease, |view| {
        view.services.get_mut(&web.service).unwrap().replicas.remove(&web.index);
    });
    stream.until(|seen| seen.events("web", 0).last() == Some(&Kind::Gone)).await;
    assert_eq!(stream.received.lines("web", 0), 10_000);
    assert!(stream.received.of("web", 0).contains(&Seen::Gap(0, 0, false)));
}

/// A pod is replaced during a backfill of its first run. Returns the gaps after that run.
async fn gaps_after_replaced_pod(setup: &Setup, first: &Instance) -> Vec<Seen> {
    let platform = &setup.gateway.platform;
    let web = replica("web", 0);
    let mut stream = open_in_backfill(setup).await;
    platform.set_log_ends(first, true);
    let next = platform.replace_pod(&setup.lease, &web);
    platform.print(&next, lines(0..10));
    stream.until(|seen| seen.lines("web", 0) >= 10_010).await;
    assert_eq!(stream.received.lines("web", 0), 10_010);
    let gaps = stream.received.of("web", 0).iter().filter(|seen| matches!(seen, Seen::Gap(..)));
    gaps.cloned().collect()
}

#[tokio::test(start_paused = true)]
async fn run_of_a_replaced_pod_that_view_no_longer_names_is_gap() {
    let setup = Setup::new(small_ring(), &[("web", 1)]);
    let platform = &setup.gateway.platform;
    let web = replica("web", 0);
    let first = platform.start(&setup.lease, &web);
    platform.print(&first, wide_lines(0..10_000));
    platform.end(&setup.lease, &web, 1);
    let second = platform.start(&setup.lease, &web);
    platform.print(&second, lines(0..10));
    platform.set_log_ends(&second, true);
    assert_eq!(gaps_after_replaced_pod(&setup, &first).await, [Seen::Gap(0, 0, false)]);
}

#[tokio::test(start_paused = true)]
async fn replaced_pod_is_no_gap_if_actor_has_read_its_only_run() {
    let setup = Setup::new(small_ring(), &[("web", 1)]);
    let platform = &setup.gateway.platform;
    let first = platform.start(&setup.lease, &replica("web", 0));
    platform.print(&first, wide_lines(0..10_000));
    assert_eq!(gaps_after_replaced_pod(&setup, &first).await, []);
}

/// Prints lines 10 to 19, of which the actor gets only the last. It has the time of the line before.
async fn actor_loses_all_but_last_line(platform: &FakePlatform, run: &Instance, live: &mut Stream) {
    platform.fail(run, true);
    assert!(live.is_quiet().await);
    platform.print(run, lines(10..20));
    platform.rotate(run, 1);
    platform.fail(run, false);
    live.until(|seen| seen.ends_with("web", 0, "line 19\n")).await;
}

#[tokio::test(start_paused = true)]
async fn backfill_that_cannot_join_quiet_ring_frees_its_permit() {
    let (setup, run) = one_run(one_backfill());
    let platform = &setup.gateway.platform;
    let request = follow(&setup);
    platform.print(&run, lines(0..10));
    let mut first = setup.open(request.clone()).await.unwrap();
    first.until(|seen| seen.lines("web", 0) == 10).await;
    actor_loses_all_but_last_line(platform, &run, &mut first).await;
    let mut later = Vec::new();
    for _ in 0..3 {
        let mut stream = setup.open(request.clone()).await.unwrap();
        stream.until(|seen| seen.lines("web", 0) == 1).await;
        later.push(stream);
    }
    // They have closed their logs as well.
    setup.gateway.eventually(|_| platform.open() == 1).await;
    for step in 20..30 {
        platform.print(&run, lines(step..step + 1));
        for stream in &mut later {
            stream.until(|seen| seen.lines("web", 0) == step - 18).await;
            assert!(stream.is_quiet().await);
        }
    }
    let last: String = lines(19..30).collect();
    assert!(later.iter().all(|stream| stream.received.text("web", 0) == last));
    first.until(|seen| seen.lines("web", 0) == 21).await;
    assert_eq!(platform.open(), 1);
}

#[tokio::test(start_paused = true)]
async fn backfill_whose_log_is_silent_gets_lines_that_the_ring_has() {
    let (setup, run) = one_run(one_backfill());
    let platform = &setup.gateway.platform;
    let request = follow(&setup);
    platform.print(&run, lines(0..10));
    let mut first = setup.open(request.clone()).await.unwrap();
    first.until(|seen| seen.lines("web", 0) == 10).await;
    let mut later = setup.open(request.clone()).await.unwrap();
    later.until(|seen| seen.lines("web", 0) == 10).await;
    actor_loses_all_but_last_line(platform, &run, &mut first).await;
    // It reads the gap from the log, and cannot join before a line of a later time.
    let mut later = setup.resume(later, request).await;
    later.until(|seen| seen.ends_with("web", 0, "line 19\n")).await;
    platform.silence_newest_tail(&run);
    platform.print_again(&run, "line 20\n");
    let text: String = lines(0..10).chain(lines(19..21)).collect();
    for stream in [&mut first, &mut later] {
        stream.until(|seen| seen.ends_with("web", 0, "line 20\n")).await;
        assert_eq!(stream.received.text("web", 0), text);
    }
}

#[tokio::test(start_paused = true)]
async fn backfill_after_source_gap_frees_its_permit() {
    let (setup, run) = one_run(one_backfill());
    let platform = &setup.gateway.platform;
    platform.print(&run, lines(0..3));
    let request = follow(&setup);
    let mut first = setup.open(request.clone()).await.unwrap();
    first.until(|seen| seen.lines("web", 0) == 3).await;
    platform.lose(&run, 4);
    first.until(|seen| seen.missing("web", 0) == 4).await;
    let mut later = Vec::new();
    for _ in 0..3 {
        let mut stream = setup.open(request.clone()).await.unwrap();
        stream.until(|seen| seen.missing("web", 0) == 4).await;
        later.push(stream);
    }
    setup.gateway.eventually(|_| platform.open() == 1).await;
    platform.print(&run, lines(7..20));
    for stream in later.iter_mut().chain([&mut first]) {
        stream.until(|seen| seen.lines("web", 0) == 16).await;
        assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 4);
    }
    setup.gateway.eventually(|_| platform.open() == 1).await;
}

/// A follower of a replica whose old run still prints while the next one runs, as in a rollout. It has read
/// all lines of the old run, and the actor reads the next one.
async fn follower_of_slow_end(setup: &Setup) -> (Stream, [Instance; 2]) {
    let (platform, web) = (&setup.gateway.platform, replica("web", 0));
    let old = platform.start(&setup.lease, &web);
    platform.print(&old, lines(0..10));
    let next = platform.start(&setup.lease, &web);
    let mut stream = setup.open(only(setup, 0, true)).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) == 10).await;
    platform.print(&next, lines(0..3));
    assert!(stream.is_quiet().await);
    (stream, [old, next])
}

/// Returns a request for one replica.
fn only(setup: &Setup, index: u32, follow: bool) -> ServiceLogsRequest {
    let filter = Some(ServiceFilter { name: "web".into(), replicas: vec![index] });
    ServiceLogsRequest { filter, follow, ..setup.request() }
}

#[tokio::test(start_paused = true)]
async fn backfill_of_run_that_ends_slowly_frees_its_permit() {
    // Whether the old run prints a line now and then.
    for prints in [false, true] {
        let setup = Setup::new(one_backfill(), &[("web", 2)]);
        let (platform, web) = (&setup.gateway.platform, replica("web", 0));
        let other = platform.start(&setup.lease, &replica("web", 1));
        platform.print(&other, lines(0..10));
        let (mut stream, [old, next]) = follower_of_slow_end(&setup).await;
        let mut printed = 10;
        for _ in 0..3 {
            let mut read = setup.open(only(&setup, 1, false)).await.unwrap();
            let print = async {
                loop {
                    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
                    if prints {
                        platform.print(&old, lines(printed..printed + 1));
                        printed += 1;
                    }
                }
            };
            let status = tokio::select! {
                status = read.end() => status,
                () = print => unreachable!(),
            };
            assert_eq!(status.code(), Code::Ok, "{prints}: {status}");
            assert_eq!(read.received.assert_complete(platform, "web", 1, &[(&other, 0)]), 0);
        }
        // New lines of the old run come, with those that it prints last.
        platform.print(&old, lines(printed..printed + 5));
        stream.until(|seen| seen.lines("web", 0) == printed + 5).await;
        platform.print(&old, lines(printed + 5..printed + 10));
        platform.end_run(&setup.lease, &web, &old);
        stream.until(|seen| seen.lines("web", 0) == printed + 13).await;
        assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&old, 0), (&next, 0)]), 0);
        assert_eq!(stream.received.events("web", 0), [Kind::Ended, Kind::Started]);
    }
}

#[tokio::test(start_paused = true)]
async fn run_that_ends_is_read_at_once_without_a_permit() {
    let setup = Setup::new(one_backfill(), &[("web", 2)]);
    let (platform, web) = (&setup.gateway.platform, replica("web", 0));
    let (mut stream, [old, next]) = follower_of_slow_end(&setup).await;
    // Another follower waits for the permit, and keeps it for a moment.
    let other = platform.start(&setup.lease, &replica("web", 1));
    platform.print(&other, lines(0..10));
    let mut read = setup.open(only(&setup, 1, false)).await.unwrap();
    assert_eq!(read.end().await.code(), Code::Ok);
    setup.gateway.eventually(|_| platform.open() == 1).await;
    platform.end_run(&setup.lease, &web, &old);
    let began = tokio::time::Instant::now();
    stream.until(|seen| seen.lines("web", 0) == 13).await;
    assert!(began.elapsed() < std::time::Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&old, 0), (&next, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn last_lines_are_exact_after_retried_count() {
    let setup = Setup::new(Limits::default(), &[("web", 1)]);
    let platform = &setup.gateway.platform;
    let web = replica("web", 0);
    let first = platform.start(&setup.lease, &web);
    platform.print(&first, lines(0..10));
    platform.end(&setup.lease, &web, 1);
    let second = platform.start(&setup.lease, &web);
    platform.print(&second, lines(0..4));
    platform.fail(&second, true);
    let mut stream = setup.open(ServiceLogsRequest { tail_lines: Some(3), ..setup.request() }).await.unwrap();
    let repair = async {
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        platform.fail(&second, false);
    };
    let (status, ()) = tokio::join!(stream.end(), repair);
    assert_eq!(status.code(), Code::Ok);
    assert_eq!(stream.received.text("web", 0), "line 1\nline 2\nline 3\n");
}
