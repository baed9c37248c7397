//! Names of services on the command line, and patterns of names.

use std::fmt;
use std::str::FromStr;

use super::pattern::Pattern;
use crate::model::id::ServiceName;

/// Maximum length of a pattern, in bytes: that of a name.
const PATTERN_MAX_BYTES: usize = 63;

/// A service, or a pattern that selects some of a lease's services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceSelector {
    /// The service of this name.
    Name(ServiceName),
    /// The services whose names match.
    Pattern(ServicePattern),
}

/// A pattern of names, in which `*` stands for any characters and `?` for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePattern {
    text: String,
    regex: Pattern,
}

// === impl ServiceSelector ===

impl ServiceSelector {
    /// Returns the pattern, unless this is a name.
    pub(crate) fn pattern(&self) -> Option<&ServicePattern> {
        match self {
            Self::Name(_) => None,
            Self::Pattern(pattern) => Some(pattern),
        }
    }
}

impl FromStr for ServiceSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.contains(['*', '?']) {
            return text
                .parse()
                .map(Self::Name)
                .map_err(|error: crate::model::id::IdError| error.to_string());
        }
        let is_valid = text.len() <= PATTERN_MAX_BYTES
            && text
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-*?".contains(&byte));
        if !is_valid {
            return Err(format!(
                "is not a pattern of service names: lower-case letters, digits, '-', '*' and '?', \
                 at most {PATTERN_MAX_BYTES}"
            ));
        }
        let regex = Pattern::parse(&format!("^{}$", text.replace('*', ".*").replace('?', ".")))?;
        Ok(Self::Pattern(ServicePattern { text: text.to_owned(), regex }))
    }
}

impl fmt::Display for ServiceSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Pattern(pattern) => f.write_str(&pattern.text),
        }
    }
}

// === impl ServicePattern ===

impl ServicePattern {
    /// Returns the pattern as it was given.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns whether the name of a service matches.
    pub(crate) fn matches(&self, name: &str) -> bool {
        self.regex.is_match(name.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_selects_whole_names() {
        for (text, matching, others) in [
            ("web-*", &["web-a", "web-", "web-a-b"][..], &["web", "a-web-b", "xweb-a"][..]),
            ("*", &["web", "a"], &[]),
            ("w?b", &["web", "w-b"], &["wb", "weeb", "webs"]),
            ("*-db-?", &["a-db-1", "-db-x"], &["a-db-12", "a-db-"]),
        ] {
            let selector: ServiceSelector = text.parse().unwrap();
            assert_eq!(selector.to_string(), text);
            let pattern = selector.pattern().unwrap();
            assert!(matching.iter().all(|name| pattern.matches(name)), "{text}");
            assert!(!others.iter().any(|name| pattern.matches(name)), "{text}");
        }
        assert!("web-1".parse::<ServiceSelector>().unwrap().pattern().is_none());
        for text in ["", "Web", "web.*", "(*", "[ab]*", "w b*", &"*".repeat(64)] {
            assert!(text.parse::<ServiceSelector>().unwrap_err().starts_with("is not a "), "{text}");
        }
    }
}
