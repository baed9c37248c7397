//! A tenant's identity: an account, and a certificate of Akash's form with its key, in the files of one
//! directory. Account and certificate are generated or imported; a certificate that Akash's own tools wrote
//! is imported with its key.

mod encrypted_key;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::fmt;
use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rcgen::string::PrintableString;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::NamedTempFile;
use time::OffsetDateTime;
use x509_parser::pem::Pem;
use zeroize::Zeroizing;

use super::cert::{TenantCertificate, public_key};
use super::refusal::Refusal;
use super::wallet::{Mnemonic, MnemonicError, Wallet};
use crate::model::id::Owner;
use crate::model::time::LogTime;
use crate::sys::pem;
use crate::sys::read::read_bounded;

/// The certificate, in PEM.
const CERTIFICATE_FILE: &str = "cert.pem";

/// Its private key, in PEM (PKCS #8).
const KEY_FILE: &str = "key.pem";

/// The account's address, and a newline.
const ADDRESS_FILE: &str = "address";

/// The account's mnemonic, and a newline.
const MNEMONIC_FILE: &str = "mnemonic";

/// The account's address and public key: a file for a trust directory.
const ACCOUNT_FILE: &str = "account.pub";

const FILES: [&str; 5] = [CERTIFICATE_FILE, KEY_FILE, ADDRESS_FILE, MNEMONIC_FILE, ACCOUNT_FILE];

const DIR_MODE: u32 = 0o700;
const PUBLIC_MODE: u32 = 0o644;
const SECRET_MODE: u32 = 0o600;

/// Validity of a new certificate: a year, as in Akash's own tools.
const VALIDITY_DAYS: i64 = 365;

/// Maximum size of a file, in bytes: far above a certificate or a key.
const FILE_MAX_BYTES: u64 = 64 * 1024;

/// Labels of the PEM sections in a file of another tool: a certificate, and its key as PKCS #8, as SEC 1, or
/// encrypted.
const PEM_CERTIFICATE: &str = "CERTIFICATE";
const PEM_PKCS8: &str = "PRIVATE KEY";
const PEM_SEC1: &str = "EC PRIVATE KEY";
const PEM_ENCRYPTED: &str = "ENCRYPTED PRIVATE KEY";

/// Start of the header of a key with legacy encryption (RFC 1421), which older Go tools of Akash wrote.
const PEM_LEGACY_ENCRYPTION: &[u8] = b"Proc-Type:";

/// The attribute of the subject that names the form of an Akash certificate, and its value.
const FORM_OID: [u64; 5] = [2, 23, 133, 2, 6];
const FORM: &str = "v0.0.1";

/// A tenant's certificate and key. No output shows the key.
pub struct IdentityFiles {
    address: Owner,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// Why an identity cannot be created or read. The text names the file and never repeats its content.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The file exists. An overwritten key cannot be restored.
    #[error("{}: exists already, and an identity is never overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file or directory cannot be used.
    #[error("{}: {error}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The cause. Does not repeat the content.
        error: Box<dyn Error + Send + Sync>,
    },
    /// No account can be generated.
    #[error("cannot generate an account: its mnemonic failed its own check")]
    Account(#[from] MnemonicError),
    /// No certificate can be generated.
    #[error("cannot generate a certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// No certificate can be generated at this time.
    #[error("cannot generate a certificate: the clock is outside the years 1970 to 2261")]
    Clock,
}

// === impl IdentityFiles ===

impl IdentityFiles {
    /// Creates an identity at the time `now` in `dir`, which is created (for the user alone) if it is
    /// missing.
    ///
    /// # Errors
    /// [`IdentityError::Exists`] if one of the files exists. No error leaves a new file behind or changes an
    /// existing one.
    pub fn create(dir: &Path, now: LogTime) -> Result<Owner, IdentityError> {
        Self::import(dir, &Mnemonic::generate()?, None, now)
    }

