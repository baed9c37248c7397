//! `--check`: validates a configuration as a start does, without starting anything.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;

use tokio::runtime::{Builder, Runtime};

use super::{bind, operator_text};
use crate::access::chain;
use crate::config::{FleetOptions, StartChecks};
use crate::edge::tls;
#[cfg(feature = "nats")]
use crate::exchange::gateway_id::GatewayId;
use crate::exchange::subjects::Subjects;
use crate::platform::kube::{self, CheckScope, ClusterAccess};
use crate::platform::local::sdl::Sdl;

/// Checks that need code above `config`: the parts of a start that change nothing.
pub const START_CHECKS: StartChecks = StartChecks {
    sdl: |file| Sdl::read(file).map(drop).map_err(|error| format!("invalid SDL: {error}")),
    certificate: |certificate, key| tls::load(certificate, key).map(drop).map_err(|error| error.to_string()),
    authorities: |file| chain::check_authorities(file).map_err(|error| error.to_string()),
    cluster,
    nats,
    listen,
    data_dir,
};

/// Reads the cluster's configuration, and checks the permissions if the API server answers.
fn cluster(cluster: &ClusterAccess, scope: CheckScope) -> Result<Option<String>, String> {
    // Later lines quote the configuration file, which contains secrets.
    let first_line = |text: String| text.lines().next().unwrap_or_default().to_owned();
    let checked = runtime()?.block_on(kube::check(cluster, scope));
    checked.map_err(|error| first_line(operator_text(&error)))
}

/// Connects to a NATS server, and uses each permission of a gateway.
#[cfg(feature = "nats")]
fn nats(options: &FleetOptions, subjects: &Subjects, node: Option<&str>) -> Result<Option<String>, String> {
    let options = super::setup::nats_options(options, node);
    let checked = runtime()?.block_on(crate::exchange::nats::check(&options, subjects, GatewayId::random()));
    checked.map_err(|error| error.to_string())
}

/// Fails. The configuration rejects `--nats` before.
#[cfg(not(feature = "nats"))]
fn nats(_: &FleetOptions, _: &Subjects, _: Option<&str>) -> Result<Option<String>, String> {
    Err("--nats needs a program with the feature `nats`".to_owned())
}

fn runtime() -> Result<Runtime, String> {
    Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())
}

/// Binds the address without listening, so that no connection is refused meanwhile. An address in use is
/// accepted: the running gateway may hold it.
fn listen(address: SocketAddr) -> Result<(), String> {
    match bind(address) {
        Err(error) if error.kind() != ErrorKind::AddrInUse => {
            Err(format!("must be an address that this machine can listen on: {error}"))
        }
        _ => Ok(()),
    }
}

/// Creates an unnamed file in the nearest existing directory. Permission bits alone do not show a read-only
/// file system, and root ignores them.
fn data_dir(dir: &Path) -> Result<(), String> {
    let nearest = dir.ancestors().find(|dir| dir.exists() || dir.as_os_str().is_empty()).unwrap_or(dir);
    let nearest = if nearest.as_os_str().is_empty() { Path::new(".") } else { nearest };
    tempfile::tempfile_in(nearest)
        .map(drop)
        .map_err(|error| format!("must be a directory that can be written: {}: {error}", nearest.display()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn check_binds_the_address() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(listen(taken.local_addr().unwrap()), Ok(()));
        assert_eq!(listen("127.0.0.1:0".parse().unwrap()), Ok(()));
        // Reserved for documentation: no machine has it.
        assert!(listen("192.0.2.1:8446".parse().unwrap()).unwrap_err().contains("can listen on"));
    }

    #[test]
    fn check_finds_an_unwritable_data_dir() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(data_dir(dir.path()), Ok(()));
        assert_eq!(data_dir(&dir.path().join("a/b/c")), Ok(()));
        assert!(data_dir(Path::new("/proc/none/data")).unwrap_err().contains("/proc"));
    }
}
