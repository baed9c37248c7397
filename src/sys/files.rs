//! How many files (and so connections) this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The system allows only so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdLimitExceeded(pub u64);

/// Raises what this process, and what it starts, may have open to `needed`, if it is less.
///
/// # Errors
/// [`FdLimitExceeded`], if the system refuses; nothing is changed then.
pub fn allow(needed: u64) -> Result<(), FdLimitExceeded> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if let Some(most) = limit.maximum.filter(|maximum| *maximum < needed) {
        return Err(FdLimitExceeded(most));
    }
    let raised = Rlimit { current: Some(needed), maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).map_err(|_| FdLimitExceeded(limit.current.unwrap_or_default()))
}

/// Raises it as far as the system allows; answers how far.
pub fn allow_most() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    match allow(most) {
        Ok(()) => most,
        Err(FdLimitExceeded(allowed)) => allowed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_already_is_left_alone_and_too_much_is_refused() {
        let before = getrlimit(Resource::Nofile).current;
        assert_eq!(allow(1), Ok(()));
        assert_eq!(getrlimit(Resource::Nofile).current, before);
        if let Some(most) = getrlimit(Resource::Nofile).maximum {
            assert_eq!(allow(most + 1), Err(FdLimitExceeded(most)));
        }
    }
}
