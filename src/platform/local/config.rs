//! What an operator may choose, and what follows from it for the processes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::backoff::Backoff;
use super::ipc::Spec;
use super::launch::Launcher;
use super::rotate::Rotation;
use super::sdl::{Sdl, Service};
use crate::model::id::LeaseId;
use crate::model::limits::RUNS_MAX;
use crate::platform::Error;
use crate::platform::cri::DroppedOutput;

/// The running program, even if its file was replaced or removed since it was started.
const SELF_EXE: &str = "/proc/self/exe";

/// Where programs are looked for if the gateway itself was not told.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Size at which a log is rotated: the kubelet's `containerLogMaxSize`.
pub const ROTATE_MAX_BYTES: u64 = 10 * 1024 * 1024;

/// Files of a run that are kept: the kubelet's `containerLogMaxFiles`.
pub const ROTATE_FILES: usize = 5;

/// Ended runs of a replica whose logs are kept: some minutes of crashing, with the waits between.
pub const KEPT_RUNS: usize = 10;

/// Default time between the SIGTERM to a service's first process and the SIGKILL to all of its processes, in a restart and at
/// the gateway's end: what `docker stop` waits. (The kubelet's 30 s are longer than a person waits at a terminal.)
pub const STOP_GRACE: Duration = Duration::from_secs(10);

/// What to run, and how.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// Where logs and homes are kept; made if it is not there. One gateway at a time uses it.
    pub data_dir: PathBuf,
    /// The leases and what they run.
    pub leases: Vec<(LeaseId, Sdl)>,
    /// The program that is executed as [`shim`](super::shim): this one, so its `main` must hand over to [`shim::main`](super::shim::main).
    pub exe: PathBuf,
    /// Told to services as `AKASH_CLUSTER_PUBLIC_HOSTNAME`.
    pub public_hostname: String,
    /// PATH of the services.
    pub path: String,
    /// Size at which a log is rotated, in bytes.
    pub rotate_max_bytes: u64,
    /// Files of one run that are kept, the one being written included; at least 1.
    pub rotate_files: usize,
    /// Ended runs of a replica whose logs are kept, below [`RUNS_MAX`].
    pub kept_runs: usize,
    /// The waits between the runs of a replica.
    pub backoff: Backoff,
    /// Time between SIGTERM and SIGKILL when a run is restarted.
    pub stop_grace: Duration,
}

// === impl LocalConfig ===

impl LocalConfig {
    /// Runs `leases` with everything else as usual: the defaults of this module, this process's program, its PATH, and
    /// `localhost`.
    pub fn new(data_dir: PathBuf, leases: Vec<(LeaseId, Sdl)>) -> Self {
        Self {
            data_dir,
            leases,
            exe: SELF_EXE.into(),
            public_hostname: "localhost".to_owned(),
            path: std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned()),
            rotate_max_bytes: ROTATE_MAX_BYTES,
            rotate_files: ROTATE_FILES,
            kept_runs: KEPT_RUNS,
            backoff: Backoff::default(),
            stop_grace: STOP_GRACE,
        }
    }

    /// The environment is that of an Akash provider's containers (its `cluster/kube/builder/workload.go`): its own variables
    /// unless the SDL sets them.
    pub(super) fn spec(&self, lease: &LeaseId, service: &Service, home: &Path) -> Result<Spec, Error> {
        let home_text = home
            .to_str()
            .ok_or_else(|| Error::Broken(format!("data directory: {} is not UTF-8", home.display())))?;
        let env: BTreeMap<String, String> = [
            ("PATH", self.path.clone()),
            ("HOME", home_text.to_owned()),
            ("AKASH_GROUP_SEQUENCE", lease.gseq().to_string()),
            ("AKASH_DEPLOYMENT_SEQUENCE", lease.dseq().to_string()),
            ("AKASH_ORDER_SEQUENCE", lease.oseq().to_string()),
            ("AKASH_OWNER", lease.owner().to_string()),
            ("AKASH_PROVIDER", lease.provider().to_string()),
            ("AKASH_CLUSTER_PUBLIC_HOSTNAME", self.public_hostname.clone()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .chain(service.env.iter().cloned())
        .collect();
        Ok(Spec { command: service.command.clone(), env: env.into_iter().collect(), dir: home.to_owned() })
    }

    /// `lost` is what is missing at the end of the run before.
    pub(super) fn launcher(&self, spec: Spec, logs: PathBuf, lost: DroppedOutput) -> Result<Launcher, Error> {
        let exe = std::path::absolute(&self.exe)
            .map_err(|error| Error::io(format!("program {}", self.exe.display()), error))?;
        Ok(Launcher {
            exe,
            spec,
            logs,
            rotation: Rotation { max_bytes: self.rotate_max_bytes, files: self.rotate_files.max(1) },
            kept_runs: self.kept_runs.min(RUNS_MAX - 1),
            lost,
        })
    }
}
