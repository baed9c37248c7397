//! A follower, and the check that it receives every line once: delivered and reported as lost together are
//! what was printed.

use leasemux::loss_checker::{LossChecker, Order, Start};
use leasemux::model::line::{Line, LineBatch, SourceGap};
use leasemux::model::proto::lease::{Cursor, Gap, LinePart, ServiceLogs};

use super::source::Source;

/// One follower of one gateway.
pub(crate) struct Follower {
    checker: LossChecker,
    /// Run, slot and offset of the next byte; `None` until the first line has begun.
    next: Option<(usize, usize, usize)>,
    /// A gap of unknown size: the next line tells where it ends.
    is_lost: bool,
    pub(crate) lines: u64,
}

// === impl Follower ===

impl Follower {
    pub(crate) fn new() -> Self {
        Self {
            checker: LossChecker::new(Start::Anywhere, Order::Exact),
            next: None,
            is_lost: false,
            lines: 0,
        }
    }

    /// Whether it has received the newest line.
    pub(crate) fn is_at_end(&self, source: &Source) -> bool {
        self.next.is_some_and(|(run, slot, _)| {
            run == source.runs.len() - 1 && slot == source.runs[run].slots.len()
        })
    }

    pub(crate) fn place(&self) -> Option<(usize, usize, usize)> {
        self.next
    }

    /// Receives lines.
    pub(crate) fn lines(&mut self, source: &Source, run: usize, batch: &LineBatch) -> Result<(), String> {
        for (index, line) in batch.lines.iter().enumerate() {
            self.line(source, run, batch.bytes(index), line)?;
        }
        self.verdict()
    }

    fn line(&mut self, source: &Source, run: usize, bytes: &[u8], line: &Line) -> Result<(), String> {
        let text = String::from_utf8_lossy(bytes);
        if self.next.is_none() || self.is_lost {
            if line.continues {
                // A follower begins with a whole line; after a gap of unknown size no line can be checked
                // before.
                return if self.next.is_none() {
                    Ok(())
                } else {
                    Err(format!("continues after a gap: {text:?}"))
                };
            }
            let number = source.runs[run]
                .slots
                .iter()
                .position(|slot| slot.text.starts_with(bytes) && slot.start_matches(line));
            let slot = number.ok_or_else(|| format!("never printed: {text:?}"))?;
            if self.next.is_some_and(|(known, before, _)| (known, before) > (run, slot)) {
                return Err(format!("again after a gap: {text:?}"));
            }
            (self.next, self.is_lost) = (Some((run, slot, 0)), false);
        }
        let Some((expected_run, slot, offset)) = self.next else { return Ok(()) };
        let (expected_run, slot) = next_run(source, (expected_run, slot, offset), run);
        let printed = source.runs[expected_run].slots.get(slot);
        let rest = printed.and_then(|slot| slot.text.get(offset..)).unwrap_or_default();
        if run != expected_run || !rest.starts_with(bytes) || (bytes.len() == rest.len()) != line.ends {
            let rest = String::from_utf8_lossy(rest);
            return Err(format!("{text:?} of run {run}, expected {rest:?} of run {expected_run}"));
        }
        self.next = Some(if line.ends { (run, slot + 1, 0) } else { (run, slot, offset + bytes.len()) });
        self.lines += u64::from(line.ends);
        let is_piece = line.continues || !line.ends;
        let part = is_piece.then_some(LinePart { stream: 0, continues: line.continues, more: !line.ends });
        self.checker.feed(&ServiceLogs { logs: bytes.to_vec().into(), part, ..entry(source, run) });
        Ok(())
    }

    /// Receives a gap.
    pub(crate) fn gap(&mut self, source: &Source, run: usize, gap: &SourceGap) -> Result<(), String> {
        let Some(next) = self.next else { return Ok(()) };
        let SourceGap { mut lines, mut bytes, exact, .. } = *gap;
        let ((expected_run, mut slot), mut offset) = (next_run(source, next, run), next.2);
        if run != expected_run {
            return Err(format!("a gap of run {run} after run {expected_run}"));
        }
        // After a gap of unknown size nobody knows where an exact one ends.
        if exact && !self.is_lost {
            while lines > 0 {
                let printed = source.runs[run].slots.get(slot).ok_or("a gap after the end of the log")?;
                let rest = lines
                    .checked_sub(printed.lines())
                    .zip(bytes.checked_sub(printed.bytes() - offset as u64));
                (lines, bytes) = rest.ok_or_else(|| format!("{gap:?} ends within {printed:?}"))?;
                (slot, offset) = (slot + 1, 0);
            }
            if bytes > 0 {
                return Err(format!("{gap:?} has {bytes} bytes too many"));
            }
        }
        self.next = Some((run, slot, offset));
        self.is_lost |= !exact;
        let SourceGap { lines, bytes, .. } = *gap;
        let gap = Gap { lines, bytes, exact, ..Gap::default() };
        self.checker.feed(&ServiceLogs { gap: Some(gap), ..entry(source, run) });
        self.verdict()
    }

    fn verdict(&self) -> Result<(), String> {
        self.checker.verdict().map(drop).map_err(|violation| violation.to_string())
    }
}

/// Returns the next run and slot: the first one of `run`, if the runs before it have no more lines.
fn next_run(source: &Source, (at_run, slot, offset): (usize, usize, usize), run: usize) -> (usize, usize) {
    let is_at_end = offset == 0 && slot == source.runs[at_run].slots.len();
    let between = source.runs.get(at_run + 1..run).unwrap_or_default();
    let is_next = run > at_run && is_at_end && between.iter().all(|run| run.slots.is_empty());
    if is_next { (run, 0) } else { (at_run, slot) }
}

fn entry(source: &Source, run: usize) -> ServiceLogs {
    let instance = source.runs[run].instance.to_string();
    let cursor = Cursor { service: "web".to_owned(), instance, ..Cursor::default() };
    ServiceLogs { name: "web".to_owned(), cursor: Some(cursor), ..ServiceLogs::default() }
}
