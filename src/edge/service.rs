//! The lease service: authentication, quotas, then the call.
//!
//! A caller is authenticated before the request is read, and authorised before anything is looked up. So a
//! refusal does not reveal whether a lease exists.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::sync::watch;
use tokio::time::Instant;

use super::audit::{self, AuditLog, AuditRecord};
use super::call_trace::{CallTrace, Tracer};
use super::drain::Drain;
use super::errors::{CallError, of_end};
use super::peer_limits::{AuthState, PeerLimits};
use super::published::{self, DefaultProto};
use super::quotas::Quotas;
use super::request;
use super::request_body::{Encoding, MessageMeter, RequestBody};
use super::response::{self, ResponseBody};
use super::stream_supervisor::SupervisorHandle;
use super::task_classes::TaskClasses;
use crate::access::authenticator::{Authenticated, Authenticator, ClientCertificate, CredentialValidity};
use crate::access::grants::TokenScope;
use crate::access::refusal::{Refusal, RefusalKind};
use crate::logs::actor::ActorContext;
use crate::logs::actors::ActorRegistry;
use crate::logs::backfill_limits::BackfillLimiter;
use crate::logs::body::{LogsBody, Trailers};
use crate::logs::{LogsRequest, ReadRange};
use crate::model::concurrency::ConcurrencyPermit;
use crate::model::id::LeaseId;
use crate::model::limits::QuotaLimits;
use crate::model::metrics::{LabelValue as _, Method, Metrics, PublishedMethod};
use crate::model::peer::PeerNet;
use crate::model::proto::lease::{ServiceLogsRequest, ServiceStatusRequest};
use crate::model::quota::{Exceeded, Quota, Subject};
use crate::model::time::LogTime;
use crate::model::view::{Filter, LeaseView};
use crate::platform;
use crate::restart::RestartManager;
use crate::status::{StatusBody, StatusForm};
use crate::stream::{StreamControl, StreamEnd};
use crate::sys::fair_poll::SharedClass;

mod published_calls;
mod restarts;

/// The full name of the service.
pub const SERVICE: &str = "akash.provider.lease.v1.LeaseRPC";

/// Retry-after hint when the rate of queries about unknown callers is used up: the next second has its own.
const TRUST_RETRY: Duration = Duration::from_secs(1);

/// The peer of one connection, as its calls need it. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct ConnectionInfo {
    pub(super) certificate: ClientCertificate,
    /// The peer's address. Unknown only on in-memory connections, which tests and benchmarks use.
    pub(super) address: Option<SocketAddr>,
    /// The public host that the client asked for, if clients of that name are not asked for a certificate.
    pub(super) public_name: Option<Arc<str>>,
    /// Results of the calls so far.
    pub(super) auth: AuthState,
    /// The class of the connection's tasks. `None` on connections that were not accepted by a server, which
    /// tests and benchmarks use.
    pub(super) class: Option<SharedClass>,
}

/// The lease service. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct LeaseService {
    authenticator: Authenticator,
    pub(super) actors: ActorRegistry,
    backfill: BackfillLimiter,
    restarts: RestartManager,
    pub(super) audit: AuditLog,
    pub(super) quotas: Quotas,
    pub(super) peers: PeerLimits,
    pub(super) drain: Drain,
    pub(super) classes: TaskClasses,
    /// The proto of requests that are the same in both.
    proto: DefaultProto,
    /// `None`: calls are not traced.
    pub(super) tracer: Option<Arc<dyn Tracer>>,
}

/// A method of the lease service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeaseMethod {
    /// One of the draft. `ServiceLogs` and `ServiceStatus` may be of the published proto: the request
    /// determines that.
    Draft(Method),
    /// One that only the published proto has.
    Published(PublishedMethod),
}

/// A call whose caller is authenticated.
struct Call<'a> {
    caller: Authenticated,
    supervisor: &'a SupervisorHandle,
    audit: &'a AuditRecord,
}

pub(super) type ViewReceiver = watch::Receiver<Arc<LeaseView>>;

// === impl LeaseMethod ===

