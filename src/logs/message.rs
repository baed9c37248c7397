//! Messages of one stream, with the attributes that positions and metrics need, and their batches.

use bytes::Bytes;
use tokio::time::Instant;

use super::chunk::Chunk;
use super::frame::{self, Event, Gap, Representation};
use crate::model::id::{Instance, Replica};
use crate::model::limits::STREAM_SEND_MAX_BYTES;
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::stream::Parts;

/// One message and its attributes.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// The complete gRPC message.
    pub(crate) bytes: Bytes,
    /// The position after it, if it has one.
    pub(crate) position: Option<(Instance, Position)>,
    /// Lines that end in it.
    pub(crate) lines: u64,
    pub(crate) log_bytes: u64,
    /// Time of its last line.
    pub(crate) last_time: Option<LogTime>,
    pub(crate) gap: Option<Gap>,
}

/// Messages that go to HTTP/2 as one frame.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) parts: Parts,
    /// Length of `parts`.
    pub(crate) bytes: usize,
    /// Messages that begin in the batch.
    pub(crate) messages: u64,
    /// Lines that end in these messages.
    pub(crate) lines: u64,
    pub(crate) log_bytes: u64,
    /// When the oldest live line was read, for the delivery delay. A backfill has no such delay.
    pub(crate) oldest: Option<Instant>,
    pub(crate) gaps: Vec<Gap>,
}

// === impl Message ===

impl Message {
    /// Creates a message without lines, position and gap.
    pub(crate) fn bare(bytes: Bytes) -> Self {
        Self { bytes, position: None, lines: 0, log_bytes: 0, last_time: None, gap: None }
    }

    /// Encodes a gap. `position` is the one after it.
    pub(crate) fn of_gap(replica: &Replica, position: Option<(Instance, Position)>, gap: Gap) -> Self {
        let at = position.as_ref().map(|(instance, position)| (instance, *position));
        let bytes = frame::gap(replica, at, &gap);
        Self { position, gap: Some(gap), ..Self::bare(bytes) }
    }

    pub(crate) fn of_event(replica: &Replica, event: &Event) -> Self {
        Self::bare(frame::event(replica, event))
    }

    /// Encodes a chunk for one follower.
    pub(crate) fn of_chunk(
        replica: &Replica,
        instance: &Instance,
        chunk: &Chunk,
        representation: Representation,
    ) -> Self {
        Self {
            bytes: frame::lines(replica, instance, chunk, representation).message,
            position: Some((instance.clone(), chunk.end)),
            lines: chunk.lines(),
            log_bytes: chunk.data.len() as u64,
            last_time: chunk.line_ends.last().map(|line| line.time),
            gap: None,
        }
    }
}

// === impl Batch ===

impl Batch {
    /// Creates a batch that begins with the remainder of a message, which was counted in the batch before.
    pub(crate) fn beginning_with(remainder: Option<Bytes>) -> Self {
        Self {
            bytes: remainder.as_ref().map_or(0, Bytes::len),
            parts: remainder.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Returns how many bytes are missing to a full batch. The last message may exceed them.
    pub(crate) fn room(&self) -> usize {
        STREAM_SEND_MAX_BYTES.saturating_sub(self.bytes)
    }

    /// Cuts its last message at `max_bytes`. Returns the remainder.
    pub(crate) fn cut(&mut self, max_bytes: usize) -> Option<Bytes> {
        let excess = self.bytes.checked_sub(max_bytes).filter(|excess| *excess > 0)?;
        let last = self.parts.last_mut()?;
        let remainder = last.split_off(last.len().saturating_sub(excess));
        self.bytes -= remainder.len();
        Some(remainder)
    }

    /// Appends a message; `read_at` is when the oldest line of a live message was read.
    pub(crate) fn add(&mut self, message: Message, read_at: Option<Instant>) {
        self.bytes += message.bytes.len();
        self.messages += 1;
        self.lines += message.lines;
        self.log_bytes += message.log_bytes;
        self.oldest = match (self.oldest, read_at) {
            (Some(oldest), Some(read_at)) => Some(oldest.min(read_at)),
            (oldest, read_at) => oldest.or(read_at),
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
        /// Every batch but the last is exactly full, and together they have all bytes.
        #[test]
        fn cut_keeps_every_byte(sizes in prop::collection::vec(1_usize..40, 1..60), max in 16_usize..64) {
            let mut source = sizes.iter().enumerate().map(|(i, size)| vec![u8::try_from(i).unwrap(); *size]);
            let all: Vec<u8> = source.clone().flatten().collect();
            let (mut sent, mut messages, mut remainder) = (Vec::new(), 0, None);
            loop {
                let mut batch = Batch::beginning_with(remainder.take());
                while batch.bytes < max && let Some(message) = source.next() {
                    batch.add(Message::bare(message.into()), None);
                }
                remainder = batch.cut(max);
                messages += batch.messages;
                let bytes: Vec<u8> = batch.parts.iter().flatten().copied().collect();
                prop_assert_eq!(bytes.len(), batch.bytes);
                prop_assert!(bytes.len() == max || remainder.is_none() && bytes.len() < max);
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
