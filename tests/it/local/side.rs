//! The local platform on a runtime of its own.

use leasemux::serve::SideRuntime;

use super::*;

#[tokio::test]
async fn busy_main_runtime_does_not_block_a_services_output() {
    const BYTES: usize = 1_000_000;
    let side = SideRuntime::start().unwrap();
    let script = format!(
        "head -c {BYTES} /dev/zero | tr '\\0' x; echo; touch \"$LEASEMUX_TEST_MARK/done\"; echo end; exec sleep 1000"
    );
    let world = World::new(&script);
    let done = world.dir.path().join("done");
    let world = side.within(|| world.start());
    // This thread is the only one of the main runtime. The output is many times what a pipe holds.
    let deadline = Instant::now() + PATIENCE;
    while !done.exists() {
        assert!(Instant::now() < deadline, "the service waits for its output to be read");
        std::thread::sleep(LOOK);
    }
    let instance = world.printed("end").await;
    assert!(world.log(&instance, false).await == format!("{}\nend\n", "x".repeat(BYTES)));
}
