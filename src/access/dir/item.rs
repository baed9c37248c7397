//! What a file of a trust directory holds: certificates (`*.pem`), or keys of accounts (`*.pub`).
//!
//! A file of keys has one a line: the account's address, a space, and the key's 66 hexadecimal digits. Address and key must
//! belong together. Empty lines and lines that begin with `#` are skipped.

use std::path::Path;
use std::str;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::file::Fault;
use crate::access::account::AccountKey;
use crate::access::cert::{Serial, TenantCertificate};
use crate::access::trust::Certificate;
use crate::model::id::Owner;

/// Most certificates in one file. A file is meant for one tenant, who may hold a few at a time.
pub(in crate::access) const CERTIFICATES_MAX: usize = 16;

/// Most keys in one file: a list of all tenants may well be one file.
pub(in crate::access) const KEYS_MAX: usize = 500;

/// Endings of the names of files that are read.
const CERTIFICATES: &str = "pem";
const KEYS: &str = "pub";

/// One thing to be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::access) enum TrustEntry {
    Certificate(TenantCertificate),
    Account(AccountKey),
}

/// Under which name something is trusted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::access) enum TrustKey {
    Certificate(Owner, Serial),
    Account(Owner),
}

/// What is trusted under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::access) enum TrustValue {
    Certificate(Certificate),
    Account(AccountKey),
}

/// Whether a file of this name is read, as the shell's `*.pem` and `*.pub` have it: files that begin with a dot are other
/// people's temporary ones.
pub(super) fn is_read(name: &[u8]) -> bool {
    let ends = |ending: &str| name.strip_suffix(ending.as_bytes()).is_some_and(|rest| rest.ends_with(b"."));
    (ends(CERTIFICATES) || ends(KEYS)) && !name.starts_with(b".")
}

/// The items of good form in the file at `path`, of this content, and the first thing that is wrong with it.
pub(in crate::access) fn parse(path: &Path, content: &[u8]) -> (Vec<TrustEntry>, Option<Fault>) {
    if path.extension().is_some_and(|ending| ending == KEYS) { keys(content) } else { certificates(content) }
}

/// The certificates in a PEM file. Blocks of other kinds, such as the encrypted key that Akash's own tools keep beside the
/// certificate, are skipped.
fn certificates(pem: &[u8]) -> (Vec<TrustEntry>, Option<Fault>) {
    let mut items = Vec::new();
    let mut fault = None;
    for (at, block) in CertificateDer::pem_slice_iter(pem).enumerate() {
        let number = at + 1;
        if at == CERTIFICATES_MAX {
            fault.get_or_insert(Fault::TooMany);
            break;
        }
        // The PEM reader's own error repeats what it read, which may be part of a key.
        let checked = block.map_err(|_| Fault::Pem { number }).and_then(|der| {
            TenantCertificate::from_der(&der).map_err(|refusal| Fault::Certificate { number, refusal })
        });
        match checked {
            Ok(certificate) => items.push(TrustEntry::Certificate(certificate)),
            Err(found) => {
                fault.get_or_insert(found);
            }
        }
    }
    if items.is_empty() {
        fault.get_or_insert(Fault::Empty);
    }
    (items, fault)
}

fn keys(content: &[u8]) -> (Vec<TrustEntry>, Option<Fault>) {
    let mut items = Vec::new();
    let mut fault = None;
    for (at, line) in content.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        if items.len() == KEYS_MAX {
            fault.get_or_insert(Fault::TooManyKeys);
            break;
        }
        match key(line) {
            Some(key) => items.push(TrustEntry::Account(key)),
            None => {
                fault.get_or_insert(Fault::Key { line: at + 1 });
            }
        }
    }
    if items.is_empty() {
        fault.get_or_insert(Fault::NoKey);
    }
    (items, fault)
}

fn key(line: &[u8]) -> Option<AccountKey> {
    let (address, key) = str::from_utf8(line).ok()?.split_once(' ')?;
    let key: AccountKey = key.trim_start().parse().ok()?;
    (key.address().as_str() == address).then_some(key)
}

// === impl Item ===

impl TrustEntry {
    pub(in crate::access) fn name(&self) -> TrustKey {
        match self {
            Self::Certificate(one) => TrustKey::Certificate(one.owner().clone(), one.serial().clone()),
            Self::Account(key) => TrustKey::Account(key.address()),
        }
    }

    pub(in crate::access) fn content(&self) -> TrustValue {
        match self {
            Self::Certificate(one) => TrustValue::Certificate(Certificate::clone(one.der())),
            Self::Account(key) => TrustValue::Account(key.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the secret keys 1 and 2.
    const ONE: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
    const TWO: &str = "02c6047f9441ed7d6d3045406e95c07cd85c778e4b8cef3ca7abac09b95c709ee5";

    fn read(text: &str) -> (Vec<String>, Option<Fault>) {
        let (items, fault) = parse(Path::new("tenants.pub"), text.as_bytes());
        let keys = items.into_iter().map(|item| match item {
            TrustEntry::Account(key) => key.to_string(),
            TrustEntry::Certificate(_) => panic!("a certificate"),
        });
        (keys.collect(), fault)
    }

    fn address(key: &str) -> String {
        key.parse::<AccountKey>().unwrap().address().to_string()
    }

    #[test]
    fn keys_stand_one_a_line_behind_their_address() {
        let text = format!("# tenants\n\n{} {ONE}\r\n  {}   {TWO}", address(ONE), address(TWO));
        assert_eq!(read(&text), (vec![ONE.to_owned(), TWO.to_owned()], None));
    }

    #[test]
    fn a_line_that_is_none_is_named_and_the_others_count() {
        let good = format!("{} {ONE}", address(ONE));
        let mixed = format!("{} {TWO}", address(ONE));
        for bad in [ONE, "akash1x", &format!("{} {}", address(ONE), &ONE[2..]), &mixed, &format!("{good} x")]
        {
            let text = format!("{good}\n{bad}\n");
            assert_eq!(read(&text), (vec![ONE.to_owned()], Some(Fault::Key { line: 2 })), "{bad}");
        }
        assert_eq!(read("# nothing\n"), (Vec::new(), Some(Fault::NoKey)));
    }

    #[test]
    fn no_more_than_so_many_keys_are_taken_from_a_file() {
        let text = format!("{} {ONE}\n", address(ONE)).repeat(KEYS_MAX + 1);
        let (keys, fault) = read(&text);
        assert_eq!((keys.len(), fault), (KEYS_MAX, Some(Fault::TooManyKeys)));
    }

    #[test]
    fn names_are_those_of_the_shell() {
        for name in ["a.pem", "a.pub", "a.b.pub"] {
            assert!(is_read(name.as_bytes()), "{name}");
        }
        for name in [".a.pem", ".pub", "pem", "a.pem~", "a.crt", ""] {
            assert!(!is_read(name.as_bytes()), "{name}");
        }
    }
}
