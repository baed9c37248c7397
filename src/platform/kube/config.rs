//! What the Kubernetes platform is told.

use std::path::PathBuf;

use crate::model::id::Address;

/// Everything that the platform needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeConfig {
    /// Where the API server is, and who asks.
    pub source: KubeSource,
    /// The provider whose leases are served.
    pub provider: Address,
    /// The provider's public host name, which node ports are at.
    pub hostname: String,
    /// The namespace of the provider's own resources, such as host names.
    pub manifest_namespace: String,
    /// The namespace in which gateways agree on restarts; `None` = that of the service account, or of the kubeconfig's context.
    pub coordination_namespace: Option<String>,
}

/// Where the API server is, and who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KubeSource {
    /// As the service account of the pod that this program runs in.
    InCluster,
    /// As a kubeconfig says.
    File {
        /// The file.
        file: PathBuf,
        /// The context in it; `None` = its current one.
        context: Option<String>,
    },
}
