//! The API server's door: while it is shut connections are refused, and those that there were are cut; then it is there again, at the
//! same address.

use std::future::Future;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// See above.
#[derive(Debug)]
pub(super) struct Door {
    /// Has the address, and never listens: so nobody else gets it meanwhile.
    held: TcpSocket,
    wanted: watch::Sender<bool>,
    open: watch::Sender<bool>,
}

// === impl Door ===

impl Door {
    /// It is shut.
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

    /// Opens or shuts it; resolves when it is so.
    pub(super) async fn set(&self, open: bool) {
        self.wanted.send_replace(open);
        self.open.subscribe().wait_for(|is_open| *is_open == open).await.unwrap();
    }

    /// Serves connections while it is open. Never resolves.
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
