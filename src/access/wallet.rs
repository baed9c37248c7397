//! A tenant's account: its mnemonic, its secret key, and signing tokens with it.

use std::fmt;

use bip32::{ChildNumber, XPrv};
use bip39::Language;
use k256::ecdsa::signature::hazmat::PrehashSigner as _;
use k256::ecdsa::{Signature, SigningKey};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::account::AccountKey;
use super::token::{Algorithm, Claims};

/// From the seed to the key, as Cosmos wallets derive it: `m/44'/118'/0'/0/0` (BIP-44). `true` = hardened.
const PATH: [(u32, bool); 5] = [(44, true), (118, true), (0, true), (0, false), (0, false)];

/// Bytes of entropy in a new mnemonic of 24 words.
const ENTROPY_BYTES: usize = 32;

/// The secret key of an account. No output shows it.
pub struct Wallet(SigningKey);

/// The mnemonic of an account (BIP-39, English). It gives full control of the account.
pub struct Mnemonic(bip39::Mnemonic);

/// Why a text is not the mnemonic of an account. Does not repeat the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MnemonicError {
    /// BIP-39 has no mnemonic of this number of words.
    #[error("does not hold a mnemonic: it has {0} words instead of 12, 15, 18, 21 or 24")]
    Count(usize),
    /// The word of this number, counted from 1, is not in the list.
    #[error("does not hold a mnemonic: word {0} is not in the English list of BIP-39 (lower case)")]
    Unknown(usize),
    /// Each word is in the list, but the checksum is wrong.
    #[error(
        "does not hold a mnemonic: its checksum does not match, so a word is wrong or in the wrong place"
    )]
    Checksum,
    /// No key can be derived. The probability is below 2⁻¹²⁰.
    #[error("holds a mnemonic without a key")]
    Key,
}

// === impl Mnemonic ===

impl Mnemonic {
    /// Creates a random mnemonic of 24 words.
    ///
    /// # Errors
    /// None with entropy of this size.
    pub fn generate() -> Result<Self, MnemonicError> {
        let entropy: Zeroizing<[u8; ENTROPY_BYTES]> = Zeroizing::new(rand::random());
        Ok(Self(bip39::Mnemonic::from_entropy(entropy.as_ref())?))
    }

    /// Reads words that are separated by white space.
    ///
    /// # Errors
    /// [`MnemonicError`] for a wrong number of words, an unknown word, or a wrong checksum.
    pub fn parse(text: &str) -> Result<Self, MnemonicError> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let words = Zeroizing::new(words.join(" "));
        Ok(Self(bip39::Mnemonic::parse_in_normalized(Language::English, &words)?))
    }

    /// Returns the words, separated by spaces. Never log them.
    pub(super) fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.words().collect::<Vec<_>>().join(" "))
    }

    /// Derives the account, without a passphrase.
    ///
    /// # Errors
    /// [`MnemonicError::Key`].
    pub fn wallet(&self) -> Result<Wallet, MnemonicError> {
        let seed = Zeroizing::new(self.0.to_seed_normalized(""));
        let mut key = XPrv::new(seed.as_ref()).map_err(|_| MnemonicError::Key)?;
        for (index, hardened) in PATH {
            let child = ChildNumber::new(index, hardened).map_err(|_| MnemonicError::Key)?;
            key = key.derive_child(child).map_err(|_| MnemonicError::Key)?;
        }
        Ok(Wallet(key.private_key().clone()))
    }
}

/// Omits the words.
impl fmt::Debug for Mnemonic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mnemonic")
    }
}

// === impl MnemonicError ===

impl From<bip39::Error> for MnemonicError {
    fn from(error: bip39::Error) -> Self {
        match error {
            bip39::Error::BadWordCount(count) => Self::Count(count),
            bip39::Error::UnknownWord(index) => Self::Unknown(index + 1),
            _ => Self::Checksum,
        }
    }
}

// === impl Wallet ===