impl LeaseMethod {
    /// Returns the method at a request path.
    pub(super) fn at(path: &str) -> Option<Self> {
        let name = path.strip_prefix('/')?.strip_prefix(SERVICE)?.strip_prefix('/')?;
        let draft = Method::ALL.iter().find(|method| method.label() == name);
        let published = || {
            let streams = [PublishedMethod::StreamLogs, PublishedMethod::StreamStatus];
            streams.into_iter().find(|method| method.label() == name)
        };
        draft.copied().map(Self::Draft).or_else(|| published().map(Self::Published))
    }

    /// Returns the name by which it is called.
    fn label(self) -> &'static str {
        match self {
            Self::Draft(method) => method.label(),
            Self::Published(method) => method.label(),
        }
    }

    /// Returns the method of the draft with the same purpose.
    pub(super) fn draft(self) -> Method {
        match self {
            Self::Draft(method) => method,
            Self::Published(method) => method.draft(),
        }
    }
}

// === impl ConnectionInfo ===

impl ConnectionInfo {
    pub(super) fn new(certificate: ClientCertificate, address: Option<SocketAddr>) -> Self {
        Self { certificate, address, public_name: None, auth: AuthState::default(), class: None }
    }

    pub(super) fn net(&self) -> Option<PeerNet> {
        self.address.map(|address| PeerNet::from(address.ip()))
    }
}

// === impl LeaseService ===

impl LeaseService {
    /// Creates a service. Limits, platform and metrics are those of `actors`.
    pub fn new(
        authenticator: Authenticator,
        actors: ActorRegistry,
        restarts: RestartManager,
        drain: Drain,
    ) -> Self {
        let ActorContext { limits, memory, .. } = actors.context();
        let backfill = BackfillLimiter::new(&limits.quota, memory.clone());
        let quotas = Quotas::new(&limits.quota, actors.quota_divisor());
        let audit = AuditLog::new(limits.audit_refusals_per_minute);
        let peers = PeerLimits::new(&limits.connection, &limits.quota);
        let proto = DefaultProto::default();
        let classes = TaskClasses::new();
        let tracer = None;
        Self {
            authenticator,
            actors,
            backfill,
            restarts,
            audit,
            quotas,
            peers,
            drain,
            classes,
            proto,
            tracer,
        }
    }

    /// Returns the same service, whose calls `tracer` traces.
    pub(crate) fn with_tracer(self, tracer: Option<Arc<dyn Tracer>>) -> Self {
        Self { tracer, ..self }
    }

    /// Starts the trace of a call whose headers have arrived.
    pub(super) fn trace(&self, method: LeaseMethod, headers: &HeaderMap) -> CallTrace {
        CallTrace::grpc(self.tracer.as_ref(), Some(SERVICE), method.label(), headers)
    }

    /// Returns the same service for a port of this proto.
    pub(super) fn for_proto(&self, proto: DefaultProto) -> Self {
        Self { proto, ..self.clone() }
    }

    /// Returns whether the certificate of a shut-out peer is trusted. If so, its calls are answered.
    pub(super) async fn has_trusted_certificate(&self, info: &ConnectionInfo) -> bool {
        let may_query =
            || info.net().is_none_or(|net| self.peers.may_query_trust(net, Instant::now().into_std()));
        let is_trusted = self.authenticator.trusts(&info.certificate, LogTime::now(), may_query).await;
        if is_trusted {
            info.auth.record_success();
        }
        is_trusted
    }

    /// Answers one call of the lease service. If it becomes a stream, starts its supervision.
    pub(super) async fn call(
        self,
        method: LeaseMethod,
        info: ConnectionInfo,
        request: Request<RequestBody>,
        supervisor: SupervisorHandle,
        trace: CallTrace,
    ) -> Response<ResponseBody> {
        let audit = self.audit.traced_call(method.label(), info.net(), trace);
        let response = self.try_call(method, &info, request, &supervisor, &audit).await;
        response.unwrap_or_else(|error| self.fail(&error, &audit))
    }

