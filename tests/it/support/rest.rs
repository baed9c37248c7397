//! A client of the REST port that shares no code with it: HTTP by hand, and websockets by tungstenite.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use leasemux::access::identity::IdentityFiles;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderName;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::entries::entry;
use super::loss_check::Received;

/// Deadline for what must happen.
const PATIENCE: Duration = Duration::from_secs(120);

/// The headers of a request for a websocket.
pub(crate) const HANDSHAKE: &str = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// A complete response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// In lower case.
    head: String,
    pub(crate) body: String,
}

/// A websocket, and what it has received.
pub(crate) struct WsFollower<IO> {
    socket: WebSocketStream<IO>,
    pub(crate) received: Received,
    /// All frames so far, if they are kept.
    pub(crate) frames: Vec<Value>,
    pub(crate) keeps_frames: bool,
    content: Content,
    pub(crate) pings: usize,
    pub(crate) closed: Option<(u16, String)>,
}

/// What the frames of a websocket are.
#[derive(Clone, Copy, Debug)]
enum Content {
    Lines,
    Entries,
    /// Objects that are no lines.
    Other,
}

/// Sends one request and reads the response. `head` has the request line and headers, with line ends.
pub(crate) async fn exchange(mut io: impl AsyncRead + AsyncWrite + Unpin, head: &str) -> Answer {
    let request = format!("{head}Connection: close\r\n\r\n");
    // The server may refuse it before it has all of it.
    let _ = io.write_all(request.as_bytes()).await;
    let mut bytes = Vec::new();
    // TLS may end without its alert.
    let _ = timeout(PATIENCE, io.read_to_end(&mut bytes)).await.expect("an answer in time");
    let answer = String::from_utf8(bytes).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

/// Connects to a REST port with the certificate of this identity, or without one.
pub(crate) async fn connect_tls(
    address: SocketAddr,
    server_pem: &Path,
    identity: Option<&Path>,
) -> TlsStream<TcpStream> {
    try_connect_tls(address, server_pem, identity).await.unwrap()
}

/// The same, for a port that may be closed.
pub(crate) async fn try_connect_tls(
    address: SocketAddr,
    server_pem: &Path,
    identity: Option<&Path>,
) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(server_pem).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let config = match identity {
        Some(identity) => {
            let (chain, key) = IdentityFiles::load(identity).unwrap().into_parts();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    let socket = TcpStream::connect(address).await?;
    let name = ServerName::from(address.ip());
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, socket);
    timeout(PATIENCE, handshake).await.expect("a handshake in time")
}

// === impl Answer ===

impl Answer {
    /// Returns the value of a header, named in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// Asserts a fault of the credentials.
    #[track_caller]
    pub(crate) fn is_fault(&self, status: u16, message: &str) {
        let expected = format!("{{\"message\":\"{message}\"}}");
        assert_eq!((self.status, self.body.as_str()), (status, expected.as_str()), "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"));
    }

    /// Asserts an error with a text. Returns the text.
    #[track_caller]
    pub(crate) fn is_text(&self, status: u16) -> &str {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("text/plain; charset=utf-8"), "{self:?}");
        self.body.strip_suffix('\n').expect("a text ends with a newline")
    }
}

// === impl WsFollower ===

