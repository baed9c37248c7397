//! Notifications of changes in directories.
//!
//! A user has 128 inotify instances by default (`fs.inotify.max_user_instances`), shared with the kubelet and
//! everything else. One [`Notifier`] therefore serves the whole process, and each directory has one watch. If
//! the system has no instance or watch left, the notifier polls instead and logs that.
//!
//! In a simulation, a [`SimulatedDisk`] takes the place of inotify and of the pool of blocking threads: the
//! order of events then does not depend on other threads.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// Polling interval without inotify.
pub(crate) const POLL: Duration = Duration::from_millis(250);

/// Size of the event buffer: a few hundred events per read.
const EVENT_BUFFER_BYTES: usize = 16 * 1024;

/// Watches directories. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Notifier(Source);

/// Where notifications come from.
#[derive(Clone, Debug)]
enum Source {
    Kernel(Arc<Kernel>),
    Poll,
    Simulated(Arc<dyn SimulatedDisk>),
}

/// The disk of a simulation, which decides when a change is noticed and how long an access takes.
pub trait SimulatedDisk: fmt::Debug + Send + Sync {
    /// Returns a receiver of the changes in `dir` from now on. The sender is dropped with the directory.
    fn watch(&self, dir: &Path) -> watch::Receiver<()>;

    /// Returns the duration of the next access.
    ///
    /// # Errors
    /// If the access fails.
    fn access(&self) -> io::Result<Duration>;
}

/// A watch on one directory. Drop ends it.
#[derive(Debug)]
pub struct DirWatch {
    /// Dropped before `registration`, which then sees whether other receivers are left.
    changes: watch::Receiver<()>,
    registration: Registration,
}

#[derive(Debug)]
struct Kernel {
    watches: Watches,
    dirs: Arc<Mutex<Dirs>>,
    /// The task that reads events.
    _reader: AbortOnDropHandle<()>,
}

/// The watched directories. The receivers are in [`DirWatch`]es.
type Dirs = HashMap<WatchDescriptor, watch::Sender<()>>;

/// What keeps a watch.
#[derive(Debug)]
enum Registration {
    Kernel {
        _watch: KernelRegistration,
    },
    Simulated,
    /// The directory is polled.
    None,
}

#[derive(Debug)]
struct KernelRegistration {
    kernel: Arc<Kernel>,
    descriptor: WatchDescriptor,
}

// === impl Notifier ===

impl Notifier {
    /// Creates a notifier with one inotify instance. Must be called within a Tokio runtime.
    pub fn start() -> Self {
        let kernel = Kernel::start()
            .inspect_err(|error| {
                tracing::warn!(%error, interval = ?POLL, "failed to create inotify instance; polling directories");
            })
            .ok();
        Self(kernel.map_or(Source::Poll, |kernel| Source::Kernel(Arc::new(kernel))))
    }

    /// Creates a notifier that polls.
    pub fn polling() -> Self {
        Self(Source::Poll)
    }

    /// Creates a notifier for a simulation.
    pub fn simulated(disk: Arc<dyn SimulatedDisk>) -> Self {
        Self(Source::Simulated(disk))
    }

    /// Returns the simulated disk, if there is one. Reads are then made on the caller's thread.
    pub(crate) fn simulated_disk(&self) -> Option<&Arc<dyn SimulatedDisk>> {
        match &self.0 {
            Source::Simulated(disk) => Some(disk),
            Source::Kernel(_) | Source::Poll => None,
        }
    }

    /// Watches `dir` for entries that are created, written, renamed or removed. The watch is active when this
    /// call returns, so a scan of the directory after it misses no change.
    pub fn watch(&self, dir: &Path) -> DirWatch {
        match &self.0 {
            Source::Kernel(kernel) => match kernel.watch(dir) {
                Ok(watch) => return watch,
                Err(error) => {
                    tracing::warn!(%error, dir = %dir.display(), interval = ?POLL, "failed to watch directory; polling it");
                }
            },
            Source::Poll => {}
            Source::Simulated(disk) => {
                return DirWatch { changes: disk.watch(dir), registration: Registration::Simulated };
            }
        }
        DirWatch { changes: watch::channel(()).1, registration: Registration::None }
    }
}

// === impl DirWatch ===

