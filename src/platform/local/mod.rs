//! The local platform: a tiny kubelet for one machine (Linux).
//!
//! It reads Akash SDLs and runs each service's replicas as processes of its own user: they are restarted when they end, and
//! their output is kept as Kubernetes keeps that of containers, in CRI format under the layout of `/var/log/pods`, rotated, and
//! read back by the same reader. Services share the machine, its file system and its network: nothing is isolated.
//!
//! What it promises:
//! - every process dies with the platform, with all its descendants, however the platform ends ([`shim`] says how);
//! - a service never waits because nobody reads its log or because the disk is full;
//! - a restart ends one run and begins the next at once, whatever the back-off;
//! - instances keep their names, and their logs stay readable, across restarts of the gateway;
//! - the end of a run is told only when all of its log can be read.

mod backoff;
mod children;
mod config;
mod ipc;
mod launch;
mod output_copier;
mod process;
mod rotate;
pub mod sdl;
pub mod shim;
mod status_publisher;
mod stop_signal;
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

pub use self::backoff::Backoff;
pub use self::config::{KEPT_RUNS, LocalConfig, ROTATE_FILES, ROTATE_MAX_BYTES, STOP_GRACE};
use self::sdl::Sdl;
use self::status_publisher::{StatusPublisher, creating};
use self::stop_signal::StopSignal;
use self::store::{Slot, Store};
use self::supervisor::supervise;
use self::writer::{END_UNKNOWN, NOTHING};
use super::tail::{self, FollowMode, LogFiles};
use super::{Error, Platform, RestartRequest, Tail, TailRequest};
use crate::model::id::{LeaseId, Replica};
use crate::model::limits::RUNS_MAX;
use crate::model::view::{LeaseView, ReplicaView, ServiceView};
use crate::sys::notify::Notifier;

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
    replicas: HashMap<Replica, Supervised>,
}

/// One replica, beside what the view tells.
#[derive(Debug)]
struct Supervised {
    /// Where its logs are.
    logs: PathBuf,
    /// Who knows when they end.
    board: Arc<StatusPublisher>,
    /// The number of the newest run that was asked to make way for the next.
    restart: watch::Sender<Option<u32>>,
}

// === impl LocalPlatform ===

impl LocalPlatform {
    /// Takes possession of the data directory and starts everything. Must be called within a Tokio runtime, which then runs the services
    /// and copies their output. Reads and makes directories, so at the start of a program.
    ///
    /// # Errors
    /// If the data directory is used by another gateway or cannot be used, or a lease is given twice. Nothing runs then. That a
    /// service cannot be started is no error: its replicas say so.
    pub fn start(config: LocalConfig, notifier: Notifier) -> Result<Arc<Self>, Error> {
        let mut store = Store::open(&config.data_dir)?;
        let (stop, asked) = watch::channel(None);
        let mut leases = HashMap::new();
        let mut lives = Vec::new();
        for (id, sdl) in &config.leases {
            let (lease, slots) = Lease::open(&mut store, id, sdl)?;
            for (replica, slot) in slots {
                let Some((service, known)) =
                    sdl.services.get(&replica.service).zip(lease.replicas.get(&replica))
                else {
                    continue;
                };
                let stop = StopSignal::new(asked.clone(), known.restart.subscribe(), config.stop_grace);
                let lost = if slot.end_unknown { END_UNKNOWN } else { NOTHING };
                let launcher = config.launcher(config.spec(id, service, &slot.home)?, slot.logs, lost)?;
                lives.push(supervise(Arc::clone(&known.board), launcher, slot.next, config.backoff, stop));
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

    /// Ends all services: SIGTERM to the first process of each, and SIGKILL to the rest when that exits or after
    /// `grace`. Resolves when no process is left and all logs are written. May be called again, with less grace;
    /// continues if it is cancelled.
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
        let known = lease.replicas.get(&replica).ok_or_else(gone)?;
        let is_readable =
            lease.view.borrow().replica(&replica).is_some_and(|slot| slot.run(&instance).is_some());
        if !is_readable {
            return Err(gone());
        }
        let files = LogFiles { dir: known.logs.clone(), restarts: instance.parts().2 };
        let written = known.board.written(&instance);
        // Of a run that has ended the unfinished last line is to be had as well.
        let follow =
            if follow || written.is_cancelled() { FollowMode::UntilEnd(written) } else { FollowMode::No };
        tail::open(&self.notifier, files, from, follow).await
    }

    /// Asks a run to make way for the next one. If that one is about to begin anyway, there is nothing to ask for.
    fn make_way(&self, request: &RestartRequest) -> Result<(), Error> {
        let RestartRequest { lease, replica, instance } = request;
        let lease = self.lease(lease)?;
        let known = lease.replicas.get(replica);
        let known = known.ok_or_else(|| Error::NotFound(format!("replica {replica}")))?;
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
        known.restart.send_if_modified(|newest| {
            let is_news = *newest < number;
            *newest = number.max(*newest);
            is_news
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
        Box::pin(std::future::ready(self.make_way(&request)))
    }
}

// === impl Lease ===

impl Lease {
    /// Finds or makes the slots of every replica, and shows them with the runs of earlier gateways.
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
        let supervised = slots.iter().map(|(replica, slot)| {
            let board = Arc::new(StatusPublisher::new(Arc::clone(&view), replica.clone(), slot.uid.clone()));
            let (logs, restart) = (slot.logs.clone(), watch::Sender::new(None));
            (replica.clone(), Supervised { logs, board, restart })
        });
        let replicas = supervised.collect();
        Ok((Self { view, replicas }, slots))
    }
}
