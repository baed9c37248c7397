//! The gateway itself, from accepting a connection to the ring, over a source that reads lines from the publisher's socket.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use futures_core::future::BoxFuture;
use futures_util::StreamExt as _;
use futures_util::stream;
use leasemux::access::account::AccountKey;
use leasemux::access::cert::Serial;
use leasemux::access::gate::Gate;
use leasemux::access::identity::IdentityFiles;
use leasemux::access::trust::{Trust, Trusted, Unavailable, Verdict};
use leasemux::edge::admin::Exporter;
use leasemux::edge::connection::Connections;
use leasemux::edge::drain::Drain;
use leasemux::edge::server::{self, Server};
use leasemux::edge::service::LeaseService;
use leasemux::leases::restart::Restarts;
use leasemux::logs::fanout::Fanout;
use leasemux::logs::replica::World;
use leasemux::model::id::{Address, Instance, LeaseId, Owner};
use leasemux::model::limits::{Limits, READ_MAX_BYTES};
use leasemux::model::line::{Line, LineBatch};
use leasemux::model::position::Position;
use leasemux::model::time::LogTime;
use leasemux::model::view::{LeaseView, ReplicaState, ReplicaView, Run, ServiceView};
use leasemux::platform::{Error, Platform, RestartRequest, Tail, TailItem, TailRequest};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Result;
use crate::contender::{Listeners, TENANT_DIR};

/// Trusts the one tenant.
#[derive(Debug)]
struct Tenant(Owner, Trusted);

/// One lease with one service of one replica, which has one run; its log is what the publisher sends.
struct Source {
    lease: LeaseId,
    view: watch::Sender<Arc<LeaseView>>,
    /// Where the publisher comes in; taken by the one tail that the gateway may open.
    ingest: Mutex<Option<TcpListener>>,
    /// The publisher has gone.
    ended: CancellationToken,
}

/// An open log.
struct Reading {
    socket: TcpStream,
    buffer: BytesMut,
    at: Position,
}

/// The lease of `owner` that there is.
pub(crate) fn lease(owner: &Owner) -> Result<LeaseId> {
    Ok(LeaseId::new(owner.as_str(), 1, 1, 1, Address::from_account([1; 20]).as_str())?)
}

pub(crate) fn serve(listeners: Listeners, dir: &Path, pace: Duration) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let followers = TcpListener::from_std(listeners.followers)?;
        let identity = IdentityFiles::load(&dir.join(TENANT_DIR))?;
        let owner = identity.address().clone();
        let (chain, _) = identity.into_parts();
        let der = chain.first().ok_or("the tenant has no certificate")?.as_ref();
        let tenant = Tenant(owner.clone(), Trusted::new(der.into()));
        let ended = CancellationToken::new();
        let source = Source::new(lease(&owner)?, TcpListener::from_std(listeners.ingest)?, ended.clone())?;

        let exporter = Exporter::new()?;
        let metrics = exporter.metrics.clone();
        // One tenant, at one address, has as many streams and connections as are measured.
        let mut limits = Limits { pace, ..Limits::default() };
        limits.connection.max_per_peer = limits.connection.max;
        limits.quota.streams_per_owner = limits.quota.streams;
        let limits = Arc::new(limits);
        let world =
            World { platform: Arc::new(source), limits: Arc::clone(&limits), metrics: metrics.clone() };
        let drain = Drain::default();
        let restarts = Restarts::new(Arc::clone(&world.platform), metrics.clone());
        let gate = Gate::new(Arc::new(tenant));
        let service = LeaseService::new(gate, Fanout::new(world), restarts, drain.clone());
        let (routes, _health) = server::routes()?;
        let connections = Connections::new(service, routes, Arc::clone(&limits), metrics, drain.clone());
        let server =
            Server { connections, tls: listeners.tls, limits, trusted_proxies: Arc::default(), drain };
        tokio::select! {
            () = server.serve(followers) => {}
            () = exporter.upkeep() => {}
            () = ended.cancelled() => {}
        }
        Ok(())
    })
}

// === impl Tenant ===

