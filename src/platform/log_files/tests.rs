//! Tails of real files, read through the stream.

mod damage;
mod model;
mod readings;
mod unfinished;

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::StreamExt as _;
use tokio::sync::watch;

use super::*;
use crate::model::limits::{LINE_HELD_MAX_BYTES, READ_MAX_BYTES};
use crate::model::line::{GapCause, Line, OutputStream, SourceGap};
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::platform::batcher::unknown_gap;
use crate::platform::cri::{self, Record, path};
use crate::sys::dir_watch::SimulatedDisk;

/// Limit on one step of a test, generous for loaded machines.
const DEADLINE: Duration = Duration::from_secs(30);

/// Writes a log like a container runtime.
struct Writer {
    dir: PathBuf,
    file: File,
    rotations: i64,
}

impl Writer {
    fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), file: File::create_new(dir.join("0.log")).unwrap(), rotations: 0 }
    }

    fn raw(&mut self, bytes: impl AsRef<[u8]>) {
        self.file.write_all(bytes.as_ref()).unwrap();
    }

    fn line(&mut self, nanos: i64, content: &str) {
        let mut record = Vec::new();
        cri::write(
            &mut record,
            &Record {
                time: LogTime::from_nanos(nanos),
                stream: OutputStream::Stdout,
                partial: false,
                lost: None,
                content: content.as_bytes(),
            },
        );
        self.raw(record);
    }

    fn rotate(&mut self) -> PathBuf {
        self.rotations += 1;
        let suffix = path::rotation_suffix(LogTime::from_nanos(self.rotations));
        let rotated = self.dir.join(format!("0.log.{suffix}"));
        fs::rename(self.dir.join("0.log"), &rotated).unwrap();
        self.file = File::create_new(self.dir.join("0.log")).unwrap();
        rotated
    }
}

fn compress(log: &Path) {
    let name = |suffix: &str| PathBuf::from(format!("{}{suffix}", log.display()));
    let mut gz = GzEncoder::new(File::create(name(".tmp")).unwrap(), Compression::fast());
    gz.write_all(&fs::read(log).unwrap()).unwrap();
    gz.finish().unwrap();
    fs::rename(name(".tmp"), name(".gz")).unwrap();
    fs::remove_file(log).unwrap();
}

fn log(dir: &tempfile::TempDir) -> LogFiles {
    LogFiles { dir: dir.path().to_owned(), run_number: 0, needed_start: None }
}

async fn next(tail: &mut Tail) -> Option<TailItem> {
    let item = tokio::time::timeout(DEADLINE, tail.items.next()).await.expect("the next item");
    item.map(|item| item.unwrap())
}

/// Reads to the end. Shows lines as text, and gaps without their position.
async fn rest(tail: &mut Tail) -> Vec<String> {
    let mut items = Vec::new();
    while let Some(item) = next(tail).await {
        show(&item, &mut items);
    }
    items
}

fn show(item: &TailItem, items: &mut Vec<String>) {
    match item {
        TailItem::Lines(batch) => {
            items.extend(
                (0..batch.lines.len()).map(|index| String::from_utf8(batch.bytes(index).to_vec()).unwrap()),
            );
        }
        TailItem::FollowUnavailable | TailItem::Interrupted(_) | TailItem::Resumed => {
            panic!("a file can be followed")
        }
        TailItem::Gap(gap) => items.push(show_gap(gap)),
    }
}

fn source_gap(lines: u64, bytes: u64, exact: bool) -> String {
    show_gap(&SourceGap { cause: GapCause::Source, lines, bytes, exact, after: Position::START })
}

/// Shows a gap without its position.
fn show_gap(gap: &SourceGap) -> String {
    format!("SourceGap {:?} {} {} {}", gap.cause, gap.lines, gap.bytes, gap.exact)
}

#[tokio::test]
async fn follower_reads_later_output_until_run_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    writer.line(1, "old");
    let end = CancellationToken::new();
    let notifier = Notifier::start();
    let mut tail =
        open(&notifier, log(&dir), ReadFrom::Last(0), FollowMode::UntilEnd(end.clone())).await.unwrap();
    assert_eq!(tail.start, Position::START.after_line(LogTime::from_nanos(1)));
    for n in 0..5 {
        writer.line(2, &n.to_string());
        let mut items = Vec::new();
        show(&next(&mut tail).await.unwrap(), &mut items);
        assert_eq!(items, [format!("{n}\n")]);
        writer.rotate();
    }
    writer.raw("1970-01-01T00:00:01Z stdout P last");
    end.cancel();
    assert_eq!(rest(&mut tail).await, ["last", &source_gap(1, 0, false)]);
}

