//! Refills: a follower that lags is sent the lines from the log again, and then follows live.

use std::time::Duration;

use leasemux::model::id::Instance;
use leasemux::model::limits::{Limits, QuotaLimits};
use leasemux::model::line::OutputStream::{Stderr, Stdout};
use leasemux::model::proto::lease::replica_event::Kind;
use leasemux::model::proto::lease::{OnLag, ServiceLogsRequest};
use tonic::Code;

use super::{follow, follow_from_now, lines, one_run, replica, small_ring, wide_lines};
use crate::support::fake_platform::FakePlatform;
use crate::support::gateway::{Setup, Stream};
use crate::support::loss_check::Seen;
use crate::support::reason;

/// Lines that are far more than ring, stream buffer, pipe and the client's window hold together.
const FLOOD: usize = 20_000;

/// Limits with a ring of a few entries and one backfill at a time.
fn one_refill() -> Limits {
    Limits { quota: QuotaLimits { history_reads: 1, ..QuotaLimits::default() }, ..small_ring() }
}

fn refill(request: ServiceLogsRequest) -> ServiceLogsRequest {
    ServiceLogsRequest { on_lag: OnLag::Refill.into(), ..request }
}

/// Returns a follower of new lines that is refilled.
async fn open(setup: &Setup) -> Stream {
    let mut stream = setup.open(refill(follow_from_now(setup))).await.unwrap();
    stream.until(|seen| !seen.cursors.is_empty()).await;
    stream
}

/// Returns a follower that keeps the actor reading.
async fn open_quick(setup: &Setup) -> Stream {
    let mut quick = setup.open(follow_from_now(setup)).await.unwrap();
    quick.until(|seen| !seen.cursors.is_empty()).await;
    quick
}

/// Prints lines in steps that `quick` reads, so that the ring evicts them.
async fn flood(platform: &FakePlatform, run: &Instance, quick: &mut Stream, from: usize) {
    let before = quick.received.lines("web", 0);
    for step in 0..FLOOD / 100 {
        platform.print(run, wide_lines(from + 100 * step..from + 100 * (step + 1)));
        quick.until(|seen| seen.lines("web", 0) == before + 100 * (step + 1)).await;
    }
}

/// Reads all that arrives without waiting.
async fn read_ready(stream: &mut Stream) {
    while stream.next_if_ready().await.unwrap() {}
}

fn refills(setup: &Setup, lag: &str) -> u64 {
    setup.gateway.metric(&format!("leasemux_refills_total{{lag=\"{lag}\"}}"))
}

fn lag_gaps(setup: &Setup) -> u64 {
    setup.gateway.metric("leasemux_gaps_total{cause=\"lag\"}")
}

/// Returns the positions of gaps among all entries.
fn gaps(stream: &Stream) -> Vec<Seen> {
    let entries = stream.received.of("web", 0).iter();
    entries.filter(|seen| matches!(seen, Seen::Gap(..))).cloned().collect()
}

