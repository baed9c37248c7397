//! The query parameters of a log stream with `format=entries`.

use std::time::Duration;

use super::query::{FilterSpelling, StreamKind, StreamQuery, invalid};
use crate::logs::LagPolicy;
use crate::model::cursor_text;
use crate::model::id::LeaseId;
use crate::model::limits::{CURSORS_MAX, FILTER_REPLICAS_MAX, HEARTBEAT};
use crate::model::proto::lease::{Cursor, OnLag, ServiceFilter, ServiceLogsRequest};

/// The value of `format` that selects entries.
const ENTRIES: &str = "entries";

/// The parameters of a log stream with `format=entries`: those of all log streams, and those of gRPC.
#[derive(Clone, Debug)]
pub(crate) struct EntriesQuery {
    common: StreamQuery,
    /// The selected replicas of the one selected service. Empty: all.
    replicas: Vec<u32>,
    since: Option<jiff::Timestamp>,
    previous: bool,
    resume: Vec<Cursor>,
    heartbeat: Option<Duration>,
}

/// Returns whether a query string asks for entries. Another format is ignored, as any unknown parameter.
pub(crate) fn selects_entries(query: &str) -> bool {
    let mut parameters = form_urlencoded::parse(query.as_bytes());
    parameters.find(|(name, _)| name == "format").is_some_and(|(_, format)| format == ENTRIES)
}

// === impl EntriesQuery ===

impl EntriesQuery {
    /// Parses a query string, without its question mark. It may select this many services.
    ///
    /// # Errors
    /// A text for the caller, which names the parameter and does not repeat its value.
    pub(crate) fn parse(query: &str, services_max: usize) -> Result<Self, String> {
        if !selects_entries(query) {
            return Err(invalid("format", "must be entries"));
        }
        let common = StreamQuery::parse(query, StreamKind::Logs, services_max)?;
        let mut parsed = Self {
            common,
            replicas: Vec::new(),
            since: None,
            previous: false,
            resume: Vec::new(),
            heartbeat: None,
        };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "replica" => parsed.add_replica(&value)?,
                "since" => {
                    let time = value.parse().map_err(|_| invalid("since", "must be a time in RFC 3339"))?;
                    parsed.since = Some(time);
                }
                "previous" => {
                    parsed.previous =
                        value.parse().map_err(|_| invalid("previous", "must be true or false"))?;
                }
                "resume" => parsed.add_cursor(&value)?,
                "heartbeat" => parsed.heartbeat = Some(parse_heartbeat(&value)?),
                _ => {}
            }
        }
        if let Some(unknown) = &parsed.common.unknown {
            return Err(invalid("service", &format!("has the name {unknown}, which no service can have")));
        }
        if !parsed.replicas.is_empty() && parsed.common.services.len() != 1 {
            return Err(invalid("replica", "needs one service"));
        }
        if parsed.previous && parsed.common.follow {
            return Err(invalid("previous", "and follow do not go together"));
        }
        let excluded = [
            ("tail", parsed.common.tail.is_some()),
            ("since", parsed.since.is_some()),
            ("previous", parsed.previous),
        ];
        if !parsed.resume.is_empty()
            && let Some((name, _)) = excluded.iter().find(|(_, is_set)| *is_set)
        {
            return Err(invalid("resume", &format!("and {name} do not go together")));
        }
        Ok(parsed)
    }

    /// Returns how services are selected.
    pub(crate) fn spelling(&self) -> FilterSpelling {
        self.common.spelling
    }

    /// Returns the request that gRPC has for this query.
    pub(crate) fn request(self, lease: &LeaseId) -> ServiceLogsRequest {
        let on_lag = match self.common.on_lag {
            LagPolicy::Drop => OnLag::Drop,
            LagPolicy::Refill => OnLag::Refill,
            LagPolicy::Close => OnLag::Close,
        };
        let filters = self
            .common
            .services
            .iter()
            .map(|service| ServiceFilter { name: service.to_string(), replicas: self.replicas.clone() });
        ServiceLogsRequest {
            lease_id: Some(lease.into()),
            filter: None,
            filters: filters.collect(),
            follow: self.common.follow,
            tail_lines: self.common.tail.map(u64::from),
            since: self.since.map(|time| prost_types::Timestamp {
                seconds: time.as_second(),
                nanos: time.subsec_nanosecond(),
            }),
            timestamps: true,
            previous: self.previous,
            resume: self.resume,
            on_lag: on_lag.into(),
            heartbeat: self.heartbeat.and_then(|interval| interval.try_into().ok()),
        }
    }

    fn add_replica(&mut self, value: &str) -> Result<(), String> {
        self.replicas.push(value.parse().map_err(|_| invalid("replica", "must be the index of a replica"))?);
        if self.replicas.len() > FILTER_REPLICAS_MAX {
            return Err(invalid("replica", &format!("must be given at most {FILTER_REPLICAS_MAX} times")));
        }
        Ok(())
    }

    fn add_cursor(&mut self, value: &str) -> Result<(), String> {
        let cursor = cursor_text::parse(value);
        self.resume.push(cursor.ok_or_else(|| invalid("resume", "must be a cursor of an entry"))?);
        if self.resume.len() > CURSORS_MAX {
            return Err(invalid("resume", &format!("must be given at most {CURSORS_MAX} times")));
        }
        Ok(())
    }
}

