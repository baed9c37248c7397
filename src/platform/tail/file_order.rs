//! Which file follows which, whatever became of their names since.
//!
//! Rotated files are ordered by their suffix, and old ones are removed oldest first. So if the file being read, or its compressed
//! copy, is still listed, the one behind it is the next. If it is not, files behind it may be gone too: they are not if the one
//! found is the one that followed when it was last looked at.

use crate::platform::cri::path::LogName;

use super::files::{Entry, FileId, LogFiles, Opened};

/// The place of the file being read among the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FilePosition {
    id: FileId,
    /// The suffix under which it was last seen; `None` if it was being written.
    rotated: Option<String>,
    /// While it is being written: the newest suffix of the others.
    newest_other: Option<String>,
    /// If it is rotated: what followed.
    successor: Successor,
}

/// How to know a file again that is not open.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Successor {
    Unknown,
    /// By its suffix, which is never used twice.
    Rotated(String),
    /// By its first bytes, since its suffix is yet to come.
    Active(Vec<u8>),
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// Nothing, as yet.
    Nothing,
    /// There was something, and it is gone.
    Gone,
    /// This one.
    Following(&'a Entry),
    /// This one, but there may have been others before it.
    AfterHole(&'a Entry),
}

// === impl Place ===

impl FilePosition {
    /// The place of the file at `index` of a listing.
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
            newest_other: index.checked_sub(1).and_then(|index| list.get(index)?.name.rotated.clone()),
            successor,
        })
    }

    /// Whether the file was being written when last looked at.
    pub(super) fn is_active(&self) -> bool {
        self.rotated.is_none()
    }

    /// Finds what follows in a later listing. `opened` is the file itself, which is kept open.
    pub(super) fn next<'a>(&mut self, log: &LogFiles, opened: &Opened, list: &'a [Entry]) -> Next<'a> {
        let listed = list.iter().position(|entry| entry.id == self.id);
        if let Some(place) = listed.and_then(|index| Self::of(log, list, index)) {
            *self = place;
        }
        let copy = || self.copy(log, opened, list);
        let Some(index) = listed.or_else(copy) else {
            return match list.iter().find(|entry| self.is_before(&entry.name)) {
                Some(next) if self.is_successor(log, next) => Next::Following(next),
                Some(next) => Next::AfterHole(next),
                None if self.rotated.is_some() || opened.is_rotated() => Next::Gone,
                None => Next::Nothing,
            };
        };
        list.get(index + 1).map_or(Next::Nothing, Next::Following)
    }

    /// The index of the file's compressed copy.
    fn copy(&self, log: &LogFiles, opened: &Opened, list: &[Entry]) -> Option<usize> {
        if self.rotated.is_some() {
            return list.iter().position(|entry| entry.name.rotated == self.rotated);
        }
        // It was rotated and compressed since. Its suffix is not known, but it is the first that is newer than those that were, or
        // it is gone.
        let index = list.iter().position(|entry| self.is_before(&entry.name))?;
        let entry = list.get(index).filter(|entry| entry.name.gz)?;
        let prefix = opened.prefix();
        (!prefix.is_empty() && prefix == log.prefix(entry)).then_some(index)
    }

    /// Whether a file of that name is newer.
    fn is_before(&self, name: &LogName) -> bool {
        let known = self.rotated.as_ref().or(self.newest_other.as_ref());
        match &name.rotated {
            Some(suffix) => known.is_none_or(|known| suffix > known),
            None => true,
        }
    }

    fn is_successor(&self, log: &LogFiles, entry: &Entry) -> bool {
        match &self.successor {
            Successor::Unknown => false,
            Successor::Rotated(suffix) => entry.name.rotated.as_ref() == Some(suffix),
            Successor::Active(prefix) => is_beginning(prefix, &log.prefix(entry)),
        }
    }
}

