//! Parses the parts of an Akash SDL (version 2.0, or 2.1 and later) that are needed to run its services as
//! processes.
//!
//! Other keys (`profiles`, `expose`, `image`, `params`, `credentials`, `endpoints` …) are accepted and
//! ignored. All errors of a file are reported at once, each with its place. Files that are too large, or
//! expand to too much (aliases of aliases), are rejected early.
//!
//! The format follows `go/sdl` of akash-network/chain-sdk: a number is accepted as text, exactly as written;
//! only the first YAML document is read; and a service that `deployment` does not name is not run.

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use serde_saphyr::Error;
use serde_saphyr::budget::BudgetBreach;

use crate::model::id::ServiceName;
use crate::sys::read::read_bounded;

/// Largest SDL file. The largest published ones have some ten thousand bytes.
const SDL_MAX_BYTES: usize = 256 * 1024;

/// Most services of an SDL. Each has at least one process.
const SERVICES_MAX: usize = 64;

/// Most replicas of a service. They share one machine.
pub const COUNT_MAX: u32 = 64;

/// Most entries of a `command`, `args` or `env`.
const LIST_MAX: usize = 1_024;

/// Most errors reported per file. A file with more is probably not an SDL.
const FAULTS_MAX: usize = 64;

/// Most YAML nodes of a file, including expanded aliases. Each takes about ten bytes of a file.
const NODES_MAX: usize = 20_000;

/// Deepest nesting of a file. An SDL has about eight levels.
const DEPTH_MAX: usize = 32;

/// Limit of the scanner's lookahead: twice that for a key (YAML 1.2.2, 7.4.2: 1,024 characters), so that deep
/// nesting exceeds [`DEPTH_MAX`] first, whose error names the limit.
const FLOW_LOOKAHEAD_MAX: usize = 2_048;

/// Most anchors, aliases and merge keys of a file: a few per service.
const ALIASES_MAX: usize = 512;

/// Major version of the format that is supported.
const MAJOR: u64 = 2;

/// A parsed SDL with at least one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sdl {
    /// The services, by name.
    pub services: BTreeMap<ServiceName, Service>,
}

/// One service of an [`Sdl`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `command` followed by `args`; never empty.
    pub command: Vec<String>,
    /// `env`, in the given order. Later entries override earlier ones of the same name.
    pub env: Vec<(String, String)>,
    /// Number of replicas in all placements; never zero.
    pub count: u32,
}

/// The errors of an SDL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .faults.join("; "))]
pub struct SdlError {
    /// Each error with its place; never empty.
    pub faults: Vec<String>,
}

/// The used texts, exactly as written. Parsed after [`Checker`] has accepted the structure.
#[derive(Deserialize)]
struct Texts {
    services: BTreeMap<String, Option<ServiceTexts>>,
}

#[derive(Deserialize)]
struct ServiceTexts {
    command: Option<Vec<String>>,
    args: Option<Vec<String>>,
    env: Option<Vec<String>>,
}

/// Checks the untyped file and collects its errors.
#[derive(Default)]
struct Checker {
    faults: Vec<String>,
}

// === impl Sdl ===

impl Sdl {
    /// Reads and parses the file at `path`.
    ///
    /// # Errors
    /// If the file cannot be read, or all its errors.
    pub(crate) fn read(path: &Path) -> Result<Self, SdlError> {
        let bytes = read_bounded(path, SDL_MAX_BYTES as u64).map_err(|error| match error.kind() {
            ErrorKind::FileTooLarge => SdlError::one(format!("is {error}")),
            _ => SdlError::one(format!("cannot be read: {error}")),
        })?;
        let text = String::from_utf8(bytes).map_err(|_| SdlError::one("is not UTF-8".to_owned()))?;
        Self::parse(&text)
    }

