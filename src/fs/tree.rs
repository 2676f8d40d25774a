//! Names: which inode is called what, as this host sees it.
//!
//! What the store says (listings, HEADs) is laid under what was changed here: an answer to a question that
//! was asked before a local change says nothing about that name. Every question therefore carries the
//! [`Tree::begin_question`] it was asked at, and every name the sequence number of its last local change.
//!
//! No I/O. Lock order: the tree's lock first, then at most one inode's.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU64;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::attr::Attr;
use super::error::FsError;
use super::inode::{Inode, InodeState, Linked, Remote};
use super::kept::{Kept, NUMBERS_AHEAD};
use super::name::LongNames;
use super::sparse::SparseArray;
use crate::config::options::Ownership;
use crate::store::{Attributes, FileKind, Key};

mod hidden;
mod idle;
mod kept;
mod keys;
mod links;
mod observe;
mod packed;

use idle::Idle;
use links::Links;
use packed::Body;

pub(crate) use idle::IdleNames;
pub(crate) use keys::{Origin, prefixes};
pub(crate) use observe::{Observed, ObservedObject};

/// The root's number, by the kernel's rule.
pub(crate) const ROOT: u64 = 1;

/// A name of ours at the root: never shown, never given.
pub(crate) const RESERVED: &str = ".bucketvol";

/// A name removed here hides what the store says of it for this long after the removal is done: longer
/// than any question that was asked before can take.
const TOMBSTONE_TTL: Duration = Duration::from_secs(180);

/// A directory that is not listed meanwhile looks through its tombstones when it has this many.
const TOMBSTONES_MAX: usize = 1024;

/// A directory of so many names is worth the time to save their memory.
const FILL_UP_MIN: usize = 512;

/// The names of one volume.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: SparseArray<Node>,
    /// The inodes that are in core, and of those that are gone some. Unpacking one is a look at the tree, not a change.
    in_core: RefCell<Vec<u64>>,
    /// With so many in core, those that nobody uses are packed.
    pack_at: usize,
    idle: Idle,
    kept: Arc<Kept>,
    next_ino: u64,
    sequence: u64,
    ownership: Ownership,
    /// Inodes without a name, by the key at which their object still is; and those keys by the inodes' numbers.
    orphans: BTreeMap<Key, Vec<Arc<Inode>>>,
    orphan_keys: HashMap<u64, Key>,
    /// Keys whose objects are not to be seen, and how many say so: they wait for a last close, or for a rename to
    /// be followed. A directory's key hides whatever would be listed under its name.
    hidden: BTreeMap<Key, usize>,
    /// Directories that are gone, but for hidden objects below them.
    ghosts: BTreeSet<Key>,
    /// Files whose objects are not where their names say, by the keys where they still are.
    moved: BTreeMap<Key, u64>,
    /// Directories whose objects are not where their names say, by the keys below which they still are.
    origins: BTreeMap<Key, u64>,
    /// Directories whose objects are being copied, by the keys below which the copies are.
    migrations: BTreeMap<Key, u64>,
    links: Links,
    long_names: LongNames,
}

#[derive(Debug)]
struct Node {
    body: Body,
    place: Option<Place>,
    /// Times the kernel was told of the inode and has not forgotten it.
    nlookup: u64,
    /// It is among the idle ones, or was.
    is_queued: bool,
    /// It has a row for a later process.
    is_kept: bool,
    directory: Option<Box<Directory>>,
}

impl Node {
    /// One that the kernel was not told of.
    fn new(body: Body, parent: u64, name: &Arc<str>, is_directory: bool) -> Self {
        let name = Arc::clone(name);
        Self {
            body,
            place: Some(Place { parent, name }),
            nlookup: 0,
            is_queued: false,
            is_kept: false,
            directory: is_directory.then(Box::default),
        }
    }
}

#[derive(Debug, Clone)]
struct Place {
    parent: u64,
    name: Arc<str>,
}

#[derive(Debug, Default)]
struct Directory {
    children: BTreeMap<Arc<str>, Dentry>,
    /// So many there were when their tree was last filled up.
    filled_up: usize,
    /// So many of them are directories.
    subdirectories: u32,
    /// Names in the bucket that cannot be shown, as the last whole listing had them.
    unshowable: u32,
    removed: HashMap<Arc<str>, Tombstone>,
    /// When the last whole listing began: names that are not here are not there.
    listed: Option<Duration>,
    /// Sequence of when a name was last dropped that may still be there.
    dropped: u64,
    origin: Origin,
    /// The key below which packed inodes have their objects that do not say otherwise. It never changes.
    objects_below: Option<Arc<str>>,
    /// Its objects are being copied below this key, or were when an earlier process ended.
    migration: Option<Key>,
}

