//! May they? Who a caller is, whether that is to be believed, and what follows from it.
//!
//! The handshake checks only that a caller holds the private key of the certificate it shows. The rest is judged here, call
//! by call: the form of a certificate ([`cert`]) or token ([`token`]), whether it is trusted ([`trust`], from a directory:
//! [`dir`], from an Akash node: [`chain`]), both together ([`gate`]), and what the caller may then do ([`grants`]). Every check that fails has a reason of its
//! own ([`refusal`]). [`identity`] and [`wallet`] are the tenant's side: making or importing an account and a certificate, and
//! signing tokens; [`tools`] is what the command line offers of both.

pub mod account;
pub mod authenticator;
pub mod cert;
pub mod chain;
pub mod dir;
mod encrypted_key;
pub mod grants;
pub mod identity;
pub mod refusal;
#[cfg(test)]
pub(crate) mod testing;
pub mod token;
pub mod tools;
pub mod trust;
pub mod wallet;
