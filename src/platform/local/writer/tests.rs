//! The log writer on an in-memory file system that can be full.

mod read_back;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::platform::cri::path::LogName;
use crate::platform::local::rotate::{RealFs, Rotation};

const PLENTY: Rotation = Rotation { max_bytes: u64::MAX, files: 5 };

/// An in-memory file system with injected failures.
#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<PathBuf, Vec<u8>>,
    /// Free bytes; `None` is unlimited.
    room: Option<usize>,
    writes: usize,
    refuse_truncate: bool,
    refuse_rename: bool,
    refuse_open: bool,
    removed: Vec<Vec<u8>>,
}

impl State {
    fn allow_everything(&mut self) {
        self.room = None;
        (self.refuse_open, self.refuse_truncate, self.refuse_rename) = (false, false, false);
    }
}

impl Memory {
    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.lock().unwrap());
    }

    fn writes(&self) -> usize {
        self.0.lock().unwrap().writes
    }

    /// Returns names and contents of the files, oldest first.
    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let state = self.0.lock().unwrap();
        let mut files: Vec<_> = state
            .files
            .iter()
            .map(|(path, bytes)| (path.file_name().unwrap().to_str().unwrap().to_owned(), bytes.clone()))
            .collect();
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

/// An open file of a [`Memory`].
#[derive(Debug)]
struct MemoryFile {
    disk: Memory,
    path: PathBuf,
}

impl io::Write for MemoryFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.disk.0.lock().unwrap();
        state.writes += 1;
        let fits = state.room.unwrap_or(usize::MAX).min(bytes.len());
        if fits == 0 {
            return Err(full());
        }
        state.room = state.room.map(|room| room - fits);
        state.files.get_mut(&self.path).unwrap().extend_from_slice(&bytes[..fits]);
        Ok(fits)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl LogFs for Memory {
    type File = MemoryFile;

    fn open(&mut self, path: &Path) -> io::Result<MemoryFile> {
        let mut state = self.0.lock().unwrap();
        if state.refuse_open {
            return Err(full());
        }
        state.files.entry(path.to_owned()).or_default();
        Ok(MemoryFile { disk: self.clone(), path: path.to_owned() })
    }

    fn stat(&mut self, file: &MemoryFile, path: &Path) -> io::Result<(u64, bool)> {
        let len = self.0.lock().unwrap().files.get(&file.path).map(|bytes| bytes.len() as u64);
        Ok((len.unwrap_or_default(), len.is_some() && file.path == path))
    }

    fn truncate(&mut self, file: &mut MemoryFile, length: u64) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if state.refuse_truncate {
            return Err(full());
        }
        // Like a real one, it fills with zeros beyond the end.
        state.files.get_mut(&file.path).unwrap().resize(usize::try_from(length).unwrap(), 0);
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if state.refuse_rename {
            return Err(full());
        }
        let bytes = state.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        assert!(state.files.insert(to.to_owned(), bytes).is_none(), "{to:?} was there");
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let bytes = state.files.remove(path).ok_or(io::ErrorKind::NotFound)?;
        state.removed.push(bytes);
        Ok(())
    }
}

fn writer(rotation: Rotation) -> (Memory, LogWriter<Memory>) {
    let disk = Memory::default();
    let writer = LogWriter::new(RotatingLog::new(disk.clone(), "/logs".into(), 3, rotation), NO_LOSS);
    (disk, writer)
}

fn at(nanos: i64) -> LogTime {
    LogTime::from_nanos(nanos)
}

/// Shows records without their times, and checks that times grow.
fn shown(bytes: &[u8]) -> Vec<String> {
    let mut last = LogTime::MIN;
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let record = cri::parse(line).unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(line)));
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
fn streams_are_merged_in_order_of_output() {
    let (disk, mut writer) = writer(PLENTY);
    writer.append(OutputStream::Stdout, b"one\ntw", at(5));
    writer.append(OutputStream::Stderr, b"oops\nmore", at(5));
    writer.flush(at(5));
    assert_eq!(disk.writes(), 1);
    // The clock went back.
    writer.append(OutputStream::Stdout, b"o\n\n", at(1));
    writer.finish(at(1));
    let expected = ["stdout F one", "stderr F oops", "stdout F two", "stdout F ", "stderr P more"];
    assert_eq!(shown(&disk.everything()), expected);
    assert_eq!(disk.files()[0].0, "3.log");
}