impl Directory {
    fn bury(&mut self, name: &Arc<str>, tombstone: Tombstone, now: Duration) {
        if self.removed.len() >= TOMBSTONES_MAX {
            self.drop_old_tombstones(now);
        }
        self.removed.insert(Arc::clone(name), tombstone);
    }

    /// Names that came in order, as those of a listing do, leave a B-tree half empty.
    fn fill_up(&mut self) {
        if self.children.len() > self.filled_up.saturating_mul(2).max(FILL_UP_MIN) {
            let children = std::mem::take(&mut self.children);
            self.children = children.into_iter().collect();
            self.filled_up = self.children.len();
        }
    }

    fn drop_old_tombstones(&mut self, now: Duration) {
        self.removed
            .retain(|_, tombstone| now.saturating_sub(tombstone.since) < TOMBSTONE_TTL);
    }
}

#[derive(Debug)]
struct Dentry {
    ino: u64,
    /// Sequence of the last local change.
    changed: u64,
    /// Sequence of the last listing that had it.
    seen: u64,
    /// When the store last said so, or we changed it; `None`: it is known to be out of date.
    confirmed: Option<Moment>,
}

/// A moment of the monotonic clock. It takes half the room of a [`Duration`] that may be missing: there is one for each
/// name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Moment(NonZeroU64);

impl From<Duration> for Moment {
    fn from(since: Duration) -> Self {
        let nanos = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        Self(NonZeroU64::MIN.saturating_add(nanos))
    }
}

impl From<Moment> for Duration {
    fn from(moment: Moment) -> Self {
        Self::from_nanos(moment.0.get() - 1)
    }
}

impl Dentry {
    /// Whether nobody has to ask what the name stands for, an inode in this state, if what was learned less than `ttl`
    /// ago is believed.
    fn is_fresh(&self, state: &InodeState, now: Duration, ttl: Duration) -> bool {
        let believed = |since: Moment| now.saturating_sub(since.into()) < ttl;
        state.resolved && (state.unsent.any() || self.confirmed.is_some_and(believed))
    }
}

#[derive(Debug)]
struct Tombstone {
    changed: u64,
    since: Duration,
    buried: Buried,
}

/// What is gone from under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Buried {
    /// Whatever had the name.
    Name,
    /// An object that was hidden; a directory of the same name may well be there.
    File,
    /// A directory's marker that was hidden; a file of the same name may well be there.
    Directory,
}

impl Buried {
    /// Whether an answer that tells of a directory, or of a file, is about what is gone.
    fn was(self, is_directory: bool) -> bool {
        match self {
            Self::Name => true,
            Self::File => !is_directory,
            Self::Directory => is_directory,
        }
    }
}

/// What the tree knows of a name.
#[derive(Debug)]
pub(crate) enum Known {
    /// It is this, and its attributes are known.
    Fresh(Arc<Inode>),
    /// It was this when somebody last looked, or its attributes were not asked for.
    Stale(Arc<Inode>),
    /// There is no such name.
    Absent,
    /// Nobody has looked lately.
    Unknown,
}

/// A name of a directory as a reader of the directory sees it.
#[derive(Debug, Clone)]
pub(crate) struct Child {
    pub(crate) name: Arc<str>,
    pub(crate) ino: u64,
}

impl Tree {
    /// A tree with nothing but its root.
    pub(crate) fn new(
        root: Attr,
        ownership: Ownership,
        kept: Arc<Kept>,
        idle: Arc<IdleNames>,
    ) -> Self {
        let inode = Arc::new(Inode::new(ROOT, root, true, None));
        let mut tree = Self {
            nodes: SparseArray::default(),
            in_core: RefCell::default(),
            pack_at: 0,
            idle: Idle::new(idle),
            kept,
            next_ino: ROOT + 1,
            sequence: 0,
            ownership,
            orphans: BTreeMap::new(),
            orphan_keys: HashMap::new(),
            hidden: BTreeMap::new(),
            ghosts: BTreeSet::new(),
            moved: BTreeMap::new(),
            origins: BTreeMap::new(),
            migrations: BTreeMap::new(),
            links: Links::default(),
            long_names: LongNames::default(),
        };
        let root = Node {
            body: Body::new(inode),
            place: None,
            nlookup: 1,
            is_queued: false,
            is_kept: false,
            directory: Some(Box::default()),
        };
        tree.insert_node(ROOT, root);
        tree
    }

