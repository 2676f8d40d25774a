//! An inode: what a file is, apart from what it is called.
//!
//! Its tree place (parent, name) belongs to `tree`; here is its remote place (key, version, content) and
//! what was changed on this host and is not in the bucket yet.
//!
//! Lock order: the tree's lock, then one inode's. Reading and writing the staging file happens under the
//! inode's lock; no request to a store does.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::attr::Attr;
use super::cache::ContentId;
use super::error::FsError;
use super::lock::{INODE, Ordered};
use super::staging::{FrozenContent, StagedContent};
use crate::store::{Attributes, FileKind, Key, Metadata, ObjectVersion, Precondition, WriteId};

/// A file, directory or other inode.
#[derive(Debug)]
pub(crate) struct Inode {
    /// Its number: never used twice.
    pub(crate) ino: u64,
    pub(crate) state: Ordered<InodeState, INODE>,
}

/// Where an inode's bytes are in the bucket.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    /// The object's key.
    pub(crate) key: Key,
    /// Bytes of the object.
    pub(crate) size: u64,
    /// The version that everything we know of it is about.
    pub(crate) version: ObjectVersion,
    /// When the store took it; `None` while it is a version we wrote and have not seen again.
    pub(crate) modified: Option<SystemTime>,
    /// Names the bytes in the block cache.
    pub(crate) content: ContentId,
}

/// What was changed here and is not in the bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unsent {
    /// A file's bytes; that a directory has a marker.
    pub(crate) content: bool,
    pub(crate) attributes: bool,
    /// The object, or a directory's objects, are not where the inode's name says.
    #[serde(skip)]
    pub(crate) place: bool,
}

impl Unsent {
    /// Whether there is anything to send.
    pub(crate) fn any(self) -> bool {
        self.content || self.attributes || self.place
    }
}

/// An upload that was begun: where its object goes, and the mark that it carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempt {
    pub(crate) key: Key,
    pub(crate) write: WriteId,
}

/// An upload that the store refused. Each open file reports it once.
#[derive(Debug, Clone)]
pub(crate) struct UploadFailure {
    /// Which of the inode's failures this is, from 1.
    pub(crate) count: u32,
    pub(crate) error: FsError,
}

/// Whether an inode still has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Linked {
    /// The tree has it.
    Yes,
    /// Its name is about to go: whoever opens it now is too late.
    Going,
    /// It has none: removed here, or another host's object took its name. It lives while it is open.
    No,
}

/// What changes about an inode.
#[derive(Debug)]
pub(crate) struct InodeState {
    pub(crate) attr: Attr,
    /// The object's own attributes are in `attr`; until then it holds what a listing says, and is shown to
    /// nobody.
    pub(crate) resolved: bool,
    /// The object's metadata, for its next rewrite.
    pub(crate) metadata: Metadata,
    /// The object; a directory's marker. `None`: not uploaded yet, an implicit directory, or not asked for.
    pub(crate) remote: Option<Remote>,
    /// What stands at the key that the inode's name spells, when that is not `remote`: a rename put the file
    /// over another, or its bytes were brought elsewhere.
    pub(crate) overwrites: Option<ObjectVersion>,
    /// The content, while it differs from the object's.
    pub(crate) staged: Option<Box<StagedContent>>,
    pub(crate) unsent: Unsent,
    /// Counts local changes, so that an upload knows whether it has caught up.
    pub(crate) change: u64,
    /// The key of the object, while that is not the one that the name spells: the tree has it hidden.
    pub(crate) moved_from: Option<Key>,
    /// Where a copy of the object was to go whose answer has not come.
    pub(crate) aside: Option<Key>,
    /// How often the inode has lost its name to another host's file. Who opened it before is told.
    pub(crate) lineage: u32,
    /// Open file descriptions.
    pub(crate) opens: u32,
    pub(crate) linked: Linked,
    /// There are hard links to it, or it stands for one: the journal has it as long as that is so.
    pub(crate) is_hard_linked: bool,
    /// It is known from an earlier process: the kernel may have pages of a version that this one has not seen.
    pub(crate) has_unknown_pages: bool,
    /// The journal has it as changed.
    pub(crate) journaled: bool,
    /// The mark of the last upload that was begun, until one is known to have ended.
    pub(crate) attempt: Option<Attempt>,
    /// It is under way.
    pub(crate) sending: bool,
    /// The last upload failed so that waiting will not mend it.
    pub(crate) failure: Option<Box<UploadFailure>>,
}

