//! Authentication and authorization of callers.
//!
//! The handshake checks only that a caller has the private key of its certificate. All else is checked per
//! call, top down: [`authenticator`] checks the form of a certificate ([`cert`]) or token ([`token`]) and
//! then asks a [`trust`] source, which answers from a directory ([`dir`]) or an Akash node ([`chain`]).
//! [`grants`] decides on the call. Each check that fails has its own reason ([`refusal`]).
//!
//! [`identity`] and [`wallet`] are the tenant's side: generating or importing an account and a certificate,
//! and signing tokens. [`tools`] signs and verifies tokens for the command line.

pub mod account;
pub mod authenticator;
pub mod cert;
pub mod chain;
pub mod dir;
pub mod grants;
pub mod identity;
pub(crate) mod provider;
#[cfg(test)]
mod testing;
pub mod token;
pub mod tools;
pub mod trust;
mod trust_file;
pub mod wallet;

pub use crate::model::refusal;
