//! Progress of a follower: one cursor per replica, and the events it has delivered.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::ReplicaKey;
use crate::model::limits::CURSORS_MAX;
use crate::model::proto::lease::replica_event::Kind;
use crate::model::proto::lease::{Cursor, ReplicaEvent, ServiceFilter, ServiceLogs, ServiceLogsRequest};

/// Delivered events that are remembered per replica. A reconnect rarely takes as long as this many runs do;
/// if it does, an event may be delivered twice.
const EVENTS_REMEMBERED: usize = 16;

/// One of the calls that together resume a stream.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    pub(super) request: ServiceLogsRequest,
    /// Replicas whose entries are dropped, because another call requests them.
    pub(super) without: BTreeSet<ReplicaKey>,
}

/// State from which a follower resumes.
#[derive(Debug, Default)]
pub(super) struct Progress {
    replicas: BTreeMap<ReplicaKey, Replica>,
    /// Whether more replicas sent entries than a request can name, so that some positions are unknown.
    overflow: bool,
}

#[derive(Debug, Default)]
struct Replica {
    cursor: Option<Cursor>,
    events: VecDeque<ReplicaEvent>,
}

// === impl Progress ===

impl Progress {
    /// Returns whether `entry` is anything but a repeated event. Gateways repeat events on a new stream.
    pub(super) fn is_new(&self, entry: &ServiceLogs) -> bool {
        let Some(event) = &entry.event else {
            return true;
        };
        let replica = self.replicas.get(&(entry.name.clone(), entry.replica));
        replica.is_none_or(|replica| replica.is_new(event))
    }

    /// Records a delivered entry.
    pub(super) fn record(&mut self, entry: ServiceLogs) {
        let ServiceLogs { name, replica, cursor, event, .. } = entry;
        let full = self.replicas.len() >= CURSORS_MAX;
        match self.replicas.entry((name, replica)) {
            Entry::Vacant(_) if full => self.overflow = true,
            slot => slot.or_default().record(cursor, event),
        }
    }

    /// Returns whether lines or a gap were delivered.
    pub(super) fn has_position(&self) -> bool {
        self.overflow || self.replicas.values().any(|replica| replica.cursor.is_some())
    }

    /// Returns the calls that continue after the delivered entries: `first` itself if there is no cursor,
    /// `None` if no call can continue.
    pub(super) fn resume(&self, first: &ServiceLogsRequest) -> Option<Vec<Call>> {
        let retry = || Call { request: first.clone(), without: BTreeSet::new() };
        if !self.has_position() {
            return Some(vec![retry()]);
        }
        // A read of the previous run cannot be resumed: resuming from its cursor continues into the current
        // run.
        if self.overflow || first.previous {
            return None;
        }
        let cursors = || self.replicas.values().filter_map(|replica| replica.cursor.clone());
        // The backfill limits apply to the first stream only, and cannot be combined with cursors.
        let mut request = ServiceLogsRequest {
            resume: cursors().collect(),
            tail_lines: None,
            since: None,
            ..first.clone()
        };
        let is_limited = first.tail_lines.is_some() || first.since.is_some();
        if first.follow || !is_limited {
            return Some(vec![Call { request, without: BTreeSet::new() }]);
        }
        // Replicas without a cursor still need the limits, and one request cannot have both.
        (request.filter, request.filters) = (None, filters_of(cursors()));
        let known = self.replicas.iter().filter(|(_, replica)| replica.cursor.is_some());
        let others = Call { without: known.map(|(key, _)| key.clone()).collect(), ..retry() };
        Some(vec![Call { request, without: BTreeSet::new() }, others])
    }
}

/// Returns filters for exactly the replicas of `cursors`, which are sorted by service.
fn filters_of(cursors: impl Iterator<Item = Cursor>) -> Vec<ServiceFilter> {
    let mut filters: Vec<ServiceFilter> = Vec::new();
    for cursor in cursors {
        match filters.last_mut().filter(|filter| filter.name == cursor.service) {
            Some(filter) => filter.replicas.push(cursor.replica),
            None => filters.push(ServiceFilter { name: cursor.service, replicas: vec![cursor.replica] }),
        }
    }
    filters
}

// === impl Replica ===

impl Replica {
    fn is_new(&self, event: &ReplicaEvent) -> bool {
        let same = |known: &ReplicaEvent| known.kind == event.kind && known.instance == event.instance;
        match event.kind() {
            // A run starts and ends once.
            Kind::Started | Kind::Ended => !self.events.iter().any(same),
            // These recur. Delivered again only if another event came between.
            _ => !self.events.back().is_some_and(|known| same(known) && known.reason == event.reason),
        }
    }