#[tokio::test]
async fn log_created_later_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let notifier = Notifier::start();
    for from in [
        ReadFrom::Start,
        ReadFrom::Last(0),
        ReadFrom::Last(7),
        ReadFrom::Since(LogTime::from_nanos(1)),
        ReadFrom::After(Position::START),
    ] {
        let end = CancellationToken::new();
        let mut tail = open(&notifier, log(&dir), from, FollowMode::UntilEnd(end.clone())).await.unwrap();
        assert_eq!(tail.start, Position::START);
        Writer::new(dir.path()).line(1, "first");
        let mut items = Vec::new();
        show(&next(&mut tail).await.unwrap(), &mut items);
        assert_eq!(items, ["first\n"], "{from:?}");
        end.cancel();
        assert_eq!(rest(&mut tail).await, [""; 0]);
        fs::remove_file(dir.path().join("0.log")).unwrap();
    }
}

#[tokio::test]
async fn missing_log_is_not_found() {
    let dir = tempfile::tempdir().unwrap();
    let notifier = Notifier::polling();
    let ended = CancellationToken::new();
    ended.cancel();
    for follow in [FollowMode::No, FollowMode::UntilEnd(ended)] {
        let error = open(&notifier, log(&dir), ReadFrom::Start, follow).await.unwrap_err();
        assert!(matches!(error, Error::NotFound(_)), "{error:?}");
    }
    let gone = LogFiles { dir: dir.path().join("gone"), run_number: 0, needed_start: None };
    let follow = FollowMode::UntilEnd(CancellationToken::new());
    let error = open(&notifier, gone, ReadFrom::Start, follow).await.unwrap_err();
    assert!(matches!(error, Error::NotFound(_)) && !error.is_retryable(), "{error:?}");
}

#[tokio::test]
async fn unfinished_line_is_returned_as_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    writer.line(1, "whole");
    writer.raw("1970-01-01T00:00:01Z stdout P begun\n1970-01-01T00:00:02Z stdout F no newline");
    let notifier = Notifier::polling();
    let mut tail = open(&notifier, log(&dir), ReadFrom::Start, FollowMode::No).await.unwrap();
    assert_eq!(rest(&mut tail).await, ["whole\n", "begun"]);
    let ended = CancellationToken::new();
    ended.cancel();
    let mut tail = open(&notifier, log(&dir), ReadFrom::Start, FollowMode::UntilEnd(ended)).await.unwrap();
    assert_eq!(rest(&mut tail).await, ["whole\n", "begunno newline", &source_gap(1, 0, false)]);
}

#[tokio::test]
async fn unfinished_line_of_ended_run_is_last() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    writer.line(1, "whole");
    writer.raw("1970-01-01T00:00:01Z stdout P begun\n");
    let ended = CancellationToken::new();
    ended.cancel();
    let notifier = Notifier::polling();
    let whole = Position::START.after_line(LogTime::from_nanos(1));
    let begun = whole.after_line(LogTime::from_nanos(1_000_000_000));
    for (from, start, lines) in [
        (ReadFrom::Start, Position::START, &["whole\n", "begun"][..]),
        (ReadFrom::After(whole), whole, &["begun"]),
        (ReadFrom::After(whole.after_bytes(2)), whole.after_bytes(2), &["gun"]),
        (ReadFrom::After(begun), begun, &[]),
        (ReadFrom::Last(2), Position::START, &["whole\n", "begun"]),
        (ReadFrom::Last(1), whole, &["begun"]),
        (ReadFrom::Last(0), begun, &[]),
        (ReadFrom::Since(LogTime::from_nanos(2)), whole, &["begun"]),
    ] {
        let follow = FollowMode::UntilEnd(ended.clone());
        let mut tail = open(&notifier, log(&dir), from, follow).await.unwrap();
        assert_eq!(
            (tail.start, rest(&mut tail).await.as_slice()),
            (start, lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>().as_slice()),
            "{from:?}"
        );
    }
}

