//! Completions and man pages, generated from the definitions of the flags.

use std::fs;
use std::io;
use std::path::Path;

use clap_complete::env::Shells;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

pub use clap_complete::Shell;

use super::cli::commands;

/// Variable that names the shell while it asks the program for completions.
pub const COMPLETE_VARIABLE: &str = "LEASEMUX_COMPLETE";

/// The end of zsh's script, which registers its function.
const ZSH_REGISTRATION: &str = "compdef _clap_dynamic_completer_leasemux leasemux";

/// Its replacement. As a file of `$fpath`, the script is a function that runs at the first completion, and
/// has to answer it.
const ZSH_REGISTRATION_OR_ANSWER: &str = "\
if [[ ${funcstack[1]} == _leasemux ]]; then
    _clap_dynamic_completer_leasemux \"$@\"
else
    compdef _clap_dynamic_completer_leasemux leasemux
fi";

/// Returns the script with which `shell` asks the program for completions.
///
/// # Errors
/// None in practice, because it is written to memory.
pub fn completions(shell: Shell) -> io::Result<Vec<u8>> {
    let command = commands();
    let name = command.get_name();
    let shells = Shells::builtins();
    let completer = shells.completer(&shell.to_string());
    let mut script = Vec::new();
    let completer = completer.ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
    // The program is found by its name, as on the line that is completed.
    completer.write_registration(COMPLETE_VARIABLE, name, name, name, &mut script)?;
    if shell == Shell::Zsh {
        let text = String::from_utf8_lossy(&script);
        return Ok(text.replace(ZSH_REGISTRATION, ZSH_REGISTRATION_OR_ANSWER).into_bytes());
    }
    Ok(script)
}

/// Returns the program's man page.
///
/// # Errors
/// None in practice, because it is rendered to memory.
pub fn man() -> io::Result<Vec<u8>> {
    let mut command = commands();
    command.build();
    page(command).map(|(_, page)| page)
}

/// Writes the man pages of the program and all its commands to `dir`, and creates `dir` if it does not exist.
///
/// # Errors
/// If a file cannot be written.
pub fn man_pages(dir: &Path) -> io::Result<()> {
    fn write(command: clap::Command, dir: &Path) -> io::Result<()> {
        for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
            write(inner.clone(), dir)?;
        }
        let (name, page) = page(command)?;
        fs::write(dir.join(name), page)
    }
    fs::create_dir_all(dir)?;
    let mut command = commands();
    command.build();
    write(command, dir)
}

/// Returns the page of one command and the name of its file. Examples and exit codes keep their lines.
fn page(command: clap::Command) -> io::Result<(String, Vec<u8>)> {
    let below = command.get_after_long_help().or(command.get_after_help()).map(ToString::to_string);
    // Rendered separately, because clap_mangen would reflow it.
    let man = Man::new(command.after_help(None::<&str>).after_long_help(None::<&str>))
        .source(concat!("leasemux ", env!("CARGO_PKG_VERSION")))
        .manual("leasemux");
    let mut page = Vec::new();
    man.render(&mut page)?;
    examples(&below.unwrap_or_default()).to_writer(&mut page)?;
    Ok((man.get_filename(), page))
}

/// Returns whether the line is a heading such as `Examples`: not indented, and no sentence.
fn is_title(line: &str) -> bool {
    !line.starts_with(' ') && line.split(' ').count() <= 2
}

fn examples(text: &str) -> Roff {
    let mut roff = Roff::new();
    let mut open = false;
    for line in text.lines() {
        if let Some(title) = line.strip_suffix(':').filter(|title| is_title(title)) {
            if std::mem::replace(&mut open, true) {
                roff.control("fi", []);
            }
            roff.control("SH", [title.to_uppercase().as_str()]);
            roff.control("nf", []);
        } else {
            roff.text([roman(line)]);
        }
    }
    if open {
        roff.control("fi", []);
    }
    roff
}
