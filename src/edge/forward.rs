//! Forwards gRPC calls that the gateway does not serve to the provider behind it, as bytes.
//!
//! Credentials are not checked here: the provider checks the token, and some methods need none. It cannot see
//! a client certificate, so a call with one is refused: it would be answered as if its caller had none. The
//! limits of peers apply, and the rates of forwarded calls.
//!
//! When the gateway drains, a call without a response yet may use the whole drain, because it may have taken
//! effect. A response in progress ends between two messages, as unavailable.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, Request, Response, request};
use http_body::{Body, Frame};
use http_body_util::{Either, Full};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tokio::time::Instant;
use tonic::Status;

use super::call_trace::{CallResult, CallTrace};
use super::errors::{CallError, of_end};
use super::peer_limits::PeerLimits;
use super::request_body::{Encoding, MessageCounter, RequestBody, message};
use super::response::{self, ResponseBody, STATUS};
use super::service::{ConnectionInfo, LeaseService, SERVICE};
use super::stream_supervisor::SupervisorHandle;
use super::upstream::grpc::{self, UpstreamGrpc};
use crate::access::refusal::Refusal;
use crate::model::metrics::{Code, ForwardedMethod, LabelValue as _, Metrics};
use crate::stream::{StreamControl, StreamEnd};

/// Path prefix of the provider's own service.
const PROVIDER_SERVICE: &str = "/akash.provider.v1.ProviderRPC/";

/// The field `bind_tls` of a request for an attestation quote.
const BIND_TLS: u32 = 3;

/// Maximum size of a request for an attestation quote, which is read before it is forwarded. The Akash
/// provider allows 4 KiB on its REST port.
const QUOTE_MAX_BYTES: usize = 64 * 1024;

/// Time from the start of the drain to the end of responses in progress: the only message of a unary call may
/// have been sent, and its status not yet.
const LAST_STATUS_WAIT: Duration = Duration::from_secs(1);

/// Forwards calls. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct CallForwarder {
    upstream: UpstreamGrpc,
    /// The address at which the provider itself terminates TLS, for callers.
    direct: Arc<str>,
}

/// Counts one call that is forwarded or refused, and ends its trace, when it is dropped.
#[derive(Debug)]
pub(super) struct ForwardedCall {
    metrics: Metrics,
    method: ForwardedMethod,
    /// `Cancelled` until the status is known: then the caller has gone.
    code: Code,
    trace: CallTrace,
}

/// The body of a forwarded response. Reacts to its control.
#[derive(Debug)]
struct ForwardedBody {
    /// `None` after the end.
    body: Option<grpc::ResponseBody>,
    messages: MessageCounter,
    control: Arc<StreamControl>,
    call: ForwardedCall,
}

/// Returns the method at a path that the gateway does not serve.
pub(super) fn method_at(path: &str) -> ForwardedMethod {
    if path.starts_with(PROVIDER_SERVICE) {
        return ForwardedMethod::ProviderRpc;
    }
    let method = path.strip_prefix('/').and_then(|path| path.strip_prefix(SERVICE));
    match method.and_then(|method| method.strip_prefix('/')) {
        Some("SendManifest") => ForwardedMethod::SendManifest,
        Some("AttestationQuote") => ForwardedMethod::AttestationQuote,
        _ => ForwardedMethod::Other,
    }
}

/// Returns the error of a call at a path that is not served, and not forwarded.
pub(super) fn unknown_method(path: &str) -> CallError {
    CallError::Unimplemented(match method_at(path) {
        ForwardedMethod::Other => {
            "there is no such method; this gateway serves the logs, status and restart of LeaseRPC, health and \
             reflection"
        }
        _ => "this gateway does not serve this method: call the provider itself",
    })
}

/// Checks what a call needs before it is forwarded.
fn check(head: &request::Parts, info: &ConnectionInfo) -> Result<(), CallError> {
    if head.method != Method::POST {
        return Err(unknown_method(head.uri.path()));
    }
    match (info.certificate.is_present(), head.headers.contains_key(AUTHORIZATION)) {
        (true, true) => Err(Refusal::Ambiguous.into()),
        (true, false) => Err(Refusal::TokenRequired.into()),
        (false, _) => Ok(()),
    }
}

