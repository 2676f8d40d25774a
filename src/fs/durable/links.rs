//! Hard links in the journal: as long as there are any, it has their targets and them, changed or not.

use std::io;

use super::{FileSystem, Inode, Record, Tree, Unsent};
use crate::fs::error::FsError;
use crate::fs::format::Format;

impl FileSystem {
    /// Whether the journal is told of hard links. The format before this one has no words for them.
    pub(crate) fn keeps_links(&self) -> bool {
        self.journal.format() >= Format::CURRENT
    }

    /// Writes a hard link down, which has its name already.
    pub(crate) fn record_link(
        &self,
        tree: &Tree,
        link: &Inode,
        target: &Inode,
    ) -> Result<(), FsError> {
        self.place_in_journal(tree, target.ino)?;
        self.note_changed(target.ino, &mut target.state.lock())?;
        self.record_new_as(tree, link, b"", Some(target.ino))
    }

    /// Writes down all hard links that there are, which the format so far had no words for.
    pub(crate) fn record_links(&self) -> io::Result<()> {
        let tree = self.tree.lock();
        for (link, target) in tree.links() {
            for ino in [target, link] {
                self.place_in_journal(&tree, ino)?;
                if let Some(inode) = tree.inode(ino) {
                    self.note_changed(ino, &mut inode.state.lock())?;
                }
            }
            self.journal.append(&Record::Linked { ino: link, target })?;
        }
        Ok(())
    }

    /// An inode, if it is a hard link, is none any more: it is about to lose its name.
    pub(crate) fn part(&self, tree: &mut Tree, ino: u64) {
        if let Some(alone) = tree.remove_link(ino) {
            self.settle_alone(&alone);
        }
    }

    /// What the store has said may have ended hard links.
    pub(crate) fn settle_parted(&self, tree: &mut Tree) {
        for inode in tree.take_parted() {
            self.settle_alone(&inode);
        }
    }

    /// What has one name only is not kept for that.
    pub(super) fn settle_alone(&self, inode: &Inode) {
        let mut state = inode.state.lock();
        if !state.unsent.any() {
            self.settle(inode.ino, &mut state);
        }
    }

    /// The bucket has another state of an inode: the hard links to it are to become that too.
    pub(crate) fn links_follow(&self, tree: &Tree, target: u64) {
        for link in tree.links_to(target) {
            link.state.lock().changed(Unsent {
                content: true,
                ..Unsent::default()
            });
            self.complete(link.ino);
        }
    }
}
