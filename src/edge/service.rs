//! The lease service: gate, then lease, then call.
//!
//! The caller is established before the request is read, and may or may not before anything is looked up: so no answer depends
//! on what exists, but for those whose it is.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::sync::watch;
use tokio::time::Instant;

use self::read::{Encoding, read};
use super::audit::{Audit, AuditRecord};
use super::auth_state::AuthState;
use super::drain::Drain;
use super::errors::{CallError, of_end};
use super::peer_limits::PeerLimits;
use super::quotas::Quotas;
use super::request_body::{Messages, Meter, RequestBody};
use super::response::{self, ResponseBody};
use super::stream_supervisor::Watched;
use crate::access::authenticator::{Admission, Authenticator, Peer};
use crate::access::refusal::{self, Refusal};
use crate::logs::actors::ActorRegistry;
use crate::logs::backfill_limits::BackfillLimiter;
use crate::model::concurrency::ConcurrencyPermit;
use crate::model::id::LeaseId;
use crate::model::limits::QuotaLimits;
use crate::model::metrics;
use crate::model::peer::PeerNet;
use crate::model::quota::{Exceeded, Quota, Subject};
use crate::model::time::LogTime;
use crate::model::view::{Filter, LeaseView};
use crate::platform;
use crate::restart::RestartManager;
use crate::stream::{StreamControl, StreamEnd};

mod logs;
mod read;
mod restart;
mod status;

/// The full name of the service.
pub const SERVICE: &str = "akash.provider.lease.v1.LeaseRPC";

/// When whoever is not known yet may ask again, if too many of them do: another second has its own questions.
const TRUST_RETRY: Duration = Duration::from_secs(1);

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

/// What is known of a caller by the connection that its calls come over. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// What the handshake showed.
    pub(super) peer: Peer,
    /// Where it comes from, if that is known.
    pub(super) net: Option<PeerNet>,
    /// The public host that the client asked for, if clients of that name are not asked for a certificate.
    pub(super) public_name: Option<Arc<str>>,
    /// What the calls have shown.
    pub(super) auth: AuthState,
}

/// The lease service. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct LeaseService {
    gate: Authenticator,
    fanout: ActorRegistry,
    history: BackfillLimiter,
    restarts: RestartManager,
    audit: Audit,
    quotas: Quotas,
    peers: PeerLimits,
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

    /// Its name.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Logs => "ServiceLogs",
            Self::Status => "ServiceStatus",
            Self::Restart => "ServiceRestart",
        }
    }

    /// What its calls are counted as.
    pub(super) fn counted(self) -> metrics::Method {
        match self {
            Self::Logs => metrics::Method::Logs,
            Self::Status => metrics::Method::Status,
            Self::Restart => metrics::Method::Restart,
        }
    }
}

// === impl LeaseService ===

impl LeaseService {
    /// A service that lets in whom `gate` lets in.
    pub fn new(gate: Authenticator, fanout: ActorRegistry, restarts: RestartManager, drain: Drain) -> Self {
        let limits = &fanout.context().limits;
        let history = BackfillLimiter::new(&limits.quota);
        let quotas = Quotas::new(&limits.quota);
        let audit = Audit::new(limits.audit_refusals_per_minute);
        let peers = PeerLimits::new(&limits.connection, &limits.quota);
        Self { gate, fanout, history, restarts, audit, quotas, peers, drain }
    }

    /// What is known of peers by their addresses.
    pub(super) fn peers(&self) -> &PeerLimits {
        &self.peers
    }

    /// Whether the certificate of `peer`, which is shut out, is trusted.
    pub(super) async fn trusts(&self, peer: &Peer, net: Option<PeerNet>) -> bool {
        let may_ask = || net.is_none_or(|net| self.peers.may_ask_about(net, Instant::now().into_std()));
        self.gate.trusts(peer, LogTime::now(), may_ask).await
    }

