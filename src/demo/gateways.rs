//! The gateways of a demo, and the NATS server of more than one.

use std::collections::BTreeMap;
use std::path::Path;

use futures_util::FutureExt as _;
use futures_util::future::{OptionFuture, join_all, select_all};
use http::Uri;

use super::DemoError;
use super::gateway::{Common, Gateway, Usage};
use super::nats::NatsServer;
use super::overview::OverviewReader;
use super::workdir::WorkDir;
use crate::config::DemoConfig;
use crate::model::id::LeaseId;

/// Number of the gateway that runs the services. The others read them.
pub(super) const FIRST: usize = 1;

/// The running gateways. Dropping it kills them.
#[derive(Debug)]
pub(super) struct Gateways<'a> {
    setup: Setup<'a>,
    /// By their numbers, which count from [`FIRST`].
    running: BTreeMap<usize, Gateway>,
    /// Used by gateways that were killed.
    killed: Usage,
    nats: Option<NatsServer>,
}

/// What the gateways are started with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup<'a> {
    pub(super) config: &'a DemoConfig,
    /// The program's file.
    pub(super) program: &'a Path,
    pub(super) dir: &'a WorkDir,
    pub(super) lease: &'a LeaseId,
    pub(super) sdl: &'a Path,
    /// The program of the NATS server, for more than one gateway.
    pub(super) nats: Option<&'a Path>,
}

// === impl Gateways ===

impl<'a> Gateways<'a> {
    /// Starts all, and waits until they are ready.
    pub(super) async fn start(setup: Setup<'a>) -> Result<Self, DemoError> {
        let verbose = setup.config.verbose;
        let nats = match setup.nats {
            Some(program) => {
                let dir = setup.dir.create_nats_dir().map_err(DemoError::WorkDir)?;
                Some(NatsServer::start(program, setup.program, &dir, verbose).await?)
            }
            None => None,
        };
        let mut gateways = Self { setup, running: BTreeMap::new(), killed: Usage::default(), nats };
        let arguments = gateways.common().with_services(setup.lease, setup.sdl);
        let first = Gateway::start(gateways.name(FIRST), setup.program, &arguments, verbose).await?;
        gateways.running.insert(FIRST, first);
        for number in FIRST + 1..=setup.config.gateways {
            let gateway = gateways.start_attached(number, "127.0.0.1:0").await?;
            gateways.running.insert(number, gateway);
        }
        Ok(gateways)
    }

    async fn start_attached(&self, number: usize, listen: &str) -> Result<Gateway, DemoError> {
        let arguments = self.common().attached(number, listen);
        let Setup { program, config, .. } = self.setup;
        Gateway::start(self.name(number), program, &arguments, config.verbose).await
    }

    fn common(&self) -> Common<'_> {
        let Setup { dir, config, .. } = self.setup;
        let nats = self.nats.as_ref().map(|server| server.url.as_str());
        Common { dir, followers: config.followers + config.gateways, nats }
    }

    fn name(&self, number: usize) -> String {
        if self.setup.nats.is_some() { format!("gateway {number}") } else { "the gateway".to_owned() }
    }

    /// Returns the running gateways, by their numbers.
    pub(super) fn running(&self) -> impl Iterator<Item = (usize, &Gateway)> {
        self.running.iter().map(|(number, gateway)| (*number, gateway))
    }

    /// Returns a reader of what the running gateways do, or only of those with these numbers.
    pub(super) fn overview_of(&self, wanted: impl Fn(usize) -> bool) -> OverviewReader {
        let admins = self.running().filter(|(number, _)| wanted(*number));
        OverviewReader::new(admins.map(|(number, gateway)| (number, gateway.admin.clone())).collect())
    }

    /// Returns the usage of all gateways so far; `None` if `/proc` has no data.
    pub(super) fn usage(&self) -> Option<Usage> {
        let mut sum = self.killed;
        for gateway in self.running.values() {
            let usage = gateway.usage()?;
            sum.cpu += usage.cpu;
            sum.peak_memory_bytes += usage.peak_memory_bytes;
        }
        Some(sum)
    }

    /// Waits until a process ends by itself, which is an error. Cancel safe.
    pub(super) async fn exited(&mut self) -> DemoError {
        let Self { running, nats, .. } = self;
        let nats = OptionFuture::from(nats.as_mut().map(NatsServer::ended));
        let gateways = running.values_mut().map(|gateway| Box::pin(gateway.exited()));
        tokio::select! {
            (error, ..) = select_all(gateways) => error,
            Some(error) = nats => error,
        }
    }

    /// Runs `work` unless a process ends by itself.
    pub(super) async fn while_running<T>(&mut self, work: impl Future<Output = T>) -> Result<T, DemoError> {
        tokio::select! {
            error = self.exited() => Err(error),
            done = work => Ok(done),
        }
    }

    /// Kills a gateway. Returns its address.
    pub(super) async fn kill(&mut self, number: usize) -> Option<Uri> {
        let gateway = self.running.remove(&number)?;
        // Memory is that of the running ones.
        self.killed.cpu += gateway.usage().unwrap_or_default().cpu;
        let address = gateway.address.clone();
        gateway.kill().await;
        Some(address)
    }

    /// Starts a killed gateway again, at the same address.
    pub(super) async fn restart(&mut self, number: usize, address: &Uri) -> Result<(), DemoError> {
        let listen = address.authority().map(ToString::to_string).unwrap_or_default();
        let gateway = self.start_attached(number, &listen).await?;
        self.running.insert(number, gateway);
        Ok(())
    }

    /// Stops all in order. Kills the gateways when `abort` completes.
    pub(super) async fn stop(self, abort: impl Future<Output = ()>) -> Result<(), DemoError> {
        let abort = abort.shared();
        let stop = self.running.into_values().map(|gateway| gateway.stop(abort.clone()));
        let stopped = join_all(stop).await;
        if let Some(nats) = self.nats {
            nats.stop().await;
        }
        stopped.into_iter().collect()
    }
}
