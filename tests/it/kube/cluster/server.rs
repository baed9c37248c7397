//! A listener that can be closed and opened again at the same address, on TCP or in memory. Closing it cuts
//! its connections.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Capacity of a pipe.
const PIPE_BYTES: usize = 64 * 1024;

/// The listener.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp {
        /// Bound to the address, and never listening: reserves the address while the listener is closed.
        held: TcpSocket,
        wanted: watch::Sender<bool>,
        open: watch::Sender<bool>,
    },
    /// The connections, while it is open.
    Memory(Mutex<Option<JoinSet<()>>>),
}

/// The client's end of a connection in memory.
#[derive(Debug)]
pub(crate) struct Pipe(TokioIo<DuplexStream>);

// === impl Listener ===

impl Listener {
    /// Creates a closed TCP listener.
    pub(super) fn tcp() -> Self {
        Self::Tcp {
            held: socket("127.0.0.1:0".parse().unwrap()),
            wanted: watch::Sender::new(false),
            open: watch::Sender::new(false),
        }
    }

    /// The address; port 0 in memory.
    pub(super) fn address(&self) -> SocketAddr {
        match self {
            Self::Tcp { held, .. } => held.local_addr().unwrap(),
            Self::Memory(_) => SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }

    /// Opens or closes it, and waits until that is done.
    pub(super) async fn set(&self, is_open: bool) {
        match self {
            Self::Tcp { wanted, open, .. } => {
                wanted.send_replace(is_open);
                open.subscribe().wait_for(|now| *now == is_open).await.unwrap();
            }
            Self::Memory(connections) => {
                let mut connections = connections.lock().unwrap();
                *connections = is_open.then(|| connections.take().unwrap_or_default());
            }
        }
    }

    /// Serves TCP connections while it is open. Never returns.
    pub(super) async fn keep<F>(&self, serve: impl Fn(TcpStream) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Self::Tcp { wanted, open, .. } = self else { return std::future::pending().await };
        let mut wanted = wanted.subscribe();
        loop {
            wanted.wait_for(|open| *open).await.unwrap();
            let listener: TcpListener = socket(self.address()).listen(1_024).unwrap();
            open.send_replace(true);
            let mut connections = JoinSet::new();
            while *wanted.borrow_and_update() {
                tokio::select! {
                    accepted = listener.accept() => { connections.spawn(serve(accepted.unwrap().0)); }
                    changed = wanted.changed() => changed.unwrap(),
                }
            }
            drop(listener);
            connections.shutdown().await;
            open.send_replace(false);
        }
    }

    /// Opens a connection in memory.
    pub(super) fn connect<F>(&self, serve: impl FnOnce(DuplexStream) -> F) -> io::Result<Pipe>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Self::Memory(connections) = self else { panic!("only in memory") };
        let mut connections = connections.lock().unwrap();
        let connections = connections.as_mut().ok_or(io::ErrorKind::ConnectionRefused)?;
        // Frees the ones that have ended.
        while connections.try_join_next().is_some() {}
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        connections.spawn(serve(ours));
        Ok(Pipe(TokioIo::new(theirs)))
    }
}

// === impl Pipe ===

impl Connection for Pipe {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl Write for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

fn socket(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}