impl Inode {
    /// An inode of these attributes.
    pub(crate) fn new(ino: u64, attr: Attr, resolved: bool, remote: Option<Remote>) -> Self {
        Self {
            ino,
            state: Ordered::new(InodeState {
                attr,
                resolved,
                metadata: Metadata::default(),
                remote,
                overwrites: None,
                staged: None,
                unsent: Unsent::default(),
                change: 0,
                moved_from: None,
                aside: None,
                lineage: 0,
                opens: 0,
                linked: Linked::Yes,
                is_hard_linked: false,
                has_unknown_pages: false,
                journaled: false,
                attempt: None,
                sending: false,
                failure: None,
            }),
        }
    }
}

impl Inode {
    /// While the guard lives nobody opens the inode or makes anything in it: its name is about to go.
    /// When the guard goes first, the name stays. `None` if somebody else is at it.
    pub(crate) fn going(&self) -> Option<Going<'_>> {
        let mut state = self.state.lock();
        (state.linked == Linked::Yes).then(|| {
            state.linked = Linked::Going;
            Going(self)
        })
    }
}

/// See [`Inode::going`].
#[derive(Debug)]
pub(crate) struct Going<'a>(&'a Inode);

impl Drop for Going<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        if state.linked == Linked::Going {
            state.linked = Linked::Yes;
        }
    }
}

/// A file as it was when an upload began.
#[derive(Debug)]
pub(crate) struct Frozen {
    pub(crate) ino: u64,
    pub(crate) attr: Attr,
    pub(crate) metadata: Metadata,
    /// The mark of this upload.
    pub(crate) write: WriteId,
    /// The metadata to send: they carry the mark.
    pub(crate) marked: Metadata,
    /// `None`: only attributes changed.
    pub(crate) content: Option<FrozenContent>,
    pub(crate) base: Option<Remote>,
    /// Of a hard link that is to become what its target is: the target's object.
    pub(crate) target: Option<Remote>,
    pub(crate) precondition: Precondition,
    change: u64,
}

/// What a hard link is to become: its target, as the bucket has it.
#[derive(Debug)]
pub(crate) struct LinkTarget {
    pub(crate) remote: Remote,
    pub(crate) attr: Attr,
    pub(crate) metadata: Metadata,
}

impl LinkTarget {
    /// `None`: the bucket does not have it.
    pub(crate) fn of(state: &InodeState) -> Option<Self> {
        let remote = state.remote.clone()?;
        // Bytes that were written since then are for the next copy.
        let size = remote.size;
        Some(Self {
            attr: Attr { size, ..state.attr },
            metadata: state.metadata.clone(),
            remote,
        })
    }
}

impl InodeState {
    /// Whether something of it is to be sent.
    pub(crate) fn is_pending(&self) -> bool {
        self.unsent.any() && self.linked != Linked::No
    }

    /// What programs are shown: a link whose target is beside an empty body is as long as that.
    pub(crate) fn shown_attr(&self) -> Attr {
        let mut attr = self.attr;
        if attr.kind == FileKind::Symlink && attr.size == 0 {
            let target = Attributes::link_target(&self.metadata);
            attr.size = target.map_or(0, |target| target.len() as u64);
        }
        attr
    }

    /// The version of its object.
    pub(crate) fn version(&self) -> Option<ObjectVersion> {
        self.remote.as_ref().map(|remote| remote.version.clone())
    }

