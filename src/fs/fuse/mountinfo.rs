//! What is mounted where: `/proc/PID/mountinfo`, parsed.
//!
//! Nothing here touches a mount point: a stat of a dead or busy FUSE mount fails or hangs, a line of
//! mountinfo never does. Paths are matched by their bytes, so they have to be canonical.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The device number of a mounted file system; the major one of FUSE and tmpfs is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number; for FUSE also the connection's name below `/sys/fs/fuse/connections`.
    pub minor: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Names the mount within its namespace; used again after an unmount.
    pub id: u32,
    /// The mount this one is mounted on; not in the table when it lies outside the process's root.
    pub parent: u32,
    /// The mounted file system.
    pub device: Device,
    /// Which directory of the file system is the mount's root.
    pub root: PathBuf,
    /// Where it is mounted, as the process sees it.
    pub mount_point: PathBuf,
    /// The mount shares what is mounted below it with its peer group.
    pub shared: bool,
    /// The type with its subtype, `fuse.bucketvol`.
    pub fs_type: String,
    /// What it was mounted from.
    pub source: OsString,
}

/// All mounts of a namespace, as one process sees them.
#[derive(Debug, Clone, Default)]
pub struct MountTable {
    entries: Vec<MountEntry>,
    by_id: HashMap<u32, usize>,
}

impl MountTable {
    /// The mounts of this process.
    pub fn of_self() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read("/proc/self/mountinfo")?))
    }

    /// Parses mountinfo. A line that is not understood is left out: one odd mount of somebody else must
    /// not keep ours from being found.
    pub fn parse(text: &[u8]) -> Self {
        let entries: Vec<_> = text.split(|&b| b == b'\n').filter_map(parse_line).collect();
        let by_id = entries
            .iter()
            .enumerate()
            .map(|(index, entry)| (entry.id, index))
            .collect();
        Self { entries, by_id }
    }

    /// Every mount, in the kernel's order, which says nothing.
    pub fn entries(&self) -> &[MountEntry] {
        &self.entries
    }

    /// The mounts at exactly `path` that a walk from the root comes through, the lowest first: the last
    /// one is what a program sees there. A mount hidden by one of a parent directory is none of them.
    pub fn stack_at(&self, path: &Path) -> Vec<&MountEntry> {
        let mut stack = Vec::new();
        let mut current = self.root_parent();
        for ancestor in path.ancestors().collect::<Vec<_>>().into_iter().rev() {
            while let Some(next) = self.child_at(current, ancestor) {
                current = next.id;
                if ancestor == path {
                    stack.push(next);
                }
                if stack.len() > self.entries.len() {
                    return stack;
                }
            }
        }
        stack
    }

    /// The mount a program sees at exactly `path`.
    pub fn top_at(&self, path: &Path) -> Option<&MountEntry> {
        self.stack_at(path).pop()
    }

    /// What `entry` is mounted on, and so on down to the root.
    pub fn ancestors<'a>(&'a self, entry: &'a MountEntry) -> impl Iterator<Item = &'a MountEntry> {
        // A table that was read while mounts came and went may hold a cycle: bounded by its length.
        std::iter::successors(self.parent_of(entry), |entry| self.parent_of(entry))
            .take(self.entries.len())
    }

    fn parent_of(&self, entry: &MountEntry) -> Option<&MountEntry> {
        let parent = &self.entries[*self.by_id.get(&entry.parent)?];
        (parent.id != entry.id).then_some(parent)
    }

    /// The id that the lowest mount at `/` names as its parent; where the root is no mount point (chroot),
    /// the mount it lies in.
    fn root_parent(&self) -> u32 {
        let mut outermost = self
            .entries
            .iter()
            .filter(|entry| self.parent_of(entry).is_none());
        let first = outermost.clone().next();
        outermost
            .find(|entry| entry.mount_point == Path::new("/"))
            .or(first)
            .map_or(0, |entry| entry.parent)
    }

    fn child_at(&self, parent: u32, path: &Path) -> Option<&MountEntry> {
        self.entries
            .iter()
            .rev()
            .find(|entry| entry.parent == parent && entry.id != parent && entry.mount_point == path)
    }
}

/// `36 35 98:0 /root /mount/point rw,noatime shared:1 master:2 - type source super,options`
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&b| b == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = fields.next()?;
    let colon = device.iter().position(|&b| b == b':')?;
    let device = Device {
        major: number(&device[..colon])?,
        minor: number(&device[colon + 1..])?,
    };
    let root = PathBuf::from(unescape(fields.next()?));
    let mount_point = PathBuf::from(unescape(fields.next()?));
    let _mount_options = fields.next()?;
    let mut shared = false;
    // Any number of optional fields, those of later kernels too, up to a single hyphen.
    loop {
        match fields.next()? {
            b"-" => break,
            field => shared |= field.starts_with(b"shared:"),
        }
    }
    let fs_type = String::from_utf8_lossy(unescape(fields.next()?).as_bytes()).into_owned();
    let source = unescape(fields.next()?);
    Some(MountEntry {
        id,
        parent,
        device,
        root,
        mount_point,
        shared,
        fs_type,
        source,
    })
}

