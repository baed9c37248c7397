//! A client generated from the published proto (chain-sdk), which has the draft's service name.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::uri::PathAndQuery;
use leasemux::access::grants::{Access, Deployment, ProviderAccess, TokenScope};
use leasemux::access::token::{Algorithm, Claims};
use leasemux::edge::published::DefaultProto;
use leasemux::edge::service::SERVICE;
use leasemux::model::id::{Instance, LeaseId};
use leasemux::model::limits::{Limits, QuotaLimits};
use leasemux::model::line::OutputStream;
use leasemux::model::proto::lease as draft;
use leasemux::model::published::{ServiceLogs, ServiceLogsResponse, ServicesRequest};
use leasemux::model::time::LogTime;
use prost::Message;
use tonic::client::Grpc;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt as _;

use crate::auth::{audit_lines, log_to_file};
use crate::support::fake_platform::FakePlatform;
use crate::support::gateway::{Gateway, PATIENCE, Setup, proto_lease};
use crate::support::raw::{Raw, framed};
use crate::support::{account, reason, replica};

/// Beginning of a line that the gateway adds.
const NOTICE: &str = "[leasemux: ";

/// The number of open log calls.
const OPEN: &str = "leasemux_streams{method=\"ServiceLogs\"}";

/// A client with a connection of its own.
pub(crate) struct Client {
    grpc: Grpc<Channel>,
    metadata: MetadataMap,
}

/// A follower of one replica, and the text that it has received.
struct Follower {
    stream: Streaming<ServiceLogsResponse>,
    text: String,
}

impl Client {
    pub(crate) async fn new(setup: &Setup) -> Self {
        Self::over(setup.gateway.channel_of(Some(setup.certificate.clone())).await)
    }

    fn over(channel: Channel) -> Self {
        Self { grpc: Grpc::new(channel), metadata: MetadataMap::new() }
    }

    /// Adds metadata to all calls.
    pub(crate) fn with(mut self, key: &'static str, value: &str) -> Self {
        self.metadata.insert(key, value.parse().unwrap());
        self
    }

    async fn unary<A: Message + Default + 'static>(
        &mut self,
        method: &str,
        request: ServicesRequest,
    ) -> Result<A, Status> {
        self.grpc.ready().await.unwrap();
        let codec = ProstCodec::<ServicesRequest, A>::default();
        Ok(self.grpc.unary(self.request(request), path(method), codec).await?.into_inner())
    }

    pub(crate) async fn stream<A: Message + Default + 'static>(
        &mut self,
        method: &str,
        request: ServicesRequest,
    ) -> Result<Streaming<A>, Status> {
        self.grpc.ready().await.unwrap();
        let codec = ProstCodec::<ServicesRequest, A>::default();
        Ok(self.grpc.server_streaming(self.request(request), path(method), codec).await?.into_inner())
    }

    async fn logs(&mut self, request: ServicesRequest) -> Result<Vec<(String, String)>, Status> {
        let response: ServiceLogsResponse = self.unary("ServiceLogs", request).await?;
        Ok(response.services.into_iter().map(named_text).collect())
    }

    fn request(&self, request: ServicesRequest) -> Request<ServicesRequest> {
        Request::from_parts(self.metadata.clone(), tonic::Extensions::default(), request)
    }
}

impl Follower {
    /// Follows the services of a request. Returns when new lines would be received.
    async fn open(setup: &Setup, services: &[&str]) -> Self {
        Self::open_with(Client::new(setup).await, setup, services).await
    }

    async fn open_with(mut client: Client, setup: &Setup, services: &[&str]) -> Self {
        let followers = setup.gateway.metric("leasemux_followers");
        let stream = client.stream("StreamServiceLogs", of(setup, services)).await.unwrap();
        setup.gateway.eventually(|gateway| gateway.metric("leasemux_followers") > followers).await;
        Self { stream, text: String::new() }
    }

    async fn next(&mut self) -> Result<bool, Status> {
        let next = tokio::time::timeout(PATIENCE, self.stream.message()).await;
        let Some(response) = next.unwrap_or_else(|_| panic!("nothing comes after {:?}", self.text))? else {
            return Ok(false);
        };
        for entry in response.services {
            let (name, text) = named_text(entry);
            assert_eq!(name, "web-0");
            self.text += &text;
        }
        Ok(true)
    }

    async fn until(&mut self, end: &str) {
        while !self.text.ends_with(end) {
            assert!(self.next().await.unwrap(), "ended after {:?}", self.text);
        }
    }

