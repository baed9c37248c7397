//! A tenant's own side: an account, and an Akash-shaped certificate with its key, in the files of one directory. Both are made
//! or imported; a certificate that Akash's own tools wrote is imported with its key.

use std::fmt;
use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use rcgen::string::PrintableString;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::NamedTempFile;
use time::OffsetDateTime;
use x509_parser::pem::Pem;
use zeroize::Zeroizing;

use super::cert::{TenantCertificate, public_key};
use super::encrypted_key::{self, DecryptError};
use super::refusal::Refusal;
use super::wallet::{MnemonicError, Wallet, Words};
use crate::model::id::Owner;
use crate::model::time::LogTime;

/// The certificate, in PEM.
const CERTIFICATE_FILE: &str = "cert.pem";

/// Its private key, in PEM (PKCS #8).
const KEY_FILE: &str = "key.pem";

/// The account address, and a newline.
const ADDRESS_FILE: &str = "address";

/// The words of the account, and a newline.
const WORDS_FILE: &str = "mnemonic";

/// The account's address and public key: a file for a trust directory.
const ACCOUNT_FILE: &str = "account.pub";

/// All of them.
const FILES: [&str; 5] = [CERTIFICATE_FILE, KEY_FILE, ADDRESS_FILE, WORDS_FILE, ACCOUNT_FILE];

/// Modes of the directory, of what others may read, and of what they may not.
const DIR_MODE: u32 = 0o700;
const PUBLIC_MODE: u32 = 0o644;
const SECRET_MODE: u32 = 0o600;

/// How long a new certificate is valid: a year, as Akash's own tools have it.
const VALIDITY_DAYS: i64 = 365;

/// Largest file that is read, in bytes: far above a certificate or a key.
const FILE_MAX_BYTES: u64 = 64 * 1024;

/// Kinds of PEM blocks in a file of another tool: a certificate, and its key as PKCS #8, as SEC 1, or encrypted.
const PEM_CERTIFICATE: &str = "CERTIFICATE";
const PEM_PKCS8: &str = "PRIVATE KEY";
const PEM_SEC1: &str = "EC PRIVATE KEY";
const PEM_ENCRYPTED: &str = "ENCRYPTED PRIVATE KEY";

/// Begin of the header of a key that is encrypted in the old way (RFC 1421), as older Go tools of Akash did.
const PEM_OLD_ENCRYPTION: &[u8] = b"Proc-Type:";

/// Characters of Base64 in one line of PEM.
const PEM_LINE_CHARS: usize = 64;

/// The attribute in the subject that tells the form of an Akash certificate, and the form.
const FORM_OID: [u64; 5] = [2, 23, 133, 2, 6];
const FORM: &str = "v0.0.1";

/// What a tenant proves with who they are. The key does not show in any output.
pub struct IdentityFiles {
    address: Owner,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// Why an identity cannot be made or read. The text names the file and never what is in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file of that name is there. Overwriting a key cannot be undone.
    #[error("{}: exists already, and an identity is never overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The content is wrong.
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The certificate is one that no gateway would take.
    #[error("{}: {refusal}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// The first check that it fails.
        refusal: Refusal,
    },
    /// These are not the words of an account.
    #[error("{}: {error}", path.display())]
    Words {
        /// The file.
        path: PathBuf,
        /// Why.
        error: MnemonicError,
    },
    /// No account could be made.
    #[error("cannot make an account: its words failed their own check")]
    Account(#[from] MnemonicError),
    /// No certificate could be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// No certificate could be made at this time.
    #[error("cannot make a certificate: the clock is outside the years 1970 to 2261")]
    Clock,
}

// === impl IdentityFiles ===

impl IdentityFiles {
    /// Makes a fresh identity at the time `now` in `dir`, which is made if it is missing (for the user alone).
    ///
    /// # Errors
    /// [`IdentityError::Exists`] if one of the files is there. Whatever the error, no file is left behind that was not there,
    /// and none is changed.
    pub fn create(dir: &Path, now: LogTime) -> Result<Owner, IdentityError> {
        Self::import(dir, &Words::fresh()?, None, now)
    }

