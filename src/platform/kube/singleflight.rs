//! Lets concurrent equal reads of a log share one upstream call, if its result is small.
//!
//! Each reader goes at its own client's pace, so only a result that can be held for all of them is shared.
//! The first reader of a larger one gets what was read and the open tail; the others open their own. Equal
//! includes the lease, for which each caller has been authorised.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_core::future::BoxFuture;
use futures_util::future::{FutureExt as _, Shared, WeakShared};
use futures_util::{StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::model::line::Line;
use crate::model::position::Position;
use crate::platform::{Error, Tail, TailItem, TailRequest};

/// Most bytes of a shared result, lines included: far more than a screen, and little for each of the few
/// concurrent reads.
const SHARED_MAX_BYTES: usize = 256 * 1024;

/// Longest time after the first request in which others share its result. The result may lack lines printed
/// since then, so it is what a person calls the same moment.
const SAME_MOMENT: Duration = Duration::from_millis(100);

/// Running reads. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedReads(Arc<Mutex<HashMap<TailRequest, Flight>>>);

#[derive(Debug)]
struct Flight {
    began: Instant,
    /// Weak: a read ends when its last reader is dropped.
    read: WeakShared<BoxFuture<'static, Arc<Outcome>>>,
}

/// The result of a read.
enum Outcome {
    /// The whole log.
    Whole(Position, Arc<[TailItem]>),
    /// It was too long, or failed on the way: the first reader takes the tail.
    Open(Mutex<Option<Tail>>),
    Failed(Error),
}

// === impl SharedReads ===

impl SharedReads {
    /// Opens `request`, which does not follow, with `open`; or shares the result of an equal read that has
    /// just begun.
    ///
    /// # Errors
    /// Those of `open`.
    pub(super) async fn tail<F>(&self, request: &TailRequest, open: impl Fn() -> F) -> Result<Tail, Error>
    where
        F: Future<Output = Result<Tail, Error>> + Send + 'static,
    {
        let outcome = self.join(request, &open).await;
        match &*outcome {
            Outcome::Whole(start, items) => {
                let items = Arc::clone(items);
                let items = (0..items.len()).map(move |index| Ok(items[index].clone()));
                Ok(Tail { start: *start, unfinished: [false; 2], items: stream::iter(items).boxed() })
            }
            Outcome::Open(tail) => {
                let first = tail.lock().take();
                match first {
                    Some(tail) => Ok(tail),
                    None => open().await,
                }
            }
            Outcome::Failed(error) => Err(error.clone()),
        }
    }

    /// Returns the read of `request` that has just begun, or a new one.
    fn join<F>(&self, request: &TailRequest, open: impl Fn() -> F) -> Shared<BoxFuture<'static, Arc<Outcome>>>
    where
        F: Future<Output = Result<Tail, Error>> + Send + 'static,
    {
        let mut flights = self.0.lock();
        // The remaining ones have readers: no more than the backfill limiter has permits.
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

/// Reads the whole log, unless it is too long.
async fn gather(opened: impl Future<Output = Result<Tail, Error>>) -> Outcome {
    let Tail { start, unfinished, mut items } = match opened.await {
        Ok(tail) => tail,
        Err(error) => return Outcome::Failed(error),
    };
    let (mut held, mut bytes) = (Vec::new(), 0);
    while let Some(item) = items.next().await {
        bytes += match &item {
            Ok(TailItem::Lines(batch)) => batch.data.len() + batch.lines.len() * size_of::<Line>(),
            Ok(_) => size_of::<TailItem>(),
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

#[cfg(test)]
mod tests;