    /// The version of what stands at `key`, which the inode's name spells: its own object, or the one that
    /// its upload is to overwrite. `None`: nothing that we know of.
    pub(crate) fn occupant(&self, key: &Key) -> Option<ObjectVersion> {
        let own = self.remote.as_ref().filter(|remote| remote.key == *key);
        self.overwrites
            .as_ref()
            .or(own.map(|remote| &remote.version))
            .cloned()
    }

    /// Whether none of the bytes that it has are its own: it is a hard link that has not followed its target yet.
    pub(crate) fn content_is_nowhere(&self) -> bool {
        let has_bytes = matches!(self.attr.kind, FileKind::File | FileKind::Symlink);
        has_bytes && self.attr.size > 0 && self.staged.is_none()
    }

    /// It follows nothing any more: it is what the bucket has, which is asked for.
    pub(crate) fn part(&mut self) {
        self.unsent.content = false;
        self.unsent.attributes = false;
        self.attr.size = self.remote.as_ref().map_or(0, |remote| remote.size);
        self.resolved = false;
    }

    /// Takes note of a local change.
    pub(crate) fn changed(&mut self, unsent: Unsent) {
        self.unsent.content |= unsent.content;
        self.unsent.attributes |= unsent.attributes;
        self.change += 1;
    }

    /// Takes note of a change of the content at `now`, which made the file `size` bytes long.
    pub(crate) fn content_changed(&mut self, size: u64, now: SystemTime) {
        self.attr.size = size;
        self.attr.mtime = now;
        self.attr.ctime = now;
        self.changed(Unsent {
            content: true,
            attributes: false,
            place: false,
        });
    }

    /// The mark of an upload that begins now. If nobody knows how the one before has ended, it is another attempt at
    /// the same write.
    pub(crate) fn next_write(&self) -> WriteId {
        let earlier = self.attempt.as_ref().map(|attempt| &attempt.write);
        earlier.map_or_else(WriteId::new, WriteId::again)
    }

    /// The state to upload to `key` as `write`, or `None` if all is in the bucket. A hard link's is its target's.
    pub(crate) fn freeze(
        &mut self,
        ino: u64,
        key: &Key,
        write: &WriteId,
        target: Option<LinkTarget>,
    ) -> Option<Frozen> {
        if !self.unsent.any() {
            return None;
        }
        let precondition = self
            .occupant(key)
            .map_or(Precondition::Absent, Precondition::Version);
        let content = match (&mut self.staged, self.unsent.content) {
            (Some(staged), true) => Some(staged.freeze()),
            _ => None,
        };
        let (attr, mut metadata, target) = match target {
            Some(target) => (target.attr, target.metadata, Some(target.remote)),
            None => (self.attr, self.metadata.clone(), None),
        };
        attr.to_attributes().write_to(&mut metadata);
        if self.attr.kind == FileKind::File && content.is_some() {
            metadata.set_content_type_by_name(key);
        }
        Some(Frozen {
            ino,
            attr,
            write: write.clone(),
            marked: write.mark(metadata.clone()),
            metadata,
            content,
            base: self.remote.clone(),
            target,
            precondition,
            change: self.change,
        })
    }

    /// The bucket has `frozen` as `remote`.
    pub(crate) fn uploaded(&mut self, frozen: &Frozen, remote: Remote) {
        if let (Some(staged), Some(content)) = (&mut self.staged, &frozen.content) {
            staged.uploaded(content, remote.size);
        }
        self.remote = Some(remote);
        self.failure = None;
        if frozen.target.is_some() {
            self.attr = frozen.attr;
        }
        if self.is_as_in(frozen) {
            self.metadata.clone_from(&frozen.metadata);
            self.unsent = Unsent::default();
            self.staged = None;
        }
    }

    /// Whether nothing was changed since the upload began.
    pub(crate) fn is_as_in(&self, frozen: &Frozen) -> bool {
        self.change == frozen.change
    }

    /// The bucket does not have `frozen`: it is still to be sent.
    pub(crate) fn not_uploaded(&mut self, frozen: &Frozen) {
        if let (Some(staged), Some(_)) = (&mut self.staged, &frozen.content) {
            staged.abandoned();
        }
    }
}
