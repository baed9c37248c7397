//! Filters and forms of `leasemux logs`, over a real gateway.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use leasemux::model::id::LeaseId;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::process::{Done, Gateway, Workspace};
use crate::support::terminal::OnTerminal;

/// Prints nine lines, of which the fourth is hostile to a terminal.
const NINE: &str = r#"for n in 1 2 3; do echo "line $n"; done
    printf 'line 4 \033]0;title\007\033[31mERROR\033[0m\n'
    for n in 5 6 7 8; do echo "line $n"; done; echo 'line 9 ERROR'; exec sleep 1000"#;

/// Prints ten megabytes, then nothing.
const LARGE: &str =
    "yes 123456789012345678901234567890123456789 | head -c 10000000; echo 1 >$GATES/done; exec sleep 1000";

/// Erases the row of the cursor.
const ERASE: &str = "\r\x1b[K";

struct Scenario {
    workspace: Workspace,
    lease: LeaseId,
    gateway: Gateway,
}

impl Scenario {
    /// Starts a gateway and waits until nine lines of each replica can be read.
    fn start(services: &[(&str, &str, u32)]) -> Self {
        let workspace = Workspace::new();
        let lease = workspace.tenant("alice");
        let sdl = workspace.sdl("alice.yaml", services);
        let gateway = workspace.serve(&[(&lease, &sdl)], &[]);
        let scenario = Self { workspace, lease, gateway };
        let lines = 9 * services.iter().map(|(_, _, count)| count).sum::<u32>();
        let done = scenario.logs(&["-f", "--max-lines", &lines.to_string()]);
        assert_eq!((done.status.code(), done.out.lines().count()), (Some(0), lines as usize), "{done:?}");
        scenario
    }

    fn args(&self, more: &[&str]) -> Vec<String> {
        let mut args = self.workspace.logs_args(self.gateway.address, "alice", &self.lease);
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        args
    }

    fn logs(&self, more: &[&str]) -> Done {
        self.workspace.logs(self.gateway.address, "alice", &self.lease, more)
    }

    /// Returns the output of a call that succeeds.
    fn printed(&self, more: &[&str]) -> String {
        let done = self.logs(more);
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        done.out
    }

    fn on_terminal(&self, more: &[&str]) -> String {
        let args = self.args(more);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (status, shown) = OnTerminal::start(self.workspace.command(&args), 80).finish();
        assert_eq!(status.code(), Some(0), "{shown}");
        shown
    }
}

#[test]
fn filters_select_lines_and_never_notices() {
    let scenario = Scenario::start(&[("web", NINE, 1)]);
    let printed = |flags: &[&str]| scenario.printed(flags);
    assert_eq!(
        printed(&["--include", "line [2-8]", "--exclude", "[3-7]"]),
        "web/0 | line 2\nweb/0 | line 8\n"
    );
    assert_eq!(
        printed(&["--include", "ERROR$", "--no-prefix", "-C1", "--exclude", "line 4"]),
        "line 8\nline 9 ERROR\n"
    );
    let around = printed(&["--include", "^line [28]$", "-C1", "--no-prefix"]);
    assert_eq!(around, "line 1\nline 2\nline 3\n--\nline 7\nline 8\nline 9 ERROR\n");
    assert_eq!(printed(&["--include", "started"]), "");
    let json = printed(&["-o", "json", "-t", "--include", "line 8", "-A1"]);
    let lines: Vec<Value> = json.lines().map(|line| line.parse().unwrap()).collect();
    let of = |kind: &str, field: &str| -> Vec<Value> {
        lines.iter().filter(|line| line["type"] == kind).map(|line| line[field].clone()).collect()
    };
    assert_eq!(of("line", "line"), ["line 8", "line 9 ERROR"]);
    assert!(of("line", "time").iter().all(Value::is_string), "{json}");
}

