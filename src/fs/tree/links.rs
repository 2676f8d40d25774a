//! Hard links: the names that a file has beside its first.
//!
//! Each is a node whose inode has an object of its own and is unknown to the kernel: who asks about the name is answered
//! with the inode that it is a link to, its target.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::Tree;
use crate::fs::inode::Inode;

/// Which inodes stand for hard links, and to what.
#[derive(Debug, Default)]
pub(super) struct Links {
    targets: FxHashMap<u64, u64>,
    links: FxHashMap<u64, BTreeSet<u64>>,
    /// Inodes that were linked until a store's answer took one of the names away.
    parted: Vec<Arc<Inode>>,
}

impl Links {
    /// How many hard links there are to an inode.
    pub(super) fn of(&self, target: u64) -> u32 {
        let links = self.links.get(&target).map_or(0, BTreeSet::len);
        u32::try_from(links).unwrap_or(u32::MAX)
    }
}

impl Tree {
    /// The inode of this number is a hard link to that one from now on.
    pub(crate) fn add_link(&mut self, link: u64, target: u64) {
        self.links.targets.insert(link, target);
        self.links.links.entry(target).or_default().insert(link);
        for ino in [link, target] {
            if let Some(inode) = self.inode(ino) {
                inode.state.lock().is_hard_linked = true;
            }
        }
    }

    /// The inode is no hard link any more. Returns what it was a link to, if that has none left.
    pub(crate) fn remove_link(&mut self, link: u64) -> Option<Arc<Inode>> {
        let target = self.links.targets.remove(&link)?;
        self.no_more_linked(link);
        let links = self.links.links.get_mut(&target)?;
        links.remove(&link);
        if !links.is_empty() {
            return None;
        }
        self.links.links.remove(&target);
        self.no_more_linked(target)
    }

    /// What the inode is a hard link to.
    pub(crate) fn link_target(&self, link: u64) -> Option<Arc<Inode>> {
        self.inode(*self.links.targets.get(&link)?)
    }

    /// The hard links to an inode.
    pub(crate) fn links_to(&self, target: u64) -> impl Iterator<Item = Arc<Inode>> + '_ {
        let links = self.links.links.get(&target).into_iter().flatten();
        links.filter_map(|link| self.inode(*link))
    }

    /// Every hard link, with its target.
    pub(crate) fn links(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let links = self.links.targets.iter();
        links.map(|(link, target)| (*link, *target))
    }

    /// Inodes that were linked when this was last asked, and are not any more because of what the store has said.
    pub(crate) fn take_parted(&mut self) -> Vec<Arc<Inode>> {
        std::mem::take(&mut self.links.parted)
    }

    /// Nothing is a link to an inode any more, nor it to anything: its name is not what it was, by what the store says.
    pub(crate) fn part_links(&mut self, ino: u64) {
        let is_link = self.links.targets.contains_key(&ino);
        let alone = self.remove_link(ino);
        let links = self.links.links.remove(&ino).unwrap_or_default();
        if !is_link && links.is_empty() {
            return;
        }
        let mut parted: Vec<Arc<Inode>> = alone.into_iter().collect();
        for link in &links {
            self.links.targets.remove(link);
        }
        parted.extend(
            links
                .into_iter()
                .filter_map(|link| self.no_more_linked(link)),
        );
        parted.extend(self.no_more_linked(ino));
        self.links.parted.extend(parted);
    }

    /// Whether what an inode is has still to be copied to a name that is a hard link to it.
    pub(super) fn has_unsent_link(&self, target: u64) -> bool {
        self.links_to(target)
            .any(|link| link.state.lock().unsent.any())
    }

    fn no_more_linked(&self, ino: u64) -> Option<Arc<Inode>> {
        let inode = self.inode(ino)?;
        inode.state.lock().is_hard_linked = false;
        Some(inode)
    }
}
