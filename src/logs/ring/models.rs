//! Models of the ring: in each interleaving of its writer and two followers, every follower gets each line
//! once and in order, or its exact loss, and then the end. No wake-up is lost: a follower that waits although
//! the ring has changed cannot continue, and fails the model.
//!
//! Line `n` of the log is its number, its time is `n + 1`.

use std::fmt::Write as _;
use std::future::poll_fn;
use std::ops::Range;
use std::sync::LazyLock;
use std::task::{Context, Poll, ready};

use loom::future::block_on;
use metrics::NoopRecorder;

use super::*;
use crate::logs::chunk::LineEnd;
use crate::model::id::{Address, LeaseId};
use crate::model::line::{Line, LineBatch};
use crate::stream::StreamControl;
use crate::sys::sync::{explore, spawn};

/// Preemptions of the models of this module. With 3 they take minutes, with any number hours.
const RING_PREEMPTIONS: Option<usize> = Some(2);

/// Lines of the log.
const LINES: u64 = 3;

/// Most lines that a backfill reads at once. It may get ahead of the ring so.
const BATCH_LINES: u64 = 2;

/// Length of each line.
const LINE_BYTES: u64 = 2;

/// Holds the newest entry only.
const ONE_ENTRY: usize = 1;

/// Holds two entries: one of these lines takes 460 bytes.
const TWO_ENTRIES: usize = 1_000;

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics::register(&NoopRecorder));

/// A ring whose log was opened at its start.
fn open_ring(max_bytes: usize) -> Arc<Ring> {
    let replica = Replica { service: "web".parse().unwrap(), index: 0 };
    let ring = Ring::new(replica, NameStyle::Replica, max_bytes, &METRICS, &MemoryBudget::default());
    ring.begin_log(&run(), Position::START);
    ring
}

fn run() -> Instance {
    Instance::new("uid", "web", 0).unwrap()
}

/// The position after this many lines.
fn position(lines: u64) -> Position {
    (0..lines).fold(Position::START, |at, line| at.after_line(time(line)))
}

fn time(line: u64) -> LogTime {
    LogTime::from_nanos(i64::try_from(line).unwrap() + 1)
}

fn push_all(ring: &Ring) {
    for line in 0..LINES {
        push(ring, line);
    }
}

fn push_all_and_close(ring: &Ring) {
    push_all(ring);
    ring.close(true);
}

fn push(ring: &Ring, line: u64) {
    let LineBatch { data, lines } = batch(line..line + 1);
    let line_ends = lines.iter().map(|line| LineEnd {
        end: u32::try_from(line.end).unwrap(),
        time: line.time,
        stream: line.stream,
    });
    let (start, end) = (position(line), position(line + 1));
    let chunk = Chunk { data, line_ends: line_ends.collect(), continues: false, start, end };
    ring.push_lines(&run(), &mut vec![chunk], Instant::now());
}

/// These lines of the log.
fn batch(lines: Range<u64>) -> LineBatch {
    let mut batch = LineBatch { data: Bytes::new(), lines: Vec::new() };
    let mut data = String::new();
    for line in lines {
        writeln!(data, "{line}").unwrap();
        batch.lines.push(Line {
            end: data.len(),
            time: time(line),
            after: position(line + 1),
            ends: true,
            continues: false,
            stream: None,
        });
    }
    LineBatch { data: data.into(), ..batch }
}

fn lines_of(entry: &Entry) -> &Chunk {
    match &entry.kind {
        EntryKind::Lines(chunk, _) => chunk,
        kind => panic!("{kind:?}"),
    }
}

type Thread = Box<dyn FnOnce() -> Option<Follower> + Send>;

/// A follower that checks what it receives.
struct Follower {
    reader: RingReader,
    representation: Representation,
    /// Limits each read: `1` for one entry.
    room: usize,
    /// Number of its first line, once known.
    first: Option<u64>,
    /// Lines received or reported as lost.
    lines: u64,
    /// Lines reported as lost.
    lost: u64,
    is_refilling: bool,
    /// Follows until the ring is closed; otherwise until all lines have come. Then nothing but the wake-up
    /// for a line lets it continue.
    until_closed: bool,
}

/// Why a follower no longer reads the ring.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    Lagged,
    Done,
}

