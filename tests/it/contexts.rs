//! Contexts and leases by their parts, in the whole program.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use leasemux::model::id::LeaseId;

use crate::support::completion;
use crate::support::process::{Done, Gateway, Program, Workspace};

struct Scenario {
    workspace: Workspace,
    lease: LeaseId,
    gateway: Gateway,
}

impl Scenario {
    /// Starts a gateway with a service that prints one line.
    fn start() -> Self {
        let workspace = Workspace::new();
        let lease = workspace.tenant("alice");
        // Her tokens are trusted too. A gateway that runs would take the key a moment later.
        fs::copy(workspace.path("alice/account.pub"), workspace.path("trusted/alice.pub")).unwrap();
        let sdl = workspace.sdl("alice.yaml", &[("web", "echo hello; exec sleep 1000", 1)]);
        let gateway = workspace.serve(&[(&lease, &sdl)], &[]);
        Self { workspace, lease, gateway }
    }

    fn text(&self, name: &str) -> String {
        self.workspace.path(name).to_str().unwrap().to_owned()
    }

    fn url(&self) -> String {
        format!("https://{}", self.gateway.address)
    }

    fn run<A: AsRef<str>>(&self, args: &[A], environment: &[(&str, &str)]) -> Done {
        let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        let mut command = self.workspace.command(&args);
        command.envs(environment.iter().copied());
        Program::start(command, args.join(" ")).done()
    }

    fn succeeds<A: AsRef<str>>(&self, args: &[A]) -> String {
        let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        let done = self.run(&args, &[]);
        assert_eq!(done.status.code(), Some(0), "{args:?}: {done:?}");
        done.out
    }

    /// Expects a usage error, and returns its text.
    fn fails<A: AsRef<str>>(&self, args: &[A], environment: &[(&str, &str)]) -> String {
        let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        let done = self.run(&args, environment);
        assert_eq!((done.status.code(), done.out.as_str()), (Some(2), ""), "{args:?}: {done:?}");
        done.err
    }

    /// Creates a context for the gateway and its lease.
    fn set(&self, name: &str, more: &[&str]) -> String {
        let (url, ca) = (self.url(), self.text("data/server.pem"));
        let args = ["context", "set", name, "--gateway", &url, "--ca", &ca];
        self.succeeds(&[&args[..], more].concat())
    }
}

#[test]
fn logs_take_gateway_credentials_and_lease_from_a_context() {
    let scenario = Scenario::start();
    let (identity, lease) = (scenario.text("alice"), scenario.lease.to_string());
    // Without a context, and before there is a file.
    assert!(scenario.fails(&["logs"], &[]).contains("LEASE is missing"));
    scenario.set("shop", &["--identity", &identity, "--lease", &lease]);
    let logs = ["logs", "-f", "--max-lines", "1"];
    assert_eq!(scenario.succeeds(&logs), "web/0 | hello\n");
    // A token from its file, for one call.
    let token = scenario.succeeds(&["token", "new", "--identity", &identity]);
    fs::write(scenario.workspace.path("web.token"), token).unwrap();
    let file = format!("@{}", scenario.text("web.token"));
    scenario.set("token", &["--token", &file, "--lease", &lease]);
    assert_eq!(scenario.succeeds(&[&logs[..], &["--context", "token"]].concat()), "web/0 | hello\n");
    assert!(scenario.succeeds(&["status", "--context", "token"]).contains("web/0"));

    // A flag overrides the variable, which overrides the context.
    let nowhere = ("LEASEMUX_GATEWAY", "https://127.0.0.1:1");
    assert_eq!(scenario.run(&logs, &[nowhere]).status.code(), Some(5));
    let url = scenario.url();
    let flag = scenario.run(&[&logs[..], &["--gateway", &url]].concat(), &[nowhere]);
    assert_eq!((flag.status.code(), flag.out.as_str()), (Some(0), "web/0 | hello\n"), "{flag:?}");
    let other = lease.replace("/7/", "/8/");
    assert_eq!(scenario.run(&["status", &other], &[]).status.code(), Some(4));
    // The other kind of credentials, and the other kind of trust.
    let bad = ("LEASEMUX_TOKEN", "not.a.token");
    assert_eq!(scenario.run(&["status"], &[bad]).status.code(), Some(3));
    assert_eq!(scenario.run(&["status", "--identity", &identity], &[bad]).status.code(), Some(0));
    assert_eq!(scenario.run(&["status", "--insecure"], &[]).status.code(), Some(0));
    assert_eq!(scenario.run(&["status", "--insecure=false"], &[]).status.code(), Some(0));
}

