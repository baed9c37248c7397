//! Reloading of a certificate and its key while the gateway runs.
//!
//! Both files are read and checked before they replace the current pair, so the presented pair always
//! matches. The files may be written one after the other, by renaming or in place, or swapped together by a
//! link, as Kubernetes mounts secrets. An unusable pair replaces nothing, and is logged once. New handshakes
//! use the new pair; open connections are not affected.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::Gauge;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Error, load};
use crate::sys::dir_watch::{DirWatch, Notifier};

/// How often the files are checked without a notification: the target of a link may change in another
/// directory. A check is two system calls, and certificates are renewed days ahead.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Least time between two checks, so that a burst of changes causes one.
const DEBOUNCE: Duration = Duration::from_millis(200);

/// Time for which an unusable pair is not logged: its other half may follow.
const SETTLE: Duration = Duration::from_secs(2);

/// Remaining validity below which the log warns; or a [third](VALIDITY_DIVISOR) of the whole validity of a
/// certificate that is made for days. ACME clients renew with 30 days left, so by then renewal has failed for
/// two weeks.
const EXPIRY_WARNING: Duration = Duration::from_secs(14 * DAY.as_secs());

/// The warning starts at most the whole validity divided by this before the end.
const VALIDITY_DIVISOR: u32 = 3;

/// How often the log warns.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A certificate and key that are reloaded from their files. Dropping it stops that.
#[derive(Debug)]
pub struct ReloadingCert {
    current: watch::Receiver<Arc<CertifiedKey>>,
    _task: AbortOnDropHandle<()>,
}

/// The task that reloads a pair.
struct ReloadTask {
    files: Files,
    notifier: Notifier,
    /// Of the directories of the files.
    watches: [DirWatch; 2],
    current: watch::Sender<Arc<CertifiedKey>>,
    /// State of the files at the last check.
    stamp: Option<Stamp>,
    problem: Option<Problem>,
    expiry: Gauge,
    last_warning: Option<SystemTime>,
}

/// Why the files cannot be used.
#[derive(Clone, Debug, PartialEq)]
struct Problem {
    error: String,
    since: Instant,
    is_logged: bool,
}

#[derive(Clone, Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// Detects changes of either file: device, inode, size and time of the last change.
type Stamp = [(u64, u64, u64, i64, i64); 2];

// === impl ReloadingCert ===

impl ReloadingCert {
    /// Reads the pair, and reloads it from then on. Sets `expiry` to the end of the certificate's validity,
    /// in Unix seconds. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// As [`load`](super::load): without a first pair there is nothing to present.
    pub fn open(certificate: &Path, key: &Path, notifier: &Notifier, expiry: Gauge) -> Result<Self, Error> {
        let files = Files { certificate: certificate.to_owned(), key: key.to_owned() };
        let (task, current) = ReloadTask::open(files, notifier, expiry)?;
        #[expect(clippy::disallowed_methods, reason = "owned: the handle aborts it")]
        let task = tokio::spawn(task.run());
        Ok(Self { current, _task: AbortOnDropHandle::new(task) })
    }
}

impl ResolvesServerCert for ReloadingCert {
    fn resolve(&self, _client: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.borrow()))
    }
}

// === impl ReloadTask ===

impl ReloadTask {
    fn open(
        files: Files,
        notifier: &Notifier,
        expiry: Gauge,
    ) -> Result<(Self, watch::Receiver<Arc<CertifiedKey>>), Error> {
        // Watched and stamped before they are read, so that a change in between is detected.
        let watches = files.watch(notifier);
        let stamp = files.stamp().ok();
        let (sender, current) = watch::channel(Arc::new(files.load()?));
        let mut task = Self {
            files,
            notifier: notifier.clone(),
            watches,
            current: sender,
            stamp,
            problem: None,
            expiry,
            last_warning: None,
        };
        task.check_expiry(SystemTime::now());
        Ok((task, current))
    }

    async fn run(mut self) {
        loop {
            let [certificates, keys] = &mut self.watches;
            let settles = self.problem.as_ref().filter(|p| !p.is_logged).map(|p| p.since + SETTLE);
            tokio::select! {
                () = certificates.changed() => {}
                () = keys.changed() => {}
                () = tokio::time::sleep_until(settles.unwrap_or_else(Instant::now)), if settles.is_some() => {}
                () = sleep(CHECK_INTERVAL) => {
                    // The watched directory may have been replaced by another one.
                    self.watches = self.files.watch(&self.notifier);
                    self.check_expiry(SystemTime::now());
                }
            }
            self.check().await;
            sleep(DEBOUNCE).await;
        }
    }