    /// Admits a health or reflection call, which needs no credentials. It counts as open until the returned
    /// permit is dropped. Further messages in the request count as calls.
    ///
    /// # Errors
    /// The response, if the peer has too many such calls open, calls too often, or is shut out.
    pub(super) fn admit_anonymous(
        &self,
        info: &ConnectionInfo,
        request: &mut Request<RequestBody>,
    ) -> Result<Option<ConcurrencyPermit<PeerNet>>, Box<Response<ResponseBody>>> {
        let admitted = self.admit_unauthenticated(info, PeerLimits::begin_anonymous_call);
        let permit = admitted
            .map_err(|error| Box::new(self.fail(&error, &self.audit.call(audit::OTHER, info.net()))))?;
        if let Some(net) = info.net() {
            request.body_mut().set_meter(MessageMeter::new(self.peers.clone(), net, info.auth.clone()));
        }
        Ok(permit)
    }

    /// Admits a request whose credentials are not checked here. `count` counts it for its peer, if that is
    /// known.
    ///
    /// # Errors
    /// The error of `count`, or the peer is shut out.
    pub(super) fn admit_unauthenticated<T>(
        &self,
        info: &ConnectionInfo,
        count: impl FnOnce(&PeerLimits, PeerNet, std::time::Instant) -> Result<T, Exceeded>,
    ) -> Result<Option<T>, CallError> {
        let Some(net) = info.net() else { return Ok(None) };
        let now = Instant::now().into_std();
        let checked = if info.auth.is_authenticated() { Ok(()) } else { self.peers.check_shut_out(net, now) };
        let counted = checked.and_then(|()| count(&self.peers, net, now));
        counted.map(Some).map_err(|exceeded| {
            match exceeded.quota {
                Quota::AuthFailuresPerPeer => info.auth.record_shut_out_rejection(),
                _ => info.auth.record_rejection(),
            }
            exceeded.into()
        })
    }

    /// Creates the response to a failed call, and counts it.
    pub(super) fn fail(&self, error: &CallError, audit: &AuditRecord) -> Response<ResponseBody> {
        self.count_failure(error, audit);
        let status = error.to_status();
        tracing::debug!(code = ?status.code(), message = status.message(), "call failed");
        response::of_status(status)
    }

    /// Counts and logs refusals and rejections by their reason.
    pub(super) fn count_failure(&self, error: &CallError, audit: &AuditRecord) {
        let refused = |refusal: Refusal| {
            self.metrics().auth_refusals.of(refusal).increment(1);
            audit.log("call refused", refusal.reason());
        };
        match error {
            CallError::Refused(refusal) => refused(*refusal),
            CallError::NoCredentialsBy(_) => refused(Refusal::NoCredentials),
            CallError::Quota(exceeded) => count_rejection(exceeded, self.metrics(), audit),
            _ => {}
        }
    }

    async fn try_call(
        &self,
        method: LeaseMethod,
        info: &ConnectionInfo,
        request: Request<RequestBody>,
        supervisor: &SupervisorHandle,
        audit: &AuditRecord,
    ) -> Result<Response<ResponseBody>, CallError> {
        let (head, body) = request.into_parts();
        let (caller, encoding) = match self.begin(info, &head.headers, supervisor, audit).await {
            Ok(begun) => begun,
            Err(error) => {
                body.finish().await;
                return Err(error);
            }
        };
        let max_bytes = self.actors.context().limits.connection.request_max_bytes;
        let message = body.read_message(encoding, max_bytes).await?;
        let call = Call { caller, supervisor, audit };
        let services_max = self.limits().filters_per_request;
        let parse = |method| {
            let request = published::parse(&message, self.proto, services_max)?;
            Ok::<_, CallError>(request.map(|request| (method, request)))
        };
        let published = match method {
            LeaseMethod::Draft(Method::Logs) => parse(PublishedMethod::Logs)?,
            LeaseMethod::Draft(Method::Status) => parse(PublishedMethod::Status)?,
            LeaseMethod::Draft(Method::Restart) => None,
            LeaseMethod::Published(method) => {
                Some((method, published::parse_stream(&message, services_max)?))
            }
        };
        if let Some((method, request)) = published {
            return self.published(method, request, &head.headers, call).await;
        }
        match method.draft() {
            Method::Logs => self.logs(&message, call).await,
            Method::Status => self.status(&message, call).await,
            Method::Restart => self.restart(&message, call).await,
        }
    }

