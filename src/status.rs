//! `ServiceStatus`: converts lease views to responses.

pub mod body;

use crate::model::id::{Replica, ServiceName};
use crate::model::proto::lease::replica_status::State;
use crate::model::proto::lease::{
    ForwarderPortStatus, LeaseIpStatus, LeaseServiceStatus, ReplicaStatus, ServiceStatus,
    ServiceStatusResponse,
};
use crate::model::text::truncate;
use crate::model::view::{
    Endpoints, Filter, LeaseView, ReplicaCounts, ReplicaState, ReplicaView, ServiceView,
};

/// Longest message of a replica, in bytes: a few lines of text. Kubernetes allows 32 KiB.
const MESSAGE_MAX_BYTES: usize = 1_024;

/// Returns the services and replicas that `filter` selects from `view`, in order.
///
/// Counts and endpoints are those of the whole service, even if the filter selects only some replicas. Fields
/// that the platform does not know stay empty.
pub fn response(view: &LeaseView, filter: &Filter) -> ServiceStatusResponse {
    let services = view.services.iter().filter(|(name, _)| filter.wants_service(name));
    ServiceStatusResponse {
        services: services.map(|(name, service)| service_status(name, service, filter)).collect(),
        stale_since: view.stale_since.map(Into::into),
    }
}

fn service_status(name: &ServiceName, service: &ServiceView, filter: &Filter) -> ServiceStatus {
    let wanted = service
        .replicas
        .iter()
        .filter(|(index, _)| filter.wants(&Replica { service: name.clone(), index: **index }));
    let Endpoints { uris, ports, ips } = &service.endpoints;
    let ports = ports.iter().map(|port| ForwarderPortStatus {
        host: port.host.clone(),
        port: port.port.into(),
        external_port: port.external_port.into(),
        proto: port.protocol.clone(),
        name: port.name.clone(),
    });
    let ips = ips.iter().map(|ip| LeaseIpStatus {
        port: ip.port.into(),
        external_port: ip.external_port.into(),
        protocol: ip.protocol.clone(),
        ip: ip.ip.clone(),
    });
    ServiceStatus {
        name: name.to_string(),
        status: Some(service_counts(service.counts(), uris)),
        ports: ports.collect(),
        ips: ips.collect(),
        replica_status: wanted.map(|(index, slot)| replica_status(*index, slot)).collect(),
    }
}

fn service_counts(counts: ReplicaCounts, uris: &[String]) -> LeaseServiceStatus {
    let number = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    LeaseServiceStatus {
        available: number(counts.available),
        total: number(counts.total),
        uris: uris.to_vec(),
        observed_generation: counts.observed_generation,
        replicas: number(counts.total),
        updated_replicas: number(counts.updated),
        ready_replicas: number(counts.ready),
        available_replicas: number(counts.available),
    }
}

fn replica_status(index: u32, slot: &ReplicaView) -> ReplicaStatus {
    let last = slot.last_end();
    let (state, message) = match &slot.state {
        ReplicaState::Running => (State::Running, String::new()),
        ReplicaState::Waiting { reason, message } if message.is_empty() => (State::Waiting, reason.clone()),
        ReplicaState::Waiting { reason, message } => (State::Waiting, format!("{reason}: {message}")),
        ReplicaState::Terminated => (State::Terminated, String::new()),
        ReplicaState::Unknown => (State::Unknown, String::new()),
    };
    ReplicaStatus {
        replica: index,
        instance: slot.newest().map(|run| run.instance.to_string()).unwrap_or_default(),
        state: state.into(),
        ready: slot.ready,
        restarts: slot.restarts,
        last_exit_code: last.and_then(|end| end.exit_code),
        last_signal: last.and_then(|end| end.signal),
        last_reason: last.map(|end| end.reason.clone()).unwrap_or_default(),
        started_at: slot.present().map(|run| run.started.into()),
        message: shortened(message),
    }
}

