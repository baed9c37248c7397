//! Reads the services of another gateway on this machine: its views and logs, without supervision.
//!
//! The other gateway ([`LocalPlatform`](super::LocalPlatform)) owns the data directory. It stores its views
//! there (`view_file`); the logs are the files that its own followers read, so lines and
//! positions are the same. While the other gateway does not run, views are stale.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use futures_core::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::open_log;
use super::store::{LOCK_FILE, PODS_DIR, pod_name};
use super::view_file::{EXTENSION, ReadError, StoredLease, VIEWS_DIR};
use crate::model::id::{Instance, LeaseId, Replica};
use crate::model::time::LogTime;
use crate::model::view::LeaseView;
use crate::platform::cri::path::PodDir;
use crate::platform::{Error, Platform, RestartRequest, Tail, TailRequest};
use crate::sys::dir_watch::{DirWatch, Notifier};

/// Interval of checks whether the other gateway runs. A status is then stale for at most this long without
/// saying so.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Most leases that are read. A gateway gets its leases as arguments, so that more are not expected.
const LEASES_MAX: usize = 10_000;

/// Serves the leases of another gateway's data directory. Dropping it ends nothing but its reads.
#[derive(Debug)]
pub struct AttachedPlatform {
    data_dir: PathBuf,
    notifier: Notifier,
    leases: Arc<Leases>,
    _reader: AbortOnDropHandle<()>,
}

/// The leases, shared with the task that reads the views.
#[derive(Debug, Default)]
struct Leases {
    by_id: RwLock<HashMap<LeaseId, Arc<Lease>>>,
    /// Whether the other gateway runs.
    is_live: AtomicBool,
}

#[derive(Debug)]
struct Lease {
    view: watch::Sender<Arc<LeaseView>>,
    kept_files: usize,
    /// Cancelled when the log of the run is complete. Only of runs that had not ended when they were read.
    completed: Mutex<HashMap<Instance, CancellationToken>>,
}

/// Reads the files of the data directory again and again.
struct ViewReader {
    data_dir: PathBuf,
    leases: Arc<Leases>,
    /// What was read of each file, and the newest lease that a valid one had.
    known: HashMap<PathBuf, (Version, Option<LeaseId>)>,
}

/// Tells two contents of a file apart: each is written to a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    inode: u64,
    modified: Option<SystemTime>,
}

/// The state of the data directory.
struct Scan {
    /// The files that have changed, or why their content is invalid.
    changed: Vec<(PathBuf, Version, Result<StoredLease, serde_json::Error>)>,
    paths: HashSet<PathBuf>,
    is_live: bool,
}

// === impl AttachedPlatform ===

impl AttachedPlatform {
    /// Reads the views in `data_dir` and follows them. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// If it is not the data directory of a local gateway, or cannot be read. It is no error if that gateway
    /// does not run at present.
    pub async fn start(data_dir: &Path, notifier: Notifier) -> Result<Arc<Self>, Error> {
        let views = data_dir.join(VIEWS_DIR);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Error::Unavailable(format!(
                "{} is not the data directory of a gateway with --platform local; start that gateway first",
                data_dir.display()
            )),
            _ => Error::io(format!("data directory {}", data_dir.display()), error),
        };
        // Watched before the first scan, so that no change is missed.
        let changes = notifier.watch(&views);
        let leases = Arc::<Leases>::default();
        let mut reader =
            ViewReader { data_dir: data_dir.to_owned(), leases: Arc::clone(&leases), known: HashMap::new() };
        reader.read().await.map_err(failed)?;
        let task = AbortOnDropHandle::new(TaskTracker::new().spawn(reader.run(changes)));
        Ok(Arc::new(Self { data_dir: data_dir.to_owned(), notifier, leases, _reader: task }))
    }

    fn lease(&self, id: &LeaseId) -> Result<Arc<Lease>, Error> {
        let found = self.leases.by_id.read().get(id).cloned();
        found.ok_or_else(|| Error::NotFound(format!("lease {id}")))
    }

    async fn open(&self, request: TailRequest) -> Result<Tail, Error> {
        let TailRequest { lease: id, replica, instance, .. } = &request;
        let lease = self.lease(id)?;
        let completed = lease.log_completed(replica, instance);
        let completed =
            completed.ok_or_else(|| Error::NotFound(format!("log of {replica}, run {instance}")))?;
        let (namespace, pod) = (id.namespace(), pod_name(replica));
        let (uid, container, _) = instance.parts();
        let dir = PodDir { namespace: &namespace, pod: &pod, uid }
            .container(&self.data_dir.join(PODS_DIR), container);
        open_log(&self.notifier, dir, lease.kept_files, &request, completed).await
    }

    fn reject_restart(&self, request: &RestartRequest) -> Result<(), Error> {
        let RestartRequest { lease, replica, .. } = request;
        let lease = self.lease(lease)?;
        if lease.view.borrow().replica(replica).is_none() {
            return Err(Error::NotFound(format!("replica {replica}")));
        }
        Err(Error::ReadOnly)
    }
}

