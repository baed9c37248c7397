//! The files of one run's log: the one being written, and those rotated away.
//!
//! A log never holds half a record: what a failed write left behind is cut off before anything else is written.
//!
//! Somebody may remove, move or empty a log while it is written, to make room on a disk that is full, say. What is written then goes
//! into a new file, or follows what is left.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::store::make_dir;
use crate::model::time::LogTime;
use crate::platform::cri::path::{LogName, rotation_suffix};

/// What a log needs of a file system.
pub(super) trait LogFs: fmt::Debug + Send + 'static {
    /// An open file.
    type File: fmt::Debug + Send;
    /// Opens a file to append to it. It is made if it is not there, and so is its directory.
    fn open(&mut self, path: &Path) -> io::Result<Self::File>;
    /// Bytes in an open file, and whether it is the one at `path`.
    fn look(&mut self, file: &Self::File, path: &Path) -> io::Result<(u64, bool)>;
    /// Appends some of `bytes`; tells how many.
    fn write(&mut self, file: &mut Self::File, bytes: &[u8]) -> io::Result<usize>;
    /// Cuts off what is behind `length`.
    fn truncate(&mut self, file: &mut Self::File, length: u64) -> io::Result<()>;
    /// Renames a file.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&mut self, path: &Path) -> io::Result<()>;
}

/// The real one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Files;

/// When files are rotated, and how many are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rotation {
    /// A file that would grow beyond this is rotated first.
    pub(super) max_bytes: u64,
    /// Files of one run that are kept, the one being written included.
    pub(super) files: usize,
}

/// The log of one run.
#[derive(Debug)]
pub(super) struct LogFile<D: LogFs> {
    disk: D,
    dir: PathBuf,
    restarts: u32,
    rotation: Rotation,
    /// `None` until it could be opened.
    open: Option<Open<D::File>>,
    /// Names of the rotated files that are kept, oldest first.
    rotated: VecDeque<PathBuf>,
}

#[derive(Debug)]
struct Open<F> {
    file: F,
    /// Bytes in it that are whole records.
    len: u64,
    /// Bytes behind them that are not, and are to be cut off.
    torn: u64,
}

/// An append that failed; `kept` bytes are in the file, and stay there.
#[derive(Debug)]
pub(super) struct PartialWrite {
    pub(super) kept: usize,
    pub(super) error: io::Error,
}

// === impl Files ===

impl LogFs for Files {
    type File = File;

    fn open(&mut self, path: &Path) -> io::Result<File> {
        let open = || File::options().append(true).create(true).open(path);
        match (open(), path.parent()) {
            (Err(error), Some(dir)) if error.kind() == io::ErrorKind::NotFound => {
                make_dir(dir)?;
                open()
            }
            (opened, _) => opened,
        }
    }

    fn look(&mut self, file: &File, path: &Path) -> io::Result<(u64, bool)> {
        let open = file.metadata()?;
        let is_there = match std::fs::metadata(path) {
            Ok(there) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        Ok((open.len(), is_there))
    }

    fn write(&mut self, file: &mut File, bytes: &[u8]) -> io::Result<usize> {
        file.write(bytes)
    }

    fn truncate(&mut self, file: &mut File, length: u64) -> io::Result<()> {
        file.set_len(length)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }
}

// === impl LogFile ===

impl<D: LogFs> LogFile<D> {
    /// The log of run `restarts` in `dir`. Nothing is opened yet.
    pub(super) fn new(disk: D, dir: PathBuf, restarts: u32, rotation: Rotation) -> Self {
        Self { disk, dir, restarts, rotation, open: None, rotated: VecDeque::new() }
    }

    /// Makes the file, so that there is a log even if nothing is ever written to it.
    pub(super) fn create(&mut self) -> io::Result<()> {
        self.opened().map(drop)
    }

    /// Bytes in the file that is being written.
    pub(super) fn len(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.len)
    }

    /// Beyond how many bytes a file should not grow.
    pub(super) fn max_bytes(&self) -> u64 {
        self.rotation.max_bytes
    }

    /// Appends whole records, which end at `ends` (growing, the last one is the length of `records`). If that fails, the whole
    /// records among what could be written are kept and the rest is cut off.
    pub(super) fn append(
        &mut self,
        records: &[u8],
        ends: impl Iterator<Item = usize>,
    ) -> Result<(), PartialWrite> {
        let mut written = 0;
        let result = self.write_all(records, &mut written);
        let kept = if result.is_ok() {
            records.len()
        } else {
            ends.take_while(|end| *end <= written).last().unwrap_or(0)
        };
        if let Some(open) = &mut self.open {
            open.len += kept as u64;
            open.torn += (written - kept) as u64;
            // What cannot be cut off now is before the next write.
            let _ = Self::mend(&mut self.disk, open);
        }
        result.map_err(|error| PartialWrite { kept, error })
    }

    fn write_all(&mut self, bytes: &[u8], written: &mut usize) -> io::Result<()> {
        self.opened()?;
        let Some(open) = &mut self.open else {
            return Err(io::ErrorKind::NotFound.into());
        };
        while let Some(rest) = bytes.get(*written..).filter(|rest| !rest.is_empty()) {
            match self.disk.write(&mut open.file, rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => *written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sees to it that the file is open, is still the one with its name, and ends with a whole record.
    fn opened(&mut self) -> io::Result<()> {
        let path = self.path();
        let found = self.open.as_ref().map(|open| self.disk.look(&open.file, &path)).transpose()?;
        let open = if let (Some(open), Some((len, true))) = (self.open.take(), found) {
            Open { len: len.saturating_sub(open.torn), ..open }
        } else {
            let file = self.disk.open(&path)?;
            let (len, _) = self.disk.look(&file, &path)?;
            Open { file, len, torn: 0 }
        };
        Self::mend(&mut self.disk, self.open.insert(open))
    }

    fn mend(disk: &mut D, open: &mut Open<D::File>) -> io::Result<()> {
        if open.torn > 0 {
            disk.truncate(&mut open.file, open.len)?;
            open.torn = 0;
        }
        Ok(())
    }

    /// Moves the file away under a name of `now`, unless it is empty, removes the oldest ones beyond what is kept, and begins a new
    /// file. `now` must be greater than at any call before.
    pub(super) fn rotate(&mut self, now: LogTime) -> io::Result<()> {
        self.opened()?;
        if self.len() == 0 {
            return Ok(());
        }
        let name = LogName { rotated: Some(rotation_suffix(now)), ..LogName::active(self.restarts) };
        let to = self.dir.join(name.to_string());
        match self.disk.rename(&self.path(), &to) {
            Ok(()) => self.rotated.push_back(to),
            // Somebody has been quicker.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.open = None;
        while self.rotated.len() >= self.rotation.files.max(1) {
            let Some(oldest) = self.rotated.front() else { break };
            match self.disk.remove(oldest) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, file = %oldest.display(), "cannot remove rotated log, trying again later");
                    break;
                }
                _ => drop(self.rotated.pop_front()),
            }
        }
        self.opened()
    }

    /// The file that is being written.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.join(LogName::active(self.restarts).to_string())
    }
}
