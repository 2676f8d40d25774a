//! An object's metadata in the journal, as far as programs change them.
//!
//! One record tells of a change. The format before this one has none for metadata alone: as long as it is written, all of
//! the inode is told, which is one record if nothing of it is staged.

use std::io;

use super::{FileSystem, InodeState, Linked, Record, Tree, Unsent, snapshot};
use crate::fs::attr::Attr;
use crate::fs::format::Format;
use crate::store::Metadata;

impl FileSystem {
    /// Whether [`FileSystem::change_metadata`] can tell of a change now; else what is staged has to be brought into the
    /// bucket first.
    pub(crate) fn can_change_metadata(&self, state: &InodeState) -> bool {
        let is_told_alone = self.journal.format() >= Format::CURRENT;
        is_told_alone || state.staged.is_none() || state.linked == Linked::No
    }

    /// Changes an inode's metadata, here and in the journal by one record. The bucket will follow.
    pub(crate) fn change_metadata(
        &self,
        tree: &Tree,
        ino: u64,
        state: &mut InodeState,
        metadata: Metadata,
    ) -> io::Result<()> {
        self.place_in_journal(tree, ino)?;
        let attr = Attr {
            ctime: self.settings.clock.wall(),
            ..state.attr
        };
        let is_whole = self.journal.format() < Format::CURRENT;
        if !is_whole && state.linked != Linked::No {
            self.record_metadata(tree, ino, state, (attr, &metadata))?;
        }
        let before = (
            state.attr,
            std::mem::replace(&mut state.metadata, metadata),
            state.unsent,
        );
        state.attr = attr;
        state.changed(Unsent {
            attributes: true,
            ..Unsent::default()
        });
        let told = match state.linked {
            Linked::No => {
                self.keep_open(ino, state);
                // Of an inode without a name the journal has nothing, but that the request is done.
                self.journal.complete(&Record::Done(Vec::new()))
            }
            _ if is_whole => self.record_whole(tree, ino, state),
            _ => Ok(()),
        };
        if told.is_err() {
            (state.attr, state.metadata, state.unsent) = before;
        }
        told
    }

    fn record_metadata(
        &self,
        tree: &Tree,
        ino: u64,
        state: &mut InodeState,
        (attr, metadata): (Attr, &Metadata),
    ) -> io::Result<()> {
        if !state.journaled && tree.is_directory(ino) == Some(true) {
            self.record_directory(tree, ino, state)?;
        }
        let changed = Record::Metadata {
            ino,
            attr,
            metadata: metadata.clone(),
        };
        self.record(ino, state, &changed)
    }

    /// Tells all of an inode of which nothing is staged, and that it is what was asked for: the first record says so.
    fn record_whole(&self, tree: &Tree, ino: u64, state: &mut InodeState) -> io::Result<()> {
        let records = snapshot(ino, state, tree.changed_directory(ino));
        let (changed, rest) = records.split_first().expect("there is one at least");
        self.journal.complete(changed)?;
        state.journaled = true;
        rest.iter()
            .try_for_each(|record| self.journal.append(record))
    }
}