impl Platform for AttachedPlatform {
    fn name(&self) -> &'static str {
        "local"
    }

    fn is_reachable(&self) -> bool {
        self.leases.is_live.load(Ordering::Relaxed)
    }

    fn watch(&self, lease: &LeaseId) -> BoxFuture<'_, Result<watch::Receiver<Arc<LeaseView>>, Error>> {
        let receiver = self.lease(lease).map(|lease| lease.view.subscribe());
        Box::pin(std::future::ready(receiver))
    }

    fn tail(&self, request: TailRequest) -> BoxFuture<'_, Result<Tail, Error>> {
        Box::pin(self.open(request))
    }

    /// Restarts nothing: the other gateway supervises the services.
    fn restart(&self, request: RestartRequest) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(std::future::ready(self.reject_restart(&request)))
    }
}

// === impl Leases ===

impl Leases {
    /// Takes over a view that was read.
    fn update(&self, id: &LeaseId, view: LeaseView, kept_files: usize) {
        let known = self.by_id.read().get(id).cloned();
        if let Some(lease) = known.filter(|lease| lease.kept_files == kept_files) {
            return lease.update(view);
        }
        let mut by_id = self.by_id.write();
        if by_id.len() >= LEASES_MAX && !by_id.contains_key(id) {
            drop(by_id);
            tracing::warn!(lease = %id, limit = LEASES_MAX, "data directory has too many leases; leaving one out");
            return;
        }
        let lease =
            Lease { view: watch::Sender::new(Arc::new(view)), kept_files, completed: Mutex::default() };
        let replaced = by_id.insert(id.clone(), Arc::new(lease));
        drop(by_id);
        if let Some(replaced) = replaced {
            replaced.end();
        }
    }

    /// Removes a lease that the other gateway no longer has.
    fn remove(&self, id: &LeaseId) {
        let removed = self.by_id.write().remove(id);
        if let Some(lease) = removed {
            lease.end();
        }
    }

    /// Stores whether the other gateway runs.
    fn set_live(&self, is_live: bool) {
        self.is_live.store(is_live, Ordering::Relaxed);
        let stale_since = (!is_live).then(LogTime::now);
        for lease in self.by_id.read().values() {
            lease.view.send_if_modified(|view| {
                let changes = view.stale_since.is_some() == is_live;
                if changes {
                    Arc::make_mut(view).stale_since = stale_since;
                }
                changes
            });
        }
    }
}

// === impl Lease ===

impl Lease {
    fn update(&self, view: LeaseView) {
        self.view.send_if_modified(|known| {
            let changes = **known != view;
            *known = Arc::new(view);
            changes
        });
        self.complete();
    }

    /// The lease is no longer there.
    fn end(&self) {
        self.view.send_modify(|view| Arc::make_mut(view).ended = true);
        self.complete();
    }

    /// Reports the logs that are complete since the last call.
    fn complete(&self) {
        let mut waiting = self.completed.lock();
        let view = Arc::clone(&self.view.borrow());
        let ended: Vec<_> = waiting.extract_if(|run, _| view.ended || !is_growing(&view, run)).collect();
        drop(waiting);
        // Without the lock, because that wakes the readers.
        for (_, completed) in ended {
            completed.cancel();
        }
    }

