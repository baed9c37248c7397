//! Tests of the whole program, from outside: one binary, a module for each part.
#![expect(clippy::unwrap_used, reason = "a test that finds nothing fails")]

mod local;
