//! The files of one run's log: listing, opening, and telling them apart.
//!
//! Names change under a reader: a log is renamed when it is rotated, replaced when it is compressed, removed when it is old. So an
//! open file is known by device and inode, which cannot be given to another as long as it is open; a compressed copy of it by its
//! place in the order and its first bytes.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;

use crate::model::time::LogTime;
use crate::platform::Error;
use crate::platform::cri::{self, path::LogName};

/// Most files of one run; kubelets keep five. More would be somebody else's directory.
const FILES_MAX: usize = 1_024;

/// Most entries of a directory that are looked at: every run of a container leaves some.
const ENTRIES_MAX: usize = 65_536;

/// How often a listing is repeated until two are alike. A rename during a listing may hide a file from it; renames come
/// with rotations, some milliseconds apart at worst.
const LISTINGS_MAX: usize = 64;

/// How many of its first bytes tell a file from its neighbours: some records, each with a time of nanoseconds.
pub(super) const PREFIX_BYTES: usize = 1_024;

/// Bytes of a compressed file that are read at a time.
const GZ_BUFFER_BYTES: usize = 32 * 1024;

/// What the system puts behind the name of an open file that has been removed (proc(5)).
const REMOVED: &str = " (deleted)";

/// The log of one run of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFiles {
    /// The directory of the container's logs.
    pub dir: PathBuf,
    /// Which run: the restart count.
    pub restarts: u32,
}

/// What a file is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    dev: u64,
    ino: u64,
}

/// A file as a listing found it. Two are the same if name and file are.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: LogName,
    pub(super) id: FileId,
    /// Bytes, compressed if it is.
    pub(super) size: u64,
}

/// An open file.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub(super) file: Arc<File>,
    pub(super) id: FileId,
    pub(super) gz: bool,
}

/// Reads a file at an offset of its own, whoever else reads it.
#[derive(Debug)]
pub(super) struct ReadAt {
    file: Arc<File>,
    offset: u64,
}

/// A decompressor.
pub(super) type Gunzip = MultiGzDecoder<io::BufReader<ReadAt>>;

// === impl LogFiles ===

impl LogFiles {
    /// Where the file with this name lies.
    pub(super) fn path(&self, name: &LogName) -> PathBuf {
        self.dir.join(name.to_string())
    }

    /// The files of the run, oldest first, the one being written last. None if the directory is gone.
    pub(super) fn list(&self) -> Result<Vec<Entry>, Error> {
        let mut last = None;
        for _ in 0..LISTINGS_MAX {
            let listing = self.list_once().map_err(|error| self.failed("listing", error))?;
            if listing.is_some() && listing == last {
                return Ok(listing.unwrap_or_default());
            }
            last = listing;
        }
        Err(self.elusive())
    }

    /// What is being written now.
    pub(super) fn active(&self) -> Result<Option<FileId>, Error> {
        match fs::metadata(self.path(&LogName::active(self.restarts))) {
            Ok(metadata) => Ok(Some(FileId::of(&metadata))),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(self.failed("looking for the newest log in", error)),
        }
    }

    /// Opens what a listing found; `None` if it is not there any more.
    pub(super) fn open(&self, entry: &Entry) -> Result<Option<Opened>, Error> {
        match File::open(self.path(&entry.name)) {
            Ok(file) => {
                let metadata = file.metadata().map_err(|error| self.failed("opening a log in", error))?;
                let id = FileId::of(&metadata);
                Ok((id == entry.id).then(|| Opened { file: Arc::new(file), id, gz: entry.name.gz }))
            }
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(self.failed("opening a log in", error)),
        }
    }

    /// The first bytes of what a listing found, up to [`PREFIX_BYTES`]; empty if it cannot be read.
    pub(super) fn prefix(&self, entry: &Entry) -> Vec<u8> {
        match self.open(entry) {
            Ok(Some(opened)) => opened.prefix(),
            Ok(None) | Err(_) => Vec::new(),
        }
    }

    /// The time of the first record of what a listing found; `None` if it has none.
    pub(super) fn first_time(&self, entry: &Entry) -> Option<LogTime> {
        let prefix = self.prefix(entry);
        let record = prefix.split(|byte| *byte == b'\n').next()?;
        cri::parse(record).map(|record| record.time)
    }

    /// Files are renamed or removed at every look.
    pub(super) fn elusive(&self) -> Error {
        tracing::warn!(dir = %self.dir.display(), "log files change at every look");
        Error::Unavailable("the log is being rotated all the time".to_owned())
    }

    /// What was tried in this directory, and why it failed.
    pub(super) fn failed(&self, what: &str, error: io::Error) -> Error {
        Error::io(format!("{what} {}", self.dir.display()), error)
    }

