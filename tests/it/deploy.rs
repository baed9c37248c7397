//! Files of `deploy/`: dashboard and alerts use only metrics, labels and values that the code has, and the
//! permissions are the documented ones.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use leasemux::model::metrics::{Declaration, MetricKind, canary, catalogue};
use serde::Deserialize;
use serde_json::Value;

use crate::support::promql::{Query, Selector};

/// Labels that Prometheus adds to everything that it scrapes.
const SCRAPED: [&str; 2] = ["job", "instance"];

#[derive(Debug, Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
struct Group {
    rules: Vec<Alert>,
}

#[derive(Debug, Deserialize)]
struct Alert {
    #[serde(rename = "alert")]
    name: String,
    expr: String,
    labels: std::collections::BTreeMap<String, String>,
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Cases {
    tests: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Case {
    alert_rule_test: Vec<Expected>,
}

#[derive(Debug, Deserialize)]
struct Expected {
    alertname: String,
    exp_alerts: Vec<Value>,
}

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(deploy(name)).unwrap()
}

/// Returns the metrics of gateways and canaries.
fn all_metrics() -> impl Iterator<Item = &'static Declaration> {
    catalogue::each().chain(canary::each())
}

/// Returns the metric that has this series, and the labels that the series has in addition.
fn declared(series: &str) -> Option<(&'static Declaration, &'static [&'static str])> {
    let parts: [(&str, &'static [&'static str]); 3] = [("_bucket", &["le"]), ("_sum", &[]), ("_count", &[])];
    all_metrics().find_map(|metric| match metric.kind {
        MetricKind::Counter | MetricKind::Gauge => (metric.name == series).then_some((metric, &[][..])),
        MetricKind::Histogram(_) => parts.iter().find_map(|(part, labels)| {
            (series.strip_suffix(part) == Some(metric.name)).then_some((metric, *labels))
        }),
    })
}

/// Returns the faults of a query. `shown` are the labels that are shown with its result.
fn faults(text: &str, shown: &[&str]) -> Vec<String> {
    let query = match Query::read(text) {
        Ok(query) => query,
        Err(fault) => return vec![fault],
    };
    let mut faults = Vec::new();
    let mut known: BTreeSet<&str> = SCRAPED.into();
    for Selector { metric, matchers } in &query.selectors {
        let mut own: BTreeSet<&str> = SCRAPED.into();
        let found = declared(metric);
        match found {
            Some((metric, more)) => {
                own.extend(metric.labels.iter().map(|label| label.name).chain(more.iter().copied()));
            }
            None if metric == "up" => {}
            None => faults.push(format!("no metric {metric}")),
        }
        for (label, operator, value) in matchers {
            if !own.contains(&**label) {
                faults.push(format!("{metric} has no label {label}"));
            }
            let set = found.and_then(|(metric, _)| metric.labels.iter().find(|set| set.name == label));
            let values = set.map_or(&[][..], |set| set.values);
            let asked: Vec<_> =
                if operator.ends_with('~') { value.split('|').collect() } else { vec![value] };
            for value in asked.into_iter().filter(|value| !values.is_empty() && !value.starts_with('$')) {
                if !values.contains(&value) {
                    faults.push(format!("{label} of {metric} is never {value}"));
                }
            }
        }
        known.extend(own);
    }
    let grouped = query.labels.iter().map(String::as_str);
    faults.extend(
        grouped
            .chain(shown.iter().copied())
            .filter(|label| !known.contains(label))
            .map(|label| format!("no label {label} in {text}")),
    );
    if query.selectors.is_empty() {
        faults.push("no metric in it".to_owned());
    }
    faults
}

#[track_caller]
fn check(place: &str, query: &str, shown: &[&str]) {
    let faults = faults(query, shown);
    assert!(faults.is_empty(), "{place}: {query}\n{faults:#?}");
}

/// Returns the labels that a template names in double braces, each after `prefix`.
fn template_labels<'a>(text: &'a str, prefix: &str) -> Vec<&'a str> {
    let inside = text.split("{{").skip(1).filter_map(|rest| rest.split_once("}}"));
    let names = inside.filter_map(|(inside, _)| inside.trim().strip_prefix(prefix));
    names.map(|name| name.split(' ').next().unwrap_or(name)).collect()
}