/// Returns whether a request for an attestation quote sets `bind_tls`: in any of its fields with that number,
/// also if a decoder takes the last.
fn binds_tls(mut message: &[u8]) -> Result<bool, CallError> {
    let mut binds = false;
    while message.has_remaining() {
        let (number, wire) = decode_key(&mut message).map_err(CallError::request)?;
        if number == BIND_TLS && wire == WireType::Varint {
            binds |= decode_varint(&mut message).map_err(CallError::request)? != 0;
        } else {
            skip_field(wire, number, &mut message, DecodeContext::default()).map_err(CallError::request)?;
        }
    }
    Ok(binds)
}

// === impl CallForwarder ===

impl CallForwarder {
    /// Creates a forwarder to `upstream`. `direct` is the address at which callers reach the provider itself.
    pub(crate) fn new(upstream: UpstreamGrpc, direct: &str) -> Self {
        Self { upstream, direct: direct.into() }
    }

    /// Forwards a call, or answers it with an error.
    pub(super) async fn call(
        &self,
        mut call: ForwardedCall,
        service: &LeaseService,
        info: &ConnectionInfo,
        request: Request<RequestBody>,
        supervisor: &SupervisorHandle,
    ) -> Response<ResponseBody> {
        match self.forward(call.method, service, info, request).await {
            Ok(response) => {
                call.take_status(response.headers());
                let drain = service.drain.clone();
                let control = StreamControl::new();
                let ends = Box::pin(async move {
                    drain.draining().await;
                    tokio::time::sleep(LAST_STATUS_WAIT).await;
                    StreamEnd::Draining
                });
                supervisor.supervise(Arc::clone(&control), ends);
                response.map(|body| {
                    let messages = MessageCounter::default();
                    let body =
                        ForwardedBody { body: Some(body), messages, control: Arc::clone(&control), call };
                    ResponseBody::of_foreign(tonic::body::Body::new(body), control)
                })
            }
            Err(error) => {
                let audit = service.audit.call(call.method.label(), info.net());
                let response = service.fail(&error, &audit);
                call.take_status(response.headers());
                response
            }
        }
    }

    async fn forward(
        &self,
        method: ForwardedMethod,
        service: &LeaseService,
        info: &ConnectionInfo,
        request: Request<RequestBody>,
    ) -> Result<Response<grpc::ResponseBody>, CallError> {
        let (head, body) = request.into_parts();
        let metrics = service.metrics();
        let admitted = service.admit_unauthenticated(info, PeerLimits::count_forwarded);
        let admitted = admitted.and_then(|_| check(&head, info)).and_then(|()| {
            if service.drain.is_draining() {
                return Err(CallError::Draining);
            }
            self.upstream.admit(info.net()).map_err(CallError::Upstream)
        });
        let permit = match admitted {
            Ok(permit) => permit,
            Err(error) => {
                if let CallError::Upstream(failure) = &error {
                    metrics.grpc_upstream_failures.of(failure.reason).increment(1);
                }
                body.finish().await;
                return Err(error);
            }
        };
        let body = if method == ForwardedMethod::AttestationQuote {
            Either::Left(Full::new(self.unbound_quote(&head.headers, body).await?))
        } else {
            Either::Right(body)
        };
        let started = Instant::now();
        let forwarded = self.upstream.forward(Request::from_parts(head, body), permit).await;
        match &forwarded {
            Ok(_) => metrics.grpc_upstream_time.of(method).record(started.elapsed().as_secs_f64()),
            Err(failure) => metrics.grpc_upstream_failures.of(failure.reason).increment(1),
        }
        forwarded.map_err(CallError::Upstream)
    }

    /// Reads a request for an attestation quote. Refuses one for a quote that is bound to the connection of
    /// its caller, because that one ends here.
    async fn unbound_quote(&self, headers: &HeaderMap, body: RequestBody) -> Result<Bytes, CallError> {
        let encoding = Encoding::of(headers)?;
        let request = body.read(QUOTE_MAX_BYTES).await?;
        if binds_tls(&message(request.clone(), encoding, QUOTE_MAX_BYTES)?)? {
            return Err(CallError::CallDirectly(Arc::clone(&self.direct)));
        }
        Ok(request)
    }
}

