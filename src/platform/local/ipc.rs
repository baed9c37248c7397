//! Messages between the gateway, a shim and the shim's second stage: length-prefixed JSON over a socket.
//!
//! The socket is the shim's standard input, so that a service's settings do not appear in the shim's own
//! arguments or environment. It is also the lifeline: when it closes, the gateway is gone.

use std::io::{self, Read};
use std::path::PathBuf;

use bytes::{Buf as _, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// Longest message: the longest command and environment of an SDL, with every byte escaped.
const FRAME_MAX_BYTES: usize = 8 * 1024 * 1024;

/// Size of the length prefix.
const LENGTH_BYTES: usize = size_of::<u32>();

/// A program and its environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Spec {
    /// Program and arguments. The program is found by the PATH of `env`.
    pub(super) command: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) dir: PathBuf,
}

/// An order from the gateway to a shim. The first is [`Order::Start`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Order {
    /// Start the service.
    Start(Spec),
    /// Stop the service: SIGTERM now, SIGKILL after the grace period.
    Stop { grace_ms: u64 },
}

/// A report from a shim: first that the service was started or not, finally that it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Report {
    /// The program is up.
    Started,
    /// The program could not be started.
    NotStarted(StartFailure),
    /// The program and all its descendants are gone.
    Ended { exit_code: Option<i32>, signal: Option<i32> },
}

/// Why a program could not be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StartFailure {
    /// The exit code a shell would use: [`NOT_FOUND`] or [`NOT_EXECUTABLE`].
    pub(super) exit_code: i32,
    pub(super) message: String,
}

/// Exit code for a program that does not exist (POSIX, "Exit Status for Commands").
pub(super) const NOT_FOUND: i32 = 127;

/// Exit code for a program that cannot be executed.
pub(super) const NOT_EXECUTABLE: i32 = 126;

/// Sends and receives messages.
#[derive(Debug)]
pub(super) struct Frames {
    socket: UnixStream,
    /// Received bytes of an incomplete message.
    read: BytesMut,
}

// === impl Frames ===

impl Frames {
    pub(super) fn new(socket: std::os::unix::net::UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket: UnixStream::from_std(socket)?, read: BytesMut::new() })
    }

    /// Sends a message. Not cancel safe: the socket is unusable if a message was sent in part.
    pub(super) async fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        self.socket.write_all(&encode(message)?).await
    }

    /// Receives the next message; `None` if the peer is gone. Cancel safe.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            if let Some(length) = self.read.first_chunk::<LENGTH_BYTES>() {
                let length = checked_length(*length)?;
                if self.read.len() >= LENGTH_BYTES + length {
                    self.read.advance(LENGTH_BYTES);
                    let message = self.read.split_to(length);
                    return Ok(Some(serde_json::from_slice(&message)?));
                }
            }
            match self.socket.read_buf(&mut self.read).await {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                // The peer died with unread data.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Encodes a message with its length prefix.
pub(super) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; LENGTH_BYTES];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - LENGTH_BYTES;
    let length = u32::try_from(length)
        .ok()
        .filter(|_| length <= FRAME_MAX_BYTES)
        .ok_or(io::ErrorKind::FileTooLarge)?;
    if let Some(space) = frame.first_chunk_mut() {
        *space = length.to_be_bytes();
    }
    Ok(frame)
}

/// Reads one message, blocking.
pub(super) fn read<T: DeserializeOwned>(source: &mut impl Read) -> io::Result<T> {
    let mut length = [0; LENGTH_BYTES];
    source.read_exact(&mut length)?;
    let mut message = vec![0; checked_length(length)?];
    source.read_exact(&mut message)?;
    Ok(serde_json::from_slice(&message)?)
}

fn checked_length(length: [u8; LENGTH_BYTES]) -> io::Result<usize> {
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_MAX_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as StdStream;

    use super::*;

    fn spec() -> Spec {
        Spec {
            command: vec!["sh".into(), "-c".into(), "echo é\n".into()],
            env: vec![("A".into(), String::new())],
            dir: "/tmp".into(),
        }
    }

    #[tokio::test]
    async fn messages_are_reassembled_from_pieces() {
        let (ours, theirs) = StdStream::pair().unwrap();
        let mut frames = Frames::new(ours).unwrap();
        let mut theirs = Frames::new(theirs).unwrap();
        let orders = [Order::Start(spec()), Order::Stop { grace_ms: 7 }];
        let bytes: Vec<u8> = orders.iter().flat_map(|order| encode(order).unwrap()).collect();
        let send = async {
            for piece in bytes.chunks(3) {
                theirs.socket.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(theirs);
        };
        let receive = async {
            for order in &orders {
                assert_eq!(frames.next::<Order>().await.unwrap().as_ref(), Some(order));
            }
            assert_eq!(frames.next::<Order>().await.unwrap(), None);
        };
        tokio::join!(send, receive);
    }

    #[test]
    fn message_is_read_synchronously() {
        let bytes = encode(&spec()).unwrap();
        assert_eq!(read::<Spec>(&mut bytes.as_slice()).unwrap(), spec());
        assert!(read::<Spec>(&mut &bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn length_over_limit_is_rejected() {
        assert!(read::<Spec>(&mut [0xff; 8].as_slice()).is_err());
    }
}
