//! The format of files in a trust directory: certificates (`*.pem`), or keys of accounts (`*.pub`).
//!
//! A file of keys has one per line: the account's address, a space, and the 66 hexadecimal digits of the key,
//! whose address must be that one. Empty lines and lines that start with `#` are ignored.

use std::io::{self, Write};
use std::path::Path;
use std::str;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::account::AccountKey;
use super::cert::TenantCertificate;
use super::refusal::Refusal;
use super::trust::{TrustEntry, TrustValue};
use crate::sys::pem;

/// Maximum size of a file, in bytes: [`CERTIFICATES_MAX`] certificates of four times the usual size, or
/// [`KEYS_MAX`] keys, and comments.
pub(super) const FILE_MAX_BYTES: u64 = 64 * 1024;

/// Maximum of certificates in one file, which is meant for one tenant with a few of them.
pub(super) const CERTIFICATES_MAX: usize = 16;

/// Maximum of keys in one file, which may list all tenants.
const KEYS_MAX: usize = 500;

const CERTIFICATES_EXTENSION: &str = "pem";
const KEYS_EXTENSION: &str = "pub";

/// Why a file, or a part of it, cannot be used. The text follows the name of the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FileError {
    #[error("is not a regular file")]
    NotRegular,
    #[error("is larger than {FILE_MAX_BYTES} bytes")]
    TooLarge,
    #[error("holds more than {CERTIFICATES_MAX} certificates; the rest is ignored")]
    TooManyCertificates,
    #[error("holds more than {KEYS_MAX} keys; the rest is ignored")]
    TooManyKeys,
    #[error("holds no certificate")]
    NoCertificate,
    #[error("holds no account key")]
    NoKey,
    #[error("line {line} is not an address, a space, and the 66 hexadecimal digits of its own secp256k1 key")]
    Key { line: usize },
    #[error("section {number} is not well-formed PEM; the file may be incomplete")]
    Pem { number: usize },
    #[error("certificate {number} is refused: {refusal}")]
    Certificate { number: usize, refusal: Refusal },
    #[error("cannot be read: {0}")]
    Unreadable(io::ErrorKind),
}

/// Returns whether `name` is that of a trust file, as the shell's `*.pem` and `*.pub` match it. Names that
/// start with a dot belong to temporary files.
pub(super) fn is_trust_file(name: &[u8]) -> bool {
    let ends = |ending: &str| name.strip_suffix(ending.as_bytes()).is_some_and(|rest| rest.ends_with(b"."));
    (ends(CERTIFICATES_EXTENSION) || ends(KEYS_EXTENSION)) && !name.starts_with(b".")
}

/// Returns the valid entries in the file at `path` with this content, and the first error.
pub(super) fn parse(path: &Path, content: &[u8]) -> (Vec<TrustEntry>, Option<FileError>) {
    let is_keys = path.extension().is_some_and(|extension| extension == KEYS_EXTENSION);
    if is_keys { parse_keys(content) } else { parse_certificates(content) }
}

/// Skips PEM sections of other kinds, such as the encrypted key that Akash's own tools store beside the
/// certificate.
fn parse_certificates(content: &[u8]) -> (Vec<TrustEntry>, Option<FileError>) {
    let mut entries = Vec::new();
    let mut error = None;
    for (at, section) in CertificateDer::pem_slice_iter(content).enumerate() {
        let number = at + 1;
        if at == CERTIFICATES_MAX {
            error.get_or_insert(FileError::TooManyCertificates);
            break;
        }
        // The PEM reader's own error repeats its input, which may be part of a key.
        let checked = section.map_err(|_| FileError::Pem { number }).and_then(|der| {
            TenantCertificate::from_der(&der).map_err(|refusal| FileError::Certificate { number, refusal })
        });
        match checked {
            Ok(certificate) => entries.push(certificate.into()),
            Err(found) => {
                error.get_or_insert(found);
            }
        }
    }
    if entries.is_empty() {
        error.get_or_insert(FileError::NoCertificate);
    }
    (entries, error)
}

fn parse_keys(content: &[u8]) -> (Vec<TrustEntry>, Option<FileError>) {
    let mut entries = Vec::new();
    let mut error = None;
    for (at, line) in content.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        if entries.len() == KEYS_MAX {
            error.get_or_insert(FileError::TooManyKeys);
            break;
        }
        match parse_key(line) {
            Some(key) => entries.push(key.into()),
            None => {
                error.get_or_insert(FileError::Key { line: at + 1 });
            }
        }
    }
    if entries.is_empty() {
        error.get_or_insert(FileError::NoKey);
    }
    (entries, error)
}

fn parse_key(line: &[u8]) -> Option<AccountKey> {
    let (address, key) = str::from_utf8(line).ok()?.split_once(' ')?;
    let key: AccountKey = key.trim_start().parse().ok()?;
    (key.address().as_str() == address).then_some(key)
}

/// Writes one item in the format of its kind of file.
pub(super) fn write(file: &mut impl Write, value: &TrustValue) -> io::Result<()> {
    match value {
        TrustValue::Certificate(der) => file.write_all(pem::encode("CERTIFICATE", der).as_bytes()),
        TrustValue::Account(key) => writeln!(file, "{} {key}", key.address()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the secret keys 1 and 2.
    const ONE: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
    const TWO: &str = "02c6047f9441ed7d6d3045406e95c07cd85c778e4b8cef3ca7abac09b95c709ee5";

    fn read(text: &str) -> (Vec<String>, Option<FileError>) {
        let (entries, error) = parse(Path::new("tenants.pub"), text.as_bytes());
        let keys = entries.into_iter().map(|entry| match entry.value {
            TrustValue::Account(key) => key.to_string(),
            TrustValue::Certificate(_) => panic!("a certificate"),
        });
        (keys.collect(), error)
    }

    fn address(key: &str) -> String {
        key.parse::<AccountKey>().unwrap().address().to_string()
    }

    #[test]
    fn keys_are_read_one_per_line_after_their_address() {
        let text = format!("# tenants\n\n{} {ONE}\r\n  {}   {TWO}", address(ONE), address(TWO));
        assert_eq!(read(&text), (vec![ONE.to_owned(), TWO.to_owned()], None));
    }

    #[test]
    fn malformed_line_is_named_and_others_are_read() {
        let good = format!("{} {ONE}", address(ONE));
        let mixed = format!("{} {TWO}", address(ONE));
        for bad in [ONE, "akash1x", &format!("{} {}", address(ONE), &ONE[2..]), &mixed, &format!("{good} x")]
        {
            let text = format!("{good}\n{bad}\n");
            assert_eq!(read(&text), (vec![ONE.to_owned()], Some(FileError::Key { line: 2 })), "{bad}");
        }
        assert_eq!(read("# nothing\n"), (Vec::new(), Some(FileError::NoKey)));
    }

    #[test]
    fn keys_beyond_the_limit_are_ignored() {
        let text = format!("{} {ONE}\n", address(ONE)).repeat(KEYS_MAX + 1);
        let (keys, error) = read(&text);
        assert_eq!((keys.len(), error), (KEYS_MAX, Some(FileError::TooManyKeys)));
    }

    #[test]
    fn file_names_match_as_in_the_shell() {
        for name in ["a.pem", "a.pub", "a.b.pub"] {
            assert!(is_trust_file(name.as_bytes()), "{name}");
        }
        for name in [".a.pem", ".pub", "pem", "a.pem~", "a.crt", ""] {
            assert!(!is_trust_file(name.as_bytes()), "{name}");
        }
    }
}