    async fn check(&mut self) {
        let (files, before) = (self.files.clone(), self.stamp);
        let must_log = self.problem.as_ref().is_some_and(Problem::must_log);
        let read = move || {
            let stamp = files.stamp().ok();
            (stamp != before || stamp.is_none() || must_log).then(|| (stamp, files.load()))
        };
        let Ok(Some((stamp, loaded))) = spawn_blocking(read).await else {
            return;
        };
        self.stamp = stamp;
        match loaded {
            Ok(pair) => self.replace(pair),
            Err(error) => self.keep(error.to_string()),
        }
    }

    fn replace(&mut self, pair: CertifiedKey) {
        self.problem = None;
        if self.current.borrow().cert == pair.cert {
            return;
        }
        self.current.send_replace(Arc::new(pair));
        tracing::info!(certificate = %self.files.certificate.display(), "reloaded certificate");
        self.last_warning = None;
        self.check_expiry(SystemTime::now());
    }

    fn keep(&mut self, error: String) {
        match &mut self.problem {
            Some(problem) if problem.error == error => {
                if problem.must_log() {
                    problem.is_logged = true;
                    tracing::error!(%error, "failed to reload certificate or key, keeping the previous pair");
                }
            }
            _ => self.problem = Some(Problem { error, since: Instant::now(), is_logged: false }),
        }
    }

    /// Sets the gauge, and warns once a day if the certificate expires soon.
    fn check_expiry(&mut self, now: SystemTime) {
        let current = self.current.borrow();
        let Some((start, end)) = validity(&current) else {
            return;
        };
        self.expiry.set(end.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        let recently = |warned: SystemTime| now.duration_since(warned).is_ok_and(|since| since < DAY);
        if now < warn_from(start, end) || self.last_warning.is_some_and(recently) {
            return;
        }
        self.last_warning = Some(now);
        let certificate = self.files.certificate.display();
        if let Ok(left) = end.duration_since(now) {
            let days_left = left.as_secs() / DAY.as_secs();
            tracing::warn!(%certificate, days_left, "certificate expires soon, renew it");
        } else {
            tracing::error!(%certificate, "certificate has expired, clients reject it");
        }
    }
}

// === impl Problem ===

impl Problem {
    fn must_log(&self) -> bool {
        !self.is_logged && self.since.elapsed() >= SETTLE
    }
}

// === impl Files ===

impl Files {
    fn load(&self) -> Result<CertifiedKey, Error> {
        load(&self.certificate, &self.key)
    }

    fn stamp(&self) -> io::Result<Stamp> {
        let stamp = |path: &Path| {
            let file = fs::metadata(path)?;
            Ok::<_, io::Error>((file.dev(), file.ino(), file.size(), file.ctime(), file.ctime_nsec()))
        };
        Ok([stamp(&self.certificate)?, stamp(&self.key)?])
    }

    fn watch(&self, notifier: &Notifier) -> [DirWatch; 2] {
        [&self.certificate, &self.key].map(|file| {
            let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty());
            notifier.watch(dir.unwrap_or(Path::new(".")))
        })
    }
}

/// Returns the start and the end of the certificate's validity.
pub(super) fn validity(pair: &CertifiedKey) -> Option<(SystemTime, SystemTime)> {
    let (_, parsed) = X509Certificate::from_der(pair.end_entity_cert().ok()?).ok()?;
    let at = |seconds: i64| UNIX_EPOCH.checked_add(Duration::from_secs(seconds.try_into().ok()?));
    let validity = parsed.validity();
    Some((at(validity.not_before.timestamp())?, at(validity.not_after.timestamp())?))
}

