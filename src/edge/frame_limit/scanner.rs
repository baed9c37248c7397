//! Finds frame headers in the bytes of an HTTP/2 connection (RFC 9113 §4.1) without buffering any of them.
//! Sans-I/O.

/// Bytes of a frame header: length (3), type (1), flags (1) and stream identifier (4).
pub(super) const HEADER_BYTES: usize = 9;

/// Bytes that a client sends before its first frame (RFC 9113 §3.4).
const PREFACE_BYTES: usize = 24;

/// Bytes of a header that this module reads: length and type.
const READ_BYTES: usize = 4;

/// Types of the frames that carry requests (RFC 9113 §6). All other types, unknown ones included, are control
/// frames.
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const CONTINUATION: u8 = 9;

/// A position within a sequence of frames.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scanner(State);

#[derive(Clone, Copy, Debug)]
enum State {
    /// Within the preface or a payload: this many bytes, at least one, before the next header.
    Skip(usize),
    /// Within a header, after `seen` bytes (at most eight). `read` holds the first of them.
    Header { read: [u8; READ_BYTES], seen: usize },
}

/// A frame whose header is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHead {
    pub(super) kind: u8,
    /// Bytes of the payload.
    pub(super) length: usize,
}

// === impl Scanner ===

impl Scanner {
    /// Creates a scanner for the start of a connection, which is the client's preface.
    pub(super) fn new() -> Self {
        Self(State::Skip(PREFACE_BYTES))
    }

    /// Moves past `bytes`, and calls `on_frame` for each header that ends in them.
    pub(super) fn scan(&mut self, mut bytes: &[u8], mut on_frame: impl FnMut(FrameHead)) {
        while !bytes.is_empty() {
            let step = self.bytes_until_next().min(bytes.len());
            let (taken, rest) = bytes.split_at(step);
            bytes = rest;
            self.0 = match self.0 {
                State::Skip(left) if left > step => State::Skip(left - step),
                State::Skip(_) => State::HEADER,
                State::Header { mut read, seen } => {
                    read.iter_mut().skip(seen).zip(taken).for_each(|(into, byte)| *into = *byte);
                    if seen + step < HEADER_BYTES {
                        State::Header { read, seen: seen + step }
                    } else {
                        let [high, middle, low, kind] = read;
                        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                        on_frame(FrameHead { kind, length });
                        if length == 0 { State::HEADER } else { State::Skip(length) }
                    }
                }
            };
        }
    }

    /// Returns the number of bytes that complete at most `frames` headers.
    pub(super) fn bytes_of(&self, frames: usize) -> usize {
        let headers = frames * HEADER_BYTES;
        match self.0 {
            State::Skip(left) => left.saturating_add(headers),
            State::Header { seen, .. } => headers.saturating_sub(seen),
        }
    }

    /// Returns whether the last frame is complete and the next one has not started.
    pub(super) fn is_between_frames(&self) -> bool {
        matches!(self.0, State::Header { seen: 0, .. })
    }

    /// Returns the remaining bytes of the current header or payload.
    pub(super) fn bytes_until_next(&self) -> usize {
        match self.0 {
            State::Skip(left) => left,
            State::Header { seen, .. } => HEADER_BYTES - seen,
        }
    }
}

impl State {
    /// Before a header.
    const HEADER: Self = Self::Header { read: [0; READ_BYTES], seen: 0 };
}

// === impl FrameHead ===

impl FrameHead {
    /// Returns whether the frame is a control frame: every type but HEADERS, CONTINUATION and DATA.
    pub(super) fn is_control(self) -> bool {
        !matches!(self.kind, DATA | HEADERS | CONTINUATION)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let mut frame = u32::try_from(length).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, 0, 0, 0, 0, 1]);
        // Payload that looks like headers.
        frame.extend((0..length).map(|at| u8::try_from(at % 3).unwrap()));
        frame
    }

    fn connection(frames: &[(u8, usize)]) -> Vec<u8> {
        let frames = frames.iter().flat_map(|(kind, length)| frame(*kind, *length));
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".iter().copied().chain(frames).collect()
    }

    #[test]
    fn frames_other_than_requests_are_control_frames() {
        for kind in 0..=u8::MAX {
            let is_request = [0, 1, 9].contains(&kind);
            assert_eq!(FrameHead { kind, length: 0 }.is_control(), !is_request, "{kind}");
        }
    }

    #[test]
    fn scanner_at_the_start_waits_for_the_preface() {
        let mut scanner = Scanner::new();
        assert!(!scanner.is_between_frames());
        assert_eq!(scanner.bytes_of(2), 24 + 18);
        scanner.scan(&connection(&[]), |head| panic!("{head:?}"));
        assert!(scanner.is_between_frames());
        assert_eq!(scanner.bytes_of(2), 18);
        scanner.scan(&[0, 0, 8], |head| panic!("{head:?}"));
        assert_eq!((scanner.bytes_of(1), scanner.bytes_of(2)), (6, 15));
        assert!(!scanner.is_between_frames());
    }

    proptest! {
        /// For any parts, each frame is reported once, and never more of them than `bytes_of` allows.
        #[test]
        fn frames_are_found_in_any_parts(
            frames in prop::collection::vec((any::<u8>(), 0_usize..70), 0..40),
            allowed in prop::collection::vec(1_usize..6, 1..20),
            cuts in prop::collection::vec(1_usize..40, 1..20),
        ) {
            let bytes = connection(&frames);
            let expected: Vec<_> =
                frames.iter().map(|&(kind, length)| FrameHead { kind, length }).collect();
            let (mut scanner, mut found, mut rest) = (Scanner::new(), Vec::new(), &bytes[..]);
            for (allowed, cut) in allowed.iter().cycle().zip(cuts.iter().cycle()) {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at(scanner.bytes_of(*allowed).min(*cut).min(rest.len()));
                let before = found.len();
                scanner.scan(piece, |head| found.push(head));
                prop_assert!(found.len() - before <= *allowed);
                rest = after;
            }
            prop_assert_eq!(found, expected);
            prop_assert!(scanner.is_between_frames());
        }

        #[test]
        fn any_bytes_are_scanned(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
            let (mut scanner, mut frames) = (Scanner::new(), 0);
            scanner.scan(&bytes, |_| frames += 1);
            prop_assert!(frames * HEADER_BYTES <= bytes.len());
        }
    }
}
