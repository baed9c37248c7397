//! A client generated from the draft's proto, without this project's additions.

use http::uri::PathAndQuery;
use leasemux::edge::service::SERVICE;
use leasemux::model::limits::Limits;
use leasemux::model::proto::lease as extended;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::support::gateway::Setup;
use crate::support::{reason, replica};

/// `akash.market.v1.LeaseID`.
#[derive(Clone, PartialEq, prost::Message)]
struct LeaseId {
    #[prost(string, tag = "1")]
    owner: String,
    #[prost(uint64, tag = "2")]
    dseq: u64,
    #[prost(uint32, tag = "3")]
    gseq: u32,
    #[prost(uint32, tag = "4")]
    oseq: u32,
    #[prost(string, tag = "5")]
    provider: String,
    #[prost(uint32, tag = "6")]
    bseq: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ServiceFilter {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, repeated, tag = "2")]
    replicas: Vec<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ServiceLogsRequest {
    #[prost(message, optional, tag = "1")]
    lease_id: Option<LeaseId>,
    #[prost(message, optional, tag = "2")]
    filter: Option<ServiceFilter>,
    #[prost(bool, tag = "3")]
    follow: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ServiceLogs {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    replica: u32,
    #[prost(bytes = "vec", tag = "3")]
    logs: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ServiceLogsResponse {
    #[prost(message, repeated, tag = "1")]
    services: Vec<ServiceLogs>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ServiceStatusResponse {
    #[prost(message, repeated, tag = "1")]
    services: Vec<ServiceStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ServiceStatus {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    status: Option<LeaseServiceStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LeaseServiceStatus {
    #[prost(int32, tag = "1")]
    available: i32,
    #[prost(int32, tag = "2")]
    total: i32,
    #[prost(string, repeated, tag = "3")]
    uris: Vec<String>,
    #[prost(int64, tag = "4")]
    observed_generation: i64,
    #[prost(int32, tag = "5")]
    replicas: i32,
    #[prost(int32, tag = "6")]
    updated_replicas: i32,
    #[prost(int32, tag = "7")]
    ready_replicas: i32,
    #[prost(int32, tag = "8")]
    available_replicas: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ServiceRestartRequest {
    #[prost(message, optional, tag = "1")]
    lease_id: Option<LeaseId>,
    #[prost(message, optional, tag = "2")]
    filter: Option<ServiceFilter>,
    #[prost(message, optional, tag = "3")]
    timeout: Option<prost_types::Duration>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ServiceRestartResponse {
    #[prost(message, repeated, tag = "1")]
    status: Vec<ServiceRestartStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ServiceRestartStatus {
    #[prost(string, tag = "1")]
    service: String,
    #[prost(string, tag = "2")]
    replica: String,
    /// pending = 0, active = 1, failure = 2.
    #[prost(int32, tag = "3")]
    state: i32,
    #[prost(string, optional, tag = "4")]
    message: Option<String>,
}

/// A stream, and the logs of each replica that a simple client joins from it.
struct Reader {
    stream: Streaming<ServiceLogsResponse>,
    web: Vec<u8>,
    api: Vec<u8>,
}

impl Reader {
    async fn open(setup: &Setup, filter: Option<ServiceFilter>, follow: bool) -> Self {
        Self::try_open(setup, filter, follow).await.unwrap()
    }

    async fn try_open(setup: &Setup, filter: Option<ServiceFilter>, follow: bool) -> Result<Self, Status> {
        let request = ServiceLogsRequest { lease_id: Some(lease_of(setup)), filter, follow };
        let channel = setup.gateway.channel_of(Some(setup.certificate.clone())).await;
        let stream = call(channel, request).await?;
        Ok(Self { stream, web: Vec::new(), api: Vec::new() })
    }

    /// Takes one response. `false`: the stream has ended.
    async fn next(&mut self) -> Result<bool, Status> {
        let Some(response) = self.stream.message().await? else {
            return Ok(false);
        };
        for entry in response.services {
            assert_eq!(entry.replica, 0);
            match entry.name.as_str() {
                "web" => self.web.extend(entry.logs),
                "api" => self.api.extend(entry.logs),
                other => panic!("{other}"),
            }
        }
        Ok(true)
    }

    /// Reads until the logs of `web` are `expected`.
    async fn until(&mut self, expected: &str) {
        while self.web.len() < expected.len() {
            assert!(self.next().await.unwrap(), "ended after {:?}", String::from_utf8_lossy(&self.web));
        }
        assert_eq!(String::from_utf8_lossy(&self.web), expected);
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
}

fn lease_of(setup: &Setup) -> LeaseId {
    let lease = &setup.lease;
    LeaseId {
        owner: lease.owner().to_string(),
        dseq: lease.dseq(),
        gseq: lease.gseq(),
        oseq: lease.oseq(),
        provider: lease.provider().to_string(),
        bseq: 0,
    }
}

async fn call(
    channel: Channel,
    request: ServiceLogsRequest,
) -> Result<Streaming<ServiceLogsResponse>, Status> {
    stream(channel, "ServiceLogs", request).await
}

/// Calls a method with a response stream. All such requests have the same fields.
async fn stream<A: prost::Message + Default + 'static>(
    channel: Channel,
    method: &str,
    request: ServiceLogsRequest,
) -> Result<Streaming<A>, Status> {
    let mut client = Grpc::new(channel);
    client.ready().await.unwrap();
    let path = PathAndQuery::try_from(format!("/{SERVICE}/{method}")).unwrap();
    let codec = ProstCodec::<ServiceLogsRequest, A>::default();
    Ok(client.server_streaming(Request::new(request), path, codec).await?.into_inner())
}

async fn restart(channel: Channel, request: ServiceRestartRequest) -> Result<ServiceRestartResponse, Status> {
    let mut client = Grpc::new(channel);
    client.ready().await.unwrap();
    let path = PathAndQuery::try_from(format!("/{SERVICE}/ServiceRestart")).unwrap();
    let codec = ProstCodec::<ServiceRestartRequest, ServiceRestartResponse>::default();
    Ok(client.unary(Request::new(request), path, codec).await?.into_inner())
}

fn setup() -> Setup {
    Setup::new(Limits::default(), &[("api", 1), ("web", 1)])
}

fn each(range: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    range.map(|number| format!("line {number}\n"))
}

fn lines(range: std::ops::Range<usize>) -> String {
    each(range).collect()
}

#[tokio::test(start_paused = true)]
async fn draft_client_reads_backlog_in_order() {
    let setup = setup();
    let platform = &setup.gateway.platform;
    let web = platform.start(&setup.lease, &replica("web", 0));
    let api = platform.start(&setup.lease, &replica("api", 0));
    platform.print(&web, each(0..5_000));
    platform.print(&api, ["only\n"]);
    // Clients for Go always send a filter.
    for filter in [None, Some(ServiceFilter::default())] {
        let mut reader = Reader::open(&setup, filter, false).await;
        assert_eq!(reader.end().await.code(), Code::Ok);
        assert_eq!(String::from_utf8(reader.web).unwrap(), lines(0..5_000));
        assert_eq!(reader.api, b"only\n");
    }
    let one = ServiceFilter { name: "api".into(), replicas: vec![0] };
    let mut reader = Reader::open(&setup, Some(one), false).await;
    assert_eq!(reader.end().await.code(), Code::Ok);
    assert_eq!((reader.web.len(), &reader.api[..]), (0, &b"only\n"[..]));
}

#[tokio::test(start_paused = true)]
async fn draft_client_follows_across_a_crash() {
    let setup = setup();
    let platform = &setup.gateway.platform;
    let web = replica("web", 0);
    let first = platform.start(&setup.lease, &web);
    platform.print(&first, each(0..1_000));
    let mut reader = Reader::open(&setup, None, true).await;
    reader.until(&lines(0..1_000)).await;
    platform.print(&first, each(1_000..1_100));
    reader.until(&lines(0..1_100)).await;
    // Events and cursors have no logs.
    platform.end(&setup.lease, &web, 1);
    let second = platform.start(&setup.lease, &web);
    platform.print(&second, each(1_100..1_200));
    reader.until(&lines(0..1_200)).await;
    setup.gateway.drain.begin();
    let status = reader.end().await;
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "DRAINING".into()));
    assert_eq!(String::from_utf8(reader.web).unwrap(), lines(0..1_200), "the last cursors add nothing");
    assert!(reader.api.is_empty());
}

#[tokio::test(start_paused = true)]
async fn draft_client_gets_a_notice_line_for_a_gap() {
    let setup = setup();
    let platform = &setup.gateway.platform;
    let run = platform.start(&setup.lease, &replica("web", 0));
    platform.print(&run, each(0..3));
    platform.lose(&run, 4);
    platform.print(&run, each(7..9));
    let notice = "[leasemux: 4 lines (40 bytes) missing here: the source lost them]\n";
    let expected = [&lines(0..3), notice, &lines(7..9)].concat();
    for follow in [false, true] {
        let mut reader = Reader::open(&setup, None, follow).await;
        reader.until(&expected).await;
    }
}

#[tokio::test(start_paused = true)]
async fn lagging_draft_client_gets_the_number_of_lines() {
    let limits = Limits { ring_max_bytes: 64 * 1024, ..Limits::default() };
    let setup = Setup::new(limits, &[("web", 1)]);
    let platform = &setup.gateway.platform;
    let run = platform.start(&setup.lease, &replica("web", 0));
    platform.print(&run, ["the beginning\n"]);
    let mut reader = Reader::open(&setup, None, true).await;
    reader.until("the beginning\n").await;
    let mut quick =
        setup.open(extended::ServiceLogsRequest { follow: true, ..setup.request() }).await.unwrap();
    // Far more than ring, stream buffer, pipe and client window hold together.
    let count = 40_000;
    for step in 0..count / 100 {
        platform.print(&run, (100 * step..100 * (step + 1)).map(|number| format!("line {number:0200}\n")));
        quick.until(|seen| seen.lines("web", 0) == 1 + 100 * (step + 1)).await;
    }
    platform.print(&run, ["the end\n"]);
    while !reader.web.ends_with(b"the end\n") {
        assert!(reader.next().await.unwrap());
    }
    let text = String::from_utf8(reader.web).unwrap();
    let (notices, kept): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with("[leasemux: "));
    let missing: usize = notices
        .iter()
        .map(|notice| {
            assert!(notice.ends_with(" missing here: the follower fell behind]"), "{notice}");
            notice["[leasemux: ".len()..].split(' ').next().unwrap().parse::<usize>().unwrap()
        })
        .sum();
    assert!(missing > 0);
    assert_eq!(kept.len() + missing, count + 2, "the notices count the missing lines");
    assert!(kept[1..kept.len() - 1].is_sorted());
}

#[tokio::test(start_paused = true)]
async fn draft_client_gets_status_and_restarts() {
    let setup = setup();
    let platform = &setup.gateway.platform;
    platform.start(&setup.lease, &replica("web", 0));
    let channel = || setup.gateway.channel_of(Some(setup.certificate.clone()));
    // Clients for Go always send a filter.
    let filter = Some(ServiceFilter::default());
    let request = ServiceLogsRequest { lease_id: Some(lease_of(&setup)), filter, follow: true };
    let mut follow: Streaming<ServiceStatusResponse> =
        stream(channel().await, "ServiceStatus", request).await.unwrap();
    let available = |answer: ServiceStatusResponse| {
        let each = answer.services.into_iter().map(|service| {
            let counts = service.status.unwrap();
            assert_eq!((counts.total, counts.replicas, counts.observed_generation), (1, 1, 1));
            assert_eq!(
                (counts.ready_replicas, counts.available_replicas),
                (counts.available, counts.available)
            );
            (service.name, counts.available)
        });
        each.collect::<Vec<_>>()
    };
    let statuses = available(follow.message().await.unwrap().unwrap());
    assert_eq!(statuses, [("api".to_owned(), 0), ("web".to_owned(), 1)]);
    let web = ServiceFilter { name: "web".into(), replicas: vec![0] };
    let timeout = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let request = ServiceRestartRequest { lease_id: Some(lease_of(&setup)), filter: Some(web), timeout };
    let outcomes = restart(channel().await, request.clone()).await.unwrap().status;
    let active =
        |message| ServiceRestartStatus { service: "web".into(), replica: "0".into(), state: 1, message };
    assert_eq!(outcomes, [active(None)]);
    // The draft has no request id, so each call starts a restart.
    restart(channel().await, request).await.unwrap();
    assert_eq!(platform.restarted(), ["web/0", "web/0"]);
    setup.gateway.drain.begin();
    let end = loop {
        match follow.message().await {
            Ok(Some(answer)) => assert_eq!(available(answer).len(), 2),
            Ok(None) => panic!("a follow does not end by itself"),
            Err(status) => break status,
        }
    };
    assert_eq!((end.code(), reason(&end)), (Code::Unavailable, "DRAINING".into()));
}

#[tokio::test(start_paused = true)]
async fn draft_client_gets_plain_statuses() {
    let setup = setup();
    let nowhere = ServiceFilter { name: "nope".into(), replicas: Vec::new() };
    let status = Reader::try_open(&setup, Some(nowhere), true).await.err().unwrap();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "the lease has no service nope"));
    let channel = setup.gateway.channel_of(Some(setup.certificate.clone())).await;
    let status = call(channel, ServiceLogsRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "lease_id: is missing"));
}
