//! Sentences about replicas, for notices in logs and for events.

use std::fmt::Write as _;

use super::text::truncate;

/// Maximum size of a sentence in bytes: it is a line of a log, or the note of an event.
const TEXT_MAX_BYTES: usize = 1_024;

pub(crate) fn started(index: u32) -> String {
    format!("replica {index} started")
}

/// `reason` may be empty.
pub(crate) fn ended(index: u32, exit_code: Option<i32>, signal: Option<i32>, reason: &str) -> String {
    let mut text = match (exit_code, signal) {
        (Some(code), _) => format!("replica {index} ended with exit code {code}"),
        (None, Some(signal)) => format!("replica {index} ended with signal {signal}"),
        (None, None) => format!("replica {index} ended"),
    };
    if !reason.is_empty() {
        let _ = write!(text, " ({reason})");
    }
    one_line(&text)
}

/// `reason` and `message` may be empty.
pub(crate) fn waiting(index: u32, reason: &str, message: &str) -> String {
    let mut text = format!("replica {index} is waiting");
    if !reason.is_empty() {
        let _ = write!(text, " ({reason})");
    }
    if !message.is_empty() {
        let _ = write!(text, ": {message}");
    }
    one_line(&text)
}

pub(crate) fn gone(index: u32) -> String {
    format!("replica {index} is no longer part of the lease")
}

/// Replaces control characters, which could end the line or fake another one, and bounds the length.
pub(crate) fn one_line(text: &str) -> String {
    let clean = truncate(text, TEXT_MAX_BYTES).trim_end();
    clean.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentence_states_how_a_run_ended() {
        assert_eq!(ended(0, Some(137), None, "OOMKilled"), "replica 0 ended with exit code 137 (OOMKilled)");
        assert_eq!(ended(1, None, Some(9), ""), "replica 1 ended with signal 9");
        assert_eq!(ended(2, None, None, "Restarted"), "replica 2 ended (Restarted)");
    }

    #[test]
    fn sentence_is_one_bounded_line() {
        let text = waiting(0, "CrashLoopBackOff", "first\nsecond\r\x1b[0m\n");
        assert_eq!(text, "replica 0 is waiting (CrashLoopBackOff): first second  [0m");
        let long = waiting(0, "", &"ß".repeat(5_000));
        assert!(long.len() <= TEXT_MAX_BYTES && long.ends_with('ß'), "{}", long.len());
        assert_eq!(waiting(7, "", ""), "replica 7 is waiting");
    }
}
