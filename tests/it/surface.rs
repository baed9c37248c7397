//! The public surface, compared with a record of it in `tests/surface`: flags, metrics, reason codes, exit
//! codes, JSON output, proto files and files on disk.
//!
//! A record is a sorted list of names or an exact output. A test that finds a difference prints the lines
//! that were added and removed. Each difference breaks somebody's script, dashboard or client, so a record
//! changes on purpose only: `UPDATE_SURFACE=1 cargo test --test it surface` writes all records, and
//! `git diff tests/surface` shows what changed. Wording (help, descriptions, log and error messages) is not
//! part of the records.
//!
//! The tests run the program and read its files, so that they do not depend on names in the code.

mod client;
mod disk;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::process::{Workspace, get};
use crate::support::source::Source;

/// Writes the records instead of comparing them, if set.
const UPDATE: &str = "UPDATE_SURFACE";

/// Directory of the records and fixtures.
fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/surface")
}

/// Compares `found` with the record `name`, line by line.
#[track_caller]
fn compare(name: &str, found: &str) {
    let path = dir().join(name);
    if std::env::var_os(UPDATE).is_some() {
        fs::write(path, found).unwrap();
        return;
    }
    let recorded = fs::read_to_string(&path).unwrap_or_default();
    if recorded == found {
        return;
    }
    let count = |text: &str| {
        let mut lines: BTreeMap<String, i32> = BTreeMap::new();
        text.lines().for_each(|line| *lines.entry(line.to_owned()).or_default() += 1);
        lines
    };
    let (before, now) = (count(&recorded), count(found));
    let beyond = |these: &BTreeMap<String, i32>, those: &BTreeMap<String, i32>, sign: &str| -> String {
        let more =
            these.iter().filter(|(line, times)| **times > those.get(*line).copied().unwrap_or_default());
        more.map(|(line, _)| format!("{sign} {line}\n")).collect::<Vec<_>>().concat()
    };
    let (removed, added) = (beyond(&before, &now, "-"), beyond(&now, &before, "+"));
    let order = if removed.is_empty() && added.is_empty() { "the order of the lines\n" } else { "" };
    panic!(
        "the public surface differs from the record tests/surface/{name}:\n{removed}{added}{order}\
         Restore it. If users are meant to see this change: {UPDATE}=1 cargo test --test it surface"
    );
}

/// Compares a set of names with the record `name`.
#[track_caller]
fn compare_set(name: &str, found: &BTreeSet<String>) {
    let lines: Vec<_> = found.iter().map(|line| format!("{line}\n")).collect();
    compare(name, &lines.concat());
}

/// Runs the program with no settings from the environment.
fn run(args: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasemux"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LEASEMUX_") {
            command.env_remove(name);
        }
    }
    command.args(args).output().unwrap()
}

fn help(command: &[&str]) -> String {
    let output = run(&[command, &["--help"]].concat());
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The names listed in a help text under `Commands:`.
fn subcommands(help: &str) -> Vec<&str> {
    let list =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A description that wraps is indented further.
    list.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next()).collect()
}

/// Splits a help line that begins an argument into how the argument is written and the rest:
/// `-n, --tail <N>`.
fn argument(line: &str) -> Option<(&str, &str)> {
    let text = line.trim_start();
    let indent = line.len() - text.len();
    let is_argument = text.starts_with('-') || text.starts_with('<') || text.starts_with('[');
    // Clap indents arguments by two columns, those without a short flag by six, and descriptions by more.
    if !is_argument || !matches!(indent, 2 | 6) || text.starts_with("[env:") || text.starts_with("[default:")
    {
        return None;
    }
    Some(text.split_once("  ").unwrap_or((text, "")))
}

/// Adds the arguments of a command and of its subcommands.
fn arguments(command: &[&str], found: &mut BTreeSet<String>) {
    let help = help(command);
    let name = [&["leasemux"], command].concat().join(" ");
    found.insert(name.clone());
    // Examples and exit codes follow.
    let head = help.split("\nExamples:").next().unwrap_or_default();
    let mut current: Option<(&str, String)> = None;
    let mut all = Vec::new();
    for line in head.lines() {
        if let Some((written, rest)) = argument(line) {
            all.extend(current.replace((written, rest.to_owned())));
        } else if let Some((_, text)) = &mut current {
            text.push(' ');
            text.push_str(line.trim());
        }
    }
    all.extend(current);
    for (written, text) in all {
        let notes = ["env", "default", "possible values", "aliases", "short aliases"].map(|note| {
            let begin = format!("[{note}: ");
            let value =
                text.split_once(&begin).and_then(|(_, rest)| rest.split_once(']')).map(|(value, _)| value);
            value.map(|value| format!(" {note}={}", value.trim_end_matches('='))).unwrap_or_default()
        });
        found.insert(format!("{name} {written}{}", notes.concat()));
    }
    for subcommand in subcommands(&help) {
        arguments(&[command, &[subcommand]].concat(), found);
    }
}

