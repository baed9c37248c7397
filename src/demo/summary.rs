//! Summary of a demo.

use std::fmt;
use std::time::Duration;

use super::followers::Outcome;
use super::gateway::Usage;
use super::takeover::Takeover;
use crate::loss_checker::{Tally, Violation};

/// Totals of all followers.
#[derive(Debug, Default)]
pub(super) struct Summary {
    /// Whether the demo was not interrupted. Then lines are expected.
    complete: bool,
    followers: usize,
    attached: usize,
    total: Tally,
    /// Used by the gateways while they were followed.
    cpu: Option<Duration>,
    peak_memory_bytes: Option<u64>,
    /// With several gateways.
    takeover: Option<Takeover>,
    violations: Vec<Violation>,
    /// Reasons of followers that ended early.
    ended: Vec<String>,
}

/// Limit on listed violations. More of them add no information.
const VIOLATIONS_SHOWN: usize = 5;

// === impl Summary ===

impl Summary {
    /// Sums up `outcomes` and the gateways' usage between `before` and `after`. `complete` is false if the
    /// demo was interrupted.
    pub(super) fn new(
        complete: bool,
        outcomes: Vec<Outcome>,
        before: Option<Usage>,
        after: Option<Usage>,
        takeover: Option<Takeover>,
    ) -> Self {
        let mut summary = Self {
            complete,
            followers: outcomes.len(),
            cpu: before.zip(after).map(|(before, after)| after.cpu.saturating_sub(before.cpu)),
            peak_memory_bytes: after.map(|usage| usage.peak_memory_bytes),
            takeover,
            ..Self::default()
        };
        for outcome in outcomes {
            summary.attached += usize::from(outcome.attached);
            summary.total.add(&outcome.tally);
            summary.violations.extend(outcome.violation.map(|violation| *violation));
            match outcome.ended {
                None => {}
                Some(Ok(ended)) => summary.ended.push(format!("the stream ended by itself ({ended:?})")),
                Some(Err(error)) => summary.ended.push(error.to_string()),
            }
        }
        summary
    }

    /// Returns whether every follower received, or was reported as lost, every line.
    pub(super) fn is_success(&self) -> bool {
        let has_lines = self.total.lines > 0 || !self.complete;
        has_lines && self.violations.is_empty() && self.ended.is_empty()
    }

    fn loss_check(&self) -> String {
        if !self.violations.is_empty() {
            let failed = self.violations.len();
            return format!("FAILED for {failed} of {} followers", self.followers);
        }
        match (self.total.checked, self.total.lines) {
            (0, 0) => "nothing to check: no lines were delivered".to_owned(),
            (0, _) => "nothing to check: no line starts with a number".to_owned(),
            (checked, _) => {
                format!("passed: {checked} lines in order, no repeats, no unreported loss")
            }
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = &self.total;
        writeln!(f, "\nsummary")?;
        writeln!(f, "  followers        {} of {} attached", self.attached, self.followers)?;
        writeln!(f, "  delivered        {} lines, {} bytes", total.lines, total.bytes)?;
        writeln!(
            f,
            "  reported lost    {} lines, {} bytes, in {} gaps",
            total.lost_lines, total.lost_bytes, total.gaps
        )?;
        if let Some(cpu) = self.cpu {
            let cpu = cpu.as_secs_f64();
            write!(f, "  gateway CPU      {cpu:.2} s")?;
            match total.lines {
                0 => writeln!(f)?,
                lines => writeln!(f, ", {:.2} s per million delivered lines", cpu / millions(lines))?,
            }
        }
        if let Some(bytes) = self.peak_memory_bytes {
            writeln!(f, "  gateway memory   {:.1} MiB peak", millions(bytes) / 1.048_576)?;
        }
        if let Some(takeover) = &self.takeover {
            write!(f, "{takeover}")?;
        }
        writeln!(f, "  loss check       {}", self.loss_check())?;
        for violation in self.violations.iter().take(VIOLATIONS_SHOWN) {
            writeln!(f, "    {violation}")?;
        }
        for reason in self.ended.iter().take(VIOLATIONS_SHOWN) {
            writeln!(f, "  a follower ended early: {reason}")?;
        }
        if self.ended.len() > VIOLATIONS_SHOWN {
            writeln!(f, "  … and {} more", self.ended.len() - VIOLATIONS_SHOWN)?;
        }
        Ok(())
    }
}

fn millions(count: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
    let count = count as f64;
    count / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::error::CallError;
    use crate::client::follow::Ended;
    use crate::loss_checker::Fault;

    fn outcome() -> Outcome {
        let tally = Tally {
            lines: 500_000,
            checked: 500_000,
            bytes: 9_000_000,
            gaps: 1,
            lost_lines: 7,
            lost_bytes: 70,
        };
        Outcome { attached: true, tally, violation: None, ended: None }
    }

    fn usage(seconds: u64) -> Usage {
        Usage { cpu: Duration::from_secs(seconds), peak_memory_bytes: 30 << 20 }
    }

    #[test]
    fn outcomes_are_summed() {
        let summary = Summary::new(true, vec![outcome(), outcome()], Some(usage(1)), Some(usage(4)), None);
        assert!(summary.is_success());
        let text = summary.to_string();
        for expected in [
            "2 of 2 attached",
            "1000000 lines, 18000000 bytes",
            "14 lines, 140 bytes, in 2 gaps",
            "3.00 s, 3.00 s per million",
            "30.0 MiB",
            "passed: 1000000",
        ] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }

    #[test]
    fn violations_and_early_ends_are_failures() {
        let violation = Violation {
            replica: "web/0".into(),
            instance: "p/c/0".into(),
            fault: Fault::Repeat { after: 2, got: 2 },
            line: "2 x".into(),
        };
        let wrong = Outcome { violation: Some(Box::new(violation)), ..outcome() };
        let summary = Summary::new(true, vec![outcome(), wrong], None, None, None);
        assert!(!summary.is_success());
        let text = summary.to_string();
        assert!(text.contains("FAILED for 1 of 2") && text.contains("line 2 came after line 2"), "{text}");
        for ended in [Ok(Ended::Complete), Err(CallError::Unresumable)] {
            let early = Outcome { ended: Some(ended), ..outcome() };
            assert!(!Summary::new(true, vec![early], None, None, None).is_success());
        }
        let nothing = || Outcome { tally: Tally::default(), ..outcome() };
        assert!(!Summary::new(true, vec![nothing()], None, None, None).is_success());
        assert!(Summary::new(false, vec![nothing()], None, None, None).is_success());
    }
}
