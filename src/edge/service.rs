//! The lease service: gate, then lease, then call.
//!
//! The caller is established before the request is read, and may or may not before anything is looked up: so no answer depends
//! on what exists, but for those whose it is.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::sync::watch;

use super::drain::Drain;
use super::guard::Watched;
use super::request;
use super::response::{self, ResponseBody};
use super::status::{self, CallError};
use crate::access::gate::{Admission, Gate, Peer};
use crate::access::grants::Scope;
use crate::access::refusal::Refusal;
use crate::logs::body::LogsBody;
use crate::logs::fanout::Fanout;
use crate::logs::follow::{Extent, LogsRequest};
use crate::logs::permits::HistoryPermits;
use crate::logs::stream::{End, StreamState};
use crate::model::id::LeaseId;
use crate::model::limits::{REQUEST_MAX_BYTES, STREAM_REPLICAS_MAX};
use crate::model::proto::lease::{ServiceLogsRequest, ServiceRestartRequest, ServiceStatusRequest};
use crate::model::quota::{Exceeded, Quota, Subject};
use crate::model::time::LogTime;
use crate::model::view::LeaseView;
use crate::platform;

/// Bytes of a gRPC message's prefix.
const PREFIX_BYTES: usize = 5;

/// A request must have arrived within this; it is a few hundred bytes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The full name of the service.
pub const SERVICE: &str = "akash.provider.lease.v1.LeaseRPC";

/// The methods of the lease service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `ServiceLogs`.
    Logs,
    /// `ServiceStatus`.
    Status,
    /// `ServiceRestart`.
    Restart,
}

/// The lease service. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct LeaseService {
    gate: Gate,
    fanout: Fanout,
    history: HistoryPermits,
    drain: Drain,
}

type View = watch::Receiver<Arc<LeaseView>>;

// === impl Method ===

impl Method {
    /// The method of this request path.
    pub fn of_path(path: &str) -> Option<Self> {
        match path.strip_prefix('/')?.strip_prefix(SERVICE)? {
            "/ServiceLogs" => Some(Self::Logs),
            "/ServiceStatus" => Some(Self::Status),
            "/ServiceRestart" => Some(Self::Restart),
            _ => None,
        }
    }

    fn scope(self) -> Scope {
        match self {
            Self::Logs => Scope::Logs,
            Self::Status => Scope::Status,
            Self::Restart => Scope::Restart,
        }
    }
}

// === impl LeaseService ===

impl LeaseService {
    /// A service that lets in whom `gate` lets in.
    pub fn new(gate: Gate, fanout: Fanout, drain: Drain) -> Self {
        let history = HistoryPermits::new(fanout.world().limits.history_reads);
        Self { gate, fanout, history, drain }
    }

    /// Answers one call over a connection of `peer`. A stream that comes of it is announced to `watched`.
    pub(super) async fn call(
        self,
        method: Method,
        peer: Peer,
        request: Request<Incoming>,
        watched: Watched,
    ) -> Response<ResponseBody> {
        match self.try_call(method, &peer, request, &watched).await {
            Ok(body) => response::of_logs(body),
            Err(error) => {
                let status = error.to_status();
                tracing::debug!(?method, code = ?status.code(), words = status.message(), "call refused");
                response::of_status(status)
            }
        }
    }

    async fn try_call(
        &self,
        method: Method,
        peer: &Peer,
        request: Request<Incoming>,
        watched: &Watched,
    ) -> Result<LogsBody, CallError> {
        let authorization = request.headers().get(http::header::AUTHORIZATION).map(HeaderValue::as_bytes);
        let admission = self.gate.admit(peer, authorization, LogTime::now()).await?;
        if self.drain.is_draining() {
            return Err(CallError::Draining);
        }
        let message = read(request.into_body()).await?;
        match method {
            Method::Logs => self.logs(&message, admission, watched).await,
            Method::Status => {
                let request: ServiceStatusRequest = request::decode(&message)?;
                not_offered(method, &admission, &request::lease(request.lease_id.as_ref())?)
            }
            Method::Restart => {
                let request: ServiceRestartRequest = request::decode(&message)?;
                not_offered(method, &admission, &request::lease(request.lease_id.as_ref())?)
            }
        }
    }

