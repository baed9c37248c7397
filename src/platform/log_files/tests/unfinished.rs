//! Unfinished lines, and records of any length.

use super::*;

/// Reads to the end. Returns the bytes of all lines, the position after them, and the number of gaps.
async fn bytes(tail: &mut Tail) -> (Vec<u8>, Position, usize) {
    let (mut all, mut at, mut gaps) = (Vec::new(), tail.start, 0);
    while let Some(item) = next(tail).await {
        match item {
            TailItem::Gap(_) => gaps += 1,
            TailItem::FollowUnavailable | TailItem::Interrupted(_) | TailItem::Resumed => {}
            TailItem::Lines(batch) => {
                all.extend_from_slice(&batch.data);
                at = batch.lines.last().unwrap().after;
                assert!(batch.data.len() <= READ_MAX_BYTES + LINE_HELD_MAX_BYTES);
            }
        }
    }
    (all, at, gaps)
}

#[tokio::test]
async fn finished_line_passes_endless_line_of_other_stream() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    let frame = format!("\r{}", "#".repeat(16_000));
    for n in 0..40 {
        writer
            .raw(format!("1970-01-01T00:00:01Z stderr P {frame}\n1970-01-01T00:00:02Z stdout F line {n}\n"));
    }
    let end = CancellationToken::new();
    for (from, expected) in [(ReadFrom::Start, 40), (ReadFrom::Last(3), 3)] {
        for follow in [FollowMode::No, FollowMode::UntilEnd(end.clone())] {
            let mut tail = open(&Notifier::polling(), log(&dir), from, follow).await.unwrap();
            let mut lines = 0;
            while lines < expected {
                let Some(TailItem::Lines(batch)) = next(&mut tail).await else { panic!("{from:?}") };
                let whole =
                    |index: &usize| batch.bytes(*index).starts_with(b"line ") && batch.lines[*index].ends;
                lines += (0..batch.lines.len()).filter(whole).count();
            }
        }
    }
}

#[tokio::test]
async fn unfinished_line_is_returned_while_followed() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    let end = CancellationToken::new();
    let notifier = Notifier::start();
    let mut tail =
        open(&notifier, log(&dir), ReadFrom::Start, FollowMode::UntilEnd(end.clone())).await.unwrap();
    let mut at = Position::START;
    for content in ["Password: ", "\r 1 %", "\r 2 %"] {
        writer.raw(format!("1970-01-01T00:00:01Z stdout P {content}\n"));
        let Some(TailItem::Lines(batch)) = next(&mut tail).await else { panic!("lines") };
        at = at.after_bytes(content.len());
        assert_eq!((&batch.data[..], batch.lines[0].after), (content.as_bytes(), at));
        // A new reader after that position receives no byte again.
        let mut other = open(&notifier, log(&dir), ReadFrom::After(at), FollowMode::No).await.unwrap();
        assert_eq!((other.start, rest(&mut other).await), (at, vec![]));
    }
    writer.raw("1970-01-01T00:00:02Z stdout F  done\n");
    end.cancel();
    assert_eq!(rest(&mut tail).await, [" done\n"]);
}

#[tokio::test]
async fn pieces_written_together_are_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    writer.raw("1970-01-01T00:00:01Z stdout P be\n1970-01-01T00:00:01Z stdout P gin\n");
    let end = CancellationToken::new();
    let follow = FollowMode::UntilEnd(end.clone());
    let mut tail = open(&Notifier::start(), log(&dir), ReadFrom::Start, follow).await.unwrap();
    writer.raw("1970-01-01T00:00:01Z stdout F , end\n");
    end.cancel();
    assert_eq!(rest(&mut tail).await, ["begin, end\n"]);
}

#[tokio::test]
async fn record_of_any_length_is_returned_in_pieces() {
    const MIB: usize = 1024 * 1024;
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    let record = |stream: &str, len: usize| format!("1970-01-01T00:00:01Z {stream} F {}\n", "x".repeat(len));
    let longest = 5 * MIB;
    for len in [MIB + 1, 3, longest] {
        writer.raw(record("stdout", len));
    }
    // Garbage longer than a part.
    writer.raw("y".repeat(MIB) + "\n");
    writer.raw(record("stderr", 7));
    let mut tail = open(&Notifier::polling(), log(&dir), ReadFrom::Start, FollowMode::No).await.unwrap();
    let (all, end, gaps) = bytes(&mut tail).await;
    let line = |len: usize| "x".repeat(len) + "\n";
    let expected = [MIB + 1, 3, longest, 7].map(line).concat().into_bytes();
    assert!(all == expected, "{} bytes of {}", all.len(), expected.len());
    assert_eq!(
        (end, gaps),
        (Position { time: LogTime::from_nanos(1_000_000_000), ordinal: 4, offset: 0 }, 1)
    );
    // A read from within a line returns exactly its remaining bytes.
    let before = Position { ordinal: 2, ..end };
    for offset in [1, 4_096, LINE_HELD_MAX_BYTES, LINE_HELD_MAX_BYTES + 1, longest] {
        let from = ReadFrom::After(before.after_bytes(offset));
        let mut tail = open(&Notifier::polling(), log(&dir), from, FollowMode::No).await.unwrap();
        let (rest, _, _) = bytes(&mut tail).await;
        assert!(rest == expected[MIB + 6 + offset..], "{offset}: {} bytes", rest.len());
    }
}
