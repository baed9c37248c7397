//! Replaces patterns of service names by the names of the lease's services.

use std::collections::BTreeSet;
use std::time::Duration;

use super::connect::{Client, Connector};
use super::error::CallError;
use super::request::{ANSWER_TIMEOUT, response, status};
use crate::config::{CallConfig, ServiceSelector};
use crate::model::id::ServiceName;
use crate::model::limits::{FILTER_REPLICAS_MAX, FILTERS_MAX};
use crate::model::proto::lease::ServiceStatusResponse;

/// Reason of a call for a service that does not exist.
const NO_SERVICE_REASON: &str = "SERVICE_NOT_FOUND";

/// Limit on the query for a hint in an error.
const HINT_TIMEOUT: Duration = Duration::from_secs(2);

/// Returns `call` without patterns. Opens a connection if it has one.
pub(super) async fn expand(call: &CallConfig, connector: &Connector) -> Result<CallConfig, CallError> {
    if !call.has_patterns() {
        return Ok(call.clone());
    }
    let mut client = Box::pin(connector.connect()).await?;
    expand_with(call, &mut client).await
}

/// Returns the names of the services of a lease.
///
/// # Errors
/// [`CallError`]. Nothing is tried again.
pub async fn service_names(call: &CallConfig) -> Result<Vec<ServiceName>, CallError> {
    let mut client = Box::pin(Connector::new(&call.target)?.connect()).await?;
    names(call, &mut client).await
}

/// Returns the text of an error. If a service does not exist, it lists those that do, if the gateway tells
/// them.
pub(super) async fn explain(error: &CallError, call: &CallConfig) -> String {
    let text = error.to_string();
    if error.reason().as_deref() != Some(NO_SERVICE_REASON) {
        return text;
    }
    match tokio::time::timeout(HINT_TIMEOUT, service_names(call)).await {
        Ok(Ok(names)) if !names.is_empty() => {
            let names: Vec<&str> = names.iter().take(FILTERS_MAX).map(ServiceName::as_str).collect();
            format!("{text}; it has {}", names.join(", "))
        }
        _ => text,
    }
}

/// As [`expand`], by an open connection.
pub(super) async fn expand_with(call: &CallConfig, client: &mut Client) -> Result<CallConfig, CallError> {
    let Some(first) = call.services.iter().find(|selector| selector.pattern().is_some()) else {
        return Ok(call.clone());
    };
    let names = names(call, client).await;
    let names = names.map_err(|error| CallError::Services(first.to_string(), Box::new(error)))?;
    let services = select(&call.services, &names)?;
    let replicas = services.len() * call.replicas.len();
    if services.len() > FILTERS_MAX || replicas > FILTER_REPLICAS_MAX {
        return Err(CallError::TooManyServices(services.len()));
    }
    Ok(CallConfig { services, ..call.clone() })
}

async fn names(call: &CallConfig, client: &mut Client) -> Result<Vec<ServiceName>, CallError> {
    let of_lease = CallConfig { services: Vec::new(), replicas: Vec::new(), ..call.clone() };
    let (mut responses, _) = status(client, &of_lease, false).await?;
    let status = response(ANSWER_TIMEOUT, responses.message()).await?;
    Ok(names_in(&status.unwrap_or_default()))
}

/// Returns the names in a status. Leaves out what cannot be the name of a service: a shell would insert it
/// into the line that is being typed.
fn names_in(status: &ServiceStatusResponse) -> Vec<ServiceName> {
    status.services.iter().filter_map(|service| service.name.parse().ok()).collect()
}

/// Returns the selected services, each once.
fn select(selectors: &[ServiceSelector], names: &[ServiceName]) -> Result<Vec<ServiceSelector>, CallError> {
    let mut services: Vec<ServiceSelector> = Vec::new();
    for selector in selectors {
        let Some(pattern) = selector.pattern() else {
            services.push(selector.clone());
            continue;
        };
        let before = services.len();
        let matching = names.iter().filter(|name| pattern.matches(name.as_str()));
        services.extend(matching.cloned().map(ServiceSelector::Name));
        if services.len() == before {
            let names = names.iter().map(ToString::to_string).collect();
            return Err(CallError::NoService(pattern.as_str().to_owned(), names));
        }
    }
    let mut seen = BTreeSet::new();
    services.retain(|service| seen.insert(service.to_string()));
    Ok(services)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::proto::lease::ServiceStatus;

    #[test]
    fn patterns_become_names_and_each_name_is_once() {
        let names = ["api", "web-a", "web-b"].map(|name| name.parse().unwrap());
        let selected = |texts: &[&str]| {
            let selectors: Vec<ServiceSelector> = texts.iter().map(|text| text.parse().unwrap()).collect();
            select(&selectors, &names).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(selected(&["web-*"]).unwrap(), ["web-a", "web-b"]);
        // Names that the lease does not have are for the gateway to reject.
        assert_eq!(selected(&["web-b", "*", "other"]).unwrap(), ["web-b", "api", "web-a", "other"]);
        let error = selected(&["web-*", "db-*"]).unwrap_err().to_string();
        assert_eq!(error, "--service \"db-*\" matches none of the lease's services: api, web-a, web-b");
    }

    #[test]
    fn names_that_a_shell_would_run_are_left_out() {
        let names = ["web", "web;reboot", "$(reboot)", "web\u{1b}[2J", "web api", "", "api"];
        let services = names.map(|name| ServiceStatus { name: name.to_owned(), ..Default::default() });
        let status = ServiceStatusResponse { services: services.into(), ..Default::default() };
        let found: Vec<String> = names_in(&status).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["web", "api"]);
    }
}
