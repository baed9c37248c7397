//! A gateway at the limit of its memory: rings are shrunk, new streams and reads are rejected, and running
//! streams continue with exact gaps.

use std::time::Duration;

use leasemux::model::id::{Instance, LeaseId};
use leasemux::model::limits::Limits;
use leasemux::model::proto::lease::{OnLag, ServiceLogsRequest};

use super::{follow, follow_from_now, open_live, replica, wide_lines};
use crate::quotas::{quota_exceeded, rejections};
use crate::support::account;
use crate::support::gateway::{Setup, Stream};

const BUDGET: usize = 12 << 20;

/// Reserved for one read of older lines, and always for another one.
const READ: usize = 6 << 20;

/// The smallest ring of a running stream.
const RING_MIN: u64 = 256 * 1024;

/// Bytes that may be over the budget for a moment: one read of a log, encoded.
const SLACK: u64 = 300 * 1024;

const REPLICAS: u32 = 4;

/// Streams whose full send buffers are together larger than what the budget leaves.
const STALLED: usize = 60;

/// The size of a full message, with the memory beside it.
const MESSAGE: usize = 19 * 1024;

/// Limits with rings that are together larger than the budget.
fn limits() -> Limits {
    Limits { memory_budget: Some(BUDGET), ..Limits::default() }
}

/// Returns a lease of another tenant, with one running replica.
fn other_tenant(setup: &Setup) -> (Setup, Instance) {
    let (owner, certificate) = setup.gateway.tenant();
    let lease = LeaseId::new(owner.as_str(), 7, 1, 1, account(200).as_str()).unwrap();
    setup.gateway.platform.add_lease(&lease, &[("web", 1)]);
    let run = setup.gateway.platform.start(&lease, &replica("web", 0));
    (Setup { gateway: setup.gateway.clone(), lease, certificate }, run)
}

/// Follows leases of other tenants until the gateway rejects one.
async fn fill(setup: &Setup) -> Vec<Stream> {
    let mut streams = Vec::new();
    for _ in 0..100 {
        let (other, _) = other_tenant(setup);
        let mut stream = other.open(follow_from_now(&other)).await.unwrap();
        if let Err(status) = stream.next().await {
            let limit = i64::try_from(BUDGET).unwrap();
            assert_eq!(quota_exceeded(&status, "memory", "gateway", limit), Duration::from_secs(5));
            return streams;
        }
        streams.push(stream);
    }
    panic!("all streams were admitted");
}

fn memory(setup: &Setup) -> u64 {
    setup.gateway.metric("leasemux_memory_used_bytes")
}

/// Prints lines to all runs in steps that `quick` reads.
async fn flood(setup: &Setup, runs: &[(u32, Instance)], quick: &mut Stream, from: usize, steps: usize) {
    for step in 0..steps {
        let first = from + 50 * step;
        for (index, run) in runs {
            setup.gateway.platform.print(run, wide_lines(first..first + 50));
            quick.until(|seen| seen.lines("web", *index) == first + 50).await;
        }
        assert!(memory(setup) <= BUDGET as u64 + SLACK, "{}", memory(setup));
    }
}

