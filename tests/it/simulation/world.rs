//! The cluster, and gateways on it that start, stop and die.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use leasemux::edge::admin::Exporter;
use leasemux::model::id::{LeaseId, Owner};
use leasemux::model::limits::Limits;
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

use super::files::NodeFiles;
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
    kubeconfig: tempfile::NamedTempFile,
}

#[derive(Clone)]
struct NodeAccess {
    notifier: Notifier,
    logs: PathBuf,
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
    pub(super) async fn new(limits: Limits) -> Self {
        let cluster = Cluster::in_memory().await;
        let kubeconfig = tempfile::NamedTempFile::new().unwrap();
        let text = "{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: 'http://cluster'}}], \
             users: [{name: u, user: {}}], contexts: [{name: c, context: {cluster: c, user: u}}], current-context: c}";
        std::fs::write(kubeconfig.path(), text).unwrap();
        let certificate = CertificateDer::from_pem_slice(CERTIFICATE).unwrap().to_vec();
        let (sites, nodes) = (Vec::new(), Vec::new());
        Self { cluster, lease: lease(), certificate, limits, sites, nodes, kubeconfig }
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

    /// Whether a gateway reads the files of the node.
    pub(super) fn reads_files(&self, site: usize) -> bool {
        self.nodes[site].is_some()
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
        for site in &mut self.sites {
            let Site::Starting(task) = site else { continue };
            if !task.is_finished() {
                continue;
            }
            let platform = task.await.unwrap();
            let gateway = Gateway::on_with(Arc::clone(&platform), self.limits.clone());
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
        // Dropped before the next one starts.
        self.sites[site] = self.start(site);
    }

    /// Lets a gateway drain and stop, and starts it again.
    pub(super) async fn restart(&mut self, site: usize) {
        if let Site::Running(running) = &self.sites[site] {
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
