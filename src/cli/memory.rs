//! How much of the memory that is asked for can be had: a control group may allow less.

use std::path::{Path, PathBuf};

use crate::config::size::format_size;

/// What the process needs beside its cache, whatever it does.
const BESIDE: u64 = 64 << 20;

/// The least that a cache is of use with.
const LEAST: u64 = 8 << 20;

/// Bytes for the block cache: what was `wanted`, or what the process's control groups leave of that.
pub(super) fn budget(wanted: u64) -> u64 {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(limit) = limit(Path::new("/sys/fs/cgroup"), &own) else {
        return wanted;
    };
    let budget = fitting(wanted, limit);
    if budget < wanted {
        tracing::warn!(
            "the block cache has {} of memory, not {}: the control group allows {} to all of the process",
            format_size(budget),
            format_size(wanted),
            format_size(limit),
        );
    }
    budget
}

/// What a process that may have `limit` bytes can give to its cache.
fn fitting(wanted: u64, limit: u64) -> u64 {
    let left = limit.saturating_sub(BESIDE).max(limit / 4);
    wanted.min(left.max(LEAST))
}

/// Bytes that the process may have by the groups that `own` names (as in /proc/self/cgroup), those above them included;
/// `None`: as many as the host has. `root` is where control groups are mounted, of the first or the second version.
fn limit(root: &Path, own: &str) -> Option<u64> {
    let groups = own.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        if controllers.is_empty() {
            Some((root.to_owned(), path, "memory.max"))
        } else if controllers.split(',').any(|name| name == "memory") {
            Some((root.join("memory"), path, "memory.limit_in_bytes"))
        } else {
            None
        }
    });
    let limits = groups.flat_map(|(mount, path, file)| {
        let group = mount.join(path.trim_start_matches('/'));
        let above = group
            .ancestors()
            .take_while(|above| above.starts_with(&mount));
        // In a container the group is the mount's root, whatever it is called outside: paths that are not there are
        // passed over.
        let all: Vec<PathBuf> = above.map(|above| above.join(file)).collect();
        all.into_iter().filter_map(|file| {
            let text = std::fs::read_to_string(file).ok()?;
            // "max", and in the first version a number near 2^63: no limit.
            text.trim().parse().ok().filter(|bytes| *bytes < 1 << 60)
        })
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_cache_takes_what_its_group_leaves() {
        for (wanted, limit, expected) in [
            (256, 1024, 256),
            (256, 320, 256),
            (256, 200, 136),
            (256, 80, 20),
            (256, 16, 8),
            (32, 200, 32),
        ] {
            let found = fitting(wanted * MIB, limit * MIB);
            assert_eq!(found, expected * MIB, "{wanted} MiB, {limit} MiB allowed");
        }
    }

    #[test]
    fn the_lowest_limit_of_all_groups_above_holds() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let limit = |own: &str| limit(root.path(), own);
        assert_eq!(limit("0::/system.slice/a.service\n"), None);
        write("system.slice/memory.max", "500\n");
        write("system.slice/a.service/memory.max", "max\n");
        assert_eq!(limit("0::/system.slice/a.service\n"), Some(500));
        write("system.slice/a.service/memory.max", "300\n");
        assert_eq!(limit("0::/system.slice/a.service\n"), Some(300));
        write("memory/docker/x/memory.limit_in_bytes", "400\n");
        write(
            "memory/docker/memory.limit_in_bytes",
            "9223372036854771712\n",
        );
        assert_eq!(limit("4:memory:/docker/x\n1:cpu:/docker/x\n"), Some(400));
        assert_eq!(limit("4:cpu,memory:/docker\n"), None);
        // What a container sees of its own: the path is the host's, the mount its own.
        write("memory/memory.limit_in_bytes", "200\n");
        assert_eq!(limit("4:memory:/docker/of/the/host\n"), Some(200));
        assert_eq!(limit("nonsense\n::\n4:memory\n"), None);
    }
}
