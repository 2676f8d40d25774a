//! What has to be done elsewhere before something is put at a key.
//!
//! An inode that was renamed leaves its objects where they were until its own upload. Whoever is to be put there
//! waits for that upload, and whatever is below a directory waits for the directory's; two that wait for each other
//! are parted by a copy aside.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::schedule::Footprint;
use super::worker::Progress;
use crate::fs::durable;
use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{Inode, Remote};
use crate::fs::journal::record::Record;
use crate::fs::tree::{Origin, RESERVED, Tree};
use crate::store::Key;

/// The folder of what has no place yet.
const ASIDE: &str = "moving";

/// How often an upload looks for something in its way: whoever moves names faster than we send has to wait.
const VACATE_MAX: u32 = 1000;

/// What has to be uploaded before an inode can be.
#[derive(Debug)]
enum Before {
    /// A directory above it, which has no place in the bucket yet or another one than its name says.
    Above(Arc<Inode>),
    /// What still has its objects where the inode's belong.
    InTheWay(Arc<Inode>),
    /// The directory that its object leaves, which has to outlive it.
    Left(Arc<Inode>),
    /// What it is a hard link to.
    Target(Arc<Inode>),
}

/// Where an inode's objects belong, and where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) to: Key,
    pub(super) from: Key,
    /// The inode that is to be copied there, and where its object is.
    copied: Option<(u64, Key)>,
}

impl FileSystem {
    /// Brings what was changed about an inode before the call into the bucket.
    pub(crate) async fn upload(
        &self,
        inode: &Arc<Inode>,
        progress: &Progress,
    ) -> Result<(), FsError> {
        self.upload_in_chain(inode, progress, Vec::new()).await
    }

    /// Like [`FileSystem::upload`], for an inode that each of the inodes in `chain` waits for by way of the next.
    fn upload_in_chain<'a>(
        &'a self,
        inode: &'a Arc<Inode>,
        progress: &'a Progress,
        mut chain: Vec<u64>,
    ) -> BoxFuture<'a, Result<(), FsError>> {
        async move {
            chain.push(inode.ino);
            // It may be written to again and again: what the bucket has of it then is copied.
            let mut has_sent_target = false;
            for _ in 0..VACATE_MAX {
                let Some(route) = self.route_of(inode) else {
                    // What has no name has no key to go to.
                    return Ok(());
                };
                if self.is_sent(inode) {
                    return Ok(());
                }
                match self.before(inode, &route, &chain, has_sent_target) {
                    Some(Before::Above(other) | Before::Target(other))
                        if chain.contains(&other.ino) =>
                    {
                        // That one waits for what is to go below it, or to leave, and cannot before.
                        return self.move_aside(inode).await;
                    }
                    Some(Before::Target(target)) => {
                        self.upload_in_chain(&target, progress, chain.clone())
                            .await?;
                        has_sent_target = true;
                        continue;
                    }
                    Some(Before::InTheWay(other)) if chain.contains(&other.ino) => {
                        self.move_aside(&other).await?;
                        continue;
                    }
                    Some(Before::Above(other) | Before::InTheWay(other) | Before::Left(other)) => {
                        self.upload_in_chain(&other, progress, chain.clone())
                            .await?;
                        continue;
                    }
                    None => {}
                }
                let is_directory = self.tree.lock().is_directory(inode.ino) == Some(true);
                let _turn = self.turnstile.enter(route.footprint(inode.ino)).await;
                if self.route_of(inode).as_ref() != Some(&route)
                    || self
                        .before(inode, &route, &chain, has_sent_target)
                        .is_some()
                {
                    continue;
                }
                self.tree.lock().find_place(inode, self.now());
                if !inode.state.lock().unsent.any() {
                    continue;
                }
                if is_directory {
                    // The next round finds out whether anything is left to do.
                    self.upload_directory(inode, &route, progress).await?;
                } else if self.upload_to(inode, &route.to, progress).await? {
                    return Ok(());
                }
            }
            Err(FsError::Stale)
        }
        .boxed()
    }

    /// Whether nothing of the inode is left to send.
    fn is_sent(&self, inode: &Inode) -> bool {
        let mut state = inode.state.lock();
        let is_sent = !state.unsent.any();
        if is_sent {
            self.settle(inode.ino, &mut state);
        }
        is_sent
    }

    /// `None` if the inode has no name.
    fn route_of(&self, inode: &Inode) -> Option<Route> {
        let tree = self.tree.lock();
        if tree.is_directory(inode.ino)? {
            let from = tree.key_of(inode.ino)?;
            let to = match tree.migration(inode.ino) {
                Some(to) => to,
                None => tree.destination(inode.ino)?,
            };
            let copied = None;
            return Some(Route { to, from, copied });
        }
        let to = tree.key_of(inode.ino)?;
        let (from, follows_target) = {
            let state = inode.state.lock();
            (state.moved_from.clone(), state.unsent.content)
        };
        let target = tree.link_target(inode.ino).filter(|_| follows_target);
        let copied = target.and_then(|target| {
            let state = target.state.lock();
            Some((target.ino, state.remote.as_ref()?.key.clone()))
        });
        Some(Route {
            from: from.unwrap_or_else(|| to.clone()),
            to,
            copied,
        })
    }

    fn before(
        &self,
        inode: &Inode,
        route: &Route,
        chain: &[u64],
        has_sent_target: bool,
    ) -> Option<Before> {
        let tree = self.tree.lock();
        if !has_sent_target
            && inode.state.lock().unsent.content
            && let Some(target) = tree.link_target(inode.ino)
            && target.state.lock().unsent.any()
        {
            return Some(Before::Target(target));
        }
        // A copy that was begun is finished, wherever the directory is to go then.
        if tree.migration(inode.ino).is_none()
            && let Some(above) = tree.displaced_ancestor(inode.ino)
        {
            return Some(Before::Above(above));
        }
        if let Some(other) = tree.in_the_way(inode.ino, route) {
            return Some(Before::InTheWay(other));
        }
        if route.from == route.to {
            return None;
        }
        let (left, _) = tree.find_parent(&route.from)?;
        let left = tree.inode(left).filter(|left| !chain.contains(&left.ino))?;
        let has_to_stay = left.state.lock().unsent.content;
        has_to_stay.then_some(Before::Left(left))
    }

    /// Brings objects that are in the way, and cannot go to their place before what they are in the way of, to a
    /// place between.
    async fn move_aside(&self, inode: &Arc<Inode>) -> Result<(), FsError> {
        let origin = self.tree.lock().origin(inode.ino);
        if let Origin::Elsewhere(from) = origin {
            let route = Route {
                to: Key::new(format!("{RESERVED}/{ASIDE}/{}/", Uuid::now_v7())),
                from,
                copied: None,
            };
            let _turn = self.turnstile.enter(route.footprint(inode.ino)).await;
            let is_still_there = {
                let tree = self.tree.lock();
                tree.origin(inode.ino) == Origin::Elsewhere(route.from.clone())
                    && tree.migration(inode.ino).is_none()
            };
            if !is_still_there {
                return Ok(());
            }
            return self.migrate(inode, &route, &Progress::default()).await;
        }
        let Some(from) = inode.state.lock().moved_from.clone() else {
            return Ok(());
        };
        let at = Footprint::key(from.clone()).and(Footprint::inode(inode.ino));
        let turn = self.turnstile.enter(at).await;
        let remote = {
            let state = inode.state.lock();
            state
                .remote
                .clone()
                .filter(|_| state.moved_from.as_ref() == Some(&from))
        };
        let Some(remote) = remote else {
            return Ok(());
        };
        let (aside, version) = self.copy_to_reserved(ASIDE, inode, &remote).await?;
        let copy = Remote {
            key: aside,
            version,
            modified: None,
            ..remote.clone()
        };
        let left = {
            let mut tree = self.tree.lock();
            let mut state = inode.state.lock();
            let left = if state.moved_from.as_ref() == Some(&from) {
                let left = durable::sent(&remote);
                let base = (Some(copy), state.overwrites.clone());
                self.record_base(inode.ino, &mut state, base, Some(left.clone()))?;
                left
            } else {
                // It has lost its name meanwhile, and its object is somebody else's matter.
                let left = durable::sent(&copy);
                self.append_or_warn(&Record::Doomed(left.clone()));
                left
            };
            drop(state);
            tree.note_place(inode, self.now());
            self.leave(&mut tree, left)
        };
        drop(turn);
        let now = self.now();
        self.uploader.tell(|queue| queue.urgent(left.ino, now));
        Ok(())
    }
}

