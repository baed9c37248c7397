//! The page at `/ui`: its files, and its websockets, whose first message has the token.
//!
//! A page cannot set headers of a websocket, and a token in the URL would be in histories and logs. Until the
//! token is verified, nothing is looked up. A client certificate does not count: the browser may present it
//! for any page.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, LOCATION, ORIGIN};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};

use super::close::Ending;
use super::content::StreamContent;
use super::ends::EndForm;
use super::error::RestError;
use super::route::{PageRoute, Route};
use super::stream::{OpenStream, StreamRequest};
use super::{RestBody, RestService, json};
use crate::access::authenticator::{Authenticated, ClientCertificate};
use crate::access::grants::TokenScope;
use crate::access::refusal::Refusal;
use crate::edge::audit::AuditRecord;
use crate::edge::call_trace::CallTrace;
use crate::edge::errors::CallError;
use crate::edge::page_files;
use crate::edge::service::ConnectionInfo;
use crate::edge::websocket::{FirstMessageError, Session, UpgradeSlot, handshake, read_first_message};
use crate::model::metrics::{LabelValue as _, Method, StreamKind};
use crate::stream::StreamControl;

/// Time for the first message. A page sends it as soon as the websocket is open.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Most bytes of the first message: a token of 8 KiB in an object.
const FIRST_MESSAGE_MAX_BYTES: usize = 9 * 1024;

/// The first message of a page.
#[derive(Deserialize)]
struct FirstMessage {
    token: String,
}

/// A websocket of the page, before its token has arrived.
struct PageStream {
    service: RestService,
    info: ConnectionInfo,
    audit: AuditRecord,
    trace: CallTrace,
    kind: StreamKind,
    path: String,
    query: String,
}

// === impl RestService ===

impl RestService {
    /// Answers a request of the page, or for it. A websocket is set as the task of `slot`.
    pub(super) fn page<IO>(
        &self,
        route: PageRoute<'_>,
        mut request: Request<Incoming>,
        info: ConnectionInfo,
        slot: &UpgradeSlot,
        trace: &CallTrace,
    ) -> Result<Response<RestBody>, RestError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let kind = match route {
            PageRoute::Root => return Ok(redirect("/ui/")),
            PageRoute::File("session") => return Ok(json(self.description())),
            PageRoute::File(name) => {
                let file = page_files::find(&format!("/{name}")).ok_or_else(RestError::not_found)?;
                let mut response = Response::new(Either::Left(Full::new(Bytes::from_static(file.bytes))));
                let content_type = HeaderValue::from_static(file.content_type);
                response.headers_mut().insert(CONTENT_TYPE, content_type);
                return Ok(response);
            }
            PageRoute::Stream(_, kind) => kind,
        };
        let upgrade = match handshake::check(&request) {
            Ok(upgrade) => upgrade,
            Err(error) => return Ok(error.response().map(Either::Left)),
        };
        if !is_own_page(request.headers()) {
            return Err(RestError::other_origin());
        }
        let upgraded = hyper::upgrade::on(&mut request);
        let method = if kind == StreamKind::Status { Method::Status } else { Method::Logs };
        let stream = PageStream {
            audit: self.service().audit.traced_call(method.label(), info.net(), trace.clone()),
            trace: trace.clone(),
            service: self.clone(),
            info: ConnectionInfo { certificate: ClientCertificate::new(None), ..info },
            kind,
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
        };
        slot.set(async move {
            match upgraded.await {
                Ok(upgraded) => stream.run::<IO>(upgraded).await,
                Err(error) => tracing::debug!(%error, "websocket upgrade failed"),
            }
        });
        Ok(upgrade.response::<Full<Bytes>>().map(Either::Left))
    }

    /// Returns what the page needs to know of its server.
    fn description(&self) -> String {
        let settings = self.settings();
        let body = serde_json::json!({
            "credentials": "token",
            "gateway": settings.public_host,
            "provider": settings.provider.as_str(),
            "version": env!("CARGO_PKG_VERSION"),
        });
        body.to_string()
    }
}

// === impl PageStream ===

