//! How the program ends.

use std::process::ExitCode;

use tonic::{Code, Status};

use super::connect::ConnectError;
use super::follow::FollowError;

/// The program's exit codes; `--help` tells them too.
///
/// A `logs` call that is interrupted ends by SIGINT itself, as shells expect it, and they show 130.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed for another reason; for a demo: lines were lost without a report.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// Rejection: not authenticated, not permitted, a quota used up.
    Refused = 3,
    /// There is no such lease, service or replica.
    NotFound = 4,
    /// The gateway could not be reached, or is going away.
    Unavailable = 5,
    /// Done, but lines were lost, and reported so.
    LinesLost = 6,
    /// A restart: at least one replica did not come back, or was left alone since one before it did not.
    NotRestarted = 7,
    /// A restart: none has failed, and not all are back yet.
    Pending = 8,
}

// === impl Exit ===

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<&ConnectError> for Exit {
    fn from(error: &ConnectError) -> Self {
        match error {
            ConnectError::Address(_)
            | ConnectError::Pem { .. }
            | ConnectError::Token(_)
            | ConnectError::Setup(_) => Self::Usage,
            ConnectError::Untrusted { .. } => Self::Refused,
            _ => Self::Unavailable,
        }
    }
}

impl From<&Status> for Exit {
    fn from(status: &Status) -> Self {
        match status.code() {
            Code::Ok => Self::Done,
            Code::InvalidArgument => Self::Usage,
            Code::Unauthenticated | Code::PermissionDenied | Code::ResourceExhausted => Self::Refused,
            Code::NotFound => Self::NotFound,
            Code::Unavailable => Self::Unavailable,
            _ => Self::Failed,
        }
    }
}

impl From<&FollowError> for Exit {
    fn from(error: &FollowError) -> Self {
        match error {
            FollowError::Connect(error) => Self::from(error),
            // The code of a cut connection tells how it was noticed, not what it means.
            FollowError::Status(_) if error.is_cut() => Self::Unavailable,
            FollowError::Status(status) => Self::from(&**status),
            FollowError::Sink(_) => Self::Failed,
            FollowError::Unresumable => Self::Unavailable,
        }
    }
}
