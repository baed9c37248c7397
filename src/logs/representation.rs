//! The representations of log lines, by protocol.

use super::notice::Notices;

/// How lines are represented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Representation {
    /// As recorded.
    Plain,
    /// Each with a prefix of its RFC 3339 time with nanoseconds and a space, as by kubectl.
    Timestamped,
    /// As websocket text frames, with these notices.
    WebSocket(Notices),
    /// As entries of the published proto, with these notices.
    Published(Notices),
    /// As websocket text frames, each the JSON object of one entry with times (`format=entries`).
    Entries,
}

// === impl Representation ===

impl Representation {
    /// Whether messages are websocket frames.
    pub(crate) fn is_websocket(self) -> bool {
        matches!(self, Self::WebSocket(_) | Self::Entries)
    }
}
