//! Reads the log directory of one run of a container, and follows it.
//!
//! The files are those of [`cri`](super::cri): one that is being written, and rotated ones, perhaps compressed. What is promised:
//! - **No hole and no repeat** as long as the files still hold the lines, however they are renamed, replaced by compressed copies or
//!   removed meanwhile. Where files may be gone that were not read there is one inexact gap ([`GapCause::Rotated`]), also at the end.
//! - **What is delivered depends on the files' content alone**, positions included: not on when and in what portions it was read,
//!   nor on where the reading began (`seek` says what that trusts). Output comes in the order of the records (`assemble`).
//! - **No line waits for another.** A finished line is delivered as soon as it is read. An unfinished one is held back for
//!   `UNFINISHED_WAIT` so that most lines come whole, and is then delivered as a piece.
//! - A record that cannot be parsed, a file that shrinks under the reader and a compressed file that cannot be read to its end are
//!   inexact gaps ([`GapCause::Source`]); a record with a `lost` tag is an exact one. Of a record that was not written whole the
//!   line ends where it does, without a newline, and an inexact gap follows. A file that shrank and has grown beyond its former
//!   size before anybody looked cannot be told from one that only grew.
//! - **Bounded**: at most [`READ_MAX_BYTES`] are read at a time, on the blocking pool, and only when the stream is polled. A tail
//!   that waits holds one or two open files, a share of a directory watch, and part of an unfinished line. Dropping the stream ends all of it.
//!
//! After a position ([`ReadFrom::After`]) the next line comes, or the rest of it. If that line is no longer there, or may not be, a gap
//! comes first. This may be one more than needed in one case: the position is within the first lines of equal time of the oldest
//! file, or before all lines, and the log has been rotated; whether the oldest file is the first there was cannot be seen. A
//! position behind the end (somebody replaced the files) is a gap as well, and the reading goes on at the end. Gaps have no position
//! of their own: one that lies directly behind the position is told again rather than not at all.
//!
//! What files cannot tell, and so is not promised: of a line whose first pieces were in a file that is gone, the rest comes as a
//! line of its own, also to one who goes on behind it. Old files are removed oldest first, and never all but the one being written
//! (kubelets keep two at least). Where the clock goes back over a rotation, the same time may occur again behind a file that is
//! gone. Kubelets name rotated files by their local time: of a node that has summer time, those of the hour that comes twice at its
//! end are taken in a wrong order. Runtimes write stdout and stderr each by itself: what one of them still writes to a renamed file after the other has begun
//! the new one is missed by who follows at that moment, for that file has been left.
//!
//! [`GapCause::Rotated`]: crate::model::line::GapCause::Rotated
//! [`GapCause::Source`]: crate::model::line::GapCause::Source
//! [`READ_MAX_BYTES`]: crate::model::limits::READ_MAX_BYTES

mod assemble;
mod file_order;
mod file_reader;
mod files;
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

use crate::sys::notify::{DirWatch, Notifier};

use super::{Error, ReadFrom, Tail, TailItem};
use log_reader::{LogReader, ReadLimit};
use seek::{Seek, SeekOutcome};

pub use files::LogFiles;

/// How long an unfinished line at the end of a log that is followed waits for its end before it is delivered as a piece. Runtimes
/// write the pieces of a line within microseconds; a person does not notice a tenth of a second.
pub(super) const UNFINISHED_WAIT: Duration = Duration::from_millis(100);

/// Whether to wait for what is written later.
#[derive(Clone, Debug)]
pub enum FollowMode {
    /// The stream ends where the log ends when it gets there. A line that is not finished by then is delivered as far as it is
    /// recorded, and may go on later. If the run has ended, use [`FollowMode::UntilEnd`] with a cancelled token.
    No,
    /// The stream ends where the log ends once the token is cancelled, which says that the last byte of the run was written. A
    /// last line without a newline is delivered then.
    UntilEnd(CancellationToken),
}

/// Reads on when polled.
struct Reader {
    walk: LogReader,
    follow: FollowMode,
    /// Set if it follows.
    watch: Option<DirWatch>,
    items: vec::IntoIter<TailItem>,
    state: State,
    /// When the unfinished line that is held back is delivered.
    due: Option<Instant>,
}

/// What a reader does once it has handed out its items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Read,
    Wait,
    End,
}

/// Opens the log of one run. See [`Tail`] for what the stream delivers, and above for how.
///
/// # Errors
/// [`Error::NotFound`] if the directory is not there, or holds no file of that run and none is to come;
/// [`Error::Io`] and [`Error::Unavailable`] if the files cannot be read. The stream's errors are the latter two.
pub async fn open(
    notifier: &Notifier,
    log: LogFiles,
    from: ReadFrom,
    follow: FollowMode,
) -> Result<Tail, Error> {
    if !tokio::fs::try_exists(&log.dir).await.map_err(|error| log.failed("looking for", error))? {
        return Err(files::missing());
    }
    let until = follow.until();
    // Before the first look, so that nothing happens between the two.
    let watch = (until == ReadLimit::Growing).then(|| notifier.watch(&log.dir));
    let mut seek = blocking(move || Seek::new(log, from, until)).await?;
    let (walk, start) = loop {
        match blocking(move || seek.step()).await? {
            SeekOutcome::Seeking(further) => seek = further,
            SeekOutcome::Found(walk, start) => break (walk, start),
        }
    };
    let unfinished = walk.unfinished();
    let reader = Reader { walk, follow, watch, items: Vec::new().into_iter(), state: State::Read, due: None };
    let items = stream::try_unfold(reader, Reader::next).boxed();
    Ok(Tail { start, unfinished, items })
}

/// Runs `work` where it may block. If the caller is dropped it runs to its end, which is near, and its outcome is dropped.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::Broken(format!("reading a log: {error}"))),
    }
}

// === impl Follow ===

impl FollowMode {
    fn until(&self) -> ReadLimit {
        match self {
            Self::No => ReadLimit::Now,
            Self::UntilEnd(end) if end.is_cancelled() => ReadLimit::End,
            Self::UntilEnd(_) => ReadLimit::Growing,
        }
    }
}

// === impl Reader ===

impl Reader {
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
        // Asked before reading, so that what is read up to the end is all there will be.
        let until = self.follow.until();
        let is_due = self.due.is_some_and(|due| due <= Instant::now());
        let mut walk = self.walk;
        let (walk, items, state) = blocking(move || {
            let idle = walk.pull(until)?;
            let is_end = idle && until != ReadLimit::Growing;
            let items = if is_due || is_end { walk.take(idle) } else { walk.take_finished(idle) };
            let state = match (idle, until) {
                (false, _) => State::Read,
                (true, ReadLimit::Growing) => State::Wait,
                (true, ReadLimit::Now | ReadLimit::End) => State::End,
            };
            Ok((walk, items, state))
        })
        .await?;
        let due = self.due.filter(|_| !is_due).unwrap_or_else(|| Instant::now() + UNFINISHED_WAIT);
        let due = walk.holds_unfinished().then_some(due);
        Ok(Self { walk, items: items.into_iter(), state, due, ..self })
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