#[test]
fn contexts_are_listed_chosen_and_deleted() {
    let scenario = Scenario::start();
    let (identity, lease) = (scenario.text("alice"), scenario.lease.to_string());
    assert!(scenario.set("one", &["--identity", &identity]).contains("the current context"));
    assert_eq!(scenario.set("two", &["--identity", &identity, "--lease", &lease]), "set two\n");
    let path = scenario.workspace.path("config/leasemux/contexts.toml");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let rows = |marked: &str| {
        let list = scenario.succeeds(&["context", "list"]);
        let rows: Vec<String> =
            list.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert!(
            rows.iter().any(|row| row.starts_with(&format!("* {marked} {} {identity}", scenario.url()))),
            "{list}"
        );
        rows.len()
    };
    assert_eq!(rows("one"), 2);
    scenario.succeeds(&["context", "use", "two"]);
    assert_eq!(rows("two"), 2);
    let shown = scenario.succeeds(&["context", "show"]);
    assert!(shown.starts_with("# two\n") && shown.contains(&format!("lease = \"{lease}\"\n")), "{shown}");
    scenario.succeeds(&["context", "delete", "one"]);
    assert_eq!(rows("two"), 1);
    scenario.succeeds(&["context", "delete", "two"]);
    assert!(scenario.fails(&["context", "show"], &[]).contains("no context is current"));
    assert!(scenario.fails(&["context", "use", "one"], &[]).contains("there is no context \"one\""));
}

#[test]
fn concurrent_changes_are_all_kept() {
    let workspace = Workspace::new();
    let names: Vec<String> = (0..30).map(|number| format!("shop-{number:02}")).collect();
    let start = |name: &String| {
        let args = ["context", "set", name, "--gateway", "https://provider.test:8446"];
        Program::start(workspace.command(&args), name.clone())
    };
    let calls: Vec<Program> = names.iter().map(start).collect();
    for call in calls {
        let done = call.done();
        assert_eq!(done.status.code(), Some(0), "{done:?}");
    }
    let list = workspace.run(&["context", "list"]).out;
    let listed: Vec<&str> = list
        .lines()
        .skip(1)
        .filter_map(|row| row.split_whitespace().find(|word| word.starts_with("shop")))
        .collect();
    assert_eq!(listed, names);
}

#[test]
fn errors_of_contexts_name_their_place() {
    let scenario = Scenario::start();
    let (identity, lease) = (scenario.text("alice"), scenario.lease.to_string());
    // A token is never stored.
    let text = scenario.fails(&["context", "set", "x", "--token", "secret.token"], &[]);
    assert!(text.contains("--token (not shown): must be @ and the file"), "{text}");
    assert!(scenario.fails(&["context", "set", "x"], &[]).contains("there is nothing to set"));
    assert!(scenario.fails(&["context", "set", "a b", "--ca", "/none"], &[]).matches("error: ").count() == 2);
    assert!(!scenario.workspace.path("config/leasemux").exists());
    scenario.set("shop", &["--identity", &identity, "--lease", &lease]);
    let path = scenario.text("config/leasemux/contexts.toml");
    let text = scenario.fails(&["logs", "--context", "blog"], &[]);
    assert!(text.contains(&format!("there is no context \"blog\" in {path}; there are: shop")), "{text}");
    assert_eq!(text.matches("error: ").count(), 1, "{text}");
    let text = scenario.fails(&["logs"], &[("LEASEMUX_CONTEXT", "blog")]);
    assert!(text.contains("there is no context \"blog\""), "{text}");
    // A value that is not valid any more.
    let stored = fs::read_to_string(&path).unwrap();
    fs::rename(scenario.workspace.path("alice"), scenario.workspace.path("moved")).unwrap();
    let text = scenario.fails(&["status"], &[]);
    let line = 1 + stored.lines().position(|line| line.starts_with("identity")).unwrap();
    assert!(
        text.contains(&format!("--identity \"{identity}\" (from {path}, line {line}): must be")),
        "{text}"
    );
    assert_eq!(text.matches("error: ").count(), 1, "{text}");
    fs::write(&path, "current = 'shop'\n[contexts.shop]\ngatewy = 'x'\n").unwrap();
    let text = scenario.fails(&["status"], &[]);
    assert!(text.contains(&format!("error: {path}, line 3: unknown field `gatewy`")), "{text}");
    assert_eq!(text.matches("error: ").count(), 1, "{text}");
    // Text of the file does not control the terminal.
    fs::write(&path, "[contexts.shop]\n\"\\u001b]0;title\" = 'x'\n").unwrap();
    for args in [&["status"][..], &["context", "list"]] {
        let text = scenario.fails(args, &[]);
        assert!(text.contains("line 2: unknown field `^[]0;title`") && !text.contains('\u{1b}'), "{text:?}");
    }
}

