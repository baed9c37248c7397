//! The server: accepts connections on loopback within limits, and answers the requests of the page.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{LOCATION, SET_COOKIE};
use http::{HeaderValue, Method, Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::calls::Calls;
use super::origin::{OwnHosts, is_speculative};
use super::reply::{self, Reply, error};
use super::session::Session;
use super::stream::{Call, frames};
use super::{end, restart};
use crate::edge::page_files::{self, PageFile};
use crate::edge::rest::entries_query::EntriesQuery;
use crate::edge::rest::status_json::lease_status;
use crate::edge::websocket::{Session as Websocket, UpgradeSlot, handshake};
use crate::logs::websocket::push_text_message;
use crate::model::entry_json;
use crate::model::limits::FILTERS_MAX;
use crate::model::proto::lease::{ServiceLogsResponse, ServiceStatusResponse};
use crate::stream::StreamControl;

/// Most connections at once: a browser opens six for requests, and one for each websocket of a few pages.
const CONNECTIONS_MAX: usize = 64;

/// Most bytes of the head of a request: a URL with the cursors of 500 replicas.
const HEAD_MAX_BYTES: usize = 64 * 1024;

/// Most headers of a request. Browsers send about twenty.
const HEADERS_MAX: usize = 64;

/// Time limit for the head of a request, and between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Delay after a failed accept, as when no file descriptor is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the page of one lease. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct Server(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    calls: Calls,
    session: Session,
    hosts: OwnHosts,
    address: SocketAddr,
}

