//! One file of a log: bytes → records.
//!
//! A record is handed out only when its newline is there: the file may be growing. What follows the last newline is handed out
//! by [`FileReader::rest`], when nothing more will come. A record longer than [`RECORD_PART_BYTES`] is handed out in parts.

use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::FileExt as _;

use memchr::memchr;

use super::files::{Gunzip, Opened};
use crate::model::limits::LINE_HELD_MAX_BYTES;

/// A record longer than this comes in parts, the first of which holds more than this many bytes. Runtimes write pieces of 8 or 16 KiB
/// unless their limit is switched off; then a record is as long as its line.
pub(super) const RECORD_PART_BYTES: usize = LINE_HELD_MAX_BYTES;

/// One file being read.
pub(super) struct FileReader {
    opened: Opened,
    /// Set for compressed files.
    gunzip: Option<Box<Gunzip>>,
    /// How far the file has been read, in decompressed bytes.
    offset: u64,
    /// How many of the next bytes are passed over.
    skip: u64,
    /// What has been read and not handed out is `buffer[start..end]`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// How many bytes from `start` on hold no newline, as far as is known.
    searched: usize,
    /// Whether parts of the next record were handed out.
    in_record: bool,
    /// Whether the last read found the end of the file.
    at_end: bool,
    /// Why a compressed file cannot be read on; said once what was good has been handed out.
    corrupt: Option<io::Error>,
}

/// What a read found.
#[derive(Debug)]
pub(super) enum Fill {
    /// So many bytes more.
    Bytes(usize),
    /// Nothing, for now.
    End,
    /// The file is shorter than the whole records that had been read of it; it is read from its beginning now.
    Truncated,
    /// The rest of a compressed file cannot be read.
    Corrupt(io::Error),
}

