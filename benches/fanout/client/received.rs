//! The format of published lines, and the check of a follower's received lines.
//!
//! A line has its number, its time of publication, filler and a newline. Of each follower, the first whole
//! line of each read is checked: its number must match the bytes received before it, so no line was lost or
//! repeated. For one follower, all bytes are checked, with the loss checker of the tests.

use std::time::Instant;

use leasemux::loss_checker::{LossChecker, Order, Start};
use leasemux::model::proto::lease::ServiceLogs;

use crate::server::SERVICE;

/// Digits of a line's number and of its time in microseconds. A space follows each.
const NUMBER: usize = 10;
const TIME: usize = 15;
const HEAD: usize = NUMBER + 1 + TIME + 1;

/// Length of the shortest line.
pub(crate) const LINE_MIN_BYTES: u64 = HEAD as u64 + 1;

/// The clock of publisher and followers.
#[derive(Clone, Copy)]
pub(crate) struct Clock(Instant);

/// The lines that a follower has received.
pub(crate) struct Received {
    size: u64,
    clock: Clock,
    /// Difference between the numbers of consecutive lines.
    step: u64,
    /// Number of the first line.
    first: Option<u64>,
    /// Log bytes since the first line.
    bytes: u64,
    /// Delays in microseconds, of the oldest line of each read since [`Received::begin`].
    pub(crate) delays: Vec<u32>,
    /// Set for one follower.
    checker: Option<LossChecker>,
}

/// Appends line `number` to `out`.
pub(crate) fn line(number: u64, size: u64, clock: Clock, out: &mut Vec<u8>) {
    let end = out.len() + usize::try_from(size).unwrap_or(HEAD) - 1;
    digits(number, NUMBER, out);
    digits(clock.micros(), TIME, out);
    out.resize(end, b'x');
    out.push(b'\n');
}

/// Appends `count` digits and a space.
fn digits(mut value: u64, count: usize, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + count, b'0');
    for digit in out.iter_mut().skip(start).rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
    out.push(b' ');
}

// === impl Clock ===

impl Clock {
    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }

    fn micros(self) -> u64 {
        u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

// === impl Received ===

impl Received {
    /// Creates the record of a log that has every `step`th line. `check_all`: checks all bytes.
    pub(crate) fn new(size: u64, clock: Clock, step: u64, check_all: bool) -> Self {
        let checker = check_all.then(|| LossChecker::new(Start::Anywhere, Order::Exact));
        Self { size, clock, step, first: None, bytes: 0, delays: Vec::new(), checker }
    }

    /// Returns the number of the last complete line.
    pub(crate) fn last(&self) -> Option<u64> {
        let before = (self.bytes / self.size).checked_sub(1)?;
        self.first.map(|first| first + before * self.step)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Starts a measurement: forgets earlier delays.
    pub(crate) fn begin(&mut self) {
        self.delays.clear();
    }

    pub(crate) fn take(&mut self, logs: &[u8]) -> Result<(), String> {
        if logs.is_empty() {
            return Ok(());
        }
        let into = self.bytes % self.size;
        let skip = (self.size - into) % self.size;
        let head = usize::try_from(skip).ok().and_then(|skip| logs.get(skip..skip + HEAD));
        if let Some(head) = head {
            self.check_head(head, self.bytes + skip)?;
        } else if self.first.is_none() {
            return Err("the first line is not whole".to_owned());
        }
        if self.checker.is_some() {
            self.check_all(logs)?;
        }
        self.bytes += logs.len() as u64;
        Ok(())
    }

    /// Checks the head of the line that starts after `before` bytes.
    fn check_head(&mut self, head: &[u8], before: u64) -> Result<(), String> {
        let number = |from, digits| {
            let text = std::str::from_utf8(head.get(from..from + digits)?).ok()?;
            text.parse::<u64>().ok()
        };
        let (Some(got), Some(time)) = (number(0, NUMBER), number(NUMBER + 1, TIME)) else {
            return Err(format!("not a line: {}", String::from_utf8_lossy(head)));
        };
        let expected = *self.first.get_or_insert(got) + before / self.size * self.step;
        if got != expected {
            return Err(format!("received line {got} instead of line {expected}"));
        }
        self.delays.push(u32::try_from(self.clock.micros().saturating_sub(time)).unwrap_or(u32::MAX));
        Ok(())
    }

    fn check_all(&mut self, logs: &[u8]) -> Result<(), String> {
        let Some(checker) = &mut self.checker else { return Ok(()) };
        let entry =
            ServiceLogs { name: SERVICE.to_owned(), logs: logs.to_vec().into(), ..ServiceLogs::default() };
        checker.feed(&entry);
        let mut at = usize::try_from(self.bytes % self.size).unwrap_or(0);
        let size = usize::try_from(self.size).unwrap_or(1);
        let filler = |at| if at + 1 == size { b'\n' } else { b'x' };
        for byte in logs {
            if at >= HEAD && *byte != filler(at) {
                return Err("a line was changed".to_owned());
            }
            at = (at + 1) % size;
        }
        Ok(())
    }

    /// Checks that all lines from the first received one to `last` were received.
    pub(crate) fn verdict(&self, last: u64) -> Result<(), String> {
        let got = self.last().unwrap_or(0);
        if got > last || got + self.step <= last || !self.bytes.is_multiple_of(self.size) {
            return Err(format!("a follower received lines up to {got}, of {last} published"));
        }
        match &self.checker {
            Some(checker) => checker.verdict().map(|_| ()).map_err(|violation| violation.to_string()),
            None => Ok(()),
        }
    }
}
