//! Microbenchmarks of the pure steps of a line's path: `cargo bench --bench micro`. Compare two runs side by
//! side, before and after a change: absolute times on a busy machine mean little.

#![allow(missing_docs, clippy::unwrap_used, reason = "a program, which unwraps only its own values")]

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use futures_util::task::noop_waker;
use leasemux::edge::admin::Exporter;
use leasemux::logs::chunk::{Chunk, Chunker};
use leasemux::logs::entry_name::NameStyle;
use leasemux::logs::memory_budget::MemoryBudget;
use leasemux::logs::message;
use leasemux::logs::representation::Representation;
use leasemux::logs::ring::{Ring, RingReader};
use leasemux::logs::websocket::LineEncoder;
use leasemux::model::id::{Instance, Replica};
use leasemux::model::limits::Limits;
use leasemux::model::line::{Line, LineBatch, OutputStream};
use leasemux::model::position::Position;
use leasemux::model::time::LogTime;
use leasemux::platform::cri::{self, Parser, Record};
use tokio::time::Instant;

/// Bytes of a batch: a quarter of one read of a file.
const BATCH_BYTES: usize = 64 * 1024;

/// Lengths of lines in bytes.
const LINES: [usize; 2] = [100, 4_096];

fn main() {
    divan::main();
}

fn replica() -> Replica {
    Replica { service: "web".parse().unwrap(), index: 0 }
}

fn instance() -> Instance {
    Instance::new("bench", "web", 0).unwrap()
}

fn batch(line: usize) -> LineBatch {
    let count = BATCH_BYTES / line;
    let (time, mut at) = (LogTime::now(), Position::START);
    let lines = (1..=count).map(|index| {
        at = at.after_line(time);
        Line::whole(index * line, time, at)
    });
    LineBatch { lines: lines.collect(), data: Bytes::from(vec![b'x'; count * line]) }
}

fn chunks(line: usize) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    Chunker::new(Position::START).push(&batch(line), &mut chunks);
    chunks
}

fn ring() -> Arc<Ring> {
    let metrics = Exporter::new().unwrap().metrics;
    let (names, max_bytes) = (NameStyle::default(), Limits::default().ring_max_bytes);
    Ring::new(replica(), names, max_bytes, &metrics, &MemoryBudget::default())
}

#[divan::bench(args = LINES)]
fn parse_records(bencher: Bencher<'_, '_>, line: usize) {
    let (content, mut log, mut time) = (vec![b'x'; line - 50], Vec::new(), LogTime::now());
    while log.len() < BATCH_BYTES {
        time = time.saturating_add_nanos(10_000);
        let record =
            Record { time, stream: OutputStream::Stdout, partial: false, lost: None, content: &content };
        cri::write(&mut log, &record);
    }
    let mut parser = Parser::default();
    bencher
        .counter(BytesCount::of_slice(&log))
        .bench_local(|| log.split(|byte| *byte == b'\n').filter_map(|record| parser.parse(record)).count());
}

#[divan::bench(args = LINES)]
fn join_lines_to_chunks(bencher: Bencher<'_, '_>, line: usize) {
    let batch = batch(line);
    bencher.counter(BytesCount::of_slice(&batch.data)).bench_local(|| {
        let mut chunks = Vec::new();
        let mut chunker = Chunker::new(Position::START);
        chunker.push(black_box(&batch), &mut chunks);
        (chunks, chunker.flush())
    });
}

#[divan::bench(args = LINES)]
fn encode_a_chunk(bencher: Bencher<'_, '_>, line: usize) {
    encode(bencher, line, false);
}

#[divan::bench(args = LINES)]
fn encode_a_chunk_with_times(bencher: Bencher<'_, '_>, line: usize) {
    encode(bencher, line, true);
}

fn encode(bencher: Bencher<'_, '_>, line: usize, times: bool) {
    let (replica, instance, chunk) = (replica(), instance(), chunks(line).remove(0));
    bencher
        .counter(BytesCount::of_slice(&chunk.data))
        .bench_local(|| message::encode_lines(&replica, &instance, black_box(&chunk), times));
}

/// Encodes the lines of a batch as websocket frames. The second argument: one quote in so many bytes.
#[divan::bench(args = [(50, 0), (200, 0), (1_000, 0), (200, 8), (4_096, 0)])]
fn encode_websocket_lines(bencher: Bencher<'_, '_>, (line, quotes): (usize, usize)) {
    let mut text = vec![b'x'; line];
    text.iter_mut()
        .step_by(quotes.max(1))
        .take(if quotes == 0 { 0 } else { line })
        .for_each(|byte| *byte = b'"');
    let encoder = LineEncoder::new("web-5cfc6c7b4b-4cl7z", &replica());
    let lines = 16_000 / line;
    bencher.counter(BytesCount::new(lines * line)).bench_local(|| {
        let mut frames = Vec::with_capacity(lines * (line + encoder.overhead_bytes()));
        (0..lines).for_each(|_| encoder.push_line(black_box(&text), false, &mut frames));
        frames
    });
}

/// Pushes one line, which all readers read: the cost of the ring per line and follower.
#[divan::bench(args = [1, 100, 1_000])]
fn pass_a_line_to_readers(bencher: Bencher<'_, '_>, followers: usize) {
    let (ring, instance, chunk) = (ring(), instance(), chunks(4_096).remove(0));
    ring.begin_log(&instance, Position::START);
    let mut readers: Vec<RingReader> = (0..followers).map(|_| ring.reader()).collect();
    let waker = noop_waker();
    bencher.counter(ItemsCount::new(followers)).bench_local(|| {
        ring.push_lines(&instance, &mut vec![chunk.clone()], Instant::now());
        let mut cx = Context::from_waker(&waker);
        let reads = readers.iter_mut().map(|reader| reader.poll_read(1, Representation::Plain, &mut cx));
        reads.filter(Poll::is_ready).count()
    });
}
