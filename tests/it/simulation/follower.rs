//! A follower: it reads fast, slowly or not at all, and connects again from its cursors.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use leasemux::model::proto::lease::lease_rpc_client::LeaseRpcClient;
use leasemux::model::proto::lease::{Cursor, OnLag, ServiceLogsRequest, ServiceLogsResponse};
use prost::Message as _;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::check::{History, Progress, Start};
use super::clock;
use super::outcome::{Outcome, Violation};
use super::world::World;
use crate::support::gateway::proto_lease;

/// Nothing comes for so long only if nothing is on its way.
const IDLE: Duration = Duration::from_millis(1);

/// Longest wait until a stream is opened. A gateway may wait for the API server.
const OPEN_MAX: Duration = Duration::from_secs(30);

pub(super) struct Follower {
    number: usize,
    pub(super) pace: Pace,
    pub(super) on_lag: OnLag,
    /// Number of last lines to begin with. `None`: from the oldest line.
    tail: Option<u64>,
    pub(super) replicas: Vec<Progress>,
    stream: Option<Open>,
}

/// How many responses it takes in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    Fast,
    /// One or a few.
    Slow(usize),
    Stalled,
}

struct Open {
    site: usize,
    responses: Streaming<ServiceLogsResponse>,
    _client: LeaseRpcClient<Channel>,
}

// === impl Follower ===

impl Follower {
    pub(super) fn new(number: usize, on_lag: OnLag, tail: Option<u64>, pace: Pace, replicas: usize) -> Self {
        let replicas = (0..replicas).map(|_| Progress::new(Start::Anywhere)).collect();
        Self { number, pace, on_lag, tail, replicas, stream: None }
    }

    /// The site at which it has an open stream.
    pub(super) fn site(&self) -> Option<usize> {
        self.stream.as_ref().map(|open| open.site)
    }

    /// Vanishes without a word, and may come back.
    pub(super) fn disconnect(&mut self) {
        self.stream = None;
    }

    /// Opens a stream at a gateway, from its cursors.
    pub(super) async fn open(
        &mut self,
        site: usize,
        world: &mut World,
        history: &History,
        outcome: &mut Outcome,
    ) -> Result<(), Violation> {
        self.stream = None;
        let Some(mut client) = world.connect(site).await else { return Ok(()) };
        let resume: Vec<_> = self.replicas.iter().filter_map(|progress| progress.cursor.clone()).collect();
        // Not both: a replica without a cursor is read from its oldest line.
        let tail = self.tail.filter(|_| resume.is_empty());
        for (replica, progress) in self.replicas.iter_mut().enumerate() {
            let reads = world.reads(site);
            let is_known = match progress.next {
                None => true,
                Some((run, _)) => world.is_known_at(site, replica, &history.runs[replica][run]).await,
            };
            progress.begin(reads, is_known);
            if progress.cursor.is_none() {
                progress.start = match tail {
                    None => Start::Until(history.oldest(replica, reads.files)),
                    Some(_) => Start::Anywhere,
                };
            }
        }
        let request = ServiceLogsRequest {
            lease_id: Some(proto_lease(&world.lease)),
            follow: true,
            tail_lines: tail,
            on_lag: self.on_lag.into(),
            resume,
            ..ServiceLogsRequest::default()
        };
        clock::record(format_args!("{self} opens at {site}"));
        match tokio::time::timeout(OPEN_MAX, client.service_logs(request)).await {
            Err(_) => clock::record(format_args!("{self}: no answer")),
            Ok(Ok(response)) => {
                outcome.streams += 1;
                self.stream = Some(Open { site, responses: response.into_inner(), _client: client });
            }
            Ok(Err(status)) => self.end(&status, outcome)?,
        }
        Ok(())
    }

    /// Takes responses that are there, up to the number of its pace.
    pub(super) async fn read(&mut self, history: &History, outcome: &mut Outcome) -> Result<(), Violation> {
        let most = match self.pace {
            Pace::Fast => usize::MAX,
            Pace::Slow(most) => most,
            Pace::Stalled => 0,
        };
        for _ in 0..most {
            let Some(open) = &mut self.stream else { return Ok(()) };
            match tokio::time::timeout(IDLE, open.responses.message()).await {
                Err(_) => return Ok(()),
                Ok(Ok(Some(response))) => self.take(response, history, outcome)?,
                Ok(Ok(None)) => {
                    return Err(Violation::wrong("a follow ended by itself".to_owned()).of(&self));
                }
                Ok(Err(status)) => self.end(&status, outcome)?,
            }
        }
        Ok(())
    }

    fn take(
        &mut self,
        response: ServiceLogsResponse,
        history: &History,
        outcome: &mut Outcome,
    ) -> Result<(), Violation> {
        clock::record(format_args!("{self} gets {}", Received(&response)));
        for entry in response.services {
            // An entry of the whole stream has no replica's name.
            let replica = entry.replica as usize;
            let progress = &mut self.replicas[replica];
            let taken = progress.take(entry, history, outcome);
            taken.map_err(|violation| violation.of(format_args!("{self}, replica {replica}")))?;
        }
        Ok(())
    }

    fn end(&mut self, status: &Status, outcome: &mut Outcome) -> Result<(), Violation> {
        clock::record(format_args!("{self} ends: {:?} {}", status.code(), status.message()));
        *outcome.ends.entry(format!("{:?}", status.code())).or_default() += 1;
        self.stream = None;
        match status.code() {
            // It lagged, a quota, the gateway or the API server is gone, the connection was cut.
            Code::ResourceExhausted
            | Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::Internal => Ok(()),
            code => Err(Violation::wrong(format!("ended with {code:?}: {}", status.message())).of(&self)),
        }
    }
}

impl fmt::Display for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "follower {} ({:?}, {:?})", self.number, self.on_lag, self.tail)
    }
}

/// A response in the record: what it has, and a hash of its bytes.
struct Received<'a>(&'a ServiceLogsResponse);

impl fmt::Display for Received<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in &self.0.services {
            let logs = String::from_utf8_lossy(&entry.logs);
            let begin = |line: Option<&str>| line.unwrap_or_default().chars().take(12).collect::<String>();
            let (first, last) = (begin(logs.lines().next()), begin(logs.lines().next_back()));
            write!(f, "[{}: {} bytes {first:?} to {last:?}", entry.replica, logs.len())?;
            if let Some(gap) = &entry.gap {
                write!(f, ", gap of {} ({:?}, exact: {})", gap.lines, gap.cause(), gap.exact)?;
            }
            if let Some(event) = &entry.event {
                write!(f, ", {:?} {} {}", event.kind(), event.instance, event.reason)?;
            }
            if let Some(Cursor { instance, time, ordinal, offset, .. }) = &entry.cursor {
                let nanos = time.as_ref().map(|time| (time.seconds, time.nanos));
                write!(f, ", {instance} {nanos:?} {ordinal} {offset}")?;
            }
            f.write_str("] ")?;
        }
        let mut hasher = DefaultHasher::new();
        self.0.encode_to_vec().hash(&mut hasher);
        write!(f, "{:x}", hasher.finish())
    }
}
