//! Reading one file of a trust directory.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;

use super::item::{self, CERTIFICATES_MAX, KEYS_MAX, TrustEntry};
use crate::access::refusal::Refusal;

/// Largest file, in bytes: [`CERTIFICATES_MAX`] certificates of four times the usual size, or [`KEYS_MAX`] keys, with room for
/// comments.
pub(in crate::access) const FILE_MAX_BYTES: u64 = 64 * 1024;

/// A file that was changed less than this ago may change again without its time of change showing it: file systems count that
/// in steps, of 10 ms at most on local ones and of a second on some others.
const STAMP_STEP: Duration = Duration::from_secs(1);

/// A file or directory as such, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
    /// Numbers of removed files are used again. `None` where the file system does not keep it.
    born: Option<SystemTime>,
}

/// The directory as such, whatever its name.
pub(super) type DirId = FileId;

/// Differs if a file may have changed. The time is that of the last change of status, which nobody can set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) id: FileId,
    bytes: u64,
    changed: (i64, i64),
}

/// What a file was found to hold.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) id: FileId,
    /// `None` if it was changed too recently for its stamp to tell the next change.
    pub(super) stamp: Option<Stamp>,
    /// What is of good form in it, whatever else it holds.
    pub(super) items: Vec<TrustEntry>,
    /// The first thing that is wrong with it.
    pub(super) fault: Option<Fault>,
}

/// Why a file, or a part of it, cannot be used. The text goes behind its name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::access) enum Fault {
    #[error("is not a regular file")]
    NotRegular,
    #[error("is larger than {FILE_MAX_BYTES} bytes")]
    TooLarge,
    #[error("holds more than {CERTIFICATES_MAX} certificates; the rest is ignored")]
    TooMany,
    #[error("holds more than {KEYS_MAX} keys; the rest is ignored")]
    TooManyKeys,
    #[error("holds no certificate")]
    Empty,
    #[error("holds no key of an account")]
    NoKey,
    #[error("line {line} is not an address, a space, and the 66 hexadecimal digits of its own secp256k1 key")]
    Key { line: usize },
    #[error("block {number} is not well-formed PEM; half a file?")]
    Pem { number: usize },
    #[error("certificate {number} is refused: {refusal}")]
    Certificate { number: usize, refusal: Refusal },
    #[error("cannot be read: {0}")]
    Unreadable(io::ErrorKind),
}

/// Reads the file at `path`, following links.
///
/// # Errors
/// Only what the system says; a file of the wrong kind or content is a reading with a fault.
pub(super) fn read(path: &Path) -> io::Result<Reading> {
    // Asked before it is opened, since opening some devices does something.
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Ok(Reading::of(&metadata, Vec::new(), Some(Fault::NotRegular)));
    }
    // Should a pipe have taken its place, do not wait for its writer.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    // The stamp before the content: whatever is written later changes it.
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(Reading::of(&metadata, Vec::new(), Some(Fault::NotRegular)));
    }
    let (items, fault) = match content(file)? {
        Some(bytes) => item::parse(path, &bytes),
        None => (Vec::new(), Some(Fault::TooLarge)),
    };
    Ok(Reading::of(&metadata, items, fault))
}

/// `None` if there is too much of it.
fn content(file: File) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    file.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes)?;
    let fits = u64::try_from(bytes.len()).is_ok_and(|length| length <= FILE_MAX_BYTES);
    Ok(fits.then_some(bytes))
}

// === impl Reading ===

impl Reading {
    fn of(metadata: &Metadata, items: Vec<TrustEntry>, fault: Option<Fault>) -> Self {
        let stamp = Stamp::of(metadata);
        Self { id: stamp.id, stamp: stamp.if_old(), items, fault }
    }

    /// A file of which no more is known than that it is there.
    pub(super) fn unreadable(id: FileId, kind: io::ErrorKind) -> Self {
        Self { id, stamp: None, items: Vec::new(), fault: Some(Fault::Unreadable(kind)) }
    }
}

// === impl Stamp ===

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            id: FileId { device: metadata.dev(), inode: metadata.ino(), born: metadata.created().ok() },
            bytes: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The stamp, if the next change is bound to differ from it.
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
    fn a_stamp_counts_only_when_it_is_old() {
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
