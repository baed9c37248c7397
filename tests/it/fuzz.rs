//! Replays the fuzzing corpus with the code of the fuzz targets.

use std::fs;
use std::path::{Path, PathBuf};

use leasemux::access::cert::TenantCertificate;
use leasemux::access::refusal::Refusal;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

#[path = "../../fuzz/bodies.rs"]
mod bodies;

/// Mutated inputs per target: together they take about a second.
const MUTATED_INPUTS: usize = 2_000;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// Runs all inputs in the corpus of `target`.
fn replay(target: &str, body: Body) {
    let mut inputs = 0;
    for entry in fs::read_dir(corpus(target)).unwrap() {
        body(&fs::read(entry.unwrap().path()).unwrap());
        inputs += 1;
    }
    assert!(inputs > 0, "{target}");
}

/// The code of a fuzz target.
type Body = fn(&[u8]);

const TARGETS: [(&str, Body); 8] = [
    ("token", bodies::token),
    ("certificate", bodies::certificate),
    ("request", bodies::request),
    ("published", bodies::published),
    ("query", bodies::query),
    ("cri", bodies::cri),
    ("sdl", bodies::sdl),
    ("websocket", bodies::websocket),
];

#[test]
fn corpus_of_each_target_passes() {
    for (target, body) in TARGETS {
        replay(target, body);
    }
}

/// Mutates `input` in one place: flips a bit, replaces a byte, removes a piece or repeats one.
fn mutate(input: &mut Vec<u8>, random: &mut StdRng) {
    if input.is_empty() {
        input.push(random.random());
        return;
    }
    let at = random.random_range(0..input.len());
    let end = random.random_range(at..=input.len().min(at + 16));
    match random.random_range(0..4) {
        0 => input[at] ^= 1 << random.random_range(0..8),
        1 => input[at] = random.random(),
        2 => drop(input.drain(at..end)),
        _ => {
            let piece = input[at..end].to_vec();
            let to = random.random_range(0..=input.len());
            drop(input.splice(to..to, piece));
        }
    }
}

/// A few deterministic mutations without guidance: they find simple bugs without a fuzzing run.
#[test]
fn mutated_corpus_passes() {
    for (target, body) in TARGETS {
        let mut random = StdRng::seed_from_u64(5);
        let mut files: Vec<_> =
            fs::read_dir(corpus(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        for step in 0..MUTATED_INPUTS {
            let mut input = fs::read(&files[step % files.len()]).unwrap();
            for _ in 0..random.random_range(1..=4) {
                mutate(&mut input, &mut random);
            }
            body(&input);
        }
    }
}

#[test]
fn fuzzed_certificate_reaches_checks_after_signature() {
    let seed = |name| fs::read(corpus("certificate").join(name)).unwrap();
    let check =
        |content: &[u8]| TenantCertificate::from_der(&bodies::self_signed(content).into()).map(|_| ());
    assert_eq!(check(&seed("seed-content")), Ok(()));
    assert_eq!(check(&seed("seed-content-long")), Ok(()));
    let extended = |name| check(&bodies::with_extensions(&seed(name)));
    assert_eq!(extended("seed-extensions"), Ok(()));
    assert_eq!(extended("seed-extensions-authority"), Ok(()));
    assert_eq!(extended("seed-extensions-unknown"), Err(Refusal::CertificateExtension));
}
