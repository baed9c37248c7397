//! A gRPC server with services of a test, over real sockets.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, Response};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tonic::service::Routes;
use tower::ServiceExt as _;

/// A server, which answers until it is dropped.
pub(crate) struct GrpcServer {
    pub(crate) address: SocketAddr,
    _running: JoinSet<()>,
}

impl GrpcServer {
    /// Starts a server, with TLS or without.
    pub(crate) async fn start(routes: Routes, tls: Option<ServerConfig>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = routes.prepare();
        let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        let mut running = JoinSet::new();
        running.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (routes, tls) = (routes.clone(), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(socket, routes).await,
                        Some(tls) => {
                            if let Ok(io) = tls.accept(socket).await {
                                serve(io, routes).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, _running: running }
    }
}

async fn serve(io: impl AsyncRead + AsyncWrite + Unpin, routes: Routes) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let call = routes.clone().oneshot(request.map(tonic::body::Body::new));
        async move { call.await.map(|response: Response<tonic::body::Body>| response) }
    });
    let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(io), service).await;
}
