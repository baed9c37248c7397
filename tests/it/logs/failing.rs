//! Sources that fail for long: lines that become readable again are delivered, others become a gap.

use std::time::Duration;

use leasemux::model::id::Instance;
use leasemux::model::limits::Limits;
use leasemux::model::proto::lease::replica_event::Kind;
use leasemux::model::proto::lease::{ServiceFilter, ServiceLogsRequest};
use tonic::Code;

use super::{follow, lines, one_backfill, one_run, replica};
use crate::support::gateway::{Setup, Stream};
use crate::support::reason;

/// Returns a stream that got ten lines of a log, which fails since and has ten more lines.
async fn open_then_fail() -> (Setup, Instance, Stream) {
    let (setup, run) = one_run(Limits::default());
    let platform = &setup.gateway.platform;
    platform.print(&run, lines(0..10));
    let mut stream = setup.open(follow(&setup)).await.unwrap();
    stream.until(|seen| seen.lines("web", 0) == 10).await;
    platform.fail(&run, true);
    platform.print(&run, lines(10..20));
    (setup, run, stream)
}

fn end_lease(setup: &Setup) {
    setup.gateway.platform.change(&setup.lease, |view| view.ended = true);
}

fn remove_replicas(setup: &Setup) {
    setup
        .gateway
        .platform
        .change(&setup.lease, |view| view.services.values_mut().for_each(|service| service.replicas.clear()));
}

#[tokio::test(start_paused = true)]
async fn failing_log_is_given_up_after_replica_is_gone() {
    for (end, lease_ends) in [(end_lease as fn(&Setup), true), (remove_replicas, false)] {
        let (setup, _, mut stream) = open_then_fail().await;
        // Retried as long as the replica exists.
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        assert_eq!(setup.gateway.metric("leasemux_actors"), 1);
        end(&setup);
        setup.gateway.eventually(|gateway| gateway.metric("leasemux_actors") == 0).await;
        stream.until(|seen| seen.events("web", 0) == [Kind::Gone]).await;
        let printed: Vec<String> = (0..20).map(|number| format!("line {number}")).collect();
        assert_eq!(stream.received.assert_ordered("web", 0, &printed), 1);
        if lease_ends {
            let status = stream.end().await;
            assert_eq!((status.code(), reason(&status)), (Code::NotFound, "LEASE_ENDED".into()));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn failing_log_of_ended_run_is_given_up_for_a_later_run() {
    let (setup, _, mut stream) = open_then_fail().await;
    let (platform, web) = (&setup.gateway.platform, replica("web", 0));
    platform.end(&setup.lease, &web, 1);
    // Retried as long as no other run waits.
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert_eq!(stream.received.events("web", 0), []);
    let second = platform.start(&setup.lease, &web);
    platform.print(&second, lines(20..30));
    tokio::time::sleep(Duration::from_secs(360)).await;
    stream.until(|seen| seen.lines("web", 0) == 20).await;
    let printed: Vec<String> = (0..30).map(|number| format!("line {number}")).collect();
    assert_eq!(stream.received.assert_ordered("web", 0, &printed), 1);
    assert_eq!(stream.received.events("web", 0), [Kind::Ended, Kind::Started]);
}

#[tokio::test(start_paused = true)]
async fn failing_log_of_ended_lease_is_read_once_it_recovers() {
    let (setup, run, mut stream) = open_then_fail().await;
    let platform = &setup.gateway.platform;
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    end_lease(&setup);
    tokio::time::sleep(Duration::from_secs(120)).await;
    platform.fail(&run, false);
    stream.until(|seen| seen.lines("web", 0) == 20).await;
    // The replica stops later, and its log may fail again.
    platform.fail(&run, true);
    platform.print(&run, lines(20..30));
    tokio::time::sleep(Duration::from_secs(200)).await;
    platform.fail(&run, false);
    platform.end(&setup.lease, &replica("web", 0), 0);
    let status = stream.end().await;
    assert_eq!((status.code(), reason(&status)), (Code::NotFound, "LEASE_ENDED".into()));
    assert_eq!(stream.received.lines("web", 0), 30);
    assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
}

#[tokio::test(start_paused = true)]
async fn backfill_ahead_of_failing_actor_frees_its_permit() {
    let setup = Setup::new(one_backfill(), &[("web", 2)]);
    let platform = &setup.gateway.platform;
    let [run, other] = [0, 1].map(|index| platform.start(&setup.lease, &replica("web", index)));
    let only = |index| {
        let filter = Some(ServiceFilter { name: "web".into(), replicas: vec![index] });
        ServiceLogsRequest { filter, ..follow(&setup) }
    };
    platform.print(&run, lines(0..10));
    platform.print(&other, lines(0..10));
    let mut first = setup.open(only(0)).await.unwrap();
    first.until(|seen| seen.lines("web", 0) == 10).await;
    // The actor fails until its delay is long. In the meantime, a backfill can read the log. Then the log
    // fails again.
    platform.fail(&run, true);
    platform.print(&run, lines(10..20));
    tokio::time::sleep(Duration::from_secs(60)).await;
    platform.fail(&run, false);
    let mut ahead = setup.open(only(0)).await.unwrap();
    ahead.until(|seen| seen.lines("web", 0) == 20).await;
    assert!(!first.next_if_ready().await.unwrap(), "the actor has read on, so the backfill is not ahead");
    platform.fail(&run, true);
    let mut third = setup.open(only(1)).await.unwrap();
    third.until(|seen| seen.lines("web", 1) == 10).await;
    assert_eq!(third.received.assert_complete(platform, "web", 1, &[(&other, 0)]), 0);
    platform.print(&run, lines(20..30));
    platform.fail(&run, false);
    for stream in [&mut first, &mut ahead] {
        stream.until(|seen| seen.lines("web", 0) == 30).await;
        assert_eq!(stream.received.assert_complete(platform, "web", 0, &[(&run, 0)]), 0);
    }
}
