//! What the gateway, a shim and the shim's second stage say to one another: JSON with its length in front, over a socket.
//!
//! The socket is the shim's standard input, so that nothing about a service stands in the shim's own arguments or
//! environment, and it is the lifeline as well: its end tells the shim that the gateway is gone.

use std::io::{self, Read};
use std::path::PathBuf;

use bytes::{Buf as _, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// Longest message, in bytes: a command and an environment as long as an SDL can make them, each byte escaped.
const FRAME_MAX_BYTES: usize = 8 * 1024 * 1024;

/// Bytes of the length in front of a message.
const LENGTH_BYTES: usize = size_of::<u32>();

/// What to run, and in what surroundings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Spec {
    /// Program and arguments; the program is looked up in the PATH of `env`.
    pub(super) command: Vec<String>,
    /// The whole environment.
    pub(super) env: Vec<(String, String)>,
    /// The working directory.
    pub(super) dir: PathBuf,
}

/// What the gateway tells a shim, beginning with [`Order::Start`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Order {
    /// Start this.
    Start(Spec),
    /// End it: politely at first, by force after so many milliseconds.
    Stop {
        /// Milliseconds from now.
        grace_ms: u64,
    },
}

/// What a shim tells the gateway: that it started the service or could not, and at last that nothing of it is left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Report {
    /// The program runs.
    Started,
    /// The program cannot be started.
    NotStarted(StartFailure),
    /// The program ended, and every process that came of it is gone.
    Ended {
        /// Its exit code, if it exited.
        exit_code: Option<i32>,
        /// The signal, if one ended it.
        signal: Option<i32>,
    },
}

/// Why a program cannot be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StartFailure {
    /// What a shell would say: [`NOT_FOUND`] or [`NOT_EXECUTABLE`].
    pub(super) exit_code: i32,
    /// For people.
    pub(super) message: String,
}

/// The exit code of a program that is not there (POSIX, "Exit Status for Commands").
pub(super) const NOT_FOUND: i32 = 127;

/// The exit code of a program that is there and cannot be executed.
pub(super) const NOT_EXECUTABLE: i32 = 126;

/// Messages over a socket.
#[derive(Debug)]
pub(super) struct Frames {
    socket: UnixStream,
    /// What was read and is not a whole message yet.
    read: BytesMut,
}

// === impl Frames ===

impl Frames {
    pub(super) fn new(socket: std::os::unix::net::UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket: UnixStream::from_std(socket)?, read: BytesMut::new() })
    }

    /// Sends a message. If cancelled, it may have been sent in part, and the socket is of no further use.
    pub(super) async fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        self.socket.write_all(&encode(message)?).await
    }

    /// The next message; `None` if the other side is gone. Nothing is lost if it is cancelled.
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
                // The other side died with something unread.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

/// The bytes of a message.
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

/// Reads one message, waiting for it.
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
    async fn messages_arrive_whole_however_they_are_cut() {
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
    fn a_message_is_read_in_one_go() {
        let bytes = encode(&spec()).unwrap();
        assert_eq!(read::<Spec>(&mut bytes.as_slice()).unwrap(), spec());
        assert!(read::<Spec>(&mut &bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused() {
        assert!(read::<Spec>(&mut [0xff; 8].as_slice()).is_err());
    }
}