    async fn end(&mut self) -> Status {
        loop {
            match self.next().await {
                Ok(true) => {}
                Ok(false) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }

    /// The loss check: asserts that the text is the produced lines of these runs, from line `from` of the
    /// first one, except for gaps of exactly the missing lines and bytes. Returns the number of missing
    /// lines, and the other notices.
    fn check(&self, platform: &FakePlatform, runs: &[&Instance], from: usize) -> (usize, Vec<&str>) {
        let produced = runs.iter().flat_map(|run| platform.printed(run)).skip(from);
        let mut produced = produced.map(|line| String::from_utf8(line.to_vec()).unwrap());
        let (mut missing, mut notices) = (0, Vec::new());
        for line in self.text.split_inclusive('\n') {
            let Some(notice) = line.strip_prefix(NOTICE) else {
                assert_eq!(Some(line), produced.next().as_deref());
                continue;
            };
            let Some((count, _)) = notice.split_once(" missing here: ") else {
                notices.push(notice.trim_end_matches("]\n"));
                continue;
            };
            let numbers: Vec<usize> = count.split([' ', '(']).filter_map(|word| word.parse().ok()).collect();
            let [lines, bytes] = numbers[..] else { panic!("{notice}") };
            let lost: usize = produced.by_ref().take(lines).map(|line| line.len()).sum();
            assert_eq!(lost, bytes, "{notice}");
            missing += lines;
        }
        assert_eq!(produced.next(), None, "the last lines are missing");
        (missing, notices)
    }
}

fn path(method: &str) -> PathAndQuery {
    format!("/{SERVICE}/{method}").parse().unwrap()
}

fn named_text(entry: ServiceLogs) -> (String, String) {
    (entry.name, String::from_utf8(entry.logs.to_vec()).unwrap())
}

fn pair(name: &str, logs: &str) -> (String, String) {
    (name.to_owned(), logs.to_owned())
}

pub(crate) fn of(setup: &Setup, services: &[&str]) -> ServicesRequest {
    request(&setup.lease, services)
}

fn request(lease: &LeaseId, services: &[&str]) -> ServicesRequest {
    let services = services.iter().map(ToString::to_string).collect();
    ServicesRequest { lease_id: Some(proto_lease(lease)), services }
}

/// Returns the same gateway, called at the port of the published proto.
fn published_port(setup: &Setup) -> Setup {
    let gateway = setup.gateway.for_proto(DefaultProto::Published);
    Setup { gateway, lease: setup.lease.clone(), certificate: setup.certificate.clone() }
}

fn lines(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| format!("line {number}\n")).collect()
}

/// Creates two services with one line each.
fn web_and_ha() -> Setup {
    let setup = Setup::new(Limits::default(), &[("ha", 1), ("web", 1)]);
    for name in ["ha", "web"] {
        let run = setup.gateway.platform.start(&setup.lease, &replica(name, 0));
        setup.gateway.platform.print(&run, [format!("of {name}\n")]);
    }
    setup
}

/// Returns the messages of a response.
fn messages(mut body: Bytes) -> Vec<Bytes> {
    let mut messages = Vec::new();
    while !body.is_empty() {
        let prefix = body.split_to(5);
        let length = u32::from_be_bytes(prefix[1..].try_into().unwrap());
        messages.push(body.split_to(length as usize));
    }
    messages
}

/// Returns the lines of a response of the draft, or else of the published proto, sorted.
fn lines_of(body: Bytes) -> (&'static str, String) {
    let messages = messages(body);
    let as_draft: Result<Vec<_>, _> =
        messages.iter().map(|message| draft::ServiceLogsResponse::decode(message.clone())).collect();
    let (proto, mut logs): (_, Vec<Bytes>) = if let Ok(all) = as_draft {
        ("draft", all.into_iter().flat_map(|one| one.services).map(|entry| entry.logs).collect())
    } else {
        // Bytes in field 2, where the draft has a number.
        let [message] = &messages[..] else { panic!("one message") };
        let response = ServiceLogsResponse::decode(message.clone()).unwrap();
        ("published", response.services.into_iter().map(|entry| entry.logs).collect())
    };
    logs.sort();
    (proto, String::from_utf8(logs.concat()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn wire_form_and_port_determine_the_response() {
    let setup = web_and_ha();
    let on_published_port = published_port(&setup);
    let all = "of ha\nof web\n";
    // The fields besides the lease, and the response on the two ports.
    let cases = [
        (&b"\x12\x03web"[..], [("published", "of web\n"); 2]),
        // A draft decoder would read an empty filter: everything.
        (b"\x12\x02ha", [("published", "of ha\n"); 2]),
        (b"\x12\x03web\x12\x02ha", [("published", all); 2]),
        (b"\x12\x00", [("draft", all); 2]),
        (b"\x12\x05\x0a\x03web", [("draft", "of web\n"); 2]),
        (b"", [("draft", all), ("published", all)]),
    ];
    let lease_only = of(&setup, &[]).encode_to_vec();
    for (index, setup) in [&setup, &on_published_port].into_iter().enumerate() {
        let mut raw = Raw::new(setup.gateway.connect(Some(setup.certificate.clone()))).await;
        for (rest, expected) in &cases {
            let request = framed(&[&lease_only, *rest].concat());
            let answer = raw.call("ServiceLogs", request.clone()).await;
            assert_eq!(answer.status.code(), Code::Ok, "{rest:?}");
            let (proto, text) = lines_of(answer.body);
            assert_eq!((proto, &*text), expected[index], "{rest:?}");
            // Statuses have the same bytes in both.
            let answer = raw.call("ServiceStatus", request).await;
            let [status] = &messages(answer.body)[..] else { panic!("one status") };
            let services = draft::ServiceStatusResponse::decode(status.clone()).unwrap().services;
            let names = services.iter().map(|service| format!("of {}\n", service.name));
            assert_eq!(names.collect::<String>(), expected[index].1, "{rest:?}");
        }
        for rest in [&b"\x12\x03web\x18\x01"[..], b"\x12\x00\x12\x03web", b"\x12\x01*", b"\x12\x03We\x01"] {
            for method in ["ServiceLogs", "ServiceStatus", "StreamServiceLogs", "StreamServiceStatus"] {
                let answer = raw.call(method, framed(&[&lease_only, rest].concat())).await;
                assert_eq!(answer.status.code(), Code::InvalidArgument, "{method} {rest:?}");
                assert_eq!(reason(&answer.status), "INVALID_REQUEST");
                assert!(answer.body.is_empty());
            }
        }
        // Only the published proto has these methods, and field 2 selects services there.
        for rest in [&b"\x12\x00"[..], b"\x12\x05\x0a\x03web", b"\x18\x01"] {
            let answer = raw.call("StreamServiceLogs", framed(&[&lease_only, rest].concat())).await;
            assert_eq!(answer.status.code(), Code::InvalidArgument, "{rest:?}");
            assert!(answer.status.message().contains("call ServiceLogs"), "{:?}", answer.status);
        }
        // `12 05 0a 03 77 65 62 18 01`.
        let filter = Some(draft::ServiceFilter { name: "web".into(), replicas: Vec::new() });
        let request = draft::ServiceLogsRequest { filter, follow: true, ..setup.request() };
        let mut follow = setup.open(request).await.unwrap();
        follow.until(|received| received.text("web", 0) == "of web\n").await;
        assert_eq!(follow.received.text("ha", 0), "");
    }
    let calls =
        |method| setup.gateway.metric(&format!("leasemux_published_calls_total{{method=\"{method}\"}}"));
    assert_eq!(["ServiceLogs", "ServiceStatus", "StreamServiceLogs"].map(calls), [7, 7, 0]);
}

#[tokio::test(start_paused = true)]
async fn unary_logs_are_the_last_lines() {
    let setup = published_port(&Setup::new(Limits::default(), &[("api", 1), ("idle", 1), ("web", 2)]));
    let platform = &setup.gateway.platform;
    let web = platform.start(&setup.lease, &replica("web", 0));
    platform.print(&web, lines(0..1_500));
    platform.end(&setup.lease, &replica("web", 0), 1);
    let again = platform.start(&setup.lease, &replica("web", 0));
    platform.print(&again, lines(1_500..2_000));
    let few = platform.start(&setup.lease, &replica("web", 1));
    platform.print(&few, ["few\n"]);
    platform.lose(&few, 2);
    platform.print(&few, ["unfinished"]);
    let mut client = Client::new(&setup).await;
    let logs = client.logs(of(&setup, &["web"])).await.unwrap();
    // By the time of the first line that was kept.
    let [second, (first, text)] = &logs[..] else { panic!("{logs:?}") };
    assert_eq!(first, "web-0");
    let (cut, kept) = text.split_once('\n').unwrap();
    assert!(
        cut.starts_with("[leasemux: at least ") && cut.ends_with("a limit of the gateway cut them]"),
        "{cut}"
    );
    let log: String = kept.split_inclusive('\n').filter(|line| !line.starts_with(NOTICE)).collect();
    assert!(lines(0..2_000).concat().ends_with(&log), "{log}");
    let notices: Vec<&str> = kept.lines().filter(|line| line.starts_with(NOTICE)).collect();
    assert_eq!(kept.lines().count(), 1_000, "{notices:?}");
    assert!(notices.len() <= 2, "{notices:?}");
    let gap = "[leasemux: 2 lines (20 bytes) missing here: the source lost them]\n";
    assert_eq!(*second, pair("web-1", &format!("few\n{gap}unfinished\n")));

    let mut silent = Client::new(&setup).await.with("leasemux-notices", "none");
    let logs = silent.logs(of(&setup, &["web"])).await.unwrap();
    assert_eq!(logs[0], pair("web-1", "few\nunfinished\n"));
    assert!(logs[1].1.starts_with("line ") && !logs[1].1.contains(NOTICE));

    // Neither has a line.
    assert_eq!(client.logs(of(&setup, &["api", "idle"])).await.unwrap(), []);
    assert_eq!(setup.gateway.metric(OPEN), 0);
}

#[tokio::test(start_paused = true)]
async fn unary_logs_fit_into_a_message_of_clients() {
    let setup = published_port(&Setup::new(Limits::default(), &[("busy", 6), ("quiet", 1)]));
    let platform = &setup.gateway.platform;
    for index in 0..6 {
        let run = platform.start(&setup.lease, &replica("busy", index));
        platform.print(&run, (0..1_000).map(|number| format!("{number:03000}\n")));
    }
    let quiet = platform.start(&setup.lease, &replica("quiet", 0));
    platform.print(&quiet, ["one\n", "two\n"]);
    let mut client = Client::new(&setup).await;
    // The client refuses more than 4 MiB.
    let response: ServiceLogsResponse = client.unary("ServiceLogs", of(&setup, &[])).await.unwrap();
    let bytes = response.encoded_len();
    assert!((3 << 20..4 << 20).contains(&bytes), "{bytes}");
    assert_eq!(response.services.len(), 7);
    for (name, text) in response.services.into_iter().map(named_text) {
        if name == "quiet-0" {
            assert_eq!(text, "one\ntwo\n");
            continue;
        }
        let (cut, kept) = text.split_once('\n').unwrap();
        let lost: usize = cut.split([' ', '(']).find_map(|word| word.parse().ok()).unwrap();
        assert!(cut.starts_with(NOTICE) && cut.ends_with("a limit of the gateway cut them]"), "{cut}");
        assert_eq!(lost + kept.lines().count(), 1_000);
        assert!(kept.lines().map(|line| line.parse::<usize>().unwrap()).eq(lost..1_000), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn unary_logs_in_progress_are_limited() {
    let setup = published_port(&Setup::new(Limits::default(), &[("web", 1)]));
    let run = setup.gateway.platform.start(&setup.lease, &replica("web", 0));
    setup.gateway.platform.print(&run, (0..1_000).map(|number| format!("{number:0900}\n")));
    // Each takes only the first part of its response.
    let unread = join_all((0..8).map(async |_| {
        let mut client = Client::new(&setup).await;
        (client.stream::<ServiceLogsResponse>("ServiceLogs", of(&setup, &[])).await.unwrap(), client)
    }));
    let mut unread = unread.await;
    let mut client = Client::new(&setup).await;
    let status = client.logs(of(&setup, &[])).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::ResourceExhausted, "QUOTA_USED_UP".into()));
    let details = status.get_error_details();
    assert_eq!(details.quota_failure().unwrap().violations[0].quota_id, "unary_logs_per_owner");
    assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_secs(1)));
    // Streams are not affected.
    client.stream::<ServiceLogsResponse>("StreamServiceLogs", of(&setup, &[])).await.unwrap();
    let (mut stream, _client) = unread.pop().unwrap();
    assert_eq!(named_text(stream.message().await.unwrap().unwrap().services.remove(0)).1.len(), 901_000);
    assert!(stream.message().await.unwrap().is_none());
    assert_eq!(client.logs(of(&setup, &[])).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn unary_logs_of_many_owners_wait_for_each_other() {
    let gateway = Gateway::new(Limits::default()).for_proto(DefaultProto::Published);
    let setups = (0..5).map(|_| {
        let (owner, certificate) = gateway.tenant();
        let lease = LeaseId::new(owner.as_str(), 7, 1, 1, account(200).as_str()).unwrap();
        gateway.platform.add_lease(&lease, &[("web", 1)]);
        let run = gateway.platform.start(&lease, &replica("web", 0));
        gateway.platform.print(&run, (0..1_000).map(|number| format!("{number:0900}\n")));
        Setup { gateway: gateway.clone(), lease, certificate }
    });
    let setups: Vec<_> = setups.collect();
    // Four owners take all slots: each call takes only the first part of its response.
    let mut unread = join_all(setups[..4].iter().flat_map(|setup| {
        (0..8).map(async |_| {
            let mut client = Client::new(setup).await;
            (client.stream::<ServiceLogsResponse>("ServiceLogs", of(setup, &[])).await.unwrap(), client)
        })
    }))
    .await;
    let mut client = Client::new(&setups[4]).await;
    let status = client.logs(of(&setups[4], &[])).await.unwrap_err();
    let details = status.get_error_details();
    assert_eq!(details.quota_failure().unwrap().violations[0].quota_id, "unary_logs", "{status:?}");
    // One slot becomes free, for eight callers at once.
    unread.pop();
    let answers = join_all((0..8).map(async |_| {
        let mut client = Client::new(&setups[4]).await;
        client.logs(of(&setups[4], &[])).await.map(|logs| logs.len())
    }));
    assert!(answers.await.iter().all(|answer| matches!(answer, Ok(1))));
}

#[tokio::test(start_paused = true)]
async fn unary_logs_fail_if_a_log_is_unreadable() {
    let setup = web_and_ha();
    let run = setup.gateway.platform.start(&setup.lease, &replica("web", 0));
    setup.gateway.platform.fail(&run, true);
    let mut client = Client::new(&setup).await;
    let status = client.logs(of(&setup, &["ha", "web"])).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "PLATFORM_UNAVAILABLE".into()));
    assert_eq!(client.logs(of(&setup, &["ha"])).await.unwrap(), [pair("ha-0", "of ha\n")]);
}

#[tokio::test(start_paused = true)]
async fn stream_has_new_lines_across_a_restart() {
    let setup = Setup::new(Limits::default(), &[("api", 1), ("web", 1)]);
    let platform = &setup.gateway.platform;
    let web = replica("web", 0);
    let first = platform.start(&setup.lease, &web);
    platform.print(&first, lines(0..100));
    let mut all = Follower::open(&setup, &["web"]).await;
    let loss_only = Client::new(&setup).await.with("leasemux-notices", "loss");
    let mut loss_only = Follower::open_with(loss_only, &setup, &["web"]).await;
    platform.print(&first, lines(100..1_000));
    for follower in [&mut all, &mut loss_only] {
        follower.until("line 999\n").await;
    }
    platform.end(&setup.lease, &web, 1);
    let second = platform.start(&setup.lease, &web);
    platform.print(&second, lines(1_000..2_000));
    for follower in [&mut all, &mut loss_only] {
        follower.until("line 1999\n").await;
    }
    setup.gateway.drain.begin();
    for follower in [&mut all, &mut loss_only] {
        let status = follower.end().await;
        assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "DRAINING".into()));
    }
    let (missing, notices) = all.check(platform, &[&first, &second], 100);
    assert_eq!(missing, 0);
    assert_eq!(notices, ["replica 0 ended with exit code 1 (Error)", "replica 0 started"]);
    assert_eq!(loss_only.check(platform, &[&first, &second], 100), (0, Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn lagging_follower_gets_the_size_of_the_gap() {
    let limits = Limits { ring_max_bytes: 64 * 1024, ..Limits::default() };
    let setup = Setup::new(limits, &[("web", 1)]);
    let platform = &setup.gateway.platform;
    let run = platform.start(&setup.lease, &replica("web", 0));
    platform.print(&run, ["before\n"]);
    let mut slow = Follower::open(&setup, &[]).await;
    let mut quick = Follower::open(&setup, &[]).await;
    let request = draft::ServiceLogsRequest { follow: true, ..setup.request() };
    let mut draft = setup.open(request).await.unwrap();
    // Far more than ring, stream buffer, pipe and client window hold together.
    let count = 20_000;
    for step in 0..count / 100 {
        platform.print(&run, (100 * step..100 * (step + 1)).map(|number| format!("line {number:0200}\n")));
        let last = format!("{}\n", 100 * (step + 1) - 1);
        quick.until(&last).await;
        draft.until(|seen| seen.lines("web", 0) == 1 + 100 * (step + 1)).await;
    }
    platform.print(&run, ["the end\n"]);
    for follower in [&mut slow, &mut quick] {
        follower.until("the end\n").await;
    }
    let (missing, notices) = slow.check(platform, &[&run], 1);
    assert!(missing > 0 && notices.is_empty(), "{missing} {notices:?}");
    assert_eq!(quick.check(platform, &[&run], 1), (0, Vec::new()));
    draft.received.assert_complete(platform, "web", 0, &[(&run, 0)]);
    assert_eq!(platform.open(), 1, "one tail for all");
}

#[tokio::test(start_paused = true)]
async fn status_is_one_message_or_one_per_change() {
    let setup = web_and_ha();
    let mut client = Client::new(&setup).await;
    let names = |response: &draft::ServiceStatusResponse| -> Vec<(String, i32)> {
        let each = response.services.iter();
        each.map(|one| (one.name.clone(), one.status.as_ref().unwrap().available)).collect()
    };
    let response = client.unary("ServiceStatus", of(&setup, &["web"])).await.unwrap();
    assert_eq!(names(&response), [("web".to_owned(), 1)]);
    let response = client.unary("ServiceStatus", of(&setup, &[])).await.unwrap();
    assert_eq!(names(&response), [("ha".to_owned(), 1), ("web".to_owned(), 1)]);
    let mut stream = client.stream("StreamServiceStatus", of(&setup, &["web"])).await.unwrap();
    let response = stream.message().await.unwrap().unwrap();
    assert_eq!(names(&response), [("web".to_owned(), 1)]);
    setup.gateway.platform.end(&setup.lease, &replica("web", 0), 1);
    let response = stream.message().await.unwrap().unwrap();
    assert_eq!(names(&response), [("web".to_owned(), 0)]);
    setup.gateway.platform.change(&setup.lease, |view| view.ended = true);
    let end = async {
        loop {
            if let Err(status) = stream.message().await {
                return status;
            }
        }
    };
    assert_eq!(reason(&tokio::time::timeout(PATIENCE, end).await.unwrap()), "LEASE_ENDED");
}

#[tokio::test(start_paused = true)]
async fn errors_are_those_of_the_draft() {
    let setup = published_port(&web_and_ha());
    let (other, certificate) = setup.gateway.tenant();
    let elsewhere = LeaseId::new(other.as_str(), 7, 1, 1, setup.lease.provider().as_str()).unwrap();
    let other_lease = LeaseId::new(setup.lease.owner().as_str(), 9, 1, 1, account(200).as_str()).unwrap();
    let mut client = Client::new(&setup).await;
    let no_lease = ServicesRequest { lease_id: None, services: Vec::new() };
    let many = ServicesRequest { services: vec!["web".into(); 65], ..of(&setup, &[]) };
    for (request, code, expected) in [
        (of(&setup, &["nope"]), Code::NotFound, "SERVICE_NOT_FOUND"),
        (request(&other_lease, &[]), Code::NotFound, "LEASE_NOT_FOUND"),
        (request(&elsewhere, &[]), Code::PermissionDenied, "LEASE_NOT_YOURS"),
        (no_lease, Code::InvalidArgument, "INVALID_REQUEST"),
        (many, Code::InvalidArgument, "INVALID_REQUEST"),
    ] {
        for method in ["ServiceLogs", "StreamServiceLogs", "ServiceStatus", "StreamServiceStatus"] {
            let call = client.stream::<ServiceLogsResponse>(method, request.clone());
            let status = call.await.err().unwrap_or_else(|| panic!("{method} {request:?}"));
            assert_eq!((status.code(), &*reason(&status)), (code, expected), "{method} {request:?}");
        }
    }
    let mut client = Client::new(&setup).await.with("leasemux-notices", "some");
    let status = client.logs(of(&setup, &[])).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "leasemux-notices: must be all, loss or none")
    );
    let mut nobody = Client::over(setup.gateway.channel_of(None).await);
    let status = nobody.logs(of(&setup, &[])).await.unwrap_err();
    assert_eq!((status.code(), &*reason(&status)), (Code::Unauthenticated, "CREDENTIALS_MISSING"));
    // Authenticated, and of another owner.
    let mut stranger = Client::over(setup.gateway.channel_of(Some(certificate)).await);
    let status = stranger.logs(of(&setup, &[])).await.unwrap_err();
    assert_eq!(reason(&status), "LEASE_NOT_YOURS");
}

#[tokio::test(start_paused = true)]
async fn token_grants_scopes_and_services() {
    let gateway = Gateway::new(Limits::default()).for_proto(DefaultProto::Published);
    let wallet = gateway.account();
    let owner = wallet.key().address();
    let lease = LeaseId::new(owner.as_str(), 7, 1, 1, account(200).as_str()).unwrap();
    gateway.platform.add_lease(&lease, &[("ha", 1), ("web", 1)]);
    for name in ["ha", "web"] {
        let run = gateway.platform.start(&lease, &replica(name, 0));
        gateway.platform.print(&run, [format!("of {name}\n")]);
    }
    let client = async |scope| {
        let deployment = Deployment {
            dseq: 7,
            gseq: None,
            oseq: None,
            scopes: [scope].into_iter().collect(),
            services: ["web".to_owned()].into(),
        };
        let granted = ProviderAccess::Granular(vec![deployment]);
        let access = Access::Granular([(lease.provider().clone(), granted)].into());
        let now = u64::try_from(LogTime::now().parts().0).unwrap();
        let (issuer, expires) = (owner.clone(), now + 600);
        let claims = Claims { issuer, issued: now, not_before: now, expires, id: None, access };
        let token = wallet.sign(Algorithm::Es256kAdr36, &claims).unwrap();
        Client::over(gateway.channel_of(None).await).with("authorization", &format!("Bearer {token}"))
    };
    let mut logs = client(TokenScope::Logs).await;
    let mut status = client(TokenScope::Status).await;
    // Without services: those of the token.
    assert_eq!(logs.logs(request(&lease, &[])).await.unwrap(), [pair("web-0", "of web\n")]);
    let response: draft::ServiceStatusResponse =
        status.unary("ServiceStatus", request(&lease, &[])).await.unwrap();
    assert_eq!(response.services.iter().map(|one| &*one.name).collect::<Vec<_>>(), ["web"]);
    let clients = [&mut logs, &mut status];
    for (index, methods) in
        [["ServiceLogs", "StreamServiceLogs"], ["ServiceStatus", "StreamServiceStatus"]].iter().enumerate()
    {
        for method in methods {
            let refused =
                clients[index].stream::<ServiceLogsResponse>(method, request(&lease, &["ha"])).await;
            assert_eq!(reason(&refused.err().unwrap()), "SERVICE_NOT_GRANTED", "{method}");
            let refused =
                clients[1 - index].stream::<ServiceLogsResponse>(method, request(&lease, &["web"])).await;
            assert_eq!(reason(&refused.err().unwrap()), "SCOPE_NOT_GRANTED", "{method}");
        }
    }
    // A stream ends when the account's key is withdrawn.
    let mut stream =
        logs.stream::<ServiceLogsResponse>("StreamServiceLogs", request(&lease, &[])).await.unwrap();
    gateway.withdraw_account(&owner);
    let end = tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap_err();
    assert_eq!((end.code(), &*reason(&end)), (Code::Unauthenticated, "ACCOUNT_WITHDRAWN"));
}

#[tokio::test(start_paused = true)]
async fn unary_logs_that_cannot_be_read_in_time_fail() {
    let quota = QuotaLimits { history_reads_per_owner: 1, ..QuotaLimits::default() };
    let setup = Setup::new(Limits { quota, ..Limits::default() }, &[("web", 1)]);
    let run = setup.gateway.platform.start(&setup.lease, &replica("web", 0));
    setup.gateway.platform.print(&run, (0..4_000).map(|number| format!("{number:0500}\n")));
    // Reads from the log, and does not continue.
    let mut reader = setup.open(setup.request()).await.unwrap();
    reader.until(|seen| seen.lines("web", 0) > 0).await;
    let mut client = Client::new(&setup).await;
    let status = client.logs(of(&setup, &["web"])).await.unwrap_err();
    assert_eq!((status.code(), &*reason(&status)), (Code::ResourceExhausted, "QUOTA_USED_UP"));
    let rejected = "leasemux_quota_refusals_total{quota=\"history_reads_per_owner\"}";
    assert_eq!(setup.gateway.metric(rejected), 1);
    let drain = async {
        setup.gateway.eventually(|gateway| gateway.metric(OPEN) == 2).await;
        setup.gateway.drain.begin();
    };
    let (logs, ()) = tokio::join!(client.logs(of(&setup, &["web"])), drain);
    let status = logs.unwrap_err();
    assert_eq!((status.code(), &*reason(&status)), (Code::Unavailable, "DRAINING"));
}

/// The container ends within a line, and a restarted container keeps the name.
#[tokio::test(start_paused = true)]
async fn runs_are_separated_whatever_the_notices_are() {
    let setup = Setup::new(Limits::default(), &[("web", 1)]);
    let (platform, web) = (&setup.gateway.platform, replica("web", 0));
    let first = platform.start(&setup.lease, &web);
    let mut followers = Vec::new();
    for notices in ["all", "loss", "none"] {
        let client = Client::new(&setup).await.with("leasemux-notices", notices);
        followers.push(Follower::open_with(client, &setup, &["web"]).await);
    }
    platform.print(&first, ["begin\n"]);
    platform.print_piece(&first, OutputStream::Stdout, "login: ");
    for follower in &mut followers {
        follower.until("login: ").await;
    }
    platform.end(&setup.lease, &web, 1);
    let second = platform.start(&setup.lease, &web);
    // A whole line without a newline: the end of the log.
    platform.print(&second, ["hello"]);
    platform.end(&setup.lease, &web, 1);
    let third = platform.start(&setup.lease, &web);
    platform.print(&third, ["end\n"]);
    let expected = "begin\nlogin: \nhello\nend\n";
    let without_notices = |text: &str| -> String {
        text.split_inclusive('\n').filter(|line| !line.starts_with(NOTICE)).collect()
    };
    for follower in &mut followers {
        follower.until("end\n").await;
        assert_eq!(without_notices(&follower.text), expected);
    }
    for notices in ["all", "loss", "none"] {
        let mut client = Client::new(&setup).await.with("leasemux-notices", notices);
        let logs = client.logs(of(&setup, &["web"])).await.unwrap();
        assert_eq!(logs.len(), 1);
        assert_eq!(without_notices(&logs[0].1), expected, "{notices}");
    }
}

#[tokio::test(start_paused = true)]
async fn lost_rest_of_a_line_does_not_join_the_next_one() {
    let setup = Setup::new(Limits::default(), &[("web", 1)]);
    let platform = &setup.gateway.platform;
    let run = platform.start(&setup.lease, &replica("web", 0));
    let client = Client::new(&setup).await.with("leasemux-notices", "none");
    let mut follower = Follower::open_with(client, &setup, &["web"]).await;
    platform.print_piece(&run, OutputStream::Stdout, "cut");
    follower.until("cut").await;
    platform.lose(&run, 1);
    platform.print(&run, ["next\n"]);
    follower.until("next\n").await;
    assert_eq!(follower.text, "cut\nnext\n");
    let mut client = Client::new(&setup).await.with("leasemux-notices", "none");
    assert_eq!(client.logs(of(&setup, &["web"])).await.unwrap(), [pair("web-0", "cut\nnext\n")]);
}

#[tokio::test(start_paused = true)]
async fn cancelled_unary_logs_release_everything() {
    let setup = published_port(&web_and_ha());
    let run = setup.gateway.platform.start(&setup.lease, &replica("web", 0));
    setup.gateway.platform.fail(&run, true);
    // More than may be in progress.
    for _ in 0..40 {
        let mut client = Client::new(&setup).await;
        let call = client.logs(of(&setup, &[]));
        tokio::time::timeout(Duration::from_millis(100), call).await.expect_err("reads are tried for 5 s");
    }
    setup.gateway.eventually(|gateway| gateway.metric(OPEN) == 0).await;
    assert_eq!(setup.gateway.platform.open(), 0);
    let cancelled = "leasemux_requests_total{method=\"ServiceLogs\",code=\"CANCELLED\"}";
    assert_eq!(setup.gateway.metric(cancelled), 40);
    setup.gateway.platform.fail(&run, false);
    assert_eq!(Client::new(&setup).await.logs(of(&setup, &["ha"])).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn unary_logs_end_with_their_credentials() {
    let setup = published_port(&web_and_ha());
    let run = setup.gateway.platform.start(&setup.lease, &replica("web", 0));
    setup.gateway.platform.fail(&run, true);
    let mut client = Client::new(&setup).await;
    let withdrawal = async {
        setup.gateway.eventually(|gateway| gateway.metric(OPEN) == 1).await;
        setup.gateway.withdraw(setup.lease.owner());
    };
    let (logs, ()) = tokio::join!(client.logs(of(&setup, &[])), withdrawal);
    let status = logs.unwrap_err();
    assert_eq!((status.code(), &*reason(&status)), (Code::Unauthenticated, "CERTIFICATE_WITHDRAWN"));
}

#[tokio::test(start_paused = true)]
async fn audit_lines_name_the_called_method() {
    let (file, _log) = log_to_file();
    let setup = web_and_ha();
    let owner = setup.lease.owner();
    let elsewhere = LeaseId::new(setup.gateway.tenant().0.as_str(), 7, 1, 1, account(200).as_str()).unwrap();
    let methods = ["ServiceLogs", "StreamServiceLogs", "ServiceStatus", "StreamServiceStatus"];
    let mut client = Client::new(&setup).await;
    for method in methods {
        let call = client.stream::<ServiceLogsResponse>(method, request(&elsewhere, &["web"]));
        assert_eq!(reason(&call.await.err().unwrap()), "LEASE_NOT_YOURS");
    }
    let mut stream =
        client.stream::<ServiceLogsResponse>("StreamServiceLogs", of(&setup, &[])).await.unwrap();
    setup.gateway.withdraw(owner);
    tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap_err();
    let lines = audit_lines(file.path(), "call refused", owner);
    assert_eq!(lines.len(), methods.len(), "{lines:?}");
    for (line, method) in lines.iter().zip(methods) {
        assert!(line.contains(&format!("method=\"{method}\"")), "{line}");
    }
    let lines = audit_lines(file.path(), "stream ended", owner);
    assert_eq!(lines.len(), 1);
    assert!(lines[0].contains("method=\"StreamServiceLogs\""), "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn other_methods_are_unimplemented_with_a_sentence() {
    let setup = published_port(&web_and_ha());
    let mut client = Client::new(&setup).await;
    for (path, text) in [
        (format!("/{SERVICE}/SendManifest"), "call the provider itself"),
        (format!("/{SERVICE}/AttestationQuote"), "call the provider itself"),
        ("/akash.provider.v1.ProviderRPC/GetStatus".to_owned(), "call the provider itself"),
        (format!("/{SERVICE}/Nothing"), "there is no such method"),
        ("/other.Service/Method".to_owned(), "there is no such method"),
    ] {
        client.grpc.ready().await.unwrap();
        let codec = ProstCodec::<ServicesRequest, ServiceLogsResponse>::default();
        let call = client.grpc.unary(Request::new(of(&setup, &[])), path.parse().unwrap(), codec);
        let status = call.await.unwrap_err();
        assert_eq!((status.code(), &*reason(&status)), (Code::Unimplemented, "NOT_OFFERED"), "{path}");
        assert!(status.message().contains(text), "{path}: {status:?}");
    }
}
