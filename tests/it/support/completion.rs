//! Completions of bash.

use std::path::Path;
use std::process::Command;

/// Loads the script and calls its function as bash does for the last word of a line.
const COMPLETE: &str = r#"compopt() { :; }
    source <(leasemux completions bash) || exit 1
    complete -p leasemux >/dev/null || exit 1
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_TYPE=9
    "$(complete -p leasemux | sed 's/.*-F \([^ ]*\) .*/\1/')" leasemux "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
    printf '%s\n' "${COMPREPLY[@]}""#;

/// Returns a bash that completes the last of these words, after the program's name.
pub(crate) fn bash(program: &Path, words: &[&str]) -> Command {
    let dirs = std::env::var("PATH").unwrap();
    let mut bash = Command::new("bash");
    bash.args(["--norc", "--noprofile", "-c", COMPLETE, "bash", "leasemux"]).args(words);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LEASEMUX_") {
            bash.env_remove(name);
        }
    }
    bash.env("PATH", format!("{}:{dirs}", program.parent().unwrap().display()));
    bash
}

/// Runs it. Returns the candidates.
pub(crate) fn candidates(bash: &mut Command) -> Vec<String> {
    let output = bash.output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), errors.as_str()), (Some(0), ""));
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}
