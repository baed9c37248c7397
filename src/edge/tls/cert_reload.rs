//! A certificate and its key, kept like their files while the gateway runs.
//!
//! What is presented is always a pair that belongs together: both files are read and checked before they replace what there is. So
//! the two may be written one after the other, by renaming or in place, or swapped together behind a link, as Kubernetes mounts
//! secrets. A pair that cannot be used replaces nothing, and the log says so once. Handshakes from then on use the new pair;
//! connections that are open know nothing of it.

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

use super::{Error, config};
use crate::sys::notify::{DirWatch, Notifier};

/// How often the files are looked at where the system tells of nothing: what a link leads to may change elsewhere. It costs two
/// system calls, and waits as long as nobody minds who renews a certificate days ahead.
const LOOK: Duration = Duration::from_secs(60);

/// At least this lies between two looks, so that a burst of changes costs one.
const REST: Duration = Duration::from_millis(200);

/// For this long a pair that cannot be used is not spoken of: its other half may be on its way.
const SETTLE: Duration = Duration::from_secs(2);

/// The log warns when less than this is left of a certificate; or less than a [third](EXPIRY_PART) of its whole time, of one
/// that is made for days. Authorities' clients renew with 30 days left, so by now that has failed for two weeks.
const EXPIRY_WARNING: Duration = Duration::from_secs(14 * DAY.as_secs());

/// The part of a certificate's whole time within which the log warns, at most.
const EXPIRY_PART: u32 = 3;

/// How often it warns.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The pair that two files hold. Dropping it ends the watching.
#[derive(Debug)]
pub struct ReloadingCert {
    current: watch::Receiver<Arc<CertifiedKey>>,
    _keeper: AbortOnDropHandle<()>,
}

/// The task that keeps the pair like its files.
struct ReloadTask {
    files: Files,
    notifier: Notifier,
    /// Of the directories that the files are in.
    watches: [DirWatch; 2],
    current: watch::Sender<Arc<CertifiedKey>>,
    /// What the files were when they were looked at last.
    stamp: Option<Stamp>,
    /// What keeps them from being used, and since when.
    trouble: Option<(String, Instant)>,
    /// Whether the log has it.
    said: bool,
    ends: Gauge,
    warned: Option<SystemTime>,
}

#[derive(Clone, Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// By which a change of either file shows: device, inode, size, and time of the last change.
type Stamp = [(u64, u64, u64, i64, i64); 2];

// === impl Pair ===

impl ReloadingCert {
    /// Reads the pair and keeps to its files from then on. `ends` is set to the time at which its certificate does, in Unix
    /// seconds. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// As [`load`](super::load): without a pair to begin with there is nothing to present.
    pub fn open(certificate: &Path, key: &Path, notifier: &Notifier, ends: Gauge) -> Result<Self, Error> {
        let files = Files { certificate: certificate.to_owned(), key: key.to_owned() };
        let (keeper, current) = ReloadTask::open(files, notifier, ends)?;
        #[expect(clippy::disallowed_methods, reason = "owned: the handle aborts it")]
        let task = tokio::spawn(keeper.run());
        Ok(Self { current, _keeper: AbortOnDropHandle::new(task) })
    }

    /// The pair as it is now.
    pub fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.current.borrow())
    }
}

