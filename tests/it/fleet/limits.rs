//! Limits of members.

use super::*;

#[tokio::test(start_paused = true)]
async fn member_above_the_limit_tails_directly() {
    let change = |config| FleetConfig { members_max: 1, ..config };
    let mut fleet = TestFleet::with(3, &Limits::default(), change).await;
    let mut streams = fleet.follow_each().await;
    assert_eq!(fleet.roles(), ["publisher", "member", "direct"]);
    let longest = fleet.print_and_read(&mut streams, Duration::from_secs(20)).await;
    assert!(longest.iter().all(|time| *time <= Duration::from_millis(50)), "{longest:?}");
    // It disturbs neither.
    assert_eq!(fleet.roles(), ["publisher", "member", "direct"]);
    assert_eq!(fleet.sum("leasemux_fleet_elections_total{cause=\"start\"}"), 1);
    assert_eq!((fleet.platform().open(), fleet.platform().follows()), (2, 2));
    // The member leaves, and the other one takes its place.
    drop(streams.remove(1));
    tokio::time::sleep(Duration::from_secs(50)).await;
    fleet.print_and_read(&mut streams, Duration::from_secs(1)).await;
    assert_eq!(fleet.roles(), ["publisher", "member"]);
    assert_eq!(fleet.platform().open(), 1);
    fleet.assert_complete(&mut streams, 0).await;
}
