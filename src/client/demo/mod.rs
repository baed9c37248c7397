//! `leasemux demo`: the main job on one machine, for real, checked, and thrown away.
//!
//! A gateway is started as a process of its own, exactly as an operator would, with a sample lease and one trusted tenant.
//! As that tenant, over mutual TLS, one follower prints the lease's logs and any number of others count and check them. At
//! the end nothing is left: the followers go first, then the gateway is told to stop and takes its services with it. Should
//! this process be killed, the gateway sees its lifeline (standard input) end, and stops as well.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::crowd::Crowd;
use self::gateway::Gateway;
use self::place::Place;
use self::summary::Summary;
use super::connect::{ConnectError, Connector};
use super::exit::Exit;
use super::follow::FollowError;
use super::logs::wire_lease;
use super::print::{Look, Printer};
use crate::config::{DemoConfig, Output, ServerTrust, Target};
use crate::model::id::{Address, IdError, LeaseId, Owner};
use crate::model::proto::lease::ServiceLogsRequest;

mod crowd;
mod files;
mod gateway;
mod place;
mod summary;

/// The account hash of the demo's provider: any account that is not the tenant.
const PROVIDER: [u8; 20] = *b"leasemux demonstrate";

/// What a demo is made of.
#[derive(Debug)]
pub struct Parts<'a> {
    /// This program.
    pub program: PathBuf,
    /// The sample SDL.
    pub sample: &'a str,
    /// Makes a tenant's identity in a directory, as `identity new` does.
    pub new_identity: fn(&Path) -> Result<Owner, String>,
}

/// Why a demo could not be shown.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("cannot make a place for it: {0}")]
    Place(#[source] io::Error),
    #[error("cannot make an identity: {0}")]
    Identity(String),
    #[error("cannot make a lease id: {0}")]
    Lease(#[from] IdError),
    #[error(
        "{followers} followers need {needed} open files, and this user may have {allowed}: raise it (ulimit -Hn) or take fewer"
    )]
    OpenFiles {
        followers: usize,
        needed: u64,
        allowed: u64,
    },
    #[error("cannot start the gateway: {0}")]
    Start(#[source] io::Error),
    #[error("the gateway {what}; its log ends so:\n{log}")]
    Gateway { what: String, log: String },
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the follower ended: {0}")]
    Follower(#[from] FollowError),
    #[error("the follower ended before its time")]
    EndedEarly,
    #[error("cannot hear signals: {0}")]
    Signals(#[source] io::Error),
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
}

/// What a person may use to end the demo.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

/// Shows the demo; log lines and the summary go to standard output, everything else to standard error.
pub async fn run(config: &DemoConfig, parts: &Parts<'_>) -> Exit {
    let outcome = show(config, parts).await;
    let told = match &outcome {
        Ok(summary) => write!(io::stdout(), "{summary}"),
        // `… | head` has what it wanted.
        Err(DemoError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Exit::Done,
        Err(error) => writeln!(io::stderr(), "leasemux: {error}"),
    };
    match outcome {
        Ok(summary) if summary.holds() && told.is_ok() => Exit::Done,
        _ => Exit::Failed,
    }
}

async fn show(config: &DemoConfig, parts: &Parts<'_>) -> Result<Summary, DemoError> {
    let mut signals = Signals::hear().map_err(DemoError::Signals)?;
    files::allow(config.followers)?;
    let place = Place::make().map_err(DemoError::Place)?;
    let owner = (parts.new_identity)(&place.identity()).map_err(DemoError::Identity)?;
    place.trust(&owner).map_err(DemoError::Place)?;
    let sdl = match &config.sdl {
        Some(path) => path.clone(),
        None => place.write_sdl(parts.sample).map_err(DemoError::Place)?,
    };
    let provider = Address::from_account(PROVIDER);
    let lease = LeaseId::new(owner.as_str(), 1, 1, 1, provider.as_str())?;
    let arguments = gateway::arguments(&lease, &sdl, &place, config.followers);
    let mut gateway = tokio::select! {
        gateway = Gateway::start(&parts.program, &arguments, config.verbose) => gateway?,
        () = signals.any() => return Ok(Summary::default()),
    };
    let shown = follow(config, &mut gateway, &place, &lease, &mut signals).await;
    // Whatever happened, the gateway is stopped in order; a second signal ends it at once.
    let stopped = gateway.stop(signals.any()).await;
    let summary = shown?;
    stopped?;
    Ok(summary)
}

async fn follow(
    config: &DemoConfig,
    gateway: &mut Gateway,
    place: &Place,
    lease: &LeaseId,
    signals: &mut Signals,
) -> Result<Summary, DemoError> {
    let target = Target {
        gateway: gateway.address().clone(),
        identity: Some(place.identity()),
        trust: ServerTrust::File(place.server_certificate()),
    };
    let connector = Connector::new(&target)?;
    let request = ServiceLogsRequest {
        lease_id: Some(wire_lease(lease)),
        follow: true,
        ..Default::default()
    };
    let mut printer = Printer::new(io::stdout(), io::stderr(), Look::of_process(Output::Text, false));
    printer.say(&introduction(gateway, place, lease))?;
    let before = gateway.usage();
    let stop = CancellationToken::new();
    let mut crowd = Crowd::start(&connector, &request, config.followers, printer, &stop);
    let ended = tokio::select! {
        () = signals.any() => Ok(false),
        () = after(config.duration) => Ok(true),
        gone = gateway.gone() => Err(gone),
        early = crowd.printing_ended() => Err(early),
    };
    let usage = gateway.usage();
    stop.cancel();
    let outcomes = crowd.outcomes().await;
    Ok(Summary::of(ended?, outcomes, before, usage))
}

/// What is there, and how to look at it by hand.
fn introduction(gateway: &Gateway, place: &Place, lease: &LeaseId) -> String {
    format!(
        "a gateway runs at {}, its metrics at {}metrics; to follow it from another terminal:\n  \
         leasemux logs {lease} \\\n    --follow --gateway {} --identity {} --ca {}",
        gateway.address(),
        gateway.admin(),
        gateway.address(),
        place.identity().display(),
        place.server_certificate().display()
    )
}

async fn after(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

// === impl Signals ===

impl Signals {
    fn hear() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