impl Follower {
    /// Follows from now on, before the first line.
    fn new(ring: &Arc<Ring>) -> Self {
        Self {
            reader: ring.reader(),
            representation: Representation::Plain,
            room: usize::MAX,
            first: Some(0),
            lines: 0,
            lost: 0,
            is_refilling: false,
            until_closed: false,
        }
    }

    fn receive(&mut self, chunk: &Chunk) {
        self.check_next(chunk);
        self.lines += chunk.lines();
    }

    /// Checks that `chunk` begins with the line that comes next.
    fn check_next(&mut self, chunk: &Chunk) {
        let text = str::from_utf8(&chunk.data).unwrap();
        let line: u64 = text.lines().next().unwrap().parse().unwrap();
        let first = *self.first.get_or_insert_with(|| line - self.lines);
        assert_eq!(line, first + self.lines, "lost or repeated without notice");
    }

    fn waits_for_more(&self) -> bool {
        self.until_closed || self.lines < LINES
    }

    /// As `ReplicaStream::poll_live`: waits without another read if a read reports that there is no more.
    fn poll_live(&mut self, cx: &mut Context<'_>) -> Poll<Stop> {
        while self.waits_for_more() {
            match ready!(self.reader.poll_read(self.room, self.representation, cx)) {
                ReadOutcome::Entries { entries, more } => {
                    for entry in entries.into_iter().flatten() {
                        entry.message(self.reader.ring(), self.representation, false);
                        self.receive(lines_of(&entry));
                    }
                    if !more && self.waits_for_more() {
                        return Poll::Pending;
                    }
                }
                ReadOutcome::Lagged => return Poll::Ready(Stop::Lagged),
                ReadOutcome::Closed => break,
            }
        }
        Poll::Ready(Stop::Done)
    }

    /// Skips what was evicted.
    fn skip(&mut self) {
        let loss = self.reader.skip().unwrap();
        assert!(loss.exact && loss.lines > 0 && loss.bytes == LINE_BYTES * loss.lines, "{loss:?}");
        self.lines += loss.lines;
        self.lost += loss.lines;
        self.check_next(lines_of(&loss.next));
    }

    async fn follow(mut self) -> Self {
        while poll_fn(|cx| self.poll_live(cx)).await == Stop::Lagged {
            self.skip();
        }
        self
    }

    /// As `Backfill`: reads the log until it can join the ring. The log has all lines from the start, since a
    /// container writes them before they are read.
    async fn join(&mut self, limit: JoinLimit) {
        loop {
            match self.reader.join(&run(), position(self.lines), limit, None) {
                JoinOutcome::Joined(parts) => return parts.iter().for_each(|chunk| self.receive(chunk)),
                JoinOutcome::ReadLog => self.read_log(BATCH_LINES),
                JoinOutcome::AheadOfRing => self.reader.changed().await,
                JoinOutcome::AtHead => panic!("no gap of the source"),
            }
        }
    }

    fn read_log(&mut self, lines: u64) {
        let read = lines.min(LINES - self.lines);
        assert!(read > 0, "the log has no more");
        if self.is_refilling {
            self.reader.record_refilled(&batch(self.lines..self.lines + read));
        }
        self.lines += read;
    }

    /// Joins again whenever it lags.
    async fn follow_with_refills(mut self, limit: JoinLimit) -> Self {
        loop {
            self.join(limit).await;
            if poll_fn(|cx| self.poll_live(cx)).await == Stop::Done {
                return self;
            }
            self.is_refilling = true;
            assert!(self.reader.begin_refill(position(self.lines)), "ambiguous");
        }
    }

    fn check(&self) {
        assert_eq!(self.reader.is_gone(), self.until_closed);
        assert_eq!(self.first.unwrap_or(LINES) + self.lines, LINES, "lost without notice");
    }
}

fn boxed(thread: impl FnOnce() -> Option<Follower> + Send + 'static) -> Thread {
    Box::new(thread)
}

