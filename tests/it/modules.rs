//! The imports between modules: no cycles, and only in the documented order.
//!
//! Two rules, checked against the production code in `src`:
//!
//! 1. **Sibling modules form no cycle**, at any depth. An import counts between the two modules at which the
//!    paths of its ends part: if `edge::server` imports from `edge::tls::config`, then `server` imports from
//!    `tls`. A module may use items that its ancestors define, and a module may use its descendants; neither
//!    counts. Importing a name that a parent re-exports counts as an import from the module that defines the
//!    name.
//! 2. **Top-level modules import only from modules below them** in the list in docs/ARCHITECTURE.md. Modules
//!    on one line of the list do not import from each other.
//!
//! [`KNOWN_CYCLES`] and [`KNOWN_VIOLATIONS`] are the exceptions so far. They may only shrink: the test also
//! fails if an entry has no counterpart in the code.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::Path;

use crate::support::source::{ModulePath, Source, Use};

/// Cycles that exist, each as its parent and the sibling modules that reach each other:
/// `edge: audit service`.
const KNOWN_CYCLES: &[&str] = &[];

/// Imports against the order that exist: `stream -> logs`.
const KNOWN_VIOLATIONS: &[&str] = &[];

/// The first line of the list in docs/ARCHITECTURE.md. A fenced block follows, with one line per layer: the
/// names of its modules, separated by commas, then at least two spaces and a description.
const MARKER: &str = "<!-- module order: a module imports only from lines below it -->";

/// The imports between sibling modules: by the names of the importing and the imported one.
type Graph = BTreeMap<(String, String), Vec<Use>>;

/// The graph of each parent module.
fn graphs(source: &Source) -> BTreeMap<ModulePath, Graph> {
    let mut graphs: BTreeMap<ModulePath, Graph> = BTreeMap::new();
    for one in source.uses() {
        let common = one.from.iter().zip(&one.to).take_while(|(from, to)| from == to).count();
        let edge = (one.from[common].clone(), one.to[common].clone());
        graphs.entry(one.from[..common].to_vec()).or_default().entry(edge).or_default().push(one);
    }
    graphs
}

/// Returns the shortest path along the edges of `graph` from `begin` to `end`, of at least one edge.
fn shortest<'a>(graph: &'a Graph, begin: &'a str, end: &str) -> Option<Vec<&'a str>> {
    let mut paths = VecDeque::from([vec![begin]]);
    let mut seen = BTreeSet::new();
    while let Some(path) = paths.pop_front() {
        for (_, to) in graph.keys().filter(|(from, _)| Some(&from.as_str()) == path.last()) {
            let longer = [&path[..], &[to.as_str()]].concat();
            if to == end {
                return Some(longer);
            }
            if seen.insert(to) {
                paths.push_back(longer);
            }
        }
    }
    None
}

/// Returns the groups of modules that reach each other, each with a description of its imports.
fn cycles(parent: &[String], graph: &Graph) -> Vec<(String, String)> {
    let nodes: BTreeSet<&str> = graph.keys().flat_map(|(from, to)| [from.as_str(), to.as_str()]).collect();
    let reach = |from: &str, to: &str| shortest(graph, from, to).is_some();
    let mut found = Vec::new();
    let mut done = BTreeSet::new();
    for node in &nodes {
        if done.contains(node) || !reach(node, node) {
            continue;
        }
        let group: Vec<&str> =
            nodes.iter().copied().filter(|other| reach(node, other) && reach(other, node)).collect();
        done.extend(group.iter().copied());
        let full = |name: &str| [parent, &[name.to_owned()]].concat().join("::");
        let mut lines = Vec::new();
        for member in &group {
            let chain = shortest(graph, member, member).unwrap_or_default();
            // Each chain once: it begins with its first member.
            if chain.iter().min() == Some(member) {
                let chain: Vec<String> = chain.iter().map(|name| full(name)).collect();
                lines.push(format!("  {}\n", chain.join(" -> ")));
            }
        }
        let inner = graph
            .iter()
            .filter(|((from, to), _)| group.contains(&from.as_str()) && group.contains(&to.as_str()));
        for ((from, to), uses) in inner {
            lines.push(format!("    {} -> {}\n", full(from), full(to)));
            lines.extend(uses.iter().map(|one| format!("      {} uses {}\n", one.place, one.written)));
        }
        let parent = if parent.is_empty() { "crate".to_owned() } else { parent.join("::") };
        found.push((format!("{parent}: {}", group.join(" ")), lines.concat()));
    }
    found
}

