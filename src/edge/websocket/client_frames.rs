//! Reads the frames of a client. Pure.
//!
//! Only control frames matter. The payload of data frames is counted and thrown away, unless a first message
//! is collected.
//!
//! tungstenite's parser of headers would leave all checks to this module, and would add a crate to the
//! gateway. The tests compare the two.

use super::{CONTROL_MAX_BYTES, FIN, OPCODE_CLOSE, OPCODE_PING, OPCODE_PONG, close_code};

/// Most bytes of a client's data frame: no client has a reason to send one.
pub const DATA_FRAME_MAX_BYTES: usize = 4 * 1024;

/// Most bytes of the header of a frame within the limits: two, a length of two, and the mask.
const HEADER_MAX_BYTES: usize = 2 + 2 + MASK_BYTES;

const MASK_BYTES: usize = 4;

/// Bits of the first byte that are reserved for extensions.
const RESERVED: u8 = 0x70;

/// Bit of the second byte: the payload is masked.
const MASKED: u8 = 0x80;

/// Length in the second byte that announces a length of two bytes after it.
const LENGTH_16: u8 = 126;

/// Length in the second byte that announces a length of eight bytes after it.
const LENGTH_64: u8 = 127;

/// An incremental reader. Its memory does not depend on the input, but for a message that it collects.
#[derive(Debug)]
pub struct ClientFrames {
    state: State,
    /// The header, or its beginning.
    header: [u8; HEADER_MAX_BYTES],
    header_bytes: usize,
    /// Payload of the control frame, without its mask.
    control: [u8; CONTROL_MAX_BYTES],
    /// The message that is collected.
    message: Option<Collected>,
    /// A data message has begun that another frame continues.
    in_message: bool,
    discarded_bytes: u64,
}

/// A message, or its beginning, without its masks.
#[derive(Debug)]
struct Collected {
    bytes: Vec<u8>,
    max_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Reads a header.
    Header,
    /// Reads the payload.
    Payload { frame: FrameStart, read: usize },
    /// Ignores everything after a close frame or an error.
    Ended,
}

/// The parsed header of a frame.
#[derive(Clone, Copy, Debug)]
struct FrameStart {
    opcode: u8,
    is_final: bool,
    mask: [u8; MASK_BYTES],
    length: usize,
}

