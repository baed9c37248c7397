//! The local platform: a small kubelet for one Linux machine.
//!
//! It reads Akash SDLs and runs the replicas of each service as processes of its own user. Replicas are
//! restarted when they end. Their output is stored like that of containers, in CRI format in the layout of
//! `/var/log/pods`, rotated, and read by [`log_files`]. Services are not isolated: they share
//! the machine, its file system and its network.
//!
//! Guarantees:
//! - All processes and their descendants die with the platform, however it ends (see [`shim`]).
//! - A service never waits because its log is not read or the disk is full.
//! - A restart ends one run and starts the next at once, without back-off.
//! - Instances keep their names, and their logs stay readable, across restarts of the gateway.
//! - The end of a run is published only when its whole log can be read.
//!
//! Other gateways of the machine can read the same services ([`attached`]).

pub mod attached;
pub(crate) mod companion;
mod launch;
mod output_copier;
mod rotate;
pub mod sdl;
pub mod shim;
mod status_publisher;
mod store;
mod supervisor;
mod view_file;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use futures_core::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use self::launch::Launcher;
use self::rotate::Rotation;
use self::sdl::{Sdl, Service};
use self::shim::Spec;
use self::status_publisher::{StatusPublisher, creating};
use self::store::{Store, StoredReplica};
pub use self::supervisor::Backoff;
use self::supervisor::{StopSignal, supervise};
use self::view_file::ViewFile;
use self::writer::{NO_LOSS, UNKNOWN_LOSS};
use super::log_files::{self, FollowMode, LogFiles, NeededStart};
use super::{Error, Platform, RestartRequest, Tail, TailRequest};
use crate::model::id::{Instance, LeaseId, Replica};
use crate::model::limits::RUNS_MAX;
use crate::model::parse::{duration, number, size};
use crate::model::time::LogTime;
use crate::model::view::{LeaseView, ReplicaView, ServiceView};
use crate::sys::dir_watch::Notifier;

/// The running program, even if its file was replaced or removed.
const SELF_EXE: &str = "/proc/self/exe";

/// Delay before the view of a lease is written again after a failure, such as a full disk.
const VIEW_RETRY_DELAY: Duration = Duration::from_secs(5);

/// PATH of services if the gateway has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Sizes at which a log file is rotated. One long line must fit.
const ROTATE_BYTES: RangeInclusive<u64> = 4 << 10..=1 << 40;

/// Grace periods of services. No service manager waits longer for a gateway to end.
const GRACE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3_600);

/// Numbers of log files of a run. With one, rotation would delete the newest lines.
const ROTATE_FILES: RangeInclusive<usize> = 2..=1_000;

/// Settings that operators may change. Each field defines its flag. A comment gives the reason of the
/// default.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(next_help_heading = "Logs on disk (--platform local)")]
pub struct LocalOptions {
    /// Time between SIGTERM and SIGKILL when a service restarts or the gateway stops, at most 1h
    // The same as `docker stop`. The kubelet's 30 s are too long for a person at a terminal.
    #[arg(long, help_heading = "Services (--platform local)", value_name = "TIME", default_value = "10s", value_parser = duration(GRACE))]
    pub stop_grace: Duration,
    /// Size at which a container's log file is rotated
    // The kubelet's `containerLogMaxSize`.
    #[arg(long, value_name = "SIZE", default_value = "10MiB", value_parser = size::<u64>(ROTATE_BYTES))]
    pub rotate_max_bytes: u64,
    /// Number of log files kept of each run, including the current one
    // The kubelet's `containerLogMaxFiles`.
    #[arg(long, value_name = "N", default_value = "5", value_parser = number(ROTATE_FILES))]
    pub rotate_files: usize,
    /// Number of ended runs of each replica whose logs are kept
    // Some minutes of crashes, including the back-off. A lease view shows one more run.
    #[arg(long, value_name = "N", default_value = "10", value_parser = number(1..=RUNS_MAX - 1))]
    pub kept_runs: usize,
}

