//! The views of leases as files, for gateways that read the data directory of another one
//! ([`AttachedPlatform`](super::attached::AttachedPlatform)).
//!
//! Both gateways are of the same version, so the format may change with any version. A file is replaced as a
//! whole: a reader never sees a part of it.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use tokio::sync::{Mutex, watch};

use super::store::make_dir;
use crate::model::id::{IdError, LeaseId};
use crate::model::time::LogTime;
use crate::model::view::{LeaseView, ReplicaState, ReplicaView, Run, RunEnd, ServiceView};
use crate::platform::Error;
use crate::sys::read::read_bounded;

/// Directory of the files, within the data directory.
pub(super) const VIEWS_DIR: &str = "views";

/// End of a file's name, after the lease's namespace.
pub(super) const EXTENSION: &str = "json";

/// Most bytes of a file. A replica with the most runs that a view has takes a few KiB.
const FILE_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// The file of one lease.
#[derive(Debug)]
pub(super) struct ViewFile {
    path: PathBuf,
    lease: LeaseId,
    /// Number of files that a log has at most.
    kept_files: usize,
    /// Held during a write, so that the newest view is written last.
    writing: Mutex<()>,
}

/// The content of a file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredLease {
    pub(super) lease: String,
    pub(super) kept_files: usize,
    services: BTreeMap<String, StoredService>,
}