    /// The inode of this number.
    pub(crate) fn inode(&self, ino: u64) -> Option<Arc<Inode>> {
        let node = self.nodes.get(ino)?;
        Some(Arc::clone(self.in_core(ino, node)))
    }

    /// Whether the inode is a directory; `None` if it is unknown.
    pub(crate) fn is_directory(&self, ino: u64) -> Option<bool> {
        self.nodes.get(ino).map(|node| node.directory.is_some())
    }

    /// How many names in the bucket cannot be shown, of the directories that were listed.
    pub(crate) fn unshowable(&self) -> u64 {
        let directories = self.nodes.iter().filter_map(|(_, n)| n.directory.as_ref());
        directories
            .map(|directory| u64::from(directory.unshowable))
            .sum()
    }

    /// How many names lead to an inode, the `.` and `..` of directories among them.
    pub(crate) fn nlink(&self, ino: u64) -> u32 {
        match self.nodes.get(ino) {
            Some(node) if node.place.is_some() || ino == ROOT => match &node.directory {
                Some(directory) => directory.subdirectories.saturating_add(2),
                None => self.links.of(ino).saturating_add(1),
            },
            Some(_) | None => 0,
        }
    }

    /// The inode's parent; the root is its own. `None` if it has no name.
    pub(crate) fn parent(&self, ino: u64) -> Option<u64> {
        match self.nodes.get(ino)?.place.as_ref() {
            Some(place) => Some(place.parent),
            None if ino == ROOT => Some(ROOT),
            None => None,
        }
    }

    /// The directory and name that an inode is found under.
    pub(crate) fn place_of(&self, ino: u64) -> Option<(u64, Arc<str>)> {
        let place = self.nodes.get(ino)?.place.as_ref()?;
        Some((place.parent, Arc::clone(&place.name)))
    }

    /// What a name stands for here.
    pub(crate) fn child(&self, parent: u64, name: &str) -> Option<u64> {
        Some(self.directory(parent)?.children.get(name)?.ino)
    }

    /// Fails unless the inode is a directory that is there to stay.
    pub(crate) fn check_parent(&self, ino: u64) -> Result<(), FsError> {
        let node = self.nodes.get(ino).ok_or(FsError::NoEntry)?;
        if node.directory.is_none() {
            return Err(FsError::NotDirectory);
        }
        match self.in_core(ino, node).state.lock().linked {
            Linked::Yes => Ok(()),
            Linked::Going | Linked::No => Err(FsError::NoEntry),
        }
    }

    /// What is known of a name, if what was learned less than `ttl` ago is believed.
    pub(crate) fn look(&self, parent: u64, name: &str, now: Duration, ttl: Duration) -> Known {
        let Some(directory) = self.directory(parent) else {
            return Known::Absent;
        };
        let believed = |since: Duration| now.saturating_sub(since) < ttl;
        if let Some(dentry) = directory.children.get(name)
            && let Some(inode) = self.inode(dentry.ino)
        {
            let is_fresh = dentry.is_fresh(&inode.state.lock(), now, ttl);
            return if is_fresh {
                Known::Fresh(inode)
            } else {
                Known::Stale(inode)
            };
        }
        let is_removed = directory
            .removed
            .get(name)
            .is_some_and(|t| t.buried == Buried::Name && believed(t.since));
        if is_removed || self.is_hidden(parent, name, true) || parent == ROOT && name == RESERVED {
            return Known::Absent;
        }
        if self.is_listed(parent, now, ttl) {
            Known::Absent
        } else {
            Known::Unknown
        }
    }