/// At most so much of it as anybody reads.
fn shortened(message: String) -> String {
    if message.len() > MESSAGE_MAX_BYTES {
        return format!("{}…", truncate(&message, MESSAGE_MAX_BYTES));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::Instance;
    use crate::model::time::LogTime;
    use crate::model::view::{ForwardedPort, LeasedIp, Run, RunEnd};

    fn web() -> ServiceName {
        "web".parse().unwrap()
    }

    fn run(number: u32, end: Option<RunEnd>) -> Run {
        let instance = Instance::new("uid", "web", number).unwrap();
        Run { instance, started: LogTime::from_nanos(5_000_000_007), end, log_is_gone: false }
    }

    fn killed() -> RunEnd {
        let time = LogTime::from_nanos(6);
        RunEnd { time, exit_code: None, signal: Some(9), reason: "OOMKilled".into() }
    }

    fn view(slots: Vec<ReplicaView>) -> LeaseView {
        let service =
            ServiceView { count: 2, replicas: (0..).zip(slots).collect(), ..ServiceView::default() };
        let other = ServiceView { count: 0, ..ServiceView::default() };
        let services = [("web", service), ("api", other)];
        LeaseView {
            services: services.into_iter().map(|(name, service)| (name.parse().unwrap(), service)).collect(),
            ..LeaseView::default()
        }
    }

    fn only(service: &str, replicas: &[u32]) -> Filter {
        let mut filter = Filter::everything();
        filter.add(service.parse().unwrap(), replicas);
        filter
    }

    #[test]
    fn response_has_the_state_of_each_replica() {
        let slot = ReplicaView {
            runs: vec![run(1, Some(killed())), run(2, None)],
            state: ReplicaState::Running,
            ready: true,
            restarts: 2,
            ..ReplicaView::default()
        };
        let mut sent = response(&view(vec![slot]), &only("web", &[])).services.remove(0);
        let expected = ReplicaStatus {
            replica: 0,
            instance: "uid/web/2".into(),
            state: State::Running.into(),
            ready: true,
            restarts: 2,
            last_exit_code: None,
            last_signal: Some(9),
            last_reason: "OOMKilled".into(),
            started_at: Some(prost_types::Timestamp { seconds: 5, nanos: 7 }),
            message: String::new(),
        };
        assert_eq!(sent.replica_status, [expected]);
        let counts = sent.status.take().unwrap();
        assert_eq!((counts.available, counts.total, counts.replicas, counts.updated_replicas), (1, 1, 1, 1));
        assert_eq!((counts.ready_replicas, counts.available_replicas, counts.observed_generation), (1, 1, 1));
    }

    #[test]
    fn waiting_replica_has_a_bounded_message() {
        let waits = |message: String| {
            let state = ReplicaState::Waiting { reason: "CrashLoopBackOff".into(), message };
            let slot = ReplicaView { runs: vec![run(0, Some(killed()))], state, ..ReplicaView::default() };
            let sent = response(&view(vec![slot]), &Filter::everything()).services.pop().unwrap();
            sent.replica_status.into_iter().next().unwrap()
        };
        let sent = waits("back-off 2s".into());
        assert_eq!(sent.message, "CrashLoopBackOff: back-off 2s");
        assert_eq!(
            (sent.state(), sent.instance.as_str(), sent.started_at),
            (State::Waiting, "uid/web/0", None)
        );
        assert_eq!(waits(String::new()).message, "CrashLoopBackOff");
        let long = waits("ß".repeat(5_000)).message;
        assert!(long.len() <= MESSAGE_MAX_BYTES + "…".len() && long.ends_with("ß…"), "{}", long.len());
    }

    #[test]
    fn filter_selects_replicas_but_not_counts() {
        let ready = ReplicaView { state: ReplicaState::Running, ready: true, ..ReplicaView::default() };
        let mut view = view(vec![ready.clone(), ready]);
        let sent = response(&view, &Filter::everything());
        let names: Vec<_> = sent.services.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["api", "web"]);
        let sent = response(&view, &only("web", &[1])).services;
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].status.as_ref().unwrap().available, 2);
        assert_eq!(sent[0].replica_status.iter().map(|one| one.replica).collect::<Vec<_>>(), [1]);
        // A removed service is left out.
        view.services.remove(&web());
        assert_eq!(response(&view, &only("web", &[1])).services, []);
    }

    #[test]
    fn response_has_endpoints() {
        let mut view = view(vec![]);
        let service = view.services.get_mut(&web()).unwrap();
        service.endpoints = Endpoints {
            uris: vec!["a.example".into()],
            ports: vec![ForwardedPort {
                host: "provider.example".into(),
                port: 80,
                external_port: 31_000,
                protocol: "TCP".into(),
                name: "web".into(),
            }],
            ips: vec![LeasedIp {
                ip: "192.0.2.7".into(),
                port: 53,
                external_port: 5_353,
                protocol: "UDP".into(),
            }],
        };
        let sent = response(&view, &only("web", &[])).services.remove(0);
        assert_eq!(sent.status.unwrap().uris, ["a.example"]);
        assert_eq!((sent.ports[0].host.as_str(), sent.ports[0].external_port), ("provider.example", 31_000));
        assert_eq!(
            (sent.ports[0].port, sent.ports[0].proto.as_str(), sent.ports[0].name.as_str()),
            (80, "TCP", "web")
        );
        assert_eq!(
            (sent.ips[0].ip.as_str(), sent.ips[0].port, sent.ips[0].external_port),
            ("192.0.2.7", 53, 5_353)
        );
    }
}
