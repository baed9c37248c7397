//! The client: one thread that publishes and follows, the same for every contender.

use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use crate::Result;
use crate::contender::{Contender, Server};
use crate::plan::{Cell, Flow};

pub(crate) mod dialect;
mod follower;
mod http2;
pub(crate) mod login;
mod publisher;
mod received;

use follower::{Buffers, Follower};
use login::Login;
use publisher::Publisher;
pub(crate) use received::LINE_MIN_BYTES;
use received::{Clock, Received};

/// Nothing delivered for this long is a fault.
const STALL: Duration = Duration::from_secs(20);

/// Until all are served, a line is published so often.
const GREETING: Duration = Duration::from_millis(20);

/// Lines of an open loop are published so often at least.
const TICK: Duration = Duration::from_micros(500);

pub(crate) struct Client {
    poll: Poll,
    events: Events,
    followers: Vec<Follower>,
    publisher: Publisher,
    size: u64,
    /// Among so many replicas the lines are dealt out.
    replicas: u32,
    buffers: Buffers,
}

impl Client {
    /// Follows `server` with all followers, and returns when each of them gets messages.
    pub(crate) fn connect(
        server: &Server,
        contender: &dyn Contender,
        cell: &Cell,
        dir: &Path,
    ) -> Result<Self> {
        let greeting = contender.greeting(&Login::load(cell.security, dir)?);
        Self::connect_dealt(server, contender, cell, dir, 1, |_| greeting.clone())
    }

    /// The same where lines are dealt out among `replicas`; follower by follower with its own `greeting`.
    pub(crate) fn connect_dealt(
        server: &Server,
        contender: &dyn Contender,
        cell: &Cell,
        dir: &Path,
        replicas: u32,
        greeting: impl Fn(u32) -> Vec<u8>,
    ) -> Result<Self> {
        let (poll, clock) = (Poll::new()?, Clock::new());
        let login = Login::load(cell.security, dir)?;
        let mut followers = Vec::new();
        for (index, replica) in (0..cell.followers).zip((0..replicas).cycle()) {
            let received = Received::new(cell.size, clock, replicas.into(), index == 0 && replicas == 1);
            let (dialect, greeting) = (contender.dialect(), greeting(replica));
            let mut follower = Follower::connect(server.followers, &login, &greeting, dialect, received)?;
            poll.registry().register(&mut follower.socket, Token(index), Interest::READABLE)?;
            followers.push(follower);
        }
        let mut publisher = Publisher::connect(server, contender, cell.size, clock)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut publisher.socket, Token(cell.followers), interest)?;
        let (events, buffers) = (Events::with_capacity(1_024), Buffers::default());
        let mut client = Self { poll, events, followers, publisher, size: cell.size, replicas, buffers };
        client.greet()?;
        Ok(client)
    }

    /// Messages delivered so far, over all followers.
    pub(crate) fn delivered(&self) -> u64 {
        self.followers.iter().map(|follower| follower.received.bytes()).sum::<u64>() / self.size
    }

    /// Publishes and follows for as long as `span`.
    pub(crate) fn run(&mut self, flow: Flow, span: Duration) -> Result<()> {
        self.followers.iter_mut().for_each(|follower| follower.received.begin());
        let (begin, first) = (Instant::now(), self.publisher.last);
        let (mut slowest, mut progress) = (0, begin);
        loop {
            let elapsed = begin.elapsed();
            let Some(left) = span.checked_sub(elapsed) else { return Ok(()) };
            let now = self.slowest();
            if now > slowest {
                (slowest, progress) = (now, Instant::now());
            } else if progress.elapsed() > STALL {
                return Err(format!("a follower got nothing for {STALL:?}, after line {now}").into());
            }
            let (due, wait) = match flow {
                Flow::Window(messages) => (now + messages, left),
                Flow::Rate(rate) => (first + elapsed_times(elapsed, rate), left.min(TICK)),
            };
            self.publisher.push(due)?;
            self.turn(wait)?;
        }
    }

    /// Delays of the lines that were looked at, in microseconds, ascending.
    pub(crate) fn delays(&self) -> Vec<u32> {
        let all = self.followers.iter().flat_map(|follower| follower.received.delays.iter().copied());
        let mut all: Vec<u32> = all.collect();
        all.sort_unstable();
        all
    }

    /// Asks the oracle: whether everyone got everything that was published, and no more.
    pub(crate) fn finish(mut self) -> Result<()> {
        let begin = Instant::now();
        while self.slowest() + u64::from(self.replicas) <= self.publisher.last && begin.elapsed() < STALL {
            self.publisher.push(0)?;
            self.turn(GREETING)?;
        }
        // What comes now would be too much.
        self.turn(GREETING)?;
        let last = self.publisher.last;
        Ok(self.followers.iter().try_for_each(|follower| follower.received.verdict(last))?)
    }

    /// The last line that everyone has got.
    fn slowest(&self) -> u64 {
        let last = |follower: &Follower| follower.received.last().unwrap_or(0);
        self.followers.iter().map(last).min().unwrap_or(0)
    }

    /// A follower counts from the first line after its subscription. When that is in place only the server knows, so lines are
    /// published until all have got one.
    fn greet(&mut self) -> Result<()> {
        let begin = Instant::now();
        while self.slowest() == 0 {
            if begin.elapsed() > STALL {
                return Err("not every follower is served".into());
            }
            let due = self.publisher.last + u64::from(self.replicas);
            self.publisher.push(due)?;
            let until = Instant::now() + GREETING;
            while let Some(left) = until.checked_duration_since(Instant::now()) {
                self.turn(left)?;
            }
        }
        Ok(())
    }

    fn turn(&mut self, timeout: Duration) -> Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        for event in &self.events {
            match self.followers.get_mut(event.token().0) {
                None => self.publisher.pull()?,
                Some(follower) => follower.drain(&mut self.buffers)?,
            }
        }
        Ok(())
    }
}

fn elapsed_times(elapsed: Duration, rate: u64) -> u64 {
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).saturating_mul(rate) / 1_000_000
}
