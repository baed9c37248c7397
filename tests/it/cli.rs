//! The command line of the real program: usage errors, help, environment, exit codes.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::support::completion;

const LEASE: &str =
    "akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev/6194991/1/1/akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0";

fn leasemux(args: &[&str], environment: &[(&str, &str)]) -> Output {
    command(args, environment).output().unwrap()
}

fn command(args: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasemux"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LEASEMUX_") {
            command.env_remove(name);
        }
    }
    // Without the contexts of the person who runs the tests.
    command.env("XDG_CONFIG_HOME", "/none").args(args).envs(environment.iter().copied());
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs the program, expects a usage error, and returns its text.
fn usage_error(args: &[&str], environment: &[(&str, &str)]) -> String {
    let output = leasemux(args, environment);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
    assert_eq!(stdout(&output), "", "{args:?}");
    stderr(&output)
}

#[test]
fn unwritable_output_is_reported() {
    for args in [&["man"][..], &["completions", "bash"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = command(args, &[]).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(
            stderr(&output).starts_with("leasemux: failed to write to standard output: "),
            "{args:?}: {}",
            stderr(&output)
        );
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(args, &[]).stdout(writer).output().unwrap();
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn help_goes_to_standard_output() {
    for args in [
        &["--help"][..],
        &["-h"],
        &["serve", "--help"],
        &["logs", "--help"],
        &["logs", "-h"],
        &["status", "--help"],
        &["restart", "--help"],
        &["identity", "--help"],
        &["identity", "new", "--help"],
        &["canary", "--help"],
        &["demo", "--help"],
        &["completions", "--help"],
        &["man", "--help"],
    ] {
        let output = leasemux(args, &[]);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        let help = stdout(&output);
        assert!(help.contains("Examples:") && help.contains("leasemux "), "{args:?}: {help}");
        assert!(!help.contains("shim"), "{args:?}");
    }
    for args in [&["--help"], &["logs", "--help"][..]] {
        let help = stdout(&leasemux(args, &[]));
        assert!(help.contains("Exit codes:") && help.contains("6  done, but lines were lost"), "{help}");
    }
    let version = stdout(&leasemux(&["--version"], &[]));
    // And the commit, if it was set at build time.
    let commit = option_env!("LEASEMUX_REVISION").map(|commit| format!(" ({commit})")).unwrap_or_default();
    assert_eq!(version, format!("leasemux {}{commit}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn invalid_command_is_a_usage_error() {
    for args in [
        &[][..],
        &["identity"],
        &["sserve"],
        &["--nonsense"],
        &["serve", "--nonsense"],
        &["logs", LEASE, "more"],
        &["completions"],
    ] {
        assert!(usage_error(args, &[]).contains("Usage:"), "{args:?}");
    }
}

#[test]
fn all_errors_are_reported_with_their_origin() {
    let text = usage_error(
        &["serve", "--listen", "nowhere", "--lease", "a=b", "--tls-cert", "/none"],
        &[("LEASEMUX_PACE", "fast"), ("LEASEMUX_ADMIN_LISTEN", "9446"), ("LEASEMUX_PLATFORM", "moon")],
    );
    for expected in [
        "--platform \"moon\" (from LEASEMUX_PLATFORM): must be 'local'",
        "--lease \"a=b\": the lease is not owner/dseq/gseq/oseq/provider; the SDL must be a readable file",
        "--trust-dir (or LEASEMUX_TRUST_DIR) is missing",
        "--listen \"nowhere\": must be host:port, such as 127.0.0.1:8446",
        "--admin-listen \"9446\" (from LEASEMUX_ADMIN_LISTEN): must be host:port",
        "--tls-key (or LEASEMUX_TLS_KEY) is missing",
        "--tls-cert \"/none\": must be a readable file",
        "--pace \"fast\" (from LEASEMUX_PACE): must be a time",
        "try 'leasemux serve --help'",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    assert_eq!(text.matches("error: ").count(), 8, "{text}");
}

#[test]
fn environment_sets_lists_and_switches() {
    let text = usage_error(
        &["logs", LEASE],
        &[
            ("LEASEMUX_SERVICE", "web, Api"),
            ("LEASEMUX_REPLICA", "0,x,"),
            ("LEASEMUX_FOLLOW", "perhaps"),
            ("LEASEMUX_IDENTITY", ""),
            ("LEASEMUX_GATEWAY", ""),
        ],
    );
    for expected in [
        "--service \"Api\" (from LEASEMUX_SERVICE)",
        "--replica \"x\" (from LEASEMUX_REPLICA)",
        "--follow \"perhaps\" (from LEASEMUX_FOLLOW): must be true or false",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    assert_eq!(text.matches("error: ").count(), 3, "{text}");
    let text = usage_error(&["logs", LEASE, "--previous"], &[("LEASEMUX_FOLLOW", "1")]);
    assert!(text.contains("--previous and --follow do not go together"), "{text}");
    // A flag takes precedence over the environment.
    let text = usage_error(&["logs", "x", "--follow=false", "--previous"], &[("LEASEMUX_FOLLOW", "1")]);
    assert_eq!(text.matches("error: ").count(), 1, "{text}");
}

#[test]
fn empty_service_name_is_a_usage_error() {
    let not_a_name = "--service \"\": is not a service name";
    for command in ["logs", "status", "restart"] {
        let text = usage_error(&[command, LEASE, "--service", ""], &[]);
        assert!(text.contains(not_a_name), "{text}");
        let text = usage_error(&[command, LEASE, "--service", "web", "--service", ""], &[]);
        assert!(text.contains(not_a_name), "{text}");
        // Without a name, every service would be selected.
        for commas in [",", " , "] {
            let text = usage_error(&[command, LEASE], &[("LEASEMUX_SERVICE", commas)]);
            assert!(text.contains("(from LEASEMUX_SERVICE): holds no value"), "{text}");
        }
    }
}

#[test]
fn scope_variable_without_a_scope_is_a_usage_error() {
    let dir = tempfile::tempdir().unwrap();
    let tenant = dir.path().join("tenant");
    let tenant = tenant.to_str().unwrap();
    assert!(leasemux(&["identity", "new", "--dir", tenant], &[]).status.success());
    // Without scopes, the token would have full access.
    for commas in [",", ",,", " , "] {
        let text = usage_error(&["token", "new", "--identity", tenant], &[("LEASEMUX_SCOPE", commas)]);
        assert!(text.contains("(from LEASEMUX_SCOPE): holds no value"), "{text}");
    }
}

#[test]
fn flag_overrides_variable_of_conflicting_flag() {
    let dir = tempfile::tempdir().unwrap();
    let (tenant, trusted) = (dir.path().join("tenant"), dir.path().to_str().unwrap());
    let tenant = tenant.to_str().unwrap();
    assert!(leasemux(&["identity", "new", "--dir", tenant], &[]).status.success());
    let both = "--identity and --token do not go together";
    let [identity, token] = [("LEASEMUX_IDENTITY", tenant), ("LEASEMUX_TOKEN", "not.a.token")];
    // The only remaining error is that of the lease.
    for (args, environment) in [
        (&["logs", "x", "--token", "not.a.token"][..], &[identity][..]),
        (&["logs", "x", "--identity", tenant], &[token]),
        // An unused value is not checked.
        (&["logs", "x", "--token", "not.a.token"], &[("LEASEMUX_IDENTITY", "/none")]),
    ] {
        let text = usage_error(args, environment);
        assert!(text.matches("error: ").count() == 1 && text.contains("LEASE \"x\""), "{text}");
    }
    for (args, environment) in [
        (&["logs", LEASE][..], &[identity, token][..]),
        (&["logs", LEASE, "--identity", tenant, "--token", "not.a.token"], &[]),
    ] {
        assert!(usage_error(args, environment).contains(both));
    }
    let key = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
    for (args, environment) in [
        (&["token", "check", "x", "--key", key][..], ("LEASEMUX_TRUST_DIR", trusted)),
        (&["token", "check", "x", "--trust-dir", trusted], ("LEASEMUX_KEY", key)),
    ] {
        let output = leasemux(args, &[environment]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("TOKEN_MALFORMED"));
    }
    let text = usage_error(&["token", "check", "x", "--key", key, "--trust-dir", trusted], &[]);
    assert!(text.contains("--key and --trust-dir do not go together"), "{text}");
}

#[test]
fn output_variable_works_for_all_commands() {
    for form in ["text", "table", "json"] {
        for args in [&["logs", "x"][..], &["status", "x"], &["restart", "x", "--all"]] {
            let text = usage_error(args, &[("LEASEMUX_OUTPUT", form)]);
            assert!(text.matches("error: ").count() == 1 && text.contains("LEASE \"x\""), "{form}: {text}");
        }
    }
    let text = usage_error(&["status", LEASE, "-o", "xml"], &[]);
    assert!(text.contains("--output \"xml\": must be table or json"), "{text}");
    // A template is for `logs`. In the variable, the other commands ignore it.
    for form in ["template={line}", "template={"] {
        for args in [&["status", "x"][..], &["restart", "x", "--all"]] {
            let text = usage_error(args, &[("LEASEMUX_OUTPUT", form)]);
            assert!(text.matches("error: ").count() == 1 && text.contains("LEASE \"x\""), "{form}: {text}");
        }
    }
    let text = usage_error(&["logs", "x"], &[("LEASEMUX_OUTPUT", "template={")]);
    assert!(text.contains("(from LEASEMUX_OUTPUT): must be a template"), "{text}");
    let text = usage_error(&["status", LEASE, "-o", "template={line}"], &[]);
    assert!(text.contains("--output \"template={line}\": must be table or json"), "{text}");
}

#[test]
fn lease_argument_must_be_canonical_and_without_sdl() {
    for dseq in ["+6194991", "06194991"] {
        let other = LEASE.replace("6194991", dseq);
        for args in [&["logs", &other][..], &["serve", "--lease", &format!("{other}=x")]] {
            let text = usage_error(args, &[]);
            let right = "dseq must be a positive decimal number, without a sign or leading zeros";
            assert!(text.contains(right), "{text}");
        }
    }
    // People who know kubectl name a service.
    let text = usage_error(&["logs", "web"], &[]);
    let hint = "is not owner/dseq/gseq/oseq/provider; a service is selected with --service web, a context with --context\n";
    assert!(text.contains(&format!("error: LEASE \"web\": {hint}")), "{text}");
    let text = usage_error(&["logs", "a/b"], &[]);
    assert!(text.contains("error: LEASE \"a/b\": is not owner/dseq/gseq/oseq/provider\n"), "{text}");
    let for_serve = format!("{LEASE}=shop.yaml");
    let alone =
        "must be a lease alone, owner/dseq/gseq/oseq/provider; with an SDL file it is what 'serve' takes";
    for command in ["logs", "status", "restart"] {
        let text = usage_error(&[command, &for_serve], &[]);
        assert!(text.contains(&format!("error: LEASE \"{for_serve}\": {alone}\n")), "{text}");
        // These commands do not read the variable.
        let text = usage_error(&[command], &[("LEASEMUX_LEASE", &for_serve)]);
        assert!(
            text.contains("error: LEASE is missing: owner/dseq/gseq/oseq/provider; or give --dseq"),
            "{text}"
        );
    }
    let text = usage_error(&["token", "new"], &[("LEASEMUX_LEASE", &for_serve)]);
    assert!(
        text.contains(&format!("error: --lease \"{for_serve}\" (from LEASEMUX_LEASE): {alone}\n")),
        "{text}"
    );
    let text = usage_error(&["serve"], &[("LEASEMUX_LEASE", LEASE)]);
    let both = "(from LEASEMUX_LEASE): must be LEASE=SDLFILE, where LEASE is owner/dseq/gseq/oseq/provider\n";
    assert!(text.contains(both), "{text}");
}

#[test]
fn unreachable_gateway_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = format!("https://{}", listener.local_addr().unwrap());
    drop(listener);
    for follow in [&[][..], &["--follow"]] {
        let args = [&["logs", LEASE, "--gateway", &gateway, "--insecure"], follow].concat();
        let output = leasemux(&args, &[]);
        assert_eq!(output.status.code(), Some(5));
        let text = stderr(&output);
        assert!(text.starts_with("leasemux: cannot reach the gateway at https://127.0.0.1:"), "{text}");
    }
}

/// Creates a directory with the files that a configuration names, and a configuration file with this text.
fn configured(file: &str) -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("trusted")).unwrap();
    let sdl = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/shop.yaml");
    fs::copy(sdl, dir.path().join("shop.yaml")).unwrap();
    let path = dir.path().join("gateway.toml");
    fs::write(&path, file).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

#[test]
fn flag_precedes_variable_file_and_default() {
    let (_dir, file) = configured(
        "listen = 'file'\nadmin-listen = 'file'\npace = 'file'\nstall-timeout = 'file'\npublic-hostname = ['fi le', '-']\n",
    );
    let environment = [
        ("LEASEMUX_CONFIG", file.as_str()),
        ("LEASEMUX_LISTEN", "variable"),
        ("LEASEMUX_ADMIN_LISTEN", "variable"),
        ("LEASEMUX_STALL_TIMEOUT", ""),
        ("LEASEMUX_PUBLIC_HOSTNAME", ""),
    ];
    let text = usage_error(&["serve", "--listen", "flag"], &environment);
    for expected in [
        "error: --listen \"flag\": must be".to_owned(),
        "error: --admin-listen \"variable\" (from LEASEMUX_ADMIN_LISTEN): must be".to_owned(),
        format!("error: --pace \"file\" (from {file}, line 3): must be"),
        format!("error: --stall-timeout \"file\" (from {file}, line 4): must be"),
        format!("error: --public-hostname \"fi le\" (from {file}, line 5): must be"),
        format!("error: --public-hostname \"-\" (from {file}, line 5): must be"),
        format!("error: --platform (or LEASEMUX_PLATFORM, or platform in {file}) is missing"),
    ] {
        assert!(text.contains(&expected), "{expected} in {text}");
    }
    // And the leases, and the trust directory. Everything else has a default.
    assert_eq!(text.matches("error: ").count(), 9, "{text}");
    // A repeatable flag replaces the values of lower levels.
    let args = ["serve", "--config", &file, "--public-hostname", "a b"];
    assert_eq!(usage_error(&args, &[]).matches("--public-hostname").count(), 1);
}

#[test]
fn errors_of_the_file_are_reported_with_all_others() {
    let (_dir, file) = configured("lisen = 'x'\npace = '1ms'\npace = '2ms'\nkept-runs = 1.5\n");
    let text = usage_error(&["serve", "--config", &file, "--listen=nowhere"], &[]);
    for expected in [
        format!("error: {file}, line 1: there is no key `lisen`; did you mean `listen`?"),
        format!("error: {file}, line 3: "),
        format!("error: {file}, line 4: `kept-runs` takes a string"),
        "error: --listen \"nowhere\": must be".to_owned(),
    ] {
        assert!(text.contains(&expected), "{expected} in {text}");
    }
    // Keys that a broken file leaves out are not reported as missing.
    assert_eq!(text.matches("error: ").count(), 4, "{text}");
    let text = usage_error(&["serve", "--listen=nowhere"], &[("LEASEMUX_CONFIG", "/none.toml")]);
    assert!(
        text.contains("--config \"/none.toml\" (from LEASEMUX_CONFIG): must be a readable file"),
        "{text}"
    );
    assert_eq!(text.matches("error: ").count(), 2, "{text}");
    let (_dir, file) = configured("listen = '127.0.0.1:1'\n");
    let text = usage_error(&["serve", "--config", &file], &[("LEASEMUX_ADMIN_LISTEN", "127.0.0.1:1")]);
    let origins = format!(
        "must differ (--listen is from {file}, line 1, --admin-listen is from LEASEMUX_ADMIN_LISTEN)"
    );
    assert!(text.contains(&origins), "{text}");
}

#[test]
fn check_reads_all_files_and_starts_nothing() {
    let example =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/gateway.toml")).unwrap();
    let (dir, file) = configured(&example.replace("examples/shop.yaml", "shop.yaml"));
    let check = |more: &[&str]| {
        let args = [&["serve", "--config", file.as_str(), "--check"], more].concat();
        command(&args, &[]).current_dir(dir.path()).output().unwrap()
    };
    let before = fs::read_dir(dir.path()).unwrap().count();
    // An address in use is not an error.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let output = check(&[&format!("--listen={}", taken.local_addr().unwrap())]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output), "the configuration is valid\n");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before, "nothing is created");

    fs::write(dir.path().join("shop.yaml"), "version: \"2.0\"\nservices: {web: {}}\n").unwrap();
    for (name, tenant) in [("tls.crt", "a"), ("tls.key", "b")] {
        let tenant = dir.path().join(tenant);
        let created = leasemux(&["identity", "new", "--dir", tenant.to_str().unwrap()], &[]);
        assert_eq!(created.status.code(), Some(0));
        let from = if name == "tls.crt" { "cert.pem" } else { "key.pem" };
        fs::copy(tenant.join(from), dir.path().join(name)).unwrap();
    }
    let failed = check(&[
        "--tls-cert=tls.crt",
        "--tls-key=tls.key",
        "--listen=192.0.2.1:8446",
        "--data-dir=/proc/none",
        "--pace=never",
        "--chain-grpc=https://node.example.com",
        "--chain-ca=tls.key",
    ]);
    assert_eq!(failed.status.code(), Some(2));
    let text = stderr(&failed);
    let lease = format!("--lease \"{LEASE}=shop.yaml\" (from {file}, line ");
    for expected in [
        lease.as_str(),
        ": invalid SDL: ",
        "--tls-cert and --tls-key cannot be used: the key in tls.key does not belong to the certificate in tls.crt",
        "--listen \"192.0.2.1:8446\": must be an address that this machine can listen on",
        "--data-dir \"/proc/none\": must be a directory that can be written",
        "--pace \"never\": must be a time",
        "--chain-ca \"tls.key\": cannot use tls.key: there is no certificate in it",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    assert_eq!(text.matches("error: ").count(), 6, "{text}");
    let plain = stderr(&check(&["--chain-grpc=http://node.example.com", "--chain-ca=tls.crt"]));
    assert!(plain.contains("--chain-ca and --chain-grpc do not go together"), "{plain}");
}

#[test]
fn check_reads_the_kubeconfig() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let good = "{apiVersion: v1, kind: Config, current-context: here,
        contexts: [{name: here, context: {cluster: c, user: u}}],
        clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}], users: [{name: u, user: {token: t}}]}";
    fs::write(path("good"), good).unwrap();
    fs::write(path("bad"), "contexts: [").unwrap();
    let check = |more: &[&str]| {
        let trust = format!("--trust-dir={}", dir.path().display());
        let provider = format!("--provider={}", LEASE.rsplit('/').next().unwrap());
        let args = ["serve", "--check", "--platform=kube", &trust, &provider];
        leasemux(&[&args[..], more].concat(), &[("LEASEMUX_KUBECONFIG", &path("good"))])
    };
    assert_eq!(check(&[]).status.code(), Some(0), "{}", stderr(&check(&[])));
    let elsewhere = stderr(&check(&["--kube-context=elsewhere"]));
    assert!(elsewhere.contains("load current context: elsewhere"), "{elsewhere}");
    assert!(elsewhere.contains("--kubeconfig is from LEASEMUX_KUBECONFIG"), "{elsewhere}");
    let bad = stderr(&check(&["--kubeconfig", &path("bad")]));
    assert!(bad.contains(&format!("error: --kubeconfig {}: failed to parse", path("bad"))), "{bad}");
    assert_eq!(bad.lines().count(), 3, "{bad}");
}

#[test]
fn source_gateway_serves_no_tenants() {
    let dir = tempfile::tempdir().unwrap();
    let provider = format!("--provider={}", LEASE.rsplit('/').next().unwrap());
    let kubeconfig = dir.path().join("kubeconfig");
    fs::write(
        &kubeconfig,
        "{apiVersion: v1, kind: Config, current-context: here,
        contexts: [{name: here, context: {cluster: c, user: u}}],
        clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}], users: [{name: u, user: {token: t}}]}",
    )
    .unwrap();
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
    let logs = format!("--pod-logs-dir={}", dir.path().display());
    let check = |more: &[&str]| {
        let args = ["serve", "--check", "--fleet-role=source", &provider, &kubeconfig, &logs];
        stderr(&leasemux(&[&args[..], more].concat(), &[]))
    };
    let needed = check(&["--platform=node"]);
    for flag in ["--nats (or LEASEMUX_NATS) is missing", "--node-name (or LEASEMUX_NODE_NAME) is missing"] {
        assert!(needed.contains(flag), "{flag} in {needed}");
    }
    assert!(!needed.contains("--trust-dir"), "{needed}");
    let nats = "--nats=nats://127.0.0.1:1";
    let wrong = check(&["--platform=kube", nats, "--listen=127.0.0.1:0"]);
    assert!(wrong.contains("--fleet-role source goes with --platform node"), "{wrong}");
    assert!(wrong.contains("--listen and --fleet-role source do not go together"), "{wrong}");
}

