//! `docs/CONFIG.md`, generated from the definitions of the flags.

use std::fmt::Write as _;

use clap::{Arg, Command};
use leasemux::config::{self, is_file_key};

const HEAD: &str = include_str!("config.md");

/// The command that reads a file.
const SERVE: &str = "serve";

/// Returns the page: every flag of every command, with its variable, its key in the file, and its default.
fn page() -> String {
    let mut page = HEAD.to_owned();
    let program = config::commands();
    let (serve, others): (Vec<_>, Vec<_>) =
        program.get_subcommands().partition(|command| command.get_name() == SERVE);
    for command in serve.into_iter().chain(others) {
        section(&mut page, &format!("{} {}", program.get_name(), command.get_name()), command);
    }
    page
}

fn section(page: &mut String, path: &str, command: &Command) {
    if command.is_hide_set() {
        return;
    }
    if command.has_subcommands() {
        for inner in command.get_subcommands() {
            section(page, &format!("{path} {}", inner.get_name()), inner);
        }
        return;
    }
    let about = command.get_about().map(ToString::to_string);
    // Writing to a string cannot fail.
    let _ = write!(page, "\n## `{path}`\n\n{}.\n", about.unwrap_or_default());
    let mut headings = vec![None];
    for heading in command.get_arguments().map(Arg::get_help_heading) {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    let has_file = command.get_name() == SERVE;
    for heading in headings {
        let here = |arg: &&Arg| arg.get_help_heading() == heading && !arg.is_hide_set() && is_ours(arg);
        let rows: Vec<String> = command.get_arguments().filter(here).map(|arg| row(arg, has_file)).collect();
        if let Some(heading) = heading {
            let _ = write!(page, "\n### {heading}\n");
        }
        if !rows.is_empty() {
            let (file, line) = if has_file { (" key in the file |", "---|") } else { ("", "") };
            let _ = write!(
                page,
                "\n| flag | variable |{file} default | |\n|---|---|{line}---|---|\n{}",
                rows.concat()
            );
        }
    }
}

fn is_ours(arg: &Arg) -> bool {
    !matches!(arg.get_id().as_str(), "help" | "version")
}

fn row(arg: &Arg, has_file: bool) -> String {
    let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
    let value = arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
    let is_switch = arg.get_num_args().is_some_and(|range| range.min_values() == 0);
    let short = arg.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
    let flag = match arg.get_long() {
        None => value.to_owned(),
        Some(long) if is_switch => format!("{short}--{long}"),
        Some(long) => format!("{short}--{long} {value}"),
    };
    let variable = arg.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let key = arg.get_long().filter(|_| is_file_key(arg)).unwrap_or_default();
    let key = if has_file { format!(" {} |", code(key)) } else { String::new() };
    let defaults = arg.get_default_values().iter().filter(|_| !arg.is_hide_default_value_set());
    let defaults: Vec<_> = defaults.map(|value| value.to_string_lossy()).collect();
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let help = help.replace('|', "\\|").replace('*', "\\*").split_whitespace().collect::<Vec<_>>().join(" ");
    format!("| {} | {} |{key} {} | {help} |\n", code(&flag), code(&variable), code(&defaults.join(",")))
}

#[test]
fn docs_config_is_made_from_the_code() {
    super::check_page("CONFIG.md", &page());
}