    /// Authenticates the caller and takes its quotas, before the request is read.
    async fn begin(
        &self,
        info: &ConnectionInfo,
        headers: &HeaderMap,
        supervisor: &SupervisorHandle,
        audit: &AuditRecord,
    ) -> Result<(Authenticated, Encoding), CallError> {
        let authorization = headers.get_all(http::header::AUTHORIZATION);
        let authorization: Vec<&[u8]> = authorization.iter().map(HeaderValue::as_bytes).collect();
        let caller = self.authenticate(info, &authorization, audit).await?;
        if self.drain.is_draining() {
            return Err(CallError::Draining);
        }
        supervisor.hold(self.quotas.admit_call(caller.identity.owner(), Instant::now().into_std())?);
        Ok((caller, Encoding::of(headers)?))
    }

    /// Authenticates the caller, unless its peer is shut out and the last call on this connection did not
    /// authenticate.
    pub(super) async fn authenticate(
        &self,
        info: &ConnectionInfo,
        authorization: &[&[u8]],
        audit: &AuditRecord,
    ) -> Result<Authenticated, CallError> {
        if let Some(net) = info.net()
            && !info.auth.last_call_authenticated()
        {
            let checked = self.peers.check_shut_out(net, Instant::now().into_std());
            checked.inspect_err(|_| info.auth.record_shut_out_rejection())?;
        }
        let result = self.authenticator.authenticate(&info.certificate, authorization, LogTime::now()).await;
        let caller = result.map_err(|error| {
            if let Some(owner) = error.claimed {
                audit.set_claimed(owner);
            }
            if error.refusal.kind() == RefusalKind::Unauthenticated {
                info.auth.record_failure();
                if let Some(net) = info.net() {
                    self.peers.record_failure(net, Instant::now().into_std());
                }
            }
            self.call_error(error.refusal, info)
        })?;
        info.auth.record_success();
        if let Some(class) = &info.class {
            class.set(self.classes.of(caller.identity.owner()));
        }
        audit.set_authenticated(caller.identity.owner().clone());
        Ok(caller)
    }

    /// Converts a refusal. `TrustBusy` is a quota and a reason why authentication failed, so it is counted as
    /// both.
    fn call_error(&self, refusal: Refusal, info: &ConnectionInfo) -> CallError {
        if let (Refusal::NoCredentials, Some(host)) = (refusal, &info.public_name) {
            return CallError::NoCredentialsBy(Arc::clone(host));
        }
        if refusal != Refusal::TrustBusy {
            return refusal.into();
        }
        self.metrics().auth_refusals.of(refusal).increment(1);
        CallError::Quota(Exceeded {
            quota: Quota::ChainQueries,
            subject: Subject::Gateway,
            limit: self.limits().chain_queries_per_second.into(),
            retry_after: Some(TRUST_RETRY),
        })
    }

    fn limits(&self) -> &QuotaLimits {
        &self.actors.context().limits.quota
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.actors.context().metrics
    }

    /// Answers `ServiceLogs`.
    async fn logs(&self, message: &Bytes, call: Call<'_>) -> Result<Response<ResponseBody>, CallError> {
        let message: ServiceLogsRequest = request::decode(message)?;
        let mut request = request::logs(&message, self.limits().filters_per_request)?;
        call.audit.set_lease(&request.lease);
        let services = call.caller.identity.authorize(&request.lease, TokenScope::Logs)?;
        request::narrow(&mut request, &services)?;
        let view = self.logs_view(&request).await?;
        Ok(self.log_stream(request, view, &call))
    }

