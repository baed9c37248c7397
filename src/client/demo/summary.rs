//! What a demo has shown, in numbers.

use std::fmt;
use std::time::Duration;

use super::super::loss_checker::{Tally, Violation};
use super::followers::Outcome;
use super::gateway::Usage;

/// The numbers of all followers together.
#[derive(Debug, Default)]
pub(super) struct Summary {
    /// Whether it ran as long as it should, and so has something to show.
    complete: bool,
    followers: usize,
    attached: usize,
    total: Tally,
    /// What the gateway used while it was followed.
    cpu: Option<Duration>,
    peak_memory_bytes: Option<u64>,
    violations: Vec<Violation>,
    /// Followers that ended before they were told to, and why.
    ended: Vec<String>,
}

/// Faults that are shown one by one; more of them say nothing new.
const FAULTS_SHOWN: usize = 5;

// === impl Summary ===

impl Summary {
    /// Of these followers, and of a gateway that had used `before` when they began; `complete` unless interrupted.
    pub(super) fn of(
        complete: bool,
        outcomes: Vec<Outcome>,
        before: Option<Usage>,
        after: Option<Usage>,
    ) -> Self {
        let mut summary = Self {
            complete,
            followers: outcomes.len(),
            cpu: before.zip(after).map(|(before, after)| after.cpu.saturating_sub(before.cpu)),
            peak_memory_bytes: after.map(|usage| usage.peak_memory_bytes),
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

    /// Whether everything that was produced was delivered or reported, to every follower.
    pub(super) fn holds(&self) -> bool {
        let shown = self.total.lines > 0 || !self.complete;
        shown && self.violations.is_empty() && self.ended.is_empty()
    }

    fn oracle(&self) -> String {
        if !self.violations.is_empty() {
            let wrong = self.violations.len();
            return format!("BROKEN for {wrong} of {} followers", self.followers);
        }
        match (self.total.checked, self.total.lines) {
            (0, 0) => "nothing was delivered to check".to_owned(),
            (0, _) => "no line begins with a counter, so nothing could be checked".to_owned(),
            (checked, _) => {
                format!("holds: {checked} lines in order, none twice, none missing without a report")
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
            writeln!(f, "  gateway memory   {:.1} MiB at its peak", millions(bytes) / 1.048_576)?;
        }
        writeln!(f, "  oracle           {}", self.oracle())?;
        for violation in self.violations.iter().take(FAULTS_SHOWN) {
            writeln!(f, "    {violation}")?;
        }
        for reason in self.ended.iter().take(FAULTS_SHOWN) {
            writeln!(f, "  a follower ended early: {reason}")?;
        }
        if self.ended.len() > FAULTS_SHOWN {
            writeln!(f, "  … and {} more", self.ended.len() - FAULTS_SHOWN)?;
        }
        Ok(())
    }
}

fn millions(count: u64) -> f64 {
    // Counts here are far below 2^52.
    #[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
    let count = count as f64;
    count / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::follow::{Ended, FollowError};
    use crate::client::loss_checker::Fault;

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
    fn numbers_are_summed() {
        let summary = Summary::of(true, vec![outcome(), outcome()], Some(usage(1)), Some(usage(4)));
        assert!(summary.holds());
        let text = summary.to_string();
        for expected in [
            "2 of 2 attached",
            "1000000 lines, 18000000 bytes",
            "14 lines, 140 bytes, in 2 gaps",
            "3.00 s, 3.00 s per million",
            "30.0 MiB",
            "holds: 1000000",
        ] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }

    #[test]
    fn faults_do_not_pass() {
        let violation = Violation {
            replica: "web/0".into(),
            instance: "p/c/0".into(),
            fault: Fault::Repeat { after: 2, got: 2 },
            line: "2 x".into(),
        };
        let wrong = Outcome { violation: Some(Box::new(violation)), ..outcome() };
        let summary = Summary::of(true, vec![outcome(), wrong], None, None);
        assert!(!summary.holds());
        let text = summary.to_string();
        assert!(text.contains("BROKEN for 1 of 2") && text.contains("line 2 came after line 2"), "{text}");
        for ended in [Ok(Ended::Complete), Err(FollowError::Unresumable)] {
            let early = Outcome { ended: Some(ended), ..outcome() };
            assert!(!Summary::of(true, vec![early], None, None).holds());
        }
        let nothing = || Outcome { tally: Tally::default(), ..outcome() };
        assert!(!Summary::of(true, vec![nothing()], None, None).holds());
        assert!(Summary::of(false, vec![nothing()], None, None).holds());
    }
}
