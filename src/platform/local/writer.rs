//! Writes what a run prints as a CRI log.
//!
//! What it promises: records in the order in which output came, their times strictly growing; a line is never mixed with
//! another of the same output; the unfinished rest of a run is written as a partial record. If the log cannot be written,
//! output is dropped and counted, and at the place where it is missing stands a record tagged `lost=LINES/BYTES` as soon as
//! writing works again. Lines that are in pieces at that place, of either output, count among the lost: a reader may take it
//! that a line goes on behind such a record only if it began behind it.
//!
//! Reading, and so the service, never waits for a disk that is full.

use std::time::{Duration, Instant};

use memchr::memchr;

use super::rotate::{Disk, LogFile};
use crate::model::limits::{CRI_PIECE_MAX_BYTES, LINE_HELD_MAX_BYTES};
use crate::model::time::LogTime;
use crate::platform::cri::{self, Lost, Record, Stream};

/// Records are written once so many bytes of them are ready, or when there is no more output at hand. A batch of empty lines
/// grows fortyfold by its timestamps.
const BATCH_BYTES: usize = 256 * 1024;

/// How far a file may grow beyond its limit so that a line in pieces stays in one file.
const LINE_SLACK_BYTES: u64 = LINE_HELD_MAX_BYTES as u64;

/// How often a disk that cannot be written is complained of.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(30);

const NOTHING: Lost = Lost { lines: 0, bytes: 0 };

/// Writes the log of one run.
#[derive(Debug)]
pub(super) struct Writer<D: Disk> {
    log: LogFile<D>,
    /// Of stdout and stderr.
    lines: [Unfinished; 2],
    /// Of the last record.
    time: LogTime,
    /// Records that are ready, and what they are.
    batch: Vec<u8>,
    queued: Vec<Queued>,
    /// What was dropped and has no record yet.
    lost: Lost,
    /// Set while the log cannot be written.
    outage: Option<Outage>,
}

/// The line at the end of one output.
#[derive(Debug, Default)]
struct Unfinished {
    /// Its bytes that are in no record yet, at most [`CRI_PIECE_MAX_BYTES`].
    held: Vec<u8>,
    /// Whether a piece of it is in a record.
    in_pieces: bool,
    /// Whether a piece of it is in the file.
    in_file: bool,
    /// Whether it counts as lost, so that its rest is dropped as well.
    doomed: bool,
}

/// A record in the batch.
#[derive(Clone, Copy, Debug)]
struct Queued {
    /// Where it ends in the batch.
    end: usize,
    content: Content,
}

#[derive(Clone, Copy, Debug)]
enum Content {
    /// So many of the run's own bytes (newline included), the last of a line or not.
    Output { stream: Stream, bytes: u64, ends: bool },
    /// The notice about what was dropped.
    Loss(Lost),
}

#[derive(Debug)]
struct Outage {
    since: Instant,
    complained: Option<Instant>,
}

// === impl Writer ===

impl<D: Disk> Writer<D> {
    /// Begins a log. If its file cannot be made, that is as if the disk were full.
    pub(super) fn new(mut log: LogFile<D>) -> Self {
        if let Err(error) = log.create() {
            tracing::warn!(%error, log = %log.path().display(), "cannot make log file, trying again with the first output");
        }
        Self {
            log,
            lines: Default::default(),
            time: LogTime::MIN,
            batch: Vec::new(),
            queued: Vec::new(),
            lost: NOTHING,
            outage: None,
        }
    }

    /// Takes output that came at `now`. Call [`flush`](Self::flush) when there is no more at hand.
    pub(super) fn append(&mut self, stream: Stream, mut output: &[u8], now: LogTime) {
        while !output.is_empty() {
            let line = &mut self.lines[index(stream)];
            let room = CRI_PIECE_MAX_BYTES - line.held.len();
            // A newline directly behind the longest piece still belongs to it.
            let window = output.get(..=room).unwrap_or(output);
            if let Some(at) = memchr(b'\n', window) {
                self.record(stream, &output[..at], true, now);
                output = &output[at + 1..];
            } else if output.len() > room {
                self.record(stream, &output[..room], false, now);
                output = &output[room..];
            } else {
                line.held.extend_from_slice(output);
                output = &[];
            }
        }
    }

    /// Writes what is ready, and the notice of what was lost if there is one.
    pub(super) fn flush(&mut self, now: LogTime) {
        self.note_loss(now);
        self.write_batch();
    }

