//! Decrypts private keys that Akash's Go tools store beside a certificate.
//!
//! The format is PKCS #8 with PBES2 (RFC 8018): PBKDF2 over HMAC-SHA-256, and AES-256 in CBC mode, as
//! `go.step.sm/crypto/pemutil` writes it. The password is the account's signature of its own address, which
//! the holder of the mnemonic can make again.

use std::num::NonZeroU32;

use aws_lc_rs::cipher::{AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::pbkdf2::{self, PBKDF2_HMAC_SHA256};
use x509_parser::der_parser::ber::BerObject;
use x509_parser::der_parser::der::parse_der;
use zeroize::Zeroizing;

const PBES2: &str = "1.2.840.113549.1.5.13";
const PBKDF2: &str = "1.2.840.113549.1.5.12";
const HMAC_SHA256: &str = "1.2.840.113549.2.9";
const AES_256_CBC: &str = "2.16.840.1.101.3.4.1.42";

const KEY_BYTES: usize = 32;

/// Bytes of an initialization vector: one block of AES.
const IV_BYTES: usize = 16;

/// Maximum of PBKDF2 iterations: about a second of work. Akash's tools use 600,000.
const ITERATIONS_MAX: u32 = 5_000_000;

/// Why a key cannot be decrypted. The text follows the name of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecryptError {
    #[error(
        "holds a private key with an encryption that is not supported; \
         leave the file out to generate a new certificate"
    )]
    Unsupported,
    /// The padding does not match.
    #[error("holds a private key that was encrypted by another account than the mnemonic's")]
    Password,
}

/// The parameters and the ciphertext of an encrypted key.
struct Envelope<'a> {
    salt: &'a [u8],
    iterations: NonZeroU32,
    iv: [u8; IV_BYTES],
    encrypted: &'a [u8],
}

/// Decrypts an `ENCRYPTED PRIVATE KEY` to PKCS #8. Returns noise if the padding of a wrong password matches
/// by chance.
pub(super) fn decrypt(der: &[u8], password: &[u8]) -> Result<Zeroizing<Vec<u8>>, DecryptError> {
    let Ok(([], whole)) = parse_der(der) else {
        return Err(DecryptError::Unsupported);
    };
    let envelope = Envelope::read(&whole).ok_or(DecryptError::Unsupported)?;
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    pbkdf2::derive(PBKDF2_HMAC_SHA256, envelope.iterations, envelope.salt, password, key.as_mut());
    let cipher = UnboundCipherKey::new(&AES_256, key.as_ref())
        .and_then(PaddedBlockDecryptingKey::cbc_pkcs7)
        .map_err(|_| DecryptError::Unsupported)?;
    let mut text = Zeroizing::new(envelope.encrypted.to_vec());
    let context = DecryptionContext::Iv128(FixedLength::from(envelope.iv));
    let length = cipher.decrypt(&mut text, context).map_err(|_| DecryptError::Password)?.len();
    text.truncate(length);
    Ok(text)
}

// === impl Envelope ===

impl<'a> Envelope<'a> {
    fn read(whole: &'a BerObject<'_>) -> Option<Self> {
        let [scheme, encrypted] = sequence(whole)? else { return None };
        let [kdf, cipher] = parameters(scheme, PBES2)? else { return None };
        let [salt, iterations, options @ ..] = parameters(kdf, PBKDF2)? else { return None };
        // An optional key length precedes the function; the default function is HMAC-SHA-1.
        let [function, ..] = sequence(options.last()?)? else { return None };
        let [name, iv] = sequence(cipher)? else { return None };
        let known = is(function, HMAC_SHA256) && is(name, AES_256_CBC);
        let iterations = NonZeroU32::new(iterations.as_u32().ok()?)?;
        (known && iterations.get() <= ITERATIONS_MAX).then_some(Self {
            salt: salt.as_slice().ok()?,
            iterations,
            iv: iv.as_slice().ok()?.try_into().ok()?,
            encrypted: encrypted.as_slice().ok()?,
        })
    }
}

/// Returns the parameters, a sequence, if the algorithm is `name`.
fn parameters<'a, 'b>(algorithm: &'a BerObject<'b>, name: &str) -> Option<&'a [BerObject<'b>]> {
    match sequence(algorithm)? {
        [oid, parameters] if is(oid, name) => sequence(parameters),
        _ => None,
    }
}

