//! Damaged and removed logs: missing lines are gaps, and nothing else is.

use super::super::log_reader::ReadLimit;
use super::super::seek::{Seek, SeekOutcome};
use super::*;

/// A crash of the writer leaves such a record.
#[tokio::test]
async fn incomplete_record_is_gap() {
    let ended = CancellationToken::new();
    ended.cancel();
    let record = "1970-01-01T00:00:02Z stderr F:lost=12/3456 12 lines lost\n";
    for written in 1..record.len() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(dir.path());
        writer.raw("1970-01-01T00:00:01Z stdout P begun\n");
        writer.raw(&record[..written]);
        let follow = FollowMode::UntilEnd(ended.clone());
        let mut tail = open(&Notifier::polling(), log(&dir), ReadFrom::Start, follow).await.unwrap();
        let incomplete = source_gap(1, written as u64, false);
        assert_eq!(rest(&mut tail).await, ["begun".to_owned(), incomplete], "{written}");
    }
    for rotates in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(dir.path());
        writer.raw("1970-01-01T00:00:01Z stdout F hel");
        // It must not be joined with the next record.
        let incomplete = source_gap(1, 0, false);
        let mut expected = vec!["hel", &incomplete];
        if rotates {
            writer.rotate();
            writer.line(2_000_000_000, "next");
            expected.push("next\n");
        }
        let follow = FollowMode::UntilEnd(ended.clone());
        let mut tail = open(&Notifier::polling(), log(&dir), ReadFrom::Start, follow).await.unwrap();
        assert_eq!(rest(&mut tail).await, expected);
    }
}

#[tokio::test]
async fn garbage_is_gap() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    writer.raw("rubbish\n\nmore\n");
    writer.line(1, "a");
    writer.raw("1970-01-01T00:00:01Z stdout F:lost=3/40 disk full\n");
    writer.line(2, "b");
    writer.raw("1970-01-01T00:00:02Z std");
    let ended = CancellationToken::new();
    ended.cancel();
    let notifier = Notifier::polling();
    let mut tail =
        open(&notifier, log(&dir), ReadFrom::Start, FollowMode::UntilEnd(ended.clone())).await.unwrap();
    let b = "b\n".to_owned();
    let all = [
        source_gap(3, 14, false),
        "a\n".to_owned(),
        source_gap(3, 40, true),
        b.clone(),
        source_gap(1, 24, false),
    ];
    assert_eq!(rest(&mut tail).await, all);
    // A gap directly after the position is returned again rather than not at all.
    let a = Position::START.after_line(LogTime::from_nanos(1));
    let mut tail =
        open(&notifier, log(&dir), ReadFrom::After(a), FollowMode::UntilEnd(ended.clone())).await.unwrap();
    assert_eq!(rest(&mut tail).await, all[2..]);
    // So is a loss since the requested time, even if all lines before it are older.
    let since = ReadFrom::Since(LogTime::from_nanos(2));
    let mut tail = open(&notifier, log(&dir), since, FollowMode::UntilEnd(ended)).await.unwrap();
    assert_eq!((tail.start, rest(&mut tail).await.as_slice()), (a, &all[2..]));
}

#[tokio::test]
async fn start_at_end_has_garbage_after_the_last_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    writer.raw("rubbish\n");
    writer.line(1, "a");
    writer.raw("more\n");
    // A reader of the lines before the end stops at the same position, before the gap.
    let mut tail = open(&Notifier::polling(), log(&dir), ReadFrom::Last(0), FollowMode::No).await.unwrap();
    assert_eq!(tail.start, Position::START.after_line(LogTime::from_nanos(1)));
    assert_eq!(rest(&mut tail).await, [source_gap(1, 5, false)]);
}

#[tokio::test]
async fn line_in_pieces_after_replaced_log_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    writer.raw("1970-01-01T00:00:02Z stdout P be\n1970-01-01T00:00:02Z stdout F gun\n");
    let from = ReadFrom::After(Position::START.after_line(LogTime::from_nanos(1)));
    let mut tail = open(&Notifier::polling(), log(&dir), from, FollowMode::No).await.unwrap();
    assert_eq!(rest(&mut tail).await, [&show_gap(&unknown_gap(GapCause::Rotated)), "begun\n"]);
}

