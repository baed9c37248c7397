//! Scans of a trust directory: which entries of its files are trusted.
//!
//! Blocks on the file system. Uses no runtime; the caller passes the time.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::io::Errno;

use super::REWRITE_GRACE;
use super::file::{self, FileContent, FileId, Stamp};
use crate::access::trust::{TrustEntry, TrustId, TrustValue};
use crate::access::trust_file::{FileError, is_trust_file};

/// Maximum of files that are read, in order of name. A provider has some hundred tenants.
const FILES_MAX: usize = 16_384;

/// The state of a directory after the last scan.
#[derive(Debug)]
pub(super) struct Scanner {
    dir: PathBuf,
    files: BTreeMap<OsString, TrackedFile>,
    /// Links that were dangling at the last scan, and whether that is logged. It is logged at the second
    /// scan, because a target may be removed before its link, or replaced.
    dangling: BTreeMap<OsString, bool>,
    /// `None` if the next scan must be thorough.
    stamp: Option<Stamp>,
    /// [`Scanner::trusted`] may have changed since its last call.
    dirty: bool,
    /// Logged once until the number of files is in bounds again.
    too_many_logged: bool,
}

/// The result of a scan.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScanResult {
    /// The identity of the directory.
    pub(super) dir: FileId,
    /// [`Scanner::trusted`] may have changed since its last call.
    pub(super) changed: bool,
    pub(super) files_read: usize,
    /// When to scan again even without a notification.
    pub(super) recheck_at: Option<Instant>,
}

#[derive(Debug, Default)]
struct TrackedFile {
    id: Option<FileId>,
    stamp: Option<Stamp>,
    /// The entries that were read last.
    found: Vec<TrustEntry>,
    /// `found` and, until `recheck_at`, the entries that a rewrite in place removed.
    trusted: Vec<TrustEntry>,
    error: Option<FileError>,
    /// The error that was logged last.
    logged: Option<FileError>,
    /// When the grace for a rewrite in place ends. `Some` exactly if `trusted` or `logged` differs from the
    /// file.
    recheck_at: Option<Instant>,
    /// An entry is ignored because another file has a different one for the same key.
    shadowed: bool,
}

/// The result of scanning one file.
enum FileScan {
    /// It did not change, and was not read.
    Unchanged,
    /// It was read, or reading it failed. `changed`: other entries may be trusted now.
    Read { changed: bool },
    /// It does not exist: it was removed after the listing, or is a dangling link.
    Missing,
}

/// The trust files in a directory.
struct Listing {
    names: BTreeSet<OsString>,
    /// One of them is a link. The directory does not show changes of its target.
    has_links: bool,
    too_many: bool,
}

// === impl Scanner ===

