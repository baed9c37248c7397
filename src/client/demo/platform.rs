//! A demo's directory: made for it, gone after it.
//!
//! It is removed when the demo ends. A demo that was killed cannot do that, so each one removes what killed ones have left:
//! directories of its kind and its user whose lock nobody holds.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::model::id::Owner;

/// How the directories' names begin.
const PREFIX: &str = "leasemux-demo-";

/// The file that a living demo holds locked.
const LOCK: &str = "lock";

/// A directory younger than this may belong to a demo that has yet to lock it.
const SETTLED_AFTER: Duration = Duration::from_secs(60);

/// The directory of one demo; dropping it removes all.
#[derive(Debug)]
pub(super) struct Place {
    dir: TempDir,
    _lock: File,
}

// === impl Place ===

impl Place {
    pub(super) fn make() -> io::Result<Self> {
        Self::make_in(&std::env::temp_dir())
    }

    fn make_in(parent: &Path) -> io::Result<Self> {
        remove_abandoned(parent);
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        let lock = File::create(dir.path().join(LOCK))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        fs::create_dir(dir.path().join("trusted"))?;
        Ok(Self { dir, _lock: lock })
    }

    /// Directory of the tenant's identity; not made here.
    pub(super) fn identity(&self) -> PathBuf {
        self.dir.path().join("tenant")
    }

    pub(super) fn trust_dir(&self) -> PathBuf {
        self.dir.path().join("trusted")
    }

    pub(super) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Where the gateway puts the certificate that it makes.
    pub(super) fn server_certificate(&self) -> PathBuf {
        self.data_dir().join("server.pem")
    }

    /// Lets the gateway trust the tenant.
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

/// Whatever does not work here is left to the next demo.
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
    if !ours || age.is_none_or(|age| age < SETTLED_AFTER) {
        return false;
    }
    let lock = File::open(dir.join(LOCK));
    lock.is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn age(place: &Path) {
        let long_ago = SystemTime::now() - 2 * SETTLED_AFTER;
        File::open(place).unwrap().set_modified(long_ago).unwrap();
    }

    #[test]
    fn what_a_killed_demo_left_goes_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let alive = Place::make_in(parent.path()).unwrap();
        age(alive.dir.path());
        let killed = Place::make_in(parent.path()).unwrap();
        let left = killed.dir.path().to_owned();
        let Place { dir, _lock: lock } = killed;
        let _ = dir.keep();
        drop(lock);
        let other = parent.path().join("another");
        fs::create_dir(&other).unwrap();
        age(&other);

        let next = Place::make_in(parent.path()).unwrap();
        assert!(left.exists(), "too young to be sure");
        drop(next);
        age(&left);
        let next = Place::make_in(parent.path()).unwrap();
        assert!(!left.exists() && other.exists() && alive.dir.path().exists());
        let gone = next.dir.path().to_owned();
        drop(next);
        assert!(!gone.exists());
    }
}
