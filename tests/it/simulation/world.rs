//! The cluster, and gateways on it that start, stop and die.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use leasemux::edge::admin::Exporter;
use leasemux::exchange::fleet::{Fleet, FleetConfig};
use leasemux::exchange::gateway_id::GatewayId;
use leasemux::exchange::liveness::GRACE;
use leasemux::exchange::subjects::Subjects;
use leasemux::model::id::{LeaseId, Owner};
use leasemux::model::limits::Limits;
use leasemux::model::metrics::Metrics;
use leasemux::model::proto::lease::lease_rpc_client::LeaseRpcClient;
use leasemux::model::view::Run;
use leasemux::platform::Platform;
use leasemux::platform::kube::{ClusterAccess, KubeConfig, KubePlatform};
use leasemux::platform::node::NodePlatform;
use leasemux::sys::dir_watch::Notifier;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::task::JoinSet;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::transport::{Channel, Uri};

use super::check::Reads;
use super::files::NodeFiles;
use crate::fleet::bus::Hub;
use crate::kube::cluster::{Cluster, RunKey};
use crate::support::gateway::Gateway;
use crate::support::ids::{account, replica as replica_id};

/// A certificate that is always the same, and its account.
const CERTIFICATE: &[u8] =
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/certificates/chain-sdk.pem"));
const OWNER: &str = "akash1kp030650r7q7kf83xrs6873dw3pxeg2c0kzl6q";

/// The service that is followed.
pub(super) const SERVICE: &str = "web";

/// Capacity of a pipe between a follower and a gateway: less than a stream's send buffer.
const PIPE_BYTES: usize = 16 * 1024;

/// Members of a replica that a gateway publishes for. There are fewer sites.
const MEMBERS_MAX: usize = 16;

/// Longest time that a gateway drains.
const DRAIN: Duration = Duration::from_secs(10);

pub(super) struct World {
    pub(super) cluster: Cluster,
    pub(super) lease: LeaseId,
    certificate: Vec<u8>,
    limits: Limits,
    sites: Vec<Site>,
    /// Per site: how to read the files of the node, if the gateway there does.
    nodes: Vec<Option<NodeAccess>>,
    fleet: Option<TestFleet>,
    kubeconfig: tempfile::NamedTempFile,
}

#[derive(Clone)]
struct NodeAccess {
    notifier: Notifier,
    logs: PathBuf,
}

/// How gateways share tails.
pub(super) struct TestFleet {
    pub(super) hub: Hub,
    /// Maximum tails of replicas that a gateway does not publish.
    pub(super) direct_tails: usize,
    /// The number on the bus of the newest gateway at each site.
    pub(super) numbers: Vec<Option<usize>>,
}

/// The place of a gateway.
enum Site {
    Starting(AbortOnDropHandle<Arc<dyn Platform>>),
    Running(Box<Running>),
}

struct Running {
    platform: Arc<dyn Platform>,
    gateway: Gateway,
    /// Connections of followers. Dropping them cuts these.
    connections: JoinSet<()>,
}

/// The lease that everything belongs to.
pub(super) fn lease() -> LeaseId {
    LeaseId::new(OWNER, 7, 1, 1, account(200).as_str()).unwrap()
}

// === impl World ===

impl World {
    /// Creates a cluster for the lease of [`lease`].
    pub(super) async fn new(limits: Limits, fleet: Option<TestFleet>) -> Self {
        let cluster = Cluster::in_memory().await;
        let kubeconfig = tempfile::NamedTempFile::new().unwrap();
        let text = "{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: 'http://cluster'}}], \
             users: [{name: u, user: {}}], contexts: [{name: c, context: {cluster: c, user: u}}], current-context: c}";
        std::fs::write(kubeconfig.path(), text).unwrap();
        let certificate = CertificateDer::from_pem_slice(CERTIFICATE).unwrap().to_vec();
        let (sites, nodes) = (Vec::new(), Vec::new());
        Self { cluster, lease: lease(), certificate, limits, sites, nodes, fleet, kubeconfig }
    }

    /// Starts the gateways: per site, whether it reads the files of the node.
    pub(super) fn start_all(&mut self, sites: &[bool], files: Option<&NodeFiles>) {
        for reads_files in sites {
            let files = files.filter(|_| *reads_files);
            self.nodes.push(files.map(|files| NodeAccess {
                notifier: Notifier::simulated(files.disk.clone()),
                logs: files.root().to_owned(),
            }));
            let site = self.start(self.sites.len());
            self.sites.push(site);
        }
    }

    /// Returns what a gateway reads.
    pub(super) fn reads(&self, site: usize) -> Reads {
        let files = self.nodes[site].is_some();
        let all_files = self.nodes.iter().all(Option::is_some);
        Reads { files, live_api: if self.fleet.is_some() { !all_files } else { !files } }
    }

    /// The fleet, if the gateways are one.
    pub(super) fn fleet(&self) -> Option<&TestFleet> {
        self.fleet.as_ref()
    }

