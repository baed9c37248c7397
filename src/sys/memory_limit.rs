//! The memory that this process may use: the lowest limit of its control groups and the machine.

use std::fs;
use std::path::Path;

/// Returns the memory that this process may use, in bytes; `None` if `/proc` cannot be read.
pub(crate) fn memory_limit() -> Option<usize> {
    let limit = limit_below(Path::new("/"))?;
    Some(usize::try_from(limit).unwrap_or(usize::MAX))
}

fn limit_below(root: &Path) -> Option<u64> {
    let machine = total(&fs::read_to_string(root.join("proc/meminfo")).ok()?);
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    machine.into_iter().chain(groups.lines().filter_map(|group| group_limit(root, group))).min()
}

/// Returns the lowest limit of a group and of those above it. `line` is one of `/proc/self/cgroup`:
/// hierarchy, controllers and path. In a container without a cgroup namespace, the path is not below the
/// mounted directory, which is then the group itself.
fn group_limit(root: &Path, line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (dir, file) = match fields.next()? {
        "" => ("sys/fs/cgroup", "memory.max"),
        controllers if controllers.split(',').any(|name| name == "memory") => {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
        }
        _ => return None,
    };
    let path = Path::new(fields.next()?.trim_start_matches('/'));
    let limits = path.ancestors().filter_map(|group| {
        // `max` is no limit.
        fs::read_to_string(root.join(dir).join(group).join(file)).ok()?.trim_end().parse().ok()
    });
    limits.min()
}

/// Returns the memory of the machine.
fn total(meminfo: &str) -> Option<u64> {
    let field = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    field.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()?.checked_mul(1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = "MemTotal:       24000000 kB\nMemFree:        1 kB\n";

    fn limit(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        limit_below(root.path())
    }

    #[test]
    fn lowest_limit_of_groups_and_machine_counts() {
        let machine = ("proc/meminfo", MACHINE);
        let v2 = ("proc/self/cgroup", "0::/pods/gateway\n");
        assert_eq!(limit(&[]), None);
        assert_eq!(limit(&[machine]), Some(24_576_000_000));
        assert_eq!(
            limit(&[machine, v2, ("sys/fs/cgroup/pods/gateway/memory.max", "max\n")]),
            Some(24_576_000_000)
        );
        let of_parent = [
            machine,
            v2,
            ("sys/fs/cgroup/pods/gateway/memory.max", "max\n"),
            ("sys/fs/cgroup/pods/memory.max", "2147483648\n"),
        ];
        assert_eq!(limit(&of_parent), Some(2 << 30));
        // In a container, the mounted directory is the group.
        assert_eq!(limit(&[machine, v2, ("sys/fs/cgroup/memory.max", "1048576\n")]), Some(1 << 20));
        let v1 = ("proc/self/cgroup", "3:cpu,cpuacct:/a\n2:memory:/docker/abc\n0::/\n");
        let file = "sys/fs/cgroup/memory/memory.limit_in_bytes";
        assert_eq!(limit(&[machine, v1, (file, "536870912\n")]), Some(512 << 20));
        assert_eq!(limit(&[machine, v1, (file, "9223372036854771712\n")]), Some(24_576_000_000));
    }

    #[test]
    fn limit_of_this_process_is_known() {
        assert!(memory_limit().unwrap() > 1 << 20);
    }
}
