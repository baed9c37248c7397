//! Reads one file of a log: bytes → records.
//!
//! A record is returned only once its newline is read, because the file may be growing. Bytes after the last
//! newline are returned by [`FileReader::take_incomplete`], when the file is complete. A record longer than
//! [`RECORD_PART_BYTES`] is returned in parts.

use std::fmt;
use std::io::{self, Read};

use memchr::memchr;

use super::listing::{Gunzip, OpenFile};
use crate::model::limits::LINE_HELD_MAX_BYTES;

/// Records longer than this are returned in parts; the first part is longer than this. Runtimes write pieces
/// of 8 or 16 KiB, unless their limit is switched off: then a record is as long as its line.
pub(super) const RECORD_PART_BYTES: usize = LINE_HELD_MAX_BYTES;

/// Most bytes decompressed at once. If they turn out to be corrupt, all of them are lost.
const GZ_READ_BYTES: usize = 32 * 1024;

pub(super) struct FileReader {
    file: OpenFile,
    /// Set for a compressed file until its rest turns out to be unreadable.
    gunzip: Option<Box<Gunzip>>,
    /// Decompressed bytes read so far.
    offset: u64,
    /// Bytes still to skip.
    skip: u64,
    /// `buffer[start..]` was read and not returned yet.
    buffer: Vec<u8>,
    start: usize,
    /// Bytes from `start` that are known to hold no newline.
    searched: usize,
    /// Whether parts of the next record were returned.
    in_record: bool,
    /// Whether the last read reached the end of the file.
    at_end: bool,
}

/// Outcome of a read.
#[derive(Debug)]
pub(super) enum FileReadOutcome {
    /// Number of bytes read.
    Bytes(usize),
    /// No further bytes for now.
    End,
    /// The file is shorter than the complete records read from it. Reading restarts at its beginning.
    Truncated,
    /// The rest of a compressed file is unreadable.
    Corrupt(io::Error),
}