/// Compares what was found with the exceptions. Returns a report of the difference.
fn differences(found: &[(String, String)], known: &[&str], list: &str) -> String {
    let new = found.iter().filter(|(name, _)| !known.contains(&name.as_str()));
    let mut report: Vec<_> = new.map(|(name, text)| format!("new: \"{name}\"\n{text}")).collect();
    let gone = known.iter().filter(|known| found.iter().all(|(name, _)| name != *known));
    report.extend(gone.map(|name| format!("gone: \"{name}\" no longer exists; remove it from {list}\n")));
    report.concat()
}

#[test]
fn sibling_modules_form_no_cycle() {
    let source = Source::read();
    let found: Vec<_> = graphs(&source).iter().flat_map(|(parent, graph)| cycles(parent, graph)).collect();
    let report = differences(&found, KNOWN_CYCLES, "KNOWN_CYCLES");
    assert!(
        report.is_empty(),
        "modules import each other in a circle; move what both need into one of them or below both:\n{report}"
    );
}

/// The layers of the list in docs/ARCHITECTURE.md.
fn layers(text: &str) -> Vec<BTreeSet<String>> {
    let mut lines = text.lines().skip_while(|line| *line != MARKER).skip(1);
    assert!(
        lines.next().is_some_and(|line| line.starts_with("```")),
        "docs/ARCHITECTURE.md has no fenced block after the line {MARKER}"
    );
    let block = lines.take_while(|line| *line != "```");
    let names = |line: &str| {
        line.split("  ").next().unwrap_or_default().split(',').map(|name| name.trim().to_owned()).collect()
    };
    block.filter(|line| !line.trim().is_empty()).map(names).collect()
}

#[test]
fn top_level_modules_follow_the_documented_order() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ARCHITECTURE.md");
    let layers = layers(&fs::read_to_string(path).unwrap());
    let source = Source::read();
    let listed: Vec<&String> = layers.iter().flatten().collect();
    let distinct: BTreeSet<String> = layers.iter().flatten().cloned().collect();
    assert_eq!(listed.len(), distinct.len(), "docs/ARCHITECTURE.md lists a module twice: {listed:?}");
    assert_eq!(distinct, source.children(&[]), "left: listed in docs/ARCHITECTURE.md; right: in src");
    let layer = |name: &String| layers.iter().position(|layer| layer.contains(name)).unwrap();
    let graph = graphs(&source).remove(&Vec::new()).unwrap_or_default();
    let upward = graph.iter().filter(|((from, to), _)| layer(from) >= layer(to));
    let found: Vec<_> = upward
        .map(|((from, to), uses)| {
            let uses = uses.iter().map(|one| format!("  {} uses {}\n", one.place, one.written));
            (format!("{from} -> {to}"), uses.collect::<Vec<_>>().concat())
        })
        .collect();
    let report = differences(&found, KNOWN_VIOLATIONS, "KNOWN_VIOLATIONS");
    assert!(report.is_empty(), "imports against the order in docs/ARCHITECTURE.md:\n{report}");
}

#[test]
fn cycles_are_found_between_siblings_only() {
    let path = |text: &str| -> ModulePath { text.split("::").map(str::to_owned).collect() };
    let one = |from: &str, to: &str| {
        let common = path(from).iter().zip(&path(to)).take_while(|(from, to)| from == to).count();
        let used =
            Use { from: path(from), to: path(to), place: "src/x.rs:1".to_owned(), written: to.to_owned() };
        ((path(from)[common].clone(), path(to)[common].clone()), vec![used])
    };
    let graph: Graph =
        [one("a::x", "b"), one("b", "c::y"), one("c", "a"), one("c", "d"), one("e", "a")].into();
    let found = cycles(&[], &graph);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0, "crate: a b c");
    assert!(
        found[0].1.starts_with("  a -> b -> c -> a\n    a -> b\n      src/x.rs:1 uses b\n"),
        "{}",
        found[0].1
    );
    let block = format!("text\n{MARKER}\n```text\nmain\nlogs, status  the calls\n```\nmore");
    assert_eq!(
        layers(&block),
        [BTreeSet::from(["main".to_owned()]), ["logs", "status"].map(str::to_owned).into()]
    );
}