#[test]
fn lease_is_given_by_its_parts() {
    let scenario = Scenario::start();
    let (ca, identity) = (scenario.text("data/server.pem"), scenario.text("alice"));
    let (url, lease) = (scenario.url(), scenario.lease.to_string());
    let provider = scenario.lease.provider().to_string();
    let (lease, provider): (&str, &str) = (&lease, &provider);
    let status = |more: &[&str]| -> Vec<String> {
        let all = ["status", "--gateway", &url, "--ca", &ca, "--identity", &identity];
        all.iter().chain(more).map(|arg| (*arg).to_owned()).collect()
    };
    let parts = ["--dseq", "7", "--provider", provider];
    assert!(scenario.succeeds(&status(&parts)).contains("web/0"));
    let all = [&parts[..], &["--gseq", "1", "--oseq", "1"]].concat();
    assert!(scenario.succeeds(&status(&all)).contains("web/0"));
    assert_eq!(scenario.run(&status(&[&parts[..], &["--gseq", "2"]].concat()), &[]).status.code(), Some(4));
    assert!(
        scenario
            .fails(&status(&["--dseq", "7"]), &[])
            .contains("--provider (or LEASEMUX_PROVIDER) is missing")
    );
    assert!(
        scenario.fails(&status(&[lease, "--dseq", "7"]), &[]).contains("--dseq and LEASE do not go together")
    );
    assert!(scenario.fails(&status(&["--provider", provider]), &[]).contains("--provider needs --dseq"));
    assert!(
        scenario
            .fails(&["status", "--dseq", "7", "--provider", provider, "--token", "a.b.c"], &[])
            .contains("--dseq needs --identity")
    );
    // A variable that `serve` uses too, beside a typed lease.
    assert_eq!(scenario.run(&status(&[lease]), &[("LEASEMUX_PROVIDER", provider)]).status.code(), Some(0));
    // The provider of the context's lease.
    scenario.set("shop", &["--identity", &identity, "--lease", &lease.replace("/7/", "/8/")]);
    assert!(scenario.succeeds(&["status", "--dseq", "7"]).contains("web/0"));
}