    /// Returns the view for a request for logs. It has everything that the request names, and previous runs
    /// if it asks for these.
    pub(super) async fn logs_view(&self, request: &LogsRequest) -> Result<ViewReceiver, CallError> {
        let view = self.checked_view(&request.lease, &request.filter).await?;
        if matches!(request.range, ReadRange::Previous(_)) {
            let view = Arc::clone(&view.borrow());
            if !view.select(&request.filter).any(|(_, replica)| replica.readable().count() > 1) {
                return Err(CallError::NoPreviousRun);
            }
        }
        Ok(view)
    }

    /// Opens a log stream.
    fn log_stream(
        &self,
        request: LogsRequest,
        view: ViewReceiver,
        call: &Call<'_>,
    ) -> Response<ResponseBody> {
        let control = self.open_stream(call);
        tracing::debug!(lease = %request.lease, stream = control.id(), follow = request.range.follows(), "log stream opened");
        let (audit, metrics) = (call.audit.clone(), self.metrics().clone());
        let trailers = Box::new(move |end: &StreamEnd| {
            count_end(end, &metrics, &audit);
            trailers(end)
        });
        response::of_stream(self.logs_body(request, view, control, trailers))
    }

    /// Creates the body of a log stream.
    pub(super) fn logs_body(
        &self,
        request: LogsRequest,
        view: ViewReceiver,
        control: Arc<StreamControl>,
        trailers: Trailers,
    ) -> LogsBody {
        LogsBody::new(request, self.actors.clone(), self.backfill.clone(), view, control, trailers)
    }

    /// Answers `ServiceStatus`.
    async fn status(&self, message: &Bytes, call: Call<'_>) -> Result<Response<ResponseBody>, CallError> {
        let message: ServiceStatusRequest = request::decode(message)?;
        let lease = request::lease(message.lease_id.as_ref())?;
        let filters_max = self.limits().filters_per_request;
        let mut filter = request::filter(message.filter.as_ref(), &message.filters, filters_max)?;
        call.audit.set_lease(&lease);
        call.caller.identity.authorize(&lease, TokenScope::Status)?.narrow(&mut filter)?;
        let view = self.checked_view(&lease, &filter).await?;
        Ok(self.status_stream(&lease, filter, view, message.follow, &call))
    }

    /// Opens a stream of statuses; without `follow` of one.
    fn status_stream(
        &self,
        lease: &LeaseId,
        filter: Filter,
        view: ViewReceiver,
        follow: bool,
        call: &Call<'_>,
    ) -> Response<ResponseBody> {
        let control = self.open_stream(call);
        tracing::debug!(%lease, follow, "status stream opened");
        let form = StatusForm::Grpc;
        response::of_stream(StatusBody::new(view, filter, follow, control, form, Box::new(trailers)))
    }

    /// Answers `ServiceRestart`. Waits until the job is done, the requested timeout has passed, or the
    /// credentials end. The job does not depend on its caller.
    async fn restart(&self, message: &Bytes, call: Call<'_>) -> Result<Response<ResponseBody>, CallError> {
        let filters_max = self.limits().filters_per_request;
        let (mut request, timeout) = request::restart(&request::decode(message)?, filters_max)?;
        call.audit.set_lease(&request.lease);
        call.caller.identity.authorize(&request.lease, TokenScope::Restart)?.narrow(&mut request.filter)?;
        let job = self.restart_job(request, call.audit).await?;
        self.await_restart(&job, timeout, &call.caller.validity).await?;
        // While the job runs, nothing is sent, so a stall is impossible. `await_restart` watches the
        // credentials. A drain waits for the job. From here on, the peer may stall. The body does not react
        // to its control and need not: it is one message, which like the last messages of a log may take the
        // whole drain.
        let control = self.open_stream(&call);
        Ok(response::of_message(&job.response(), control, ()))
    }

    /// Returns the view of `lease`. It has everything that `filter` names, and at most as many replicas as
    /// one call may select.
    pub(super) async fn checked_view(
        &self,
        lease: &LeaseId,
        filter: &Filter,
    ) -> Result<ViewReceiver, CallError> {
        let receiver = self.counted_view(lease, filter).await?;
        let view = receiver.borrow();
        if let Some(missing) = filter.missing(&view) {
            // In a stale view it may be missing although it exists by now.
            return Err(match view.stale_since {
                Some(since) => CallError::Platform(platform::Error::Unavailable(format!(
                    "{missing:?} is not in the view, which is stale since {since}"
                ))),
                None => CallError::Missing(missing),
            });
        }
        drop(view);
        Ok(receiver)
    }