/// One record, or a part of a long one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// A record, without its newline.
    Record(&'a [u8]),
    /// A part of a record that goes on.
    Part(&'a [u8]),
    /// The last part of a record, without its newline. Empty if only that was left.
    LastPart(&'a [u8]),
}

// === impl FileReader ===

impl FileReader {
    /// Reads `opened` from `offset` (of its decompressed bytes) on, where a record begins.
    pub(super) fn new(opened: Opened, offset: u64) -> Self {
        let gunzip = opened.gz.then(|| Box::new(opened.gunzip()));
        let (offset, skip) = if opened.gz { (0, offset) } else { (offset, 0) };
        Self {
            opened,
            gunzip,
            offset,
            skip,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            searched: 0,
            in_record: false,
            at_end: false,
            corrupt: None,
        }
    }

    /// The file.
    pub(super) fn opened(&self) -> &Opened {
        &self.opened
    }

    /// Where the next record begins; `None` within one that comes in parts.
    pub(super) fn record_start(&self) -> Option<u64> {
        let unread = (self.end - self.start) as u64;
        (!self.in_record && self.skip == 0).then_some(self.offset - unread)
    }

    /// Reads up to `max` bytes more.
    pub(super) fn fill(&mut self, max: usize) -> io::Result<Fill> {
        let read = if self.opened.gz {
            let read = self.fill_gz(max)?;
            if let (0, Some(error)) = (read, self.corrupt.take()) {
                self.gunzip = None;
                return Ok(Fill::Corrupt(error));
            }
            read
        } else {
            let size = self.opened.size()?;
            if size < self.offset || (self.at_end && size > self.offset) {
                self.unread();
            }
            if size < self.offset {
                *self = Self::new(self.opened.clone(), 0);
                return Ok(Fill::Truncated);
            }
            let left = usize::try_from(size - self.offset).unwrap_or(usize::MAX);
            self.fill_plain(max.min(left))?
        };
        self.at_end = read == 0;
        Ok(if read == 0 { Fill::End } else { Fill::Bytes(read) })
    }

    /// Hands out the records that are whole, and parts of a long one.
    #[inline]
    pub(super) fn drain(&mut self, mut take: impl FnMut(Found<'_>)) {
        while let Some(unread) = self.buffer.get(self.start..self.end) {
            let Some(newline) = memchr(b'\n', unread.get(self.searched..).unwrap_or_default()) else {
                break;
            };
            let len = self.searched + newline;
            if std::mem::take(&mut self.in_record) {
                take(Found::LastPart(&unread[..len]));
            } else {
                take(Found::Record(&unread[..len]));
            }
            self.start += len + 1;
            self.searched = 0;
        }
        self.searched = self.end - self.start;
        if self.searched > RECORD_PART_BYTES || self.in_record && self.searched > 0 {
            take(Found::Part(&self.buffer[self.start..self.end]));
            self.in_record = true;
            self.clear();
        }
    }

    /// Hands out what follows the last newline, if anything does: nothing more will come.
    pub(super) fn rest(&mut self, take: impl FnOnce(Found<'_>)) {
        if std::mem::take(&mut self.in_record) {
            take(Found::LastPart(&self.buffer[self.start..self.end]));
        } else if self.start < self.end {
            take(Found::Record(&self.buffer[self.start..self.end]));
        }
        self.clear();
    }

    /// Gives back memory that is not in use.
    pub(super) fn release(&mut self) {
        self.compact();
        self.buffer.truncate(self.end);
        self.buffer.shrink_to_fit();
    }

    /// Forgets what follows the last newline, so that it is read again: a writer whose disk is full leaves half a record, cuts it
    /// off, and later puts another there.
    fn unread(&mut self) {
        if let Some(start) = self.record_start() {
            self.offset = start;
            self.clear();
        }
    }

    fn clear(&mut self) {
        (self.start, self.end, self.searched) = (0, 0, 0);
    }

    fn compact(&mut self) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// Room for `len` bytes at the end of the buffer. What was in use before is not zeroed again.
    fn room(&mut self, len: usize) -> &mut [u8] {
        self.compact();
        if self.buffer.len() < self.end + len {
            self.buffer.resize(self.end + len, 0);
        }
        &mut self.buffer[self.end..self.end + len]
    }

    fn fill_plain(&mut self, len: usize) -> io::Result<usize> {
        if len == 0 {
            return Ok(0);
        }
        let (file, offset) = (self.opened.file.clone(), self.offset);
        let read = retry(|| file.read_at(self.room(len), offset))?;
        self.end += read;
        self.offset += read as u64;
        Ok(read)
    }

    fn fill_gz(&mut self, max: usize) -> io::Result<usize> {
        let Some(mut gunzip) = self.gunzip.take().filter(|_| self.corrupt.is_none()) else {
            return Ok(0);
        };
        let mut filled = 0;
        while filled < max {
            match retry(|| gunzip.read(self.room(max - filled))) {
                Ok(0) => break,
                Ok(read) => {
                    filled += read;
                    self.offset += read as u64;
                    self.end += read;
                    self.pass_over(read);
                }
                // The disk's fault, not the content's.
                Err(error) if error.raw_os_error().is_some() => return Err(error),
                Err(error) => {
                    self.corrupt = Some(error);
                    break;
                }
            }
        }
        self.gunzip = Some(gunzip);
        Ok(filled)
    }

    /// Drops what is to be skipped of the `read` bytes that came last. Nothing lies before them as long as there is any.
    fn pass_over(&mut self, read: usize) {
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(read);
        self.start += skipped;
        self.skip -= skipped as u64;
    }
}

impl std::fmt::Debug for FileReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment")
            .field("opened", &self.opened)
            .field("offset", &self.offset)
            .field("unread", &(self.end - self.start))
            .finish_non_exhaustive()
    }
}

fn retry(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::super::files::LogFiles;
    use super::*;

    fn open(dir: &tempfile::TempDir, name: &str) -> Opened {
        let log = LogFiles { dir: dir.path().to_owned(), restarts: 0 };
        let entry = log.list().unwrap().into_iter().find(|entry| entry.name.to_string() == name).unwrap();
        log.open(&entry).unwrap().unwrap()
    }

    /// Reads to the end, `max` bytes at a time: records as text, oversized ones as their length.
    fn read(segment: &mut FileReader, max: usize) -> Vec<String> {
        let mut found = Vec::new();
        loop {
            match segment.fill(max).unwrap() {
                Fill::Bytes(_) => segment.drain(|record| found.push(show(record))),
                Fill::End => return found,
                end => found.push(format!("{end:?}")),
            }
        }
    }

    fn show(found: Found<'_>) -> String {
        match found {
            Found::Record(record) => String::from_utf8(record.to_vec()).unwrap(),
            Found::Part(part) => format!("{}+", part.len()),
            Found::LastPart(part) => format!("{}.", part.len()),
        }
    }

    #[test]
    fn records_whatever_the_size_of_reads() {
        let dir = tempfile::tempdir().unwrap();
        for max in 1..20 {
            fs::write(dir.path().join("0.log"), "one\n\ntwo\nthr").unwrap();
            let mut segment = FileReader::new(open(&dir, "0.log"), 0);
            assert_eq!(read(&mut segment, max), ["one", "", "two"]);
            assert_eq!(segment.record_start(), Some(9));
            segment.release();
            let mut file = OpenOptions::new().append(true).open(dir.path().join("0.log")).unwrap();
            file.write_all(b"ee\nfo").unwrap();
            assert_eq!(read(&mut segment, max), ["three"]);
            let mut rest = Vec::new();
            segment.rest(|record| rest.push(show(record)));
            segment.rest(|record| rest.push(show(record)));
            assert_eq!(rest, ["fo"]);
        }
    }

    #[test]
    fn a_truncated_file_is_read_from_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("0.log"), "one\ntw").unwrap();
        let mut segment = FileReader::new(open(&dir, "0.log"), 0);
        assert_eq!(read(&mut segment, 100), ["one"]);
        let file = OpenOptions::new().write(true).open(dir.path().join("0.log")).unwrap();
        file.set_len(0).unwrap();
        assert!(matches!(segment.fill(100).unwrap(), Fill::Truncated));
        (&file).write_all(b"new\n").unwrap();
        assert_eq!(read(&mut segment, 100), ["new"]);
    }

    #[test]
    fn half_a_record_may_be_cut_off_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("0.log"), "one\ntwo, torn").unwrap();
        let mut segment = FileReader::new(open(&dir, "0.log"), 0);
        assert_eq!(read(&mut segment, 100), ["one"]);
        let mut file = OpenOptions::new().append(true).open(dir.path().join("0.log")).unwrap();
        file.set_len(4).unwrap();
        assert_eq!(read(&mut segment, 100), [""; 0]);
        file.write_all(b"three, torn").unwrap();
        assert_eq!(read(&mut segment, 100), [""; 0]);
        // Both before the next look: the file is longer than what was read of it.
        file.set_len(4).unwrap();
        file.write_all(b"something much longer\nfour").unwrap();
        assert_eq!(read(&mut segment, 100), ["something much longer"]);
        assert_eq!(segment.record_start(), Some(26));
        // What nothing comes behind any more is still there to be taken.
        assert!(matches!(segment.fill(100).unwrap(), Fill::End));
        segment.rest(|found| assert_eq!(show(found), "four"));
    }

    #[test]
    fn long_record_comes_in_parts_in_bounded_memory() {
        let dir = tempfile::tempdir().unwrap();
        let long = "x".repeat(3 * RECORD_PART_BYTES);
        fs::write(dir.path().join("0.log"), format!("one\n{long}\ntwo\n{long}")).unwrap();
        let mut segment = FileReader::new(open(&dir, "0.log"), 0);
        let read = read(&mut segment, 64 * 1024);
        let length = |part: &str| part.trim_end_matches(['+', '.']).parse::<usize>().unwrap();
        let end = read.iter().position(|part| part.ends_with('.')).unwrap();
        assert_eq!((read[0].as_str(), read[end + 1].as_str()), ("one", "two"));
        assert_eq!(read[1..=end].iter().map(|part| length(part)).sum::<usize>(), long.len());
        assert!(read[1..=end].iter().all(|part| length(part) <= RECORD_PART_BYTES + 64 * 1024));
        assert!(segment.buffer.capacity() <= 2 * RECORD_PART_BYTES + 128 * 1024);
        assert_eq!(segment.record_start(), None);
        segment.rest(|found| assert_eq!(found, Found::LastPart(b"")));
    }

    #[test]
    fn compressed_files_are_streamed_and_may_be_entered_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let name = "0.log.20261123-120000.gz";
        let text = (0..10_000).fold(String::new(), |text, n| format!("{text}{n:05}\n"));
        let mut gz = GzEncoder::new(File::create(dir.path().join(name)).unwrap(), Compression::fast());
        gz.write_all(text.as_bytes()).unwrap();
        gz.finish().unwrap();
        for (max, from) in [(1, 9_990), (7, 0), (1_000, 0), (100_000, 5_000)] {
            let mut segment = FileReader::new(open(&dir, name), from * 6);
            let records = read(&mut segment, max);
            assert_eq!(records.len() as u64, 10_000 - from);
            assert_eq!(records[0], format!("{from:05}"));
            assert_eq!(segment.record_start(), Some(60_000));
        }
        let whole = fs::read(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name), &whole[..whole.len() / 2]).unwrap();
        let records = read(&mut FileReader::new(open(&dir, name), 0), 1_000);
        assert!(
            records.len() > 100 && records.last().unwrap().starts_with("Corrupt"),
            "{:?}",
            records.last()
        );
    }
}