    /// Creates an identity of an existing account, with the certificate and key in the file `certificate`, or
    /// with new ones.
    ///
    /// # Errors
    /// As for [`IdentityFiles::create`]; also for a certificate that every gateway would refuse, that has
    /// expired, or that names another account.
    pub fn import(
        dir: &Path,
        mnemonic: &Mnemonic,
        certificate: Option<&Path>,
        now: LogTime,
    ) -> Result<Owner, IdentityError> {
        Self::check_absent(dir)?;
        let wallet = mnemonic.wallet()?;
        let account = wallet.key();
        let address = account.address();
        let pair = match certificate {
            Some(path) => CertificatePair::read(path, &wallet, now)?,
            None => CertificatePair::generate(&address, now)?,
        };
        let mut phrase = mnemonic.reveal();
        phrase.push('\n');
        let mut files = NewFiles::in_dir(dir)?;
        files.write(KEY_FILE, SECRET_MODE, pair.key.as_bytes())?;
        files.write(CERTIFICATE_FILE, PUBLIC_MODE, pair.certificate.as_bytes())?;
        files.write(ADDRESS_FILE, PUBLIC_MODE, format!("{address}\n").as_bytes())?;
        files.write(MNEMONIC_FILE, SECRET_MODE, phrase.as_bytes())?;
        files.write(ACCOUNT_FILE, PUBLIC_MODE, format!("{address} {account}\n").as_bytes())?;
        files.keep()?;
        Ok(address)
    }

    /// Checks that `dir` holds no identity yet.
    ///
    /// # Errors
    /// [`IdentityError::Exists`] if one of the files exists.
    pub fn check_absent(dir: &Path) -> Result<(), IdentityError> {
        for name in FILES {
            let path = dir.join(name);
            // A dangling link exists, too.
            if path.symlink_metadata().is_ok() {
                return Err(IdentityError::Exists { path });
            }
        }
        Ok(())
    }

    /// Reads the certificate and key in `dir`, and checks that they and the address belong together. The
    /// `address` file is optional, for certificates and keys from elsewhere.
    ///
    /// # Errors
    /// [`IdentityError`], which names the file.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join(CERTIFICATE_FILE);
        let chain =
            pem::read_certificates(&path, FILE_MAX_BYTES).map_err(|error| file_error(&path, error))?;
        let checked =
            TenantCertificate::from_presented(&chain).map_err(|refusal| file_error(&path, refusal))?;
        let path = dir.join(KEY_FILE);
        let key = pem::read_private_key(&path, FILE_MAX_BYTES).map_err(|error| file_error(&path, error))?;
        chain.iter().try_for_each(|certificate| check_key(&path, &key, certificate))?;
        check_address(&dir.join(ADDRESS_FILE), checked.owner())?;
        Ok(Self { address: checked.owner().clone(), chain, key })
    }

    /// Reads the account in `dir`. If there is an `address` file, it must match.
    ///
    /// # Errors
    /// [`IdentityError`], which names the file. Identities of early versions have no mnemonic.
    pub fn load_wallet(dir: &Path) -> Result<Wallet, IdentityError> {
        let path = dir.join(MNEMONIC_FILE);
        let text = read(&path)?;
        let text = std::str::from_utf8(&text).map_err(|_| file_error(&path, "is not text"))?;
        let wallet = Mnemonic::parse(text).and_then(|mnemonic| mnemonic.wallet());
        let wallet = wallet.map_err(|error| file_error(&path, error))?;
        check_address(&dir.join(ADDRESS_FILE), &wallet.key().address())?;
        Ok(wallet)
    }

    /// Returns the account's address.
    pub fn address(&self) -> &Owner {
        &self.address
    }

    /// Returns the certificate, as a handshake takes it, and its key.
    pub fn into_parts(self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (self.chain, self.key)
    }
}

