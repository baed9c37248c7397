//! The data directory: the logs, home and identity of each replica, which outlive a gateway.
//!
//! ```text
//! DATA/lock                                              locked by the gateway that uses the directory
//! DATA/pods/NAMESPACE_SERVICE-INDEX_UID/SERVICE/N.log    the log of run N
//! DATA/pods/NAMESPACE_SERVICE-INDEX_UID/SERVICE/open     exists while the log of a run is written
//! DATA/home/NAMESPACE_SERVICE-INDEX                      HOME and working directory
//! DATA/views/NAMESPACE.json                              the view of a lease, for attached gateways
//! ```
//!
//! A replica's uid is generated once and then found by the name of its directory, and run numbers continue
//! from the existing files. So cursors stay valid across a restart of the gateway.

use std::collections::{BTreeMap, HashMap};
use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use memchr::memrchr;
use uuid::Uuid;

use crate::model::id::{Instance, LeaseId, Replica};
use crate::model::limits::CRI_PIECE_MAX_BYTES;
use crate::model::time::LogTime;
use crate::model::view::{Run, RunEnd};
use crate::platform::Error;
use crate::platform::cri;
use crate::platform::cri::path::{LogName, PodDir};

/// Only the gateway's user may read tenants' output.
const DIR_MODE: u32 = 0o700;

/// Upper bound of a record's header: time, stream, tags.
const HEADER_MAX_BYTES: usize = 256;

/// Name of the file that the gateway locks.
pub(super) const LOCK_FILE: &str = "lock";

/// Directory of the logs.
pub(super) const PODS_DIR: &str = "pods";

/// Name of the file that exists from before a run's process starts until its log is complete.
const OPEN_MARK: &str = "open";

/// Reason of an end that no gateway observed.
const UNOBSERVED_END: &str = "GatewayStopped";

/// Attempts to lock a data directory. A child process of a gateway that has just ended has the lock until it
/// executes its program, which takes longest on a busy machine.
const LOCK_ATTEMPTS: usize = 100;

/// Pause between two attempts: 100 of them are a second, which delays the error for a
/// directory that is in use no longer than a person notices.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// A data directory, locked for this gateway.
#[derive(Debug)]
pub(super) struct Store {
    pods: PathBuf,
    homes: PathBuf,
    /// The uid of each pod, by namespace and name.
    uids: HashMap<(String, String), String>,
    /// Closing it releases the lock.
    _lock: File,
}

/// The stored state of one replica.
#[derive(Debug)]
pub(super) struct StoredReplica {
    pub(super) logs: PathBuf,
    /// Home and working directory of its processes.
    pub(super) home: PathBuf,
    /// With the service name, identifies its runs.
    pub(super) uid: String,
    /// Ended runs that have logs, oldest first.
    pub(super) runs: Vec<Run>,
    /// Number of the next run.
    pub(super) next: u32,
    /// Whether the log of the last run is incomplete, because the gateway or the machine crashed.
    pub(super) end_unknown: bool,
}

// === impl Store ===

impl Store {
    /// Locks `dir`. Creates it if needed. Blocks for at most a second.
    ///
    /// # Errors
    /// If another gateway uses it, or it is unusable.
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        let failed = |error| Error::io(format!("data directory {}", dir.display()), error);
        make_dir(dir).map_err(failed)?;
        let dir = dir.canonicalize().map_err(failed)?;
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join(LOCK_FILE))
            .map_err(failed)?;
        try_lock(&lock, || std::thread::sleep(LOCK_RETRY_INTERVAL)).map_err(|error| match error {
            TryLockError::WouldBlock => Error::Unavailable(format!(
                "data directory {} is used by another gateway; give each its own",
                dir.display()
            )),
            TryLockError::Error(error) => failed(error),
        })?;
        let (pods, homes) = (dir.join(PODS_DIR), dir.join("home"));
        make_dir(&pods).map_err(failed)?;
        make_dir(&homes).map_err(failed)?;
        let uids = known_uids(&pods).map_err(failed)?;
        Ok(Self { pods, homes, uids, _lock: lock })
    }

    /// Loads the state of `replica`. Creates missing directories.
    pub(super) fn replica(&mut self, lease: &LeaseId, replica: &Replica) -> Result<StoredReplica, Error> {
        let pods = self.pods.display().to_string();
        let failed = |error| Error::io(format!("directories of {replica} in {pods}"), error);
        let namespace = lease.namespace();
        let pod = pod_name(replica);
        let home = self.homes.join(format!("{namespace}_{pod}"));
        make_dir(&home).map_err(failed)?;
        let known = self.uids.entry((namespace.clone(), pod.clone()));
        let uid = known.or_insert_with(|| Uuid::new_v4().to_string()).clone();
        let container = replica.service.as_str();
        let dir = PodDir { namespace: &namespace, pod: &pod, uid: &uid };
        let logs = dir.container(&self.pods, container);
        make_dir(&logs).map_err(failed)?;
        let mut runs = Vec::new();
        let mut next = 0;
        for (run_number, files) in files_by_run(&logs).map_err(failed)? {
            next = run_number.saturating_add(1);
            if let Ok(instance) = Instance::new(&uid, container, run_number) {
                runs.push(ended_run(&logs, instance, &files));
            }
        }
        let end_unknown = logs.join(OPEN_MARK).try_exists().map_err(failed)?;
        Ok(StoredReplica { logs, home, uid, runs, next, end_unknown })
    }
}

