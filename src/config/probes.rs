//! What only the gateway's own code can say of a value.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Looks into values as deep as a start would, without starting anything: asked when a configuration is to be checked. Each
/// answers with what is wrong, in words that stand behind the flag's name.
///
/// They are passed in, since the code that knows is above this room.
#[derive(Clone, Copy)]
pub struct Probes {
    /// Whether an SDL file can be run.
    pub sdl: fn(&Path) -> Result<(), String>,
    /// Whether a certificate and its key can be loaded, and belong together.
    pub certificate: fn(&Path, &Path) -> Result<(), String>,
    /// Whether a file holds authorities that can vouch for a node.
    pub authorities: fn(&Path) -> Result<(), String>,
    /// Whether a cluster can be used. The answer names the flags; it may also be a note on what could not be checked.
    pub cluster: fn(&ClusterProbe<'_>) -> Result<Option<String>, String>,
    /// Whether an address is this machine's, and may be listened on.
    pub listen: fn(SocketAddr) -> Result<(), String>,
    /// Whether a directory that may not exist yet can be written.
    pub data_dir: fn(&Path) -> Result<(), String>,
}

/// How a cluster is reached, and where in it permissions are needed.
#[derive(Clone, Copy, Debug)]
pub struct ClusterProbe<'a> {
    /// The kubeconfig; `None` = the pod's service account.
    pub kubeconfig: Option<&'a Path>,
    /// The context in it; `None` = the one that it names itself.
    pub context: Option<&'a str>,
    /// The namespace of the provider's own resources.
    pub manifest_namespace: &'a str,
    /// The gateways' own namespace; `None` = that of the service account, or of the context.
    pub coordination_namespace: Option<&'a str>,
}

// === impl Probes ===

impl Probes {
    /// Probes that find nothing wrong.
    pub const NONE: Self = Self {
        sdl: |_| Ok(()),
        certificate: |_, _| Ok(()),
        authorities: |_| Ok(()),
        cluster: |_| Ok(None),
        listen: |_| Ok(()),
        data_dir: |_| Ok(()),
    };

    pub(super) fn sdl(&self, file: PathBuf) -> Result<PathBuf, String> {
        (self.sdl)(&file).map(|()| file)
    }

    pub(super) fn certificate(&self, certificate: &Path, key: &Path) -> Result<(), String> {
        (self.certificate)(certificate, key)
    }

    pub(super) fn authorities(&self, file: PathBuf) -> Result<PathBuf, String> {
        (self.authorities)(&file).map(|()| file)
    }

    pub(super) fn cluster(&self, cluster: &ClusterProbe<'_>) -> Result<Option<String>, String> {
        (self.cluster)(cluster)
    }

    pub(super) fn listen(&self, address: SocketAddr) -> Result<SocketAddr, String> {
        (self.listen)(address).map(|()| address)
    }

    pub(super) fn data_dir(&self, dir: PathBuf) -> Result<PathBuf, String> {
        (self.data_dir)(&dir).map(|()| dir)
    }
}

impl fmt::Debug for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Probes")
    }
}
