//! A message on its way into one stream, and what it stands for there.

use bytes::Bytes;

use super::chunk::Chunk;
use super::frame::{self, Gap, Representation};
use crate::model::id::{Instance, Replica};
use crate::model::position::Position;
use crate::model::time::LogTime;

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
