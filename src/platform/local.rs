//! The local platform: a small kubelet for one Linux machine.
//!
//! It reads Akash SDLs and runs the replicas of each service as processes of its own user. Replicas are
//! restarted when they end. Their output is stored like that of containers, in CRI format in the layout of
//! `/var/log/pods`, rotated, and read by [`tail`]. Services are not isolated: they share the
//! machine, its file system and its network.
//!
//! Guarantees:
//! - All processes and their descendants die with the platform, however it ends (see [`shim`]).
//! - A service never waits because its log is not read or the disk is full.
//! - A restart ends one run and starts the next at once, without back-off.
//! - Instances keep their names, and their logs stay readable, across restarts of the gateway.
//! - The end of a run is published only when its whole log can be read.

mod config;
mod ipc;
mod launch;
mod output_copier;
mod rotate;
pub mod sdl;
pub mod shim;
mod status_publisher;
mod store;
mod supervisor;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_core::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

pub use self::config::LocalConfig;
use self::sdl::Sdl;
use self::status_publisher::{StatusPublisher, creating};
use self::store::{Slot, Store};
pub use self::supervisor::Backoff;
use self::supervisor::{StopSignal, supervise};
use self::writer::{NO_LOSS, UNKNOWN_LOSS};
use super::log_files::{self, FollowMode, LogFiles};
use super::{Error, Platform, RestartRequest, Tail, TailRequest};
use crate::model::id::{LeaseId, Replica};
use crate::model::limits::RUNS_MAX;
use crate::model::view::{LeaseView, ReplicaView, ServiceView};
use crate::sys::dir_watch::Notifier;

/// Runs the services of some leases. Dropping it kills them; [`LocalPlatform::stop`] is graceful.
#[derive(Debug)]
pub struct LocalPlatform {
    leases: HashMap<LeaseId, Lease>,
    notifier: Notifier,
    stop: watch::Sender<Option<Duration>>,
    tasks: TaskTracker,
    /// One per replica.
    _supervisors: Vec<AbortOnDropHandle<()>>,
    _store: Store,
}

#[derive(Debug)]
struct Lease {
    view: Arc<watch::Sender<Arc<LeaseView>>>,
    replicas: HashMap<Replica, ReplicaHandle>,
}

#[derive(Debug)]
struct ReplicaHandle {
    /// Directory of its logs.
    logs: PathBuf,
    status: Arc<StatusPublisher>,
    /// The newest run that a restart was requested for.
    restart: watch::Sender<Option<u32>>,
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
            let (lease, slots) = Lease::open(&mut store, id, sdl)?;
            for (replica, slot) in slots {
                let Some((service, handle)) =
                    sdl.services.get(&replica.service).zip(lease.replicas.get(&replica))
                else {
                    continue;
                };
                let stop = StopSignal::new(stopped.clone(), handle.restart.subscribe(), config.stop_grace);
                let lost = if slot.end_unknown { UNKNOWN_LOSS } else { NO_LOSS };
                let launcher = config.launcher(config.spec(id, service, &slot.home)?, slot.logs, lost)?;
                let status = Arc::clone(&handle.status);
                supervised.push(supervise(status, launcher, slot.next, config.backoff, stop));
            }
            if leases.insert(id.clone(), lease).is_some() {
                return Err(Error::Broken(format!("lease {id} is given twice")));
            }
        }
        let tasks = TaskTracker::new();
        let supervisors = supervised.into_iter().map(|task| AbortOnDropHandle::new(tasks.spawn(task)));
        Ok(Arc::new(Self {
            _supervisors: supervisors.collect(),
            leases,
            notifier,
            stop,
            tasks,
            _store: store,
        }))
    }

    /// Stops all services: SIGTERM to the first process of each, and SIGKILL to the rest when that exits or
    /// after `grace`. Resolves when no process is left and all logs are complete. May be called again with a
    /// shorter grace period. Cancel safe: services stop nevertheless.
    pub async fn stop(&self, grace: Duration) {
        self.stop.send_replace(Some(grace));
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn lease(&self, id: &LeaseId) -> Result<&Lease, Error> {
        self.leases.get(id).ok_or_else(|| Error::NotFound(format!("lease {id}")))
    }

    async fn open(&self, request: TailRequest) -> Result<Tail, Error> {
        let TailRequest { lease, replica, instance, from, follow } = request;
        let not_found = || Error::NotFound(format!("log of {replica}, run {instance}"));
        let lease = self.lease(&lease)?;
        let handle = lease.replicas.get(&replica).ok_or_else(not_found)?;
        let is_readable =
            lease.view.borrow().replica(&replica).is_some_and(|slot| slot.run(&instance).is_some());
        if !is_readable {
            return Err(not_found());
        }
        let files = LogFiles { dir: handle.logs.clone(), restarts: instance.parts().2 };
        let completed = handle.status.log_completed(&instance);
        // Without `follow`, too, the unfinished last line of an ended run is complete.
        let follow =
            if follow || completed.is_cancelled() { FollowMode::UntilEnd(completed) } else { FollowMode::No };
        log_files::open(&self.notifier, files, from, follow).await
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
        let number = instance.as_ref().map(|instance| instance.parts().2);
        handle.restart.send_if_modified(|newest| {
            let is_new = *newest < number;
            *newest = number.max(*newest);
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
}

// === impl Lease ===

impl Lease {
    /// Loads the slots of all replicas. The view starts with the runs of earlier gateways.
    fn open(store: &mut Store, id: &LeaseId, sdl: &Sdl) -> Result<(Self, Vec<(Replica, Slot)>), Error> {
        let mut slots = Vec::new();
        let mut view = LeaseView::default();
        for (name, service) in &sdl.services {
            let mut replicas = BTreeMap::new();
            for index in 0..service.count {
                let replica = Replica { service: name.clone(), index };
                let slot = store.slot(id, &replica)?;
                let surplus = slot.runs.len().saturating_sub(RUNS_MAX);
                let shown = ReplicaView {
                    runs: slot.runs.iter().skip(surplus).cloned().collect(),
                    state: creating(),
                    restarts: slot.next,
                    ..ReplicaView::default()
                };
                replicas.insert(index, shown);
                slots.push((replica, slot));
            }
            let count = service.count;
            view.services.insert(name.clone(), ServiceView { count, replicas, ..ServiceView::default() });
        }
        let view = Arc::new(watch::Sender::new(Arc::new(view)));
        let handles = slots.iter().map(|(replica, slot)| {
            let status = Arc::new(StatusPublisher::new(Arc::clone(&view), replica.clone(), slot.uid.clone()));
            let (logs, restart) = (slot.logs.clone(), watch::Sender::new(None));
            (replica.clone(), ReplicaHandle { logs, status, restart })
        });
        let replicas = handles.collect();
        Ok((Self { view, replicas }, slots))
    }
}
