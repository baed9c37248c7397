//! A simple server: tonic's generated code and one broadcast channel. Encodes each message once per follower.

use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use leasemux::model::proto::lease::lease_rpc_server::{LeaseRpc, LeaseRpcServer};
use leasemux::model::proto::lease::{
    ServiceLogs, ServiceLogsRequest, ServiceLogsResponse, ServiceRestartRequest, ServiceRestartResponse,
    ServiceStatusRequest, ServiceStatusResponse,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tonic::codegen::Service as _;
use tonic::{Request, Response, Status};

use super::{Listeners, SERVICE};
use crate::Result;

/// More than the publisher leaves outstanding, so that no follower lags.
const CHANNEL_MESSAGES: usize = 4_096;

struct Naive(broadcast::Sender<Bytes>);

type Responses<T> = Pin<Box<dyn Stream<Item = std::result::Result<T, Status>> + Send>>;

pub(super) fn serve(listeners: Listeners, size: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let followers = TcpListener::from_std(listeners.followers)?;
        let ingest = TcpListener::from_std(listeners.ingest)?;
        let acceptor = listeners.tls.map(TlsAcceptor::from);
        let (messages, _) = broadcast::channel(CHANNEL_MESSAGES);
        let server = LeaseRpcServer::new(Naive(messages.clone()));
        let mut connections = JoinSet::new();
        let mut publishing = std::pin::pin!(publish(ingest, messages, size));
        loop {
            tokio::select! {
                published = &mut publishing => return published,
                accepted = followers.accept() => {
                    let (socket, _) = accepted?;
                    connections.spawn(connection(acceptor.clone(), socket, server.clone()));
                }
            }
        }
    })
}

async fn publish(ingest: TcpListener, messages: broadcast::Sender<Bytes>, size: usize) -> Result<()> {
    let (mut socket, _) = ingest.accept().await?;
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(256 * 1024);
        if socket.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        while buffer.len() >= size {
            // Fails while no follower is connected.
            let _ = messages.send(buffer.split_to(size).freeze());
        }
    }
}

async fn connection(acceptor: Option<TlsAcceptor>, socket: TcpStream, server: LeaseRpcServer<Naive>) {
    match acceptor {
        None => http(socket, server).await,
        Some(acceptor) => {
            if let Ok(stream) = acceptor.accept(socket).await {
                http(stream, server).await;
            }
        }
    }
}

async fn http(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, server: LeaseRpcServer<Naive>) {
    let service = service_fn(|request| server.clone().call(request));
    // A follower that disconnects is not an error.
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(io), service)
        .await;
}

#[tonic::async_trait]
impl LeaseRpc for Naive {
    type ServiceStatusStream = Responses<ServiceStatusResponse>;
    type ServiceLogsStream = Responses<ServiceLogsResponse>;

    async fn service_logs(
        &self,
        _: Request<ServiceLogsRequest>,
    ) -> std::result::Result<Response<Self::ServiceLogsStream>, Status> {
        let responses = stream::unfold(self.0.subscribe(), |mut messages| async {
            let response = match messages.recv().await {
                Ok(logs) => Ok(ServiceLogsResponse {
                    services: vec![ServiceLogs { name: SERVICE.to_owned(), logs, ..Default::default() }],
                }),
                Err(e) => Err(Status::internal(e.to_string())),
            };
            Some((response, messages))
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn service_status(
        &self,
        _: Request<ServiceStatusRequest>,
    ) -> std::result::Result<Response<Self::ServiceStatusStream>, Status> {
        Err(Status::unimplemented("a benchmark follows logs"))
    }

    async fn service_restart(
        &self,
        _: Request<ServiceRestartRequest>,
    ) -> std::result::Result<Response<ServiceRestartResponse>, Status> {
        Err(Status::unimplemented("a benchmark follows logs"))
    }
}
