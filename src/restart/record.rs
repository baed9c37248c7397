//! The restart record: the payload of a lease's restart lock. It names the restart in progress and the
//! outcomes of recent requests with an id. Pure: no I/O and no clock.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::job::{ReplicaOutcome, RestartJob};
use super::{JobRequest, REMEMBERED_FOR};
use crate::model::id::{LeaseId, Replica, RequestId};
use crate::model::text::truncate;
use crate::platform::RestartRequest;
use crate::platform::coordination::PAYLOAD_MAX_BYTES;

/// Remembered requests of one lease: a little more than the default quota of 60 restarts per hour.
const REQUESTS_MAX: usize = 64;

/// Longest reason of one replica: a Kubernetes reason and the start of its message.
const REASON_MAX_BYTES: usize = 256;

/// Length of a filter's digest: enough to make collisions improbable.
const DIGEST_BYTES: usize = 16;

/// The restart in progress and recent requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RestartRecord {
    /// The replica that the writer was restarting or about to restart. Stored as `hand` (the replica in
    /// hand): gateways of other versions read and write this name, and those below.
    #[serde(rename = "hand", default, skip_serializing_if = "Option::is_none")]
    pub(super) in_progress: Option<InProgress>,
    /// Ordered by time of writing, oldest first.
    #[serde(rename = "calls", default, skip_serializing_if = "VecDeque::is_empty")]
    requests: VecDeque<RecordedRequest>,
}

/// A replica that is being restarted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InProgress {
    service: String,
    index: u32,
    /// The instance to replace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run: Option<String>,
    /// The id of the request, if it has one.
    #[serde(rename = "call", default, skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
}

/// A request with an id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RecordedRequest {
    id: String,
    /// Digest of the request's filter.
    of: String,
    /// Time of writing in Unix seconds, by the writer's clock.
    at: i64,
    replicas: Vec<Entry>,
}

/// One replica of a request: service, index, result, reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry(String, u32, RecordedResult, #[serde(default, skip_serializing_if = "String::is_empty")] String);

/// The recorded result of a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum RecordedResult {
    #[default]
    #[serde(rename = "-")]
    Open,
    #[serde(rename = "a")]
    Active,
    #[serde(rename = "f")]
    Failed,
    #[serde(rename = "n")]
    NotAttempted,
}

// === impl RestartRecord ===

impl RestartRecord {
    /// Parses a payload; an empty one is an empty record. Returns `None` if the payload is not a restart
    /// record.
    pub(super) fn parse(payload: &str) -> Option<Self> {
        if payload.is_empty() { Some(Self::default()) } else { serde_json::from_str(payload).ok() }
    }

    /// Returns the payload: requests of the last hour before `now` (Unix seconds) that fit into
    /// [`PAYLOAD_MAX_BYTES`], newest first to keep. Empty if there is nothing to record.
    pub(super) fn encode(&mut self, now: i64) -> String {
        // Clocks differ. A request from more than an hour in the future has a wrong time and would stay too
        // long.
        self.requests.retain(|request| request.at.abs_diff(now) <= REMEMBERED_FOR.as_secs());
        while self.requests.len() > REQUESTS_MAX {
            self.requests.pop_front();
        }
        loop {
            if self.in_progress.is_none() && self.requests.is_empty() {
                return String::new();
            }
            let payload = serde_json::to_string(self).unwrap_or_default();
            if payload.len() <= PAYLOAD_MAX_BYTES || self.requests.pop_front().is_none() {
                return payload;
            }
        }
    }

    pub(super) fn request(&self, id: &RequestId) -> Option<&RecordedRequest> {
        self.requests.iter().find(|request| request.id == id.to_string())
    }