/// Whether a file that began with `before` may begin with `now`; never for an empty one, of which nothing is known.
fn is_beginning(before: &[u8], now: &[u8]) -> bool {
    !before.is_empty() && now.starts_with(before)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    /// A directory in which each file's content is its letter.
    struct World {
        dir: tempfile::TempDir,
        log: LogFiles,
    }

    const SUFFIXES: [&str; 4] = ["20261123-120001", "20261123-120002", "20261123-120003", "20261123-120004"];

    impl World {
        /// Letters `a`, `b`, … oldest first; the last one is being written.
        fn new(files: usize) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let log = LogFiles { dir: dir.path().to_owned(), restarts: 0 };
            let world = Self { dir, log };
            for index in 0..files {
                let name = if index + 1 == files { "0.log".to_owned() } else { name(index) };
                fs::write(world.path(&name), letter(index)).unwrap();
            }
            world
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

        fn at(&self, index: usize) -> (FilePosition, Opened) {
            let list = self.log.list().unwrap();
            let place = FilePosition::of(&self.log, &list, index).unwrap();
            (place, self.log.open(&list[index]).unwrap().unwrap())
        }

        /// The content of the next file; `?` before it if there may be a hole.
        fn next(&self, (place, opened): &mut (FilePosition, Opened)) -> String {
            let list = self.log.list().unwrap();
            let text = |entry: &Entry| String::from_utf8(self.log.prefix(entry)).unwrap();
            match place.next(&self.log, opened, &list) {
                Next::Nothing => String::new(),
                Next::Gone => "gone".to_owned(),
                Next::Following(entry) => text(entry),
                Next::AfterHole(entry) => format!("?{}", text(entry)),
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
    fn renamed_while_read() {
        let world = World::new(1);
        let mut here = world.at(0);
        assert_eq!(world.next(&mut here), "");
        world.rotate(0);
        world.rotate(1);
        assert_eq!(world.next(&mut here), "b");
        // The kubelet renames back if the runtime does not reopen its log.
        let world = World::new(2);
        let mut here = world.at(0);
        fs::rename(world.path(&name(0)), world.path("0.log")).unwrap();
        assert_eq!((world.next(&mut here), here.0.is_active()), (String::new(), true));
    }

    #[test]
    fn compressed_while_read() {
        let world = World::new(2);
        let mut here = world.at(1);
        world.rotate(1);
        world.rotate(2);
        world.compress(0);
        world.compress(1);
        assert_eq!(world.next(&mut here), "c");
        world.remove("0.log");
        world.remove(&name(2));
        assert_eq!(world.next(&mut here), "");
        let mut here = world.at(0);
        world.remove(&format!("{}.gz", name(0)));
        assert_eq!(world.next(&mut here), "b");
    }

    #[test]
    fn removed_while_read() {
        let world = World::new(3);
        let (mut first, mut second, mut last) = (world.at(0), world.at(1), world.at(2));
        world.remove(&name(0));
        assert_eq!(world.next(&mut first), "b");
        world.rotate(2);
        world.remove(&name(1));
        assert_eq!(world.next(&mut first), "?c");
        assert_eq!(world.next(&mut second), "c");
        assert_eq!(world.next(&mut last), "d");
        world.rotate(3);
        world.compress(3);
        world.remove(&name(2));
        assert_eq!(world.next(&mut first), "?d");
        assert_eq!(world.next(&mut second), "?d");
        assert_eq!(world.next(&mut last), "d");
    }

    #[test]
    fn removed_with_all_that_followed() {
        let world = World::new(3);
        let (mut first, mut last) = (world.at(0), world.at(2));
        world.rotate(2);
        let mut newest = world.at(3);
        for file in fs::read_dir(world.dir.path()).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
        // Of the one that is seen to be rotated only now its last name tells.
        assert_eq!((world.next(&mut first), world.next(&mut last)), ("gone".to_owned(), "gone".to_owned()));
        assert_eq!(world.next(&mut newest), "");
    }

    #[test]
    fn removed_before_it_was_seen_rotated() {
        let world = World::new(1);
        let mut here = world.at(0);
        world.rotate(0);
        world.remove(&name(0));
        assert_eq!(world.next(&mut here), "?b");
        world.rotate(1);
        world.compress(1);
        assert_eq!(world.next(&mut here), "?b");
    }
}
