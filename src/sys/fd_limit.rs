//! The limit of open files of this process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The system does not permit the requested number. Contains the largest permitted number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FdLimitExceeded(pub u64);

/// Raises the limit of this process and its children to `needed`, if it is lower.
///
/// # Errors
/// [`FdLimitExceeded`] if the system refuses. The limit is unchanged then.
pub(crate) fn raise_to(needed: u64) -> Result<(), FdLimitExceeded> {
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

/// Raises the limit as far as the system permits and returns it.
pub fn raise_to_maximum() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    match raise_to(most) {
        Ok(()) => most,
        Err(FdLimitExceeded(allowed)) => allowed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_limit_changes_nothing_and_higher_than_maximum_fails() {
        let before = getrlimit(Resource::Nofile).current;
        assert_eq!(raise_to(1), Ok(()));
        assert_eq!(getrlimit(Resource::Nofile).current, before);
        if let Some(most) = getrlimit(Resource::Nofile).maximum {
            assert_eq!(raise_to(most + 1), Err(FdLimitExceeded(most)));
        }
    }
}