impl Wallet {
    /// Returns the public key, which determines the account's address.
    pub fn key(&self) -> AccountKey {
        AccountKey(*self.0.verifying_key())
    }

    /// Signs a token with these claims. Gateways accept it only if the issuer is this account.
    ///
    /// # Errors
    /// [`k256::ecdsa::Error`], with a probability below 2⁻¹²⁰.
    pub fn sign(&self, algorithm: Algorithm, claims: &Claims) -> Result<String, k256::ecdsa::Error> {
        let mut token = claims.unsigned(algorithm);
        let digest = algorithm.digest(token.as_bytes(), &claims.issuer);
        // By RFC 6979, with low s.
        let signature: Signature = self.0.sign_prehash(&digest)?;
        token.push('.');
        data_encoding::BASE64URL_NOPAD.encode_append(&signature.to_bytes(), &mut token);
        Ok(token)
    }

    /// Returns the password that Akash's Go tools use for the account's certificate key: the account's
    /// signature of its own address.
    ///
    /// # Errors
    /// As for [`Wallet::sign`].
    pub(super) fn certificate_password(&self) -> Result<Zeroizing<Vec<u8>>, k256::ecdsa::Error> {
        let digest = Sha256::digest(self.key().address().as_str());
        let signature: Signature = self.0.sign_prehash(&digest)?;
        Ok(Zeroizing::new(signature.to_bytes().to_vec()))
    }
}