    /// Names of files that come after `name` in the directory and that nobody can be told of without asking the store,
    /// `count` at most. Looks at a few names beyond, and no further.
    pub(crate) fn stale_after(
        &self,
        parent: u64,
        name: &str,
        count: usize,
        now: Duration,
        ttl: Duration,
    ) -> Vec<Arc<str>> {
        /// Of so many names after each other one at least is to be asked for, or there is nothing to ask ahead.
        const FRESH_RUN_MAX: usize = 64;
        let Some(directory) = self.directory(parent) else {
            return Vec::new();
        };
        let after = (Bound::Excluded(name), Bound::Unbounded);
        let following = directory.children.range::<str, _>(after);
        let stale = following.take(count + FRESH_RUN_MAX).filter(|(_, dentry)| {
            let node = self.nodes.get(dentry.ino);
            node.is_some_and(|node| {
                let state = self.in_core(dentry.ino, node).state.lock();
                let is_fresh = dentry.is_fresh(&state, now, ttl);
                node.directory.is_none() && !is_fresh && !state.unsent.any()
            })
        });
        stale
            .take(count)
            .map(|(name, _)| Arc::clone(name))
            .collect()
    }

    /// Whether all names of the directory are known: its last whole listing is still believed, or the bucket knows
    /// nothing of it.
    pub(crate) fn is_listed(&self, ino: u64, now: Duration, ttl: Duration) -> bool {
        let Some(directory) = self.directory(ino) else {
            return false;
        };
        let believed = |listed| now.saturating_sub(listed) < ttl;
        directory.origin == Origin::Nowhere || directory.listed.is_some_and(believed)
    }

    /// Whether the directory has an entry that is known here.
    pub(crate) fn has_children(&self, ino: u64) -> bool {
        self.directory(ino).is_some_and(|d| !d.children.is_empty())
    }

    /// Whether a directory of which the bucket has no entry can go now. A copy of its objects that has begun is to be
    /// finished first: nobody would find what it has copied.
    pub(crate) fn can_be_removed(&self, ino: u64) -> Result<bool, FsError> {
        if self.has_children(ino) {
            return Err(FsError::NotEmpty);
        }
        Ok(self.migration(ino).is_none())
    }

    /// The directory's entries, in order.
    pub(crate) fn children(&self, ino: u64) -> Vec<Child> {
        let Some(directory) = self.directory(ino) else {
            return Vec::new();
        };
        let children = directory.children.iter();
        children
            .map(|(name, dentry)| Child {
                name: Arc::clone(name),
                ino: dentry.ino,
            })
            .collect()
    }

    /// Whether a child other than `but` is known to be in the bucket: the directory outlives `but`.
    pub(crate) fn has_other_remote_child(&self, ino: u64, but: &str) -> bool {
        let Some(directory) = self.directory(ino) else {
            return false;
        };
        directory.children.iter().any(|(name, dentry)| {
            &**name != but
                && self.nodes.get(dentry.ino).is_some_and(|node| {
                    let inode = self.in_core(dentry.ino, node);
                    node.directory.is_none() && inode.state.lock().remote.is_some()
                })
        })
    }

    /// A new inode that was made here, under a name that is free.
    pub(crate) fn insert(
        &mut self,
        parent: u64,
        name: &Arc<str>,
        attr: Attr,
        now: Duration,
    ) -> Arc<Inode> {
        let inode = self.new_inode(attr, true, None);
        let is_directory = attr.kind == FileKind::Directory;
        self.link(parent, name, &inode, is_directory, now);
        if let Some(directory) = self.directory_mut(inode.ino) {
            directory.origin = Origin::Nowhere;
            directory.listed = Some(now);
        }
        inode
    }

    /// An inode without a name, of an object that is still there.
    pub(crate) fn nameless(&mut self, remote: Remote) -> Arc<Inode> {
        let mut attr = self.unknown_attr(FileKind::File);
        attr.size = remote.size;
        let inode = self.new_inode(attr, true, Some(remote));
        inode.state.lock().linked = Linked::No;
        inode
    }

    /// Takes a name away.
    pub(crate) fn remove(&mut self, parent: u64, name: &Arc<str>, now: Duration) {
        self.sequence += 1;
        let tombstone = Tombstone {
            changed: self.sequence,
            since: now,
            buried: Buried::Name,
        };
        let Some(directory) = self.directory_mut(parent) else {
            return;
        };
        directory.bury(name, tombstone, now);
        if let Some(ino) = directory.children.get(name).map(|dentry| dentry.ino) {
            self.unlink_node(ino);
        }
    }