impl fmt::Debug for IdentityFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityFiles").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Returns the content of a tenant's certificate: that of `go/node/cert` in chain-sdk, and one key usage
/// more.
pub(super) fn certificate_params(owner: &Owner, now: LogTime) -> Result<CertificateParams, IdentityError> {
    let not_before = OffsetDateTime::from_unix_timestamp(now.parts().0).map_err(|_| IdentityError::Clock)?;
    let serial = u64::try_from(now.as_nanos()).map_err(|_| IdentityError::Clock)?;
    let mut subject = DistinguishedName::new();
    let text = |text| PrintableString::try_from(text).map(DnValue::PrintableString);
    subject.push(DnType::CommonName, text(owner.as_str())?);
    subject.push(DnType::CustomDnType(FORM_OID.to_vec()), text(FORM)?);
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.serial_number = Some(SerialNumber::from_slice(&serial.to_be_bytes()));
    params.not_before = not_before;
    params.not_after =
        not_before.checked_add(time::Duration::days(VALIDITY_DAYS)).ok_or(IdentityError::Clock)?;
    params.is_ca = IsCa::ExplicitNoCa;
    // Akash's own tools omit the first usage. BoringSSL, on which most gRPC clients are built, then refuses
    // to sign.
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::DataEncipherment,
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// Checks that the key in the file at `path` is that of the certificate.
fn check_key(
    path: &Path,
    key: &PrivateKeyDer<'_>,
    certificate: &CertificateDer<'_>,
) -> Result<(), IdentityError> {
    // Also noise, from a wrong password whose padding matched by chance.
    let signer =
        any_supported_type(key).map_err(|_| file_error(path, "holds a private key that cannot be used"))?;
    match public_key(certificate) {
        certified @ Some(_) if certified == signer.public_key() => Ok(()),
        _ => Err(file_error(path, "holds a private key that is not its certificate's")),
    }
}

fn check_address(path: &Path, owner: &Owner) -> Result<(), IdentityError> {
    match read_bounded(path, FILE_MAX_BYTES) {
        Ok(bytes) if bytes.trim_ascii() == owner.as_str().as_bytes() => Ok(()),
        Ok(_) => Err(file_error(path, "is not the address of the certificate and of the mnemonic beside it")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(file_error(path, error)),
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    read_bounded(path, FILE_MAX_BYTES).map(Zeroizing::new).map_err(|error| file_error(path, error))
}

fn file_error(path: &Path, error: impl Into<Box<dyn Error + Send + Sync>>) -> IdentityError {
    IdentityError::File { path: path.to_owned(), error: error.into() }
}

// === impl CertificatePair ===

/// A certificate and its key, each in PEM.
struct CertificatePair {
    certificate: String,
    key: Zeroizing<String>,
}

impl CertificatePair {
    /// Generates a key, and a certificate for `owner` at the time `now`.
    fn generate(owner: &Owner, now: LogTime) -> Result<Self, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = certificate_params(owner, now)?.self_signed(&key)?;
        Ok(Self { certificate: certificate.pem(), key: Zeroizing::new(key.serialize_pem()) })
    }

    /// Reads the pair of the account `wallet` from a file of another tool.
    fn read(path: &Path, wallet: &Wallet, now: LogTime) -> Result<Self, IdentityError> {
        let failed = |reason: &str| file_error(path, reason);
        let text = read(path)?;
        if memchr::memmem::find(&text, PEM_LEGACY_ENCRYPTION).is_some() {
            return Err(failed(
                "holds a private key with legacy encryption (Proc-Type), which is not supported; \
                 leave the file out to generate a new certificate",
            ));
        }
        let mut chain = Vec::new();
        let mut key = None;
        for section in Pem::iter_from_buffer(&text) {
            // The parser's error may repeat a part of the file.
            let section = section.map_err(|_| failed("is not well-formed PEM"))?;
            match section.label.as_str() {
                PEM_CERTIFICATE => chain.push(CertificateDer::from(section.contents)),
                PEM_PKCS8 | PEM_SEC1 | PEM_ENCRYPTED if key.is_some() => {
                    return Err(failed("holds more than one private key"));
                }
                PEM_PKCS8 => key = Some((PEM_PKCS8, Zeroizing::new(section.contents))),
                PEM_SEC1 => key = Some((PEM_SEC1, Zeroizing::new(section.contents))),
                PEM_ENCRYPTED => key = Some((PEM_PKCS8, decrypt(path, &section.contents, wallet)?)),
                // A public key, or the parameters of a curve.
                _ => {}
            }
        }
        let [certificate] = chain.as_slice() else {
            return Err(failed("must hold exactly one certificate"));
        };
        let (label, der) = key.ok_or_else(|| failed("holds no private key for its certificate"))?;
        let checked =
            TenantCertificate::from_der(certificate).map_err(|refusal| file_error(path, refusal))?;
        if *checked.owner() != wallet.key().address() {
            return Err(failed("holds the certificate of another account than the mnemonic's"));
        }
        match checked.check_time(now) {
            // It may become valid in a moment, by another clock.
            Ok(()) | Err(Refusal::CertificateNotYetValid) => {}
            Err(refusal) => return Err(file_error(path, refusal)),
        }
        let private = match label {
            PEM_SEC1 => PrivateKeyDer::Sec1(der.as_slice().into()),
            _ => PrivateKeyDer::Pkcs8(der.as_slice().into()),
        };
        check_key(path, &private, certificate)?;
        let certificate = pem::encode(PEM_CERTIFICATE, certificate).to_string();
        Ok(Self { certificate, key: pem::encode(label, &der) })
    }
}

/// Decrypts a key that Akash's Go tools wrote.
fn decrypt(path: &Path, der: &[u8], wallet: &Wallet) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let password = wallet
        .certificate_password()
        .map_err(|_| file_error(path, "holds a private key whose password cannot be derived"))?;
    encrypted_key::decrypt(der, &password).map_err(|error| file_error(path, error))
}

// === impl NewFiles ===

/// Newly created files. Drop removes them unless they are kept.
struct NewFiles {
    dir: PathBuf,
    files: Vec<PathBuf>,
    /// The directory is new, too.
    is_new_dir: bool,
}

impl NewFiles {
    fn in_dir(dir: &Path) -> Result<Self, IdentityError> {
        let is_new_dir = !dir.is_dir();
        if is_new_dir {
            let created = DirBuilder::new().mode(DIR_MODE).recursive(true).create(dir);
            created.map_err(|error| file_error(dir, error))?;
        }
        Ok(Self { dir: dir.to_owned(), files: Vec::new(), is_new_dir })
    }

    /// Creates a file, which appears as a whole. Fails if the name exists.
    fn write(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<(), IdentityError> {
        let path = self.dir.join(name);
        let io = |error| file_error(&path, error);
        let mut file: NamedTempFile = tempfile::Builder::new()
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(&self.dir)
            .map_err(io)?;
        file.write_all(content).and_then(|()| file.as_file().sync_all()).map_err(io)?;
        file.persist_noclobber(&path).map_err(|refused| match refused.error.kind() {
            io::ErrorKind::AlreadyExists => IdentityError::Exists { path: path.clone() },
            _ => io(refused.error),
        })?;
        self.files.push(path);
        Ok(())
    }

    fn keep(mut self) -> Result<(), IdentityError> {
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(|error| file_error(&self.dir, error))?;
        self.files.clear();
        self.is_new_dir = false;
        Ok(())
    }
}

impl Drop for NewFiles {
    fn drop(&mut self) {
        for path in &self.files {
            let _ = std::fs::remove_file(path);
        }
        if self.is_new_dir {
            // Fails, as it should, if another process has created a file there.
            let _ = std::fs::remove_dir(&self.dir);
        }
    }
}
