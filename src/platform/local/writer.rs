//! Writes what a run prints as a CRI log.
//!
//! What it promises: records in the order in which output came, their times strictly growing; a line is never mixed with
//! another of the same output; an unfinished line is written as a partial record by [`Writer::flush_unfinished`], and at the end of the
//! run. If the log cannot be written,
//! output is dropped and counted, and at the place where it is missing stands a record tagged `lost=LINES/BYTES` as soon as
//! writing works again: in the log of the next run, if this one ends before. If the gateway was killed, the next run's log begins
//! with such a record, tagged `inexact`: what was in the pipes then is in no log. Lines that are in pieces at that place, of either output, count among the lost: a reader may take it
//! that a line goes on behind such a record only if it began behind it.
//!
//! Reading, and so the service, never waits for a disk that is full.

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use memchr::memchr;

use super::rotate::{LogFile, LogFs};
use crate::model::limits::{CRI_PIECE_MAX_BYTES, LINE_HELD_MAX_BYTES};
use crate::model::time::LogTime;
use crate::platform::cri::{self, DroppedOutput, Record, Stream};

/// Records are written once so many bytes of them are ready, or when there is no more output at hand. A batch of empty lines
/// grows fortyfold by its timestamps.
const BATCH_BYTES: usize = 256 * 1024;

/// How far a file may grow beyond its limit so that a line in pieces stays in one file.
const LINE_SLACK_BYTES: u64 = LINE_HELD_MAX_BYTES as u64;

/// How often a disk that cannot be written is complained of.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(30);

/// No loss.
pub(super) const NOTHING: DroppedOutput = DroppedOutput { lines: 0, bytes: 0, exact: true };

/// The end of a run was not seen, so any of its last output may be lost.
pub(super) const END_UNKNOWN: DroppedOutput = DroppedOutput { exact: false, ..NOTHING };

/// Writes the log of one run.
#[derive(Debug)]
pub(super) struct Writer<D: LogFs> {
    log: LogFile<D>,
    /// Of stdout and stderr.
    lines: [Unfinished; 2],
    /// Of the last record.
    time: LogTime,
    /// Records that are ready, and what they are.
    batch: Vec<u8>,
    queued: Vec<Queued>,
    /// What was dropped and has no record yet.
    lost: DroppedOutput,
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
    Loss(DroppedOutput),
}

#[derive(Debug)]
struct Outage {
    since: Instant,
    complained: Option<Instant>,
}

// === impl Writer ===

impl<D: LogFs> Writer<D> {
    /// Begins a log, with what the run before has lost and could not tell. If its file cannot be made, that is as if the disk were
    /// full.
    pub(super) fn new(mut log: LogFile<D>, lost: DroppedOutput) -> Self {
        if let Err(error) = log.create() {
            tracing::warn!(%error, log = %log.path().display(), "cannot make log file, trying again with the first output");
        }
        Self {
            log,
            lines: Default::default(),
            time: LogTime::MIN,
            batch: Vec::new(),
            queued: Vec::new(),
            lost,
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

    /// Whether there is output that is in no record, since its line has not ended.
    pub(super) fn holds_unfinished(&self) -> bool {
        self.lines.iter().any(|line| !line.held.is_empty())
    }

    /// Writes unfinished lines as far as they came.
    pub(super) fn flush_unfinished(&mut self, now: LogTime) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !self.lines[index(stream)].held.is_empty() {
                self.record(stream, &[], false, now);
            }
        }
        self.flush(now);
    }

    /// Whether a notice waits to be written.
    pub(super) fn owes_notice(&self) -> bool {
        self.lost != NOTHING
    }

    /// Writes everything that is left; the run has ended. Returns what is lost and could not be told.
    pub(super) fn finish(mut self, now: LogTime) -> DroppedOutput {
        self.flush_unfinished(now);
        if self.owes_notice() {
            tracing::error!(
                lost = ?self.lost,
                log = %self.log.path().display(),
                "output lost, and no room to say so in the log: the next run's will, if there is one"
            );
        }
        self.lost
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
        let whole: &[u8] = if held.is_empty() { rest } else { &[&held, rest].concat() };
        self.queue(stream, whole, content, now);
    }

    fn note_loss(&mut self, now: LogTime) {
        if self.owes_notice() {
            let lost = std::mem::replace(&mut self.lost, NOTHING);
            let notice = notice(&lost);
            self.queue(Stream::Stderr, notice.as_bytes(), Content::Loss(lost), now);
        }
    }

    fn queue(&mut self, stream: Stream, bytes: &[u8], content: Content, now: LogTime) {
        let (partial, lost) = match content {
            Content::Output { ends, .. } => (!ends, None),
            Content::Loss(lost) => (false, Some(lost)),
        };
        let record = Record { time: self.next_time(now), stream, partial, lost, content: bytes };
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
        self.queued.push(Queued { end: self.batch.len(), content });
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
        let result = self.log.append(&self.batch, queued.iter().map(|queued| queued.end));
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
                    self.lost.exact &= lost.exact;
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
        let outage = self.outage.get_or_insert_with(|| Outage { since: Instant::now(), complained: None });
        if outage.complained.is_none_or(|last| last.elapsed() >= COMPLAINT_INTERVAL) {
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

/// The text of a record about a loss, for readers that do not know its tag.
fn notice(lost: &DroppedOutput) -> String {
    match *lost {
        DroppedOutput { lines, bytes, exact: true } => {
            format!("[{lines} lines, {bytes} bytes lost here: the log could not be written]")
        }
        END_UNKNOWN => "[output may be lost here: the gateway did not end in order]".to_owned(),
        DroppedOutput { lines, bytes, exact: false } => {
            format!("[at least {lines} lines, {bytes} bytes lost here: the log could not be written]")
        }
    }
}

const fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}
