//! Summary of a canary.

use std::fmt;
use std::time::Duration;

use super::account::Totals;
use crate::client::exit::Exit;

/// Result of a canary that has ended.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) totals: Totals,
    pub(super) lasted: Duration,
}

// === impl Summary ===

impl Summary {
    /// Returns the exit code: the loss check counts like that of a demo. Without a line there is no result.
    pub(super) fn exit(&self) -> Exit {
        let totals = &self.totals;
        if !totals.is_sound() || totals.delivered == 0 {
            Exit::Failed
        } else if totals.all_lost() > 0 {
            Exit::LinesLost
        } else {
            Exit::Done
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let totals = &self.totals;
        let check = match self.exit() {
            _ if totals.delivered == 0 => "nothing to check: no line of the counter was delivered",
            Exit::Failed => "FAILED",
            _ => "passed",
        };
        let gaps = totals.exact_gaps + totals.inexact_gaps;
        writeln!(f, "summary")?;
        writeln!(f, "  duration         {} s", self.lasted.as_secs())?;
        writeln!(f, "  delivered        {} lines, {} runs", totals.delivered, totals.runs)?;
        writeln!(f, "  reported lost    {} lines, in {gaps} gaps", totals.all_lost())?;
        writeln!(f, "  unreported       {} lines", totals.unreported)?;
        writeln!(f, "  repeated         {} lines", totals.repeated)?;
        writeln!(f, "  out of order     {} lines", totals.out_of_order)?;
        writeln!(f, "  overreported     {} lines", totals.overreported)?;
        writeln!(f, "  not counted      {} malformed, {} foreign", totals.malformed, totals.foreign)?;
        writeln!(f, "  loss check       {check}")
    }
}
