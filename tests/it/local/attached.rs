//! A gateway that reads the data directory of another one.

use leasemux::platform::local::attached::AttachedPlatform;
use tokio::task::JoinSet;

use super::*;

/// Prints its line numbers without an end.
const COUNT: &str = "n=0; while :; do n=$((n + 1)); echo $n; sleep 0.02; done";

async fn attach(fixture: &Fixture) -> Arc<AttachedPlatform> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let attached = AttachedPlatform::start(&fixture.dir.path().join("data"), Notifier::start()).await;
        match attached {
            Ok(attached) if attached.watch(&lease()).await.is_ok() => return attached,
            // The other gateway is being started.
            _ => assert!(Instant::now() < deadline, "no view of the lease"),
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

async fn until(view: &mut watch::Receiver<Arc<LeaseView>>, wanted: impl Fn(&LeaseView) -> bool) {
    tokio::time::timeout(TIMEOUT, view.wait_for(|view| wanted(view))).await.unwrap().unwrap();
}

#[tokio::test]
async fn restart_is_rejected() {
    let fixture = Fixture::new(COUNT).start();
    let instance = fixture.printed("3").await;
    let attached = attach(&fixture).await;
    let request = |lease, replica| RestartRequest { lease, replica, instance: Some(instance.clone()) };
    assert!(matches!(attached.restart(request(lease(), web())).await, Err(Error::ReadOnly)));
    let other = Replica { index: 1, ..web() };
    assert!(matches!(attached.restart(request(lease(), other)).await, Err(Error::NotFound(_))));
    assert_eq!(fixture.slot(|slot| slot.ready).await.restarts, 0);
}

/// Reads the log of a run to its end. Returns the number of its last line, and the number of gaps.
async fn follow(attached: &AttachedPlatform, instance: &Instance) -> (usize, usize) {
    let (lease, replica, instance, from) = (lease(), web(), instance.clone(), ReadFrom::Start);
    let request = TailRequest {
        lease,
        replica,
        instance,
        from,
        lines_after: None,
        oldest_read: None,
        is_next_run: false,
        follow: true,
    };
    let mut items = attached.tail(request).await.unwrap().items;
    let (mut last, mut gaps) = (0, 0);
    while let Some(item) = tokio::time::timeout(TIMEOUT, items.next()).await.unwrap() {
        match item.unwrap() {
            TailItem::Lines(batch) => {
                for line in std::str::from_utf8(&batch.data).unwrap().lines() {
                    assert_eq!(line, (last + 1).to_string());
                    last += 1;
                }
            }
            TailItem::Gap(_) => gaps += 1,
            other => panic!("{other:?}"),
        }
    }
    (last, gaps)
}

/// Waits for the end of a task.
async fn next<T: 'static>(tasks: &mut JoinSet<T>) -> T {
    tokio::time::timeout(TIMEOUT, tasks.join_next()).await.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn reader_continues_after_the_other_gateway_was_killed() {
    let fixture = Fixture::new(COUNT);
    let mut gateway = gateway(&fixture, &[]);
    let attached = attach(&fixture).await;
    let mut view = attached.watch(&lease()).await.unwrap();
    until(&mut view, |view| {
        view.stale_since.is_none() && view.replica(&web()).is_some_and(|slot| slot.ready)
    })
    .await;
    assert!(attached.is_reachable());
    let first = view.borrow().replica(&web()).unwrap().newest().unwrap().instance.clone();
    let mut reading = JoinSet::new();
    let reader = Arc::clone(&attached);
    reading.spawn(async move { follow(&reader, &first).await });
    fixture.until_file("0.log", |log| log.lines().count() >= 10).await;
    gateway.kill().unwrap();
    gateway.wait().unwrap();
    until(&mut view, |view| view.stale_since.is_some()).await;
    assert!(!attached.is_reachable());
    fixture.until_processes(BTreeSet::is_empty).await;
    let printed = fixture.file("0.log").unwrap().lines().count();

    let fixture = fixture.start();
    let is_next = |slot: &ReplicaView| slot.ready && slot.restarts == 1;
    until(&mut view, |view| view.stale_since.is_none() && view.replica(&web()).is_some_and(is_next)).await;
    assert!(attached.is_reachable());
    // The run has ended, so its log is read to the end.
    assert_eq!(next(&mut reading).await, (printed, 0));
    let second = view.borrow().replica(&web()).unwrap().newest().unwrap().instance.clone();
    reading.spawn(async move { follow(&attached, &second).await });
    fixture.until_file("1.log", |log| log.lines().count() >= 10).await;
    fixture.platform().stop(Duration::ZERO).await;
    let (last, gaps) = next(&mut reading).await;
    // The first gateway may have been killed with lines in its pipe.
    assert!(last >= 9 && gaps == 1, "{last} lines, {gaps} gaps");
    until(&mut view, |view| view.replica(&web()).is_some_and(|slot| slot.current_run().is_none())).await;
}

#[tokio::test]
async fn lease_that_the_other_gateway_no_longer_has_ends() {
    let fixture = Fixture::new(COUNT).start();
    let instance = fixture.printed("3").await;
    let attached = attach(&fixture).await;
    let mut view = attached.watch(&lease()).await.unwrap();
    let mut config = fixture.config();
    fixture.platform().stop(Duration::ZERO).await;
    let dir = fixture.dir;
    drop(fixture.platform);
    config.leases.clear();
    let other = LocalPlatform::start(config, Notifier::start()).unwrap();
    until(&mut view, |view| view.ended).await;
    assert!(matches!(attached.watch(&lease()).await, Err(Error::NotFound(_))));
    let request = RestartRequest { lease: lease(), replica: web(), instance: Some(instance) };
    assert!(matches!(attached.restart(request).await, Err(Error::NotFound(_))));
    other.stop(Duration::ZERO).await;
    drop(dir);
}

#[tokio::test]
async fn invalid_view_hides_no_other_lease_and_ends_with_its_file() {
    let fixture = Fixture::new(COUNT).start();
    fixture.printed("3").await;
    let views = fixture.dir.path().join("data/views");
    std::fs::write(views.join("other.json"), "{}").unwrap();
    let attached = attach(&fixture).await;
    let mut view = attached.watch(&lease()).await.unwrap();
    until(&mut view, |view| view.replica(&web()).is_some_and(|slot| slot.ready)).await;
    assert!(attached.is_reachable());
    fixture.platform().stop(Duration::ZERO).await;
    let dir = fixture.dir;
    drop(fixture.platform);
    let mut files = std::fs::read_dir(&views).unwrap().map(|entry| entry.unwrap().path());
    let file = files.find(|path| !path.ends_with("other.json")).unwrap();
    until(&mut view, |view| view.stale_since.is_some()).await;
    // As another version would write it, which then runs.
    std::fs::write(&file, "{\"version\":2}").unwrap();
    let lock = std::fs::File::open(dir.path().join("data/lock")).unwrap();
    lock.lock().unwrap();
    until(&mut view, |view| view.stale_since.is_none()).await;
    assert!(!view.borrow().ended);
    std::fs::remove_file(&file).unwrap();
    until(&mut view, |view| view.ended).await;
}

#[tokio::test]
async fn other_directory_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = AttachedPlatform::start(dir.path(), Notifier::start()).await.unwrap_err();
    assert!(error.to_string().contains("is not the data directory of a gateway"), "{error}");
}
