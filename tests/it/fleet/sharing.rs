//! One tail per replica.

use super::*;

#[tokio::test(start_paused = true)]
async fn hundred_followers_on_each_of_three_share_one_tail() {
    let mut fleet = TestFleet::new(3).await;
    let mut streams = Vec::new();
    for gateway in 0..3 {
        for _ in 0..100 {
            streams.push(fleet.follow(gateway).await);
        }
    }
    for _ in 0..20 {
        fleet.print(50);
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    fleet.assert_complete(&mut streams, 0).await;
    assert_eq!((fleet.platform().follows(), fleet.platform().open()), (1, 1), "log requests, and open ones");
    assert_eq!(fleet.roles(), ["publisher", "member", "member"]);
    let metric = |gateway: usize, name: &str| fleet.gateways[gateway].gateway.metric(name);
    assert_eq!(metric(0, "leasemux_fleet_replicas{role=\"publisher\"}"), 1);
    assert_eq!(metric(0, "leasemux_fleet_members"), 2);
    assert_eq!(metric(1, "leasemux_fleet_replicas{role=\"member\"}"), 1);
    assert_eq!(metric(1, "leasemux_source_opens_total{read=\"live\"}"), 0);
    for noticed in ["number", "sync", "renewal"] {
        let name = format!("leasemux_fleet_missed_total{{noticed=\"{noticed}\"}}");
        assert_eq!(metric(1, &name), 0, "{noticed}");
    }
    assert_eq!(metric(0, "leasemux_fleet_elections_total{cause=\"start\"}"), 1);
    for (gateway, direction) in [(0, "out"), (1, "in")] {
        for name in ["frames", "bytes"] {
            let name = format!("leasemux_fleet_{name}_total{{direction=\"{direction}\"}}");
            assert!(metric(gateway, &name) > 0, "{name}");
        }
    }
    // Actors end some idle time after their last follower. The publisher's stays while it has members.
    drop(streams);
    fleet.gateways[0].gateway.eventually(|gateway| gateway.metric("leasemux_actors") == 0).await;
    fleet.wait_until_idle().await;
    assert_eq!(fleet.platform().open(), 0);
}

#[tokio::test(start_paused = true)]
async fn gateways_that_begin_at_once_share_one_tail() {
    let mut fleet = TestFleet::new(3).await;
    let (one, two, three) = tokio::join!(fleet.follow(0), fleet.follow(1), fleet.follow(2));
    let mut streams = [one, two, three];
    fleet.wait_until_shared().await;
    fleet.print(100);
    fleet.assert_complete(&mut streams, 0).await;
    assert_eq!(fleet.platform().follows(), 1);
}

#[tokio::test(start_paused = true)]
async fn publisher_without_followers_serves_members() {
    let mut fleet = TestFleet::new(2).await;
    let mut streams = fleet.follow_each().await;
    let publisher = fleet.publisher();
    drop(streams.remove(publisher));
    // Longer than the idle time of an actor.
    fleet.print_and_read(&mut streams, Duration::from_secs(60)).await;
    assert_eq!(fleet.publisher(), publisher);
    fleet.assert_complete(&mut streams, 0).await;
    assert_eq!(fleet.platform().follows(), 1);
    // Its last member leaves: the actor ends, and the next follower begins anew.
    drop(streams);
    fleet.wait_until_idle().await;
    let from = fleet.printed;
    let mut streams = fleet.follow_each().await;
    fleet.print(10);
    fleet.assert_complete(&mut streams, from).await;
    assert_eq!(fleet.platform().open(), 1);
}

#[tokio::test(start_paused = true)]
async fn member_reads_older_lines_and_joins() {
    let mut fleet = TestFleet::new(2).await;
    fleet.print(3_000);
    let mut streams = vec![fleet.follow(0).await];
    fleet.print(500);
    for gateway in [1, 0] {
        let setup = &fleet.gateways[gateway];
        streams.push(setup.open(ServiceLogsRequest { follow: true, ..setup.request() }).await.unwrap());
        fleet.print(100);
    }
    fleet.wait_for_roles(|roles| roles == ["publisher", "member"]).await;
    fleet.print_and_read(&mut streams, Duration::from_secs(2)).await;
    let all = streams.split_off(1);
    fleet.assert_complete(&mut streams, 3_000).await;
    streams = all;
    fleet.assert_complete(&mut streams, 0).await;
    assert_eq!(fleet.platform().open(), 1);
}

#[tokio::test(start_paused = true)]
async fn cursors_continue_on_another_gateway() {
    let mut fleet = TestFleet::new(3).await;
    let mut streams = fleet.follow_each().await;
    fleet.print(200);
    for stream in &mut streams {
        stream.until(|seen| seen.lines("web", 0) >= 50).await;
    }
    fleet.print(200);
    for step in 0..3 {
        let (stream, setup) = (streams.remove(0), &fleet.gateways[(step + 1) % 3]);
        let request = ServiceLogsRequest { follow: true, ..setup.request() };
        streams.push(setup.resume(stream, request).await);
        fleet.print(50);
    }
    fleet.assert_complete(&mut streams, 0).await;
    fleet.wait_until_shared().await;
}

#[tokio::test(start_paused = true)]
async fn gateway_alone_sends_no_frames() {
    let mut fleet = TestFleet::new(2).await;
    let mut streams = vec![fleet.follow(0).await];
    fleet.print_and_read(&mut streams, Duration::from_secs(1)).await;
    assert_eq!(fleet.roles(), ["publisher"]);
    assert_eq!(fleet.gateways[0].gateway.metric("leasemux_fleet_frames_total{direction=\"out\"}"), 0);
    fleet.assert_complete(&mut streams, 0).await;
}
