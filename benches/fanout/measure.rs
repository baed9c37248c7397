//! One sample: start a contender, load it, and read its CPU time.

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
    /// How long to measure.
    pub(crate) span: Duration,
}

/// What it took.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    server: f64,
    client: f64,
    seconds: f64,
    messages: f64,
    bytes: f64,
}

pub(crate) fn sample(kind: Kind, load: &Load) -> Result<Sample> {
    let dir = tempfile::tempdir()?;
    let contender = Contender::start(kind, dir.path(), load.size)?;
    let mut drain = Drain::connect(&contender, kind, load, dir.path())?;
    drain.run(WARM_UP.min(load.span))?;
    let (delivered, server, client) =
        (drain.delivered, cpu_seconds(contender.id())?, cpu_seconds(std::process::id())?);
    let begin = Instant::now();
    drain.run(load.span)?;
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let messages = (drain.delivered - delivered) as f64;
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let size = load.size as f64;
    Ok(Sample {
        server: cpu_seconds(contender.id())? - server,
        client: cpu_seconds(std::process::id())? - client,
        seconds: begin.elapsed().as_secs_f64(),
        messages,
        bytes: messages * size,
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

impl Sample {
    /// Server seconds per delivered message.
    pub(crate) fn server(&self) -> f64 {
        self.server / self.messages
    }

    /// Server and client seconds per delivered message.
    pub(crate) fn total(&self) -> f64 {
        (self.server + self.client) / self.messages
    }

    pub(crate) fn server_per_byte(&self) -> f64 {
        self.server / self.bytes
    }

    pub(crate) fn bytes_per_second(&self) -> f64 {
        self.bytes / self.seconds
    }
}
