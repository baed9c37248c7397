//! Writes a run's output as a CRI log.
//!
//! Guarantees: records are in the order of the output, and their times grow strictly. A line is never mixed
//! with another of the same stream. An unfinished line is written as a partial record by
//! [`LogWriter::flush_unfinished`] and at the end of the run.
//!
//! If the log cannot be written, output is dropped and counted. Once writing works again, a record tagged
//! `lost=LINES/BYTES` marks the place. If the run ends first, the record is written to the log of the next
//! run. If the gateway was killed, the log of the next run begins with such a record, tagged `inexact`,
//! because the content of the pipes was in no log. At such a record every unfinished line of both streams
//! ends, and its remaining pieces are counted as lost. So the next record of a stream always begins a line.
//!
//! A full disk blocks neither reading nor the service.

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use memchr::memchr;

use super::rotate::{LogFs, RotatingLog};
use crate::model::limits::{CRI_PIECE_MAX_BYTES, LINE_HELD_MAX_BYTES};
use crate::model::line::OutputStream;
use crate::model::time::LogTime;
use crate::platform::cri::{self, DroppedOutput, Record};

/// Size at which a batch of records is written before the output at hand is consumed. Timestamps enlarge a
/// batch of empty lines fortyfold.
const BATCH_BYTES: usize = 256 * 1024;

/// How far a file may exceed its limit so that a line in pieces stays in one file.
const LINE_SLACK_BYTES: u64 = LINE_HELD_MAX_BYTES as u64;

/// Interval of warnings about a log that cannot be written.
const WARNING_INTERVAL: Duration = Duration::from_secs(30);

pub(super) const NO_LOSS: DroppedOutput = DroppedOutput { lines: 0, bytes: 0, exact: true };

/// The loss of a run whose end was not observed.
pub(super) const UNKNOWN_LOSS: DroppedOutput = DroppedOutput { exact: false, ..NO_LOSS };

/// Writes the log of one run.
#[derive(Debug)]
pub(super) struct LogWriter<F: LogFs> {
    log: RotatingLog<F>,
    /// Unfinished lines of stdout and stderr.
    lines: [Unfinished; 2],
    /// Time of the last record.
    time: LogTime,
    /// Records to be written.
    batch: Vec<u8>,
    /// The contents of the records in `batch`.
    queued: Vec<Queued>,
    /// Dropped output without a record.
    lost: DroppedOutput,
    /// Set while the log cannot be written.
    outage: Option<Outage>,
}

/// The unfinished line of a stream.
#[derive(Debug, Default)]
struct Unfinished {
    /// Its bytes that are in no record yet, at most [`CRI_PIECE_MAX_BYTES`].
    held: Vec<u8>,
    /// Whether a piece of it is in a record.
    in_pieces: bool,
    /// Whether a piece of it is in the file.
    in_file: bool,
    /// Whether it counts as lost, so that its rest is dropped as well.
    is_lost: bool,
}

/// A record in the batch.
#[derive(Clone, Copy, Debug)]
struct Queued {
    /// Its end in the batch.
    end: usize,
    content: Content,
}

#[derive(Clone, Copy, Debug)]
enum Content {
    /// Output of the run: its size (including the newline), and whether it ends a line.
    Output { stream: OutputStream, bytes: u64, ends: bool },
    /// A notice of dropped output.
    Notice(DroppedOutput),
}

#[derive(Debug)]
struct Outage {
    since: Instant,
    last_warning: Option<Instant>,
}

// === impl LogWriter ===