/// What the client sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientFrame<'a> {
    /// A ping and its payload.
    Ping(&'a [u8]),
    /// A pong and its payload.
    Pong(&'a [u8]),
    /// A close frame and its code, if it has one. Nothing is read after it.
    Close(Option<u16>),
    /// A message, by a reader that collects it. Its length limits all later messages together.
    Message(&'a [u8]),
}

/// Why a frame is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A data frame over [`DATA_FRAME_MAX_BYTES`].
    #[error("frames of more than 4096 bytes are not accepted")]
    TooLong,
    /// Any other violation of the protocol.
    #[error("{0}")]
    Malformed(&'static str),
}

// === impl ClientFrames ===

impl Default for ClientFrames {
    fn default() -> Self {
        Self {
            state: State::Header,
            header: [0; HEADER_MAX_BYTES],
            header_bytes: 0,
            control: [0; CONTROL_MAX_BYTES],
            message: None,
            in_message: false,
            discarded_bytes: 0,
        }
    }
}

impl ClientFrames {
    /// Creates a reader that collects the first message, of at most `max_bytes`.
    pub(super) fn collecting(max_bytes: usize) -> Self {
        Self { message: Some(Collected { bytes: Vec::new(), max_bytes }), ..Self::default() }
    }

    /// Consumes `input` up to the end of the next control frame or collected message, which it returns.
    /// Returns `None` when all of `input` is consumed.
    pub fn read<'a>(&'a mut self, input: &mut &[u8]) -> Result<Option<ClientFrame<'a>>, FrameError> {
        let ended = loop {
            let (frame, read) = match self.state {
                State::Header => match self.read_header(input) {
                    Ok(Some(frame)) => (frame, 0),
                    Ok(None) => return Ok(None),
                    Err(e) => return Err(self.fail(e)),
                },
                State::Payload { frame, read } => (frame, read),
                State::Ended => {
                    *input = &[];
                    return Ok(None);
                }
            };
            let read = read + self.read_payload(frame, read, input);
            if read < frame.length {
                self.state = State::Payload { frame, read };
                return Ok(None);
            }
            (self.state, self.header_bytes) = (State::Header, 0);
            if frame.is_control() {
                break frame;
            }
            self.in_message = !frame.is_final;
            if frame.is_final && self.message.is_some() {
                break frame;
            }
        };
        match (ended.opcode, ended.length) {
            (OPCODE_PING, length) => Ok(Some(ClientFrame::Ping(&self.control[..length]))),
            (OPCODE_PONG, length) => Ok(Some(ClientFrame::Pong(&self.control[..length]))),
            (0..=2, _) => Ok(self.message.as_ref().map(|message| ClientFrame::Message(&message.bytes))),
            (_, length) => match close_code(&self.control[..length]) {
                Ok(code) => {
                    self.state = State::Ended;
                    Ok(Some(ClientFrame::Close(code)))
                }
                Err(e) => Err(self.fail(e)),
            },
        }
    }

    /// Returns how many bytes of data were thrown away.
    pub fn discarded_bytes(&self) -> u64 {
        self.discarded_bytes
    }

    fn fail(&mut self, error: FrameError) -> FrameError {
        self.state = State::Ended;
        error
    }

    /// Returns the header once it is complete.
    fn read_header(&mut self, input: &mut &[u8]) -> Result<Option<FrameStart>, FrameError> {
        while let Some((byte, rest)) = input.split_first() {
            *input = rest;
            self.header[self.header_bytes] = *byte;
            self.header_bytes += 1;
            // Checked before the remainder of the header, which would not fit for a longer length.
            if self.header_bytes == 2 {
                self.check_start()?;
            }
            if self.header_bytes >= 2 && self.header_bytes == header_length(self.header[1]) {
                return self.parse_header().map(Some);
            }
        }
        Ok(None)
    }

    /// Checks the first two bytes of a frame.
    fn check_start(&self) -> Result<(), FrameError> {
        let [first, second, ..] = self.header;
        let length = second & !MASKED;
        if first & RESERVED != 0 {
            return Err(FrameError::Malformed("reserved bits are set, but no extension is in use"));
        }
        if second & MASKED == 0 {
            return Err(FrameError::Malformed("frames of a client must be masked"));
        }
        match first & !FIN {
            0 if !self.in_message => Err(FrameError::Malformed("a continuation without a message")),
            1 | 2 if self.in_message => Err(FrameError::Malformed("a message within a fragmented message")),
            0..=2 if length == LENGTH_64 => Err(FrameError::TooLong),
            OPCODE_CLOSE..=OPCODE_PONG if first & FIN == 0 => {
                Err(FrameError::Malformed("control frames cannot be fragmented"))
            }
            OPCODE_CLOSE..=OPCODE_PONG if usize::from(length) > CONTROL_MAX_BYTES => {
                Err(FrameError::Malformed("control frames have at most 125 bytes"))
            }
            0..=2 | OPCODE_CLOSE..=OPCODE_PONG => Ok(()),
            _ => Err(FrameError::Malformed("unknown kind of frame")),
        }
    }

    fn parse_header(&self) -> Result<FrameStart, FrameError> {
        let [first, second, high, low, ..] = self.header;
        let length = match second & !MASKED {
            LENGTH_16 => match u16::from_be_bytes([high, low]) {
                ..=125 => return Err(FrameError::Malformed("the length is not in its shortest form")),
                length => usize::from(length),
            },
            short => usize::from(short),
        };
        let frame_max = match &self.message {
            Some(message) if first & !FIN < OPCODE_CLOSE => message.max_bytes - message.bytes.len(),
            _ => DATA_FRAME_MAX_BYTES,
        };
        if length > frame_max {
            return Err(FrameError::TooLong);
        }
        let mut mask = [0; MASK_BYTES];
        mask.copy_from_slice(&self.header[self.header_bytes - MASK_BYTES..self.header_bytes]);
        Ok(FrameStart { opcode: first & !FIN, is_final: first & FIN != 0, mask, length })
    }

    /// Consumes payload of `frame`, of which `read` bytes were consumed before. Returns how many more.
    fn read_payload(&mut self, frame: FrameStart, read: usize, input: &mut &[u8]) -> usize {
        let (payload, rest) = input.split_at(input.len().min(frame.length - read));
        *input = rest;
        if frame.is_control() {
            for (index, byte) in (read..).zip(payload) {
                self.control[index] = byte ^ frame.mask[index % MASK_BYTES];
            }
        } else if let Some(message) = &mut self.message {
            let bytes = (read..).zip(payload).map(|(index, byte)| byte ^ frame.mask[index % MASK_BYTES]);
            message.bytes.extend(bytes);
        } else {
            self.discarded_bytes += payload.len() as u64;
        }
        payload.len()
    }
}

/// Returns the length of a header, by its second byte.
fn header_length(second: u8) -> usize {
    let extended = if second & !MASKED == LENGTH_16 { 2 } else { 0 };
    2 + extended + MASK_BYTES
}

/// Returns the code in the payload of a close frame.
fn close_code(payload: &[u8]) -> Result<Option<u16>, FrameError> {
    match payload {
        [] => Ok(None),
        [high, low, reason @ ..] => match u16::from_be_bytes([*high, *low]) {
            // Others are reserved, or never sent.
            code @ (1000..=1003 | 1007..=1014 | 3000..=4999) if std::str::from_utf8(reason).is_ok() => {
                Ok(Some(code))
            }
            _ => Err(FrameError::Malformed("the close frame has an invalid code or reason")),
        },
        [_] => Err(FrameError::Malformed("the close frame has half a code")),
    }
}

