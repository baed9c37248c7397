//! The disk of a node. Its files are real ones in a temporary directory; notifications, the duration of an
//! access and its failure are simulated.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use leasemux::sys::dir_watch::SimulatedDisk;
use rand::RngExt as _;
use tokio::sync::watch;

/// Error number of a disk that cannot read.
const EIO: i32 = 5;

/// Longest time of an access in milliseconds, with a fast disk and a slow one.
const FAST_MAX: u64 = 2;
const SLOW_MAX: u64 = 2_000;

#[derive(Debug, Default)]
pub(super) struct Disk {
    watches: Mutex<BTreeMap<PathBuf, watch::Sender<()>>>,
    state: Mutex<DiskState>,
}

/// How a disk answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum DiskState {
    #[default]
    Fast,
    Slow,
    /// Some accesses fail.
    Unreliable,
    /// All accesses fail.
    Broken,
}

// === impl Disk ===

impl Disk {
    pub(super) fn set(&self, state: DiskState) {
        *self.state.lock().unwrap() = state;
    }

    /// Notifies the watchers of a directory.
    pub(super) fn changed(&self, dir: &Path) {
        if let Some(watchers) = self.watches.lock().unwrap().get(dir) {
            watchers.send_replace(());
        }
    }
}

impl SimulatedDisk for Disk {
    fn watch(&self, dir: &Path) -> watch::Receiver<()> {
        self.watches.lock().unwrap().entry(dir.to_owned()).or_default().subscribe()
    }

    fn access(&self) -> io::Result<Duration> {
        let mut random = rand::rng();
        let state = *self.state.lock().unwrap();
        let fails = match state {
            DiskState::Fast | DiskState::Slow => false,
            DiskState::Unreliable => random.random(),
            DiskState::Broken => true,
        };
        if fails {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let longest = if state == DiskState::Slow { SLOW_MAX } else { FAST_MAX };
        Ok(Duration::from_millis(random.random_range(0..=longest)))
    }
}
