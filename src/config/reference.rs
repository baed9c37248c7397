//! docs/CONFIG.md, from the same definitions as `--help`.

use std::fmt::Write as _;

use clap::{Arg, Command};

use super::{SERVE, definition, file};

const HEAD: &str = "\
# Configuration

*Generated from `src/config/cli/` by `UPDATE_DOCS=1 cargo test made_from_the_code`; a test compares them.*

Set a flag on the command line, by an environment variable or, for `serve`, in a file. A flag overrides its variable,
the variable overrides the file, and the file overrides the default. `--identity` and `--token` exclude each other, and
so do `--key` and `--trust-dir`: the typed flag overrides the variable of the other. All faults are reported at once,
each with the source of the value.

`leasemux serve --check` validates the configuration without starting: SDL files, certificates and keys, a cluster's
configuration and (if it is reachable) permissions, addresses and directories. It reports every fault. The exit code is
0 without a fault, else 2. An address in use is not a fault, because the running gateway may use it.

| kind of value | format |
|---|---|
| time | a number with its unit: `250ms`, `10s`, `5m`, `1h30m`; `0` |
| size | bytes, or with a unit: `65536`, `512KiB`, `4MiB`, `500kB` |
| switch | `--lifeline`, `--lifeline=false`; elsewhere `true` or `false` (`yes`, `no`, `on`, `off`, `1`, `0`) |
| several values | the flag several times; in a variable separated by commas; in the file an array |
| empty variable | counts as not set |

## Configuration file

Use `leasemux serve --config FILE` or `LEASEMUX_CONFIG=FILE`. The file is [TOML](https://toml.io/en/v1.0.0). A key is a
flag's name without its dashes, and there are no sections. Paths are relative to the directory in which the gateway is
started, as on the command line. An unknown key is a fault, and the message suggests the nearest one. `lease` may be an
array of `LEASE=SDLFILE`, or a table:

```toml
platform = \"local\"
trust-dir = \"trusted\"
public-hostname = [\"gateway.example.com\"]
max-connections = 2048

[lease]
\"akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev/6194991/1/1/akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0\" = \"shop.yaml\"
```

[examples/gateway.toml](../examples/gateway.toml) is a complete example.
";

/// The page: every flag of every command, with its variable, its key in the file, and its default.
pub fn reference() -> String {
    let mut page = HEAD.to_owned();
    let program = definition();
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
    // Writing to a string does not fail.
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
    let key = arg.get_long().filter(|_| file::holds(arg)).unwrap_or_default();
    let key = if has_file { format!(" {} |", code(key)) } else { String::new() };
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let help = help.replace('|', "\\|").replace('*', "\\*").split_whitespace().collect::<Vec<_>>().join(" ");
    format!("| {} | {} |{key} {} | {help} |\n", code(&flag), code(&variable), code(&defaults.join(",")))
}

#[cfg(test)]
mod tests {
    use crate::docs;

    #[test]
    fn docs_config_is_made_from_the_code() {
        docs::check_page("CONFIG.md", &super::reference());
    }
}
