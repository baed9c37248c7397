//! CPU per frame of publisher, server and members, and delays at the members.

use std::path::{Path, PathBuf};
use std::time::Duration;

use leasemux::access::identity::IdentityFiles;
use leasemux::model::time::LogTime;
use leasemux::platform::cri::path::LogName;

use super::probe::{Kind as ProbeKind, Load, Running};
use super::{NatsServer, median, metric, print_goal, until};
use crate::Result;
use crate::client::Client;
use crate::client::login::Login;
use crate::contender::{Kind, Server};
use crate::measure::usage;
use crate::plan::{Cell, Flow, Regime, Security};
use crate::server::TENANT_DIR;

/// Duration of each measurement: some hundred frames of lone lines.
const SPAN: Duration = Duration::from_secs(3);

/// Load before each measurement.
const WARM_UP: Duration = Duration::from_secs(1);

/// Numbers of members that are measured.
const MEMBERS: [usize; 2] = [1, 3];

/// Followers of a single gateway. Their difference gives the cost of one.
const FOLLOWERS: [usize; 2] = [1, 11];

/// Upper bound on the CPU of a publisher with one follower, divided by that of a single gateway with one
/// follower and of publishing a frame by the client library alone.
const PUBLISHER_GOAL: f64 = 1.3;

/// Upper bound on the CPU of a member with one follower, divided by that of a single gateway with one
/// follower.
const MEMBER_GOAL: f64 = 2.0;

/// Upper bound on the p99 delay of paced lines at the members: three paces and 5 ms.
const DELAY_GOAL_MILLIS: f64 = 20.0;

const MICROS: f64 = 1e6;

/// Lines at a fixed rate.
struct Lines {
    name: &'static str,
    regime: Regime,
    size: u64,
    per_second: u64,
}

const LINES: [Lines; 3] = [
    // Each is a frame of its own: the largest.
    Lines { name: "lines of 16,000 B", regime: Regime::Paced, size: 16_000, per_second: 500 },
    // The gateway joins the lines of 5 ms to a frame.
    Lines { name: "paced lines of 100 B", regime: Regime::Paced, size: 100, per_second: 1_000 },
    // Without a pace: each is a frame of its own.
    Lines { name: "lone lines of 100 B", regime: Regime::Lone, size: 100, per_second: 500 },
];

/// CPU seconds per frame, and delays, of one repetition.
#[derive(Default)]
struct Sample {
    /// A single gateway, for each of [`FOLLOWERS`]; per publication, which a fleet makes a frame.
    alone: [f64; FOLLOWERS.len()],
    fleets: [FleetSample; MEMBERS.len()],
    /// The client library alone: publisher, server and subscriber.
    library: [f64; 3],
    /// Bare sockets: sender and receiver.
    sockets: [f64; 2],
}

/// A fleet with one follower at each gateway.
#[derive(Clone, Copy, Default)]
struct FleetSample {
    publisher: f64,
    server: f64,
    /// The mean of all members.
    member: f64,
    frames_per_second: f64,
    frame_bytes: f64,
    /// 99th percentile of the delays at the members, in seconds.
    p99: f64,
}

pub(super) fn run(program: &Path, reps: usize) -> Result<()> {
    println!("CPU per frame in us, medians of {reps} repetitions of {} s", SPAN.as_secs());
    for lines in &LINES {
        let samples: Vec<Sample> = (0..reps)
            .map(|_| sample(program, lines))
            .collect::<Result<_>>()
            .map_err(|e| format!("{}: {e}", lines.name))?;
        print(lines, &samples);
    }
    Ok(())
}

fn sample(program: &Path, lines: &Lines) -> Result<Sample> {
    let mut sample = Sample::default();
    for (fleet, members) in sample.fleets.iter_mut().zip(MEMBERS) {
        *fleet = measure_fleet(program, lines, members)?;
    }
    let frames_per_second = sample.fleets[0].frames_per_second;
    for (alone, followers) in sample.alone.iter_mut().zip(FOLLOWERS) {
        *alone = measure_alone(lines, followers)? / frames_per_second;
    }
    let load = lines.load(&sample.fleets[0]);
    sample.library = measure_library(program, &load)?;
    sample.sockets = measure_sockets(&load)?;
    Ok(sample)
}

