//! The local platform on a separate runtime.

use leasemux::serve::SideRuntime;

use super::*;

#[tokio::test]
async fn busy_main_runtime_does_not_block_service_output() {
    const BYTES: usize = 1_000_000;
    let side = SideRuntime::start().unwrap();
    let script = format!(
        "head -c {BYTES} /dev/zero | tr '\\0' x; echo; touch \"$LEASEMUX_TEST_MARK/done\"; echo end; exec sleep 1000"
    );
    let fixture = Fixture::new(&script);
    let done = fixture.dir.path().join("done");
    let fixture = side.within(|| fixture.start());
    // This blocks the only thread of the main runtime. The output exceeds the capacity of a pipe many times.
    let deadline = Instant::now() + TIMEOUT;
    while !done.exists() {
        assert!(Instant::now() < deadline, "the service waits for its output to be read");
        std::thread::sleep(POLL_INTERVAL);
    }
    let instance = fixture.printed("end").await;
    assert!(fixture.log(&instance, false).await == format!("{}\nend\n", "x".repeat(BYTES)));
}
