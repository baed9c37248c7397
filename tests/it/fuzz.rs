//! What fuzzing found worth keeping, and its seeds, through the same code as the fuzz targets.

use std::fs;
use std::path::Path;

#[path = "../../fuzz/bodies.rs"]
mod bodies;

/// Runs every input of the corpus of `target`.
fn replay(target: &str, body: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut inputs = 0;
    for entry in fs::read_dir(dir).unwrap() {
        body(&fs::read(entry.unwrap().path()).unwrap());
        inputs += 1;
    }
    assert!(inputs > 0, "{target}");
}

#[test]
fn the_corpus_of_each_target_does_no_harm() {
    replay("token", bodies::token);
    replay("certificate", bodies::certificate);
    replay("request", bodies::request);
    replay("cri", bodies::cri);
    replay("sdl", bodies::sdl);
}
