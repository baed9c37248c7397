//! What the chain said, on disk: a directory of the form of a trust directory, one file for each certificate or key.
//!
//! Each file begins with a line that says when the chain confirmed it last; whoever reads it as a trust directory skips that line.
//! Blocks on the file system and knows no runtime; the time is passed in.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::BASE64;
use tempfile::NamedTempFile;

use super::ENTRIES_MAX;
use crate::access::dir::file::FILE_MAX_BYTES;
use crate::access::dir::item::{self, TrustKey, TrustValue};
use crate::model::time::LogTime;

/// For the gateway alone: not that it were secret, but whoever can write here is believed.
const DIR_MODE: u32 = 0o700;

/// What stands before the time in the first line.
const CONFIRMED: &str = "# confirmed by the chain at ";

/// Characters in a line of PEM.
const PEM_LINE: usize = 64;

/// The directory.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    dir: PathBuf,
}

/// One file, read.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) name: TrustKey,
    pub(super) content: TrustValue,
    /// How long ago it was confirmed; zero if that lies in the future.
    pub(super) age: Duration,
}

// === impl Disk ===

impl Disk {
    /// The directory `dir`, which is made if it is missing.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        DirBuilder::new().mode(DIR_MODE).recursive(true).create(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Everything of use in it. What is not is removed, and told.
    pub(super) fn read(&self, now: LogTime, grace: Duration) -> io::Result<Vec<Kept>> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            match read(&path, now) {
                Some(one) if one.age <= grace && kept.len() < ENTRIES_MAX => kept.push(one),
                useless => {
                    tracing::debug!(file = ?path.file_name(), read = useless.is_some(), "what the chain said once is of no use any more");
                    let _ = fs::remove_file(&path);
                }
            }
        }
        Ok(kept)
    }

    pub(super) fn keep(&self, name: &TrustKey, content: &TrustValue, now: LogTime) -> io::Result<()> {
        let mut file = NamedTempFile::with_prefix_in(".new-", &self.dir)?;
        writeln!(file, "{CONFIRMED}{now}")?;
        match content {
            TrustValue::Certificate(der) => write_pem(&mut file, der)?,
            TrustValue::Account(key) => writeln!(file, "{} {key}", key.address())?,
        }
        file.persist(self.path(name)).map_err(|failed| failed.error)?;
        Ok(())
    }

    pub(super) fn forget(&self, name: &TrustKey) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Addresses and serial numbers hold letters and digits only.
    fn path(&self, name: &TrustKey) -> PathBuf {
        self.dir.join(match name {
            TrustKey::Certificate(owner, serial) => format!("{owner}.{serial}.pem"),
            TrustKey::Account(owner) => format!("{owner}.pub"),
        })
    }
}

fn read(path: &Path, now: LogTime) -> Option<Kept> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(FILE_MAX_BYTES).read_to_end(&mut text).ok()?;
    let line = text.split(|byte| *byte == b'\n').next()?;
    let confirmed: jiff::Timestamp = std::str::from_utf8(line).ok()?.strip_prefix(CONFIRMED)?.parse().ok()?;
    let age = i128::from(now.as_nanos()).saturating_sub(confirmed.as_nanosecond()).max(0);
    let (items, fault) = item::parse(path, &text);
    let [one] = items.as_slice() else { return None };
    if fault.is_some() {
        return None;
    }
    let age = Duration::from_nanos(u64::try_from(age).unwrap_or(u64::MAX));
    Some(Kept { name: one.name(), content: one.content(), age })
}

fn write_pem(file: &mut impl io::Write, der: &[u8]) -> io::Result<()> {
    writeln!(file, "-----BEGIN CERTIFICATE-----")?;
    for line in BASE64.encode(der).as_bytes().chunks(PEM_LINE) {
        file.write_all(line)?;
        writeln!(file)?;
    }
    writeln!(file, "-----END CERTIFICATE-----")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::dir::item::TrustEntry;
    use crate::access::testing::{NOW, Tenant};
    use crate::access::wallet::Words;

    const GRACE: Duration = Duration::from_secs(3600);

    fn items() -> [TrustEntry; 2] {
        let key = Words::fresh().unwrap().wallet().unwrap().key();
        [TrustEntry::Certificate(Tenant::new(1, 7).issue().0), TrustEntry::Account(key)]
    }

    #[test]
    fn what_is_kept_is_read_again_with_its_age() {
        let outer = tempfile::tempdir().unwrap();
        let disk = Disk::open(&outer.path().join("a/chain")).unwrap();
        for item in items() {
            disk.keep(&item.name(), &item.content(), NOW).unwrap();
            let later = NOW.saturating_add_nanos(5_000_000_000);
            let kept = disk.read(later, GRACE).unwrap();
            assert_eq!(kept.len(), 1);
            assert_eq!((&kept[0].name, &kept[0].content), (&item.name(), &item.content()));
            assert_eq!(kept[0].age, Duration::from_secs(5));
            assert_eq!(disk.read(NOW.saturating_add_nanos(-1), GRACE).unwrap()[0].age, Duration::ZERO);
            disk.forget(&item.name()).unwrap();
            disk.forget(&item.name()).unwrap();
            assert!(disk.read(NOW, GRACE).unwrap().is_empty());
        }
    }

    #[test]
    fn what_is_of_no_use_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        let [certificate, key] = items();
        disk.keep(&certificate.name(), &certificate.content(), NOW).unwrap();
        disk.keep(&key.name(), &key.content(), NOW).unwrap();
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
            let kept = disk.read(NOW, GRACE).unwrap();
            assert_eq!((kept.len(), kept[0].age), (1, Duration::ZERO));
            fs::remove_file(&copy).unwrap();
            disk.keep(&kept[0].name, &kept[0].content, NOW).unwrap();
            assert_eq!(fs::read_to_string(&copy).unwrap(), fs::read_to_string(&file).unwrap());
        }
    }
}
