//! Starts the configured platform.

use std::sync::Arc;
use std::time::Duration;

use super::ServeError;
use super::runtimes::SideRuntime;
use crate::config::{KubeOptions, PlatformKind, ServeConfig};
use crate::model::id::LeaseId;
use crate::model::metrics::Metrics;
use crate::platform::Platform;
use crate::platform::kube::{KubeConfig, KubePlatform, KubeSource};
use crate::platform::local::sdl::Sdl;
use crate::platform::local::{LocalConfig, LocalPlatform};
use crate::platform::node::NodePlatform;
use crate::sys::dir_watch::Notifier;

/// The one platform of a gateway.
#[derive(Debug)]
pub(super) enum RunningPlatform {
    Local(Arc<LocalPlatform>),
    Kube(Arc<KubePlatform>),
    Node(Arc<NodePlatform>),
}

// === impl RunningPlatform ===

impl RunningPlatform {
    /// Starts the platform. For a cluster, waits until all objects are listed. Runs local services on `side`.
    pub(super) async fn start(
        config: &ServeConfig,
        leases: Vec<(LeaseId, Sdl)>,
        notifier: Notifier,
        metrics: &Metrics,
        side: &SideRuntime,
    ) -> Result<Self, ServeError> {
        match &config.platform {
            PlatformKind::Local => side
                .within(|| LocalPlatform::start(local_config(config, leases), notifier))
                .map(Self::Local)
                .map_err(ServeError::Local),
            PlatformKind::Kube(options) => cluster(options, metrics).await.map(Self::Kube),
            PlatformKind::Node(options, node) => {
                let kube = cluster(options, metrics).await?;
                let platform = NodePlatform::new(kube, notifier, node.name.clone(), node.logs.clone());
                Ok(Self::Node(Arc::new(platform)))
            }
        }
    }

    pub(super) fn platform(&self) -> Arc<dyn Platform> {
        match self {
            Self::Local(platform) => Arc::clone(platform) as Arc<dyn Platform>,
            Self::Kube(platform) => Arc::clone(platform) as Arc<dyn Platform>,
            Self::Node(platform) => Arc::clone(platform) as Arc<dyn Platform>,
        }
    }

    /// Stops the services of the local platform. Services in a cluster continue.
    pub(super) async fn stop(&self, grace: Duration) {
        match self {
            Self::Local(platform) => platform.stop(grace).await,
            Self::Kube(_) | Self::Node(_) => {}
        }
    }
}

fn local_config(config: &ServeConfig, leases: Vec<(LeaseId, Sdl)>) -> LocalConfig {
    let mut local = LocalConfig::new(config.data_dir.clone(), leases);
    local.rotate_max_bytes = config.local.rotate_max_bytes;
    local.rotate_files = config.local.rotate_files;
    local.kept_runs = config.local.kept_runs;
    local.stop_grace = config.local.stop_grace;
    if let Some(hostname) = config.public_hostnames.first() {
        local.public_hostname.clone_from(hostname);
    }
    local
}

fn kube_config(options: &KubeOptions) -> KubeConfig {
    let source = options
        .kubeconfig
        .clone()
        .map_or(KubeSource::InCluster, |file| KubeSource::File { file, context: options.context.clone() });
    KubeConfig {
        source,
        provider: options.provider.clone(),
        hostname: options.hostname.clone(),
        manifest_namespace: options.manifest_namespace.clone(),
        coordination_namespace: options.coordination_namespace.clone(),
    }
}

async fn cluster(options: &KubeOptions, metrics: &Metrics) -> Result<Arc<KubePlatform>, ServeError> {
    KubePlatform::start(&kube_config(options), metrics).await.map_err(ServeError::Kube)
}