    /// Whether a notice waits to be written.
    pub(super) fn owes_notice(&self) -> bool {
        self.lost != NOTHING
    }

    /// Writes everything that is left; the run has ended.
    pub(super) fn finish(mut self, now: LogTime) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !self.lines[index(stream)].held.is_empty() {
                self.record(stream, &[], false, now);
            }
        }
        self.flush(now);
        if self.owes_notice() {
            tracing::error!(lost = ?self.lost, log = %self.log.path().display(), "output lost, and no room to say so in the log");
        }
    }

    /// Queues a record of what is held and `rest`.
    fn record(&mut self, stream: Stream, rest: &[u8], ends: bool, now: LogTime) {
        let held = std::mem::take(&mut self.lines[index(stream)].held);
        let bytes = (held.len() + rest.len() + usize::from(ends)) as u64;
        let content = Content::Output { stream, bytes, ends };
        if self.lines[index(stream)].doomed {
            // A notice is to follow, and what it follows must be known to be in the file.
            self.write_batch();
            self.lose([content]);
            return;
        }
        self.note_loss(now);
        if self.owes_notice() {
            self.lose([content]);
            return;
        }
        let whole: &[u8] = if held.is_empty() {
            rest
        } else {
            &[&held, rest].concat()
        };
        self.queue(stream, whole, content, now);
    }

    fn note_loss(&mut self, now: LogTime) {
        if self.owes_notice() {
            let lost = std::mem::replace(&mut self.lost, NOTHING);
            let Lost { lines, bytes } = lost;
            let notice = format!("[{lines} lines, {bytes} bytes lost here: the log could not be written]");
            self.queue(Stream::Stderr, notice.as_bytes(), Content::Loss(lost), now);
        }
    }

    fn queue(&mut self, stream: Stream, bytes: &[u8], content: Content, now: LogTime) {
        let (partial, lost) = match content {
            Content::Output { ends, .. } => (!ends, None),
            Content::Loss(lost) => (false, Some(lost)),
        };
        let record = Record {
            time: self.next_time(now),
            stream,
            partial,
            lost,
            content: bytes,
        };
        let start = self.batch.len();
        cri::write(&mut self.batch, &record);
        if self.rotation_due(start) {
            let record = self.batch.split_off(start);
            self.write_batch();
            if self.owes_notice() || !self.rotate(now) {
                // What comes behind a loss comes behind its notice.
                self.lose([content]);
                return;
            }
            self.batch = record;
        }
        self.queued.push(Queued {
            end: self.batch.len(),
            content,
        });
        if let Content::Output { ends, .. } = content {
            self.lines[index(stream)].in_pieces = !ends;
        }
        if self.batch.len() >= BATCH_BYTES {
            self.write_batch();
        }
    }

    /// Times grow strictly, whatever the clock does.
    fn next_time(&mut self, now: LogTime) -> LogTime {
        self.time = now.max(self.time.saturating_add_nanos(1));
        self.time
    }

    /// Whether the record that begins at `start` of the batch, its last, should be the first of a new file.
    fn rotation_due(&self, start: usize) -> bool {
        let before = self.log.len() + start as u64;
        let after = self.log.len() + self.batch.len() as u64;
        let within_line = self.lines.iter().any(|line| line.in_pieces);
        let slack = if within_line { LINE_SLACK_BYTES } else { 0 };
        before > 0 && after > self.log.max_bytes().saturating_add(slack)
    }

    fn rotate(&mut self, now: LogTime) -> bool {
        let time = self.next_time(now);
        let result = self.log.rotate(time);
        if let Err(error) = &result {
            self.complain(error);
        }
        result.is_ok()
    }

    fn write_batch(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let queued = std::mem::take(&mut self.queued);
        let result = self
            .log
            .append(&self.batch, queued.iter().map(|queued| queued.end));
        self.batch.clear();
        let kept = match &result {
            Ok(()) => queued.len(),
            Err(torn) => queued.partition_point(|queued| queued.end <= torn.kept),
        };
        let (kept, dropped) = queued.split_at(kept);
        for queued in kept {
            if let Content::Output { stream, ends, .. } = queued.content {
                self.lines[index(stream)].in_file = !ends;
            }
        }
        match result {
            Ok(()) => self.recovered(),
            Err(torn) => {
                self.lose(dropped.iter().map(|queued| queued.content));
                self.complain(&torn.error);
            }
        }
    }

    /// Counts records that could not be written, and dooms the lines that are in pieces here.
    fn lose(&mut self, records: impl IntoIterator<Item = Content>) {
        for line in &mut self.lines {
            if line.in_file {
                self.lost.lines += 1;
                line.doomed = true;
            }
            line.in_file = false;
            line.in_pieces = false;
        }
        for content in records {
            match content {
                Content::Output { stream, bytes, ends } => self.drop_output(stream, bytes, ends),
                Content::Loss(lost) => {
                    self.lost.lines += lost.lines;
                    self.lost.bytes += lost.bytes;
                }
            }
        }
    }

    /// Counts output of a line that is lost.
    fn drop_output(&mut self, stream: Stream, bytes: u64, ends: bool) {
        let line = &mut self.lines[index(stream)];
        self.lost.lines += u64::from(!line.doomed);
        self.lost.bytes += bytes;
        line.doomed = !ends;
    }

    /// Says that the disk cannot be written, but not too often.
    fn complain(&mut self, error: &std::io::Error) {
        let outage = self.outage.get_or_insert_with(|| Outage {
            since: Instant::now(),
            complained: None,
        });
        if outage
            .complained
            .is_none_or(|last| last.elapsed() >= COMPLAINT_INTERVAL)
        {
            outage.complained = Some(Instant::now());
            let log = self.log.path();
            tracing::warn!(%error, log = %log.display(), lost = ?self.lost, "cannot write log, dropping output");
        }
    }

    fn recovered(&mut self) {
        if let Some(outage) = self.outage.take() {
            let log = self.log.path();
            tracing::info!(log = %log.display(), after = ?outage.since.elapsed(), "log can be written again");
        }
    }
}

const fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;
    use crate::platform::cri::path::LogName;
    use crate::platform::local::rotate::Rotation;

    const PLENTY: Rotation = Rotation {
        max_bytes: u64::MAX,
        files: 5,
    };

    /// A disk in memory that can be full and refuse other things.
    #[derive(Clone, Debug, Default)]
    struct Memory(Arc<Mutex<State>>);

    #[derive(Debug, Default)]
    struct State {
        files: BTreeMap<PathBuf, Vec<u8>>,
        /// Bytes that fit; `None` = no limit.
        room: Option<usize>,
        writes: usize,
        refuse_truncate: bool,
        refuse_rename: bool,
        refuse_open: bool,
        removed: Vec<Vec<u8>>,
    }

    impl Memory {
        fn set(&self, change: impl FnOnce(&mut State)) {
            change(&mut self.0.lock().unwrap());
        }

        fn writes(&self) -> usize {
            self.0.lock().unwrap().writes
        }

        /// The files' contents, oldest first, and their names.
        fn files(&self) -> Vec<(String, Vec<u8>)> {
            let state = self.0.lock().unwrap();
            let mut files: Vec<_> = state
                .files
                .iter()
                .map(|(path, bytes)| {
                    (
                        path.file_name().unwrap().to_str().unwrap().to_owned(),
                        bytes.clone(),
                    )
                })
                .collect();
            // The one being written is the newest.
            files.sort_by_key(|(name, _)| {
                let rotated = LogName::parse(name).unwrap().rotated;
                (rotated.is_none(), rotated)
            });
            files
        }

        fn everything(&self) -> Vec<u8> {
            let removed = self.0.lock().unwrap().removed.concat();
            let kept: Vec<u8> = self.files().into_iter().flat_map(|(_, bytes)| bytes).collect();
            [removed, kept].concat()
        }
    }

    fn full() -> io::Error {
        io::ErrorKind::StorageFull.into()
    }

    impl Disk for Memory {
        type File = PathBuf;

        fn open(&mut self, path: &Path) -> io::Result<(PathBuf, u64)> {
            let mut state = self.0.lock().unwrap();
            if state.refuse_open {
                return Err(full());
            }
            let len = state.files.entry(path.to_owned()).or_default().len();
            Ok((path.to_owned(), len as u64))
        }

        fn write(&mut self, file: &mut PathBuf, bytes: &[u8]) -> io::Result<usize> {
            let mut state = self.0.lock().unwrap();
            state.writes += 1;
            let fits = state.room.unwrap_or(usize::MAX).min(bytes.len());
            if fits == 0 {
                return Err(full());
            }
            state.room = state.room.map(|room| room - fits);
            state
                .files
                .get_mut(file)
                .unwrap()
                .extend_from_slice(&bytes[..fits]);
            Ok(fits)
        }

        fn truncate(&mut self, file: &mut PathBuf, length: u64) -> io::Result<()> {
            let mut state = self.0.lock().unwrap();
            if state.refuse_truncate {
                return Err(full());
            }
            state
                .files
                .get_mut(file)
                .unwrap()
                .truncate(usize::try_from(length).unwrap());
            Ok(())
        }

        fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
            let mut state = self.0.lock().unwrap();
            if state.refuse_rename {
                return Err(full());
            }
            let bytes = state.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
            assert!(
                state.files.insert(to.to_owned(), bytes).is_none(),
                "{to:?} was there"
            );
            Ok(())
        }

        fn remove(&mut self, path: &Path) -> io::Result<()> {
            let mut state = self.0.lock().unwrap();
            let bytes = state.files.remove(path).ok_or(io::ErrorKind::NotFound)?;
            state.removed.push(bytes);
            Ok(())
        }
    }

    fn writer(rotation: Rotation) -> (Memory, Writer<Memory>) {
        let disk = Memory::default();
        let writer = Writer::new(LogFile::new(disk.clone(), "/logs".into(), 3, rotation));
        (disk, writer)
    }

    fn at(nanos: i64) -> LogTime {
        LogTime::from_nanos(nanos)
    }

    /// The records without their times, which must grow.
    fn shown(bytes: &[u8]) -> Vec<String> {
        let mut last = LogTime::MIN;
        let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines
            .map(|line| {
                let record =
                    cri::parse(line).unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(line)));
                assert!(record.time > last, "{:?} after {last:?}", record.time);
                last = record.time;
                if let Some(lost) = record.lost {
                    return format!("lost {}/{}", lost.lines, lost.bytes);
                }
                let content = match record.content.len() {
                    0..100 => String::from_utf8_lossy(record.content).into_owned(),
                    long => long.to_string(),
                };
                let tag = if record.partial { "P" } else { "F" };
                format!("{} {tag} {content}", record.stream.name())
            })
            .collect()
    }

    #[test]
    fn output_is_merged_as_it_comes_and_written_at_once() {
        let (disk, mut writer) = writer(PLENTY);
        writer.append(Stream::Stdout, b"one\ntw", at(5));
        writer.append(Stream::Stderr, b"oops\nmore", at(5));
        writer.flush(at(5));
        assert_eq!(disk.writes(), 1);
        // The clock went back.
        writer.append(Stream::Stdout, b"o\n\n", at(1));
        writer.finish(at(1));
        let expected = [
            "stdout F one",
            "stderr F oops",
            "stdout F two",
            "stdout F ",
            "stderr P more",
        ];
        assert_eq!(shown(&disk.everything()), expected);
        assert_eq!(disk.files()[0].0, "3.log");
    }

    #[test]
    fn long_lines_come_in_pieces() {
        let (disk, mut writer) = writer(PLENTY);
        let long = vec![b'x'; 2 * CRI_PIECE_MAX_BYTES + 1];
        writer.append(Stream::Stdout, &long, at(0));
        writer.append(Stream::Stdout, b"\n", at(0));
        writer.append(Stream::Stdout, &long[..CRI_PIECE_MAX_BYTES], at(0));
        writer.append(Stream::Stdout, b"\n", at(0));
        writer.append(
            Stream::Stdout,
            &[&long[..CRI_PIECE_MAX_BYTES], b"\n"].concat(),
            at(0),
        );
        writer.finish(at(0));
        let expected = [
            "stdout P 16384",
            "stdout P 16384",
            "stdout F x",
            "stdout F 16384",
            "stdout F 16384",
        ];
        assert_eq!(shown(&disk.everything()), expected);
    }

    #[test]
    fn files_are_rotated_between_lines_and_the_oldest_removed() {
        let (disk, mut writer) = writer(Rotation {
            max_bytes: 1_000,
            files: 3,
        });
        for n in 0..100 {
            writer.append(Stream::Stdout, format!("line {n}\n").as_bytes(), at(n));
            writer.flush(at(n));
        }
        let files = disk.files();
        assert_eq!(files.len(), 3);
        assert_eq!(files[2].0, "3.log");
        assert!(
            files
                .iter()
                .all(|(_, bytes)| bytes.len() <= 1_000 && bytes.ends_with(b"\n"))
        );
        let expected: Vec<String> = (0..100).map(|n| format!("stdout F line {n}")).collect();
        assert_eq!(shown(&disk.everything()), expected);
    }

    #[test]
    fn a_line_in_pieces_stays_in_one_file_unless_it_is_endless() {
        let (disk, mut writer) = writer(Rotation {
            max_bytes: 1_000,
            files: 100,
        });
        writer.append(Stream::Stdout, &vec![b'x'; 10 * CRI_PIECE_MAX_BYTES], at(0));
        writer.append(Stream::Stdout, b"\nshort\n", at(0));
        writer.flush(at(0));
        let lengths: Vec<usize> = disk.files().iter().map(|(_, bytes)| shown(bytes).len()).collect();
        assert_eq!(lengths, [10, 1]);
        writer.append(Stream::Stdout, &vec![b'y'; 100 * CRI_PIECE_MAX_BYTES], at(0));
        writer.finish(at(0));
        assert!(disk.files().len() > 4);
    }

    #[test]
    fn a_full_disk_is_noted_where_it_was_full() {
        let (disk, mut writer) = writer(PLENTY);
        writer.append(Stream::Stdout, b"one\n", at(0));
        writer.flush(at(0));
        // Room for one more record and a half.
        disk.set(|state| state.room = Some(60));
        writer.append(Stream::Stdout, b"two\nthree\nfour\nfi", at(0));
        writer.append(Stream::Stderr, b"oops\n", at(0));
        writer.flush(at(0));
        assert_eq!(shown(&disk.everything()), ["stdout F one", "stdout F two"]);
        assert!(disk.everything().ends_with(b"\n") && writer.owes_notice());
        writer.append(Stream::Stdout, b"ve\n", at(0));
        writer.flush(at(0));
        disk.set(|state| state.room = None);
        writer.append(Stream::Stdout, b"six\n", at(0));
        writer.flush(at(0));
        let expected = ["stdout F one", "stdout F two", "lost 4/21", "stdout F six"];
        assert_eq!(shown(&disk.everything()), expected);
        assert!(!writer.owes_notice());
    }

    #[test]
    fn the_notice_comes_without_further_output() {
        let (disk, mut writer) = writer(PLENTY);
        disk.set(|state| state.room = Some(0));
        writer.append(Stream::Stdout, b"one\n", at(0));
        writer.flush(at(0));
        disk.set(|state| state.room = None);
        writer.flush(at(0));
        assert_eq!(shown(&disk.everything()), ["lost 1/4"]);
    }

    #[test]
    fn what_cannot_be_cut_off_at_once_is_cut_off_later() {
        let (disk, mut writer) = writer(PLENTY);
        disk.set(|state| (state.room, state.refuse_truncate) = (Some(20), true));
        writer.append(Stream::Stdout, b"one\n", at(0));
        writer.flush(at(0));
        disk.set(|state| state.room = None);
        writer.append(Stream::Stdout, b"two\n", at(0));
        writer.flush(at(0));
        assert_eq!(disk.everything().len(), 20);
        disk.set(|state| state.refuse_truncate = false);
        writer.append(Stream::Stdout, b"three\n", at(0));
        writer.flush(at(0));
        assert_eq!(shown(&disk.everything()), ["lost 2/8", "stdout F three"]);
    }

    #[test]
    fn lines_in_pieces_are_lost_as_a_whole() {
        let (disk, mut writer) = writer(PLENTY);
        let piece = [b'x'; CRI_PIECE_MAX_BYTES];
        for stream in [Stream::Stdout, Stream::Stderr] {
            writer.append(stream, &piece, at(0));
            writer.append(stream, b"y", at(0));
        }
        writer.flush(at(0));
        disk.set(|state| state.room = Some(0));
        writer.append(Stream::Stdout, &piece, at(0));
        writer.flush(at(0));
        disk.set(|state| state.room = None);
        writer.append(Stream::Stderr, b"\nerr\n", at(0));
        writer.append(Stream::Stdout, b"\nout\n", at(0));
        writer.flush(at(0));
        let expected = [
            "stdout P 16384",
            "stderr P 16384",
            &format!("lost 2/{}", CRI_PIECE_MAX_BYTES + 2),
            "stderr F err",
            "lost 0/2",
            "stdout F out",
        ];
        assert_eq!(shown(&disk.everything()), expected);
    }

    #[test]
    fn a_log_that_cannot_be_made_is_made_later() {
        let disk = Memory::default();
        disk.set(|state| state.refuse_open = true);
        let mut writer = Writer::new(LogFile::new(disk.clone(), "/logs".into(), 0, PLENTY));
        writer.append(Stream::Stdout, b"one\n", at(0));
        writer.flush(at(0));
        disk.set(|state| state.refuse_open = false);
        writer.append(Stream::Stdout, b"two\n", at(0));
        writer.finish(at(0));
        assert_eq!(shown(&disk.everything()), ["lost 1/4", "stdout F two"]);
    }

    #[derive(Clone, Debug)]
    enum Action {
        Output(Stream, Vec<u8>),
        Flush,
        Room(Option<usize>),
        Refuse([bool; 3]),
    }

    fn action() -> impl Strategy<Value = Action> {
        let stream = prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)];
        let bytes = prop_oneof![
            6 => prop::collection::vec(prop_oneof![3 => Just(b'a'), 1 => Just(b'\n')], 0..60),
            1 => (CRI_PIECE_MAX_BYTES - 1..3 * CRI_PIECE_MAX_BYTES).prop_map(|len| vec![b'b'; len]),
        ];
        prop_oneof![
            6 => (stream, bytes).prop_map(|(stream, bytes)| Action::Output(stream, bytes)),
            3 => Just(Action::Flush),
            2 => prop::option::of(0_usize..2_000).prop_map(Action::Room),
            1 => any::<[bool; 3]>().prop_map(Action::Refuse),
        ]
    }

    proptest! {
        /// Whatever the disk does: bytes in the log and bytes noted as lost are the bytes that were printed; so are the
        /// lines; and every file holds whole records only.
        #[test]
        fn nothing_is_lost_without_a_note(
            actions in prop::collection::vec(action(), 1..60),
            max_bytes in prop_oneof![Just(u64::MAX), 100_u64..5_000],
        ) {
            let (disk, mut writer) = writer(Rotation { max_bytes, files: 3 });
            let (mut bytes, mut newlines) = (0, 0);
            for (tick, action) in (0..).zip(actions) {
                match action {
                    Action::Output(stream, output) => {
                        bytes += output.len() as u64;
                        newlines += memchr::memchr_iter(b'\n', &output).count() as u64;
                        writer.append(stream, &output, at(tick));
                    }
                    Action::Flush => writer.flush(at(tick)),
                    Action::Room(room) => disk.set(|state| state.room = room),
                    Action::Refuse([open, truncate, rename]) => disk.set(|state| {
                        (state.refuse_open, state.refuse_truncate, state.refuse_rename) = (open, truncate, rename);
                    }),
                }
            }
            disk.set(|state| {
                (state.room, state.refuse_open, state.refuse_truncate, state.refuse_rename) = (None, false, false, false);
            });
            let held = writer.lines.iter().filter(|line| !line.held.is_empty()).count() as u64;
            writer.finish(at(0));

            let log = disk.everything();
            prop_assert!(log.is_empty() || log.ends_with(b"\n"));
            let (mut found_bytes, mut ended, mut lost_lines) = (0, 0, 0);
            let mut in_pieces = [false; 2];
            let mut last = LogTime::MIN;
            for line in log.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let record = cri::parse(line).unwrap();
                prop_assert!(record.time > last);
                last = record.time;
                if let Some(lost) = record.lost {
                    found_bytes += lost.bytes;
                    lost_lines += lost.lines;
                    let broken = in_pieces.iter().filter(|open| **open).count() as u64;
                    prop_assert!(lost.lines >= broken, "{} lines lost with {broken} in pieces", lost.lines);
                    in_pieces = [false; 2];
                } else {
                    found_bytes += record.content.len() as u64 + u64::from(!record.partial);
                    ended += u64::from(!record.partial);
                    in_pieces[index(record.stream)] = record.partial;
                }
            }
            prop_assert_eq!(found_bytes, bytes);
            // Of the lines without an end (two at most), those that were lost are counted too.
            let all = ended + lost_lines;
            prop_assert!((newlines..=newlines + 2).contains(&all), "{all} of {newlines}");
            prop_assert!(held <= 2);
        }
    }
}
