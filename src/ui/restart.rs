//! The route that restarts a service, or some of its replicas.

use std::time::Duration;

use http::StatusCode;
use serde::Serialize;

use super::calls::Calls;
use super::reply::{self, Reply};
use super::{end, reply::error};
use crate::model::id::{RequestId, ServiceName};
use crate::model::limits::FILTER_REPLICAS_MAX;
use crate::model::proto::lease::ServiceRestartResponse;
use crate::model::proto::lease::service_restart_status::State;

/// Longest wait of one request for the outcome. The page repeats it with the same id, and so shows progress.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// The parameters of a restart.
#[derive(Debug, PartialEq, Eq)]
struct RestartQuery {
    /// Empty: all.
    replicas: Vec<u32>,
    request_id: RequestId,
    timeout: Duration,
}

#[derive(Serialize)]
struct RestartBody<'a> {
    request_id: &'a str,
    status: Vec<ReplicaBody<'a>>,
}

#[derive(Serialize)]
struct ReplicaBody<'a> {
    service: &'a str,
    replica: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
}

/// Restarts `service` as `query` says. Repeating a request with its `request_id` joins the same restart.
pub(super) async fn restart(calls: &Calls, service: &str, query: &str) -> Reply {
    let invalid = |problem: &str| error(StatusCode::BAD_REQUEST, "INVALID_REQUEST", problem);
    let Ok(service) = service.parse::<ServiceName>() else {
        return error(StatusCode::NOT_FOUND, "SERVICE_NOT_FOUND", "no service can have this name");
    };
    let query = match RestartQuery::parse(query) {
        Ok(query) => query,
        Err(problem) => return invalid(&problem),
    };
    match calls.restart(&service, query.replicas, &query.request_id, query.timeout).await {
        Ok(response) => reply::json(body(&query.request_id, &response)),
        Err(failure) => error(end::status(&failure), &end::reason(&failure), &failure.to_string()),
    }
}

fn body(request_id: &RequestId, response: &ServiceRestartResponse) -> Vec<u8> {
    let status = response.status.iter().map(|one| ReplicaBody {
        service: &one.service,
        replica: &one.replica,
        state: match one.state() {
            State::Pending => "pending",
            State::Active => "active",
            State::Failure => "failure",
        },
        message: one.message.as_deref(),
    });
    let body = RestartBody { request_id: request_id.as_str(), status: status.collect() };
    serde_json::to_vec(&body).unwrap_or_default()
}

// === impl RestartQuery ===

impl RestartQuery {
    fn parse(query: &str) -> Result<Self, String> {
        let (mut replicas, mut request_id, mut timeout) = (Vec::new(), None, Duration::ZERO);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "replica" if replicas.len() == FILTER_REPLICAS_MAX => {
                    return Err(format!(
                        "parameter \"replica\" must be given at most {FILTER_REPLICAS_MAX} times"
                    ));
                }
                "replica" => {
                    let index =
                        value.parse().map_err(|_| "parameter \"replica\" must be an index".to_owned())?;
                    replicas.push(index);
                }
                "request_id" => {
                    let id = value.parse().map_err(|error| format!("parameter \"request_id\": {error}"))?;
                    request_id = Some(id);
                }
                "timeout" => {
                    let seconds = value.parse().map(Duration::from_secs);
                    timeout = seconds
                        .map_err(|_| "parameter \"timeout\" must be a number of seconds".to_owned())?;
                }
                _ => {}
            }
        }
        let request_id = request_id.unwrap_or_else(RequestId::unique);
        Ok(Self { replicas, request_id, timeout: timeout.min(WAIT_MAX) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_parameters_are_parsed() {
        let query = RestartQuery::parse("replica=1&replica=3&request_id=a&timeout=5").unwrap();
        let expected = RestartQuery {
            replicas: vec![1, 3],
            request_id: "a".parse().unwrap(),
            timeout: Duration::from_secs(5),
        };
        assert_eq!(query, expected);
        let query = RestartQuery::parse("timeout=3600").unwrap();
        assert!(
            query.replicas.is_empty() && query.timeout == WAIT_MAX && query.request_id.as_str().len() > 30
        );
        for (query, name) in
            [("replica=x", "replica"), ("request_id=", "request_id"), ("timeout=1m", "timeout")]
        {
            assert!(RestartQuery::parse(query).unwrap_err().contains(name), "{query}");
        }
        let replicas = |count: usize| RestartQuery::parse(&"replica=1&".repeat(count));
        assert_eq!(replicas(FILTER_REPLICAS_MAX).unwrap().replicas.len(), FILTER_REPLICAS_MAX);
        assert!(replicas(FILTER_REPLICAS_MAX + 1).unwrap_err().contains("at most 1024"));
    }
}