#[test]
fn bash_completes_commands_flags_and_files() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a-file"), "").unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_leasemux"));
    let complete = |words: &[&str]| {
        let mut bash = completion::bash(program, words);
        completion::candidates(bash.current_dir(dir.path()).env("XDG_CONFIG_HOME", "/none"))
    };
    let commands = complete(&[""]);
    for command in ["serve", "logs", "identity", "demo", "completions", "man"] {
        assert!(commands.iter().any(|word| word == command), "{command} in {commands:?}");
    }
    assert!(!commands.iter().any(|word| word == "shim"), "{commands:?}");
    assert_eq!(complete(&["ser"]), ["serve"]);
    assert_eq!(complete(&["serve", "--admin"]), ["--admin-listen"]);
    assert_eq!(complete(&["identity", "n"]), ["new"]);
    assert_eq!(complete(&["serve", "--config", "a-"]), ["a-file"]);
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&leasemux(&["completions", shell], &[]));
        assert!(script.contains("LEASEMUX_COMPLETE"), "{shell}: {script}");
    }
}

#[test]
fn man_pages_name_every_flag() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("man1");
    let output = leasemux(&["man", "--dir", to.to_str().unwrap()], &[]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), ""), "{}", stderr(&output));
    assert!(rendered(&to.join("leasemux-serve.1")).contains("LEASEMUX_ADMIN_LISTEN"));
    assert_eq!(fs::read(to.join("leasemux.1")).unwrap(), leasemux(&["man"], &[]).stdout);
    for (path, page) in [
        (&["serve"][..], "leasemux-serve.1"),
        (&["logs"], "leasemux-logs.1"),
        (&["identity", "new"], "leasemux-identity-new.1"),
    ] {
        let help = stdout(&leasemux(&[path, &["--help"]].concat(), &[]));
        let flags: Vec<&str> = help
            .lines()
            .filter_map(|line| {
                let line = line.trim_start();
                let flag = line.split(' ').find(|word| word.starts_with("--"))?;
                line.starts_with('-').then(|| flag.split(['=', '[']).next().unwrap())
            })
            .collect();
        assert!(flags.contains(&"--help"), "{flags:?}");
        let page = to.join(page);
        let text = rendered(&page);
        for flag in flags {
            assert!(text.contains(flag), "{flag} in {text}");
        }
        assert!(text.contains("EXAMPLES") && text.contains("\n            "), "{text}");
    }
}

/// Renders a man page if a program for it is installed; else returns its source without the marks of fonts
/// and escapes.
fn rendered(page: &Path) -> String {
    for (program, args) in [("mandoc", &["-T", "utf8"][..]), ("groff", &["-man", "-T", "utf8", "-P-c"])] {
        if let Ok(output) = Command::new(program).args(args).arg(page).env("MANWIDTH", "200").output() {
            assert!(output.status.success(), "{program}: {}", stderr(&output));
            let text = stdout(&output);
            // Bold and underlined characters are overstruck.
            let mut plain = String::new();
            for character in text.chars() {
                if character == '\u{8}' {
                    plain.pop();
                } else {
                    plain.push(character);
                }
            }
            return plain.replace(['‐', '−'], "-");
        }
    }
    fs::read_to_string(page)
        .unwrap()
        .replace("\\fB", "")
        .replace("\\fI", "")
        .replace("\\fR", "")
        .replace("\\-", "-")
}