/// What a path names.
enum Route<'a> {
    File(&'static PageFile),
    /// The printed URL, with this secret.
    Open(&'a str),
    /// A route that only the page may use.
    Page(PageRoute<'a>),
}

/// A route with data of the lease.
enum PageRoute<'a> {
    /// What the page shows: the lease and the gateway.
    Session,
    Status,
    Logs,
    /// Restarts this service.
    Restart(&'a str),
}

// === impl Server ===

impl Server {
    pub(super) fn new(calls: Calls, address: SocketAddr) -> Self {
        let (session, hosts) = (Session::new(address.port()), OwnHosts::new(address));
        Self(Arc::new(Inner { calls, session, hosts, address }))
    }

    /// Returns the URL that opens the page once.
    pub(super) fn url(&self) -> String {
        format!("http://{}/open/{}", self.0.address, self.0.session.secret().unwrap_or_default())
    }

    /// Serves until dropped, which ends all connections.
    pub(super) async fn serve(self, listener: TcpListener) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((socket, _)) => {
                    let server = self.clone();
                    connections.spawn(async move {
                        server.serve_connection(socket).await;
                        drop(permit);
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    async fn serve_connection(self, socket: TcpStream) {
        // Lines should appear at once.
        let _ = socket.set_nodelay(true);
        let slot = UpgradeSlot::default();
        let service = {
            let slot = slot.clone();
            service_fn(move |request: Request<Incoming>| {
                let (server, slot) = (self.clone(), slot.clone());
                async move {
                    let mut reply = server.answer(request, &slot).await;
                    page_files::restrict(reply.headers_mut());
                    Ok::<_, Infallible>(reply)
                }
            })
        };
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_MAX_BYTES)
            .half_close(false);
        // Errors of the browser are not reported.
        let _ = http.serve_connection(TokioIo::new(socket), service).with_upgrades().await;
        if let Some(websocket) = slot.take() {
            websocket.await;
        }
    }

    async fn answer(&self, request: Request<Incoming>, slot: &UpgradeSlot) -> Reply {
        let Inner { hosts, address, .. } = &*self.0;
        if !hosts.is_own_host(request.headers()) {
            let message = format!("this server is http://{address} only");
            return error(StatusCode::FORBIDDEN, "OTHER_HOST", &message);
        }
        let path = request.uri().path().to_owned();
        let Some(route) = self.route(&path) else {
            return error(StatusCode::NOT_FOUND, "NOT_FOUND", "there is nothing at this path");
        };
        let is_restart = matches!(route, Route::Page(PageRoute::Restart(_)));
        let method = if is_restart { Method::POST } else { Method::GET };
        if *request.method() != method {
            return error(StatusCode::METHOD_NOT_ALLOWED, "METHOD", "this path has another method");
        }
        match route {
            // These two have nothing of the lease. A browser may request them for another page: a link.
            Route::File(file) => reply::of(StatusCode::OK, file.content_type, file.bytes),
            Route::Open(secret) => self.open(secret, &request),
            Route::Page(route) => self.answer_page(route, request, slot).await,
        }
    }

    async fn answer_page(
        &self,
        route: PageRoute<'_>,
        request: Request<Incoming>,
        slot: &UpgradeSlot,
    ) -> Reply {
        let Inner { calls, session, hosts, .. } = &*self.0;
        let is_websocket = handshake::check(&request).is_ok();
        if !hosts.is_own_page(request.headers(), is_websocket || request.method() == Method::POST) {
            return error(StatusCode::FORBIDDEN, "OTHER_ORIGIN", "only the page of this server may do this");
        }
        if !session.is_authorized(request.headers()) {
            let message = "open the address that leasemux ui has printed; it is good for one browser. \
                           For another one, start leasemux ui again";
            return error(StatusCode::UNAUTHORIZED, "NO_SESSION", message);
        }
        let query = request.uri().query().unwrap_or_default();
        let calls = calls.clone();
        match route {
            PageRoute::Session => reply::json(self.description()),
            PageRoute::Restart(service) => restart::restart(&calls, service, query).await,
            PageRoute::Status if is_websocket => {
                upgrade(request, slot, Box::pin(async move { calls.status(true).await }), push_status)
            }
            PageRoute::Status => self.status().await,
            PageRoute::Logs => match EntriesQuery::parse(query, FILTERS_MAX) {
                Ok(query) => {
                    let entries = query.request(calls.lease());
                    upgrade(request, slot, Box::pin(async move { calls.logs(entries).await }), push_entries)
                }
                Err(problem) => error(StatusCode::BAD_REQUEST, "INVALID_REQUEST", &problem),
            },
        }
    }

    fn route<'a>(&self, path: &'a str) -> Option<Route<'a>> {
        if let Some(file) = page_files::find(path) {
            return Some(Route::File(file));
        }
        if let Some(secret) = path.strip_prefix("/open/") {
            return Some(Route::Open(secret));
        }
        if path == "/session" {
            return Some(Route::Page(PageRoute::Session));
        }
        Some(Route::Page(match path.strip_prefix(&self.lease_path())? {
            "/status" => PageRoute::Status,
            "/logs" => PageRoute::Logs,
            other => PageRoute::Restart(other.strip_prefix("/service/")?.strip_suffix("/restart")?),
        }))
    }

    /// Returns the path of the lease, as on the REST port.
    fn lease_path(&self) -> String {
        let lease = self.0.calls.lease();
        format!("/lease/{}/{}/{}", lease.dseq(), lease.gseq(), lease.oseq())
    }

    /// Exchanges the secret for a cookie, and removes it from the address. Another secret only leads to the
    /// page: an admitted browser sends no cookie with a link of another site, and to others the page explains
    /// the error.
    fn open(&self, secret: &str, request: &Request<Incoming>) -> Reply {
        if is_speculative(request.headers()) {
            let message = "this address is good once, and not for a prefetch";
            return error(StatusCode::SERVICE_UNAVAILABLE, "PREFETCH", message);
        }
        let cookie = self.0.session.exchange(secret);
        let mut reply = reply::of(StatusCode::SEE_OTHER, "text/plain", "");
        reply.headers_mut().insert(LOCATION, HeaderValue::from_static("/"));
        if let Some(cookie) = cookie.and_then(|cookie| HeaderValue::try_from(cookie).ok()) {
            reply.headers_mut().insert(SET_COOKIE, cookie);
        }
        reply
    }

    fn description(&self) -> String {
        let calls = &self.0.calls;
        let body = serde_json::json!({
            "credentials": "session",
            "lease": calls.lease().to_string(),
            "path": self.lease_path(),
            "gateway": calls.gateway(),
            "version": env!("CARGO_PKG_VERSION"),
        });
        body.to_string()
    }

    async fn status(&self) -> Reply {
        let newest = async { self.0.calls.status(false).await?.message().await.map_err(Into::into) };
        match newest.await {
            Ok(response) => reply::json(lease_status(response.unwrap_or_default())),
            Err(failure) => error(end::status(&failure), &end::reason(&failure), &failure.to_string()),
        }
    }
}

/// Answers a request for a websocket that sends the response of `call`.
fn upgrade<T: Send + 'static>(
    mut request: Request<Incoming>,
    slot: &UpgradeSlot,
    call: Call<T>,
    encode: fn(T, &mut Vec<u8>),
) -> Reply {
    let upgrade = match handshake::check(&request) {
        Ok(upgrade) => upgrade,
        Err(problem) => return problem.response(),
    };
    let upgraded = hyper::upgrade::on(&mut request);
    slot.set(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else { return };
        let control = StreamControl::new();
        let (frames, close_of) = frames(call, encode, &control);
        let _ = Websocket::new(parts.io.into_inner(), parts.read_buf, frames, control, close_of).await;
    });
    upgrade.response()
}

fn push_entries(response: ServiceLogsResponse, out: &mut Vec<u8>) {
    for entry in &response.services {
        push_text_message(&entry_json::entry(entry), out);
    }
}

fn push_status(response: ServiceStatusResponse, out: &mut Vec<u8>) {
    push_text_message(lease_status(response).as_bytes(), out);
}
