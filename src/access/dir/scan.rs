//! Looking at a trust directory again and again, and finding out what of it counts.
//!
//! Blocks on the file system and knows no runtime; the time is passed in.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::io::Errno;

use super::SETTLE;
use super::file::{self, DirId, Fault, FileId, Reading, Stamp};
use super::item::{self, TrustEntry, TrustKey, TrustValue};

/// Most files that are read, in order of name. Tenants of one provider are some hundreds.
pub(super) const FILES_MAX: usize = 16_384;

/// A directory, as last seen.
#[derive(Debug)]
pub(super) struct Scanner {
    dir: PathBuf,
    files: BTreeMap<OsString, Held>,
    /// Links that led nowhere at the last look, and whether the log has that: not before they did so twice, since a target is
    /// removed before its link, or replaced.
    nowhere: BTreeMap<OsString, bool>,
    /// `None` if the next look must be thorough anyway.
    stamp: Option<Stamp>,
    /// Whether [`Scanner::trusted`] may have changed since it was last asked.
    dirty: bool,
    /// Said once for as long as it lasts.
    told_too_many: bool,
}

/// What one look came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScanResult {
    /// The directory itself.
    pub(super) dir: DirId,
    /// Whether [`Scanner::trusted`] may have changed since it was last asked.
    pub(super) changed: bool,
    /// How many files were read.
    pub(super) read: usize,
    /// When to look again even if nobody tells of a change.
    pub(super) settles: Option<Instant>,
}

/// One file.
#[derive(Debug, Default)]
struct Held {
    id: Option<FileId>,
    stamp: Option<Stamp>,
    /// What was read last.
    found: Vec<TrustEntry>,
    /// What counts: `found`, and until it settles also what was there before.
    counts: Vec<TrustEntry>,
    fault: Option<Fault>,
    /// The fault that the log has.
    told: Option<Fault>,
    settles: Option<Instant>,
    /// Whether it holds a certificate that cannot count, because another file has one of the same name.
    double: bool,
}

/// What a look at one file came to.
enum Seen {
    /// It did not change, and was not read.
    Same,
    /// It was read, or should have been; perhaps other certificates count now.
    Read { changed: bool },
    /// It is not there: it was removed since it was listed, or it is a link to nothing.
    Gone,
}

/// The files that there are.
struct Listing {
    names: BTreeSet<OsString>,
    /// Whether one of them is a link: what happens behind it is not told by the directory.
    links: bool,
    too_many: bool,
}

// === impl Scanner ===

