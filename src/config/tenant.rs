//! What making identities and the demo run with.

use std::path::PathBuf;
use std::time::Duration;

use super::cli::{DemoArgs, IdentityNewArgs};
use super::faults::{Faults, Reader};
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
    mut read: Reader<'_>,
) -> Result<IdentityConfig, Faults> {
    let dir = read.required("dir", args.dir.as_ref(), "the directory to write to", new_directory);
    let config = dir.map(|dir| IdentityConfig { dir });
    read.finish(config)
}

pub(super) fn resolve_demo(args: &DemoArgs, mut read: Reader<'_>) -> Result<DemoConfig, Faults> {
    let range = duration(Duration::from_secs(1)..=DEMO_MAX);
    let duration = read.one("for", args.duration.as_ref(), range);
    let followers = read.one("followers", args.followers.as_ref(), number(0..=FOLLOWERS_MAX));
    let sdl = read.one("sdl", args.sdl.as_ref(), file);
    let verbose = read.switch("verbose", args.verbose.as_ref());
    let config = followers.map(|followers| DemoConfig { duration, followers, sdl, verbose });
    read.finish(config)
}
