//! Takes one sample: starts a contender, loads it, reads its CPU time and memory, and checks that no line was
//! lost.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::Result;
use crate::client::Client;
use crate::contender::Kind;
use crate::plan::Cell;

/// Shortest load before the measurement, so that buffers and caches are in their steady state.
const WARM_UP: Duration = Duration::from_millis(300);

/// Longest load before the measurement.
const WARM_UP_MAX: Duration = Duration::from_secs(3);

/// Load between two looks at the bytes that were read.
const WARM_UP_STEP: Duration = Duration::from_millis(100);

/// Unit of the sizes in `/proc/PID/status`.
const KIB: f64 = 1024.0;

/// The result of one measurement.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    /// CPU seconds of the server per delivered message.
    pub(crate) server: f64,
    /// CPU seconds of the client per delivered message. The client is the same for all contenders.
    pub(crate) client: f64,
    /// Bytes that the server sent per delivered message, with frames and TLS records.
    pub(crate) sent: f64,
    /// Delivered messages per second.
    pub(crate) rate: f64,
    /// Resident memory of the server at the end, in bytes.
    pub(crate) memory: f64,
    /// Median and 99th percentile of the seconds from publisher to follower.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// Resources of a process, as counted by the operating system.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// CPU time of all its threads, in seconds, to the nanosecond.
    pub(crate) cpu: f64,
    /// Resident memory in bytes.
    pub(crate) memory: f64,
}

/// Measures a new server under the load of `cell`; `None` if the contender is not installed.
#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(crate) fn sample(kind: Kind, cell: &Cell, span: Duration) -> Result<Option<Sample>> {
    let dir = tempfile::tempdir()?;
    let contender = kind.contender();
    let Some(server) = contender.start(cell, dir.path())? else { return Ok(None) };
    let mut client = Client::connect(&server, contender.as_ref(), cell, dir.path())?;
    warm_up(&mut client, cell, span)?;
    let read = |client: &Client| -> Result<_> {
        let cpu = (usage(server.id())?.cpu, usage(std::process::id())?.cpu);
        Ok((client.delivered(), cpu.0, cpu.1, client.wire_bytes()))
    };
    let before = read(&client)?;
    let begin = Instant::now();
    client.run(cell.flow(), span)?;
    let wall = begin.elapsed().as_secs_f64();
    let after = read(&client)?;
    let memory = usage(server.id())?.memory;
    let delays = client.delays();
    let quantile = |per_mille: usize| {
        let index = delays.len().saturating_sub(1) * per_mille / 1_000;
        f64::from(delays.get(index).copied().unwrap_or_default()) / 1e6
    };
    let (p50, p99) = (quantile(500), quantile(990));
    client.finish()?;
    let messages = (after.0 - before.0) as f64;
    Ok(Some(Sample {
        server: (after.1 - before.1) / messages,
        client: (after.2 - before.2) / messages,
        sent: (after.3 - before.3) as f64 / messages,
        rate: messages / wall,
        memory,
        p50,
        p99,
    }))
}

/// Loads the server until the followers have read enough bytes.
fn warm_up(client: &mut Client, cell: &Cell, span: Duration) -> Result<()> {
    let begin = Instant::now();
    client.run(cell.flow(), WARM_UP.min(span))?;
    while client.wire_bytes() < cell.warm_up_bytes() && begin.elapsed() < WARM_UP_MAX {
        client.run(cell.flow(), WARM_UP_STEP)?;
    }
    Ok(())
}

pub(crate) fn usage(process: u32) -> Result<Usage> {
    let mut cpu = Duration::ZERO;
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        // A thread that ends meanwhile no longer counts.
        let Ok(stat) = std::fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        cpu += Duration::from_nanos(stat.split(' ').next().unwrap_or_default().parse()?);
    }
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = resident.and_then(|rest| rest.split_whitespace().next()).unwrap_or_default();
    Ok(Usage { cpu: cpu.as_secs_f64(), memory: kibibytes.parse::<f64>()? * KIB })
}

// === impl Sample ===

impl Sample {
    /// CPU seconds of server and client per delivered message.
    pub(crate) fn total(&self) -> f64 {
        self.server + self.client
    }
}