/// Runs the writer and the followers, each in a thread of its own, until all are done. Drops the followers
/// then, since more steps at once would multiply the interleavings.
fn run_all(ring: &Arc<Ring>, write: fn(&Ring), followers: [Thread; 2]) {
    let writer = spawn({
        let ring = Arc::clone(ring);
        move || write(&ring)
    });
    let followers = followers.map(spawn);
    writer.join().unwrap();
    for follower in followers {
        if let Some(follower) = follower.join().unwrap() {
            follower.check();
        }
    }
    let state = ring.state.lock();
    let held: usize = state.entries.iter().map(|entry| entry.lazy_bytes.load(Ordering::Relaxed)).sum();
    assert_eq!(state.lazy_bytes, held, "account of representations");
    assert!(state.waiters.is_empty());
}

#[test]
fn slow_followers_get_every_line_or_exact_gap() {
    for max_bytes in [ONE_ENTRY, TWO_ENTRIES] {
        explore(RING_PREEMPTIONS, move || {
            let ring = open_ring(max_bytes);
            let quick = Follower::new(&ring);
            let slow = Follower { room: 1, ..Follower::new(&ring) };
            let followers = [quick, slow];
            run_all(&ring, push_all, followers.map(|follower| boxed(|| Some(block_on(follower.follow())))));
        });
    }
}

#[test]
fn followers_that_come_and_leave_disturb_no_other() {
    explore(RING_PREEMPTIONS, || {
        let ring = open_ring(ONE_ENTRY);
        let follower = || Follower { until_closed: true, ..Follower::new(&ring) };
        let (early, mut leaving, later) = (follower(), follower(), Arc::clone(&ring));
        let followers = [
            boxed(|| Some(block_on(early.follow()))),
            boxed(move || {
                // Leaves while its waker may be registered. The next reader takes its slot.
                let _ = leaving.poll_live(&mut Context::from_waker(Waker::noop()));
                drop(leaving);
                let late = Follower { first: None, until_closed: true, ..Follower::new(&later) };
                Some(block_on(late.follow()))
            }),
        ];
        run_all(&ring, push_all_and_close, followers);
    });
}

#[test]
fn backfill_and_refills_join_without_gap_or_repeat() {
    for (max_bytes, limit) in [(TWO_ENTRIES, JoinLimit::Usual), (ONE_ENTRY, JoinLimit::None)] {
        explore(RING_PREEMPTIONS, move || {
            let ring = open_ring(max_bytes);
            let mut joined = Follower::new(&ring);
            let mut refilled = Follower { room: 1, ..Follower::new(&ring) };
            let followers = [
                boxed(move || {
                    joined.read_log(1);
                    block_on(joined.join(limit));
                    Some(block_on(joined.follow()))
                }),
                boxed(move || {
                    refilled.read_log(BATCH_LINES);
                    let refilled = block_on(refilled.follow_with_refills(limit));
                    assert_eq!(refilled.lost, 0);
                    Some(refilled)
                }),
            ];
            run_all(&ring, push_all, followers);
        });
    }
}

#[test]
fn representations_are_counted_while_entries_are_evicted() {
    explore(RING_PREEMPTIONS, || {
        let ring = open_ring(TWO_ENTRIES);
        let followers = [(); 2].map(|()| {
            let representation = Representation::Timestamped;
            let follower = Follower { representation, ..Follower::new(&ring) };
            boxed(|| Some(block_on(follower.follow())))
        });
        run_all(&ring, push_all, followers);
    });
}

/// Reports lock the list of followers and the state, in this order.
#[test]
fn lag_report_blocks_no_follower() {
    explore(RING_PREEMPTIONS, || {
        let ring = open_ring(ONE_ENTRY);
        let mut registered = Follower { until_closed: true, ..Follower::new(&ring) };
        let mut lagging = Follower::new(&ring);
        lagging.reader.report_progress(StreamControl::new());
        let observed = Arc::clone(&ring);
        let followers = [
            boxed(move || {
                registered.reader.report_progress(StreamControl::new());
                block_on(registered.follow()).check();
                None
            }),
            boxed(move || {
                let [owner, provider] = [1, 2].map(|number| Address::from_account([number; 20]));
                let lease = LeaseId::new(owner.as_str(), 1, 1, 1, provider.as_str()).unwrap();
                let mut report = LagReport::default();
                observed.report_lagging(&lease, 1, &mut report);
                assert!(report.total <= 2);
                drop(lagging);
                None
            }),
        ];
        run_all(&ring, push_all_and_close, followers);
    });
}
