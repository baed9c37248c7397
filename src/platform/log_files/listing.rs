//! Files of one run's log: lists them, opens them and identifies them.
//!
//! Names change under a reader: a log is renamed when it is rotated, replaced when it is compressed, removed
//! when it is old. An open file is therefore identified by device and inode, which are not reused while it is
//! open. A compressed copy is identified by its place in the order and its first bytes.

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

/// Most files of one run. Kubelets keep five; more means that this is not a log directory.
const FILES_MAX: usize = 1_024;

/// Most directory entries that are read: every run of a container leaves some.
const ENTRIES_MAX: usize = 65_536;

/// Attempts at a consistent view of a directory that is being rotated. Rotations are at least some
/// milliseconds apart, so each retry needs another one at just that moment.
const ATTEMPTS_MAX: usize = 64;

/// Length of the prefix that distinguishes a file from its neighbours: several records, each with a
/// nanosecond timestamp.
pub(super) const PREFIX_BYTES: usize = 1_024;

/// Size of one read of a compressed file.
const GZ_BUFFER_BYTES: usize = 32 * 1024;

/// The kernel's suffix for the name of an open file that was removed (proc(5)).
const REMOVED_SUFFIX: &str = " (deleted)";

/// The log of one run of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFiles {
    /// Directory of the container's logs.
    pub dir: PathBuf,
    /// Number of the run: the container's restart count.
    pub run_number: u32,
    /// Set if the reader needs the run's first line: it shows whether that was removed.
    pub needed_start: Option<NeededStart>,
}

/// What is known of a log whose first line is needed. The line may have been removed if the log was rotated,
/// begins later than a log is rotated after its run's start, and has as many files as are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeededStart {
    /// When the run was started; [`LogTime::MIN`] if that is unknown.
    pub started: LogTime,
    /// Number of files that are kept, with the active one; 0 if that is unknown.
    pub kept_files: usize,
}

/// Identity of a file, independent of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    dev: u64,
    ino: u64,
}

/// A listed file. Two entries are equal if name and identity are.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: LogName,
    pub(super) id: FileId,
    /// Size on disk, in bytes.
    pub(super) size: u64,
}

#[derive(Clone, Debug)]
pub(super) struct OpenFile {
    pub(super) file: Arc<File>,
    pub(super) id: FileId,
    pub(super) gz: bool,
}

/// A reader with its own offset into a shared file.
#[derive(Debug)]
pub(super) struct ReadAt {
    file: Arc<File>,
    offset: u64,
}

pub(super) type Gunzip = MultiGzDecoder<io::BufReader<ReadAt>>;

// === impl LogFiles ===

impl LogFiles {
    /// Lists the files of the run, oldest first, the active one last. Empty if the directory does not exist.
    pub(super) fn list(&self) -> Result<Vec<Entry>, Error> {
        let mut last = None;
        // A rename during a listing may hide a file from it, so two equal listings in a row are required.
        self.retry(|| {
            let listing = self.list_once().map_err(|error| self.io_error("failed to list", error))?;
            let is_stable = listing == last;
            last.clone_from(&listing);
            Ok(listing.filter(|_| is_stable))
        })
    }

    /// Calls `find` with fresh listings until it returns a value. It returns `None` if a listed file was gone
    /// when it was opened.
    pub(super) fn find<T>(
        &self,
        mut find: impl FnMut(&[Entry]) -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        self.retry(|| find(&self.list()?))
    }

    /// Calls `attempt` until it returns a value. It returns `None` if files were renamed or removed.
    fn retry<T>(&self, mut attempt: impl FnMut() -> Result<Option<T>, Error>) -> Result<T, Error> {
        for _ in 0..ATTEMPTS_MAX {
            if let Some(found) = attempt()? {
                return Ok(found);
            }
        }
        tracing::warn!(dir = %self.dir.display(), "log files changed during every attempt to read them");
        Err(Error::Unavailable("the log is being rotated continuously".to_owned()))
    }

    /// Returns the identity of the active file.
    pub(super) fn active(&self) -> Result<Option<FileId>, Error> {
        match existing(fs::metadata(self.path(&LogName::active(self.run_number)))) {
            Ok(metadata) => Ok(metadata.as_ref().map(FileId::of)),
            Err(error) => Err(self.io_error("failed to find the active log in", error)),
        }
    }

    /// Opens a listed file. Returns `None` if it is gone.
    pub(super) fn open(&self, entry: &Entry) -> Result<Option<OpenFile>, Error> {
        let open = || -> io::Result<Option<OpenFile>> {
            let file = File::open(self.path(&entry.name))?;
            let id = FileId::of(&file.metadata()?);
            Ok((id == entry.id).then(|| OpenFile { file: Arc::new(file), id, gz: entry.name.gz }))
        };
        let opened = existing(open()).map(Option::flatten);
        opened.map_err(|error| self.io_error("failed to open a log in", error))
    }