    /// Answers one call of `caller`. A stream that comes of it is announced to `watched`.
    pub(super) async fn call(
        self,
        method: Method,
        caller: Caller,
        request: Request<RequestBody>,
        watched: Watched,
    ) -> Response<ResponseBody> {
        let case = self.audit.case(method, caller.net);
        match self.try_call(method, &caller, request, &watched, &case).await {
            Ok(response) => response,
            Err(error) => {
                match &error {
                    CallError::Refused(refusal) => case.refused(refusal.reason()),
                    CallError::NoCredentialsBy(_) => case.refused(Refusal::NoCredentials.reason()),
                    CallError::Quota(exceeded) => case.refused(exceeded.quota.label()),
                    _ => {}
                }
                self.refuse(&error)
            }
        }
    }

    /// Admits a call that needs no credentials. It counts as open until what is returned is dropped; further messages in the
    /// request count as calls.
    ///
    /// # Errors
    /// The response, if the peer has too many open, calls too often, or is shut out.
    pub(super) fn other_call(
        &self,
        caller: &Caller,
        request: &mut Request<RequestBody>,
    ) -> Result<Option<ConcurrencyPermit<PeerNet>>, Box<Response<ResponseBody>>> {
        let Some(net) = caller.net else {
            return Ok(None);
        };
        let now = Instant::now().into_std();
        let shut_out = if caller.auth.is_authenticated() { Ok(()) } else { self.peers.listen(net, now) };
        let held = match shut_out.and_then(|()| self.peers.open_call(net, now)) {
            Ok(held) => held,
            Err(exceeded) => {
                match exceeded.quota {
                    Quota::AuthFailuresPerPeer => caller.auth.shut_out_refused(),
                    _ => caller.auth.rate_refused(),
                }
                self.audit.other_case(net).refused(exceeded.quota.label());
                return Err(Box::new(self.refuse(&exceeded.into())));
            }
        };
        let (peers, auth, messages) = (self.peers.clone(), caller.auth.clone(), Messages::default());
        request.body_mut().set_meter(Meter { peers, net, auth, messages });
        Ok(Some(held))
    }

    /// What is answered to a call that failed; it is counted whom and what was refused, for that it was is counted with all calls.
    fn refuse(&self, error: &CallError) -> Response<ResponseBody> {
        let metrics = &self.fanout.context().metrics;
        match error {
            CallError::Refused(refusal) => metrics.auth_refusals.count(refusal.reason()),
            CallError::NoCredentialsBy(_) => metrics.auth_refusals.count(Refusal::NoCredentials.reason()),
            CallError::Quota(exceeded) => metrics.quota_refusals.of(exceeded.quota).increment(1),
            _ => {}
        }
        let status = error.to_status();
        tracing::debug!(code = ?status.code(), words = status.message(), "call refused");
        response::of_status(status)
    }

