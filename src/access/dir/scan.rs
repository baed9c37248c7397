//! Looking at a trust directory again and again, and finding out what of it counts.
//!
//! Blocks on the file system and knows no runtime; the time is passed in.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::file::{self, DirId, Fault, FileId, Reading, Stamp};
use super::index::Key;
use crate::access::cert::Presented;

/// Most files that are read, in order of name. Tenants of one provider are some hundreds.
pub(super) const FILES_MAX: usize = 16_384;

/// For this long a certificate that is missing from a file written in place still counts, and what is wrong with a file is not
/// yet said: it may be half written. Copying a file takes less.
pub(super) const SETTLE: Duration = Duration::from_millis(300);

/// A directory, as last seen.
#[derive(Debug)]
pub(super) struct Scanner {
    dir: PathBuf,
    files: BTreeMap<OsString, Held>,
    /// `None` if the next look must be thorough anyway.
    stamp: Option<Stamp>,
    /// Said once for as long as it lasts.
    told_too_many: bool,
}

/// What one look came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// The directory itself.
    pub(super) dir: DirId,
    /// Whether [`Scanner::trusted`] may have changed.
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
    found: Vec<Presented>,
    /// What counts: `found`, and until it settles also what was there before.
    counts: Vec<Presented>,
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
        Self { dir: dir.to_owned(), files: BTreeMap::new(), stamp: None, told_too_many: false }
    }

    /// Looks at the directory: at every file in it if `thorough`, otherwise only if it is not plain that nothing changed.
    /// Files that did not change are not read again.
    ///
    /// # Errors
    /// If the directory itself cannot be read. Everything stays as it was.
    pub(super) fn look(&mut self, now: Instant, thorough: bool) -> io::Result<Look> {
        let stamp = Stamp::of(&std::fs::metadata(&self.dir)?);
        let (mut changed, mut read) = (false, 0);
        if thorough || self.stamp != Some(stamp) {
            let listing = Listing::of(&self.dir)?;
            (changed, read) = self.take(&listing, now);
            let unreadable = self.files.values().any(Held::is_unreadable);
            self.stamp = stamp.if_old().filter(|_| !listing.links && !unreadable);
        }
        for (name, held) in &mut self.files {
            changed |= held.settle(name, now);
        }
        Ok(Look {
            dir: stamp.id,
            changed,
            read,
            settles: self.files.values().filter_map(|held| held.settles).min(),
        })
    }

    /// Whether what counts changed, and how many files were read.
    fn take(&mut self, listing: &Listing, now: Instant) -> (bool, usize) {
        let too_many = listing.too_many;
        if too_many && !self.told_too_many {
            tracing::warn!(dir = ?self.dir, limit = FILES_MAX, "trust directory: too many files; the last by name are ignored");
        }
        self.told_too_many = too_many;
        let before = self.files.len();
        self.files.retain(|name, _| listing.names.contains(name));
        let mut changed = self.files.len() != before;
        let mut read = 0;
        for name in &listing.names {
            let held = self.files.entry(name.clone()).or_default();
            match held.look(&self.dir.join(name), now) {
                Seen::Same => {}
                Seen::Read { changed: counts } => {
                    changed |= counts;
                    read += 1;
                }
                Seen::Gone => {
                    changed = true;
                    self.files.remove(name);
                }
            }
        }
        (changed, read)
    }

    /// What is to be trusted. Of several certificates with the same owner and serial number, the one in the file that sorts
    /// first.
    pub(super) fn trusted(&mut self) -> HashMap<Key, Arc<[u8]>> {
        let mut trusted = HashMap::new();
        for (name, held) in &mut self.files {
            let mut double = false;
            for certificate in &held.counts {
                let key = (certificate.owner().clone(), certificate.serial().clone());
                match trusted.entry(key) {
                    Entry::Vacant(free) => {
                        free.insert(Arc::clone(certificate.der()));
                    }
                    Entry::Occupied(taken) => double |= taken.get() != certificate.der(),
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
            if !is_pem(&name) {
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

/// As the shell's `*.pem` has it: files that begin with a dot are other people's temporary ones.
fn is_pem(name: &OsString) -> bool {
    let name = name.as_bytes();
    name.ends_with(b".pem") && !name.starts_with(b".")
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
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Seen::Gone,
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
        self.found = reading.certificates;
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
