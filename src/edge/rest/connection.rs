//! One connection of the REST port: HTTP/1.1 within our limits, then a websocket if a request asks for one.

use std::convert::Infallible;
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

use super::{RestBody, RestService};
use crate::edge::connection::{PeerWatch, breaks_tls};
use crate::edge::service::ConnectionInfo;
use crate::edge::upstream::framing::FramingGuard;
use crate::edge::websocket::UpgradeSlot;
use crate::model::limits::ConnectionLimits;
use crate::model::metrics::{ConnectionEnd, GaugeGuard};

/// Most headers of a request. Browsers and proxies send about twenty.
const HEADERS_MAX: usize = 64;

/// Least size of hyper's buffer for a head, which panics for a smaller one. A lower `--max-header-bytes` does
/// not apply to this port.
const BUFFER_MIN_BYTES: usize = 8 * 1024;

/// Serves a connection until it ends. Returns why it ended. Dropping the future cuts the connection.
pub(super) async fn serve<IO>(service: &RestService, io: IO, info: ConnectionInfo) -> ConnectionEnd
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (limits, drain) = (&service.limits().connection, service.drain());
    let _open = GaugeGuard::new(&service.metrics().connections);
    let (slot, called) = (UpgradeSlot::default(), Arc::new(Notify::new()));
    let watch = PeerWatch::new(&service.service().peers, &info);
    let handler = {
        let (service, slot, called) = (service.clone(), slot.clone(), Arc::clone(&called));
        service_fn(move |request: Request<Incoming>| {
            called.notify_one();
            let (service, info, slot) = (service.clone(), info.clone(), slot.clone());
            async move {
                let response = service.respond::<FramingGuard<IO>>(request, info, &slot).await;
                Ok::<Response<RestBody>, Infallible>(response)
            }
        })
    };
    // Boxed before the first await: a future reserves memory for each value moved through it.
    let io = TokioIo::new(FramingGuard::new(io));
    let mut connection = Box::pin(http(limits).serve_connection(io, handler).with_upgrades());
    let mut ended = tokio::select! {
        biased;
        () = called.notified() => None,
        // No request is open that a response could answer.
        () = watch.must_go_away() => return ConnectionEnd::ShutOut,
        () = drain.draining() => return ConnectionEnd::Drain,
        () = tokio::time::sleep(limits.first_call) => return ConnectionEnd::Idle,
        // An upgrade may end it with its first request.
        result = &mut connection => Some(result),
    };
    let (mut draining, mut shut_out) = (false, false);
    let ended = loop {
        if let Some(ended) = ended {
            break ended;
        }
        tokio::select! {
            biased;
            () = drain.deadline() => return ConnectionEnd::Cut,
            () = watch.must_be_cut(), if shut_out => return ConnectionEnd::ShutOut,
            () = drain.draining(), if !draining => {
                draining = true;
                // The response in progress is completed.
                connection.as_mut().graceful_shutdown();
            }
            () = watch.must_go_away(), if !shut_out => {
                shut_out = true;
                connection.as_mut().graceful_shutdown();
            }
            result = &mut connection => ended = Some(result),
        }
    };
    drop(connection);
    let Some(task) = slot.take() else {
        let end = if shut_out { ConnectionEnd::ShutOut } else { end_of(ended, draining) };
        if let ConnectionEnd::PeerFault = end {
            watch.record_fault();
        }
        return end;
    };
    tokio::select! {
        biased;
        () = drain.deadline() => ConnectionEnd::Cut,
        () = task => ConnectionEnd::Peer,
    }
}

/// Returns HTTP/1.1 within the limits.
fn http(limits: &ConnectionLimits) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        // Also the time between two requests.
        .header_read_timeout(limits.idle)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_MIN_BYTES.max(limits.header_max_bytes as usize))
        .half_close(false);
    http
}

fn end_of(ended: hyper::Result<()>, draining: bool) -> ConnectionEnd {
    match ended {
        Ok(()) if draining => ConnectionEnd::Drain,
        Ok(()) => ConnectionEnd::Peer,
        Err(error) if error.is_timeout() => ConnectionEnd::Idle,
        Err(error) => {
            tracing::debug!(%error, "connection failed");
            let is_fault = error.is_parse() || breaks_tls(&error);
            if is_fault { ConnectionEnd::PeerFault } else { ConnectionEnd::Error }
        }
    }
}
