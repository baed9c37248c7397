//! `leasemux ui`: its server over plain HTTP, and its page in a real Chromium.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;
use leasemux::model::id::LeaseId;
use rustix::process::Signal;
use serde_json::Value;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::interop::{NODE, node, setting};
use crate::support::process::{Gateway, PATIENCE, Program, Workspace, own_port};

/// Variable with the path of Chromium, and the script that prints it.
const CHROMIUM: (&str, &str) = ("LEASEMUX_INTEROP_CHROMIUM", ".ci/chromium");

/// Variable with a directory for the screenshots.
const SCREENSHOTS: &str = "LEASEMUX_TEST_SCREENSHOTS";

/// Text of each line that a service counts.
const TEXT: &str = "\u{1b}[32mINFO\u{1b}[0m  GET /basket <b>200</b> in \u{1b}[36m12 ms\u{1b}[0m";

/// Lines that try to be more than text.
const HOSTILE: &str = r"printf '%s\n' 'HOSTILE 1 <script>document.title='\''x'\''</script><img src=x onerror=alert(1)>'
    printf 'HOSTILE 2 \033]0;title\007\033]8;;http://evil.test\033\\link\033[2J\033[1;1H\n'
    printf 'HOSTILE 3 \342\200\256reversed\342\201\246x\342\200\213\n'
    printf 'HOSTILE 4 \033[31mred\033[0m plain\n'
    printf 'HOSTILE 5 \377\376 end\n'
    exec sleep 1000";

/// Counts, slowly; fast while `flood` is open and `calm` is not.
fn counting() -> String {
    format!(
        "n=0
         while :; do
           n=$((n+1)); echo \"$n {TEXT}\"
           if [ -e $GATES/flood ] && [ ! -e $GATES/calm ]; then
             i=1; while [ $i -lt 200 ]; do i=$((i+1)); n=$((n+1)); echo \"$n {TEXT}\"; done
           fi
           sleep 0.05
         done"
    )
}

/// A running `leasemux ui`.
struct Ui {
    program: Program,
    address: SocketAddr,
    /// The path of the printed URL.
    open_path: String,
}

/// An answer of HTTP.
#[derive(Debug)]
struct Answer {
    head: String,
    body: String,
}

// === impl Ui ===

impl Ui {
    fn start(workspace: &Workspace, gateway: SocketAddr, lease: &LeaseId) -> Self {
        Self::start_at(0, workspace, gateway, lease)
    }

