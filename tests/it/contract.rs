//! What callers receive: codes, reasons and fields of errors, and nothing internal.

mod callers;
mod cursors;
mod early_rejection;
mod other_services;
mod requests;
pub(crate) mod tokens;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::reason;

/// Texts that no caller may receive: paths, addresses and parts of the gateway. These tests put `marker` into
/// input that must not be returned.
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

/// Checks the code, reason and details of an error, and that it shows nothing internal.
#[track_caller]
fn check(case: &str, status: &Status, code: Code, expected: &str) {
    assert_eq!((status.code(), reason(status).as_str()), (code, expected), "{case}: {status:?}");
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.domain, "leasemux", "{case}");
    let quota = info.metadata.contains_key("quota");
    assert_eq!((quota, info.metadata.len()), (expected == "QUOTA_USED_UP", usize::from(quota)), "{case}");
    let message = status.message();
    assert!(!message.is_empty() && message.len() < 400, "{case}: {message}");
    for internal in INTERNAL {
        assert!(!message.contains(internal), "{case}: {message}");
    }
    let invalid = status.get_details_bad_request();
    assert_eq!(invalid.is_some(), code == Code::InvalidArgument, "{case}");
    let retry = status.get_details_retry_info();
    let is_temporary = retry.is_some_and(|retry| retry.retry_delay.is_some());
    // Waiting does not help against every quota.
    assert!(quota || is_temporary == matches!(code, Code::Unavailable | Code::ResourceExhausted), "{case}");
}

/// Checks that a request was rejected because of this field; empty = because of the whole request.
#[track_caller]
fn check_invalid(case: &str, status: &Status, field: &str) {
    check(case, status, Code::InvalidArgument, "INVALID_REQUEST");
    let violations = status.get_details_bad_request().unwrap().field_violations;
    let [violation] = &violations[..] else { panic!("{case}: {violations:?}") };
    assert_eq!(violation.field, field, "{case}: {status:?}");
    assert!(!violation.description.is_empty(), "{case}");
    let message = status.message();
    assert!(message.starts_with(field) && message.ends_with(&violation.description), "{case}: {message}");
}
