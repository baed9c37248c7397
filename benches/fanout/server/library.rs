//! Websocket servers with a library and one broadcast channel. The text of each line is made once, and all
//! followers share it; the library makes a frame of it for each follower.
//!
//! Apart from the library, they do as the gateway does: its TLS stream and its size of writes, and all lines
//! that are there are written before a flush. They send no pings.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use leasemux::edge::tls::stream::WRITE_MAX_BYTES;
use leasemux::edge::tls::{self, TlsStream};
use leasemux::logs::websocket::LineEncoder;
use leasemux::model::id::Replica;
use rustls::ServerConfig;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Utf8Bytes};

use super::{Listeners, SERVICE};
use crate::Result;

/// Batches of lines, as they were read. More than the publisher leaves outstanding, so that no follower lags.
const CHANNEL_BATCHES: usize = 4_096;

/// Most bytes per read from the publisher.
const PUBLISHER_READ_BYTES: usize = 256 * 1024;

/// Bytes per read from a follower, which sends nothing after its request.
const FOLLOWER_READ_BYTES: usize = 4 * 1024;

/// Bytes of frames that the library collects before it writes them. They go out in one write of the best
/// size.
const WRITE_BYTES: usize = WRITE_MAX_BYTES - 4 * 1024;

/// A library, and how the server uses it.
pub(super) trait Library {
    type Message: Clone + Send + Sync + 'static;
    type Error: std::error::Error + Send + Sync + 'static;
    type Socket: Sink<Self::Message, Error = Self::Error>
        + Stream<Item = std::result::Result<Self::Message, Self::Error>>
        + Unpin
        + Send;

    /// Answers the request for a websocket.
    fn accept(io: TlsStream<TcpStream>) -> impl Future<Output = Result<Self::Socket>> + Send;

    /// Makes a text message, whose clones share `text`.
    fn message(text: Bytes) -> Result<Self::Message>;
}

/// tokio-tungstenite: copies each frame to a buffer of the connection.
pub(super) struct Tungstenite;

/// tokio-websockets: queues each frame, and writes 32 at a time without a copy.
pub(super) struct TokioWebsockets;

type Batch<L> = Arc<[<L as Library>::Message]>;

pub(super) fn serve<L: Library + 'static>(listeners: Listeners) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let followers = TcpListener::from_std(listeners.followers)?;
        let ingest = TcpListener::from_std(listeners.ingest)?;
        let config = listeners.tls.ok_or("websockets are measured over TLS")?;
        let (batches, _) = broadcast::channel(CHANNEL_BATCHES);
        let mut connections = JoinSet::new();
        let mut publishing = std::pin::pin!(publish::<L>(ingest, batches.clone()));
        loop {
            tokio::select! {
                published = &mut publishing => return published,
                accepted = followers.accept() => {
                    let (socket, _) = accepted?;
                    let (config, batches) = (Arc::clone(&config), batches.clone());
                    connections.spawn(async move {
                        if let Err(error) = follow::<L>(config, socket, batches).await {
                            tracing::debug!(error, "follower disconnected");
                        }
                    });
                }
            }
        }
    })
}

async fn publish<L: Library>(ingest: TcpListener, batches: broadcast::Sender<Batch<L>>) -> Result<()> {
    let encoder = LineEncoder::new(&format!("{SERVICE}-0"), &Replica { service: SERVICE.parse()?, index: 0 });
    let (mut socket, _) = ingest.accept().await?;
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PUBLISHER_READ_BYTES);
        if socket.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let Some(last) = memchr::memrchr(b'\n', &buffer) else { continue };
        let texts = texts(&encoder, &buffer.split_to(last + 1));
        // Fails while no follower is connected.
        let _ = batches.send(texts.into_iter().map(L::message).collect::<Result<_>>()?);
    }
}

/// Returns the text of each line's frame, with the gateway's encoder.
fn texts(encoder: &LineEncoder, lines: &[u8]) -> Vec<Bytes> {
    let (mut frames, mut texts) = (Vec::with_capacity(2 * lines.len()), Vec::new());
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        let start = frames.len();
        encoder.push_line(line, false, &mut frames);
        // The length's first byte announces the longer forms (RFC 6455 §5.2).
        let header = match frames.get(start + 1) {
            Some(127) => 10,
            Some(126) => 4,
            _ => 2,
        };
        texts.push(start + header..frames.len());
    }
    let frames = Bytes::from(frames);
    texts.into_iter().map(|text| frames.slice(text)).collect()
}

/// Serves one follower.
async fn follow<L: Library>(
    config: Arc<ServerConfig>,
    socket: TcpStream,
    batches: broadcast::Sender<Batch<L>>,
) -> Result<()> {
    let mut socket = L::accept(tls::accept(config, socket).await?).await?;
    let mut batches = batches.subscribe();
    loop {
        let mut batch = tokio::select! {
            biased;
            // A read also sends what the TLS stream has deferred.
            received = socket.next() => match received {
                Some(received) => {
                    received?;
                    continue;
                }
                None => return Ok(()),
            },
            batch = batches.recv() => batch?,
        };
        loop {
            for message in batch.iter() {
                socket.feed(message.clone()).await?;
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

impl Library for Tungstenite {
    type Message = tungstenite::Message;
    type Error = tungstenite::Error;
    type Socket = WebSocketStream<TlsStream<TcpStream>>;

    async fn accept(io: TlsStream<TcpStream>) -> Result<Self::Socket> {
        let config =
            WebSocketConfig::default().read_buffer_size(FOLLOWER_READ_BYTES).write_buffer_size(WRITE_BYTES);
        Ok(tokio_tungstenite::accept_async_with_config(io, Some(config)).await?)
    }

    fn message(text: Bytes) -> Result<Self::Message> {
        Ok(tungstenite::Message::Text(Utf8Bytes::try_from(text)?))
    }
}

impl Library for TokioWebsockets {
    type Message = tokio_websockets::Message;
    type Error = tokio_websockets::Error;
    type Socket = tokio_websockets::WebSocketStream<TlsStream<TcpStream>>;

    async fn accept(io: TlsStream<TcpStream>) -> Result<Self::Socket> {
        let config = tokio_websockets::Config::default().flush_threshold(WRITE_BYTES);
        let (_, socket) = tokio_websockets::ServerBuilder::new().config(config).accept(io).await?;
        Ok(socket)
    }

    fn message(text: Bytes) -> Result<Self::Message> {
        Ok(tokio_websockets::Message::text(text))
    }
}