    /// Gives an inode another name; what had that name loses it.
    pub(crate) fn rename(
        &mut self,
        ino: u64,
        new_parent: u64,
        new_name: &Arc<str>,
        now: Duration,
    ) -> Option<()> {
        // Where a packed inode's object is depends on its name.
        let _in_core = self.inode(ino)?;
        let old = self.nodes.get(ino)?.place.clone()?;
        if let Some(target) = self.directory(new_parent)?.children.get(new_name) {
            let target = target.ino;
            self.unlink_node(target);
        }
        self.sequence += 1;
        let sequence = self.sequence;
        if self.directory(ino).is_some() {
            self.one_subdirectory_less(old.parent);
            self.one_subdirectory_more(new_parent);
        }
        let source = self.directory_mut(old.parent)?;
        source.children.remove(&old.name);
        source.bury(
            &old.name,
            Tombstone {
                changed: sequence,
                since: now,
                buried: Buried::Name,
            },
            now,
        );
        let target = self.directory_mut(new_parent)?;
        target.removed.remove(new_name);
        target.children.insert(
            Arc::clone(new_name),
            Dentry {
                ino,
                changed: sequence,
                seen: sequence,
                confirmed: Some(now.into()),
            },
        );
        self.nodes.get_mut(ino)?.place = Some(Place {
            parent: new_parent,
            name: Arc::clone(new_name),
        });
        self.keep(ino);
        if let Some(key) = self
            .destination(ino)
            .filter(|_| self.directory(ino).is_some())
        {
            self.lay_ghost(&key);
        }
        Some(())
    }

    /// Lets two inodes change places.
    pub(crate) fn exchange(&mut self, one: u64, other: u64, now: Duration) {
        // Where a packed inode's object is depends on its name.
        let _in_core = [self.inode(one), self.inode(other)];
        let (Some(a), Some(b)) = (self.place_of(one), self.place_of(other)) else {
            return;
        };
        self.sequence += 1;
        let sequence = self.sequence;
        for (ino, (parent, name)) in [(one, b), (other, a)] {
            let dentry = Dentry {
                ino,
                changed: sequence,
                seen: sequence,
                confirmed: Some(now.into()),
            };
            if let Some(directory) = self.directory_mut(parent) {
                directory.children.insert(Arc::clone(&name), dentry);
            }
            if let Some(node) = self.nodes.get_mut(ino) {
                let left = node.place.replace(Place { parent, name });
                if let (Some(left), true) = (left, node.directory.is_some()) {
                    self.one_subdirectory_less(left.parent);
                    self.one_subdirectory_more(parent);
                }
            }
            self.keep(ino);
        }
    }

    /// A change made here has reached the bucket: what was asked before says nothing about it.
    pub(crate) fn touch(&mut self, ino: u64, now: Duration) {
        self.sequence += 1;
        let sequence = self.sequence;
        let Some(place) = self.nodes.get(ino).and_then(|node| node.place.clone()) else {
            return;
        };
        if let Some(dentry) = self
            .directory_mut(place.parent)
            .and_then(|d| d.children.get_mut(&place.name))
        {
            dentry.changed = sequence;
            dentry.confirmed = Some(now.into());
        }
    }

    /// What was learned of the name is no longer believed.
    pub(crate) fn distrust(&mut self, ino: u64) {
        let Some(place) = self.nodes.get(ino).and_then(|node| node.place.clone()) else {
            return;
        };
        if let Some(directory) = self.directory_mut(place.parent) {
            directory.listed = None;
            if let Some(dentry) = directory.children.get_mut(&place.name) {
                dentry.confirmed = None;
            }
        }
    }

    /// Names that the directory's last listing did not have may be there all the same.
    pub(crate) fn distrust_listing(&mut self, ino: u64) {
        if let Some(directory) = self.directory_mut(ino) {
            directory.listed = None;
        }
    }

    /// Every inode below a directory.
    pub(crate) fn below(&self, ino: u64) -> Vec<Arc<Inode>> {
        let inos = self.inos_below(ino).into_iter();
        inos.filter_map(|ino| self.inode(ino)).collect()
    }

    fn inos_below(&self, ino: u64) -> Vec<u64> {
        let mut found = Vec::new();
        let mut pending = vec![ino];
        while let Some(directory) = pending.pop().and_then(|ino| self.directory(ino)) {
            for dentry in directory.children.values() {
                found.push(dentry.ino);
                if self.directory(dentry.ino).is_some() {
                    pending.push(dentry.ino);
                }
            }
        }
        found
    }

    /// The kernel is told of the inode once more.
    pub(crate) fn remember(&mut self, ino: u64) -> bool {
        self.remember_times(ino, 1)
    }

