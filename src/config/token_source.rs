//! Tokens from the command line, which are never shown.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::value::{self, must_be};
use crate::sys::read::read_bounded;

/// Maximum size of a file with a token: twice the longest token.
const FILE_MAX_BYTES: u64 = 16 * 1024;

/// A token, or the file that holds it, which is read at each use.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// The token, given as text.
    Given(String),
    /// A file that holds it. White space around it is ignored.
    File(PathBuf),
}

// === impl TokenSource ===

impl TokenSource {
    /// Parses a token, or `@` and a file.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix('@') {
            return value::file(path).map(Self::File);
        }
        let is_token = is_token(text.as_bytes());
        must_be(is_token.then(|| Self::Given(text.to_owned())), "a token, or @ and the file that holds one")
    }

    /// Returns the token.
    ///
    /// # Errors
    /// If the file cannot be read or does not hold exactly one word. The error never contains its content.
    pub fn read(&self) -> io::Result<String> {
        let path = match self {
            Self::Given(token) => return Ok(token.clone()),
            Self::File(path) => path,
        };
        let bytes = read_bounded(path, FILE_MAX_BYTES)?;
        let text = bytes.trim_ascii();
        if !is_token(text) {
            return Err(io::Error::other("does not hold a token"));
        }
        Ok(String::from_utf8_lossy(text).into_owned())
    }
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_graphic)
}

/// Omits the token, because output may be logged.
impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(_) => f.write_str("Given(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_read_from_both_sources_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "  secret.word\n").unwrap();
        let file = TokenSource::parse(&format!("@{}", path.display())).unwrap();
        let given = TokenSource::parse("secret.word").unwrap();
        for source in [&file, &given] {
            assert_eq!(source.read().unwrap(), "secret.word");
            assert!(!format!("{source:?}").contains("secret"));
        }
        for content in ["", "two secrets", "\u{e9}"] {
            std::fs::write(&path, content).unwrap();
            assert!(!file.read().unwrap_err().to_string().contains("secret"));
        }
        std::fs::remove_file(&path).unwrap();
        assert!(file.read().is_err());
        for bad in ["", "two words", "@/none/token", "\u{e9}"] {
            assert!(TokenSource::parse(bad).is_err(), "{bad}");
        }
    }
}
