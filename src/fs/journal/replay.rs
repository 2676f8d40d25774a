//! What a journal says, put together. No I/O.

use std::collections::HashMap;

use super::record::{ChangedInode, Record, SentObject};
use crate::fs::inode::Unsent;
use crate::fs::staging::{ContentMap, FrozenMap};
use crate::store::{Key, WriteId};

/// What an earlier process left behind.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    /// Tree places of inodes, changed or not.
    pub(crate) places: HashMap<u64, Placement>,
    /// The inodes that differ from their objects.
    pub(crate) inodes: HashMap<u64, ReplayedInode>,
    /// Objects without a name, to be deleted.
    pub(crate) doomed: HashMap<Key, SentObject>,
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
    /// What an upload has frozen of which the journal knows no end so far.
    sending: Option<FrozenMap>,
    /// Where the inode was when that upload was begun.
    sent_to: Option<Placement>,
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
            } => {
                self.place(ino, parent, name, is_directory);
                if let Some(inode) = self.inodes.get_mut(&ino) {
                    inode.changed.overwrites = overwrites;
                }
                if let Some(replaced) = replaced {
                    self.inodes.remove(&replaced);
                }
                self.doom(doomed);
            }
            Record::Unlinked { ino, doomed } => {
                self.inodes.remove(&ino);
                self.doom(doomed);
            }
            Record::Changed(changed) => {
                let inode = ReplayedInode {
                    content: changed.base_len.map(ContentMap::new),
                    sending: None,
                    sent_to: self.places.get(&changed.ino).cloned(),
                    changed: *changed,
                };
                self.inodes.insert(inode.changed.ino, inode);
            }
            Record::Doomed(object) => self.doom([object]),
            Record::Deleted { key, version } => {
                if self.doomed.get(&key).is_some_and(|o| o.version == version) {
                    self.doomed.remove(&key);
                }
            }
            Record::Settled { ino } => {
                self.inodes.remove(&ino);
            }
            Record::Sent {
                ino,
                remote,
                overwrites,
                doomed,
                settled,
            } => {
                self.doom(doomed);
                if settled {
                    self.inodes.remove(&ino);
                } else if let Some(inode) = self.inodes.get_mut(&ino) {
                    if let (Some(content), Some(frozen)) =
                        (&mut inode.content, inode.sending.take())
                    {
                        content.uploaded(&frozen, remote.size);
                    }
                    inode.changed.remote = Some(remote);
                    inode.changed.overwrites = overwrites;
                    inode.changed.write = None;
                    inode.sent_to = None;
                }
            }
            Record::Attributes { ino, attr } => self.change(ino, |inode| {
                inode.changed.attr = attr;
                inode.changed.unsent.attributes = true;
            }),
            Record::Written {
                ino,
                extents,
                size,
                time,
            } => self.change(ino, |inode| {
                inode.content_mut().record(&extents);
                inode.changed.content_changed(size, time);
            }),
            Record::Resized { ino, size, time } => self.change(ino, |inode| {
                inode.content_mut().resize(size);
                inode.changed.content_changed(size, time);
            }),
            Record::Sending { ino, write } => {
                let place = self.places.get(&ino).cloned();
                if let Some(inode) = self.inodes.get_mut(&ino) {
                    inode.changed.write = Some(write);
                    inode.sent_to = place;
                    inode.sending = inode.content.as_mut().map(ContentMap::freeze);
                }
            }
            Record::Based {
                ino,
                remote,
                overwrites,
                doomed,
            } => {
                if let Some(inode) = self.inodes.get_mut(&ino) {
                    inode.changed.remote = remote;
                    inode.changed.overwrites = overwrites;
                }
                self.doom(doomed);
            }
        }
    }

    /// The uploads whose ends are not known: the inode, where it was when its upload was begun, and the mark.
    pub(crate) fn open_ends(&self) -> Vec<(u64, Placement, WriteId)> {
        let ends = self.inodes.iter().filter_map(|(ino, inode)| {
            let write = inode.changed.write.clone()?;
            Some((*ino, inode.sent_to.clone()?, write))
        });
        ends.collect()
    }

    /// An upload of an inode, of whose end nobody knew, has made this object: the last attempt at it, or one before,
    /// of which it is not known what it sent.
    pub(crate) fn found(&mut self, ino: u64, object: SentObject, by_the_last: bool) {
        let Some(inode) = self.inodes.get_mut(&ino) else {
            return;
        };
        if !by_the_last {
            inode.sending = None;
        }
        let is_in_place = self.places.get(&ino) == inode.sent_to.as_ref();
        let left = inode.changed.remote.clone();
        let sent = Record::Sent {
            ino,
            overwrites: inode.changed.overwrites.clone().filter(|_| !is_in_place),
            doomed: left.filter(|left| left.key != object.key),
            remote: object,
            settled: false,
        };
        self.apply(sent);
    }

    fn place(&mut self, ino: u64, parent: u64, name: String, is_directory: bool) {
        let placement = Placement {
            parent,
            name,
            is_directory,
        };
        self.places.insert(ino, placement);
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

impl ReplayedInode {
    fn content_mut(&mut self) -> &mut ContentMap {
        let base_len = self.changed.remote.as_ref().map_or(0, |remote| remote.size);
        self.content
            .get_or_insert_with(|| ContentMap::new(base_len))
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
