//! `leasemux canary`: follows a service that counts, as an ordinary tenant, and exports what a gateway
//! delivers, loses, repeats and delays as metrics.
//!
//! The counting service prints numbered lines (`line`), and `account` compares the numbers with the gaps
//! that the gateway reports. The result is the promise of the gateway, measured in production: each line
//! arrives once and in order, or its absence is reported.
//!
//! A canary runs unattended. After its first stream it ends only at a signal, after `--for`, or if no gateway
//! could serve its request; a gateway that is gone or rejects it is tried again, and the metrics say so.

use std::io::{self, Write};
use std::net::SocketAddr;

use futures_util::future::OptionFuture;
use http::StatusCode;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use self::sink::CanarySink;
use self::summary::Summary;
use crate::client::connect::Connector;
use crate::client::error::CallError;
use crate::client::exit::Exit;
use crate::client::follow::Follower;
use crate::client::service_filters;
use crate::config::CanaryConfig;
use crate::edge::admin::{self, Readiness};
use crate::edge::drain::Drain;
use crate::model::metrics::canary::{Handles, each};
use crate::model::proto::lease::ServiceLogsRequest;
use crate::serve::Log;
use crate::sys::process::any_signal;

mod account;
mod line;
mod sink;
mod summary;

/// Why a canary ended without having been stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CanaryError {
    /// The port for metrics cannot be opened.
    #[error("--metrics-listen: cannot listen on {0}: {1}")]
    Listen(SocketAddr, #[source] io::Error),
    /// The request cannot be served.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A system resource is missing.
    #[error("cannot start: {0}")]
    Internal(Box<dyn std::error::Error + Send + Sync>),
}

/// Runs a canary until SIGINT, SIGTERM or the end of its duration. Prints one line with the address of its
/// metrics to `out`, and a summary at the end. Logs to standard error. The exit code is that of the loss
/// check.
///
/// # Errors
/// [`CanaryError`], if it cannot start, or if another attempt would have the same result.
pub async fn run(config: &CanaryConfig, out: impl Write + Send) -> Result<Exit, CanaryError> {
    let log = Log::start(config.log_format, "info");
    tokio::select! {
        biased;
        result = serve_and_follow(config, out) => result,
        never = log.report_losses() => match never {},
    }
}

async fn serve_and_follow(config: &CanaryConfig, mut out: impl Write + Send) -> Result<Exit, CanaryError> {
    let mut signals = [
        signal(SignalKind::interrupt()).map_err(internal)?,
        signal(SignalKind::terminate()).map_err(internal)?,
    ];
    let connector = Connector::new(&config.call.target).map_err(CallError::from)?;
    let recorder = admin::recorder(each()).map_err(internal)?;
    let (metrics, handle) = (Handles::register(&recorder), recorder.handle());
    let not_listening = |error| CanaryError::Listen(config.metrics_listen, error);
    let listener = TcpListener::bind(config.metrics_listen).await.map_err(not_listening)?;
    let address = listener.local_addr().map_err(not_listening)?;
    let (readiness, drain) = (Readiness::default(), Drain::default());
    let (page, probe) = (handle.clone(), readiness.clone());
    let port = admin::serve_http(listener, &drain, move |uri| match uri.path() {
        "/metrics" => admin::metrics_page(page.render()),
        "/live" => admin::text(StatusCode::OK, "live\n"),
        "/ready" => probe.answer(),
        "/" => admin::text(StatusCode::OK, "leasemux canary: /metrics /live /ready\n"),
        _ => admin::text(StatusCode::NOT_FOUND, "not found: try /metrics, /live or /ready\n"),
    });
    // Standard output may be closed.
    let _ = writeln!(out, "leasemux canary ready: metrics http://{address}").and_then(|()| out.flush());

    let started = Instant::now();
    let mut sink = CanarySink::new(metrics, readiness);
    let follower = Follower::new(connector, request(config)).persistent();
    let ended = tokio::select! {
        ended = follower.run(&mut sink) => ended.map(drop),
        () = any_signal(&mut signals) => Ok(()),
        Some(()) = OptionFuture::from(config.duration.map(tokio::time::sleep)) => Ok(()),
        () = port => Ok(()),
        () = admin::upkeep(&handle) => Ok(()),
    };
    let summary = Summary { totals: sink.finish(), lasted: started.elapsed() };
    drain.close();
    if ended.is_ok() || summary.totals.delivered > 0 {
        let _ = write!(out, "{summary}").and_then(|()| out.flush());
    }
    ended?;
    Ok(summary.exit())
}

fn request(config: &CanaryConfig) -> ServiceLogsRequest {
    let (filter, filters) = service_filters(&config.call);
    ServiceLogsRequest {
        lease_id: Some((&config.call.lease).into()),
        filter,
        filters,
        follow: true,
        // Lines from before the start have no meaningful delay.
        tail_lines: Some(0),
        on_lag: config.on_lag.into(),
        ..Default::default()
    }
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> CanaryError {
    CanaryError::Internal(Box::new(error))
}

// === impl CanaryError ===

impl From<&CanaryError> for Exit {
    fn from(error: &CanaryError) -> Self {
        match error {
            CanaryError::Call(error) => error.into(),
            CanaryError::Listen(..) | CanaryError::Internal(_) => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests;
