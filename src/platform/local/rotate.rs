//! The files of one run's log: the active one and rotated ones.
//!
//! A log never keeps half a record: the rest of a failed write is cut off before anything else is written. If
//! another process removes, moves or empties the active file, for example to free space, output continues in
//! a new file or after the remainder.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::store::make_dir;
use crate::model::time::LogTime;
use crate::platform::cri::path::{LogName, rotation_suffix};

/// The file system operations of a log.
pub(super) trait LogFs: fmt::Debug + Send + 'static {
    type File: io::Write + fmt::Debug + Send;
    /// Opens a file to append to it. Creates it and its directory if needed.
    fn open(&mut self, path: &Path) -> io::Result<Self::File>;
    /// Returns the size of an open file, and whether it is the one at `path`.
    fn stat(&mut self, file: &Self::File, path: &Path) -> io::Result<(u64, bool)>;
    /// Cuts a file to `length`.
    fn truncate(&mut self, file: &mut Self::File, length: u64) -> io::Result<()>;
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&mut self, path: &Path) -> io::Result<()>;
}

/// The operating system's file system.
#[derive(Clone, Copy, Debug)]
pub(super) struct RealFs;

/// When files are rotated, and how many are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rotation {
    /// A file is rotated before it would exceed this size.
    pub(super) max_bytes: u64,
    /// Number of files kept per run, including the active one.
    pub(super) files: usize,
}

/// The log of one run.
#[derive(Debug)]
pub(super) struct RotatingLog<F: LogFs> {
    fs: F,
    dir: PathBuf,
    run_number: u32,
    rotation: Rotation,
    /// The active file. `None` until it could be opened.
    active: Option<Active<F::File>>,
    /// Rotated files that are kept, oldest first.
    rotated: VecDeque<PathBuf>,
}

#[derive(Debug)]
struct Active<F> {
    file: F,
    /// Size of the complete records in it.
    len: u64,
    /// Size of an incomplete record after them, to be cut off.
    incomplete: u64,
}

/// A failed append. The first `kept` bytes were written and stay.
#[derive(Debug)]
pub(super) struct PartialWrite {
    pub(super) kept: usize,
    pub(super) error: io::Error,
}

// === impl RealFs ===

impl LogFs for RealFs {
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

    fn stat(&mut self, file: &File, path: &Path) -> io::Result<(u64, bool)> {
        let open = file.metadata()?;
        let is_same = match std::fs::metadata(path) {
            Ok(named) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        Ok((open.len(), is_same))
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

// === impl RotatingLog ===

impl<F: LogFs> RotatingLog<F> {
    /// Creates the log of run `run_number` in `dir`. Opens nothing.
    pub(super) fn new(fs: F, dir: PathBuf, run_number: u32, rotation: Rotation) -> Self {
        Self { fs, dir, run_number, rotation, active: None, rotated: VecDeque::new() }
    }

    /// Returns the size of the active file.
    pub(super) fn len(&self) -> u64 {
        self.active.as_ref().map_or(0, |active| active.len)
    }

    pub(super) fn max_bytes(&self) -> u64 {
        self.rotation.max_bytes
    }

    /// Appends complete records that end at `ends` (growing; the last is the length of `records`). On failure
    /// the records that were written completely are kept, and the rest is cut off.
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
        if let Some(active) = &mut self.active {
            active.len += kept as u64;
            active.incomplete += (written - kept) as u64;
            // If that fails now, it is repeated before the next write.
            let _ = Self::cut_incomplete(&mut self.fs, active);
        }
        result.map_err(|error| PartialWrite { kept, error })
    }

    fn write_all(&mut self, bytes: &[u8], written: &mut usize) -> io::Result<()> {
        self.ensure_open()?;
        let Some(active) = &mut self.active else {
            return Err(io::ErrorKind::NotFound.into());
        };
        while let Some(rest) = bytes.get(*written..).filter(|rest| !rest.is_empty()) {
            match active.file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => *written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Ensures that the file is open, still has its name, and ends with a complete record.
    pub(super) fn ensure_open(&mut self) -> io::Result<()> {
        let path = self.path();
        let stat = self.active.as_ref().map(|active| self.fs.stat(&active.file, &path)).transpose()?;
        let active = if let (Some(active), Some((len, true))) = (self.active.take(), stat) {
            Active { len: len.saturating_sub(active.incomplete), ..active }
        } else {
            let file = self.fs.open(&path)?;
            let (len, _) = self.fs.stat(&file, &path)?;
            Active { file, len, incomplete: 0 }
        };
        Self::cut_incomplete(&mut self.fs, self.active.insert(active))
    }

    fn cut_incomplete(fs: &mut F, active: &mut Active<F::File>) -> io::Result<()> {
        if active.incomplete > 0 {
            fs.truncate(&mut active.file, active.len)?;
            active.incomplete = 0;
        }
        Ok(())
    }

    /// Renames the active file, unless it is empty, with a suffix made of `now`, removes surplus old files,
    /// and starts a new one. `now` must be greater than in every earlier call.
    pub(super) fn rotate(&mut self, now: LogTime) -> io::Result<()> {
        self.ensure_open()?;
        if self.len() == 0 {
            return Ok(());
        }
        let name = LogName { rotated: Some(rotation_suffix(now)), ..LogName::active(self.run_number) };
        let to = self.dir.join(name.to_string());
        match self.fs.rename(&self.path(), &to) {
            Ok(()) => self.rotated.push_back(to),
            // Another process removed or renamed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.active = None;
        while self.rotated.len() >= self.rotation.files.max(1) {
            let Some(oldest) = self.rotated.front() else { break };
            match self.fs.remove(oldest) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, file = %oldest.display(), "failed to remove rotated log, will retry");
                    break;
                }
                _ => drop(self.rotated.pop_front()),
            }
        }
        self.ensure_open()
    }

    /// Returns the path of the active file.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.join(LogName::active(self.run_number).to_string())
    }
}
