//! The client's side of a log stream over a websocket.

use memchr::memmem;

use super::protocol::Protocol;
use super::received::Received;

/// First bytes of frames (RFC 6455 §5.2). All frames of a server are final and unmasked.
const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

/// The bit of the second byte that announces a mask, as clients must send.
const MASKED: u8 = 0x80;

/// A mask that changes nothing.
const MASK: [u8; 4] = [0; 4];

/// Beginning of the response to a handshake, and its end.
const ACCEPTED: &[u8] = b"HTTP/1.1 101 ";
const HEAD_END: &[u8] = b"\r\n\r\n";

/// Text before and after the line in a frame. The published lines contain no quotes.
const LINE_BEGIN: &[u8] = b"\"message\":\"";
const LINE_END: u8 = b'"';

/// Begins the details of a notice, which replaces a line.
const NOTICE: &[u8] = b"\"notice\":{\"kind\":\"";

/// Parser of the server's frames on one connection.
#[derive(Default)]
pub(crate) struct Websocket {
    /// Bytes that do not make a whole frame yet.
    partial: Vec<u8>,
    /// The handshake was accepted.
    open: bool,
    /// Lines of the frames of one read, with their newlines.
    lines: Vec<u8>,
    /// The last frame's text before and after its line. Nearly always, the next frame has the same.
    head: Vec<u8>,
    tail: Vec<u8>,
}

/// Returns the bytes that open a websocket at `path`.
pub(crate) fn handshake(path: &str) -> Vec<u8> {
    // The key of RFC 6455 §1.3: nothing depends on it.
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    .into()
}

/// Splits off the first frame: its first byte, its payload and the bytes after it. `None`: it is incomplete.
fn frame(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[first, length], rest) = bytes.split_first_chunk()?;
    let (length, rest) = match length {
        126 => {
            let (length, rest) = rest.split_first_chunk()?;
            (u64::from(u16::from_be_bytes(*length)), rest)
        }
        127 => {
            let (length, rest) = rest.split_first_chunk()?;
            (u64::from_be_bytes(*length), rest)
        }
        short => (short.into(), rest),
    };
    let (payload, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some((first, payload, rest))
}

// === impl Websocket ===

impl Protocol for Websocket {
    fn feed(&mut self, bytes: &[u8], received: &mut Received, reply: &mut Vec<u8>) -> Result<(), String> {
        let mut partial = std::mem::take(&mut self.partial);
        if partial.is_empty() {
            let parsed = self.parse(bytes, reply)?;
            partial.extend_from_slice(bytes.get(parsed..).unwrap_or_default());
        } else {
            partial.extend_from_slice(bytes);
            let parsed = self.parse(&partial, reply)?;
            partial.drain(..parsed);
        }
        self.partial = partial;
        received.take(&self.lines)?;
        self.lines.clear();
        Ok(())
    }
}

impl Websocket {
    /// Parses all that is complete: the head of the response, and frames. Returns its length.
    fn parse(&mut self, bytes: &[u8], reply: &mut Vec<u8>) -> Result<usize, String> {
        let mut rest = bytes;
        if !self.open {
            let Some(end) = memmem::find(rest, HEAD_END) else { return Ok(0) };
            if !rest.starts_with(ACCEPTED) {
                return Err(format!("the handshake was refused: {}", String::from_utf8_lossy(rest)));
            }
            self.open = true;
            rest = rest.get(end + HEAD_END.len()..).unwrap_or_default();
        }
        while let Some((first, payload, after)) = frame(rest) {
            self.frame(first, payload, reply)?;
            rest = after;
        }
        Ok(bytes.len() - rest.len())
    }

    fn frame(&mut self, first: u8, payload: &[u8], reply: &mut Vec<u8>) -> Result<(), String> {
        let shown = || String::from_utf8_lossy(payload).into_owned();
        match first {
            TEXT => {
                let line = payload.strip_prefix(self.head.as_slice());
                let line = line.and_then(|line| line.strip_suffix(self.tail.as_slice()));
                if let Some(line) = line.filter(|_| !self.head.is_empty()) {
                    self.lines.extend_from_slice(line);
                } else {
                    let begin = memmem::find(payload, LINE_BEGIN).ok_or_else(shown)? + LINE_BEGIN.len();
                    let (head, line) = payload.split_at(begin);
                    let (line, tail) = line.split_at(memchr::memchr(LINE_END, line).ok_or_else(shown)?);
                    if memmem::find(tail, NOTICE).is_some() {
                        return Err(shown());
                    }
                    self.lines.extend_from_slice(line);
                    (self.head, self.tail) = (head.to_vec(), tail.to_vec());
                }
                self.lines.push(b'\n');
            }
            PING => {
                let length = u8::try_from(payload.len()).map_err(|_| shown())?;
                reply.extend_from_slice(&[PONG, MASKED | length]);
                reply.extend_from_slice(&MASK);
                reply.extend_from_slice(payload);
            }
            CLOSE => return Err(format!("the websocket was closed: {}", shown())),
            _ => return Err(format!("unexpected frame {first:#x}")),
        }
        Ok(())
    }
}
