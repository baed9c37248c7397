//! What callers are told: codes, reasons, and what is nobody else's business.

use leasemux::model::limits::Limits;
use tonic::Code;

use crate::support::gateway::{Scene, proto_lease};
use crate::support::lease;

#[tokio::test(start_paused = true)]
async fn strangers_are_told_the_same_whether_a_lease_exists_or_not() {
    let scene = Scene::new(Limits::default(), &[("web", 1)]);
    scene.gateway.world.add_lease(&lease(1), &[("web", 1)]);
    let mut told = Vec::new();
    for foreign in [lease(1), lease(2)] {
        let mut request = scene.request();
        request.lease_id = Some(proto_lease(&foreign));
        let status = scene.open(request).await.err().unwrap();
        assert_eq!(status.code(), Code::PermissionDenied);
        told.push((status.message().to_owned(), status.details().to_vec()));
    }
    assert_eq!(told[0], told[1]);
}
