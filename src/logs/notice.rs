//! Notices: gaps, events and ends as readable lines, for protocols without fields for them.

use std::str::FromStr;

use super::message::{self, Gap};
use crate::model::proto::lease::ReplicaEvent;
use crate::model::proto::lease::replica_event::Kind;
use crate::model::replica_text;

/// The notices that a stream contains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Notices {
    /// All.
    #[default]
    All,
    /// Those about lost lines and about the end of the stream.
    Loss,
    /// None.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoticeKind {
    /// Lines were lost.
    Gap,
    Started,
    Ended,
    Waiting,
    Gone,
    /// The stream waits for a limit of the gateway.
    Wait,
    /// The request failed.
    Error,
    /// The stream ends early.
    End,
}

/// One notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) kind: NoticeKind,
    /// A sentence on one line, without brackets.
    pub(crate) text: String,
}

// === impl Notices ===

impl Notices {
    pub(crate) fn includes(self, kind: NoticeKind) -> bool {
        match self {
            Self::All => true,
            Self::Loss => matches!(kind, NoticeKind::Gap | NoticeKind::Error | NoticeKind::End),
            Self::None => false,
        }
    }
}

impl FromStr for Notices {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => Ok(Self::All),
            "loss" => Ok(Self::Loss),
            "none" => Ok(Self::None),
            _ => Err("must be all, loss or none"),
        }
    }
}

// === impl NoticeKind ===

impl NoticeKind {
    /// Returns its name for programs, which never changes.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gap => "gap",
            Self::Started => "started",
            Self::Ended => "ended",
            Self::Waiting => "waiting",
            Self::Gone => "gone",
            Self::Wait => "wait",
            Self::Error => "error",
            Self::End => "end",
        }
    }
}

// === impl Notice ===

impl Notice {
    /// Creates the notice of a gap, with the words that gRPC clients receive.
    pub(crate) fn of_gap(gap: &Gap) -> Self {
        let line = message::notice(gap);
        let text = line.strip_prefix("[leasemux: ").and_then(|rest| rest.strip_suffix("]\n"));
        Self { kind: NoticeKind::Gap, text: text.unwrap_or(&line).to_owned() }
    }

    /// Creates the notice of an event of the replica with this index; `None` = of no replica. Returns `None`
    /// for an event of an unknown kind.
    pub(crate) fn of_event(index: Option<u32>, event: &ReplicaEvent) -> Option<Self> {
        let ReplicaEvent { reason, message, .. } = event;
        let (kind, text) = match (event.kind(), index) {
            (Kind::Started, Some(index)) => (NoticeKind::Started, replica_text::started(index)),
            (Kind::Ended, Some(index)) => {
                (NoticeKind::Ended, replica_text::ended(index, event.exit_code, event.signal, reason))
            }
            // The run is not waiting: only its lines are late.
            (Kind::Waiting, Some(index)) if reason == message::FOLLOW_UNAVAILABLE => {
                (NoticeKind::Waiting, format!("replica {index}: {message}"))
            }
            (Kind::Waiting, Some(index)) => {
                (NoticeKind::Waiting, replica_text::waiting(index, reason, message))
            }
            (Kind::Waiting, None) => (NoticeKind::Waiting, replica_text::one_line(message)),
            (Kind::Gone, Some(index)) => (NoticeKind::Gone, replica_text::gone(index)),
            (Kind::Unspecified, _) | (_, None) => return None,
        };
        Some(Self { kind, text })
    }

    /// Creates a notice with this sentence.
    pub(crate) fn new(kind: NoticeKind, text: &str) -> Self {
        Self { kind, text: replica_text::one_line(text) }
    }

    /// Returns the line, without a newline.
    pub(crate) fn line(&self) -> String {
        format!("[leasemux: {}]", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::line::GapCause;

    fn event(kind: Kind, reason: &str, message: &str) -> ReplicaEvent {
        let (reason, message) = (reason.to_owned(), message.to_owned());
        ReplicaEvent { kind: kind.into(), reason, message, ..ReplicaEvent::default() }
    }

    #[test]
    fn gap_notice_has_the_words_of_grpc() {
        let gap = Gap { cause: GapCause::Lag, lines: 12, bytes: 345, exact: true, from: None, to: None };
        let notice = Notice::of_gap(&gap);
        assert_eq!(notice.text, "12 lines (345 bytes) missing here: the follower fell behind");
        assert_eq!(notice.line() + "\n", message::notice(&gap));
    }

    #[test]
    fn event_notice_names_the_replica() {
        let text = |event: &ReplicaEvent| Notice::of_event(Some(0), event).map(|notice| notice.line());
        let ended = ReplicaEvent { exit_code: Some(137), ..event(Kind::Ended, "OOMKilled", "") };
        assert_eq!(
            text(&ended).as_deref(),
            Some("[leasemux: replica 0 ended with exit code 137 (OOMKilled)]")
        );
        assert_eq!(text(&event(Kind::Started, "", "")).as_deref(), Some("[leasemux: replica 0 started]"));
        let late = event(Kind::Waiting, message::FOLLOW_UNAVAILABLE, "read later");
        assert_eq!(text(&late).as_deref(), Some("[leasemux: replica 0: read later]"));
        assert_eq!(text(&event(Kind::Unspecified, "", "")), None);
        let nothing = event(Kind::Waiting, "NothingDeployed", "no replica\nis here");
        assert_eq!(Notice::of_event(None, &nothing).unwrap().text, "no replica is here");
        assert_eq!(Notice::of_event(None, &event(Kind::Gone, "", "")), None);
    }

    #[test]
    fn loss_setting_includes_loss_and_ends() {
        use NoticeKind::{End, Ended, Error, Gap, Gone, Started, Wait, Waiting};
        for kind in [Gap, Started, Ended, Waiting, Gone, Wait, Error, End] {
            assert!(Notices::All.includes(kind) && !Notices::None.includes(kind), "{}", kind.name());
            assert_eq!(Notices::Loss.includes(kind), matches!(kind, Gap | Error | End), "{}", kind.name());
        }
        assert_eq!("loss".parse(), Ok(Notices::Loss));
        assert!("some".parse::<Notices>().is_err());
    }
}
