//! Fleets of gateways in one process: they share live tails over a bus in memory. Paused time.

use std::time::Duration;

use leasemux::exchange::fleet::{Fleet, FleetConfig};
use leasemux::exchange::gateway_id::GatewayId;
use leasemux::exchange::liveness::GRACE;
use leasemux::exchange::subjects::Subjects;
use leasemux::logs::live::FleetReplica;
use leasemux::model::id::{Instance, Replica};
use leasemux::model::limits::Limits;
use leasemux::model::proto::lease::ServiceLogsRequest;
use tokio::time::Instant;

use self::bus::{Faults, Hub};
use crate::support::fake_platform::FakePlatform;
use crate::support::gateway::{Setup, Stream};

pub(crate) mod bus;
mod counts;
mod faults;
mod limits;
mod node_source;
mod runs;
mod sharing;
mod takeover;

/// The time within which one tail is left, after the last fault.
const RESOLVED_WITHIN: Duration = Duration::from_secs(5);

/// Gateways over one platform, and a lease with one replica, `web/0`.
struct TestFleet {
    hub: Hub,
    gateways: Vec<Setup>,
    run: Instance,
    /// Lines printed so far.
    printed: usize,
}

fn web() -> Replica {
    Replica { service: "web".parse().unwrap(), index: 0 }
}

fn config(number: u8) -> FleetConfig {
    FleetConfig {
        gateway: GatewayId([number; 16]),
        subjects: Subjects::new("test", None).unwrap(),
        grace: GRACE,
        direct_tails: 256,
        members_max: 4_096,
        shares_quotas: false,
        is_source: false,
    }
}

// === impl TestFleet ===

impl TestFleet {
    /// Creates a fleet of connected gateways.
    async fn new(count: u8) -> Self {
        Self::with(count, &Limits::default(), |config| config).await
    }

    async fn with(count: u8, limits: &Limits, change: impl Fn(FleetConfig) -> FleetConfig) -> Self {
        let first = Setup::new(Limits::default(), &[("web", 1)]);
        let run = first.gateway.platform.start(&first.lease, &web());
        let hub = Hub::new(count.into());
        let gateways = (1..=count).map(|number| {
            let (config, bus) = (change(config(number)), hub.connect());
            first.in_fleet(limits.clone(), |metrics| Fleet::start(bus, config, metrics))
        });
        let fleet = Self { gateways: gateways.collect(), hub, run, printed: 0 };
        for setup in &fleet.gateways {
            setup.gateway.eventually(|gateway| gateway.metric("leasemux_fleet_bus_usable") == 1).await;
            setup
                .gateway
                .eventually(|gateway| gateway.metric("leasemux_fleet_gateways") == u64::from(count))
                .await;
        }
        fleet
    }

    /// Returns the sum of a metric over the gateways.
    fn sum(&self, series: &str) -> u64 {
        self.gateways.iter().map(|setup| setup.gateway.metric(series)).sum()
    }

    /// Returns the changes of publishers that took up to 0.2 s, and up to 2 s.
    fn takeovers(&self) -> [u64; 2] {
        ["0.2", "2"].map(|le| self.sum(&format!("leasemux_fleet_takeover_seconds_bucket{{le=\"{le}\"}}")))
    }

    fn platform(&self) -> &FakePlatform {
        &self.gateways[0].gateway.platform
    }

    /// Opens a stream that follows from now on.
    async fn follow(&self, gateway: usize) -> Stream {
        let setup = &self.gateways[gateway];
        let request = ServiceLogsRequest { follow: true, tail_lines: Some(0), ..setup.request() };
        let mut stream = setup.open(request).await.unwrap();
        stream.until(|seen| !seen.cursors.is_empty()).await;
        stream
    }

    /// Opens a stream on each gateway, one after another.
    async fn follow_each(&self) -> Vec<Stream> {
        let mut streams = Vec::new();
        for gateway in 0..self.gateways.len() {
            streams.push(self.follow(gateway).await);
            self.wait_for_roles(|roles| !roles.contains(&"finding")).await;
        }
        streams
    }

    /// Prints lines.
    fn print(&mut self, count: usize) {
        let (platform, run) = (self.platform().clone(), self.run.clone());
        platform.print(&run, (self.printed..self.printed + count).map(|number| format!("line {number}\n")));
        self.printed += count;
    }

    /// Returns what the gateways do with the replica.
    fn replicas(&self) -> Vec<Option<FleetReplica>> {
        let view = |setup: &Setup| setup.gateway.fleet_view().unwrap().replicas.into_iter().next();
        self.gateways.iter().map(view).collect()
    }

    /// Returns the roles of the gateways that follow the replica.
    fn roles(&self) -> Vec<&'static str> {
        self.replicas().into_iter().flatten().map(|replica| replica.role).collect()
    }

    /// Returns the number of the gateway that publishes.
    fn publisher(&self) -> usize {
        let role = |replica: &Option<FleetReplica>| replica.as_ref().map(|replica| replica.role);
        self.replicas().iter().position(|replica| role(replica) == Some("publisher")).expect("a publisher")
    }

    /// Waits until the roles are so. Returns how long that took.
    async fn wait_for_roles(&self, condition: impl Fn(&[&str]) -> bool) -> Duration {
        let start = Instant::now();
        let wait = async {
            while !condition(&self.roles()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), wait).await;
        assert!(waited.is_ok(), "{:?}", self.replicas());
        start.elapsed()
    }

    /// Waits until no gateway follows the replica.
    async fn wait_until_idle(&self) {
        self.wait_for_roles(|roles| roles.is_empty()).await;
    }

    /// Waits until there is one publisher and all others are members, with one tail in all.
    async fn wait_until_shared(&self) -> Duration {
        let start = Instant::now();
        self.wait_for_roles(|roles| {
            let count = |wanted: &str| roles.iter().filter(|role| **role == wanted).count();
            count("publisher") == 1 && count("member") == roles.len() - 1 && self.platform().open() == 1
        })
        .await;
        start.elapsed()
    }

    /// Prints lines at intervals for this time. Returns the longest time that each stream took for one.
    async fn print_and_read(&mut self, streams: &mut [Stream], time: Duration) -> Vec<Duration> {
        let (start, mut longest) = (Instant::now(), vec![Duration::ZERO; streams.len()]);
        while start.elapsed() < time {
            self.print(1);
            let printed = Instant::now();
            let last = format!("line {}\n", self.printed - 1);
            for (stream, longest) in streams.iter_mut().zip(&mut longest) {
                stream.until(|seen| seen.ends_with("web", 0, &last)).await;
                *longest = (*longest).max(printed.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        longest
    }

    /// The loss check: each stream has all lines from `from` on, once and in order.
    async fn assert_complete(&self, streams: &mut [Stream], from: usize) {
        let last = format!("line {}\n", self.printed - 1);
        for stream in streams {
            stream.until(|seen| seen.ends_with("web", 0, &last)).await;
            assert_eq!(stream.received.assert_complete(self.platform(), "web", 0, &[(&self.run, from)]), 0);
        }
    }
}
