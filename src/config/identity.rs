//! Settings of `identity`.

use std::path::PathBuf;

use clap::Args;

use super::resolver::Resolver;
use super::value::{file, new_directory};

const NEW_EXAMPLES: &str = include_str!("help/identity-new.txt").trim_ascii_end();

const IMPORT_EXAMPLES: &str = include_str!("help/identity-import.txt").trim_ascii_end();

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
    /// Standard input, read to its end.
    Input,
    /// The file at this path.
    File(PathBuf),
}

pub(super) fn check(resolver: &mut Resolver<'_>) {
    resolver.require("dir", "the directory to write to");
}

/// Parses the source of a mnemonic.
fn mnemonic(text: &str) -> Result<MnemonicSource, String> {
    if text == "-" { Ok(MnemonicSource::Input) } else { file(text).map(MnemonicSource::File) }
}
