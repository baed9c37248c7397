//! Seeded random numbers and a simulated wall clock for one thread of a test.
//!
//! A program that links this crate gets its `getrandom` and `clock_gettime` from here instead of from the C
//! library. The seeds of hash maps, of tokio and of `rand`, UUIDs, and the system's time then depend on the
//! simulation alone, without a change to the code under test. Threads without a simulation get the kernel's
//! answers.
//!
//! It is a crate of its own because the replacement needs `unsafe`, which the gateway's crate forbids. Only
//! Linux is supported, as by the gateway.

use std::cell::Cell;
use std::ffi::{c_int, c_uint, c_void};
use std::time::Duration;

thread_local! {
    /// State of the generator (`SplitMix64`).
    static RANDOM: Cell<Option<u64>> = const { Cell::new(None) };
    static WALL_CLOCK: Cell<Option<fn() -> Duration>> = const { Cell::new(None) };
}

/// Starts the simulation of the calling thread, which must not have used a hash map or a random number
/// before: it would keep their first seeds. `wall_clock` returns the time since the Unix epoch.
pub fn begin(seed: u64, wall_clock: fn() -> Duration) {
    RANDOM.set(Some(seed));
    WALL_CLOCK.set(Some(wall_clock));
}

fn next_random(state: u64) -> (u64, u64) {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (state, mixed ^ (mixed >> 31))
}

/// Replaces the function of the C library.
///
/// # Safety
/// As for `getrandom(2)`: `buffer` must be valid for writes of `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    let Some(mut state) = RANDOM.get() else {
        // SAFETY: the kernel's own interface, with the caller's arguments.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as isize };
    };
    for at in 0..length {
        let random;
        (state, random) = next_random(state);
        // SAFETY: `at` is below the length for which the caller vouches.
        unsafe { buffer.cast::<u8>().add(at).write(random as u8) };
    }
    RANDOM.set(Some(state));
    length as isize
}

/// Replaces the function of the C library.
///
/// # Safety
/// As for `clock_gettime(2)`: `time` must be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    let simulated = WALL_CLOCK.get().filter(|_| clock == libc::CLOCK_REALTIME);
    let Some(wall_clock) = simulated else {
        // SAFETY: the kernel's own interface, with the caller's arguments.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as c_int };
    };
    let now = wall_clock();
    let now = libc::timespec { tv_sec: now.as_secs() as libc::time_t, tv_nsec: now.subsec_nanos().into() };
    // SAFETY: the caller vouches for the pointer.
    unsafe { time.write(now) };
    0
}