impl ResolvesServerCert for ReloadingCert {
    fn resolve(&self, _client: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

// === impl Keeper ===

impl ReloadTask {
    fn open(
        files: Files,
        notifier: &Notifier,
        ends: Gauge,
    ) -> Result<(Self, watch::Receiver<Arc<CertifiedKey>>), Error> {
        // Watched and stamped before they are read: a change in between is seen as one.
        let watches = files.watch(notifier);
        let stamp = files.stamp().ok();
        let (sender, current) = watch::channel(Arc::new(files.load()?));
        let mut keeper = Self {
            files,
            notifier: notifier.clone(),
            watches,
            current: sender,
            stamp,
            trouble: None,
            said: false,
            ends,
            warned: None,
        };
        keeper.tell_end(SystemTime::now());
        Ok((keeper, current))
    }

    async fn run(mut self) {
        loop {
            let [certificates, keys] = &mut self.watches;
            let settles = self.trouble.as_ref().filter(|_| !self.said).map(|(_, since)| *since + SETTLE);
            tokio::select! {
                () = certificates.changed() => {}
                () = keys.changed() => {}
                () = tokio::time::sleep_until(settles.unwrap_or_else(Instant::now)), if settles.is_some() => {}
                () = sleep(LOOK) => {
                    // Another directory may have taken the place of the one that is watched.
                    self.watches = self.files.watch(&self.notifier);
                    self.tell_end(SystemTime::now());
                }
            }
            self.look().await;
            sleep(REST).await;
        }
    }

    async fn look(&mut self) {
        let (files, before) = (self.files.clone(), self.stamp);
        let settled = self.trouble.as_ref().is_some_and(|(_, since)| since.elapsed() >= SETTLE);
        let again = settled && !self.said;
        let read = move || {
            let stamp = files.stamp().ok();
            (stamp != before || stamp.is_none() || again).then(|| (stamp, files.load()))
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
        self.trouble = None;
        self.said = false;
        if self.current.borrow().cert == pair.cert {
            return;
        }
        self.current.send_replace(Arc::new(pair));
        tracing::info!(certificate = %self.files.certificate.display(), "certificate replaced: new connections are shown it");
        self.warned = None;
        self.tell_end(SystemTime::now());
    }

    fn keep(&mut self, error: String) {
        match &self.trouble {
            Some((known, since)) if *known == error => {
                if since.elapsed() >= SETTLE && !std::mem::replace(&mut self.said, true) {
                    tracing::error!(%error, "certificate or key cannot be used; what was read last is shown on");
                }
            }
            _ => {
                self.trouble = Some((error, Instant::now()));
                self.said = false;
            }
        }
    }

    /// Sets the gauge, and warns once a day of an end that is near.
    fn tell_end(&mut self, now: SystemTime) {
        let current = self.current.borrow();
        let Some(validity) = Validity::of(&current) else {
            return;
        };
        self.ends.set(seconds(validity.to));
        let recently = |warned: SystemTime| now.duration_since(warned).is_ok_and(|since| since < DAY);
        if now < validity.warn_from() || self.warned.is_some_and(recently) {
            return;
        }
        self.warned = Some(now);
        let certificate = self.files.certificate.display();
        if let Ok(left) = validity.to.duration_since(now) {
            let days_left = left.as_secs() / DAY.as_secs();
            tracing::warn!(%certificate, days_left, "certificate ends soon: renew it");
        } else {
            tracing::error!(%certificate, "certificate has ended: clients refuse it");
        }
    }
}

// === impl Files ===

impl Files {
    fn load(&self) -> Result<CertifiedKey, Error> {
        config::load(&self.certificate, &self.key)
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

/// When a certificate is good.
#[derive(Clone, Copy, Debug)]
struct Validity {
    from: SystemTime,
    to: SystemTime,
}

// === impl Validity ===

impl Validity {
    fn of(pair: &CertifiedKey) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(pair.end_entity_cert().ok()?).ok()?;
        let at = |seconds: i64| UNIX_EPOCH.checked_add(Duration::from_secs(seconds.try_into().ok()?));
        let validity = parsed.validity();
        Some(Self { from: at(validity.not_before.timestamp())?, to: at(validity.not_after.timestamp())? })
    }

    /// From when on its end is near.
    fn warn_from(&self) -> SystemTime {
        let whole = self.to.duration_since(self.from).unwrap_or_default();
        self.to.checked_sub(EXPIRY_WARNING.min(whole / EXPIRY_PART)).unwrap_or(UNIX_EPOCH)
    }
}

/// As metrics have it.
fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::super::generate::{CERTIFICATE_FILE, Generated, KEY_FILE, ensure};
    use super::*;

    /// Far beyond what any of this takes; only a hang reaches it.
    const DEADLINE: Duration = Duration::from_secs(30);

    struct Place {
        dir: TempDir,
        made: [Generated; 2],
    }

    /// What happens to files that were good.
    type Spoil = fn(&Place);

    /// Two pairs, the first of them copied to where it is used.
    fn place() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let made = ["a", "b"].map(|name| ensure(&dir.path().join(name), &[], SystemTime::now()).unwrap());
        fs::create_dir(dir.path().join("used")).unwrap();
        let place = Place { dir, made };
        place.copy(0, CERTIFICATE_FILE);
        place.copy(0, KEY_FILE);
        place
    }

    impl Place {
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

        /// Waits until the pair is this one. It is never anything but one of the two.
        async fn becomes(&self, pair: &mut ReloadingCert, wanted: usize) {
            let wanted = config::load(&self.made[wanted].certificate, &self.made[wanted].key).unwrap();
            let changed = pair.current.wait_for(|current| current.cert == wanted.cert);
            tokio::time::timeout(DEADLINE, changed).await.expect("not replaced").unwrap();
            pair.current().keys_match().unwrap();
        }
    }

    #[tokio::test]
    async fn files_written_one_after_the_other_are_picked_up_together() {
        let place = place();
        let mut pair = place.open(&Notifier::start());
        for (wanted, order) in [(1, [KEY_FILE, CERTIFICATE_FILE]), (0, [CERTIFICATE_FILE, KEY_FILE])] {
            for name in order {
                place.copy(wanted, name);
            }
            place.becomes(&mut pair, wanted).await;
        }
    }

    #[tokio::test]
    async fn a_directory_swapped_behind_a_link_is_picked_up() {
        let place = place();
        let at = |name: &str| place.dir.path().join(name);
        fs::create_dir(at("mount")).unwrap();
        symlink(at("a"), at("mount/..data")).unwrap();
        for name in [CERTIFICATE_FILE, KEY_FILE] {
            symlink(Path::new("..data").join(name), at("mount").join(name)).unwrap();
        }
        let (certificate, key) = (at("mount").join(CERTIFICATE_FILE), at("mount").join(KEY_FILE));
        let mut pair = ReloadingCert::open(&certificate, &key, &Notifier::start(), Gauge::noop()).unwrap();
        symlink(at("b"), at("mount/..next")).unwrap();
        fs::rename(at("mount/..next"), at("mount/..data")).unwrap();
        place.becomes(&mut pair, 1).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_pair_that_cannot_be_used_replaces_nothing_and_is_said_once() {
        let place = place();
        let files = Files { certificate: place.used(CERTIFICATE_FILE), key: place.used(KEY_FILE) };
        let (mut keeper, mut current) =
            ReloadTask::open(files.clone(), &Notifier::polling(), Gauge::noop()).unwrap();
        let spoils: [(&str, Spoil); 4] = [
            ("half", |place| fs::write(place.used(CERTIFICATE_FILE), "-----BEGIN CERT").unwrap()),
            ("mixed", |place| place.copy(1, CERTIFICATE_FILE)),
            ("empty", |place| fs::write(place.used(KEY_FILE), "").unwrap()),
            ("gone", |place| fs::remove_file(place.used(KEY_FILE)).unwrap()),
        ];
        for (case, spoil) in spoils {
            spoil(&place);
            keeper.look().await;
            assert!(keeper.trouble.is_some() && !keeper.said, "{case}: its other half may be on its way");
            tokio::time::advance(SETTLE).await;
            keeper.look().await;
            assert!(keeper.said, "{case}");
            let known = keeper.trouble.clone();
            tokio::time::advance(LOOK).await;
            keeper.look().await;
            assert_eq!(keeper.trouble, known, "{case}");
            assert!(!current.has_changed().unwrap(), "{case}");
        }
        place.copy(1, CERTIFICATE_FILE);
        place.copy(1, KEY_FILE);
        keeper.look().await;
        assert!(current.has_changed().unwrap() && keeper.trouble.is_none());
        assert_eq!(current.borrow_and_update().cert, files.load().unwrap().cert);
        keeper.look().await;
        assert!(!current.has_changed().unwrap(), "replaced once");
    }

    #[test]
    fn an_end_is_near_two_weeks_ahead_or_a_third() {
        let days = |days: u32| DAY * days;
        let at = |day: u32| UNIX_EPOCH + days(day);
        for (from, to, warned) in [(0, 3650, 3636), (10, 100, 86), (0, 42, 28), (0, 6, 4)] {
            let validity = Validity { from: at(from), to: at(to) };
            assert_eq!(validity.warn_from(), at(warned), "{from} to {to}");
        }
    }
}
