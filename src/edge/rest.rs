//! The REST and websocket interface of an Akash provider, served from the same actors as gRPC.
//!
//! `connection` serves HTTP/1.1 on an accepted connection, and hands each request to [`RestService`]. It
//! checks in the order of the Akash provider: credentials, lease id, parameters, scope, handshake. Everything
//! about the lease itself comes after the upgrade, as a notice and a close code (`stream`), because clients
//! show nothing of a refused handshake. `route`, [`query`], `error`, `close` and `status_json` are
//! pure.
//!
//! The Akash provider has no restarts (`restart`), entries (`entries_query`) and page (`page`).
//!
//! With a provider behind the gateway, requests that are not served here are forwarded to it, credentials
//! unchecked: it checks them again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::audit::{self, AuditRecord};
use super::call_trace::{CallResult, CallTrace};
use super::drain::Drain;
use super::errors::CallError;
use super::page_files;
use super::peer_limits::PeerLimits;
use super::service::{ConnectionInfo, LeaseService};
use super::upstream::failure::Failure;
use super::upstream::provider::{ResponseBody as UpstreamBody, UpstreamProvider};
use super::websocket::{UpgradeSlot, handshake};
use crate::access::authenticator::{Authenticated, ClientCertificate};
use crate::access::grants::TokenScope;
use crate::access::refusal::Refusal;
use crate::events::EventFeeds;
use crate::logs::notice::Notices;
use crate::model::id::{Address, LeaseId};
use crate::model::limits::Limits;
use crate::model::metrics::{ConnectionEnd, LabelValue as _, Method, Metrics, RouteTemplate};
use crate::model::peer::PeerNet;
use crate::model::quota::Exceeded;
use crate::model::view::Filter;

pub(crate) mod close;
mod connection;
mod content;
mod ends;
pub(crate) mod entries_query;
pub(crate) mod error;
mod events;
mod page;
pub mod query;
pub(crate) mod restart;
pub(crate) mod route;
pub(crate) mod status_json;
mod stream;

use self::content::StreamContent;
use self::error::RestError;
use self::query::StreamKind;
use self::route::{LeasePath, LeaseRoute, Route};
use self::stream::StreamRequest;

/// Settings of the REST port.
#[derive(Clone, Debug)]
pub struct RestSettings {
    /// The provider whose leases are served. Paths name a lease without it.
    pub provider: Address,
    /// The public host name, for `/status`; may be empty.
    pub public_host: String,
    /// The notices of a stream that does not select them.
    pub notices: Notices,
    /// Events come from the platform, if it has any. Otherwise all are derived from states of replicas.
    pub native_events: bool,
    /// For how long a stream may outlive the token that opened it. Zero: it ends with the token.
    pub token_grace: Duration,
    /// Serves the page at `/ui`.
    pub serves_page: bool,
}

/// Serves the routes. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct RestService(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    service: LeaseService,
    settings: RestSettings,
    events: EventFeeds,
    /// The provider behind the gateway; `None`: there is none.
    upstream: Option<Upstream>,
}

/// The provider behind the gateway.
#[derive(Debug)]
struct Upstream {
    provider: UpstreamProvider,
    /// Requests for events are forwarded, too.
    has_events: bool,
}

/// The body of any response.
pub(super) type RestBody = Either<Full<Bytes>, UpstreamBody>;

// === impl RestService ===

impl RestService {
    /// Creates a service without a provider behind it. Limits, quotas and metrics are those of `service`.
    pub fn new(service: LeaseService, settings: RestSettings) -> Self {
        let context = service.actors.context();
        let (platform, metrics) = (Arc::clone(&context.platform), context.metrics.clone());
        let events = EventFeeds::new(platform, metrics, settings.native_events, events::encode);
        Self(Arc::new(Inner { service, settings, events, upstream: None }))
    }

