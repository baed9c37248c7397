//! The client: one thread that publishes and follows, the same for every contender.

use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::Result;
use crate::contender::{Contender, Kind};
use crate::follower::{Buffers, Follower, Login};
use crate::measure::Load;

/// Published in one write at most, and then over again.
const BATCH_BYTES: usize = 64 * 1024;

/// Nothing delivered for this long is a fault.
const STALL: Duration = Duration::from_secs(20);

/// When nothing has come for this long while nothing is published, everything has come.
const QUIET: Duration = Duration::from_millis(30);

pub(crate) struct Drain {
    poll: Poll,
    followers: Vec<Follower>,
    publisher: Publisher,
    size: u64,
    window: u64,
    buffers: Buffers,
}

struct Publisher {
    socket: TcpStream,
    /// Some messages, one after the other.
    batch: Vec<u8>,
    /// Bytes handed to the socket.
    sent: u64,
    /// Bytes it may be handed.
    due: u64,
}

/// Messages of `size` bytes, each a line with its number.
fn batch(size: usize) -> Vec<u8> {
    let line = |index| {
        let mut line = format!("{index:08} ").into_bytes();
        line.resize(size - 1, b'x');
        line.push(b'\n');
        line
    };
    (0..BATCH_BYTES.div_ceil(size)).flat_map(line).collect()
}

// === impl Drain ===

impl Drain {
    /// Follows `contender` with all followers, and returns when each of them gets messages.
    pub(crate) fn connect(contender: &Contender, kind: Kind, load: &Load, dir: &Path) -> Result<Self> {
        let poll = Poll::new()?;
        let batch = batch(load.size);
        let login = Login::new(kind, dir)?;
        let mut followers = Vec::new();
        for index in 0..load.followers {
            // What one gets is compared byte by byte; of the others it is counted.
            let expected = if index == 0 { batch.clone() } else { Vec::new() };
            let mut follower = Follower::connect(contender.followers, &login, expected, load.size)?;
            poll.registry().register(&mut follower.socket, Token(index), Interest::READABLE)?;
            followers.push(follower);
        }
        let ingest = std::net::TcpStream::connect(contender.ingest)?;
        ingest.set_nodelay(true)?;
        ingest.set_nonblocking(true)?;
        let mut socket = TcpStream::from_std(ingest);
        poll.registry().register(&mut socket, Token(load.followers), Interest::WRITABLE)?;
        let mut drain = Self {
            poll,
            followers,
            publisher: Publisher { socket, batch, sent: 0, due: 0 },
            size: load.size as u64,
            window: load.window as u64,
            buffers: Buffers::default(),
        };
        drain.greet()?;
        Ok(drain)
    }

    /// Messages delivered since counting began, over all followers.
    pub(crate) fn delivered(&self) -> u64 {
        self.followers.iter().map(Follower::bytes).sum::<u64>() / self.size
    }

    /// Publishes and follows for as long as `span`.
    pub(crate) fn run(&mut self, span: Duration) -> Result<()> {
        let end = Instant::now() + span;
        let (mut slowest, mut progress) = (0, Instant::now());
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            let now = self.slowest();
            if now > slowest {
                (slowest, progress) = (now, Instant::now());
            } else if progress.elapsed() > STALL {
                return Err(format!("a follower got nothing for {STALL:?}, after {now} bytes").into());
            }
            self.publisher.due = (now / self.size + self.window) * self.size;
            self.publisher.push()?;
            self.turn(left)?;
        }
        Ok(())
    }

    /// Asks the oracle: whether everyone got everything that was published, and no more.
    pub(crate) fn finish(mut self) -> Result<()> {
        let begin = Instant::now();
        while self.slowest() < self.publisher.due && begin.elapsed() < STALL {
            self.publisher.push()?;
            self.turn(QUIET)?;
        }
        self.settle()?;
        match self.followers.iter().map(Follower::bytes).find(|bytes| *bytes != self.publisher.due) {
            None => Ok(()),
            Some(bytes) => {
                Err(format!("a follower got {bytes} of {} bytes published", self.publisher.due).into())
            }
        }
    }

    fn slowest(&self) -> u64 {
        self.followers.iter().map(Follower::bytes).min().unwrap_or(0)
    }

    /// A follower counts from the first message after its subscription. When that is in place only the server knows, so
    /// messages are published until all have got one, and then none until all have got the rest.
    fn greet(&mut self) -> Result<()> {
        let begin = Instant::now();
        // Whole batches, so that what counts begins with one.
        let batch = self.publisher.batch.len() as u64;
        while self.slowest() == 0 {
            if begin.elapsed() > STALL {
                return Err("not every follower is served".into());
            }
            self.publisher.due += batch;
            self.settle()?;
        }
        self.settle()?;
        self.followers.iter_mut().for_each(Follower::begin);
        (self.publisher.sent, self.publisher.due) = (0, 0);
        Ok(())
    }

    /// Follows until nothing has come for a while.
    fn settle(&mut self) -> Result<()> {
        let received = |drain: &Self| drain.followers.iter().map(Follower::bytes).sum::<u64>();
        let (mut before, mut changed) = (received(self), Instant::now());
        while let Some(left) = QUIET.checked_sub(changed.elapsed()) {
            self.publisher.push()?;
            self.turn(left)?;
            let now = received(self);
            if now != before || self.publisher.sent < self.publisher.due {
                (before, changed) = (now, Instant::now());
            }
        }
        Ok(())
    }

    fn turn(&mut self, timeout: Duration) -> Result<()> {
        let mut events = Events::with_capacity(1_024);
        match self.poll.poll(&mut events, Some(timeout)) {
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        for event in &events {
            match self.followers.get_mut(event.token().0) {
                None => self.publisher.push()?,
                Some(follower) => follower.drain(&mut self.buffers)?,
            }
        }
        Ok(())
    }
}

// === impl Publisher ===

impl Publisher {
    /// Hands the socket what is due, as far as it takes it.
    fn push(&mut self) -> Result<()> {
        while self.sent < self.due {
            let offset = usize::try_from(self.sent % self.batch.len() as u64)?;
            let due = usize::try_from(self.due - self.sent)?;
            let bytes = self.batch.get(offset..).unwrap_or_default();
            match self.socket.write(bytes.get(..due).unwrap_or(bytes)) {
                Ok(count) => self.sent += count as u64,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}