#[test]
fn surface_flags_variables_and_defaults() {
    let mut found = BTreeSet::new();
    arguments(&[], &mut found);
    assert!(found.len() > 100, "the help is not understood: {found:#?}");
    compare_set("flags.txt", &found);
}

/// Values that a flag may or may not take.
const VALUES: &[(&str, &str, &[&str])] = &[
    ("serve", "--platform", &["local", "kube", "node", "other"]),
    ("serve", "--log-format", &["text", "json", "table"]),
    ("serve", "--lifeline", &["true", "false", "yes", "no", "on", "off", "1", "0", "maybe"]),
    ("serve", "--idle-timeout", &["10s", "5m", "1h30m", "2500ms", "10", "1d", "soon"]),
    ("serve", "--ring-max-bytes", &["65536", "512KiB", "4MiB", "500kB", "1MB", "1KB", "4M", "many"]),
    ("serve", "--memory-budget", &["0", "31MiB", "32MiB", "1GiB", "1024GiB", "2048GiB", "-1", "half"]),
    ("serve", "--trusted-proxy", &["10.0.0.7", "10.0.0.0/8", "fd00::/8", "proxy.example.com"]),
    ("logs", "--output", &["text", "json", "table", "yaml"]),
    ("logs", "--on-lag", &["drop", "close", "refill"]),
    ("logs", "--tail", &["0", "10", "all", "-1", "-2"]),
    (
        "logs",
        "--since",
        &[
            "5m",
            "2d",
            "1w",
            "2020-01-31",
            "2020-01-31 12:00",
            "00:00",
            "2020-01-31T12:00:00Z",
            "1760000000",
            "noon",
        ],
    ),
    ("status", "--output", &["text", "json", "table", "yaml"]),
    ("restart", "--output", &["text", "json", "table", "yaml"]),
    ("restart", "--timeout", &["0", "0s", "1h", "2h"]),
];

#[test]
fn surface_values_of_flags() {
    let mut found = BTreeSet::new();
    for (command, flag, values) in VALUES {
        for value in *values {
            // Other faults, such as a missing lease, end the command.
            let output = run(&[command, &format!("{flag}={value}")]);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{command} {flag}={value}: {said}");
            let verdict = if said.contains(&format!("{flag} \"{value}\"")) { "rejected" } else { "accepted" };
            found.insert(format!("{command} {flag}={value}: {verdict}"));
        }
    }
    assert!(found.iter().any(|line| line.ends_with("rejected")), "messages are not understood: {found:#?}");
    compare_set("values.txt", &found);
}

#[test]
fn surface_keys_of_the_configuration_file() {
    let mut flags = BTreeSet::new();
    arguments(&["serve"], &mut flags);
    let name = |line: &String| Some(line.split_once("--")?.1.split([' ', '[']).next()?.to_owned());
    let names: BTreeSet<String> = flags.iter().filter_map(name).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    let all = names.iter().map(String::as_str).chain(["unknown"]);
    let text: Vec<String> = all.map(|name| format!("{name} = \"1\"\n")).collect();
    fs::write(file.path(), text.concat()).unwrap();
    let output = run(&["serve", "--check", "--config", file.path().to_str().unwrap()]);
    let said = String::from_utf8(output.stderr).unwrap();
    // An error about a key quotes it so.
    let is_key = |name: &String| !said.contains(&format!("key `{name}`"));
    assert!(!is_key(&"unknown".to_owned()), "messages are not understood: {said}");
    compare_set("file-keys.txt", &names.into_iter().filter(is_key).collect());
}

