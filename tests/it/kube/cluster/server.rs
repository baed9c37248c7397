//! A TCP listener that can be closed and opened again at the same address. Closing it cuts its connections.

use std::future::Future;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The listener.
#[derive(Debug)]
pub(super) struct Listener {
    /// Bound to the address, and never listening: reserves the address while the listener is closed.
    held: TcpSocket,
    wanted: watch::Sender<bool>,
    open: watch::Sender<bool>,
}

// === impl Listener ===

impl Listener {
    /// Creates a closed listener.
    pub(super) fn new() -> Self {
        Self {
            held: socket("127.0.0.1:0".parse().unwrap()),
            wanted: watch::Sender::new(false),
            open: watch::Sender::new(false),
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.held.local_addr().unwrap()
    }

    /// Opens or closes it, and waits until that is done.
    pub(super) async fn set(&self, open: bool) {
        self.wanted.send_replace(open);
        self.open.subscribe().wait_for(|is_open| *is_open == open).await.unwrap();
    }

    /// Serves connections while it is open. Never returns.
    pub(super) async fn keep<F>(&self, serve: impl Fn(TcpStream) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut wanted = self.wanted.subscribe();
        loop {
            wanted.wait_for(|open| *open).await.unwrap();
            let listener: TcpListener = socket(self.address()).listen(1_024).unwrap();
            self.open.send_replace(true);
            let mut connections = JoinSet::new();
            while *wanted.borrow_and_update() {
                tokio::select! {
                    accepted = listener.accept() => { connections.spawn(serve(accepted.unwrap().0)); }
                    changed = wanted.changed() => changed.unwrap(),
                }
            }
            drop(listener);
            connections.shutdown().await;
            self.open.send_replace(false);
        }
    }
}

fn socket(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}
