//! Byte streams over small pipes.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::Poll;

use proptest::prelude::*;
use tokio::io::{
    AsyncRead as _, AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _, DuplexStream, ReadBuf,
};

use super::{DEADLINE, Server, TlsStream, server};

/// The actions of an echo server in one round.
#[derive(Clone, Debug)]
struct Round {
    read: usize,
    /// Lengths of the pieces of one vectored write.
    write: Vec<usize>,
    flush: bool,
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let size =
        || prop_oneof![1 => Just(0_usize), 4 => 1..300_usize, 4 => 1..20_000_usize, 1 => 1..70_000_usize];
    let round = (1..20_000_usize, prop::collection::vec(size(), 1..4), any::<bool>());
    let round = round.prop_map(|(read, mut write, flush)| {
        // At least a few bytes, so that the test ends in time.
        write.push(16);
        Round { read, write, flush }
    });
    prop::collection::vec(round, 1..20)
}

/// Sends back all it receives, in one task, like an HTTP/2 connection. Returns when the client has ended and
/// all is sent.
async fn echo(mut stream: TlsStream<DuplexStream>, rounds: Vec<Round>) -> io::Result<()> {
    const BACKLOG_MAX_BYTES: usize = 100_000;
    let mut backlog: Vec<u8> = Vec::new();
    let mut ended = false;
    let mut rounds = rounds.iter().cycle();
    let mut buffer = vec![0; 20_000];
    poll_fn(|cx| -> Poll<io::Result<()>> {
        loop {
            let round = rounds.next().unwrap();
            let mut reading = !ended && backlog.len() < BACKLOG_MAX_BYTES;
            if reading {
                let mut read = ReadBuf::new(&mut buffer[..round.read]);
                match Pin::new(&mut stream).poll_read(cx, &mut read)? {
                    Poll::Ready(()) => ended = read.filled().is_empty(),
                    Poll::Pending => reading = false,
                }
                backlog.extend(read.filled());
            }
            let mut writing = !backlog.is_empty();
            match Pin::new(&mut stream).poll_write_vectored(cx, &slices(&backlog, &round.write))? {
                Poll::Ready(written) => drop(backlog.drain(..written)),
                Poll::Pending => writing = false,
            }
            let idle = !reading && !writing;
            if (round.flush || idle) && Pin::new(&mut stream).poll_flush(cx)?.is_pending() {
                return Poll::Pending;
            }
            if ended && backlog.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if idle {
                return Poll::Pending;
            }
        }
    })
    .await?;
    stream.shutdown().await
}

fn slices<'a>(mut rest: &'a [u8], lengths: &[usize]) -> Vec<IoSlice<'a>> {
    let cut = lengths.iter().map(|&length| {
        let (piece, later) = rest.split_at(length.min(rest.len()));
        rest = later;
        IoSlice::new(piece)
    });
    cut.collect()
}

async fn stream_through(
    server: &Server,
    capacity: usize,
    rounds: Vec<Round>,
    data: Vec<u8>,
    sizes: Vec<usize>,
) {
    let (accepted, connected) = server.handshake(server.client(), capacity).await;
    let serving = echo(accepted.unwrap(), rounds);
    let (mut reader, mut writer) = tokio::io::split(connected.unwrap());
    let sending = async {
        let mut rest = &data[..];
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at(rest.len().min(*size));
            writer.write_all(now).await?;
            rest = later;
        }
        // The client continues to read.
        writer.shutdown().await
    };
    let receiving = async {
        let mut received = Vec::new();
        for size in sizes.iter().rev().cycle() {
            let start = received.len();
            received.resize(start + size, 0);
            let count = reader.read(&mut received[start..]).await?;
            received.truncate(start + count);
            if count == 0 {
                break;
            }
        }
        io::Result::Ok(received)
    };
    let all = async { tokio::join!(serving, sending, receiving) };
    let (echoed, sender, received) = tokio::time::timeout(DEADLINE, all).await.expect("no hang");
    echoed.unwrap();
    sender.unwrap();
    assert!(received.unwrap() == data, "every byte comes back in order");
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_arrives_in_order(
        capacity in prop_oneof![8..40_usize, 40..5_000_usize, Just(1 << 20)],
        rounds in rounds(),
        length in 0..120_000_usize,
        sizes in prop::collection::vec(1..30_000_usize, 1..8),
    ) {
        // With tiny pipes, every few bytes take a round of the scheduler.
        let length = length.min(capacity.saturating_mul(200));
        let data: Vec<u8> = (0..length).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
        block_on(stream_through(&server(), capacity, rounds, data, sizes));
    }
}
