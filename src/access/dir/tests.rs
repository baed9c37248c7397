//! A trust directory with real files and a real notifier.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::access::cert::TenantCertificate;
use crate::access::refusal::Refusal;
use crate::access::testing::Tenant;
use crate::access::trust::{TrustAnswer, TrustedItem};

/// Time limit of a condition, for a machine under load.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How often a condition is checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);

struct Issued {
    certificate: TenantCertificate,
    pem: String,
}

fn issue(number: u8, serial: u64) -> Issued {
    let (certificate, pem) = Tenant::new(number, serial).issue();
    Issued { certificate, pem }
}

async fn open(dir: &Path) -> DirTrust {
    // Too long to occur, so the tests depend on notifications.
    let poll = Duration::from_secs(3600);
    DirTrust::open(dir, &Notifier::start(), poll).await.unwrap()
}

async fn ask(trust: &DirTrust, issued: &Issued) -> Option<TrustedItem> {
    let certificate = &issued.certificate;
    match trust.certificate(certificate.owner(), certificate.serial()).await {
        Ok(TrustAnswer::Trusted(trusted)) if trusted.value == *certificate.der() => Some(trusted),
        _ => None,
    }
}

async fn appears(trust: &DirTrust, issued: &Issued) -> TrustedItem {
    let wait = async {
        loop {
            if let Some(trusted) = ask(trust, issued).await {
                return trusted;
            }
            sleep(CHECK_INTERVAL).await;
        }
    };
    tokio::time::timeout(TIMEOUT, wait).await.expect("not picked up")
}

async fn ends(trusted: &TrustedItem) {
    tokio::time::timeout(TIMEOUT, trusted.revocation.ended(Refusal::AccountWithdrawn))
        .await
        .expect("not revoked");
}

fn rename_into(dir: &Path, name: &str, content: &str) {
    let temporary = dir.join("temporary");
    fs::write(&temporary, content).unwrap();
    fs::rename(temporary, dir.join(name)).unwrap();
}

#[tokio::test]
async fn certificate_file_is_trusted_until_removed() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second, third] = [1, 2, 3].map(|n| issue(n, 1));
    fs::write(dir.path().join("first.pem"), &first.pem).unwrap();
    let trust = open(dir.path()).await;
    let first_trusted = ask(&trust, &first).await.expect("read at start");

    // Two in one file, with a comment.
    let both = format!("# tenants\n{}\n{}", second.pem, third.pem);
    fs::write(dir.path().join("more.pem"), both).unwrap();
    let second_trusted = appears(&trust, &second).await;
    let third_trusted = appears(&trust, &third).await;

    fs::remove_file(dir.path().join("first.pem")).unwrap();
    ends(&first_trusted).await;
    assert!(ask(&trust, &first).await.is_none());

    fs::write(dir.path().join("more.pem"), &third.pem).unwrap();
    ends(&second_trusted).await;
    assert!(!third_trusted.revocation.is_ended());
    assert_eq!(trust.trusted(), 1);
}

#[tokio::test]
async fn replaced_certificate_is_revoked() {
    let dir = tempfile::tempdir().unwrap();
    // The same owner and serial number, but another key.
    let [old, new] = [issue(1, 1), issue(1, 1)];
    fs::write(dir.path().join("tenant.pem"), &old.pem).unwrap();
    let trust = open(dir.path()).await;
    let trusted = ask(&trust, &old).await.unwrap();
    rename_into(dir.path(), "tenant.pem", &new.pem);
    ends(&trusted).await;
    appears(&trust, &new).await;
    assert!(ask(&trust, &old).await.is_none());
}

#[tokio::test]
async fn unusable_files_are_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let [good, hidden, other] = [1, 2, 3].map(|n| issue(n, 1));
    fs::write(dir.path().join(".hidden.pem"), &hidden.pem).unwrap();
    fs::write(dir.path().join("other.crt"), &other.pem).unwrap();
    fs::create_dir(dir.path().join("directory.pem")).unwrap();
    fs::write(dir.path().join("garbage.pem"), [0xff; 1000]).unwrap();
    fs::write(dir.path().join("large.pem"), vec![b'x'; 1 << 20]).unwrap();
    symlink("nowhere", dir.path().join("dangling.pem")).unwrap();
    symlink("loop.pem", dir.path().join("loop.pem")).unwrap();
    let pipe = dir.path().join("pipe.pem");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .unwrap();
    fs::write(dir.path().join("good.pem"), &good.pem).unwrap();
    let trust = open(dir.path()).await;
    assert!(ask(&trust, &good).await.is_some());
    assert_eq!(trust.trusted(), 1);
}

#[tokio::test]
async fn unusable_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for (path, why) in [(dir.path().join("missing"), "does not exist"), (file, "is not a directory")] {
        let opened = DirTrust::open(&path, &Notifier::start(), TIMEOUT).await;
        let text = opened.unwrap_err().to_string();
        assert_eq!(text, format!("trust directory {}: {why}", path.display()));
    }
}

#[tokio::test]
async fn last_state_stays_while_directory_is_missing() {
    let outer = tempfile::tempdir().unwrap();
    let (dir, aside) = (outer.path().join("trust"), outer.path().join("aside"));
    let [kept, dropped, new] = [1, 2, 3].map(|n| issue(n, 1));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("kept.pem"), &kept.pem).unwrap();
    fs::write(dir.join("dropped.pem"), &dropped.pem).unwrap();
    let trust = open(&dir).await;
    let kept_trusted = ask(&trust, &kept).await.unwrap();
    let dropped_trusted = ask(&trust, &dropped).await.unwrap();

    fs::rename(&dir, &aside).unwrap();
    // A change in the former directory is ignored from now on.
    fs::remove_file(aside.join("kept.pem")).unwrap();
    fs::create_dir(outer.path().join("next")).unwrap();
    fs::write(outer.path().join("next/kept.pem"), &kept.pem).unwrap();
    fs::rename(outer.path().join("next"), &dir).unwrap();
    fs::write(aside.join("nudge"), "").unwrap();
    ends(&dropped_trusted).await;
    assert!(!kept_trusted.revocation.is_ended());

    // The new directory is watched now.
    fs::write(dir.join("new.pem"), &new.pem).unwrap();
    appears(&trust, &new).await;
    assert!(!kept_trusted.revocation.is_ended());
}

