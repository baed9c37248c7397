//! Pages of `docs/` that are made from the code, and held against it.

use std::env;
use std::fs;
use std::path::Path;

/// Makes the pages anew instead of judging them, if set.
const UPDATE: &str = "UPDATE_DOCS";

/// How they are made anew; every test of a page is named so that this finds it.
const COMMAND: &str = "UPDATE_DOCS=1 cargo test made_from_the_code";

/// Sees to it that the page `name` is what the code makes of it.
pub(crate) fn hold(name: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    if env::var_os(UPDATE).is_some() {
        fs::write(&path, made).unwrap();
        return;
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let other = found.lines().zip(made.lines()).find(|(found, made)| found != made);
    assert!(
        found == made,
        "docs/{name} is not what the code says; run: {COMMAND}\nfirst difference: {other:?}"
    );
}
