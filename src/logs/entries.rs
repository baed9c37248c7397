//! Encodes log entries as websocket text frames: the JSON object of an entry of gRPC each. Pure.
//!
//! The object comes from [`entry_json`], which `leasemux ui` uses as well, so that both servers of the page
//! send the same.

use std::time::Duration;

use bytes::Bytes;

use super::chunk::Chunk;
use super::websocket::push_text_message;
use crate::model::entry_json;
use crate::model::id::{Instance, Replica};
use crate::model::proto::lease::ServiceLogs;

/// Upper bound on the bytes of a line besides its text: its time, two keys and punctuation are 52.
const LINE_OVERHEAD_BYTES: usize = 64;

/// Upper bound on the bytes of a frame besides its lines and names: keys, numbers and the header are below
/// 300.
const FRAME_OVERHEAD_BYTES: usize = 512;

/// Encodes an entry, whose lines have times.
pub(super) fn frame(entry: &ServiceLogs) -> Bytes {
    let mut frame = Vec::new();
    push_text_message(&entry_json::entry(entry), &mut frame);
    frame.into()
}

/// Encodes entries, each as a frame.
pub(super) fn frames(entries: impl IntoIterator<Item = ServiceLogs>) -> Bytes {
    let mut frames = Vec::new();
    for entry in entries {
        push_text_message(&entry_json::entry(&entry), &mut frames);
    }
    frames.into()
}

/// Encodes the end of a stream. `retry_after`: the delay before the stream can be resumed; `None` if it
/// cannot.
pub(crate) fn end(reason: &str, message: &str, retry_after: Option<Duration>) -> Bytes {
    let mut frame = Vec::new();
    push_text_message(&entry_json::end(reason, message, retry_after), &mut frame);
    frame.into()
}

/// Returns an upper bound on the bytes of the frame of `chunk` besides the text of its lines.
pub(super) fn overhead_max_bytes(replica: &Replica, instance: Option<&Instance>, chunk: &Chunk) -> usize {
    // The cursor repeats both names.
    let names = replica.service.as_str().len() + instance.map_or(0, |instance| instance.as_str().len());
    FRAME_OVERHEAD_BYTES + 2 * names + chunk.line_ends.len() * LINE_OVERHEAD_BYTES
}
