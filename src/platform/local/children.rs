//! The children of this process, found through `/proc`.

use std::io;

use rustix::process::{Pid, Signal};

/// Kills every child of this process. Their children become ours by that, and are killed in the next round: parents die before
/// children, so nobody is there to start anew what was killed; and a child's number is not given away before we have waited for
/// it, so no stranger is hit.
pub(super) fn kill_children() -> io::Result<()> {
    let me = rustix::process::getpid();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        if parent(pid) == Some(me) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
    Ok(())
}

/// The parent of a process; `None` if it is gone.
fn parent(pid: Pid) -> Option<Pid> {
    parse_parent(&std::fs::read(format!("/proc/{}/stat", pid.as_raw_pid())).ok()?)
}

/// The fourth field of `/proc/pid/stat` (proc(5)); the second, a name in parentheses, may hold anything.
fn parse_parent(stat: &[u8]) -> Option<Pid> {
    let name_end = memchr::memrchr(b')', stat)?;
    let rest = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok().and_then(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_read_whatever_the_name() {
        let check = |stat: &str, expected: Option<i32>| {
            assert_eq!(parse_parent(stat.as_bytes()), expected.and_then(Pid::from_raw), "{stat:?}");
        };
        check("12 (sh) S 7 12 12 0 -1", Some(7));
        check("12 (a) S 1 (b) c) Z 31 12", Some(31));
        check("1 (init) S 0 1 1", None);
        check("12 (sh", None);
        check("", None);
    }

    #[test]
    fn ones_own_parent_is_found() {
        assert_eq!(parent(rustix::process::getpid()), rustix::process::getppid());
    }
}