impl Scanner {
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            files: BTreeMap::new(),
            dangling: BTreeMap::new(),
            stamp: None,
            dirty: false,
            too_many_logged: false,
        }
    }

    /// Scans the directory: every file if `thorough`, otherwise only if a change is possible. Reads only
    /// changed files.
    ///
    /// Fails if the directory itself cannot be read. The earlier state then stays.
    pub(super) fn scan(&mut self, now: Instant, thorough: bool) -> io::Result<ScanResult> {
        let stamp = Stamp::of(&std::fs::metadata(&self.dir)?);
        let mut files_read = 0;
        if thorough || self.stamp != Some(stamp) {
            self.stamp = None;
            let listing = Listing::of(&self.dir)?;
            let has_links = listing.has_links;
            files_read = self.scan_files(listing, stamp.id, now)?;
            let unreadable = self.files.values().any(TrackedFile::is_unreadable);
            self.stamp = stamp.if_old().filter(|_| !has_links && !unreadable);
        }
        for (name, file) in &mut self.files {
            self.dirty |= file.end_grace(name, now);
        }
        Ok(ScanResult {
            dir: stamp.id,
            changed: self.dirty,
            files_read,
            recheck_at: self.files.values().filter_map(|file| file.recheck_at).min(),
        })
    }

    /// Scans every file. Returns how many were read.
    fn scan_files(&mut self, listing: Listing, dir: FileId, now: Instant) -> io::Result<usize> {
        let Listing { names, too_many, .. } = listing;
        if too_many {
            if !self.too_many_logged {
                tracing::warn!(dir = ?self.dir, limit = FILES_MAX, "too many files in trust directory, ignoring the last by name");
            }
            let before = self.files.len();
            self.files.retain(|name, _| names.contains(name));
            self.dirty |= self.files.len() != before;
        }
        self.too_many_logged = too_many;
        // A listing may omit a name over which a file is renamed meanwhile, so known names are checked, too.
        let unlisted: Vec<OsString> =
            self.files.keys().filter(|name| !names.contains(*name)).cloned().collect();
        let listed = names.into_iter().map(|name| (name, true));
        let mut dangling = BTreeMap::new();
        let mut files_read = 0;
        for (name, is_listed) in listed.chain(unlisted.into_iter().map(|name| (name, false))) {
            let file = self.files.entry(name.clone()).or_default();
            match file.scan(&self.dir.join(&name), now) {
                FileScan::Unchanged => {}
                FileScan::Read { changed } => {
                    self.dirty |= changed;
                    files_read += 1;
                }
                FileScan::Missing => {
                    // The directory may be missing instead.
                    if Stamp::of(&std::fs::metadata(&self.dir)?).id != dir {
                        return Err(io::Error::other("replaced while it was read"));
                    }
                    self.files.remove(&name);
                    self.dirty = true;
                    if is_listed {
                        let before = self.dangling.get(&name).copied();
                        if before == Some(false) {
                            tracing::warn!(file = ?name, "dangling link in trust directory");
                        }
                        dangling.insert(name, before.is_some());
                    }
                }
            }
        }
        self.dangling = dangling;
        Ok(files_read)
    }

    /// Returns the items to trust. Of several certificates with the same owner and serial number, the one in
    /// the first file by name.
    pub(super) fn trusted(&mut self) -> HashMap<TrustId, TrustValue> {
        self.dirty = false;
        let mut trusted = HashMap::new();
        for (name, file) in &mut self.files {
            let mut shadowed = false;
            for entry in &file.trusted {
                match trusted.entry(entry.key.clone()) {
                    Entry::Vacant(free) => {
                        free.insert(entry.value.clone());
                    }
                    Entry::Occupied(taken) => shadowed |= *taken.get() != entry.value,
                }
            }
            if shadowed && !file.shadowed {
                tracing::warn!(
                    file = ?name,
                    "certificate ignored: an earlier file of the trust directory has another one of the same owner and serial number"
                );
            }
            file.shadowed = shadowed;
        }
        trusted
    }
}

// === impl Listing ===

impl Listing {
    fn of(dir: &Path) -> io::Result<Self> {
        let mut listing = Self { names: BTreeSet::new(), has_links: false, too_many: false };
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if !is_trust_file(name.as_bytes()) {
                continue;
            }
            listing.has_links |= entry.file_type().is_ok_and(|kind| kind.is_symlink());
            listing.names.insert(name);
            if listing.names.len() > FILES_MAX {
                listing.names.pop_last();
                listing.too_many = true;
            }
        }
        Ok(listing)
    }
}

/// Returns whether the error means that the file, or the target of the link, does not exist.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

// === impl TrackedFile ===

impl TrackedFile {
    /// Reads the file if it may have changed.
    fn scan(&mut self, path: &Path, now: Instant) -> FileScan {
        let stamp = std::fs::metadata(path).map(|metadata| Stamp::of(&metadata));
        if self.stamp.is_some() && self.stamp == stamp.as_ref().ok().copied() {
            return FileScan::Unchanged;
        }
        let error = match file::read(path) {
            Ok(content) => return self.update(content, now),
            Err(error) if is_missing(&error) => return FileScan::Missing,
            Err(error) => error,
        };
        match stamp {
            // Another file has this name now, so the entries of the earlier one are gone.
            Ok(stamp) if self.id != Some(stamp.id) => {
                self.update(FileContent::unreadable(stamp.id, error.kind()), now)
            }
            // The content is unknown, so nothing changes.
            _ => {
                self.stamp = None;
                self.set_error(Some(FileError::Unreadable(error.kind())), now);
                FileScan::Read { changed: false }
            }
        }
    }

    fn update(&mut self, content: FileContent, now: Instant) -> FileScan {
        let in_place = self.id == Some(content.id);
        self.id = Some(content.id);
        self.stamp = content.stamp;
        self.found = content.entries;
        let before = std::mem::take(&mut self.trusted);
        let removed = before.iter().filter(|old| in_place && !self.found.contains(old));
        self.trusted = self.found.iter().chain(removed).cloned().collect();
        self.set_error(content.error, now);
        FileScan::Read { changed: self.trusted != before }
    }

