//! The route that restarts a service, or some of its replicas.

use http::StatusCode;

use super::calls::Calls;
use super::end;
use super::reply::{self, Reply, error};
use crate::edge::rest::restart::{RestartQuery, body};
use crate::model::id::ServiceName;

/// Restarts `service` as `query` says. Repeating a request with its `request_id` joins the same restart.
pub(super) async fn restart(calls: &Calls, service: &str, query: &str) -> Reply {
    let Ok(service) = service.parse::<ServiceName>() else {
        return error(StatusCode::NOT_FOUND, "SERVICE_NOT_FOUND", "no service can have this name");
    };
    let RestartQuery { replicas, request_id, timeout } = match RestartQuery::parse(query) {
        Ok(query) => query,
        Err(problem) => return error(StatusCode::BAD_REQUEST, "INVALID_REQUEST", &problem),
    };
    match calls.restart(&service, replicas, &request_id, timeout).await {
        Ok(response) => reply::json(body(&request_id, &response)),
        Err(failure) => error(end::status(&failure), &end::reason(&failure), &failure.to_string()),
    }
}
