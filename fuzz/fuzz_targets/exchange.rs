#![no_main]

#[path = "../bodies.rs"]
#[allow(dead_code, reason = "one of several")]
mod bodies;

libfuzzer_sys::fuzz_target!(|input: &[u8]| bodies::exchange(input));