impl Scanner {
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            files: BTreeMap::new(),
            nowhere: BTreeMap::new(),
            stamp: None,
            dirty: false,
            told_too_many: false,
        }
    }

    /// Looks at the directory: at every file in it if `thorough`, otherwise only if it is not plain that nothing changed.
    /// Files that did not change are not read again.
    ///
    /// # Errors
    /// If the directory itself cannot be read. What was seen before then holds.
    pub(super) fn look(&mut self, now: Instant, thorough: bool) -> io::Result<ScanResult> {
        let stamp = Stamp::of(&std::fs::metadata(&self.dir)?);
        let mut read = 0;
        if thorough || self.stamp != Some(stamp) {
            self.stamp = None;
            let listing = Listing::of(&self.dir)?;
            let links = listing.links;
            read = self.take(listing, stamp.id, now)?;
            let unreadable = self.files.values().any(Held::is_unreadable);
            self.stamp = stamp.if_old().filter(|_| !links && !unreadable);
        }
        for (name, held) in &mut self.files {
            self.dirty |= held.settle(name, now);
        }
        Ok(ScanResult {
            dir: stamp.id,
            changed: self.dirty,
            read,
            settles: self.files.values().filter_map(|held| held.settles).min(),
        })
    }

    /// Looks at every file; yields how many were read.
    fn take(&mut self, listing: Listing, dir: DirId, now: Instant) -> io::Result<usize> {
        let Listing { names, too_many, .. } = listing;
        if too_many {
            if !self.told_too_many {
                tracing::warn!(dir = ?self.dir, limit = FILES_MAX, "trust directory: too many files; the last by name are ignored");
            }
            let before = self.files.len();
            self.files.retain(|name, _| names.contains(name));
            self.dirty |= self.files.len() != before;
        }
        self.told_too_many = too_many;
        // A name that is renamed over while the directory is listed may be left out: only asking for it is sure.
        let unlisted: Vec<OsString> =
            self.files.keys().filter(|name| !names.contains(*name)).cloned().collect();
        let listed = names.into_iter().map(|name| (name, true));
        let mut nowhere = BTreeMap::new();
        let mut read = 0;
        for (name, is_listed) in listed.chain(unlisted.into_iter().map(|name| (name, false))) {
            let held = self.files.entry(name.clone()).or_default();
            match held.look(&self.dir.join(&name), now) {
                Seen::Same => {}
                Seen::Read { changed } => {
                    self.dirty |= changed;
                    read += 1;
                }
                Seen::Gone => {
                    // Or is it the directory that is gone?
                    if Stamp::of(&std::fs::metadata(&self.dir)?).id != dir {
                        return Err(io::Error::other("replaced while it was read"));
                    }
                    self.files.remove(&name);
                    self.dirty = true;
                    if is_listed {
                        let told = self.nowhere.get(&name).is_some_and(|told| *told || leads_nowhere(&name));
                        nowhere.insert(name, told);
                    }
                }
            }
        }
        self.nowhere = nowhere;
        Ok(read)
    }

    /// What is to be trusted. Of several certificates with the same owner and serial number, the one in the file that sorts
    /// first.
    pub(super) fn trusted(&mut self) -> HashMap<TrustKey, TrustValue> {
        self.dirty = false;
        let mut trusted = HashMap::new();
        for (name, held) in &mut self.files {
            let mut double = false;
            for item in &held.counts {
                match trusted.entry(item.name()) {
                    Entry::Vacant(free) => {
                        free.insert(item.content());
                    }
                    Entry::Occupied(taken) => double |= *taken.get() != item.content(),
                }
            }
            if double && !held.double {
                tracing::warn!(
                    file = ?name,
                    "trust directory: certificate ignored: a file that sorts before it has another one of the same owner and serial number"
                );
            }
            held.double = double;
        }
        trusted
    }
}

// === impl Listing ===

impl Listing {
    fn of(dir: &Path) -> io::Result<Self> {
        let mut listing = Self { names: BTreeSet::new(), links: false, too_many: false };
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if !item::is_read(name.as_bytes()) {
                continue;
            }
            listing.links |= entry.file_type().is_ok_and(|kind| kind.is_symlink());
            listing.names.insert(name);
            if listing.names.len() > FILES_MAX {
                listing.names.pop_last();
                listing.too_many = true;
            }
        }
        Ok(listing)
    }
}

/// Says so; yields that it is said.
fn leads_nowhere(name: &OsString) -> bool {
    tracing::warn!(file = ?name, "trust directory: link not used: it leads nowhere");
    true
}

/// Whether a name leads nowhere, itself or as a link.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

// === impl Held ===

impl Held {
    /// Reads the file if it may have changed.
    fn look(&mut self, path: &Path, now: Instant) -> Seen {
        let stamp = std::fs::metadata(path).map(|metadata| Stamp::of(&metadata));
        if self.stamp.is_some() && self.stamp == stamp.as_ref().ok().copied() {
            return Seen::Same;
        }
        let error = match file::read(path) {
            Ok(reading) => return self.take(reading, now),
            Err(error) if is_gone(&error) => return Seen::Gone,
            Err(error) => error,
        };
        match stamp {
            // Another file than before: what that one held is gone.
            Ok(stamp) if self.id != Some(stamp.id) => {
                self.take(Reading::unreadable(stamp.id, error.kind()), now)
            }
            // Nothing is known of it, so nothing changes.
            _ => {
                self.stamp = None;
                self.judge(Some(Fault::Unreadable(error.kind())), now);
                Seen::Read { changed: false }
            }
        }
    }

    fn take(&mut self, reading: Reading, now: Instant) -> Seen {
        let in_place = self.id == Some(reading.id);
        self.id = Some(reading.id);
        self.stamp = reading.stamp;
        self.found = reading.items;
        let before = std::mem::take(&mut self.counts);
        let gone = before.iter().filter(|old| in_place && !self.found.contains(old));
        self.counts = self.found.iter().chain(gone).cloned().collect();
        self.judge(reading.fault, now);
        Seen::Read { changed: self.counts != before }
    }

