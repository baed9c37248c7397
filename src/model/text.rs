//! Functions on text.

/// Returns the longest prefix of `text` that has at most `max_bytes` bytes and ends between characters.
pub(crate) fn truncate(text: &str, max_bytes: usize) -> &str {
    let end = (0..=max_bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::truncate;

    #[test]
    fn truncate_ends_between_characters() {
        assert_eq!(truncate("aé", 0), "");
        assert_eq!(truncate("aé", 2), "a");
        assert_eq!(truncate("aé", 3), "aé");
        assert_eq!(truncate("aé", 9), "aé");
    }
}