/// Returns the CPU seconds per second of a gateway without a fleet.
fn measure_alone(lines: &Lines, followers: usize) -> Result<f64> {
    let dir = tempfile::tempdir()?;
    let cell = lines.cell(followers);
    let log = create_log(dir.path())?;
    let writer = Running::start_writer(&log)?;
    let mut server = Server::start_own(Kind::Gateway, &[lines.pace(), logs_flag(&log)], dir.path())?;
    server.ingest = writer.address;
    let mut client = Client::connect(&server, Kind::Gateway.contender().as_ref(), &cell, dir.path())?;
    client.run(lines.flow(), WARM_UP)?;
    let before = usage(server.id())?.cpu;
    client.run(lines.flow(), SPAN)?;
    let used = usage(server.id())?.cpu - before;
    client.finish()?;
    Ok(used / SPAN.as_secs_f64())
}

fn measure_fleet(program: &Path, lines: &Lines, members: usize) -> Result<FleetSample> {
    let dir = tempfile::tempdir()?;
    IdentityFiles::create(&dir.path().join(TENANT_DIR), LogTime::now())?;
    let nats = NatsServer::start(program, dir.path())?;
    let log = create_log(dir.path())?;
    let writer = Running::start_writer(&log)?;
    let arguments = [lines.pace(), logs_flag(&log), format!("--nats={}", nats.url())];
    let start = || Server::start_own_of_tenant(Kind::Gateway, &arguments, dir.path());
    let contender = Kind::Gateway.contender();
    let mut publisher = start()?;
    publisher.ingest = writer.address;
    let publisher_port = admin_port(&publisher)?;
    until("the bus can be used", || Ok(metric(publisher_port, "leasemux_fleet_bus_usable")? >= 1.0))?;
    let mut client = Client::connect(&publisher, contender.as_ref(), &lines.cell(1), dir.path())?;
    // Otherwise a member may be elected.
    until("the first gateway publishes", || {
        Ok(metric(publisher_port, "leasemux_fleet_replicas{role=\"publisher\"}")? >= 1.0)
    })?;
    let login = Login::load(Security::Tls, dir.path())?;
    let mut others = Vec::new();
    for _ in 0..members {
        let member = start()?;
        let port = admin_port(&member)?;
        until("the member joins the fleet", || Ok(metric(port, "leasemux_fleet_gateways")? >= 2.0))?;
        client.add_follower(member.followers, contender.as_ref(), &login)?;
        others.push(member);
    }
    client.run(lines.flow(), WARM_UP)?;
    let out =
        |name: &str| metric(publisher_port, &format!("leasemux_fleet_{name}_total{{direction=\"out\"}}"));
    let read = || -> Result<_> {
        let others = others.iter().map(|member| Ok(usage(member.id())?.cpu)).sum::<Result<f64>>()?;
        let cpu = [usage(publisher.id())?.cpu, usage(nats.id()?)?.cpu, others];
        Ok((cpu, out("frames")?, out("bytes")?))
    };
    let (cpu, frames, bytes) = read()?;
    client.run(lines.flow(), SPAN)?;
    let (cpu_after, frames_after, bytes_after) = read()?;
    let delays = client.delays_from(1);
    for (port, role) in
        others.iter().map(|member| (admin_port(member), "member")).chain([(Ok(publisher_port), "publisher")])
    {
        if metric(port?, &format!("leasemux_fleet_replicas{{role=\"{role}\"}}"))? < 1.0 {
            return Err(format!("a gateway was no {role}").into());
        }
    }
    client.finish()?;
    let frames = frames_after - frames;
    let [publisher, server, others] = [0, 1, 2].map(|index: usize| (cpu_after[index] - cpu[index]) / frames);
    let p99 = delays.get(delays.len().saturating_sub(1) * 99 / 100).copied().unwrap_or_default();
    #[allow(clippy::cast_precision_loss, reason = "a few")]
    let member = others / members as f64;
    Ok(FleetSample {
        publisher,
        server,
        member,
        frames_per_second: frames / SPAN.as_secs_f64(),
        frame_bytes: (bytes_after - bytes) / frames,
        p99: f64::from(p99) / MICROS,
    })
}

/// Creates the log that all gateways read.
fn create_log(dir: &Path) -> Result<PathBuf> {
    let logs = dir.join("logs");
    std::fs::create_dir(&logs)?;
    let path = logs.join(LogName::active(0).to_string());
    std::fs::write(&path, "")?;
    Ok(path)
}

fn logs_flag(log: &Path) -> String {
    format!("--logs={}", log.parent().unwrap_or(log).display())
}

fn admin_port(server: &Server) -> Result<std::net::SocketAddr> {
    Ok(server.admin.ok_or("the gateway has no admin port")?)
}

