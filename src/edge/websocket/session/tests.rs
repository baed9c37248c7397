use futures_util::{SinkExt as _, StreamExt as _};
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{advance, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::super::handshake;
use super::*;
use crate::edge::tls::accept;
use crate::stream::{Parts, StreamEnd};

/// Capacity of a pipe that holds all data of a test.
const WIDE: usize = 1 << 20;

/// Yields the frames that the test sends, and then ends.
struct Source {
    frames: mpsc::Receiver<Vec<u8>>,
    stream: Arc<StreamControl>,
}

impl Body for Source {
    type Data = Messages;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Messages>, Infallible>>> {
        let frame = ready!(self.frames.poll_recv(cx));
        let messages = frame.map(|frame| {
            // In parts of any size: parts are not frames.
            let parts: Parts = frame.chunks(1_000).map(Bytes::copy_from_slice).collect();
            Ok(http_body::Frame::data(Messages::new(parts, Arc::clone(&self.stream))))
        });
        Poll::Ready(messages)
    }
}

/// A running session and its ends.
struct Running {
    /// Takes whole websocket frames. On drop, the source ends.
    data: mpsc::Sender<Vec<u8>>,
    stream: Arc<StreamControl>,
    session: JoinHandle<WebsocketEnd>,
}

/// Starts a session on a pipe of this capacity. At the end of its data, the session closes with 4001.
fn start(capacity: usize) -> (Running, DuplexStream) {
    let (io, client) = duplex(capacity);
    (run(io, Bytes::new()), client)
}

#[expect(clippy::disallowed_methods, reason = "the test owns the task")]
fn run<IO: AsyncRead + AsyncWrite + Send + Unpin + 'static>(io: IO, received: Bytes) -> Running {
    let (data, frames) = mpsc::channel(4);
    let stream = StreamControl::new();
    let source = Source { frames, stream: Arc::clone(&stream) };
    let close = Close { code: 4001, reason: "lease ended".into(), end: WebsocketEnd::LeaseEnded };
    let session = Session::new(io, received, source, Arc::clone(&stream), Box::new(|| close));
    Running { data, stream, session: tokio::spawn(session) }
}

async fn websocket<IO: AsyncRead + AsyncWrite + Unpin>(io: IO) -> WebSocketStream<IO> {
    WebSocketStream::from_raw_socket(io, Role::Client, None).await
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    Frame::message(text.to_owned(), OpCode::Data(Data::Text), true).format(&mut bytes).unwrap();
    bytes
}

fn masked(opcode: OpCode, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader { is_final: true, opcode, mask: Some([9, 8, 7, 6]), ..FrameHeader::default() };
    let mut bytes = Vec::new();
    Frame::from_payload(header, payload.to_vec().into()).format(&mut bytes).unwrap();
    bytes
}

fn pong(payload: &[u8]) -> Vec<u8> {
    masked(OpCode::Control(Control::Pong), payload)
}

/// A frame of the server.
#[derive(Debug, PartialEq, Eq)]
struct Received {
    opcode: u8,
    payload: Vec<u8>,
}

impl Received {
    fn close(&self) -> (u16, &str) {
        assert_eq!(self.opcode, 8);
        let (code, reason) = self.payload.split_at(2);
        (u16::from_be_bytes(code.try_into().unwrap()), std::str::from_utf8(reason).unwrap())
    }
}

/// Reads one frame of up to 65,535 bytes.
async fn receive(io: &mut DuplexStream) -> Received {
    let [first, second] = [io.read_u8().await.unwrap(), io.read_u8().await.unwrap()];
    assert_eq!(first & 0xf0, 0x80);
    let length = if second == 126 { io.read_u16().await.unwrap() } else { second.into() };
    let mut payload = vec![0; length.into()];
    io.read_exact(&mut payload).await.unwrap();
    Received { opcode: first & 0xf, payload }
}

