//! `leasemux ui`: a web page on this machine that shows one lease: replicas, live log, restarts.
//!
//! A small HTTP server on loopback serves the page (`edge::page_files`) and the routes that it uses. These
//! have the paths and bodies of the REST port, with `format=entries`; `calls` makes each of them one call of
//! gRPC with the tenant's credentials, which therefore never reach the browser. `stream` makes the frames of
//! a websocket of a response that is a stream.
//!
//! Every program and every web page on the machine can connect to the port. So `session` demands a cookie,
//! which the browser gets once for the secret in the printed URL, and `origin` checks `Host`, `Origin` and
//! `Sec-Fetch-Site`, which stops other pages and DNS rebinding.
//!
//! The page reconnects by itself: it keeps a cursor per replica and resumes there.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use self::calls::Calls;
use self::server::Server;
use crate::client::connect::Connector;
use crate::client::error::{CallError, ConnectError};
use crate::client::exit::Exit;
use crate::config::{Target, UiConfig};
use crate::model::id::LeaseId;
use crate::sys::process::any_signal;

pub(crate) mod browser;
mod calls;
mod end;
mod origin;
mod reply;
mod restart;
mod server;
mod session;
mod stream;

/// Why the page cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UiError {
    /// The port cannot be opened.
    #[error("--port: cannot listen on {0}: {1}")]
    Listen(SocketAddr, #[source] io::Error),
    /// The identity, the token or the trusted certificates cannot be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A system resource is missing.
    #[error("cannot start: {0}")]
    Start(#[source] io::Error),
}

/// The page of one lease, on an open port.
#[derive(Debug)]
pub(crate) struct Page {
    server: Server,
    listener: TcpListener,
}

/// Serves the page until SIGINT or SIGTERM. Prints one line with its address to `out`, and opens it in a
/// browser unless the configuration forbids it.
///
/// # Errors
/// [`UiError`], if it cannot start.
pub async fn run(config: &UiConfig, mut out: impl Write + Send) -> Result<(), UiError> {
    let mut signals = [
        signal(SignalKind::interrupt()).map_err(UiError::Start)?,
        signal(SignalKind::terminate()).map_err(UiError::Start)?,
    ];
    let page = Page::bind(&config.target, &config.lease, config.port).await?;
    // Standard output may be closed.
    let _ = writeln!(out, "leasemux ui ready: {}", page.url()).and_then(|()| out.flush());
    if !config.no_open {
        browser::open(&page.url());
    }
    tokio::select! {
        () = page.serve() => {}
        () = any_signal(&mut signals) => {}
    }
    Ok(())
}

// === impl Page ===

impl Page {
    /// Opens the port on 127.0.0.1; 0 = any free one.
    ///
    /// # Errors
    /// [`UiError`], also if the identity or the trusted certificates of `target` cannot be used.
    pub(crate) async fn bind(target: &Target, lease: &LeaseId, port: u16) -> Result<Self, UiError> {
        // Reports an unusable identity now, and not in the page.
        Connector::new(target)?;
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = TcpListener::bind(wanted).await.map_err(|error| UiError::Listen(wanted, error))?;
        let address = listener.local_addr().map_err(UiError::Start)?;
        let server = Server::new(Calls::new(target.clone(), lease.clone()), address);
        Ok(Self { server, listener })
    }

    /// Returns the address that admits one browser.
    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    /// Serves until dropped, which ends all connections.
    pub(crate) async fn serve(self) {
        self.server.serve(self.listener).await;
    }
}

// === impl UiError ===

impl From<UiError> for (Exit, String) {
    fn from(error: UiError) -> Self {
        let text = error.to_string();
        let exit = match error {
            UiError::Connect(error) => Exit::from(&CallError::from(error)),
            UiError::Listen(..) | UiError::Start(_) => Exit::Failed,
        };
        (exit, text)
    }
}
