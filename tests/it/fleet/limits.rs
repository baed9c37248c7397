//! Limits of members, and quotas that gateways share.

use leasemux::model::limits::QuotaLimits;

use super::*;
use crate::quotas::quota_exceeded;

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

#[tokio::test(start_paused = true)]
async fn shared_quota_follows_the_number_of_gateways() {
    let quota = QuotaLimits { streams_per_owner: 4, ..QuotaLimits::default() };
    let limits = Limits { quota, ..Limits::default() };
    let change = |config| FleetConfig { shares_quotas: true, ..config };
    let mut fleet = TestFleet::with(3, &limits, change).await;
    // Four by three, rounded up.
    let mut streams = vec![fleet.follow(0).await, fleet.follow(0).await];
    fleet.assert_full(2).await;
    // While the bus is away, the last number counts.
    fleet.hub.set_up(false);
    tokio::time::sleep(Duration::from_secs(100)).await;
    fleet.assert_full(2).await;
    fleet.hub.set_up(true);
    fleet.print_and_read(&mut streams, Duration::from_secs(5)).await;
    // Gateways that end count for a minute.
    fleet.gateways.truncate(1);
    tokio::time::sleep(Duration::from_secs(50)).await;
    fleet.assert_full(2).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    streams.extend([fleet.follow(0).await, fleet.follow(0).await]);
    fleet.assert_full(4).await;
    // A new gateway counts at once. It ends no stream.
    let bus = fleet.hub.connect();
    let added = fleet.gateways[0].in_fleet(limits, |metrics| Fleet::start(bus, config(9), metrics));
    fleet.gateways.push(added);
    let from = fleet.printed;
    fleet.print_and_read(&mut streams, Duration::from_secs(5)).await;
    fleet.assert_full(2).await;
    let mut newer = streams.split_off(2);
    fleet.assert_complete(&mut newer, from).await;
    fleet.assert_complete(&mut streams, 0).await;
}

#[tokio::test(start_paused = true)]
async fn hanging_bus_delays_the_end_for_a_second() {
    let fleet = TestFleet::new(2).await;
    let flush = async |fleet: &TestFleet| {
        let start = Instant::now();
        fleet.gateways[0].gateway.fleet().flush().await;
        start.elapsed()
    };
    assert_eq!(flush(&fleet).await, Duration::ZERO);
    fleet.hub.set_faults(Faults { hung: true, ..Faults::default() });
    let took = flush(&fleet).await;
    assert!((Duration::from_secs(1)..Duration::from_millis(1_010)).contains(&took), "{took:?}");
}

impl TestFleet {
    /// Asserts that the first gateway rejects another stream of the owner, which may have `limit`.
    async fn assert_full(&self, limit: i64) {
        let setup = &self.gateways[0];
        let status = setup.open(setup.request()).await.err().unwrap();
        quota_exceeded(&status, "streams_per_owner", &format!("owner:{}", setup.lease.owner()), limit);
    }
}
