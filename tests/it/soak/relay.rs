//! A TCP relay that can reset its connections.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Relays connections to other addresses until it is dropped.
pub(super) struct Relay {
    pub(super) address: SocketAddr,
    connections: Connections,
    _accept: JoinSet<()>,
}

/// Open connections. Each is reset when its token is cancelled, and cancels its token when it ends.
type Connections = Arc<Mutex<Vec<CancellationToken>>>;

// === impl Relay ===

impl Relay {
    pub(super) async fn start(target: SocketAddr) -> Self {
        Self::among(vec![target]).await
    }

    /// Starts a relay that connects to one target after the other.
    pub(super) async fn among(targets: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Connections::default();
        let mut accept = JoinSet::new();
        accept.spawn(accept_all(listener, targets, Arc::clone(&connections)));
        Self { address, connections, _accept: accept }
    }

    /// Resets those connections for which `chosen` returns true. Returns their number.
    pub(super) fn reset(&self, mut chosen: impl FnMut() -> bool) -> usize {
        let mut connections = self.connections.lock().unwrap();
        connections.retain(|connection| !connection.is_cancelled());
        let before = connections.len();
        connections.retain(|connection| {
            let is_chosen = chosen();
            if is_chosen {
                connection.cancel();
            }
            !is_chosen
        });
        before - connections.len()
    }
}

async fn accept_all(listener: TcpListener, targets: Vec<SocketAddr>, connections: Connections) {
    let mut relayed = JoinSet::new();
    let mut targets = targets.into_iter().cycle();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                let target = targets.next().expect("a target");
                let reset = CancellationToken::new();
                connections.lock().unwrap().push(reset.clone());
                relayed.spawn(relay(client, target, reset));
            }
            Some(_) = relayed.join_next() => {}
        }
    }
}

async fn relay(mut client: TcpStream, target: SocketAddr, reset: CancellationToken) {
    let _ended = reset.clone().drop_guard();
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    let copy = tokio::io::copy_bidirectional(&mut client, &mut server);
    if reset.run_until_cancelled(copy).await.is_none() {
        for socket in [&client, &server] {
            // Closing the socket then sends RST, and drops what is on the way.
            SockRef::from(socket).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
}