    fn start_at(port: u16, workspace: &Workspace, gateway: SocketAddr, lease: &LeaseId) -> Self {
        let mut args = workspace.call_args("ui", gateway, "alice", lease);
        args.extend([format!("--port={port}"), "--no-open".to_owned()]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let program = workspace.start(&args);
        let (address, open_path) = program.until_out("its URL", |out| {
            let url = out.split_once('\n')?.0.strip_prefix("leasemux ui ready: http://")?;
            let (address, path) = url.split_once('/')?;
            Some((address.parse().unwrap(), format!("/{path}")))
        });
        Self { program, address, open_path }
    }

    /// Sends a request with these headers, and with the usual `Host` unless they have another one.
    fn request(&self, method: &str, path: &str, headers: &[&str]) -> Answer {
        let host = format!("host: {}", self.address);
        let hosts =
            if headers.iter().any(|header| header.starts_with("host:")) { &[][..] } else { &[&*host] };
        let lines: Vec<&str> = hosts.iter().chain(headers).flat_map(|header| [*header, "\r\n"]).collect();
        let mut socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(socket, "{method} {path} HTTP/1.1\r\nconnection: close\r\n{}\r\n", lines.concat()).unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        Answer { head: head.to_owned(), body: body.to_owned() }
    }

    fn get(&self, path: &str, headers: &[&str]) -> Answer {
        self.request("GET", path, headers)
    }

    /// Opens a websocket and returns its objects, until the server closes it.
    async fn objects(&self, path: &str, cookie: &str) -> Vec<Value> {
        let mut request = format!("ws://{}{path}", self.address).into_client_request().unwrap();
        for (name, value) in [
            ("cookie", cookie.strip_prefix("cookie: ").unwrap()),
            ("origin", &format!("http://{}", self.address)),
        ] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let socket = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let (mut socket, _) = tokio_tungstenite::client_async(request, socket).await.unwrap();
        let mut objects = Vec::new();
        while let Some(Ok(message)) = socket.next().await {
            if let Ok(text) = message.into_text()
                && !text.is_empty()
            {
                objects.extend(serde_json::from_str::<Value>(&text));
            }
        }
        objects
    }

    /// Uses the secret up. Returns the header with the cookie.
    fn cookie(&self) -> String {
        let opened = self.get(&self.open_path, &[]);
        assert_eq!((opened.status(), opened.header("location")), (303, Some("/")), "{opened:?}");
        let cookie = opened.header("set-cookie").unwrap();
        let pair = cookie.strip_suffix("; Path=/; HttpOnly; SameSite=Strict").expect("all attributes");
        format!("cookie: {pair}")
    }
}

// === impl Answer ===

impl Answer {
    fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// Checks the status and the reason of a failed request.
    fn is_refused(&self, status: u16, reason: &str) {
        assert!(
            self.status() == status && self.body.contains(&format!("\"reason\":\"{reason}\"")),
            "{self:?}"
        );
    }
}

/// Starts a gateway with these services. Returns the lease and the SDL file, too.
fn serve(
    workspace: &Workspace,
    services: &[(&str, &str, u32)],
    more: &[&str],
) -> (LeaseId, PathBuf, Gateway) {
    let lease = workspace.tenant("alice");
    let sdl = workspace.sdl("alice.yaml", services);
    let gateway = workspace.serve(&[(&lease, &sdl)], more);
    (lease, sdl, gateway)
}

#[test]
fn page_answers_one_browser_and_its_own_page_only() {
    let workspace = Workspace::new();
    let (lease, _, gateway) = serve(&workspace, &[("web", "echo hello; exec sleep 1000", 1)], &[]);
    let ui = Ui::start(&workspace, gateway.address, &lease);
    let path = format!("/lease/{}/{}/{}", lease.dseq(), lease.gseq(), lease.oseq());
    let status = format!("{path}/status");

    // The files of the page have nothing of the lease, and may be loaded by all.
    let page = ui.get("/", &[]);
    assert_eq!((page.status(), page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"),
        "{policy}"
    );
    for (name, value) in [("x-content-type-options", "nosniff"), ("cache-control", "no-store")] {
        assert_eq!(page.header(name), Some(value));
    }
    assert!(!page.body.contains(lease.owner().as_str()));

    // Everything else needs the cookie, which the secret gives once.
    ui.get("/session", &[]).is_refused(401, "NO_SESSION");
    ui.get(&status, &["cookie: leasemux-ui=x"]).is_refused(401, "NO_SESSION");
    ui.get(&ui.open_path, &["sec-purpose: prefetch;prerender"]).is_refused(503, "PREFETCH");
    assert_eq!(ui.request("HEAD", &ui.open_path, &[]).status(), 405);
    let admits = |path: &str| {
        let opened = ui.get(path, &[]);
        // The page says what is wrong.
        assert_eq!((opened.status(), opened.header("location")), (303, Some("/")), "{opened:?}");
        opened.header("set-cookie").is_some()
    };
    assert!(!admits("/open/x") && !admits("/open/"));
    let cookie = ui.cookie();
    assert!(!admits(&ui.open_path), "once only");
    let session = ui.get("/session", &[&cookie]);
    assert!(session.status() == 200 && session.body.contains(&lease.to_string()), "{session:?}");
    let body = ui.get(&status, &[&cookie]);
    assert!(body.status() == 200 && body.body.contains("\"replica_status\":[{\"replica\":0,"), "{body:?}");

    // DNS rebinding, and pages of other sites and ports.
    ui.get("/", &["host: evil.test"]).is_refused(403, "OTHER_HOST");
    ui.get("/session", &[&cookie, "host: evil.test"]).is_refused(403, "OTHER_HOST");
    let own = format!("origin: http://{}", ui.address);
    for foreign in [
        "origin: http://evil.test",
        "origin: http://127.0.0.1:1",
        "origin: null",
        "sec-fetch-site: same-site",
    ] {
        ui.get(&status, &[&cookie, foreign]).is_refused(403, "OTHER_ORIGIN");
    }
    let restart = format!("{path}/service/web/restart");
    ui.request("POST", &restart, &[&cookie]).is_refused(403, "OTHER_ORIGIN");
    ui.request("POST", &restart, &[&own]).is_refused(401, "NO_SESSION");
    ui.get(&restart, &[&cookie]).is_refused(405, "METHOD");
    let upgrade = [
        "upgrade: websocket",
        "connection: upgrade",
        "sec-websocket-version: 13",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    let logs = format!("{path}/logs?format=entries");
    ui.get(&logs, &[&[&*cookie], &upgrade[..]].concat()).is_refused(403, "OTHER_ORIGIN");
    ui.get(&logs, &[&[&*own], &upgrade[..]].concat()).is_refused(401, "NO_SESSION");
    ui.get(&format!("{path}/logs"), &[&cookie]).is_refused(400, "INVALID_REQUEST");
    // Another lease, and no route.
    ui.get("/lease/8/1/1/status", &[&cookie]).is_refused(404, "NOT_FOUND");
    ui.get("/main.js.map", &[&cookie]).is_refused(404, "NOT_FOUND");

    // The gateway's errors, as the page gets them.
    let missing = format!("{path}/service/none/restart");
    ui.request("POST", &missing, &[&cookie, &own]).is_refused(404, "SERVICE_NOT_FOUND");
    assert_eq!(gateway.stop(Signal::TERM).status.code(), Some(0));
    ui.get(&status, &[&cookie]).is_refused(503, "GATEWAY_UNREACHABLE");
    ui.program.signal(Signal::INT);
    assert_eq!(ui.program.done().status.code(), Some(0));
}

#[tokio::test]
async fn entries_come_with_times_and_cursors() {
    let workspace = Workspace::new();
    let script = "echo one; echo two; exec sleep 1000";
    let (lease, _, gateway) = serve(&workspace, &[("web", script, 1)], &[]);
    let ui = Ui::start(&workspace, gateway.address, &lease);
    let cookie = ui.cookie();
    let path = format!("/lease/{}/{}/{}/logs?format=entries", lease.dseq(), lease.gseq(), lease.oseq());
    // Both lines may still be on their way to the log.
    let lines = loop {
        let entries = ui.objects(&path, &cookie).await;
        let lines: Vec<Value> =
            entries.iter().flat_map(|entry| entry["lines"].as_array().cloned().unwrap()).collect();
        if lines.len() == 2 {
            break lines;
        }
    };
    assert_eq!(lines.iter().map(|line| line["text"].as_str().unwrap()).collect::<Vec<_>>(), ["one", "two"]);
    assert!(lines.iter().all(|line| line["time"].as_str().unwrap().ends_with('Z')), "{lines:?}");
    let all = ui.objects(&path, &cookie).await;
    let (first, last) = (&all[0], all.last().unwrap());
    assert_eq!((first["service"].as_str(), first["replica"].as_u64()), (Some("web"), Some(0)));
    let cursor = last["cursor"].as_str().unwrap();
    let instance = last["instance"].as_str().unwrap();
    let expected = format!("web:0:{instance}:");
    assert!(cursor.starts_with(&expected), "{cursor}");
    let resumed = ui.objects(&format!("{path}&resume={cursor}"), &cookie).await;
    assert!(resumed.iter().all(|entry| entry.get("lines").is_none()), "{resumed:?}");
    // Before the first line, and in the middle of it.
    for (offset, text) in [(0, "one"), (1, "ne")] {
        let resumed = ui.objects(&format!("{path}&resume=web:0:{instance}::0:{offset}"), &cookie).await;
        assert_eq!(resumed[0]["lines"][0]["text"], text, "{resumed:?}");
    }
    let missing = ui.objects(&format!("{path}&service=none"), &cookie).await;
    assert_eq!(missing[0]["end"]["reason"], "SERVICE_NOT_FOUND", "{missing:?}");
    assert!(missing[0]["end"].get("retry_after_ms").is_none());
    assert_eq!(gateway.stop(Signal::TERM).status.code(), Some(0));
    let unreachable = ui.objects(&path, &cookie).await;
    assert!(unreachable[0]["end"]["retry_after_ms"].as_u64().is_some(), "{unreachable:?}");
}

#[test]
fn page_modules_work_without_a_browser() {
    let Some(modules) = setting(NODE) else { return };
    let mut command = node(&modules, "ui_modules.mjs");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ui/page"));
    let done = Program::start(command, "ui_modules.mjs".to_owned()).done();
    assert!(done.status.success() && done.out == "done\n", "{}{}", done.out, done.err);
}

/// The page of the REST port, with tokens.
#[test]
fn page_of_rest_port_in_chromium_asks_for_a_token() {
    let (Some(modules), Some(chromium)) = (setting(NODE), setting(CHROMIUM)) else { return };
    let workspace = Workspace::new();
    let alice = workspace.tenant("alice");
    let bob = workspace.tenant("bob");
    let bob = LeaseId::new(bob.owner().as_str(), 8, 1, 1, bob.provider().as_str()).unwrap();
    let other = LeaseId::new(alice.owner().as_str(), 8, 1, 1, alice.provider().as_str()).unwrap().to_string();
    for tenant in ["alice", "bob"] {
        let key = workspace.path(tenant).join("account.pub");
        fs::copy(key, workspace.path("trusted").join(format!("{tenant}.pub"))).unwrap();
    }
    let counting = counting();
    let sdl = workspace.sdl("alice.yaml", &[("web", &*counting, 2), ("db", &counting, 1)]);
    let of_bob = workspace.sdl("bob.yaml", &[("secret", "echo of bob; exec sleep 1000", 1)]);
    let (listen, rest) = (own_port(), own_port());
    let provider = format!("--provider={}", alice.provider());
    let flags = [
        format!("--listen=127.0.0.1:{listen}"),
        format!("--rest-listen=127.0.0.1:{rest}"),
        provider,
        "--rest-ui".to_owned(),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let gateway = workspace.serve(&[(&alice, &sdl), (&bob, &of_bob)], &flags);
    let token = |tenant: &str, more: &[&str]| {
        let identity = workspace.path(tenant);
        let args = [&["token", "new", "--identity", identity.to_str().unwrap()][..], more].concat();
        workspace.run(&args).out.trim().to_owned()
    };
    let mut command = node(&modules, "ui_token.mjs");
    command.arg(chromium).arg(format!("https://127.0.0.1:{rest}/ui")).arg(TEXT);
    command.args([
        token("alice", &[]),
        token("alice", &["--scope=status"]),
        token("bob", &[]),
        token("alice", &["--scope=status,logs", "--service=*", "--lease", &other]),
        token("alice", &["--ttl=1s"]),
    ]);
    command.args([alice.dseq().to_string(), bob.dseq().to_string()]);
    let page = Program::start(command, "ui_token.mjs".to_owned());
    for word in ["refused", "lines", "restarted"] {
        page.until_out(word, |out| out.lines().any(|line| line.starts_with(word)).then_some(()));
    }
    assert_eq!(gateway.stop(Signal::TERM).status.code(), Some(0));
    let gateway = workspace.serve(&[(&alice, &sdl), (&bob, &of_bob)], &flags);
    let done = page.done();
    assert!(done.status.success() && done.out.ends_with("done\n"), "{}{}", done.out, done.err);
    assert_eq!(gateway.stop(Signal::TERM).status.code(), Some(0));
}

/// One long test, because each part continues on the page of the one before: see `ui_page.mjs`.
#[test]
fn page_in_chromium_shows_follows_and_restarts() {
    let (Some(modules), Some(chromium)) = (setting(NODE), setting(CHROMIUM)) else { return };
    let workspace = Workspace::new();
    let listen = format!("--listen=127.0.0.1:{}", own_port());
    // Lagging takes fewer lines.
    let flags = [listen.as_str(), "--ring-max-bytes=64KiB"];
    let counting = counting();
    let services = [("web", &*counting, 2), ("db", &counting, 1), ("hostile", HOSTILE, 1)];
    let (lease, sdl, gateway) = serve(&workspace, &services, &flags);
    let ui = Ui::start(&workspace, gateway.address, &lease);
    let screenshots = match std::env::var_os(SCREENSHOTS) {
        Some(dir) => PathBuf::from(dir),
        None => workspace.path("screenshots"),
    };
    fs::create_dir_all(&screenshots).unwrap();
    let mut command = node(&modules, "ui_page.mjs");
    command.arg(chromium).arg(format!("http://{}{}", ui.address, ui.open_path)).arg(TEXT).arg(screenshots);
    let page = Program::start(command, "ui_page.mjs".to_owned());
    let reported = |word: &str| {
        page.until_out(word, |out| out.lines().any(|line| line.starts_with(word)).then_some(()));
    };
    for word in ["lines", "hostile", "filter", "keyboard", "linked", "accessible", "restarted"] {
        reported(word);
    }
    ui.program.signal(Signal::STOP);
    workspace.open("flood");
    gateway.until_nothing_is_taken();
    workspace.open("calm");
    ui.program.signal(Signal::CONT);
    reported("refilled");
    assert_eq!(gateway.stop(Signal::TERM).status.code(), Some(0));
    let gateway = workspace.serve(&[(&lease, &sdl)], &flags);
    reported("reconnected");
    // Another run of the program, of which the page has no cookie.
    let port = ui.address.port();
    ui.program.signal(Signal::INT);
    assert_eq!(ui.program.done().status.code(), Some(0));
    let _ui = Ui::start_at(port, &workspace, gateway.address, &lease);
    reported("refused");
    reported("scrolled");
    let done = page.done();
    assert!(done.status.success() && done.out.ends_with("done\n"), "{}{}", done.out, done.err);
    println!("{}", done.out);
    assert_eq!(gateway.stop(Signal::TERM).status.code(), Some(0));
}