    /// Returns a token that is cancelled when the log of `instance` is complete. `None` if the view does not
    /// have the run.
    fn log_completed(&self, replica: &Replica, instance: &Instance) -> Option<CancellationToken> {
        // Locked first: a view that comes meanwhile then finds the token.
        let mut waiting = self.completed.lock();
        let view = Arc::clone(&self.view.borrow());
        let run = view.replica(replica)?.run(instance)?;
        if run.end.is_none() && !view.ended {
            return Some(waiting.entry(instance.clone()).or_default().clone());
        }
        let completed = CancellationToken::new();
        completed.cancel();
        Some(completed)
    }
}

/// Whether a run is in the view, and has not ended.
fn is_growing(view: &LeaseView, instance: &Instance) -> bool {
    let replicas = view.services.values().flat_map(|service| service.replicas.values());
    let mut runs = replicas.filter_map(|replica| replica.run(instance));
    runs.any(|run| run.end.is_none())
}

// === impl ViewReader ===

impl ViewReader {
    async fn run(mut self, mut changes: DirWatch) {
        let mut failures: u32 = 0;
        loop {
            _ = tokio::time::timeout(CHECK_INTERVAL, changes.changed()).await;
            match self.read().await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures = failures.saturating_add(1);
                    if failures.is_power_of_two() {
                        tracing::warn!(%error, failures, dir = %self.data_dir.display(), "failed to read views of leases");
                    }
                    self.leases.set_live(false);
                }
            }
        }
    }

    /// Reads the files that have changed.
    async fn read(&mut self) -> io::Result<()> {
        let (dir, versions) = (self.data_dir.clone(), self.versions());
        let scan = tokio::task::spawn_blocking(move || scan(&dir, &versions));
        let Scan { changed, paths, is_live } = scan.await.map_err(io::Error::other)??;
        for (path, version, stored) in changed {
            let read = match stored {
                Ok(stored) => {
                    let valid = stored.lease.parse::<LeaseId>().ok().zip(stored.view().ok());
                    valid.map(|(id, view)| {
                        self.leases.update(&id, view, stored.kept_files);
                        id
                    })
                }
                Err(error) => {
                    tracing::debug!(path = %path.display(), error = &error as &dyn std::error::Error, "view of a lease is not understood");
                    None
                }
            };
            if read.is_none() {
                tracing::warn!(path = %path.display(), "view of a lease is invalid: the gateways have different versions");
            }
            // The lease of an invalid file still ends with the file.
            let id = read.or_else(|| self.known.remove(&path)?.1);
            self.known.insert(path, (version, id));
        }
        for (_, (_, id)) in self.known.extract_if(|path, _| !paths.contains(path)) {
            if let Some(id) = id {
                self.leases.remove(&id);
            }
        }
        self.leases.set_live(is_live);
        Ok(())
    }

    fn versions(&self) -> HashMap<PathBuf, Version> {
        self.known.iter().map(|(path, (version, _))| (path.clone(), *version)).collect()
    }
}

/// Reads the files whose version is not among `known`. Blocks on the file system.
fn scan(data_dir: &Path, known: &HashMap<PathBuf, Version>) -> io::Result<Scan> {
    use std::os::unix::fs::MetadataExt as _;

    let (mut changed, mut paths) = (Vec::new(), HashSet::new());
    for entry in fs::read_dir(data_dir.join(VIEWS_DIR))?.take(LEASES_MAX) {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != EXTENSION) {
            continue;
        }
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let version = Version { inode: metadata.ino(), modified: metadata.modified().ok() };
        if known.get(&path) != Some(&version) {
            match StoredLease::read(&path) {
                Ok(stored) => changed.push((path.clone(), version, Ok(stored))),
                Err(ReadError::Read(error)) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(ReadError::Read(error)) => return Err(error),
                // The other leases are served.
                Err(ReadError::Content(error)) => changed.push((path.clone(), version, Err(error))),
            }
        }
        paths.insert(path);
    }
    Ok(Scan { changed, paths, is_live: is_locked(&data_dir.join(LOCK_FILE))? })
}

/// Whether a gateway holds the lock of its data directory. A gateway that starts at this moment tries again.
fn is_locked(lock: &Path) -> io::Result<bool> {
    match File::open(lock)?.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}
