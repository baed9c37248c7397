//! What fuzzing found worth keeping, and its seeds, through the same code as the fuzz targets.

use std::fs;
use std::path::{Path, PathBuf};

use leasemux::access::cert::TenantCertificate;
use leasemux::access::refusal::Refusal;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

#[path = "../../fuzz/bodies.rs"]
mod bodies;

/// Changed inputs of each target: together they take about a second.
const CHANGED_INPUTS: usize = 2_000;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// Runs every input of the corpus of `target`.
fn replay(target: &str, body: Body) {
    let mut inputs = 0;
    for entry in fs::read_dir(corpus(target)).unwrap() {
        body(&fs::read(entry.unwrap().path()).unwrap());
        inputs += 1;
    }
    assert!(inputs > 0, "{target}");
}

/// What is done with an input.
type Body = fn(&[u8]);

const TARGETS: [(&str, Body); 5] = [
    ("token", bodies::token),
    ("certificate", bodies::certificate),
    ("request", bodies::request),
    ("cri", bodies::cri),
    ("sdl", bodies::sdl),
];

#[test]
fn the_corpus_of_each_target_does_no_harm() {
    for (target, body) in TARGETS {
        replay(target, body);
    }
}

/// Changes one place of `input`: a bit, a byte, a piece taken out, or one of it put in once more.
fn change(input: &mut Vec<u8>, chance: &mut StdRng) {
    if input.is_empty() {
        input.push(chance.random());
        return;
    }
    let at = chance.random_range(0..input.len());
    let end = chance.random_range(at..=input.len().min(at + 16));
    match chance.random_range(0..4) {
        0 => input[at] ^= 1 << chance.random_range(0..8),
        1 => input[at] = chance.random(),
        2 => drop(input.drain(at..end)),
        _ => {
            let piece = input[at..end].to_vec();
            let place = chance.random_range(0..=input.len());
            drop(input.splice(place..place, piece));
        }
    }
}

/// Few, without guidance, and the same each time: so that a mistake near the surface shows where nobody fuzzes.
#[test]
fn the_corpus_changed_in_a_few_places_does_no_harm() {
    for (target, body) in TARGETS {
        let mut chance = StdRng::seed_from_u64(5);
        let mut files: Vec<_> =
            fs::read_dir(corpus(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        for step in 0..CHANGED_INPUTS {
            let mut input = fs::read(&files[step % files.len()]).unwrap();
            for _ in 0..chance.random_range(1..=4) {
                change(&mut input, &mut chance);
            }
            body(&input);
        }
    }
}

#[test]
fn what_is_fuzzed_of_a_certificate_comes_to_the_checks_behind_its_signature() {
    let seed = |name| fs::read(corpus("certificate").join(name)).unwrap();
    let verdict =
        |content: &[u8]| TenantCertificate::from_der(&bodies::self_signed(content).into()).map(|_| ());
    assert_eq!(verdict(&seed("seed-content")), Ok(()));
    assert_eq!(verdict(&seed("seed-content-long")), Ok(()));
    let extended = |name| verdict(&bodies::with_extensions(&seed(name)));
    assert_eq!(extended("seed-extensions"), Ok(()));
    assert_eq!(extended("seed-extensions-authority"), Ok(()));
    assert_eq!(extended("seed-extensions-unknown"), Err(Refusal::CertificateExtension));
}
