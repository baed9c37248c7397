//! Certificates and private keys in PEM files of bounded size.
//!
//! Errors never repeat the content of a file, which may be part of a key.

use std::io;
use std::path::Path;

use data_encoding::BASE64;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::read::read_bounded;

/// Characters of Base64 per line.
const LINE_CHARS: usize = 64;

/// Why a PEM file cannot be used. The text follows the name of the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PemError {
    /// It cannot be read, or is too large.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// It is not PEM.
    #[error("it is not well-formed PEM")]
    Malformed,
    /// It has no `CERTIFICATE` section.
    #[error("there is no certificate in it")]
    NoCertificate,
    /// It has no private key.
    #[error("there is no private key in it")]
    NoKey,
    /// Its only private key is encrypted.
    #[error("the private key is encrypted; store it without a password")]
    EncryptedKey,
}

/// Reads the certificates in the file at `path`, which holds at least one. Skips sections of other kinds.
pub(crate) fn read_certificates(
    path: &Path,
    max_bytes: u64,
) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let text = Zeroizing::new(read_bounded(path, max_bytes)?);
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(PemError::NoCertificate),
        Ok(certificates) => Ok(certificates),
        Err(_) => Err(PemError::Malformed),
    }
}

/// Reads the first unencrypted private key in the file at `path`.
pub(crate) fn read_private_key(path: &Path, max_bytes: u64) -> Result<PrivateKeyDer<'static>, PemError> {
    let text = Zeroizing::new(read_bounded(path, max_bytes)?);
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound if memchr::memmem::find(&text, b"BEGIN ENCRYPTED PRIVATE KEY").is_some() => {
            PemError::EncryptedKey
        }
        pem::Error::NoItemsFound => PemError::NoKey,
        _ => PemError::Malformed,
    })
}

/// Returns `der` as one PEM section. The text is erased on drop.
pub(crate) fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let base64 = Zeroizing::new(BASE64.encode(der));
    let frame = "-----BEGIN -----\n-----END -----\n".len() + 2 * label.len();
    // Allocated at its full size, because growing would leave copies of a key in memory.
    let capacity = frame + base64.len() + base64.len().div_ceil(LINE_CHARS);
    let mut text = Zeroizing::new(String::with_capacity(capacity));
    text.extend(["-----BEGIN ", label, "-----\n"]);
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE_CHARS));
        text.extend([line, "\n"]);
        rest = after;
    }
    text.extend(["-----END ", label, "-----\n"]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::read::PEM_MAX_BYTES;

    #[test]
    fn encoded_section_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.pem");
        for length in [0, 1, 47, 48, 49, 1000] {
            let der = vec![7; length];
            let text = encode("CERTIFICATE", &der);
            assert_eq!(text.len(), text.capacity());
            assert!(text.lines().all(|line| line.len() <= LINE_CHARS), "{}", *text);
            std::fs::write(&file, text.as_bytes()).unwrap();
            assert_eq!(read_certificates(&file, PEM_MAX_BYTES).unwrap(), [CertificateDer::from(der)]);
        }
    }

    #[test]
    fn unusable_content_is_named_but_not_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.pem");
        let shown = |content: &str| {
            std::fs::write(&file, content).unwrap();
            let certificates = read_certificates(&file, PEM_MAX_BYTES).unwrap_err();
            let key = read_private_key(&file, PEM_MAX_BYTES).unwrap_err();
            let text = format!("{certificates} {certificates:?} {key} {key:?}");
            assert!(!text.contains("SECRET"), "{text}");
            (certificates, key)
        };
        assert!(matches!(shown("SECRET"), (PemError::NoCertificate, PemError::NoKey)));
        let encrypted = encode("ENCRYPTED PRIVATE KEY", b"SECRET");
        assert!(matches!(shown(&encrypted), (PemError::NoCertificate, PemError::EncryptedKey)));
        let cut = "-----BEGIN CERTIFICATE-----\nSECRET";
        assert!(matches!(shown(cut), (PemError::Malformed, PemError::Malformed)));
    }
}