    /// The kernel was told of the inode so many times.
    pub(crate) fn remember_times(&mut self, ino: u64, nlookup: u64) -> bool {
        let Some(node) = self.nodes.get_mut(ino) else {
            return false;
        };
        node.nlookup += nlookup;
        if !node.is_kept {
            node.is_kept = true;
            self.keep(ino);
        }
        self.pack_unused();
        true
    }

    /// The kernel forgets what it was told `nlookup` times.
    pub(crate) fn forget(&mut self, ino: u64, nlookup: u64) {
        let Some(node) = self.nodes.get_mut(ino) else {
            return;
        };
        node.nlookup = node.nlookup.saturating_sub(nlookup);
        if ino != ROOT && node.nlookup == 0 {
            self.keep_no_more(ino);
            self.let_go(ino);
        }
    }

    /// An inode was closed for the last time.
    pub(crate) fn closed(&mut self, ino: u64) {
        self.pack_unused();
        if self.nodes.get(ino).is_some_and(|node| node.nlookup == 0) {
            self.let_go(ino);
        }
    }

    fn directory(&self, ino: u64) -> Option<&Directory> {
        self.nodes.get(ino)?.directory.as_deref()
    }

    fn directory_mut(&mut self, ino: u64) -> Option<&mut Directory> {
        self.nodes.get_mut(ino)?.directory.as_deref_mut()
    }

    /// The attributes of something of which nobody has asked more than its kind.
    fn unknown_attr(&self, kind: FileKind) -> Attr {
        let said = Attributes::default();
        Attr::of_object(kind, 0, SystemTime::UNIX_EPOCH, &said, &self.ownership)
    }

    /// A number that no inode has or gets.
    pub(crate) fn new_number(&mut self) -> u64 {
        let number = self.next_ino;
        self.next_ino += 1;
        if number.is_multiple_of(NUMBERS_AHEAD) {
            self.kept.reserve_inos(number + NUMBERS_AHEAD);
        }
        number
    }

    fn new_inode(&mut self, attr: Attr, resolved: bool, remote: Option<Remote>) -> Arc<Inode> {
        let ino = self.new_number();
        Arc::new(Inode::new(ino, attr, resolved, remote))
    }

    fn link(
        &mut self,
        parent: u64,
        name: &Arc<str>,
        inode: &Arc<Inode>,
        is_directory: bool,
        now: Duration,
    ) {
        let body = Body::new(Arc::clone(inode));
        let node = Node::new(body, parent, name, is_directory);
        self.link_node((parent, name), (inode.ino, node), Some(now));
        self.note_idle(inode.ino);
    }

    fn link_node(
        &mut self,
        (parent, name): (u64, &Arc<str>),
        (ino, node): (u64, Node),
        confirmed: Option<Duration>,
    ) {
        self.pack_unused();
        self.sequence += 1;
        let sequence = self.sequence;
        let Some(directory) = self.directory_mut(parent) else {
            return;
        };
        let is_directory = node.directory.is_some();
        directory.removed.remove(name);
        directory.children.insert(
            Arc::clone(name),
            Dentry {
                ino,
                changed: sequence,
                seen: sequence,
                confirmed: confirmed.map(Moment::from),
            },
        );
        self.insert_node(ino, node);
        if is_directory {
            self.one_subdirectory_more(parent);
        }
        if is_directory && let Some(key) = self.key_of(ino) {
            self.lay_ghost(&key);
        }
    }

    fn one_subdirectory_more(&mut self, parent: u64) {
        if let Some(directory) = self.directory_mut(parent) {
            directory.subdirectories += 1;
        }
    }

    fn one_subdirectory_less(&mut self, parent: u64) {
        if let Some(directory) = self.directory_mut(parent) {
            directory.subdirectories -= 1;
        }
    }

