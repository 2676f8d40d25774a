//! How what the kernel knows of the volume comes back when another process goes on: inodes by their numbers, open files
//! by theirs.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

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
            self.replace_directory(tree, &mut directories, ino, &inodes, doomed);
        }
        tree.reserve(files.len());
        for (ino, node) in files {
            self.replace_node(tree, ino, node, &inodes, doomed);
        }
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

    /// Puts a directory where it was, below those that are put where they were first.
    fn replace_directory(
        &self,
        tree: &mut Tree,
        directories: &mut BTreeMap<u64, KeptNode>,
        ino: u64,
        inodes: &HashMap<u64, KeptInode>,
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
            self.replace_node(tree, ino, node, inodes, doomed);
        }
    }

    /// Puts an inode where it was, if that is below a directory that is there.
    fn replace_node(
        &self,
        tree: &mut Tree,
        ino: u64,
        node: KeptNode,
        inodes: &HashMap<u64, KeptInode>,
        doomed: &HashMap<Key, SentObject>,
    ) {
        if tree.inode(ino).is_some() {
            tree.note_kept(ino);
            return;
        }
        let place = node.place.filter(|(parent, name)| {
            let is_free = tree.child(*parent, name).is_none();
            // A million keys take a second to spell.
            let spell = || tree.child_key(*parent, name, node.is_directory);
            let is_there =
                doomed.is_empty() || spell().is_some_and(|key| !doomed.contains_key(&key));
            // What is clean is an object.
            let has_object = inodes.get(&ino).is_none_or(|inode| inode.remote.is_some());
            let is_below = tree.is_directory(*parent) == Some(true);
            is_below && is_free && is_there && (has_object || node.is_directory)
        });
        match place {
            Some((parent, name)) => tree.reopen(ino, parent, &name, node.is_directory),
            None => {
                tree.restore_nameless(ino, node.is_directory);
            }
        }
    }

    fn reopen_handle(
        &self,
        tree: &mut Tree,
        fh: u64,
        handle: &KeptHandle,
        inodes: &HashMap<u64, KeptInode>,
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
            state.staged = Some(self.staging.reopen(ino, map)?);
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