/// Writes some megabytes in several files, some of them compressed. Equal times cross every file boundary.
fn big_log(dir: &Path, files: i64) -> Vec<(String, LogTime)> {
    let mut lines = Vec::new();
    let mut writer = Writer::new(dir);
    let padding = "x".repeat(1_000);
    for file in 0..files {
        for n in 0..1_500 {
            let nanos = (file * 1_500 + n + 3) / 7 + 1;
            let content = format!("{file}/{n} {padding}");
            writer.line(nanos, &content);
            lines.push((format!("{content}\n"), LogTime::from_nanos(nanos)));
        }
        if file + 1 < files {
            let rotated = writer.rotate();
            if file % 2 == 1 {
                compress(&rotated);
            }
        }
    }
    lines
}

/// Checks that every read returns the lines written, with positions counted from the beginning.
async fn check_big_log(dir: &tempfile::TempDir, lines: &[(String, LogTime)]) {
    let mut at = Position::START;
    let positions: Vec<Position> = lines
        .iter()
        .map(|(_, time)| {
            at = at.after_line(*time);
            at
        })
        .collect();
    let all = lines.len();
    let mut cases = vec![(ReadFrom::Start, 0)];
    for last in [0, 1, 2, 1_499, 1_500, 1_501, 4_000, all, all + 1] {
        cases.push((ReadFrom::Last(last as u64), all.saturating_sub(last)));
    }
    for index in [0, 1, 1_499, 1_500, 1_502, all / 2, all - 2, all - 1] {
        cases.push((ReadFrom::After(positions[index]), index + 1));
        let since = lines[index].1;
        let first = lines.iter().position(|(_, time)| *time >= since).unwrap();
        cases.push((ReadFrom::Since(since), first));
    }
    for (from, first) in cases {
        let mut tail = open(&Notifier::polling(), log(dir), from, FollowMode::No).await.unwrap();
        let start = first.checked_sub(1).map_or(Position::START, |index| positions[index]);
        assert_eq!(tail.start, start, "{from:?}");
        let mut index = first;
        while let Some(item) = next(&mut tail).await {
            let batch = match item {
                TailItem::Lines(batch) => batch,
                // The oldest lines of a log that has been rotated.
                TailItem::Gap(_) if positions[first - 1].time == lines[0].1 => continue,
                TailItem::FollowUnavailable | TailItem::Interrupted(_) | TailItem::Resumed => {
                    panic!("a file can be followed")
                }
                TailItem::Gap(gap) => panic!("{from:?}: {gap:?}"),
            };
            for (piece, line) in batch.lines.iter().enumerate() {
                assert_eq!((batch.bytes(piece), line.time), (lines[index].0.as_bytes(), lines[index].1));
                assert_eq!(line.after, positions[index], "{from:?}");
                index += 1;
            }
        }
        assert_eq!(index, all, "{from:?}");
    }
}

#[tokio::test]
async fn positions_do_not_depend_on_start_of_read() {
    let dir = tempfile::tempdir().unwrap();
    let lines = big_log(dir.path(), 6);
    check_big_log(&dir, &lines).await;
}

#[tokio::test]
async fn positions_survive_clock_step_back_over_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    writer.line(1, "before");
    writer.line(1_000_000, "in the future");
    let mut lines = vec![
        ("before\n".to_owned(), LogTime::from_nanos(1)),
        ("in the future\n".to_owned(), LogTime::from_nanos(1_000_000)),
    ];
    let first = dir.path().join("0.log.19700101-000000");
    fs::rename(dir.path().join("0.log"), first).unwrap();
    lines.extend(big_log(dir.path(), 5));
    // All later lines are older than the second one, so every position has its time.
    let mut at = Position::START;
    for (_, time) in &lines {
        at = at.after_line(*time);
    }
    let mut tail = open(&Notifier::polling(), log(&dir), ReadFrom::Start, FollowMode::No).await.unwrap();
    let mut last = tail.start;
    while let Some(item) = next(&mut tail).await {
        if let TailItem::Lines(batch) = item {
            last = batch.lines.last().unwrap().after;
        }
    }
    assert_eq!(last, at);
    let middle = Position { ordinal: at.ordinal - 10, ..at };
    let mut tail =
        open(&Notifier::polling(), log(&dir), ReadFrom::After(middle), FollowMode::No).await.unwrap();
    let expected: Vec<String> = lines[lines.len() - 10..].iter().map(|(line, _)| line.clone()).collect();
    assert_eq!((tail.start, rest(&mut tail).await), (middle, expected));
}