impl<IO: AsyncRead + AsyncWrite + Unpin> WsFollower<IO> {
    pub(crate) async fn open(io: IO, path: &str, headers: &[(&str, &str)]) -> Self {
        let mut request = format!("ws://provider.test{path}").into_client_request().unwrap();
        for (name, value) in headers {
            let name: HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let opened = timeout(PATIENCE, client_async(request, io)).await.expect("a handshake in time");
        let (socket, response) = opened.unwrap_or_else(|error| panic!("{path}: {error:?}"));
        assert!(
            response.headers().keys().all(|name| {
                !matches!(name.as_str(), "sec-websocket-extensions" | "sec-websocket-protocol")
            })
        );
        let content = match path {
            _ if path.contains("/kubeevents") || path.contains("/status") => Content::Other,
            _ if path.contains("?format=entries") || path.starts_with("/ui/") => Content::Entries,
            _ => Content::Lines,
        };
        let received = Received::default();
        Self { socket, received, frames: Vec::new(), keeps_frames: true, content, pings: 0, closed: None }
    }

    /// Receives one frame. Returns false at the end.
    async fn receive(&mut self) -> bool {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => {
                    let frame = match self.content {
                        Content::Lines => self.received.take_frame(text.as_str()),
                        Content::Entries => self.take_object(text.as_str()),
                        Content::Other => serde_json::from_str(text.as_str()).unwrap(),
                    };
                    if self.keeps_frames {
                        self.frames.push(frame);
                    }
                    return true;
                }
                Some(Ok(Message::Ping(_))) => self.pings += 1,
                Some(Ok(Message::Close(frame))) => {
                    let frame = frame.expect("a close frame has a code");
                    self.closed = Some((frame.code.into(), frame.reason.to_string()));
                    // Sends the answer.
                    while let Some(Ok(_)) = self.socket.next().await {}
                    return false;
                }
                other => panic!("{other:?} after {:?}", self.frames.last()),
            }
        }
    }

    /// Takes an entry, or the object of the end.
    fn take_object(&mut self, text: &str) -> Value {
        let object: Value = serde_json::from_str(text.strip_suffix('\n').expect("a newline")).unwrap();
        if object.get("end").is_none() {
            self.received.take_entry(entry(&object, false));
        }
        object
    }

    /// Sends a text message.
    pub(crate) async fn send(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// Receives frames until `enough` holds.
    pub(crate) async fn until(&mut self, what: &str, enough: impl Fn(&Self) -> bool) {
        let wait = async {
            while !enough(self) {
                assert!(self.receive().await, "closed with {:?} before {what}", self.closed);
            }
        };
        let waited = timeout(PATIENCE, wait).await;
        waited.unwrap_or_else(|_| panic!("no {what}, but {:?}", self.frames.last()));
    }

    /// Receives one frame. Returns whether it was received, and did not end the stream.
    pub(crate) async fn next(&mut self) -> bool {
        timeout(PATIENCE, self.receive()).await.expect("a frame or the end")
    }

    /// Receives a frame if one arrives at once; `Some(false)` at the end.
    pub(crate) async fn next_if_ready(&mut self) -> Option<bool> {
        timeout(Duration::from_millis(1), self.receive()).await.ok()
    }

    /// Receives frames until the stream ends. Returns code and reason.
    pub(crate) async fn end(&mut self) -> (u16, String) {
        let all = async { while self.receive().await {} };
        timeout(PATIENCE, all).await.expect("an end in time");
        self.closed.clone().unwrap()
    }

    /// Receives frames for this long.
    pub(crate) async fn linger(&mut self, time: Duration) {
        let open = timeout(time, async { while self.receive().await {} }).await;
        assert!(open.is_err(), "closed with {:?}", self.closed);
    }

    /// Receives frames until the stream ends, however long that takes.
    pub(crate) async fn until_closed(&mut self) -> (u16, String) {
        while self.receive().await {}
        self.closed.clone().unwrap()
    }

    /// Waits until the connection ends without a close frame.
    pub(crate) async fn until_lost(&mut self) {
        let lost = async {
            while let Some(message) = self.socket.next().await {
                match message {
                    Ok(Message::Ping(_)) => {}
                    Ok(other) => panic!("{other:?}"),
                    Err(_) => return,
                }
            }
        };
        timeout(PATIENCE, lost).await.expect("an end in time");
    }

    /// Returns the kinds of all notices so far, in order.
    pub(crate) fn notices(&self) -> Vec<&str> {
        self.frames.iter().filter_map(|frame| frame["notice"]["kind"].as_str()).collect()
    }

    /// Returns the messages of all lines so far.
    pub(crate) fn lines(&self) -> Vec<&str> {
        let lines = self.frames.iter().filter(|frame| frame["notice"].is_null());
        lines.map(|frame| frame["message"].as_str().unwrap()).collect()
    }

    /// Returns the last frame.
    pub(crate) fn last(&self) -> &Value {
        self.frames.last().expect("a frame")
    }
}
