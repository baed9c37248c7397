//! Streams of gRPC as the frames of a websocket.
//!
//! Nothing is read ahead: a browser that takes no frames stops the stream of gRPC by its flow control, so
//! that the gateway measures and reports the lag.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_core::future::BoxFuture;
use futures_util::{FutureExt as _, stream};
use http_body::{Body, Frame};
use http_body_util::StreamBody;
use tonic::{Status, Streaming};

use super::end::End;
use crate::client::error::CallError;
use crate::edge::websocket::CloseOf;
use crate::logs::websocket::push_text_message;
use crate::stream::{Messages, Parts, StreamControl};

/// Most bytes of objects that are sent together; one more may exceed it. Small enough for a low delay, and
/// large enough that a write costs little.
const BATCH_MAX_BYTES: usize = 64 * 1024;

/// The frames of a websocket.
pub(super) type Frames = Pin<Box<dyn Body<Data = Messages, Error = Infallible> + Send>>;

/// A call whose response is a stream.
pub(super) type Call<T> = BoxFuture<'static, Result<Streaming<T>, CallError>>;

/// Reads a stream of gRPC and encodes its messages.
struct Reader<T> {
    stage: Stage<T>,
    /// Appends the objects of a message, each as a frame.
    encode: fn(T, &mut Vec<u8>),
    ended: Arc<OnceLock<End>>,
    control: Arc<StreamControl>,
}

enum Stage<T> {
    /// Waits for the response. Becomes `Streaming`, or `Ended` if the call fails.
    Calling(Call<T>),
    /// Reads messages. Becomes `Ended` with the stream.
    Streaming(Box<Streaming<T>>),
    /// The last object was sent.
    Ended,
}

/// Returns the frames of a call's response, and their close frame. `encode` appends the frames of a message.
pub(super) fn frames<T: Send + 'static>(
    call: Call<T>,
    encode: fn(T, &mut Vec<u8>),
    control: &Arc<StreamControl>,
) -> (Frames, CloseOf) {
    let ended = Arc::new(OnceLock::new());
    let reader = Reader {
        stage: Stage::Calling(call),
        encode,
        ended: Arc::clone(&ended),
        control: Arc::clone(control),
    };
    let close_of = move || ended.get().map_or_else(|| End::complete().close(), End::close);
    (Box::pin(StreamBody::new(stream::unfold(reader, Reader::next))), Box::new(close_of))
}

// === impl Reader ===

impl<T: Send + 'static> Reader<T> {
    /// Returns the next frames; `None` after the end. Not cancel safe: `unfold` keeps the future.
    async fn next(mut self) -> Option<(Result<Frame<Messages>, Infallible>, Self)> {
        let mut batch = Vec::new();
        while batch.is_empty() {
            match &mut self.stage {
                Stage::Ended => return None,
                Stage::Calling(call) => match call.await {
                    Ok(streaming) => self.stage = Stage::Streaming(Box::new(streaming)),
                    Err(error) => self.end(&End::failed(&error), &mut batch),
                },
                Stage::Streaming(streaming) => {
                    let first = streaming.message().await;
                    self.take(first, &mut batch);
                    self.take_ready(&mut batch);
                    // While messages are always ready, other tasks of the thread run too.
                    tokio::task::consume_budget().await;
                }
            }
        }
        let messages = Messages::new(Parts::from([Bytes::from(batch)]), Arc::clone(&self.control));
        Some((Ok(Frame::data(messages)), self))
    }

    /// Adds messages that have arrived already.
    fn take_ready(&mut self, batch: &mut Vec<u8>) {
        while batch.len() < BATCH_MAX_BYTES
            && let Stage::Streaming(streaming) = &mut self.stage
            // Cancel safe: polling `message` once loses nothing.
            && let Some(ready) = streaming.message().now_or_never()
        {
            self.take(ready, batch);
        }
    }

    fn take(&mut self, message: Result<Option<T>, Status>, batch: &mut Vec<u8>) {
        match message {
            Ok(Some(message)) => (self.encode)(message, batch),
            Ok(None) => self.end(&End::complete(), batch),
            Err(status) => self.end(&End::failed(&status.into()), batch),
        }
    }

    fn end(&mut self, end: &End, batch: &mut Vec<u8>) {
        if let Some(object) = end.object() {
            push_text_message(&object, batch);
        }
        let _ = self.ended.set(end.clone());
        self.stage = Stage::Ended;
    }
}
