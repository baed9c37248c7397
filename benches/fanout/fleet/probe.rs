//! Processes that send or receive frames: over sockets, as the least that a relay between gateways needs, and
//! over NATS with the client library alone.

use std::fs::OpenOptions;
use std::io::{BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use clap::{Args, ValueEnum};
use futures_util::StreamExt as _;
use leasemux::model::line::OutputStream;
use leasemux::model::time::LogTime;
use leasemux::platform::cri::{self, Record};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::MissedTickBehavior;

use super::{next_line, spawn};
use crate::Result;
use crate::measure::usage;

/// The subject of all frames.
const SUBJECT: &str = "frames";

/// A process of its own, with one thread. It measures the second half of its frames.
#[derive(Clone, Debug, Args)]
pub(crate) struct Probe {
    #[arg(long)]
    kind: Kind,
    /// Address of the receiver or of the NATS server.
    #[arg(long, default_value = "127.0.0.1:0")]
    address: SocketAddr,
    /// Bytes of a frame.
    #[arg(long, default_value_t = 0)]
    bytes: usize,
    /// Frames in each burst.
    #[arg(long, default_value_t = 0)]
    burst: u32,
    /// Microseconds between two bursts.
    #[arg(long, default_value_t = 0)]
    interval: u64,
    /// Bursts.
    #[arg(long, default_value_t = 0)]
    count: u32,
    /// The log file.
    #[arg(long)]
    log: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    SocketSend,
    SocketReceive,
    NatsPublish,
    NatsSubscribe,
    /// Writes the lines of a connection to a log file, and measures nothing.
    LogWriter,
}

/// The frames of a measurement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) bytes: usize,
    pub(super) burst: u32,
    pub(super) interval: Duration,
    pub(super) count: u32,
}

/// A started probe.
pub(super) struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
    /// Where it listens.
    pub(super) address: SocketAddr,
}

/// Counts frames, and measures this process.
struct Meter {
    /// Frames before the measurement, and in it.
    half: u64,
    seen: u64,
    cpu: f64,
}

