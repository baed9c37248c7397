//! What making and importing identities and the demo run with.

use std::path::PathBuf;
use std::time::Duration;

use super::cli::{DemoArgs, IdentityImportArgs, IdentityNewArgs};
use super::faults::{ConfigErrors, Resolver};
use super::value::{duration, file, new_directory, number};

/// Most followers of a demo: what one machine has ports and files for.
const FOLLOWERS_MAX: usize = 20_000;

/// Longest demo.
const DEMO_MAX: Duration = Duration::from_secs(24 * 3600);

/// What `identity new` makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityConfig {
    /// Where it goes.
    pub dir: PathBuf,
}

/// What `identity import` writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportConfig {
    /// Where it goes.
    pub dir: PathBuf,
    /// Where the mnemonic is.
    pub mnemonic: MnemonicSource,
    /// The file with a certificate and its key; `None` = make them.
    pub certificate: Option<PathBuf>,
}

/// Where a mnemonic is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MnemonicSource {
    /// From the user, on the terminal.
    Terminal,
    /// From standard input.
    Input,
    /// From this file.
    File(PathBuf),
}

/// What `demo` shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemoConfig {
    /// For how long; `None` = until Ctrl-C.
    pub duration: Option<Duration>,
    /// Followers beyond the one that prints.
    pub followers: usize,
    /// Services other than the sample.
    pub sdl: Option<PathBuf>,
    /// Whether to show the gateway's log.
    pub verbose: bool,
}

pub(super) fn resolve_identity(
    args: &IdentityNewArgs,
    mut read: Resolver<'_>,
) -> Result<IdentityConfig, ConfigErrors> {
    let dir = read.required("dir", args.dir.as_ref(), "the directory to write to", new_directory);
    let config = dir.map(|dir| IdentityConfig { dir });
    read.finish(config)
}

pub(super) fn resolve_import(
    args: &IdentityImportArgs,
    mut read: Resolver<'_>,
) -> Result<ImportConfig, ConfigErrors> {
    let dir = read.required("dir", args.dir.as_ref(), "the directory to write to", new_directory);
    let mnemonic = read.one("mnemonic_file", args.mnemonic_file.as_ref(), |text| match text {
        "-" => Ok(MnemonicSource::Input),
        path => file(path).map(MnemonicSource::File),
    });
    let mnemonic = mnemonic.unwrap_or(MnemonicSource::Terminal);
    let certificate = read.one("cert", args.cert.as_ref(), file);
    let config = dir.map(|dir| ImportConfig { dir, mnemonic, certificate });
    read.finish(config)
}

pub(super) fn resolve_demo(args: &DemoArgs, mut read: Resolver<'_>) -> Result<DemoConfig, ConfigErrors> {
    let range = duration(Duration::from_secs(1)..=DEMO_MAX);
    let duration = read.one("for", args.duration.as_ref(), range);
    let followers = read.one("followers", args.followers.as_ref(), number(0..=FOLLOWERS_MAX));
    let sdl = read.one("sdl", args.sdl.as_ref(), file);
    let verbose = read.switch("verbose", args.verbose.as_ref());
    let config = followers.map(|followers| DemoConfig { duration, followers, sdl, verbose });
    read.finish(config)
}
