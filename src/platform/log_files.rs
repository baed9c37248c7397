//! Reads and follows the log directory of one run of a container.
//!
//! The files are those of [`cri`](super::cri): the active one and rotated ones, perhaps compressed.
//! Guarantees:
//! - **No loss and no repeat** as long as the files still hold the lines, even if they are renamed,
//!   compressed or removed meanwhile. Where unread files may have been removed there is one inexact gap
//!   ([`GapCause::Rotated`]), also at the end.
//! - **Items depend on the content of the files alone**, positions included: not on the time and size of
//!   reads, nor on the start of the read (`seek` states its assumption). Lines come in the order of the
//!   records (`log_reader`).
//! - **No line waits for another.** A complete line is returned as soon as it is read. An unfinished one is
//!   held back for `UNFINISHED_WAIT`, so that most lines come whole, and is then returned as a piece.
//! - **Damage is a gap** ([`GapCause::Source`]): inexact for a record that cannot be parsed, a file that
//!   shrinks and the unreadable rest of a compressed file; exact for a record with a `lost` tag. The line of
//!   an incompletely written record ends with it, without a newline, and an inexact gap follows. A file that
//!   shrank and grew beyond its former size between two reads cannot be distinguished from one that only
//!   grew.
//! - **Bounded.** One read takes at most [`READ_MAX_BYTES`], on the blocking pool, and only when the stream
//!   is polled. A waiting tail holds one or two open files, a share of a directory watch, and part of an
//!   unfinished line. Dropping the stream frees them.
//!
//! Known limits: if the first pieces of a line were in a file that is gone, its rest is returned as a line,
//! also after a position within it. Old files must be removed oldest first, and never the active one
//! (kubelets keep at least two). If the clock goes back over a rotation, a time may occur twice, on both
//! sides of a removed file. Kubelets name rotated files by local time: at the end of daylight saving time,
//! files of the repeated hour are read in the wrong order. Runtimes write stdout and stderr independently: a
//! follower misses output that one stream still writes to a renamed file after the other has begun the new
//! one.
//!
//! [`GapCause::Rotated`]: crate::model::line::GapCause::Rotated
//! [`GapCause::Source`]: crate::model::line::GapCause::Source
//! [`READ_MAX_BYTES`]: crate::model::limits::READ_MAX_BYTES

mod file_order;
mod file_reader;
mod listing;
mod log_reader;
mod seek;
#[cfg(test)]
mod tests;

use std::time::Duration;
use std::vec;

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::sys::dir_watch::{DirWatch, Notifier, POLL};

use super::{Error, ReadFrom, Tail, TailItem};
use log_reader::{LogReader, ReadLimit};
use seek::{Seek, SeekOutcome};

pub use listing::{LogFiles, NeededStart};

/// How long a follower holds back an unfinished line. Runtimes write the pieces of a line within
/// microseconds, and a person does not notice a tenth of a second.
pub(super) const UNFINISHED_WAIT: Duration = Duration::from_millis(100);

/// Whether to wait for further output.
#[derive(Clone, Debug)]
pub enum FollowMode {
    /// The stream ends at the present end of the log. An unfinished line is returned as far as it is
    /// recorded, and may continue. If the run has ended, use [`FollowMode::UntilEnd`] with a cancelled token.
    No,
    /// The stream ends at the end of the log once the token is cancelled, which means that the run's last
    /// byte was written. A last line without a newline is returned then.
    UntilEnd(CancellationToken),
}

/// The state of the stream. Reads only when polled.
struct TailState {
    notifier: Notifier,
    log: LogReader,
    follow: FollowMode,
    /// Set when following.
    watch: Option<DirWatch>,
    items: vec::IntoIter<TailItem>,
    state: State,
    /// When the held-back line must be returned.
    due: Option<Instant>,
}

/// The next action once all items are returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Read,
    Wait,
    End,
}