impl Probe {
    /// Prints an address, then, at the end, the CPU seconds per frame.
    pub(crate) fn run(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            match self.kind {
                Kind::SocketSend => self.send_to_socket().await,
                Kind::SocketReceive => self.receive_from_socket().await,
                Kind::NatsPublish => self.publish().await,
                Kind::NatsSubscribe => self.subscribe().await,
                Kind::LogWriter => self.write_log().await,
            }
        })
    }

    fn meter(&self) -> Meter {
        Meter { half: u64::from(self.burst) * u64::from(self.count) / 2, seen: 0, cpu: 0.0 }
    }

    /// Calls `send` for each frame.
    async fn send_all(&self, mut send: impl AsyncFnMut(Bytes) -> Result<()>) -> Result<()> {
        println!("{}", self.address);
        let frame = Bytes::from(vec![b'x'; self.bytes]);
        let mut meter = self.meter();
        let mut ticks = tokio::time::interval(Duration::from_micros(self.interval));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for _ in 0..self.count {
            ticks.tick().await;
            for _ in 0..self.burst {
                meter.count()?;
                send(frame.clone()).await?;
            }
        }
        meter.print()
    }

    async fn send_to_socket(&self) -> Result<()> {
        let mut socket = TcpStream::connect(self.address).await?;
        socket.set_nodelay(true)?;
        self.send_all(async |frame| Ok(socket.write_all(&frame).await?)).await
    }

    async fn receive_from_socket(&self) -> Result<()> {
        let listener = TcpListener::bind(self.address).await?;
        println!("{}", listener.local_addr()?);
        let (mut socket, _) = listener.accept().await?;
        let mut buffer = BytesMut::with_capacity(256 * 1_024);
        let mut meter = self.meter();
        while !meter.is_full() {
            if socket.read_buf(&mut buffer).await? == 0 {
                return Err("the sender has ended".into());
            }
            while buffer.len() >= self.bytes {
                meter.count()?;
                drop(buffer.split_to(self.bytes));
            }
            buffer.reserve(64 * 1_024);
        }
        meter.print()
    }

    async fn publish(&self) -> Result<()> {
        let client = async_nats::connect(self.address.to_string()).await?;
        self.send_all(async |frame| Ok(client.publish(SUBJECT, frame).await?)).await?;
        Ok(client.flush().await?)
    }

    async fn write_log(&self) -> Result<()> {
        let path = self.log.as_ref().ok_or("a log writer needs a file")?;
        let mut log = OpenOptions::new().append(true).open(path)?;
        let listener = TcpListener::bind(self.address).await?;
        println!("{}", listener.local_addr()?);
        let (mut socket, _) = listener.accept().await?;
        let (mut lines, mut records) = (BytesMut::new(), Vec::new());
        loop {
            lines.reserve(256 * 1_024);
            if socket.read_buf(&mut lines).await? == 0 {
                return Ok(());
            }
            let whole = memchr::memrchr(b'\n', &lines).map_or(0, |last| last + 1);
            records.clear();
            for content in lines.split_to(whole).split_inclusive(|byte| *byte == b'\n') {
                let content = content.strip_suffix(b"\n").unwrap_or(content);
                let record = Record {
                    time: LogTime::now(),
                    stream: OutputStream::Stdout,
                    partial: false,
                    lost: None,
                    content,
                };
                cri::write(&mut records, &record);
            }
            // Readers see whole lines.
            log.write_all(&records)?;
        }
    }

    async fn subscribe(&self) -> Result<()> {
        let client = async_nats::connect(self.address.to_string()).await?;
        let mut messages = client.subscribe(SUBJECT).await?;
        client.flush().await?;
        println!("{}", self.address);
        let mut meter = self.meter();
        while !meter.is_full() {
            messages.next().await.ok_or("the subscription has ended")?;
            meter.count()?;
        }
        meter.print()
    }
}

// === impl Meter ===

impl Meter {
    fn count(&mut self) -> Result<()> {
        if self.seen == self.half {
            self.cpu = usage(std::process::id())?.cpu;
        }
        self.seen += 1;
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.seen >= 2 * self.half
    }

    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn print(&self) -> Result<()> {
        let measured = (self.seen - self.half) as f64;
        println!("{}", (usage(std::process::id())?.cpu - self.cpu) / measured);
        Ok(())
    }
}

// === impl Running ===

impl Running {
    /// Starts a probe. Returns when it is ready to receive, or sends.
    pub(super) fn start(kind: Kind, address: SocketAddr, load: &Load) -> Result<Self> {
        let mut command = Self::command(kind)?;
        command
            .arg(format!("--address={address}"))
            .arg(format!("--bytes={}", load.bytes))
            .arg(format!("--burst={}", load.burst))
            .arg(format!("--interval={}", load.interval.as_micros()))
            .arg(format!("--count={}", load.count));
        Self::spawn(&mut command, address)
    }

    /// Starts a writer of a log file.
    pub(super) fn start_writer(log: &Path) -> Result<Self> {
        let mut command = Self::command(Kind::LogWriter)?;
        Self::spawn(command.arg("--log").arg(log), SocketAddr::from(([0; 4], 0)))
    }

    fn command(kind: Kind) -> Result<Command> {
        let kind = kind.to_possible_value().ok_or("no such probe")?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["probe", "--kind", kind.get_name()]);
        Ok(command)
    }

    fn spawn(command: &mut Command, address: SocketAddr) -> Result<Self> {
        let (child, out) = spawn(command)?;
        let mut probe = Self { child, out, address };
        probe.address = next_line(&mut probe.out)?.parse()?;
        Ok(probe)
    }

    /// Waits until it ends. Returns its CPU seconds per frame.
    pub(super) fn end(mut self) -> Result<f64> {
        let line = next_line(&mut self.out)?;
        self.child.wait()?;
        Ok(line.parse()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
