//! A journal that has grown is written anew.

use std::io;
use std::sync::Arc;

use super::{sent, snapshot};
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::Inode;
use crate::fs::journal::log::LogError;
use crate::fs::journal::record::Record;

impl FileSystem {
    /// Writes the journal anew if most of it is about what is long settled.
    pub(crate) async fn trim_journal(self: &Arc<Self>) {
        let Some(_turn) = self.journal.begin_trim() else {
            return;
        };
        if let Err(error) = self.rewrite_journal().await {
            tracing::warn!(bucket = %self.bucket.location(), %error, "the journal stays long");
        }
    }

    pub(super) async fn rewrite_journal(self: &Arc<Self>) -> Result<(), LogError> {
        let fs = Arc::clone(self);
        self.journal.rewrite(move || fs.write_all_changes()).await
    }

    /// Tells the journal that is to be written anew all that it has to know.
    fn write_all_changes(&self) -> io::Result<()> {
        {
            let tree = self.tree.lock();
            for inode in tree.orphans() {
                let state = inode.state.lock();
                if let Some(remote) = &state.remote {
                    self.journal.restate(&Record::Doomed(sent(remote)));
                } else if let Some(attempt) = state.attempt.clone() {
                    self.journal.restate(&Record::InDoubt(attempt));
                }
            }
        }
        let inodes: Vec<Arc<Inode>> = self.tree.lock().inodes_in_core().cloned().collect();
        let mut kept = Vec::new();
        for inode in inodes {
            let tree = self.tree.lock();
            let is_known = {
                let state = inode.state.lock();
                state.journaled || state.opens > 0
            };
            if is_known {
                self.place_in_journal(&tree, inode.ino)?;
            }
            let directory = tree.changed_directory(inode.ino);
            let mut state = inode.state.lock();
            drop(tree);
            if state.journaled {
                let snapshot = snapshot(inode.ino, &state, directory);
                snapshot
                    .iter()
                    .for_each(|record| self.journal.restate(record));
                let staged = state.staged.as_mut().filter(|staged| staged.is_kept());
                kept.extend(staged.map(|staged| staged.keep()));
            }
        }
        if self.keeps_links() {
            for (ino, target) in self.tree.lock().links() {
                self.journal.restate(&Record::Linked { ino, target });
            }
        }
        // All of a file is told of at once: what somebody synced is lost with what nobody did.
        kept.iter().try_for_each(|file| file.sync_data())
    }
}
