//! Inodes that nobody uses, as few bytes: a tree of a million names is to fit in memory. An inode is in core from when
//! somebody asks for it until it is packed again, which is soon.
//!
//! What differs from its object, is open, or is in anybody's hands is never packed.

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Node, Place, ROOT, Tree, kind_of};
use crate::fs::attr::Attr;
use crate::fs::cache::ContentId;
use crate::fs::inode::{Inode, InodeState, Linked, Remote};
use crate::fs::journal::record::timestamp;
use crate::store::digest::{from_hex, hex};
use crate::store::{FileKind, Key, Metadata, ObjectVersion};

/// So many inodes stay in core whether they are used or not. One takes about a kilobyte. Tests are to meet packed ones.
const IN_CORE_MIN: usize = if cfg!(debug_assertions) { 2 } else { 256 };

/// An inode, in core or packed.
#[derive(Default)]
pub(super) struct Body {
    in_core: OnceCell<Arc<Inode>>,
    /// `None`, and not in core: it is known from an earlier process, which has not left more than its number and kind.
    packed: Cell<Option<PackedInode>>,
}

impl Body {
    /// One that is in core.
    pub(super) fn new(inode: Arc<Inode>) -> Self {
        Self {
            in_core: OnceCell::from(inode),
            packed: Cell::default(),
        }
    }

    /// The inode, if it is in core.
    pub(super) fn in_core(&self) -> Option<&Arc<Inode>> {
        self.in_core.get()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Body").field(&self.in_core).finish()
    }
}

/// What is left of an inode that is packed.
#[derive(Debug)]
struct PackedInode(Box<[u8]>);

#[derive(Serialize, Deserialize)]
struct Contents {
    // These come first: `Tree::packed_attr` reads no further.
    attr: PackedAttr,
    resolved: bool,
    has_unknown_pages: bool,
    /// Without what `attr` says too, if `says_attr`.
    metadata: Metadata,
    says_attr: bool,
    remote: Option<PackedRemote>,
}

#[derive(Serialize, Deserialize)]
struct PackedAttr {
    kind: FileKind,
    size: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    rdev: u32,
    #[serde(with = "timestamp")]
    mtime: SystemTime,
    atime: PackedTime,
    ctime: PackedTime,
}

/// A time of an inode, most of whose times are the same.
#[derive(Serialize, Deserialize)]
enum PackedTime {
    LikeMtime,
    At(#[serde(with = "timestamp")] SystemTime),
}

#[derive(Serialize, Deserialize)]
struct PackedRemote {
    /// `None`: its name below [`super::Directory::objects_below`].
    key: Option<Key>,
    /// `None`: what the inode's is.
    size: Option<u64>,
    version: PackedVersion,
    modified: Option<PackedTime>,
    content: ContentId,
}

#[derive(Serialize, Deserialize)]
enum PackedVersion {
    /// 32 lower-case hexadecimal digits in quotes: what most stores give.
    Digest([u8; 16]),
    Other(ObjectVersion),
}

impl Contents {
    /// `None`: there is more to it than is packed.
    fn of(state: &InodeState, usual_key: Option<&Key>) -> Option<Self> {
        let InodeState {
            attr,
            resolved,
            metadata,
            remote,
            overwrites: None,
            staged: None,
            unsent,
            // Nobody has it in hand who could have seen it change.
            change: _,
            moved_from: None,
            aside: None,
            lineage: 0,
            opens: 0,
            linked: Linked::Yes,
            is_hard_linked: false,
            has_unknown_pages,
            journaled: false,
            attempt: None,
            sending: false,
            failure: None,
        } = state
        else {
            return None;
        };
        if unsent.any() {
            return None;
        }
        let remote = remote.as_ref();
        let remote = remote.map(|remote| PackedRemote::of(remote, attr, usual_key));
        let (metadata, says_attr) = without_attr(metadata, attr);
        Some(Self {
            attr: PackedAttr::of(attr),
            resolved: *resolved,
            has_unknown_pages: *has_unknown_pages,
            metadata,
            says_attr,
            remote,
        })
    }

