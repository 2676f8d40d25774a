//! Who else still has a file system mounted: the mount namespaces of other processes (containers).
//!
//! A namespace that only a descriptor or a bind mount keeps alive has no process and is not found; the
//! end of the session is the sign that never errs.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::mountinfo::{Device, MountEntry, MountTable};

/// The source that marks the empty file system under a volume's mount.
pub const PLACEHOLDER_SOURCE: &str = "bucketvol";

/// How a mount of ours is told from the copies of it that other namespaces got by propagation or when
/// they were made. Such a copy is nobody's use of the volume: every service in a namespace of its own
/// has one, and it goes with ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// The file system below ours: the placeholder's, which is nowhere else, or the one that holds the
    /// directory.
    device: Device,
    is_placeholder: bool,
}

impl Anchor {
    /// What `entry` of `table`, our namespace's, stands on.
    pub fn of(table: &MountTable, entry: &MountEntry) -> Option<Self> {
        for below in table.ancestors(entry) {
            let is_placeholder = is_placeholder(below);
            if is_placeholder || below.mount_point != entry.mount_point {
                return Some(Self {
                    device: below.device,
                    is_placeholder,
                });
            }
        }
        None
    }

    /// Whether a namespace with this table uses the file system `device`, which we have at `path`.
    fn is_used_in(&self, table: &MountTable, device: Device, path: &Path) -> bool {
        table
            .entries()
            .iter()
            .filter(|entry| entry.device == device)
            .any(|entry| {
                let stands_on_anchor = table
                    .ancestors(entry)
                    .any(|below| below.device == self.device);
                let same_place = self.is_placeholder || ends_with(&entry.mount_point, path);
                !(stands_on_anchor && same_place)
            })
    }
}

/// Whether this is the read-only empty file system that lies under a volume's mount.
pub fn is_placeholder(entry: &MountEntry) -> bool {
    entry.fs_type == "tmpfs" && entry.source == PLACEHOLDER_SOURCE
}

/// Whether `path` is the absolute path `suffix`, perhaps below another directory.
fn ends_with(path: &Path, suffix: &Path) -> bool {
    path.ends_with(suffix.strip_prefix("/").unwrap_or(suffix))
}

/// Whether a mount namespace other than ours uses `device`, mounted by us at `path`.
///
/// Reads every namespace's table once. What cannot be looked at within `limit` counts as a use: keeping
/// a mount costs little, taking one away that a healed container looks at costs the container.
pub fn is_used_elsewhere(
    device: Device,
    path: &Path,
    anchor: &Anchor,
    limit: Duration,
) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    let mut seen: HashSet<OsString> = HashSet::new();
    seen.insert(std::fs::read_link("/proc/self/ns/mnt")?.into_os_string());
    for process in std::fs::read_dir("/proc")? {
        if Instant::now() >= deadline {
            tracing::warn!(%device, "other mount namespaces could not all be looked at in time");
            return Ok(true);
        }
        // Processes end while they are looked at: that, or not being allowed to look, is no answer.
        let Ok(process) = process else { continue };
        if !process
            .file_name()
            .as_encoded_bytes()
            .iter()
            .all(u8::is_ascii_digit)
        {
            continue;
        }
        let Ok(namespace) = std::fs::read_link(process.path().join("ns/mnt")) else {
            continue;
        };
        if seen.contains(namespace.as_os_str()) {
            continue;
        }
        let Ok(text) = std::fs::read(process.path().join("mountinfo")) else {
            continue;
        };
        seen.insert(namespace.into_os_string());
        if anchor.is_used_in(&MountTable::parse(&text), device, path) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/base/v";
    const HOST: &str = "\
1 0 8:1 / / rw shared:1 - ext4 /dev/sda rw
2 1 8:1 /base /base rw shared:1 - ext4 /dev/sda rw
3 2 0:50 / /base/v ro shared:2 - tmpfs bucketvol ro
4 3 0:51 / /base/v rw shared:3 - fuse.bucketvol s3://b rw
5 1 0:60 / /mnt/cli rw shared:4 - fuse.bucketvol s3://c rw
";

    fn used(place: &str, foreign: &str) -> bool {
        let host = MountTable::parse(HOST.as_bytes());
        let top = host.top_at(Path::new(place)).unwrap();
        let anchor = Anchor::of(&host, top).unwrap();
        anchor.is_used_in(
            &MountTable::parse(foreign.as_bytes()),
            top.device,
            Path::new(place),
        )
    }

    #[test]
    fn a_container_with_the_volume_uses_it() {
        let container = "1 0 0:70 / / rw - overlay overlay rw\n2 1 0:51 / /data rw master:3 - fuse.bucketvol s3://b rw\n";
        assert!(used(PATH, container));
    }

    #[test]
    fn a_healed_container_uses_the_mount_on_top_of_the_dead_one() {
        let container = "1 0 0:70 / / rw - overlay overlay rw\n2 1 0:49 / /data rw - fuse.bucketvol s3://b rw\n3 2 0:51 / /data rw - fuse.bucketvol s3://b rw\n";
        assert!(used(PATH, container));
    }

    #[test]
    fn a_service_whose_namespace_has_a_copy_does_not_use_it() {
        assert!(!used(PATH, HOST));
        assert!(!used("/mnt/cli", HOST));
    }

    #[test]
    fn a_monitor_that_sees_the_whole_host_below_a_directory_does_not_use_it() {
        let monitor = "1 0 0:70 / / rw - overlay overlay rw\n2 1 8:1 / /rootfs rw - ext4 /dev/sda rw\n3 2 0:50 / /rootfs/base/v ro - tmpfs bucketvol ro\n4 3 0:51 / /rootfs/base/v rw - fuse.bucketvol s3://b rw\n5 2 0:60 / /rootfs/mnt/cli rw - fuse.bucketvol s3://c rw\n";
        assert!(!used(PATH, monitor));
        assert!(!used("/mnt/cli", monitor));
    }

    #[test]
    fn a_bind_mount_in_another_namespace_on_the_same_disk_is_a_use() {
        let other = "1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:51 / /tmp/x rw - fuse.bucketvol s3://b rw\n3 1 0:60 / /tmp/y rw - fuse.bucketvol s3://c rw\n";
        assert!(used(PATH, other));
        assert!(used("/mnt/cli", other));
    }

    #[test]
    fn a_namespace_without_the_device_does_not_use_it() {
        assert!(!used(PATH, "1 0 0:70 / / rw - overlay overlay rw\n"));
    }
}
