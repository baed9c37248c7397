//! Limits of backfill: a reader that waits too long is rejected, and an admitted one never.

use std::time::Duration;

use leasemux::edge::service::SERVICE;
use leasemux::model::id::{Instance, LeaseId};
use leasemux::model::limits::{Limits, QuotaLimits};
use leasemux::model::proto::lease::replica_event::Kind;
use leasemux::model::proto::lease::{Cursor, ServiceFilter, ServiceLogsRequest};
use tokio::time::Instant;
use tonic::Code;

use super::{TwoTenants, follow, quota_exceeded, rejections};
use crate::support::gateway::{Setup, Stream};
use crate::support::loss_check::Seen;
use crate::support::raw::{Raw, encoded};
use crate::support::{account, reason, replica};

/// Far more than a stream's buffers, pipe and window hold: a reader that has taken some is still reading.
const LINES: usize = 4_000;

/// The number of open log streams.
const OPEN: &str = "leasemux_streams{method=\"ServiceLogs\"}";

/// Time limit until a backfill starts to read.
const WAIT: Duration = Duration::from_secs(3);

/// Limits of concurrent reads.
fn reads(history_reads_per_owner: usize, history_reads: usize) -> QuotaLimits {
    QuotaLimits { history_reads, history_reads_per_owner, history_wait: WAIT, ..QuotaLimits::default() }
}

/// Two tenants, each with a long log.
fn two(quota: QuotaLimits) -> TwoTenants {
    let two = TwoTenants::new(quota);
    two.print(u32::try_from(LINES).unwrap(), &"x".repeat(500));
    two
}

/// Opens a stream that has started to read and does not continue.
async fn reader(setup: &Setup) -> Stream {
    let mut stream = setup.open(setup.request()).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) > 0).await;
    stream
}

#[tokio::test(start_paused = true)]
async fn reader_is_rejected_after_the_wait_and_admitted_later() {
    let two = two(reads(1, 4));
    let (setup, gateway) = (&two.setup, &two.setup.gateway);
    let mut held = reader(setup).await;
    let began = Instant::now();
    let status = setup.open(setup.request()).await.unwrap().end().await;
    let owner = format!("owner:{}", setup.lease.owner());
    assert_eq!(quota_exceeded(&status, "history_reads_per_owner", &owner, 1), Duration::from_secs(5));
    assert!(began.elapsed() >= WAIT && began.elapsed() < 2 * WAIT, "{:?}", began.elapsed());
    assert_eq!(rejections(gateway, "history_reads_per_owner"), 1);
    // The other owner has another limit.
    let mut others = two.other.open(two.other.request()).await.unwrap();
    assert_eq!(others.end().await.code(), Code::Ok);
    two.ask(1, &others);
    // A reader that waits less is not rejected.
    let mut next = setup.open(setup.request()).await.unwrap();
    assert!(next.is_quiet().await);
    for stream in [&mut held, &mut next] {
        assert_eq!(stream.end().await.code(), Code::Ok);
        two.ask(0, stream);
        assert_eq!(stream.received.lines("web", 0), LINES);
    }
    assert_eq!(rejections(gateway, "history_reads_per_owner"), 1);
}

#[tokio::test(start_paused = true)]
async fn reads_of_all_owners_are_limited() {
    let two = two(reads(1, 1));
    let held = reader(&two.setup).await;
    let status = two.other.open(two.other.request()).await.unwrap().end().await;
    quota_exceeded(&status, "history_reads", "gateway", 1);
    assert!(!status.message().contains(two.setup.lease.owner().as_str()));
    two.ask(0, &held);
    drop(held);
    let mut others = two.other.open(two.other.request()).await.unwrap();
    assert_eq!(others.end().await.code(), Code::Ok);
    two.ask(1, &others);
}

