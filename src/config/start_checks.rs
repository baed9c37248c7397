//! Checks of values that need the gateway's own code.

use std::net::SocketAddr;
use std::path::Path;

use super::fleet::FleetOptions;
use crate::exchange::subjects::Subjects;
use crate::platform::kube::{CheckScope, ClusterAccess};

/// A check of a fleet's NATS servers, for the gateway of a node or for any other.
pub(super) type NatsCheck = fn(&FleetOptions, &Subjects, Option<&str>) -> Result<Option<String>, String>;

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
    pub cluster: fn(&ClusterAccess, CheckScope) -> Result<Option<String>, String>,
    /// Checks that the NATS servers of a fleet can be used. Returns a note if their settings should be
    /// changed. Errors name the flags. The node is that of a gateway without followers.
    pub nats: NatsCheck,
    /// Checks that this machine can listen on an address.
    pub listen: fn(SocketAddr) -> Result<(), String>,
    /// Checks that a directory can be written, or created.
    pub data_dir: fn(&Path) -> Result<(), String>,
}

// === impl StartChecks ===

impl StartChecks {
    /// Checks that find nothing wrong.
    pub(crate) const NONE: Self = Self {
        sdl: |_| Ok(()),
        certificate: |_, _| Ok(()),
        authorities: |_| Ok(()),
        cluster: |_, _| Ok(None),
        nats: |_, _, _| Ok(None),
        listen: |_| Ok(()),
        data_dir: |_| Ok(()),
    };
}
