//! Reads the first message of a client, before a [`Session`](super::Session) takes the connection over.

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::client_frames::{ClientFrame, ClientFrames, FrameError};

/// Bytes per read. The message is a token of about a kilobyte.
const READ_BYTES: usize = 2 * 1024;

/// Why there is no first message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FirstMessageError {
    #[error("the client closed the websocket")]
    Closed,
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Reads the first message, of at most `max_bytes`. `received` are bytes that the client sent after its
/// request; afterwards those that it sent after the message. Pings before it get no answer. Not cancel safe:
/// bytes are lost.
pub(crate) async fn read_first_message<IO: AsyncRead + Unpin>(
    io: &mut IO,
    received: &mut Bytes,
    max_bytes: usize,
) -> Result<Vec<u8>, FirstMessageError> {
    let mut frames = ClientFrames::collecting(max_bytes);
    loop {
        let mut input = &received[..];
        while !input.is_empty() {
            match frames.read(&mut input)? {
                Some(ClientFrame::Message(message)) => {
                    let (message, rest) = (message.to_vec(), input.len());
                    received.advance(received.len() - rest);
                    return Ok(message);
                }
                Some(ClientFrame::Close(_)) => return Err(FirstMessageError::Closed),
                Some(ClientFrame::Ping(_) | ClientFrame::Pong(_)) | None => {}
            }
        }
        let mut bytes = Vec::with_capacity(READ_BYTES);
        match io.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return Err(FirstMessageError::Closed),
            Ok(_) => *received = bytes.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};
    use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};

    use super::*;

    const MAX_BYTES: usize = 9 * 1024;

    fn frame(opcode: OpCode, is_final: bool, payload: Vec<u8>) -> Vec<u8> {
        let header = FrameHeader { is_final, opcode, mask: Some([1, 2, 3, 4]), ..FrameHeader::default() };
        let mut bytes = Vec::new();
        Frame::from_payload(header, payload.into()).format(&mut bytes).unwrap();
        bytes
    }

    fn text(payload: &[u8]) -> Vec<u8> {
        frame(OpCode::Data(Data::Text), true, payload.to_vec())
    }

    /// Reads the first message of these bytes, of which the first `early` came with the request. Returns it
    /// with the bytes that are left.
    async fn read(bytes: &[u8], early: usize) -> Result<(Vec<u8>, Vec<u8>), FirstMessageError> {
        let mut received = Bytes::copy_from_slice(&bytes[..early]);
        let mut io = &bytes[early..];
        let message = read_first_message(&mut io, &mut received, MAX_BYTES).await?;
        Ok((message, [&received[..], io].concat()))
    }

    #[tokio::test]
    async fn message_ends_where_the_next_frame_begins() {
        let ping = frame(OpCode::Control(Control::Ping), true, b"x".to_vec());
        let long = vec![b'x'; MAX_BYTES];
        let halves = [
            frame(OpCode::Data(Data::Text), false, long[..5_000].to_vec()),
            ping.clone(),
            frame(OpCode::Data(Data::Continue), true, long[5_000..].to_vec()),
        ];
        for (before, message) in [(text(b"token"), &b"token"[..]), (halves.concat(), &long)] {
            let bytes = [&ping[..], &before, &ping, &text(b"more")].concat();
            let rest = [&ping[..], &text(b"more")].concat();
            for early in [0, 1, ping.len(), before.len() / 2, before.len() + 4, bytes.len()] {
                let (got, left) = read(&bytes, early).await.unwrap();
                assert!(got == message && left == rest, "{early}");
            }
        }
    }

    #[tokio::test]
    async fn other_first_frames_are_errors() {
        let error = async |bytes: Vec<u8>| read(&bytes, 0).await.unwrap_err();
        assert!(matches!(error(Vec::new()).await, FirstMessageError::Closed));
        assert!(matches!(error(text(b"token")[..5].to_vec()).await, FirstMessageError::Closed));
        let close = frame(OpCode::Control(Control::Close), true, Vec::new());
        assert!(matches!(error(close).await, FirstMessageError::Closed));
        let long = text(&vec![b'x'; MAX_BYTES + 1]);
        assert!(matches!(error(long).await, FirstMessageError::Frame(FrameError::TooLong)));
        let parts = [
            frame(OpCode::Data(Data::Text), false, vec![b'x'; MAX_BYTES]),
            frame(OpCode::Data(Data::Continue), true, vec![b'x']),
        ];
        assert!(matches!(error(parts.concat()).await, FirstMessageError::Frame(FrameError::TooLong)));
        assert!(matches!(error(b"GET / HTTP/1.1".to_vec()).await, FirstMessageError::Frame(_)));
    }
}
