//! A lock among processes that change the same file.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Limit on waiting. A holder reads and writes a small file, so a longer wait means that it is stopped.
const PATIENCE: Duration = Duration::from_secs(10);

/// Interval of attempts. Standard locks have no wait with a limit.
const RETRY: Duration = Duration::from_millis(10);

/// Mode of a lock file that is created.
const MODE: u32 = 0o600;

/// An exclusive lock, until it is dropped or the process ends.
#[derive(Debug)]
pub(super) struct FileLock(#[expect(dead_code, reason = "holds the lock")] File);

// === impl FileLock ===

impl FileLock {
    /// Waits until no other process has the lock of the file at `path`, which is created and stays: one that
    /// is deleted could be locked by two processes. Without effect on a file system without locks.
    ///
    /// # Errors
    /// If the file cannot be opened, or the lock is not free in time.
    pub(super) fn acquire(path: &Path) -> io::Result<Self> {
        Self::acquire_within(path, PATIENCE)
    }

    fn acquire_within(path: &Path, patience: Duration) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).mode(MODE).open(path)?;
        let deadline = Instant::now() + patience;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(RETRY),
                Err(TryLockError::WouldBlock) => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("another process has the lock for more than {patience:?}"),
                    ));
                }
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    return Ok(Self(file));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_has_one_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = FileLock::acquire(&path).unwrap();
        let error = FileLock::acquire_within(&path, Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let waiter = thread::spawn({
            let path = path.clone();
            move || FileLock::acquire(&path).map(drop)
        });
        drop(first);
        waiter.join().unwrap().unwrap();
        assert!(FileLock::acquire(&dir.path().join("none/lock")).is_err());
    }
}