    /// Makes an identity of an account that exists, with the certificate and key in the file `certificate`, or with fresh ones.
    /// Else as [`IdentityFiles::create`].
    ///
    /// # Errors
    /// Also those of a certificate that no gateway would accept, that has expired, or that names another account.
    pub fn import(
        dir: &Path,
        words: &Words,
        certificate: Option<&Path>,
        now: LogTime,
    ) -> Result<Owner, IdentityError> {
        Self::check_absent(dir)?;
        let wallet = words.wallet()?;
        let account = wallet.key();
        let address = account.address();
        let parts = match certificate {
            Some(path) => Parts::read(path, &wallet, now)?,
            None => Parts::fresh(&address, now)?,
        };
        let mut phrase = words.reveal();
        phrase.push('\n');
        let made = Made::dir(dir)?;
        let made = made.file(KEY_FILE, SECRET_MODE, parts.key.as_bytes())?;
        let made = made.file(CERTIFICATE_FILE, PUBLIC_MODE, parts.certificate.as_bytes())?;
        let made = made.file(ADDRESS_FILE, PUBLIC_MODE, format!("{address}\n").as_bytes())?;
        let made = made.file(WORDS_FILE, SECRET_MODE, phrase.as_bytes())?;
        let made = made.file(ACCOUNT_FILE, PUBLIC_MODE, format!("{address} {account}\n").as_bytes())?;
        made.keep()?;
        Ok(address)
    }

    /// Checks that `dir` holds no identity yet.
    ///
    /// # Errors
    /// [`IdentityError::Exists`] if one of the files is there.
    pub fn check_absent(dir: &Path) -> Result<(), IdentityError> {
        for name in FILES {
            let path = dir.join(name);
            // A link to nothing counts as there, too.
            if path.symlink_metadata().is_ok() {
                return Err(IdentityError::Exists { path });
            }
        }
        Ok(())
    }

    /// Reads the identity in `dir`, and checks that its parts belong together. `address` may be missing, for those who bring
    /// certificate and key from elsewhere.
    ///
    /// # Errors
    /// [`IdentityError`], naming the file.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join(CERTIFICATE_FILE);
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(&path)?)
            .collect::<Result<_, _>>()
            .map_err(|_| content_error(&path, "is not well-formed PEM"))?;
        if chain.is_empty() {
            return Err(content_error(&path, "holds no certificate"));
        }
        let presented =
            TenantCertificate::from_chain(&chain).map_err(|refusal| IdentityError::Form { path, refusal })?;
        let key = load_key(&dir.join(KEY_FILE), &chain)?;
        check_address(&dir.join(ADDRESS_FILE), presented.owner())?;
        Ok(Self { address: presented.owner().clone(), chain, key })
    }

    /// Reads the account in `dir`: its words, which must be those of the address beside them, if one is there.
    ///
    /// # Errors
    /// [`IdentityError`], naming the file. An identity made before there were words has none.
    pub fn load_wallet(dir: &Path) -> Result<Wallet, IdentityError> {
        let path = dir.join(WORDS_FILE);
        let text = String::from_utf8(read(&path)?).map_err(|_| content_error(&path, "is not text"))?;
        let wallet = Words::parse(&text).and_then(|words| words.wallet());
        let wallet = wallet.map_err(|error| IdentityError::Words { path, error })?;
        check_address(&dir.join(ADDRESS_FILE), &wallet.key().address())?;
        Ok(wallet)
    }

    /// The account.
    pub fn address(&self) -> &Owner {
        &self.address
    }

    /// The certificate, as a handshake wants it, and its key.
    pub fn into_parts(self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (self.chain, self.key)
    }
}

