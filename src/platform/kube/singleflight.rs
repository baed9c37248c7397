//! Equal reads of a log at the same moment share one answer of the API's, if that is small.
//!
//! Each reader goes at the pace of its own client, so only what is small enough to be kept for all of them is shared; of a larger
//! answer whoever comes first has what was read and what follows, and the others read on their own. Equal means of the same lease,
//! too: whoever asks has been authorised for that before.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_core::future::BoxFuture;
use futures_util::future::{FutureExt as _, Shared, WeakShared};
use futures_util::{StreamExt as _, stream};
use tokio::time::Instant;

use crate::model::line::Line;
use crate::model::position::Position;
use crate::platform::{Error, Tail, TailItem, TailRequest};

/// Most bytes of an answer that is shared, with what is kept of each of its lines: far more than a screen full of lines, and not much
/// for each of the few reads that there may be at once.
const SHARED_MAX_BYTES: usize = 256 * 1024;

/// An answer is shared with those who ask so soon after the first. It may lack what was printed since then, so this is what a person
/// calls the same moment.
const SAME_MOMENT: Duration = Duration::from_millis(100);

/// Reads under way. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedReads(Arc<Mutex<HashMap<TailRequest, Flight>>>);

#[derive(Debug)]
struct Flight {
    began: Instant,
    /// Ends with the last of those who wait for it.
    read: WeakShared<BoxFuture<'static, Arc<Outcome>>>,
}

/// What came of a read.
enum Outcome {
    /// All of it.
    Whole(Position, Vec<TailItem>),
    /// Too much, or it failed on the way: for the first to take.
    Open(Mutex<Option<Tail>>),
    Failed(Error),
}

// === impl SharedReads ===

impl SharedReads {
    /// What `open` opens for `request`, which does not follow; perhaps opened for somebody else who asks for the same.
    ///
    /// # Errors
    /// Those of `open`.
    pub(super) async fn tail<F>(&self, request: &TailRequest, open: impl Fn() -> F) -> Result<Tail, Error>
    where
        F: Future<Output = Result<Tail, Error>> + Send + 'static,
    {
        let outcome = self.join(request, &open).await;
        match &*outcome {
            Outcome::Whole(start, _) => {
                Ok(Tail { start: *start, unfinished: [false; 2], items: replay(Arc::clone(&outcome)) })
            }
            Outcome::Open(tail) => {
                let first = tail.lock().unwrap_or_else(PoisonError::into_inner).take();
                match first {
                    Some(tail) => Ok(tail),
                    None => open().await,
                }
            }
            Outcome::Failed(error) => Err(again(error)),
        }
    }

    /// The read for `request` that has just begun, or a new one.
    fn join<F>(&self, request: &TailRequest, open: impl Fn() -> F) -> Shared<BoxFuture<'static, Arc<Outcome>>>
    where
        F: Future<Output = Result<Tail, Error>> + Send + 'static,
    {
        // Nothing that is done under the lock leaves it half done.
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that are left have somebody who waits: no more than there are permits for history reads.
        flights.retain(|_, flight| flight.began.elapsed() < SAME_MOMENT && flight.read.upgrade().is_some());
        if let Some(read) = flights.get(request).and_then(|flight| flight.read.upgrade()) {
            return read;
        }
        let read = gather(open()).map(Arc::new).boxed().shared();
        if let Some(weak) = read.downgrade() {
            flights.insert(request.clone(), Flight { began: Instant::now(), read: weak });
        }
        read
    }
}

/// Reads all there is, if that is not too much.
async fn gather(opened: impl Future<Output = Result<Tail, Error>>) -> Outcome {
    let Tail { start, unfinished, mut items } = match opened.await {
        Ok(tail) => tail,
        Err(error) => return Outcome::Failed(error),
    };
    let (mut held, mut bytes) = (Vec::new(), 0);
    while let Some(item) = items.next().await {
        bytes += match &item {
            Ok(TailItem::Lines(batch)) => batch.data.len() + batch.lines.len() * size_of::<Line>(),
            Ok(TailItem::Gap(_) | TailItem::FollowUnavailable) => size_of::<TailItem>(),
            Err(_) => SHARED_MAX_BYTES + 1,
        };
        held.push(item);
        if bytes > SHARED_MAX_BYTES {
            let items = stream::iter(held).chain(items).boxed();
            return Outcome::Open(Mutex::new(Some(Tail { start, unfinished, items })));
        }
    }
    Outcome::Whole(start, held.into_iter().flatten().collect())
}

/// What was read, once more.
fn replay(outcome: Arc<Outcome>) -> stream::BoxStream<'static, Result<TailItem, Error>> {
    let items = (0..).map_while(move |index: usize| match &*outcome {
        Outcome::Whole(_, items) => items.get(index).cloned().map(Ok),
        Outcome::Open(_) | Outcome::Failed(_) => None,
    });
    stream::iter(items).boxed()
}

/// The same error, for somebody else.
fn again(error: &Error) -> Error {
    match error {
        Error::NotFound(why) => Error::NotFound(why.clone()),
        Error::Conflict(why) => Error::Conflict(why.clone()),
        Error::Broken(why) => Error::Broken(why.clone()),
        Error::Unavailable(why) => Error::Unavailable(why.clone()),
        Error::Io { .. } => Error::Unavailable(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
