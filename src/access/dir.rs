//! Trust from a directory: each `*.pem` file holds certificates of tenants, each `*.pub` file keys of their
//! accounts, which sign tokens (`trust_file`).
//!
//! The directory is watched. Effects of a change:
//! - A new certificate or key is trusted within `SCAN_GAP` of the notification.
//! - One whose file is removed, or replaced by a rename, is revoked as fast.
//! - One that a rewrite in place removes is revoked `REWRITE_GRACE` later. A file that is being rewritten is
//!   empty for a moment, which must not end streams.
//! - A removal therefore takes effect within a second, or a little more where the directory is polled
//!   (`sys::dir_watch::POLL`) because the system cannot watch it.
//! - A scan per poll interval finds changes without a notification: behind a link, or on a network file
//!   system. It costs one system call, unless there are links or the directory changed. It misses only a file
//!   that another machine rewrites in place.
//!
//! A file that cannot be used is logged once, by name and reason but never by content, and does not affect
//! others. While the directory or a file cannot be read at all, its last state stays.

mod file;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use self::file::FileId;
use self::scan::{ScanResult, Scanner};
use super::account::AccountKey;
use super::cert::Serial;
use super::trust::{Trust, TrustFuture, TrustId, TrustValue, TrustedItem};
use crate::model::id::Owner;
use crate::sys::dir_watch::{DirWatch, Notifier};

/// Minimum time between two scans: copying a thousand files into the directory causes a few scans.
const SCAN_GAP: Duration = Duration::from_millis(200);

/// For this long after a rewrite in place, removed entries stay trusted and errors are not logged: the file
/// may be half written. Copying a file takes less.
const REWRITE_GRACE: Duration = Duration::from_millis(300);

/// Trust from a directory. Drop ends the watch. Drop does not end running streams.
pub struct DirTrust {
    index: Arc<Index>,
    _watcher: AbortOnDropHandle<()>,
}

/// Why a trust directory cannot be used. The text names it.
#[derive(Debug, thiserror::Error)]
#[error("trust directory {}: {}", dir.display(), describe(error))]
pub struct OpenError {
    dir: PathBuf,
    error: io::Error,
}

/// Returns the key of this account in `dir` as it is now. Blocks on the file system.
///
/// # Errors
/// The directory cannot be read. Unusable files are no error.
pub fn key_in_dir(dir: &Path, owner: &Owner) -> io::Result<Option<AccountKey>> {
    let mut scanner = Scanner::new(dir);
    scanner.scan(std::time::Instant::now(), true)?;
    Ok(match scanner.trusted().remove(&TrustId::Account(owner.clone())) {
        Some(TrustValue::Account(key)) => Some(key),
        _ => None,
    })
}

/// The items that are trusted at one moment, replaced as a whole.
#[derive(Debug, Default)]
struct Index(RwLock<Arc<HashMap<TrustId, TrustedItem<TrustValue>>>>);

/// The task that updates the index from the directory.
struct Watcher {
    dir: PathBuf,
    scanner: Arc<Mutex<Scanner>>,
    index: Arc<Index>,
    notifier: Notifier,
    poll: Duration,
    /// The watch, and the directory that it is for: another directory may have replaced that one. `None`
    /// before the first scan.
    watch: Option<(DirWatch, FileId)>,
    /// When the grace of a file that was rewritten in place ends.
    recheck_at: Option<Instant>,
    /// The last scan failed.
    is_unreadable: bool,
}

// === impl DirTrust ===

impl DirTrust {
    /// Reads `dir` and watches it from then on. Scans it every `poll` as well, for changes without a
    /// notification.
    ///
    /// # Errors
    /// [`OpenError`] if the directory is missing, is not a directory, or cannot be read. Unusable files are
    /// no error.
    pub async fn open(dir: &Path, notifier: &Notifier, poll: Duration) -> Result<Self, OpenError> {
        let mut watcher = Watcher {
            dir: dir.to_owned(),
            scanner: Arc::new(Mutex::new(Scanner::new(dir))),
            index: Arc::new(Index::default()),
            notifier: notifier.clone(),
            poll,
            watch: None,
            recheck_at: None,
            is_unreadable: false,
        };
        watcher.update(true).await.map_err(|error| OpenError { dir: dir.to_owned(), error })?;
        let index = Arc::clone(&watcher.index);
        tracing::info!(?dir, trusted = index.len(), "trust directory read");
        #[expect(clippy::disallowed_methods, reason = "owned: the handle aborts it")]
        let task = tokio::spawn(watcher.run());
        Ok(Self { index, _watcher: AbortOnDropHandle::new(task) })
    }

    /// Returns the number of trusted certificates and keys.
    pub fn trusted(&self) -> usize {
        self.index.len()
    }
}

