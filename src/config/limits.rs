//! The bounds that an operator may change.

use std::time::Duration;

use super::cli::{ConnectionArgs, LimitsArgs, QuotaArgs};
use super::faults::Resolver;
use super::value::{duration, number, size};
use crate::model::limits::{CHUNK_MAX_BYTES, Limits, TOKEN_LIFETIME_MAX};

mod connection;
mod quota;

/// Smallest ring: some chunks, or every burst would be a loss.
const RING_MIN_BYTES: u64 = 4 * CHUNK_MAX_BYTES as u64;

/// Largest ring: one per replica being followed.
const RING_MAX_BYTES: u64 = 1 << 30;

/// Longest pace: beyond it a person sees lines come in jerks.
const PACE_MAX: Duration = Duration::from_secs(1);

/// Longest of the times that are there to end something.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

/// Shortest time for a handshake, a look at a directory or a peer's silence: below it everything would fail or spin.
const TIMEOUT_MIN: Duration = Duration::from_millis(100);

/// Shortest lifetime of tokens: they count in whole seconds.
const TOKEN_LIFETIME_MIN: Duration = Duration::from_secs(1);

/// Most of what is counted per time; 0 is for no limit.
const RATE_MAX: u32 = 1_000_000;

pub(super) fn resolve(
    args: &LimitsArgs,
    connections: &ConnectionArgs,
    quotas: &QuotaArgs,
    read: &mut Resolver<'_>,
) -> Option<Limits> {
    let timeout = || duration(TIMEOUT_MIN..=TIMEOUT_MAX);
    let ring = size(RING_MIN_BYTES..=RING_MAX_BYTES);
    let ring_max_bytes = read.one("ring_max_bytes", args.ring_max_bytes.as_ref(), ring);
    let pace = read.one("pace", args.pace.as_ref(), duration(Duration::ZERO..=PACE_MAX));
    let idle = duration(Duration::ZERO..=TIMEOUT_MAX);
    let actor_idle = read.one("actor_idle", args.actor_idle.as_ref(), idle);
    let stall = read.one("stall_timeout", args.stall_timeout.as_ref(), timeout());
    let lame_duck = duration(Duration::ZERO..=TIMEOUT_MAX);
    let lame_duck = read.one("lame_duck", args.lame_duck.as_ref(), lame_duck);
    let drain = duration(Duration::ZERO..=TIMEOUT_MAX);
    let drain = read.one("drain_timeout", args.drain_timeout.as_ref(), drain);
    let trust_poll = read.one("trust_poll", args.trust_poll.as_ref(), timeout());
    let token = duration(TOKEN_LIFETIME_MIN..=TOKEN_LIFETIME_MAX);
    let token_lifetime = read.one("token_max_lifetime", args.token_max_lifetime.as_ref(), token);
    let audited = number(0..=RATE_MAX);
    let audited = read.one("audit_refusals_per_minute", args.audit_refusals_per_minute.as_ref(), audited);
    let connection = connection::resolve(connections, read);
    let quota = quota::resolve(quotas, read);
    Some(Limits {
        ring_max_bytes: usize::try_from(ring_max_bytes?).ok()?,
        pace: pace?,
        actor_idle: actor_idle?,
        stall: stall?,
        lame_duck,
        drain: drain?,
        trust_poll: trust_poll?,
        token_lifetime: token_lifetime?,
        audit_refusals_per_minute: audited?,
        connection: connection?,
        quota: quota?,
    })
}
