//! Where an actor's lines come from: one log after the other, opened, read, opened again.

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::StreamExt as _;
use tokio::time::Instant;

use crate::platform::{self, Tail, TailItem};

/// Where lines come from just now.
pub(super) enum Source {
    /// Nothing to read: waiting for the view.
    Idle,
    /// A log is being opened.
    Opening(BoxFuture<'static, Result<Tail, platform::Error>>),
    /// Reading.
    Reading(BoxStream<'static, Result<TailItem, platform::Error>>),
    /// It failed; it will be opened again when the time has come.
    Retry(Instant),
    /// The log has ended; waiting for the view to say how.
    Ended,
}

/// What the source answered.
pub(super) enum SourceEvent {
    Opened(Result<Tail, platform::Error>),
    Item(Option<Result<TailItem, platform::Error>>),
    Again,
}

// === impl Source ===

impl Source {
    /// What comes next. Nothing is lost if it is cancelled.
    pub(super) async fn next(&mut self) -> SourceEvent {
        match self {
            Self::Idle | Self::Ended => std::future::pending().await,
            Self::Opening(opening) => SourceEvent::Opened(opening.await),
            Self::Reading(items) => SourceEvent::Item(items.next().await),
            Self::Retry(at) => {
                tokio::time::sleep_until(*at).await;
                SourceEvent::Again
            }
        }
    }
}
