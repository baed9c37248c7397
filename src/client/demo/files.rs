//! Open files: one for each follower, here and in the gateway, which inherits what is allowed here.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::DemoError;

/// Files that a process has open for other ends: listeners, logs, pipes, the runtime's own.
const FILES_BESIDE: u64 = 256;

/// Raises what this process may have open, as far as `followers` need it.
pub(super) fn allow(followers: usize) -> Result<(), DemoError> {
    let needed = followers as u64 + FILES_BESIDE;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let refused = |allowed| DemoError::OpenFiles { followers, needed, allowed };
    if let Some(allowed) = limit.maximum.filter(|maximum| *maximum < needed) {
        return Err(refused(allowed));
    }
    let raised = Rlimit { current: Some(needed), maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).map_err(|_| refused(limit.current.unwrap_or_default()))
}