// === impl ForwardedCall ===

impl ForwardedCall {
    pub(super) fn start(
        metrics: &Metrics,
        method: ForwardedMethod,
        service: &LeaseService,
        headers: &HeaderMap,
    ) -> Self {
        let of_lease = matches!(method, ForwardedMethod::SendManifest | ForwardedMethod::AttestationQuote);
        let name = of_lease.then_some(SERVICE);
        let trace = CallTrace::grpc(service.tracer.as_ref(), name, method.label(), headers);
        Self { metrics: metrics.clone(), method, code: Code::Cancelled, trace }
    }

    /// Takes the status of the call from headers or trailers, if they have one.
    fn take_status(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get(STATUS) {
            self.code = response::code_of(status);
        }
    }
}

impl Drop for ForwardedCall {
    fn drop(&mut self) {
        self.metrics.forwarded_calls.of((self.method, self.code)).increment(1);
        self.trace.finish(CallResult::Grpc(self.code));
    }
}

// === impl ForwardedBody ===

impl ForwardedBody {
    /// Ends the body with this status.
    fn end(&mut self, status: &Status) -> Frame<Bytes> {
        self.body = None;
        let mut trailers = HeaderMap::new();
        // Fails only for text that is not fit for a header.
        if let Err(status) = status.add_header(&mut trailers) {
            tracing::error!(%status, "failed to encode status in trailers");
        }
        self.call.take_status(&trailers);
        Frame::trailers(trailers)
    }
}

impl Body for ForwardedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        if this.messages.is_between_messages()
            && let Some(end) = this.control.end_requested()
        {
            return Poll::Ready(Some(Ok(this.end(&of_end(&end)))));
        }
        let frame = match ready!(Pin::new(body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(failure)) => {
                this.call.metrics.grpc_upstream_failures.of(failure.reason).increment(1);
                return Poll::Ready(Some(Ok(this.end(&CallError::Upstream(failure).to_status()))));
            }
            None => {
                if this.call.code == Code::Cancelled {
                    this.call.code = Code::Unknown;
                }
                return Poll::Ready(None);
            }
        };
        match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => this.messages.take(data),
            (_, Some(trailers)) => this.call.take_status(trailers),
            _ => {}
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_determines_the_forwarded_method() {
        let of_service = |name| method_at(&format!("/{SERVICE}/{name}"));
        assert_eq!(of_service("SendManifest"), ForwardedMethod::SendManifest);
        assert_eq!(of_service("AttestationQuote"), ForwardedMethod::AttestationQuote);
        assert_eq!(method_at("/akash.provider.v1.ProviderRPC/GetStatus"), ForwardedMethod::ProviderRpc);
        for path in ["", "/", "/akash.provider.v1.ProviderRPC", "/x/SendManifest", "/a.B/C"] {
            assert_eq!(method_at(path), ForwardedMethod::Other, "{path}");
        }
        assert_eq!(of_service("SendManifest/x"), ForwardedMethod::Other);
    }

    #[test]
    fn bind_tls_is_found_in_any_place() {
        let binds = |message: &[u8]| binds_tls(message).map_err(|error| error.to_status().code());
        assert_eq!(binds(b""), Ok(false));
        assert_eq!(binds(b"\x0a\x02\x18\x01\x12\x02\x18\x01"), Ok(false), "within other fields");
        assert_eq!(binds(b"\x18\x00"), Ok(false));
        for message in
            [&b"\x18\x01"[..], b"\x18\x02\x12\x01a", b"\x18\x01\x18\x00", b"\x18\x00\x18\x80\x80\x01"]
        {
            assert_eq!(binds(message), Ok(true), "{message:?}");
        }
        for malformed in [&b"\x18"[..], b"\x12\x05a", b"\x00"] {
            assert_eq!(binds(malformed), Err(tonic::Code::InvalidArgument), "{malformed:?}");
        }
    }
}