/// Writes numbered lines at full speed, rotates every few hundred and compresses older files.
fn write_and_rotate(dir: &Path, lines: i64, end: &CancellationToken) {
    let mut writer = Writer::new(dir);
    let mut plain = VecDeque::new();
    for n in 0..lines {
        writer.line(n / 5, &n.to_string());
        if n % 300 == 299 {
            plain.push_back(writer.rotate());
        }
        if plain.len() > 2 {
            compress(&plain.pop_front().unwrap());
        }
    }
    end.cancel();
}

/// Reads to the end. Every `reopen_every` items, drops the tail and resumes after the last line.
async fn read_all(
    notifier: &Notifier,
    log: LogFiles,
    end: CancellationToken,
    reopen_every: usize,
) -> Vec<String> {
    let mut items = Vec::new();
    let mut from = ReadFrom::Start;
    'open: loop {
        let mut tail = match open(notifier, log.clone(), from, FollowMode::UntilEnd(end.clone())).await {
            Ok(tail) => tail,
            Err(error) if error.is_retryable() => continue,
            Err(error) => panic!("{error}"),
        };
        let mut count = 0;
        while let Some(item) = tokio::time::timeout(DEADLINE, tail.items.next()).await.expect("the next item")
        {
            match item {
                Ok(item) => {
                    if let TailItem::Lines(batch) = &item {
                        from = ReadFrom::After(batch.lines.last().unwrap().after);
                    }
                    show(&item, &mut items);
                }
                Err(error) if error.is_retryable() => continue 'open,
                Err(error) => panic!("{error}"),
            }
            count += 1;
            if count == reopen_every {
                continue 'open;
            }
        }
        return items;
    }
}

#[tokio::test]
async fn readers_keep_up_with_a_writer_that_rotates() {
    const LINES: i64 = 15_000;
    let dir = tempfile::tempdir().unwrap();
    let end = CancellationToken::new();
    let notifier = Notifier::start();
    let (path, ended) = (dir.path().to_owned(), end.clone());
    let writer = std::thread::spawn(move || write_and_rotate(&path, LINES, &ended));
    let (follower, reopening) = tokio::join!(
        read_all(&notifier, log(&dir), end.clone(), usize::MAX),
        read_all(&notifier, log(&dir), end.clone(), 1),
    );
    writer.join().unwrap();
    let expected: Vec<String> = (0..LINES).map(|n| format!("{n}\n")).collect();
    assert!(follower == expected, "follower: {} lines", follower.len());
    // Among the first lines of equal time, superfluous gaps are allowed.
    let lines: Vec<String> = reopening.into_iter().filter(|item| !item.contains("Rotated")).collect();
    assert!(lines == expected, "reopening reader: {} lines", lines.len());
}

/// A disk whose first access fails, and whose changes are notified by the test.
#[derive(Debug, Default)]
struct Disk {
    accesses: AtomicUsize,
    changes: watch::Sender<()>,
}

impl SimulatedDisk for Disk {
    fn watch(&self, _: &Path) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn access(&self) -> io::Result<Duration> {
        match self.accesses.fetch_add(1, Ordering::Relaxed) {
            0 => Err(io::ErrorKind::PermissionDenied.into()),
            _ => Ok(Duration::from_secs(1)),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn simulated_disk_delays_fails_and_notifies() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    writer.line(1, "old");
    let disk = Arc::new(Disk::default());
    let notifier = Notifier::simulated(disk.clone());
    let follow = FollowMode::UntilEnd(CancellationToken::new());
    let error = open(&notifier, log(&dir), ReadFrom::Start, follow.clone()).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    let began = Instant::now();
    let mut tail = open(&notifier, log(&dir), ReadFrom::Start, follow).await.unwrap();
    let mut items = Vec::new();
    show(&next(&mut tail).await.unwrap(), &mut items);
    assert!(began.elapsed() >= Duration::from_secs(3));
    writer.line(2, "new");
    // Not read before a notification.
    assert!(tokio::time::timeout(Duration::from_secs(3_600), tail.items.next()).await.is_err());
    disk.changes.send_replace(());
    show(&next(&mut tail).await.unwrap(), &mut items);
    assert_eq!(items, ["old\n", "new\n"]);
}
