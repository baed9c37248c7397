//! The client's side of a gRPC log stream over HTTP/2.

use std::collections::HashMap;

use bytes::BytesMut;
use leasemux::model::proto::lease::ServiceLogsResponse;
use prost::Message as _;

use super::protocol::Protocol;
use super::received::Received;

/// HTTP/2 frame types and flags (RFC 9113 §6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Length of the prefix of a gRPC message: a flag and a big-endian length.
const GRPC_PREFIX_BYTES: usize = 5;

/// The largest window, so that the client never blocks the server.
const WINDOW_MAX: u32 = (1 << 31) - 1;

/// Received bytes after which a window is replenished.
const WINDOW_REFILL: u32 = 1 << 30;

/// Parser of the server's frames on one connection, whose streams all carry logs.
#[derive(Debug, Default)]
pub(crate) struct Http2 {
    header: [u8; 9],
    header_len: usize,
    payload_left: usize,
    ping: Vec<u8>,
    /// Bytes received since the window was replenished, by stream; 0 is the connection.
    consumed: HashMap<u32, u32>,
    /// The incomplete gRPC message of each stream.
    messages: HashMap<u32, BytesMut>,
}

/// Returns the bytes that open a connection.
pub(crate) fn preface() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS_INITIAL_WINDOW_SIZE
    let mut settings = vec![0, 4];
    settings.extend(WINDOW_MAX.to_be_bytes());
    frame(&mut bytes, SETTINGS, 0, 0, &settings);
    frame(&mut bytes, WINDOW_UPDATE, 0, 0, &(WINDOW_MAX - 65_535).to_be_bytes());
    bytes
}

/// Appends the bytes that call `path` with `message` on a new stream.
pub(crate) fn call(bytes: &mut Vec<u8>, stream: u32, path: &str, message: &[u8]) {
    // HPACK (RFC 7541): indexed `:method POST` and `:scheme https`, then literals without indexing.
    let mut headers = vec![0x83, 0x87];
    let literals: [(&[u8], &str); 4] = [
        (&[0x04], path),
        (&[0x01], "localhost"),
        (&[0x0f, 0x10], "application/grpc"),
        (b"\x00\x02te", "trailers"),
    ];
    for (name, value) in literals {
        headers.extend_from_slice(name);
        headers.push(u8::try_from(value.len()).unwrap_or(0));
        headers.extend_from_slice(value.as_bytes());
    }
    frame(bytes, HEADERS, END_HEADERS, stream, &headers);
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    body.extend_from_slice(message);
    frame(bytes, DATA, END_STREAM, stream, &body);
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend_from_slice(payload);
}

// === impl Http2 ===

impl Protocol for Http2 {
    fn feed(&mut self, mut bytes: &[u8], received: &mut Received, reply: &mut Vec<u8>) -> Result<(), String> {
        while !bytes.is_empty() || (self.header_len == 9 && self.payload_left == 0) {
            if self.header_len < 9 {
                let (now, later) = bytes.split_at(bytes.len().min(9 - self.header_len));
                self.header[self.header_len..][..now.len()].copy_from_slice(now);
                self.header_len += now.len();
                bytes = later;
                if self.header_len < 9 {
                    return Ok(());
                }
                let [a, b, c, ..] = self.header;
                self.payload_left = u32::from_be_bytes([0, a, b, c]) as usize;
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.payload_left));
            self.payload_left -= now.len();
            bytes = later;
            self.payload(now, received, reply)?;
            if self.payload_left == 0 {
                self.header_len = 0;
            }
        }
        Ok(())
    }
}

impl Http2 {
    fn payload(&mut self, bytes: &[u8], received: &mut Received, reply: &mut Vec<u8>) -> Result<(), String> {
        let [_, _, _, kind, flags, a, b, c, d] = self.header;
        let stream = u32::from_be_bytes([a, b, c, d]);
        let done = self.payload_left == 0;
        match kind {
            DATA => {
                self.data(stream, bytes, received)?;
                self.consume(stream, bytes.len(), reply);
            }
            SETTINGS if done && flags & ACK == 0 => frame(reply, SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => {
                self.ping.extend_from_slice(bytes);
                if done {
                    frame(reply, PING, ACK, 0, &std::mem::take(&mut self.ping));
                }
            }
            RST_STREAM | GOAWAY => return Err("the stream was reset".to_owned()),
            _ => {}
        }
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            return Err("the stream has ended".to_owned());
        }
        Ok(())
    }

    /// Counts received bytes, and replenishes the windows when needed.
    fn consume(&mut self, stream: u32, bytes: usize, reply: &mut Vec<u8>) {
        for id in [0, stream] {
            let consumed = self.consumed.entry(id).or_default();
            *consumed += u32::try_from(bytes).unwrap_or(0);
            if *consumed > WINDOW_REFILL {
                frame(reply, WINDOW_UPDATE, 0, id, &std::mem::take(consumed).to_be_bytes());
            }
        }
    }

    fn data(&mut self, stream: u32, bytes: &[u8], received: &mut Received) -> Result<(), String> {
        let partial = self.messages.entry(stream).or_default();
        partial.extend_from_slice(bytes);
        while let Some((&[_, a, b, c, d], _)) = partial.split_first_chunk() {
            let end = GRPC_PREFIX_BYTES + u32::from_be_bytes([a, b, c, d]) as usize;
            if partial.len() < end {
                break;
            }
            let message = partial.split_to(end).freeze().slice(GRPC_PREFIX_BYTES..);
            let response = ServiceLogsResponse::decode(message).map_err(|e| e.to_string())?;
            for entry in response.services {
                if let Some(gap) = entry.gap {
                    return Err(format!("a follower lost {} lines", gap.lines));
                }
                received.take(&entry.logs)?;
            }
        }
        Ok(())
    }
}