/// Shows only the account.
impl fmt::Debug for Wallet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wallet({})", self.key().address())
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::access::grants::Access;
    use crate::access::token::Token;

    /// Made by `tests/vectors/make.py`.
    const VECTORS: &str = include_str!("../../tests/vectors/wallets.json");

    #[derive(Deserialize)]
    struct Vector {
        mnemonic: String,
        seed: String,
        secret: String,
        public: String,
        address: String,
    }

    fn hex(bytes: &[u8]) -> String {
        data_encoding::HEXLOWER.encode(bytes)
    }

    #[test]
    fn mnemonic_derives_the_account_of_other_software() {
        let vectors: Vec<Vector> = serde_json::from_str(VECTORS).unwrap();
        assert!(vectors.len() > 5);
        // All numbers of words that wallets use.
        for bytes in [16, 20, 24, 28, 32] {
            let words = bip39::Mnemonic::from_entropy(&vec![7; bytes]).unwrap().to_string();
            assert_eq!(words.split(' ').count(), bytes * 3 / 4);
            Mnemonic::parse(&words).unwrap().wallet().unwrap();
        }
        for vector in vectors {
            let words = Mnemonic::parse(&vector.mnemonic).unwrap();
            assert_eq!(hex(&words.0.to_seed_normalized("")), vector.seed);
            let wallet = words.wallet().unwrap();
            assert_eq!(hex(&wallet.0.to_bytes()), vector.secret);
            assert_eq!(wallet.key().to_string(), vector.public);
            assert_eq!(wallet.key().address().as_str(), vector.address);
        }
    }

    /// Published with BIP-39 (`trezor/python-mnemonic`, vectors.json): entropy of zeros, passphrase "TREZOR".
    #[test]
    fn seeds_equal_those_published_with_bip_39() {
        let words = Mnemonic(bip39::Mnemonic::from_entropy(&[0; 32]).unwrap());
        assert_eq!(*words.reveal(), format!("{}art", "abandon ".repeat(23)));
        assert_eq!(
            hex(&words.0.to_seed_normalized("TREZOR")),
            "bda85446c68413707090a52022edd26a1c9462295029f2e60cd7c4f2bbd3097170af7a4d73245cafa9c3cca8d561a7c3de6f5d4a10be8ed2a5e608d68f92fcc8"
        );
    }

    /// Test vector 1 of BIP-32, chain m/0H/1/2H/2/1000000000.
    #[test]
    fn keys_are_derived_as_published_with_bip_32() {
        let seed = data_encoding::HEXLOWER.decode(b"000102030405060708090a0b0c0d0e0f").unwrap();
        let mut key = XPrv::new(&seed).unwrap();
        for (index, hardened) in [(0, true), (1, false), (2, true), (2, false), (1_000_000_000, false)] {
            key = key.derive_child(ChildNumber::new(index, hardened).unwrap()).unwrap();
        }
        assert_eq!(
            hex(&key.private_key().to_bytes()),
            "471b76e389e528d6de6d816857e012c5455051cad6660850e58372a6c3e6e7c8"
        );
    }

    /// RFC 6979 has no vectors for this curve. These, for the secret key 1 and SHA-256, are shared by its
    /// implementations (python-ecdsa, libsecp256k1, Trezor).
    #[test]
    fn signatures_equal_those_of_other_implementations() {
        let one = {
            let mut one = [0; 32];
            one[31] = 1;
            SigningKey::from_slice(&one).unwrap()
        };
        for (message, expected) in [
            (
                "Satoshi Nakamoto",
                "934b1ea10a4b3c1757e2b0c017d0b6143ce3c9a7e6a4a49860d7a6ab210ee3d82442ce9d2b916064108014783e923ec36b49743e2ffa1c4496f01a512aafd9e5",
            ),
            (
                "All those moments will be lost in time, like tears in rain. Time to die...",
                "8600dbd41e348fe5c9465ab92d23e3db8b98b873beecd930736488696438cb6b547fe64427496db33bf66019dacbf0039c04199abb0122918601db38a72cfc21",
            ),
        ] {
            let signature: Signature = one.sign_prehash(&Sha256::digest(message)).unwrap();
            assert_eq!(hex(&signature.to_bytes()), expected);
        }
    }

    #[test]
    fn invalid_mnemonic_is_refused_and_not_repeated() {
        let good = Mnemonic::generate().unwrap().reveal().to_string();
        assert_eq!(good.split(' ').count(), 24);
        Mnemonic::parse(&format!("\n{}\n", good.replace(' ', "  "))).unwrap();
        let last = good.rsplit_once(' ').unwrap().0;
        let twelve = |last: &str| format!("{}{last}", "abandon ".repeat(11));
        Mnemonic::parse(&twelve("about")).unwrap();
        for (bad, expected) in [
            ("", MnemonicError::Count(0)),
            ("abandon", MnemonicError::Count(1)),
            (last, MnemonicError::Count(23)),
            (&format!("{good} abandon"), MnemonicError::Count(25)),
            (&good.to_uppercase(), MnemonicError::Unknown(1)),
            (&twelve("secretword"), MnemonicError::Unknown(12)),
            (&twelve("abandon"), MnemonicError::Checksum),
        ] {
            let error = Mnemonic::parse(bad).unwrap_err();
            assert_eq!(error, expected);
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("secretword") && !shown.contains("abandon"), "{shown}");
        }
        let shown = format!(
            "{:?} {:?}",
            Mnemonic::generate().unwrap(),
            Mnemonic::generate().unwrap().wallet().unwrap()
        );
        assert!(shown.starts_with("Mnemonic Wallet(akash1"), "{shown}");
    }

    #[test]
    fn signed_token_is_read_with_its_claims() {
        let wallet = Mnemonic::generate().unwrap().wallet().unwrap();
        let claims = Claims {
            issuer: wallet.key().address(),
            issued: 1,
            not_before: 2,
            expires: 3,
            id: None,
            access: Access::Full,
        };
        for algorithm in [Algorithm::Es256k, Algorithm::Es256kAdr36] {
            let token = Token::parse(wallet.sign(algorithm, &claims).unwrap().as_bytes()).unwrap();
            assert_eq!((token.algorithm(), token.claims()), (algorithm, &claims));
            assert_eq!(token.check_signature(&wallet.key()), Ok(()));
            let other = Mnemonic::generate().unwrap().wallet().unwrap();
            assert!(token.check_signature(&other.key()).is_err());
        }
    }
}
