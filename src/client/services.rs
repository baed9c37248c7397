//! Replaces patterns of service names by the names of the lease's services.

use super::connect::{Client, Connector};
use super::error::CallError;
use super::request::status;
use crate::config::{CallConfig, ServiceSelector};
use crate::model::limits::{FILTER_REPLICAS_MAX, FILTERS_MAX};

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
pub async fn service_names(call: &CallConfig) -> Result<Vec<String>, CallError> {
    let mut client = Box::pin(Connector::new(&call.target)?.connect()).await?;
    names(call, &mut client).await
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

async fn names(call: &CallConfig, client: &mut Client) -> Result<Vec<String>, CallError> {
    let of_lease = CallConfig { services: Vec::new(), replicas: Vec::new(), ..call.clone() };
    let (mut responses, _) = status(client, &of_lease, false).await?;
    let response = responses.message().await?.unwrap_or_default();
    Ok(response.services.into_iter().map(|service| service.name).collect())
}

/// Returns the selected services, each once.
fn select(selectors: &[ServiceSelector], names: &[String]) -> Result<Vec<ServiceSelector>, CallError> {
    let mut services: Vec<ServiceSelector> = Vec::new();
    for selector in selectors {
        let Some(pattern) = selector.pattern() else {
            services.push(selector.clone());
            continue;
        };
        let before = services.len();
        // A gateway's name that is none of a service is left out.
        let matching = names.iter().filter(|name| pattern.matches(name)).filter_map(|name| name.parse().ok());
        services.extend(matching);
        if services.len() == before {
            return Err(CallError::NoService(pattern.as_str().to_owned(), names.to_vec()));
        }
    }
    let mut seen: Vec<ServiceSelector> = Vec::new();
    services.retain(|service| {
        let is_new = !seen.contains(service);
        if is_new {
            seen.push(service.clone());
        }
        is_new
    });
    Ok(services)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_become_names_and_each_name_is_once() {
        let names = ["api", "web-a", "web-b"].map(str::to_owned);
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
}