#[tokio::test(start_paused = true)]
async fn rejected_resume_loses_nothing() {
    let two = two(reads(1, 4));
    let setup = &two.setup;
    let mut stream = setup.open(follow(setup)).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) > 10).await;
    let cursors = stream.received.cursors.clone();
    let mut stream = setup.resume(stream, follow(setup)).await;
    stream.until(|seen| seen.cursors != cursors).await;
    // This stream is reading, so another one with the same cursors is rejected.
    let mut other = setup.open(follow(setup)).await.unwrap();
    std::mem::swap(&mut other.received, &mut stream.received);
    let mut other = setup.resume(other, follow(setup)).await;
    let before = other.received.cursors.clone();
    let status = other.end().await;
    quota_exceeded(&status, "history_reads_per_owner", &format!("owner:{}", setup.lease.owner()), 1);
    assert_eq!(other.received.cursors, before);
    drop(stream);
    let mut again = setup.resume(other, follow(setup)).await;
    again.until(|seen| seen.lines("web", 0) == LINES).await;
    two.ask(0, &again);
}

#[tokio::test(start_paused = true)]
async fn admitted_reader_is_never_rejected() {
    for history_wait in [Duration::ZERO, WAIT] {
        let quota = QuotaLimits { history_wait, ..reads(1, 4) };
        let setup = Setup::new(Limits { quota, ..Limits::default() }, &[("web", 3)]);
        let platform = &setup.gateway.platform;
        let mut runs = vec![start(&setup, 0), start(&setup, 1)];
        let mut stream = setup.open(follow(&setup)).await.unwrap();
        stream.until(|seen| seen.lines("web", 0) + seen.lines("web", 1) > 0).await;
        // One of two replicas is being read, and the reader takes nothing. A third one starts meanwhile.
        tokio::time::sleep(10 * WAIT).await;
        runs.push(start(&setup, 2));
        tokio::time::sleep(WAIT / 2).await;
        stream.until(|seen| (0..3).all(|index| seen.lines("web", index) == LINES)).await;
        for (index, run) in runs.iter().enumerate() {
            assert_eq!(
                stream.received.assert_complete(platform, "web", u32::try_from(index).unwrap(), &[(run, 0)]),
                0
            );
        }
    }
}

/// A tenant with two replicas with long logs, and one concurrent read.
fn pair(history_wait: Duration) -> (Setup, [Instance; 2]) {
    let quota = QuotaLimits { history_wait, ..reads(1, 4) };
    let setup = Setup::new(Limits { quota, ..Limits::default() }, &[("web", 2)]);
    let runs = [0, 1].map(|index| start(&setup, index));
    (setup, runs)
}

/// Starts a replica with a long log.
fn start(setup: &Setup, index: u32) -> Instance {
    let platform = &setup.gateway.platform;
    let run = platform.start(&setup.lease, &replica("web", index));
    platform.print(&run, (0..LINES).map(|number| format!("{number} {}\n", "x".repeat(500))));
    run
}

/// Changes a request to select one replica.
fn only(index: u32, request: ServiceLogsRequest) -> ServiceLogsRequest {
    let filter = ServiceFilter { name: "web".into(), replicas: vec![index] };
    ServiceLogsRequest { filter: Some(filter), ..request }
}

/// Opens a stream that has started to read one replica and does not continue.
async fn reader_of(setup: &Setup, index: u32) -> Stream {
    let mut stream = setup.open(only(index, follow(setup))).await.unwrap();
    stream.until(|seen| seen.lines("web", index) > 0).await;
    stream
}

/// Returns the cursors of a stream that was closed while it read one replica.
async fn cursors_within(setup: &Setup, index: u32) -> Vec<Cursor> {
    let stream = reader_of(setup, index).await;
    let cursors = stream.received.cursors.values().cloned().collect();
    drop(stream);
    setup.gateway.eventually(|gateway| gateway.metric(OPEN) == 0).await;
    cursors
}