/// Gateways of other versions read these records.
#[test]
fn recorded_log_is_written_and_parsed_unchanged() {
    const RECORDED: &str = include_str!("../../../../tests/surface/fixtures/run.log");
    const BASE: i64 = 1_760_000_000_000_000_000;
    let disk = Memory::default();
    let mut writer = LogWriter::new(RotatingLog::new(disk.clone(), "/logs".into(), 3, PLENTY), UNKNOWN_LOSS);
    writer.append(OutputStream::Stdout, b"one\ntwo\n\n", at(BASE));
    writer.append(OutputStream::Stderr, "häßlich\nunfinished".as_bytes(), at(BASE + 1_000_000));
    writer.flush_unfinished(at(BASE + 2_000_000));
    writer.append(OutputStream::Stderr, b" and finished\n", at(BASE + 3_000_000));
    writer.flush(at(BASE + 3_000_000));
    disk.set(|state| state.room = Some(0));
    writer.append(OutputStream::Stdout, b"lost\nlost too\n", at(BASE + 4_000_000));
    writer.flush(at(BASE + 4_000_000));
    disk.set(State::allow_everything);
    writer.append(OutputStream::Stdout, b"after\nwithout a newline", at(BASE + 5_000_000));
    writer.finish(at(BASE + 6_000_000));
    let written = disk.files().remove(0);
    assert_eq!((written.0.as_str(), String::from_utf8(written.1).unwrap().as_str()), ("3.log", RECORDED));
    let mut again = Vec::new();
    for line in RECORDED.lines() {
        cri::write(&mut again, &cri::parse(line.as_bytes()).unwrap());
    }
    assert_eq!(String::from_utf8(again).unwrap(), RECORDED);
}

#[test]
fn long_line_is_written_in_pieces() {
    let (disk, mut writer) = writer(PLENTY);
    let long = vec![b'x'; 2 * CRI_PIECE_MAX_BYTES + 1];
    writer.append(OutputStream::Stdout, &long, at(0));
    writer.append(OutputStream::Stdout, b"\n", at(0));
    writer.append(OutputStream::Stdout, &long[..CRI_PIECE_MAX_BYTES], at(0));
    writer.append(OutputStream::Stdout, b"\n", at(0));
    writer.append(OutputStream::Stdout, &[&long[..CRI_PIECE_MAX_BYTES], b"\n"].concat(), at(0));
    writer.finish(at(0));
    let expected = ["stdout P 16384", "stdout P 16384", "stdout F x", "stdout F 16384", "stdout F 16384"];
    assert_eq!(shown(&disk.everything()), expected);
}

#[test]
fn files_rotate_between_lines_and_oldest_is_removed() {
    let (disk, mut writer) = writer(Rotation { max_bytes: 1_000, files: 3 });
    for n in 0..100 {
        writer.append(OutputStream::Stdout, format!("line {n}\n").as_bytes(), at(n));
        writer.flush(at(n));
    }
    let files = disk.files();
    assert_eq!(files.len(), 3);
    assert_eq!(files[2].0, "3.log");
    assert!(files.iter().all(|(_, bytes)| bytes.len() <= 1_000 && bytes.ends_with(b"\n")));
    let expected: Vec<String> = (0..100).map(|n| format!("stdout F line {n}")).collect();
    assert_eq!(shown(&disk.everything()), expected);
}

#[test]
fn line_in_pieces_stays_in_one_file_unless_endless() {
    let (disk, mut writer) = writer(Rotation { max_bytes: 1_000, files: 100 });
    writer.append(OutputStream::Stdout, &vec![b'x'; 10 * CRI_PIECE_MAX_BYTES], at(0));
    writer.append(OutputStream::Stdout, b"\nshort\n", at(0));
    writer.flush(at(0));
    let lengths: Vec<usize> = disk.files().iter().map(|(_, bytes)| shown(bytes).len()).collect();
    assert_eq!(lengths, [10, 1]);
    writer.append(OutputStream::Stdout, &vec![b'y'; 100 * CRI_PIECE_MAX_BYTES], at(0));
    writer.finish(at(0));
    assert!(disk.files().len() > 4);
}

