//! The services besides the lease service: health, and reflection in both versions. They need no credentials.

use std::collections::BTreeMap;

use leasemux::edge::server;
use leasemux::edge::service::SERVICE;
use leasemux::model::limits::Limits;
use leasemux::model::proto::lease::ServiceStatusRequest;
use leasemux::model::proto::lease::lease_rpc_client::LeaseRpcClient;
use prost::Message as _;
use prost_types::{DescriptorProto, FileDescriptorProto};
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::gateway::Gateway;

async fn health(client: &mut HealthClient<Channel>, service: &str) -> Result<ServingStatus, Code> {
    let request = HealthCheckRequest { service: service.into() };
    let answer = client.check(request).await.map_err(|status| status.code())?;
    Ok(answer.into_inner().status())
}

#[tokio::test(start_paused = true)]
async fn health_needs_no_credentials_and_can_be_watched() {
    let gateway = Gateway::new(Limits::default());
    server::report_health(&gateway.health, true).await;
    let mut client = HealthClient::new(gateway.channel_of(None).await);
    let request = HealthCheckRequest { service: SERVICE.into() };
    let mut watch = client.watch(request).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    for service in ["", SERVICE] {
        assert_eq!(health(&mut client, service).await, Ok(ServingStatus::Serving), "{service}");
    }
    assert_eq!(health(&mut client, "other").await, Err(Code::NotFound));
    server::report_health(&gateway.health, false).await;
    for service in ["", SERVICE] {
        assert_eq!(health(&mut client, service).await, Ok(ServingStatus::NotServing), "{service}");
    }
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
}

/// Clients compute relative times from it.
#[tokio::test(start_paused = true)]
async fn every_response_has_a_date() {
    let gateway = Gateway::new(Limits::default());
    let mut health = HealthClient::new(gateway.channel_of(None).await);
    let answered = health.check(HealthCheckRequest::default()).await.unwrap();
    let not_found = health.check(HealthCheckRequest { service: "other".into() }).await.unwrap_err();
    let (owner, certificate) = gateway.tenant();
    let mut lease = gateway.client(&certificate).await;
    let unknown = lease.service_status(ServiceStatusRequest::default()).await.unwrap_err();
    let mut anonymous = LeaseRpcClient::new(gateway.channel_of(None).await);
    let unauthenticated = anonymous.service_status(ServiceStatusRequest::default()).await.unwrap_err();
    for (what, metadata) in [
        ("health", answered.metadata()),
        ("error of health", not_found.metadata()),
        ("error of the lease service", unknown.metadata()),
        ("error without credentials", unauthenticated.metadata()),
    ] {
        let date = metadata.get("date").unwrap_or_else(|| panic!("{what} for {owner} has no date"));
        let date = jiff::fmt::rfc2822::parse(date.to_str().unwrap()).unwrap().timestamp();
        let off = date.duration_until(jiff::Timestamp::now()).abs();
        assert!(off < jiff::SignedDuration::from_mins(5), "{what}: {off:?}");
    }
}

/// Queries one version of reflection. The versions have equal messages of different types.
macro_rules! reflection {
    ($version:ident, $gateway:expr) => {{
        use tonic_reflection::pb::$version::ServerReflectionRequest;
        use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;

        let mut client = ServerReflectionClient::new($gateway.channel_of(None).await);
        let request =
            |question| ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        let questions = [
            MessageRequest::ListServices(String::new()),
            MessageRequest::FileContainingSymbol(SERVICE.into()),
            MessageRequest::FileContainingSymbol(format!("{SERVICE}.ServiceLogs")),
            MessageRequest::FileContainingSymbol("akash.market.v1.LeaseID".into()),
            MessageRequest::FileByFilename("google/protobuf/timestamp.proto".into()),
        ];
        let questions = futures_util::stream::iter(questions.map(request));
        let mut answers = client.server_reflection_info(questions).await.unwrap().into_inner();
        let (mut services, mut files) = (Vec::new(), Vec::new());
        while let Some(answer) = answers.message().await.unwrap() {
            match answer.message_response.unwrap() {
                MessageResponse::ListServicesResponse(list) => {
                    services.extend(list.service.into_iter().map(|service| service.name));
                }
                MessageResponse::FileDescriptorResponse(file) => files.push(file.file_descriptor_proto),
                other => panic!("{other:?}"),
            }
        }
        (services, files)
    }};
}

/// Returns the fields of a message, by number.
fn fields(message: &DescriptorProto) -> BTreeMap<i32, &str> {
    message.field.iter().map(|field| (field.number(), field.name())).collect()
}

fn check_reflection(services: Vec<String>, files: Vec<Vec<Vec<u8>>>) {
    for service in [SERVICE, "grpc.health.v1.Health"] {
        assert!(services.iter().any(|name| name == service), "{services:?}");
    }
    let files: Vec<FileDescriptorProto> =
        files.into_iter().map(|file| FileDescriptorProto::decode(&file[0][..]).unwrap()).collect();
    let [service, method, lease, timestamp] = &files[..] else { panic!("{files:?}") };
    assert_eq!(service, method);
    assert_eq!(timestamp.message_type[0].name(), "Timestamp");
    let message =
        |name: &str| service.message_type.iter().find(|message| message.name() == name).expect(name);
    let request = [
        (1, "lease_id"),
        (2, "filter"),
        (3, "follow"),
        (100, "tail_lines"),
        (101, "since"),
        (102, "timestamps"),
        (103, "previous"),
        (104, "filters"),
        (105, "resume"),
        (106, "on_lag"),
        (107, "heartbeat"),
    ];
    assert_eq!(fields(message("ServiceLogsRequest")), request.into());
    let logs = [
        (1, "name"),
        (2, "replica"),
        (3, "logs"),
        (100, "cursor"),
        (101, "gap"),
        (102, "event"),
        (104, "source"),
        (105, "part"),
    ];
    assert_eq!(fields(message("ServiceLogs")), logs.into());
    assert_eq!(fields(message("ServiceFilter")), [(1, "name"), (2, "replicas")].into());
    let cursor =
        [(1, "service"), (2, "replica"), (3, "instance"), (4, "time"), (5, "ordinal"), (6, "offset")];
    assert_eq!(fields(message("Cursor")), cursor.into());
    let lease_id = [(1, "owner"), (2, "dseq"), (3, "gseq"), (4, "oseq"), (5, "provider"), (6, "bseq")];
    assert_eq!(fields(&lease.message_type[0]), lease_id.into());
    let methods: Vec<_> = service.service[0]
        .method
        .iter()
        .map(|method| (method.name(), method.client_streaming(), method.server_streaming()))
        .collect();
    assert_eq!(
        methods,
        [("ServiceStatus", false, true), ("ServiceLogs", false, true), ("ServiceRestart", false, false)]
    );
}

#[tokio::test(start_paused = true)]
async fn reflection_returns_protocol_in_both_versions() {
    let gateway = Gateway::new(Limits::default());
    let (services, files) = reflection!(v1, gateway);
    check_reflection(services, files);
    let (services, files) = reflection!(v1alpha, gateway);
    check_reflection(services, files);
}
