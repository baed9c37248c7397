//! The client: one thread that publishes and follows; the same for every contender.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use crate::Result;
use crate::contender::{Contender, Server};
use crate::plan::{Cell, Flow};

pub(crate) mod follower;
mod http2;
pub(crate) mod login;
pub(crate) mod protocol;
mod publisher;
pub(crate) mod received;
pub(crate) mod websocket;

use follower::{Buffers, Follower};
use login::Login;
use publisher::Publisher;
pub(crate) use received::LINE_MIN_BYTES;
use received::{Clock, Received};

/// Without a delivery for this long, the measurement fails.
const STALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Interval of lines until all followers are subscribed.
const GREETING_INTERVAL: Duration = Duration::from_millis(20);

/// Longest interval between publications at a fixed rate.
const TICK: Duration = Duration::from_micros(500);

/// The publisher's token. Followers have their index.
const PUBLISHER: Token = Token(usize::MAX);

pub(crate) struct Client {
    poll: Poll,
    events: Events,
    followers: Vec<Follower>,
    publisher: Publisher,
    clock: Clock,
    size: u64,
    /// Number of replicas that the lines are distributed among.
    replicas: u32,
    buffers: Buffers,
}

impl Client {
    /// Connects all followers and the publisher. Returns when each follower receives messages.
    pub(crate) fn connect(
        server: &Server,
        contender: &dyn Contender,
        cell: &Cell,
        dir: &Path,
    ) -> Result<Self> {
        let greeting = contender.greeting(&Login::load(cell.security, dir)?);
        Self::connect_distributed(server, contender, cell, dir, 1, |_| greeting.clone())
    }

    /// Like [`Client::connect`], with lines distributed among `replicas`. `greeting` returns the first bytes
    /// of a replica's follower.
    pub(crate) fn connect_distributed(
        server: &Server,
        contender: &dyn Contender,
        cell: &Cell,
        dir: &Path,
        replicas: u32,
        greeting: impl Fn(u32) -> Vec<u8>,
    ) -> Result<Self> {
        let (poll, clock) = (Poll::new()?, Clock::new());
        let login = Login::load(cell.security, dir)?;
        let mut publisher = Publisher::connect(server, contender, cell.size, clock)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut publisher.socket, PUBLISHER, interest)?;
        let (events, buffers) = (Events::with_capacity(1_024), Buffers::default());
        let (size, followers) = (cell.size, Vec::new());
        let mut client = Self { poll, events, followers, publisher, clock, size, replicas, buffers };
        for (index, replica) in (0..cell.followers).zip((0..replicas).cycle()) {
            let received = Received::new(cell.size, clock, replicas.into(), index == 0 && replicas == 1);
            let (protocol, greeting) = (contender.protocol(), greeting(replica));
            let mut follower = Follower::connect(server.followers, &login, &greeting, protocol, received)?;
            client.poll.registry().register(&mut follower.socket, Token(index), Interest::READABLE)?;
            client.followers.push(follower);
            // Answers pings, since many followers take long to connect.
            client.poll_once(Duration::ZERO)?;
        }
        client.await_subscriptions()?;
        Ok(client)
    }

    /// Connects a follower to another server that delivers the same lines. Returns when it receives messages.
    #[cfg_attr(not(feature = "nats"), allow(dead_code, reason = "only fleets have several servers"))]
    pub(crate) fn add_follower(
        &mut self,
        address: SocketAddr,
        contender: &dyn Contender,
        login: &Login,
    ) -> Result<()> {
        let received = Received::new(self.size, self.clock, self.replicas.into(), false);
        let greeting = contender.greeting(login);
        let mut follower = Follower::connect(address, login, &greeting, contender.protocol(), received)?;
        let token = Token(self.followers.len());
        self.poll.registry().register(&mut follower.socket, token, Interest::READABLE)?;
        self.followers.push(follower);
        self.await_subscriptions()
    }

    /// Returns how many messages all followers have received so far.
    pub(crate) fn delivered(&self) -> u64 {
        self.followers.iter().map(|follower| follower.received.bytes()).sum::<u64>() / self.size
    }

    /// Returns how many bytes all followers have read from their sockets.
    pub(crate) fn wire_bytes(&self) -> u64 {
        self.followers.iter().map(|follower| follower.wire_bytes).sum()
    }

    /// Publishes and follows for `span`.
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
            } else if progress.elapsed() > STALL_TIMEOUT {
                return Err(format!("a follower got nothing for {STALL_TIMEOUT:?}, after line {now}").into());
            }
            let (due, wait) = match flow {
                Flow::Window(messages) => (now + messages, left),
                Flow::Rate(rate) => (first + elapsed_times(elapsed, rate), left.min(TICK)),
            };
            self.publisher.push(due)?;
            self.poll_once(wait)?;
        }
    }

    /// Returns the delays of all sampled lines in microseconds, ascending.
    pub(crate) fn delays(&self) -> Vec<u32> {
        self.delays_from(0)
    }

    /// The same, without those of the first `skipped` followers.
    pub(crate) fn delays_from(&self, skipped: usize) -> Vec<u32> {
        let followers = self.followers.iter().skip(skipped);
        let all = followers.flat_map(|follower| follower.received.delays.iter().copied());
        let mut all: Vec<u32> = all.collect();
        all.sort_unstable();
        all
    }

    /// Checks that each follower received exactly the published lines.
    pub(crate) fn finish(mut self) -> Result<()> {
        let begin = Instant::now();
        while self.slowest() + u64::from(self.replicas) <= self.publisher.last
            && begin.elapsed() < STALL_TIMEOUT
        {
            self.publisher.push(0)?;
            self.poll_once(GREETING_INTERVAL)?;
        }
        // Any further line would be a repeat.
        self.poll_once(GREETING_INTERVAL)?;
        let last = self.publisher.last;
        Ok(self.followers.iter().try_for_each(|follower| follower.received.verdict(last))?)
    }

    /// Returns the last line that all followers have received.
    fn slowest(&self) -> u64 {
        let last = |follower: &Follower| follower.received.last().unwrap_or(0);
        self.followers.iter().map(last).min().unwrap_or(0)
    }

    /// Publishes lines until each follower has received one: only the server knows when a subscription is
    /// active.
    fn await_subscriptions(&mut self) -> Result<()> {
        let begin = Instant::now();
        while self.slowest() == 0 {
            if begin.elapsed() > STALL_TIMEOUT {
                return Err("not every follower receives lines".into());
            }
            let due = self.publisher.last + u64::from(self.replicas);
            self.publisher.push(due)?;
            let until = Instant::now() + GREETING_INTERVAL;
            while let Some(left) = until.checked_duration_since(Instant::now()) {
                self.poll_once(left)?;
            }
        }
        Ok(())
    }

    fn poll_once(&mut self, timeout: Duration) -> Result<()> {
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
