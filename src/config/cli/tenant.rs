//! Identities, and the demo.

use clap::{Args, Subcommand};

const IDENTITY_EXAMPLES: &str = "\
Examples:
  A fresh tenant, trusted by a gateway with --trust-dir trusted:
      leasemux identity new --dir tenant
      cp tenant/cert.pem trusted/tenant.pem
      cat tenant/address";

const IMPORT_EXAMPLES: &str = "\
Examples:
  An account that exists; asks for its mnemonic, and makes a certificate:
      leasemux identity import --dir tenant
  With the certificate that 'provider-services tx cert' made for it:
      leasemux identity import --dir tenant --cert ~/.akash/$ADDRESS.pem
  In a script, from a password manager:
      pass show akash/mnemonic |
          leasemux identity import --dir tenant --mnemonic-file -";

const DEMO_EXAMPLES: &str = "\
Examples:
  Ten seconds, then a summary:
      leasemux demo --for 10s
  With a thousand more followers, each on its own connection, each checking:
      leasemux demo --for 20s --followers 1000
  With services of your own; lines that begin with a counter (\"1 …\", \"2 …\")
  are checked:
      leasemux demo --sdl my.yaml";

/// Make or import a tenant's identity
#[derive(Debug, Args)]
#[command(arg_required_else_help = true, after_help = IDENTITY_EXAMPLES, disable_help_subcommand = true)]
pub(in crate::config) struct IdentityArgs {
    #[command(subcommand)]
    pub(in crate::config) command: IdentityCommand,
}

#[derive(Debug, Subcommand)]
pub(in crate::config) enum IdentityCommand {
    New(IdentityNewArgs),
    Import(IdentityImportArgs),
}

/// Make an account, a key and a certificate, as Akash's own tools shape them
///
/// Writes cert.pem and key.pem for mutual TLS, mnemonic for signing tokens (24 words of BIP-39, path m/44'/118'/0'/0/0),
/// address, and account.pub for a gateway's trust directory. key.pem and mnemonic are readable only by you: whoever has the
/// words has the account. Overwrites nothing.
#[derive(Debug, Args)]
#[command(override_usage = "leasemux identity new --dir <DIR>", after_help = IDENTITY_EXAMPLES)]
pub(in crate::config) struct IdentityNewArgs {
    /// Directory to write to; made if there is none
    #[arg(long, env = "LEASEMUX_DIR", value_name = "DIR")]
    pub(in crate::config) dir: Option<String>,
}

/// Use an account that exists, by its mnemonic, and perhaps its Akash certificate
///
/// Writes the same files as 'identity new', with the same permissions, and overwrites nothing. The mnemonic has 12, 15, 18, 21
/// or 24 English words of BIP-39, without a passphrase; the account is that of m/44'/118'/0'/0/0, as in Akash's own tools. It
/// is asked for on the terminal, without an echo, or read from a file; it is never an argument, since other users see those.
#[derive(Debug, Args)]
#[command(override_usage = "leasemux identity import --dir <DIR> [--mnemonic-file <FILE|->] [--cert <FILE>]", after_help = IMPORT_EXAMPLES)]
pub(in crate::config) struct IdentityImportArgs {
    /// Directory to write to; made if there is none
    #[arg(long, env = "LEASEMUX_DIR", value_name = "DIR")]
    pub(in crate::config) dir: Option<String>,
    /// Read the mnemonic from this file, or from standard input (-), instead of asking for it
    #[arg(long, env = "LEASEMUX_MNEMONIC_FILE", value_name = "FILE")]
    pub(in crate::config) mnemonic_file: Option<String>,
    /// PEM file with the account's certificate and its key, as Akash's tools write it; without it a certificate is made
    #[arg(long, env = "LEASEMUX_CERT", value_name = "FILE")]
    pub(in crate::config) cert: Option<String>,
}

/// Start a gateway with sample services, and follow them as a tenant
///
/// Everything is real (processes, gRPC over mutual TLS), thrown away at the end, and checked: exits with 1 if a follower
/// misses a line that was not reported as lost, or sees one twice.
#[derive(Debug, Args)]
#[command(after_help = DEMO_EXAMPLES)]
pub(in crate::config) struct DemoArgs {
    /// End by itself after so long; without it, Ctrl-C ends it
    #[arg(long = "for", id = "for", env = "LEASEMUX_FOR", value_name = "TIME")]
    pub(in crate::config) duration: Option<String>,
    /// Attach so many more followers, which count and check
    #[arg(long, env = "LEASEMUX_FOLLOWERS", value_name = "N", default_value = "0")]
    pub(in crate::config) followers: Option<String>,
    /// Run these services instead of the sample
    #[arg(long, env = "LEASEMUX_SDL", value_name = "FILE")]
    pub(in crate::config) sdl: Option<String>,
    /// Show the gateway's own log
    #[arg(short, long, env = "LEASEMUX_VERBOSE", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(in crate::config) verbose: Option<String>,
}
