//! What a journal says, put together. No I/O.

use std::collections::{BTreeMap, HashMap};

use super::history::{History, Mark, Moment};
use super::record::{ChangedDirectory, ChangedInode, Multipart, Record, SentObject};
use crate::fs::extents::Chunk;
use crate::fs::inode::{Attempt, Unsent};
use crate::fs::name::split_stored;
use crate::fs::request::RecentRequests;
use crate::fs::staging::{ContentMap, FrozenMap};
use crate::fs::tree::Origin;
use crate::store::{Key, ObjectVersion, UploadId};

/// What an earlier process left behind.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    /// Tree places of inodes, changed or not.
    pub(crate) places: HashMap<u64, Placement>,
    /// Segments that are too long to be names, but for what is shown of them.
    pub(crate) long_segments: Vec<String>,
    /// The inodes that differ from their objects.
    pub(crate) inodes: HashMap<u64, ReplayedInode>,
    /// Hard links, and the inodes that they are links to.
    pub(crate) links: BTreeMap<u64, u64>,
    /// Objects without a name, to be deleted.
    pub(crate) doomed: HashMap<Key, SentObject>,
    /// Uploads of what has no name, of which it is not known whether they have made an object.
    pub(crate) in_doubt: HashMap<Key, Vec<Attempt>>,
    /// The last requests whose changes are all in the journal.
    pub(crate) requests: RecentRequests,
    /// Multipart uploads of which the journal knows no end.
    pub(crate) multiparts: BTreeMap<UploadId, Key>,
    /// Copies of directories' objects of which the journal knows no end so far.
    migrations: HashMap<u64, Migration>,
}

/// What will hold when all objects of a directory have been copied.
#[derive(Debug, Default)]
struct Migration {
    carried: HashMap<u64, Carried>,
    left: Vec<SentObject>,
}

#[derive(Debug)]
struct Carried {
    remote: Option<SentObject>,
    overwrites: Option<ObjectVersion>,
    attempt: Option<Attempt>,
    below: Option<ChangedDirectory>,
}

/// A tree place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) parent: u64,
    pub(crate) name: String,
    pub(crate) is_directory: bool,
}

/// An inode that differs from its object.
#[derive(Debug)]
pub(crate) struct ReplayedInode {
    pub(crate) changed: ChangedInode,
    /// Where its dirty bytes are; `None`: only attributes changed.
    pub(crate) content: Option<ContentMap>,
    history: History,
    /// What an upload has frozen of which the journal knows no end so far.
    sending: Option<(Mark, FrozenMap)>,
}

