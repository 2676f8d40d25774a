//! How what the kernel knows of the volume comes back when another process goes on: inodes by their numbers, open files
//! by theirs.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::handles::{DirHandle, FileHandle};
use crate::fs::inode::{Inode, InodeState, Linked};
use crate::fs::journal::record::SentObject;
use crate::fs::kept::{KeptHandle, KeptInode, KeptNode, KeptOpen, LeftOpen};
use crate::fs::staging::ContentMap;
use crate::fs::tree::{ROOT, Tree};
use crate::store::Key;

impl FileSystem {
    /// The inodes and open files of an earlier process; those that are in the journal have their places already. An
    /// object that is `doomed` has lost its name, though the process did not live to say so of its inode.
    pub(super) fn reopen(
        &self,
        tree: &mut Tree,
        left: LeftOpen,
        doomed: &HashMap<Key, SentObject>,
    ) -> Result<(), FsError> {
        let LeftOpen {
            mut directories,
            files,
            inodes,
            handles,
            ..
        } = left;
        while let Some(ino) = directories.keys().next().copied() {
            replace_directory(tree, &mut directories, ino, doomed);
        }
        replace_files(tree, files, &inodes, doomed);
        if let Some(root) = inodes.get(&ROOT) {
            let inode = self.known(tree, ROOT, true);
            let mut state = inode.state.lock();
            if !state.journaled {
                self.fill_open(ROOT, &mut state, root)?;
            }
        }
        for (fh, handle) in handles {
            self.reopen_handle(tree, fh, &handle, &inodes)?;
        }
        Ok(())
    }

    fn reopen_handle(
        &self,
        tree: &mut Tree,
        fh: u64,
        handle: &KeptHandle,
        inodes: &FxHashMap<u64, KeptInode>,
    ) -> Result<(), FsError> {
        self.handles.restored(fh, handle.request);
        let (writable, lineage) = match &handle.what {
            KeptOpen::Directory(bookmarks) => {
                let directory = DirHandle::new(handle.ino, handle.request, bookmarks.clone());
                self.handles.add_directory(fh, directory);
                return Ok(());
            }
            KeptOpen::File { writable, lineage } => (*writable, *lineage),
        };
        let inode = self.known(tree, handle.ino, false);
        {
            let mut state = inode.state.lock();
            if state.opens == 0
                && !state.journaled
                && let Some(kept) = inodes.get(&handle.ino)
            {
                self.fill_open(handle.ino, &mut state, kept)?;
            }
            state.opens += 1;
            state.lineage = state.lineage.max(lineage);
        }
        let handle = FileHandle::new(&inode, writable, lineage);
        self.handles.add_file(fh, handle);
        Ok(())
    }

    fn known(&self, tree: &mut Tree, ino: u64, is_directory: bool) -> Arc<Inode> {
        tree.inode(ino)
            .unwrap_or_else(|| tree.restore_nameless(ino, is_directory))
    }

    fn fill_open(&self, ino: u64, state: &mut InodeState, kept: &KeptInode) -> io::Result<()> {
        state.attr = kept.attr;
        state.metadata = kept.metadata.clone();
        state.remote = kept.remote.clone().map(|object| self.remote_of(object));
        state.lineage = kept.lineage;
        state.resolved = true;
        state.has_unknown_pages = false;
        if let (Some(content), Linked::No) = (&kept.staged, state.linked) {
            let mut map = ContentMap::new(content.base_len);
            for extent in &content.extents {
                map.record(std::slice::from_ref(extent));
            }
            state.staged = Some(Box::new(self.staging.reopen(ino, map)?));
        }
        Ok(())
    }

    /// Whether the kernel may have pages of an inode that are of another version than is known here. It is asked to
    /// drop them once.
    pub fn had_unknown_pages(&self, ino: u64) -> bool {
        self.inode(ino).is_ok_and(|inode| {
            let mut state = inode.state.lock();
            std::mem::take(&mut state.has_unknown_pages)
        })
    }
}

/// Puts a directory where it was, below those that are put where they were first.
fn replace_directory(
    tree: &mut Tree,
    directories: &mut BTreeMap<u64, KeptNode>,
    ino: u64,
    doomed: &HashMap<Key, SentObject>,
) {
    let mut path = Vec::new();
    let mut at = ino;
    // Whatever is taken off the map is not come back to: a loop ends.
    while let Some(node) = directories.remove(&at) {
        let parent = node.place.as_ref().map(|(parent, _)| *parent);
        path.push((at, node));
        match parent {
            Some(parent) => at = parent,
            None => break,
        }
    }
    for (ino, node) in path.into_iter().rev() {
        match node
            .place
            .filter(|place| !is_doomed(tree, place, true, doomed))
        {
            Some((parent, name)) => tree.reopen_directory(ino, parent, &name),
            None => tree.reopen_nameless(ino, true),
        }
    }
}

/// Puts the files where they were, directory by directory.
fn replace_files(
    tree: &mut Tree,
    mut files: Vec<(u64, KeptNode)>,
    inodes: &FxHashMap<u64, KeptInode>,
    doomed: &HashMap<Key, SentObject>,
) {
    tree.reserve(files.len());
    let parent_of = |node: &KeptNode| node.place.as_ref().map(|(parent, _)| *parent);
    files.sort_by_key(|(_, node)| parent_of(node));
    for siblings in files.chunk_by(|(_, a), (_, b)| parent_of(a) == parent_of(b)) {
        let mut placed = Vec::with_capacity(siblings.len());
        for (ino, node) in siblings {
            // What is clean is an object.
            let has_object = || inodes.get(ino).is_none_or(|inode| inode.remote.is_some());
            match &node.place {
                Some(place) if has_object() && !is_doomed(tree, place, false, doomed) => {
                    placed.push((*ino, Arc::clone(&place.1)));
                }
                _ => tree.reopen_nameless(*ino, false),
            }
        }
        if let Some(parent) = parent_of(&siblings[0].1) {
            tree.reopen_files(parent, placed);
        }
    }
}

/// Whether what has the name is an object that has lost it.
fn is_doomed(
    tree: &Tree,
    (parent, name): &(u64, Arc<str>),
    is_directory: bool,
    doomed: &HashMap<Key, SentObject>,
) -> bool {
    // A million keys take a second to spell.
    !doomed.is_empty()
        && tree
            .child_key(*parent, name, is_directory)
            .is_none_or(|key| doomed.contains_key(&key))
}