fn number(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Undoes the kernel's octal escapes (`\040` for a space). What is no escape stays as it is.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOST: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
40 27 254:0 /var/lib/b /var/lib/b rw shared:1 - ext4 /dev/vda rw
41 40 0:50 / /var/lib/b/v ro,nosuid shared:5 - tmpfs bucketvol ro,size=4k
42 27 0:50 / /var/lib/b/v ro,nosuid shared:5 - tmpfs bucketvol ro,size=4k
44 41 0:51 / /var/lib/b/v rw shared:7 master:3 propagate_from:2 unbindable - fuse.bucketvol s3://b/a\\040b rw,user_id=0
43 44 0:52 / /var/lib/b/v rw - fuse.bucketvol s3://b/p rw
";

    fn ids(stack: &[&MountEntry]) -> Vec<u32> {
        stack.iter().map(|entry| entry.id).collect()
    }

    #[test]
    fn a_line_is_read_whatever_optional_fields_it_has() {
        let table = MountTable::parse(HOST.as_bytes());
        assert_eq!(table.entries().len(), 7);
        let entry = &table.entries()[5];
        assert_eq!(
            entry.device,
            Device {
                major: 0,
                minor: 51
            }
        );
        assert_eq!(entry.source, "s3://b/a b");
        assert_eq!(entry.fs_type, "fuse.bucketvol");
        assert!(entry.shared);
        assert!(!table.entries()[6].shared);
    }

    #[test]
    fn the_top_of_a_stack_is_found_by_parents_and_not_by_order_or_id() {
        let table = MountTable::parse(HOST.as_bytes());
        assert_eq!(
            ids(&table.stack_at(Path::new("/var/lib/b/v"))),
            [41, 44, 43]
        );
        assert_eq!(table.top_at(Path::new("/var/lib/b/v")).unwrap().id, 43);
        assert_eq!(table.top_at(Path::new("/")).unwrap().id, 27);
        assert!(table.top_at(Path::new("/var/lib")).is_none());
        assert!(table.top_at(Path::new("/var/lib/b/v/w")).is_none());
    }

    #[test]
    fn a_mount_hidden_under_another_is_not_seen_at_its_path() {
        let table = MountTable::parse(
            b"1 0 8:1 / / rw - ext4 a rw\n2 1 0:9 / /m/x rw - tmpfs t rw\n3 1 0:8 / /m rw - tmpfs u rw\n",
        );
        assert!(table.top_at(Path::new("/m/x")).is_none());
        assert_eq!(table.top_at(Path::new("/m")).unwrap().id, 3);
    }

    #[test]
    fn mounts_are_found_where_the_root_is_no_mount_point() {
        let table = MountTable::parse(
            b"2 1 0:9 / /m rw - tmpfs t rw\n3 2 0:8 / /m/x rw - tmpfs u rw\n4 4 0:8 / /self rw - tmpfs u rw\n",
        );
        assert_eq!(table.top_at(Path::new("/m/x")).unwrap().id, 3);
    }

    #[test]
    fn ancestors_lead_to_the_root() {
        let table = MountTable::parse(HOST.as_bytes());
        let top = table.top_at(Path::new("/var/lib/b/v")).unwrap();
        let ancestors: Vec<_> = table.ancestors(top).map(|entry| entry.id).collect();
        assert_eq!(ancestors, [44, 41, 40, 27]);
    }

    #[test]
    fn escapes_are_undone_and_strays_are_kept() {
        for (field, expected) in [
            ("/a\\040b\\011c\\012d\\134e", "/a b\tc\nd\\e"),
            ("\\303\\244", "\u{e4}"),
            ("\\04", "\\04"),
            ("\\999\\", "\\999\\"),
            ("", ""),
        ] {
            assert_eq!(unescape(field.as_bytes()), expected, "{field}");
        }
    }

    #[test]
    fn a_cycle_ends() {
        let table = MountTable::parse(
            b"1 2 8:1 / / rw - ext4 a rw\n2 1 8:1 / / rw - ext4 a rw\n3 3 8:1 / /x rw - ext4 a rw\n",
        );
        for entry in table.entries() {
            assert!(table.ancestors(entry).count() <= 3);
        }
        let _ = table.stack_at(Path::new("/"));
        let _ = table.stack_at(Path::new("/x"));
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let table = MountTable::parse(&text);
            let _ = table.stack_at(Path::new("/a"));
        }

        #[test]
        fn every_path_survives_the_kernels_escapes(path in proptest::collection::vec(1u8..=255, 0..40)) {
            let escaped: Vec<u8> = path.iter().flat_map(|&b| match b {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{b:03o}").into_bytes(),
                _ => vec![b],
            }).collect();
            prop_assert_eq!(unescape(&escaped).into_vec(), path);
        }
    }
}
