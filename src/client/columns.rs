//! Width of text on a terminal, in columns.

use unicode_width::UnicodeWidthChar as _;

/// Selects the wide, coloured form of the preceding character.
const EMOJI_PRESENTATION: char = '\u{fe0f}';

/// Returns an upper bound of the columns that `text`, which must be escaped, takes.
///
/// Sequences of emoji count as their parts: some terminals draw one glyph, others draw every part. Too many
/// columns only leave space; too few wrap the line, which is then not erased.
pub(super) fn columns(text: &str) -> usize {
    text.chars().map(of_char).sum()
}

/// Returns `text`, cut with an ellipsis if it does not fit into `columns`.
pub(super) fn cut(text: &str, columns: usize) -> String {
    let mut used = 0;
    // End of the text that leaves room for the ellipsis.
    let mut end = 0;
    for (at, c) in text.char_indices() {
        used += of_char(c);
        if used > columns {
            return format!("{}…", &text[..end]);
        }
        if used < columns {
            end = at + c.len_utf8();
        }
    }
    text.to_owned()
}

fn of_char(c: char) -> usize {
    if c == EMOJI_PRESENTATION { 1 } else { c.width().unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_match_terminals() {
        for (text, expected) in [
            ("", 0),
            ("abc…", 4),
            ("日本語", 6),
            ("e\u{301}", 1),
            ("\u{1f980}", 2),
            ("\u{2764}\u{fe0f}", 2),
            ("ｱﾊﾟ", 3),
            ("Ａ", 2),
        ] {
            assert_eq!(columns(text), expected, "{text}");
        }
    }

    #[test]
    fn text_is_cut_by_columns() {
        for (text, room, expected) in [
            ("abc", 3, "abc"),
            ("abcd", 3, "ab…"),
            ("日本語", 6, "日本語"),
            ("日本語", 5, "日本…"),
            ("日本語", 4, "日…"),
            ("日本語", 1, "…"),
            ("e\u{301}e\u{301}e\u{301}", 2, "e\u{301}…"),
            ("abc", 0, "…"),
        ] {
            assert_eq!(cut(text, room), expected, "{text} in {room}");
        }
    }
}
