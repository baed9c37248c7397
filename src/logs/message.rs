//! A message on its way into one stream, and what it stands for there.

use bytes::Bytes;
use tokio::time::Instant;

use super::chunk::Chunk;
use super::frame::{self, Gap, Representation};
use crate::model::id::{Instance, Replica};
use crate::model::limits::STREAM_SEND_MAX_BYTES;
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::stream::Parts;

/// One message, and what it stands for.
#[derive(Clone, Debug)]
pub struct Message {
    /// The complete gRPC message.
    pub bytes: Bytes,
    /// The position behind it, if it moves one.
    pub at: Option<(Instance, Position)>,
    /// Lines that end in it.
    pub lines: u64,
    /// Log bytes in it.
    pub log_bytes: u64,
    /// Time of its last line.
    pub last_time: Option<LogTime>,
    /// The gap that it reports.
    pub gap: Option<Gap>,
}

/// Messages put together for one hand-over to HTTP/2.
#[derive(Debug, Default)]
pub struct Batch {
    /// Their bytes.
    pub parts: Parts,
    /// How many bytes these are.
    pub bytes: usize,
    /// How many messages began in it.
    pub messages: u64,
    /// Lines that end in them.
    pub lines: u64,
    /// Log bytes in them.
    pub log_bytes: u64,
    /// When the oldest line was read, as far as that tells anything.
    pub oldest: Option<Instant>,
    /// The gaps that they report.
    pub gaps: Vec<Gap>,
}

// === impl Message ===

impl Message {
    /// One that holds no lines.
    pub fn bare(bytes: Bytes) -> Self {
        Self { bytes, at: None, lines: 0, log_bytes: 0, last_time: None, gap: None }
    }

    /// A chunk, encoded for one follower.
    pub fn of_chunk(replica: &Replica, instance: &Instance, chunk: &Chunk, as_what: Representation) -> Self {
        Self {
            bytes: frame::lines(replica, instance, chunk, as_what).message,
            at: Some((instance.clone(), chunk.end)),
            lines: chunk.lines(),
            log_bytes: chunk.data.len() as u64,
            last_time: chunk.marks.last().map(|mark| mark.time),
            gap: None,
        }
    }
}

// === impl Batch ===

impl Batch {
    /// With the rest of a message that was counted when its beginning was handed over.
    pub fn beginning_with(rest: Option<Bytes>) -> Self {
        Self {
            bytes: rest.as_ref().map_or(0, Bytes::len),
            parts: rest.into_iter().collect(),
            ..Self::default()
        }
    }

    /// How many bytes are missing to a full hand-over; the last message may go beyond.
    pub fn room(&self) -> usize {
        STREAM_SEND_MAX_BYTES.saturating_sub(self.bytes)
    }

    /// Cuts off what its last message has beyond `max_bytes`.
    pub fn cut(&mut self, max_bytes: usize) -> Option<Bytes> {
        let beyond = self.bytes.checked_sub(max_bytes).filter(|beyond| *beyond > 0)?;
        let last = self.parts.last_mut()?;
        let rest = last.split_off(last.len().saturating_sub(beyond));
        self.bytes -= rest.len();
        Some(rest)
    }

    /// Puts a message in, whose oldest line was read at `read_at`, if that tells anything.
    pub fn add(&mut self, message: Message, read_at: Option<Instant>) {
        self.bytes += message.bytes.len();
        self.messages += 1;
        self.lines += message.lines;
        self.log_bytes += message.log_bytes;
        self.oldest = match (self.oldest, read_at) {
            (Some(known), Some(other)) => Some(known.min(other)),
            (known, other) => known.or(other),
        };
        self.gaps.extend(message.gap);
        self.parts.push(message.bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Messages put in at random leave in pieces, byte for byte, each piece full but the last.
        #[test]
        fn cutting_loses_nothing(sizes in prop::collection::vec(1_usize..40, 1..60), max in 16_usize..64) {
            let mut source = sizes.iter().enumerate().map(|(i, size)| vec![u8::try_from(i).unwrap(); *size]);
            let all: Vec<u8> = source.clone().flatten().collect();
            let (mut sent, mut messages, mut rest) = (Vec::new(), 0, None);
            loop {
                let mut batch = Batch::beginning_with(rest.take());
                while batch.bytes < max && let Some(message) = source.next() {
                    batch.add(Message::bare(message.into()), None);
                }
                rest = batch.cut(max);
                messages += batch.messages;
                let bytes: Vec<u8> = batch.parts.iter().flatten().copied().collect();
                prop_assert_eq!(bytes.len(), batch.bytes);
                prop_assert!(bytes.len() == max || rest.is_none() && bytes.len() < max);
                sent.extend_from_slice(&bytes);
                if bytes.len() < max {
                    break;
                }
            }
            prop_assert_eq!(sent, all);
            prop_assert_eq!(messages, sizes.len() as u64);
        }
    }
}