impl DirWatch {
    /// Waits for a change since the last call or since the watch began. May return without a change. Cancel
    /// safe.
    pub async fn changed(&mut self) {
        if let Registration::None = self.registration {
            tokio::time::sleep(POLL).await;
        } else if self.changes.changed().await.is_err() {
            // The directory was removed. Poll, because inotify does not report a new one at this path.
            self.registration = Registration::None;
        }
    }
}

// === impl Kernel ===

impl Kernel {
    fn start() -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let watches = inotify.watches();
        let mut events = inotify.into_event_stream(vec![0; EVENT_BUFFER_BYTES])?;
        let dirs = Arc::new(Mutex::new(Dirs::new()));
        let shared_dirs = Arc::clone(&dirs);
        #[expect(clippy::disallowed_methods, reason = "owned: the handle aborts it")]
        let reader = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => dispatch(&mut shared_dirs.lock(), &event.wd, event.mask),
                    Err(error) => tracing::error!(%error, "failed to read inotify events"),
                }
            }
        });
        Ok(Self { watches, dirs, _reader: AbortOnDropHandle::new(reader) })
    }

    fn watch(self: &Arc<Self>, path: &Path) -> io::Result<DirWatch> {
        let mask = WatchMask::CREATE
            | WatchMask::MODIFY
            | WatchMask::MOVE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        // Locked during the system call: inotify reuses the descriptor of an existing watch, which a
        // concurrent drop could remove.
        let mut dirs = self.dirs.lock();
        let descriptor = self.watches.clone().add(path, mask)?;
        let changes = dirs.entry(descriptor.clone()).or_default().subscribe();
        let registration = KernelRegistration { kernel: Arc::clone(self), descriptor };
        Ok(DirWatch { changes, registration: Registration::Kernel { _watch: registration } })
    }
}

fn dispatch(dirs: &mut Dirs, descriptor: &WatchDescriptor, mask: EventMask) {
    if mask.contains(EventMask::Q_OVERFLOW) {
        for changes in dirs.values() {
            changes.send_replace(());
        }
    } else if mask.contains(EventMask::IGNORED) {
        // The kernel removed the watch. Dropping the sender wakes all watchers.
        dirs.remove(descriptor);
    } else if let Some(changes) = dirs.get(descriptor) {
        changes.send_replace(());
    }
}

// === impl KernelRegistration ===

impl Drop for KernelRegistration {
    fn drop(&mut self) {
        let mut dirs = self.kernel.dirs.lock();
        if dirs.get(&self.descriptor).is_some_and(|changes| changes.receiver_count() == 0) {
            dirs.remove(&self.descriptor);
            // Fails only if the directory and its watch are already gone.
            let _ = self.kernel.watches.clone().remove(self.descriptor.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn changed(watch: &mut DirWatch) {
        tokio::time::timeout(Duration::from_secs(30), watch.changed()).await.unwrap();
    }

    #[tokio::test]
    async fn two_watchers_of_one_directory_are_notified() {
        let dir = tempfile::tempdir().unwrap();
        let notifier = Notifier::start();
        let mut first = notifier.watch(dir.path());
        let mut second = notifier.watch(dir.path());
        std::fs::write(dir.path().join("a"), "a").unwrap();
        changed(&mut first).await;
        changed(&mut second).await;
        drop(first);
        let mut second = notifier.watch(dir.path());
        std::fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        changed(&mut second).await;
    }

    #[tokio::test]
    async fn change_before_the_wait_is_not_missed() {
        let dir = tempfile::tempdir().unwrap();
        let notifier = Notifier::start();
        let mut watch = notifier.watch(dir.path());
        std::fs::write(dir.path().join("a"), "a").unwrap();
        let mut other = notifier.watch(dir.path());
        std::fs::write(dir.path().join("b"), "b").unwrap();
        changed(&mut other).await;
        changed(&mut watch).await;
    }

    #[tokio::test]
    async fn notifier_without_inotify_polls() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = Notifier::polling().watch(dir.path());
        changed(&mut watch).await;
    }

    #[tokio::test]
    async fn removed_directory_is_notified_and_then_polled() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let notifier = Notifier::start();
        let mut watch = notifier.watch(&inner);
        std::fs::remove_dir(&inner).unwrap();
        for _ in 0..3 {
            changed(&mut watch).await;
        }
    }
}