    /// Records the outcomes of `job` so far, at `now` (Unix seconds). A job without a request id is not
    /// recorded.
    pub(super) fn put(&mut self, job: &RestartJob, now: i64) {
        let Some(id) = &job.request.id else {
            return;
        };
        let id = id.to_string();
        self.requests.retain(|request| request.id != id);
        // This gateway abandoned the job, so another one may restart the remaining replicas.
        let is_abandoned = job.is_abandoned();
        let is_kept =
            |outcome: &&ReplicaOutcome| !is_abandoned || !matches!(outcome, ReplicaOutcome::NotAttempted(_));
        let replicas = job.outcomes().map(|(replica, outcome)| {
            let (result, reason) = outcome.filter(is_kept).map_or_else(Default::default, RecordedResult::of);
            Entry(replica.service.to_string(), replica.index, result, reason)
        });
        let replicas = replicas.collect();
        self.requests.push_back(RecordedRequest { id, of: digest(&job.request), at: now, replicas });
    }

    /// Records the outcome of the replica in progress in its request, and removes the replica in progress.
    pub(super) fn set_outcome(&mut self, outcome: &ReplicaOutcome) {
        let Some(replica) = self.in_progress.take() else {
            return;
        };
        let (result, reason) = RecordedResult::of(outcome);
        let request =
            self.requests.iter_mut().find(|request| Some(&request.id) == replica.request_id.as_ref());
        for entry in request.into_iter().flat_map(|request| &mut request.replicas) {
            if entry.0 == replica.service && entry.1 == replica.index && entry.2 == RecordedResult::Open {
                (entry.2, entry.3) = (result, reason.clone());
            }
        }
    }
}

// === impl RecordedResult ===

impl RecordedResult {
    /// Returns the recorded form of an outcome, and its reason.
    fn of(outcome: &ReplicaOutcome) -> (Self, String) {
        let (result, reason) = match outcome {
            ReplicaOutcome::Active => (Self::Active, ""),
            ReplicaOutcome::Failed(reason) => (Self::Failed, reason.as_str()),
            ReplicaOutcome::NotAttempted(reason) => (Self::NotAttempted, reason.as_str()),
            ReplicaOutcome::Abandoned => (Self::Open, ""),
        };
        (result, truncate(reason, REASON_MAX_BYTES).to_owned())
    }
}

// === impl InProgress ===

impl InProgress {
    /// Records `request`, made for the client's request with this id.
    pub(super) fn new(request: &RestartRequest, request_id: Option<&RequestId>) -> Self {
        Self {
            service: request.replica.service.to_string(),
            index: request.replica.index,
            run: request.instance.as_ref().map(ToString::to_string),
            request_id: request_id.map(ToString::to_string),
        }
    }

    /// Returns the restart request, or `None` if a recorded name is invalid.
    pub(super) fn restart_request(&self, lease: &LeaseId) -> Option<RestartRequest> {
        let replica = Replica { service: self.service.parse().ok()?, index: self.index };
        let instance = self.run.as_ref().map(|run| run.parse()).transpose().ok()?;
        Some(RestartRequest { lease: lease.clone(), replica, instance })
    }
}

// === impl RecordedRequest ===

impl RecordedRequest {
    /// Whether `request`, which has the same id, selects the same replicas.
    pub(super) fn is_for(&self, request: &JobRequest) -> bool {
        self.of == digest(request)
    }

    /// Returns the request's replicas with their recorded outcomes. Entries with an invalid name are skipped.
    pub(super) fn outcomes(&self) -> impl Iterator<Item = (Replica, Option<ReplicaOutcome>)> {
        self.replicas.iter().filter_map(|Entry(service, index, result, reason)| {
            let outcome = match result {
                RecordedResult::Open => None,
                RecordedResult::Active => Some(ReplicaOutcome::Active),
                RecordedResult::Failed => Some(ReplicaOutcome::Failed(reason.clone())),
                RecordedResult::NotAttempted => Some(ReplicaOutcome::NotAttempted(reason.clone())),
            };
            Some((Replica { service: service.parse().ok()?, index: *index }, outcome))
        })
    }
}

