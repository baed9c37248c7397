//! Reads of older lines: who has waited for long is refused, and nobody who was let in.

use std::time::Duration;

use leasemux::model::limits::{Limits, QuotaLimits};
use leasemux::model::proto::lease::ServiceLogsRequest;
use tokio::time::Instant;
use tonic::Code;

use super::{Two, follow, refusals, used_up};
use crate::support::gateway::{Scene, Stream};
use crate::support::replica;

/// Far more than a stream's buffers, pipe and window hold: who has so much to read, and takes some, is still reading.
const LINES: usize = 4_000;

/// How long it may take until something is read.
const WAIT: Duration = Duration::from_secs(3);

/// So many reads at once, of one owner and in all.
fn reads(history_reads_per_owner: usize, history_reads: usize) -> QuotaLimits {
    QuotaLimits { history_reads, history_reads_per_owner, history_wait: WAIT, ..QuotaLimits::default() }
}

/// Two tenants, each with much to read.
fn two(quota: QuotaLimits) -> Two {
    let two = Two::new(quota);
    two.print(u32::try_from(LINES).unwrap(), &"x".repeat(500));
    two
}

/// One who has begun to read and has not gone on.
async fn reader(scene: &Scene) -> Stream {
    let mut stream = scene.open(scene.request()).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) > 0).await;
    stream
}

#[tokio::test(start_paused = true)]
async fn who_has_waited_for_long_is_refused_and_may_read_when_others_have() {
    let two = two(reads(1, 4));
    let (scene, gateway) = (&two.scene, &two.scene.gateway);
    let mut held = reader(scene).await;
    let began = Instant::now();
    let status = scene.open(scene.request()).await.unwrap().end().await;
    let owner = format!("owner:{}", scene.lease.owner());
    assert_eq!(used_up(&status, "history_reads_per_owner", &owner, 1), Duration::from_secs(5));
    assert!(began.elapsed() >= WAIT && began.elapsed() < 2 * WAIT, "{:?}", began.elapsed());
    assert_eq!(refusals(gateway, "history_reads_per_owner"), 1);
    // The others have their own.
    let mut others = two.other.open(two.other.request()).await.unwrap();
    assert_eq!(others.end().await.code(), Code::Ok);
    two.ask(1, &others);
    // Who comes in time waits, and is not refused.
    let mut next = scene.open(scene.request()).await.unwrap();
    assert!(next.is_quiet().await);
    for stream in [&mut held, &mut next] {
        assert_eq!(stream.end().await.code(), Code::Ok);
        two.ask(0, stream);
        assert_eq!(stream.received.lines("web", 0), LINES);
    }
    assert_eq!(refusals(gateway, "history_reads_per_owner"), 1);
}

#[tokio::test(start_paused = true)]
async fn all_owners_together_have_so_many_reads() {
    let two = two(reads(1, 1));
    let held = reader(&two.scene).await;
    let status = two.other.open(two.other.request()).await.unwrap().end().await;
    used_up(&status, "history_reads", "gateway", 1);
    assert!(!status.message().contains(two.scene.lease.owner().as_str()));
    two.ask(0, &held);
    drop(held);
    let mut others = two.other.open(two.other.request()).await.unwrap();
    assert_eq!(others.end().await.code(), Code::Ok);
    two.ask(1, &others);
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_loses_nothing_of_what_they_came_back_for() {
    let two = two(reads(1, 4));
    let scene = &two.scene;
    let mut stream = scene.open(follow(scene)).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) > 10).await;
    let cursors = stream.received.cursors.clone();
    let mut stream = scene.resume(stream, follow(scene)).await;
    stream.until(|seen| seen.cursors != cursors).await;
    // This one is reading, and so the same follower, come anew, may not.
    let mut other = scene.open(follow(scene)).await.unwrap();
    std::mem::swap(&mut other.received, &mut stream.received);
    let mut other = scene.resume(other, follow(scene)).await;
    let before = other.received.cursors.clone();
    let status = other.end().await;
    used_up(&status, "history_reads_per_owner", &format!("owner:{}", scene.lease.owner()), 1);
    assert_eq!(other.received.cursors, before);
    drop(stream);
    let mut again = scene.resume(other, follow(scene)).await;
    again.until(|seen| seen.lines("web", 0) == LINES).await;
    two.ask(0, &again);
}

#[tokio::test(start_paused = true)]
async fn who_was_let_in_is_not_refused_though_they_wait() {
    for history_wait in [Duration::ZERO, WAIT] {
        let quota = QuotaLimits { history_wait, ..reads(1, 4) };
        let scene = Scene::new(Limits { quota, ..Limits::default() }, &[("web", 3)]);
        let world = &scene.gateway.world;
        let start = |index| {
            let run = world.start(&scene.lease, &replica("web", index));
            world.print(&run, (0..LINES).map(|number| format!("{number} {}\n", "x".repeat(500))));
            run
        };
        let mut runs = vec![start(0), start(1)];
        let mut stream = scene.open(follow(&scene)).await.unwrap();
        stream.until(|seen| seen.lines("web", 0) + seen.lines("web", 1) > 0).await;
        // One replica of the two is being read, and nothing is taken of it; nor of one that appears only now.
        tokio::time::sleep(10 * WAIT).await;
        runs.push(start(2));
        tokio::time::sleep(WAIT / 2).await;
        stream.until(|seen| (0..3).all(|index| seen.lines("web", index) == LINES)).await;
        for (index, run) in runs.iter().enumerate() {
            assert_eq!(stream.received.ask(world, "web", u32::try_from(index).unwrap(), &[(run, 0)]), 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_more_read_than_the_pace_allows_is_refused_and_told_when_to_come() {
    let two = two(QuotaLimits {
        history_bytes_per_second_per_owner: 64 * 1024,
        history_wait: Duration::from_secs(1),
        ..QuotaLimits::default()
    });
    let scene = &two.scene;
    let owner = format!("owner:{}", scene.lease.owner());
    let mut readers = Vec::new();
    let (status, retry_after) = loop {
        let mut stream = scene.open(scene.request()).await.unwrap();
        match stream.next_if_ready().await {
            Ok(_) => readers.push(stream),
            Err(status) => {
                let retry_after = used_up(&status, "history_rate_per_owner", &owner, 64 * 1024);
                break (status, retry_after);
            }
        }
        assert!(readers.len() < 16, "there are enough reads for all of them");
    };
    assert!(!readers.is_empty() && !retry_after.is_zero(), "{status:?}");
    // Nobody else is slowed down.
    let others = two.other.open(ServiceLogsRequest { tail_lines: Some(5), ..two.other.request() });
    let mut others = others.await.unwrap();
    assert_eq!(others.end().await.code(), Code::Ok);
    assert_eq!(others.received.lines("web", 0), 5);
    drop(readers);
    tokio::time::sleep(retry_after).await;
    let mut stream = scene.open(scene.request()).await.unwrap();
    assert_eq!(stream.end().await.code(), Code::Ok);
    two.ask(0, &stream);
    assert_eq!(stream.received.lines("web", 0), LINES);
}