#[tokio::test(start_paused = true)]
async fn reader_with_a_gap_is_not_rejected_after_it() {
    let (setup, [_, first]) = pair(Duration::ZERO);
    let platform = &setup.gateway.platform;
    let web = replica("web", 1);
    let resume = cursors_within(&setup, 1).await;
    // The run of the cursor can no longer be read.
    platform.end(&setup.lease, &web, 1);
    let second = start(&setup, 1);
    platform.change(&setup.lease, |view| {
        let service = view.services.get_mut(&web.service).unwrap();
        service.replicas.get_mut(&web.index).unwrap().runs.retain(|run| run.instance != first);
    });
    let held = reader_of(&setup, 0).await;
    let mut stream = setup.open(ServiceLogsRequest { resume, ..only(1, follow(&setup)) }).await.unwrap();
    stream.until(|seen| seen.events("web", 1) == [Kind::Started]).await;
    assert!(stream.is_quiet().await);
    drop(held);
    stream.until(|seen| seen.lines("web", 1) == LINES).await;
    assert_eq!(stream.received.of("web", 1)[0], Seen::Gap(0, 0, false));
    assert_eq!(stream.received.text("web", 1).as_bytes(), platform.printed(&second).concat());
}

#[tokio::test(start_paused = true)]
async fn new_replica_does_not_admit_a_waiting_stream() {
    let (setup, _) = pair(WAIT);
    let held = reader_of(&setup, 0).await;
    let began = Instant::now();
    let mut stream = setup.open(follow(&setup)).await.unwrap();
    tokio::time::sleep(WAIT / 2).await;
    start(&setup, 2);
    let owner = format!("owner:{}", setup.lease.owner());
    quota_exceeded(&stream.end().await, "history_reads_per_owner", &owner, 1);
    assert!(began.elapsed() < 2 * WAIT, "{:?}", began.elapsed());
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn open_stream_is_not_rejected_for_a_new_replica() {
    for history_wait in [Duration::ZERO, WAIT] {
        let (setup, _) = pair(history_wait);
        let lease = LeaseId::new(setup.lease.owner().as_str(), 8, 1, 1, account(200).as_str()).unwrap();
        setup.gateway.platform.add_lease(&lease, &[]);
        let other = Setup { lease, gateway: setup.gateway.clone(), certificate: setup.certificate.clone() };
        let held = reader_of(&setup, 0).await;
        let mut stream = other.open(follow(&other)).await.unwrap();
        stream.until(|seen| seen.events("", 0) == [Kind::Waiting]).await;
        assert!(stream.is_quiet().await);
        let run = start(&other, 0);
        tokio::time::sleep(2 * WAIT).await;
        assert!(stream.is_quiet().await);
        drop(held);
        stream.until(|seen| seen.lines("web", 0) == LINES).await;
        assert_eq!(stream.received.assert_complete(&other.gateway.platform, "web", 0, &[(&run, 0)]), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn reader_of_an_ended_lease_is_not_rejected() {
    let (setup, runs) = pair(WAIT);
    let platform = &setup.gateway.platform;
    let held = reader_of(&setup, 0).await;
    let mut once = setup.open(only(1, setup.request())).await.unwrap();
    let mut stays = setup.open(only(1, follow(&setup))).await.unwrap();
    tokio::time::sleep(WAIT / 2).await;
    platform.end(&setup.lease, &replica("web", 1), 0);
    platform.change(&setup.lease, |view| view.ended = true);
    tokio::time::sleep(2 * WAIT).await;
    drop(held);
    assert_eq!(once.end().await.code(), Code::Ok);
    assert_eq!(reason(&stays.end().await), "LEASE_ENDED");
    for stream in [once, stays] {
        assert_eq!(stream.received.lines("web", 1), LINES);
        assert_eq!(stream.received.assert_complete(platform, "web", 1, &[(&runs[1], 0)]), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn resume_at_the_end_of_the_log_needs_no_permit() {
    let setup = Setup::new(Limits { quota: reads(1, 4), ..Limits::default() }, &[("web", 2)]);
    let platform = &setup.gateway.platform;
    start(&setup, 0);
    let run = platform.start(&setup.lease, &replica("web", 1));
    platform.print(&run, ["one\n", "two\n"]);
    let resume = cursors_within(&setup, 1).await;
    setup.gateway.eventually(|gateway| gateway.metric("leasemux_actors") == 0).await;
    let held = reader_of(&setup, 0).await;
    // This is known only after the log was opened.
    platform.fail(&run, true);
    let mut stream = setup.open(ServiceLogsRequest { resume, ..only(1, follow(&setup)) }).await.unwrap();
    assert!(stream.is_quiet().await);
    platform.fail(&run, false);
    tokio::time::sleep(2 * WAIT).await;
    platform.print(&run, ["three\n"]);
    stream.until(|seen| seen.lines("web", 1) == 1).await;
    assert_eq!(stream.received.assert_complete(platform, "web", 1, &[(&run, 2)]), 0);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn rejected_stream_that_takes_nothing_leaves_the_queue() {
    let (setup, runs) = pair(WAIT);
    let mut resume = cursors_within(&setup, 0).await;
    resume.extend(cursors_within(&setup, 1).await);
    let held = reader_of(&setup, 0).await;
    let mut caller = Raw::with_window(setup.gateway.connect(Some(setup.certificate.clone())), 0).await;
    let request = ServiceLogsRequest { resume, ..follow(&setup) };
    // It waits for both replicas, and is rejected; its cursors are sent first.
    let unread = caller.call_unread(&format!("/{SERVICE}/ServiceLogs"), encoded(&request)).await;
    tokio::time::sleep(2 * WAIT).await;
    assert_eq!(rejections(&setup.gateway, "history_reads_per_owner"), 1);
    drop(held);
    let mut next = setup.open(only(1, setup.request())).await.unwrap();
    assert_eq!(next.end().await.code(), Code::Ok);
    assert_eq!(next.received.assert_complete(&setup.gateway.platform, "web", 1, &[(&runs[1], 0)]), 0);
    assert_eq!(setup.gateway.metric(OPEN), 1, "the rejected one");
    drop(unread);
}

#[tokio::test(start_paused = true)]
async fn waiting_reader_ends_at_once_on_revocation_and_drain() {
    for expected in ["CERTIFICATE_WITHDRAWN", "DRAINING"] {
        let (setup, _) = pair(WAIT);
        let held = reader_of(&setup, 0).await;
        let mut waits = Vec::new();
        let resume = held.received.cursors.values().cloned().collect::<Vec<_>>();
        for request in [setup.request(), follow(&setup), ServiceLogsRequest { resume, ..follow(&setup) }] {
            waits.push(setup.open(request).await.unwrap());
        }
        tokio::time::sleep(WAIT / 2).await;
        let began = Instant::now();
        match expected {
            "DRAINING" => setup.gateway.drain.begin(),
            _ => setup.gateway.withdraw(setup.lease.owner()),
        }
        for mut stream in waits {
            assert_eq!(reason(&stream.end().await), expected);
            assert!(stream.received.of("web", 0).is_empty() && began.elapsed() < WAIT / 4);
        }
        assert_eq!(rejections(&setup.gateway, "history_reads_per_owner"), 0);
        drop(held);
    }
}

#[tokio::test(start_paused = true)]
async fn reader_over_the_byte_rate_is_rejected_with_a_time() {
    let two = two(QuotaLimits {
        history_bytes_per_second_per_owner: 64 * 1024,
        history_wait: Duration::from_secs(1),
        ..QuotaLimits::default()
    });
    let setup = &two.setup;
    let owner = format!("owner:{}", setup.lease.owner());
    let mut readers = Vec::new();
    let (status, retry_after) = loop {
        let mut stream = setup.open(setup.request()).await.unwrap();
        match stream.next_if_ready().await {
            Ok(_) => readers.push(stream),
            Err(status) => {
                let retry_after = quota_exceeded(&status, "history_rate_per_owner", &owner, 64 * 1024);
                break (status, retry_after);
            }
        }
        assert!(readers.len() < 16, "there are enough reads for all of them");
    };
    assert!(!readers.is_empty() && !retry_after.is_zero(), "{status:?}");
    // The other owner is not slowed down.
    let others = two.other.open(ServiceLogsRequest { tail_lines: Some(5), ..two.other.request() });
    let mut others = others.await.unwrap();
    assert_eq!(others.end().await.code(), Code::Ok);
    assert_eq!(others.received.lines("web", 0), 5);
    drop(readers);
    tokio::time::sleep(retry_after).await;
    let mut stream = setup.open(setup.request()).await.unwrap();
    assert_eq!(stream.end().await.code(), Code::Ok);
    two.ask(0, &stream);
    assert_eq!(stream.received.lines("web", 0), LINES);
}
