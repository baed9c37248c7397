//! One file of a trust directory, and its identity on disk.

use std::fs::{Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;

use crate::access::trust::TrustEntry;
use crate::access::trust_file::{self, FILE_MAX_BYTES, FileError};

/// A file that changed less than this ago may change again without a new time of change. File systems count
/// that time in steps: of 10 ms at most on local ones, and of a second on some others.
const STAMP_STEP: Duration = Duration::from_secs(1);

/// The identity of a file or directory, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
    /// Distinguishes a reused inode number. `None` where the file system does not keep it.
    created: Option<SystemTime>,
}

/// Differs if the file may have changed. The time is that of the last status change, which no process can
/// set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) id: FileId,
    bytes: u64,
    changed: (i64, i64),
}

/// The result of reading a file.
#[derive(Debug)]
pub(super) struct FileContent {
    pub(super) id: FileId,
    /// `None` if the file changed so recently that the next change may have the same stamp.
    pub(super) stamp: Option<Stamp>,
    pub(super) entries: Vec<TrustEntry>,
    pub(super) error: Option<FileError>,
}

/// Reads the file at `path`, following links. Fails only if the system does; a file of the wrong kind or
/// content is a result with an error.
pub(super) fn read(path: &Path) -> io::Result<FileContent> {
    // Checked before opening, because opening some devices has side effects.
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Ok(FileContent::new(&metadata, Vec::new(), Some(FileError::NotRegular)));
    }
    // If a pipe has replaced the file, do not wait for its writer.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    // The stamp is taken before reading, so that later writes change it.
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(FileContent::new(&metadata, Vec::new(), Some(FileError::NotRegular)));
    }
    let mut content = Vec::new();
    file.take(FILE_MAX_BYTES + 1).read_to_end(&mut content)?;
    let (entries, error) = if content.len() as u64 > FILE_MAX_BYTES {
        (Vec::new(), Some(FileError::TooLarge))
    } else {
        trust_file::parse(path, &content)
    };
    Ok(FileContent::new(&metadata, entries, error))
}

// === impl FileContent ===

impl FileContent {
    fn new(metadata: &Metadata, entries: Vec<TrustEntry>, error: Option<FileError>) -> Self {
        let stamp = Stamp::of(metadata);
        Self { id: stamp.id, stamp: stamp.if_old(), entries, error }
    }

    /// Returns the result for a file that exists but cannot be read.
    pub(super) fn unreadable(id: FileId, kind: io::ErrorKind) -> Self {
        Self { id, stamp: None, entries: Vec::new(), error: Some(FileError::Unreadable(kind)) }
    }
}

// === impl Stamp ===

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            id: FileId { device: metadata.dev(), inode: metadata.ino(), created: metadata.created().ok() },
            bytes: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Returns the stamp if the next change is certain to differ from it.
    pub(super) fn if_old(self) -> Option<Self> {
        let seconds = u64::try_from(self.changed.0).unwrap_or_default();
        let nanos = u32::try_from(self.changed.1).unwrap_or_default();
        let changed = UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))?;
        let age = SystemTime::now().duration_since(changed).ok()?;
        (age > STAMP_STEP).then_some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamp_is_valid_only_when_old() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stamp = Stamp::of(&file.as_file().metadata().unwrap());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let aged =
            |seconds: i64| Stamp { changed: (i64::try_from(now.as_secs()).unwrap() - seconds, 0), ..stamp };
        assert_eq!(aged(0).if_old(), None);
        assert_eq!(aged(-3600).if_old(), None, "the clock was set back");
        assert_eq!(aged(3600).if_old(), Some(aged(3600)));
    }
}
