//! The real program: start on a cluster, and `--check` of one.

use std::net::TcpStream;

use tokio::task::block_in_place;

use super::cluster::Cluster;
use super::kubeconfig;
use crate::support::account;
use crate::support::process::{Done, Program, Workspace, get, own_port};

/// The arguments of a gateway on a cluster, without the kubeconfig.
fn args(workspace: &Workspace, more: &[&str]) -> Vec<String> {
    let mut args = workspace.serve_args(&[]);
    args.retain(|arg| arg != "--platform=local");
    args.push("--platform=kube".to_owned());
    args.push(format!("--provider={}", account(200)));
    args.extend(more.iter().map(|arg| (*arg).to_owned()));
    args
}

fn start(workspace: &Workspace, more: &[&str]) -> Program {
    let args = args(workspace, more);
    workspace.start(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Runs `--check`.
fn check(workspace: &Workspace, more: &[&str]) -> Done {
    block_in_place(|| start(workspace, &[&["--check"], more].concat()).done())
}

#[tokio::test(flavor = "multi_thread")]
async fn unready_gateway_refuses_connections_and_names_the_server() {
    let (workspace, cluster, dir) = (Workspace::new(), Cluster::stopped(), tempfile::tempdir().unwrap());
    let file = format!("--kubeconfig={}", kubeconfig(&cluster, &dir).display());
    let [port, admin] = [own_port(), own_port()];
    let (listen, admin_listen) =
        (format!("--listen=127.0.0.1:{port}"), format!("--admin-listen=127.0.0.1:{admin}"));
    let mut args = args(&workspace, &[&file, &listen, &admin_listen]);
    args.retain(|arg| !arg.ends_with("listen=127.0.0.1:0"));
    let program = workspace.start(&args.iter().map(String::as_str).collect::<Vec<_>>());
    block_in_place(|| {
        program.until_said("failed to reach the API server, retrying");
        program.until_said(&format!("http://{}", cluster.address));
        program.until_said("onnection refused");
        let refused = TcpStream::connect(("127.0.0.1", port)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let (head, body) = get(([127, 0, 0, 1], admin).into(), "HTTP/1.1", "/ready").unwrap();
        assert!(head.starts_with("http/1.1 503 ") && body == "not ready\n", "{head}{body}");
    });
    cluster.hold_lists(true);
    cluster.resume().await;
    block_in_place(|| {
        program.until_said("still listing the cluster");
        program.until_said(
            "namespaces, pods, deployments, statefulsets, services, providerhosts, providerleasedips",
        );
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    });
    cluster.hold_lists(false);
    block_in_place(|| {
        program.until_out("its ready line", |out| out.contains("leasemux ready").then_some(()));
        TcpStream::connect(("127.0.0.1", port)).unwrap();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn check_outside_cluster_names_missing_setting() {
    let done = check(&Workspace::new(), &[]);
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    assert!(done.err.contains("error: not in a cluster, and no --kubeconfig given"), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_verifies_permissions_if_reachable() {
    let (workspace, cluster, dir) = (Workspace::new(), Cluster::start().await, tempfile::tempdir().unwrap());
    let file = format!("--kubeconfig={}", kubeconfig(&cluster, &dir).display());
    let done = check(&workspace, &[&file]);
    assert_eq!((done.status.code(), &*done.err), (Some(0), ""), "{done:?}");
    cluster.deny("get", "pods/log");
    let done = check(&workspace, &[&file]);
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    assert!(done.err.contains("get pods/log in the whole cluster"), "{done:?}");
    // An unreachable API server is no error.
    cluster.stop().await;
    let done = check(&workspace, &[&file]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let note =
        format!("note: permissions were not checked, because the API server http://{}", cluster.address);
    assert!(done.err.starts_with(&note) && done.err.contains("onnection refused"), "{done:?}");
}