#[test]
fn loss_on_full_disk_is_noted_in_place() {
    let (disk, mut writer) = writer(PLENTY);
    writer.append(OutputStream::Stdout, b"one\n", at(0));
    writer.flush(at(0));
    // Room for one more record and a half.
    disk.set(|state| state.room = Some(60));
    writer.append(OutputStream::Stdout, b"two\nthree\nfour\nfi", at(0));
    writer.append(OutputStream::Stderr, b"oops\n", at(0));
    writer.flush(at(0));
    assert_eq!(shown(&disk.everything()), ["stdout F one", "stdout F two"]);
    assert!(disk.everything().ends_with(b"\n") && writer.has_unreported_loss());
    writer.append(OutputStream::Stdout, b"ve\n", at(0));
    writer.flush(at(0));
    disk.set(|state| state.room = None);
    writer.append(OutputStream::Stdout, b"six\n", at(0));
    writer.flush(at(0));
    let expected = ["stdout F one", "stdout F two", "lost 4/21", "stdout F six"];
    assert_eq!(shown(&disk.everything()), expected);
    assert!(!writer.has_unreported_loss());
}

#[test]
fn notice_is_written_without_further_output() {
    let (disk, mut writer) = writer(PLENTY);
    disk.set(|state| state.room = Some(0));
    writer.append(OutputStream::Stdout, b"one\n", at(0));
    writer.flush(at(0));
    disk.set(|state| state.room = None);
    writer.flush(at(0));
    assert_eq!(shown(&disk.everything()), ["lost 1/4"]);
}

#[test]
fn failed_truncation_is_retried() {
    let (disk, mut writer) = writer(PLENTY);
    disk.set(|state| (state.room, state.refuse_truncate) = (Some(20), true));
    writer.append(OutputStream::Stdout, b"one\n", at(0));
    writer.flush(at(0));
    disk.set(|state| state.room = None);
    writer.append(OutputStream::Stdout, b"two\n", at(0));
    writer.flush(at(0));
    assert_eq!(disk.everything().len(), 20);
    disk.set(|state| state.refuse_truncate = false);
    writer.append(OutputStream::Stdout, b"three\n", at(0));
    writer.flush(at(0));
    assert_eq!(shown(&disk.everything()), ["lost 2/8", "stdout F three"]);
}

#[test]
fn line_in_pieces_is_lost_as_a_whole() {
    let (disk, mut writer) = writer(PLENTY);
    let piece = [b'x'; CRI_PIECE_MAX_BYTES];
    for stream in [OutputStream::Stdout, OutputStream::Stderr] {
        writer.append(stream, &piece, at(0));
        writer.append(stream, b"y", at(0));
    }
    writer.flush(at(0));
    disk.set(|state| state.room = Some(0));
    writer.append(OutputStream::Stdout, &piece, at(0));
    writer.flush(at(0));
    disk.set(|state| state.room = None);
    writer.append(OutputStream::Stderr, b"\nerr\n", at(0));
    writer.append(OutputStream::Stdout, b"\nout\n", at(0));
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
fn failed_creation_is_retried() {
    let disk = Memory::default();
    disk.set(|state| state.refuse_open = true);
    let mut writer = LogWriter::new(RotatingLog::new(disk.clone(), "/logs".into(), 0, PLENTY), NO_LOSS);
    writer.append(OutputStream::Stdout, b"one\n", at(0));
    writer.flush(at(0));
    disk.set(|state| state.refuse_open = false);
    writer.append(OutputStream::Stdout, b"two\n", at(0));
    writer.finish(at(0));
    assert_eq!(shown(&disk.everything()), ["lost 1/4", "stdout F two"]);
}

#[test]
fn removed_log_is_recreated() {
    let (disk, mut writer) = writer(Rotation { max_bytes: 200, files: 3 });
    for (n, line) in ["one", "two", "three"].into_iter().enumerate() {
        writer.append(OutputStream::Stdout, format!("{line}\n").as_bytes(), at(0));
        writer.flush(at(0));
        assert_eq!(shown(&disk.everything()), [format!("stdout F {line}")], "{n}");
        disk.set(|state| state.files.clear());
    }
    // Just before a rotation.
    writer.append(OutputStream::Stdout, &[b'x'; 150], at(0));
    writer.append(OutputStream::Stdout, b"\n", at(0));
    writer.flush(at(0));
    disk.set(|state| state.files.clear());
    writer.append(OutputStream::Stdout, &[b'y'; 150], at(0));
    writer.append(OutputStream::Stdout, b"\n", at(0));
    writer.finish(at(0));
    let files = disk.files();
    assert_eq!((files.len(), files[0].0.as_str()), (1, "3.log"));
    assert_eq!(shown(&files[0].1), ["stdout F 150"]);
}

#[test]
fn emptied_log_has_no_hole() {
    let (disk, mut writer) = writer(PLENTY);
    writer.append(OutputStream::Stdout, b"one\ntwo\n", at(0));
    writer.flush(at(0));
    // Space is freed, used up by others, and freed again.
    disk.set(|state| {
        state.files.values_mut().for_each(Vec::clear);
        state.room = Some(20);
    });
    writer.append(OutputStream::Stdout, b"three\n", at(0));
    writer.flush(at(0));
    assert_eq!(disk.everything(), b"");
    disk.set(|state| (state.room, state.refuse_truncate) = (Some(20), true));
    writer.append(OutputStream::Stdout, b"four\n", at(0));
    writer.flush(at(0));
    disk.set(|state| (state.room, state.refuse_truncate) = (None, false));
    writer.append(OutputStream::Stdout, b"five\n", at(0));
    writer.finish(at(0));
    assert_eq!(shown(&disk.everything()), ["lost 2/11", "stdout F five"]);
}

#[test]
fn moved_log_or_removed_directory_is_recreated() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("pod/web");
    let mut writer = LogWriter::new(RotatingLog::new(RealFs, logs.clone(), 3, PLENTY), NO_LOSS);
    let mut write = |line: &str| {
        writer.append(OutputStream::Stdout, line.as_bytes(), at(0));
        writer.flush(at(0));
        let log = std::fs::read_to_string(logs.join("3.log")).unwrap();
        assert_eq!(log.split_once(" F ").unwrap().1, line);
    };
    write("one\n");
    std::fs::remove_dir_all(dir.path().join("pod")).unwrap();
    write("two\n");
    std::fs::rename(logs.join("3.log"), logs.join("kept")).unwrap();
    write("three\n");
    std::fs::write(logs.join("new"), "").unwrap();
    std::fs::rename(logs.join("new"), logs.join("3.log")).unwrap();
    write("four\n");
}

