//! Settings of `identity` and `demo`.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::resolver::Resolver;
use super::value::{file, new_directory};
use crate::model::parse::{duration, number};

/// Maximum number of followers of a demo, which one machine has ports and files for.
const FOLLOWERS_MAX: usize = 20_000;

/// Durations of a demo.
const DEMO: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

const NEW_EXAMPLES: &str = include_str!("help/identity-new.txt").trim_ascii_end();

const IMPORT_EXAMPLES: &str = include_str!("help/identity-import.txt").trim_ascii_end();

const DEMO_EXAMPLES: &str = include_str!("help/demo.txt").trim_ascii_end();

/// Create an account, a key and a certificate, in the formats of Akash's own tools
///
/// Writes cert.pem and key.pem for mutual TLS, mnemonic for signing tokens (24 words of BIP-39, path
/// m/44'/118'/0'/0/0), address, and account.pub for a gateway's trust directory. Only you can read key.pem
/// and mnemonic: the mnemonic gives full control of the account. Existing files are not overwritten.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(override_usage = "leasemux identity new --dir <DIR>", after_help = NEW_EXAMPLES)]
pub struct IdentityConfig {
    /// Directory to write to; created if it does not exist
    #[arg(long, value_name = "DIR", required = false, value_parser = new_directory)]
    pub dir: PathBuf,
}

/// Use an existing account, by its mnemonic and, if there is one, its Akash certificate
///
/// Writes the same files as 'identity new', with the same permissions. The mnemonic has 12, 15, 18, 21 or 24
/// English words of BIP-39, without a passphrase; the account is that of m/44'/118'/0'/0/0, as in Akash's own
/// tools. It is read from the terminal without echo, or from a file. It is never an argument, because other
/// users can see those.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(override_usage = "leasemux identity import --dir <DIR> [--mnemonic-file <FILE|->] [--cert <FILE>]", after_help = IMPORT_EXAMPLES)]
pub struct ImportConfig {
    /// Directory to write to; created if it does not exist
    #[arg(long, value_name = "DIR", required = false, value_parser = new_directory)]
    pub dir: PathBuf,
    /// Read the mnemonic from this file, or from standard input (-), instead of asking for it
    #[arg(long = "mnemonic-file", value_name = "FILE", value_parser = mnemonic)]
    pub mnemonic: Option<MnemonicSource>,
    /// PEM file with the account's certificate and key, as Akash's tools write it; default: create them
    #[arg(long = "cert", value_name = "FILE", value_parser = file)]
    pub certificate: Option<PathBuf>,
}

/// Where a mnemonic is read from, if not from the terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MnemonicSource {
    /// Standard input.
    Input,
    /// This file.
    File(PathBuf),
}

/// Run a gateway with sample services, and follow their logs
///
/// Processes and connections are real (gRPC over mutual TLS), and removed at the end. The exit code is 1 if a
/// follower misses a line that was not reported as lost, or receives one twice.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(after_help = DEMO_EXAMPLES)]
pub struct DemoConfig {
    /// Duration; default: until Ctrl-C
    #[arg(long = "for", value_name = "TIME", value_parser = duration(DEMO))]
    pub(crate) duration: Option<Duration>,
    /// Number of additional followers, which count and check
    #[arg(long, value_name = "N", default_value = "0", value_parser = number(0..=FOLLOWERS_MAX))]
    pub followers: usize,
    /// SDL file of the services to run instead of the sample
    #[arg(long, value_name = "FILE", value_parser = file)]
    pub sdl: Option<PathBuf>,
    /// Show the gateway's own log
    #[arg(short, long)]
    pub verbose: bool,
}

pub(super) fn check(resolver: &mut Resolver<'_>) {
    resolver.require("dir", "the directory to write to");
}

/// Parses the source of a mnemonic.
fn mnemonic(text: &str) -> Result<MnemonicSource, String> {
    if text == "-" { Ok(MnemonicSource::Input) } else { file(text).map(MnemonicSource::File) }
}
