//! A token on the command line: a value that is never shown.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

/// Largest file that holds a token, in bytes: twice the longest token.
const FILE_MAX_BYTES: u64 = 16 * 1024;

/// Where a token is: given as such, or in a file, which is read each time it is used.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// The token.
    Given(String),
    /// A file that holds it, and perhaps white space around it.
    File(PathBuf),
}

// === impl TokenSource ===

impl TokenSource {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix('@') {
            let path = super::value::file(path)?;
            return Ok(Self::File(path));
        }
        if text.is_empty() || text.bytes().any(|byte| !byte.is_ascii_graphic()) {
            return Err("must be a token, or @ and a file that holds one".to_owned());
        }
        Ok(Self::Given(text.to_owned()))
    }

    /// The token.
    ///
    /// # Errors
    /// What the system says of the file, and that it does not hold one word. What it holds is not repeated.
    pub fn read(&self) -> io::Result<String> {
        let path = match self {
            Self::Given(token) => return Ok(token.clone()),
            Self::File(path) => path,
        };
        let mut bytes = Vec::new();
        File::open(path)?.take(FILE_MAX_BYTES).read_to_end(&mut bytes)?;
        let text = bytes.trim_ascii();
        if text.is_empty() || text.iter().any(|byte| !byte.is_ascii_graphic()) {
            return Err(io::Error::other("does not hold a token"));
        }
        Ok(String::from_utf8_lossy(text).into_owned())
    }
}

/// Without the token.
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
    fn a_token_is_given_or_in_a_file_and_never_shown() {
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
