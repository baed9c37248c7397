//! The log files of a node: runtimes write them; its kubelet renames, compresses and removes them, in steps
//! between which readers run.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::clock;
use super::disk::Disk;
use crate::kube::cluster::{Cluster, RunKey};

/// Nanoseconds of a second: the first suffix of a rotated file, in the second before the simulation begins.
const SUFFIX: &str = "20261125-005959";

/// The files of all runs.
pub(super) struct NodeFiles {
    pub(super) disk: Arc<Disk>,
    root: PathBuf,
    namespace: String,
    /// Files that a kubelet keeps of a run.
    kept: usize,
    rotations: u32,
    runs: BTreeMap<RunKey, RunFiles>,
}

struct RunFiles {
    dir: PathBuf,
    /// Oldest first. The last one is written to.
    files: Vec<LogFile>,
    /// Lines that were written.
    written: usize,
    /// The end of the last line, not written yet.
    held_back: Vec<u8>,
    steps: VecDeque<Step>,
    /// Whole lines that a crash has cut off. The files do not show that they are missing.
    cut_off: Range<usize>,
}

struct LogFile {
    name: String,
    /// Lines in it, damaged ones too.
    lines: Range<usize>,
}

/// A step of a rotation.
#[derive(Clone, Copy, Debug)]
enum Step {
    RemoveExcess,
    /// Writes the compressed copy of the newest file that has none.
    Compress,
    RemoveCompressed,
    Rename,
    /// The runtime opens the new file.
    Reopen,
}

/// What a crash of the machine does to the end of a file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Damage {
    None,
    /// The end was not written to the disk.
    CutActive,
    /// The same, of a compressed file.
    CutCompressed,
    /// A compressed file is empty.
    EmptyCompressed,
    /// Blocks were allocated, and not written.
    Zeros,
}

// === impl NodeFiles ===