fn parse_heartbeat(value: &str) -> Result<Duration, String> {
    let interval =
        value.parse().ok().map(Duration::from_secs).filter(|interval| HEARTBEAT.contains(interval));
    interval.ok_or_else(|| invalid("heartbeat", "must be a number of seconds from 1 to 600"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEASE: &str =
        "akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev/7/1/1/akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0";

    fn request(query: &str) -> ServiceLogsRequest {
        EntriesQuery::parse(query, 4).unwrap().request(&LEASE.parse().unwrap())
    }

    #[test]
    fn parameters_become_the_request_of_grpc() {
        let got = request(
            "format=entries&follow=true&service=web&replica=0&replica=2&tail=5&since=2026-01-31T12:00:00.5Z\
             &on_lag=refill&heartbeat=2",
        );
        assert_eq!(got.lease_id.unwrap().dseq, 7);
        assert_eq!(
            (got.filters.len(), &*got.filters[0].name, &*got.filters[0].replicas),
            (1, "web", &[0, 2][..])
        );
        assert_eq!((got.follow, got.tail_lines, got.timestamps, got.previous), (true, Some(5), true, false));
        assert_eq!(got.since, Some(prost_types::Timestamp { seconds: 1_769_860_800, nanos: 500_000_000 }));
        assert_eq!((got.on_lag, got.resume.len()), (OnLag::Refill as i32, 0));
        assert_eq!(got.heartbeat.unwrap().seconds, 2);
        let got = request("format=entries");
        assert_eq!((got.filters.len(), got.follow, got.tail_lines, got.heartbeat), (0, false, None, None));
        assert!(request("format=entries&previous=true").previous);
        let cursors = "resume=web:0:u/web/1:5.000000006:7:0&resume=web:1:u/web/1::0:0";
        assert_eq!(request(&format!("format=entries&{cursors}")).resume.len(), 2);
    }

    #[test]
    fn invalid_parameters_are_named() {
        for (query, name) in [
            ("follow=true", "format"),
            ("format=lines", "format"),
            ("format=lines&format=entries", "format"),
            ("format=entries&resume=web:0:u/web/1::0:0&tail=5", "resume"),
            ("format=entries&resume=web:0:u/web/1::0:0&since=2026-01-31T12:00:00Z", "resume"),
            ("format=entries&resume=web:0:u/web/1::0:0&previous=true", "resume"),
            ("format=entries&replica=0", "replica"),
            ("format=entries&service=a,b&replica=0", "replica"),
            ("format=entries&service=a&replica=x", "replica"),
            ("format=entries&service=A_B", "service"),
            ("format=entries&since=1h", "since"),
            ("format=entries&previous=true&follow=true", "previous"),
            ("format=entries&resume=web", "resume"),
            ("format=entries&heartbeat=0", "heartbeat"),
            ("format=entries&heartbeat=601", "heartbeat"),
            ("format=entries&tail=-2", "tail"),
        ] {
            let error = EntriesQuery::parse(query, 4).unwrap_err();
            assert!(error.starts_with(&format!("parameter \"{name}\"")), "{query}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_query_is_parsed_or_refused(query in "[a-z=&,:/.0-9\u{0}-\u{ff}]{0,60}") {
            let _ = EntriesQuery::parse(&format!("format=entries&{query}"), 4);
        }
    }
}
