//! The local platform: a tiny kubelet for one machine (Linux).
//!
//! It reads Akash SDLs and runs each service's replicas as processes of its own user: they are restarted when they end, and
//! their output is kept as Kubernetes keeps that of containers, in CRI format under the layout of `/var/log/pods`, rotated, and
//! read back by the same reader. Services share the machine, its file system and its network: nothing is isolated.
//!
//! What it promises:
//! - every process dies with the platform, with all its descendants, however the platform ends ([`shim`] says how);
//! - a service never waits because nobody reads its log or because the disk is full;
//! - instances keep their names, and their logs stay readable, across restarts of the gateway;
//! - the end of a run is told only when all of its log can be read.

mod backoff;
mod board;
mod children;
mod config;
mod launch;
mod process;
mod pump;
mod rotate;
pub mod sdl;
pub mod shim;
mod store;
mod supervisor;
mod wire;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_core::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

pub use self::backoff::Backoff;
use self::board::Board;
pub use self::config::{KEPT_RUNS, LocalConfig, ROTATE_FILES, ROTATE_MAX_BYTES};
use self::sdl::Sdl;
use self::store::{Slot, Store};
use self::supervisor::supervise;
use super::tail::{self, Follow, LogFiles};
use super::{Error, Platform, Tail, TailRequest};
use crate::host::notify::Notifier;
use crate::model::id::{LeaseId, Replica};
use crate::model::limits::RUNS_MAX;
use crate::model::view::{LeaseView, ReplicaState, ReplicaView, ServiceView};

/// Runs the services of some leases. Dropping it ends them at once, as [`LocalPlatform::stop`] does politely.
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
    replicas: HashMap<Replica, Logs>,
}

/// Where the logs of a replica are, and who knows when they end.
#[derive(Debug)]
struct Logs {
    dir: PathBuf,
    board: Arc<Board>,
}

// === impl LocalPlatform ===

impl LocalPlatform {
    /// Takes possession of the data directory and starts everything. Must be called within a Tokio runtime; reads and makes
    /// directories, so at the start of a program.
    ///
    /// # Errors
    /// If the data directory is used by another gateway or cannot be used, or a lease is given twice. Nothing runs then. That a
    /// service cannot be started is no error: its replicas say so.
    pub fn start(config: LocalConfig, notifier: Notifier) -> Result<Arc<Self>, Error> {
        let store = Store::open(&config.data_dir)?;
        let (stop, asked) = watch::channel(None);
        let mut leases = HashMap::new();
        let mut lives = Vec::new();
        for (id, sdl) in &config.leases {
            let (lease, slots) = Lease::open(&store, id, sdl)?;
            for (replica, slot) in slots {
                let Some((service, logs)) =
                    sdl.services.get(&replica.service).zip(lease.replicas.get(&replica))
                else {
                    continue;
                };
                let launcher = config.launcher(config.spec(id, service, &slot.home)?, slot.logs)?;
                lives.push(supervise(
                    Arc::clone(&logs.board),
                    launcher,
                    slot.next,
                    config.backoff,
                    asked.clone(),
                ));
            }
            if leases.insert(id.clone(), lease).is_some() {
                return Err(Error::Broken(format!("lease {id} is given twice")));
            }
        }
        let tasks = TaskTracker::new();
        let supervisors = lives.into_iter().map(|life| AbortOnDropHandle::new(tasks.spawn(life)));
        Ok(Arc::new(Self {
            _supervisors: supervisors.collect(),
            leases,
            notifier,
            stop,
            tasks,
            _store: store,
        }))
    }

    /// Ends all services, SIGTERM first, and SIGKILL after `grace`. Resolves when no process is left and all logs are written. May
    /// be called again, with less grace; goes on if it is cancelled.
    pub async fn stop(&self, grace: Duration) {
        self.stop.send_replace(Some(grace));
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The lease `id`, if it runs here.
    fn lease(&self, id: &LeaseId) -> Result<&Lease, Error> {
        self.leases.get(id).ok_or_else(|| Error::NotFound(format!("lease {id}")))
    }

    async fn open(&self, request: TailRequest) -> Result<Tail, Error> {
        let TailRequest { lease, replica, instance, from, follow } = request;
        let gone = || Error::NotFound(format!("log of {replica}, run {instance}"));
        let lease = self.lease(&lease)?;
        let logs = lease.replicas.get(&replica).ok_or_else(gone)?;
        let known = lease.view.borrow().replica(&replica).is_some_and(|slot| slot.run(&instance).is_some());
        if !known {
            return Err(gone());
        }
        let files = LogFiles { dir: logs.dir.clone(), restarts: instance.parts().2 };
        let written = logs.board.written(&instance);
        // Of a run that has ended the unfinished last line is to be had as well.
        let follow = if follow || written.is_cancelled() { Follow::UntilEnd(written) } else { Follow::No };
        tail::open(&self.notifier, files, from, follow).await
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
}

// === impl Lease ===

impl Lease {
    /// Finds or makes the slots of every replica, and shows them with the runs of earlier gateways.
    fn open(store: &Store, id: &LeaseId, sdl: &Sdl) -> Result<(Self, Vec<(Replica, Slot)>), Error> {
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
                    state: ReplicaState::Waiting {
                        reason: "ContainerCreating".to_owned(),
                        message: String::new(),
                    },
                    ready: false,
                    restarts: slot.next,
                };
                replicas.insert(index, shown);
                slots.push((replica, slot));
            }
            let count = service.count;
            view.services.insert(name.clone(), ServiceView { count, replicas });
        }
        let view = Arc::new(watch::Sender::new(Arc::new(view)));
        let logs = slots.iter().map(|(replica, slot)| {
            let board = Board::new(Arc::clone(&view), replica.clone(), slot.uid.clone());
            let dir = slot.logs.clone();
            (replica.clone(), Logs { dir, board: Arc::new(board) })
        });
        let replicas = logs.collect();
        Ok((Self { view, replicas }, slots))
    }
}
