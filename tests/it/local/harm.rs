//! What others do to a gateway, its shims and its logs.

use super::*;

/// Ignored signals are handed down by whoever starts a program, unless the program cares: `nohup`, and a script's `&`, do so.
#[tokio::test]
async fn signals_that_the_gateway_was_started_to_ignore_are_not_ignored_by_services() {
    let world = World::of_command("grep, SigIgn, /proc/self/status");
    let mut gateway = gateway(&world, &["env", "--ignore-signal=HUP,INT,QUIT,TERM,CHLD"]);
    let log = |run: u32| world.file(&format!("{run}.log")).filter(|log| log.ends_with('\n'));
    // That there is a third run tells that the ends of two were noticed.
    let deadline = Instant::now() + PATIENCE;
    while log(2).is_none() {
        assert!(Instant::now() < deadline, "{:?}", [log(0), log(1), log(2)]);
        tokio::time::sleep(LOOK).await;
    }
    gateway.kill().unwrap();
    gateway.wait().unwrap();
    for run in 0..=2 {
        let log = log(run).unwrap();
        let ignored = log.trim().rsplit(['\t', ' ']).next().unwrap();
        let ignored = u64::from_str_radix(ignored, 16).unwrap();
        for signal in [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::CHILD] {
            assert_eq!(ignored >> (signal.as_raw() - 1) & 1, 0, "{signal:?} in {log}");
        }
    }
}

#[tokio::test]
async fn a_shim_that_is_told_to_end_ends_its_service_first() {
    let world = World::new(STUBBORN).start();
    world.until_processes(|found| found.len() == 4).await;
    let first = world.printed("up").await;
    for (run, signal) in [(0, Signal::TERM), (1, Signal::HUP)] {
        world.slot(|slot| slot.restarts == run && slot.ready).await;
        let service = world.until_processes(|found| found.len() == 4).await.pop_first().unwrap();
        rustix::process::kill_process(Pid::from_raw(parent(service)).unwrap(), signal).unwrap();
        world.slot(ended(run as usize + 1)).await;
    }
    let slot = world.slot(|slot| slot.restarts == 2 && slot.ready).await;
    assert!(slot.runs.iter().any(|run| run.instance == first));
    world.until_processes(|found| found.len() == 4).await;
    world.platform().stop(Duration::ZERO).await;
    assert_eq!(world.processes(), BTreeSet::new());
}

/// As on a disk that is full until then.
#[tokio::test]
async fn what_a_run_could_not_write_at_its_end_is_told_in_the_next_ones_log() {
    let world = World::new("read line < go; echo a; echo bc >&2; printf d; exit 3");
    let home = world.dir.path().join("data/home").join(format!("{}_web-0", lease().namespace()));
    std::fs::create_dir_all(&home).unwrap();
    let fifo = home.join("go");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let world = world.start();
    world.slot(|slot| slot.ready).await;
    let log = world.path("0.log").unwrap();
    std::fs::remove_file(&log).unwrap();
    std::fs::create_dir(log).unwrap();
    tokio::task::spawn_blocking(move || std::fs::write(fifo, "go\n").unwrap()).await.unwrap();
    let slot = world.slot(|slot| slot.restarts == 1 && slot.ready).await;
    let request = TailRequest {
        lease: lease(),
        replica: web(),
        instance: slot.newest().unwrap().instance.clone(),
        from: ReadFrom::Start,
        follow: true,
    };
    let mut tail = world.platform().tail(request).await.unwrap();
    let first = tokio::time::timeout(PATIENCE, tail.items.next()).await.unwrap().unwrap().unwrap();
    let TailItem::Gap(gap) = first else { panic!("{first:?}") };
    assert_eq!((gap.lines, gap.bytes, gap.exact), (3, 6, true));
    world.platform().stop(Duration::ZERO).await;
}

#[tokio::test]
async fn a_shim_that_speaks_nonsense_or_fails_is_let_go() {
    for (script, how) in [
        ("printf '\\377\\377\\377\\377' >&0; exec cat > /dev/null", "(exit status: 0)"),
        ("echo no more processes >&2; exit 3", "(exit status: 3)"),
        ("kill -9 $$", "(signal: 9 (SIGKILL))"),
    ] {
        let world = World::new("exit 0");
        let shim = world.dir.path().join("shim");
        std::fs::write(&shim, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&shim, PermissionsExt::from_mode(0o755)).unwrap();
        let config = LocalConfig { exe: shim, ..world.config() };
        let world =
            World { platform: Some(LocalPlatform::start(config, Notifier::start()).unwrap()), ..world };
        let told = |slot: &ReplicaView| {
            ended(2)(slot)
                && matches!(&slot.state, ReplicaState::Waiting { message, .. } if message.ends_with(how))
        };
        let slot = world.slot(told).await;
        assert_eq!(slot.runs[0].end.as_ref().unwrap().reason, "Error");
        world.platform().stop(Duration::ZERO).await;
    }
}
