//! Finds the parts of a line to highlight.

use std::ops::Range;

use crate::config::{FormConfig, Pattern, SelectionConfig};

/// Expressions of which the matches are highlighted.
#[derive(Clone, Debug, Default)]
pub(super) struct Highlighter(Vec<Pattern>);

// === impl Highlighter ===

impl Highlighter {
    /// Creates a highlighter for the matches of `--include` and `--highlight`.
    pub(super) fn new(selection: &SelectionConfig, form: &FormConfig) -> Self {
        Self([selection.include.as_slice(), form.highlight.as_slice()].concat())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the ranges of bytes to highlight: sorted, not empty, and without overlaps.
    pub(super) fn spans(&self, line: &[u8]) -> Vec<Range<usize>> {
        let found = self.0.iter().flat_map(|pattern| pattern.matches(line));
        let mut found: Vec<_> = found.filter(|span| !span.is_empty()).collect();
        found.sort_unstable_by_key(|span| span.start);
        let mut spans: Vec<Range<usize>> = Vec::with_capacity(found.len());
        for span in found {
            match spans.last_mut().filter(|last| span.start <= last.end) {
                Some(last) => last.end = last.end.max(span.end),
                None => spans.push(span),
            }
        }
        spans
    }
}
