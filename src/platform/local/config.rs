//! Settings of the local platform, and the processes that follow from them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ipc::Spec;
use super::launch::Launcher;
use super::rotate::Rotation;
use super::sdl::{Sdl, Service};
use super::supervisor::Backoff;
use crate::model::id::LeaseId;
use crate::model::limits::RUNS_MAX;
use crate::platform::Error;
use crate::platform::cri::DroppedOutput;

/// The running program, even if its file was replaced or removed.
const SELF_EXE: &str = "/proc/self/exe";

/// PATH of services if the gateway has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Size at which a log is rotated: the kubelet's `containerLogMaxSize`.
const ROTATE_MAX_BYTES: u64 = 10 * 1024 * 1024;

/// Number of files kept per run: the kubelet's `containerLogMaxFiles`.
const ROTATE_FILES: usize = 5;

/// Number of ended runs per replica whose logs are kept: some minutes of crashes, including the back-off.
const KEPT_RUNS: usize = 10;

/// Default time from SIGTERM to a service's first process until SIGKILL to all its processes, at a restart
/// and at shutdown: the same as `docker stop`. The kubelet's 30 s are too long for a person at a terminal.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Settings of a [`LocalPlatform`](super::LocalPlatform).
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// Directory of logs and homes, created if needed. Used by one gateway at a time.
    pub data_dir: PathBuf,
    /// The leases and their services.
    pub leases: Vec<(LeaseId, Sdl)>,
    /// The program executed as the [`shim`](super::shim). Its `main` must call
    /// [`shim::main`](super::shim::main).
    pub exe: PathBuf,
    /// Value of `AKASH_CLUSTER_PUBLIC_HOSTNAME` in services.
    pub public_hostname: String,
    /// PATH of the services.
    pub path: String,
    /// Size at which a log is rotated, in bytes.
    pub rotate_max_bytes: u64,
    /// Number of files kept per run, including the active one; at least 1.
    pub rotate_files: usize,
    /// Number of ended runs per replica whose logs are kept, below [`RUNS_MAX`].
    pub kept_runs: usize,
    /// Delays between the runs of a replica.
    pub backoff: Backoff,
    /// Time between SIGTERM and SIGKILL when a run is restarted.
    pub stop_grace: Duration,
}

// === impl LocalConfig ===

impl LocalConfig {
    /// Runs `leases` with default settings: the constants of this module, this process's program and PATH,
    /// and `localhost`.
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

    /// Returns the program of a service. Its environment is that of an Akash provider's containers (the
    /// provider's `cluster/kube/builder/workload.go`); the SDL may override every variable.
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

    /// Returns the launcher of a replica. `lost` is the unreported loss of its last run.
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
