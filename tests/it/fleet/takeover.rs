//! Publishers that end, and the bus that goes away.

use super::*;

#[tokio::test(start_paused = true)]
async fn drained_publisher_is_replaced_within_200_ms() {
    let mut fleet = TestFleet::new(3).await;
    let mut streams = fleet.follow_each().await;
    fleet.print_and_read(&mut streams, Duration::from_millis(100)).await;
    let old = fleet.publisher();
    fleet.gateways[old].gateway.fleet().drain();
    let longest = fleet.print_and_read(&mut streams, Duration::from_secs(3)).await;
    assert!(longest.iter().all(|time| *time <= Duration::from_millis(200)), "{longest:?}");
    assert_ne!(fleet.publisher(), old);
    fleet.wait_until_shared().await;
    assert_eq!(fleet.sum("leasemux_fleet_elections_total{cause=\"released\"}"), 1);
    // Each gateway measures it.
    assert_eq!(fleet.takeovers(), [3, 3]);
    // Its followers are still served.
    fleet.assert_complete(&mut streams, 0).await;
}

#[tokio::test(start_paused = true)]
async fn drain_of_all_gateways_loses_nothing() {
    let mut fleet = TestFleet::new(3).await;
    let mut streams = fleet.follow_each().await;
    for gateway in 0..3 {
        fleet.gateways[gateway].gateway.fleet().drain();
        fleet.print_and_read(&mut streams, Duration::from_millis(700)).await;
    }
    fleet.assert_complete(&mut streams, 0).await;
    assert!(!fleet.roles().contains(&"publisher"));
}

#[tokio::test(start_paused = true)]
async fn dead_publisher_is_replaced_within_two_seconds() {
    let mut fleet = TestFleet::new(3).await;
    let mut streams = fleet.follow_each().await;
    fleet.print_and_read(&mut streams, Duration::from_millis(100)).await;
    let old = fleet.publisher();
    // It is cut off first, so that it can tell nobody that it ends.
    fleet.hub.set_faults(Faults { cut_off: vec![old], ..Faults::default() });
    drop((streams.remove(old), fleet.gateways.remove(old)));
    let longest = fleet.print_and_read(&mut streams, Duration::from_secs(4)).await;
    assert!(longest.iter().all(|time| *time <= Duration::from_secs(2)), "{longest:?}");
    fleet.wait_until_shared().await;
    assert_eq!(fleet.sum("leasemux_fleet_elections_total{cause=\"dead\"}"), 1);
    assert_eq!(fleet.takeovers(), [0, 2]);
    fleet.assert_complete(&mut streams, 0).await;
}

#[tokio::test(start_paused = true)]
async fn publisher_that_is_cut_off_goes_on_and_yields() {
    let mut fleet = TestFleet::new(3).await;
    let mut streams = fleet.follow_each().await;
    let old = fleet.publisher();
    fleet.hub.set_faults(Faults { cut_off: vec![old], ..Faults::default() });
    let longest = fleet.print_and_read(&mut streams, Duration::from_secs(5)).await;
    assert!(longest.iter().all(|time| *time <= Duration::from_secs(2)), "{longest:?}");
    assert!(longest[old] < Duration::from_millis(50), "its own followers do not wait: {longest:?}");
    assert_eq!(fleet.platform().open(), 2);
    fleet.hub.set_faults(Faults::default());
    fleet.print_and_read(&mut streams, Duration::from_secs(2)).await;
    assert!(fleet.wait_until_shared().await < RESOLVED_WITHIN);
    fleet.assert_complete(&mut streams, 0).await;
}

#[tokio::test(start_paused = true)]
async fn bus_away_makes_each_tail_and_back_shares_again() {
    let mut fleet = TestFleet::new(3).await;
    let mut streams = fleet.follow_each().await;
    for round in 0..2 {
        // Closed, then hung.
        let set_away = |hub: &Hub, away: bool| {
            if round == 0 {
                hub.set_up(!away);
            } else {
                hub.set_faults(Faults { hung: away, ..Faults::default() });
            }
        };
        set_away(&fleet.hub, true);
        let longest = fleet.print_and_read(&mut streams, Duration::from_secs(4)).await;
        assert!(longest.iter().all(|time| *time <= Duration::from_millis(1_600)), "{longest:?}");
        assert_eq!(fleet.platform().open(), 3);
        assert_eq!(fleet.gateways[0].gateway.metric("leasemux_fleet_bus_usable"), 0);
        set_away(&fleet.hub, false);
        let longest = fleet.print_and_read(&mut streams, Duration::from_secs(2)).await;
        assert!(longest.iter().all(|time| *time <= Duration::from_millis(200)), "{longest:?}");
        assert!(fleet.wait_until_shared().await < Duration::from_secs(1), "one tail after two seconds");
    }
    fleet.assert_complete(&mut streams, 0).await;
}

#[tokio::test(start_paused = true)]
async fn follower_that_comes_while_the_bus_is_away_is_served() {
    let mut fleet = TestFleet::new(2).await;
    fleet.hub.set_up(false);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut streams = fleet.follow_each().await;
    assert_eq!(fleet.roles(), ["direct", "direct"]);
    fleet.print_and_read(&mut streams, Duration::from_secs(1)).await;
    fleet.hub.set_up(true);
    fleet.print_and_read(&mut streams, Duration::from_secs(3)).await;
    fleet.wait_until_shared().await;
    fleet.assert_complete(&mut streams, 0).await;
}

#[tokio::test(start_paused = true)]
async fn split_bus_has_two_publishers_until_it_heals() {
    let mut fleet = TestFleet::new(4).await;
    let mut streams = fleet.follow_each().await;
    let sides = [(2, 1), (3, 1)].into();
    fleet.hub.set_faults(Faults { sides, ..Faults::default() });
    fleet.print_and_read(&mut streams, Duration::from_secs(4)).await;
    assert_eq!(fleet.platform().open(), 2);
    fleet.hub.set_faults(Faults::default());
    fleet.print_and_read(&mut streams, Duration::from_secs(2)).await;
    assert!(fleet.wait_until_shared().await < RESOLVED_WITHIN);
    assert!(fleet.sum("leasemux_fleet_conflicts_total") > 0);
    fleet.assert_complete(&mut streams, 0).await;
}

#[tokio::test(start_paused = true)]
async fn direct_tails_have_a_limit() {
    let change = |config| FleetConfig { direct_tails: 0, ..config };
    let mut fleet = TestFleet::with(2, &Limits::default(), change).await;
    let mut streams = fleet.follow_each().await;
    let member = 1 - fleet.publisher();
    fleet.hub.set_up(false);
    fleet.print(10);
    tokio::time::sleep(Duration::from_secs(5)).await;
    // The publisher's tail needs no permit. The member's lines are late.
    assert_eq!(fleet.platform().open(), 1);
    fleet.print(10);
    fleet.hub.set_up(true);
    fleet.print_and_read(&mut streams, Duration::from_secs(2)).await;
    fleet.assert_complete(&mut streams, 0).await;
    assert_eq!(fleet.roles()[member], "member");
}
