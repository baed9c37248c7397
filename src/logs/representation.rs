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
}

// === impl Representation ===

impl Representation {
    /// Whether messages are those of the draft, which are the same for all followers.
    pub(crate) fn is_draft(self) -> bool {
        matches!(self, Self::Plain | Self::Timestamped)
    }

    pub(crate) fn is_websocket(self) -> bool {
        matches!(self, Self::WebSocket(_))
    }
}
