//! The protocol of each contender, from a follower's side.

pub(crate) use crate::client::http2::Http2;
use crate::client::received::Received;

/// Finds the log bytes in the bytes from a server.
pub(crate) trait Protocol {
    /// Parses `bytes`. Passes log bytes to `received`, and appends replies to the server to `reply`.
    fn feed(&mut self, bytes: &[u8], received: &mut Received, reply: &mut Vec<u8>) -> Result<(), String>;
}

/// Log bytes only.
pub(crate) struct Lines;

/// NATS: a message is a line that ends with the length of its payload, then the payload.
#[derive(Default)]
pub(crate) struct Nats {
    line: Vec<u8>,
    left: usize,
}

/// Redis: arrays of three; the third element of a message is its payload.
#[derive(Default)]
pub(crate) struct Redis {
    line: Vec<u8>,
    left: usize,
    element: u8,
}

/// The end of a line and of a payload.
const END: &[u8] = b"\r\n";

impl Protocol for Lines {
    fn feed(&mut self, bytes: &[u8], received: &mut Received, _: &mut Vec<u8>) -> Result<(), String> {
        received.take(bytes)
    }
}

impl Protocol for Nats {
    fn feed(&mut self, mut bytes: &[u8], received: &mut Received, reply: &mut Vec<u8>) -> Result<(), String> {
        while !bytes.is_empty() {
            if self.left > 0 {
                received.take(payload(&mut bytes, &mut self.left))?;
                continue;
            }
            let Some(line) = line(&mut bytes, &mut self.line) else { return Ok(()) };
            if line.starts_with(b"MSG ") {
                self.left = length(line.rsplit(|byte| *byte == b' ').next())? + END.len();
            } else if line.starts_with(b"PING") {
                reply.extend_from_slice(b"PONG\r\n");
            } else if line.starts_with(b"-ERR") {
                return Err(String::from_utf8_lossy(&line).into_owned());
            }
        }
        Ok(())
    }
}

impl Protocol for Redis {
    fn feed(&mut self, mut bytes: &[u8], received: &mut Received, _: &mut Vec<u8>) -> Result<(), String> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let payload = payload(&mut bytes, &mut self.left);
                if self.element == 3 {
                    received.take(payload)?;
                }
                continue;
            }
            let Some(line) = line(&mut bytes, &mut self.line) else { return Ok(()) };
            match line.split_first() {
                Some((b'*', _)) => self.element = 0,
                Some((b'$', rest)) => {
                    self.element += 1;
                    self.left = length(Some(rest))? + END.len();
                }
                Some((b':', _)) => self.element += 1,
                _ => return Err(String::from_utf8_lossy(&line).into_owned()),
            }
        }
        Ok(())
    }
}

/// Returns the next line without its end, once it is complete.
fn line(bytes: &mut &[u8], partial: &mut Vec<u8>) -> Option<Vec<u8>> {
    let Some(end) = memchr::memchr(b'\n', bytes) else {
        partial.extend_from_slice(bytes);
        *bytes = &[];
        return None;
    };
    let (now, later) = bytes.split_at(end + 1);
    partial.extend_from_slice(now);
    *bytes = later;
    let mut line = std::mem::take(partial);
    line.truncate(line.len().saturating_sub(END.len()));
    Some(line)
}

/// Returns the available part of a payload, without the end of the payload.
fn payload<'a>(bytes: &mut &'a [u8], left: &mut usize) -> &'a [u8] {
    let (now, later) = bytes.split_at(bytes.len().min(*left));
    let without_end = left.saturating_sub(END.len()).min(now.len());
    *left -= now.len();
    *bytes = later;
    now.get(..without_end).unwrap_or_default()
}

fn length(digits: Option<&[u8]>) -> Result<usize, String> {
    let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
    digits.and_then(|digits| digits.parse().ok()).ok_or("a length is missing".to_owned())
}
