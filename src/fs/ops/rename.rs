//! Renames: a file's or a whole directory's.
//!
//! The store copies, then we delete what was copied. A file that was never uploaded only changes its name.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::Inode;
use crate::fs::tree::Tree;
use crate::fs::upload::schedule::Footprint;
use crate::store::{CopyOptions, Key, ListEntry, ListRequest, MetadataDirective, ObjectVersion};

/// What rename is to do about a name that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Take its place.
    Replace,
    /// Fail.
    NoReplace,
}

/// One end of a rename.
#[derive(Debug, Clone)]
struct End {
    parent: u64,
    name: Arc<str>,
}

/// An object of a directory that is renamed.
#[derive(Debug, Clone)]
struct Moved {
    from: Key,
    to: Key,
    size: u64,
    version: ObjectVersion,
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
        let (name, _) = Self::parse_name(name).map_err(|_| FsError::NoEntry)?;
        let source = End { parent, name };
        let target = End {
            parent: new_parent,
            name: Self::parse_new_name(new_parent, new_name)?,
        };
        self.check_directory(source.parent)?;
        self.check_directory(target.parent)?;
        let inode = self.find_existing(source.parent, &source.name).await?;
        let replaced = self.find(target.parent, &target.name).await?;

        let is_directory = |inode: &Arc<Inode>| {
            self.tree
                .lock()
                .is_directory(inode.ino)
                .ok_or(FsError::NoEntry)
        };
        let moves_directory = is_directory(&inode)?;
        if let Some(replaced) = &replaced {
            if replaced.ino == inode.ino {
                return Ok(());
            }
            match (mode, moves_directory, is_directory(replaced)?) {
                (RenameMode::NoReplace, _, _) => return Err(FsError::Exists),
                (_, true, false) => return Err(FsError::NotDirectory),
                (_, false, true) => return Err(FsError::IsDirectory),
                _ => {}
            }
        }
        if moves_directory {
            self.rename_directory(&inode, &source, &target, replaced.as_ref())
                .await?;
        } else {
            self.rename_file(&inode, &source, &target, replaced.as_ref())
                .await?;
        }
        self.touch_directory(source.parent);
        self.touch_directory(target.parent);
        Ok(())
    }

    async fn rename_file(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        source: &End,
        target: &End,
        replaced: Option<&Arc<Inode>>,
    ) -> Result<(), FsError> {
        if inode.state.lock().remote.is_some() {
            self.keep_parent(source.parent, &source.name).await?;
        }
        loop {
            let busy = {
                let mut tree = self.tree.lock();
                let (from, to) = spell(&tree, inode, source, target, replaced, false)?;
                // The objects of a directory that is being moved are between two places. And an upload of what is
                // replaced may succeed, and the file that takes the name has to know the version then.
                let has_to_wait = tree.is_moving(source.parent)
                    || tree.is_moving(target.parent)
                    || replaced.is_some_and(|replaced| replaced.state.lock().sending);
                if !has_to_wait {
                    let place = (target.parent, &target.name);
                    self.move_file(&mut tree, inode, place, replaced, (&from, &to))?;
                    break;
                }
                Footprint::key(from).and(Footprint::key(to))
            };
            self.turnstile.enter(busy).await;
        }
        self.complete(inode.ino);
        Ok(())
    }

    async fn rename_directory(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        source: &End,
        target: &End,
        replaced: Option<&Arc<Inode>>,
    ) -> Result<(), FsError> {
        let spell = |tree: &Tree| {
            let keys = spell(tree, inode, source, target, replaced, true)?;
            if keys.1.as_str().starts_with(keys.0.as_str()) {
                return Err(FsError::Invalid("a directory cannot be moved into itself"));
            }
            Ok(keys)
        };
        let footprint = |(from, to): &(Key, Key)| {
            Footprint::below(from.clone()).and(Footprint::below(to.clone()))
        };
        let over = |(from, to): &(Key, Key)| vec![from.clone(), to.clone()];
        let (_turn, (from, to), _moving) = loop {
            let (turn, keys) = self.turn_at_vacated(&spell, over, footprint).await?;
            let moving = inode.moving();
            // From now on no name below it changes; one may have done so just before.
            if self.moving_over(&over(&keys)).is_empty() {
                break (turn, keys, moving);
            }
        };
        let _hidden = self.hide(&to);
        self.settle_orphans(&to, None).await?;
        let _going = match replaced {
            Some(replaced) => Some(self.close_empty(replaced, &to).await?),
            None => None,
        };
        self.settle_orphans(&from, None).await?;

        let objects = self.objects_below(&from, &to).await?;
        let versions = match self.copy_all(&objects).await {
            Ok(versions) => versions,
            Err(error) => {
                let copies: Vec<Key> = objects.into_iter().map(|object| object.to).collect();
                self.delete_all(&copies, "copies of a rename").await;
                return Err(error);
            }
        };
        self.keep_parent(source.parent, &source.name).await?;
        let originals: Vec<Key> = objects.iter().map(|object| object.from.clone()).collect();
        // The copies are there: the rename has happened, whatever becomes of the old objects.
        self.delete_all(&originals, "originals of a rename").await;
        self.commit_directory_rename(inode, target, &from, &to, &versions)?;
        Ok(())
    }

    /// Deletes objects that nobody needs; what stays is named in the log.
    async fn delete_all(&self, keys: &[Key], what: &str) {
        match self.bucket.delete_many(keys).await {
            Ok(left) => {
                for (key, error) in left {
                    self.note_error(&format!("{what}: {key:?} was left behind"), &error.into());
                }
            }
            Err(error) => self.note_error(&format!("{what} were left behind"), &error.into()),
        }
    }

    fn commit_directory_rename(
        &self,
        inode: &Arc<Inode>,
        target: &End,
        from: &Key,
        to: &Key,
        versions: &HashMap<Key, ObjectVersion>,
    ) -> io::Result<()> {
        let now = self.now();
        let mut tree = self.tree.lock();
        let mut moved = tree.below(inode.ino);
        moved.push(Arc::clone(inode));
        for inode in &moved {
            let mut state = inode.state.lock();
            let Some(remote) = &mut state.remote else {
                continue;
            };
            let Some(rest) = remote.key.as_str().strip_prefix(from.as_str()) else {
                continue;
            };
            let key = Key::new(format!("{}{rest}", to.as_str()));
            if let Some(version) = versions.get(&key) {
                remote.version = version.clone();
            }
            remote.modified = None;
            remote.key = key;
        }
        tree.rename(inode.ino, target.parent, &target.name, now);
        for inode in &moved {
            tree.touch(inode.ino, now);
            // What a file that is not uploaded yet is to overwrite has moved as well.
            let key = tree.key_of(inode.ino);
            let mut state = inode.state.lock();
            if let Some(overwrites) = &mut state.overwrites
                && let Some(version) = key.and_then(|key| versions.get(&key))
            {
                overwrites.clone_from(version);
            }
            self.record_base(inode.ino, &mut state, None)?;
        }
        self.record_directory_rename(&tree, inode.ino)
    }

    async fn objects_below(&self, from: &Key, to: &Key) -> Result<Vec<Moved>, FsError> {
        let mut objects = Vec::new();
        let mut continuation = None;
        loop {
            let request = ListRequest {
                prefix: from.clone(),
                delimiter: false,
                max_keys: 1000,
                continuation,
            };
            let page = self.bucket.list(&request).await?;
            for entry in page.entries {
                if let ListEntry::Object {
                    key, size, version, ..
                } = entry
                    && let Some(rest) = key.as_str().strip_prefix(from.as_str())
                {
                    let to = Key::new(format!("{}{rest}", to.as_str()));
                    objects.push(Moved {
                        from: key,
                        to,
                        size,
                        version,
                    });
                }
            }
            continuation = page.continuation;
            if continuation.is_none() {
                return Ok(objects);
            }
        }
    }

    async fn copy_all(&self, objects: &[Moved]) -> Result<HashMap<Key, ObjectVersion>, FsError> {
        stream::iter(objects.to_vec())
            .map(|object| async move {
                let options = CopyOptions {
                    source_version: Some(object.version),
                    metadata: MetadataDirective::Copy,
                };
                let version = self
                    .bucket
                    .copy(&object.from, &object.to, &options, object.size)
                    .await?;
                Ok::<_, FsError>((object.to, version))
            })
            .buffer_unordered(self.settings.concurrency)
            .try_collect()
            .await
    }
}

/// The two keys of a rename, if its names still stand for what they stood for.
fn spell(
    tree: &Tree,
    inode: &Inode,
    source: &End,
    target: &End,
    replaced: Option<&Arc<Inode>>,
    is_directory: bool,
) -> Result<(Key, Key), FsError> {
    let from = tree.key_of_name(source.parent, &source.name, inode.ino)?;
    tree.check_parent(target.parent)?;
    if tree.child(target.parent, &target.name) != replaced.map(|replaced| replaced.ino) {
        return Err(FsError::Stale);
    }
    let to = tree
        .child_key(target.parent, &target.name, is_directory)
        .ok_or(FsError::NoEntry)?;
    Ok((from, to))
}