    /// Forwards requests that are not served here to `provider`; with `has_events` also those for events,
    /// whose callers have a token.
    #[must_use]
    pub(crate) fn with_upstream(&self, provider: UpstreamProvider, has_events: bool) -> Self {
        let Inner { service, settings, events, .. } = &*self.0;
        let (service, settings, events) = (service.clone(), settings.clone(), events.clone());
        let upstream = Some(Upstream { provider, has_events });
        Self(Arc::new(Inner { service, settings, events, upstream }))
    }

    /// Serves a connection from `address` until it ends. Returns why it ended. Dropping the future cuts the
    /// connection.
    pub async fn serve<IO>(
        &self,
        io: IO,
        certificate: ClientCertificate,
        address: Option<SocketAddr>,
    ) -> ConnectionEnd
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        connection::serve(self, io, ConnectionInfo::new(certificate, address)).await
    }

    /// Serves a connection as [`RestService::serve`] does.
    pub(super) async fn serve_connection<IO>(&self, io: IO, info: ConnectionInfo) -> ConnectionEnd
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        connection::serve(self, io, info).await
    }

    fn service(&self) -> &LeaseService {
        &self.0.service
    }

    fn settings(&self) -> &RestSettings {
        &self.0.settings
    }

    fn events(&self) -> &EventFeeds {
        &self.0.events
    }

    fn limits(&self) -> &Limits {
        &self.service().actors.context().limits
    }

    fn metrics(&self) -> &Metrics {
        &self.service().actors.context().metrics
    }

    fn drain(&self) -> &Drain {
        &self.service().drain
    }

    /// Answers one request on a connection with this IO. A websocket is set as the task of `slot`.
    async fn respond<IO>(
        &self,
        request: Request<Incoming>,
        info: ConnectionInfo,
        slot: &UpgradeSlot,
    ) -> Response<RestBody>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let path = request.uri().path().to_owned();
        let route = match Route::of(&path) {
            Route::Page(_) if !self.settings().serves_page => Route::Other(RouteTemplate::Other),
            route => route,
        };
        let is_of_page = matches!(route, Route::Page(_));
        let template = route.template();
        let has_objects = route.has_error_objects();
        let tracer = self.service().tracer.as_ref();
        let trace = CallTrace::rest(tracer, request.method(), template, request.headers());
        let mut response = match self.answer::<IO>(route, request, info, slot, &trace).await {
            Ok(response) => response,
            Err(error) if has_objects => {
                error.with_object().into_response().map(|body| Either::Left(Full::new(body)))
            }
            Err(error) => error.into_response().map(|body| Either::Left(Full::new(body))),
        };
        if is_of_page {
            page_files::restrict(response.headers_mut());
        }
        self.metrics().rest_requests.of((template, response.status().into())).increment(1);
        // A websocket finishes the trace when it ends.
        trace.record(CallResult::Http(response.status()));
        response
    }

    async fn answer<IO>(
        &self,
        route: Route<'_>,
        request: Request<Incoming>,
        info: ConnectionInfo,
        slot: &UpgradeSlot,
        trace: &CallTrace,
    ) -> Result<Response<RestBody>, RestError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // Every other request authenticates here, or is refused as a failure of its peer.
        let is_forwarded = self.0.upstream.as_ref().is_some_and(|upstream| match route {
            Route::Lease(_, LeaseRoute::Events) => {
                upstream.has_events && request.headers().contains_key(AUTHORIZATION)
            }
            Route::Lease(..) | Route::Page(_) => false,
            Route::Version | Route::Address | Route::Status | Route::Other(_) => true,
        });
        if let Some(upstream) = &self.0.upstream
            && is_forwarded
        {
            self.admit_unauthenticated(&info, PeerLimits::count_forwarded)?;
            return self.forward(&upstream.provider, &route, request, &info, slot).await;
        }
        if !matches!(route, Route::Lease(..)) || !route.allows(request.method()) {
            self.admit_unauthenticated(&info, PeerLimits::count_message)?;
        }
        if !route.allows(request.method()) {
            return Err(RestError::method_not_allowed(route.method()));
        }
        let Inner { settings, .. } = &*self.0;
        let body = match route {
            Route::Lease(path, route) => {
                return self.lease::<IO>(path, route, request, info, slot, trace).await;
            }
            Route::Page(route) => return self.page::<IO>(route, request, info, slot, trace),
            Route::Other(_) => return Err(RestError::not_found()),
            Route::Version => status_json::version(),
            Route::Address => status_json::address(&settings.provider),
            Route::Status => status_json::provider(&settings.provider, &settings.public_host),
        };
        Ok(json(body))
    }

    /// Forwards a request to the provider. A tunnel is set as the task of `slot`.
    async fn forward(
        &self,
        upstream: &UpstreamProvider,
        route: &Route<'_>,
        request: Request<Incoming>,
        info: &ConnectionInfo,
        slot: &UpgradeSlot,
    ) -> Result<Response<RestBody>, RestError> {
        let has_token = request.headers().contains_key(AUTHORIZATION);
        // The provider cannot see the certificate, and would respond that there are no credentials.
        if info.certificate.is_present() && !has_token && matches!(route, Route::Other(_)) {
            return Err(RestError::needs_token());
        }
        // It would respond to the token alone, which is right for the public names only.
        if info.certificate.is_present() && has_token && info.public_name.is_none() {
            let audit = self.service().audit.call(audit::OTHER, info.net());
            return Err(self.fail(&Refusal::Ambiguous.into(), &audit));
        }
        let started = Instant::now();
        let response = upstream.forward(request, info.net(), |tunnel| slot.set(tunnel)).await;
        if let Some(failure) = response.extensions().get::<Failure>() {
            self.metrics().rest_upstream_failures.of(failure.reason).increment(1);
        } else {
            let seconds = started.elapsed().as_secs_f64();
            self.metrics().rest_upstream_time.of(route.template()).record(seconds);
        }
        Ok(response.map(Either::Right))
    }

    /// Admits a request that needs no credentials here, as [`LeaseService::admit_unauthenticated`] does.
    fn admit_unauthenticated(
        &self,
        info: &ConnectionInfo,
        count: impl FnOnce(&PeerLimits, PeerNet, std::time::Instant) -> Result<(), Exceeded>,
    ) -> Result<(), RestError> {
        match self.service().admit_unauthenticated(info, count) {
            Ok(_) => Ok(()),
            Err(error) => Err(self.fail(&error, &self.service().audit.call(audit::OTHER, info.net()))),
        }
    }

    /// Answers a request below a lease.
    async fn lease<IO>(
        &self,
        path: LeasePath<'_>,
        route: LeaseRoute<'_>,
        mut request: Request<Incoming>,
        info: ConnectionInfo,
        slot: &UpgradeSlot,
        trace: &CallTrace,
    ) -> Result<Response<RestBody>, RestError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let method = match route {
            LeaseRoute::Logs => Method::Logs,
            LeaseRoute::Restart(_) => Method::Restart,
            LeaseRoute::Status | LeaseRoute::ServiceStatus(_) | LeaseRoute::Events => Method::Status,
        };
        let audit = self.service().audit.traced_call(method.label(), info.net(), trace.clone());
        let caller = self.authenticate(&info, request.headers(), &audit).await?;
        let provider = &self.settings().provider;
        let lease = path.lease(caller.identity.owner(), provider).map_err(|e| RestError::lease_id(&e))?;
        audit.set_lease(&lease);
        let kind = match route {
            LeaseRoute::Status | LeaseRoute::ServiceStatus(_) => {
                return self.status(&caller, &lease, route, &audit).await.map(json);
            }
            LeaseRoute::Restart(_) => {
                return self.restart(&caller, lease, route.service(), &request, &audit).await.map(json);
            }
            LeaseRoute::Logs => StreamKind::Logs,
            LeaseRoute::Events => StreamKind::Events,
        };
        let services_max = self.limits().quota.filters_per_request;
        let query = request.uri().query().unwrap_or_default();
        let parsed = StreamContent::parse(kind, query, &lease, services_max);
        let (mut content, spelling) = parsed.map_err(|error| RestError::from(&error))?;
        self.metrics().rest_filters.of(spelling).increment(1);
        let services = caller.identity.authorize(&lease, route.scope());
        let narrowed = services.and_then(|services| content.narrow(&services));
        narrowed.map_err(|refusal| self.fail(&refusal.into(), &audit))?;
        let upgrade = match handshake::check(&request) {
            Ok(upgrade) => upgrade,
            Err(error) => return Ok(error.response().map(Either::Left)),
        };
        let upgraded = hyper::upgrade::on(&mut request);
        let validity = caller.validity.clone().with_token_grace(self.settings().token_grace);
        let owner = caller.identity.owner().clone();
        let trace = trace.clone();
        let stream = StreamRequest { lease, content, owner, validity, info, audit, trace };
        let service = self.clone();
        slot.set(async move {
            match upgraded.await {
                Ok(upgraded) => stream.run::<IO>(&service, upgraded).await,
                Err(error) => tracing::debug!(%error, "websocket upgrade failed"),
            }
        });
        Ok(upgrade.response::<Full<Bytes>>().map(Either::Left))
    }

    /// Authenticates the caller. Where the certificate of an authority is presented, a token counts even
    /// beside a client certificate, as at the Akash provider.
    async fn authenticate(
        &self,
        info: &ConnectionInfo,
        headers: &HeaderMap,
        audit: &AuditRecord,
    ) -> Result<Authenticated, RestError> {
        let authorization: Vec<&[u8]> =
            headers.get_all(AUTHORIZATION).iter().map(HeaderValue::as_bytes).collect();
        let mut info = info.clone();
        if info.public_name.take().is_some() && !authorization.is_empty() {
            info.certificate = ClientCertificate::new(None);
        }
        let result = self.service().authenticate(&info, &authorization, audit).await;
        result.map_err(|error| self.fail(&error, audit))
    }

    /// Returns the status of a lease, or of one service.
    async fn status(
        &self,
        caller: &Authenticated,
        lease: &LeaseId,
        route: LeaseRoute<'_>,
        audit: &AuditRecord,
    ) -> Result<String, RestError> {
        let fail = |error: CallError| self.fail(&error, audit);
        let services = caller.identity.authorize(lease, TokenScope::Status).map_err(|e| fail(e.into()))?;
        let mut filter = Filter::everything();
        let mut service = None;
        if let LeaseRoute::ServiceStatus(_) = route {
            // A name that no service can have is that of no service.
            let name = service.insert(route.service().ok_or_else(RestError::no_service)?);
            filter.add(name.clone(), &[]);
        }
        services.narrow(&mut filter).map_err(|e| fail(e.into()))?;
        if self.drain().is_draining() {
            return Err(fail(CallError::Draining));
        }
        let owner = caller.identity.owner();
        let _permit = self
            .service()
            .quotas
            .admit_call(owner, Instant::now().into_std())
            .map_err(|exceeded| fail(exceeded.into()))?;
        let Some(service) = service else {
            let view = self.service().view(lease).await.map_err(fail)?;
            return Ok(status_json::lease(&view.borrow(), &filter));
        };
        let view = self.service().checked_view(lease, &filter).await.map_err(fail)?;
        status_json::service(&view.borrow(), &service).ok_or_else(RestError::no_service)
    }

    /// Counts a failed request, and converts its error.
    fn fail(&self, error: &CallError, audit: &AuditRecord) -> RestError {
        self.service().count_failure(error, audit);
        error.into()
    }
}

fn json(body: String) -> Response<RestBody> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(body))));
    *response.status_mut() = StatusCode::OK;
    let json = HeaderValue::from_static(status_json::APPLICATION_JSON);
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}
