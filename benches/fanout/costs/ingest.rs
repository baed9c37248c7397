//! Measures the path from a log file to the ring, which does not depend on the number of followers. Compares
//! it with programs that only read the bytes.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::task::noop_waker;
use leasemux::edge::admin::Exporter;
use leasemux::logs::chunk::Chunker;
use leasemux::logs::entry_name::NameStyle;
use leasemux::logs::memory_budget::MemoryBudget;
use leasemux::logs::representation::Representation;
use leasemux::logs::ring::{ReadOutcome, Ring};
use leasemux::model::id::{Instance, Replica};
use leasemux::model::limits::Limits;
use leasemux::model::line::OutputStream;
use leasemux::model::time::LogTime;
use leasemux::platform::cri::path::LogName;
use leasemux::platform::cri::{self, Record};
use leasemux::platform::log_files::{self, FollowMode, LogFiles};
use leasemux::platform::{ReadFrom, TailItem};
use leasemux::sys::dir_watch::Notifier;
use tokio::time::Instant as ReadAt;

use crate::Result;
use crate::server::SERVICE;

/// Repetitions; the median counts.
const REPS: usize = 5;

const MEGABYTE: usize = 1_000_000;

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(super) fn run(megabytes: u64, dir: Option<&Path>) -> Result<()> {
    let dir = dir.map_or_else(tempfile::tempdir, tempfile::tempdir_in)?;
    for line in [100, 4_096] {
        let file = dir.path().join(LogName::active(0).to_string());
        let bytes = write(&file, usize::try_from(megabytes)? * MEGABYTE, line)? as f64;
        println!("{megabytes} MB of CRI log in lines of {line} B, from the page cache");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let timed = |name: &str, work: &mut dyn FnMut() -> Result<()>| -> Result<()> {
            let mut times = Vec::new();
            for _ in 0..REPS {
                let begin = Instant::now();
                work()?;
                times.push(begin.elapsed().as_secs_f64());
            }
            times.sort_by(f64::total_cmp);
            let seconds = times.get(REPS / 2).copied().unwrap_or(f64::NAN);
            let lines = bytes / line as f64 / seconds / 1e6;
            println!("  {name:34} {:6.0} MB/s, {lines:6.2} million lines/s", bytes / seconds / 1e6);
            Ok(())
        };
        timed("wc -l", &mut || quiet(Command::new("wc").arg("-l").arg(&file)))?;
        timed("cat to a socket", &mut || cat(&file))?;
        timed("parse, chunk, frame, ring, one reader", &mut || runtime.block_on(ingest(dir.path())))?;
    }
    Ok(())
}

/// Writes a log of at least `bytes`. Returns its exact size.
fn write(path: &Path, bytes: usize, line: usize) -> Result<u64> {
    let mut out = std::io::BufWriter::new(File::create(path)?);
    let (mut record, mut written, mut time) = (Vec::new(), 0, LogTime::now());
    while written < bytes {
        record.clear();
        time = time.saturating_add_nanos(10_000);
        let content = vec![b'x'; line - 50];
        cri::write(
            &mut record,
            &Record { time, stream: OutputStream::Stdout, partial: false, lost: None, content: &content },
        );
        out.write_all(&record)?;
        written += record.len();
    }
    out.flush()?;
    Ok(written as u64)
}

fn quiet(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    status.success().then_some(()).ok_or_else(|| "the command failed".into())
}

/// Runs `cat` into a connection, and reads the other end as fast as possible.
fn cat(file: &Path) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let sending = TcpStream::connect(listener.local_addr()?)?;
    let (mut receiving, _) = listener.accept()?;
    let mut child = Command::new("cat").arg(file).stdout(OwnedFd::from(sending)).spawn()?;
    let mut buffer = vec![0; 256 * 1024];
    while receiving.read(&mut buffer)? > 0 {}
    child.wait()?;
    Ok(())
}

/// Runs the steps of the actor's loop, without waiting.
async fn ingest(dir: &Path) -> Result<()> {
    let log = LogFiles { dir: dir.to_owned(), run_number: 0, needed_start: None };
    let tail = log_files::open(&Notifier::start(), log, ReadFrom::Start, FollowMode::No).await?;
    let (replica, instance) =
        (Replica { service: SERVICE.parse()?, index: 0 }, Instance::new("bench", SERVICE, 0)?);
    let names = NameStyle::default();
    let (max_bytes, metrics) = (Limits::default().ring_max_bytes, Exporter::new()?.metrics);
    let ring = Ring::new(replica, names, max_bytes, &metrics, &MemoryBudget::default());
    ring.begin_log(&instance, tail.start);
    let mut reader = ring.reader();
    let (mut chunker, mut chunks) = (Chunker::new(tail.start), Vec::new());
    let (mut items, mut read, mut taken) = (tail.items, 0, 0);
    let waker = noop_waker();
    while let Some(item) = items.next().await {
        let TailItem::Lines(batch) = item? else { return Err("the log has a gap".into()) };
        read += batch.data.len() as u64;
        chunker.push(&batch, &mut chunks);
        chunks.extend(chunker.flush());
        ring.push_lines(&instance, &mut chunks, ReadAt::now());
        while let Poll::Ready(next) =
            reader.poll_read(usize::MAX, Representation::Plain, &mut Context::from_waker(&waker))
        {
            let ReadOutcome::Entries { entries, .. } = next else {
                return Err("the reader fell behind".into());
            };
            taken += entries.iter().flatten().map(|entry| entry.size().1).sum::<u64>();
        }
    }
    if read == taken { Ok(()) } else { Err(format!("{taken} of {read} bytes arrived").into()) }
}