    fn unpack(self, ino: u64, usual_key: Option<Key>) -> Option<Inode> {
        let attr = self.attr.unpack();
        let remote = match self.remote {
            Some(remote) => Some(remote.unpack(&attr, usual_key)?),
            None => None,
        };
        let mut inode = Inode::new(ino, attr, self.resolved, remote);
        let state = inode.state.get_mut();
        state.has_unknown_pages = self.has_unknown_pages;
        state.metadata = self.metadata;
        if self.says_attr {
            attr.to_attributes().write_to(&mut state.metadata);
        }
        Some(inode)
    }
}

/// The metadata without what is put together from `attr`, and whether they had that.
fn without_attr(metadata: &Metadata, attr: &Attr) -> (Metadata, bool) {
    let mut said = Metadata::default();
    attr.to_attributes().write_to(&mut said);
    let says_attr = said
        .user
        .iter()
        .all(|(name, value)| metadata.user.get(name) == Some(value));
    let mut metadata = metadata.clone();
    if says_attr {
        metadata
            .user
            .retain(|name, _| !said.user.contains_key(name));
    }
    (metadata, says_attr)
}

impl PackedAttr {
    fn of(attr: &Attr) -> Self {
        let Attr {
            kind,
            size,
            mode,
            uid,
            gid,
            rdev,
            atime,
            mtime,
            ctime,
        } = *attr;
        Self {
            kind,
            size,
            mode,
            uid,
            gid,
            rdev,
            mtime,
            atime: PackedTime::of(atime, mtime),
            ctime: PackedTime::of(ctime, mtime),
        }
    }

    fn unpack(self) -> Attr {
        let mtime = self.mtime;
        Attr {
            kind: self.kind,
            size: self.size,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            atime: self.atime.unpack(mtime),
            mtime,
            ctime: self.ctime.unpack(mtime),
        }
    }
}

impl PackedTime {
    fn of(time: SystemTime, mtime: SystemTime) -> Self {
        match time == mtime {
            true => Self::LikeMtime,
            false => Self::At(time),
        }
    }

    fn unpack(self, mtime: SystemTime) -> SystemTime {
        match self {
            Self::LikeMtime => mtime,
            Self::At(time) => time,
        }
    }
}

impl PackedRemote {
    fn of(remote: &Remote, attr: &Attr, usual_key: Option<&Key>) -> Self {
        Self {
            key: Some(&remote.key)
                .filter(|key| Some(*key) != usual_key)
                .cloned(),
            size: Some(remote.size).filter(|size| *size != attr.size),
            version: PackedVersion::of(&remote.version),
            modified: remote.modified.map(|time| PackedTime::of(time, attr.mtime)),
            content: remote.content,
        }
    }

    fn unpack(self, attr: &Attr, usual_key: Option<Key>) -> Option<Remote> {
        Some(Remote {
            key: self.key.or(usual_key)?,
            size: self.size.unwrap_or(attr.size),
            version: self.version.unpack(),
            modified: self.modified.map(|time| time.unpack(attr.mtime)),
            content: self.content,
        })
    }
}

impl PackedVersion {
    fn of(version: &ObjectVersion) -> Self {
        let quoted = version.0.strip_prefix('"');
        let digits = quoted.and_then(|rest| rest.strip_suffix('"'));
        match digits.and_then(from_hex) {
            Some(digest) => Self::Digest(digest),
            None => Self::Other(version.clone()),
        }
    }

    fn unpack(self) -> ObjectVersion {
        match self {
            Self::Digest(digest) => ObjectVersion(format!("\"{}\"", hex(&digest)).into()),
            Self::Other(version) => version,
        }
    }
}

impl PackedInode {
    fn of(state: &InodeState, usual_key: Option<&Key>) -> Option<Self> {
        let contents = Contents::of(state, usual_key)?;
        let bytes = postcard::to_stdvec(&contents).ok()?;
        Some(Self(bytes.into_boxed_slice()))
    }

    fn unpack(&self, ino: u64, usual_key: Option<Key>) -> Option<Inode> {
        let contents: Contents = postcard::from_bytes(&self.0).ok()?;
        contents.unpack(ino, usual_key)
    }
}

impl Tree {
    /// Takes in a node.
    pub(super) fn insert_node(&mut self, ino: u64, node: Node) {
        if node.body.in_core().is_some() {
            self.in_core.get_mut().push(ino);
        }
        self.nodes.insert(ino, node);
    }

