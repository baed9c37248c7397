//! Regular expressions of the command line.

use std::fmt;

use regex::bytes::{Regex, RegexBuilder};
use regex_syntax::ParserBuilder;

/// Maximum length of an expression, in bytes. A longer one is most likely a file that was pasted.
const TEXT_MAX_BYTES: usize = 4 * 1024;

/// Maximum memory of a compiled expression. Nested repetitions such as `(a{999}){999}` would take gigabytes.
const COMPILED_MAX_BYTES: usize = 4 << 20;

/// Maximum memory for the states that matching caches. Beyond it, matching is slower.
const CACHE_MAX_BYTES: usize = 2 << 20;

/// Maximum number of expressions per flag. Each line is compared with all of them.
pub(super) const PATTERNS_MAX: usize = 32;

/// Name of the values in the help. The variable of such a flag holds one expression, which may have commas.
pub(super) const REGEX: &str = "REGEX";

/// A regular expression that is applied to lines. Its time is linear in the length of a line.
#[derive(Clone)]
pub struct Pattern(Regex);

// === impl Pattern ===

impl Pattern {
    /// Parses an expression in the syntax of the crate `regex`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("must be a regular expression, and not empty, which matches every line".to_owned());
        }
        if text.len() > TEXT_MAX_BYTES {
            return Err(format!("must be a regular expression of at most {TEXT_MAX_BYTES} bytes"));
        }
        if let Some((column, _)) = (1..).zip(text.chars()).find(|(_, c)| c.is_control() && *c != '\t') {
            return Err(format!(
                "must be a regular expression without control characters, and has one at column {column}; \
                 write it as an escape, such as \\x1b"
            ));
        }
        check_syntax(text)?;
        let regex = RegexBuilder::new(text)
            .size_limit(COMPILED_MAX_BYTES)
            .dfa_size_limit(CACHE_MAX_BYTES)
            .build()
            .map_err(|_| format!("must be a regular expression that takes at most {COMPILED_MAX_BYTES} bytes; use fewer or smaller repetitions"))?;
        Ok(Self(regex))
    }

    /// Returns whether the expression matches anywhere in `line`.
    pub(crate) fn is_match(&self, line: &[u8]) -> bool {
        self.0.is_match(line)
    }

    /// Returns the matches in `line`, in order, as ranges of bytes.
    pub(crate) fn matches(&self, line: &[u8]) -> impl Iterator<Item = std::ops::Range<usize>> {
        self.0.find_iter(line).map(|found| found.range())
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pattern").field(&self.0.as_str()).finish()
    }
}

/// Returns the cause and the place of a syntax error. The crate `regex` only draws a picture of it.
fn check_syntax(text: &str) -> Result<(), String> {
    let Err(error) = ParserBuilder::new().utf8(false).build().parse(text) else {
        return Ok(());
    };
    let (cause, span) = match &error {
        regex_syntax::Error::Parse(error) => (error.kind().to_string(), error.span()),
        regex_syntax::Error::Translate(error) => (error.kind().to_string(), error.span()),
        other => return Err(format!("must be a regular expression: {other}")),
    };
    Err(format!("must be a regular expression: {cause}, at column {}", span.start.column))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_expression_names_its_column() {
        for (text, expected) in [
            ("foo(bar", "unclosed group, at column 4"),
            ("日本[a", "unclosed character class, at column 3"),
            ("a**)", "unopened group, at column 4"),
            (r"a\8", "backreferences are not supported, at column 2"),
            (r"\p{Nope}", "Unicode property not found, at column 1"),
            ("", "not empty"),
            ("a\u{1b}", "column 2; write it as an escape, such as \\x1b"),
            ("((a{999}){999}){999}", "takes at most 4194304 bytes"),
        ] {
            let error = Pattern::parse(text).expect_err(text);
            assert!(error.starts_with("must be a regular expression") && error.contains(expected), "{error}");
        }
        assert!(Pattern::parse(&"a".repeat(TEXT_MAX_BYTES + 1)).unwrap_err().contains("at most 4096 bytes"));
        assert!(Pattern::parse(&"a".repeat(TEXT_MAX_BYTES)).is_ok());
    }

    #[test]
    fn expression_matches_bytes_and_unicode() {
        let matches = |text: &str, line: &[u8]| Pattern::parse(text).unwrap().is_match(line);
        assert!(matches("(?i)straße", "STRASSE STRAßE".as_bytes()));
        // With Unicode, an escape stands for a character, not for a byte.
        assert!(matches(r"(?-u)^a .*\xff$", b"a \xff") && !matches(r"^a .*\xff$", b"a \xff"));
        assert!(!matches("^b", b"a b"));
        let found: Vec<_> = Pattern::parse("a+").unwrap().matches(b"aa b a").collect();
        assert_eq!(found, [0..2, 5..6]);
    }
}
