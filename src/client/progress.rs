//! How far a follower has come: one cursor per replica, and the events it has already told.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::model::limits::CURSORS_MAX;
use crate::model::proto::lease::replica_event::Kind;
use crate::model::proto::lease::{Cursor, ReplicaEvent, ServiceFilter, ServiceLogs, ServiceLogsRequest};

/// Events of one replica that are remembered: more runs than end between a cut and its reconnect. Beyond them an event may
/// be told twice, a line never.
const EVENTS_REMEMBERED: usize = 16;

/// A service and a replica of it.
pub(super) type Key = (String, u32);

/// One of the calls that together go on where a stream was cut.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    /// What is asked for.
    pub(super) request: ServiceLogsRequest,
    /// Replicas whose entries are left out: another call asks for them.
    pub(super) without: BTreeSet<Key>,
}

/// What a follower needs to go on exactly where it was.
#[derive(Debug, Default)]
pub(super) struct Progress {
    replicas: BTreeMap<Key, Replica>,
    /// A replica came when as many as a request may name were known, so where it stands is not known.
    overflow: bool,
}

#[derive(Debug, Default)]
struct Replica {
    cursor: Option<Cursor>,
    events: VecDeque<ReplicaEvent>,
}

// === impl Progress ===

impl Progress {
    /// Whether `entry` is anything but an event that was told already (gateways repeat them on a new stream).
    pub(super) fn is_news(&self, entry: &ServiceLogs) -> bool {
        let Some(event) = &entry.event else {
            return true;
        };
        let replica = self.replicas.get(&(entry.name.clone(), entry.replica));
        replica.is_none_or(|replica| replica.is_news(event))
    }

    /// Takes note of an entry that was told.
    pub(super) fn told(&mut self, entry: ServiceLogs) {
        let ServiceLogs { name, replica, cursor, event, .. } = entry;
        let full = self.replicas.len() >= CURSORS_MAX;
        match self.replicas.entry((name, replica)) {
            Entry::Vacant(_) if full => self.overflow = true,
            slot => slot.or_default().told(cursor, event),
        }
    }

    /// Whether lines, or a gap, were taken.
    pub(super) fn has_begun(&self) -> bool {
        self.overflow || self.replicas.values().any(|replica| replica.cursor.is_some())
    }

    /// The calls that go on after everything taken; `None` if there are none. Before the first cursor that is `first` itself.
    pub(super) fn resume(&self, first: &ServiceLogsRequest) -> Option<Vec<Call>> {
        let again = || Call { request: first.clone(), without: BTreeSet::new() };
        if !self.has_begun() {
            return Some(vec![again()]);
        }
        // An earlier run is no place to go on from: who reads on there comes to the present one.
        if self.overflow || first.previous {
            return None;
        }
        let cursors = || self.replicas.values().filter_map(|replica| replica.cursor.clone());
        // History was limited for the first stream only, and goes with no cursor.
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
        // The limit still holds for replicas that have no cursor yet, and no request can have both.
        (request.filter, request.filters) = (None, filters_of(cursors()));
        let known = self.replicas.iter().filter(|(_, replica)| replica.cursor.is_some());
        let others = Call { without: known.map(|(key, _)| key.clone()).collect(), ..again() };
        Some(vec![Call { request, without: BTreeSet::new() }, others])
    }
}

/// Filters for exactly the replicas of these cursors, which are in the order of services.
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
    fn is_news(&self, event: &ReplicaEvent) -> bool {
        let same = |told: &ReplicaEvent| told.kind == event.kind && told.instance == event.instance;
        match event.kind() {
            // A run starts and ends once.
            Kind::Started | Kind::Ended => !self.events.iter().any(same),
            // These come again and again; told again only if something else happened in between.
            _ => !self.events.back().is_some_and(|told| same(told) && told.reason == event.reason),
        }
    }

    fn told(&mut self, cursor: Option<Cursor>, event: Option<ReplicaEvent>) {
        if cursor.is_some() {
            self.cursor = cursor;
        }
        if let Some(event) = event.filter(|event| self.is_news(event)) {
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
        let news = progress.is_news(&entry);
        progress.told(entry);
        news
    }

    #[test]
    fn the_newest_cursor_of_each_replica_is_kept() {
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
        assert_eq!(progress.resume(&first).unwrap().len(), 1, "an event is no place to go on from");
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
        // Without a limit, and where the follow goes on, one call does.
        for first in [ServiceLogsRequest::default(), ServiceLogsRequest { follow: true, ..first }] {
            assert_eq!(progress.resume(&first).unwrap().len(), 1);
        }
        let previous = ServiceLogsRequest { previous: true, ..Default::default() };
        assert_eq!(progress.resume(&previous), None);
        assert_eq!(Progress::default().resume(&previous).unwrap()[0].request, previous);
    }

    #[test]
    fn events_are_told_once() {
        let mut progress = Progress::default();
        let mut told = |kind, instance, reason| take(&mut progress, event(kind, instance, reason));
        assert!(told(Kind::Started, "a", ""));
        assert!(!told(Kind::Started, "a", ""));
        assert!(told(Kind::Ended, "a", "Error"));
        assert!(told(Kind::Waiting, "", "CrashLoopBackOff"));
        assert!(!told(Kind::Waiting, "", "CrashLoopBackOff"));
        assert!(told(Kind::Started, "b", ""));
        // A stream that goes on in the run before tells all of it again.
        assert!(!told(Kind::Ended, "a", "Error"));
        assert!(!told(Kind::Started, "b", ""));
        assert!(told(Kind::Ended, "b", "Error"));
        assert!(told(Kind::Waiting, "", "CrashLoopBackOff"));
    }

    #[test]
    fn more_replicas_than_a_request_may_name_cannot_be_resumed() {
        let mut progress = Progress::default();
        for replica in 0..u32::try_from(CURSORS_MAX).unwrap() {
            progress.told(lines("web", replica, 1));
        }
        let first = ServiceLogsRequest::default();
        assert_eq!(progress.resume(&first).unwrap()[0].request.resume.len(), CURSORS_MAX);
        progress.told(lines("web", u32::MAX, 1));
        assert_eq!(progress.resume(&first), None);
    }
}