    /// One listing; `None` if it changed on the way.
    fn list_once(&self) -> io::Result<Option<Vec<Entry>>> {
        let names = match names(&self.dir, self.restarts) {
            Ok(names) => names,
            Err(error) if is_gone(&error) => return Ok(Some(Vec::new())),
            Err(error) => return Err(error),
        };
        let mut entries = Vec::with_capacity(names.len());
        for name in names {
            match fs::metadata(self.path(&name)) {
                Ok(metadata) if metadata.is_file() => {
                    entries.push(Entry { name, id: FileId::of(&metadata), size: metadata.len() });
                }
                Ok(_) => {}
                Err(error) if is_gone(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        entries.sort_by(|a, b| order(&a.name).cmp(&order(&b.name)));
        // While a log is being replaced by its compressed copy both are there: the log itself comes first.
        entries.dedup_by(|later, earlier| later.name.rotated == earlier.name.rotated);
        Ok(Some(entries))
    }
}

/// There is no file, or no directory.
pub(super) fn missing() -> Error {
    Error::NotFound("the log of this run is not here".to_owned())
}

/// Rotated before active, by suffix, and the log before its compressed copy.
fn order(name: &LogName) -> (bool, Option<&str>, bool) {
    (name.rotated.is_none(), name.rotated.as_deref(), name.gz)
}

fn names(dir: &Path, restarts: u32) -> io::Result<Vec<LogName>> {
    let mut names = Vec::new();
    for (count, entry) in fs::read_dir(dir)?.enumerate() {
        let name = entry?.file_name();
        if let Some(name) = name.to_str().and_then(LogName::parse).filter(|name| name.restarts == restarts) {
            names.push(name);
        }
        if count >= ENTRIES_MAX || names.len() > FILES_MAX {
            return Err(io::Error::other("too many files for a container's logs"));
        }
    }
    Ok(names)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

// === impl Entry ===

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.id == other.id
    }
}

impl Eq for Entry {}

// === impl FileId ===

impl FileId {
    fn of(metadata: &Metadata) -> Self {
        Self { dev: metadata.dev(), ino: metadata.ino() }
    }
}

// === impl Opened ===

impl Opened {
    /// How many bytes the file has, compressed if it is.
    pub(super) fn size(&self) -> io::Result<u64> {
        self.file.metadata().map(|metadata| metadata.len())
    }

    /// Whether it bears, or bore when it was removed, the name of a rotated log. False if that cannot be told.
    pub(super) fn is_rotated(&self) -> bool {
        let descriptor = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let Ok(path) = fs::read_link(descriptor) else { return false };
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = LogName::parse(name.strip_suffix(REMOVED).unwrap_or(name));
        name.is_some_and(|name| name.rotated.is_some())
    }

    /// A decompressor from its beginning.
    pub(super) fn gunzip(&self) -> Gunzip {
        let file = ReadAt { file: Arc::clone(&self.file), offset: 0 };
        MultiGzDecoder::new(io::BufReader::with_capacity(GZ_BUFFER_BYTES, file))
    }

    /// Its first bytes, up to [`PREFIX_BYTES`], decompressed; fewer if it is shorter or cannot be read.
    pub(super) fn prefix(&self) -> Vec<u8> {
        let mut prefix = Vec::with_capacity(PREFIX_BYTES);
        let file = ReadAt { file: Arc::clone(&self.file), offset: 0 };
        // What was read before an error is as good as that of a shorter file.
        let _ = if self.gz {
            self.gunzip().take(PREFIX_BYTES as u64).read_to_end(&mut prefix)
        } else {
            file.take(PREFIX_BYTES as u64).read_to_end(&mut prefix)
        };
        prefix
    }
}

// === impl ReadAt ===

impl Read for ReadAt {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(names: &[&str]) -> (tempfile::TempDir, LogFiles) {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let log = LogFiles { dir: dir.path().to_owned(), restarts: 1 };
        (dir, log)
    }

    #[test]
    fn lists_one_run_in_order() {
        let (dir, log) = log(&[
            "1.log",
            "0.log",
            "11.log",
            "1.log.20261123-120000",
            "1.log.20261123-120000.gz",
            "1.log.20261122-120000.gz",
            "1.log.20261123-120000.000000001",
            "1.log.20261123-130000.tmp",
            "notes",
        ]);
        fs::create_dir(dir.path().join("1.log.20261120-120000")).unwrap();
        let names: Vec<String> = log.list().unwrap().iter().map(|entry| entry.name.to_string()).collect();
        assert_eq!(
            names,
            ["1.log.20261122-120000.gz", "1.log.20261123-120000", "1.log.20261123-120000.000000001", "1.log"]
        );
    }

    #[test]
    fn a_missing_directory_is_empty() {
        let (dir, log) = log(&[]);
        dir.close().unwrap();
        assert_eq!((log.list().unwrap(), log.active().unwrap()), (Vec::new(), None));
    }

    #[test]
    fn opens_only_what_was_listed() {
        let (dir, log) = log(&["1.log"]);
        let entry = log.list().unwrap().remove(0);
        assert_eq!(log.open(&entry).unwrap().unwrap().id, entry.id);
        fs::rename(dir.path().join("1.log"), dir.path().join("old")).unwrap();
        assert!(log.open(&entry).unwrap().is_none());
        fs::write(dir.path().join("1.log"), "").unwrap();
        assert!(log.open(&entry).unwrap().is_none());
    }
}