impl<F: LogFs> LogWriter<F> {
    /// Starts a log, with the unreported loss of earlier runs. A file that cannot be created is handled like
    /// a full disk.
    pub(super) fn new(mut log: RotatingLog<F>, lost: DroppedOutput) -> Self {
        // A log exists even without output.
        if let Err(error) = log.ensure_open() {
            tracing::warn!(%error, log = %log.path().display(), "failed to create log file, will retry with first output");
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

    /// Adds output read at `now`. Call [`flush`](Self::flush) after all output at hand.
    pub(super) fn append(&mut self, stream: OutputStream, mut output: &[u8], now: LogTime) {
        while !output.is_empty() {
            let line = &mut self.lines[stream as usize];
            let room = CRI_PIECE_MAX_BYTES - line.held.len();
            // A newline directly after the longest piece belongs to it.
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

    /// Writes complete lines, and the notice of a loss.
    pub(super) fn flush(&mut self, now: LogTime) {
        self.queue_notice(now);
        self.write_batch();
    }

    /// Whether a line is held back because it is unfinished.
    pub(super) fn holds_unfinished(&self) -> bool {
        self.lines.iter().any(|line| !line.held.is_empty())
    }

    /// Writes everything, including unfinished lines.
    pub(super) fn flush_unfinished(&mut self, now: LogTime) {
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            if !self.lines[stream as usize].held.is_empty() {
                self.record(stream, &[], false, now);
            }
        }
        self.flush(now);
    }

    /// Whether the notice of a loss must still be written.
    pub(super) fn has_unreported_loss(&self) -> bool {
        self.lost != NO_LOSS
    }

    /// Writes everything at the end of the run. Returns the loss that could not be reported.
    pub(super) fn finish(mut self, now: LogTime) -> DroppedOutput {
        self.flush_unfinished(now);
        if self.has_unreported_loss() {
            tracing::error!(
                lost = ?self.lost,
                log = %self.log.path().display(),
                "output lost and failed to report it in the log; the next run's log will report it"
            );
        }
        self.lost
    }

    /// Queues a record of the held bytes and `rest`.
    fn record(&mut self, stream: OutputStream, rest: &[u8], ends: bool, now: LogTime) {
        let held = std::mem::take(&mut self.lines[stream as usize].held);
        let bytes = (held.len() + rest.len() + usize::from(ends)) as u64;
        let content = Content::Output { stream, bytes, ends };
        if self.lines[stream as usize].is_lost {
            // A notice will follow. Everything before it must be in the file or counted.
            self.write_batch();
            self.drop_records([content]);
            return;
        }
        self.queue_notice(now);
        if self.has_unreported_loss() {
            self.drop_records([content]);
            return;
        }
        let whole: &[u8] = if held.is_empty() { rest } else { &[&held, rest].concat() };
        self.queue(stream, whole, content, now);
    }

    fn queue_notice(&mut self, now: LogTime) {
        if self.has_unreported_loss() {
            // `queue` counts it again if the notice cannot be written.
            let lost = std::mem::replace(&mut self.lost, NO_LOSS);
            let notice = notice(&lost);
            self.queue(OutputStream::Stderr, notice.as_bytes(), Content::Notice(lost), now);
        }
    }

    fn queue(&mut self, stream: OutputStream, bytes: &[u8], content: Content, now: LogTime) {
        let (partial, lost) = match content {
            Content::Output { ends, .. } => (!ends, None),
            Content::Notice(lost) => (false, Some(lost)),
        };
        let record = Record { time: self.next_time(now), stream, partial, lost, content: bytes };
        let start = self.batch.len();
        cri::write(&mut self.batch, &record);
        if self.is_rotation_due(start) {
            let record = self.batch.split_off(start);
            self.write_batch();
            if self.has_unreported_loss() || !self.rotate(now) {
                // Output after a loss must be after its notice.
                self.drop_records([content]);
                return;
            }
            self.batch = record;
        }
        self.queued.push(Queued { end: self.batch.len(), content });
        if let Content::Output { ends, .. } = content {
            self.lines[stream as usize].in_pieces = !ends;
        }
        if self.batch.len() >= BATCH_BYTES {
            self.write_batch();
        }
    }

    /// Returns a time after that of the last record, even if the clock went back.
    fn next_time(&mut self, now: LogTime) -> LogTime {
        self.time = now.max(self.time.saturating_add_nanos(1));
        self.time
    }

    /// Whether the last record of the batch, which begins at `start`, should be the first of a new file.
    fn is_rotation_due(&self, start: usize) -> bool {
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
            self.warn(error);
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
            Err(partial) => queued.partition_point(|queued| queued.end <= partial.kept),
        };
        let (kept, dropped) = queued.split_at(kept);
        for queued in kept {
            if let Content::Output { stream, ends, .. } = queued.content {
                self.lines[stream as usize].in_file = !ends;
            }
        }
        match result {
            Ok(()) => self.recovered(),
            Err(partial) => {
                self.drop_records(dropped.iter().map(|queued| queued.content));
                self.warn(&partial.error);
            }
        }
    }

    /// Counts records as lost, and with them the lines that are in pieces here.
    fn drop_records(&mut self, records: impl IntoIterator<Item = Content>) {
        for line in &mut self.lines {
            if line.in_file {
                self.lost.lines += 1;
                line.is_lost = true;
            }
            line.in_file = false;
            line.in_pieces = false;
        }
        for content in records {
            match content {
                Content::Output { stream, bytes, ends } => {
                    let line = &mut self.lines[stream as usize];
                    self.lost.lines += u64::from(!line.is_lost);
                    self.lost.bytes += bytes;
                    line.is_lost = !ends;
                }
                Content::Notice(lost) => {
                    self.lost.lines += lost.lines;
                    self.lost.bytes += lost.bytes;
                    self.lost.exact &= lost.exact;
                }
            }
        }
    }

    /// Warns that the log cannot be written, at a limited rate.
    fn warn(&mut self, error: &std::io::Error) {
        let outage = self.outage.get_or_insert_with(|| Outage { since: Instant::now(), last_warning: None });
        if outage.last_warning.is_none_or(|last| last.elapsed() >= WARNING_INTERVAL) {
            outage.last_warning = Some(Instant::now());
            let log = self.log.path();
            tracing::warn!(%error, log = %log.display(), lost = ?self.lost, "failed to write log, dropping output");
        }
    }

    fn recovered(&mut self) {
        if let Some(outage) = self.outage.take() {
            let log = self.log.path();
            tracing::info!(log = %log.display(), after = ?outage.since.elapsed(), "log can be written again");
        }
    }
}

/// Returns the text of a notice, for readers that do not know its tag.
fn notice(lost: &DroppedOutput) -> String {
    match *lost {
        DroppedOutput { lines, bytes, exact: true } => {
            format!("[{lines} lines, {bytes} bytes lost here: the log could not be written]")
        }
        UNKNOWN_LOSS => "[output may be lost here: the gateway did not end in order]".to_owned(),
        DroppedOutput { lines, bytes, exact: false } => {
            format!("[at least {lines} lines, {bytes} bytes lost here: the log could not be written]")
        }
    }
}