/// Returns when the log starts to warn.
fn warn_from(start: SystemTime, end: SystemTime) -> SystemTime {
    let whole = end.duration_since(start).unwrap_or_default();
    end.checked_sub(EXPIRY_WARNING.min(whole / VALIDITY_DIVISOR)).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::super::generate::{CERTIFICATE_FILE, Generated, KEY_FILE, ensure};
    use super::*;

    /// Deadline that only a hang reaches.
    const DEADLINE: Duration = Duration::from_secs(30);

    struct Fixture {
        dir: TempDir,
        made: [Generated; 2],
    }

    /// Damages valid files.
    type Spoil = fn(&Fixture);

    /// Creates two pairs, and copies the first to the place where it is used.
    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let made = ["a", "b"].map(|name| ensure(&dir.path().join(name), &[], SystemTime::now()).unwrap());
        fs::create_dir(dir.path().join("used")).unwrap();
        let fixture = Fixture { dir, made };
        fixture.copy(0, CERTIFICATE_FILE);
        fixture.copy(0, KEY_FILE);
        fixture
    }

    impl Fixture {
        fn used(&self, name: &str) -> PathBuf {
            self.dir.path().join("used").join(name)
        }

        fn copy(&self, pair: usize, name: &str) {
            let from = self.made[pair].certificate.with_file_name(name);
            fs::copy(from, self.used(name)).unwrap();
        }

        fn open(&self, notifier: &Notifier) -> ReloadingCert {
            ReloadingCert::open(&self.used(CERTIFICATE_FILE), &self.used(KEY_FILE), notifier, Gauge::noop())
                .unwrap()
        }

        /// Waits until the current pair is this one.
        async fn becomes(&self, pair: &mut ReloadingCert, wanted: usize) {
            let wanted = load(&self.made[wanted].certificate, &self.made[wanted].key).unwrap();
            let changed = pair.current.wait_for(|current| current.cert == wanted.cert);
            tokio::time::timeout(DEADLINE, changed).await.expect("not replaced").unwrap();
            pair.current.borrow().keys_match().unwrap();
        }
    }

    #[tokio::test]
    async fn files_written_one_by_one_are_reloaded_together() {
        let fixture = fixture();
        let mut pair = fixture.open(&Notifier::start());
        for (wanted, order) in [(1, [KEY_FILE, CERTIFICATE_FILE]), (0, [CERTIFICATE_FILE, KEY_FILE])] {
            for name in order {
                fixture.copy(wanted, name);
            }
            fixture.becomes(&mut pair, wanted).await;
        }
    }

    #[tokio::test]
    async fn directory_swapped_by_a_link_is_reloaded() {
        let fixture = fixture();
        let at = |name: &str| fixture.dir.path().join(name);
        fs::create_dir(at("mount")).unwrap();
        symlink(at("a"), at("mount/..data")).unwrap();
        for name in [CERTIFICATE_FILE, KEY_FILE] {
            symlink(Path::new("..data").join(name), at("mount").join(name)).unwrap();
        }
        let (certificate, key) = (at("mount").join(CERTIFICATE_FILE), at("mount").join(KEY_FILE));
        let mut pair = ReloadingCert::open(&certificate, &key, &Notifier::start(), Gauge::noop()).unwrap();
        symlink(at("b"), at("mount/..next")).unwrap();
        fs::rename(at("mount/..next"), at("mount/..data")).unwrap();
        fixture.becomes(&mut pair, 1).await;
    }

    #[tokio::test(start_paused = true)]
    async fn unusable_pair_replaces_nothing_and_is_logged_once() {
        let fixture = fixture();
        let files = Files { certificate: fixture.used(CERTIFICATE_FILE), key: fixture.used(KEY_FILE) };
        let (mut task, mut current) =
            ReloadTask::open(files.clone(), &Notifier::polling(), Gauge::noop()).unwrap();
        let spoils: [(&str, Spoil); 4] = [
            ("half", |fixture| fs::write(fixture.used(CERTIFICATE_FILE), "-----BEGIN CERT").unwrap()),
            ("mixed", |fixture| fixture.copy(1, CERTIFICATE_FILE)),
            ("empty", |fixture| fs::write(fixture.used(KEY_FILE), "").unwrap()),
            ("gone", |fixture| fs::remove_file(fixture.used(KEY_FILE)).unwrap()),
        ];
        for (case, spoil) in spoils {
            spoil(&fixture);
            task.check().await;
            assert!(!task.problem.as_ref().unwrap().is_logged, "{case}: its other half may follow");
            tokio::time::advance(SETTLE).await;
            task.check().await;
            assert!(task.problem.as_ref().unwrap().is_logged, "{case}");
            let known = task.problem.clone();
            tokio::time::advance(CHECK_INTERVAL).await;
            task.check().await;
            assert_eq!(task.problem, known, "{case}");
            assert!(!current.has_changed().unwrap(), "{case}");
        }
        fixture.copy(1, CERTIFICATE_FILE);
        fixture.copy(1, KEY_FILE);
        task.check().await;
        assert!(current.has_changed().unwrap() && task.problem.is_none());
        assert_eq!(current.borrow_and_update().cert, files.load().unwrap().cert);
        task.check().await;
        assert!(!current.has_changed().unwrap(), "replaced once");
    }

    #[test]
    fn expiry_warning_starts_two_weeks_or_a_third_ahead() {
        let days = |days: u32| DAY * days;
        let at = |day: u32| UNIX_EPOCH + days(day);
        for (from, to, warned) in [(0, 3650, 3636), (10, 100, 86), (0, 42, 28), (0, 6, 4)] {
            assert_eq!(warn_from(at(from), at(to)), at(warned), "{from} to {to}");
        }
    }
}
