//! How the outputs of a command are formatted.

use std::io::{self, IsTerminal as _};

use rustix::fs::{FileType, fstat};

use crate::config::{ColorChoice, Format};

/// Format of printed entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent properties of the outputs")]
pub struct OutputStyle {
    pub(super) format: Format,
    /// Whether the output is coloured.
    pub(super) colour: bool,
    /// Whether the error output is coloured.
    pub(super) colour_errors: bool,
    /// Whether the output is a terminal, where control characters are escaped.
    pub(super) terminal: bool,
    /// Whether the output has a reader, which may write to the terminal itself.
    pub(super) piped: bool,
    /// Whether the error output is a terminal.
    pub(super) terminal_errors: bool,
    /// Whether lines begin with their time.
    pub(super) timestamps: bool,
}

// === impl OutputStyle ===

impl OutputStyle {
    /// Plain text without colours.
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self {
        format: Format::Text,
        colour: false,
        colour_errors: false,
        terminal: false,
        piped: false,
        terminal_errors: false,
        timestamps: false,
    };

    /// Detects the style of this process's outputs. `Auto` means colours on terminals, unless `NO_COLOR` is
    /// set.
    pub fn of_process(format: Format, timestamps: bool, color: ColorChoice) -> Self {
        let has_colours = |detected| match color {
            ColorChoice::Auto => detected != anstream::ColorChoice::Never,
            ColorChoice::Always => true,
            ColorChoice::Never => false,
        };
        Self {
            format,
            colour: has_colours(anstream::AutoStream::choice(&io::stdout())),
            colour_errors: has_colours(anstream::AutoStream::choice(&io::stderr())),
            terminal: io::stdout().is_terminal(),
            piped: is_piped(),
            terminal_errors: io::stderr().is_terminal(),
            timestamps,
        }
    }
}

/// Returns whether standard output is a pipe or a socket.
fn is_piped() -> bool {
    let kind = fstat(rustix::stdio::stdout()).map(|stat| FileType::from_raw_mode(stat.st_mode));
    kind.is_ok_and(|kind| matches!(kind, FileType::Fifo | FileType::Socket))
}
