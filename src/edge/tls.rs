//! TLS 1.3 for clients, by rustls with aws-lc-rs.
//!
//! [`config`] has the server's configurations, [`cert_reload`] reloads a certificate and its key,
//! [`generate`] creates one if the operator has none, and [`stream`] carries HTTP/2 in few, large writes.
//! Nothing here authorises: of a client certificate only possession of the key is checked, so that every
//! refusal can be a gRPC status with a reason.

use std::io;
use std::path::PathBuf;

pub(crate) mod cert_reload;
pub mod config;
pub mod generate;
pub mod stream;
#[cfg(test)]
mod tests;

pub use cert_reload::ReloadingCert;
pub use config::{SniConfigs, load, public_server_config_of, server_config, server_config_of};
pub use generate::{Generated, ensure};
pub use stream::{TlsStream, accept};

/// Why there is no usable server certificate. Each text names the file or host.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file or its directory cannot be written.
    #[error("cannot write {path}: {source}", path = path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The content of a file is invalid.
    #[error("{path}: {what}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The problem.
        what: String,
    },
    /// The certificate was made for another key.
    #[error("the key in {key} does not belong to the certificate in {certificate}", key = key.display(), certificate = certificate.display())]
    Mismatch {
        /// File of the certificate.
        certificate: PathBuf,
        /// File of the key.
        key: PathBuf,
    },
    /// A host that cannot be in a certificate.
    #[error("`{0}` is neither a host name nor an IP address")]
    Host(String),
    /// The TLS library failed.
    #[error("TLS cannot be set up: {0}")]
    Library(String),
}
