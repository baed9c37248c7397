//! Exit codes.

use std::process::ExitCode;

use tonic::Code;

use super::error::{CallError, ConnectError};

/// Exit code of the program, as listed by `--help`.
///
/// An interrupted `logs` call ends by SIGINT itself, which shells show as 130.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The command did what it was asked to do.
    Done = 0,
    /// Any other failure; for a demo or a canary, unreported loss.
    Failed = 1,
    /// The arguments, the configuration or a file that they name is invalid.
    Usage = 2,
    /// Rejected: not authenticated, not permitted, or quota used up.
    Rejected = 3,
    /// No such lease, service or replica.
    NotFound = 4,
    /// Gateway unreachable or shutting down.
    Unavailable = 5,
    /// Success, but lines were lost and reported.
    LinesLost = 6,
    /// Restart: a replica failed, or was skipped after another one failed.
    NotRestarted = 7,
    /// Restart: no replica failed, and not all are ready yet.
    Pending = 8,
}

// === impl Exit ===

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<&CallError> for Exit {
    fn from(error: &CallError) -> Self {
        match error {
            CallError::Connect(
                ConnectError::Address(_)
                | ConnectError::Pem(..)
                | ConnectError::Token(_)
                | ConnectError::Setup(_),
            )
            | CallError::TooManyServices(_) => Self::Usage,
            CallError::Connect(ConnectError::Untrusted(..)) => Self::Rejected,
            CallError::Connect(_) | CallError::Unresumable => Self::Unavailable,
            // The status code of a lost connection tells how it was noticed, not its cause.
            CallError::Status(_) if error.is_disconnect() => Self::Unavailable,
            CallError::Status(status) => match status.code() {
                Code::Ok => Self::Done,
                Code::InvalidArgument => Self::Usage,
                Code::Unauthenticated | Code::PermissionDenied | Code::ResourceExhausted => Self::Rejected,
                Code::NotFound => Self::NotFound,
                Code::Unavailable => Self::Unavailable,
                _ => Self::Failed,
            },
            CallError::Sink(_) => Self::Failed,
            CallError::NoService(..) => Self::NotFound,
            CallError::Services(_, error) => Self::from(&**error),
        }
    }
}