/// Opens the log of one run.
///
/// [`ReadFrom::After`] starts with the next line, or the rest of it. A gap comes first in these cases:
/// - The next line may be gone.
/// - The log was rotated, and the position is before all lines or has the first time of the oldest file. This
///   gap may be superfluous: whether an older file existed is unknown.
/// - The position is after the end, because the files were replaced. Reading continues at the end.
/// - A gap without an own position (any but a `lost` record) is directly after the requested position. It is
///   repeated, because skipping it could hide a loss.
///
/// # Errors
/// [`Error::NotFound`] if the directory does not exist, or has no file of that run and `follow` does not wait
/// for one; [`Error::Io`] and [`Error::Unavailable`] if the files cannot be read. The stream's errors are the
/// latter two.
pub async fn open(
    notifier: &Notifier,
    log: LogFiles,
    from: ReadFrom,
    follow: FollowMode,
) -> Result<Tail, Error> {
    let log = blocking(notifier, move || {
        let exists = log.dir.try_exists().map_err(|error| log.io_error("failed to find", error))?;
        exists.then_some(log).ok_or_else(listing::not_found)
    })
    .await?;
    let limit = follow.limit();
    // Watched before the first listing, so that no change between the two is missed.
    let watch = (limit == ReadLimit::Growing).then(|| notifier.watch(&log.dir));
    let mut seek = blocking(notifier, move || Seek::new(&log, from, limit)).await?;
    let (log, start) = loop {
        match blocking(notifier, move || seek.step()).await? {
            SeekOutcome::Seeking(unfinished) => seek = unfinished,
            SeekOutcome::Found(log, start) => break (log, start),
        }
    };
    let unfinished = log.unfinished();
    let state = TailState {
        notifier: notifier.clone(),
        log,
        follow,
        watch,
        items: Vec::new().into_iter(),
        state: State::Read,
        due: None,
    };
    let items = stream::try_unfold(state, TailState::next).boxed();
    Ok(Tail { start, unfinished, items })
}

/// Waits until all files of a run are removed. Cancel safe.
pub(super) async fn removed(notifier: &Notifier, log: &LogFiles) {
    loop {
        let log = log.clone();
        if blocking(notifier, move || log.list()).await.is_ok_and(|files| files.is_empty()) {
            return;
        }
        // Not at each notification: a log may be written all the time.
        tokio::time::sleep(POLL).await;
    }
}

/// Runs `work` on the blocking pool. If the caller is dropped, the work, which is short, completes and its
/// result is discarded. In a simulation, runs it here.
async fn blocking<T: Send + 'static>(
    notifier: &Notifier,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    if let Some(disk) = notifier.simulated_disk() {
        let duration = disk.access().map_err(|error| Error::io("failed to read a log", error))?;
        // On the heap: streams of a real disk do not need the room.
        Box::pin(tokio::time::sleep(duration)).await;
        return work();
    }
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panicked| Err(Error::Broken(format!("reading a log: {panicked}"))))
}

// === impl FollowMode ===

impl FollowMode {
    fn limit(&self) -> ReadLimit {
        match self {
            Self::No => ReadLimit::Now,
            Self::UntilEnd(end) if end.is_cancelled() => ReadLimit::End,
            Self::UntilEnd(_) => ReadLimit::Growing,
        }
    }
}

// === impl TailState ===

impl TailState {
    async fn next(mut self) -> Result<Option<(TailItem, Self)>, Error> {
        loop {
            if let Some(item) = self.items.next() {
                return Ok(Some((item, self)));
            }
            match self.state {
                State::Read => self = self.read().await?,
                State::Wait => {
                    self.wait().await;
                    self.state = State::Read;
                }
                State::End => return Ok(None),
            }
        }
    }

    async fn read(self) -> Result<Self, Error> {
        // Checked before reading: if the run has ended by now, a read to the end finds everything.
        let limit = self.follow.limit();
        let is_due = self.due.is_some_and(|due| due <= Instant::now());
        let mut log = self.log;
        let (mut log, items, state) = blocking(&self.notifier, move || {
            let at_end = log.read(limit)?;
            let is_last = at_end && limit != ReadLimit::Growing;
            let batcher = log.batcher();
            let items =
                if is_due || is_last { batcher.take_items(at_end) } else { batcher.take_finished(at_end) };
            let state = match (at_end, limit) {
                (false, _) => State::Read,
                (true, ReadLimit::Growing) => State::Wait,
                (true, ReadLimit::Now | ReadLimit::End) => State::End,
            };
            Ok((log, items, state))
        })
        .await?;
        let due = self.due.filter(|_| !is_due).unwrap_or_else(|| Instant::now() + UNFINISHED_WAIT);
        let due = log.batcher().holds_unfinished().then_some(due);
        Ok(Self { log, items: items.into_iter(), state, due, ..self })
    }

    async fn wait(&mut self) {
        if let (Some(watch), FollowMode::UntilEnd(end)) = (&mut self.watch, &self.follow) {
            let due = self.due;
            tokio::select! {
                () = end.cancelled() => {}
                () = watch.changed() => {}
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }
}
