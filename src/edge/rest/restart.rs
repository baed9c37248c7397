//! The route that restarts a service, or some of its replicas.
//!
//! A response reports the outcomes so far. A client that wants progress repeats its request with the same
//! request id, which joins the restart. A response in pieces would need this too, since a connection may
//! break.

use std::time::Duration;

use http::Request;
use serde::Serialize;
use tokio::time::Instant;

use super::RestService;
use super::error::RestError;
use crate::access::authenticator::Authenticated;
use crate::access::grants::TokenScope;
use crate::edge::audit::AuditRecord;
use crate::edge::errors::CallError;
use crate::edge::websocket::handshake;
use crate::model::id::{LeaseId, RequestId, ServiceName};
use crate::model::limits::FILTER_REPLICAS_MAX;
use crate::model::proto::lease::ServiceRestartResponse;
use crate::model::proto::lease::service_restart_status::State;
use crate::model::view::Filter;
use crate::restart::JobRequest;

/// Longest wait of one request for the outcome. Proxies cut requests that take a minute.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// The parameters of a restart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RestartQuery {
    /// Empty: all.
    pub(crate) replicas: Vec<u32>,
    pub(crate) request_id: RequestId,
    /// How long to wait for the outcome.
    pub(crate) timeout: Duration,
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

// === impl RestService ===

impl RestService {
    /// Restarts the service with this name. Returns the body of the response.
    pub(super) async fn restart<B>(
        &self,
        caller: &Authenticated,
        lease: LeaseId,
        service: Option<ServiceName>,
        request: &Request<B>,
        audit: &AuditRecord,
    ) -> Result<String, RestError> {
        let fail = |error: CallError| self.fail(&error, audit);
        let query = RestartQuery::parse(request.uri().query().unwrap_or_default());
        let RestartQuery { replicas, request_id, timeout } = query.map_err(RestError::query)?;
        let services = caller.identity.authorize(&lease, TokenScope::Restart).map_err(|e| fail(e.into()))?;
        // A name that no service can have is that of no service.
        let service = service.ok_or_else(RestError::no_service)?;
        let mut filter = Filter::everything();
        filter.add(service, &replicas);
        services.narrow(&mut filter).map_err(|e| fail(e.into()))?;
        // Other pages can send a POST without asking, and a browser may present a client certificate for
        // them.
        if !handshake::is_same_origin(request.uri(), request.headers()) {
            return Err(RestError::other_origin());
        }
        if self.drain().is_draining() {
            return Err(fail(CallError::Draining));
        }
        let owner = caller.identity.owner();
        let permit = self.service().quotas.admit_call(owner, Instant::now().into_std());
        let _permit = permit.map_err(|exceeded| fail(exceeded.into()))?;
        let job = JobRequest { lease, filter, id: Some(request_id.clone()) };
        let job = self.service().restart_job(job, audit).await.map_err(fail)?;
        let waited = self.service().await_restart(&job, timeout, &caller.validity).await;
        waited.map_err(|refusal| fail(refusal.into()))?;
        Ok(body(&request_id, &job.response()))
    }
}

/// Returns the body of the response to a restart.
pub(crate) fn body(request_id: &RequestId, response: &ServiceRestartResponse) -> String {
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
    // Fails only for maps with other keys than strings.
    serde_json::to_string(&body).unwrap_or_default()
}

// === impl RestartQuery ===

impl RestartQuery {
    /// Parses a query string, without its question mark.
    ///
    /// # Errors
    /// A text for the caller, which names the parameter and does not repeat its value.
    pub(crate) fn parse(query: &str) -> Result<Self, String> {
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