/// Settings of a [`LocalPlatform`].
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// Directory of logs and homes, created if needed. Used by one gateway at a time.
    pub data_dir: PathBuf,
    /// The leases and their services.
    pub leases: Vec<(LeaseId, Sdl)>,
    /// The program executed as the [`shim`]. Its `main` must call
    /// [`shim::main`].
    pub exe: PathBuf,
    /// Value of `AKASH_CLUSTER_PUBLIC_HOSTNAME` in services.
    pub public_hostname: String,
    /// PATH of the services.
    pub path: String,
    /// Delays between the runs of a replica.
    pub backoff: Backoff,
    /// The settings that operators may change.
    pub options: LocalOptions,
}

/// Runs the services of some leases. Dropping it kills them; [`Platform::stop`] is graceful.
#[derive(Debug)]
pub struct LocalPlatform {
    leases: HashMap<LeaseId, Lease>,
    notifier: Notifier,
    /// Number of files of a log.
    kept_files: usize,
    stop: watch::Sender<Option<Duration>>,
    tasks: TaskTracker,
    _supervisors: Vec<AbortOnDropHandle<()>>,
    _view_writers: Vec<AbortOnDropHandle<()>>,
    _store: Store,
}

#[derive(Debug)]
struct Lease {
    view: Arc<watch::Sender<Arc<LeaseView>>>,
    view_file: Arc<ViewFile>,
    replicas: HashMap<Replica, ReplicaHandle>,
}

#[derive(Debug)]
struct ReplicaHandle {
    /// Directory of its logs.
    logs: PathBuf,
    status: Arc<StatusPublisher>,
    /// Number of the newest run whose restart was requested.
    restart: watch::Sender<Option<u32>>,
}

// === impl LocalOptions ===

/// The defaults of the flags.
impl Default for LocalOptions {
    fn default() -> Self {
        Self::parse_from(["local"])
    }
}

// === impl LocalConfig ===

impl LocalConfig {
    /// Runs `leases` with default settings: those of the flags, this process's program and PATH,
    /// and `localhost`.
    pub fn new(data_dir: PathBuf, leases: Vec<(LeaseId, Sdl)>) -> Self {
        Self {
            data_dir,
            leases,
            exe: SELF_EXE.into(),
            public_hostname: "localhost".to_owned(),
            path: std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned()),
            backoff: Backoff::default(),
            options: LocalOptions::default(),
        }
    }

    /// Returns the launcher of a replica. The environment of its processes is that of an Akash provider's
    /// containers (the provider's `cluster/kube/builder/workload.go`); the SDL may override every variable.
    fn launcher(
        &self,
        lease: &LeaseId,
        service: &Service,
        stored: &StoredReplica,
    ) -> Result<Launcher, Error> {
        let home = stored.home.to_str();
        let home = home.ok_or_else(|| {
            Error::Broken(format!("data directory: {} is not UTF-8", stored.home.display()))
        })?;
        let exe = std::path::absolute(&self.exe)
            .map_err(|error| Error::io(format!("program {}", self.exe.display()), error))?;
        let env = [
            ("PATH", self.path.clone()),
            ("HOME", home.to_owned()),
            ("AKASH_GROUP_SEQUENCE", lease.gseq().to_string()),
            ("AKASH_DEPLOYMENT_SEQUENCE", lease.dseq().to_string()),
            ("AKASH_ORDER_SEQUENCE", lease.oseq().to_string()),
            ("AKASH_OWNER", lease.owner().to_string()),
            ("AKASH_PROVIDER", lease.provider().to_string()),
            ("AKASH_CLUSTER_PUBLIC_HOSTNAME", self.public_hostname.clone()),
        ];
        let env = env.into_iter().map(|(name, value)| (name.to_owned(), value));
        let env = env.chain(service.env.iter().cloned()).collect();
        Ok(Launcher {
            exe,
            spec: Spec {
                command: service.command.clone(),
                env,
                dir: stored.home.clone(),
                lock: stored.logs.clone(),
            },
            logs: stored.logs.clone(),
            rotation: Rotation {
                max_bytes: self.options.rotate_max_bytes,
                files: self.options.rotate_files.max(1),
            },
            kept_runs: self.options.kept_runs.min(RUNS_MAX - 1),
            lost: if stored.end_unknown { UNKNOWN_LOSS } else { NO_LOSS },
        })
    }
}

// === impl LocalPlatform ===

