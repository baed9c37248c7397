//! The lease service: gate, then lease, then call.
//!
//! The caller is established before the request is read, and may or may not before anything is looked up: so no answer depends
//! on what exists, but for those whose it is.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio::time::Instant;

use self::read::read;
use super::audit::{Audit, Case};
use super::drain::Drain;
use super::guard::Watched;
use super::peers::Peers;
use super::quotas::Quotas;
use super::response::{self, ResponseBody};
use super::status::{CallError, of_end};
use crate::access::gate::{Admission, Gate, Peer};
use crate::access::refusal::{self, Refusal};
use crate::leases::restart::Restarts;
use crate::logs::fanout::Fanout;
use crate::logs::permits::HistoryPermits;
use crate::model::count::Held;
use crate::model::id::LeaseId;
use crate::model::limits::QuotaLimits;
use crate::model::metrics;
use crate::model::peer::PeerNet;
use crate::model::quota::{Exceeded, Quota, Subject};
use crate::model::time::LogTime;
use crate::model::view::{Filter, LeaseView};
use crate::platform;
use crate::stream::{End, StreamState};

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

/// The lease service. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct LeaseService {
    gate: Gate,
    fanout: Fanout,
    history: HistoryPermits,
    restarts: Restarts,
    audit: Audit,
    quotas: Quotas,
    peers: Peers,
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
    pub fn new(gate: Gate, fanout: Fanout, restarts: Restarts, drain: Drain) -> Self {
        let limits = &fanout.world().limits;
        let history = HistoryPermits::new(&limits.quota);
        let quotas = Quotas::new(&limits.quota);
        let audit = Audit::new(limits.audit_refusals_per_minute);
        let peers = Peers::new(&limits.connection, limits.quota.auth_failures_per_minute);
        Self { gate, fanout, history, restarts, audit, quotas, peers, drain }
    }

    /// What is known of peers by their addresses.
    pub(super) fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Answers one call over a connection of `peer`, who comes from `net`. A stream that comes of it is announced to `watched`.
    pub(super) async fn call(
        self,
        method: Method,
        peer: Peer,
        net: Option<PeerNet>,
        request: Request<Incoming>,
        watched: Watched,
    ) -> Response<ResponseBody> {
        let case = self.audit.case(method, net);
        match self.try_call(method, &peer, net, request, &watched, &case).await {
            Ok(response) => response,
            Err(error) => {
                match &error {
                    CallError::Refused(refusal) => case.refused(refusal.reason()),
                    CallError::Quota(exceeded) => case.refused(exceeded.quota.label()),
                    _ => {}
                }
                self.refuse(&error)
            }
        }
    }

    /// A call that needs no credentials: counted as open for as long as the answer lives.
    ///
    /// # Errors
    /// What is answered if the peer has too many open.
    pub(super) fn other_call(&self, net: PeerNet) -> Result<Held<PeerNet>, Box<Response<ResponseBody>>> {
        self.peers.open_call(net).map_err(|exceeded| {
            self.audit.other_case(net).refused(exceeded.quota.label());
            Box::new(self.refuse(&exceeded.into()))
        })
    }

    /// What is answered to a call that failed; it is counted whom and what was refused, for that it was is counted with all calls.
    fn refuse(&self, error: &CallError) -> Response<ResponseBody> {
        let metrics = &self.fanout.world().metrics;
        match error {
            CallError::Refused(refusal) => metrics.auth_refusals.count(refusal.reason()),
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
        peer: &Peer,
        net: Option<PeerNet>,
        request: Request<Incoming>,
        watched: &Watched,
        case: &Case,
    ) -> Result<Response<ResponseBody>, CallError> {
        let authorization = request.headers().get_all(http::header::AUTHORIZATION);
        let authorization: Vec<&[u8]> = authorization.iter().map(HeaderValue::as_bytes).collect();
        let admission = self.admit(peer, net, &authorization, case).await?;
        if self.drain.is_draining() {
            return Err(CallError::Draining);
        }
        watched.keep(self.quotas.call(admission.identity.owner(), Instant::now().into_std())?);
        let message =
            read(request.into_body(), self.fanout.world().limits.connection.request_max_bytes).await?;
        match method {
            Method::Logs => self.logs(&message, admission, watched, case).await,
            Method::Status => self.status(&message, admission, watched, case).await,
            Method::Restart => self.restart(&message, admission, watched, case).await,
        }
    }

    /// Establishes who calls, unless their address has failed in that too often.
    async fn admit(
        &self,
        peer: &Peer,
        net: Option<PeerNet>,
        authorization: &[&[u8]],
        case: &Case,
    ) -> Result<Admission, CallError> {
        if let Some(net) = net {
            self.peers.listen(net, Instant::now().into_std())?;
        }
        let admitted = self.gate.admit(peer, authorization, LogTime::now()).await;
        let admission = admitted.map_err(|denial| {
            if let Some(who) = denial.claimed {
                case.claimed(who);
            }
            if let Some(net) = net
                && denial.refusal.kind() == refusal::Kind::Unauthenticated
            {
                self.peers.failed(net, Instant::now().into_std());
            }
            self.denied(denial.refusal)
        })?;
        case.proved(admission.identity.owner().clone());
        Ok(admission)
    }

    /// Whether somebody is to be believed may cost more than there is: that is a quota, like any other, and also why a caller did
    /// not come in, so it is counted as both.
    fn denied(&self, refusal: Refusal) -> CallError {
        if refusal != Refusal::TrustBusy {
            return refusal.into();
        }
        self.fanout.world().metrics.auth_refusals.count(refusal.reason());
        CallError::Quota(Exceeded {
            quota: Quota::ChainQueries,
            subject: Subject::Gateway,
            limit: self.bounds().chain_queries_per_second.into(),
            retry_after: Some(TRUST_RETRY),
        })
    }

    fn bounds(&self) -> &QuotaLimits {
        &self.fanout.world().limits.quota
    }

    /// What runs under `lease`, with everything that `filter` names and no more replicas than a call may be about.
    async fn chosen(&self, lease: &LeaseId, filter: &Filter) -> Result<View, CallError> {
        let receiver = self.view(lease).await?;
        let view = receiver.borrow();
        if let Some(missing) = filter.missing(&view) {
            return Err(CallError::Missing(missing));
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
    fn open(&self, admission: &Admission, watched: &Watched, case: &Case) -> Arc<StreamState> {
        let state = StreamState::new();
        let (standing, draining, case) = (admission.standing.clone(), self.drain.soft(), case.clone());
        let ends = async move {
            tokio::select! {
                biased;
                refusal = standing.ended() => {
                    case.ended(refusal.reason());
                    End::Refused(refusal)
                }
                () = draining.cancelled() => End::Draining,
            }
        };
        watched.watch(Arc::clone(&state), Box::pin(ends));
        state
    }

    async fn view(&self, lease: &LeaseId) -> Result<View, CallError> {
        let world = self.fanout.world();
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

fn trailers(end: &End) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // Fails for a message that is not fit for a header, and ours are.
    if let Err(status) = of_end(end).add_header(&mut trailers) {
        tracing::error!(%status, "status does not fit into trailers");
    }
    trailers
}
