//! Attributes <-> user metadata: reads the dialects of s3fs, geesefs, rclone, s3sync and
//! gsutil, writes s3fs's.

mod parse;
mod xattr;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub use self::xattr::Xattrs;

use self::parse::{device, id, mode, time};
use super::{Metadata, WriteId, s3};

/// What an object's metadata say of the file it is. `None`: nothing is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// What it is, if its mode or a symlink marker says so.
    pub kind: Option<FileKind>,
    /// Permission bits (0o7777).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Device number of a device node.
    pub rdev: Option<u32>,
    /// Last change of the content.
    pub mtime: Option<SystemTime>,
    /// Last access.
    pub atime: Option<SystemTime>,
    /// Last change of the attributes.
    pub ctime: Option<SystemTime>,
}

/// The types of file a directory can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link; the object's body is its target.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
}

impl Attributes {
    /// What `metadata` say, in whichever dialect. What makes no sense says nothing.
    ///
    /// Where several dialects speak, s3fs's names win over s3sync's, and those over gsutil's: so s3fs has it.
    pub fn from_metadata(metadata: &Metadata) -> Self {
        let said = |name: &str| metadata.user.get(name).map(|value| value.trim());
        let (kind, permissions) = said("mode")
            .and_then(mode)
            .or_else(|| mode(said("permissions")?))
            .unwrap_or_default();
        let gsutil_mode = || u32::from_str_radix(said("goog-reserved-posix-mode")?, 8).ok();
        let gsutil_symlink = said("goog-reserved-file-is-symlink")
            .is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let link = gsutil_symlink || metadata.user.contains_key(GEESEFS_SYMLINK);
        Self {
            kind: kind.or(link.then_some(FileKind::Symlink)),
            mode: permissions
                .or_else(gsutil_mode)
                .filter(|mode| *mode <= 0o7777),
            uid: said("uid")
                .and_then(id)
                .or_else(|| id(said("owner")?))
                .or_else(|| id(said("goog-reserved-posix-uid")?)),
            gid: said("gid")
                .and_then(id)
                .or_else(|| id(said("group")?))
                .or_else(|| id(said("goog-reserved-posix-gid")?)),
            rdev: said("rdev").and_then(device),
            mtime: said("mtime")
                .and_then(time)
                .or_else(|| time(said("goog-reserved-file-mtime")?)),
            atime: said("atime")
                .and_then(time)
                .or_else(|| time(said("goog-reserved-file-atime")?)),
            ctime: said("ctime").and_then(time),
        }
    }

    /// Writes what is said into `metadata` as s3fs does. What is not said leaves the map as it is, as
    /// do all names of others.
    ///
    /// s3fs knows no mode without a type: a file it is unless another kind is said.
    pub fn write_to(&self, metadata: &mut Metadata) {
        let mut say = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                metadata.user.insert(name.to_owned(), value);
            }
        };
        if self.mode.is_some() || self.kind.is_some() {
            let kind = self.kind.unwrap_or(FileKind::File);
            let permissions = self.mode.unwrap_or(kind.usual_permissions()) & 0o7777;
            say("mode", Some((kind.type_bits() | permissions).to_string()));
        }
        say("uid", self.uid.map(|uid| uid.to_string()));
        say("gid", self.gid.map(|gid| gid.to_string()));
        // s3fs has no name for it; this is rclone's.
        say("rdev", self.rdev.map(|rdev| format!("{rdev:x}")));
        say("mtime", self.mtime.map(parse::spell_time));
        say("atime", self.atime.map(parse::spell_time));
        say("ctime", self.ctime.map(parse::spell_time));
    }

    /// Whether every store takes an object of these metadata, whatever its attributes come to be. S3 takes
    /// the fewest bytes.
    pub fn fit_beside(metadata: &Metadata) -> bool {
        let time = Some(UNIX_EPOCH + Duration::new(parse::LAST_SECOND, 999_999_999));
        let longest = Self {
            kind: Some(FileKind::Socket),
            mode: Some(0o7777),
            uid: Some(u32::MAX),
            gid: Some(u32::MAX),
            rdev: Some(u32::MAX),
            mtime: time,
            atime: time,
            ctime: time,
        };
        let mut metadata = metadata.clone();
        longest.write_to(&mut metadata);
        s3::user_metadata_fit(&WriteId::longest().mark(metadata))
    }

    /// The target of a symbolic link whose writer put it beside the body and not into it.
    pub fn link_target(metadata: &Metadata) -> Option<String> {
        let target = metadata.user.get(GEESEFS_SYMLINK)?;
        let target = percent_encoding::percent_decode_str(target)
            .decode_utf8()
            .ok()?;
        (!target.is_empty()).then(|| target.into_owned())
    }
}

/// geesefs keeps a link's target under this name, and an empty body.
const GEESEFS_SYMLINK: &str = "--symlink-target";

impl FileKind {
    const ALL: [Self; 7] = [
        Self::File,
        Self::Directory,
        Self::Symlink,
        Self::Fifo,
        Self::Socket,
        Self::CharDevice,
        Self::BlockDevice,
    ];

    /// The type bits of `st_mode`.
    pub const fn type_bits(self) -> u32 {
        match self {
            Self::Fifo => 0o010_000,
            Self::CharDevice => 0o020_000,
            Self::Directory => 0o040_000,
            Self::BlockDevice => 0o060_000,
            Self::File => 0o100_000,
            Self::Symlink => 0o120_000,
            Self::Socket => 0o140_000,
        }
    }

    const fn usual_permissions(self) -> u32 {
        match self {
            Self::Directory => 0o755,
            Self::Symlink => 0o777,
            _ => 0o644,
        }
    }
}

#[cfg(test)]
mod tests;
