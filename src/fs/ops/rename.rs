//! Renames: a file's or a whole directory's. They change the tree and the journal; the objects follow.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::Inode;
use crate::fs::tree::Tree;
use crate::fs::upload::schedule::Footprint;
use crate::store::Key;

/// What rename is to do about a name that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Take its place.
    Replace,
    /// Fail.
    NoReplace,
    /// Let the two change places. A name that is not there cannot.
    Exchange,
}

/// One end of a rename.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub(crate) parent: u64,
    pub(crate) name: Arc<str>,
}

impl FileSystem {
    /// Gives a file or directory another name.
    pub async fn rename(
        self: &Arc<Self>,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        mode: RenameMode,
    ) -> Result<(), FsError> {
        self.check_writable()?;
        let (name, _) = self.parse_name(name).map_err(|_| FsError::NoEntry)?;
        let source = End { parent, name };
        let target = End {
            parent: new_parent,
            name: self.parse_new_name(new_parent, new_name)?,
        };
        self.check_directory(source.parent)?;
        self.check_directory(target.parent)?;
        let inode = self.find_existing(source.parent, &source.name).await?;
        let replaced = self.find(target.parent, &target.name).await?;
        let moves_directory = self.is_directory(&inode)?;
        match (&replaced, mode) {
            // Of two names of one file neither goes.
            (Some(replaced), _) if self.is_same_file(replaced, &inode) => return Ok(()),
            (Some(_), RenameMode::NoReplace) => return Err(FsError::Exists),
            (None, RenameMode::Exchange) => return Err(FsError::NoEntry),
            (Some(other), RenameMode::Exchange) => {
                self.exchange(&inode, &source, other, &target).await?;
            }
            (_, _) if moves_directory => {
                self.rename_directory(&inode, &source, &target, replaced.as_ref())
                    .await?;
            }
            (_, _) => {
                self.rename_file(&inode, &source, &target, replaced.as_ref())
                    .await?;
            }
        }
        self.touch_directory(source.parent);
        self.touch_directory(target.parent);
        Ok(())
    }

    fn is_directory(&self, inode: &Inode) -> Result<bool, FsError> {
        let tree = self.tree.lock();
        tree.is_directory(inode.ino).ok_or(FsError::NoEntry)
    }

    fn is_same_file(&self, one: &Arc<Inode>, other: &Arc<Inode>) -> bool {
        let [one, other] = [one, other].map(|inode| self.linked_inode(Arc::clone(inode)).ino);
        one == other
    }

    async fn rename_file(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        source: &End,
        target: &End,
        replaced: Option<&Arc<Inode>>,
    ) -> Result<(), FsError> {
        if let Some(replaced) = replaced
            && self.is_directory(replaced)?
        {
            return Err(FsError::IsDirectory);
        }
        let loses_name = replaced.map(|replaced| self.linked_inode(Arc::clone(replaced)));
        loop {
            let busy = {
                let mut tree = self.tree.lock();
                let (from, to) = spell(&tree, inode, source, target, replaced)?;
                // An upload of what is replaced may succeed, and the file that takes the name has to know the version
                // then.
                let leaves = replaced.map(|replaced| {
                    let link = tree.links_to(replaced.ino).next();
                    link.unwrap_or_else(|| Arc::clone(replaced))
                });
                let sending = leaves.filter(|leaves| leaves.state.lock().sending);
                let Some(sending) = sending else {
                    self.keep_parent(&tree, source.parent, &source.name)?;
                    let place = (target.parent, &target.name);
                    self.move_file(&mut tree, inode, place, replaced, (&from, &to))?;
                    break;
                };
                Footprint::inode(sending.ino)
            };
            self.turnstile.enter(busy).await;
        }
        self.complete(inode.ino);
        if let Some(file) = loses_name {
            self.touch_inode(&file);
        }
        Ok(())
    }

    async fn rename_directory(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        source: &End,
        target: &End,
        replaced: Option<&Arc<Inode>>,
    ) -> Result<(), FsError> {
        if let Some(replaced) = replaced
            && !self.is_directory(replaced)?
        {
            return Err(FsError::NotDirectory);
        }
        loop {
            let _going = match replaced {
                Some(replaced) => Some(self.close_empty(replaced).await?),
                None => None,
            };
            let mut tree = self.tree.lock();
            spell(&tree, inode, source, target, replaced)?;
            check_not_within(&tree, target, inode)?;
            if let Some(replaced) = replaced
                && !tree.can_be_removed(replaced.ino)?
            {
                continue;
            }
            self.keep_parent(&tree, source.parent, &source.name)?;
            let place = (target.parent, &target.name);
            return Ok(self.move_directory(&mut tree, inode, place, replaced)?);
        }
    }

    async fn exchange(
        &self,
        inode: &Arc<Inode>,
        source: &End,
        other: &Arc<Inode>,
        target: &End,
    ) -> Result<(), FsError> {
        loop {
            let busy = {
                let mut tree = self.tree.lock();
                spell(&tree, inode, source, target, Some(other))?;
                check_not_within(&tree, target, inode)?;
                check_not_within(&tree, source, other)?;
                // What an upload puts at the one's key, the other has to know of.
                let sending = [inode, other].into_iter().find(|i| i.state.lock().sending);
                let Some(sending) = sending else {
                    return Ok(self.exchange_places(&mut tree, [inode, other])?);
                };
                Footprint::inode(sending.ino)
            };
            self.turnstile.enter(busy).await;
        }
    }
}

fn check_not_within(tree: &Tree, end: &End, inode: &Inode) -> Result<(), FsError> {
    if tree.is_within(end.parent, inode.ino) {
        return Err(FsError::Invalid("a directory cannot be moved into itself"));
    }
    Ok(())
}

/// The two keys of a rename, if its names still stand for what they stood for.
fn spell(
    tree: &Tree,
    inode: &Inode,
    source: &End,
    target: &End,
    replaced: Option<&Arc<Inode>>,
) -> Result<(Key, Key), FsError> {
    let from = tree.key_of_name(source.parent, &source.name, inode.ino)?;
    tree.check_parent(target.parent)?;
    if tree.child(target.parent, &target.name) != replaced.map(|replaced| replaced.ino) {
        return Err(FsError::Stale);
    }
    let is_directory = tree.is_directory(inode.ino) == Some(true);
    let to = tree
        .child_key(target.parent, &target.name, is_directory)
        .ok_or(FsError::NoEntry)?;
    Ok((from, to))
}