#[tokio::test(start_paused = true)]
async fn rollout_at_the_limit_loses_nothing_without_notice() {
    let setup = Setup::new(limits(), &[("web", REPLICAS)]);
    let (gateway, platform) = (&setup.gateway, &setup.gateway.platform);
    let start = |index| (index, platform.start(&setup.lease, &replica("web", index)));
    let old: Vec<_> = (0..REPLICAS).map(start).collect();
    let mut quick = open_live(&setup).await;
    let mut slow = open_live(&setup).await;
    let request = ServiceLogsRequest { on_lag: OnLag::Refill.into(), ..follow_from_now(&setup) };
    let mut refilled = setup.open(request).await.unwrap();
    for stream in [&mut quick, &mut slow, &mut refilled] {
        stream.until(|seen| seen.cursors.len() == REPLICAS as usize).await;
    }
    let others = fill(&setup).await;
    assert_eq!(rejections(gateway, "memory"), 1);
    assert_eq!(gateway.metric("leasemux_memory_budget_bytes"), BUDGET as u64);

    // Each ring would hold 4 MiB.
    flood(&setup, &old, &mut quick, 0, 120).await;
    assert!(gateway.metric("leasemux_ring_shrunk_bytes_total") > 0);
    let held = gateway.metric("leasemux_ring_bytes");
    assert!(held > 3 * RING_MIN && held < BUDGET as u64, "{held}");

    // All new replicas run before the old ones end.
    let new: Vec<_> = (REPLICAS..2 * REPLICAS).map(start).collect();
    flood(&setup, &new, &mut quick, 0, 120).await;
    for (index, _) in &old {
        platform.end(&setup.lease, &replica("web", *index), 0);
    }
    flood(&setup, &new, &mut quick, 6_000, 20).await;
    let actors = 2 * u64::from(REPLICAS) + others.len() as u64;
    assert_eq!(gateway.metric("leasemux_actors"), actors);
    assert!(!is_admitted(&setup).await);

    for (_, run) in &new {
        platform.print(run, ["the end\n"]);
    }
    for stream in [&mut quick, &mut slow, &mut refilled] {
        stream.until(|seen| new.iter().all(|(index, _)| seen.ends_with("web", *index, "the end\n"))).await;
    }
    for (index, run) in old.iter().chain(&new) {
        let lost = |stream: &Stream| stream.received.assert_complete(platform, "web", *index, &[(run, 0)]);
        assert_eq!((lost(&quick), lost(&refilled)), (0, 0), "replica {index}");
        // It reads new replicas from their logs, from the first line on, until it has caught up.
        assert!(lost(&slow) > 0 || *index >= REPLICAS, "replica {index}");
    }

    // Memory is free again once streams have ended.
    drop((others, slow, refilled));
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(is_admitted(&setup).await);
    drop(quick);
    gateway.eventually(|gateway| gateway.metric("leasemux_actors") == 0).await;
    gateway.eventually(|_| memory(&setup) == READ as u64).await;
}

/// Whether a stream of another tenant is admitted.
async fn is_admitted(setup: &Setup) -> bool {
    let (other, _) = other_tenant(setup);
    let mut stream = other.open(follow_from_now(&other)).await.unwrap();
    stream.next().await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn stalled_streams_do_not_grow_over_the_limit() {
    let limit = READ + (3 << 20);
    let limits = Limits { memory_budget: Some(limit), ..Limits::default() };
    let setup = Setup::new(limits, &[("web", 1)]);
    let platform = &setup.gateway.platform;
    let run = platform.start(&setup.lease, &replica("web", 0));
    let mut quick = open_live(&setup).await;
    let mut streams = Vec::new();
    for _ in 0..STALLED {
        streams.push(open_live(&setup).await);
    }
    // They stall one after the other, each with other messages in its send buffer.
    for step in 0..STALLED {
        // In portions of several full messages.
        for round in 0..4 {
            let first = 1_000 * step + 250 * round;
            platform.print(&run, wide_lines(first..first + 250));
            for stream in streams.iter_mut().skip(step).chain([&mut quick]) {
                stream.until(|seen| seen.lines("web", 0) == first + 250).await;
            }
        }
        let most = limit as u64 + SLACK + (STALLED * MESSAGE) as u64;
        assert!(memory(&setup) <= most, "{}", memory(&setup));
    }
    assert_eq!(setup.gateway.metric("leasemux_streams{method=\"ServiceLogs\"}"), 1 + STALLED as u64);
    assert!(setup.gateway.metric("leasemux_ring_bytes") <= RING_MIN, "the budget is used up");
    platform.print(&run, ["the end\n"]);
    for stream in &mut streams {
        stream.until(|seen| seen.ends_with("web", 0, "the end\n")).await;
        stream.received.assert_complete(platform, "web", 0, &[(&run, 0)]);
    }
    assert_eq!(quick.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn read_of_a_new_stream_is_rejected_and_continues_later() {
    let limit = 2 * READ + (1 << 20);
    let setup = Setup::new(Limits { memory_budget: Some(limit), ..Limits::default() }, &[("web", 1)]);
    let platform = &setup.gateway.platform;
    let run = platform.start(&setup.lease, &replica("web", 0));
    platform.print(&run, wide_lines(0..20_000));
    // The only read that fits besides the one for running streams, and its client takes nothing.
    let mut held = setup.open(setup.request()).await.unwrap();
    held.until(|seen| seen.lines("web", 0) > 0).await;
    let status = setup.open(setup.request()).await.unwrap().end().await;
    quota_exceeded(&status, "memory", "gateway", i64::try_from(limit).unwrap());
    drop(held);
    setup.gateway.eventually(|_| platform.open() == 0).await;
    let mut stream = setup.open(follow(&setup)).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) == 20_000).await;
    assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
}