    /// Takes an inode, and all below it, out of the names. It lives on while somebody needs it.
    fn unlink_node(&mut self, ino: u64) {
        let mut pending = vec![ino];
        while let Some(ino) = pending.pop() {
            self.part_links(ino);
            let Some(inode) = self.inode(ino) else {
                continue;
            };
            inode.state.lock().linked = Linked::No;
            let Some(node) = self.nodes.get_mut(ino) else {
                continue;
            };
            if let Some(directory) = node.directory.as_deref_mut() {
                pending.extend(directory.children.values().map(|dentry| dentry.ino));
                directory.children.clear();
            }
            if let Some(Origin::Elsewhere(key)) = node
                .directory
                .as_deref_mut()
                .map(|d| std::mem::take(&mut d.origin))
            {
                self.origins.remove(&key);
                self.unhide(&key);
                self.leave_ghost(&key);
            }
            let Some(node) = self.nodes.get_mut(ino) else {
                continue;
            };
            let is_directory = node.directory.is_some();
            if let Some(place) = node.place.take()
                && let Some(directory) = self.directory_mut(place.parent)
            {
                if is_directory {
                    directory.subdirectories -= 1;
                }
                let names = &mut directory.children;
                if names.get(&place.name).is_some_and(|d| d.ino == ino) {
                    names.remove(&place.name);
                }
            }
            self.keep(ino);
            if self.nodes.get(ino).is_some_and(|node| node.nlookup == 0) {
                self.let_go(ino);
            }
        }
    }

    /// Drops an inode that the kernel does not hold, unless somebody has it open or it has a name.
    fn let_go(&mut self, ino: u64) {
        let Some(node) = self.nodes.get(ino) else {
            return;
        };
        if node.place.is_some() {
            return self.note_idle(ino);
        }
        let is_open = |inode: &Arc<Inode>| inode.state.lock().opens > 0;
        if !node.body.in_core().is_some_and(is_open) {
            self.keep_no_more(ino);
            self.nodes.remove(ino);
        }
    }
}