    fn set_error(&mut self, error: Option<FileError>, now: Instant) {
        self.error = error;
        let pending = self.trusted.len() > self.found.len() || self.error != self.logged;
        // The first deadline stays: a file that changes all the time must not postpone it.
        self.recheck_at = pending.then(|| self.recheck_at.unwrap_or(now + REWRITE_GRACE));
    }

    fn is_unreadable(&self) -> bool {
        matches!(self.error, Some(FileError::Unreadable(_)))
    }

    /// Applies the file as it is, if its grace is over. Returns whether the trusted entries changed.
    fn end_grace(&mut self, name: &OsString, now: Instant) -> bool {
        if self.recheck_at.is_none_or(|at| now < at) {
            return false;
        }
        self.recheck_at = None;
        if self.error != self.logged {
            if let Some(error) = &self.error {
                tracing::warn!(file = ?name, %error, "ignored invalid entries of a trust file");
            }
            self.logged.clone_from(&self.error);
        }
        let changed = self.trusted != self.found;
        self.trusted.clone_from(&self.found);
        changed
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::LazyLock;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::access::cert::TenantCertificate;
    use crate::access::dir::Index;
    use crate::access::testing::Tenant;
    use crate::access::trust::TrustedItem;
    use crate::access::trust_file::{self, CERTIFICATES_MAX};

    /// Between two actions of a test: far below [`REWRITE_GRACE`].
    const STEP: Duration = Duration::from_millis(1);

    /// Certificates. The last two have the same owner and serial number.
    static POOL: LazyLock<[(TenantCertificate, String); 5]> = LazyLock::new(|| {
        [(1, 1), (1, 2), (2, 1), (3, 1), (3, 1)].map(|(n, serial)| Tenant::new(n, serial).issue())
    });

    /// The certificates with a unique key.
    const UNIQUE: std::ops::Range<usize> = 0..3;

    const NAMES: [&str; 3] = ["a.pem", "b.pem", "c.pem"];

    /// A directory, its index, and a clock.
    struct TestDir {
        outer: tempfile::TempDir,
        scanner: Scanner,
        index: Index,
        now: Instant,
    }

    impl TestDir {
        fn new() -> Self {
            let outer = tempfile::tempdir().unwrap();
            fs::create_dir(outer.path().join("trust")).unwrap();
            let scanner = Scanner::new(&outer.path().join("trust"));
            Self { outer, scanner, index: Index::default(), now: Instant::now() }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.scanner.dir.join(name)
        }

        fn scan(&mut self, after: Duration) -> ScanResult {
            self.now += after;
            let result = self.scanner.scan(self.now, true).unwrap();
            if result.changed {
                self.index.replace(self.scanner.trusted());
            } else {
                // Then there is no change to miss.
                assert_eq!(self.index.replace(self.scanner.trusted()), (0, 0));
            }
            result
        }

        /// Waits until all stamps are valid.
        fn wait_for_stamps(&mut self) {
            let begin = Instant::now();
            while self.scan(STEP).files_read > 0 {
                assert!(begin.elapsed() < Duration::from_secs(30));
                std::thread::sleep(Duration::from_millis(20));
            }
        }

        fn trusted(&self, at: usize) -> Option<TrustedItem<TrustValue>> {
            let entry = TrustEntry::from(POOL[at].0.clone());
            self.index.get(&entry.key).filter(|trusted| trusted.value == entry.value)
        }

        fn all_trusted(&self) -> BTreeSet<usize> {
            (0..POOL.len()).filter(|at| self.trusted(*at).is_some()).collect()
        }

        fn replace(&self, name: &str, content: &[u8]) {
            let temporary = self.path("temporary");
            fs::write(&temporary, content).unwrap();
            fs::rename(temporary, self.path(name)).unwrap();
        }
    }

    fn pem(of: &[usize]) -> String {
        of.iter().map(|at| POOL[*at].1.as_str()).collect()
    }

    #[test]
    fn file_rewritten_in_place_stays_trusted() {
        let mut dir = TestDir::new();
        let path = dir.path("a.pem");
        fs::write(&path, pem(&[0, 1])).unwrap();
        dir.scan(STEP);
        let trusted = [0, 1].map(|at| dir.trusted(at).unwrap());
        // As a copy does: emptied, cut within a certificate, cut between two, complete.
        let whole = pem(&[0, 1]);
        for length in [0, 100, POOL[0].1.len(), whole.len()] {
            fs::write(&path, &whole[..length]).unwrap();
            dir.scan(STEP);
        }
        dir.scan(REWRITE_GRACE);
        for (at, trusted) in trusted.iter().enumerate() {
            assert!(!trusted.revocation.is_ended(), "{at}");
            assert!(dir.trusted(at).is_some(), "{at}");
        }
        assert!(dir.scan(STEP).recheck_at.is_none());
    }

    #[test]
    fn entry_removed_in_place_is_revoked_despite_constant_writes() {
        let mut dir = TestDir::new();
        let path = dir.path("a.pem");
        fs::write(&path, pem(&[0])).unwrap();
        dir.scan(STEP);
        let trusted = dir.trusted(0).unwrap();
        fs::write(&path, pem(&[1])).unwrap();
        let recheck_at = dir.scan(STEP).recheck_at.unwrap();
        assert!(dir.trusted(1).is_some(), "a new entry is trusted at once");
        while dir.now < recheck_at {
            assert!(!trusted.revocation.is_ended());
            fs::write(&path, format!("{:?}\n{}", dir.now, pem(&[1]))).unwrap();
            dir.scan(STEP);
        }
        assert!(trusted.revocation.is_ended());
        assert_eq!(dir.all_trusted(), [1].into());
    }

    #[test]
    fn removed_or_replaced_entry_is_revoked_at_once() {
        let mut dir = TestDir::new();
        for name in ["a.pem", "b.pem"] {
            fs::write(dir.path(name), pem(&[0])).unwrap();
        }
        dir.scan(STEP);
        let trusted = dir.trusted(0).unwrap();
        dir.replace("a.pem", b"");
        dir.scan(STEP);
        assert!(!trusted.revocation.is_ended(), "the other file has it, too");
        fs::remove_file(dir.path("b.pem")).unwrap();
        dir.scan(STEP);
        assert!(trusted.revocation.is_ended());
        assert_eq!(dir.index.len(), 0);
    }

    #[test]
    fn unreadable_file_or_directory_keeps_its_trust() {
        let mut dir = TestDir::new();
        fs::write(dir.path("a.pem"), pem(&[0])).unwrap();
        dir.scan(STEP);
        let trusted = dir.trusted(0).unwrap();
        let link = |dir: &TestDir, to: &str| {
            symlink(to, dir.path("temporary")).unwrap();
            fs::rename(dir.path("temporary"), dir.path("a.pem")).unwrap();
        };
        // A name that is too long: the error does not mean that the file is missing.
        link(&dir, &"x".repeat(300));
        for _ in 0..3 {
            dir.scan(REWRITE_GRACE);
            assert!(!trusted.revocation.is_ended());
        }
        let aside = dir.outer.path().join("aside");
        fs::rename(&dir.scanner.dir, &aside).unwrap();
        dir.scanner.scan(dir.now, true).unwrap_err();
        fs::rename(&aside, &dir.scanner.dir).unwrap();
        dir.scan(REWRITE_GRACE);
        assert!(!trusted.revocation.is_ended());
        link(&dir, "a.pem");
        dir.scan(STEP);
        assert!(trusted.revocation.is_ended(), "a link to itself is dangling");
    }

    #[test]
    fn directory_removed_during_scan_keeps_its_trust() {
        let mut dir = TestDir::new();
        fs::write(dir.path("a.pem"), pem(&[0])).unwrap();
        let result = dir.scan(STEP);
        let listing = Listing::of(&dir.scanner.dir).unwrap();
        let aside = dir.outer.path().join("aside");
        fs::rename(&dir.scanner.dir, &aside).unwrap();
        dir.scanner.scan_files(listing, result.dir, dir.now).unwrap_err();
        fs::rename(&aside, &dir.scanner.dir).unwrap();
        assert_eq!(dir.scanner.trusted().len(), 1);
    }

    #[test]
    fn entry_is_revoked_when_unreadable_file_replaces_its_file() {
        let mut dir = TestDir::new();
        fs::write(dir.path("a.pem"), pem(&[0])).unwrap();
        dir.scan(STEP);
        let trusted = dir.trusted(0).unwrap();
        // A regular file that cannot be read, even by root.
        symlink("/proc/self/mem", dir.path("temporary")).unwrap();
        fs::rename(dir.path("temporary"), dir.path("a.pem")).unwrap();
        dir.scan(STEP);
        assert!(trusted.revocation.is_ended());
        dir.scan(REWRITE_GRACE);
        let logged = dir.scanner.files.values().next().unwrap().logged.clone();
        assert!(matches!(logged, Some(FileError::Unreadable(_))), "{logged:?}");
    }

    #[test]
    fn first_file_by_name_decides_for_duplicate_keys() {
        let mut dir = TestDir::new();
        fs::write(dir.path("b.pem"), pem(&[3])).unwrap();
        dir.scan(STEP);
        let trusted = dir.trusted(3).unwrap();
        fs::write(dir.path("c.pem"), pem(&[4])).unwrap();
        dir.scan(STEP);
        assert!(!trusted.revocation.is_ended());
        fs::write(dir.path("a.pem"), pem(&[4])).unwrap();
        dir.scan(STEP);
        assert!(trusted.revocation.is_ended());
        assert_eq!(dir.all_trusted(), [4].into());
    }

    #[test]
    fn unchanged_file_is_not_read_again() {
        let mut dir = TestDir::new();
        fs::write(dir.path("a.pem"), pem(&[0])).unwrap();
        assert_eq!(dir.scan(STEP).files_read, 1);
        dir.wait_for_stamps();
        let idle = dir.scanner.scan(dir.now, false).unwrap();
        assert!(!idle.changed && idle.recheck_at.is_none());
        fs::write(dir.path("a.pem"), pem(&[1])).unwrap();
        assert_eq!(dir.scan(STEP).files_read, 1);
        fs::write(dir.path("b.pem"), pem(&[2])).unwrap();
        assert!(dir.scanner.scan(dir.now, false).unwrap().changed);
    }

    #[test]
    fn scan_is_always_thorough_with_links() {
        let mut dir = TestDir::new();
        let target = dir.outer.path().join("target");
        fs::write(&target, pem(&[0])).unwrap();
        symlink(&target, dir.path("a.pem")).unwrap();
        dir.scan(STEP);
        dir.wait_for_stamps();
        fs::write(&target, pem(&[1])).unwrap();
        assert!(dir.scanner.scan(dir.now, false).unwrap().changed);
    }

    #[test]
    fn dangling_link_is_logged_at_the_second_scan() {
        let mut dir = TestDir::new();
        let target = dir.outer.path().join("target");
        let logged = |dir: &TestDir| dir.scanner.dangling.values().copied().collect::<Vec<_>>();
        symlink(&target, dir.path("a.pem")).unwrap();
        symlink("b.pem", dir.path("b.pem")).unwrap();
        dir.scan(STEP);
        assert_eq!(logged(&dir), [false, false]);
        for _ in 0..2 {
            dir.scan(STEP);
            assert_eq!(logged(&dir), [true, true]);
        }
        fs::write(&target, pem(&[0])).unwrap();
        dir.scan(STEP);
        assert!(dir.trusted(0).is_some());
        assert_eq!(logged(&dir), [true]);
        fs::remove_file(dir.path("b.pem")).unwrap();
        dir.scan(STEP);
        assert!(logged(&dir).is_empty());
    }

    #[test]
    fn file_error_is_logged_once_and_only_if_it_lasts() {
        let mut dir = TestDir::new();
        let path = dir.path("a.pem");
        let logged = |dir: &TestDir| dir.scanner.files.values().next().unwrap().logged.clone();
        fs::write(&path, "-----BEGIN CERT").unwrap();
        assert!(dir.scan(STEP).recheck_at.is_some());
        assert_eq!(logged(&dir), None);
        fs::write(&path, pem(&[0])).unwrap();
        assert!(dir.scan(REWRITE_GRACE).recheck_at.is_none());
        assert_eq!(logged(&dir), None);
        fs::write(&path, "garbage").unwrap();
        dir.scan(STEP);
        dir.scan(REWRITE_GRACE);
        assert_eq!(logged(&dir), Some(FileError::NoCertificate));
        assert!(dir.scan(STEP).recheck_at.is_none());
        let half = &pem(&[0, 1])[..POOL[0].1.len() + 40];
        fs::write(&path, half).unwrap();
        dir.scan(STEP);
        assert!(dir.trusted(0).is_some(), "the valid half is trusted");
        dir.scan(REWRITE_GRACE);
        assert_eq!(logged(&dir), Some(FileError::Pem { number: 2 }));
    }

    #[test]
    fn certificates_beyond_the_limit_are_ignored() {
        let many = pem(&[0; CERTIFICATES_MAX]);
        let (certificates, error) = trust_file::parse(Path::new("a.pem"), many.as_bytes());
        assert_eq!((certificates.len(), error), (CERTIFICATES_MAX, None));
        let (certificates, error) =
            trust_file::parse(Path::new("a.pem"), format!("{many}{}", POOL[1].1).as_bytes());
        assert_eq!((certificates.len(), error), (CERTIFICATES_MAX, Some(FileError::TooManyCertificates)));
        assert!(!certificates.contains(&TrustEntry::from(POOL[1].0.clone())));
    }

    #[test]
    fn files_beyond_the_limit_are_ignored() {
        let dir = TestDir::new();
        for number in 0..=FILES_MAX {
            fs::File::create(dir.path(&format!("{number:08}.pem"))).unwrap();
        }
        let listing = Listing::of(&dir.scanner.dir).unwrap();
        assert!(listing.too_many);
        assert_eq!(listing.names.len(), FILES_MAX);
        let last = format!("{:08}.pem", FILES_MAX - 1);
        assert_eq!(listing.names.last().unwrap().to_str(), Some(last.as_str()));
    }

    #[derive(Clone, Debug)]
    enum Action {
        Write(usize, Vec<usize>),
        Replace(usize, Vec<usize>),
        Spoil(usize, usize),
        Half(usize, usize),
        Remove(usize),
        Link(usize, Vec<usize>),
        Dangle(usize),
        Rename(usize, usize),
        Wait,
    }

    impl Action {
        fn in_place(&self) -> bool {
            matches!(self, Self::Write(..) | Self::Spoil(..) | Self::Half(..))
        }
    }

    fn action() -> impl Strategy<Value = Action> {
        let (name, one) = (0..NAMES.len(), 0..POOL.len());
        let some = proptest::collection::vec(0..POOL.len(), 0..4);
        prop_oneof![
            3 => (name.clone(), some.clone()).prop_map(|(name, of)| Action::Write(name, of)),
            3 => (name.clone(), some.clone()).prop_map(|(name, of)| Action::Replace(name, of)),
            1 => (name.clone(), 0..2000_usize).prop_map(|(name, bytes)| Action::Spoil(name, bytes)),
            1 => (name.clone(), one).prop_map(|(name, of)| Action::Half(name, of)),
            2 => name.clone().prop_map(Action::Remove),
            1 => (name.clone(), some).prop_map(|(name, of)| Action::Link(name, of)),
            1 => name.clone().prop_map(Action::Dangle),
            1 => (name.clone(), name).prop_map(|(from, to)| Action::Rename(from, to)),
            2 => Just(Action::Wait),
        ]
    }

    /// The content of the files by name, and since when a rewrite in place has removed a certificate.
    #[derive(Default)]
    struct Model {
        files: BTreeMap<usize, Vec<usize>>,
        missed: BTreeMap<(usize, usize), Instant>,
        links: usize,
    }

    impl Model {
        /// Applies the action to the files and to the model.
        fn act(&mut self, dir: &TestDir, action: &Action) {
            let path = |name: &usize| dir.path(NAMES[*name]);
            match action {
                // Through a dangling link, this creates the target.
                Action::Write(name, of) => fs::write(path(name), pem(of)).unwrap(),
                Action::Spoil(name, bytes) => fs::write(path(name), vec![b'-'; *bytes]).unwrap(),
                Action::Half(name, of) => {
                    let text = &POOL[*of].1;
                    fs::write(path(name), &text[..text.len() / 2]).unwrap();
                }
                Action::Replace(name, of) => dir.replace(NAMES[*name], pem(of).as_bytes()),
                Action::Remove(name) => {
                    let _ = fs::remove_file(path(name));
                }
                Action::Link(name, of) => {
                    let target = self.link(dir, *name);
                    fs::write(target, pem(of)).unwrap();
                }
                Action::Dangle(name) => {
                    self.link(dir, *name);
                }
                Action::Rename(from, to) => {
                    if from != to && fs::rename(path(from), path(to)).is_ok() {
                        self.files.remove(to);
                        let of = self.files.remove(from);
                        self.files.extend(of.map(|of| (*to, of)));
                    }
                }
                Action::Wait => {}
            }
            self.note(action);
        }

        fn note(&mut self, action: &Action) {
            match action {
                Action::Write(name, of) | Action::Replace(name, of) | Action::Link(name, of) => {
                    self.files.insert(*name, of.clone());
                }
                Action::Spoil(name, _) | Action::Half(name, _) => {
                    self.files.insert(*name, Vec::new());
                }
                Action::Remove(name) | Action::Dangle(name) => {
                    self.files.remove(name);
                }
                Action::Rename(..) | Action::Wait => {}
            }
        }

        /// Replaces `name` by a link to a new name outside.
        fn link(&mut self, dir: &TestDir, name: usize) -> PathBuf {
            self.links += 1;
            let target = dir.outer.path().join(self.links.to_string());
            let temporary = dir.path("temporary");
            symlink(&target, &temporary).unwrap();
            fs::rename(temporary, dir.path(NAMES[name])).unwrap();
            target
        }

        /// Updates which removed certificates may still be trusted, after a scan at `now`.
        fn update_grace(&mut self, before: &BTreeMap<usize, Vec<usize>>, action: &Action, now: Instant) {
            for (name, of) in before {
                if self.files.get(name) == Some(of) {
                    continue;
                }
                for at in of.iter().filter(|_| action.in_place()) {
                    self.missed.entry((*name, *at)).or_insert(now);
                }
                self.missed.retain(|(missing, _), _| missing != name || action.in_place());
            }
            let files = &self.files;
            self.missed.retain(|(name, at), since| {
                let back = files.get(name).is_some_and(|of| of.contains(at));
                !back && now < *since + REWRITE_GRACE
            });
        }

        fn is_in_grace(&self, at: usize) -> bool {
            self.missed.keys().any(|(_, missed)| *missed == at)
        }

        fn present(&self) -> BTreeSet<usize> {
            self.files.values().flatten().copied().collect()
        }

        /// Returns the trusted certificates when no grace is running: the first of each key.
        fn expected(&self) -> BTreeSet<usize> {
            let mut all = self.files.values().flatten();
            let rival = all.find(|at| !UNIQUE.contains(at));
            let mut expected = self.present();
            expected.retain(|at| UNIQUE.contains(at) || Some(at) == rival);
            expected
        }
    }

    fn run(actions: &[Action]) {
        let mut dir = TestDir::new();
        let mut model = Model::default();
        let mut handles: Vec<(usize, TrustedItem<TrustValue>)> = Vec::new();
        for action in actions {
            let (files, before) = (model.files.clone(), model.present());
            model.act(&dir, action);
            let present = model.present();
            let waits = matches!(action, Action::Wait);
            let result = dir.scan(if waits { REWRITE_GRACE } else { STEP });
            model.update_grace(&files, action, dir.now);
            for at in UNIQUE {
                let (there, trusted) = (present.contains(&at), dir.trusted(at).is_some());
                assert!(trusted || !there, "{at} is there, but not trusted");
                assert!(!trusted || there || model.is_in_grace(at), "{at} is trusted, but not there");
            }
            if result.recheck_at.is_none() {
                assert_eq!(dir.all_trusted(), model.expected());
            }
            // Exactly the certificates that are no longer trusted were revoked.
            for (at, handle) in handles {
                let revoked = handle.revocation.is_ended();
                assert!(revoked || dir.trusted(at).is_some(), "{at} was not revoked");
                let stayed = UNIQUE.contains(&at) && before.contains(&at) && present.contains(&at);
                assert!(!revoked || !stayed, "{at} was revoked without reason");
            }
            handles = (0..POOL.len()).filter_map(|at| Some((at, dir.trusted(at)?))).collect();
            assert!(handles.iter().all(|(_, handle)| !handle.revocation.is_ended()));
        }
        dir.scan(REWRITE_GRACE);
        assert_eq!(dir.all_trusted(), model.expected());
    }

    proptest! {
        #[test]
        fn trusted_entries_are_those_in_the_files(actions in proptest::collection::vec(action(), 1..30)) {
            run(&actions);
        }
    }
}