/// Returns the name that takes the place of a pod's.
pub(super) fn pod_name(replica: &Replica) -> String {
    format!("{}-{}", replica.service, replica.index)
}

/// Returns the uid of each pod that has a directory.
fn known_uids(pods: &Path) -> io::Result<HashMap<(String, String), String>> {
    let mut known: HashMap<_, String> = HashMap::new();
    for entry in std::fs::read_dir(pods)? {
        let name = entry?.file_name();
        let dir = name.to_str().and_then(PodDir::parse);
        if let Some(dir) = dir.filter(|dir| Uuid::try_parse(dir.uid).is_ok()) {
            let uid = known.entry((dir.namespace.to_owned(), dir.pod.to_owned())).or_default();
            // With several directories, the choice must not depend on the order of the listing.
            if uid.as_str() < dir.uid {
                dir.uid.clone_into(uid);
            }
        }
    }
    Ok(known)
}

/// Removes the logs of the oldest runs so that at most `keep` before `next` remain. Returns the number of the
/// oldest run left.
pub(super) fn prune(logs: &Path, next: u32, keep: usize) -> io::Result<u32> {
    let ended: Vec<_> = files_by_run(logs)?.into_iter().filter(|(run, _)| *run < next).collect();
    let surplus = ended.len().saturating_sub(keep);
    for (_, files) in ended.iter().take(surplus) {
        for file in files {
            std::fs::remove_file(logs.join(file.to_string()))?;
        }
    }
    Ok(ended.get(surplus).map_or(next, |(run, _)| *run))
}

/// Marks the log of a run as open. If the gateway crashes before [`mark_ended`], the next one finds the mark.
pub(super) fn mark_open(logs: &Path) -> io::Result<()> {
    File::create(logs.join(OPEN_MARK)).map(|_| ())
}

/// Marks the log of a run as complete.
pub(super) fn mark_ended(logs: &Path) -> io::Result<()> {
    match std::fs::remove_file(logs.join(OPEN_MARK)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Creates a directory and its parents if needed.
pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(path)
}

/// Lists the files of each run, oldest first.
fn files_by_run(logs: &Path) -> io::Result<BTreeMap<u32, Vec<LogName>>> {
    let mut runs: BTreeMap<u32, Vec<LogName>> = BTreeMap::new();
    for entry in std::fs::read_dir(logs)? {
        if let Some(name) = entry?.file_name().to_str().and_then(LogName::parse) {
            runs.entry(name.run_number).or_default().push(name);
        }
    }
    for files in runs.values_mut() {
        files.sort_by(|a, b| a.age_order().cmp(&b.age_order()));
    }
    Ok(runs)
}

/// Locks a file. Calls `pause` before each further attempt.
fn try_lock(file: &File, mut pause: impl FnMut()) -> Result<(), TryLockError> {
    for _ in 1..LOCK_ATTEMPTS {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => pause(),
            result => return result,
        }
    }
    file.try_lock()
}

/// Reconstructs an ended run. Its times are those of its first and last record; without records, that of its
/// last file.
fn ended_run(logs: &Path, instance: Instance, files: &[LogName]) -> Run {
    let path = |name: &LogName| logs.join(name.to_string());
    let modified = files.last().and_then(|name| modified(&path(name)));
    let ended = files.iter().rev().find_map(|name| last_time(&path(name)));
    let started = files.iter().find_map(|name| first_time(&path(name)));
    let time = ended.or(modified).unwrap_or_else(LogTime::now);
    Run {
        instance,
        started: started.unwrap_or(time),
        end: Some(RunEnd { time, exit_code: None, signal: None, reason: UNOBSERVED_END.to_owned() }),
        log_is_gone: false,
        later_unknown: false,
    }
}

fn modified(path: &Path) -> Option<LogTime> {
    let time = std::fs::metadata(path).ok()?.modified().ok()?;
    let nanos = time.duration_since(UNIX_EPOCH).ok()?.as_nanos();
    Some(LogTime::from_nanos(i64::try_from(nanos).ok()?))
}