impl fmt::Debug for IdentityFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityFiles").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What goes into a tenant's certificate: the shape that `go/node/cert` of chain-sdk gives it, and one key usage more.
pub(crate) fn certificate_params(owner: &Owner, now: LogTime) -> Result<CertificateParams, IdentityError> {
    let begin = OffsetDateTime::from_unix_timestamp(now.parts().0).map_err(|_| IdentityError::Clock)?;
    let serial = u64::try_from(now.as_nanos()).map_err(|_| IdentityError::Clock)?;
    let mut subject = DistinguishedName::new();
    let text = |text| PrintableString::try_from(text).map(DnValue::PrintableString);
    subject.push(DnType::CommonName, text(owner.as_str())?);
    subject.push(DnType::CustomDnType(FORM_OID.to_vec()), text(FORM)?);
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.serial_number = Some(SerialNumber::from_slice(&serial.to_be_bytes()));
    params.not_before = begin;
    params.not_after = begin.checked_add(time::Duration::days(VALIDITY_DAYS)).ok_or(IdentityError::Clock)?;
    params.is_ca = IsCa::ExplicitNoCa;
    // Akash's own tools leave out the first, and BoringSSL, which most gRPC clients are built on, then refuses to sign with it.
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::DataEncipherment,
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn load_key(path: &Path, chain: &[CertificateDer<'_>]) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let content = |reason| content_error(path, reason);
    // Errors of this reader may repeat what it read.
    let key = PrivateKeyDer::from_pem_slice(&read(path)?)
        .map_err(|_| content("does not hold an unencrypted private key in PEM"))?;
    match chain.first().map(|certificate| check_key(&key, certificate)) {
        Some(Ok(())) => Ok(key),
        Some(Err(KeyMismatch::Unusable)) => Err(content("does not hold a private key that can be used")),
        Some(Err(KeyMismatch::Another)) | None => Err(content("is not the key of the certificate beside it")),
    }
}

/// Why a key does not go with a certificate.
enum KeyMismatch {
    /// It is no key, or of a kind that is not known.
    Unusable,
    /// The certificate is for another key.
    Another,
}

fn check_key(key: &PrivateKeyDer<'_>, certificate: &CertificateDer<'_>) -> Result<(), KeyMismatch> {
    let signer = any_supported_type(key).map_err(|_| KeyMismatch::Unusable)?;
    let certified = public_key(certificate);
    if certified.is_some() && certified == signer.public_key() { Ok(()) } else { Err(KeyMismatch::Another) }
}

fn check_address(path: &Path, owner: &Owner) -> Result<(), IdentityError> {
    match read(path) {
        Ok(bytes) if bytes.trim_ascii() == owner.as_str().as_bytes() => Ok(()),
        Ok(_) => {
            Err(content_error(path, "is not the address of the certificate and of the mnemonic beside it"))
        }
        Err(IdentityError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| io_error(path, error))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= FILE_MAX_BYTES) {
        Ok(bytes)
    } else {
        Err(content_error(path, "is too large for what it should hold"))
    }
}

fn io_error(path: &Path, error: io::Error) -> IdentityError {
    IdentityError::Io { path: path.to_owned(), error }
}

fn content_error(path: &Path, reason: &'static str) -> IdentityError {
    IdentityError::Content { path: path.to_owned(), reason }
}

// === impl Parts ===

/// A certificate and its key, each in PEM.
struct Parts {
    certificate: String,
    key: Zeroizing<String>,
}

impl Parts {
    /// Makes a key, and a certificate for `owner` at the time `now`.
    fn fresh(owner: &Owner, now: LogTime) -> Result<Self, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = certificate_params(owner, now)?.self_signed(&key)?;
        Ok(Self { certificate: certificate.pem(), key: Zeroizing::new(key.serialize_pem()) })
    }

    /// Reads those of the account `wallet` from a file of another tool.
    fn read(path: &Path, wallet: &Wallet, now: LogTime) -> Result<Self, IdentityError> {
        let content = |reason| content_error(path, reason);
        let text = Zeroizing::new(read(path)?);
        if memchr::memmem::find(&text, PEM_OLD_ENCRYPTION).is_some() {
            return Err(content(
                "holds a private key that is encrypted in an old way (Proc-Type), which cannot be read here; \
                 leave the file out to make a new certificate",
            ));
        }
        let mut chain = Vec::new();
        let mut key = None;
        for block in Pem::iter_from_buffer(&text) {
            // The error may repeat a part of the file.
            let block = block.map_err(|_| content("is not well-formed PEM"))?;
            match block.label.as_str() {
                PEM_CERTIFICATE => chain.push(CertificateDer::from(block.contents)),
                PEM_PKCS8 | PEM_SEC1 | PEM_ENCRYPTED if key.is_some() => {
                    return Err(content("holds more than one private key"));
                }
                label @ (PEM_PKCS8 | PEM_SEC1) => {
                    let label = if label == PEM_SEC1 { PEM_SEC1 } else { PEM_PKCS8 };
                    key = Some((label, Zeroizing::new(block.contents)));
                }
                PEM_ENCRYPTED => key = Some((PEM_PKCS8, decrypt(path, &block.contents, wallet)?)),
                // A public key, or parameters of the curve.
                _ => {}
            }
        }
        let [certificate] = chain.as_slice() else {
            return Err(content("must hold exactly one certificate"));
        };
        let (label, der) = key.ok_or_else(|| content("holds no private key for its certificate"))?;
        let form = |refusal| IdentityError::Form { path: path.to_owned(), refusal };
        let presented = TenantCertificate::from_der(certificate).map_err(form)?;
        if *presented.owner() != wallet.key().address() {
            return Err(content("holds the certificate of another account than the mnemonic's"));
        }
        match presented.check_time(now) {
            // It may begin in a moment, by another clock.
            Ok(()) | Err(Refusal::CertificateNotYetValid) => {}
            Err(refusal) => return Err(form(refusal)),
        }
        let private = match label {
            PEM_SEC1 => PrivateKeyDer::Sec1(der.as_slice().into()),
            _ => PrivateKeyDer::Pkcs8(der.as_slice().into()),
        };
        match check_key(&private, certificate) {
            Ok(()) => {}
            // Noise, if a wrong password fitted by chance.
            Err(KeyMismatch::Unusable) => return Err(content("holds a private key that cannot be used")),
            Err(KeyMismatch::Another) => {
                return Err(content("holds a private key that is not its certificate's"));
            }
        }
        let certificate = pem(PEM_CERTIFICATE, certificate).to_string();
        Ok(Self { certificate, key: pem(label, &der) })
    }
}

/// Decrypts a key as Akash's Go tools keep it.
fn decrypt(path: &Path, der: &[u8], wallet: &Wallet) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let password = wallet
        .certificate_password()
        .map_err(|_| content_error(path, "holds a private key whose password cannot be made"))?;
    encrypted_key::decrypt(der, &password).map_err(|error| {
        let reason = match error {
            DecryptError::Unsupported => {
                "holds a private key that is encrypted in a way that cannot be read here; \
                 leave the file out to make a new certificate"
            }
            DecryptError::Password => {
                "holds a private key that was encrypted by another account than the mnemonic's"
            }
        };
        content_error(path, reason)
    })
}

fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    let base64 = Zeroizing::new(BASE64.encode(der));
    let lines = base64.len().div_ceil(PEM_LINE_CHARS);
    let frame = "-----BEGIN -----\n-----END -----\n".len() + 2 * label.len();
    // With all its room from the start, so that no copy of a key stays in memory.
    let mut text = Zeroizing::new(String::with_capacity(frame + base64.len() + lines));
    text.extend(["-----BEGIN ", label, "-----\n"]);
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(PEM_LINE_CHARS));
        text.extend([line, "\n"]);
        rest = after;
    }
    text.extend(["-----END ", label, "-----\n"]);
    text
}

// === impl Made ===

/// What was made so far; taken back unless it is kept.
struct Made {
    dir: PathBuf,
    files: Vec<PathBuf>,
    /// Whether the directory itself was made.
    fresh_dir: bool,
    kept: bool,
}

impl Made {
    fn dir(dir: &Path) -> Result<Self, IdentityError> {
        let mut made = Self { dir: dir.to_owned(), files: Vec::new(), fresh_dir: false, kept: false };
        if !dir.is_dir() {
            DirBuilder::new()
                .mode(DIR_MODE)
                .recursive(true)
                .create(dir)
                .map_err(|error| io_error(dir, error))?;
            made.fresh_dir = true;
        }
        Ok(made)
    }

    /// Writes a file that appears whole, and only if there is none of that name.
    fn file(mut self, name: &str, mode: u32, content: &[u8]) -> Result<Self, IdentityError> {
        let path = self.dir.join(name);
        let io = |error| io_error(&path, error);
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
        Ok(self)
    }

