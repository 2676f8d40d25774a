//! Extended attributes of the namespace `user.`: getxattr, listxattr, setxattr, removexattr. They are metadata of
//! the object.
//!
//! What the kernel allows is not checked here: `user.` on regular files and directories alone, names of up to 255
//! bytes, values of up to 64 KiB.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::store::{Attributes, Metadata, Xattrs};

/// What names begin with. Those of other namespaces the kernel or a security module would interpret, and no object
/// is the place for that; an object that has some keeps them.
const NAMESPACE: &[u8] = b"user.";

/// Longest name in bytes.
const NAME_MAX: usize = 255;

/// What setxattr is to do about a name that has a value or has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    /// Give it the value.
    Set,
    /// Fail if it has one.
    Create,
    /// Fail if it has none.
    Replace,
}

impl FileSystem {
    /// The value of an extended attribute.
    pub async fn getxattr(&self, ino: u64, name: &OsStr) -> Result<Vec<u8>, FsError> {
        let name = supported(name)?;
        let xattrs = self.xattrs(ino).await?;
        let value = xattrs.get(name).ok_or(FsError::NoAttribute)?;
        Ok(value.to_vec())
    }

    /// The names of all extended attributes.
    pub async fn listxattr(&self, ino: u64) -> Result<Vec<OsString>, FsError> {
        let xattrs = self.xattrs(ino).await?;
        let shown = xattrs.names().filter(|name| is_shown(name));
        Ok(shown
            .map(|name| OsString::from_vec(name.to_vec()))
            .collect())
    }

    async fn xattrs(&self, ino: u64) -> Result<Xattrs, FsError> {
        let inode = self.inode(ino)?;
        self.resolve(&inode).await?;
        let state = inode.state.lock();
        Ok(Xattrs::from_metadata(&state.metadata).unwrap_or_default())
    }

    /// Gives an extended attribute a value. It goes to the bucket with the other attributes; the value that it has
    /// sends nothing.
    pub async fn setxattr(
        self: &Arc<Self>,
        ino: u64,
        name: &OsStr,
        value: &[u8],
        mode: XattrMode,
    ) -> Result<(), FsError> {
        let name = supported(name)?;
        self.journal.check_room()?;
        let change = Change::Set { name, value, mode };
        self.change_xattrs(ino, change).await
    }

    /// Takes an extended attribute away.
    pub async fn removexattr(self: &Arc<Self>, ino: u64, name: &OsStr) -> Result<(), FsError> {
        let name = supported(name)?;
        self.change_xattrs(ino, Change::Remove { name }).await
    }

    async fn change_xattrs(self: &Arc<Self>, ino: u64, change: Change<'_>) -> Result<(), FsError> {
        self.check_writable()?;
        let inode = self.inode(ino)?;
        self.resolve(&inode).await?;
        let is_open = loop {
            {
                let tree = self.tree.lock();
                let mut state = inode.state.lock();
                let Some(metadata) = change.of(&state.metadata)? else {
                    return Ok(());
                };
                if self.can_change_metadata(&state) {
                    self.change_metadata(&tree, ino, &mut state, metadata)?;
                    break state.opens > 0;
                }
            }
            self.upload_in_time(&inode).await?;
        };
        if is_open {
            self.changed(ino);
        } else {
            self.complete(ino);
        }
        Ok(())
    }
}

/// What is asked to be changed.
#[derive(Debug, Clone, Copy)]
enum Change<'a> {
    Set {
        name: &'a [u8],
        value: &'a [u8],
        mode: XattrMode,
    },
    Remove {
        name: &'a [u8],
    },
}

impl Change<'_> {
    /// The metadata after it; `None`: they are as they were.
    fn of(self, metadata: &Metadata) -> Result<Option<Metadata>, FsError> {
        let before = Xattrs::from_metadata(metadata);
        let mut after = before.clone().unwrap_or_default();
        self.apply(&mut after)?;
        // What somebody else has put there is not ours to replace.
        let before = before.ok_or(FsError::Unsupported(
            "the object has something else where its extended attributes would be",
        ))?;
        if after == before {
            return Ok(None);
        }
        let mut changed = metadata.clone();
        after.write_to(&mut changed);
        if matches!(self, Self::Set { .. }) && !Attributes::fit_beside(&changed) {
            return Err(FsError::MetadataFull);
        }
        Ok(Some(changed))
    }

    fn apply(self, xattrs: &mut Xattrs) -> Result<(), FsError> {
        match self {
            Self::Set { name, value, mode } => match (mode, xattrs.get(name)) {
                (XattrMode::Create, Some(_)) => Err(FsError::Exists),
                (XattrMode::Replace, None) => Err(FsError::NoAttribute),
                _ => {
                    xattrs.set(name, value);
                    Ok(())
                }
            },
            Self::Remove { name } if xattrs.remove(name) => Ok(()),
            Self::Remove { .. } => Err(FsError::NoAttribute),
        }
    }
}

/// The name, if such attributes are kept here.
fn supported(name: &OsStr) -> Result<&[u8], FsError> {
    match name.as_bytes().strip_prefix(NAMESPACE) {
        Some(b"") => Err(FsError::Invalid("an extended attribute without a name")),
        Some(_) => Ok(name.as_bytes()),
        None => Err(FsError::Unsupported(
            "extended attributes of other namespaces than `user.`",
        )),
    }
}

/// Whether a program can ask for an attribute of this name, which somebody else may have given.
fn is_shown(name: &[u8]) -> bool {
    let is_name = (NAMESPACE.len() + 1..=NAME_MAX).contains(&name.len()) && !name.contains(&0);
    is_name && name.starts_with(NAMESPACE)
}
