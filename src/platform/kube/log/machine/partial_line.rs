//! A line that was delivered in part, and its continuation in another response.

use crate::model::time::LogTime;
use crate::platform::kube::log::overlap::LineHash;

/// A line that was delivered in part. A line of a later response continues it if it has the same time and
/// begins with the delivered bytes.
#[derive(Debug, Default)]
pub(super) struct PartialLine {
    /// Hash of the delivered bytes.
    delivered: LineHash,
    /// Set when its response ends: its time, and the bytes that were read and not delivered.
    cut: Option<(LogTime, Vec<u8>)>,
    /// Delivered bytes that the current response has not repeated yet.
    skip: u64,
    /// Hash of the bytes that the current response has repeated.
    repeated: LineHash,
}

// === impl PartialLine ===

impl PartialLine {
    /// Begins a response that repeats the line, of which `delivered` bytes were delivered.
    pub(super) fn begin_response(&mut self, delivered: u64) {
        (self.skip, self.repeated) = (delivered, LineHash::default());
    }

    /// Returns whether the current response has yet to repeat delivered bytes.
    pub(super) fn is_skipping(&self) -> bool {
        self.skip > 0
    }

    /// Takes further bytes of a line that may continue this one. Returns how many of them were delivered
    /// before, or `None` if it is another line.
    pub(super) fn skip(&mut self, time: LogTime, bytes: &[u8], ends: bool) -> Option<usize> {
        let len = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        self.repeated.push(&bytes[..len]);
        self.skip -= len as u64;
        let differs = if self.skip > 0 { ends } else { self.repeated.value() != self.delivered.value() };
        if ends {
            self.skip = 0;
        }
        let is_other = self.cut.as_ref().is_some_and(|(cut, _)| *cut != time || differs);
        (!is_other).then_some(len)
    }

    /// Takes delivered bytes. With `ends` the next line begins.
    pub(super) fn deliver(&mut self, bytes: &[u8], ends: bool) {
        self.cut = None;
        if ends {
            self.delivered = LineHash::default();
        } else {
            self.delivered.push(bytes);
        }
    }

    /// Ends a response: `rest` was read and not delivered.
    pub(super) fn cut(&mut self, time: LogTime, rest: Vec<u8>) {
        self.cut = Some((time, rest));
    }

    /// Gives the line up, because the next line is another one: returns its time and its last known bytes.
    pub(super) fn give_up(&mut self) -> Option<(LogTime, Vec<u8>)> {
        let cut = self.cut.take()?;
        self.skip = 0;
        Some(cut)
    }
}