#[tokio::test]
async fn recreated_directory_is_read_again() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("trust");
    let [kept, new] = [1, 2].map(|n| issue(n, 1));
    fs::create_dir(&dir).unwrap();
    let trust = open(&dir).await;
    fs::write(dir.join("kept.pem"), &kept.pem).unwrap();
    appears(&trust, &kept).await;
    fs::remove_dir_all(&dir).unwrap();
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("new.pem"), &new.pem).unwrap();
    appears(&trust, &new).await;
}

/// Kubernetes mounts secrets and config maps like this: a link to a link, of which the second is replaced.
#[tokio::test]
async fn replaced_link_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let [old, new, same] = [issue(1, 1), issue(1, 2), issue(2, 1)];
    for (version, tenant) in [("..one", &old), ("..two", &new)] {
        let version = dir.path().join(version);
        fs::create_dir(&version).unwrap();
        fs::write(version.join("tenant.pem"), &tenant.pem).unwrap();
        fs::write(version.join("same.pem"), &same.pem).unwrap();
    }
    symlink("..one", dir.path().join("..data")).unwrap();
    symlink("..data/tenant.pem", dir.path().join("tenant.pem")).unwrap();
    symlink("..data/same.pem", dir.path().join("same.pem")).unwrap();
    let trust = open(dir.path()).await;
    let old_trusted = ask(&trust, &old).await.unwrap();
    let same_trusted = ask(&trust, &same).await.unwrap();
    symlink("..two", dir.path().join("..next")).unwrap();
    fs::rename(dir.path().join("..next"), dir.path().join("..data")).unwrap();
    ends(&old_trusted).await;
    appears(&trust, &new).await;
    assert!(!same_trusted.revocation.is_ended());
}

#[tokio::test]
async fn change_behind_a_link_is_found_by_polling() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("trust");
    let target = outer.path().join("target.pem");
    let tenant = issue(1, 1);
    fs::create_dir(&dir).unwrap();
    fs::write(&target, &tenant.pem).unwrap();
    symlink(&target, dir.join("tenant.pem")).unwrap();
    let poll = Duration::from_millis(20);
    let trust = DirTrust::open(&dir, &Notifier::start(), poll).await.unwrap();
    let trusted = ask(&trust, &tenant).await.unwrap();
    fs::remove_file(&target).unwrap();
    ends(&trusted).await;
    fs::write(&target, &tenant.pem).unwrap();
    appears(&trust, &tenant).await;
}

/// The trust directory is a link itself. Its replacement causes no notification.
#[tokio::test]
async fn replaced_link_to_the_directory_is_found_by_polling() {
    let outer = tempfile::tempdir().unwrap();
    let [old, new, late] = [1, 2, 3].map(|n| issue(n, 1));
    for (name, tenant) in [("one", &old), ("two", &new)] {
        let dir = outer.path().join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("tenant.pem"), &tenant.pem).unwrap();
    }
    let (dir, next) = (outer.path().join("trust"), outer.path().join("next"));
    symlink("one", &dir).unwrap();
    let poll = Duration::from_millis(20);
    let trust = DirTrust::open(&dir, &Notifier::start(), poll).await.unwrap();
    let old_trusted = ask(&trust, &old).await.unwrap();
    symlink("two", &next).unwrap();
    fs::rename(&next, &dir).unwrap();
    ends(&old_trusted).await;
    appears(&trust, &new).await;
    fs::write(dir.join("late.pem"), &late.pem).unwrap();
    appears(&trust, &late).await;
}

#[tokio::test]
async fn directory_is_polled_without_inotify() {
    let dir = tempfile::tempdir().unwrap();
    let tenant = issue(1, 1);
    let trust = DirTrust::open(dir.path(), &Notifier::polling(), TIMEOUT).await.unwrap();
    fs::write(dir.path().join("tenant.pem"), &tenant.pem).unwrap();
    let trusted = appears(&trust, &tenant).await;
    fs::remove_file(dir.path().join("tenant.pem")).unwrap();
    ends(&trusted).await;
}

#[tokio::test]
async fn key_file_is_trusted_until_removed() {
    // For the secret key 1.
    let key: AccountKey =
        "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798".parse().unwrap();
    let owner = key.address();
    let dir = tempfile::tempdir().unwrap();
    let trust = open(dir.path()).await;
    assert!(matches!(trust.account_key(&owner).await, Ok(TrustAnswer::Unknown)));
    fs::write(dir.path().join("tenant.pub"), format!("{owner} {key}\n")).unwrap();
    let wait = async {
        loop {
            if let Ok(TrustAnswer::Trusted(trusted)) = trust.account_key(&owner).await {
                return trusted;
            }
            sleep(CHECK_INTERVAL).await;
        }
    };
    let trusted = tokio::time::timeout(TIMEOUT, wait).await.expect("not picked up");
    assert_eq!(trusted.value, key);
    fs::remove_file(dir.path().join("tenant.pub")).unwrap();
    tokio::time::timeout(TIMEOUT, trusted.revocation.ended(Refusal::AccountWithdrawn))
        .await
        .expect("not revoked");
    assert!(matches!(trust.account_key(&owner).await, Ok(TrustAnswer::Unknown)));
}