impl Route {
    /// The keys that the way touches: of a directory that stays where it is, its marker's. There is never a file and
    /// a directory of one name: some stores have no room for both, and other hosts would see both.
    fn footprint(&self, ino: u64) -> Footprint {
        let stays = self.from == self.to;
        let at = |key: &Key| match counterpart(key) {
            Counterpart::File(file) if stays => {
                Footprint::key(key.clone()).and(Footprint::key(file))
            }
            Counterpart::File(file) => Footprint::below(key.clone()).and(Footprint::key(file)),
            Counterpart::Directory(directory) => {
                Footprint::key(key.clone()).and(Footprint::below(directory))
            }
        };
        let own = at(&self.from).and(at(&self.to)).and(Footprint::inode(ino));
        match &self.copied {
            Some((target, key)) => own
                .and(Footprint::inode(*target))
                .and(Footprint::key(key.clone())),
            None => own,
        }
    }
}

/// What else could have the name of what is at a key.
pub(super) enum Counterpart {
    File(Key),
    Directory(Key),
}

/// See [`Counterpart`].
pub(super) fn counterpart(key: &Key) -> Counterpart {
    match key.as_str().strip_suffix('/') {
        Some(file) => Counterpart::File(Key::new(file)),
        None => Counterpart::Directory(Key::new(format!("{key}/"))),
    }
}

impl Tree {
    /// What else than the inode still has its objects where the way ends: there, around it, where something of the
    /// same name and another kind would be, or, where the objects of a directory are to go, within.
    fn in_the_way(&self, ino: u64, Route { to, from, .. }: &Route) -> Option<Arc<Inode>> {
        let mut others = self.occupants_around(to);
        let mut add_within = |directory: &Key| {
            others.extend(self.occupants_below(directory));
            others.extend(self.moved_from_below(directory));
        };
        match counterpart(to) {
            Counterpart::Directory(directory) => {
                add_within(&directory);
                others.extend(self.moved_from(to));
            }
            Counterpart::File(file) => {
                if to != from {
                    add_within(to);
                }
                others.extend(self.moved_from(&file));
            }
        }
        let other = others.into_iter().find(|other| *other != ino);
        self.inode(other?)
    }
}
