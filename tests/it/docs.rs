//! Generates the pages of `docs/` that list what the code declares, and compares them.

use std::env;
use std::fs;
use std::path::Path;

mod config;
mod metrics;

/// If set, the pages are written instead of compared.
const UPDATE: &str = "UPDATE_DOCS";

/// Writes the pages. The names of all tests of pages match this filter.
const COMMAND: &str = "UPDATE_DOCS=1 cargo test made_from_the_code";

/// Asserts that the page `name` has the text `made`.
fn check_page(name: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    if env::var_os(UPDATE).is_some() {
        fs::write(&path, made).unwrap();
        return;
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let other = found.lines().zip(made.lines()).find(|(found, made)| found != made);
    assert!(found == made, "docs/{name} differs from the code; run: {COMMAND}\nfirst difference: {other:?}");
}