impl Replay {
    /// Takes the next record. One about an inode that is settled says nothing any more.
    pub(crate) fn apply(&mut self, record: Record) {
        match record {
            Record::Placed {
                ino,
                parent,
                name,
                is_directory,
            } => {
                self.place(ino, parent, name, is_directory);
            }
            Record::Renamed {
                ino,
                parent,
                name,
                is_directory,
                replaced,
                overwrites,
                doomed,
                in_doubt,
            } => {
                self.doubt(in_doubt);
                self.place(ino, parent, name, is_directory);
                if let Some(inode) = self.inodes.get_mut(&ino) {
                    inode.changed.overwrites = overwrites;
                }
                if let Some(replaced) = replaced {
                    self.forget(replaced);
                }
                self.doom(doomed);
            }
            Record::Exchanged {
                inos,
                overwrites,
                doomed,
            } => {
                if let [Some(mut a), Some(mut b)] = inos.map(|ino| self.places.remove(&ino)) {
                    std::mem::swap(&mut a.is_directory, &mut b.is_directory);
                    self.places.extend([(inos[0], b), (inos[1], a)]);
                }
                for (ino, overwrites) in inos.into_iter().zip(overwrites) {
                    if let Some(inode) = self.inodes.get_mut(&ino) {
                        inode.changed.overwrites = overwrites;
                    }
                }
                self.doom(doomed);
            }
            Record::Carried {
                directory,
                ino,
                remote,
                overwrites,
                attempt,
                below,
            } => {
                let carried = Carried {
                    remote,
                    overwrites,
                    attempt,
                    below,
                };
                let migration = self.migrations.entry(directory).or_default();
                migration.carried.insert(ino, carried);
            }
            Record::Carrying { directory } => {
                self.migrations.remove(&directory);
            }
            Record::WentBack { ino, to } => self.change(ino, |inode| inode.return_to(to)),
            Record::Left { directory, objects } => {
                let migration = self.migrations.entry(directory).or_default();
                migration.left.extend(objects);
            }
            Record::Migrated { directory } => self.migrated(directory),
            Record::Unlinked {
                ino,
                doomed,
                in_doubt,
            } => {
                self.forget(ino);
                self.doom(doomed);
                self.doubt(in_doubt);
            }
            Record::Done(requests) => {
                for request in requests {
                    self.requests.push(request, None);
                }
            }
            Record::InDoubt(attempt) => self.doubt([attempt]),
            Record::MultipartBegun(Multipart { key, upload }) => {
                self.multiparts.insert(upload, key);
            }
            Record::MultipartEnded(upload) => {
                self.multiparts.remove(&upload);
            }
            Record::Changed(changed) => {
                let content = changed.base_len.map(ContentMap::new);
                let inode = ReplayedInode {
                    history: History::of_parts(content.clone()),
                    content,
                    sending: None,
                    changed: *changed,
                };
                self.inodes.insert(inode.changed.ino, inode);
            }
            Record::Doomed(object) => self.doom([object]),
            Record::Deleted { key, version } => {
                if version.is_any() {
                    self.in_doubt.remove(&key);
                }
                if self.doomed.get(&key).is_some_and(|o| o.version == version) {
                    self.doomed.remove(&key);
                }
            }
            Record::Resolved(attempt) => {
                if let Some(at_key) = self.in_doubt.get_mut(&attempt.key) {
                    at_key.retain(|other| !other.write.is_of_the_write_of(&attempt.write));
                }
            }
            Record::Settled { ino } => self.forget(ino),
            Record::Linked { ino, target } => {
                self.links.insert(ino, target);
            }
            Record::Together(records) => records.into_iter().for_each(|record| self.apply(record)),
            Record::Sent {
                ino,
                remote,
                overwrites,
                doomed,
                settled,
            } => {
                self.doom(doomed);
                for link in links_to(&self.links, ino) {
                    if let Some(link) = self.inodes.get_mut(&link) {
                        link.changed.unsent.content = true;
                    }
                }
                if settled {
                    self.forget(ino);
                } else if let Some(inode) = self.inodes.get_mut(&ino) {
                    match (&mut inode.content, inode.sending.take()) {
                        (Some(content), Some((mark, frozen))) => {
                            content.uploaded(&frozen, remote.size);
                            inode.history.sent(mark, frozen, remote.size);
                        }
                        _ => inode.rebased(),
                    }
                    inode.changed.remote = Some(remote);
                    inode.changed.overwrites = overwrites;
                    inode.changed.attempt = None;
                }
            }
            Record::Attributes { ino, attr } => self.change(ino, |inode| {
                inode.changed.attr = attr;
                inode.changed.unsent.attributes = true;
                if let Some(content) = &inode.content {
                    inode.history.complete(content, attr.size, attr.mtime);
                }
            }),
            Record::Metadata {
                ino,
                attr,
                metadata,
            } => self.change(ino, |inode| {
                inode.changed.attr = attr;
                inode.changed.metadata = metadata;
                inode.changed.unsent.attributes = true;
            }),
            Record::Written {
                ino,
                extents,
                size,
                time,
            } => self.change(ino, |inode| {
                inode.content_mut().record(&extents);
                inode.history.written(extents, size, time);
                inode.changed.content_changed(size, time);
            }),
            Record::Resized { ino, size, time } => self.change(ino, |inode| {
                inode.content_mut().resize(size);
                inode.history.resized(size, time);
                inode.changed.content_changed(size, time);
            }),
            Record::Sending { ino, attempt } => {
                if let Some(inode) = self.inodes.get_mut(&ino) {
                    inode.changed.attempt = Some(attempt);
                    let frozen = inode.content.as_mut().map(ContentMap::freeze);
                    inode.sending = frozen.map(|frozen| (inode.history.mark(), frozen));
                }
            }
            Record::Based {
                ino,
                remote,
                overwrites,
                doomed,
            } => {
                if let Some(inode) = self.inodes.get_mut(&ino) {
                    if !is_moved(inode.changed.remote.as_ref(), remote.as_ref()) {
                        inode.rebased();
                    }
                    inode.changed.remote = remote;
                    inode.changed.overwrites = overwrites;
                }
                self.doom(doomed);
            }
        }
    }

    /// The uploads whose ends are not known.
    pub(crate) fn open_ends(&self) -> Vec<(u64, Attempt)> {
        let ends = self.inodes.iter();
        ends.filter_map(|(ino, inode)| Some((*ino, inode.changed.attempt.clone()?)))
            .collect()
    }

