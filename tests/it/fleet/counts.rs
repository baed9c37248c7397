//! Messages that a gateway cannot read, send or take, as its metrics count them.

use bytes::Bytes;
use leasemux::exchange::bus::{Channel, SUBSCRIPTION_MESSAGES};

use super::*;

const DECODE: &str = "leasemux_fleet_rejected_total{reason=\"decode\"}";

#[tokio::test(start_paused = true)]
async fn malformed_messages_are_rejected_and_counted() {
    let mut fleet = TestFleet::new(2).await;
    let mut streams = fleet.follow_each().await;
    let stranger = fleet.hub.connect();
    let config = config(1);
    let alive = config.subjects.alive(config.gateway);
    let replica = config.subjects.replica(&fleet.gateways[0].lease, &web());
    for subject in [alive, replica.claims, replica.requests, replica.frames] {
        stranger.publish(Channel::Frames, &subject, None, Bytes::from_static(b"no message"));
    }
    fleet.print_and_read(&mut streams, Duration::from_secs(1)).await;
    // Both hear gateways and claims; the publisher hears requests, and the member frames.
    assert_eq!(fleet.sum(DECODE), 6);
    fleet.assert_complete(&mut streams, 0).await;
    assert_eq!(fleet.platform().open(), 1);
}

#[tokio::test(start_paused = true)]
async fn repeated_messages_are_stale_or_duplicates() {
    let mut fleet = TestFleet::new(2).await;
    let mut streams = fleet.follow_each().await;
    let (stale, duplicates) =
        ("leasemux_fleet_rejected_total{reason=\"stale\"}", "leasemux_fleet_duplicates_total");
    assert_eq!((fleet.sum(stale), fleet.sum(duplicates)), (0, 0));
    fleet.hub.set_faults(Faults { repeated: 1_000, ..Faults::default() });
    fleet.print_and_read(&mut streams, Duration::from_secs(2)).await;
    fleet.assert_complete(&mut streams, 0).await;
    let frames = fleet.sum("leasemux_fleet_frames_total{direction=\"out\"}");
    assert!(fleet.sum(stale) >= 4 && fleet.sum(duplicates) == frames, "{frames}");
    assert_eq!(fleet.sum(DECODE), 0);
}

#[tokio::test(start_paused = true)]
async fn unsent_and_overflowed_messages_are_counted() {
    let mut fleet = TestFleet::new(2).await;
    let mut streams = fleet.follow_each().await;
    fleet.hub.set_up(false);
    fleet.print_and_read(&mut streams, Duration::from_secs(2)).await;
    for setup in &fleet.gateways {
        assert!(setup.gateway.metric("leasemux_fleet_unsent_total") > 0);
    }
    fleet.hub.set_up(true);
    fleet.print_and_read(&mut streams, Duration::from_secs(2)).await;
    // More than one subscription holds, before a gateway can take any of them.
    let (stranger, alive) = (fleet.hub.connect(), config(1).subjects.alive(GatewayId([1; 16])));
    for _ in 0..SUBSCRIPTION_MESSAGES + 100 {
        stranger.publish(Channel::Control, &alive, None, Bytes::from_static(b"no message"));
    }
    fleet.print_and_read(&mut streams, Duration::from_secs(2)).await;
    for setup in &fleet.gateways {
        assert!(setup.gateway.metric("leasemux_fleet_overflowed_total") >= 100);
        assert_eq!(setup.gateway.metric("leasemux_fleet_slow_total"), 1);
    }
    fleet.assert_complete(&mut streams, 0).await;
}
