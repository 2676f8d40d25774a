//! Attributes of an inode, and changes to them. Pure.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::journal::record::timestamp;
use crate::config::options::Ownership;
use crate::store::{Attributes, FileKind};

/// Permission bits, with setuid, setgid and sticky.
pub(crate) const PERMISSIONS: u32 = 0o7777;

/// What stat(2) shows of an inode, but for its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    /// Its type.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// Permission bits, with setuid, setgid and sticky (0o7777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, in the kernel's encoding; else 0.
    pub rdev: u32,
    /// Last access, as far as somebody set it.
    #[serde(with = "timestamp")]
    pub atime: SystemTime,
    /// Last change of the content.
    #[serde(with = "timestamp")]
    pub mtime: SystemTime,
    /// Last change of anything.
    #[serde(with = "timestamp")]
    pub ctime: SystemTime,
}

/// Who makes something: what a new inode belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Its file system uid.
    pub uid: u32,
    /// Its file system gid.
    pub gid: u32,
}

/// What setattr is asked to change; `None` stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits; the type bits are ignored.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Truncate or extend to this many bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SystemTime>,
    /// Modification time.
    pub mtime: Option<SystemTime>,
    /// A regular file loses what it lends to who runs it: set-user-ID, and set-group-ID where the group may run it.
    pub drop_privileges: bool,
}

/// What a file lends to who runs it, and what says that its group may.
const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const GROUP_RUNS: u32 = 0o0010;

impl Attr {
    /// A new inode of `kind`, made by `caller` at `now`.
    pub(crate) fn new(kind: FileKind, mode: u32, caller: Caller, now: SystemTime) -> Self {
        Self {
            kind,
            size: 0,
            mode: mode & PERMISSIONS,
            uid: caller.uid,
            gid: caller.gid,
            rdev: 0,
            atime: now,
            mtime: now,
            ctime: now,
        }
    }

    /// What an object of this size, age and metadata looks like. `kind` is what its key says: an object
    /// may say more of itself, a directory is a directory.
    pub(crate) fn of_object(
        kind: FileKind,
        size: u64,
        modified: SystemTime,
        said: &Attributes,
        ownership: &Ownership,
    ) -> Self {
        let kind = match (kind, said.kind) {
            (FileKind::Directory, _) | (_, None | Some(FileKind::Directory)) => kind,
            (_, Some(said)) => said,
        };
        let default_mode = match kind {
            FileKind::Directory => ownership.dir_mode,
            FileKind::Symlink => 0o777,
            _ => ownership.file_mode,
        };
        let mtime = said.mtime.unwrap_or(modified);
        Self {
            kind,
            size: if kind == FileKind::Directory { 0 } else { size },
            mode: said.mode.unwrap_or(default_mode) & PERMISSIONS,
            uid: said.uid.unwrap_or(ownership.uid),
            gid: said.gid.unwrap_or(ownership.gid),
            rdev: said.rdev.unwrap_or(0),
            atime: said.atime.unwrap_or(mtime),
            mtime,
            ctime: said.ctime.unwrap_or(mtime),
        }
    }

    /// What to write into the object's metadata.
    pub(crate) fn to_attributes(self) -> Attributes {
        let is_device = matches!(self.kind, FileKind::CharDevice | FileKind::BlockDevice);
        Attributes {
            kind: Some(self.kind),
            mode: Some(self.mode),
            uid: Some(self.uid),
            gid: Some(self.gid),
            rdev: is_device.then_some(self.rdev),
            mtime: Some(self.mtime),
            atime: Some(self.atime),
            ctime: Some(self.ctime),
        }
    }

    /// The attributes after `change`, or `None` if it changes nothing. The size is left to whoever has the
    /// content.
    pub(crate) fn changed_by(self, change: &SetAttr, now: SystemTime) -> Option<Self> {
        let changed = Self {
            mode: match change.mode {
                Some(mode) => mode & PERMISSIONS,
                None if change.drop_privileges => self.without_privileges(),
                None => self.mode,
            },
            uid: change.uid.unwrap_or(self.uid),
            gid: change.gid.unwrap_or(self.gid),
            atime: change.atime.unwrap_or(self.atime),
            mtime: change.mtime.unwrap_or(self.mtime),
            ..self
        };
        (changed != self).then_some(Self {
            ctime: now,
            ..changed
        })
    }

