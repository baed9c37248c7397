//! What a websocket sends, as its request selects it.

use super::entries_query::{EntriesQuery, selects_entries};
use super::query::{StreamKind, StreamQuery};
use crate::access::grants::Services;
use crate::access::refusal::Refusal;
use crate::edge::errors::CallError;
use crate::edge::request;
use crate::logs::LogsRequest;
use crate::logs::representation::Representation;
use crate::model::id::LeaseId;
use crate::model::metrics::FilterSpelling;
use crate::model::view::Filter;

/// What a stream sends.
#[derive(Debug)]
pub(super) enum StreamContent {
    /// Log lines and notices, in the frames of the Akash provider.
    Lines(StreamQuery, Filter),
    /// Log entries, as gRPC has them.
    Entries(Box<LogsRequest>),
    /// Events.
    Events(StreamQuery, Filter),
    /// The status, and with `follow` each change of it.
    Status(StreamQuery, Filter),
}

// === impl StreamContent ===

impl StreamContent {
    /// Parses the query of a stream of `lease`, which may select this many services. Also returns how it
    /// selects them.
    pub(super) fn parse(
        kind: StreamKind,
        query: &str,
        lease: &LeaseId,
        services_max: usize,
    ) -> Result<(Self, FilterSpelling), CallError> {
        if kind == StreamKind::Logs && selects_entries(query) {
            return Self::parse_entries(query, lease, services_max);
        }
        let query = StreamQuery::parse(query, kind, services_max).map_err(CallError::request)?;
        let (spelling, filter) = (query.spelling, query.filter());
        let content = match kind {
            StreamKind::Logs => Self::Lines(query, filter),
            StreamKind::Events => Self::Events(query, filter),
            StreamKind::Status => Self::Status(query, filter),
        };
        Ok((content, spelling))
    }

    /// Parses the query of a log stream as [`StreamContent::parse`] does, and refuses one that does not ask
    /// for entries.
    pub(super) fn parse_entries(
        query: &str,
        lease: &LeaseId,
        services_max: usize,
    ) -> Result<(Self, FilterSpelling), CallError> {
        let query = EntriesQuery::parse(query, services_max).map_err(CallError::request)?;
        let spelling = query.spelling();
        let request = request::logs(&query.request(lease), services_max)?;
        let request = LogsRequest { representation: Representation::Entries, ..request };
        Ok((Self::Entries(Box::new(request)), spelling))
    }

    /// Restricts it to these services.
    pub(super) fn narrow(&mut self, services: &Services) -> Result<(), Refusal> {
        match self {
            Self::Lines(_, filter) | Self::Events(_, filter) | Self::Status(_, filter) => {
                services.narrow(filter)
            }
            Self::Entries(request) => request::narrow(request, services),
        }
    }

    pub(super) fn kind(&self) -> StreamKind {
        match self {
            Self::Lines(..) | Self::Entries(_) => StreamKind::Logs,
            Self::Events(..) => StreamKind::Events,
            Self::Status(..) => StreamKind::Status,
        }
    }
}
