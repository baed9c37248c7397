//! Answers of the chain on disk, in the form of a trust directory: one file for each certificate or key.
//!
//! The first line of a file, which readers of a trust directory skip, is the time of the last confirmation.
//! Blocks on the file system. Uses no runtime; the caller passes the time.

use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::NamedTempFile;

use super::ENTRIES_MAX;
use crate::access::trust::{TrustEntry, TrustId, TrustValue};
use crate::access::trust_file::{self, FILE_MAX_BYTES};
use crate::model::time::LogTime;
use crate::sys::read::read_bounded;

/// For the gateway alone. The content is not secret, but a process that writes here decides who is trusted.
const DIR_MODE: u32 = 0o700;

/// The first line, before the time.
const CONFIRMED: &str = "# confirmed by the chain at ";

#[derive(Clone, Debug)]
pub(super) struct Disk {
    dir: PathBuf,
}

#[derive(Debug)]
pub(super) struct StoredEntry {
    pub(super) entry: TrustEntry,
    /// Time since the confirmation; zero if that is in the future.
    pub(super) age: Duration,
}

// === impl Disk ===

impl Disk {
    /// Opens `dir`, which is created if it is missing.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        DirBuilder::new().mode(DIR_MODE).recursive(true).create(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Reads the entries that are at most `grace` old, up to [`ENTRIES_MAX`]. Removes all other files.
    pub(super) fn read(&self, now: LogTime, grace: Duration) -> io::Result<Vec<StoredEntry>> {
        let mut entries = Vec::new();
        for file in fs::read_dir(&self.dir)? {
            let path = file?.path();
            match read_file(&path, now) {
                Some(stored) if stored.age <= grace && entries.len() < ENTRIES_MAX => entries.push(stored),
                unusable => {
                    tracing::debug!(file = ?path.file_name(), readable = unusable.is_some(), "removing unusable answer of the chain");
                    let _ = fs::remove_file(&path);
                }
            }
        }
        Ok(entries)
    }

    pub(super) fn write(&self, key: &TrustId, value: &TrustValue, now: LogTime) -> io::Result<()> {
        let mut file = NamedTempFile::with_prefix_in(".new-", &self.dir)?;
        writeln!(file, "{CONFIRMED}{now}")?;
        trust_file::write(&mut file, value)?;
        file.persist(self.path(key)).map_err(|failed| failed.error)?;
        Ok(())
    }

    pub(super) fn remove(&self, key: &TrustId) -> io::Result<()> {
        match fs::remove_file(self.path(key)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Addresses and serial numbers have letters and digits only.
    fn path(&self, key: &TrustId) -> PathBuf {
        self.dir.join(match key {
            TrustId::Certificate(owner, serial) => format!("{owner}.{serial}.pem"),
            TrustId::Account(owner) => format!("{owner}.pub"),
        })
    }
}

fn read_file(path: &Path, now: LogTime) -> Option<StoredEntry> {
    let text = read_bounded(path, FILE_MAX_BYTES).ok()?;
    let line = text.split(|byte| *byte == b'\n').next()?;
    let confirmed: jiff::Timestamp = std::str::from_utf8(line).ok()?.strip_prefix(CONFIRMED)?.parse().ok()?;
    let age = i128::from(now.as_nanos()).saturating_sub(confirmed.as_nanosecond()).max(0);
    let age = Duration::from_nanos(u64::try_from(age).unwrap_or(u64::MAX));
    let (entries, None) = trust_file::parse(path, &text) else { return None };
    let [entry] = <[TrustEntry; 1]>::try_from(entries).ok()?;
    Some(StoredEntry { entry, age })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::testing::{NOW, Tenant};
    use crate::access::wallet::Mnemonic;

    const GRACE: Duration = Duration::from_secs(3600);

    fn entries() -> [TrustEntry; 2] {
        let key = Mnemonic::generate().unwrap().wallet().unwrap().key();
        [Tenant::new(1, 7).issue().0.into(), key.into()]
    }

    #[test]
    fn stored_entry_is_read_back_with_its_age() {
        let outer = tempfile::tempdir().unwrap();
        let disk = Disk::open(&outer.path().join("a/chain")).unwrap();
        for entry in entries() {
            disk.write(&entry.key, &entry.value, NOW).unwrap();
            let later = NOW.saturating_add_nanos(5_000_000_000);
            let stored = disk.read(later, GRACE).unwrap();
            assert_eq!(stored.len(), 1);
            assert_eq!(stored[0].entry, entry);
            assert_eq!(stored[0].age, Duration::from_secs(5));
            assert_eq!(disk.read(NOW.saturating_add_nanos(-1), GRACE).unwrap()[0].age, Duration::ZERO);
            disk.remove(&entry.key).unwrap();
            disk.remove(&entry.key).unwrap();
            assert!(disk.read(NOW, GRACE).unwrap().is_empty());
        }
    }

    #[test]
    fn unusable_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        let [certificate, key] = entries();
        disk.write(&certificate.key, &certificate.value, NOW).unwrap();
        disk.write(&key.key, &key.value, NOW).unwrap();
        fs::write(dir.path().join("x.pub"), "nonsense").unwrap();
        fs::write(dir.path().join("y.pub"), format!("{CONFIRMED}{NOW}\nnonsense\n")).unwrap();
        assert_eq!(disk.read(NOW, GRACE).unwrap().len(), 2);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        let late = NOW.saturating_add_nanos(3_600_000_000_001);
        assert!(disk.read(late, GRACE).unwrap().is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn recorded_files_are_read_and_written_unchanged() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/surface/fixtures/chain-cache");
        let files: Vec<_> = fs::read_dir(fixtures).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 2);
        for file in files {
            let dir = tempfile::tempdir().unwrap();
            let copy = dir.path().join(file.file_name().unwrap());
            fs::copy(&file, &copy).unwrap();
            let disk = Disk::open(dir.path()).unwrap();
            let stored = disk.read(NOW, GRACE).unwrap();
            assert_eq!((stored.len(), stored[0].age), (1, Duration::ZERO));
            fs::remove_file(&copy).unwrap();
            disk.write(&stored[0].entry.key, &stored[0].entry.value, NOW).unwrap();
            assert_eq!(fs::read_to_string(&copy).unwrap(), fs::read_to_string(&file).unwrap());
        }
    }
}
