//! The cluster, and gateways on it that start, stop and die.

use std::sync::Arc;
use std::time::Duration;

use leasemux::edge::admin::Exporter;
use leasemux::model::id::{LeaseId, Owner};
use leasemux::model::limits::Limits;
use leasemux::model::proto::lease::lease_rpc_client::LeaseRpcClient;
use leasemux::platform::kube::{ClusterAccess, KubeConfig, KubePlatform};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::task::JoinSet;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::transport::{Channel, Uri};

use crate::kube::cluster::Cluster;
use crate::support::gateway::Gateway;
use crate::support::ids::account;

/// A certificate that is always the same, and its account.
const CERTIFICATE: &[u8] =
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/certificates/chain-sdk.pem"));
const OWNER: &str = "akash1kp030650r7q7kf83xrs6873dw3pxeg2c0kzl6q";

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
    kubeconfig: tempfile::NamedTempFile,
}

/// The place of a gateway.
enum Site {
    Starting(AbortOnDropHandle<Arc<KubePlatform>>),
    Running(Box<Running>),
}

struct Running {
    gateway: Gateway,
    /// Connections of followers. Dropping them cuts these.
    connections: JoinSet<()>,
}

// === impl World ===

impl World {
    pub(super) async fn new(limits: Limits, sites: usize) -> Self {
        let cluster = Cluster::in_memory().await;
        let kubeconfig = tempfile::NamedTempFile::new().unwrap();
        let text = "{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: 'http://cluster'}}], \
             users: [{name: u, user: {}}], contexts: [{name: c, context: {cluster: c, user: u}}], current-context: c}";
        std::fs::write(kubeconfig.path(), text).unwrap();
        let certificate = CertificateDer::from_pem_slice(CERTIFICATE).unwrap().to_vec();
        let lease = LeaseId::new(OWNER, 7, 1, 1, account(200).as_str()).unwrap();
        let mut world = Self { cluster, lease, certificate, limits, sites: Vec::new(), kubeconfig };
        for _ in 0..sites {
            let site = world.start();
            world.sites.push(site);
        }
        world
    }

    fn start(&self) -> Site {
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
        let cluster = self.cluster.clone();
        let connector = tower::service_fn(move |_: Uri| std::future::ready(cluster.connect()));
        Site::Starting(AbortOnDropHandle::new(TaskTracker::new().spawn_local(async move {
            let exporter = Exporter::new().unwrap();
            KubePlatform::start_over(connector, &config, &exporter.metrics).await.expect("a usable cluster")
        })))
    }

    /// Takes gateways into service whose platforms are ready.
    pub(super) async fn progress(&mut self) {
        for site in &mut self.sites {
            let Site::Starting(task) = site else { continue };
            if !task.is_finished() {
                continue;
            }
            let gateway = Gateway::on_with(task.await.unwrap(), self.limits.clone());
            gateway.believe(&OWNER.parse::<Owner>().unwrap(), &self.certificate);
            *site = Site::Running(Box::new(Running { gateway, connections: JoinSet::new() }));
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
        self.sites[site] = self.start();
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
        let Running { gateway, connections } = &mut **running;
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        connections.spawn(gateway.connection(ours, Some(self.certificate.clone()), None));
        Some(LeaseRpcClient::new(gateway.channel_over(theirs).await))
    }
}