#[test]
fn notices_pass_every_filter() {
    let scenario = Scenario::start(&[("web", NINE, 1)]);
    let follow = |more: &[&'static str]| {
        let flags = [&["-f", "--include", "line 9", "--exclude", "started"], more].concat();
        scenario.workspace.start_logs(scenario.gateway.address, "alice", &scenario.lease, &flags)
    };
    let (text, json) = (follow(&[]), follow(&["-o", "json"]));
    for program in [&text, &json] {
        program.until_out("the selected line", |out| out.contains("line 9 ERROR").then_some(()));
    }
    let args = scenario.workspace.call_args("restart", scenario.gateway.address, "alice", &scenario.lease);
    let args: Vec<&str> = args.iter().map(String::as_str).chain(["--all", "--timeout", "0"]).collect();
    assert_eq!(scenario.workspace.run(&args).status.code(), Some(8));
    text.until_said("web/0 * ended by signal 15");
    text.until_said("web/0 * started");
    json.until_out("events", |out| {
        let has = |kind: &str| out.contains(&format!("\"kind\":\"{kind}\""));
        (has("ended") && has("started")).then_some(())
    });
}

#[test]
fn lines_are_printed_in_the_form_of_a_template() {
    let scenario = Scenario::start(&[("web", NINE, 2)]);
    let template = "template={service}.{replica} {line}";
    let out =
        scenario.printed(&["-o", template, "--service", "web", "--replica", "1", "--include", "line [12]"]);
    assert_eq!(out, "web.1 line 1\nweb.1 line 2\n");
    let args =
        ["-o", "template={time}|{instance}|{line}", "--include", "line 5", "--max-lines", "1", "--local"];
    let out = scenario.printed(&args);
    let [time, instance, line] = out.trim_end().split('|').collect::<Vec<_>>()[..] else { panic!("{out}") };
    assert!(time.parse::<jiff::Timestamp>().is_ok() && !time.ends_with('Z'), "{time}");
    assert!(instance.contains("/web/") && line == "line 5", "{out}");
    // The time of `-t` is before the line.
    let args = ["-t", "-o", "template={service} {line}", "--include", "line 5", "--max-lines", "1"];
    let out = scenario.printed(&args);
    let ["web", time, "line", "5"] = out.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{out}") };
    assert!(time.parse::<jiff::Timestamp>().is_ok(), "{out}");
    // `--until` needs times that are not printed.
    let out =
        scenario.printed(&["--until", "0s", "--include", "line 1", "--service", "web", "--replica", "0"]);
    assert_eq!(out, "web/0 | line 1\n");
}

#[test]
fn colours_and_matches_on_a_terminal_are_safe() {
    let scenario = Scenario::start(&[("web", NINE, 1)]);
    // The match begins in the title sequence and ends in the colour.
    let flags = ["--include", r"title\x07.*ERR"];
    let escaped = "line 4 ^[]0;\x1b[7mtitle^G\x1b[31m\x1b[7mERR\x1b[27mOR\x1b[0m\x1b[0m\r\n";
    let shown = scenario.on_terminal(&flags);
    assert!(shown.contains(&format!("web/0 |\x1b[0m {escaped}")), "{shown:?}");
    let never = scenario.on_terminal(&[&flags[..], &["--color", "never"]].concat());
    let plain = "web/0 | line 4 ^[]0;title^G\x1b[31mERROR\x1b[0m\x1b[0m\r\n";
    assert!(never.contains(plain) && !never.contains("\x1b[7m"), "{never:?}");
    // Without a terminal, colours are a choice.
    let always = scenario.printed(&["--color", "always", "--include", "line 9", "--no-prefix"]);
    assert_eq!(always, "\x1b[7mline 9\x1b[27m ERROR\n");
    assert_eq!(scenario.printed(&["--include", "line 9", "--no-prefix"]), "line 9 ERROR\n");
}

