//! Gateways as processes on one cluster, with one NATS server.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use leasemux::exchange::bus::{Bus as _, Channel};
use leasemux::exchange::codec;
use leasemux::exchange::messages::Message;
use leasemux::model::id::LeaseId;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::task::block_in_place;

use super::proxy::{Lost, Proxy};
use super::server::{NatsServer, in_time, until};
use crate::kube::cluster::{Cluster, RunKey};
use crate::kube::kubeconfig;
use crate::support::account;
use crate::support::process::{Gateway, Judged, LOOK, PATIENCE, Workspace};

/// Time between two lines of the log. Only the order of the times matters.
const STEP: i64 = 1_000_000;

/// Followers of each gateway.
const FOLLOWERS: usize = 2;

const PUBLISHED: &str = "leasemux_fleet_replicas{role=\"publisher\"}";

/// Gateways of one fleet that follow one replica.
struct Fleet {
    server: NatsServer,
    workspace: Workspace,
    cluster: Cluster,
    lease: LeaseId,
    run: RunKey,
    gateways: Vec<Member>,
    printed: u64,
    dir: TempDir,
}

struct Member {
    gateway: Gateway,
    followers: Vec<Judged>,
}

// === impl Fleet ===

impl Fleet {
    /// Starts a fleet whose gateways have followers. `None` without the server's program.
    async fn start(gateways: usize) -> Option<Self> {
        Some(Self::on(NatsServer::start()?, gateways).await)
    }

    async fn on(server: NatsServer, gateways: usize) -> Self {
        let (workspace, cluster, dir) =
            (Workspace::new(), Cluster::start().await, tempfile::tempdir().unwrap());
        let lease = block_in_place(|| workspace.tenant("alice"));
        cluster.lease(&lease, "web", 1);
        let run = cluster.run(&lease, "web", "a", 0);
        let mut fleet =
            Self { server, workspace, cluster, lease, run, gateways: Vec::new(), printed: 0, dir };
        fleet.print(10);
        for _ in 0..gateways {
            fleet.add();
        }
        fleet.until_followed();
        fleet.until_one_tail().await;
        fleet
    }

    /// Starts a gateway with its followers.
    fn add(&mut self) {
        self.add_by(&self.server.url());
    }