#[test]
fn surface_metrics_labels_and_log_keys() {
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    let sdl = workspace.sdl("shop.yaml", &[("web", "exec sleep 1000", 1)]);
    let gateway = workspace.serve(&[(&lease, &sdl)], &["--log-format=json"]);
    let (_, page) = gateway.get("/metrics");
    let mut args = workspace.call_args("canary", gateway.address, "alice", &lease);
    args.extend(["--service=web", "--metrics-listen=127.0.0.1:0"].map(str::to_owned));
    let canary = workspace.start(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let address = canary.until_out("its ready line", |out| {
        let line = out.split_once('\n')?.0.strip_prefix("leasemux canary ready: metrics http://")?;
        Some(line.parse().unwrap())
    });
    let page = page + &get(address, "HTTP/1.0", "/metrics").unwrap().1;
    let kinds: BTreeMap<&str, &str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    // Of each metric, the labels and their values.
    let mut metrics: BTreeMap<&str, BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
    for line in page.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let suffixes = ["_bucket", "_sum", "_count"].map(|suffix| name.strip_suffix(suffix));
        let family = suffixes.into_iter().flatten().find(|name| kinds.get(name) == Some(&"histogram"));
        let values = metrics.entry(family.unwrap_or(name)).or_default();
        for label in labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty()) {
            let (label, value) = label.split_once('=').unwrap();
            let of_build = name.ends_with("_info");
            values.entry(label).or_default().insert(if of_build { "…" } else { value.trim_matches('"') });
        }
    }
    let mut found = BTreeSet::new();
    for (name, labels) in metrics {
        found.insert(format!("{name} {}", kinds[name]));
        for (label, values) in labels {
            found.extend(values.iter().map(|value| format!("{name} {label}={value}")));
        }
    }
    compare_set("metrics.txt", &found);
    let (_, lagging) = gateway.get("/followers?format=json");
    assert_eq!(lagging, "{\"lagging\":0,\"left_out\":0,\"followers\":[]}\n");
    gateway.program.until_said("\n");
    let said = gateway.program.err.get();
    let line: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["fields", "level", "target", "timestamp"], "keys of a log line in JSON");
}

/// Codes without an underscore, which tells codes from headings and the like.
const SHORT_CODES: [&str; 4] = ["DRAINING", "INTERNAL", "ES256K", "ES256KADR36"];

/// Whether a string literal of the source has the form of a reason code, such as `LEASE_NOT_FOUND`.
fn is_code(text: &str) -> bool {
    let is_word = text.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    let of_build = ["LEASEMUX_", "CARGO_", "OUT_DIR", "XDG_"].iter().any(|prefix| text.starts_with(prefix));
    (text.contains('_') && text.len() > 3 && is_word && !of_build) || SHORT_CODES.contains(&text)
}

/// Whether a string literal of the source has the form of a reason of Kubernetes, such as `OOMKilled`.
fn is_reason(text: &str) -> bool {
    text.len() > 3
        && text.starts_with(|c: char| c.is_ascii_uppercase())
        && text.contains(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_alphabetic())
}

/// Includes words that the program only compares with: the source does not tell them from those that it
/// sends.
#[test]
fn surface_reason_codes_and_words() {
    let source = Source::read();
    let of = |is_wanted: fn(&str) -> bool| -> BTreeSet<String> {
        source.literals().filter(|text| is_wanted(text)).map(str::to_owned).collect()
    };
    compare_set("codes.txt", &of(is_code));
    compare_set("reasons.txt", &of(is_reason));
}

/// Removes comments and line breaks, but for one after each semicolon and brace.
fn normalized(proto: &str) -> String {
    let code = proto.lines().map(|line| line.split("//").next().unwrap_or_default());
    let words: Vec<&str> = code.flat_map(str::split_whitespace).collect();
    words.join(" ").replace("; ", ";\n").replace("{ ", "{\n").replace("} ", "}\n") + "\n"
}

/// Adds the proto files in `dir` and below.
fn protos(dir: &Path, root: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            protos(&path, root, found);
        } else {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            found.insert(name, normalized(&fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn surface_proto_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let mut found = BTreeMap::new();
    protos(&root, &root, &mut found);
    let all: Vec<_> = found.iter().map(|(name, text)| format!("// {name}\n{text}")).collect();
    compare("proto.txt", &all.concat());
}

#[test]
fn help_is_understood_in_each_layout() {
    assert_eq!(argument("  -n, --tail <N>"), Some(("-n, --tail <N>", "")));
    assert_eq!(argument("      --for <TIME>  End [env: X=]"), Some(("--for <TIME>", "End [env: X=]")));
    assert_eq!(argument("  [LEASE]"), Some(("[LEASE]", "")));
    assert_eq!(argument("          -1 = every line"), None);
    assert_eq!(normalized("a {\n // b\n  c = 1; // d\n}\n"), "a {\nc = 1;\n}\n");
}