impl Trust for DirTrust {
    fn certificate<'a>(&'a self, owner: &'a Owner, serial: &'a Serial) -> TrustFuture<'a> {
        ready(self.known_certificate(owner, serial))
    }

    fn known_certificate(&self, owner: &Owner, serial: &Serial) -> Option<TrustedItem> {
        let key = TrustId::Certificate(owner.clone(), serial.clone());
        self.index.get(&key).and_then(TrustedItem::into_certificate)
    }

    fn account_key<'a>(&'a self, owner: &'a Owner) -> TrustFuture<'a, AccountKey> {
        ready(self.index.get(&TrustId::Account(owner.clone())).and_then(TrustedItem::into_account))
    }
}

fn ready<'a, T: Send + 'a>(trusted: Option<TrustedItem<T>>) -> TrustFuture<'a, T> {
    Box::pin(std::future::ready(Ok(trusted.into())))
}

impl fmt::Debug for DirTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirTrust").field("trusted", &self.index.len()).finish_non_exhaustive()
    }
}

// === impl Index ===

impl Index {
    fn get(&self, key: &TrustId) -> Option<TrustedItem<TrustValue>> {
        self.0.read().get(key).cloned()
    }

    fn len(&self) -> usize {
        self.0.read().len()
    }

    /// Trusts exactly `wanted`. Items that were trusted before keep their signal; the others are revoked.
    /// Returns how many were added and how many revoked.
    fn replace(&self, wanted: HashMap<TrustId, TrustValue>) -> (usize, usize) {
        let before = Arc::clone(&self.0.read());
        let mut added = 0;
        let mut after = HashMap::with_capacity(wanted.len());
        for (key, value) in wanted {
            let kept = before.get(&key).filter(|old| old.value == value).cloned();
            let trusted = kept.unwrap_or_else(|| {
                added += 1;
                TrustedItem::new(value)
            });
            after.insert(key, trusted);
        }
        let after = Arc::new(after);
        *self.0.write() = Arc::clone(&after);
        // Revoked after the replacement, so that a caller that asks again does not find the old item.
        let mut revoked = 0;
        for (key, old) in before.iter() {
            if after.get(key).is_none_or(|new| new.value != old.value) {
                old.end_trust();
                revoked += 1;
            }
        }
        (added, revoked)
    }
}

// === impl Watcher ===

impl Watcher {
    async fn run(mut self) {
        loop {
            let recheck_at = self.recheck_at;
            let thorough = tokio::select! {
                () = changed(self.watch.as_mut()) => true,
                () = sleep_until(recheck_at.unwrap_or_else(Instant::now)), if recheck_at.is_some() => true,
                () = sleep(self.poll) => self.is_unreadable,
            };
            if let Err(error) = self.update(thorough).await {
                self.recheck_at = None;
                if !std::mem::replace(&mut self.is_unreadable, true) {
                    tracing::error!(%error, dir = ?self.dir, "failed to read trust directory, keeping its last state");
                }
            }
            sleep(SCAN_GAP).await;
        }
    }

    /// Updates the index from the directory. If the directory is not watched yet, watches it and scans again,
    /// because it may have changed in between.
    async fn update(&mut self, thorough: bool) -> io::Result<()> {
        let mut result = self.scan(thorough).await?;
        if self.watch.as_ref().is_none_or(|(_, dir)| *dir != result.dir) {
            self.watch = Some((self.notifier.watch(&self.dir), result.dir));
            result = self.scan(true).await?;
        }
        if std::mem::take(&mut self.is_unreadable) {
            tracing::info!(dir = ?self.dir, "trust directory is readable again");
        }
        self.recheck_at = result.recheck_at.map(Instant::from_std);
        Ok(())
    }

    async fn scan(&self, thorough: bool) -> io::Result<ScanResult> {
        let scanner = Arc::clone(&self.scanner);
        let index = Arc::clone(&self.index);
        let now = Instant::now().into_std();
        let scan = move || {
            let mut scanner = scanner.lock();
            let result = scanner.scan(now, thorough)?;
            if result.changed {
                let (added, revoked) = index.replace(scanner.trusted());
                if added > 0 || revoked > 0 {
                    let files_read = result.files_read;
                    tracing::info!(added, revoked, files_read, "trusted certificates and keys changed");
                }
            }
            Ok(result)
        };
        spawn_blocking(scan).await.unwrap_or_else(|panicked| Err(panicked.into()))
    }
}

async fn changed(watch: Option<&mut (DirWatch, FileId)>) {
    match watch {
        Some((watch, _)) => watch.changed().await,
        None => std::future::pending().await,
    }
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "does not exist".to_owned(),
        io::ErrorKind::NotADirectory => "is not a directory".to_owned(),
        _ => format!("cannot be read: {error}"),
    }
}