    /// Returns the first bytes of a listed file, up to [`PREFIX_BYTES`]; empty if it cannot be read.
    pub(super) fn prefix(&self, entry: &Entry) -> Vec<u8> {
        self.open(entry).ok().flatten().map(|file| file.prefix()).unwrap_or_default()
    }

    /// Returns the time of a listed file's first record.
    pub(super) fn first_time(&self, entry: &Entry) -> Option<LogTime> {
        cri::first_time(&self.prefix(entry))
    }

    pub(super) fn io_error(&self, what: &str, error: io::Error) -> Error {
        Error::io(format!("{what} {}", self.dir.display()), error)
    }

    fn path(&self, name: &LogName) -> PathBuf {
        self.dir.join(name.to_string())
    }

    /// Lists once. Returns `None` if a file vanished meanwhile.
    fn list_once(&self) -> io::Result<Option<Vec<Entry>>> {
        let mut entries = Vec::new();
        for name in existing(names(&self.dir, self.run_number))?.unwrap_or_default() {
            let Some(metadata) = existing(fs::metadata(self.path(&name)))? else {
                return Ok(None);
            };
            if metadata.is_file() {
                entries.push(Entry { name, id: FileId::of(&metadata), size: metadata.len() });
            }
        }
        entries.sort_by(|a, b| a.name.age_order().cmp(&b.name.age_order()));
        // During compression the log and its copy both exist. The log sorts first and is kept.
        entries.dedup_by(|later, earlier| later.name.rotated == earlier.name.rotated);
        Ok(Some(entries))
    }
}

/// The error for a run without files or directory.
pub(super) fn not_found() -> Error {
    Error::NotFound("no log of this run on this machine".to_owned())
}

fn names(dir: &Path, run_number: u32) -> io::Result<Vec<LogName>> {
    let mut names = Vec::new();
    for (count, entry) in fs::read_dir(dir)?.enumerate() {
        let name = entry?.file_name();
        if let Some(name) =
            name.to_str().and_then(LogName::parse).filter(|name| name.run_number == run_number)
        {
            names.push(name);
        }
        if count >= ENTRIES_MAX || names.len() > FILES_MAX {
            return Err(io::Error::other("too many files for a container's logs"));
        }
    }
    Ok(names)
}

/// Returns `None` for a file or directory that does not exist.
fn existing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        result => result.map(Some),
    }
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

// === impl OpenFile ===

impl OpenFile {
    /// Returns the size on disk, in bytes.
    pub(super) fn size(&self) -> io::Result<u64> {
        self.file.metadata().map(|metadata| metadata.len())
    }

    /// Whether it has, or had when it was removed, the name of a rotated log. False if unknown.
    pub(super) fn is_rotated(&self) -> bool {
        let descriptor = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let Ok(path) = fs::read_link(descriptor) else { return false };
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = LogName::parse(name.strip_suffix(REMOVED_SUFFIX).unwrap_or(name));
        name.is_some_and(|name| name.rotated.is_some())
    }

    /// Creates a decompressor that starts at the file's beginning.
    pub(super) fn gunzip(&self) -> Gunzip {
        MultiGzDecoder::new(io::BufReader::with_capacity(GZ_BUFFER_BYTES, self.reader(0)))
    }

    /// Returns its first bytes, decompressed, up to [`PREFIX_BYTES`].
    pub(super) fn prefix(&self) -> Vec<u8> {
        let mut prefix = Vec::with_capacity(PREFIX_BYTES);
        // After an error the bytes that were read count like those of a shorter file.
        let _ = if self.gz {
            self.gunzip().take(PREFIX_BYTES as u64).read_to_end(&mut prefix)
        } else {
            self.reader(0).take(PREFIX_BYTES as u64).read_to_end(&mut prefix)
        };
        prefix
    }

    /// Returns a reader of the bytes on disk from `offset`.
    pub(super) fn reader(&self, offset: u64) -> ReadAt {
        ReadAt { file: Arc::clone(&self.file), offset }
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
        let log = LogFiles { dir: dir.path().to_owned(), run_number: 1, needed_start: None };
        (dir, log)
    }

    #[test]
    fn listing_has_one_run_in_age_order() {
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
    fn missing_directory_lists_nothing() {
        let (dir, log) = log(&[]);
        dir.close().unwrap();
        assert_eq!((log.list().unwrap(), log.active().unwrap()), (Vec::new(), None));
    }

    #[test]
    fn replaced_file_is_not_opened() {
        let (dir, log) = log(&["1.log"]);
        let entry = log.list().unwrap().remove(0);
        assert_eq!(log.open(&entry).unwrap().unwrap().id, entry.id);
        fs::rename(dir.path().join("1.log"), dir.path().join("old")).unwrap();
        assert!(log.open(&entry).unwrap().is_none());
        fs::write(dir.path().join("1.log"), "").unwrap();
        assert!(log.open(&entry).unwrap().is_none());
    }
}