    fn keep(mut self) -> Result<(), IdentityError> {
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(|error| io_error(&self.dir, error))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for path in &self.files {
            let _ = std::fs::remove_file(path);
        }
        if self.fresh_dir {
            // Fails if somebody else has put something there, and then rightly so.
            let _ = std::fs::remove_dir(&self.dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::sync::Arc;

    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
    use rustls::pki_types::{ServerName, UnixTime};
    use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
    use rustls::sign::{CertifiedKey, SingleCertAndKey};
    use rustls::{
        ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, ServerConfig,
        ServerConnection, SignatureScheme,
    };

    use super::*;
    use crate::access::testing::NOW;
    use crate::model::id::Address;

    fn fresh() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        IdentityFiles::create(&inner, NOW).unwrap();
        (dir, inner)
    }

    /// The error says which file, why, and nothing of what is in it.
    fn refused(dir: &Path, file: &str, why: &str) {
        let error = IdentityFiles::load(dir).unwrap_err();
        let text = format!("{error} {error:?}");
        let begin = dir.join(file).display().to_string();
        assert!(error.to_string().starts_with(&begin) && text.contains(why), "{text}");
        assert!(!text.contains("SECRET"), "{text}");
    }

    #[test]
    fn what_is_made_can_be_loaded_and_has_the_right_form() {
        let (_keep, dir) = fresh();
        let identity = IdentityFiles::load(&dir).unwrap();
        let address = std::fs::read_to_string(dir.join(ADDRESS_FILE)).unwrap();
        assert_eq!(address, format!("{}\n", identity.address()));
        let presented = TenantCertificate::from_chain(&identity.chain).unwrap();
        assert_eq!(presented.owner(), identity.address());
        assert_eq!(presented.serial().as_str(), NOW.as_nanos().to_string());
        assert_eq!(presented.check_time(NOW), Ok(()));
        let year = 365 * 24 * 3600 * 1_000_000_000;
        assert_eq!(presented.not_after(), NOW.saturating_add_nanos(year));
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
        assert_eq!(mode(&dir), DIR_MODE);
        assert_eq!(mode(&dir.join(KEY_FILE)), SECRET_MODE);
        assert_eq!(mode(&dir.join(WORDS_FILE)), SECRET_MODE);
        let key = IdentityFiles::load_wallet(&dir).unwrap().key();
        assert_eq!(key.address(), *identity.address());
        let account = std::fs::read_to_string(dir.join(ACCOUNT_FILE)).unwrap();
        assert_eq!(account, format!("{} {key}\n", identity.address()));
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), FILES.len());
    }

    /// The first account in `tests/vectors/wallets.json`, whose certificates are in `tests/vectors/certificates`.
    fn known() -> Words {
        let wallets: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/vectors/wallets.json")).unwrap();
        Words::parse(wallets[0]["mnemonic"].as_str().unwrap()).unwrap()
    }

    fn vector(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/certificates").join(name)
    }

    #[test]
    fn imported_certificate_is_the_one_in_the_file() {
        let files = ["chain-sdk-go", "akashjs", "chain-sdk", "chain-sdk-next", "openssl-p384"];
        for name in files.map(|name| vector(&format!("{name}.pem"))) {
            let outer = tempfile::tempdir().unwrap();
            let dir = outer.path().join("tenant");
            let address = IdentityFiles::import(&dir, &known(), Some(&name), NOW).unwrap();
            let identity = IdentityFiles::load(&dir).unwrap();
            assert_eq!(*identity.address(), address);
            let der = CertificateDer::from_pem_file(&name).unwrap();
            assert_eq!(identity.chain, [der]);
            assert_eq!(IdentityFiles::load_wallet(&dir).unwrap().key().address(), address);
            assert_eq!(std::fs::read_dir(&dir).unwrap().count(), FILES.len());
            let mode = |file: &str| dir.join(file).metadata().unwrap().mode() & 0o777;
            assert_eq!([KEY_FILE, WORDS_FILE].map(mode), [SECRET_MODE; 2]);
            let key = std::fs::read_to_string(dir.join(KEY_FILE)).unwrap();
            assert!(key.starts_with("-----BEGIN PRIVATE KEY-----\n") && !key.contains("PUBLIC"), "{name:?}");
        }
    }

