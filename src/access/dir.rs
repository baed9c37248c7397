//! Trust from a directory: every `*.pem` file in it holds the certificates of tenants, every `*.pub` file the keys of their
//! accounts, by which they sign tokens (`item`).
//!
//! Files are picked up and dropped while running. What a change does, and when:
//! - A certificate or key that appears is trusted within [`REST`] of the system's telling of it.
//! - One whose file is removed, or replaced by renaming another over it, is withdrawn as fast.
//! - One that goes missing from a file that is written in place is withdrawn [`SETTLE`] later: a file that is
//!   being rewritten is empty for a moment, and that must cut no streams.
//! - So a removal takes effect within a second, and where the system cannot watch the directory and it is polled instead
//!   ([`POLL`](crate::sys::notify::POLL)), little more.
//! - Where the system tells of nothing, a look once in the poll interval finds it: what happens to a file behind a link, and
//!   files that are added to, removed from or renamed in a directory on another machine, or that is itself behind a link. Such
//!   a look costs one system call, unless there are links or the directory changed. Only a file that another machine writes in
//!   place goes unseen.
//!
//! A file that cannot be used says so once in the log, by its name and a reason, never by its content; others are not touched
//! by it. While the directory or a file cannot be read at all, what was last read in it holds on.

pub(super) mod file;
mod index;
pub(super) mod item;
mod scan;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_core::future::BoxFuture;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use self::file::DirId;
use self::index::Index;
use self::item::{TrustKey, TrustValue};
use self::scan::{ScanResult, Scanner};
use super::account::AccountKey;
use super::cert::Serial;
use super::trust::{Trust, TrustAnswer, TrustedItem, Unavailable};
use crate::model::id::Owner;
use crate::sys::notify::{DirWatch, Notifier};

/// At least this lies between two looks at the directory, so that copying a thousand files into it costs a few looks.
pub const REST: Duration = Duration::from_millis(200);

/// For this long a certificate that is missing from a file written in place still counts, and what is wrong with a file is not
/// yet said: it may be half written. Copying a file takes less.
pub const SETTLE: Duration = Duration::from_millis(300);

/// Trust from a directory. Dropping it ends the watching; trust that was given then stays.
pub struct DirTrust {
    index: Arc<Index>,
    _keeper: AbortOnDropHandle<()>,
}

/// The key of this account in `dir` as it is now. Blocks on the file system.
///
/// # Errors
/// If the directory cannot be read. Files in it are no reason.
pub(super) fn key_in(dir: &Path, owner: &Owner, now: std::time::Instant) -> io::Result<Option<AccountKey>> {
    let mut scanner = Scanner::new(dir);
    scanner.look(now, true)?;
    Ok(match scanner.trusted().remove(&TrustKey::Account(owner.clone())) {
        Some(TrustValue::Account(key)) => Some(key),
        _ => None,
    })
}

/// Why a trust directory cannot be used. The text names it.
#[derive(Debug, thiserror::Error)]
#[error("trust directory {}: {}", dir.display(), say(error))]
pub struct OpenError {
    dir: PathBuf,
    error: io::Error,
}

/// The task that keeps the index like the directory.
struct Keeper {
    dir: PathBuf,
    scanner: Arc<Mutex<Scanner>>,
    index: Arc<Index>,
    notifier: Notifier,
    /// `None` before the first look.
    watch: Option<DirWatch>,
    poll: Duration,
    /// The directory that is watched: another one may have taken its place since.
    watched: Option<DirId>,
    /// When a file that was written in place is to be believed.
    settles: Option<Instant>,
    /// Whether the directory cannot be read at present.
    blind: bool,
}

// === impl DirTrust ===

