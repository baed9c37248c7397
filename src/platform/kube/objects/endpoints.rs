//! Kubernetes services: ports and addresses of a lease's services.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::label;
use crate::model::id::ServiceName;
use crate::model::view::{ForwardedPort, LeasedIp};
use crate::platform::kube::names;

/// Ports and addresses of a service. Each of the two lists is sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServiceEndpoints {
    /// The lease's service; `None` if unknown.
    pub(crate) service: Option<ServiceName>,
    /// Node ports, without their host.
    pub(crate) ports: Vec<ForwardedPort>,
    pub(crate) ips: Vec<LeasedIp>,
}

// === impl ServiceEndpoints ===

impl ServiceEndpoints {
    /// Reads a service; `None` if it cannot be reached from outside the cluster.
    pub(crate) fn read(service: &Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let named = label(&service.metadata, names::SERVICE)
            .or_else(|| spec.selector.as_ref()?.get(names::SERVICE).map(String::as_str));
        let name: ServiceName = named?.parse().ok()?;
        let is_leased = label(&service.metadata, names::TARGET) == Some(names::LEASED_IP_TARGET);
        let ports = spec.ports.as_deref().unwrap_or_default();
        let protocol = |of: Option<&String>| of.cloned().unwrap_or_else(|| "TCP".to_owned());
        let mut facts = Self { service: Some(name.clone()), ..Self::default() };
        match spec.type_.as_deref() {
            Some("NodePort") => facts.ports.extend(ports.iter().filter_map(|port| {
                Some(ForwardedPort {
                    host: String::new(),
                    port: target(port.target_port.as_ref(), port.port)?,
                    external_port: port_number(port.node_port?)?,
                    protocol: protocol(port.protocol.as_ref()),
                    name: name.to_string(),
                })
            })),
            Some("LoadBalancer") if is_leased => {
                let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
                let ingress = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
                for ip in ingress.iter().filter_map(|ingress| ingress.ip.as_ref()) {
                    facts.ips.extend(ports.iter().filter_map(|port| {
                        Some(LeasedIp {
                            ip: ip.clone(),
                            port: target(port.target_port.as_ref(), port.port)?,
                            external_port: port_number(port.port)?,
                            protocol: protocol(port.protocol.as_ref()),
                        })
                    }));
                }
            }
            _ => return None,
        }
        facts.ports.sort_by(|a, b| {
            (a.port, a.external_port, &a.protocol).cmp(&(b.port, b.external_port, &b.protocol))
        });
        facts.ips.sort_by(|a, b| {
            (&a.ip, a.external_port, &a.protocol).cmp(&(&b.ip, b.external_port, &b.protocol))
        });
        Some(facts)
    }
}

fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok()
}

/// The container's port: the target's number, or the service's own if the target is unset or a name.
fn target(target: Option<&IntOrString>, port: i32) -> Option<u16> {
    match target {
        Some(IntOrString::Int(target)) if *target != 0 => port_number(*target),
        _ => port_number(port),
    }
}