#[test]
fn bash_completes_services_and_contexts() {
    let scenario = Scenario::start();
    let (identity, lease) = (scenario.text("alice"), scenario.lease.to_string());
    let complete = |words: &[&str]| {
        let mut bash = completion::bash(&scenario.workspace.path("leasemux"), words);
        completion::candidates(bash.env("XDG_CONFIG_HOME", scenario.workspace.path("config")))
    };
    // bash splits the URL at its colons.
    let (ca, port) = (scenario.text("data/server.pem"), scenario.gateway.address.port().to_string());
    let target = ["--gateway", "https", ":", "//127.0.0.1", ":", &port, "--ca", &ca, "--identity", &identity];
    let words = |command, rest: &[&'static str]| [&[command, lease.as_str()], &target[..], rest].concat();
    assert_eq!(complete(&words("logs", &["--service", ""])), ["web"]);
    assert_eq!(complete(&words("restart", &["-q", "--service", "w"])), ["web"]);
    assert_eq!(complete(&words("status", &["--service", "x"])), [""; 0]);
    // Nothing is known without a lease, or without a gateway.
    assert_eq!(complete(&["logs", "--service", ""]), [""; 0]);
    assert_eq!(complete(&["logs", &lease, "--gateway", "https://127.0.0.1:1", "--service", ""]), [""; 0]);
    scenario.set("shop", &["--identity", &identity, "--lease", &lease]);
    scenario.set("blog", &["--identity", &identity]);
    assert_eq!(complete(&["logs", "--service", ""]), ["web"]);
    assert_eq!(complete(&["logs", "--context", "b"]), ["blog"]);
    assert_eq!(complete(&["context", "use", "s"]), ["shop"]);
    // A gateway that accepts connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", silent.local_addr().unwrap());
    assert_eq!(complete(&["logs", "--gateway", &url, "--service", ""]), [""; 0]);
}

#[test]
fn fish_completes_services_contexts_and_files() {
    if !completion::is_installed("fish") {
        eprintln!("not tested: fish is not installed");
        return;
    }
    let scenario = Scenario::start();
    let (identity, lease) = (scenario.text("alice"), scenario.lease.to_string());
    let complete = |line: &str| {
        let mut fish = completion::fish(&scenario.workspace.path("leasemux"), line);
        fish.env("XDG_CONFIG_HOME", scenario.workspace.path("config"))
            .current_dir(scenario.workspace.path(""));
        completion::candidates(&mut fish)
    };
    assert_eq!(complete("leasemux ser"), ["serve"]);
    assert_eq!(complete("leasemux serve --admin"), ["--admin-listen"]);
    assert_eq!(complete("leasemux serve --config alice.y"), ["alice.yaml"]);
    let (url, ca) = (scenario.url(), scenario.text("data/server.pem"));
    let target = format!("leasemux logs {lease} --gateway {url} --ca {ca} --identity {identity}");
    assert_eq!(complete(&format!("{target} --service ")), ["web"]);
    assert_eq!(complete("leasemux logs --service "), [""; 0]);
    scenario.set("shop", &["--identity", &identity, "--lease", &lease]);
    scenario.set("blog", &[]);
    assert_eq!(complete("leasemux logs --service w"), ["web"]);
    assert_eq!(complete("leasemux logs --context b"), ["blog"]);
    assert_eq!(complete("leasemux context use "), ["blog", "shop", "--help"]);
}

#[test]
fn zsh_completes_services_contexts_and_files() {
    if !completion::is_installed("zsh") {
        eprintln!("not tested: zsh is not installed");
        return;
    }
    let scenario = Scenario::start();
    let (identity, lease) = (scenario.text("alice"), scenario.lease.to_string());
    scenario.set("shop", &["--identity", &identity, "--lease", &lease]);
    scenario.set("blog", &[]);
    let (program, home) = (scenario.workspace.path("leasemux"), scenario.workspace.path(""));
    let mut zsh = completion::Zsh::start(&program, &home, [""; 2]);
    // Before the script is loaded.
    assert_eq!(zsh.complete("leasemux ser"), "ser");
    let file = "leasemux completions zsh >_leasemux; fpath=($PWD $fpath)";
    let source = "source <(leasemux completions zsh)";
    // The first completion loads a file.
    for load in [[file, ""], ["", source]] {
        let mut zsh = completion::Zsh::start(&program, &home, load);
        assert_eq!(zsh.complete("leasemux ser"), "serve ", "{load:?}");
        assert_eq!(zsh.complete("leasemux serve --admin"), "serve --admin-listen ");
        assert_eq!(zsh.complete("leasemux serve --config alice.y"), "serve --config alice.yaml ");
        assert_eq!(zsh.complete("leasemux logs --service w"), "logs --service web ");
        assert_eq!(zsh.complete("leasemux logs --context b"), "logs --context blog ");
        assert_eq!(zsh.complete("leasemux context use s"), "context use shop ");
    }
}