#[tokio::test]
async fn truncated_compressed_log_is_gap() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    for n in 0..1_000 {
        writer.line(n, &format!("{n:0100}"));
    }
    let rotated = writer.rotate();
    writer.line(1_000, "next");
    compress(&rotated);
    let gz = format!("{}.gz", rotated.display());
    let size = fs::metadata(&gz).unwrap().len();
    for cut in size / 2..size / 2 + 20 {
        OpenOptions::new().write(true).open(&gz).unwrap().set_len(size - cut).unwrap();
        let mut tail = open(&Notifier::polling(), log(&dir), ReadFrom::Start, FollowMode::No).await.unwrap();
        let items = rest(&mut tail).await;
        let gap = items.iter().position(|item| item.starts_with("SourceGap")).unwrap();
        assert!(gap > 10 && (0..gap - 1).all(|n| items[n] == format!("{n:0100}\n")));
        // The last line is complete, or visibly cut.
        assert!(format!("{:0100}\n", gap - 1).starts_with(&items[gap - 1]), "{:?}", items[gap - 1]);
        assert_eq!(&items[gap + 1..], ["next\n"]);
    }
}

#[tokio::test]
async fn empty_compressed_log_is_gap() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    writer.line(1, "old");
    let rotated = writer.rotate();
    writer.line(2, "next");
    // A crash of the machine after the log was compressed.
    fs::remove_file(&rotated).unwrap();
    File::create_new(format!("{}.gz", rotated.display())).unwrap();
    let mut tail = open(&Notifier::polling(), log(&dir), ReadFrom::Start, FollowMode::No).await.unwrap();
    assert_eq!(rest(&mut tail).await, [&source_gap(0, 0, false), "next\n"]);
}

/// Writes two files that take several reads each, and a third.
fn fill(writer: &mut Writer) {
    let padding = "x".repeat(READ_MAX_BYTES);
    for time in 0..2 {
        writer.line(time, &padding);
        writer.line(time, &padding);
        writer.rotate();
    }
    writer.line(2, "last");
}

fn remove_all(dir: &tempfile::TempDir) {
    for file in fs::read_dir(dir.path()).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
}

#[tokio::test]
async fn log_removed_while_read_ends_with_gap() {
    let gap = show_gap(&unknown_gap(GapCause::Rotated));
    let notifier = Notifier::polling();
    for is_rotated in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(dir.path());
        if is_rotated {
            fill(&mut writer);
        } else {
            writer.line(0, &"x".repeat(2 * READ_MAX_BYTES));
        }
        let end = CancellationToken::new();
        let mut tail =
            open(&notifier, log(&dir), ReadFrom::Start, FollowMode::UntilEnd(end.clone())).await.unwrap();
        assert!(matches!(next(&mut tail).await, Some(TailItem::Lines(_))));
        if !is_rotated {
            writer.rotate();
            fill(&mut writer);
        }
        remove_all(&dir);
        end.cancel();
        assert_eq!(rest(&mut tail).await.last(), Some(&gap), "{is_rotated}");
    }
}

#[test]
fn log_removed_during_seek_has_gap() {
    let gap = show_gap(&unknown_gap(GapCause::Rotated));
    for from in [
        ReadFrom::Since(LogTime::from_nanos(7)),
        ReadFrom::After(Position::START.after_line(LogTime::from_nanos(7))),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fill(&mut Writer::new(dir.path()));
        let mut seek = Seek::new(&log(&dir), from, ReadLimit::Now).unwrap();
        let mut is_removed = false;
        let mut reader = loop {
            match seek.step().unwrap() {
                SeekOutcome::Seeking(unfinished) => seek = unfinished,
                SeekOutcome::Found(reader, _) => break reader,
            }
            if !std::mem::replace(&mut is_removed, true) {
                remove_all(&dir);
            }
        };
        while !reader.read(ReadLimit::Now).unwrap() {}
        let mut items = Vec::new();
        for item in reader.batcher().take_items(true) {
            show(&item, &mut items);
        }
        assert!(items.contains(&gap), "{from:?}: {items:?}");
    }
}

#[tokio::test]
async fn log_removed_after_reading_has_no_gap() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    writer.line(1, "old");
    writer.rotate();
    writer.line(2, "last");
    let end = CancellationToken::new();
    let notifier = Notifier::start();
    let mut tail =
        open(&notifier, log(&dir), ReadFrom::Start, FollowMode::UntilEnd(end.clone())).await.unwrap();
    let mut items = Vec::new();
    while items.len() < 2 {
        show(&next(&mut tail).await.unwrap(), &mut items);
    }
    remove_all(&dir);
    end.cancel();
    assert_eq!((items, rest(&mut tail).await), (vec!["old\n".to_owned(), "last\n".to_owned()], vec![]));
}

