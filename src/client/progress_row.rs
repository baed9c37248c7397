//! Progress of a download, as the last row of a terminal.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use memchr::memchr_iter;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::terminal::{ERASE_ROW, cut};

/// Shorter calls show no progress.
pub(super) const SHOWN_AFTER: Duration = Duration::from_secs(1);

/// Interval of drawings, which a person can still read.
const INTERVAL: Duration = Duration::from_millis(250);

/// Counts what is received, and draws it after [`SHOWN_AFTER`].
#[derive(Debug)]
pub(super) struct ProgressRow {
    /// Returns the columns of the terminal, unless nothing may be drawn now.
    columns: fn() -> Option<usize>,
    started: Instant,
    next: Instant,
    lines: u64,
    bytes: u64,
    /// Number of drawn rows: 0 or 1. Shared with [`super::interrupt`].
    drawn: Arc<Mutex<usize>>,
}

// === impl ProgressRow ===

impl ProgressRow {
    /// Creates a row for a terminal with this many columns, which may change; `None` draws nothing.
    pub(super) fn new(columns: fn() -> Option<usize>) -> Self {
        let started = Instant::now();
        let next = started + SHOWN_AFTER;
        Self { columns, started, next, lines: 0, bytes: 0, drawn: Arc::default() }
    }

    /// Returns the number of drawn rows, which changes.
    pub(super) fn drawn(&self) -> Arc<Mutex<usize>> {
        Arc::clone(&self.drawn)
    }

    /// Returns what erases the row.
    pub(super) fn erasure(_drawn: usize) -> Vec<u8> {
        ERASE_ROW.to_vec()
    }

    pub(super) fn count(&mut self, logs: &[u8]) {
        self.lines += memchr_iter(b'\n', logs).count() as u64;
        self.bytes += logs.len() as u64;
    }

    /// Returns when [`ProgressRow::draw`] changes the row.
    pub(super) fn due(&self) -> Instant {
        self.next
    }

    /// Returns whether it is time to draw.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.next
    }

    /// Draws the row again.
    pub(super) fn draw(&mut self, err: &mut (impl Write + ?Sized), now: Instant) -> io::Result<()> {
        self.next = now + INTERVAL;
        let Some(columns) = (self.columns)() else {
            return Ok(());
        };
        let text = progress(self.lines, self.bytes, now - self.started);
        let mut row = ERASE_ROW.to_vec();
        // The last column stays free: after writing it, some terminals move the cursor to the next row.
        row.extend_from_slice(cut(&text, columns.saturating_sub(1)).as_bytes());
        // Held while writing, so that Ctrl-C erases all that is drawn.
        let mut drawn = self.drawn.lock();
        *drawn = 1;
        err.write_all(&row)?;
        err.flush()
    }

    pub(super) fn erase(&mut self, err: &mut (impl Write + ?Sized)) -> io::Result<()> {
        if std::mem::take(&mut *self.drawn.lock()) == 0 {
            return Ok(());
        }
        err.write_all(ERASE_ROW)?;
        err.flush()
    }
}

fn progress(lines: u64, bytes: u64, elapsed: Duration) -> String {
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let (bytes, seconds) = (bytes as f64, elapsed.as_secs_f64().max(0.001));
    format!("{lines} lines, {}, {}/s", size(bytes), size(bytes / seconds))
}

/// Returns a size with one decimal and the largest unit below it.
fn size(bytes: f64) -> String {
    let units = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    let unit = units.into_iter().find(|(_, factor)| bytes >= *factor);
    unit.map_or_else(|| format!("{bytes:.0} B"), |(name, factor)| format!("{:.1} {name}", bytes / factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn row_is_drawn_after_a_second_and_erased() {
        let mut out = Vec::new();
        let mut row = ProgressRow::new(|| Some(20));
        row.count(b"a\nb\n");
        assert!(!row.is_due(Instant::now()));
        row.erase(&mut out).unwrap();
        assert!(out.is_empty());
        tokio::time::advance(SHOWN_AFTER).await;
        assert!(row.is_due(Instant::now()) && row.due() == Instant::now());
        row.count(&[b'x'; 2_000]);
        row.draw(&mut out, Instant::now()).unwrap();
        assert_eq!((row.due() - Instant::now(), *row.drawn().lock()), (INTERVAL, 1));
        row.erase(&mut out).unwrap();
        row.erase(&mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "\r\x1b[K2 lines, 2.0 kB, 2…\r\x1b[K");
        let (mut out, mut hidden) = (Vec::new(), ProgressRow::new(|| None));
        hidden.draw(&mut out, Instant::now()).unwrap();
        assert_eq!((out.len(), *hidden.drawn().lock(), hidden.is_due(Instant::now())), (0, 0, false));
    }

    #[test]
    fn progress_has_lines_bytes_and_rate() {
        let seconds = Duration::from_secs;
        assert_eq!(progress(0, 0, Duration::ZERO), "0 lines, 0 B, 0 B/s");
        assert_eq!(progress(3, 999, seconds(3)), "3 lines, 999 B, 333 B/s");
        assert_eq!(progress(1_234_567, 123_456_789, seconds(10)), "1234567 lines, 123.5 MB, 12.3 MB/s");
    }
}
