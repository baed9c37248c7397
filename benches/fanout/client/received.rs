//! The lines that are published, and the judgement on what a follower got of them.
//!
//! A line is its number, the time at which it was published, filler, and a newline. Of every follower the first whole line of
//! each read is looked at: its number must be the one that the bytes before it lead to, so nothing was lost or repeated. One
//! follower's bytes are all looked at, and asked of the oracle that the product's own tests ask.

use std::time::Instant;

use leasemux::loss_checker::{LossChecker, Order, Start};
use leasemux::model::proto::lease::ServiceLogs;

use crate::server::SERVICE;

/// Digits of a line's number, of its time in microseconds, and a space behind each.
const NUMBER: usize = 10;
const TIME: usize = 15;
const HEAD: usize = NUMBER + 1 + TIME + 1;

/// The shortest line.
pub(crate) const LINE_MIN_BYTES: u64 = HEAD as u64 + 1;

/// The clock of publisher and followers.
#[derive(Clone, Copy)]
pub(crate) struct Clock(Instant);

/// What a follower got.
pub(crate) struct Received {
    size: u64,
    clock: Clock,
    /// Its next line has a number greater by so much.
    step: u64,
    /// Number of the first line it got.
    first: Option<u64>,
    /// All log bytes since then.
    bytes: u64,
    /// How long lines took, in microseconds: the oldest of each read, from [`Received::begin`] on.
    pub(crate) delays: Vec<u32>,
    /// Of one follower.
    judge: Option<LossChecker>,
}

/// Puts line `number` into `out`.
pub(crate) fn line(number: u64, size: u64, clock: Clock, out: &mut Vec<u8>) {
    let end = out.len() + usize::try_from(size).unwrap_or(HEAD) - 1;
    digits(number, NUMBER, out);
    digits(clock.micros(), TIME, out);
    out.resize(end, b'x');
    out.push(b'\n');
}

/// So many digits, and a space.
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
    /// Nothing so far, of a log that has every `step`th line. `judged`: all of it will be looked at.
    pub(crate) fn new(size: u64, clock: Clock, step: u64, judged: bool) -> Self {
        let judge = judged.then(|| LossChecker::new(Start::Anywhere, Order::Exact));
        Self { size, clock, step, first: None, bytes: 0, delays: Vec::new(), judge }
    }

    /// Number of the last whole line that has come, if one has.
    pub(crate) fn last(&self) -> Option<u64> {
        let before = (self.bytes / self.size).checked_sub(1)?;
        self.first.map(|first| first + before * self.step)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Measuring begins.
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
            self.look(head, self.bytes + skip)?;
        } else if self.first.is_none() {
            return Err("the first line is not whole".to_owned());
        }
        if self.judge.is_some() {
            self.judge(logs)?;
        }
        self.bytes += logs.len() as u64;
        Ok(())
    }

    /// Looks at the head of the line that begins behind so many bytes.
    fn look(&mut self, head: &[u8], behind: u64) -> Result<(), String> {
        let number = |from, digits| {
            let text = std::str::from_utf8(head.get(from..from + digits)?).ok()?;
            text.parse::<u64>().ok()
        };
        let (Some(got), Some(time)) = (number(0, NUMBER), number(NUMBER + 1, TIME)) else {
            return Err(format!("not a line: {}", String::from_utf8_lossy(head)));
        };
        let expected = *self.first.get_or_insert(got) + behind / self.size * self.step;
        if got != expected {
            return Err(format!("line {got} came in place of line {expected}"));
        }
        self.delays.push(u32::try_from(self.clock.micros().saturating_sub(time)).unwrap_or(u32::MAX));
        Ok(())
    }

    fn judge(&mut self, logs: &[u8]) -> Result<(), String> {
        let Some(oracle) = &mut self.judge else { return Ok(()) };
        let entry =
            ServiceLogs { name: SERVICE.to_owned(), logs: logs.to_vec().into(), ..ServiceLogs::default() };
        oracle.feed(&entry);
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

    /// Asks whether all lines up to `last`, from the first one that came, have come.
    pub(crate) fn verdict(&self, last: u64) -> Result<(), String> {
        let got = self.last().unwrap_or(0);
        if got > last || got + self.step <= last || !self.bytes.is_multiple_of(self.size) {
            return Err(format!("a follower has got lines up to {got}, of {last} published"));
        }
        match &self.judge {
            Some(oracle) => oracle.verdict().map(|_| ()).map_err(|violation| violation.to_string()),
            None => Ok(()),
        }
    }
}