impl PageStream {
    /// Serves the websocket until it ends. Cancellation cuts the connection.
    async fn run<IO>(self, upgraded: Upgraded)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Ok(parts) = upgraded.downcast::<TokioIo<IO>>() else {
            tracing::error!("failed to get the connection back after an upgrade");
            return;
        };
        let (mut io, mut received) = (parts.io.into_inner(), parts.read_buf);
        let message = read_first_message(&mut io, &mut received, FIRST_MESSAGE_MAX_BYTES);
        let message = match tokio::time::timeout(TOKEN_TIMEOUT, message).await {
            Ok(Ok(message)) => Some(message),
            Ok(Err(FirstMessageError::Closed)) => return,
            Ok(Err(FirstMessageError::Frame(error))) => {
                // No frame can be read after it. A page does not send it.
                tracing::debug!(%error, "the first message of a page is invalid");
                self.count(&self.authenticate(None).await);
                return;
            }
            Err(_) => None,
        };
        let request = self.request(message.as_deref()).await;
        self.count(&request);
        match request {
            Ok(stream) => stream.serve(&self.service, io, received).await,
            Err(error) => {
                let mut open = OpenStream::new(self.service.metrics(), self.kind, self.trace.clone());
                let control = StreamControl::new();
                let (source, close_of) = EndForm::Object.of_failure(&Ending::of_error(&error), &control);
                open.end = Session::new(io, received, source, control, close_of).await;
            }
        }
    }

    fn count<T>(&self, result: &Result<T, CallError>) {
        if let Err(error) = result {
            self.service.service().count_failure(error, &self.audit);
        }
    }

    /// Authenticates the page by its first message, and returns its request. `None`: none came in time.
    async fn request(&self, message: Option<&[u8]>) -> Result<StreamRequest, CallError> {
        let caller = self.authenticate(message).await?;
        let Route::Page(PageRoute::Stream(path, _)) = Route::of(&self.path) else {
            return Err(CallError::request("the path names no stream"));
        };
        let lease = path.lease(caller.identity.owner(), &self.service.settings().provider);
        let lease = lease.map_err(|error| CallError::request(format!("invalid lease id: {error}")))?;
        self.audit.set_lease(&lease);
        let services_max = self.service.limits().quota.filters_per_request;
        let (mut content, _) = match self.kind {
            // Frames of the Akash provider are for its own clients.
            StreamKind::Logs => StreamContent::parse_entries(&self.query, &lease, services_max)?,
            kind => StreamContent::parse(kind, &self.query, &lease, services_max)?,
        };
        let scope = if self.kind == StreamKind::Status { TokenScope::Status } else { TokenScope::Logs };
        content.narrow(&caller.identity.authorize(&lease, scope)?)?;
        Ok(StreamRequest {
            lease,
            content,
            owner: caller.identity.owner().clone(),
            validity: caller.validity.with_token_grace(self.service.settings().token_grace),
            info: self.info.clone(),
            audit: self.audit.clone(),
            trace: self.trace.clone(),
        })
    }

    /// Authenticates the caller. A page that sends no token counts as a call without credentials.
    async fn authenticate(&self, message: Option<&[u8]>) -> Result<Authenticated, CallError> {
        let message = message.map(serde_json::from_slice::<FirstMessage>);
        let authorization = match message {
            Some(Ok(FirstMessage { token })) => vec![format!("Bearer {token}").into_bytes()],
            // Refused as malformed.
            Some(Err(_)) => vec![Vec::new()],
            None => Vec::new(),
        };
        let authorization: Vec<&[u8]> = authorization.iter().map(Vec::as_slice).collect();
        let caller = self.service.service().authenticate(&self.info, &authorization, &self.audit).await;
        // On a public name, the text of gRPC names the host for certificates.
        caller.map_err(|error| match error {
            CallError::NoCredentialsBy(_) => Refusal::NoCredentials.into(),
            other => other,
        })
    }
}

fn redirect(to: &'static str) -> Response<RestBody> {
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = StatusCode::SEE_OTHER;
    response.headers_mut().insert(LOCATION, HeaderValue::from_static(to));
    response
}

/// Whether the page of this server sent the request: there is one `Origin`, with the scheme, host and port of
/// this server. Browsers send it with every websocket.
fn is_own_page(headers: &HeaderMap) -> bool {
    let only = |name| {
        let mut values = headers.get_all(name).into_iter();
        values.next().filter(|_| values.next().is_none()).map(HeaderValue::as_bytes)
    };
    let (Some(origin), Some(host)) = (only(ORIGIN), only(HOST)) else { return false };
    origin.strip_prefix(b"https://").is_some_and(|origin| origin.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_origin_is_the_own_page() {
        let is_own = |origins: &[&'static str]| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static("provider.test:8443"));
            for origin in origins {
                headers.append(ORIGIN, HeaderValue::from_static(origin));
            }
            is_own_page(&headers)
        };
        assert!(is_own(&["https://provider.test:8443"]) && is_own(&["https://PROVIDER.test:8443"]));
        for origin in [
            "http://provider.test:8443",
            "https://provider.test",
            "https://provider.test:8444",
            "https://evil.test@provider.test:8443",
            "https://provider.test:8443/",
            "null",
            "",
        ] {
            assert!(!is_own(&[origin]), "{origin}");
        }
        assert!(!is_own(&[]) && !is_own(&["https://provider.test:8443"; 2]));
    }
}