#[tokio::test(start_paused = true)]
async fn lagging_follower_gets_every_line() {
    let (setup, run) = one_run(small_ring());
    let platform = &setup.gateway.platform;
    let (mut slow, mut quick) = (open(&setup).await, open_quick(&setup).await);
    flood(platform, &run, &mut quick, 0).await;
    slow.until(|seen| seen.lines("web", 0) == FLOOD).await;
    assert_eq!(slow.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
    assert_eq!((gaps(&slow), lag_gaps(&setup)), (vec![], 0));
    assert_eq!((refills(&setup, "first"), refills(&setup, "again")), (1, 0));
    let refilled = setup.gateway.metric("leasemux_refilled_lines_total");
    assert!(refilled > FLOOD as u64 / 2 && refilled <= FLOOD as u64, "{refilled}");
    assert!(setup.gateway.metric("leasemux_refilled_bytes_total") >= 206 * refilled);
    assert_eq!(setup.gateway.metric("leasemux_source_opens_total{read=\"refill\"}"), 1);
    assert_eq!(setup.gateway.metric("leasemux_source_opens_total{read=\"history\"}"), 0);
    // It follows live again.
    platform.print(&run, ["the end\n"]);
    slow.until(|seen| seen.ends_with("web", 0, "the end\n")).await;
    setup.gateway.eventually(|_| platform.open() == 1).await;
    assert_eq!(setup.gateway.metric("leasemux_lines_lost_total{cause=\"lag\"}"), 0);
}

#[tokio::test(start_paused = true)]
async fn timestamped_and_limited_follower_is_refilled() {
    let (setup, run) = one_run(small_ring());
    let platform = &setup.gateway.platform;
    platform.print(&run, wide_lines(0..10));
    let mut quick = open_quick(&setup).await;
    // The limits concern older lines only.
    let request = ServiceLogsRequest {
        timestamps: true,
        tail_lines: Some(2),
        since: Some(prost_types::Timestamp { seconds: 0, nanos: 1_004 }),
        ..follow(&setup)
    };
    let mut slow = setup.open(refill(request)).await.unwrap();
    slow.until(|seen| seen.lines("web", 0) == 2).await;
    flood(platform, &run, &mut quick, 10).await;
    slow.until(|seen| seen.lines("web", 0) == FLOOD + 2).await;
    let expected: Vec<String> = (8..FLOOD + 10)
        .map(|number| format!("1970-01-01T00:00:00.{:09}Z line {number:0200}\n", 1_000 + number / 2))
        .collect();
    assert!(slow.received.text("web", 0) == expected.concat());
    assert_eq!((refills(&setup, "first"), lag_gaps(&setup)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn follower_that_lags_soon_again_joins_at_head() {
    let (setup, run) = one_run(small_ring());
    let platform = &setup.gateway.platform;
    let (mut slow, mut quick) = (open(&setup).await, open_quick(&setup).await);
    for round in 1..=3 {
        flood(platform, &run, &mut quick, (round - 1) * FLOOD).await;
        slow.until(|seen| seen.lines("web", 0) == round * FLOOD).await;
        setup.gateway.eventually(|_| platform.open() == 1).await;
        if round == 2 {
            tokio::time::sleep(Duration::from_secs(11)).await;
        }
    }
    assert_eq!((refills(&setup, "first"), refills(&setup, "again")), (2, 1));
    assert_eq!(slow.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
    assert_eq!(lag_gaps(&setup), 0);
}

#[tokio::test(start_paused = true)]
async fn lines_that_only_the_ring_has_follow_exact_gap() {
    let (setup, run) = one_run(small_ring());
    let platform = &setup.gateway.platform;
    let (mut slow, mut quick) = (open(&setup).await, open_quick(&setup).await);
    flood(platform, &run, &mut quick, 0).await;
    platform.rotate(&run, 10);
    platform.print(&run, ["the end\n"]);
    slow.until(|seen| seen.ends_with("web", 0, "the end\n")).await;
    let lost = slow.received.assert_complete(platform, "web", 0, &[(&run, 0)]);
    let received = slow.received.lines("web", 0) as u64;
    assert_eq!(received + lost, FLOOD as u64 + 1);
    // More than the log has.
    assert!(lost > 0 && gaps(&slow).len() == 1, "{lost}");
    assert_eq!(setup.gateway.metric("leasemux_lines_lost_total{cause=\"rotated\"}"), lost);
    assert_eq!(lag_gaps(&setup), 0);
}

#[tokio::test(start_paused = true)]
async fn only_rotated_lines_become_gap() {
    let (setup, run) = one_run(small_ring());
    let platform = &setup.gateway.platform;
    let (mut slow, mut quick) = (open(&setup).await, open_quick(&setup).await);
    flood(platform, &run, &mut quick, 0).await;
    platform.rotate(&run, FLOOD / 2);
    slow.until(|seen| seen.lines("web", 0) > FLOOD / 2).await;
    slow.until(|seen| seen.text("web", 0).ends_with(&wide_lines(FLOOD - 1..FLOOD).collect::<String>())).await;
    assert_eq!(gaps(&slow), [Seen::Gap(0, 0, false)]);
    let printed: Vec<String> = wide_lines(0..FLOOD).map(|line| line.trim_end().to_owned()).collect();
    assert_eq!(slow.received.assert_ordered("web", 0, &printed), 1);
    // All lines that are left were sent after the gap.
    let entries = slow.received.of("web", 0);
    let gap = entries.iter().position(|seen| matches!(seen, Seen::Gap(..))).unwrap();
    let after = entries[gap + 1..].iter().map(|seen| match seen {
        Seen::Logs(_, bytes) => memchr::memchr_iter(b'\n', bytes).count(),
        _ => 0,
    });
    assert_eq!(after.sum::<usize>(), FLOOD / 2);
    assert_eq!(lag_gaps(&setup), 0);
}

#[tokio::test(start_paused = true)]
async fn rotation_during_refill_loses_only_removed_lines() {
    let (setup, run) = one_run(small_ring());
    let platform = &setup.gateway.platform;
    let (mut slow, mut quick) = (open(&setup).await, open_quick(&setup).await);
    flood(platform, &run, &mut quick, 0).await;
    slow.until(|seen| seen.lines("web", 0) > FLOOD / 4).await;
    assert_eq!(platform.open(), 2, "a refill runs");
    // The reader of the log fails, and finds another file when it tries again.
    platform.fail(&run, true);
    platform.rotate(&run, FLOOD / 4);
    read_ready(&mut slow).await;
    assert!(slow.received.lines("web", 0) < FLOOD / 2);
    platform.fail(&run, false);
    slow.until(|seen| seen.text("web", 0).ends_with(&wide_lines(FLOOD - 1..FLOOD).collect::<String>())).await;
    let printed: Vec<String> = wide_lines(0..FLOOD).map(|line| line.trim_end().to_owned()).collect();
    assert_eq!(slow.received.assert_ordered("web", 0, &printed), 1);
    assert_eq!(lag_gaps(&setup), 0);
}

#[tokio::test(start_paused = true)]
async fn recorded_loss_within_refill_is_reported_once() {
    let (setup, run) = one_run(small_ring());
    let platform = &setup.gateway.platform;
    let (mut slow, mut quick) = (open(&setup).await, open_quick(&setup).await);
    flood(platform, &run, &mut quick, 0).await;
    platform.lose(&run, 5);
    quick.until(|seen| seen.missing("web", 0) == 5).await;
    flood(platform, &run, &mut quick, FLOOD).await;
    slow.until(|seen| seen.lines("web", 0) == 2 * FLOOD).await;
    assert_eq!(slow.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 5);
    assert_eq!(lag_gaps(&setup), 0);
}

#[tokio::test(start_paused = true)]
async fn unreadable_log_delays_refill_without_loss() {
    let (setup, run) = one_run(small_ring());
    let platform = &setup.gateway.platform;
    let (mut slow, mut quick) = (open(&setup).await, open_quick(&setup).await);
    flood(platform, &run, &mut quick, 0).await;
    platform.fail(&run, true);
    for _ in 0..60 {
        read_ready(&mut slow).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(slow.received.lines("web", 0) < FLOOD);
    platform.fail(&run, false);
    slow.until(|seen| seen.lines("web", 0) == FLOOD).await;
    assert_eq!(slow.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
    assert_eq!(lag_gaps(&setup), 0);
}

#[tokio::test(start_paused = true)]
async fn restart_during_refill_is_reported_once() {
    let (setup, first) = one_run(small_ring());
    let (platform, web) = (&setup.gateway.platform, replica("web", 0));
    let (mut slow, mut quick) = (open(&setup).await, open_quick(&setup).await);
    flood(platform, &first, &mut quick, 0).await;
    slow.until(|seen| seen.lines("web", 0) > FLOOD / 4).await;
    assert_eq!(platform.open(), 2, "a refill runs");
    platform.end(&setup.lease, &web, 1);
    let second = platform.start(&setup.lease, &web);
    flood(platform, &second, &mut quick, 0).await;
    slow.until(|seen| seen.lines("web", 0) == 2 * FLOOD).await;
    assert_eq!(slow.received.assert_complete(platform, "web", 0, &[(&first, 0), (&second, 0)]), 0);
    assert_eq!(slow.received.events("web", 0), [Kind::Ended, Kind::Started]);
    assert_eq!(lag_gaps(&setup), 0);
}

#[tokio::test(start_paused = true)]
async fn rotated_start_of_next_run_is_gap() {
    for keep in [FLOOD / 2, 10] {
        let (setup, first) = one_run(small_ring());
        let (platform, web) = (&setup.gateway.platform, replica("web", 0));
        let (mut slow, mut quick) = (open(&setup).await, open_quick(&setup).await);
        flood(platform, &first, &mut quick, 0).await;
        slow.until(|seen| seen.lines("web", 0) > FLOOD / 4).await;
        platform.end(&setup.lease, &web, 1);
        let second = platform.start(&setup.lease, &web);
        flood(platform, &second, &mut quick, FLOOD).await;
        platform.rotate(&second, keep);
        platform.print(&second, ["the end\n"]);
        slow.until(|seen| seen.ends_with("web", 0, "the end\n")).await;
        let printed: Vec<String> = wide_lines(0..2 * FLOOD).chain(["the end".to_owned()]).collect();
        let printed: Vec<String> = printed.iter().map(|line| line.trim_end().to_owned()).collect();
        assert_eq!(slow.received.assert_ordered("web", 0, &printed), 1);
        assert_eq!(slow.received.events("web", 0), [Kind::Ended, Kind::Started]);
        // Exact if the ring has the line after it.
        let lost = slow.received.missing("web", 0);
        let received = slow.received.lines("web", 0);
        let all = received + usize::try_from(lost).unwrap() == 2 * FLOOD + 1;
        assert_eq!((all, lag_gaps(&setup)), (keep == 10, 0), "{received} {lost}");
        assert!(keep == 10 || received == FLOOD + keep + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn events_before_lag_are_not_repeated() {
    let (setup, first) = one_run(small_ring());
    let (platform, web) = (&setup.gateway.platform, replica("web", 0));
    let (mut slow, mut quick) = (open(&setup).await, open_quick(&setup).await);
    platform.print(&first, wide_lines(0..10));
    platform.end(&setup.lease, &web, 1);
    let events = [Kind::Ended, Kind::Waiting, Kind::Started];
    slow.until(|seen| seen.events("web", 0) == events[..2]).await;
    let second = platform.start(&setup.lease, &web);
    slow.until(|seen| seen.events("web", 0) == events).await;
    // More than the ring holds, at once.
    platform.print(&second, wide_lines(0..FLOOD));
    quick.until(|seen| seen.lines("web", 0) > 10).await;
    slow.until(|seen| seen.lines("web", 0) == FLOOD + 10).await;
    assert_eq!(slow.received.assert_complete(platform, "web", 0, &[(&first, 0), (&second, 0)]), 0);
    assert_eq!(slow.received.events("web", 0), events);
    assert_eq!((refills(&setup, "first"), gaps(&slow)), (1, vec![]));
}

#[tokio::test(start_paused = true)]
async fn unfinished_lines_of_two_streams_are_continued() {
    let (setup, run) = one_run(small_ring());
    let platform = &setup.gateway.platform;
    let (mut slow, mut quick) = (open(&setup).await, open_quick(&setup).await);
    let mut expected = String::new();
    let mut print = |stream, piece: &str| {
        platform.print_piece(&run, stream, piece);
        expected += piece;
    };
    print(Stdout, "out ");
    print(Stderr, "error ");
    slow.until(|seen| seen.text("web", 0) == "out error ").await;
    // The pieces that follow are evicted before the follower reads them.
    print(Stdout, "continues ");
    print(Stderr, "ends\n");
    print(Stdout, "and ends\n");
    for number in 0..FLOOD {
        print(Stdout, &format!("line {number:0200}\n"));
        if number % 100 == 0 {
            let ended = number + 3;
            quick.until(|seen| seen.lines("web", 0) == ended).await;
        }
    }
    print(Stderr, "last");
    slow.until(|seen| seen.ends_with("web", 0, "last")).await;
    assert!(slow.received.text("web", 0) == expected);
    assert_eq!((refills(&setup, "first"), gaps(&slow)), (1, vec![]));
    platform.print_piece(&run, Stderr, " end\n");
    slow.until(|seen| seen.ends_with("web", 0, " end\n")).await;
}

#[tokio::test(start_paused = true)]
async fn refills_wait_for_each_other_in_turn() {
    let (setup, run) = one_run(one_refill());
    let platform = &setup.gateway.platform;
    let (mut quick, mut slow) = (open_quick(&setup).await, Vec::new());
    for _ in 0..4 {
        slow.push(open(&setup).await);
    }
    flood(platform, &run, &mut quick, 0).await;
    let complete = slow.iter_mut().map(async |stream| {
        stream.until(|seen| seen.lines("web", 0) == FLOOD).await;
        stream.received.assert_complete(platform, "web", 0, &[(&run, 0)])
    });
    assert_eq!(futures_util::future::join_all(complete).await, [0; 4]);
    assert_eq!((refills(&setup, "first"), lag_gaps(&setup)), (4, 0));
    setup.gateway.eventually(|_| platform.open() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn refill_of_slow_follower_lets_another_have_a_turn() {
    let (setup, run) = one_run(one_refill());
    let platform = &setup.gateway.platform;
    let (mut quick, mut slow) = (open_quick(&setup).await, open(&setup).await);
    let mut other = open(&setup).await;
    flood(platform, &run, &mut quick, 0).await;
    slow.until(|seen| seen.lines("web", 0) > FLOOD / 4).await;
    assert_eq!(platform.open(), 2, "a refill runs");
    let begun = slow.received.lines("web", 0);
    let read_slowly = async {
        loop {
            slow.next().await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        () = read_slowly => {}
        () = other.until(|seen| seen.lines("web", 0) == FLOOD) => {}
    }
    let read = slow.received.lines("web", 0);
    assert!(read < FLOOD, "{read}, not complete since {begun}");
    slow.until(|seen| seen.lines("web", 0) == FLOOD).await;
    for stream in [&slow, &other] {
        assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
    }
    assert_eq!(lag_gaps(&setup), 0);
}

#[tokio::test(start_paused = true)]
async fn drain_during_refill_sends_its_cursor() {
    let (setup, run) = one_run(small_ring());
    let platform = &setup.gateway.platform;
    let (mut slow, mut quick) = (open(&setup).await, open_quick(&setup).await);
    flood(platform, &run, &mut quick, 0).await;
    slow.until(|seen| seen.lines("web", 0) > FLOOD / 4).await;
    assert_eq!(platform.open(), 2, "a refill runs");
    drop(quick);
    let drain = setup.gateway.drain.clone();
    let (clean, status) = tokio::join!(drain.finish(Duration::from_secs(10)), slow.end());
    assert!(clean);
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "DRAINING".into()));
    assert!(slow.received.lines("web", 0) < FLOOD);
    let second = setup.successor();
    let mut resumed = second.resume(slow, refill(follow(&setup))).await;
    resumed.until(|seen| seen.lines("web", 0) == FLOOD).await;
    assert_eq!(resumed.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn drain_before_refill_opens_no_log() {
    let (setup, run) = one_run(small_ring());
    let platform = &setup.gateway.platform;
    let (mut slow, mut quick) = (open(&setup).await, open_quick(&setup).await);
    flood(platform, &run, &mut quick, 0).await;
    drop(quick);
    let drain = setup.gateway.drain.clone();
    let (_, status) = tokio::join!(drain.finish(Duration::from_secs(10)), slow.end());
    assert_eq!(reason(&status), "DRAINING");
    assert_eq!(setup.gateway.metric("leasemux_source_opens_total{read=\"refill\"}"), 0);
    let second = setup.successor();
    let mut resumed = second.resume(slow, refill(follow(&setup))).await;
    resumed.until(|seen| seen.lines("web", 0) == FLOOD).await;
    assert_eq!(resumed.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn revoked_credential_ends_refill_and_frees_permit() {
    let (setup, run) = one_run(one_refill());
    let platform = &setup.gateway.platform;
    let (mut slow, mut quick) = (open(&setup).await, open_quick(&setup).await);
    flood(platform, &run, &mut quick, 0).await;
    slow.until(|seen| seen.lines("web", 0) > FLOOD / 4).await;
    assert_eq!(platform.open(), 2, "a refill runs");
    setup.gateway.withdraw(setup.lease.owner());
    let status = slow.end().await;
    assert_eq!(reason(&status), "CERTIFICATE_WITHDRAWN");
    drop(quick);
    setup.gateway.eventually(|_| platform.open() == 0).await;
    setup.gateway.believe(setup.lease.owner(), &setup.certificate);
    let mut resumed = setup.resume(slow, refill(follow(&setup))).await;
    resumed.until(|seen| seen.lines("web", 0) == FLOOD).await;
    assert_eq!(resumed.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn refill_completes_although_lease_ends() {
    let (setup, run) = one_run(small_ring());
    let (platform, web) = (&setup.gateway.platform, replica("web", 0));
    let (mut slow, mut quick) = (open(&setup).await, open_quick(&setup).await);
    flood(platform, &run, &mut quick, 0).await;
    slow.until(|seen| seen.lines("web", 0) > FLOOD / 4).await;
    assert_eq!(platform.open(), 2, "a refill runs");
    platform.end(&setup.lease, &web, 0);
    platform.change(&setup.lease, |view| view.ended = true);
    quick.end().await;
    let status = slow.end().await;
    assert_eq!((status.code(), reason(&status)), (Code::NotFound, "LEASE_ENDED".into()));
    assert_eq!(slow.received.lines("web", 0), FLOOD);
    assert_eq!(slow.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
    let events = slow.received.events("web", 0);
    assert_eq!((events.first(), events.last()), (Some(&Kind::Ended), Some(&Kind::Gone)), "{events:?}");
    assert_eq!(lag_gaps(&setup), 0);
}

#[tokio::test(start_paused = true)]
async fn refill_completes_although_replica_is_removed() {
    let (setup, run) = one_run(small_ring());
    let (platform, web) = (&setup.gateway.platform, replica("web", 0));
    let (mut slow, mut quick) = (open(&setup).await, open_quick(&setup).await);
    flood(platform, &run, &mut quick, 0).await;
    slow.until(|seen| seen.lines("web", 0) > FLOOD / 4).await;
    assert_eq!(platform.open(), 2, "a refill runs");
    platform.end(&setup.lease, &web, 0);
    platform.change(&setup.lease, |view| {
        view.services.get_mut(&web.service).unwrap().replicas.remove(&web.index);
    });
    slow.until(|seen| seen.events("web", 0).last() == Some(&Kind::Gone)).await;
    assert_eq!(slow.received.lines("web", 0), FLOOD);
    assert_eq!(slow.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn follower_without_position_gets_exact_gap() {
    let setup = Setup::new(small_ring(), &[("web", 2)]);
    let platform = &setup.gateway.platform;
    let first = platform.start(&setup.lease, &replica("web", 0));
    let mut slow = setup.open(refill(follow_from_now(&setup))).await.unwrap();
    slow.until(|seen| !seen.cursors.is_empty()).await;
    assert!(slow.is_quiet().await);
    let mut quick = setup.open(follow(&setup)).await.unwrap();
    quick.until(|seen| !seen.cursors.is_empty()).await;
    // The stream is full before the second replica starts.
    flood(platform, &first, &mut quick, 0).await;
    let second = platform.start(&setup.lease, &replica("web", 1));
    for step in 0..10 {
        platform.print(&second, wide_lines(100 * step..100 * (step + 1)));
        quick.until(|seen| seen.lines("web", 1) == 100 * (step + 1)).await;
    }
    platform.print(&second, ["the end\n"]);
    slow.until(|seen| seen.lines("web", 0) == FLOOD && seen.ends_with("web", 1, "the end\n")).await;
    assert_eq!(slow.received.assert_complete(platform, "web", 0, &[(&first, 0)]), 0);
    assert!(slow.received.assert_complete(platform, "web", 1, &[(&second, 0)]) > 0);
}

#[tokio::test(start_paused = true)]
async fn refilled_lines_do_not_count_as_lost() {
    let (setup, run) = one_run(small_ring());
    let platform = &setup.gateway.platform;
    let (mut slow, mut quick) = (open(&setup).await, open_quick(&setup).await);
    flood(platform, &run, &mut quick, 0).await;
    slow.until(|seen| seen.lines("web", 0) > FLOOD / 4).await;
    assert_eq!(platform.open(), 2, "a refill runs");
    let report = setup.gateway.lagging(10);
    assert_eq!(report.total, 1);
    let follower = &report.worst[0];
    let left = FLOOD as u64 - slow.received.lines("web", 0) as u64;
    assert!(follower.backlog.lines > 0 && follower.backlog.lines <= left, "{follower:?}, {left}");
    assert_eq!(follower.lost.lines, 0);
    slow.until(|seen| seen.lines("web", 0) == FLOOD).await;
    platform.print(&run, lines(0..1));
    slow.until(|seen| seen.lines("web", 0) == FLOOD + 1).await;
    assert_eq!(setup.gateway.lagging(10).total, 0);
}
