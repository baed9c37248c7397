//! Temporary directory of a demo.
//!
//! It is removed when the demo ends. A killed demo cannot do that, so each demo first removes the directories
//! of its kind and user that no demo holds locked.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::model::id::Owner;

const PREFIX: &str = "leasemux-demo-";

/// Locked by a running demo.
const LOCK: &str = "lock";

/// A younger directory may belong to a demo that has not locked it yet.
const LOCKED_AFTER: Duration = Duration::from_secs(60);

/// Directory of one demo. Dropping it removes the directory.
#[derive(Debug)]
pub(super) struct WorkDir {
    dir: TempDir,
    _lock: File,
}

// === impl WorkDir ===

impl WorkDir {
    pub(super) fn create() -> io::Result<Self> {
        Self::create_in(&std::env::temp_dir())
    }

    fn create_in(parent: &Path) -> io::Result<Self> {
        remove_abandoned(parent);
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        let lock = File::create(dir.path().join(LOCK))?;
        lock.try_lock()?;
        fs::create_dir(dir.path().join("trusted"))?;
        Ok(Self { dir, _lock: lock })
    }

    /// Returns the directory of the tenant's identity, which is not created here.
    pub(super) fn identity(&self) -> PathBuf {
        self.dir.path().join("tenant")
    }

    pub(super) fn trust_dir(&self) -> PathBuf {
        self.dir.path().join("trusted")
    }

    pub(super) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Returns the file of the certificate that the gateway generates.
    pub(super) fn server_certificate(&self) -> PathBuf {
        self.data_dir().join("server.pem")
    }

    pub(super) fn server_key(&self) -> PathBuf {
        self.data_dir().join("server.key.pem")
    }

    /// Returns the directory of a gateway that runs no services.
    pub(super) fn attached_data_dir(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("data-{number}"))
    }

    /// Creates the directory of the NATS server.
    pub(super) fn create_nats_dir(&self) -> io::Result<PathBuf> {
        let dir = self.dir.path().join("nats");
        fs::create_dir(&dir)?;
        Ok(dir)
    }

    /// Adds the tenant to the gateway's trust directory.
    pub(super) fn trust(&self, owner: &Owner) -> io::Result<()> {
        let trusted = self.trust_dir().join(format!("{owner}.pem"));
        fs::copy(self.identity().join("cert.pem"), trusted).map(|_| ())
    }

    pub(super) fn write_sdl(&self, text: &str) -> io::Result<PathBuf> {
        let path = self.dir.path().join("sample.yaml");
        fs::write(&path, text)?;
        Ok(path)
    }
}

/// Removes directories of killed demos. Errors are ignored: the next demo tries again.
fn remove_abandoned(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && is_abandoned(&entry.path()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn is_abandoned(dir: &Path) -> bool {
    let Ok(metadata) = fs::symlink_metadata(dir) else {
        return false;
    };
    let ours = metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw();
    let age = metadata.modified().ok().and_then(|time| time.elapsed().ok());
    if !ours || age.is_none_or(|age| age < LOCKED_AFTER) {
        return false;
    }
    let lock = File::open(dir.join(LOCK));
    lock.is_ok_and(|lock| lock.try_lock().is_ok())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn age(dir: &Path) {
        let long_ago = SystemTime::now() - 2 * LOCKED_AFTER;
        File::open(dir).unwrap().set_modified(long_ago).unwrap();
    }

    #[test]
    fn only_directories_of_killed_demos_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let alive = WorkDir::create_in(parent.path()).unwrap();
        age(alive.dir.path());
        let killed = WorkDir::create_in(parent.path()).unwrap();
        let left = killed.dir.path().to_owned();
        let WorkDir { dir, _lock: lock } = killed;
        let _ = dir.keep();
        drop(lock);
        let other = parent.path().join("another");
        fs::create_dir(&other).unwrap();
        age(&other);

        let next = WorkDir::create_in(parent.path()).unwrap();
        assert!(left.exists(), "too young to be sure");
        drop(next);
        age(&left);
        let next = WorkDir::create_in(parent.path()).unwrap();
        assert!(!left.exists() && other.exists() && alive.dir.path().exists());
        let gone = next.dir.path().to_owned();
        drop(next);
        assert!(!gone.exists());
    }
}
