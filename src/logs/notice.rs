//! Notices: gaps, events and ends as readable lines, for protocols without fields for them.

use std::str::FromStr;

use super::message::{self, Gap};
use crate::model::label::label;
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

label! {
    /// The kind of a notice, by a name for programs that never changes.
    pub(crate) enum NoticeKind as "kind" {
        /// Lines are missing.
        Gap = "gap",
        Started = "started",
        Ended = "ended",
        /// No run is running, but one is expected to.
        Waiting = "waiting",
        /// The replica is no longer part of the lease.
        Gone = "gone",
        /// The stream waits for a limit of the gateway, or for a log.
        Wait = "wait",
        /// The request failed.
        Error = "error",
        /// The stream ends early.
        End = "end",
    }
}

/// One notice.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Notice<'a> {
    pub(crate) kind: NoticeKind,
    /// A sentence on one line, without brackets.
    pub(crate) text: String,
    pub(crate) details: Details<'a>,
}

/// The parts of a notice for programs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Details<'a> {
    None,
    Gap(&'a Gap),
    Event(&'a ReplicaEvent),
    /// The stable reason of an error or end.
    Reason(&'a str),
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
    /// Whether an unfinished line of the replica does not continue after it.
    pub(crate) fn ends_line(self) -> bool {
        matches!(self, Self::Gap | Self::Started | Self::Ended | Self::Gone)
    }
}

// === impl Notice ===

impl<'a> Notice<'a> {
    /// Creates the notice of a gap, with the words that gRPC clients receive.
    pub(crate) fn of_gap(gap: &'a Gap) -> Self {
        let line = message::notice(gap);
        let text = line.strip_prefix("[leasemux: ").and_then(|rest| rest.strip_suffix("]\n"));
        Self { kind: NoticeKind::Gap, text: text.unwrap_or(&line).to_owned(), details: Details::Gap(gap) }
    }

    /// Creates the notice of an event of the replica with this index; `None` = of no replica. Returns `None`
    /// for an event of an unknown kind.
    pub(crate) fn of_event(index: Option<u32>, event: &'a ReplicaEvent) -> Option<Self> {
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
        Some(Self { kind, text, details: Details::Event(event) })
    }

    /// Creates the notice that the stream waits for a permit to read older lines, or for their log.
    pub(crate) fn wait() -> Self {
        Self::new(NoticeKind::Wait, "waiting for a backfill slot")
    }

    /// Creates a notice with this sentence.
    pub(crate) fn new(kind: NoticeKind, text: &str) -> Self {
        Self { kind, text: replica_text::one_line(text), details: Details::None }
    }

    /// Adds the stable reason of an error or end.
    pub(crate) fn with_reason(self, reason: &'a str) -> Self {
        Self { details: Details::Reason(reason), ..self }
    }

    /// Returns the line, without a newline.
    pub(crate) fn line(&self) -> String {
        format!("[leasemux: {}]", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::label::LabelValue as _;
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
        for kind in NoticeKind::ALL {
            assert!(Notices::All.includes(*kind) && !Notices::None.includes(*kind));
        }
        let of_loss = NoticeKind::ALL.iter().filter(|kind| Notices::Loss.includes(**kind));
        assert_eq!(of_loss.map(|kind| kind.label()).collect::<Vec<_>>(), ["gap", "error", "end"]);
        assert_eq!("loss".parse(), Ok(Notices::Loss));
        assert!("some".parse::<Notices>().is_err());
    }
}
