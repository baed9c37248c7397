//! TLS 1.3 towards clients, by rustls with aws-lc-rs.
//!
//! [`config`] says what is offered and checked, [`pair`] keeps a certificate and its key like their files, [`generate`] makes
//! one where the operator brings none, and [`stream`] carries HTTP/2 in few, large writes. Nothing here decides who may do what: a client certificate is only
//! checked to belong to whoever presents it, so that every refusal can be a gRPC status with a reason.

use std::io;
use std::path::PathBuf;

pub mod cert_reload;
pub mod config;
pub mod generate;
pub mod sni;
pub mod stream;
#[cfg(test)]
mod tests;

pub use cert_reload::ReloadingCert;
pub use config::{load, public_server_config_of, server_config, server_config_of};
pub use generate::{Generated, ensure};
pub use sni::Offers;
pub use stream::{TlsStream, accept};

/// Why there is no usable server certificate. Each text names the file, or the host, to be put right.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file or its directory cannot be written.
    #[error("cannot write {path}: {source}", path = path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file holds something else than it should.
    #[error("{path}: {what}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The key is not the one that the certificate was made for.
    #[error("the key in {key} does not belong to the certificate in {certificate}", key = key.display(), certificate = certificate.display())]
    Mismatch {
        /// File of the certificate.
        certificate: PathBuf,
        /// File of the key.
        key: PathBuf,
    },
    /// A host that cannot stand in a certificate.
    #[error("`{0}` is neither a host name nor an IP address")]
    Host(String),
    /// The TLS library refuses, which no file explains.
    #[error("TLS cannot be set up: {0}")]
    Library(String),
}
