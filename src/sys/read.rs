//! Reading small files with a bound on their size.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Most bytes of a file with certificates or keys in PEM. They have a few KiB; a larger file is the wrong
/// one.
pub(crate) const PEM_MAX_BYTES: u64 = 1024 * 1024;

/// Reads the file at `path`, which may have at most `max_bytes`. Reads no more than that of a larger one.
///
/// # Errors
/// The system's error, or [`io::ErrorKind::FileTooLarge`] with a text that names the limit.
pub(crate) fn read_bounded(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        let text = format!("larger than {max_bytes} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_over_the_limit_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7; 10]).unwrap();
        assert_eq!(read_bounded(file.path(), 10).unwrap(), [7; 10]);
        let error = read_bounded(file.path(), 9).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string()),
            (io::ErrorKind::FileTooLarge, "larger than 9 bytes".into())
        );
    }
}