    #[test]
    fn imported_account_without_certificate_gets_a_fresh_one() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("tenant");
        let address = IdentityFiles::import(&dir, &known(), None, NOW).unwrap();
        assert_eq!(address.as_str(), "akash1kp030650r7q7kf83xrs6873dw3pxeg2c0kzl6q");
        assert_eq!(*IdentityFiles::load(&dir).unwrap().address(), address);
        let error = IdentityFiles::import(&dir, &known(), None, NOW).unwrap_err();
        assert!(matches!(error, IdentityError::Exists { .. }), "{error}");
    }

    #[test]
    fn key_in_sec1_form_is_imported() {
        let outer = tempfile::tempdir().unwrap();
        let text = std::fs::read(vector("akashjs.pem")).unwrap();
        let certificate = CertificateDer::from_pem_slice(&text).unwrap();
        let PrivateKeyDer::Pkcs8(pkcs8) = PrivateKeyDer::from_pem_slice(&text).unwrap() else { panic!() };
        // RFC 5208: version, algorithm, and an octet string with the key of RFC 5915.
        let (_, whole) = x509_parser::der_parser::parse_der(pkcs8.secret_pkcs8_der()).unwrap();
        let sec1 = whole.as_sequence().unwrap()[2].as_slice().unwrap();
        let file = outer.path().join("akash.pem");
        let text = [pem(PEM_CERTIFICATE, &certificate), pem(PEM_SEC1, sec1)].map(|block| block.to_string());
        std::fs::write(&file, text.concat()).unwrap();
        let dir = outer.path().join("tenant");
        IdentityFiles::import(&dir, &known(), Some(&file), NOW).unwrap();
        assert_eq!(IdentityFiles::load(&dir).unwrap().chain, [certificate]);
    }

    #[test]
    fn certificate_that_cannot_be_imported_leaves_nothing() {
        let outer = tempfile::tempdir().unwrap();
        let (dir, file) = (outer.path().join("tenant"), outer.path().join("akash.pem"));
        let import = |words: &Words, content: &[u8], now| {
            std::fs::write(&file, content).unwrap();
            let error = IdentityFiles::import(&dir, words, Some(&file), now).unwrap_err();
            assert!(!dir.exists(), "{error}");
            let text = format!("{error} {error:?}");
            assert!(text.contains("akash.pem") && !text.contains("SECRET"), "{text}");
            error.to_string()
        };
        let [plain, encrypted] =
            ["akashjs.pem", "chain-sdk-go.pem"].map(|name| std::fs::read_to_string(vector(name)).unwrap());
        let certificate = pem(PEM_CERTIFICATE, &CertificateDer::from_pem_slice(plain.as_bytes()).unwrap());
        let key = &plain[plain.find("-----BEGIN PRIVATE").unwrap()..];
        let other_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap().serialize_pem();
        let words = known();
        let long_after = LogTime::from_parts(4_000_000_000, 0).unwrap();
        let cases: [(String, LogTime, &str); 10] = [
            (String::new(), NOW, "exactly one certificate"),
            (format!("{plain}{}", *certificate), NOW, "exactly one certificate"),
            (certificate.to_string(), NOW, "no private key"),
            (format!("{plain}{key}"), NOW, "more than one private key"),
            (format!("{}{other_key}", *certificate), NOW, "not its certificate's"),
            (format!("{}{}", *certificate, *pem(PEM_PKCS8, b"SECRET")), NOW, "cannot be used"),
            (format!("{}{}", *certificate, *pem(PEM_ENCRYPTED, b"SECRET")), NOW, "encrypted in a way"),
            (
                format!("{}-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED", *certificate),
                NOW,
                "old way",
            ),
            (format!("{}-----BEGIN PRIVATE KEY-----\nSECRET?", *certificate), NOW, "well-formed PEM"),
            (plain.clone(), long_after, "expired"),
        ];
        for (content, now, why) in cases {
            let error = import(&words, content.as_bytes(), now);
            assert!(error.contains(why), "{why}: {error}");
        }
        let stranger = Words::fresh().unwrap();
        assert!(import(&stranger, plain.as_bytes(), NOW).contains("another account"));
        assert!(import(&stranger, encrypted.as_bytes(), NOW).contains("another account"));
        let missing = outer.path().join("none.pem");
        let error = IdentityFiles::import(&dir, &words, Some(&missing), NOW).unwrap_err();
        assert!(error.to_string().contains("none.pem: No such file"), "{error}");
    }

    #[test]
    fn two_identities_are_two() {
        let ((_one, first), (_two, second)) = (fresh(), fresh());
        for name in FILES {
            let read = |dir: &Path| std::fs::read(dir.join(name)).unwrap();
            assert_ne!(read(&first), read(&second), "{name}");
        }
    }

    #[test]
    fn the_subject_tells_the_form() {
        let owner = Address::from_account([1; 20]);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let certificate = certificate_params(&owner, NOW).unwrap().self_signed(&key).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate.der()).unwrap();
        assert_eq!(parsed.subject().to_string(), format!("CN={owner}, OID(2.23.133.2.6)={FORM}"));
        assert_eq!(parsed.subject(), parsed.issuer());
        let usage = parsed.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && usage.key_encipherment() && usage.data_encipherment());
        // Bits 0, 2 and 3, and no other.
        assert_eq!(usage.flags, 0b1101);
        assert!(!parsed.basic_constraints().unwrap().unwrap().value.ca);
    }

    #[test]
    fn nothing_is_overwritten() {
        for name in FILES {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(name), "mine").unwrap();
            let error = IdentityFiles::create(dir.path(), NOW).unwrap_err();
            assert!(matches!(&error, IdentityError::Exists { path } if path.ends_with(name)), "{error}");
            assert_eq!(std::fs::read_to_string(dir.path().join(name)).unwrap(), "mine");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_link_to_nothing_is_not_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("elsewhere");
        std::os::unix::fs::symlink(&target, dir.path().join(KEY_FILE)).unwrap();
        let error = IdentityFiles::create(dir.path(), NOW).unwrap_err();
        assert!(matches!(error, IdentityError::Exists { .. }), "{error}");
        assert!(!target.exists());
    }

    #[test]
    fn what_fails_half_way_leaves_nothing_behind() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("new");
        let made = Made::dir(&dir).unwrap();
        let made = made.file(KEY_FILE, SECRET_MODE, b"key").unwrap();
        assert!(dir.join(KEY_FILE).exists());
        // Somebody was faster: as `create` would see it.
        let Err(error) = made.file(KEY_FILE, SECRET_MODE, b"other") else {
            panic!("overwritten");
        };
        assert!(matches!(error, IdentityError::Exists { .. }), "{error}");
        assert!(!dir.exists());
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = IdentityFiles::create(&file.join("dir"), NOW).unwrap_err().to_string();
        assert!(error.starts_with(&file.display().to_string()), "{error}");
    }

    #[test]
    fn a_clock_before_1970_makes_no_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let error = IdentityFiles::create(dir.path(), LogTime::from_nanos(-1)).unwrap_err();
        assert!(matches!(error, IdentityError::Clock), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn faults_name_the_file_and_not_the_content() {
        let (_keep, dir) = fresh();
        let (_other, other) = fresh();
        let spoil = |name: &str, content: &[u8]| {
            let path = dir.join(name);
            let good = std::fs::read(&path).unwrap();
            std::fs::write(&path, content).unwrap();
            move || std::fs::write(&path, &good).unwrap()
        };
        let of_other = |name: &str| std::fs::read(other.join(name)).unwrap();
        let large = vec![b'x'; usize::try_from(FILE_MAX_BYTES).unwrap() + 1];
        let twice = [of_other(CERTIFICATE_FILE), of_other(CERTIFICATE_FILE)].concat();
        let cases: [(&str, &[u8], &str); 10] = [
            (CERTIFICATE_FILE, b"SECRET", "no certificate"),
            (CERTIFICATE_FILE, b"-----BEGIN CERTIFICATE-----\nSECRET", "well-formed"),
            (
                CERTIFICATE_FILE,
                b"-----BEGIN CERTIFICATE-----\nSECRET==\n-----END CERTIFICATE-----",
                "well-formed",
            ),
            (CERTIFICATE_FILE, &twice, "exactly one"),
            (CERTIFICATE_FILE, &large, "too large"),
            (KEY_FILE, b"SECRET", "private key"),
            (KEY_FILE, b"-----BEGIN PRIVATE KEY-----\nU0VDUkVU\n-----END PRIVATE KEY-----", "can be used"),
            (KEY_FILE, b"-----BEGIN PRIVATE KEY SECRET\n", "private key"),
            (KEY_FILE, &of_other(KEY_FILE), "not the key"),
            (ADDRESS_FILE, &of_other(ADDRESS_FILE), "not the address"),
        ];
        for (name, content, why) in cases {
            let restore = spoil(name, content);
            refused(&dir, name, why);
            restore();
            IdentityFiles::load(&dir).unwrap();
        }
        for name in [CERTIFICATE_FILE, KEY_FILE] {
            let good = std::fs::read(dir.join(name)).unwrap();
            std::fs::remove_file(dir.join(name)).unwrap();
            refused(&dir, name, "No such file");
            std::fs::write(dir.join(name), good).unwrap();
        }
        std::fs::remove_file(dir.join(ADDRESS_FILE)).unwrap();
        IdentityFiles::load(&dir).unwrap();
    }

    #[test]
    fn words_must_be_those_of_the_address_and_are_not_repeated() {
        let ((_one, dir), (_two, other)) = (fresh(), fresh());
        let refused = |why: &str| {
            let error = IdentityFiles::load_wallet(&dir).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.contains(why) && !text.contains("SECRET"), "{text}");
        };
        std::fs::copy(other.join(WORDS_FILE), dir.join(WORDS_FILE)).unwrap();
        refused("not the address");
        std::fs::write(dir.join(WORDS_FILE), "SECRET").unwrap();
        refused("mnemonic");
        std::fs::write(dir.join(WORDS_FILE), [0xff]).unwrap();
        refused("is not text");
        std::fs::remove_file(dir.join(WORDS_FILE)).unwrap();
        refused("No such file");
        IdentityFiles::load(&dir).unwrap();
    }

    /// Proof of possession and nothing more, on either side.
    #[derive(Debug)]
    struct PossessionOnly(Arc<CryptoProvider>);

    impl PossessionOnly {
        fn check(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            let key = public_key(certificate).ok_or(rustls::CertificateError::BadEncoding)?;
            let algorithms = &self.0.signature_verification_algorithms;
            verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
        }
    }

    impl ClientCertVerifier for PossessionOnly {
        fn root_hint_subjects(&self) -> &[DistinguishedName] {
            &[]
        }

        fn verify_client_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: UnixTime,
        ) -> Result<ClientCertVerified, rustls::Error> {
            Ok(ClientCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            unreachable!("TLS 1.3 only")
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            self.check(message, certificate, signature)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }

    impl ServerCertVerifier for PossessionOnly {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            unreachable!("TLS 1.3 only")
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            self.check(message, certificate, signature)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }

    type Credentials = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

    /// A handshake in memory; yields what the server saw of the client.
    fn shake_hands(
        server: Credentials,
        client: Credentials,
    ) -> Result<Vec<CertificateDer<'static>>, rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = Arc::new(PossessionOnly(Arc::clone(&provider)));
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::clone(&verifier) as Arc<dyn ClientCertVerifier>)
            .with_single_cert(server.0, server.1)?;
        let mut server = ServerConnection::new(Arc::new(config))?;
        let signer = any_supported_type(&client.1)?;
        let resolver = SingleCertAndKey::from(CertifiedKey::new(client.0, signer));
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(resolver));
        let mut client = ClientConnection::new(Arc::new(config), "mtls.localhost".try_into().unwrap())?;
        while server.is_handshaking() || client.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(server.peer_certificates().unwrap().to_vec())
    }

    #[test]
    fn a_handshake_takes_it_from_its_holder_only() {
        let ((_one, first), (_two, second)) = (fresh(), fresh());
        let parts = |dir: &Path| IdentityFiles::load(dir).unwrap().into_parts();
        let seen = shake_hands(parts(&second), parts(&first)).unwrap();
        assert_eq!(seen, parts(&first).0);
        let stolen = (parts(&first).0, parts(&second).1);
        let error = shake_hands(parts(&second), stolen).unwrap_err();
        assert!(
            matches!(error, rustls::Error::InvalidCertificate(rustls::CertificateError::BadSignature)),
            "{error}"
        );
    }

    #[test]
    fn the_key_does_not_show() {
        let (_keep, dir) = fresh();
        let identity = IdentityFiles::load(&dir).unwrap();
        assert_eq!(
            format!("{identity:?}"),
            format!("IdentityFiles {{ address: {}, .. }}", identity.address())
        );
    }
}
