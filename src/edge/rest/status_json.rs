//! Bodies of the routes for status, version and address.
//!
//! Keys, capitals and nulls are those of the Akash provider. `replica_status`, and `stale_since` beside
//! `services`, are additions. Values come from [`status::response`], so that REST and gRPC never differ.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::model::entry_json::time_text;
use crate::model::id::{Address, ServiceName};
use crate::model::proto::lease::replica_status::State;
use crate::model::proto::lease::{
    ForwarderPortStatus, LeaseIpStatus, LeaseServiceStatus, ReplicaStatus, ServiceStatus,
    ServiceStatusResponse,
};
use crate::model::time::LogTime;
use crate::model::view::{Filter, LeaseView};
use crate::status;

/// Content type of the bodies.
pub(crate) const APPLICATION_JSON: &str = "application/json; charset=UTF-8";

/// The status of a lease.
#[derive(Serialize)]
struct LeaseBody {
    services: BTreeMap<String, ServiceBody>,
    /// `null` if there are none.
    forwarded_ports: Option<BTreeMap<String, Vec<PortBody>>>,
    /// `null` if there are none.
    ips: Option<BTreeMap<String, Vec<IpBody>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stale_since: Option<String>,
}

/// The status of a service.
#[derive(Serialize)]
struct ServiceBody {
    name: String,
    available: i32,
    total: i32,
    /// `null` if there are none.
    uris: Option<Vec<String>>,
    observed_generation: i64,
    replicas: i32,
    updated_replicas: i32,
    ready_replicas: i32,
    available_replicas: i32,
    replica_status: Vec<ReplicaBody>,
}