/// Measures publisher, server and subscriber.
fn measure_library(program: &Path, load: &Load) -> Result<[f64; 3]> {
    let dir = tempfile::tempdir()?;
    let nats = NatsServer::start(program, dir.path())?;
    let before = usage(nats.id()?)?.cpu;
    let subscriber = Running::start(ProbeKind::NatsSubscribe, nats.address, load)?;
    let publisher = Running::start(ProbeKind::NatsPublish, nats.address, load)?;
    let (publisher, subscriber) = (publisher.end()?, subscriber.end()?);
    let server = (usage(nats.id()?)?.cpu - before) / f64::from(load.count * load.burst);
    Ok([publisher, server, subscriber])
}

/// Measures sender and receiver.
fn measure_sockets(load: &Load) -> Result<[f64; 2]> {
    let receiver = Running::start(ProbeKind::SocketReceive, ([127, 0, 0, 1], 0).into(), load)?;
    let sender = Running::start(ProbeKind::SocketSend, receiver.address, load)?;
    Ok([sender.end()?, receiver.end()?])
}

fn print(lines: &Lines, samples: &[Sample]) {
    let of = |figure: &dyn Fn(&Sample) -> f64| median(&samples.iter().map(figure).collect::<Vec<_>>());
    let micros = |figure: &dyn Fn(&Sample) -> f64| of(figure) * MICROS;
    println!(
        "{}, {} per second: {:.0} frames of {:.0} B per second",
        lines.name,
        lines.per_second,
        of(&|sample| sample.fleets[0].frames_per_second),
        of(&|sample| sample.fleets[0].frame_bytes),
    );
    let follower = |sample: &Sample| (sample.alone[1] - sample.alone[0]) / 10.0;
    println!("  {:38}{:8.1}", "one follower more", micros(&follower));
    println!("  {:38}{:8.1}", "gateway alone, 1 follower", micros(&|sample| sample.alone[0]));
    for (index, name) in ["publisher", "server", "subscriber"].into_iter().enumerate() {
        println!(
            "  {:38}{:8.1}",
            format!("async-nats alone: {name}"),
            micros(&|sample| sample.library[index])
        );
    }
    for (index, name) in ["sender", "receiver"].into_iter().enumerate() {
        println!("  {:38}{:8.1}", format!("sockets: {name}"), micros(&|sample| sample.sockets[index]));
    }
    for (index, members) in MEMBERS.into_iter().enumerate() {
        println!("  {members} member{}", if members == 1 { "" } else { "s" });
        let fleet = |sample: &Sample| sample.fleets[index];
        let published = |sample: &Sample| fleet(sample).publisher - sample.alone[0];
        let received = |sample: &Sample| fleet(sample).member - follower(sample);
        println!("    {:36}{:8.1}", "publisher, 1 follower", micros(&|sample| fleet(sample).publisher));
        println!("    {:36}{:8.1}", "  of it for the fleet", micros(&published));
        println!("    {:36}{:8.1}", "server", micros(&|sample| fleet(sample).server));
        println!("    {:36}{:8.1}", "each member, 1 follower", micros(&|sample| fleet(sample).member));
        println!("    {:36}{:8.1}", "  of it without the follower", micros(&received));
        println!("    {:36}{:8.2}", "p99 delay at members, ms", of(&|sample| fleet(sample).p99) * 1e3);
        let times = of(&|sample| fleet(sample).publisher / (sample.alone[0] + sample.library[0]));
        print_goal("publisher, over a gateway alone and async-nats' publisher", times, PUBLISHER_GOAL, "x");
        let times = of(&|sample| fleet(sample).member / sample.alone[0]);
        print_goal("member, over a gateway alone", times, MEMBER_GOAL, "x");
        if lines.regime == Regime::Paced {
            let delay = of(&|sample| fleet(sample).p99) * 1e3;
            print_goal("p99 delay at members", delay, DELAY_GOAL_MILLIS, "ms");
        }
    }
}

// === impl Lines ===

impl Lines {
    fn cell(&self, followers: usize) -> Cell {
        Cell { regime: self.regime, size: self.size, followers, security: Security::Tls }
    }

    fn flow(&self) -> Flow {
        Flow::Rate(self.per_second)
    }

    fn pace(&self) -> String {
        format!("--pace={}", self.cell(1).pace().as_millis())
    }

    /// Returns the same frames for processes without a gateway. Those of one pace come at once.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small positive numbers")]
    fn load(&self, fleet: &FleetSample) -> Load {
        let pace = self.cell(1).pace().as_secs_f64();
        let burst = (fleet.frames_per_second * pace).round().max(1.0);
        let interval = Duration::from_secs_f64(burst / fleet.frames_per_second);
        // The first half is not measured.
        let count = (2.0 * SPAN.as_secs_f64() / interval.as_secs_f64()).round();
        Load { bytes: fleet.frame_bytes.round() as usize, burst: burst as u32, interval, count: count as u32 }
    }
}