    /// An upload of an inode, of whose end nobody knew, has made this object: the last attempt at it, or one before,
    /// of which it is not known what it sent. The inode's name may spell another key by now. Returns what is to be
    /// written down.
    pub(crate) fn found(
        &mut self,
        ino: u64,
        object: SentObject,
        by_the_last: bool,
        is_in_place: bool,
    ) -> Option<Record> {
        let inode = self.inodes.get_mut(&ino)?;
        let left = inode.changed.remote.clone();
        let doomed = left.filter(|left| left.key != object.key);
        let overwrites = inode.changed.overwrites.clone();
        let overwrites = overwrites.filter(|_| !is_in_place);
        let found = if by_the_last {
            Record::Sent {
                ino,
                overwrites,
                doomed,
                remote: object,
                settled: false,
            }
        } else {
            inode.sending = None;
            inode.changed.attempt = None;
            Record::Based {
                ino,
                remote: Some(object),
                overwrites,
                doomed,
            }
        };
        self.apply(found.clone());
        Some(found)
    }

    /// Nothing of the inode is to be sent.
    fn forget(&mut self, ino: u64) {
        self.inodes.remove(&ino);
        self.links.remove(&ino);
    }

    fn migrated(&mut self, directory: u64) {
        let Migration { carried, left } = self.migrations.remove(&directory).unwrap_or_default();
        for (ino, carried) in carried {
            if let Some(inode) = self.inodes.get_mut(&ino) {
                inode.changed.remote = carried.remote;
                inode.changed.overwrites = carried.overwrites;
                inode.changed.attempt = carried.attempt;
                inode.changed.directory = carried.below;
            }
        }
        let moved = self.inodes.get_mut(&directory);
        if let Some(place) = moved.and_then(|inode| inode.changed.directory.as_mut())
            && let Some(to) = place.migration.take()
        {
            place.origin = Origin::Elsewhere(to);
        }
        self.doom(left);
    }

    fn place(&mut self, ino: u64, parent: u64, name: String, is_directory: bool) {
        let (name, segment) = split_stored(&name);
        self.long_segments.extend(segment.map(str::to_owned));
        let placement = Placement {
            parent,
            name: name.to_owned(),
            is_directory,
        };
        self.places.insert(ino, placement);
    }

    fn doubt(&mut self, attempts: impl IntoIterator<Item = Attempt>) {
        for attempt in attempts {
            let at_key = self.in_doubt.entry(attempt.key.clone()).or_default();
            at_key.retain(|other| !other.write.is_of_the_write_of(&attempt.write));
            at_key.push(attempt);
        }
    }

    fn doom(&mut self, objects: impl IntoIterator<Item = SentObject>) {
        for object in objects {
            self.doomed.insert(object.key.clone(), object);
        }
    }

    fn change(&mut self, ino: u64, change: impl FnOnce(&mut ReplayedInode)) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            change(inode);
        }
    }
}

/// The hard links to an inode.
fn links_to(links: &BTreeMap<u64, u64>, target: u64) -> impl Iterator<Item = u64> + '_ {
    let is_its = move |(_, to): &(&u64, &u64)| **to == target;
    links.iter().filter(is_its).map(|(link, _)| *link)
}

/// Whether an object's bytes are where they were, or have gone to another key.
fn is_moved(from: Option<&SentObject>, to: Option<&SentObject>) -> bool {
    match (from, to) {
        (Some(from), Some(to)) => from.size == to.size && from.key != to.key,
        _ => false,
    }
}

impl ReplayedInode {
    fn content_mut(&mut self) -> &mut ContentMap {
        let base_len = self.object_size();
        let content = self
            .content
            .get_or_insert_with(|| ContentMap::new(base_len));
        self.history.begin(content);
        content
    }

    fn object_size(&self) -> u64 {
        self.changed.remote.as_ref().map_or(0, |remote| remote.size)
    }

    fn rebased(&mut self) {
        if let Some(content) = &self.content {
            let attr = &self.changed.attr;
            self.history.rebased(content, attr.size, attr.mtime);
        }
    }

    /// Takes the content back to the last moment of which nothing is missing. Returns `false` if it is as it was.
    pub(crate) fn go_back(
        &mut self,
        mut is_intact: impl FnMut(&Chunk) -> bool,
    ) -> Option<Option<u64>> {
        let content = self.content.as_ref()?;
        if content.is_intact(None, &mut is_intact) {
            return None;
        }
        let to = self.history.last_intact(is_intact);
        self.return_to(to);
        Some(to)
    }

    fn return_to(&mut self, step: Option<u64>) {
        let Moment { map, size, time } = self.history.return_to(step, self.object_size());
        self.content = Some(map);
        self.changed.attr.size = size;
        self.changed.attr.mtime = time.unwrap_or(self.changed.attr.mtime);
    }
}

impl ChangedInode {
    fn content_changed(&mut self, size: u64, time: std::time::SystemTime) {
        self.attr.size = size;
        self.attr.mtime = time;
        self.attr.ctime = time;
        self.unsent = Unsent {
            content: true,
            ..self.unsent
        };
    }
}
