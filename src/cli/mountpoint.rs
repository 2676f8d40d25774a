//! Mount points as commands name them, against the mount table.
//!
//! A mount whose server is gone or hangs must not take a command with it, so nothing here looks at what
//! may be one.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};

use crate::fs::fuse::mount::FS_TYPE;
use crate::fs::fuse::mountinfo::MountTable;

/// The path as the mount table spells it, without touching what it names.
pub(super) fn spelled(dir: &Path) -> Result<PathBuf> {
    let shown = || format!("{}", dir.display());
    let absolute = std::path::absolute(dir).with_context(shown)?;
    if absolute
        .components()
        .any(|part| part == Component::ParentDir)
    {
        // Where `x/..` leads is the kernel's to say: x may be a link.
        return absolute.canonicalize().with_context(shown);
    }
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize().with_context(shown)?.join(name)),
        _ => Ok(absolute),
    }
}

/// What is mounted at exactly this path, on top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mounted {
    /// Nothing.
    Nothing,
    /// One of our mounts.
    Ours,
    /// Another program's, of this type.
    Other(String),
}

/// Looks at the mount table.
pub(super) fn mounted(path: &Path) -> Result<Mounted> {
    let table = MountTable::of_self().context("/proc/self/mountinfo")?;
    Ok(match table.top_at(path) {
        None => Mounted::Nothing,
        Some(entry) if entry.fs_type == FS_TYPE => Mounted::Ours,
        Some(entry) => Mounted::Other(entry.fs_type.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_spelled_as_the_mount_table_spells_it() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
        // What the path names need not be there, nor answer.
        assert_eq!(spelled(&real.join("link/mnt")).unwrap(), real.join("mnt"));
        assert_eq!(spelled(&real.join("mnt/")).unwrap(), real.join("mnt"));
        assert_eq!(
            spelled(&real.join("link/..")).unwrap(),
            real.parent().unwrap()
        );
        assert!(spelled(&real.join("missing/mnt")).is_err());
        assert_eq!(spelled(Path::new("/")).unwrap(), Path::new("/"));
    }

    #[test]
    fn another_programs_mount_is_told_from_ours() {
        assert!(
            matches!(mounted(Path::new("/proc")).unwrap(), Mounted::Other(kind) if kind == "proc")
        );
        assert_eq!(mounted(Path::new("/proc/self")).unwrap(), Mounted::Nothing);
    }
}
