//! What a later process is told of the tree, row by row, and how the tree comes back from that and from the journal.

use std::collections::btree_map::Entry as Slot;
use std::sync::Arc;

use super::packed::Body;
use super::{Dentry, Node, Tree, kind_of};
use crate::fs::inode::{Inode, Linked};
use crate::fs::kept::NUMBERS_AHEAD;

impl Tree {
    /// So many inodes more are about to be known.
    pub(crate) fn reserve(&mut self, inodes: usize) {
        self.nodes.reserve(inodes);
    }

    /// No number up to `ino` is given to anything new.
    pub(crate) fn reserve_inos(&mut self, ino: Option<u64>) {
        self.next_ino = self.next_ino.max(ino.unwrap_or(0) + 1);
        self.kept.reserve_inos(self.next_ino + NUMBERS_AHEAD);
    }

    /// An inode that an earlier process knew, under the name it had. What the store has there was not asked.
    pub(crate) fn restore(&mut self, ino: u64, parent: u64, name: &Arc<str>, is_directory: bool) {
        let attr = self.unknown_attr(kind_of(is_directory));
        let inode = Arc::new(Inode::new(ino, attr, false, None));
        let node = Node::new(Body::new(inode), parent, name, is_directory);
        self.link_unconfirmed(parent, name, (ino, node));
    }

    /// A directory that the kernel knows by this number from an earlier process, and that has a row which says where it
    /// is: under its name. If that is not free, or the directory above not there, it has none.
    pub(crate) fn reopen_directory(&mut self, ino: u64, parent: u64, name: &Arc<str>) {
        let is_free = self.is_directory(parent) == Some(true) && self.child(parent, name).is_none();
        match (self.nodes.contains(ino), is_free) {
            (true, _) => self.note_kept(ino),
            (false, true) => {
                let node = reopened_node(parent, name, true);
                self.link_unconfirmed(parent, name, (ino, node));
            }
            (false, false) => drop(self.restore_nameless(ino, true)),
        }
    }

    /// Likewise, files of one directory.
    pub(crate) fn reopen_files(
        &mut self,
        parent: u64,
        files: impl IntoIterator<Item = (u64, Arc<str>)>,
    ) {
        self.sequence += 1;
        let sequence = self.sequence;
        // Taken out of the directory meanwhile, which is found only once: there may be a million.
        let mut children = self.directory_mut(parent).map(|directory| {
            directory.listed = None;
            std::mem::take(&mut directory.children)
        });
        for (ino, name) in files {
            if self.nodes.contains(ino) {
                self.note_kept(ino);
                continue;
            }
            let slot = children
                .as_mut()
                .map(|names| names.entry(Arc::clone(&name)));
            let Some(Slot::Vacant(free)) = slot else {
                self.restore_nameless(ino, false);
                continue;
            };
            free.insert(Dentry {
                ino,
                changed: sequence,
                seen: sequence,
                confirmed: None,
            });
            let node = reopened_node(parent, &name, false);
            self.insert_node(ino, node);
        }
        if let (Some(directory), Some(children)) = (self.directory_mut(parent), children) {
            directory.children = children;
        }
    }

    /// Likewise, of one that has no name any more.
    pub(crate) fn reopen_nameless(&mut self, ino: u64, is_directory: bool) {
        match self.nodes.contains(ino) {
            true => self.note_kept(ino),
            false => drop(self.restore_nameless(ino, is_directory)),
        }
    }

    /// An inode that the kernel knows by this number from an earlier process, and that has no name any more.
    pub(crate) fn restore_nameless(&mut self, ino: u64, is_directory: bool) -> Arc<Inode> {
        let attr = self.unknown_attr(kind_of(is_directory));
        let inode = Arc::new(Inode::new(ino, attr, true, None));
        inode.state.lock().linked = Linked::No;
        let node = Node {
            body: Body::new(Arc::clone(&inode)),
            place: None,
            nlookup: 0,
            is_queued: false,
            is_kept: true,
            directory: is_directory.then(Box::default),
        };
        self.insert_node(ino, node);
        self.keep(ino);
        inode
    }

    /// An inode has a row of an earlier process, which may not have lived to write down where it is by now.
    pub(crate) fn note_kept(&mut self, ino: u64) {
        if let Some(node) = self.nodes.get_mut(ino) {
            node.is_kept = true;
            self.keep(ino);
        }
    }

    /// An inode is about to lose its name: a process that takes over must not give it back.
    pub(crate) fn keep_unnamed(&self, ino: u64) {
        if let Some(node) = self.nodes.get(ino)
            && node.is_kept
        {
            self.kept.node(ino, node.directory.is_some(), None);
        }
    }

    /// Keeps where an inode is for a later process, if the kernel knows it.
    pub(super) fn keep(&self, ino: u64) {
        if let Some(node) = self.nodes.get(ino)
            && node.is_kept
        {
            let place = node.place.as_ref();
            let place = place.map(|place| (place.parent, self.stored_name(&place.name)));
            let place = place.as_ref().map(|(parent, name)| (*parent, &**name));
            self.kept.node(ino, node.directory.is_some(), place);
        }
    }

    pub(super) fn keep_no_more(&mut self, ino: u64) {
        if let Some(node) = self.nodes.get_mut(ino)
            && std::mem::take(&mut node.is_kept)
        {
            self.kept.forget(ino);
        }
    }

    fn link_unconfirmed(&mut self, parent: u64, name: &Arc<str>, node: (u64, Node)) {
        self.link_node((parent, name), node, None);
        if let Some(directory) = self.directory_mut(parent) {
            directory.listed = None;
        }
    }
}

/// A node of an earlier process.
fn reopened_node(parent: u64, name: &Arc<str>, is_directory: bool) -> Node {
    Node {
        is_kept: true,
        ..Node::new(Body::default(), parent, name, is_directory)
    }
}
