//! What packagers and shells ask for.

use clap::Args;
use clap_complete::Shell;

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  In this shell, now:
      source <(leasemux completions bash)
  For good (bash, zsh, fish):
      leasemux completions bash \\
          > ~/.local/share/bash-completion/completions/leasemux
      leasemux completions zsh > \"${fpath[1]}/_leasemux\"
      leasemux completions fish > ~/.config/fish/completions/leasemux.fish";

const MAN_EXAMPLES: &str = "\
Examples:
  The program's page, now:
      leasemux man | man -l -
  The pages of all commands, where man finds them:
      leasemux man --dir ~/.local/share/man/man1";

/// Print a script by which a shell completes commands and flags
#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
pub(in crate::config) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(in crate::config) shell: Shell,
}

/// Print the program's man page, or write those of all commands
#[derive(Debug, Args)]
#[command(after_help = MAN_EXAMPLES)]
pub(in crate::config) struct ManArgs {
    /// Write a page for each command into this directory, which is made if there is none
    #[arg(long, env = "LEASEMUX_DIR", value_name = "DIR")]
    pub(in crate::config) dir: Option<String>,
}
