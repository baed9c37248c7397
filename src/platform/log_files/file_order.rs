//! Finds the file that follows another, independent of their names.
//!
//! Rotated files are ordered by suffix, and old ones are removed oldest first. If the file being read, or its
//! compressed copy, is still listed, the entry after it is the next file. If it is not, later files may be
//! gone as well, unless the file found is the one that followed in an earlier listing.

use crate::platform::cri::path::LogName;

use super::listing::{Entry, FileId, LogFiles, OpenFile};

/// The place of the file being read in the order of rotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RotationPlace {
    id: FileId,
    /// The suffix in the latest listing that had the file. `None` if it was active.
    rotated: Option<String>,
    /// If it is active: the newest suffix of the others.
    newest_rotated: Option<String>,
    /// If it is rotated: the file that followed.
    successor: Successor,
}

/// Identifies a file that is not open.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Successor {
    Unknown,
    /// By its suffix, which is never reused.
    Rotated(String),
    /// By its first bytes, because an active file has no suffix yet.
    Active(Vec<u8>),
}

/// The file after the one being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// It does not exist yet.
    NotYet,
    Removed,
    /// The entry follows directly.
    Following(&'a Entry),
    /// Files before the entry may have been removed.
    AfterRemoved(&'a Entry),
}

// === impl RotationPlace ===

impl RotationPlace {
    /// Returns the position of the file at `index` of a listing.
    pub(super) fn of(log: &LogFiles, list: &[Entry], index: usize) -> Option<Self> {
        let entry = list.get(index)?;
        let successor = match list.get(index + 1).map(|next| (next, &next.name)) {
            Some((_, LogName { rotated: Some(suffix), .. })) => Successor::Rotated(suffix.clone()),
            Some((next, _)) => Successor::Active(log.prefix(next)),
            None => Successor::Unknown,
        };
        Some(Self {
            id: entry.id,
            rotated: entry.name.rotated.clone(),
            newest_rotated: index.checked_sub(1).and_then(|index| list.get(index)?.name.rotated.clone()),
            successor,
        })
    }

    /// Whether the file was active in the latest listing.
    pub(super) fn is_active(&self) -> bool {
        self.rotated.is_none()
    }

    /// Finds the next file in a later listing. `file` is the one at this position, still open.
    pub(super) fn next<'a>(&mut self, log: &LogFiles, file: &OpenFile, list: &'a [Entry]) -> Next<'a> {
        let listed = list.iter().position(|entry| entry.id == self.id);
        if let Some(position) = listed.and_then(|index| Self::of(log, list, index)) {
            *self = position;
        }
        let copy = || self.compressed_copy(log, file, list);
        let Some(index) = listed.or_else(copy) else {
            return match list.iter().find(|entry| self.precedes(&entry.name)) {
                Some(next) if self.is_successor(log, next) => Next::Following(next),
                Some(next) => Next::AfterRemoved(next),
                None if self.rotated.is_some() || file.is_rotated() => Next::Removed,
                None => Next::NotYet,
            };
        };
        list.get(index + 1).map_or(Next::NotYet, Next::Following)
    }

    fn compressed_copy(&self, log: &LogFiles, file: &OpenFile, list: &[Entry]) -> Option<usize> {
        if self.rotated.is_some() {
            return list.iter().position(|entry| entry.name.rotated == self.rotated);
        }
        // It was rotated and compressed since the latest listing. Its suffix is unknown, but must be the
        // first that is newer than the suffixes of that listing, unless the copy was removed too.
        let index = list.iter().position(|entry| self.precedes(&entry.name))?;
        let entry = list.get(index).filter(|entry| entry.name.gz)?;
        let prefix = file.prefix();
        (!prefix.is_empty() && prefix == log.prefix(entry)).then_some(index)
    }

    /// Whether a file with this name is newer.
    fn precedes(&self, name: &LogName) -> bool {
        let known = self.rotated.as_ref().or(self.newest_rotated.as_ref());
        match &name.rotated {
            Some(suffix) => known.is_none_or(|known| suffix > known),
            None => true,
        }
    }

    fn is_successor(&self, log: &LogFiles, entry: &Entry) -> bool {
        match &self.successor {
            Successor::Unknown => false,
            Successor::Rotated(suffix) => entry.name.rotated.as_ref() == Some(suffix),
            // An empty prefix identifies nothing.
            Successor::Active(prefix) => !prefix.is_empty() && log.prefix(entry).starts_with(prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    /// A log directory whose files contain one letter each.
    struct Directory {
        dir: tempfile::TempDir,
        log: LogFiles,
    }

    const SUFFIXES: [&str; 4] = ["20261123-120001", "20261123-120002", "20261123-120003", "20261123-120004"];

    impl Directory {
        /// Creates files with the letters `a`, `b`, … oldest first; the last one is active.
        fn new(files: usize) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let log = LogFiles { dir: dir.path().to_owned(), run_number: 0, needed_start: None };
            let logs = Self { dir, log };
            for index in 0..files {
                let name = if index + 1 == files { "0.log".to_owned() } else { name(index) };
                fs::write(logs.path(&name), letter(index)).unwrap();
            }
            logs
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.dir.path().join(name)
        }

        fn rotate(&self, index: usize) {
            fs::rename(self.path("0.log"), self.path(&name(index))).unwrap();
            fs::write(self.path("0.log"), letter(index + 1)).unwrap();
        }

        fn compress(&self, index: usize) {
            let content = fs::read(self.path(&name(index))).unwrap();
            let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
            gz.write_all(&content).unwrap();
            fs::write(self.path(&format!("{}.gz", name(index))), gz.finish().unwrap()).unwrap();
            self.remove(&name(index));
        }

        fn remove(&self, name: &str) {
            fs::remove_file(self.path(name)).unwrap();
        }

        fn open(&self, index: usize) -> (RotationPlace, OpenFile) {
            let list = self.log.list().unwrap();
            let position = RotationPlace::of(&self.log, &list, index).unwrap();
            (position, self.log.open(&list[index]).unwrap().unwrap())
        }

        /// Returns the content of the next file, prefixed with `?` if files before it may be missing.
        fn next(&self, (position, file): &mut (RotationPlace, OpenFile)) -> String {
            let list = self.log.list().unwrap();
            let text = |entry: &Entry| String::from_utf8(self.log.prefix(entry)).unwrap();
            match position.next(&self.log, file, &list) {
                Next::NotYet => String::new(),
                Next::Removed => "removed".to_owned(),
                Next::Following(entry) => text(entry),
                Next::AfterRemoved(entry) => format!("?{}", text(entry)),
            }
        }
    }

    fn name(index: usize) -> String {
        format!("0.log.{}", SUFFIXES[index])
    }

    fn letter(index: usize) -> String {
        ["a", "b", "c", "d", "e"][index].to_owned()
    }

    #[test]
    fn renamed_file_is_followed_by_next() {
        let logs = Directory::new(1);
        let mut current = logs.open(0);
        assert_eq!(logs.next(&mut current), "");
        logs.rotate(0);
        logs.rotate(1);
        assert_eq!(logs.next(&mut current), "b");
        // The kubelet renames back if the runtime does not reopen its log.
        let logs = Directory::new(2);
        let mut current = logs.open(0);
        fs::rename(logs.path(&name(0)), logs.path("0.log")).unwrap();
        assert_eq!((logs.next(&mut current), current.0.is_active()), (String::new(), true));
    }

    #[test]
    fn compressed_file_is_followed_by_next() {
        let logs = Directory::new(2);
        let mut current = logs.open(1);
        logs.rotate(1);
        logs.rotate(2);
        logs.compress(0);
        logs.compress(1);
        assert_eq!(logs.next(&mut current), "c");
        logs.remove("0.log");
        logs.remove(&name(2));
        assert_eq!(logs.next(&mut current), "");
        let mut current = logs.open(0);
        logs.remove(&format!("{}.gz", name(0)));
        assert_eq!(logs.next(&mut current), "b");
    }

    #[test]
    fn removed_file_may_be_followed_by_gap() {
        let logs = Directory::new(3);
        let (mut first, mut second, mut last) = (logs.open(0), logs.open(1), logs.open(2));
        logs.remove(&name(0));
        assert_eq!(logs.next(&mut first), "b");
        logs.rotate(2);
        logs.remove(&name(1));
        assert_eq!(logs.next(&mut first), "?c");
        assert_eq!(logs.next(&mut second), "c");
        assert_eq!(logs.next(&mut last), "d");
        logs.rotate(3);
        logs.compress(3);
        logs.remove(&name(2));
        assert_eq!(logs.next(&mut first), "?d");
        assert_eq!(logs.next(&mut second), "?d");
        assert_eq!(logs.next(&mut last), "d");
    }

    #[test]
    fn removal_of_all_later_files_is_noticed() {
        let logs = Directory::new(3);
        let (mut first, mut last) = (logs.open(0), logs.open(2));
        logs.rotate(2);
        let mut newest = logs.open(3);
        for file in fs::read_dir(logs.dir.path()).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
        // Only the last name of its descriptor shows that the file was rotated.
        assert_eq!(
            (logs.next(&mut first), logs.next(&mut last)),
            ("removed".to_owned(), "removed".to_owned())
        );
        assert_eq!(logs.next(&mut newest), "");
    }

    #[test]
    fn removal_before_rotation_was_seen_is_gap() {
        let logs = Directory::new(1);
        let mut current = logs.open(0);
        logs.rotate(0);
        logs.remove(&name(0));
        assert_eq!(logs.next(&mut current), "?b");
        logs.rotate(1);
        logs.compress(1);
        assert_eq!(logs.next(&mut current), "?b");
    }
}