impl NodeFiles {
    pub(super) fn new(root: &Path, namespace: String, kept: usize) -> Self {
        let (root, disk) = (root.to_owned(), Arc::default());
        Self { disk, root, namespace, kept, rotations: 0, runs: BTreeMap::new() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Creates the log of a run. Kubelets keep the logs of one run before it.
    pub(super) fn begin(&mut self, pod: &str, run: &RunKey) {
        let dir = self.root.join(format!("{}_{pod}_{}", self.namespace, run.0)).join(&run.1);
        fs::create_dir_all(&dir).unwrap();
        let name = format!("{}.log", run.2);
        File::create(dir.join(&name)).unwrap();
        let files = vec![LogFile { name, lines: 0..0 }];
        self.disk.changed(&dir);
        let (held_back, steps) = (Vec::new(), VecDeque::new());
        let run_files = RunFiles { dir, files, written: 0, held_back, steps, cut_off: 0..0 };
        self.runs.insert(run.clone(), run_files);
        let is_old = |key: &&RunKey| (&key.0, &key.1) == (&run.0, &run.1) && key.2 + 1 < run.2;
        let old: Vec<RunKey> = self.runs.keys().filter(is_old).cloned().collect();
        for key in old {
            self.remove_run(&key);
        }
    }

    fn remove_run(&mut self, key: &RunKey) {
        self.halt(key);
        let Some(run) = self.runs.get_mut(key) else { return };
        run.remove(run.files.len());
        self.disk.changed(&run.dir);
    }

    /// Removes the logs of all runs of a pod.
    pub(super) fn remove_pod(&mut self, uid: &str) {
        let of_pod: Vec<RunKey> = self.runs.keys().filter(|key| key.0 == uid).cloned().collect();
        for key in of_pod {
            self.remove_run(&key);
        }
    }

    /// Gives up what is not written yet, and the remaining steps.
    pub(super) fn halt(&mut self, key: &RunKey) {
        if let Some(run) = self.runs.get_mut(key) {
            run.steps.clear();
            run.held_back.clear();
        }
    }

    /// The first line of a run that can be read, if any file of it is left.
    pub(super) fn oldest(&self, run: &RunKey) -> Option<usize> {
        Some(self.runs.get(run)?.files.first()?.lines.start)
    }

    /// Lines of a run that were cut off, and of which the files have no trace.
    pub(super) fn cut_off(&self, run: &RunKey) -> Range<usize> {
        self.runs.get(run).map_or(0..0, |files| files.cut_off.clone())
    }

    pub(super) fn has(&self, run: &RunKey) -> bool {
        self.runs.contains_key(run)
    }

    /// Writes the lines that a container has printed, up to line `end`. Sometimes the last bytes follow
    /// later.
    pub(super) fn write(&mut self, cluster: &Cluster, run: &RunKey, end: usize, random: &mut StdRng) {
        self.flush(run);
        let Some(files) = self.runs.get_mut(run) else { return };
        let mut bytes = Vec::new();
        for index in files.written..end {
            push_record(&mut bytes, &cluster.stamped_line(run, index), index);
        }
        if random.random_range(0..4) == 0 {
            let kept = bytes.len() - random.random_range(0..200).min(bytes.len());
            files.held_back = bytes.split_off(kept);
        }
        files.written = end;
        files.append(&bytes);
        files.files.last_mut().expect("a run has a file").lines.end = end;
        self.disk.changed(&files.dir);
    }

    /// Writes the bytes that were held back.
    fn flush(&mut self, run: &RunKey) {
        let Some(files) = self.runs.get_mut(run) else { return };
        let bytes = std::mem::take(&mut files.held_back);
        if !bytes.is_empty() {
            files.append(&bytes);
            self.disk.changed(&files.dir);
        }
    }

    /// Begins a rotation.
    pub(super) fn rotate(&mut self, run: &RunKey, random: &mut StdRng) {
        let Some(files) = self.runs.get_mut(run) else { return };
        files.steps.push_back(Step::RemoveExcess);
        if random.random() {
            files.steps.extend([Step::Compress, Step::RemoveCompressed]);
        }
        files.steps.extend([Step::Rename, Step::Reopen]);
    }

    /// Removes the oldest files.
    pub(super) fn remove_oldest(&mut self, run: &RunKey, most: usize) {
        let Some(files) = self.runs.get_mut(run) else { return };
        let count = most.min(files.files.len().saturating_sub(2));
        files.remove(count);
        self.disk.changed(&files.dir);
    }

    /// Adds text that is no record.
    pub(super) fn add_garbage(&mut self, run: &RunKey) {
        self.flush(run);
        let Some(files) = self.runs.get_mut(run) else { return };
        files.append(b"\0\0garbage\n");
        self.disk.changed(&files.dir);
    }

    /// Completes one step of each log. Returns the runs whose log was reopened.
    pub(super) fn step(&mut self) -> Vec<RunKey> {
        let keys: Vec<RunKey> = self.runs.keys().cloned().collect();
        keys.into_iter().filter(|key| self.step_one(key)).collect()
    }

    /// Completes all steps of a log. Returns whether it was reopened.
    pub(super) fn settle(&mut self, run: &RunKey) -> bool {
        let mut was_reopened = false;
        while self.runs.get(run).is_some_and(|files| !files.steps.is_empty() || !files.held_back.is_empty()) {
            was_reopened |= self.step_one(run);
        }
        was_reopened
    }

    /// Returns whether the log was reopened.
    fn step_one(&mut self, run: &RunKey) -> bool {
        self.flush(run);
        let (kept, rotations) = (self.kept, self.rotations);
        let Some(files) = self.runs.get_mut(run) else { return false };
        files.skip_empty_rotation();
        let Some(step) = files.steps.pop_front() else { return false };
        clock::record(format_args!("{} run {}: {step:?}", run.0, run.2));
        match step {
            Step::RemoveExcess => {
                let count = (files.files.len() + 1).saturating_sub(kept).min(files.files.len() - 1);
                files.remove(count);
                // docs/KUBERNETES.md, "Known limits": no file shows that there were others. The next step is
                // microseconds away.
                if count > 0
                    && files.files.len() == 1
                    && let Some(at) = files.steps.iter().position(|step| matches!(step, Step::Rename))
                {
                    files.steps.drain(..=at);
                    self.rotations += 1;
                    files.rename(&format!("{}.log.{SUFFIX}.{rotations:09}", run.2));
                }
            }
            Step::Compress => files.compress(),
            Step::RemoveCompressed => files.remove_compressed(),
            Step::Rename => {
                self.rotations += 1;
                files.rename(&format!("{}.log.{SUFFIX}.{rotations:09}", run.2));
            }
            Step::Reopen => {
                let name = format!("{}.log", run.2);
                File::create(files.dir.join(&name)).unwrap();
                files.files.push(LogFile { name, lines: files.written..files.written });
            }
        }
        self.disk.changed(&files.dir);
        matches!(step, Step::Reopen)
    }

    /// Damages the files of a run that the crash of the machine has ended.
    pub(super) fn damage(&mut self, run: &RunKey, damage: Damage, random: &mut StdRng) {
        let Some(files) = self.runs.get_mut(run) else { return };
        let active = files.files.last().expect("a run has a file");
        let compressed = files.files.iter().rfind(|file| is_compressed(&file.name));
        let path = |file: &LogFile| files.dir.join(&file.name);
        let cut = |file: &LogFile, most: u64| {
            let file = File::options().write(true).open(path(file)).unwrap();
            let length = file.metadata().unwrap().len();
            file.set_len(length.saturating_sub(most)).unwrap();
        };
        match damage {
            Damage::None => {}
            Damage::CutActive => cut(active, random.random_range(1..4_000)),
            Damage::CutCompressed => {
                if let Some(file) = compressed {
                    cut(file, random.random_range(1..400));
                }
            }
            Damage::EmptyCompressed => {
                if let Some(file) = compressed {
                    cut(file, u64::MAX);
                }
            }
            Damage::Zeros => {
                let most = random.random_range(1..300);
                cut(active, most);
                let mut file = File::options().append(true).open(path(active)).unwrap();
                file.write_all(&vec![0; usize::try_from(most).unwrap()]).unwrap();
            }
        }
        files.note_cut_off();
        self.disk.changed(&files.dir);
    }
}

// === impl RunFiles ===

impl RunFiles {
    fn path(&self, index: usize) -> PathBuf {
        self.dir.join(&self.files[index].name)
    }

    /// Writes to the newest file, under whatever name.
    fn append(&self, bytes: &[u8]) {
        let Some(newest) = self.files.len().checked_sub(1) else { return };
        let mut file = File::options().append(true).open(self.path(newest)).unwrap();
        file.write_all(bytes).unwrap();
    }

    /// Drops the next rotation if it has not begun and the log has no line since the last one: kubelets
    /// rotate large files only.
    fn skip_empty_rotation(&mut self) {
        let is_empty = self.files.last().is_none_or(|file| file.lines.is_empty());
        if is_empty && matches!(self.steps.front(), Some(Step::RemoveExcess)) {
            let end = self.steps.iter().position(|step| matches!(step, Step::Reopen));
            self.steps.drain(..=end.expect("a rotation ends with a new file"));
        }
    }

    /// Notes the lines that the newest file has lost, if it ends after a whole line. Anything else at its end
    /// shows the loss.
    fn note_cut_off(&mut self) {
        let Some(newest) = self.files.len().checked_sub(1) else { return };
        let content = fs::read(self.path(newest)).unwrap();
        if content.last().is_some_and(|last| *last != b'\n') {
            return;
        }
        let tags =
            content.split(|byte| *byte == b'\n').map(|record| record.split(|byte| *byte == b' ').nth(2));
        let tags: Vec<&[u8]> = tags.flatten().collect();
        if tags.last() == Some(&&b"P"[..]) {
            // Looks like a line that its container has not ended. Cut further, it does not.
            let file = File::options().write(true).open(self.path(newest)).unwrap();
            file.set_len(content.len() as u64 - 1).unwrap();
            return;
        }
        let whole = tags.iter().filter(|tag| **tag == b"F").count();
        let lines = &self.files[newest].lines;
        self.cut_off = lines.start + whole..lines.end;
    }

    fn remove(&mut self, count: usize) {
        for file in self.files.drain(..count) {
            // Both may exist during a compression.
            for name in [format!("{}.gz", file.name), file.name] {
                if let Err(error) = fs::remove_file(self.dir.join(name)) {
                    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
                }
            }
        }
    }

    /// The newest rotated file without a compressed copy.
    fn uncompressed(&self) -> Option<usize> {
        let rotated = self.files.len().checked_sub(1)?;
        (0..rotated).rfind(|index| !is_compressed(&self.files[*index].name))
    }

    fn compress(&self) {
        let Some(index) = self.uncompressed() else { return };
        let content = fs::read(self.path(index)).unwrap();
        let mut copy = GzEncoder::new(Vec::new(), Compression::fast());
        copy.write_all(&content).unwrap();
        let name = format!("{}.gz", self.files[index].name);
        fs::write(self.dir.join(name), copy.finish().unwrap()).unwrap();
    }

    fn remove_compressed(&mut self) {
        let Some(index) = self.uncompressed() else { return };
        if !self.dir.join(format!("{}.gz", self.files[index].name)).exists() {
            return;
        }
        fs::remove_file(self.path(index)).unwrap();
        self.files[index].name.push_str(".gz");
    }

    fn rename(&mut self, name: &str) {
        let Some(newest) = self.files.len().checked_sub(1) else { return };
        fs::rename(self.path(newest), self.dir.join(name)).unwrap();
        name.clone_into(&mut self.files[newest].name);
    }
}

fn is_compressed(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "gz")
}

/// Adds the record of a line, or two of its pieces.
fn push_record(bytes: &mut Vec<u8>, (time, text): &(String, String), index: usize) {
    let stream = if index.is_multiple_of(5) { "stderr" } else { "stdout" };
    let mut rest = text.as_str();
    if index.is_multiple_of(7) {
        let (piece, end) = text.split_at(text.len() / 2);
        writeln!(bytes, "{time} {stream} P {piece}").unwrap();
        rest = end;
    }
    writeln!(bytes, "{time} {stream} F {rest}").unwrap();
}