#[test]
fn queries_with_unknown_names_are_faulty() {
    for (query, fault) in [
        ("rate(leasemux_lines_lost[5m])", "no metric leasemux_lines_lost"),
        ("leasemux_delivery_delay_seconds", "no metric leasemux_delivery_delay_seconds"),
        ("leasemux_gaps_total{reason=\"lag\"}", "leasemux_gaps_total has no label reason"),
        ("leasemux_gaps_total{cause=~\"lag|lags\"}", "cause of leasemux_gaps_total is never lags"),
        ("sum by (le) (leasemux_gaps_total)", "no label le in sum by (le) (leasemux_gaps_total)"),
        ("time()", "no metric in it"),
    ] {
        assert_eq!(faults(query, &[]), [fault], "{query}");
    }
    let query =
        "histogram_quantile(0.5, sum by (le) (rate(leasemux_delivery_delay_seconds_bucket{job=\"a\"}[5m])))";
    assert!(faults(query, &[]).is_empty());
    assert_eq!(faults(query, &["method"]).len(), 1);
    assert_eq!(template_labels("{{a}} and {{ b }}", ""), ["a", "b"]);
}

#[test]
fn dashboard_uses_existing_metrics_only() {
    let dashboard: Value = serde_json::from_str(&read("grafana/leasemux.json")).unwrap();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 39 && dashboard["title"] == "leasemux");
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let sources = variables.iter().filter(|variable| variable["type"] == "datasource");
    assert_eq!(sources.map(|source| source["query"].as_str().unwrap()).collect::<Vec<_>>(), ["prometheus"]);
    for query in variables.iter().filter_map(|variable| variable["definition"].as_str()) {
        let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).unwrap();
        let (selector, label) = inside.rsplit_once(", ").unwrap();
        check("variable", selector, &[label]);
    }
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "two panels have the same id");
    let mut shown = BTreeSet::new();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = panel["title"].as_str().unwrap();
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            let (query, legend) =
                (target["expr"].as_str().unwrap(), target["legendFormat"].as_str().unwrap());
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            check(title, query, &template_labels(legend, ""));
            let selectors = Query::read(query).unwrap().selectors;
            shown.extend(selectors.iter().filter_map(|selector| Some(declared(&selector.metric)?.0.name)));
        }
    }
    // A metric without a panel is either missing in the dashboard or useless.
    let hidden: Vec<_> =
        all_metrics().map(|metric| metric.name).filter(|name| !shown.contains(name)).collect();
    assert_eq!(hidden, ["process_virtual_memory_bytes"]);
    let rows: Vec<_> =
        panels.iter().filter(|panel| panel["type"] == "row").map(|row| &row["title"]).collect();
    assert_eq!(
        rows,
        [
            "Overview",
            "Delivery and loss",
            "Lag",
            "Canary",
            "Sources and actors",
            "Fleet",
            "Edge",
            "REST and front mode",
            "The chain",
            "Process"
        ]
    );
}

#[test]
fn alerts_use_existing_metrics_and_have_test_cases() {
    let rules: Rules = serde_saphyr::from_str(&read("prometheus/alerts.yaml")).unwrap();
    let cases: Cases = serde_saphyr::from_str(&read("prometheus/alerts_test.yaml")).unwrap();
    let expected: Vec<_> = cases.tests.iter().flat_map(|case| &case.alert_rule_test).collect();
    let alerts: Vec<_> = rules.groups.iter().flat_map(|group| &group.rules).collect();
    let names: BTreeSet<_> = alerts.iter().map(|alert| &alert.name).collect();
    assert_eq!(names.len(), alerts.len());
    for Alert { name: alert, expr, labels, annotations } in alerts {
        let texts = format!("{} {}", annotations["summary"], annotations["description"]);
        check(alert, expr, &template_labels(&texts, "$labels."));
        assert!(["page", "ticket"].contains(&&*labels["severity"]), "{alert}");
        for fires in [true, false] {
            let matches = |case: &&&Expected| case.alertname == *alert && case.exp_alerts.is_empty() != fires;
            assert!(expected.iter().find(matches).is_some(), "{alert}: no case for {fires}");
        }
    }
    assert!(expected.iter().all(|case| names.contains(&case.alertname)));
}

/// Flags of `serve` that the chart sets from other values.
const SET_BY_THE_CHART: [&str; 31] = [
    "--admin-listen",
    "--ca-tls-cert",
    "--ca-tls-key",
    "--chain-grpc",
    "--data-dir",
    "--fleet",
    "--fleet-role",
    "--fleet-secret",
    "--lame-duck",
    "--listen",
    "--manifest-namespace",
    "--nats",
    "--nats-ca",
    "--nats-cert",
    "--nats-creds",
    "--nats-key",
    "--nats-nkey",
    "--node-name",
    "--otlp-endpoint",
    "--platform",
    "--pod-logs-dir",
    "--provider",
    "--public-hostname",
    "--published-listen",
    "--rest-listen",
    "--tls-cert",
    "--tls-key",
    "--trust-dir",
    "--trusted-proxy",
    "--upstream-grpc",
    "--upstream-provider",
];