    /// Starts a gateway that reaches the server at `url`, with its followers.
    fn add_by(&mut self, url: &str) {
        let index = self.gateways.len();
        let text = |name: &str| self.workspace.path(name).display().to_string();
        let mut args = self.workspace.serve_args(&[]);
        args.retain(|arg| arg != "--platform=local" && !arg.starts_with("--data-dir="));
        args.extend([
            "--platform=kube".to_owned(),
            format!("--provider={}", account(200)),
            format!("--kubeconfig={}", kubeconfig(&self.cluster, &self.dir).display()),
            format!("--nats={url}"),
        ]);
        if index == 0 {
            args.push(format!("--data-dir={}", text("data")));
        } else {
            // Clients trust the certificate of the first one.
            args.push(format!("--data-dir={}", text(&format!("data-{index}"))));
            args.push(format!("--tls-cert={}", text("data/server.pem")));
            args.push(format!("--tls-key={}", text("data/server.key.pem")));
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let gateway = block_in_place(|| Gateway::ready(self.workspace.start(&args)));
        let follow = |_| self.workspace.follow(gateway.address, "alice", &self.lease);
        let followers = (0..FOLLOWERS).map(follow).collect();
        self.gateways.push(Member { gateway, followers });
    }

    fn print(&mut self, lines: u64) {
        let lines: Vec<String> =
            (self.printed + 1..=self.printed + lines).map(|n| format!("{n} of the log")).collect();
        self.cluster.print_lines(&self.run, &lines, STEP);
        self.printed += u64::try_from(lines.len()).unwrap();
    }

    /// Waits until all followers have all lines.
    fn until_followed(&mut self) {
        let printed = self.printed;
        block_in_place(|| {
            for follower in self.gateways.iter_mut().flat_map(|member| &mut member.followers) {
                follower.until("all lines", |seen| seen.runs("web/0").iter().sum::<u64>() >= printed);
            }
        });
    }

    async fn until_tails(&self, wanted: usize) {
        until("log streams at the API server", || self.cluster.follows() == wanted).await;
    }

    /// Waits until one gateway publishes the replica, and the others do not read its log.
    async fn until_one_tail(&self) {
        self.until_tails(1).await;
        block_in_place(|| {
            let deadline = Instant::now() + PATIENCE;
            while self.publishers().len() != 1 || self.cluster.follows() != 1 {
                assert!(Instant::now() < deadline, "publishers: {:?}", self.publishers());
                std::thread::sleep(LOOK);
            }
        });
    }

    fn publishers(&self) -> Vec<usize> {
        let published = |member: &Member| member.gateway.metric(PUBLISHED) == 1;
        (0..self.gateways.len()).filter(|index| published(&self.gateways[*index])).collect()
    }

    /// Takes the gateway that publishes the replica out of the fleet.
    fn take_publisher(&mut self) -> Member {
        let publisher = self.publisher();
        self.gateways.remove(publisher)
    }

    /// Takes another gateway out of the fleet.
    fn take_member(&mut self) -> Member {
        let member = (self.publisher() + 1) % self.gateways.len();
        self.gateways.remove(member)
    }

    fn publisher(&self) -> usize {
        let publishers = block_in_place(|| self.publishers());
        assert_eq!(publishers.len(), 1);
        publishers[0]
    }

    /// Prints lines for a while, and waits for them.
    async fn print_on(&mut self) {
        for _ in 0..20 {
            self.print(20);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.until_followed();
    }

    /// Ends the followers. Asserts that each has every line once, and in order.
    fn end(self) {
        let printed = self.printed;
        block_in_place(|| {
            for member in self.gateways {
                for follower in member.followers {
                    let (seen, _) = follower.end();
                    assert_eq!(seen.is_whole().lines, printed);
                }
                assert_eq!(member.gateway.stop(Signal::TERM).status.code(), Some(0));
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_share_one_tail_until_the_last_one() {
    let Some(mut fleet) = Fleet::start(3).await else { return };
    fleet.print_on().await;
    assert_eq!(fleet.cluster.follows(), 1);
    // One that joins later gets older lines from the log, and new ones from the publisher.
    fleet.add();
    fleet.until_followed();
    fleet.until_one_tail().await;
    fleet.print_on().await;
    // A publisher that ends hands over.
    let Member { gateway, followers } = fleet.take_publisher();
    drop(followers);
    let done = block_in_place(|| gateway.stop(Signal::TERM));
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    fleet.until_one_tail().await;
    fleet.print_on().await;
    fleet.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_publisher_is_replaced() {
    let Some(mut fleet) = Fleet::start(3).await else { return };
    for _ in 0..2 {
        fleet.print_on().await;
        let Member { gateway, followers } = fleet.take_publisher();
        block_in_place(|| gateway.program.kill());
        drop(followers);
        // Lines that no gateway reads at first.
        fleet.print(50);
        fleet.until_followed();
        fleet.until_one_tail().await;
    }
    fleet.print_on().await;
    fleet.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn member_that_ends_says_so() {
    let Some(mut fleet) = Fleet::start(2).await else { return };
    let bus = fleet.server.bus().await;
    let mut requests = bus.subscribe(Channel::Control, "lm.*.o.*");
    let Member { gateway, followers } = fleet.take_member();
    drop(followers);
    let done = block_in_place(|| gateway.stop(Signal::TERM));
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let left = async {
        while codec::decode(requests.next().await.unwrap().payload).unwrap().message != Message::Leave {}
    };
    in_time(left).await;
    block_in_place(|| fleet.gateways[0].gateway.until_metric("leasemux_fleet_members", 0));
    fleet.print_on().await;
    fleet.end();
}

/// Halts a gateway while the others go on, and lets it continue.
async fn survives_halt(mut fleet: Fleet, halted: Member) {
    halted.gateway.program.signal(Signal::STOP);
    fleet.print_on().await;
    halted.gateway.program.signal(Signal::CONT);
    fleet.gateways.push(halted);
    fleet.until_followed();
    fleet.until_one_tail().await;
    fleet.print_on().await;
    fleet.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn halted_publisher_becomes_a_member() {
    let Some(mut fleet) = Fleet::start(3).await else { return };
    let halted = fleet.take_publisher();
    survives_halt(fleet, halted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn halted_member_delays_nobody_and_loses_nothing() {
    let Some(mut fleet) = Fleet::start(3).await else { return };
    let halted = fleet.take_member();
    survives_halt(fleet, halted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_direction_costs_a_tail_and_no_lines() {
    let Some(mut fleet) = Fleet::start(2).await else { return };
    let proxy = Proxy::start(fleet.server.port()).await;
    fleet.add_by(&proxy.url());
    fleet.until_followed();
    for lost in [Lost::ToServer, Lost::FromServer] {
        fleet.until_one_tail().await;
        fleet.print_on().await;
        proxy.lose(lost);
        fleet.print(50);
        // One on each side.
        fleet.until_tails(2).await;
        fleet.print_on().await;
        proxy.lose(Lost::Nothing);
        fleet.print_on().await;
    }
    fleet.until_one_tail().await;
    fleet.print_on().await;
    fleet.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn publisher_and_server_killed_together_cost_no_lines() {
    let Some(mut fleet) = Fleet::start(3).await else { return };
    let Member { gateway, followers } = fleet.take_publisher();
    block_in_place(|| {
        gateway.program.kill();
        fleet.server.kill();
    });
    drop(followers);
    fleet.print_on().await;
    fleet.until_tails(2).await;
    block_in_place(|| fleet.server.restart());
    fleet.until_one_tail().await;
    fleet.print_on().await;
    fleet.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_server_costs_tails_and_no_lines() {
    let Some(mut fleet) = Fleet::start(3).await else { return };
    fleet.print_on().await;
    block_in_place(|| fleet.server.kill());
    fleet.print(50);
    fleet.until_followed();
    fleet.until_tails(3).await;
    block_in_place(|| {
        for member in &fleet.gateways {
            member.gateway.until_metric("leasemux_fleet_bus_usable", 0);
            let (head, _) = member.gateway.get("/ready");
            assert!(head.starts_with("http/1.1 200 "), "{head}");
        }
    });
    fleet.print_on().await;
    block_in_place(|| fleet.server.restart());
    fleet.print_on().await;
    fleet.until_one_tail().await;
    fleet.print_on().await;
    fleet.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn halted_server_costs_tails_and_no_lines() {
    let Some(mut fleet) = Fleet::start(3).await else { return };
    fleet.server.signal(Signal::STOP);
    fleet.print_on().await;
    fleet.until_tails(3).await;
    fleet.server.signal(Signal::CONT);
    fleet.print_on().await;
    fleet.until_one_tail().await;
    fleet.print_on().await;
    fleet.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn old_server_works_and_is_warned_of() {
    let Some(server) = NatsServer::old() else { return };
    let mut fleet = Fleet::on(server, 2).await;
    let warning = "NATS server is older than 2.10.26; a gateway that halts can delay all others";
    block_in_place(|| {
        for member in &fleet.gateways {
            member.gateway.program.until_said(warning);
        }
    });
    fleet.print_on().await;
    fleet.end();
}
