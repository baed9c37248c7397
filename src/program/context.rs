//! The commands `context set`, `use`, `list`, `show` and `delete`.

use std::fmt::Write as _;

use crate::client::exit::Exit;
use crate::config::{Context, ContextCommand, Contexts, ContextsError};

/// Titles of the columns of `context list`.
const TITLES: [&str; 5] = ["CURRENT", "NAME", "GATEWAY", "CREDENTIALS", "LEASE"];

/// Runs the command. Returns what it prints.
pub(crate) fn run(command: &ContextCommand) -> Result<String, ContextsError> {
    match command {
        ContextCommand::Set(config) => {
            let is_current = Contexts::update(|contexts| contexts.set(&config.name, config.change()))?;
            let hint = if is_current { ", the current context" } else { "" };
            Ok(format!("set {}{hint}\n", config.name))
        }
        ContextCommand::Use(name) => {
            Contexts::update(|contexts| contexts.choose(name))?;
            Ok(format!("{name} is the current context\n"))
        }
        ContextCommand::Delete(name) => {
            Contexts::update(|contexts| contexts.delete(name))?;
            Ok(format!("deleted {name}\n"))
        }
        ContextCommand::Show(name) => {
            let contexts = Contexts::read()?;
            let (name, context) = contexts.get(name.as_deref())?;
            Ok(format!("# {name}\n{}", context.to_toml()))
        }
        ContextCommand::List => Ok(table(&Contexts::read()?)),
    }
}

/// Returns the exit code of an error.
pub(crate) fn exit(error: &ContextsError) -> Exit {
    match error {
        ContextsError::File { .. } => Exit::Failed,
        _ => Exit::Usage,
    }
}

fn table(contexts: &Contexts) -> String {
    let current = contexts.current();
    let row = |(name, context): (&str, &Context)| {
        let mark = if Some(name) == current { "*" } else { "" };
        let or_dash = |value: Option<&str>| value.unwrap_or("-").to_owned();
        let credentials = context.credentials();
        [
            mark.to_owned(),
            name.to_owned(),
            or_dash(context.gateway()),
            or_dash(credentials.as_deref()),
            or_dash(context.lease()),
        ]
    };
    let rows: Vec<[String; 5]> =
        std::iter::once(TITLES.map(str::to_owned)).chain(contexts.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..TITLES.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}