    /// The mode without what a regular file lends to who runs it.
    pub(crate) fn without_privileges(self) -> u32 {
        if self.kind != FileKind::File {
            return self.mode;
        }
        let lent = match self.mode & GROUP_RUNS {
            0 => SET_UID,
            _ => SET_UID | SET_GID,
        };
        self.mode & !lent
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const OWNERSHIP: Ownership = Ownership {
        uid: 7,
        gid: 8,
        file_mode: 0o640,
        dir_mode: 0o750,
    };
    const THEN: SystemTime = SystemTime::UNIX_EPOCH;

    #[test]
    fn an_object_that_says_nothing_gets_the_volumes_defaults() {
        let attr = Attr::of_object(FileKind::File, 5, THEN, &Attributes::default(), &OWNERSHIP);
        assert_eq!((attr.mode, attr.uid, attr.gid, attr.size), (0o640, 7, 8, 5));
        let dir = Attr::of_object(
            FileKind::Directory,
            5,
            THEN,
            &Attributes::default(),
            &OWNERSHIP,
        );
        assert_eq!(
            (dir.kind, dir.mode, dir.size),
            (FileKind::Directory, 0o750, 0)
        );
    }

    #[test]
    fn an_object_is_what_its_metadata_say_but_a_prefix_is_a_directory() {
        let said = Attributes {
            kind: Some(FileKind::Symlink),
            ..Attributes::default()
        };
        let of = |kind| Attr::of_object(kind, 1, THEN, &said, &OWNERSHIP).kind;
        assert_eq!(of(FileKind::File), FileKind::Symlink);
        assert_eq!(of(FileKind::Directory), FileKind::Directory);
        let dir = Attributes {
            kind: Some(FileKind::Directory),
            ..Attributes::default()
        };
        assert_eq!(
            Attr::of_object(FileKind::File, 1, THEN, &dir, &OWNERSHIP).kind,
            FileKind::File
        );
    }

    #[test]
    fn what_is_written_is_read_back() {
        let caller = Caller { uid: 1, gid: 2 };
        let attr = Attr::new(FileKind::File, 0o4755, caller, THEN + Duration::new(9, 8));
        assert_eq!(
            Attr::of_object(FileKind::File, 0, THEN, &attr.to_attributes(), &OWNERSHIP),
            attr
        );
    }

    #[test]
    fn a_change_to_the_same_value_is_no_change() {
        let attr = Attr::new(FileKind::File, 0o644, Caller { uid: 1, gid: 2 }, THEN);
        let same = SetAttr {
            mode: Some(0o100_644),
            uid: Some(1),
            ..SetAttr::default()
        };
        assert_eq!(attr.changed_by(&same, THEN + Duration::from_secs(1)), None);
        let other = SetAttr {
            uid: Some(3),
            ..SetAttr::default()
        };
        assert_eq!(attr.changed_by(&other, THEN).map(|a| a.uid), Some(3));
    }

    /// As Linux does it: without the group's x, set-group-ID meant mandatory locking.
    #[test]
    fn what_a_file_lends_to_who_runs_it_goes_when_it_is_changed() {
        let drop = SetAttr {
            drop_privileges: true,
            ..SetAttr::default()
        };
        for (kind, mode, left) in [
            (FileKind::File, 0o6755, 0o755),
            (FileKind::File, 0o4711, 0o711),
            (FileKind::File, 0o6705, 0o2705),
            (FileKind::File, 0o1644, 0o1644),
            (FileKind::Directory, 0o6755, 0o6755),
            (FileKind::Fifo, 0o6755, 0o6755),
        ] {
            let mut attr = Attr::of_object(kind, 0, THEN, &Attributes::default(), &OWNERSHIP);
            attr.mode = mode;
            let changed = attr.changed_by(&drop, THEN).unwrap_or(attr);
            assert_eq!(changed.mode, left, "{kind:?} {mode:o}");
        }
        let mut attr = Attr::of_object(FileKind::File, 0, THEN, &Attributes::default(), &OWNERSHIP);
        attr.mode = 0o4755;
        let given = SetAttr {
            mode: Some(0o4700),
            ..drop
        };
        assert_eq!(attr.changed_by(&given, THEN).map(|a| a.mode), Some(0o4700));
    }
}