    /// Parses an SDL.
    ///
    /// # Errors
    /// All errors of the text.
    pub fn parse(text: &str) -> Result<Self, SdlError> {
        if text.len() > SDL_MAX_BYTES {
            return Err(SdlError::one(format!("is larger than {SDL_MAX_BYTES} bytes")));
        }
        let text = first_document(text);
        let file: Value = yaml(text)?;
        let mut checker = Checker::default();
        let counts = checker.file(&file);
        if !checker.faults.is_empty() {
            return Err(SdlError { faults: checker.faults });
        }
        let mut texts: Texts = yaml(text)?;
        let services = counts
            .into_iter()
            .filter_map(|(name, count)| {
                let service = texts.services.remove(name.as_str())??;
                Some((name, service.into_service(count)?))
            })
            .collect();
        Ok(Self { services })
    }
}

/// Returns the first YAML document of `text`. Needs no parser, because a line that begins with `---` or `...`
/// always separates documents (YAML 1.2.2, 9.1.2).
fn first_document(text: &str) -> &str {
    let mut begun = false;
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let is = |marker: &str| {
            let rest = line.strip_prefix(marker);
            rest.is_some_and(|rest| rest.chars().next().is_none_or(char::is_whitespace))
        };
        if begun && (is("---") || is("...")) {
            return &text[..start];
        }
        let content = line.trim_start_matches('\u{feff}').trim_start();
        let is_content = !content.is_empty() && !content.starts_with('#') && !line.starts_with('%');
        begun |= is_content && !is("...");
        start += line.len();
    }
    text
}

/// Parses one YAML document within the limits of an SDL.
fn yaml<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, SdlError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 2 * NODES_MAX,
            max_nodes: NODES_MAX,
            max_depth: DEPTH_MAX,
            flow_nesting_limit: FLOW_LOOKAHEAD_MAX,
            max_documents: 1,
            max_aliases: ALIASES_MAX,
            max_anchors: ALIASES_MAX,
            max_merge_keys: ALIASES_MAX,
            max_recorded_anchor_events: NODES_MAX,
            max_recorded_anchor_bytes: SDL_MAX_BYTES,
            max_total_scalar_bytes: SDL_MAX_BYTES,
            // One anchor used by every service is common.
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: NODES_MAX,
            max_replay_stack_depth: DEPTH_MAX,
            max_alias_expansions_per_anchor: ALIASES_MAX,
        },
        non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::AsString,
        // A snippet would show content of the file, which may be a password.
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        SdlError::one(match limit_exceeded(&error) {
            Some(limit) => match error.location() {
                Some(at) => format!("{limit} (line {})", at.line()),
                None => limit,
            },
            None => format!("is not valid YAML for an SDL: {error}"),
        })
    })
}

/// Names the limit that a file exceeds, if `error` is about one. The library's message does not.
fn limit_exceeded(error: &Error) -> Option<String> {
    Some(match error {
        Error::WithSnippet { error, .. } | Error::AliasError { error, .. } => return limit_exceeded(error),
        Error::Budget { breach, .. } => {
            let (max, what) = match breach {
                BudgetBreach::Depth { .. } => {
                    return Some(format!("is nested more than {DEPTH_MAX} levels deep"));
                }
                BudgetBreach::Events { .. } | BudgetBreach::Nodes { .. } => (NODES_MAX, "YAML nodes"),
                BudgetBreach::Aliases { .. } => (ALIASES_MAX, "aliases"),
                BudgetBreach::Anchors { .. } => (ALIASES_MAX, "anchors"),
                BudgetBreach::MergeKeys { .. } => (ALIASES_MAX, "merge keys"),
                BudgetBreach::ScalarBytes { .. } => (SDL_MAX_BYTES, "bytes of values"),
                BudgetBreach::RecordedAnchorEvents { .. } => (NODES_MAX, "YAML nodes in anchors"),
                BudgetBreach::RecordedAnchorBytes { .. } => (SDL_MAX_BYTES, "bytes in anchors"),
                _ => return Some("is unbalanced, or exceeds the limits of an SDL".to_owned()),
            };
            format!("has more than {max} {what}")
        }
        Error::AliasReplayLimitExceeded { .. } | Error::AliasReplayCounterOverflow { .. } => {
            format!("has aliases that stand for more than {NODES_MAX} YAML nodes")
        }
        Error::AliasExpansionLimitExceeded { .. } => {
            format!("refers to one anchor more than {ALIASES_MAX} times")
        }
        Error::AliasReplayStackDepthExceeded { .. } => {
            format!("has aliases within aliases, more than {DEPTH_MAX} levels deep")
        }
        _ => return None,
    })
}