    async fn logs(
        &self,
        message: &Bytes,
        admission: Admission,
        watched: &Watched,
    ) -> Result<LogsBody, CallError> {
        let message: ServiceLogsRequest = request::decode(message)?;
        let mut request = request::logs(&message)?;
        let services = admission.identity.may(&request.lease, Scope::Logs)?;
        services.narrow(&mut request.filter)?;
        if !request.resume.keys().all(|replica| services.include(&replica.service)) {
            return Err(Refusal::ServiceNotGranted.into());
        }
        let view = self.view(&request.lease).await?;
        check(&request, &view)?;
        let state = StreamState::new();
        let drain = self.drain.clone();
        let standing = admission.standing.clone();
        let ends = async move {
            tokio::select! {
                biased;
                refusal = standing.ended() => End::Refused(refusal),
                () = drain.draining() => End::Draining,
            }
        };
        watched.watch(Arc::clone(&state), Box::pin(ends));
        tracing::debug!(lease = %request.lease, follow = request.extent.follows(), "log stream opened");
        let (fanout, history) = (self.fanout.clone(), self.history.clone());
        Ok(LogsBody::new(request, fanout, history, view, state, trailers))
    }

    async fn view(&self, lease: &LeaseId) -> Result<View, CallError> {
        let view = self.fanout.world().platform.watch(lease).await.map_err(|error| match error {
            platform::Error::NotFound(_) => CallError::NoLease,
            other => CallError::Platform(other),
        })?;
        if view.borrow().ended || view.has_changed().is_err() {
            return Err(CallError::NoLease);
        }
        Ok(view)
    }
}

/// Says so to those who may ask.
fn not_offered(method: Method, admission: &Admission, lease: &LeaseId) -> Result<LogsBody, CallError> {
    admission.identity.may(lease, method.scope())?;
    Err(CallError::Unimplemented(match method {
        Method::Status => "ServiceStatus is not offered by this version of the gateway",
        Method::Restart => "ServiceRestart is not offered by this version of the gateway",
        Method::Logs => "not offered",
    }))
}

/// Whether what is asked for is there, and not too much.
fn check(request: &LogsRequest, view: &View) -> Result<(), CallError> {
    let view = view.borrow();
    if let Some(missing) = request.filter.missing(&view) {
        return Err(CallError::Missing(missing));
    }
    if view.select(&request.filter).count() > STREAM_REPLICAS_MAX {
        return Err(CallError::Quota(Exceeded {
            quota: Quota::ReplicasPerStream,
            subject: Subject::Stream,
            limit: STREAM_REPLICAS_MAX as u64,
            retry_after: None,
        }));
    }
    let has_previous = view.select(&request.filter).any(|(_, slot)| slot.runs.len() > 1);
    if matches!(request.extent, Extent::Previous(_)) && !has_previous {
        return Err(CallError::NoPreviousRun);
    }
    Ok(())
}

fn trailers(end: &End) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // Fails for a message that is not fit for a header, and ours are.
    if let Err(status) = status::of_end(end).add_header(&mut trailers) {
        tracing::error!(%status, "status does not fit into trailers");
    }
    trailers
}

/// The one message of a call, without its prefix.
async fn read(body: Incoming) -> Result<Bytes, CallError> {
    let limited = Limited::new(body, REQUEST_MAX_BYTES + PREFIX_BYTES);
    let collected = tokio::time::timeout(REQUEST_TIMEOUT, limited.collect());
    let collected = collected.await.map_err(|_| CallError::RequestTimeout)?.map_err(|error| {
        if error.downcast_ref::<LengthLimitError>().is_some() {
            CallError::request(format!("the request is longer than {REQUEST_MAX_BYTES} bytes"))
        } else {
            CallError::request("the request broke off")
        }
    })?;
    let mut bytes = collected.to_bytes();
    if bytes.remaining() < PREFIX_BYTES {
        return Err(CallError::request("the request holds no message"));
    }
    match bytes.get_u8() {
        0 => {}
        1 => return Err(CallError::Unimplemented("compressed requests are not accepted")),
        _ => return Err(CallError::request("the request does not begin as a gRPC message")),
    }
    let length = bytes.get_u32() as usize;
    if length != bytes.remaining() {
        return Err(CallError::request("the request does not hold exactly one message"));
    }
    Ok(bytes)
}