// === impl FrameStart ===

impl FrameStart {
    fn is_control(self) -> bool {
        self.opcode >= OPCODE_CLOSE
    }
}

// === impl FrameError ===

impl FrameError {
    /// Returns the code of the close frame that answers it.
    pub fn close_code(self) -> u16 {
        match self {
            Self::TooLong => close_code::TOO_LONG,
            Self::Malformed(_) => close_code::PROTOCOL_ERROR,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};
    use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};

    use super::*;

    /// A control frame that owns its payload; or the error.
    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Event {
        Ping(Vec<u8>),
        Pong(Vec<u8>),
        Close(Option<u16>),
        Error(FrameError),
    }

    /// Reads the pieces. Returns the control frames, and how many bytes of data were thrown away.
    fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Event>, u64) {
        let (mut frames, mut events) = (ClientFrames::default(), Vec::new());
        for mut piece in pieces {
            while !piece.is_empty() {
                let event = match frames.read(&mut piece) {
                    Ok(None) => {
                        assert!(piece.is_empty());
                        continue;
                    }
                    Ok(Some(ClientFrame::Ping(payload))) => Event::Ping(payload.to_vec()),
                    Ok(Some(ClientFrame::Pong(payload))) => Event::Pong(payload.to_vec()),
                    Ok(Some(ClientFrame::Close(code))) => Event::Close(code),
                    Ok(Some(ClientFrame::Message(_))) => panic!("nothing is collected"),
                    Err(e) => Event::Error(e),
                };
                events.push(event);
            }
        }
        (events, frames.discarded_bytes())
    }

    /// Encodes a frame with tungstenite.
    fn encode(opcode: OpCode, is_final: bool, mask: Option<[u8; 4]>, payload: Vec<u8>) -> Vec<u8> {
        let header = FrameHeader { is_final, opcode, mask, ..FrameHeader::default() };
        let mut bytes = Vec::new();
        Frame::from_payload(header, payload.into()).format(&mut bytes).unwrap();
        bytes
    }

    fn masked(opcode: OpCode, payload: &[u8]) -> Vec<u8> {
        encode(opcode, true, Some([1, 2, 3, 4]), payload.to_vec())
    }

    const PING: OpCode = OpCode::Control(Control::Ping);
    const TEXT: OpCode = OpCode::Data(Data::Text);
    const CLOSE: OpCode = OpCode::Control(Control::Close);
    const CONTINUE: OpCode = OpCode::Data(Data::Continue);

    fn error_of(bytes: &[u8]) -> FrameError {
        let (events, _) = read([bytes]);
        let Some(Event::Error(error)) = events.last() else { panic!("{events:?}") };
        assert_eq!(events.len(), 1, "reads nothing after it");
        *error
    }

    #[test]
    fn data_frames_over_limit_are_too_long() {
        let most = masked(TEXT, &[0; DATA_FRAME_MAX_BYTES]);
        assert_eq!(read([&most[..]]), (vec![], DATA_FRAME_MAX_BYTES as u64));
        for length in [DATA_FRAME_MAX_BYTES + 1, 70_000] {
            let error = error_of(&masked(TEXT, &vec![0; length]));
            assert_eq!((error, error.close_code()), (FrameError::TooLong, 1009));
        }
    }

    #[test]
    fn malformed_frames_are_refused() {
        let shortest_is_one_byte = [0x82, 0xfe, 0, 125, 0, 0, 0, 0];
        for bytes in [
            encode(PING, true, None, vec![1]),
            encode(PING, false, Some([0; 4]), vec![]),
            masked(PING, &[0; 126]),
            masked(CONTINUE, b"x"),
            [encode(TEXT, false, Some([0; 4]), vec![]), masked(TEXT, b"x")].concat(),
            vec![0xc1, 0x80],
            vec![0x83, 0x80],
            vec![0x8b, 0x80],
            masked(CLOSE, &[3]),
            masked(CLOSE, &1005_u16.to_be_bytes()),
            masked(CLOSE, &999_u16.to_be_bytes()),
            masked(CLOSE, &5000_u16.to_be_bytes()),
            masked(CLOSE, &[0x03, 0xe8, 0xff]),
            shortest_is_one_byte.to_vec(),
        ] {
            let error = error_of(&bytes);
            assert_eq!(error.close_code(), 1002, "{bytes:?}");
            assert!(error.to_string().len() <= super::super::CLOSE_REASON_MAX_BYTES);
        }
    }

    #[test]
    fn nothing_is_read_after_close() {
        let bytes = [masked(CLOSE, &[0x03, 0xe8, b'x']), masked(PING, b""), vec![0xff; 40]].concat();
        assert_eq!(read([&bytes[..]]), (vec![Event::Close(Some(1000))], 0));
        assert_eq!(read([&masked(CLOSE, b"")[..]]), (vec![Event::Close(None)], 0));
    }

    fn close_payload() -> impl Strategy<Value = Vec<u8>> {
        let code = prop_oneof![1000..=1003_u16, 1007..=1013_u16, 3000..=4999_u16];
        (code, "\\PC{0,30}").prop_map(|(code, reason)| [&code.to_be_bytes(), reason.as_bytes()].concat())
    }

    /// Frames that a client may send, except a close frame, each with the expected event and bytes of data.
    fn valid_frames() -> impl Strategy<Value = Vec<(Vec<u8>, Option<Event>, usize)>> {
        let control = (any::<bool>(), any::<[u8; 4]>(), prop::collection::vec(any::<u8>(), 0..=125))
            .prop_map(|(is_ping, mask, payload)| {
                let kind = if is_ping { Control::Ping } else { Control::Pong };
                let bytes = encode(OpCode::Control(kind), true, Some(mask), payload.clone());
                (bytes, Some(if is_ping { Event::Ping(payload) } else { Event::Pong(payload) }), 0)
            });
        let length = prop_oneof![0..200_usize, 0..=DATA_FRAME_MAX_BYTES];
        let fragments =
            prop::collection::vec((any::<[u8; 4]>(), length, prop::option::of(control.clone())), 1..4);
        let message = fragments.prop_map(|fragments| {
            let last = fragments.len() - 1;
            let mut frames = Vec::new();
            for (index, (mask, length, between)) in fragments.into_iter().enumerate() {
                let opcode = if index == 0 { TEXT } else { CONTINUE };
                frames.push((encode(opcode, index == last, Some(mask), vec![b'x'; length]), None, length));
                // Control frames may come between the fragments of a message.
                frames.extend(between);
            }
            frames
        });
        let one = prop_oneof![control.prop_map(|frame| vec![frame]), message];
        prop::collection::vec(one, 0..6).prop_map(|frames| frames.concat())
    }

    /// Cuts `bytes` at these places.
    fn split<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let ends = cuts.iter().copied().chain([bytes.len()]);
        let mut start = 0;
        ends.map(|end| &bytes[std::mem::replace(&mut start, end)..end]).collect()
    }

    proptest! {
        #[test]
        fn any_split_reads_same_frames(
            frames in valid_frames(),
            close in prop::option::of(close_payload()),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            bytewise in prop::bool::weighted(0.1),
        ) {
            let mut bytes: Vec<u8> = frames.iter().flat_map(|(bytes, ..)| bytes.clone()).collect();
            let mut expected: Vec<_> = frames.iter().filter_map(|(_, event, _)| event.clone()).collect();
            let data: usize = frames.iter().map(|(.., data)| data).sum();
            if let Some(payload) = &close {
                bytes.extend(masked(CLOSE, payload));
                expected.push(Event::Close(Some(u16::from_be_bytes([payload[0], payload[1]]))));
            }
            let pieces = if bytewise { bytes.chunks(1).collect() } else { split(&bytes, &cuts) };
            prop_assert_eq!(read(pieces), (expected, data as u64));
        }

        #[test]
        fn any_split_of_any_bytes_reads_same(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0x80), Just(0x89)], 0..200),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            prop_assert_eq!(read([&bytes[..]]), read(split(&bytes, &cuts)));
        }

        /// tungstenite accepts each header that this reader accepts, and reads the same.
        #[test]
        fn header_reads_as_by_tungstenite(bytes in prop::collection::vec(any::<u8>(), 8), start in 0x80..0x8b_u8) {
            let bytes = [&[start, bytes[1] | 0x80], &bytes[2..]].concat();
            let mut frames = ClientFrames::default();
            if let Ok(Some(frame)) = frames.read_header(&mut &bytes[..]) {
                let (header, length) = FrameHeader::parse(&mut std::io::Cursor::new(&bytes)).unwrap().unwrap();
                prop_assert_eq!(usize::try_from(length).unwrap(), frame.length);
                prop_assert_eq!(header.mask, Some(frame.mask));
                prop_assert_eq!(header.is_final, frame.is_final);
                prop_assert_eq!(u8::from(header.opcode), frame.opcode);
            }
        }

        #[test]
        fn close_codes_are_those_of_tungstenite(code in prop_oneof![900..1100_u16, 2900..5100_u16]) {
            // Registered after tungstenite's list.
            prop_assume!(code != 1014);
            let is_accepted = close_code(&code.to_be_bytes()).is_ok();
            prop_assert_eq!(is_accepted, CloseCode::from(code).is_allowed());
        }
    }
}
