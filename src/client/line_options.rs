//! Which lines are printed, and how, as the flags of `logs` say.

use jiff::tz::TimeZone;

use super::highlighter::Highlighter;
use super::line_filter::LineFilter;
use super::output_style::OutputStyle;
use crate::config::{LogsConfig, LogsOutput, Template};

/// Selection and form of printed lines. The default prints all lines with their prefixes.
#[derive(Debug)]
pub(crate) struct LineOptions {
    /// `None` prints all lines.
    pub(super) filter: Option<LineFilter>,
    /// Maximum number of printed lines.
    pub(super) max_lines: Option<u64>,
    pub(super) highlighter: Highlighter,
    /// `None` prints lines as text or JSON.
    pub(super) template: Option<Template>,
    pub(super) has_prefix: bool,
    /// Whether progress may be drawn.
    pub(super) may_draw: bool,
    /// Time zone of printed times; `None` prints them as the gateway sends them, in UTC.
    pub(super) zone: Option<TimeZone>,
}

// === impl LineOptions ===

impl LineOptions {
    pub(super) fn new(config: &LogsConfig) -> Self {
        let LogsConfig { selection, form, output, .. } = config;
        let template = match output {
            LogsOutput::Template(template) if config.timestamps => Some(template.with_time()),
            LogsOutput::Template(template) => Some(template.clone()),
            LogsOutput::Text | LogsOutput::Json => None,
        };
        Self {
            filter: LineFilter::new(selection, config.has_times()),
            max_lines: selection.max_lines,
            highlighter: Highlighter::new(selection, form),
            template,
            has_prefix: !form.no_prefix,
            // A follow has no end, and prints what it receives.
            may_draw: !config.follow && !config.quiet,
            zone: form.local.then(TimeZone::system),
        }
    }

    /// Returns whether lines that are neither JSON nor on a terminal are printed otherwise than written.
    pub(super) fn changes_text(&self, style: OutputStyle) -> bool {
        style.colour && !self.highlighter.is_empty() || style.timestamps && self.zone.is_some()
    }

    /// Returns whether progress is drawn. Unfiltered lines on a terminal show it themselves, and a pipe's
    /// reader may use the terminal.
    pub(super) fn has_progress(&self, style: OutputStyle) -> bool {
        self.may_draw && style.terminal_errors && !style.piped && (!style.terminal || self.filter.is_some())
    }

    /// Returns whether unfinished lines are held until they end, or are too long to hold.
    pub(super) fn needs_whole_lines(&self) -> bool {
        self.filter.is_some() || self.template.is_some()
    }
}

impl Default for LineOptions {
    fn default() -> Self {
        Self {
            filter: None,
            max_lines: None,
            highlighter: Highlighter::default(),
            template: None,
            has_prefix: true,
            may_draw: false,
            zone: None,
        }
    }
}