impl LocalPlatform {
    /// Locks the data directory and starts all services. Must be called within a Tokio runtime, which then
    /// supervises them and copies their output. Blocks on the file system.
    ///
    /// # Errors
    /// If the data directory is unusable or used by another gateway, or a lease is given twice; nothing runs
    /// then. A service that cannot be started is no error; the view shows why.
    pub fn start(config: LocalConfig, notifier: Notifier) -> Result<Arc<Self>, Error> {
        let mut store = Store::open(&config.data_dir)?;
        let (stop, stopped) = watch::channel(None);
        let mut leases = HashMap::new();
        let mut supervised = Vec::new();
        for (id, sdl) in &config.leases {
            let view = Arc::new(watch::Sender::default());
            let mut replicas = HashMap::new();
            for (name, service) in &sdl.services {
                let count = service.count;
                let mut shown = BTreeMap::new();
                for index in 0..count {
                    let replica = Replica { service: name.clone(), index };
                    let stored = store.replica(id, &replica)?;
                    shown.insert(index, initial_view(&stored));
                    let launcher = config.launcher(id, service, &stored)?;
                    let status = StatusPublisher::new(Arc::clone(&view), replica.clone(), stored.uid);
                    let status = Arc::new(status);
                    let restart = watch::Sender::new(None);
                    let stop = StopSignal {
                        platform: stopped.clone(),
                        restart: restart.subscribe(),
                        restart_grace: config.options.stop_grace,
                    };
                    supervised.push(supervise(
                        Arc::clone(&status),
                        launcher,
                        stored.next,
                        config.backoff,
                        stop,
                    ));
                    replicas.insert(replica, ReplicaHandle { logs: stored.logs, status, restart });
                }
                let service = ServiceView { count, replicas: shown, ..ServiceView::default() };
                view.send_modify(|view: &mut Arc<LeaseView>| {
                    Arc::make_mut(view).services.insert(name.clone(), service);
                });
            }
            let view_file = ViewFile::new(&config.data_dir, id.clone(), config.options.rotate_files);
            let lease = Lease { view, view_file: Arc::new(view_file), replicas };
            if leases.insert(id.clone(), lease).is_some() {
                return Err(Error::Broken(format!("lease {id} is given twice")));
            }
        }
        view_file::prepare(&config.data_dir, leases.values().map(|lease| &*lease.view_file))
            .map_err(|error| Error::io(format!("views in {}", config.data_dir.display()), error))?;
        let view_writers = leases.values().map(|lease| {
            let written = write_views(Arc::clone(&lease.view), Arc::clone(&lease.view_file));
            AbortOnDropHandle::new(TaskTracker::new().spawn(written))
        });
        let view_writers = view_writers.collect();
        let kept_files = config.options.rotate_files;
        let tasks = TaskTracker::new();
        let supervisors = supervised.into_iter().map(|task| AbortOnDropHandle::new(tasks.spawn(task)));
        Ok(Arc::new(Self {
            _supervisors: supervisors.collect(),
            _view_writers: view_writers,
            leases,
            notifier,
            kept_files,
            stop,
            tasks,
            _store: store,
        }))
    }

    fn lease(&self, id: &LeaseId) -> Result<&Lease, Error> {
        self.leases.get(id).ok_or_else(|| Error::NotFound(format!("lease {id}")))
    }

    async fn open(&self, request: TailRequest) -> Result<Tail, Error> {
        let TailRequest { lease, replica, instance, .. } = &request;
        let not_found = || Error::NotFound(format!("log of {replica}, run {instance}"));
        let lease = self.lease(lease)?;
        let handle = lease.replicas.get(replica).ok_or_else(not_found)?;
        let is_readable =
            lease.view.borrow().replica(replica).is_some_and(|replica| replica.run(instance).is_some());
        if !is_readable {
            return Err(not_found());
        }
        let completed = handle.status.log_completed(instance);
        open_log(&self.notifier, handle.logs.clone(), self.kept_files, &request, completed).await
    }