#[derive(Serialize)]
struct ReplicaBody {
    replica: u32,
    instance: String,
    state: &'static str,
    ready: bool,
    restarts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_signal: Option<i32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    last_reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

#[derive(Serialize)]
struct PortBody {
    #[serde(skip_serializing_if = "String::is_empty")]
    host: String,
    port: u32,
    #[serde(rename = "externalPort")]
    external_port: u32,
    proto: String,
    name: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct IpBody {
    port: u32,
    external_port: u32,
    protocol: String,
    #[serde(rename = "IP")]
    ip: String,
}

/// Returns the status of the services that `filter` selects.
pub(crate) fn lease(view: &LeaseView, filter: &Filter) -> String {
    lease_status(status::response(view, filter))
}

/// Returns the status of a lease as gRPC has it.
pub(crate) fn lease_status(response: ServiceStatusResponse) -> String {
    let stale_since = time_text(response.stale_since);
    let mut services = BTreeMap::new();
    let mut forwarded_ports = BTreeMap::new();
    let mut ips = BTreeMap::new();
    for mut service in response.services {
        let name = service.name.clone();
        let (its_ports, its_ips) = (std::mem::take(&mut service.ports), std::mem::take(&mut service.ips));
        if !its_ports.is_empty() {
            forwarded_ports.insert(name.clone(), its_ports.into_iter().map(PortBody::from).collect());
        }
        if !its_ips.is_empty() {
            ips.insert(name.clone(), its_ips.into_iter().map(IpBody::from).collect());
        }
        services.insert(name, service.into());
    }
    json(&LeaseBody {
        services,
        forwarded_ports: Some(forwarded_ports).filter(|ports| !ports.is_empty()),
        ips: Some(ips).filter(|ips| !ips.is_empty()),
        stale_since,
    })
}

/// Returns the status of one service; `None` if the lease has no such service.
pub(crate) fn service(view: &LeaseView, name: &ServiceName) -> Option<String> {
    let mut filter = Filter::everything();
    filter.add(name.clone(), &[]);
    let status = status::response(view, &filter).services.pop()?;
    Some(json(&ServiceBody::from(status)))
}

/// Returns the body of `/version`.
pub(crate) fn version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let akash = serde_json::json!({
        "name": "leasemux",
        "server_name": "leasemux",
        "version": version,
        "commit": env!("LEASEMUX_COMMIT"),
    });
    serde_json::json!({ "akash": akash, "kube": {} }).to_string()
}

/// Returns the body of `/address`.
pub(crate) fn address(provider: &Address) -> String {
    serde_json::json!({ "address": provider.as_str() }).to_string()
}

/// Returns the body of `/status`.
pub(crate) fn provider(provider: &Address, public_host: &str) -> String {
    serde_json::json!({ "cluster_public_hostname": public_host, "address": provider.as_str() }).to_string()
}

/// Fails only for maps with other keys than strings, which no body has.
fn json(body: &impl Serialize) -> String {
    serde_json::to_string(body).unwrap_or_default()
}

impl From<ServiceStatus> for ServiceBody {
    fn from(status: ServiceStatus) -> Self {
        let LeaseServiceStatus {
            available,
            total,
            uris,
            observed_generation,
            replicas,
            updated_replicas,
            ready_replicas,
            available_replicas,
        } = status.status.unwrap_or_default();
        Self {
            name: status.name,
            available,
            total,
            uris: Some(uris).filter(|uris| !uris.is_empty()),
            observed_generation,
            replicas,
            updated_replicas,
            ready_replicas,
            available_replicas,
            replica_status: status.replica_status.into_iter().map(ReplicaBody::from).collect(),
        }
    }
}

impl From<ReplicaStatus> for ReplicaBody {
    fn from(status: ReplicaStatus) -> Self {
        let state = match status.state() {
            State::Unspecified | State::Unknown => "unknown",
            State::Waiting => "waiting",
            State::Running => "running",
            State::Terminated => "terminated",
        };
        let started_at = status.started_at.and_then(|at| LogTime::from_parts(at.seconds, at.nanos));
        Self {
            replica: status.replica,
            instance: status.instance,
            state,
            ready: status.ready,
            restarts: status.restarts,
            last_exit_code: status.last_exit_code,
            last_signal: status.last_signal,
            last_reason: status.last_reason,
            started_at: started_at.map(|time| time.to_string()),
            message: status.message,
        }
    }
}

impl From<ForwarderPortStatus> for PortBody {
    fn from(status: ForwarderPortStatus) -> Self {
        let ForwarderPortStatus { host, port, external_port, proto, name } = status;
        Self { host, port, external_port, proto, name }
    }
}

impl From<LeaseIpStatus> for IpBody {
    fn from(status: LeaseIpStatus) -> Self {
        let LeaseIpStatus { port, external_port, protocol, ip } = status;
        Self { port, external_port, protocol, ip }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::Instance;
    use crate::model::view::{
        Endpoints, ForwardedPort, LeasedIp, ReplicaState, ReplicaView, Run, RunEnd, ServiceView,
    };

    fn view() -> LeaseView {
        let run = |number, end| Run {
            instance: Instance::new("uid", "web", number).unwrap(),
            started: LogTime::from_nanos(5_000_000_007),
            end,
            log_is_gone: false,
            later_unknown: false,
        };
        let killed = RunEnd {
            time: LogTime::from_nanos(6),
            exit_code: Some(137),
            signal: None,
            reason: "OOMKilled".into(),
        };
        let replica = ReplicaView {
            runs: vec![run(0, Some(killed)), run(1, None)],
            state: ReplicaState::Running,
            ready: true,
            restarts: 1,
            ..ReplicaView::default()
        };
        let web = ServiceView { count: 1, replicas: [(0, replica)].into(), ..ServiceView::default() };
        let services = [("web", web), ("api", ServiceView::default())];
        LeaseView {
            services: services.into_iter().map(|(name, view)| (name.parse().unwrap(), view)).collect(),
            ..LeaseView::default()
        }
    }

    #[test]
    fn lease_without_endpoints_has_nulls() {
        let body = lease(&view(), &Filter::everything());
        let web = concat!(
            r#"{"name":"web","available":1,"total":1,"uris":null,"observed_generation":1,"replicas":1,"#,
            r#""updated_replicas":1,"ready_replicas":1,"available_replicas":1,"replica_status":[{"replica":0,"#,
            r#""instance":"uid/web/1","state":"running","ready":true,"restarts":1,"last_exit_code":137,"#,
            r#""last_reason":"OOMKilled","started_at":"1970-01-01T00:00:05.000000007Z"}]}"#
        );
        let api = concat!(
            r#"{"name":"api","available":0,"total":0,"uris":null,"observed_generation":1,"replicas":0,"#,
            r#""updated_replicas":0,"ready_replicas":0,"available_replicas":0,"replica_status":[]}"#
        );
        let services = format!(r#"{{"api":{api},"web":{web}}}"#);
        assert_eq!(body, format!(r#"{{"services":{services},"forwarded_ports":null,"ips":null}}"#));
        assert_eq!(service(&view(), &"web".parse().unwrap()).as_deref(), Some(web));
        assert_eq!(service(&view(), &"db".parse().unwrap()), None);
    }

    #[test]
    fn endpoints_have_the_keys_of_the_provider() {
        let mut view = view();
        view.services.get_mut(&"web".parse::<ServiceName>().unwrap()).unwrap().endpoints = Endpoints {
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
        let body = lease(&view, &Filter::everything());
        assert!(body.contains(r#""uris":["a.example"]"#), "{body}");
        let ports = concat!(
            r#""forwarded_ports":{"web":[{"host":"provider.example","port":80,"externalPort":31000,"#,
            r#""proto":"TCP","name":"web"}]}"#
        );
        assert!(body.contains(ports), "{body}");
        let ips = r#""ips":{"web":[{"Port":53,"ExternalPort":5353,"Protocol":"UDP","IP":"192.0.2.7"}]}"#;
        assert!(body.contains(ips), "{body}");
    }

    #[test]
    fn filter_and_stale_view_are_visible() {
        let mut view = view();
        view.stale_since = Some(LogTime::from_nanos(1));
        let mut filter = Filter::everything();
        filter.add("api".parse().unwrap(), &[]);
        let body = lease(&view, &filter);
        assert!(!body.contains("web") && body.contains(r#""api":{"#), "{body}");
        assert!(body.ends_with(r#","stale_since":"1970-01-01T00:00:00.000000001Z"}"#), "{body}");
    }

    #[test]
    fn open_routes_have_their_keys() {
        let provider: Address = "akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0".parse().unwrap();
        let json = |body: String| serde_json::from_str::<serde_json::Value>(&body).unwrap();
        let version = json(version());
        assert_eq!(
            (&version["akash"]["name"], &version["kube"]),
            (&"leasemux".into(), &serde_json::json!({}))
        );
        assert_eq!(json(address(&provider))["address"], provider.as_str());
        let status = json(super::provider(&provider, "provider.example"));
        assert_eq!(status["cluster_public_hostname"], "provider.example");
        assert_eq!(status["address"], provider.as_str());
    }
}
