//! A gateway on the node of a replica publishes it: the API server then carries no live log stream. Real
//! time, because the API server has sockets.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use leasemux::edge::admin::Exporter;
use leasemux::logs::actor::ActorContext;
use leasemux::logs::actors::ActorRegistry;
use leasemux::logs::entry_name::NameStyle;
use leasemux::logs::memory_budget::MemoryBudget;
use leasemux::logs::publish_service::PublishService;
use leasemux::model::id::LeaseId;
use leasemux::model::limits::Limits;
use leasemux::platform::Platform;
use leasemux::platform::kube::{ClusterAccess, NodePods};
use leasemux::platform::node_source::NodeSource;
use leasemux::sys::dir_watch::Notifier;
use tempfile::TempDir;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::kube::cluster::{Cluster, RunKey};
use crate::kube::{connect, kubeconfig};
use crate::support::account;
use crate::support::gateway::Gateway;

const SERVICE: &str = "web";

/// More than the 30 s after which a publisher asks the node again.
const PATIENCE: Duration = Duration::from_secs(90);

/// A cluster with a lease of one replica, and two gateways that read its logs through the API.
struct Scenario {
    cluster: Cluster,
    hub: Hub,
    gateways: Vec<Setup>,
    run: RunKey,
    log: PathBuf,
    /// Lines in the file.
    written: usize,
    dir: TempDir,
}

/// A gateway on the node.
struct Source {
    fleet: Fleet,
    actors: ActorRegistry,
    _service: AbortOnDropHandle<()>,
}

async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the condition holds at last");
}

// === impl Scenario ===

impl Scenario {
    async fn new() -> Self {
        let (cluster, dir, hub) = (Cluster::start().await, tempfile::tempdir().unwrap(), Hub::new(7));
        let mut gateways = Vec::new();
        for number in [1, 2] {
            let (platform, bus) = (connect(&cluster, &dir).await.unwrap(), hub.connect());
            gateways.push(Gateway::on_in_fleet(platform, Limits::default(), |metrics| {
                Fleet::start(bus, config(number), metrics)
            }));
        }
        let (owner, certificate) = gateways[0].tenant();
        gateways[1].believe(&owner, &certificate);
        let lease = LeaseId::new(owner.as_str(), 7, 1, 1, account(200).as_str()).unwrap();
        cluster.lease(&lease, SERVICE, 1);
        let run = cluster.run(&lease, SERVICE, "a", 0);
        let logs = dir.path().join(format!("logs/{}_a_{}/{SERVICE}", lease.namespace(), run.0));
        fs::create_dir_all(&logs).unwrap();
        let log = logs.join("0.log");
        File::create(&log).unwrap();
        let gateways = gateways.into_iter();
        let setup = |gateway| Setup { gateway, lease: lease.clone(), certificate: certificate.clone() };
        let gateways = gateways.map(setup).collect();
        Self { cluster, hub, gateways, run, log, written: 0, dir }
    }

    /// Starts a gateway on the node, and waits until the others hear it.
    async fn start_source(&self, number: u8) -> Source {
        let access = ClusterAccess {
            kubeconfig: Some(kubeconfig(&self.cluster, &self.dir)),
            context: None,
            manifest_namespace: "lease".into(),
            coordination_namespace: None,
        };
        let metrics = Exporter::new().unwrap().metrics;
        let pods = NodePods::start(&access, "node1", &metrics).await.unwrap();
        let source = Arc::new(NodeSource::new(pods, Notifier::start(), self.dir.path().join("logs")));
        let context = ActorContext {
            memory: MemoryBudget::new(None, &metrics),
            platform: Arc::clone(&source) as Arc<dyn Platform>,
            limits: Arc::new(Limits::default()),
            metrics: metrics.clone(),
            names: NameStyle::default(),
        };
        let config = FleetConfig { is_source: true, ..config(number) };
        let fleet = Fleet::start(self.hub.connect(), config, metrics);
        let actors = ActorRegistry::in_fleet(context, fleet.clone());
        let service = PublishService::new(fleet.clone(), actors.clone(), source, "node1");
        #[expect(clippy::disallowed_methods, reason = "owned: the handle aborts it")]
        let service = AbortOnDropHandle::new(tokio::spawn(service.run()));
        eventually(async || fleet.state().borrow().usable && fleet.gateways() == 3).await;
        Source { fleet, actors, _service: service }
    }

    /// Prints lines.
    fn print(&mut self, count: usize) {
        self.cluster.print(&self.run, count, 1_000_000);
        let records = self.cluster.records(&self.run);
        let mut log = File::options().append(true).open(&self.log).unwrap();
        log.write_all(records[self.written..].concat().as_bytes()).unwrap();
        self.written = records.len();
    }

    /// Opens a stream on each gateway.
    async fn follow_each(&self) -> Vec<Stream> {
        let mut streams = Vec::new();
        for setup in &self.gateways {
            let open = async || {
                let request = ServiceLogsRequest { follow: true, ..setup.request() };
                setup.open(request).await.ok()
            };
            let mut stream = None;
            eventually(async || {
                stream = open().await;
                stream.is_some()
            })
            .await;
            streams.extend(stream);
        }
        streams
    }

    /// Prints lines, and checks that each stream has all of the run.
    async fn assert_complete(&mut self, streams: &mut [Stream]) {
        self.print(10);
        let printed = self.cluster.printed(&self.run);
        let last = format!("{}\n", printed.last().unwrap());
        for stream in streams {
            stream.until(|seen| seen.ends_with(SERVICE, 0, &last)).await;
            assert_eq!(stream.received.assert_ordered(SERVICE, 0, &printed), 0);
        }
    }

    /// Waits until the gateways have these roles and the API server so many streams.
    async fn wait_for(&self, roles: &[&str], streams: usize) {
        eventually(async || {
            let views = self.gateways.iter().filter_map(|setup| setup.gateway.fleet_view());
            let mut found: Vec<_> =
                views.flat_map(|view| view.replicas).map(|replica| replica.role).collect();
            found.sort_unstable();
            found == roles && self.cluster.follows() == streams
        })
        .await;
    }
}

#[tokio::test]
async fn api_server_carries_no_live_stream_beside_a_source() {
    let mut scenario = Scenario::new().await;
    let source = scenario.start_source(3).await;
    scenario.print(10);
    let mut streams = scenario.follow_each().await;
    scenario.assert_complete(&mut streams).await;
    scenario.wait_for(&["member", "member"], 0).await;
    scenario.assert_complete(&mut streams).await;
    let opens = |scenario: &Scenario, read: &str| -> u64 {
        let name = format!("leasemux_source_opens_total{{read=\"{read}\"}}");
        scenario.gateways.iter().map(|setup| setup.gateway.metric(&name)).sum()
    };
    assert_eq!(opens(&scenario, "live"), 0);
    assert!(opens(&scenario, "history") > 0, "older lines come from the API");

    // It shuts down: a gateway publishes through the API.
    source.fleet.drain();
    scenario.wait_for(&["member", "publisher"], 1).await;
    source.actors.stop().await;
    drop(source);
    scenario.assert_complete(&mut streams).await;
    assert_eq!(opens(&scenario, "live"), 1);

    // It is back: the publisher asks it, and yields.
    let source = scenario.start_source(4).await;
    scenario.assert_complete(&mut streams).await;
    scenario.wait_for(&["member", "member"], 0).await;
    scenario.assert_complete(&mut streams).await;

    // Without followers it stops.
    drop(streams);
    eventually(async || source.actors.fleet().is_some_and(|fleet| fleet.replicas.is_empty())).await;
    assert_eq!(scenario.cluster.follows(), 0);
}
