//! What a store says, laid under what is known here.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{RESERVED, ROOT, Tree};
use crate::config::options::Ownership;
use crate::fs::attr::Attr;
use crate::fs::cache::BlockCache;
use crate::fs::inode::{Inode, InodeState, Linked, Remote};
use crate::store::{Attributes, FileKind, Key, Metadata, ObjectVersion};

/// What a store said of a name.
#[derive(Debug, Clone)]
pub(crate) enum Observed {
    /// There is an object.
    Object(ObservedObject),
    /// There are keys below it; whether it has a marker was not asked.
    Prefix,
    /// There are keys below it, and this is its marker.
    Directory(Option<ObservedObject>),
}

/// What a store said of an object.
#[derive(Debug, Clone)]
pub(crate) struct ObservedObject {
    pub(crate) size: u64,
    pub(crate) version: ObjectVersion,
    pub(crate) modified: SystemTime,
    /// `None`: a listing does not say, and nobody knows.
    pub(crate) metadata: Option<Metadata>,
}

impl Tree {
    /// To be called before a store is asked about names: the number that its answer is judged by.
    pub(crate) fn begin_question(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Lays a store's answer under what is known here; returns what the name stands for now.
    pub(crate) fn observe(
        &mut self,
        parent: u64,
        name: &Arc<str>,
        observed: &Observed,
        asked: u64,
        now: Duration,
        cache: &BlockCache,
    ) -> Option<Arc<Inode>> {
        let is_directory = !matches!(observed, Observed::Object(_));
        let key = self.child_key(parent, name, is_directory)?;
        let directory = self.directory(parent)?;
        let is_removed = directory
            .removed
            .get(name)
            .is_some_and(|t| t.changed > asked && t.buried.was(is_directory));
        if is_removed || parent == ROOT && &**name == RESERVED {
            return None;
        }
        if let Some(dentry) = directory.children.get(name) {
            let (ino, changed_since) = (dentry.ino, dentry.changed > asked);
            let node = self.nodes.get(ino)?;
            let inode = Arc::clone(self.in_core(ino, node));
            let is_directory = node.directory.is_some();
            let has_unsent_link = self.has_unsent_link(ino);
            let keep = {
                let mut state = inode.state.lock();
                changed_since
                    || has_unsent_link
                    || state.unsent.any()
                    || learn(
                        &mut state,
                        is_directory,
                        &key,
                        observed,
                        &self.ownership,
                        cache,
                    )
            };
            if keep {
                let dentry = self.directory_mut(parent)?.children.get_mut(name)?;
                dentry.seen = dentry.seen.max(asked);
                dentry.confirmed = dentry.confirmed.max(Some(now.into()));
                return Some(inode);
            }
            // Another object by the same name is another inode; whoever has the old one open keeps it.
            self.unlink_node(ino);
        }
        // A directory that is about to go has no entry: what is found below its key is what takes its place.
        let parents_inode = self.inode(parent)?;
        let is_going = parents_inode.state.lock().linked == Linked::Going;
        if is_going || self.is_hidden(parent, name, is_directory) {
            return None;
        }
        let inode = self.new_observed(&key, observed, cache);
        self.link(parent, name, &inode, is_directory, now);
        let dentry = self.directory_mut(parent)?.children.get_mut(name)?;
        dentry.changed = 0;
        dentry.seen = asked;
        Some(inode)
    }

    /// A store said that there is no such name.
    pub(crate) fn observe_absent(&mut self, parent: u64, name: &str, asked: u64) {
        let Some(dentry) = self.directory(parent).and_then(|d| d.children.get(name)) else {
            return;
        };
        let ino = dentry.ino;
        if dentry.changed > asked || self.subtree_is_local(ino) {
            return;
        }
        self.unlink_node(ino);
    }

    /// A listing that began at `asked` has come to its end: what it did not have is not there.
    pub(crate) fn finish_listing(
        &mut self,
        parent: u64,
        asked: u64,
        now: Duration,
        unshowable: u32,
    ) {
        let Some(directory) = self.directory(parent) else {
            return;
        };
        let unseen: Vec<u64> = directory
            .children
            .values()
            .filter(|dentry| dentry.seen < asked && dentry.changed <= asked)
            .map(|dentry| dentry.ino)
            .collect();
        for ino in unseen {
            if !self.subtree_is_local(ino) {
                self.unlink_node(ino);
            }
        }
        if let Some(directory) = self.directory_mut(parent) {
            directory.unshowable = unshowable;
            directory.drop_old_tombstones(now);
            directory.fill_up();
        }
    }

    /// The listing that has come to its end began at `began`: until the ttl has passed since then it is believed about
    /// what it did not have. Not if names that it did have were dropped meanwhile.
    pub(crate) fn note_listed(&mut self, parent: u64, asked: u64, began: Duration) {
        if let Some(directory) = self.directory_mut(parent)
            && directory.dropped <= asked
        {
            directory.listed = Some(began);
        }
    }

    fn new_observed(&mut self, key: &Key, observed: &Observed, cache: &BlockCache) -> Arc<Inode> {
        let kind = match observed {
            Observed::Object(_) => FileKind::File,
            Observed::Prefix | Observed::Directory(_) => FileKind::Directory,
        };
        let inode = self.new_inode(self.unknown_attr(kind), false, None);
        let is_directory = kind == FileKind::Directory;
        learn(
            &mut inode.state.lock(),
            is_directory,
            key,
            observed,
            &self.ownership,
            cache,
        );
        inode
    }

    /// Whether the inode or anything below it is known better here than in the bucket.
    fn subtree_is_local(&self, ino: u64) -> bool {
        let is_local = |ino: u64| {
            let node = self.nodes.get(ino);
            // What is packed is as the bucket has it.
            let in_core = node.and_then(|node| node.body.in_core());
            in_core.is_some_and(|inode| inode.state.lock().unsent.any())
                || self.has_unsent_link(ino)
        };
        is_local(ino) || self.inos_below(ino).into_iter().any(is_local)
    }
}

/// Takes an answer about an inode that is as the bucket has it. `false`: the answer is about another one.
fn learn(
    state: &mut InodeState,
    is_directory: bool,
    key: &Key,
    observed: &Observed,
    ownership: &Ownership,
    cache: &BlockCache,
) -> bool {
    let object = match (is_directory, observed) {
        (true, Observed::Prefix) => return true,
        (true, Observed::Directory(None)) => {
            state.remote = None;
            state.resolved = true;
            return true;
        }
        (true, Observed::Directory(Some(marker))) => marker,
        (false, Observed::Object(object)) => object,
        (true, Observed::Object(_)) | (false, Observed::Prefix | Observed::Directory(_)) => {
            return false;
        }
    };
    let mut content = None;
    if let Some(known) = &mut state.remote {
        if !is_directory && (known.version != object.version || known.size != object.size) {
            return false;
        }
        // A version we wrote ourselves has no time of the store's yet.
        let seen_before = known
            .modified
            .is_none_or(|m| same_second(m, object.modified));
        known.modified = Some(object.modified);
        if seen_before && state.resolved && known.version == object.version {
            return true;
        }
        content = Some(known.content);
    }
    let first_seen = content.is_none();
    let kind = if is_directory {
        FileKind::Directory
    } else {
        FileKind::File
    };
    let (said, resolved) = match &object.metadata {
        Some(metadata) => (Attributes::from_metadata(metadata), true),
        None => (Attributes::default(), false),
    };
    let attr = Attr::of_object(kind, object.size, object.modified, &said, ownership);
    // Its metadata say that it is something else now (a symlink, say): that is another inode.
    if !first_seen && state.resolved && resolved && attr.kind != state.attr.kind {
        return false;
    }
    state.remote = Some(Remote {
        key: key.clone(),
        size: object.size,
        version: object.version.clone(),
        modified: Some(object.modified),
        content: content.unwrap_or_else(|| cache.new_content()),
    });
    state.attr = attr;
    state.resolved = resolved;
    if let Some(metadata) = &object.metadata {
        state.metadata.clone_from(metadata);
    }
    true
}

/// A listing gives milliseconds, a HEAD only seconds.
fn same_second(a: SystemTime, b: SystemTime) -> bool {
    let seconds = |t: SystemTime| {
        t.duration_since(SystemTime::UNIX_EPOCH)
            .ok()
            .map(|d| d.as_secs())
    };
    seconds(a) == seconds(b)
}
