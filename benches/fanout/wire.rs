//! The logs in a stream of HTTP/2 frames.

use bytes::BytesMut;
use leasemux::model::proto::lease::ServiceLogsResponse;
use prost::Message as _;

use crate::follower::Received;

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

/// A flag and a big-endian length stand before each gRPC message.
const GRPC_PREFIX_BYTES: usize = 5;

/// The largest window there is: the client never makes the server wait.
const WINDOW_MAX: u32 = (1 << 31) - 1;

/// After this many bytes the windows are filled up again.
const WINDOW_REFILL: u32 = 1 << 30;

/// The server's half of one HTTP/2 connection with one stream.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    header: [u8; 9],
    header_len: usize,
    payload_left: usize,
    ping: Vec<u8>,
    consumed: u32,
    /// What has come of a gRPC message.
    message: BytesMut,
    /// What must be said in turn.
    pub(crate) reply: Vec<u8>,
}

/// The bytes that open a connection and call `path` with `message`.
pub(crate) fn request(path: &str, message: &[u8]) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS_INITIAL_WINDOW_SIZE
    let mut settings = vec![0, 4];
    settings.extend(WINDOW_MAX.to_be_bytes());
    frame(&mut bytes, SETTINGS, 0, 0, &settings);
    frame(&mut bytes, WINDOW_UPDATE, 0, 0, &(WINDOW_MAX - 65_535).to_be_bytes());
    // HPACK (RFC 7541): indexed `:method POST` and `:scheme https`, then literals, none of them remembered.
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
    frame(&mut bytes, HEADERS, END_HEADERS, 1, &headers);
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    body.extend_from_slice(message);
    frame(&mut bytes, DATA, END_STREAM, 1, &body);
    bytes
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend_from_slice(payload);
}

// === impl Frames ===

impl Frames {
    pub(crate) fn feed(&mut self, mut bytes: &[u8], received: &mut Received) -> Result<(), String> {
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
            self.payload(now, received)?;
            if self.payload_left == 0 {
                self.header_len = 0;
            }
        }
        Ok(())
    }

    fn payload(&mut self, bytes: &[u8], received: &mut Received) -> Result<(), String> {
        let [_, _, _, kind, flags, ..] = self.header;
        let done = self.payload_left == 0;
        match kind {
            DATA => {
                self.messages(bytes, received)?;
                self.consumed += u32::try_from(bytes.len()).unwrap_or(0);
                if self.consumed > WINDOW_REFILL {
                    for stream in [0, 1] {
                        frame(&mut self.reply, WINDOW_UPDATE, 0, stream, &self.consumed.to_be_bytes());
                    }
                    self.consumed = 0;
                }
            }
            SETTINGS if done && flags & ACK == 0 => frame(&mut self.reply, SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => {
                self.ping.extend_from_slice(bytes);
                if done {
                    frame(&mut self.reply, PING, ACK, 0, &std::mem::take(&mut self.ping));
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

    fn messages(&mut self, bytes: &[u8], received: &mut Received) -> Result<(), String> {
        self.message.extend_from_slice(bytes);
        while let Some((&[_, a, b, c, d], _)) = self.message.split_first_chunk() {
            let end = GRPC_PREFIX_BYTES + u32::from_be_bytes([a, b, c, d]) as usize;
            if self.message.len() < end {
                break;
            }
            let message = self.message.split_to(end).freeze().slice(GRPC_PREFIX_BYTES..);
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