    fn judge(&mut self, fault: Option<Fault>, now: Instant) {
        self.fault = fault;
        let gone = self.counts.len() > self.found.len();
        let unsettled = gone || self.fault != self.told;
        // Once begun, it ends when it was to end: a file that is touched again and again must not put that off.
        self.settles = unsettled.then(|| self.settles.unwrap_or(now + SETTLE));
    }

    fn is_unreadable(&self) -> bool {
        matches!(self.fault, Some(Fault::Unreadable(_)))
    }

    /// Believes what was found, if it is time; tells whether that changed anything.
    fn settle(&mut self, name: &OsString, now: Instant) -> bool {
        if self.settles.is_none_or(|at| now < at) {
            return false;
        }
        self.settles = None;
        self.tell(name);
        let changed = self.counts != self.found;
        self.counts.clone_from(&self.found);
        changed
    }

    fn tell(&mut self, name: &OsString) {
        if self.fault != self.told {
            if let Some(fault) = &self.fault {
                tracing::warn!(file = ?name, %fault, "trust directory: file not used, or not all of it");
            }
            self.told.clone_from(&self.fault);
        }
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
    use crate::access::dir::index::{Change, Index};
    use crate::access::testing::Tenant;
    use crate::access::trust::TrustedItem;

    /// Between two actions of a test: far below [`SETTLE`].
    const STEP: Duration = Duration::from_millis(1);

    /// Certificates; the last two have owner and serial number in common.
    static POOL: LazyLock<[(TenantCertificate, String); 5]> = LazyLock::new(|| {
        [(1, 1), (1, 2), (2, 1), (3, 1), (3, 1)].map(|(n, serial)| Tenant::new(n, serial).issue())
    });

    /// Those of them that no other stands in the way of.
    const SINGLE: std::ops::Range<usize> = 0..3;

    const NAMES: [&str; 3] = ["a.pem", "b.pem", "c.pem"];

    /// A directory, what is trusted by it, and a clock.
    struct World {
        outer: tempfile::TempDir,
        scanner: Scanner,
        index: Index,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            let outer = tempfile::tempdir().unwrap();
            fs::create_dir(outer.path().join("trust")).unwrap();
            let scanner = Scanner::new(&outer.path().join("trust"));
            Self { outer, scanner, index: Index::default(), now: Instant::now() }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.scanner.dir.join(name)
        }

        fn look(&mut self, after: Duration) -> ScanResult {
            self.now += after;
            let look = self.scanner.look(self.now, true).unwrap();
            if look.changed {
                self.index.replace(self.scanner.trusted());
            } else {
                // Nothing was missed by saying so.
                let nothing = Change { added: 0, withdrawn: 0 };
                assert_eq!(self.index.replace(self.scanner.trusted()), nothing);
            }
            look
        }

        /// Waits until all stamps are old enough to count.
        fn rest(&mut self) {
            let begin = Instant::now();
            while self.look(STEP).read > 0 {
                assert!(begin.elapsed() < Duration::from_secs(30));
                std::thread::sleep(Duration::from_millis(20));
            }
        }

        fn trusted(&self, at: usize) -> Option<TrustedItem> {
            let certificate = &POOL[at].0;
            self.index
                .certificate(certificate.owner(), certificate.serial())
                .filter(|trusted| trusted.der() == certificate.der())
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
    fn a_file_rewritten_in_place_keeps_its_standing() {
        let mut world = World::new();
        let path = world.path("a.pem");
        fs::write(&path, pem(&[0, 1])).unwrap();
        world.look(STEP);
        let trusted = [0, 1].map(|at| world.trusted(at).unwrap());
        // As a copy goes: emptied, half, and at the very seam of two certificates.
        let whole = pem(&[0, 1]);
        for length in [0, 100, POOL[0].1.len(), whole.len()] {
            fs::write(&path, &whole[..length]).unwrap();
            world.look(STEP);
        }
        world.look(SETTLE);
        for (at, trusted) in trusted.iter().enumerate() {
            assert!(!trusted.withdrawn().is_cancelled(), "{at}");
            assert!(world.trusted(at).is_some(), "{at}");
        }
        assert!(world.look(STEP).settles.is_none());
    }

    #[test]
    fn what_goes_missing_in_place_is_withdrawn_in_time_even_if_the_file_is_never_at_rest() {
        let mut world = World::new();
        let path = world.path("a.pem");
        fs::write(&path, pem(&[0])).unwrap();
        world.look(STEP);
        let trusted = world.trusted(0).unwrap();
        fs::write(&path, pem(&[1])).unwrap();
        let settles = world.look(STEP).settles.unwrap();
        assert!(world.trusted(1).is_some(), "what is new counts at once");
        while world.now < settles {
            assert!(!trusted.withdrawn().is_cancelled());
            fs::write(&path, format!("{:?}\n{}", world.now, pem(&[1]))).unwrap();
            world.look(STEP);
        }
        assert!(trusted.withdrawn().is_cancelled());
        assert_eq!(world.all_trusted(), [1].into());
    }

    #[test]
    fn what_is_removed_or_replaced_is_withdrawn_at_once() {
        let mut world = World::new();
        for name in ["a.pem", "b.pem"] {
            fs::write(world.path(name), pem(&[0])).unwrap();
        }
        world.look(STEP);
        let trusted = world.trusted(0).unwrap();
        world.replace("a.pem", b"");
        world.look(STEP);
        assert!(!trusted.withdrawn().is_cancelled(), "it stands in the other file, too");
        fs::remove_file(world.path("b.pem")).unwrap();
        world.look(STEP);
        assert!(trusted.withdrawn().is_cancelled());
        assert_eq!(world.index.len(), 0);
    }

    #[test]
    fn what_cannot_be_read_holds_on() {
        let mut world = World::new();
        fs::write(world.path("a.pem"), pem(&[0])).unwrap();
        world.look(STEP);
        let trusted = world.trusted(0).unwrap();
        let link = |world: &World, to: &str| {
            symlink(to, world.path("temporary")).unwrap();
            fs::rename(world.path("temporary"), world.path("a.pem")).unwrap();
        };
        // A name that is too long: no error that says that nothing is there.
        link(&world, &"x".repeat(300));
        for _ in 0..3 {
            world.look(SETTLE);
            assert!(!trusted.withdrawn().is_cancelled());
        }
        let aside = world.outer.path().join("aside");
        fs::rename(&world.scanner.dir, &aside).unwrap();
        world.scanner.look(world.now, true).unwrap_err();
        fs::rename(&aside, &world.scanner.dir).unwrap();
        world.look(SETTLE);
        assert!(!trusted.withdrawn().is_cancelled());
        link(&world, "a.pem");
        world.look(STEP);
        assert!(trusted.withdrawn().is_cancelled(), "a link to itself is nothing");
    }

    #[test]
    fn a_directory_that_goes_away_while_it_is_read_takes_nothing_along() {
        let mut world = World::new();
        fs::write(world.path("a.pem"), pem(&[0])).unwrap();
        let look = world.look(STEP);
        let listing = Listing::of(&world.scanner.dir).unwrap();
        let aside = world.outer.path().join("aside");
        fs::rename(&world.scanner.dir, &aside).unwrap();
        world.scanner.take(listing, look.dir, world.now).unwrap_err();
        fs::rename(&aside, &world.scanner.dir).unwrap();
        assert_eq!(world.scanner.trusted().len(), 1);
    }

    #[test]
    fn what_another_file_held_does_not_hold_on_even_if_the_new_one_cannot_be_read() {
        let mut world = World::new();
        fs::write(world.path("a.pem"), pem(&[0])).unwrap();
        world.look(STEP);
        let trusted = world.trusted(0).unwrap();
        // A regular file that fails to be read, for root as well.
        symlink("/proc/self/mem", world.path("temporary")).unwrap();
        fs::rename(world.path("temporary"), world.path("a.pem")).unwrap();
        world.look(STEP);
        assert!(trusted.withdrawn().is_cancelled());
        world.look(SETTLE);
        let told = world.scanner.files.values().next().unwrap().told.clone();
        assert!(matches!(told, Some(Fault::Unreadable(_))), "{told:?}");
    }

    #[test]
    fn of_two_with_one_name_the_first_file_counts() {
        let mut world = World::new();
        fs::write(world.path("b.pem"), pem(&[3])).unwrap();
        world.look(STEP);
        let trusted = world.trusted(3).unwrap();
        fs::write(world.path("c.pem"), pem(&[4])).unwrap();
        world.look(STEP);
        assert!(!trusted.withdrawn().is_cancelled());
        fs::write(world.path("a.pem"), pem(&[4])).unwrap();
        world.look(STEP);
        assert!(trusted.withdrawn().is_cancelled());
        assert_eq!(world.all_trusted(), [4].into());
    }

    #[test]
    fn a_file_at_rest_is_not_read_again() {
        let mut world = World::new();
        fs::write(world.path("a.pem"), pem(&[0])).unwrap();
        assert_eq!(world.look(STEP).read, 1);
        world.rest();
        let idle = world.scanner.look(world.now, false).unwrap();
        assert!(!idle.changed && idle.settles.is_none());
        fs::write(world.path("a.pem"), pem(&[1])).unwrap();
        assert_eq!(world.look(STEP).read, 1);
        fs::write(world.path("b.pem"), pem(&[2])).unwrap();
        assert!(world.scanner.look(world.now, false).unwrap().changed);
    }

    #[test]
    fn a_look_that_need_not_be_thorough_is_so_where_there_are_links() {
        let mut world = World::new();
        let target = world.outer.path().join("target");
        fs::write(&target, pem(&[0])).unwrap();
        symlink(&target, world.path("a.pem")).unwrap();
        world.look(STEP);
        world.rest();
        fs::write(&target, pem(&[1])).unwrap();
        assert!(world.scanner.look(world.now, false).unwrap().changed);
    }

    #[test]
    fn a_link_that_leads_nowhere_is_told_of_when_it_lasts() {
        let mut world = World::new();
        let target = world.outer.path().join("target");
        let told = |world: &World| world.scanner.nowhere.values().copied().collect::<Vec<_>>();
        symlink(&target, world.path("a.pem")).unwrap();
        symlink("b.pem", world.path("b.pem")).unwrap();
        world.look(STEP);
        assert_eq!(told(&world), [false, false]);
        for _ in 0..2 {
            world.look(STEP);
            assert_eq!(told(&world), [true, true]);
        }
        fs::write(&target, pem(&[0])).unwrap();
        world.look(STEP);
        assert!(world.trusted(0).is_some());
        assert_eq!(told(&world), [true]);
        fs::remove_file(world.path("b.pem")).unwrap();
        world.look(STEP);
        assert!(told(&world).is_empty());
    }

    #[test]
    fn a_fault_is_said_once_and_only_when_it_lasts() {
        let mut world = World::new();
        let path = world.path("a.pem");
        let told = |world: &World| world.scanner.files.values().next().unwrap().told.clone();
        fs::write(&path, "-----BEGIN CERT").unwrap();
        assert!(world.look(STEP).settles.is_some());
        assert_eq!(told(&world), None);
        fs::write(&path, pem(&[0])).unwrap();
        assert!(world.look(SETTLE).settles.is_none());
        assert_eq!(told(&world), None);
        fs::write(&path, "garbage").unwrap();
        world.look(STEP);
        world.look(SETTLE);
        assert_eq!(told(&world), Some(Fault::Empty));
        assert!(world.look(STEP).settles.is_none());
        let half = &pem(&[0, 1])[..POOL[0].1.len() + 40];
        fs::write(&path, half).unwrap();
        world.look(STEP);
        assert!(world.trusted(0).is_some(), "the good half counts");
        world.look(SETTLE);
        assert_eq!(told(&world), Some(Fault::Pem { number: 2 }));
    }

    #[test]
    fn no_more_than_so_many_certificates_are_taken_from_a_file() {
        let many = pem(&[0; item::CERTIFICATES_MAX]);
        let (certificates, fault) = item::parse(Path::new("a.pem"), many.as_bytes());
        assert_eq!((certificates.len(), fault), (item::CERTIFICATES_MAX, None));
        let (certificates, fault) =
            item::parse(Path::new("a.pem"), format!("{many}{}", POOL[1].1).as_bytes());
        assert_eq!((certificates.len(), fault), (item::CERTIFICATES_MAX, Some(Fault::TooMany)));
        assert!(!certificates.contains(&TrustEntry::Certificate(POOL[1].0.clone())));
    }

    #[test]
    fn no_more_than_so_many_files_are_read() {
        let world = World::new();
        for number in 0..=FILES_MAX {
            fs::File::create(world.path(&format!("{number:08}.pem"))).unwrap();
        }
        let listing = Listing::of(&world.scanner.dir).unwrap();
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

    /// What is in the files, by name; and since when a certificate is missing from a file that may be found in writing.
    #[derive(Default)]
    struct Model {
        files: BTreeMap<usize, Vec<usize>>,
        missed: BTreeMap<(usize, usize), Instant>,
        links: usize,
    }

    impl Model {
        /// Does it to the files, and notes what is in them then.
        fn act(&mut self, world: &World, action: &Action) {
            let path = |name: &usize| world.path(NAMES[*name]);
            match action {
                // Through a link to nothing, this makes the file that the link names.
                Action::Write(name, of) => fs::write(path(name), pem(of)).unwrap(),
                Action::Spoil(name, bytes) => fs::write(path(name), vec![b'-'; *bytes]).unwrap(),
                Action::Half(name, of) => {
                    let text = &POOL[*of].1;
                    fs::write(path(name), &text[..text.len() / 2]).unwrap();
                }
                Action::Replace(name, of) => world.replace(NAMES[*name], pem(of).as_bytes()),
                Action::Remove(name) => {
                    let _ = fs::remove_file(path(name));
                }
                Action::Link(name, of) => {
                    let target = self.link(world, *name);
                    fs::write(target, pem(of)).unwrap();
                }
                Action::Dangle(name) => {
                    self.link(world, *name);
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

        /// LeaseLocks `name` into a link to a new name outside.
        fn link(&mut self, world: &World, name: usize) -> PathBuf {
            self.links += 1;
            let target = world.outer.path().join(self.links.to_string());
            let temporary = world.path("temporary");
            symlink(&target, &temporary).unwrap();
            fs::rename(temporary, world.path(NAMES[name])).unwrap();
            target
        }

        /// Notes what may still count by being overlooked, after a look at `now`.
        fn miss(&mut self, before: &BTreeMap<usize, Vec<usize>>, action: &Action, now: Instant) {
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
                !back && now < *since + SETTLE
            });
        }

        fn spares(&self, at: usize) -> bool {
            self.missed.keys().any(|(_, missed)| *missed == at)
        }

        fn present(&self) -> BTreeSet<usize> {
            self.files.values().flatten().copied().collect()
        }

        /// What counts when all has settled: of each owner and serial number, the first.
        fn settled(&self) -> BTreeSet<usize> {
            let mut all = self.files.values().flatten();
            let rival = all.find(|at| !SINGLE.contains(at));
            let mut settled = self.present();
            settled.retain(|at| SINGLE.contains(at) || Some(at) == rival);
            settled
        }
    }

    fn run(actions: &[Action]) {
        let mut world = World::new();
        let mut model = Model::default();
        let mut handles: Vec<(usize, TrustedItem)> = Vec::new();
        for action in actions {
            let (files, before) = (model.files.clone(), model.present());
            model.act(&world, action);
            let present = model.present();
            let waits = matches!(action, Action::Wait);
            let look = world.look(if waits { SETTLE } else { STEP });
            model.miss(&files, action, world.now);
            for at in SINGLE {
                let (there, trusted) = (present.contains(&at), world.trusted(at).is_some());
                assert!(trusted || !there, "{at} is there, but not trusted");
                assert!(!trusted || there || model.spares(at), "{at} is trusted, but not there");
            }
            if look.settles.is_none() {
                assert_eq!(world.all_trusted(), model.settled());
            }
            // Whoever was told is out, who was not is in, and nobody who stayed was told.
            for (at, handle) in handles {
                let told = handle.withdrawn().is_cancelled();
                assert!(told || world.trusted(at).is_some(), "{at} was not told");
                let stayed = SINGLE.contains(&at) && before.contains(&at) && present.contains(&at);
                assert!(!told || !stayed, "{at} was told for nothing");
            }
            handles = (0..POOL.len()).filter_map(|at| Some((at, world.trusted(at)?))).collect();
            assert!(handles.iter().all(|(_, handle)| !handle.withdrawn().is_cancelled()));
        }
        world.look(SETTLE);
        assert_eq!(world.all_trusted(), model.settled());
    }

    proptest! {
        #[test]
        fn trusted_is_what_is_in_the_files(actions in proptest::collection::vec(action(), 1..30)) {
            run(&actions);
        }
    }
}
