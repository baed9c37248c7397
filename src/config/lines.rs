//! Settings of `logs` for the selection and the form of printed lines.

use clap::Args;

use super::pattern::{PATTERNS_MAX, Pattern, REGEX};
use super::resolver::Resolver;
use super::template::Template;
use super::value::{Format, choice};
use crate::model::parse::number;

/// Maximum lines of context. They are held in memory for each replica.
const CONTEXT_MAX_LINES: u32 = 10_000;

/// When the output has colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Output format of `logs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogsOutput {
    /// Lines with the name of their replica.
    Text,
    /// One JSON object per line.
    Json,
    /// Lines in the form of a template.
    Template(Template),
}

/// Which lines are printed, of those that the gateway sends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Filters (applied by this command: the gateway sends all lines)")]
pub struct SelectionConfig {
    /// Print only lines that match; the line is compared without its prefix and time. Repeatable: any of them
    #[arg(long, value_name = REGEX, value_parser = Pattern::parse)]
    pub include: Vec<Pattern>,
    /// Print no lines that match, also not as context. Repeatable: any of them
    #[arg(long, value_name = REGEX, value_parser = Pattern::parse)]
    pub exclude: Vec<Pattern>,
    /// Also print N lines of the replica after each line that --include selects, and '--' between groups
    #[arg(short = 'A', long, value_name = "N", value_parser = number(0..=CONTEXT_MAX_LINES))]
    pub after_context: Option<u32>,
    /// Also print N lines of the replica before each line that --include selects
    #[arg(short = 'B', long, value_name = "N", value_parser = number(0..=CONTEXT_MAX_LINES))]
    pub before_context: Option<u32>,
    /// As -A N -B N
    #[arg(short = 'C', long, value_name = "N", value_parser = number(0..=CONTEXT_MAX_LINES))]
    pub context_lines: Option<u32>,
    /// End after N printed lines, with success
    #[arg(long, value_name = "N", value_parser = number(1..=u64::MAX))]
    pub max_lines: Option<u64>,
}

/// How lines are printed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Form of lines")]
pub struct FormConfig {
    /// Mark matches in a coloured output, besides those of --include. Repeatable
    #[arg(long, value_name = REGEX, value_parser = Pattern::parse)]
    pub highlight: Vec<Pattern>,
    /// When names, notices and matches are coloured.
    #[arg(long, help = COLOR_HELP, value_name = "WHEN", default_value = "auto", value_parser = choice(COLOR_CHOICES, "auto, always or never"))]
    pub color: ColorChoice,
    /// Print lines without the name of their replica
    #[arg(long)]
    pub no_prefix: bool,
    /// Print times in UTC; the default
    #[arg(long)]
    pub utc: bool,
    /// Print times in the time zone of this machine. JSON has UTC always
    #[arg(long)]
    pub local: bool,
}

/// Not a doc comment, in which Clippy wants backticks around the variable.
const COLOR_HELP: &str =
    "Colours of names, notices and matches: auto (on a terminal, unless NO_COLOR is set), always or never";

const COLOR_CHOICES: &[(&str, ColorChoice)] =
    &[("auto", ColorChoice::Auto), ("always", ColorChoice::Always), ("never", ColorChoice::Never)];

// === impl LogsOutput ===

impl LogsOutput {
    /// Parses the name of a format, or `template=` and a template.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("template", template)) => Template::parse(template).map(Self::Template),
            _ => match text {
                "text" | "table" => Ok(Self::Text),
                "json" => Ok(Self::Json),
                _ => Err("must be text, json or template=TEXT, such as 'template={time} {line}'".to_owned()),
            },
        }
    }

    /// Returns the format; lines of a template are text.
    pub fn format(&self) -> Format {
        match self {
            Self::Json => Format::Json,
            Self::Text | Self::Template(_) => Format::Text,
        }
    }

    /// Returns whether lines are printed with their times whatever other flags say.
    pub(super) fn has_time(&self) -> bool {
        matches!(self, Self::Template(template) if template.has_time())
    }
}

// === impl SelectionConfig ===

impl SelectionConfig {
    /// Returns the numbers of lines before and after a match.
    pub(crate) fn context(&self) -> (usize, usize) {
        let lines = |of_side: Option<u32>| of_side.or(self.context_lines).unwrap_or_default() as usize;
        (lines(self.before_context), lines(self.after_context))
    }

    /// Returns whether lines may be left out.
    pub(crate) fn has_filter(&self) -> bool {
        !self.include.is_empty() || !self.exclude.is_empty()
    }
}

pub(super) fn check(resolver: &mut Resolver<'_>) {
    for id in ["include", "exclude", "highlight"] {
        let given = resolver.list::<Pattern>(id).len();
        if given > PATTERNS_MAX {
            resolver.conflict(&format!("--{id} is given {given} times: at most {PATTERNS_MAX}"));
        }
    }
    for id in ["after_context", "before_context", "context_lines"] {
        if resolver.is_given(id) && !resolver.is_given("include") {
            let flag = id.replace('_', "-");
            resolver.conflict(&format!("--{flag} needs --include: it is for lines around its matches"));
        }
    }
    if resolver.is_on("utc") && resolver.is_on("local") {
        resolver.conflict("--utc and --local do not go together: times are in one zone");
    }
}