impl DirTrust {
    /// Reads `dir` and keeps to it from then on. Where `notifier` cannot tell, it is looked at every `poll`.
    ///
    /// # Errors
    /// [`OpenError`] if it is missing, not a directory, or cannot be read. Files in it are no reason.
    pub async fn open(dir: &Path, notifier: &Notifier, poll: Duration) -> Result<Self, OpenError> {
        let mut keeper = Keeper {
            dir: dir.to_owned(),
            scanner: Arc::new(Mutex::new(Scanner::new(dir))),
            index: Arc::new(Index::default()),
            notifier: notifier.clone(),
            watch: None,
            poll,
            watched: None,
            settles: None,
            blind: false,
        };
        let first = keeper.look(true).await;
        first.map_err(|error| OpenError { dir: dir.to_owned(), error })?;
        let index = Arc::clone(&keeper.index);
        tracing::info!(?dir, trusted = index.len(), "trust directory read");
        #[expect(clippy::disallowed_methods, reason = "owned: the handle aborts it")]
        let task = tokio::spawn(keeper.run());
        Ok(Self { index, _keeper: AbortOnDropHandle::new(task) })
    }

    /// How many certificates and keys are trusted at present.
    pub fn trusted(&self) -> usize {
        self.index.len()
    }
}

impl Trust for DirTrust {
    fn certificate<'a>(
        &'a self,
        owner: &'a Owner,
        serial: &'a Serial,
    ) -> BoxFuture<'a, Result<TrustAnswer, Unavailable>> {
        let verdict =
            self.index.certificate(owner, serial).map_or(TrustAnswer::Unknown, TrustAnswer::Trusted);
        Box::pin(std::future::ready(Ok(verdict)))
    }

    fn known_certificate(&self, owner: &Owner, serial: &Serial) -> Option<TrustedItem> {
        self.index.certificate(owner, serial)
    }

    fn account<'a>(
        &'a self,
        owner: &'a Owner,
    ) -> BoxFuture<'a, Result<TrustAnswer<AccountKey>, Unavailable>> {
        let verdict = self.index.account(owner).map_or(TrustAnswer::Unknown, TrustAnswer::Trusted);
        Box::pin(std::future::ready(Ok(verdict)))
    }
}

impl fmt::Debug for DirTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirTrust").field("trusted", &self.index.len()).finish_non_exhaustive()
    }
}

// === impl Keeper ===

impl Keeper {
    async fn run(mut self) {
        loop {
            let settled = self.settles;
            let thorough = tokio::select! {
                () = changed(self.watch.as_mut()) => true,
                () = sleep_until(settled.unwrap_or_else(Instant::now)), if settled.is_some() => true,
                () = sleep(self.poll) => self.blind,
            };
            if let Err(error) = self.look(thorough).await {
                self.settles = None;
                if !std::mem::replace(&mut self.blind, true) {
                    tracing::error!(%error, dir = ?self.dir, "trust directory cannot be read; what was read last holds on");
                }
            }
            sleep(REST).await;
        }
    }

    /// Brings the index up to the directory. If it was not watched yet, watches it and looks again, since it may have
    /// changed in between.
    async fn look(&mut self, thorough: bool) -> io::Result<()> {
        let mut look = self.scan(thorough).await?;
        if self.watched != Some(look.dir) {
            self.watch = Some(self.notifier.watch(&self.dir));
            self.watched = Some(look.dir);
            look = self.scan(true).await?;
        }
        if std::mem::take(&mut self.blind) {
            tracing::info!(dir = ?self.dir, "trust directory can be read again");
        }
        self.settles = look.settles.map(Instant::from_std);
        Ok(())
    }

    async fn scan(&self, thorough: bool) -> io::Result<ScanResult> {
        let scanner = Arc::clone(&self.scanner);
        let index = Arc::clone(&self.index);
        let now = Instant::now().into_std();
        let scan = move || {
            let mut scanner = scanner.lock().unwrap_or_else(PoisonError::into_inner);
            let look = scanner.look(now, thorough)?;
            if look.changed {
                let change = index.replace(scanner.trusted());
                if change.any() {
                    tracing::info!(
                        added = change.added,
                        withdrawn = change.withdrawn,
                        files_read = look.read,
                        "trusted certificates and keys changed"
                    );
                }
            }
            Ok(look)
        };
        spawn_blocking(scan).await.unwrap_or_else(|lost| Err(lost.into()))
    }
}

async fn changed(watch: Option<&mut DirWatch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

fn say(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "does not exist".to_owned(),
        io::ErrorKind::NotADirectory => "is not a directory".to_owned(),
        _ => format!("cannot be read: {error}"),
    }
}