fn kind_of(is_directory: bool) -> FileKind {
    match is_directory {
        true => FileKind::Directory,
        false => FileKind::File,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::attr::Caller;
    use crate::fs::cache::BlockCache;
    use crate::store::ObjectVersion;

    const OWNERSHIP: Ownership = Ownership {
        uid: 0,
        gid: 0,
        file_mode: 0o644,
        dir_mode: 0o755,
    };
    const TTL: Duration = Duration::from_secs(1);

    fn attr(kind: FileKind) -> Attr {
        Attr::new(
            kind,
            0o644,
            Caller { uid: 0, gid: 0 },
            SystemTime::UNIX_EPOCH,
        )
    }

    fn tree() -> Tree {
        Tree::new(
            attr(FileKind::Directory),
            OWNERSHIP,
            Arc::new(Kept::new(crate::fs::Format::CURRENT).unwrap()),
            Arc::new(IdleNames::new(1 << 20)),
        )
    }

    fn object(version: &str) -> Observed {
        Observed::Object(ObservedObject {
            size: 1,
            version: ObjectVersion(version.into()),
            modified: SystemTime::UNIX_EPOCH,
            metadata: Some(crate::store::Metadata::default()),
        })
    }

    #[test]
    fn an_answer_that_is_older_than_a_local_change_says_nothing_about_the_name() {
        let (mut tree, cache) = (tree(), BlockCache::new(1 << 20));
        let name: Arc<str> = "a".into();
        let asked = tree.begin_question();
        tree.insert(ROOT, &name, attr(FileKind::File), TTL);
        tree.remove(ROOT, &name, TTL);
        assert!(
            tree.observe(ROOT, &name, &object("1"), asked, TTL, &cache)
                .is_none()
        );
        let asked = tree.begin_question();
        assert!(
            tree.observe(ROOT, &name, &object("1"), asked, TTL, &cache)
                .is_some()
        );
        assert!(matches!(tree.look(ROOT, "a", TTL, TTL), Known::Fresh(_)));
    }

    #[test]
    fn a_name_whose_object_waits_for_its_last_close_is_not_seen_however_late_one_asks() {
        let (mut tree, cache) = (tree(), BlockCache::new(1 << 20));
        let name: Arc<str> = "a".into();
        let asked = tree.begin_question();
        tree.observe(ROOT, &name, &object("1"), asked, TTL, &cache)
            .unwrap();
        tree.hide(&Key::new("a"));
        tree.remove(ROOT, &name, TTL);
        let asked = tree.begin_question();
        let late = TTL * 1000;
        assert!(
            tree.observe(ROOT, &name, &object("1"), asked, late, &cache)
                .is_none()
        );
        tree.show(&Key::new("a"), late);
        let asked = tree.begin_question();
        assert!(
            tree.observe(ROOT, &name, &object("2"), asked, late, &cache)
                .is_some()
        );
    }

    #[test]
    fn names_that_come_and_go_in_a_directory_nobody_lists_take_no_room_for_ever() {
        let mut tree = tree();
        for i in 0..20 * u32::try_from(TOMBSTONES_MAX).unwrap() {
            let (name, now): (Arc<str>, _) = (format!("tmp{i}").into(), TTL * i);
            tree.insert(ROOT, &name, attr(FileKind::File), now);
            tree.remove(ROOT, &name, now);
        }
        assert!(tree.directory(ROOT).unwrap().removed.len() <= TOMBSTONES_MAX);
        assert_eq!(tree.nodes.iter().count(), 1);
    }

    #[test]
    fn a_listing_removes_what_it_did_not_have_but_not_what_was_made_meanwhile() {
        let (mut tree, cache) = (tree(), BlockCache::new(1 << 20));
        let names: [Arc<str>; 3] = ["gone".into(), "kept".into(), "new".into()];
        let asked = tree.begin_question();
        for name in &names[..2] {
            tree.observe(ROOT, name, &object("1"), asked, TTL, &cache)
                .unwrap();
        }
        let asked = tree.begin_question();
        tree.observe(ROOT, &names[1], &object("1"), asked, TTL, &cache)
            .unwrap();
        tree.insert(ROOT, &names[2], attr(FileKind::File), TTL);
        tree.finish_listing(ROOT, asked, TTL, 0);
        tree.note_listed(ROOT, asked, TTL);
        let left: Vec<String> = tree
            .children(ROOT)
            .iter()
            .map(|child| child.name.to_string())
            .collect();
        assert_eq!(left, ["kept", "new"]);
    }

    /// A tree of which a listing of three files has come in, and what it was asked at.
    fn listed(names: &[Arc<str>], idle: u64) -> (Tree, u64) {
        let kept = Arc::new(Kept::new(crate::fs::Format::CURRENT).unwrap());
        let idle = Arc::new(IdleNames::new(idle * 256));
        let mut tree = Tree::new(attr(FileKind::Directory), OWNERSHIP, kept, idle);
        let cache = BlockCache::new(1 << 20);
        let asked = tree.begin_question();
        for name in names {
            tree.observe(ROOT, name, &object("1"), asked, TTL, &cache)
                .unwrap();
        }
        tree.finish_listing(ROOT, asked, TTL, 0);
        tree.note_listed(ROOT, asked, TTL);
        (tree, asked)
    }

    #[test]
    fn names_that_nobody_holds_go_when_there_are_too_many_and_may_be_there_all_the_same() {
        let names: [Arc<str>; 3] = ["a".into(), "b".into(), "c".into()];
        let (tree, _) = listed(&names, 3);
        assert!(matches!(tree.look(ROOT, "z", TTL, TTL), Known::Absent));
        let (mut tree, asked) = listed(&names, 2);
        assert!(matches!(tree.look(ROOT, "a", TTL, TTL), Known::Unknown));
        assert!(matches!(tree.look(ROOT, "z", TTL, TTL), Known::Unknown));
        // Those that are there are packed, and known as before.
        assert!(matches!(tree.look(ROOT, "c", TTL, TTL), Known::Fresh(_)));
        let asked_later = tree.begin_question();
        tree.note_listed(ROOT, asked, TTL);
        assert!(matches!(tree.look(ROOT, "a", TTL, TTL), Known::Unknown));
        tree.note_listed(ROOT, asked_later, TTL);
        assert!(matches!(tree.look(ROOT, "a", TTL, TTL), Known::Absent));
    }

    #[test]
    fn what_the_kernel_holds_or_a_program_has_changed_stays() {
        let names: [Arc<str>; 3] = ["a".into(), "b".into(), "c".into()];
        let (mut tree, _) = listed(&names, 3);
        let held = tree.child(ROOT, "a").unwrap();
        tree.remember(held);
        let changed = tree
            .child(ROOT, "b")
            .and_then(|ino| tree.inode(ino))
            .unwrap();
        changed.state.lock().unsent.content = true;
        for name in ["d", "e", "f", "g"] {
            let (cache, asked) = (BlockCache::new(1 << 20), tree.begin_question());
            tree.observe(ROOT, &name.into(), &object("1"), asked, TTL, &cache);
        }
        let left: Vec<_> = tree.children(ROOT).into_iter().map(|c| c.name).collect();
        assert_eq!(left.iter().map(|name| &**name).collect::<String>(), "abfg");
        tree.forget(held, 1);
        assert!(tree.child(ROOT, "a").is_some());
    }
}