#[tokio::test(start_paused = true)]
async fn client_receives_frames_then_close() {
    let (running, io) = start(WIDE);
    let mut client = websocket(io).await;
    running.data.send([text("one\n"), text("two\n")].concat()).await.unwrap();
    running.data.send(text(&"x".repeat(70_000))).await.unwrap();
    drop(running.data);
    let mut texts = Vec::new();
    let close = loop {
        match client.next().await.unwrap().unwrap() {
            Message::Text(text) => texts.push(text),
            Message::Ping(_) => {}
            Message::Close(frame) => break frame.unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(texts, ["one\n", "two\n", &"x".repeat(70_000)].map(Utf8Bytes::from));
    assert_eq!((u16::from(close.code), close.reason.as_str()), (4001, "lease ended"));
    // Sends the answer, and sees the end of the connection.
    assert!(client.next().await.is_none());
    assert_eq!(running.session.await.unwrap(), WebsocketEnd::LeaseEnded);
}

#[tokio::test(start_paused = true)]
async fn pings_come_at_once_and_every_five_seconds() {
    let (running, mut io) = start(WIDE);
    let started = Instant::now();
    let flow = async {
        // Data flows all the time.
        while running.data.send(text("line\n")).await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    let read = async {
        let mut pings = Vec::new();
        while pings.len() < 5 {
            let frame = receive(&mut io).await;
            if frame.opcode == 9 {
                pings.push(started.elapsed().as_secs());
                io.write_all(&pong(&frame.payload)).await.unwrap();
            }
        }
        pings
    };
    tokio::select! {
        () = flow => panic!("the session ended"),
        pings = read => assert_eq!(pings, [0, 5, 10, 15, 20]),
    }
    running.session.abort();
}

#[tokio::test(start_paused = true)]
async fn ping_of_client_is_answered() {
    let (running, mut io) = start(WIDE);
    assert_eq!(receive(&mut io).await.opcode, 9);
    io.write_all(&masked(OpCode::Control(Control::Ping), b"payload")).await.unwrap();
    assert_eq!(receive(&mut io).await, Received { opcode: 10, payload: b"payload".to_vec() });
    // Of several pings at once, the newest is answered.
    let pings = [b"first", b"newer", b"third"].map(|text| masked(OpCode::Control(Control::Ping), text));
    io.write_all(&pings.concat()).await.unwrap();
    assert_eq!(receive(&mut io).await, Received { opcode: 10, payload: b"third".to_vec() });
    running.session.abort();
}

#[tokio::test(start_paused = true)]
async fn bytes_after_request_are_read_first() {
    let (server, mut io) = duplex(WIDE);
    let running = run(server, masked(OpCode::Control(Control::Ping), b"early").into());
    assert_eq!(receive(&mut io).await.opcode, 9);
    assert_eq!(receive(&mut io).await.payload, b"early");
    running.session.abort();
}

#[tokio::test(start_paused = true)]
async fn close_of_client_is_echoed() {
    for code in [None, Some(1000_u16), Some(4321)] {
        let (running, mut io) = start(WIDE);
        assert_eq!(receive(&mut io).await.opcode, 9);
        let payload = code.map_or(vec![], |code| [&code.to_be_bytes()[..], b"bye"].concat());
        io.write_all(&masked(OpCode::Control(Control::Close), &payload)).await.unwrap();
        // The client has closed its sending side, and still gets the answer.
        io.shutdown().await.unwrap();
        let echo = code.map_or(vec![], |code| code.to_be_bytes().to_vec());
        assert_eq!(receive(&mut io).await, Received { opcode: 8, payload: echo });
        assert_eq!(io.read(&mut [0; 1]).await.unwrap(), 0);
        assert_eq!(running.session.await.unwrap(), WebsocketEnd::Client);
        assert!(running.data.is_closed());
    }
}

#[tokio::test(start_paused = true)]
async fn lost_connection_ends_session() {
    let (running, io) = start(WIDE);
    drop(io);
    assert_eq!(running.session.await.unwrap(), WebsocketEnd::Client);
}

#[tokio::test(start_paused = true)]
async fn protocol_errors_close_with_code() {
    let too_long = masked(OpCode::Data(Data::Binary), &[0; 5_000]);
    for (bytes, code) in [(too_long, 1009), (vec![0x89, 0x00], 1002)] {
        let (running, mut io) = start(WIDE);
        assert_eq!(receive(&mut io).await.opcode, 9);
        io.write_all(&bytes).await.unwrap();
        let close = receive(&mut io).await;
        assert_eq!(close.close().0, code);
        assert!(!close.close().1.is_empty());
        drop(io);
        assert_eq!(running.session.await.unwrap(), WebsocketEnd::Error);
    }
}

#[tokio::test(start_paused = true)]
async fn data_of_client_is_ignored() {
    let (running, mut io) = start(WIDE);
    for _ in 0..1_000 {
        io.write_all(&masked(OpCode::Data(Data::Text), &[b'x'; 4_096])).await.unwrap();
    }
    assert_eq!(receive(&mut io).await.opcode, 9);
    running.data.send(text("line\n")).await.unwrap();
    assert_eq!(receive(&mut io).await.payload, b"line\n");
    running.session.abort();
}

#[tokio::test(start_paused = true)]
async fn silent_client_is_dropped() {
    let (running, mut io) = start(WIDE);
    sleep(Duration::from_secs(30)).await;
    io.write_all(&pong(b"")).await.unwrap();
    let sent = Instant::now();
    assert_eq!(running.session.await.unwrap(), WebsocketEnd::Silent);
    assert_eq!(sent.elapsed().as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn unanswered_close_ends_after_timeout() {
    let (running, _io) = start(WIDE);
    drop(running.data);
    let started = Instant::now();
    assert_eq!(running.session.await.unwrap(), WebsocketEnd::LeaseEnded);
    assert_eq!(started.elapsed().as_secs(), CLOSE_TIMEOUT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn blocked_close_ends_after_timeouts() {
    // The pipe is full with the data before the close frame.
    let (running, _io) = start(10);
    running.data.send(text("0123456789")).await.unwrap();
    drop(running.data);
    sleep(Duration::from_secs(1)).await;
    assert!(!running.session.is_finished());
    // Nothing has ended yet: the data is still in hand, so the source was not asked again.
    assert_eq!(running.session.await.unwrap(), WebsocketEnd::Silent);
}

/// Sends lines until the source does not take them within a second. Returns how many it took.
async fn fill(running: &Running, line: &str) -> usize {
    let mut lines = 0;
    while timeout(Duration::from_secs(1), running.data.send(text(line))).await.is_ok() {
        lines += 1;
    }
    lines
}

#[tokio::test(start_paused = true)]
async fn unanswered_pings_pause_data() {
    let (running, mut io) = start(WIDE);
    let first = fill(&running, &"x".repeat(1_000)).await;
    // About 16 KiB, and the queue of the test's source.
    assert!((16..=22).contains(&first), "{first}");
    sleep(Duration::from_secs(20)).await;
    assert_eq!(fill(&running, "x").await, 0);
    // After 30 s data flows again; something must be received within a minute.
    io.write_all(&masked(OpCode::Data(Data::Text), b"")).await.unwrap();
    sleep(Duration::from_secs(10)).await;
    for _ in 0..100 {
        running.data.send(text("x")).await.unwrap();
    }
    running.session.abort();
}

#[tokio::test(start_paused = true)]
async fn ended_stream_sends_its_data_without_pongs() {
    let (running, mut io) = start(WIDE);
    let lines = fill(&running, &"x".repeat(1_000)).await;
    let ended = Instant::now();
    running.stream.end(StreamEnd::Draining);
    drop(running.data);
    // The supervisor runs in the session's task; here, a frame of the client wakes it.
    io.write_all(&masked(OpCode::Data(Data::Text), b"")).await.unwrap();
    let mut received = 0;
    loop {
        let frame = receive(&mut io).await;
        match frame.opcode {
            1 => received += 1,
            9 => {}
            _ => break assert_eq!(frame.close(), (4001, "lease ended")),
        }
    }
    assert_eq!(received, lines);
    assert_eq!(ended.elapsed(), Duration::ZERO, "it does not wait for a pong");
    running.session.abort();
}

#[tokio::test(start_paused = true)]
async fn slow_client_holds_one_portion() {
    let (running, mut io) = start(100);
    // The source is not polled while its last data is being written: the channel keeps four.
    let lines = fill(&running, &"x".repeat(1_000)).await;
    assert_eq!(lines, 5);
    assert!(running.stream.unsent_bytes() > 0);
    // The first frame is a ping. The next one follows the data that was being written.
    let mut opcodes = Vec::new();
    advance(Duration::from_secs(6)).await;
    for _ in 0..4 {
        let frame = receive(&mut io).await;
        opcodes.push(frame.opcode);
        if frame.opcode == 9 {
            io.write_all(&pong(b"")).await.unwrap();
        }
    }
    assert_eq!(opcodes, [9, 1, 9, 1]);
    running.session.abort();
}

#[tokio::test(start_paused = true)]
async fn go_rule_keeps_slow_reader_connected() {
    let (running, mut io) = start(256 * 1024);
    let flow = async {
        loop {
            running.data.send(text(&"x".repeat(98)).repeat(400)).await.unwrap();
        }
    };
    // Reads ten lines per second for ten minutes. Without a ping for 15 s it gives up.
    let read = async {
        let mut last_ping = Instant::now();
        let end = Instant::now() + Duration::from_secs(600);
        while Instant::now() < end {
            let frame = receive(&mut io).await;
            if frame.opcode == 9 {
                last_ping = Instant::now();
                io.write_all(&pong(b"")).await.unwrap();
            } else {
                sleep(Duration::from_millis(100)).await;
            }
            assert!(last_ping.elapsed() < Duration::from_secs(15), "no ping in time");
        }
    };
    tokio::select! {
        () = flow => {}
        () = read => {}
    }
    running.session.abort();
}

/// `TlsStream` defers flushes, and relies on how its task polls it.
#[tokio::test(start_paused = true)]
async fn tls_delivers_every_frame_at_once() {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = key.cert.der().clone();
    let server = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.clone()],
            PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()).into(),
        )
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    for capacity in [3_000, WIDE] {
        let (near, far) = duplex(capacity);
        let accepting = accept(Arc::new(server.clone()), near);
        let connector = TlsConnector::from(Arc::new(client.clone()));
        let (near, far) = tokio::join!(accepting, connector.connect("localhost".try_into().unwrap(), far));
        let running = run(near.unwrap(), Bytes::new());
        let mut client = websocket(far.unwrap()).await;
        for (frames, length) in [(1, 20), (300, 500), (1, 100_000), (3, 0), (40, 3_000), (1, 20)] {
            running.data.send(text(&"x".repeat(length)).repeat(frames)).await.unwrap();
            let started = Instant::now();
            let mut received = 0;
            while received < frames {
                if let Message::Text(text) = client.next().await.unwrap().unwrap() {
                    assert_eq!(text.len(), length);
                    received += 1;
                }
            }
            // No frame waits for a timer.
            assert_eq!(started.elapsed(), Duration::ZERO);
        }
        drop(running.data);
        while let Some(message) = client.next().await {
            assert!(!matches!(message.unwrap(), Message::Text(_)));
        }
        assert_eq!(running.session.await.unwrap(), WebsocketEnd::LeaseEnded);
    }
}

/// The whole way: hyper's server, the handshake with an independent client, and a session on the connection.
#[tokio::test(start_paused = true)]
async fn upgraded_connection_becomes_session() {
    let (near, far) = duplex(WIDE);
    let (sender, mut receiver) = mpsc::channel(1);
    let service = service_fn(|mut request: Request<Incoming>| {
        let response = match handshake::check(&request) {
            Ok(upgrade) => {
                sender.try_send(hyper::upgrade::on(&mut request)).unwrap();
                upgrade.response()
            }
            Err(error) => error.response(),
        };
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let server = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(near), service)
        .with_upgrades();
    let client = async {
        let (mut client, response) = client_async("ws://provider.test/lease/1/1/1/logs", far).await.unwrap();
        assert_eq!(response.status(), 101);
        let upgraded = receiver.recv().await.unwrap().await.unwrap();
        let parts = upgraded.downcast::<TokioIo<DuplexStream>>().unwrap();
        let running = run(parts.io.into_inner(), parts.read_buf);
        running.data.send(text("line\n")).await.unwrap();
        drop(running.data);
        let mut texts = Vec::new();
        while let Some(message) = client.next().await {
            match message.unwrap() {
                Message::Text(text) => texts.push(text),
                Message::Close(frame) => texts.push(frame.unwrap().reason),
                _ => {}
            }
        }
        assert_eq!(texts, ["line\n", "lease ended"].map(Utf8Bytes::from));
        assert_eq!(running.session.await.unwrap(), WebsocketEnd::LeaseEnded);
    };
    let (result, ()) = tokio::join!(server, client);
    result.unwrap();
}

fn lengths() -> impl Strategy<Value = Vec<Vec<usize>>> {
    let length = prop_oneof![5 => 0..300_usize, 1 => 60_000..70_000_usize];
    prop::collection::vec(prop::collection::vec(length, 1..8), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// An independent client, which checks the protocol, receives all messages and the answers to its pings,
    /// whatever the capacity of the connection.
    #[test]
    fn no_frame_interrupts_another(lengths in lengths(), capacity in 1..5_000_usize, pings in 0..20_usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (running, io) = start(capacity);
            let texts: Vec<Vec<String>> = lengths.iter().map(|frames| {
                frames.iter().map(|length| "é".repeat(length / 2) + "\n").collect()
            }).collect();
            let send = async {
                for frames in &texts {
                    let data: Vec<u8> = frames.iter().flat_map(|frame| text(frame)).collect();
                    running.data.send(data).await.unwrap();
                    sleep(Duration::from_millis(1_500)).await;
                }
                drop(running.data);
            };
            let (mut sink, mut stream) = websocket(io).await.split();
            let ping = async {
                for number in 0..pings {
                    let _ = sink.send(Message::Ping(vec![u8::try_from(number).unwrap(); number].into())).await;
                    sleep(Duration::from_millis(700)).await;
                }
            };
            let receive = async {
                let mut received = Vec::new();
                while let Some(message) = stream.next().await {
                    match message.unwrap() {
                        Message::Text(text) => received.push(text.to_string()),
                        Message::Close(frame) => assert_eq!(u16::from(frame.unwrap().code), 4001),
                        Message::Ping(_) | Message::Pong(_) => {}
                        other => panic!("{other:?}"),
                    }
                }
                received
            };
            let ((), (), received) = tokio::join!(send, ping, receive);
            assert_eq!(received, texts.concat());
            assert_eq!(running.session.await.unwrap(), WebsocketEnd::LeaseEnded);
        });
    }
}
