//! The server side of a websocket (RFC 6455) that sends a stream of shared frames.
//!
//! `handshake` checks the request for an upgrade and makes its answer. A `Session` then owns the
//! connection: it writes the frames of a source as they are, without a copy per client, between its own pings
//! and the close frame. [`client_frames`] reads the client's frames, of which only control frames matter, and
//! for `first_message` a first text.
//! `credit` limits the data on its way to a slow client, and `outgoing` knows where frames end.
//!
//! A library would frame each line for each client: none takes encoded frames (docs/DECISIONS.md).

pub mod client_frames;
mod credit;
mod first_message;
pub(crate) mod handshake;
mod outgoing;
mod session;
mod upgrade_slot;

pub(crate) use self::first_message::{FirstMessageError, read_first_message};
pub(crate) use self::session::{Close, CloseOf, Session};
pub(crate) use self::upgrade_slot::UpgradeSlot;

use crate::model::text::truncate;

/// Opcode of a close frame.
const OPCODE_CLOSE: u8 = 0x8;

/// Opcode of a ping.
const OPCODE_PING: u8 = 0x9;

/// Opcode of a pong.
const OPCODE_PONG: u8 = 0xa;

/// First bit of a frame that is not continued.
const FIN: u8 = 0x80;

/// Most bytes of the payload of a control frame (RFC 6455 §5.5).
pub(crate) const CONTROL_MAX_BYTES: usize = 125;

/// Most bytes of the reason in a close frame, which begins with a code of two bytes.
pub(crate) const CLOSE_REASON_MAX_BYTES: usize = CONTROL_MAX_BYTES - 2;

/// Codes of the close frames that answer the client's errors.
mod close_code {
    /// The client broke the protocol.
    pub(super) const PROTOCOL_ERROR: u16 = 1002;
    /// The client sent a frame over the limit.
    pub(super) const TOO_LONG: u16 = 1009;
}

/// Appends a control frame to `out`; cuts its payload at [`CONTROL_MAX_BYTES`].
fn push_control_frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    let payload = &payload[..payload.len().min(CONTROL_MAX_BYTES)];
    #[expect(clippy::cast_possible_truncation, reason = "at most 125")]
    out.extend_from_slice(&[FIN | opcode, payload.len() as u8]);
    out.extend_from_slice(payload);
}

/// Appends a close frame to `out`; cuts the reason between characters.
fn push_close_frame(out: &mut Vec<u8>, code: u16, reason: &str) {
    let reason = truncate(reason, CLOSE_REASON_MAX_BYTES);
    push_control_frame(out, OPCODE_CLOSE, &[&code.to_be_bytes(), reason.as_bytes()].concat());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_reason_is_cut_between_characters() {
        let mut frame = Vec::new();
        push_close_frame(&mut frame, 4000, &"é".repeat(100));
        assert_eq!(frame[..4], [0x88, 124, 0x0f, 0xa0]);
        assert_eq!(std::str::from_utf8(&frame[4..]).unwrap(), "é".repeat(61));
    }

    #[test]
    fn control_payload_is_cut() {
        let mut frame = Vec::new();
        push_control_frame(&mut frame, OPCODE_PONG, &[7; 200]);
        assert_eq!(frame.len(), 2 + CONTROL_MAX_BYTES);
    }
}
