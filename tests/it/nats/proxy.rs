//! A TCP proxy in front of a NATS server that can lose all bytes of one direction.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What a proxy loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Lost {
    Nothing,
    ToServer,
    FromServer,
}

/// A proxy. Its connections end when it is dropped.
pub(crate) struct Proxy {
    port: u16,
    lost: Arc<AtomicU8>,
    _tasks: JoinSet<()>,
}

// === impl Proxy ===

impl Proxy {
    pub(crate) async fn start(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (port, lost) = (listener.local_addr().unwrap().port(), Arc::<AtomicU8>::default());
        let (of_task, mut tasks) = (Arc::clone(&lost), JoinSet::new());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { continue };
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                connections.spawn(copy(from_client, to_server, Lost::ToServer, Arc::clone(&of_task)));
                connections.spawn(copy(from_server, to_client, Lost::FromServer, Arc::clone(&of_task)));
            }
        });
        Self { port, lost, _tasks: tasks }
    }

    pub(crate) fn lose(&self, lost: Lost) {
        self.lost.store(lost as u8, Ordering::Relaxed);
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

/// Copies one direction until it ends.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    direction: Lost,
    lost: Arc<AtomicU8>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(bytes @ 1..) = from.read(&mut buffer).await {
        let is_lost = lost.load(Ordering::Relaxed) == direction as u8;
        if !is_lost && to.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
    }
}