fn sequence<'a, 'b>(object: &'a BerObject<'b>) -> Option<&'a [BerObject<'b>]> {
    object.as_sequence().ok().map(Vec::as_slice)
}

fn is(object: &BerObject<'_>, name: &str) -> bool {
    object.as_oid().is_ok_and(|oid| oid.to_id_string() == name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use x509_parser::pem::Pem;

    use super::*;

    /// See `tests/vectors/certificates`.
    const FILE: &[u8] = include_bytes!("../../../tests/vectors/certificates/chain-sdk-go.pem");

    /// The account's signature of its address, made by `@cosmjs/crypto`.
    const PASSWORD: &[u8; 128] = b"1964b85302c1900fac7a019e636f22676c9579ad2761040dd1eda0123feab0737d159442cec1dfcd6b5715ee7554c2efc012a7423eda32274fc27d53d83af949";

    fn encrypted() -> Vec<u8> {
        Pem::iter_from_buffer(FILE)
            .map(|block| block.unwrap())
            .find(|block| block.label == "ENCRYPTED PRIVATE KEY")
            .unwrap()
            .contents
    }

    fn password() -> Vec<u8> {
        data_encoding::HEXLOWER.decode(PASSWORD).unwrap()
    }

    /// Returns the file's key with one iteration, which makes it cheap.
    fn cheap() -> Vec<u8> {
        let mut der = encrypted();
        let iterations = [2, 3, 0x09, 0x27, 0xc0];
        let at = der.windows(iterations.len()).position(|bytes| bytes == iterations).unwrap();
        der[at + 2..at + 5].copy_from_slice(&[0, 0, 1]);
        der
    }

    #[test]
    fn key_encrypted_by_another_implementation_is_decrypted() {
        let key = decrypt(&encrypted(), &password()).unwrap();
        // PKCS #8, version 0, an EC key.
        assert!(key.starts_with(&[0x30, 0x81, 0x87, 2, 1, 0, 0x30, 0x13]), "{:?}", &key[..8]);
    }

    #[test]
    fn other_password_gives_no_key() {
        let right = decrypt(&encrypted(), &password()).unwrap();
        let mut other = password();
        other[0] ^= 1;
        match decrypt(&encrypted(), &other) {
            Err(error) => assert_eq!(error, DecryptError::Password),
            Ok(noise) => assert_ne!(noise, right),
        }
    }

    #[test]
    fn other_forms_are_unsupported() {
        let good = encrypted();
        let trailing = [&good[..], &[0]].concat();
        for der in [&b""[..], b"\x30\x00", &good[..good.len() - 1], &trailing] {
            assert_eq!(decrypt(der, b"").unwrap_err(), DecryptError::Unsupported);
        }
        let replaced = |old: &[u8], new: &[u8]| {
            let at = good.windows(old.len()).position(|bytes| bytes == old).unwrap();
            let mut der = good.clone();
            der[at..at + new.len()].copy_from_slice(new);
            der
        };
        // AES-128, HMAC-SHA-1, and more iterations than the limit.
        let aes_256 = [0x60, 0x86, 0x48, 1, 0x65, 3, 4, 1, 0x2a];
        let hmac_sha256 = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 2, 9];
        let iterations = [2, 3, 0x09, 0x27, 0xc0];
        for der in [
            replaced(&aes_256, &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 1, 2]),
            replaced(&hmac_sha256, &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 2, 7]),
            replaced(&iterations, &[2, 3, 0x7f, 0xff, 0xff]),
            replaced(&iterations, &[2, 3, 0, 0, 0]),
            replaced(&iterations, &[2, 3, 0xff, 0xff, 0xff]),
        ] {
            assert!(
                matches!(decrypt(&der, b""), Err(DecryptError::Unsupported)),
                "{}",
                data_encoding::HEXLOWER.encode(&der)
            );
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(
            edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in proptest::option::weighted(0.2, any::<prop::sample::Index>()),
        ) {
            let mut der = cheap();
            let iterations = der.windows(3).position(|bytes| bytes == [2, 3, 0]).unwrap();
            for (at, byte) in edits {
                let at = at.index(der.len());
                if !(iterations..iterations + 5).contains(&at) {
                    der[at] = byte;
                }
            }
            if let Some(cut) = cut {
                der.truncate(cut.index(der.len()));
            }
            let _ = decrypt(&der, b"password");
        }
    }
}
