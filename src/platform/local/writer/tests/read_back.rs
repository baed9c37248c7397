//! Logs read back: whatever failed, a reader receives or is informed of every byte, and of every line once.

use futures_util::StreamExt as _;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::platform::log_files::{self, FollowMode, LogFiles};
use crate::platform::{ReadFrom, TailItem};
use crate::sys::dir_watch::Notifier;

/// Totals of a read, including gaps.
#[derive(Debug, Default)]
struct Totals {
    bytes: u64,
    /// Lines with their newline.
    complete: u64,
    lost: u64,
}

async fn read(disk: &Memory) -> Totals {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in disk.files() {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let ended = CancellationToken::new();
    ended.cancel();
    let log = LogFiles { dir: dir.path().to_owned(), run_number: 3, needed_start: None };
    let tail = log_files::open(&Notifier::polling(), log, ReadFrom::Start, FollowMode::UntilEnd(ended)).await;
    let mut totals = Totals::default();
    let mut items = tail.unwrap().items;
    while let Some(item) = items.next().await {
        match item.unwrap() {
            TailItem::Gap(gap) => {
                assert!(gap.exact, "{gap:?}");
                totals.bytes += gap.bytes;
                totals.lost += gap.lines;
            }
            TailItem::FollowUnavailable | TailItem::Interrupted(_) | TailItem::Resumed => {
                panic!("a file can be followed")
            }
            TailItem::Lines(batch) => {
                totals.bytes += batch.data.len() as u64;
                let pieces = (0..batch.lines.len()).map(|index| batch.bytes(index));
                totals.complete += pieces.filter(|piece| piece.ends_with(b"\n")).count() as u64;
            }
        }
    }
    totals
}

proptest! {
    #[test]
    fn every_byte_is_read_or_reported_lost(
        actions in prop::collection::vec(action(), 1..80),
        max_bytes in prop_oneof![Just(u64::MAX), 100_u64..5_000],
    ) {
        // No file is removed.
        let (disk, mut writer) = writer(Rotation { max_bytes, files: 900 });
        let (mut bytes, mut lines) = (0, 0);
        for (tick, action) in (0..).zip(actions) {
            if let Action::Output(_, output) = &action {
                bytes += output.len() as u64;
                lines += memchr::memchr_iter(b'\n', output).count() as u64;
            }
            act(&disk, &mut writer, action, tick);
        }
        disk.set(State::allow_everything);
        prop_assert_eq!(writer.finish(at(0)), NO_LOSS);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let totals = runtime.block_on(read(&disk));
        prop_assert_eq!(totals.bytes, bytes);
        // Up to two unfinished lines may count as lost.
        let lines_seen = totals.complete + totals.lost;
        prop_assert!((lines..=lines + 2).contains(&lines_seen), "{:?} of {} lines", totals, lines);
    }
}