/// Flags without a use in a pod: other commands, files outside of it, and services of `--platform local`.
const NOT_IN_A_POD: [&str; 12] = [
    "--attach",
    "--check",
    "--config",
    "--help",
    "--kept-runs",
    "--kube-context",
    "--kubeconfig",
    "--lease",
    "--lifeline",
    "--rotate-files",
    "--rotate-max-bytes",
    "--stop-grace",
];

#[test]
fn chart_accepts_each_flag_of_serve_once() {
    let schema: Value = serde_json::from_str(&read("helm/leasemux/values.schema.json")).unwrap();
    let names = schema["properties"]["settings"]["propertyNames"]["enum"].as_array().unwrap();
    let settings: BTreeSet<_> = names.iter().map(|name| format!("--{}", name.as_str().unwrap())).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let flags = std::fs::read_to_string(root.join("tests/surface/flags.txt")).unwrap();
    let own = SET_BY_THE_CHART.iter().chain(&NOT_IN_A_POD);
    let own: BTreeSet<_> = own.map(|flag| (*flag).to_owned()).collect();
    let served: BTreeSet<_> = flags
        .lines()
        .filter_map(|line| {
            line.strip_prefix("leasemux serve ")?.split(' ').find(|word| word.starts_with("--"))
        })
        .map(|flag| flag.split('[').next().unwrap().to_owned())
        .collect();
    assert_eq!(settings.intersection(&own).collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(settings.union(&own).cloned().collect::<BTreeSet<_>>(), served);
}

/// Kind of the role, API groups, resources, verbs.
type Rule = (String, Vec<String>, Vec<String>, Vec<String>);

#[test]
fn restart_locks_are_permitted_in_the_own_namespace_only() {
    let text = read("kubernetes/base/rbac.yaml");
    let documents: Vec<Value> =
        text.split("\n---\n").map(|text| serde_saphyr::from_str(text).unwrap()).collect();
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let rules: Vec<Rule> = documents
        .iter()
        .flat_map(|document| {
            let kind = document["kind"].as_str().unwrap();
            let rules = document["rules"].as_array().into_iter().flatten();
            rules.map(move |rule| {
                (kind.to_owned(), texts(&rule["apiGroups"]), texts(&rule["resources"]), texts(&rule["verbs"]))
            })
        })
        .collect();
    let lock_rules: Vec<_> =
        rules.iter().filter(|(_, groups, ..)| groups.contains(&"coordination.k8s.io".to_owned())).collect();
    let verbs = ["get", "create", "update", "delete"].map(str::to_owned).to_vec();
    let wanted =
        ("Role".to_owned(), vec!["coordination.k8s.io".to_owned()], vec!["leases".to_owned()], verbs);
    assert_eq!(lock_rules, [&wanted]);
    assert!(rules.iter().all(|(_, groups, resources, verbs)| {
        [groups, resources, verbs].iter().all(|names| !names.contains(&"*".to_owned()))
    }));
    let events: Vec<_> =
        rules.iter().filter(|(.., resources, _)| resources.contains(&"events".to_owned())).collect();
    let [group, resource] = ["events.k8s.io", "events"].map(|name| vec![name.to_owned()]);
    let read = ("ClusterRole".to_owned(), group, resource, ["list", "watch"].map(str::to_owned).to_vec());
    assert_eq!(events, [&read]);
    let is_bound = |document: &&Value| {
        document["kind"] == "RoleBinding" && document["roleRef"]["name"] == "leasemux-restart-locks"
    };
    let binding = documents.iter().find(is_bound).unwrap();
    assert_eq!(binding["roleRef"]["kind"], "Role");
    assert_eq!(binding["subjects"][0]["name"], "leasemux");
}

/// Reports that a test was skipped because this program is missing.
#[expect(clippy::print_stderr, reason = "part of a test")]
pub(crate) fn not_tested(program: &str) {
    eprintln!("not tested: {program} is not installed (Debian's package prometheus)");
}

/// Runs promtool with this input. Returns `None` if it is not installed.
pub(crate) fn promtool(args: &[&str], input: &str) -> Option<Output> {
    let mut command = Command::new("promtool");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            not_tested("promtool");
            return None;
        }
        Err(error) => panic!("promtool: {error}"),
    };
    // promtool may exit before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    Some(child.wait_with_output().unwrap())
}

#[test]
fn promtool_accepts_the_alerts() {
    for (verb, file) in [("check", "prometheus/alerts.yaml"), ("test", "prometheus/alerts_test.yaml")] {
        let file = deploy(file);
        if let Some(output) = promtool(&[verb, "rules", file.to_str().unwrap()], "") {
            assert!(output.status.success(), "{output:?}");
        }
    }
}
