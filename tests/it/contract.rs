//! What callers are told: codes, reasons, fields, and what is nobody else's business.

mod beside;
mod callers;
mod cursors;
mod early;
mod requests;
mod tokens;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::reason;

/// What no caller may read: places, parts and people within the gateway. `marker` stands in whatever these tests send that
/// must not be sent back.
const INTERNAL: [&str; 14] = [
    "marker",
    "uid-",
    "/tmp",
    ".rs",
    ".pem",
    "127.0.0.1",
    "localhost",
    "panicked",
    "os error",
    "Error {",
    "Some(",
    "tokio",
    "hyper",
    "rustls",
];

/// Checks a refusal: its code and reason, and that it is fit to be shown.
#[track_caller]
fn check(case: &str, status: &Status, code: Code, expected: &str) {
    assert_eq!((status.code(), reason(status).as_str()), (code, expected), "{case}: {status:?}");
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.domain, "leasemux", "{case}");
    let quota = info.metadata.contains_key("quota");
    assert_eq!((quota, info.metadata.len()), (expected == "QUOTA_USED_UP", usize::from(quota)), "{case}");
    let words = status.message();
    assert!(!words.is_empty() && words.len() < 400, "{case}: {words}");
    for internal in INTERNAL {
        assert!(!words.contains(internal), "{case}: {words}");
    }
    let invalid = status.get_details_bad_request();
    assert_eq!(invalid.is_some(), code == Code::InvalidArgument, "{case}");
    let retry = status.get_details_retry_info();
    let passes = retry.is_some_and(|retry| retry.retry_delay.is_some());
    // A quota may be one that no waiting helps against.
    assert!(quota || passes == matches!(code, Code::Unavailable | Code::ResourceExhausted), "{case}");
}

/// Checks that a request was refused for what is in this field; empty = for the request as a whole.
#[track_caller]
fn check_invalid(case: &str, status: &Status, field: &str) {
    check(case, status, Code::InvalidArgument, "INVALID_REQUEST");
    let violations = status.get_details_bad_request().unwrap().field_violations;
    let [violation] = &violations[..] else { panic!("{case}: {violations:?}") };
    assert_eq!(violation.field, field, "{case}: {status:?}");
    assert!(!violation.description.is_empty(), "{case}");
    let words = status.message();
    assert!(words.starts_with(field) && words.ends_with(&violation.description), "{case}: {words}");
}
