//! One sample: start a contender, load it, read its CPU time, and ask whether all was delivered.

use std::time::{Duration, Instant};

use crate::Result;
use crate::contender::{Contender, Kind};
use crate::drain::Drain;

/// Before measuring, so that buffers and caches are as they stay.
const WARM_UP: Duration = Duration::from_millis(300);

/// What a contender has to bear.
pub(crate) struct Load {
    pub(crate) followers: usize,
    /// Bytes of a message.
    pub(crate) size: usize,
    /// Messages outstanding at most.
    pub(crate) window: usize,
    /// How long the gateway lets lines wait for more.
    pub(crate) pace: Duration,
    /// How long to measure.
    pub(crate) span: Duration,
}

/// What it took, in seconds.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    server: f64,
    client: f64,
    wall: f64,
    /// Messages delivered, over all followers.
    messages: f64,
    /// Bytes of each.
    size: f64,
}

/// Puts `load` on a fresh contender.
#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(crate) fn sample(kind: Kind, load: &Load) -> Result<Sample> {
    let dir = tempfile::tempdir()?;
    let contender = Contender::start(kind, dir.path(), load)?;
    let mut drain = Drain::connect(&contender, kind, load, dir.path())?;
    drain.run(WARM_UP.min(load.span))?;
    let read = |drain: &Drain| -> Result<_> {
        Ok((drain.delivered(), cpu_seconds(contender.id())?, cpu_seconds(std::process::id())?))
    };
    let (delivered, server, client) = read(&drain)?;
    let begin = Instant::now();
    drain.run(load.span)?;
    let wall = begin.elapsed().as_secs_f64();
    let after = read(&drain)?;
    drain.finish()?;
    Ok(Sample {
        server: after.1 - server,
        client: after.2 - client,
        wall,
        messages: (after.0 - delivered) as f64,
        size: load.size as f64,
    })
}

/// CPU time of all threads that a process has now, to the nanosecond.
fn cpu_seconds(process: u32) -> Result<f64> {
    let mut total = Duration::ZERO;
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let stat = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        let nanoseconds = stat.split(' ').next().unwrap_or_default().parse()?;
        total += Duration::from_nanos(nanoseconds);
    }
    Ok(total.as_secs_f64())
}

// === impl Sample ===

impl Sample {
    /// Server seconds per delivered message.
    pub(crate) fn server(&self) -> f64 {
        self.server / self.messages
    }

    /// Server and client seconds per delivered message.
    pub(crate) fn total(&self) -> f64 {
        (self.server + self.client) / self.messages
    }

    /// Server seconds per delivered byte.
    pub(crate) fn server_per_byte(&self) -> f64 {
        self.server() / self.size
    }

    pub(crate) fn bytes_per_second(&self) -> f64 {
        self.messages * self.size / self.wall
    }
}
