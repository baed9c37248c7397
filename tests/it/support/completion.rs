//! Completions of bash, fish and zsh.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::terminal::OnTerminal;

/// Loads the script and calls its function as bash does for the last word of a line.
const COMPLETE: &str = r#"compopt() { :; }
    source <(leasemux completions bash) || exit 1
    complete -p leasemux >/dev/null || exit 1
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_TYPE=9
    "$(complete -p leasemux | sed 's/.*-F \([^ ]*\) .*/\1/')" leasemux "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
    printf '%s\n' "${COMPREPLY[@]}""#;

/// Returns a bash that completes the last of these words, after the program's name.
pub(crate) fn bash(program: &Path, words: &[&str]) -> Command {
    let mut bash = shell("bash", program);
    bash.args(["--norc", "--noprofile", "-c", COMPLETE, "bash", "leasemux"]).args(words);
    bash
}

/// Loads the script and prints the candidates of a line, each with a tab and its description.
const COMPLETE_IN_FISH: &str = "leasemux completions fish | source; complete -C $argv[1]";

/// The start file of an interactive zsh. Ctrl-X shows the line that is being typed.
const ZSHRC: &str = r#"PROMPT='ready> '
    unsetopt prompt_sp
    autoload -Uz compinit && compinit -u -D
    show() { print -r -- "[$BUFFER]" }
    zle -N show
    bindkey '^X' show
"#;

/// An interactive zsh on a terminal of its own.
pub(crate) struct Zsh {
    terminal: OnTerminal,
    /// Lines that were completed.
    completed: usize,
}

/// Returns whether a program is installed.
pub(crate) fn is_installed(name: &str) -> bool {
    Command::new(name).arg("--version").output().is_ok()
}

/// Returns a fish that completes a line.
pub(crate) fn fish(program: &Path, line: &str) -> Command {
    let mut fish = shell("fish", program);
    fish.args(["--no-config", "-c", COMPLETE_IN_FISH, line]);
    fish
}

/// Returns a shell in whose path the program is, without variables of the program.
fn shell(name: &str, program: &Path) -> Command {
    let dirs = std::env::var("PATH").unwrap();
    let mut shell = Command::new(name);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LEASEMUX_") {
            shell.env_remove(name);
        }
    }
    shell.env("PATH", format!("{}:{dirs}", program.parent().unwrap().display()));
    shell
}

// === impl Zsh ===

impl Zsh {
    /// Starts it with the directory `home`. Its start file has these lines before and after its own.
    pub(crate) fn start(program: &Path, home: &Path, [before, after]: [&str; 2]) -> Self {
        fs::write(home.join(".zshrc"), format!("{before}\n{ZSHRC}\n{after}")).unwrap();
        let mut zsh = shell("zsh", program);
        zsh.args(["--no-globalrcs", "-i"]).current_dir(home);
        zsh.env("HOME", home).env("ZDOTDIR", home).env("XDG_CONFIG_HOME", home.join("config"));
        let terminal = OnTerminal::start(zsh, 200);
        terminal.until_shown("ready> ");
        Self { terminal, completed: 0 }
    }

    /// Types a line and a tab. Returns what zsh makes of the line.
    pub(crate) fn complete(&mut self, line: &str) -> String {
        // Ctrl-U deletes the line before.
        self.terminal.type_in(&format!("\x15{line}\t\x18"));
        self.completed += 1;
        let shown = |shown: &str| {
            let lines = shown.split("[leasemux ").skip(self.completed);
            lines.into_iter().next()?.split_once("]\r\n").map(|(line, _)| line.to_owned())
        };
        self.terminal.until("completed line", shown)
    }
}

/// Runs it. Returns the candidates.
pub(crate) fn candidates(shell: &mut Command) -> Vec<String> {
    let output = shell.output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), errors.as_str()), (Some(0), ""));
    let lines = String::from_utf8(output.stdout).unwrap();
    // fish prints descriptions after a tab.
    let words = lines.lines().filter_map(|line| line.split('\t').next());
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}