/// Returns the time of a file's first record.
fn first_time(path: &Path) -> Option<LogTime> {
    let mut start = Vec::with_capacity(HEADER_MAX_BYTES);
    File::open(path).ok()?.take(HEADER_MAX_BYTES as u64).read_to_end(&mut start).ok()?;
    cri::first_time(&start)
}

/// Returns the time of a file's last complete record.
fn last_time(path: &Path) -> Option<LogTime> {
    // The longest record, and another one that a crash may have left incomplete.
    let window = 2 * (CRI_PIECE_MAX_BYTES + HEADER_MAX_BYTES) as u64;
    let mut file = File::open(path).ok()?;
    let from = file.metadata().ok()?.len().saturating_sub(window);
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut end = Vec::new();
    file.take(window).read_to_end(&mut end).ok()?;
    let mut records = end.get(..memrchr(b'\n', &end)?)?.rsplit(|byte| *byte == b'\n');
    records.find_map(cri::parse).map(|record| record.time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::Address;

    fn lease() -> LeaseId {
        let [owner, provider] = [1, 2].map(|n| Address::from_account([n; 20]));
        LeaseId::new(owner.as_str(), 7, 1, 1, provider.as_str()).unwrap()
    }

    fn web() -> Replica {
        Replica { service: "web".parse().unwrap(), index: 0 }
    }

    fn record(second: u32, content: &str) -> String {
        format!("2026-11-23T12:00:{second:02}.000000000Z stdout F {content}\n")
    }

    fn seconds(time: LogTime) -> i64 {
        time.parts().0 - 1_795_435_200
    }

    #[test]
    fn second_gateway_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::open(&dir.path().join("data")).unwrap();
        let error = Store::open(&dir.path().join("data")).unwrap_err();
        assert!(error.to_string().contains("used by another gateway"), "{error}");
        drop(first);
        Store::open(&dir.path().join("data")).unwrap();
    }

    #[test]
    fn lock_of_an_ended_gateway_is_awaited() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mut ended = Some(File::create(&path).unwrap());
        ended.as_ref().unwrap().lock().unwrap();
        let next = File::open(&path).unwrap();
        try_lock(&next, || ended = None).unwrap();
        let mut pauses = 0;
        let other = File::open(&path).unwrap();
        assert!(matches!(try_lock(&other, || pauses += 1), Err(TryLockError::WouldBlock)));
        assert_eq!(pauses, LOCK_ATTEMPTS - 1);
    }

    #[test]
    fn replica_is_found_again_with_its_runs() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let new = store.replica(&lease(), &web()).unwrap();
        assert!(new.home.is_dir() && new.logs.ends_with("web") && new.runs.is_empty());
        assert_eq!(new.next, 0);
        let long = "x".repeat(CRI_PIECE_MAX_BYTES);
        for (name, content) in [
            ("2.log.20261123-120000.000000001", record(1, "a")),
            ("2.log.20261123-120000.000000002", record(2, "b")),
            ("2.log", [&record(3, &long), &record(4, &long), "2026-11-23T12:00:05.0000"].concat()),
            ("10.log", String::new()),
            ("10.log.tmp", record(9, "not a log")),
        ] {
            std::fs::write(new.logs.join(name), content).unwrap();
        }
        // Of two directories the same one is used each time.
        let other = new
            .logs
            .parent()
            .unwrap()
            .with_file_name(format!("{}_web-0_00000000-0000-4000-8000-000000000000", lease().namespace()));
        std::fs::create_dir(other).unwrap();
        drop(store);
        let mut store = Store::open(dir.path()).unwrap();
        let found = store.replica(&lease(), &web()).unwrap();
        assert_eq!((found.uid.as_str(), found.next), (new.uid.as_str(), 11));
        let names: Vec<u32> = found.runs.iter().map(|run| run.instance.run_number()).collect();
        assert_eq!(names, [2, 10]);
        let end = found.runs[0].end.as_ref().unwrap();
        assert_eq!((seconds(found.runs[0].started), seconds(end.time)), (1, 4));
        assert_eq!(end.reason, "GatewayStopped");
        assert!(seconds(found.runs[1].started) > -1_000_000_000);

        let other = Replica { index: 1, ..web() };
        assert_ne!(store.replica(&lease(), &other).unwrap().uid, new.uid);
    }

    #[test]
    fn oldest_runs_are_removed_completely() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["0.log", "1.log", "1.log.20261123-120000", "3.log", "4.log", "5.log"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(prune(dir.path(), 5, 2).unwrap(), 3);
        let left: Vec<u32> = files_by_run(dir.path()).unwrap().into_keys().collect();
        assert_eq!(left, [3, 4, 5]);
        assert_eq!(prune(dir.path(), 5, 0).unwrap(), 5);
        assert_eq!(prune(dir.path(), 5, 0).unwrap(), 5);
    }
}
