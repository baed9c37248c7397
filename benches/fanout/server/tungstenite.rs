//! A websocket server with a library: tokio-tungstenite and one broadcast channel. The text of each frame is
//! made once; the library frames and copies it for each follower.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::SinkExt as _;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::{Listeners, SERVICE};
use crate::Result;

/// Batches of lines, as they were read. More than the publisher leaves outstanding, so that no follower lags.
const CHANNEL_BATCHES: usize = 4_096;

/// Most bytes per read from the publisher.
const READ_BYTES: usize = 256 * 1024;

type Batch = Arc<[Utf8Bytes]>;

pub(super) fn serve(listeners: Listeners) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let followers = TcpListener::from_std(listeners.followers)?;
        let ingest = TcpListener::from_std(listeners.ingest)?;
        let acceptor = TlsAcceptor::from(listeners.tls.ok_or("websockets are measured over TLS")?);
        let (batches, _) = broadcast::channel(CHANNEL_BATCHES);
        let mut connections = JoinSet::new();
        let mut publishing = std::pin::pin!(publish(ingest, batches.clone()));
        loop {
            tokio::select! {
                published = &mut publishing => return published,
                accepted = followers.accept() => {
                    let (socket, _) = accepted?;
                    let (acceptor, batches) = (acceptor.clone(), batches.clone());
                    connections.spawn(async move {
                        if let Err(error) = follow(acceptor, socket, batches).await {
                            tracing::debug!(error, "follower disconnected");
                        }
                    });
                }
            }
        }
    })
}

async fn publish(ingest: TcpListener, batches: broadcast::Sender<Batch>) -> Result<()> {
    let (mut socket, _) = ingest.accept().await?;
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ_BYTES);
        if socket.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let Some(last) = memchr::memrchr(b'\n', &buffer) else { continue };
        let lines = buffer.split_to(last + 1).freeze();
        let frames = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(text);
        // Fails while no follower is connected.
        let _ = batches.send(frames.collect::<Result<_>>()?);
    }
}

/// Returns the text of a line's frame, in the form of the gateway. The published lines need no escapes.
fn text(line: &[u8]) -> Result<Utf8Bytes> {
    let mut text = format!("{{\"name\":\"{SERVICE}\",\"message\":\"").into_bytes();
    text.extend_from_slice(line);
    text.extend_from_slice(format!("\",\"service\":\"{SERVICE}\",\"replica\":0}}\n").as_bytes());
    Ok(Utf8Bytes::try_from(Bytes::from(text))?)
}

/// Serves one follower. Sends all batches that are there before it flushes.
async fn follow(acceptor: TlsAcceptor, socket: TcpStream, batches: broadcast::Sender<Batch>) -> Result<()> {
    let mut socket = tokio_tungstenite::accept_async(acceptor.accept(socket).await?).await?;
    let mut batches = batches.subscribe();
    loop {
        let mut batch = batches.recv().await?;
        loop {
            for text in batch.iter() {
                socket.feed(Message::Text(text.clone())).await?;
            }
            match batches.try_recv() {
                Ok(next) => batch = next,
                Err(broadcast::error::TryRecvError::Empty) => break,
                Err(error) => return Err(error.into()),
            }
        }
        socket.flush().await?;
    }
}