    async fn try_call(
        &self,
        method: Method,
        caller: &Caller,
        request: Request<RequestBody>,
        watched: &Watched,
        case: &AuditRecord,
    ) -> Result<Response<ResponseBody>, CallError> {
        let (head, body) = request.into_parts();
        let begun = self.begin(caller, &head.headers, watched, case).await;
        let (admission, encoding) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                body.finish().await;
                return Err(error);
            }
        };
        let message = read(body, encoding, self.fanout.context().limits.connection.request_max_bytes).await?;
        match method {
            Method::Logs => self.logs(&message, admission, watched, case).await,
            Method::Status => self.status(&message, admission, watched, case).await,
            Method::Restart => self.restart(&message, admission, watched, case).await,
        }
    }

    /// Does what a call needs before its request is read.
    async fn begin(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        watched: &Watched,
        case: &AuditRecord,
    ) -> Result<(Admission, Encoding), CallError> {
        let authorization = headers.get_all(http::header::AUTHORIZATION);
        let authorization: Vec<&[u8]> = authorization.iter().map(HeaderValue::as_bytes).collect();
        let admission = self.admit(caller, &authorization, case).await?;
        if self.drain.is_draining() {
            return Err(CallError::Draining);
        }
        watched.keep(self.quotas.call(admission.identity.owner(), Instant::now().into_std())?);
        Ok((admission, Encoding::of(headers)?))
    }

    /// Establishes who calls, unless their address is shut out and this connection has not shown before who they are.
    async fn admit(
        &self,
        caller: &Caller,
        authorization: &[&[u8]],
        case: &AuditRecord,
    ) -> Result<Admission, CallError> {
        if let Some(net) = caller.net
            && !caller.auth.may_call()
        {
            let listened = self.peers.listen(net, Instant::now().into_std());
            listened.inspect_err(|_| caller.auth.shut_out_refused())?;
        }
        let admitted = self.gate.admit(&caller.peer, authorization, LogTime::now()).await;
        let admission = admitted.map_err(|denial| {
            if let Some(who) = denial.claimed {
                case.claimed(who);
            }
            if denial.refusal.kind() == refusal::RefusalKind::Unauthenticated {
                caller.auth.failed();
                if let Some(net) = caller.net {
                    self.peers.failed(net, Instant::now().into_std());
                }
            }
            self.denied(denial.refusal, caller)
        })?;
        caller.auth.succeeded();
        case.proved(admission.identity.owner().clone());
        Ok(admission)
    }

    /// Whether somebody is to be believed may cost more than there is: that is a quota, like any other, and also why a caller did
    /// not come in, so it is counted as both.
    fn denied(&self, refusal: Refusal, caller: &Caller) -> CallError {
        if let (Refusal::NoCredentials, Some(host)) = (refusal, &caller.public_name) {
            return CallError::NoCredentialsBy(Arc::clone(host));
        }
        if refusal != Refusal::TrustBusy {
            return refusal.into();
        }
        self.fanout.context().metrics.auth_refusals.count(refusal.reason());
        CallError::Quota(Exceeded {
            quota: Quota::ChainQueries,
            subject: Subject::Gateway,
            limit: self.bounds().chain_queries_per_second.into(),
            retry_after: Some(TRUST_RETRY),
        })
    }

    fn bounds(&self) -> &QuotaLimits {
        &self.fanout.context().limits.quota
    }

    /// What runs under `lease`, with everything that `filter` names and no more replicas than a call may be about.
    async fn chosen(&self, lease: &LeaseId, filter: &Filter) -> Result<View, CallError> {
        let receiver = self.view(lease).await?;
        let view = receiver.borrow();
        if let Some(missing) = filter.missing(&view) {
            // It may be there by now.
            return Err(match view.stale_since {
                Some(since) => CallError::Platform(platform::Error::Unavailable(format!(
                    "not known: {missing:?}, and what runs is not known since {since}"
                ))),
                None => CallError::Missing(missing),
            });
        }
        let most = self.bounds().replicas_per_request;
        if view.select(filter).count() > most {
            return Err(CallError::Quota(Exceeded {
                quota: Quota::ReplicasPerStream,
                subject: Subject::Stream,
                limit: most as u64,
                retry_after: None,
            }));
        }
        drop(view);
        Ok(receiver)
    }

    /// The state of a stream that opens now, watched over: it ends when the caller's standing does, or with the gateway.
    fn open(&self, admission: &Admission, watched: &Watched, case: &AuditRecord) -> Arc<StreamControl> {
        let state = StreamControl::new();
        let (standing, draining, case) = (admission.validity.clone(), self.drain.soft(), case.clone());
        let ends = async move {
            tokio::select! {
                biased;
                refusal = standing.ended() => {
                    case.ended(refusal.reason());
                    StreamEnd::Refused(refusal)
                }
                () = draining.cancelled() => StreamEnd::Draining,
            }
        };
        watched.watch(Arc::clone(&state), Box::pin(ends));
        state
    }

    async fn view(&self, lease: &LeaseId) -> Result<View, CallError> {
        let world = self.fanout.context();
        let view = world.platform.watch(lease).await.map_err(|error| match error {
            platform::Error::NotFound(_) => CallError::NoLease,
            other => {
                world.count_error(&other);
                CallError::Platform(other)
            }
        })?;
        if view.borrow().ended || view.has_changed().is_err() {
            return Err(CallError::NoLease);
        }
        Ok(view)
    }
}

fn trailers(end: &StreamEnd) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // Fails for a message that is not fit for a header, and ours are.
    if let Err(status) = of_end(end).add_header(&mut trailers) {
        tracing::error!(%status, "status does not fit into trailers");
    }
    trailers
}