#[tokio::test]
async fn recreated_log_is_followed_after_gap() {
    let gap = show_gap(&unknown_gap(GapCause::Rotated));
    let dir = tempfile::tempdir().unwrap();
    let notifier = Notifier::start();
    let mut writer = Writer::new(dir.path());
    writer.line(1, "a");
    let end = CancellationToken::new();
    let mut tail =
        open(&notifier, log(&dir), ReadFrom::Start, FollowMode::UntilEnd(end.clone())).await.unwrap();
    let mut items = Vec::new();
    show(&next(&mut tail).await.unwrap(), &mut items);
    writer.line(2, "b");
    remove_all(&dir);
    writer.line(3, "c");
    let mut writer = Writer::new(dir.path());
    writer.line(4, "d");
    while items.last().is_none_or(|line| line != "d\n") {
        show(&next(&mut tail).await.unwrap(), &mut items);
    }
    assert_eq!(items, ["a\n", "b\n", "c\n", &gap, "d\n"]);
    end.cancel();
    let b = ReadFrom::After(Position::START.after_line(LogTime::from_nanos(2)));
    let mut tail = open(&notifier, log(&dir), b, FollowMode::UntilEnd(end)).await.unwrap();
    assert_eq!(rest(&mut tail).await, [&gap, "d\n"]);
}

#[tokio::test]
async fn log_that_was_removed_before_it_was_opened_is_not_found_at_end() {
    let dir = tempfile::tempdir().unwrap();
    let end = CancellationToken::new();
    let follow = FollowMode::UntilEnd(end.clone());
    let mut tail = open(&Notifier::polling(), log(&dir), ReadFrom::Start, follow).await.unwrap();
    end.cancel();
    let error = tail.items.next().await.unwrap().unwrap_err();
    assert!(matches!(error, Error::NotFound(_)), "{error}");
}

/// The position is that of the first line that is left. A removed file may have had lines of its time, and
/// the runtime has not created the next file yet.
#[tokio::test]
async fn position_at_the_start_of_the_only_rotated_file_is_after_gap() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    writer.line(5, "removed");
    let removed = writer.rotate();
    writer.line(5, "a");
    writer.line(5, "b");
    writer.rotate();
    fs::remove_file(removed).unwrap();
    fs::remove_file(dir.path().join("0.log")).unwrap();
    let from = ReadFrom::After(Position::START.after_line(LogTime::from_nanos(5)));
    let mut tail = open(&Notifier::polling(), log(&dir), from, FollowMode::No).await.unwrap();
    assert_eq!(rest(&mut tail).await, [show_gap(&unknown_gap(GapCause::Rotated)).as_str(), "b\n"]);
}

#[tokio::test]
async fn removed_first_lines_of_needed_run_are_gap() {
    let second = 1_000_000_000;
    let started = LogTime::from_nanos(10 * second);
    // Seconds after the start at which the oldest line that is left was printed, whether a file follows, and
    // how many files are kept.
    let cases = [
        (1, true, 0, false),
        (5, false, 0, false),
        (5, true, 3, false),
        (5, true, 2, true),
        (5, true, 0, true),
    ];
    for (oldest, rotates, kept_files, is_gap) in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(dir.path());
        writer.line((10 + oldest) * second, "oldest");
        if rotates {
            writer.rotate();
        }
        writer.line(20 * second, "newest");
        let mut expected = vec!["oldest\n".to_owned(), "newest\n".to_owned()];
        let mut files = log(&dir);
        let mut tail =
            open(&Notifier::polling(), files.clone(), ReadFrom::Start, FollowMode::No).await.unwrap();
        assert_eq!(rest(&mut tail).await, expected, "nothing is needed");
        if is_gap {
            expected.insert(0, show_gap(&unknown_gap(GapCause::Rotated)));
        }
        files.needed_start = Some(NeededStart { started, kept_files });
        let mut tail = open(&Notifier::polling(), files, ReadFrom::Start, FollowMode::No).await.unwrap();
        assert_eq!(rest(&mut tail).await, expected, "{oldest} {rotates} {kept_files}");
    }
}