/// Why a file has no lease.
#[derive(Debug)]
pub(super) enum ReadError {
    /// It cannot be read, or is too large.
    Read(io::Error),
    /// Another version wrote it, or no gateway.
    Content(serde_json::Error),
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StoredService {
    count: u32,
    replicas: BTreeMap<u32, StoredReplica>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StoredReplica {
    runs: Vec<StoredRun>,
    state: StoredState,
    ready: bool,
    restarts: u32,
    forgotten: Option<StoredEnd>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StoredRun {
    instance: String,
    /// Nanoseconds since the Unix epoch, as all times here.
    started: i64,
    end: Option<StoredEnd>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StoredEnd {
    time: i64,
    exit_code: Option<i32>,
    signal: Option<i32>,
    reason: String,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum StoredState {
    Running,
    Waiting { reason: String, message: String },
    Terminated,
    Unknown,
}

// === impl ViewFile ===

impl ViewFile {
    /// Describes the file of `lease` below `data_dir`. Writes nothing.
    pub(super) fn new(data_dir: &Path, lease: LeaseId, kept_files: usize) -> Self {
        let path = data_dir.join(VIEWS_DIR).join(lease.namespace()).with_extension(EXTENSION);
        Self { path, lease, kept_files, writing: Mutex::new(()) }
    }

    /// Writes the newest view. Once begun, the write is completed even if the future is dropped.
    ///
    /// # Errors
    /// If the file cannot be written. The old one is left as it was.
    pub(super) async fn write(&self, view: &watch::Sender<Arc<LeaseView>>) -> Result<(), Error> {
        let _writing = self.writing.lock().await;
        let stored = StoredLease::new(&self.lease, self.kept_files, &view.borrow());
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || replace(&path, &stored)).await;
        let written = written.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
        written.map_err(|error| Error::io(format!("view of a lease, {}", self.path.display()), error))
    }
}

/// Creates the directory of the files, and removes those of other leases. Blocks on the file system.
///
/// # Errors
/// If the directory cannot be written.
pub(super) fn prepare<'a>(data_dir: &Path, files: impl Iterator<Item = &'a ViewFile>) -> io::Result<()> {
    let dir = data_dir.join(VIEWS_DIR);
    make_dir(&dir)?;
    let kept: HashSet<&Path> = files.map(|file| file.path.as_path()).collect();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if !kept.contains(path.as_path()) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn replace(path: &Path, stored: &StoredLease) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = NamedTempFile::new_in(dir)?;
    file.write_all(&serde_json::to_vec(stored)?)?;
    file.persist(path)?;
    Ok(())
}

// === impl StoredLease ===

impl StoredLease {
    fn new(lease: &LeaseId, kept_files: usize, view: &LeaseView) -> Self {
        let services = view.services.iter().map(|(name, service)| {
            let replicas = service.replicas.iter().map(|(index, replica)| (*index, replica.into()));
            let service = StoredService { count: service.count, replicas: replicas.collect() };
            (name.as_str().to_owned(), service)
        });
        Self { lease: lease.to_string(), kept_files, services: services.collect() }
    }

    /// Reads a file. Blocks on the file system.
    ///
    /// # Errors
    /// If it cannot be read, or was written by another version.
    pub(super) fn read(path: &Path) -> Result<Self, ReadError> {
        let bytes = read_bounded(path, FILE_MAX_BYTES).map_err(ReadError::Read)?;
        serde_json::from_slice(&bytes).map_err(ReadError::Content)
    }

    /// Returns the view.
    ///
    /// # Errors
    /// If a name in it is invalid.
    pub(super) fn view(&self) -> Result<LeaseView, IdError> {
        let mut view = LeaseView::default();
        for (name, stored) in &self.services {
            let mut service = ServiceView { count: stored.count, ..ServiceView::default() };
            for (index, replica) in &stored.replicas {
                service.replicas.insert(*index, replica.view()?);
            }
            view.services.insert(name.parse()?, service);
        }
        Ok(view)
    }
}

// === impl StoredReplica ===

impl From<&ReplicaView> for StoredReplica {
    fn from(view: &ReplicaView) -> Self {
        let runs = view.runs.iter().map(|run| StoredRun {
            instance: run.instance.to_string(),
            started: run.started.as_nanos(),
            end: run.end.as_ref().map(Into::into),
        });
        let state = match &view.state {
            ReplicaState::Running => StoredState::Running,
            ReplicaState::Waiting { reason, message } => {
                StoredState::Waiting { reason: reason.clone(), message: message.clone() }
            }
            ReplicaState::Terminated => StoredState::Terminated,
            ReplicaState::Unknown => StoredState::Unknown,
        };
        Self {
            runs: runs.collect(),
            state,
            ready: view.ready,
            restarts: view.restarts,
            forgotten: view.forgotten.as_ref().map(Into::into),
        }
    }
}

impl StoredReplica {
    fn view(&self) -> Result<ReplicaView, IdError> {
        let runs = self.runs.iter().map(|run| {
            Ok(Run {
                instance: run.instance.parse()?,
                started: LogTime::from_nanos(run.started),
                end: run.end.as_ref().map(Into::into),
                log_is_gone: false,
                later_unknown: false,
            })
        });
        let state = match &self.state {
            StoredState::Running => ReplicaState::Running,
            StoredState::Waiting { reason, message } => {
                ReplicaState::Waiting { reason: reason.clone(), message: message.clone() }
            }
            StoredState::Terminated => ReplicaState::Terminated,
            StoredState::Unknown => ReplicaState::Unknown,
        };
        Ok(ReplicaView {
            runs: runs.collect::<Result<_, IdError>>()?,
            state,
            ready: self.ready,
            restarts: self.restarts,
            forgotten: self.forgotten.as_ref().map(Into::into),
        })
    }
}

impl From<&RunEnd> for StoredEnd {
    fn from(end: &RunEnd) -> Self {
        let RunEnd { time, exit_code, signal, reason } = end.clone();
        Self { time: time.as_nanos(), exit_code, signal, reason }
    }
}

impl From<&StoredEnd> for RunEnd {
    fn from(end: &StoredEnd) -> Self {
        Self {
            time: LogTime::from_nanos(end.time),
            exit_code: end.exit_code,
            signal: end.signal,
            reason: end.reason.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{Address, Instance};

    fn lease(dseq: u64) -> LeaseId {
        let [owner, provider] = [1, 2].map(|n| Address::from_account([n; 20]));
        LeaseId::new(owner.as_str(), dseq, 1, 1, provider.as_str()).unwrap()
    }

    fn view() -> LeaseView {
        let end = |code| RunEnd {
            time: LogTime::from_nanos(9),
            exit_code: Some(code),
            signal: None,
            reason: "Error".to_owned(),
        };
        let run = |number: u32, end| Run {
            instance: Instance::new("uid", "web", number).unwrap(),
            started: LogTime::from_nanos(7 + i64::from(number)),
            end,
            log_is_gone: false,
            later_unknown: false,
        };
        let waiting =
            ReplicaState::Waiting { reason: "CrashLoopBackOff".to_owned(), message: "1 s".to_owned() };
        let replicas = [
            ReplicaView {
                runs: vec![run(2, None)],
                state: ReplicaState::Running,
                ready: true,
                restarts: 2,
                forgotten: Some(end(1)),
            },
            ReplicaView {
                runs: vec![run(0, Some(end(3)))],
                state: waiting,
                restarts: 1,
                ..ReplicaView::default()
            },
            ReplicaView { state: ReplicaState::Terminated, ..ReplicaView::default() },
        ];
        let replicas = (0..).zip(replicas).collect();
        let service = ServiceView { count: 3, replicas, ..ServiceView::default() };
        LeaseView { services: [("web".parse().unwrap(), service)].into(), ..LeaseView::default() }
    }

    #[tokio::test]
    async fn view_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = ViewFile::new(dir.path(), lease(7), 5);
        prepare(dir.path(), [&file].into_iter()).unwrap();
        let sender = watch::Sender::new(Arc::new(LeaseView::default()));
        file.write(&sender).await.unwrap();
        assert_eq!(StoredLease::read(&file.path).unwrap().view().unwrap(), LeaseView::default());
        sender.send_replace(Arc::new(view()));
        file.write(&sender).await.unwrap();
        let stored = StoredLease::read(&file.path).unwrap();
        assert_eq!((stored.lease.parse(), stored.kept_files), (Ok(lease(7)), 5));
        assert_eq!(stored.view().unwrap(), view());
    }

    #[test]
    fn files_of_other_leases_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second] = [7, 8].map(|dseq| ViewFile::new(dir.path(), lease(dseq), 5));
        prepare(dir.path(), [&first, &second].into_iter()).unwrap();
        for file in [&first, &second] {
            fs::write(&file.path, "{}").unwrap();
        }
        prepare(dir.path(), [&second].into_iter()).unwrap();
        assert!(!first.path.exists() && second.path.exists());
    }

    #[test]
    fn unknown_content_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for content in ["", "{}", "{\"lease\":\"\",\"kept_files\":-1,\"services\":{}}"] {
            fs::write(file.path(), content).unwrap();
            assert!(matches!(StoredLease::read(file.path()), Err(ReadError::Content(_))), "{content}");
        }
    }
}
