//! The limit of open files of this process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit of this process and its children to `needed`, or as far as the system permits. Returns
/// the limit, which may be higher.
pub fn raise_to(needed: u64) -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let current = current.unwrap_or(u64::MAX);
    let raised = needed.min(maximum.unwrap_or(u64::MAX));
    if current >= raised || setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }).is_err() {
        return current;
    }
    raised
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_never_lowered_and_raised_up_to_the_maximum() {
        let limit = || getrlimit(Resource::Nofile);
        let before = limit().current;
        assert_eq!(raise_to(1), before.unwrap_or(u64::MAX));
        assert_eq!(limit().current, before);
        if let Some(most) = limit().maximum {
            assert_eq!(raise_to(most + 1), most);
            assert_eq!(limit().current, Some(most));
        }
    }
}