    /// Returns the view of `lease`. `filter` selects at most as many of its replicas as one call may select.
    pub(super) async fn counted_view(
        &self,
        lease: &LeaseId,
        filter: &Filter,
    ) -> Result<ViewReceiver, CallError> {
        let receiver = self.view(lease).await?;
        let max = self.limits().replicas_per_request;
        if receiver.borrow().select(filter).count() > max {
            return Err(CallError::Quota(Exceeded {
                quota: Quota::ReplicasPerStream,
                subject: Subject::Stream,
                limit: max as u64,
                retry_after: None,
            }));
        }
        Ok(receiver)
    }

    /// Returns the view of `lease`.
    pub(super) async fn view(&self, lease: &LeaseId) -> Result<ViewReceiver, CallError> {
        let context = self.actors.context();
        let view = context.platform.watch(lease).await.map_err(|error| match error {
            platform::Error::NotFound(_) => CallError::NoLease,
            other => {
                context.count_error(&other);
                CallError::Platform(other)
            }
        })?;
        if view.borrow().ended || view.has_changed().is_err() {
            return Err(CallError::NoLease);
        }
        Ok(view)
    }

    /// Creates the control of a stream, and starts its supervision: it ends with its credentials, or when the
    /// gateway drains.
    fn open_stream(&self, call: &Call<'_>) -> Arc<StreamControl> {
        let control = StreamControl::new();
        self.supervise(call.supervisor, call.audit, call.caller.validity.clone(), Arc::clone(&control));
        control
    }

    /// Starts the supervision of a stream: it ends with its credentials, or when the gateway drains.
    pub(super) fn supervise(
        &self,
        supervisor: &SupervisorHandle,
        audit: &AuditRecord,
        credentials: CredentialValidity,
        control: Arc<StreamControl>,
    ) {
        // A stream keeps this token instead of the whole `Drain`.
        let draining = self.drain.draining.clone();
        let audit = audit.clone();
        let ends = async move {
            tokio::select! {
                biased;
                refusal = credentials.ended() => {
                    audit.log("stream ended", refusal.reason());
                    StreamEnd::Refused(refusal)
                }
                () = draining.cancelled() => StreamEnd::Draining,
            }
        };
        supervisor.supervise(control, Box::pin(ends));
    }
}

/// Counts a stream that was rejected only when it started to read, like any other rejection.
pub(super) fn count_end(end: &StreamEnd, metrics: &Metrics, audit: &AuditRecord) {
    if let StreamEnd::Exceeded(exceeded) = end {
        count_rejection(exceeded, metrics, audit);
    }
}

fn count_rejection(exceeded: &Exceeded, metrics: &Metrics, audit: &AuditRecord) {
    metrics.quota_rejections.of(exceeded.quota).increment(1);
    audit.log("call refused", exceeded.quota.label());
}

fn trailers(end: &StreamEnd) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // Fails only for text that is not fit for a header.
    if let Err(status) = of_end(end).add_header(&mut trailers) {
        tracing::error!(%status, "failed to encode status in trailers");
    }
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_determines_the_method() {
        let method = |name: &str| LeaseMethod::at(&format!("/{SERVICE}/{name}"));
        assert_eq!(method("ServiceLogs"), Some(LeaseMethod::Draft(Method::Logs)));
        assert_eq!(method("ServiceRestart"), Some(LeaseMethod::Draft(Method::Restart)));
        assert_eq!(method("StreamServiceLogs"), Some(LeaseMethod::Published(PublishedMethod::StreamLogs)));
        let status = method("StreamServiceStatus").unwrap();
        assert_eq!((status.draft(), status.label()), (Method::Status, "StreamServiceStatus"));
        assert_eq!((method("SendManifest"), method("")), (None, None));
    }
}