    /// The inode of a node.
    pub(super) fn in_core<'a>(&self, ino: u64, node: &'a Node) -> &'a Arc<Inode> {
        node.body.in_core.get_or_init(|| {
            self.in_core.borrow_mut().push(ino);
            let packed = node.body.packed.take();
            let inode = packed.and_then(|packed| packed.unpack(ino, self.usual_key(node)));
            Arc::new(inode.unwrap_or_else(|| self.unknown_inode(ino, node)))
        })
    }

    /// What programs are shown of an inode, if that can be said without having it in core.
    pub(crate) fn packed_attr(&self, ino: u64) -> Option<Attr> {
        let node = self.nodes.get(ino)?;
        let packed = node.body.packed.take()?;
        let read = postcard::take_from_bytes::<(PackedAttr, bool)>(&packed.0);
        let known = read.ok().filter(|((_, resolved), _)| *resolved);
        let attr = known.map(|((attr, _), _)| attr.unpack());
        node.body.packed.set(Some(packed));
        // The length of a link may be that of its metadata.
        attr.filter(|attr| attr.kind != FileKind::Symlink)
    }

    /// An inode that was left by an earlier process: what it is now is to be asked.
    fn unknown_inode(&self, ino: u64, node: &Node) -> Inode {
        let attr = self.unknown_attr(kind_of(node.directory.is_some()));
        let mut inode = Inode::new(ino, attr, false, None);
        inode.state.get_mut().has_unknown_pages = true;
        inode
    }

    /// The inodes that are in core: all that differ from their objects or are open, and some more.
    pub(crate) fn inodes_in_core(&self) -> impl Iterator<Item = &Arc<Inode>> {
        let in_core = self.in_core.borrow().clone();
        let nodes = in_core.into_iter().filter_map(|ino| self.nodes.get(ino));
        nodes.filter_map(|node| node.body.in_core())
    }

    /// To be called wherever inodes may have come to be in core: packs those that nobody uses if there are many.
    pub(crate) fn pack_unused(&mut self) {
        if self.in_core.get_mut().len() < self.pack_at {
            return;
        }
        let mut in_core = std::mem::take(self.in_core.get_mut());
        in_core.retain(|ino| !self.pack(*ino));
        // However many are in use, each inode that comes pays for looking at two of them.
        self.pack_at = (2 * in_core.len()).max(IN_CORE_MIN);
        self.in_core = in_core.into();
    }

    /// Returns whether the inode is not in core any more.
    pub(super) fn pack(&mut self, ino: u64) -> bool {
        if ino == ROOT {
            return false;
        }
        self.note_objects_below(ino);
        let usual_key = self.nodes.get(ino).and_then(|node| self.usual_key(node));
        let Some(node) = self.nodes.get_mut(ino) else {
            return true;
        };
        let Some(inode) = node.body.in_core.get_mut() else {
            return true;
        };
        let Some(inode) = Arc::get_mut(inode) else {
            return false;
        };
        let state = inode.state.get_mut();
        let Some(packed) = PackedInode::of(state, usual_key.as_ref()) else {
            return false;
        };
        node.body = Body {
            in_core: OnceCell::new(),
            packed: Cell::new(Some(packed)),
        };
        true
    }

    /// The first of a directory's inodes to be packed says where the objects of the others are too.
    fn note_objects_below(&mut self, ino: u64) {
        let below = self.nodes.get(ino).and_then(|node| {
            let Place { parent, name } = node.place.as_ref()?;
            if self.directory(*parent)?.objects_below.is_some() {
                return None;
            }
            let state = node.body.in_core()?.state.lock();
            let key = state.remote.as_ref()?.key.as_str();
            let below = key.strip_suffix('/').unwrap_or(key).strip_suffix(&**name)?;
            Some((*parent, Arc::<str>::from(below)))
        });
        if let Some((parent, below)) = below
            && let Some(directory) = self.directory_mut(parent)
        {
            directory.objects_below = Some(below);
        }
    }

    /// The key that the object of an inode has as long as neither the inode nor the objects of its directory move.
    fn usual_key(&self, node: &Node) -> Option<Key> {
        let Place { parent, name } = node.place.as_ref()?;
        let below = self.directory(*parent)?.objects_below.as_ref()?;
        let slash = if node.directory.is_some() { "/" } else { "" };
        Some(Key::new(format!("{below}{name}{slash}")))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;
    use crate::fs::attr::Caller;
    use crate::fs::cache::BlockCache;
    use crate::fs::inode::Unsent;

    fn state(say: impl FnOnce(&mut InodeState)) -> InodeState {
        let caller = Caller { uid: 7, gid: 8 };
        let attr = Attr::new(FileKind::File, 0o640, caller, UNIX_EPOCH);
        let inode = Inode::new(2, attr, true, None);
        let mut state = inode.state.into_inner();
        say(&mut state);
        state
    }

    fn remote(key: &str, version: &str, modified: Option<SystemTime>) -> Remote {
        Remote {
            key: Key::new(key),
            size: 5,
            version: ObjectVersion(version.into()),
            modified,
            content: BlockCache::new(1 << 20).new_content(),
        }
    }

    proptest! {
        #[test]
        fn an_inode_comes_back_as_it_was(
            resolved in any::<bool>(),
            says_attr in any::<bool>(),
            user in prop::collection::btree_map("[a-z]{1,5}", "[0-9]{0,3}", 0..3),
            key in prop::option::of("(dir/name|[a-z]{1,6})"),
            version in "(\"[0-9a-f]{32}\"|\"[0-9A-F]{32}\"|[0-9a-f]{32}|\"[0-9a-f]{32}-3\"|)",
            nanos in prop::option::of(any::<u64>()),
            ctime in any::<u64>(),
            size in 0_u64..3,
        ) {
            let modified = nanos.map(|nanos| UNIX_EPOCH + Duration::from_nanos(nanos));
            let before = state(|state| {
                state.resolved = resolved;
                state.metadata.user = user;
                state.attr.mtime = modified.unwrap_or(UNIX_EPOCH);
                state.attr.ctime = UNIX_EPOCH + Duration::from_nanos(ctime);
                state.attr.size = 5 * size;
                if says_attr {
                    state.attr.to_attributes().write_to(&mut state.metadata);
                }
                state.remote = key.map(|key| remote(&key, &version, modified));
            });
            let usual_key = Some(Key::new("dir/name"));
            let packed = PackedInode::of(&before, usual_key.as_ref()).unwrap();
            let after = packed.unpack(2, usual_key).unwrap().state.into_inner();
            prop_assert_eq!(format!("{before:?}"), format!("{after:?}"));
        }
    }

    #[test]
    fn what_is_in_use_or_differs_from_its_object_is_not_packed() {
        let changes: [fn(&mut InodeState); 6] = [
            |state| state.opens = 1,
            |state| state.linked = Linked::Going,
            |state| state.journaled = true,
            |state| state.lineage = 1,
            |state| state.overwrites = Some(ObjectVersion("\"1\"".into())),
            |state| {
                state.unsent = Unsent {
                    attributes: true,
                    ..Unsent::default()
                };
            },
        ];
        assert!(PackedInode::of(&state(|_| {}), None).is_some());
        for (i, change) in changes.into_iter().enumerate() {
            assert!(PackedInode::of(&state(change), None).is_none(), "{i}");
        }
    }

    #[test]
    fn what_is_usual_takes_few_bytes() {
        let modified = UNIX_EPOCH + Duration::from_nanos(1_777_777_777_123_456_789);
        let state = state(|state| {
            for time in [
                &mut state.attr.atime,
                &mut state.attr.mtime,
                &mut state.attr.ctime,
            ] {
                *time = modified;
            }
            state.attr.to_attributes().write_to(&mut state.metadata);
            let version = format!("\"{}\"", hex(&[0xab; 16]));
            state.remote = Some(remote("dir/name", &version, Some(modified)));
        });
        let packed = PackedInode::of(&state, Some(&Key::new("dir/name"))).unwrap();
        assert!(packed.0.len() <= 64, "{} bytes", packed.0.len());
    }
}