    /// Per replica: how each gateway that follows it gets its lines.
    pub(super) fn roles(&self) -> BTreeMap<String, Vec<&'static str>> {
        let mut roles = BTreeMap::<String, Vec<&'static str>>::new();
        for site in &self.sites {
            let Site::Running(running) = site else { continue };
            for replica in running.gateway.fleet_view().into_iter().flat_map(|view| view.replicas) {
                roles.entry(replica.replica).or_default().push(replica.role);
            }
        }
        roles
    }

    /// Whether a gateway runs and knows this run of a replica.
    pub(super) async fn is_known_at(&self, site: usize, replica: usize, run: &RunKey) -> bool {
        let Site::Running(running) = &self.sites[site] else { return false };
        let Ok(view) = running.platform.watch(&self.lease).await else { return false };
        let view = view.borrow();
        let replica = replica_id(SERVICE, u32::try_from(replica).unwrap());
        let is_it = |known: &Run| known.instance.parts() == (run.0.as_str(), run.1.as_str(), run.2);
        view.replica(&replica).is_some_and(|found| found.runs.iter().any(is_it))
    }

    /// Whether all gateways run and know this run of a replica.
    pub(super) async fn is_known(&self, replica: usize, run: &RunKey) -> bool {
        for site in 0..self.sites.len() {
            if !self.is_known_at(site, replica, run).await {
                return false;
            }
        }
        true
    }

    fn start(&self, site: usize) -> Site {
        let config = KubeConfig {
            cluster: ClusterAccess {
                kubeconfig: Some(self.kubeconfig.path().to_owned()),
                context: None,
                manifest_namespace: "lease".into(),
                coordination_namespace: None,
            },
            provider: account(200),
            hostname: "provider.example.com".into(),
        };
        let (cluster, node) = (self.cluster.clone(), self.nodes[site].clone());
        let connector = tower::service_fn(move |_: Uri| std::future::ready(cluster.connect()));
        Site::Starting(AbortOnDropHandle::new(TaskTracker::new().spawn_local(async move {
            let exporter = Exporter::new().unwrap();
            let kube = KubePlatform::start_over(connector, &config, &exporter.metrics).await;
            let kube = kube.expect("a usable cluster");
            match node {
                Some(NodeAccess { notifier, logs }) => {
                    Arc::new(NodePlatform::new(kube, notifier, "node1".to_owned(), logs)) as Arc<dyn Platform>
                }
                None => kube,
            }
        })))
    }

    /// Takes gateways into service whose platforms are ready.
    pub(super) async fn progress(&mut self) {
        for (number, site) in self.sites.iter_mut().enumerate() {
            let Site::Starting(task) = site else { continue };
            if !task.is_finished() {
                continue;
            }
            let platform = task.await.unwrap();
            let limits = self.limits.clone();
            let gateway = match &mut self.fleet {
                Some(fleet) => {
                    Gateway::on_in_fleet(Arc::clone(&platform), limits, |metrics| fleet.join(number, metrics))
                }
                None => Gateway::on_with(Arc::clone(&platform), limits),
            };
            gateway.believe(&OWNER.parse::<Owner>().unwrap(), &self.certificate);
            *site = Site::Running(Box::new(Running { platform, gateway, connections: JoinSet::new() }));
        }
    }

    pub(super) fn sites(&self) -> usize {
        self.sites.len()
    }

    pub(super) fn is_running(&self, site: usize) -> bool {
        matches!(self.sites[site], Site::Running(_))
    }

    /// Kills a gateway, and starts it again.
    pub(super) fn kill(&mut self, site: usize) {
        if let Some(fleet) = &mut self.fleet {
            fleet.leave(site);
        }
        // Dropped before the next one starts.
        self.sites[site] = self.start(site);
    }

    /// Lets a gateway drain and stop, and starts it again.
    pub(super) async fn restart(&mut self, site: usize) {
        if let Site::Running(running) = &self.sites[site] {
            if self.fleet.is_some() {
                running.gateway.fleet().drain();
            }
            running.gateway.drain.finish(DRAIN).await;
        }
        self.kill(site);
    }

    /// Connects to a running gateway.
    pub(super) async fn connect(&mut self, site: usize) -> Option<LeaseRpcClient<Channel>> {
        let Site::Running(running) = &mut self.sites[site] else { return None };
        let Running { gateway, connections, .. } = &mut **running;
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        connections.spawn(gateway.connection(ours, Some(self.certificate.clone()), None));
        Some(LeaseRpcClient::new(gateway.channel_over(theirs).await))
    }
}

// === impl TestFleet ===

impl TestFleet {
    /// Connects the new gateway of a site.
    fn join(&mut self, site: usize, metrics: Metrics) -> Fleet {
        let config = FleetConfig {
            gateway: GatewayId::random(),
            subjects: Subjects::new("simulation", None).unwrap(),
            grace: GRACE,
            direct_tails: self.direct_tails,
            members_max: MEMBERS_MAX,
            shares_quotas: false,
            is_source: false,
        };
        let bus = self.hub.connect();
        self.numbers[site] = Some(self.hub.gateways() - 1);
        Fleet::start(bus, config, metrics)
    }

    /// The gateway of a site was killed.
    fn leave(&mut self, site: usize) {
        if let Some(number) = self.numbers[site].take() {
            self.hub.kill(number);
        }
    }
}
