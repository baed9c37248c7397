//! Being told when a directory changes.
//!
//! A user may have 128 inotify instances (`fs.inotify.max_user_instances`), shared with kubelet and everything else, so one
//! [`Notifier`] serves the whole process, and a directory is watched once however many wait for it. Where the system has no
//! instance or no watch left, waiting falls back to polling, and the log says so.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// How often a directory is looked at where the system cannot tell of changes.
pub const POLL: Duration = Duration::from_millis(250);

/// Bytes of the buffer for events: some hundred of them, and more come in the next read.
const EVENT_BUFFER_BYTES: usize = 16 * 1024;

/// Tells of changes in directories. Cloning is cheap; the last clone ends the watching.
#[derive(Clone)]
pub struct Notifier(Arc<Shared>);

/// One directory being watched, until it is dropped.
#[derive(Debug)]
pub struct DirWatch {
    changes: watch::Receiver<()>,
    /// Keeps the system's watch; `None` if there is none, and so it polls.
    registration: Option<Registration>,
}

struct Shared {
    kernel: Option<Kernel>,
}

struct Kernel {
    watches: Watches,
    dirs: Arc<Mutex<Dirs>>,
    /// Reads events for as long as anybody may wait for them.
    _pump: AbortOnDropHandle<()>,
}

type Dirs = HashMap<WatchDescriptor, Dir>;

struct Dir {
    changes: watch::Sender<()>,
    /// How many [`DirWatch`]es there are.
    watchers: usize,
}

struct Registration {
    shared: Arc<Shared>,
    descriptor: WatchDescriptor,
    path: PathBuf,
}

// === impl Notifier ===

impl Notifier {
    /// Opens the process's inotify instance. Must be called within a Tokio runtime.
    pub fn start() -> Self {
        let kernel = Kernel::start()
            .inspect_err(|error| {
                tracing::warn!(%error, poll = ?POLL, "no inotify instance to be had: polling directories instead");
            })
            .ok();
        Self(Arc::new(Shared { kernel }))
    }

    /// A notifier that only polls.
    pub fn polling() -> Self {
        Self(Arc::new(Shared { kernel: None }))
    }

    /// Begins to watch `dir` for entries that are made, written, renamed or removed. The watch holds from the return of this
    /// call on, so whoever looks at the directory after it misses nothing.
    pub fn watch(&self, dir: &Path) -> DirWatch {
        if let Some(kernel) = &self.0.kernel {
            match kernel.watch(&self.0, dir) {
                Ok(watch) => return watch,
                Err(error) => {
                    tracing::warn!(%error, dir = %dir.display(), poll = ?POLL, "cannot watch directory: polling it instead");
                }
            }
        }
        DirWatch { changes: watch::channel(()).1, registration: None }
    }
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notifier").field("polls", &self.0.kernel.is_none()).finish()
    }
}

// === impl DirWatch ===

impl DirWatch {
    /// Waits until something changed since the last call (or since the watch began). May also return without a change.
    /// Nothing is lost if it is cancelled.
    pub async fn changed(&mut self) {
        if self.registration.is_none() {
            tokio::time::sleep(POLL).await;
        } else if self.changes.changed().await.is_err() {
            // The directory itself is gone: nothing will tell of a successor.
            self.registration = None;
        }
    }
}

// === impl Kernel ===

impl Kernel {
    fn start() -> std::io::Result<Self> {
        let inotify = Inotify::init()?;
        let watches = inotify.watches();
        let mut events = inotify.into_event_stream(vec![0; EVENT_BUFFER_BYTES])?;
        let dirs = Arc::new(Mutex::new(Dirs::new()));
        let pumped = Arc::clone(&dirs);
        #[expect(clippy::disallowed_methods, reason = "owned: the handle aborts it")]
        let pump = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => dispatch(&mut lock(&pumped), &event.wd, event.mask),
                    Err(error) => tracing::error!(%error, "reading inotify events"),
                }
            }
        });
        Ok(Self { watches, dirs, _pump: AbortOnDropHandle::new(pump) })
    }

    fn watch(&self, shared: &Arc<Shared>, path: &Path) -> std::io::Result<DirWatch> {
        let mask = WatchMask::CREATE
            | WatchMask::MODIFY
            | WatchMask::MOVE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        // Held over the system call, so that a removal of the same directory comes wholly before or after it.
        let mut dirs = lock(&self.dirs);
        let descriptor = self.watches.clone().add(path, mask)?;
        let dir = dirs
            .entry(descriptor.clone())
            .or_insert_with(|| Dir { changes: watch::Sender::new(()), watchers: 0 });
        dir.watchers += 1;
        let changes = dir.changes.subscribe();
        let registration = Registration { shared: Arc::clone(shared), descriptor, path: path.to_owned() };
        Ok(DirWatch { changes, registration: Some(registration) })
    }
}

fn dispatch(dirs: &mut Dirs, descriptor: &WatchDescriptor, mask: EventMask) {
    if mask.contains(EventMask::Q_OVERFLOW) {
        for dir in dirs.values() {
            dir.changes.send_replace(());
        }
    } else if mask.contains(EventMask::IGNORED) {
        // The system dropped the watch; dropping the sender tells those who wait.
        dirs.remove(descriptor);
    } else if let Some(dir) = dirs.get(descriptor) {
        dir.changes.send_replace(());
    }
}

fn lock(dirs: &Mutex<Dirs>) -> MutexGuard<'_, Dirs> {
    dirs.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Registration ===

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(f)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let Some(kernel) = &self.shared.kernel else { return };
        let mut dirs = lock(&kernel.dirs);
        let Some(dir) = dirs.get_mut(&self.descriptor) else {
            return;
        };
        dir.watchers -= 1;
        if dir.watchers == 0 {
            dirs.remove(&self.descriptor);
            // Fails only if the directory is gone, and the watch with it.
            let _ = kernel.watches.clone().remove(self.descriptor.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(watch: &mut DirWatch) {
        tokio::time::timeout(Duration::from_secs(30), watch.changed()).await.unwrap();
    }

    #[tokio::test]
    async fn two_watchers_of_one_directory_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let notifier = Notifier::start();
        let mut first = notifier.watch(dir.path());
        let mut second = notifier.watch(dir.path());
        std::fs::write(dir.path().join("a"), "a").unwrap();
        told(&mut first).await;
        told(&mut second).await;
        drop(first);
        let mut second = notifier.watch(dir.path());
        std::fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        told(&mut second).await;
    }

    #[tokio::test]
    async fn a_change_before_the_wait_is_not_missed() {
        let dir = tempfile::tempdir().unwrap();
        let notifier = Notifier::start();
        let mut watch = notifier.watch(dir.path());
        std::fs::write(dir.path().join("a"), "a").unwrap();
        let mut other = notifier.watch(dir.path());
        std::fs::write(dir.path().join("b"), "b").unwrap();
        told(&mut other).await;
        told(&mut watch).await;
    }

    #[tokio::test]
    async fn without_inotify_it_polls() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = Notifier::polling().watch(dir.path());
        told(&mut watch).await;
    }

    #[tokio::test]
    async fn a_removed_directory_is_told_and_then_polled() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let notifier = Notifier::start();
        let mut watch = notifier.watch(&inner);
        std::fs::remove_dir(&inner).unwrap();
        for _ in 0..3 {
            told(&mut watch).await;
        }
    }
}
