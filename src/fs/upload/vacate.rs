//! What has to go elsewhere before something is put at a key.
//!
//! An inode that was renamed leaves its object where it was until its own upload. Whoever is to be put there
//! waits for that upload; two that wait for each other are parted by a copy aside.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::schedule::{Footprint, Turn};
use super::worker::Progress;
use crate::fs::durable;
use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{Inode, Remote};
use crate::fs::journal::record::SentObject;
use crate::fs::tree::Tree;
use crate::store::Key;

/// How often an upload looks for something in its way: whoever moves names faster than we send has to wait.
const VACATE_MAX: u32 = 1000;

impl FileSystem {
    /// Brings what was changed about an inode before the call into the bucket.
    pub(crate) async fn upload(
        &self,
        inode: &Arc<Inode>,
        progress: &Progress,
    ) -> Result<(), FsError> {
        self.upload_in_chain(inode, progress, Vec::new()).await
    }

    /// Like [`FileSystem::upload`], for an inode whose object is in the way of the inodes in `chain`, each in the
    /// way of the one before.
    fn upload_in_chain<'a>(
        &'a self,
        inode: &'a Arc<Inode>,
        progress: &'a Progress,
        mut chain: Vec<u64>,
    ) -> BoxFuture<'a, Result<(), FsError>> {
        async move {
            chain.push(inode.ino);
            for _ in 0..VACATE_MAX {
                let Some((key, from)) = self.places_of(inode) else {
                    // A file without a name has no key to go to.
                    return Ok(());
                };
                if let Some(other) = self.in_the_way(inode.ino, &key) {
                    if chain.contains(&other.ino) {
                        self.move_aside(&other).await?;
                    } else {
                        self.upload_in_chain(&other, progress, chain.clone())
                            .await?;
                    }
                    continue;
                }
                let footprint = Footprint::key(key.clone())
                    .and(Footprint::key(from.clone()))
                    .and(Footprint::inode(inode.ino));
                let _turn = self.turnstile.enter(footprint).await;
                if self.places_of(inode) == Some((key.clone(), from))
                    && self.in_the_way(inode.ino, &key).is_none()
                    && self.upload_to(inode, &key, progress).await?
                {
                    return Ok(());
                }
            }
            Err(FsError::Stale)
        }
        .boxed()
    }

    /// The key that an inode's name spells, and the one that its object is at.
    fn places_of(&self, inode: &Inode) -> Option<(Key, Key)> {
        let key = self.tree.lock().key_of(inode.ino)?;
        let from = inode.state.lock().moved_from.clone();
        Some((key.clone(), from.unwrap_or(key)))
    }

    /// The inode whose object is at `key` and has to go elsewhere first.
    fn in_the_way(&self, ino: u64, key: &Key) -> Option<Arc<Inode>> {
        let tree = self.tree.lock();
        let other = tree.moved_from(key).filter(|other| *other != ino)?;
        tree.inode(other)
    }

    /// Waits for the turn at the keys that `spell` names, like [`FileSystem::turn_at`], with nothing in the way at
    /// the keys `over`, or below them if they are directories'.
    pub(crate) async fn turn_at_vacated<K: PartialEq + Send + Sync>(
        &self,
        spell: impl Fn(&Tree) -> Result<K, FsError> + Send + Sync,
        over: impl Fn(&K) -> Vec<Key> + Send + Sync,
        footprint: impl Fn(&K) -> Footprint + Send + Sync,
    ) -> Result<(Turn, K), FsError> {
        loop {
            let keys = spell(&self.tree.lock())?;
            for inode in self.moving_over(&over(&keys)) {
                self.upload(&inode, &Progress::default()).await?;
            }
            let (turn, keys) = self.turn_at(&spell, &footprint).await?;
            if self.moving_over(&over(&keys)).is_empty() {
                return Ok((turn, keys));
            }
        }
    }

    /// The inodes whose objects have to go elsewhere before anything is done at these keys, or below those that
    /// are directories'.
    pub(crate) fn moving_over(&self, keys: &[Key]) -> Vec<Arc<Inode>> {
        let tree = self.tree.lock();
        let moving = keys.iter().flat_map(|key| {
            if key.is_dir() {
                tree.moving_over(key)
            } else {
                tree.moved_from(key).into_iter().collect()
            }
        });
        moving.filter_map(|ino| tree.inode(ino)).collect()
    }

    /// Brings an object that is in the way, and cannot go to its place before what it is in the way of, to a
    /// place between.
    async fn move_aside(&self, inode: &Arc<Inode>) -> Result<(), FsError> {
        let Some(from) = inode.state.lock().moved_from.clone() else {
            return Ok(());
        };
        let footprint = Footprint::key(from.clone()).and(Footprint::inode(inode.ino));
        let turn = self.turnstile.enter(footprint).await;
        let remote = inode.state.lock().remote.clone();
        let Some(remote) = remote.filter(|remote| remote.key == from) else {
            return Ok(());
        };
        let (aside, version) = self.copy_to_reserved("moving", inode, &remote).await?;
        let left = durable::sent(&remote);
        {
            let mut tree = self.tree.lock();
            {
                let mut state = inode.state.lock();
                state.remote = Some(Remote {
                    key: aside,
                    version,
                    modified: None,
                    ..remote
                });
                self.record_base(inode.ino, &mut state, Some(left.clone()))?;
            }
            tree.note_place(inode, self.now());
            self.leave(&mut tree, left.clone());
        }
        drop(turn);
        self.delete_left(&left.key).await
    }

    /// An object that nobody needs stays, hidden, until it is deleted.
    fn leave(&self, tree: &mut Tree, left: SentObject) {
        let key = left.key.clone();
        let nameless = tree.nameless(self.remote_of(left));
        tree.add_orphan(key, nameless);
    }

    /// Deletes what was left at `key`; what cannot be deleted now is tried again later.
    async fn delete_left(&self, key: &Key) -> Result<(), FsError> {
        let left = self.tree.lock().orphans_at(key);
        for (_, inode) in left {
            if inode.state.lock().opens > 0 {
                continue;
            }
            if let Err(error) = self.delete_orphan(&inode).await {
                self.note_error(&format!("delete of {key:?}"), &error);
                let now = self.now();
                self.uploader.tell(|queue| queue.urgent(inode.ino, now));
            }
        }
        Ok(())
    }
}