    /// Requests the restart of a run, unless that was done before.
    fn request_restart(&self, request: &RestartRequest) -> Result<(), Error> {
        let RestartRequest { lease, replica, instance } = request;
        let lease = self.lease(lease)?;
        let handle = lease.replicas.get(replica);
        let handle = handle.ok_or_else(|| Error::NotFound(format!("replica {replica}")))?;
        if self.stop.borrow().is_some() {
            return Err(Error::Unavailable("the platform is stopping".to_owned()));
        }
        let newest = lease
            .view
            .borrow()
            .replica(replica)
            .and_then(ReplicaView::newest)
            .map(|run| run.instance.clone());
        if newest != *instance {
            return Err(Error::Conflict(format!("{replica} runs as another instance")));
        }
        let number = instance.as_ref().map(Instance::run_number);
        // Without a run, the first one is about to start, and there is nothing to end: `None` is never new.
        handle.restart.send_if_modified(|requested| {
            let is_new = *requested < number;
            *requested = number.max(*requested);
            is_new
        });
        Ok(())
    }
}

impl Platform for LocalPlatform {
    fn name(&self) -> &'static str {
        "local"
    }

    fn watch(&self, lease: &LeaseId) -> BoxFuture<'_, Result<watch::Receiver<Arc<LeaseView>>, Error>> {
        let receiver = self.lease(lease).map(|lease| lease.view.subscribe());
        Box::pin(std::future::ready(receiver))
    }

    fn tail(&self, request: TailRequest) -> BoxFuture<'_, Result<Tail, Error>> {
        Box::pin(self.open(request))
    }

    fn restart(&self, request: RestartRequest) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(std::future::ready(self.request_restart(&request)))
    }

    /// SIGTERM goes to the first process of each service, and SIGKILL to the rest when that exits or after
    /// `grace`. When the future resolves, no process is left and all logs are complete.
    fn stop(&self, grace: Duration) -> BoxFuture<'_, ()> {
        self.stop.send_replace(Some(grace));
        self.tasks.close();
        Box::pin(async {
            self.tasks.wait().await;
            // The writers may be late.
            for lease in self.leases.values() {
                write_view(&lease.view, &lease.view_file).await;
            }
        })
    }
}

/// Opens the log of a run in `dir`, which has at most `kept_files` files. `completed` is cancelled once the log
/// is complete.
async fn open_log(
    notifier: &Notifier,
    dir: PathBuf,
    kept_files: usize,
    request: &TailRequest,
    completed: CancellationToken,
) -> Result<Tail, Error> {
    // The start of a run of an earlier gateway is unknown.
    let needed_start = NeededStart { started: LogTime::MIN, kept_files };
    let files = LogFiles {
        dir,
        run_number: request.instance.run_number(),
        needed_start: request.is_next_run.then_some(needed_start),
    };
    // Without `follow`, too, the unfinished last line of an ended run is complete.
    let follow = if request.follow || completed.is_cancelled() {
        FollowMode::UntilEnd(completed)
    } else {
        FollowMode::No
    };
    log_files::open(notifier, files, request.from, follow).await
}

/// Writes each view of a lease, or the newest of several that come meanwhile. Runs until it is dropped.
async fn write_views(view: Arc<watch::Sender<Arc<LeaseView>>>, file: Arc<ViewFile>) {
    let mut changes = view.subscribe();
    loop {
        changes.mark_unchanged();
        let delay = if write_view(&view, &file).await { Duration::MAX } else { VIEW_RETRY_DELAY };
        // The sender is not dropped before this task.
        _ = tokio::time::timeout(delay, changes.changed()).await;
    }
}

/// Writes the newest view of a lease. Returns `false` if that has failed.
async fn write_view(view: &watch::Sender<Arc<LeaseView>>, file: &ViewFile) -> bool {
    let written = file.write(view).await;
    if let Err(error) = &written {
        let error = error as &dyn std::error::Error;
        tracing::warn!(error, "failed to store the view of a lease; attached gateways do not see the change");
    }
    written.is_ok()
}

/// Returns the view of a replica before its first run, with the runs of earlier gateways.
fn initial_view(stored: &StoredReplica) -> ReplicaView {
    let surplus = stored.runs.len().saturating_sub(RUNS_MAX);
    ReplicaView {
        runs: stored.runs.iter().skip(surplus).cloned().collect(),
        state: creating(),
        restarts: stored.next,
        ..ReplicaView::default()
    }
}
