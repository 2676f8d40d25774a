//! What a person can do about a change that does not get into the bucket: bring it elsewhere, or give it up.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::io::pieces_of;
use crate::fs::blocking::blocking;
use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::Inode;
use crate::fs::upload::schedule::Footprint;
use crate::store::{FileKind, Key};

/// Bytes that are read at once.
const STEP: u64 = 1 << 20;

impl FileSystem {
    /// Writes a changed file to the new file `to` of this host, with what it still takes from its object. Returns
    /// the ranges that cannot be read any more: zeros stand in their place.
    pub async fn export(&self, key: &Key, to: &Path) -> Result<Vec<Range<u64>>, FsError> {
        let inode = self.linked_inode(self.changed_file(key)?);
        let file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(to)?;
        let mut missing: Vec<Range<u64>> = Vec::new();
        let mut at = 0;
        loop {
            let size = inode.state.lock().attr.size;
            if at >= size {
                file.set_len(size)?;
                break;
            }
            let range = at..size.min(at + STEP);
            at = range.end;
            match self.export_range(&inode, &file, range.clone()).await {
                Ok(()) => {}
                Err(error @ (FsError::Staging(_) | FsError::TimedOut(_))) => return Err(error),
                Err(error) => {
                    tracing::warn!(bucket = %self.bucket.location(), %key, ?range, %error, "cannot be read");
                    match missing.last_mut() {
                        Some(last) if last.end == range.start => last.end = range.end,
                        _ => missing.push(range),
                    }
                }
            }
        }
        blocking(move || file.sync_all()).await?;
        Ok(missing)
    }

    async fn export_range(
        &self,
        inode: &Inode,
        file: &File,
        range: Range<u64>,
    ) -> Result<(), FsError> {
        let (pieces, object) = {
            let state = inode.state.lock();
            (pieces_of(&state, range.clone())?, self.source_of(&state))
        };
        let mut at = range.start;
        for bytes in self.read_pieces(pieces, object.as_ref(), |_| {}).await? {
            file.write_all_at(&bytes, at)?;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Gives up what was changed about a file, or that it was removed: it is what the bucket has from now on. Who
    /// has it open is told. If nothing but the parts of an upload that came to nothing is left to be done there, they
    /// stay.
    pub async fn discard(&self, key: &Key) -> Result<(), FsError> {
        let discarded = self.discard_at(key).await;
        self.doubt_count();
        discarded
    }

    async fn discard_at(&self, key: &Key) -> Result<(), FsError> {
        let removed = self.tree.lock().orphans_at(key);
        let mut removed = removed.into_iter().filter(|inode| {
            let state = inode.state.lock();
            state.opens == 0
        });
        if let Some(inode) = removed.next() {
            let _turn = self.turnstile.enter(Footprint::key(key.clone())).await;
            let version = inode.state.lock().version();
            self.forget_doomed(key, &inode, version);
            return Ok(());
        }
        let inode = match self.changed_file(key) {
            Err(FsError::NoEntry) if self.leave_parts_at(key) => return Ok(()),
            changed => changed?,
        };
        // What was to be copied from it would be nowhere.
        let links: Vec<Arc<Inode>> = self.tree.lock().links_to(inode.ino).collect();
        for link in links {
            let is_pending = link.state.lock().is_pending();
            if is_pending {
                self.discard_inode(&link).await?;
            }
        }
        self.discard_inode(&inode).await
    }

    async fn discard_inode(&self, inode: &Inode) -> Result<(), FsError> {
        // An upload that is under way comes to its end first.
        let _turn = self.turnstile.enter(Footprint::inode(inode.ino)).await;
        let now = self.now();
        let mut tree = self.tree.lock();
        let (parent, name) = tree.place_of(inode.ino).ok_or(FsError::NoEntry)?;
        tree.part_links(inode.ino);
        self.settle_parted(&mut tree);
        {
            let mut state = inode.state.lock();
            if !state.is_pending() {
                return Err(FsError::NoEntry);
            }
            if state.unsent.place {
                return Err(FsError::Invalid(
                    "the file was renamed as well: export it, then remove it",
                ));
            }
            state.staged = None;
            state.unsent = crate::fs::inode::Unsent::default();
            state.lineage += 1;
            self.settle(inode.ino, &mut state);
        }
        tree.remove(parent, &name, now);
        // The next lookup asks the bucket.
        tree.forget_removal(parent, &name);
        Ok(())
    }

    /// The file whose name spells `key` and that differs from its object.
    fn changed_file(&self, key: &Key) -> Result<Arc<Inode>, FsError> {
        let tree = self.tree.lock();
        let is_changed_file = |inode: &&Arc<Inode>| {
            let state = inode.state.lock();
            state.is_pending() && matches!(state.attr.kind, FileKind::File | FileKind::Symlink)
        };
        let mut changed = tree.inodes_in_core().filter(is_changed_file);
        changed
            .find(|inode| tree.final_key(inode.ino).as_ref() == Some(key))
            .map(Arc::clone)
            .ok_or(FsError::NoEntry)
    }
}
