//! Damage to a gateway, its shims and its logs by other processes.

use super::*;

/// Ignored signals are inherited, for example from `nohup` or a script's `&`.
#[tokio::test]
async fn services_do_not_inherit_ignored_signals() {
    let fixture = Fixture::of_command("grep, SigIgn, /proc/self/status");
    let mut gateway = gateway(&fixture, &["env", "--ignore-signal=HUP,INT,QUIT,TERM,CHLD"]);
    let log = |run: u32| fixture.file(&format!("{run}.log")).filter(|log| log.ends_with('\n'));
    // A third run means that the ends of two were noticed.
    let deadline = Instant::now() + TIMEOUT;
    while log(2).is_none() {
        assert!(Instant::now() < deadline, "{:?}", [log(0), log(1), log(2)]);
        tokio::time::sleep(POLL_INTERVAL).await;
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
async fn signalled_shim_ends_its_service_first() {
    let fixture = Fixture::new(STUBBORN).start();
    fixture.until_processes(|found| found.len() == 4).await;
    let first = fixture.printed("up").await;
    for (run, signal) in [(0, Signal::TERM), (1, Signal::HUP)] {
        fixture.slot(|slot| slot.restarts == run && slot.ready).await;
        let service = fixture.until_processes(|found| found.len() == 4).await.pop_first().unwrap();
        rustix::process::kill_process(Pid::from_raw(parent(service)).unwrap(), signal).unwrap();
        fixture.slot(ended(run as usize + 1)).await;
    }
    let slot = fixture.slot(|slot| slot.restarts == 2 && slot.ready).await;
    assert!(slot.runs.iter().any(|run| run.instance == first));
    fixture.until_processes(|found| found.len() == 4).await;
    fixture.platform().stop(Duration::ZERO).await;
    assert_eq!(fixture.processes(), BTreeSet::new());
}

/// Simulates a disk that is full until the run ends.
#[tokio::test]
async fn loss_at_run_end_is_reported_in_next_log() {
    let fixture = Fixture::new("read line < go; echo a; echo bc >&2; printf d; exit 3");
    let pipe = fixture.create_pipe();
    let fixture = fixture.start();
    fixture.slot(|slot| slot.ready).await;
    let log = fixture.path("0.log").unwrap();
    std::fs::remove_file(&log).unwrap();
    std::fs::create_dir(log).unwrap();
    tokio::task::spawn_blocking(move || std::fs::write(pipe, "go\n").unwrap()).await.unwrap();
    let slot = fixture.slot(|slot| slot.restarts == 1 && slot.ready).await;
    assert_eq!(fixture.first_gap(&slot).await, (3, 6, true));
    fixture.platform().stop(Duration::ZERO).await;
}

#[tokio::test]
async fn broken_or_failing_shim_is_replaced() {
    for (script, how) in [
        ("printf '\\377\\n' >&0; exec cat > /dev/null", "(exit status: 0)"),
        ("echo no more processes >&2; exit 3", "(exit status: 3)"),
        ("kill -9 $$", "(signal: 9 (SIGKILL))"),
    ] {
        let fixture = Fixture::new("exit 0");
        let shim = fixture.dir.path().join("shim");
        std::fs::write(&shim, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&shim, PermissionsExt::from_mode(0o755)).unwrap();
        let config = LocalConfig { exe: shim, ..fixture.config() };
        let fixture = fixture.start_with(config);
        let is_explained = |slot: &ReplicaView| {
            ended(2)(slot)
                && matches!(&slot.state, ReplicaState::Waiting { message, .. } if message.ends_with(how))
        };
        let slot = fixture.slot(is_explained).await;
        assert_eq!(slot.runs[0].end.as_ref().unwrap().reason, "Error");
        fixture.platform().stop(Duration::ZERO).await;
    }
}

/// A service manager restarts a killed gateway at once, and services have a grace period.
#[tokio::test]
async fn next_gateway_waits_for_processes_of_killed_one() {
    let fixture = Fixture::new(STUBBORN);
    let mut gateway = gateway(&fixture, &[]);
    let killed = fixture.until_processes(|found| found.len() == 4).await;
    fixture.until_file("0.log", |log| log.ends_with(" stdout F up\n")).await;
    gateway.kill().unwrap();
    gateway.wait().unwrap();
    let fixture = fixture.start();
    fixture.slot(|slot| slot.ready).await;
    assert!(fixture.processes().is_disjoint(&killed), "{killed:?}");
    fixture.platform().stop(Duration::ZERO).await;
}

#[tokio::test]
async fn run_that_waits_for_a_killed_gateway_can_be_stopped() {
    let fixture = Fixture::new(STUBBORN);
    let mut gateway = gateway(&fixture, &[]);
    fixture.until_file("0.log", |log| log.ends_with(" stdout F up\n")).await;
    gateway.kill().unwrap();
    gateway.wait().unwrap();
    let fixture = fixture.start();
    fixture.platform().stop(10 * TIMEOUT).await;
    let slot = fixture.slot(|slot| slot.state == ReplicaState::Terminated).await;
    assert!(slot.restarts <= 1, "{slot:?}");
    fixture.until_processes(BTreeSet::is_empty).await;
}
