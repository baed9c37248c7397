//! Checks of values that need the gateway's own code.

use std::net::SocketAddr;
use std::path::Path;

/// Checks for `serve --check`: they examine values as a start does, without starting anything. An error
/// completes the sentence that the flag's name begins.
///
/// The caller passes them in, because the code that they use is in modules above this one.
#[derive(Clone, Copy, Debug)]
pub struct StartChecks {
    /// Checks that an SDL file can be run.
    pub sdl: fn(&Path) -> Result<(), String>,
    /// Checks that a certificate and its key can be loaded and belong together.
    pub certificate: fn(&Path, &Path) -> Result<(), String>,
    /// Checks that a file holds certificates of authorities.
    pub authorities: fn(&Path) -> Result<(), String>,
    /// Checks that a cluster can be used. Returns a note if something could not be checked. Errors name the
    /// flags.
    pub cluster: fn(&ClusterAccess<'_>) -> Result<Option<String>, String>,
    /// Checks that this machine can listen on an address.
    pub listen: fn(SocketAddr) -> Result<(), String>,
    /// Checks that a directory can be written, or created.
    pub data_dir: fn(&Path) -> Result<(), String>,
}

/// How to reach a cluster, and in which namespaces permissions are needed.
#[derive(Clone, Copy, Debug)]
pub struct ClusterAccess<'a> {
    /// The kubeconfig; `None` = the pod's service account.
    pub kubeconfig: Option<&'a Path>,
    /// The context in the kubeconfig; `None` = its current one.
    pub context: Option<&'a str>,
    /// The namespace of the provider's own resources.
    pub manifest_namespace: &'a str,
    /// The gateways' own namespace; `None` = that of the service account or of the context.
    pub coordination_namespace: Option<&'a str>,
}

// === impl StartChecks ===

impl StartChecks {
    /// Checks that find nothing wrong.
    pub(crate) const NONE: Self = Self {
        sdl: |_| Ok(()),
        certificate: |_, _| Ok(()),
        authorities: |_| Ok(()),
        cluster: |_| Ok(None),
        listen: |_| Ok(()),
        data_dir: |_| Ok(()),
    };
}