// === impl ServiceTexts ===

impl ServiceTexts {
    /// Returns `None` without a command, which [`Checker`] has reported.
    fn into_service(self, count: u32) -> Option<Service> {
        let mut command = self.command?;
        command.extend(self.args.unwrap_or_default());
        let env = self.env.unwrap_or_default().into_iter().map(|entry| {
            // As in the provider, a name without `=` has an empty value.
            let (name, value) = entry.split_once('=').unwrap_or((&entry, ""));
            (name.to_owned(), value.to_owned())
        });
        Some(Service { command, env: env.collect(), count })
    }
}

// === impl Checker ===

impl Checker {
    fn fault(&mut self, place: &str, problem: impl fmt::Display) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(format!("{place}: {problem}"));
        }
    }

    /// Checks the file. Returns the number of replicas of each valid service.
    fn file(&mut self, file: &Value) -> BTreeMap<ServiceName, u32> {
        if !scalar(file.get("version")).is_some_and(|version| is_known_version(&version)) {
            self.fault("version", "must be 2.0, or 2.1 or a later 2.x");
        }
        let none = Map::new();
        let deployment = self.map(file, "deployment").unwrap_or(&none);
        let services = self.map(file, "services").unwrap_or(&none);
        if services.len() > SERVICES_MAX {
            self.fault("services", format_args!("are more than {SERVICES_MAX}"));
            return BTreeMap::new();
        }
        for name in deployment.keys().filter(|name| !services.contains_key(*name)) {
            self.fault(&format!("deployment.{name}"), "there is no such service");
        }
        services
            .iter()
            .filter_map(|(name, service)| {
                let place = format!("services.{name}");
                let placements = deployment.get(name);
                self.service(&place, service, placements.is_some());
                let placements = placements?;
                let valid = name.parse::<ServiceName>().map_err(|error| self.fault(&place, error));
                let count = self.count(name, placements);
                Some((valid.ok()?, count?))
            })
            .collect()
    }

    /// Returns the mapping at a top-level key, which must exist and not be empty.
    fn map<'a>(&mut self, file: &'a Value, key: &str) -> Option<&'a Map<String, Value>> {
        let map = file.get(key).and_then(Value::as_object).filter(|map| !map.is_empty());
        if map.is_none() {
            self.fault(key, "must be a mapping with at least one service");
        }
        map
    }

    /// Checks a service. One that is not deployed needs no command.
    fn service(&mut self, place: &str, service: &Value, deployed: bool) {
        if service.is_null() && !deployed {
            return;
        }
        if !service.is_object() {
            self.fault(place, "must be a mapping");
            return;
        }
        for key in ["command", "args", "env"] {
            let place = format!("{place}.{key}");
            let is_needed = key == "command" && deployed;
            let Some(list) = service.get(key).filter(|list| !list.is_null()) else {
                if is_needed {
                    self.fault(
                        &place,
                        "is missing: the local platform runs processes, not images, so each service must say what to run",
                    );
                }
                continue;
            };
            let Some(texts) = self.texts(&place, list) else { continue };
            if is_needed && texts.first().is_none_or(String::is_empty) {
                self.fault(&place, "must begin with the program to run");
            }
            for (index, entry) in texts.iter().enumerate() {
                if key == "env" && (entry.is_empty() || entry.starts_with('=')) {
                    self.fault(&format!("{place}[{index}]"), "must be NAME=VALUE");
                }
            }
        }
    }

    /// Checks and returns a list of texts. Numbers are normalized, not as written.
    fn texts(&mut self, place: &str, list: &Value) -> Option<Vec<String>> {
        let Some(list) = list.as_array() else {
            self.fault(place, "must be a list of strings");
            return None;
        };
        if list.len() > LIST_MAX {
            self.fault(place, format_args!("has more than {LIST_MAX} entries"));
            return None;
        }
        let mut all = Vec::with_capacity(list.len());
        for (index, entry) in list.iter().enumerate() {
            match scalar(Some(entry)) {
                Some(text) if !text.contains('\0') => all.push(text),
                Some(_) => self.fault(&format!("{place}[{index}]"), "holds a NUL character"),
                None => self.fault(&format!("{place}[{index}]"), "must be a string"),
            }
        }
        (all.len() == list.len()).then_some(all)
    }

    fn count(&mut self, service: &str, placements: &Value) -> Option<u32> {
        let place = format!("deployment.{service}");
        let Some(placements) = placements.as_object().filter(|map| !map.is_empty()) else {
            self.fault(&place, format_args!("must say how many: {place}.<placement>.count"));
            return None;
        };
        let mut sum: Option<u32> = Some(0);
        for (placement, value) in placements {
            let count = value.get("count").and_then(Value::as_u64);
            if let Some(count @ 1..=COUNT_MAX) = count.and_then(|count| u32::try_from(count).ok()) {
                sum = sum.map(|sum| sum + count);
            } else {
                self.fault(
                    &format!("{place}.{placement}.count"),
                    format_args!("must be a whole number from 1 to {COUNT_MAX}"),
                );
                sum = None;
            }
        }
        if sum.is_some_and(|sum| sum > COUNT_MAX) {
            self.fault(&place, format_args!("the counts add up to more than {COUNT_MAX}"));
            sum = None;
        }
        sum
    }
}