impl Trust for Tenant {
    fn certificate<'a>(
        &'a self,
        owner: &'a Owner,
        _: &'a Serial,
    ) -> BoxFuture<'a, std::result::Result<Verdict, Unavailable>> {
        let verdict = if *owner == self.0 { Verdict::Trusted(self.1.clone()) } else { Verdict::Unknown };
        Box::pin(std::future::ready(Ok(verdict)))
    }

    fn account<'a>(
        &'a self,
        _: &'a Owner,
    ) -> BoxFuture<'a, std::result::Result<Verdict<AccountKey>, Unavailable>> {
        Box::pin(std::future::ready(Ok(Verdict::Unknown)))
    }
}

// === impl Source ===

impl Source {
    fn new(lease: LeaseId, ingest: TcpListener, ended: CancellationToken) -> Result<Self> {
        let run = Run { instance: Instance::new("bench", "web", 0)?, started: LogTime::now(), end: None };
        let slot = ReplicaView {
            runs: vec![run],
            state: ReplicaState::Running,
            ready: true,
            ..ReplicaView::default()
        };
        let service = ServiceView { count: 1, replicas: [(0, slot)].into(), ..ServiceView::default() };
        let view = LeaseView { services: [("web".parse()?, service)].into(), ended: false };
        let view = watch::Sender::new(Arc::new(view));
        Ok(Self { lease, view, ingest: Mutex::new(Some(ingest)), ended })
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("lease", &self.lease).finish_non_exhaustive()
    }
}

impl Platform for Source {
    fn name(&self) -> &'static str {
        "bench"
    }

    fn watch(
        &self,
        lease: &LeaseId,
    ) -> BoxFuture<'_, std::result::Result<watch::Receiver<Arc<LeaseView>>, Error>> {
        let found = (*lease == self.lease).then(|| self.view.subscribe());
        Box::pin(std::future::ready(found.ok_or_else(|| Error::NotFound(lease.to_string()))))
    }

    /// The followers ask for nothing older than themselves, so the only tail is the live one, from the first line on.
    fn tail(&self, _: TailRequest) -> BoxFuture<'_, std::result::Result<Tail, Error>> {
        let ingest = self.ingest.lock().unwrap_or_else(PoisonError::into_inner).take();
        let ended = self.ended.clone().drop_guard();
        let lines = async move {
            let accepting = ingest.ok_or_else(|| Error::Broken("a second tail was opened".to_owned()))?;
            let (socket, _) = accepting.accept().await.map_err(|e| Error::io("publisher", e))?;
            let reading = Reading { socket, buffer: BytesMut::new(), at: Position::START };
            Ok(stream::unfold((reading, ended), |(mut reading, ended)| async {
                Some((reading.next().await.transpose()?, (reading, ended)))
            }))
        };
        let items = stream::once(lines).flat_map(|opened| match opened {
            Ok(lines) => lines.boxed(),
            Err(error) => stream::once(std::future::ready(Err(error))).boxed(),
        });
        Box::pin(std::future::ready(Ok(Tail { start: Position::START, items: items.boxed() })))
    }

    fn restart(&self, _: RestartRequest) -> BoxFuture<'_, std::result::Result<(), Error>> {
        Box::pin(std::future::ready(Err(Error::Broken("the publisher cannot be restarted".to_owned()))))
    }
}

// === impl Reading ===

impl Reading {
    /// All whole lines that have come; `None` at the end.
    async fn next(&mut self) -> std::result::Result<Option<TailItem>, Error> {
        loop {
            self.buffer.reserve(READ_MAX_BYTES);
            let read = self.socket.read_buf(&mut self.buffer).await;
            if read.map_err(|e| Error::io("publisher", e))? == 0 {
                return Ok(None);
            }
            if let Some(last) = memchr::memrchr(b'\n', &self.buffer) {
                return Ok(Some(self.lines(last + 1)));
            }
        }
    }

    fn lines(&mut self, bytes: usize) -> TailItem {
        let data = self.buffer.split_to(bytes).freeze();
        let time = LogTime::now();
        let lines = memchr::memchr_iter(b'\n', &data).map(|newline| {
            self.at = self.at.after_line(time);
            Line { end: newline + 1, time, after: self.at, ends: true }
        });
        let lines = lines.collect();
        TailItem::Lines(LineBatch { data, lines })
    }
}
