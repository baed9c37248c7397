//! Messages that the bus loses, repeats and delays.

use super::*;

#[tokio::test(start_paused = true)]
async fn lost_repeated_and_late_messages_lose_nothing() {
    let mut fleet = TestFleet::new(3).await;
    let mut streams = fleet.follow_each().await;
    for (lost, repeated, delay) in [(50, 0, 0), (200, 100, 30), (500, 100, 5)] {
        fleet.hub.set_faults(Faults {
            lost,
            repeated,
            delay: Duration::from_millis(delay),
            ..Faults::default()
        });
        for _ in 0..100 {
            fleet.print(5);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        fleet.hub.set_faults(Faults::default());
        fleet.assert_complete(&mut streams, 0).await;
    }
    fleet.print_and_read(&mut streams, RESOLVED_WITHIN).await;
    fleet.wait_until_shared().await;
    fleet.assert_complete(&mut streams, 0).await;
    for name in [
        "leasemux_fleet_missed_total{noticed=\"number\"}",
        "leasemux_fleet_missed_total{noticed=\"sync\"}",
        "leasemux_fleet_repairs_total{by=\"ring\"}",
    ] {
        assert!(fleet.sum(name) > 0, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn frames_that_never_come_are_fetched() {
    let mut fleet = TestFleet::new(2).await;
    let mut streams = fleet.follow_each().await;
    fleet.hub.set_faults(Faults { no_frames: true, ..Faults::default() });
    for _ in 0..30 {
        fleet.print(3);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    fleet.assert_complete(&mut streams, 0).await;
    assert!(fleet.sum("leasemux_fleet_missed_total{noticed=\"renewal\"}") > 0);
    fleet.hub.set_faults(Faults::default());
    fleet.print_and_read(&mut streams, Duration::from_secs(1)).await;
    fleet.assert_complete(&mut streams, 0).await;
}

#[tokio::test(start_paused = true)]
async fn hung_bus_does_not_delay_followers_of_the_publisher() {
    let mut fleet = TestFleet::new(2).await;
    let mut streams = fleet.follow_each().await;
    let publisher = fleet.publisher();
    fleet.hub.set_faults(Faults { hung: true, ..Faults::default() });
    let mut own = vec![streams.remove(publisher)];
    let longest = fleet.print_and_read(&mut own, Duration::from_secs(3)).await;
    assert!(longest[0] < Duration::from_millis(50), "{longest:?}");
    streams.extend(own);
    fleet.hub.set_faults(Faults::default());
    fleet.assert_complete(&mut streams, 0).await;
}

#[tokio::test(start_paused = true)]
async fn burst_larger_than_the_ring_reaches_members() {
    let limits = Limits { ring_max_bytes: 64 * 1024, ..Limits::default() };
    let mut fleet = TestFleet::with(3, &limits, |config| config).await;
    let mut streams = fleet.follow_each().await;
    for stream in &mut streams {
        // Followers that lag would have gaps of their own.
        stream.until(|seen| !seen.cursors.is_empty()).await;
    }
    for _ in 0..40 {
        fleet.print(100);
        let last = format!("line {}\n", fleet.printed - 1);
        for stream in &mut streams {
            stream.until(|seen| seen.ends_with("web", 0, &last)).await;
        }
    }
    fleet.assert_complete(&mut streams, 0).await;
}