/// Whether chain-sdk accepts the version `text`: 2.0.0, or 2.1.0 and later, parsed leniently (`2`, `2.1`,
/// `v2.0.0`).
fn is_known_version(text: &str) -> bool {
    let text = text.trim();
    let mut numbers = [0_u64; 3];
    let mut parts = text.strip_prefix('v').unwrap_or(text).split('.');
    for (number, part) in numbers.iter_mut().zip(&mut parts) {
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return false;
        }
        let Ok(value) = part.parse() else { return false };
        *number = value;
    }
    let [major, minor, patch] = numbers;
    parts.next().is_none() && major == MAJOR && (minor > 0 || patch == 0)
}

/// Returns a value accepted as text: not null, a list or a mapping.
fn scalar(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        other @ (Value::Number(_) | Value::Bool(_)) => Some(other.to_string()),
        _ => None,
    }
}

// === impl SdlError ===

impl SdlError {
    fn one(fault: String) -> Self {
        Self { faults: vec![fault] }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Write as _;

    use super::*;

    const WEB: &str = "
version: '2.0'
services:
  web:
    image: nginx
    command: [sh, -c]
    args: ['echo $A', 8080, 1.10, 0x1F, yes]
    env: [A=1, 'B=x=y', C]
    expose: [{port: 80, as: 80, to: [{global: true}]}]
    params: {storage: {data: {mount: /mnt}}}
profiles: {compute: {web: {resources: {cpu: {units: 0.1}}}}}
endpoints: {ip: {kind: ip}}
deployment:
  web: {here: {profile: web, count: 2}}
";

    fn faults(text: &str) -> Vec<String> {
        Sdl::parse(text).unwrap_err().faults
    }

    #[test]
    fn texts_are_kept_as_written() {
        let sdl = Sdl::parse(WEB).unwrap();
        let web = &sdl.services[&"web".parse().unwrap()];
        assert_eq!(web.command, ["sh", "-c", "echo $A", "8080", "1.10", "0x1F", "yes"]);
        let env = [("A", "1"), ("B", "x=y"), ("C", "")];
        assert_eq!(web.env, env.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(web.count, 2);
        assert_eq!(sdl.services.len(), 1);
    }

    #[test]
    fn supported_versions_are_accepted() {
        for good in ["'2.0'", "\"2.1\"", "2.0", "2.1", "'2'", "2", "v2.0.0", "'2.2'", "'2.1.3'", "' 2.0 '"] {
            assert!(Sdl::parse(&WEB.replace("'2.0'", good)).is_ok(), "{good}");
        }
        for bad in
            ["'1.0'", "3.0", "'2.0.1'", "'2.'", "'2.0.0.0'", "'2.0-rc1'", "'99999999999999999999'", "[2]", ""]
        {
            let faults = faults(&WEB.replace("'2.0'", bad));
            assert!(faults.len() == 1 && faults[0].starts_with("version: "), "{bad}: {faults:?}");
        }
    }

    #[test]
    fn undeployed_service_is_not_run() {
        let spares =
            ["  spare: {image: y}\n", "  spare: {command: []}\n", "  spare:\n", "  Spare_Name: {image: y}\n"];
        for spare in spares {
            let text = WEB.replace("services:\n", &format!("services:\n{spare}"));
            let sdl = Sdl::parse(&text).unwrap_or_else(|error| panic!("{spare}: {error}"));
            assert_eq!(sdl, Sdl::parse(WEB).unwrap(), "{spare}");
        }
        let text = WEB.replace("services:\n", "services:\n  spare: {command: echo}\n");
        assert_eq!(faults(&text), ["services.spare.command: must be a list of strings"]);
    }

    #[test]
    fn only_the_first_document_is_read() {
        let expected = Sdl::parse(WEB).unwrap();
        for text in [
            format!("{WEB}---\n"),
            format!("{WEB}---"),
            format!("{WEB}...\n"),
            format!("{WEB}--- [not, an, sdl\n"),
            format!("\u{feff}# a shop\r\n---\r\n{}---\r\n", WEB.replace('\n', "\r\n")),
            format!("%YAML 1.2\n---\n{WEB}"),
        ] {
            assert_eq!(Sdl::parse(&text).as_ref(), Ok(&expected), "{text}");
        }
        // Not separators: within a value, and longer dashes.
        let text = WEB.replace("'echo $A'", "\"echo\n  --- $A\"").replace("[A=1,", "[A=----,");
        let sdl = Sdl::parse(&text).unwrap();
        assert_eq!(sdl.services[&"web".parse().unwrap()].command[2], "echo --- $A");
    }

    #[test]
    fn exceeded_limit_is_named() {
        let check = |text: &str, expected: &str| {
            let faults = faults(text);
            let [fault] = &faults[..] else { panic!("{faults:?}") };
            assert!(fault.starts_with(expected), "{fault:?} is not {expected:?}");
            for word in ["budget", "breach", "exceeded"] {
                assert!(!fault.contains(word), "{fault:?}");
            }
        };
        check(&format!("a: {}1{}", "[".repeat(100), "]".repeat(100)), "is nested more than 32 levels deep");
        check(&"[".repeat(100_000), "is nested more than 32 levels deep");
        check(&"{a: ".repeat(50_000), "is nested more than 32 levels deep");
        let indented: String = (0..100).flat_map(|level| [" ".repeat(level), "a:\n".to_owned()]).collect();
        check(&indented, "is nested more than 32 levels deep");
        check(&format!("a: [{}]", "x, ".repeat(NODES_MAX + 1)), "has more than 20000 YAML nodes (line 1)");
        check(
            &format!("a: &a 1\nb: [{}]", "*a, ".repeat(ALIASES_MAX + 1)),
            "has more than 512 aliases (line 2)",
        );
        let anchors: String =
            (0..=ALIASES_MAX).flat_map(|n| ["&a".to_owned(), n.to_string(), " x, ".to_owned()]).collect();
        check(&format!("a: [{anchors}]"), "has more than 512 anchors (line 1)");
    }

    #[test]
    fn anchor_may_be_used_by_every_service() {
        let entries = "*a, ".repeat(200);
        let text = WEB.replace("env: [A=1, 'B=x=y', C]", &format!("env: [&a A=1, {entries}]"));
        assert_eq!(Sdl::parse(&text).unwrap().services[&"web".parse().unwrap()].env.len(), 201);
    }

    #[test]
    fn counts_of_placements_are_added() {
        let sdl =
            Sdl::parse(&WEB.replace("{here: {profile: web, count: 2}}", "{a: {count: 2}, b: {count: 3}}"));
        assert_eq!(sdl.unwrap().services[&"web".parse().unwrap()].count, 5);
    }

    #[test]
    fn missing_command_is_explained() {
        let faults = faults(&WEB.replace("    command: [sh, -c]\n", ""));
        assert_eq!(faults.len(), 1);
        assert!(faults[0].starts_with("services.web.command: is missing"), "{faults:?}");
        assert!(faults[0].contains("the local platform runs processes, not images"), "{faults:?}");
    }

    #[test]
    fn all_errors_are_reported_at_once() {
        let found = faults(
            "
version: '1'
services:
  Web: {command: [a]}
  api: {command: echo, args: {a: b}, env: ['=1', '']}
  db: {command: ['', x], args: [[1], null, \"a\\0b\"]}
  job: {command: []}
  text: hello
deployment:
  Web: {p: {count: 1}}
  api: {p: {count: 0}, q: {count: 65}}
  db: {p: {count: 60}, q: {count: 60}}
  ghost: {p: {count: 1}}
  job: {p: {count: 1}}
  text: {p: {}}
",
        );
        let places: Vec<&str> =
            found.iter().map(|fault| fault.split_once(": ").map_or("", |(place, _)| place)).collect();
        for place in [
            "version",
            "services.Web",
            "services.api.command",
            "services.api.args",
            "services.api.env[0]",
            "services.api.env[1]",
            "services.db.command",
            "services.db.args[0]",
            "services.db.args[1]",
            "services.db.args[2]",
            "services.job.command",
            "services.text",
            "deployment.api.p.count",
            "deployment.api.q.count",
            "deployment.db",
            "deployment.ghost",
            "deployment.text.p.count",
        ] {
            assert!(places.contains(&place), "{place} is not in {found:#?}");
        }
        assert_eq!(places.len(), 17, "{found:#?}");
    }

    #[test]
    fn other_texts_are_rejected() {
        for text in ["", "[]", "--- a\n--- b", "hello", "services: {}", "version: '2.0'\nservices: 3"] {
            let places: BTreeSet<String> = faults(text)
                .iter()
                .map(|fault| fault.split(':').next().unwrap_or_default().to_owned())
                .collect();
            assert!(places.contains("services") && places.contains("deployment"), "{text}: {places:?}");
        }
        for text in ["a: [", "%", "a: 1\na: 2"] {
            assert_eq!(faults(text).len(), 1, "{text}");
        }
    }

    #[test]
    fn oversized_sdl_is_rejected() {
        let long = format!("{WEB}# {}", "x".repeat(SDL_MAX_BYTES));
        assert!(faults(&long)[0].contains("larger than"));
        let services: Vec<String> =
            (0..=SERVICES_MAX).map(|n| format!("  s{n}: {{command: [a]}}\n")).collect();
        let services = services.concat();
        let many = format!("version: '2.0'\nservices:\n{services}deployment: {{s1: {{p: {{count: 1}}}}}}\n");
        assert!(faults(&many).iter().any(|fault| fault.starts_with("services: are more than")));
        let entries = "x, ".repeat(LIST_MAX + 1);
        let wide = WEB.replace("[sh, -c]", &format!("[{entries}]"));
        assert!(faults(&wide)[0].starts_with("services.web.command: has more than"));
        assert_eq!(faults(&format!("a: {}1{}", "[".repeat(100), "]".repeat(100))).len(), 1);
    }

    #[test]
    fn unreadable_file_is_explained() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let check = |content: &[u8], expected: &str| {
            std::fs::write(file.path(), content).unwrap();
            assert_eq!(Sdl::read(file.path()).unwrap_err().faults, [expected]);
        };
        check("é".repeat(SDL_MAX_BYTES).as_bytes(), "is larger than 262144 bytes");
        check(b"a: \xff", "is not UTF-8");
        let missing = Sdl::read(Path::new("/no/such/file")).unwrap_err();
        assert!(missing.to_string().starts_with("cannot be read: No such file"), "{missing}");
    }

    #[test]
    fn alias_bomb_is_rejected() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let below = format!("*a{}, ", level - 1).repeat(9);
            writeln!(bomb, "a{level}: &a{level} [{below}]").unwrap();
        }
        assert_eq!(faults(&format!("{bomb}{WEB}")).len(), 1);
    }
}