#[derive(Clone, Debug)]
enum Action {
    Output(OutputStream, Vec<u8>),
    Flush,
    Room(Option<usize>),
    Refuse([bool; 3]),
}

fn action() -> impl Strategy<Value = Action> {
    let stream = prop_oneof![Just(OutputStream::Stdout), Just(OutputStream::Stderr)];
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

fn act(disk: &Memory, writer: &mut LogWriter<Memory>, action: Action, tick: i64) {
    match action {
        Action::Output(stream, output) => writer.append(stream, &output, at(tick)),
        Action::Flush => writer.flush(at(tick)),
        Action::Room(room) => disk.set(|state| state.room = room),
        Action::Refuse([open, truncate, rename]) => disk.set(|state| {
            (state.refuse_open, state.refuse_truncate, state.refuse_rename) = (open, truncate, rename);
        }),
    }
}

proptest! {
    /// Whatever fails, bytes and lines in the log and in notices add up to those printed, and every file has
    /// only complete records.
    #[test]
    fn every_loss_is_noted(
        actions in prop::collection::vec(action(), 1..60),
        max_bytes in prop_oneof![Just(u64::MAX), 100_u64..5_000],
    ) {
        let (disk, mut writer) = writer(Rotation { max_bytes, files: 3 });
        let (mut bytes, mut newlines) = (0, 0);
        for (tick, action) in (0..).zip(actions) {
            if let Action::Output(_, output) = &action {
                bytes += output.len() as u64;
                newlines += memchr::memchr_iter(b'\n', output).count() as u64;
            }
            act(&disk, &mut writer, action, tick);
        }
        disk.set(State::allow_everything);
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
                let in_pieces_now = in_pieces.iter().filter(|open| **open).count() as u64;
                prop_assert!(lost.lines >= in_pieces_now, "{} lines lost with {in_pieces_now} in pieces", lost.lines);
                in_pieces = [false; 2];
            } else {
                found_bytes += record.content.len() as u64 + u64::from(!record.partial);
                ended += u64::from(!record.partial);
                in_pieces[record.stream as usize] = record.partial;
            }
        }
        prop_assert_eq!(found_bytes, bytes);
        // Up to two unfinished lines may count as lost.
        let all = ended + lost_lines;
        prop_assert!((newlines..=newlines + 2).contains(&all), "{all} of {newlines}");
        prop_assert!(held <= 2);
    }
}