/// A record or a part of a long one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RawRecord<'a> {
    /// A record, without its newline.
    Whole(&'a [u8]),
    /// A part of a record that continues.
    Part(&'a [u8]),
    /// The last part of a record, without its newline. May be empty.
    LastPart(&'a [u8]),
}

// === impl FileReader ===

impl FileReader {
    /// Reads `file` from `offset` (in decompressed bytes), which must be the start of a record.
    pub(super) fn new(file: OpenFile, offset: u64) -> Self {
        let gunzip = file.gz.then(|| Box::new(file.gunzip()));
        let (offset, skip) = if file.gz { (0, offset) } else { (offset, 0) };
        Self {
            file,
            gunzip,
            offset,
            skip,
            buffer: Vec::new(),
            start: 0,
            searched: 0,
            in_record: false,
            at_end: false,
        }
    }

    pub(super) fn file(&self) -> &OpenFile {
        &self.file
    }

    /// Returns the offset of the next record, or `None` within a record that is returned in parts.
    pub(super) fn record_start(&self) -> Option<u64> {
        let unread = (self.buffer.len() - self.start) as u64;
        (!self.in_record && self.skip == 0).then_some(self.offset - unread)
    }

    /// Reads up to `max` bytes. If the file has grown since a read that found its end, an incomplete record
    /// is read again, because its writer may have replaced it.
    pub(super) fn read(&mut self, max: usize) -> io::Result<FileReadOutcome> {
        let outcome = if self.file.gz { self.read_gz(max) } else { self.read_plain(max) }?;
        self.at_end = matches!(outcome, FileReadOutcome::End);
        Ok(outcome)
    }

    fn read_plain(&mut self, max: usize) -> io::Result<FileReadOutcome> {
        let size = self.file.size()?;
        if size < self.offset || (self.at_end && size > self.offset) {
            self.rewind_to_record();
        }
        if size < self.offset {
            *self = Self::new(self.file.clone(), 0);
            return Ok(FileReadOutcome::Truncated);
        }
        let left = usize::try_from(size - self.offset).unwrap_or(usize::MAX);
        self.append(self.file.reader(self.offset), max.min(left))
    }

    fn read_gz(&mut self, max: usize) -> io::Result<FileReadOutcome> {
        let Some(mut gunzip) = self.gunzip.take() else {
            return Ok(FileReadOutcome::End);
        };
        let outcome = match self.append(&mut gunzip, max.min(GZ_READ_BYTES)) {
            // Not an error of the disk, which has a number, but of the content.
            Err(error) if error.raw_os_error().is_none() => return Ok(FileReadOutcome::Corrupt(error)),
            // A crash of the machine can leave an empty file. An empty log has a header when compressed.
            Ok(FileReadOutcome::End) if self.offset == 0 && self.file.size()? == 0 => {
                return Ok(FileReadOutcome::Corrupt(io::ErrorKind::UnexpectedEof.into()));
            }
            other => other?,
        };
        self.gunzip = Some(gunzip);
        // While bytes are skipped, the buffer holds nothing else.
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(self.buffer.len());
        self.start += skipped;
        self.skip -= skipped as u64;
        Ok(outcome)
    }

    /// Appends up to `max` bytes to the buffer, with one successful read of `source`.
    fn append(&mut self, mut source: impl Read, max: usize) -> io::Result<FileReadOutcome> {
        self.compact();
        let before = self.buffer.len();
        self.buffer.resize(before + max, 0);
        let result = loop {
            match source.read(&mut self.buffer[before..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        let read = *result.as_ref().unwrap_or(&0);
        self.buffer.truncate(before + read);
        self.offset += read as u64;
        result.map(|read| if read == 0 { FileReadOutcome::End } else { FileReadOutcome::Bytes(read) })
    }

    /// Passes complete records, and parts of a long one, to `take`.
    #[inline]
    pub(super) fn take_records(&mut self, mut take: impl FnMut(RawRecord<'_>)) {
        while let Some(unread) = self.buffer.get(self.start..) {
            let Some(newline) = memchr(b'\n', unread.get(self.searched..).unwrap_or_default()) else {
                break;
            };
            let len = self.searched + newline;
            if std::mem::take(&mut self.in_record) {
                take(RawRecord::LastPart(&unread[..len]));
            } else {
                take(RawRecord::Whole(&unread[..len]));
            }
            self.start += len + 1;
            self.searched = 0;
        }
        self.searched = self.buffer.len() - self.start;
        if self.searched > RECORD_PART_BYTES || self.in_record && self.searched > 0 {
            take(RawRecord::Part(&self.buffer[self.start..]));
            self.in_record = true;
            self.clear();
        }
    }

    /// Passes bytes after the last newline to `take`, if there are any. Call it only when the file is
    /// complete.
    pub(super) fn take_incomplete(&mut self, take: impl FnOnce(RawRecord<'_>)) {
        if std::mem::take(&mut self.in_record) {
            take(RawRecord::LastPart(&self.buffer[self.start..]));
        } else if self.start < self.buffer.len() {
            take(RawRecord::Whole(&self.buffer[self.start..]));
        }
        self.clear();
    }

    /// Frees unused buffer memory.
    pub(super) fn shrink(&mut self) {
        self.compact();
        self.buffer.shrink_to_fit();
    }

    /// Discards bytes after the last newline, so that they are read again. A writer whose disk is full leaves
    /// half a record, cuts it off, and later writes another there.
    fn rewind_to_record(&mut self) {
        if let Some(start) = self.record_start() {
            self.offset = start;
            self.clear();
        }
    }

    fn clear(&mut self) {
        self.buffer.clear();
        (self.start, self.searched) = (0, 0);
    }

    fn compact(&mut self) {
        self.buffer.drain(..std::mem::take(&mut self.start));
    }
}

/// Without the log's content.
impl fmt::Debug for FileReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileReader")
            .field("file", &self.file)
            .field("offset", &self.offset)
            .field("unread", &(self.buffer.len() - self.start))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::super::listing::LogFiles;
    use super::*;

    fn open(dir: &tempfile::TempDir, name: &str) -> OpenFile {
        let log = LogFiles { dir: dir.path().to_owned(), run_number: 0, needed_start: None };
        let entry = log.list().unwrap().into_iter().find(|entry| entry.name.to_string() == name).unwrap();
        log.open(&entry).unwrap().unwrap()
    }

    /// Reads to the end, `max` bytes at a time. Shows records as text, and parts as their length.
    fn read(reader: &mut FileReader, max: usize) -> Vec<String> {
        let mut records = Vec::new();
        loop {
            match reader.read(max).unwrap() {
                FileReadOutcome::Bytes(_) => reader.take_records(|record| records.push(show(record))),
                FileReadOutcome::End => return records,
                end => records.push(format!("{end:?}")),
            }
        }
    }

    fn show(record: RawRecord<'_>) -> String {
        match record {
            RawRecord::Whole(record) => String::from_utf8(record.to_vec()).unwrap(),
            RawRecord::Part(part) => format!("{}+", part.len()),
            RawRecord::LastPart(part) => format!("{}.", part.len()),
        }
    }

    #[test]
    fn records_do_not_depend_on_read_size() {
        let dir = tempfile::tempdir().unwrap();
        for max in 1..20 {
            fs::write(dir.path().join("0.log"), "one\n\ntwo\nthr").unwrap();
            let mut reader = FileReader::new(open(&dir, "0.log"), 0);
            assert_eq!(read(&mut reader, max), ["one", "", "two"]);
            assert_eq!(reader.record_start(), Some(9));
            reader.shrink();
            let mut file = OpenOptions::new().append(true).open(dir.path().join("0.log")).unwrap();
            file.write_all(b"ee\nfo").unwrap();
            assert_eq!(read(&mut reader, max), ["three"]);
            let mut rest = Vec::new();
            reader.take_incomplete(|record| rest.push(show(record)));
            reader.take_incomplete(|record| rest.push(show(record)));
            assert_eq!(rest, ["fo"]);
        }
    }

    #[test]
    fn interrupted_read_is_repeated() {
        struct InterruptedOnce<R>(R, bool);
        impl<R: Read> Read for InterruptedOnce<R> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if std::mem::replace(&mut self.1, true) {
                    return self.0.read(buffer);
                }
                Err(io::Error::from_raw_os_error(rustix::io::Errno::INTR.raw_os_error()))
            }
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("0.log"), "").unwrap();
        let mut reader = FileReader::new(open(&dir, "0.log"), 0);
        let outcome = reader.append(InterruptedOnce(b"secret\n".as_slice(), false), 100).unwrap();
        assert!(matches!(outcome, FileReadOutcome::Bytes(7)));
        let shown = format!("{reader:?}");
        assert!(shown.contains("unread: 7"), "{shown}");
        assert!(!shown.contains("115, 101") && !shown.contains("secret"), "as bytes or as text: {shown}");
        reader.take_records(|record| assert_eq!(record, RawRecord::Whole(b"secret")));
    }

    #[test]
    fn truncated_file_is_read_from_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("0.log"), "one\ntw").unwrap();
        let mut reader = FileReader::new(open(&dir, "0.log"), 0);
        assert_eq!(read(&mut reader, 100), ["one"]);
        let file = OpenOptions::new().write(true).open(dir.path().join("0.log")).unwrap();
        file.set_len(0).unwrap();
        assert!(matches!(reader.read(100).unwrap(), FileReadOutcome::Truncated));
        (&file).write_all(b"new\n").unwrap();
        assert_eq!(read(&mut reader, 100), ["new"]);
    }

    #[test]
    fn incomplete_record_may_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("0.log"), "one\ntwo, incomplete").unwrap();
        let mut reader = FileReader::new(open(&dir, "0.log"), 0);
        assert_eq!(read(&mut reader, 100), ["one"]);
        let mut file = OpenOptions::new().append(true).open(dir.path().join("0.log")).unwrap();
        file.set_len(4).unwrap();
        assert_eq!(read(&mut reader, 100), [""; 0]);
        file.write_all(b"three, incomplete").unwrap();
        assert_eq!(read(&mut reader, 100), [""; 0]);
        // Both before the next read: the file is longer than the bytes read of it.
        file.set_len(4).unwrap();
        file.write_all(b"something much longer\nfour").unwrap();
        assert_eq!(read(&mut reader, 100), ["something much longer"]);
        assert_eq!(reader.record_start(), Some(26));
        // The incomplete last record is still available.
        assert!(matches!(reader.read(100).unwrap(), FileReadOutcome::End));
        reader.take_incomplete(|record| assert_eq!(show(record), "four"));
    }

    #[test]
    fn long_record_comes_in_parts_in_bounded_memory() {
        let dir = tempfile::tempdir().unwrap();
        let long = "x".repeat(3 * RECORD_PART_BYTES);
        fs::write(dir.path().join("0.log"), format!("one\n{long}\ntwo\n{long}")).unwrap();
        let mut reader = FileReader::new(open(&dir, "0.log"), 0);
        let read = read(&mut reader, 64 * 1024);
        let length = |part: &str| part.trim_end_matches(['+', '.']).parse::<usize>().unwrap();
        let end = read.iter().position(|part| part.ends_with('.')).unwrap();
        assert_eq!((read[0].as_str(), read[end + 1].as_str()), ("one", "two"));
        assert_eq!(read[1..=end].iter().map(|part| length(part)).sum::<usize>(), long.len());
        assert!(read[1..=end].iter().all(|part| length(part) <= RECORD_PART_BYTES + 64 * 1024));
        assert!(reader.buffer.capacity() <= 2 * RECORD_PART_BYTES + 128 * 1024);
        assert_eq!(reader.record_start(), None);
        reader.take_incomplete(|record| assert_eq!(record, RawRecord::LastPart(b"")));
    }

    #[test]
    fn compressed_file_is_read_from_any_offset() {
        let dir = tempfile::tempdir().unwrap();
        let name = "0.log.20261123-120000.gz";
        let text = (0..10_000).fold(String::new(), |text, n| format!("{text}{n:05}\n"));
        let mut gz = GzEncoder::new(File::create(dir.path().join(name)).unwrap(), Compression::fast());
        gz.write_all(text.as_bytes()).unwrap();
        gz.finish().unwrap();
        for (max, from) in [(1, 9_990), (7, 0), (1_000, 0), (100_000, 5_000)] {
            let mut reader = FileReader::new(open(&dir, name), from * 6);
            let records = read(&mut reader, max);
            assert_eq!(records.len() as u64, 10_000 - from);
            assert_eq!(records[0], format!("{from:05}"));
            assert_eq!(reader.record_start(), Some(60_000));
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
