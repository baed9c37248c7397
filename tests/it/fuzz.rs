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

const TARGETS: [(&str, Body); 9] = [
    ("token", bodies::token),
    ("certificate", bodies::certificate),
    ("request", bodies::request),
    ("published", bodies::published),
    ("query", bodies::query),
    ("cri", bodies::cri),
    ("sdl", bodies::sdl),
    ("websocket", bodies::websocket),
    ("exchange", bodies::exchange),
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

/// Returns all byte strings of at most `length` bytes, and those of these bytes alone of at most `longer`.
fn contents(length: usize, longer: usize, bytes: &[u8]) -> Vec<Vec<u8>> {
    let all: Vec<u8> = (0..=u8::MAX).collect();
    let (mut contents, mut newest) = (vec![Vec::new()], vec![Vec::new()]);
    for step in 1..=longer {
        let alphabet = if step <= length { &all[..] } else { bytes };
        let begins = |content: &&Vec<u8>| step <= length || content.iter().all(|byte| bytes.contains(byte));
        let extended = newest.iter().filter(begins);
        newest = extended
            .flat_map(|content| alphabet.iter().map(|byte| [content, &[*byte][..]].concat()))
            .collect();
        contents.extend_from_slice(&newest);
    }
    contents
}

/// Every field 2 of up to two bytes, and of up to five among those that matter: tags, lengths, letters and
/// bytes that no name has. Alone, twice, and with the other fields of either proto.
#[test]
fn no_short_request_selects_more_than_meant() {
    let field = |content: &Vec<u8>| [&[0x12, u8::try_from(content.len()).unwrap()][..], content].concat();
    let singles: Vec<_> = contents(2, 3, b"\x00\x01\x02\x08\x0a\x10\x12\x18\x1a*-09Aahz\x7f\x80\xff")
        .iter()
        .map(field)
        .collect();
    let some: Vec<_> = contents(0, 3, b"\x00\x01\x0a\x12ah").iter().map(field).collect();
    let long: Vec<_> = contents(0, 5, b"\x00\x03\x0a\x12w").iter().map(field).collect();
    for message in singles.iter().chain(&long) {
        bodies::published(message);
    }
    // Fields of the draft, and one of neither proto; `filters` with and without a name.
    let others: [&[u8]; 6] =
        [b"\x18\x01", b"\x18\x00", b"\x20\x01", b"\xa0\x06\x05", b"\xc2\x06\x00", b"\xc2\x06\x05\x0a\x03web"];
    for first in &some {
        for second in &some {
            bodies::published(&[&first[..], second].concat());
        }
        for other in others {
            bodies::published(&[other, first].concat());
            bodies::published(&[&first[..], other].concat());
        }
        // Tag and length with more bytes than needed.
        bodies::published(&[&[0x92, 0x00][..], &first[1..]].concat());
        bodies::published(&[&[0x12, 0x80 | first[1], 0x00][..], &first[2..]].concat());
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
