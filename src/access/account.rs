//! The key of an account, which signs transactions on the chain and tokens.

use std::fmt;
use std::str::FromStr;

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use k256::ecdsa::signature::hazmat::PrehashVerifier as _;
use k256::ecdsa::{Signature, VerifyingKey};
use ripemd::{Digest as _, Ripemd160};
use sha2::Sha256;

use super::refusal::Refusal;
use crate::model::id::Address;

/// Bytes of a compressed public key: a tag and one coordinate. The chain has no other form.
const KEY_BYTES: usize = 33;

/// The public secp256k1 key of an account.
#[derive(Clone, PartialEq, Eq)]
pub struct AccountKey(pub(super) VerifyingKey);

/// The text or the bytes are not a compressed point on secp256k1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a compressed secp256k1 public key (33 bytes, 66 hexadecimal digits)")]
pub struct KeyError;

// === impl AccountKey ===

impl AccountKey {
    /// Reads a key of 33 bytes.
    ///
    /// # Errors
    /// [`KeyError`] for any other form, and for a point that is not on the curve.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        if bytes.len() != KEY_BYTES {
            return Err(KeyError);
        }
        VerifyingKey::from_sec1_bytes(bytes).map(Self).map_err(|_| KeyError)
    }

    /// Returns the 33 bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.to_sec1_point(true).as_bytes().to_vec()
    }

    /// Returns the address of the key's account: RIPEMD-160 of SHA-256 of the 33 bytes.
    pub fn address(&self) -> Address {
        Address::from_account(Ripemd160::digest(Sha256::digest(self.to_bytes())).into())
    }

    /// Verifies a signature of the message with this SHA-256 digest.
    pub(super) fn verify(&self, digest: &[u8; 32], signature: &Signature) -> Result<(), Refusal> {
        self.0.verify_prehash(digest, signature).map_err(|_| Refusal::TokenSignature)
    }
}

/// Reads hexadecimal digits of either case.
impl FromStr for AccountKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| KeyError)?;
        Self::from_bytes(&bytes)
    }
}

/// Writes 66 hexadecimal digits.
impl fmt::Display for AccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.to_bytes()))
    }
}

/// Shows the address, which is easier to find in a log than the key.
impl fmt::Debug for AccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccountKey({})", self.address())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The generator of the group, whose secret key is 1.
    const ONE: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";

    #[test]
    fn account_key_text_round_trips() {
        let key: AccountKey = ONE.parse().unwrap();
        assert_eq!(key.to_string(), ONE);
        assert_eq!(ONE.to_uppercase().parse(), Ok(key.clone()));
        assert_eq!(AccountKey::from_bytes(&key.to_bytes()), Ok(key));
    }

    #[test]
    fn malformed_account_key_is_refused() {
        let not_on_the_curve = format!("02{}", "ff".repeat(32));
        let uncompressed = format!("04{}", "11".repeat(64));
        let odd = format!("{ONE}0");
        for text in ["", "02", &ONE[2..], &not_on_the_curve, &uncompressed, &odd, "zz", &format!("{ONE} ")] {
            assert_eq!(text.parse::<AccountKey>(), Err(KeyError), "{text}");
        }
    }
}