fn digest(request: &JobRequest) -> String {
    let digest = Sha256::digest(request.filter.canonical_text());
    data_encoding::HEXLOWER.encode(&digest[..DIGEST_BYTES])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(id: &str, at: i64, replicas: u32) -> RecordedRequest {
        let entry =
            |index| Entry("web".to_owned(), index, RecordedResult::Failed, "w".repeat(REASON_MAX_BYTES));
        RecordedRequest {
            id: id.to_owned(),
            of: String::new(),
            at,
            replicas: (0..replicas).map(entry).collect(),
        }
    }

    fn names(record: &RestartRecord) -> Vec<&str> {
        record.requests.iter().map(|request| request.id.as_str()).collect()
    }

    #[test]
    fn requests_of_other_hours_are_forgotten() {
        let requests = [recorded("old", 6_399, 1), recorded("kept", 6_400, 1), recorded("ahead", 13_601, 1)];
        let mut record = RestartRecord { in_progress: None, requests: requests.into() };
        let payload = record.encode(10_000);
        assert_eq!(names(&record), ["kept"]);
        assert_eq!(RestartRecord::parse(&payload).unwrap(), record);
        assert_eq!(
            (record.encode(14_000), RestartRecord::parse("")),
            (String::new(), Some(RestartRecord::default()))
        );
        assert_eq!(RestartRecord::parse("{\"calls\": 7}"), None);
        // Written by a later version.
        assert!(RestartRecord::parse("{\"more\": 7}").is_some());
    }

    #[test]
    fn full_payload_keeps_the_restart_in_progress() {
        let replica = InProgress { service: "web".to_owned(), index: 1, run: None, request_id: None };
        let mut record = RestartRecord { in_progress: Some(replica.clone()), requests: VecDeque::new() };
        for number in 0..10 {
            record.requests.push_back(recorded(&number.to_string(), 0, 100));
        }
        assert!(record.encode(0).len() <= PAYLOAD_MAX_BYTES);
        assert_eq!(names(&record), ["6", "7", "8", "9"], "the oldest go first");
        record.requests.push_back(recorded("too large", 0, 1_000));
        assert!(record.encode(0).len() <= PAYLOAD_MAX_BYTES);
        assert!(names(&record).is_empty());
        assert_eq!(record.in_progress, Some(replica));
    }

    /// Gateways of other versions read and write this form.
    #[test]
    fn recorded_payload_is_read_and_written_unchanged() {
        const RECORDED: &str = include_str!("../../tests/surface/fixtures/restart-record.json");
        let mut filter = crate::model::view::Filter::everything();
        filter.add("web".parse().unwrap(), &[0, 2]);
        let lease = format!("{0}/7/1/1/{1}", account(1), account(2)).parse().unwrap();
        let of = digest(&JobRequest { lease, filter, id: None });
        let entry = |index, result, reason: &str| Entry("web".to_owned(), index, result, reason.to_owned());
        let replicas = vec![
            entry(0, RecordedResult::Active, ""),
            entry(1, RecordedResult::Failed, "the new run exited with code 1 (Error)"),
            entry(2, RecordedResult::NotAttempted, "the restart of web/1 failed"),
            entry(3, RecordedResult::Open, ""),
        ];
        let request = RecordedRequest { id: "nightly".to_owned(), of, at: 1_760_000_000, replicas };
        let (run, request_id) = (Some("uid/web/3".to_owned()), Some("nightly".to_owned()));
        let replica = InProgress { service: "web".to_owned(), index: 3, run, request_id };
        let mut record = RestartRecord { in_progress: Some(replica), requests: [request].into() };
        assert_eq!(record.encode(1_760_000_000) + "\n", RECORDED);
        assert_eq!(RestartRecord::parse(RECORDED.trim_end()), Some(record));
    }

    fn account(number: u8) -> crate::model::id::Address {
        crate::model::id::Address::from_account([number; 20])
    }
}