/// Returns a bash on a session of its own, which runs `script` with the words of `call` as its arguments.
fn in_bash(script: &str, call: &Command) -> Command {
    let mut shell = Command::new("setsid");
    shell.args(["--ctty", "--wait", "bash", "-c", script, "bash"]).arg(call.get_program());
    shell.args(call.get_args());
    for (name, value) in call.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

/// Reads older lines so slowly that a read of [`LARGE`] takes several seconds.
const SLOW: &[&str] = &["--history-rate=1MiB", "--history-rate-per-owner=1MiB"];

#[test]
fn progress_of_a_download_is_drawn_and_erased() {
    let workspace = Workspace::new();
    let lease = workspace.tenant("alice");
    let sdl = workspace.sdl("alice.yaml", &[("web", LARGE, 1)]);
    let gateway = workspace.serve(&[(&lease, &sdl)], SLOW);
    workspace.until_number("done", 1);
    let start = |more: &[&str], name: &str| {
        let mut args = workspace.logs_args(gateway.address, "alice", &lease);
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = Stdio::from(File::create(workspace.path(name)).unwrap());
        OnTerminal::start_with_output(workspace.command(&args), 80, output)
    };
    let rows = |shown: &str| shown.matches(" lines, ").count();
    let terminal = start(&[], "all");
    terminal.until("two rows", |shown| (rows(shown) >= 2).then_some(()));
    let (status, shown) = terminal.finish();
    assert_eq!(status.code(), Some(0), "{shown}");
    assert!(shown.contains(" MB, ") && shown.trim_end().ends_with(ERASE.trim_end()), "{shown:?}");
    let printed = std::fs::read_to_string(workspace.path("all")).unwrap();
    assert_eq!(printed.lines().count(), 250_000);

    // Ctrl-C erases the row, and ends the program as without progress.
    let terminal = start(&[], "some");
    terminal.until("a row", |shown| (rows(shown) >= 1).then_some(()));
    terminal.signal(Signal::INT);
    let (status, shown) = terminal.finish();
    assert_eq!(status.signal(), Some(2), "{shown:?}");
    assert!(shown.ends_with(ERASE), "{shown:?}");

    let (status, shown) = start(&["-q"], "quiet").finish();
    assert_eq!((status.code(), rows(&shown)), (Some(0), 0), "{shown:?}");

    // Started with the signal ignored, as a background job of a script is.
    let args = workspace.logs_args(gateway.address, "alice", &lease);
    let call = || workspace.command(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let output = Stdio::from(File::create(workspace.path("ignoring")).unwrap());
    let ignoring = in_bash("trap '' INT; exec \"$@\"", &call());
    let terminal = OnTerminal::start_with_output(ignoring, 80, output);
    terminal.until("a row", |shown| (rows(shown) >= 1).then_some(()));
    terminal.signal(Signal::INT);
    let (status, shown) = terminal.finish();
    assert_eq!(status.code(), Some(0), "{shown:?}");
    let printed = std::fs::read_to_string(workspace.path("ignoring")).unwrap();
    assert_eq!(printed.lines().count(), 250_000);

    // In the background of a shell, whose terminal it is.
    let mut shell = in_bash("set -m; \"$@\" >some & wait $!", &call());
    shell.current_dir(workspace.path(""));
    let output = Stdio::from(File::create(workspace.path("none")).unwrap());
    let (status, shown) = OnTerminal::start_with_output(shell, 80, output).finish();
    assert_eq!((status.code(), rows(&shown)), (Some(0), 0), "{shown:?}");
    let printed = std::fs::read_to_string(workspace.path("some")).unwrap();
    assert_eq!(printed.lines().count(), 250_000);
}

#[test]
fn progress_of_a_restart_names_the_replica() {
    let scenario = Scenario::start(&[("web", NINE, 2)]);
    let args = scenario.workspace.call_args("restart", scenario.gateway.address, "alice", &scenario.lease);
    let args: Vec<&str> = args.iter().map(String::as_str).chain(["--service", "web"]).collect();
    let terminal = OnTerminal::start(scenario.workspace.command(&args), 100);
    for replica in ["web/0", "web/1"] {
        terminal.until_shown(&format!("{replica} in progress, "));
    }
    let (status, shown) = terminal.finish();
    assert_eq!(status.code(), Some(0), "{shown}");
    let (_, last) = shown.rsplit_once("\x1b[J").unwrap();
    assert_eq!(last, "REPLICA  STATE   MESSAGE\r\nweb/0    active\r\nweb/1    active\r\n");

    let terminal = OnTerminal::start(scenario.workspace.command(&args), 100);
    terminal.until_shown(" in progress, ");
    terminal.signal(Signal::INT);
    let (status, shown) = terminal.finish();
    assert_eq!(status.signal(), Some(2), "{shown:?}");
    assert!(shown.ends_with("\x1b[J"), "{shown:?}");
}