    fn record(&mut self, cursor: Option<Cursor>, event: Option<ReplicaEvent>) {
        if cursor.is_some() {
            self.cursor = cursor;
        }
        if let Some(event) = event.filter(|event| self.is_new(event)) {
            if self.events.len() == EVENTS_REMEMBERED {
                self.events.pop_front();
            }
            self.events.push_back(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(name: &str, replica: u32, ordinal: u64) -> ServiceLogs {
        let cursor = Cursor { service: name.into(), replica, ordinal, ..Default::default() };
        ServiceLogs { name: name.into(), replica, cursor: Some(cursor), ..Default::default() }
    }

    fn event(kind: Kind, instance: &str, reason: &str) -> ServiceLogs {
        let event = ReplicaEvent {
            kind: kind.into(),
            instance: instance.into(),
            reason: reason.into(),
            ..Default::default()
        };
        ServiceLogs { name: "web".into(), event: Some(event), ..Default::default() }
    }

    fn take(progress: &mut Progress, entry: ServiceLogs) -> bool {
        let is_new = progress.is_new(&entry);
        progress.record(entry);
        is_new
    }

    #[test]
    fn newest_cursor_of_each_replica_is_kept() {
        let first = ServiceLogsRequest {
            tail_lines: Some(5),
            since: Some(prost_types::Timestamp::default()),
            follow: true,
            timestamps: true,
            ..Default::default()
        };
        let mut progress = Progress::default();
        let one = |calls: Option<Vec<Call>>| calls.unwrap().remove(0).request;
        assert_eq!(one(progress.resume(&first)), first);
        for entry in
            [lines("web", 0, 1), lines("api", 0, 4), lines("web", 0, 2), event(Kind::Started, "a", "")]
        {
            assert!(take(&mut progress, entry));
        }
        let request = one(progress.resume(&first));
        let cursors: Vec<_> = request.resume.iter().map(|c| (c.service.as_str(), c.ordinal)).collect();
        assert_eq!(cursors, [("api", 4), ("web", 2)]);
        assert!(
            request.follow && request.timestamps && request.tail_lines.is_none() && request.since.is_none()
        );
    }

    #[test]
    fn limited_read_resumes_in_two_calls() {
        let first = ServiceLogsRequest { tail_lines: Some(5), ..Default::default() };
        let mut progress = Progress::default();
        take(&mut progress, event(Kind::Waiting, "", "ImagePullBackOff"));
        assert_eq!(progress.resume(&first).unwrap().len(), 1, "an event has no cursor");
        for entry in [lines("api", 4, 1), lines("web", 1, 1), lines("web", 3, 1)] {
            take(&mut progress, entry);
        }
        let calls = progress.resume(&first).unwrap();
        let [known, others] = calls.as_slice() else { panic!("{calls:?}") };
        let filters: Vec<_> = known.request.filters.iter().map(|one| (&*one.name, &*one.replicas)).collect();
        assert_eq!(filters, [("api", &[4][..]), ("web", &[1, 3])]);
        assert_eq!((known.request.resume.len(), known.request.tail_lines), (3, None));
        assert_eq!(others.request, first);
        let without: Vec<_> = others.without.iter().map(|(name, replica)| (&**name, *replica)).collect();
        assert_eq!(without, [("api", 4), ("web", 1), ("web", 3)]);
        // Without a limit, or with follow, one call is enough.
        for first in [ServiceLogsRequest::default(), ServiceLogsRequest { follow: true, ..first }] {
            assert_eq!(progress.resume(&first).unwrap().len(), 1);
        }
        let previous = ServiceLogsRequest { previous: true, ..Default::default() };
        assert_eq!(progress.resume(&previous), None);
        assert_eq!(Progress::default().resume(&previous).unwrap()[0].request, previous);
    }

    #[test]
    fn repeated_event_is_not_new() {
        let mut progress = Progress::default();
        let mut is_new = |kind, instance, reason| take(&mut progress, event(kind, instance, reason));
        assert!(is_new(Kind::Started, "a", ""));
        assert!(!is_new(Kind::Started, "a", ""));
        assert!(is_new(Kind::Ended, "a", "Error"));
        assert!(is_new(Kind::Waiting, "", "CrashLoopBackOff"));
        assert!(!is_new(Kind::Waiting, "", "CrashLoopBackOff"));
        assert!(is_new(Kind::Started, "b", ""));
        // A stream that resumes in the previous run repeats all of it.
        assert!(!is_new(Kind::Ended, "a", "Error"));
        assert!(!is_new(Kind::Started, "b", ""));
        assert!(is_new(Kind::Ended, "b", "Error"));
        assert!(is_new(Kind::Waiting, "", "CrashLoopBackOff"));
    }

    #[test]
    fn too_many_replicas_cannot_be_resumed() {
        let mut progress = Progress::default();
        for replica in 0..u32::try_from(CURSORS_MAX).unwrap() {
            progress.record(lines("web", replica, 1));
        }
        let first = ServiceLogsRequest::default();
        assert_eq!(progress.resume(&first).unwrap()[0].request.resume.len(), CURSORS_MAX);
        progress.record(lines("web", u32::MAX, 1));
        assert_eq!(progress.resume(&first), None);
    }
}
