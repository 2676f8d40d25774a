//! What the journal says: the format.
//!
//! A record is the whole of one change, so that a journal cut off between two records is a state the volume
//! was in. Where a request of the kernel needs more than one, the last one carries the request's id. The variants and
//! their fields are the format: one that changes takes a new [`Format`], in which what there was can still be read, and
//! [`Record::said_in`] says it in the format before.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::fs::attr::Attr;
use crate::fs::extents::Extent;
use crate::fs::format::Format;
use crate::fs::inode::{Attempt, Unsent};
use crate::fs::request::RequestId;
use crate::fs::tree::Origin;
use crate::store::{Key, Metadata, ObjectVersion, UploadId};

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Record {
    /// Where an inode is in the tree. Inodes between the root and a changed one have such a record too.
    Placed {
        ino: u64,
        parent: u64,
        name: String,
        is_directory: bool,
    },
    /// An inode has another tree place, and what had that place before is gone.
    Renamed {
        ino: u64,
        parent: u64,
        name: String,
        is_directory: bool,
        replaced: Option<u64>,
        overwrites: Option<ObjectVersion>,
        doomed: Vec<SentObject>,
        in_doubt: Option<Attempt>,
    },
    /// Two inodes have changed places.
    Exchanged {
        inos: [u64; 2],
        overwrites: [Option<ObjectVersion>; 2],
        doomed: Vec<SentObject>,
    },
    /// An inode has no name any more.
    Unlinked {
        ino: u64,
        doomed: Vec<SentObject>,
        in_doubt: Option<Attempt>,
    },
    /// An upload of something that has no name any more may have made an object: that is to be deleted.
    InDoubt(Attempt),
    /// All of an inode that is not in the bucket, but for its extents: they follow. Replaces what the journal
    /// said of the inode before.
    Changed(Box<ChangedInode>),
    /// An inode's attributes changed.
    Attributes { ino: u64, attr: Attr },
    /// Bytes are in the inode's staging file, and dirty.
    Written {
        ino: u64,
        extents: Vec<Extent>,
        /// Bytes of the file afterwards.
        size: u64,
        #[serde(with = "timestamp")]
        time: SystemTime,
    },
    /// The file was cut off or extended with zeros.
    Resized {
        ino: u64,
        size: u64,
        #[serde(with = "timestamp")]
        time: SystemTime,
    },
    /// What has changed so far is being sent; the object will carry this mark.
    Sending { ino: u64, attempt: Attempt },
    /// What was being sent is in the bucket as this object; what has changed since is not.
    Sent {
        ino: u64,
        remote: SentObject,
        overwrites: Option<ObjectVersion>,
        doomed: Option<SentObject>,
        /// Nothing of the inode is left to send.
        settled: bool,
    },
    /// The inode's object was moved or changed by another request than an upload.
    Based {
        ino: u64,
        remote: Option<SentObject>,
        overwrites: Option<ObjectVersion>,
        doomed: Option<SentObject>,
    },
    /// This object has no name any more, and is to be deleted when nobody has it open.
    Doomed(SentObject),
    /// It is gone; of any version, if it was in doubt.
    Deleted { key: Key, version: ObjectVersion },
    /// Nothing of the inode is to be sent any more: all of it was, or its name is gone.
    Settled { ino: u64 },
    /// The objects of `directory` are being copied to where they belong. When all are, this holds of an inode
    /// below it.
    Carried {
        directory: u64,
        ino: u64,
        remote: Option<SentObject>,
        overwrites: Option<ObjectVersion>,
        attempt: Option<Attempt>,
        below: Option<ChangedDirectory>,
    },
    /// Likewise: then these objects are to be deleted.
    Left {
        directory: u64,
        objects: Vec<SentObject>,
    },
    /// All are: the directory's objects are where its migration was to bring them.
    Migrated { directory: u64 },
    /// The kernel's requests that were done last, by records that are no more.
    Done(Vec<RequestId>),
    /// A multipart upload was begun. No part of it has left before this is on the disk.
    MultipartBegun(Multipart),
    /// It is complete or was aborted: nothing of it is left but the object.
    MultipartEnded(UploadId),
    /// The objects of `directory` were copied: what holds then follows. What an earlier attempt said of it counts no
    /// more.
    Carrying { directory: u64 },
    /// Bytes of an inode were not on the disk when the host went down: its content is what it was after this step of
    /// its history ([`super::history`]); `None`: what the object has.
    WentBack { ino: u64, to: Option<u64> },
    /// What an upload in doubt has made, if anything, is gone, or known by another record.
    Resolved(Attempt),
    /// An inode's metadata changed, and with them its time.
    Metadata {
        ino: u64,
        attr: Attr,
        metadata: Metadata,
    },
    /// The inode stands for a hard link to `target`: whatever is sent of that is to be copied to it.
    Linked { ino: u64, target: u64 },
    /// All of these or none.
    Together(Vec<Record>),
}

impl Record {
    /// What a release that knows no later format is told.
    pub(crate) fn said_in(&self, format: Format) -> Cow<'_, Self> {
        match self {
            // All that is in doubt at the key: what else may be there is left behind rather than something deleted that
            // is in use.
            Self::Resolved(attempt) if format < Format::CURRENT => Cow::Owned(Self::Deleted {
                key: attempt.key.clone(),
                version: ObjectVersion::any(),
            }),
            // Who changes metadata, or links, looks at the format first: neither is ever said.
            Self::Metadata { ino, attr, .. } if format < Format::CURRENT => {
                Cow::Owned(Self::Attributes {
                    ino: *ino,
                    attr: *attr,
                })
            }
            _ => Cow::Borrowed(self),
        }
    }

    /// Bytes that it says were written, if it is about that.
    pub(crate) fn written(&self) -> Option<u64> {
        match self {
            Self::Written { extents, .. } => Some(extents.iter().map(|extent| extent.len).sum()),
            _ => None,
        }
    }
}

/// A multipart upload that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Multipart {
    /// Where its object goes.
    pub(crate) key: Key,
    /// What the store calls it.
    pub(crate) upload: UploadId,
}

/// An inode that differs from its object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChangedInode {
    pub(crate) ino: u64,
    pub(crate) attr: Attr,
    pub(crate) metadata: Metadata,
    pub(crate) remote: Option<SentObject>,
    pub(crate) overwrites: Option<ObjectVersion>,
    pub(crate) unsent: Unsent,
    /// There is a staging file, and so many bytes of the object are still the file's.
    pub(crate) base_len: Option<u64>,
    /// The last upload that was begun, whose end is not known.
    pub(crate) attempt: Option<Attempt>,
    /// What else there is to know of a directory.
    pub(crate) directory: Option<ChangedDirectory>,
}

/// Where the objects of a directory are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChangedDirectory {
    pub(crate) origin: Origin,
    /// They are being copied to this key, and that is to be finished.
    pub(crate) migration: Option<Key>,
}

/// An object as the journal knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SentObject {
    pub(crate) key: Key,
    pub(crate) size: u64,
    pub(crate) version: ObjectVersion,
}

/// Seconds since 1970, which may be negative, and nanoseconds: serde's own form knows no time before 1970.
pub(crate) mod timestamp {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        time: &SystemTime,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let nanos = match time.duration_since(UNIX_EPOCH) {
            Ok(since) => i128::try_from(since.as_nanos()).unwrap_or(i128::MAX),
            Err(before) => -i128::try_from(before.duration().as_nanos()).unwrap_or(i128::MAX),
        };
        nanos.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<SystemTime, D::Error> {
        const NANOS_PER_SECOND: u128 = 1_000_000_000;
        let nanos = i128::deserialize(deserializer)?;
        let magnitude = nanos.unsigned_abs();
        let seconds = u64::try_from(magnitude / NANOS_PER_SECOND).unwrap_or(u64::MAX);
        let rest = u32::try_from(magnitude % NANOS_PER_SECOND).unwrap_or(0);
        let distance = Duration::new(seconds, rest);
        let time = if nanos < 0 {
            UNIX_EPOCH.checked_sub(distance)
        } else {
            UNIX_EPOCH.checked_add(distance)
        };
        time.ok_or_else(|| serde::de::Error::custom("a time out of range"))
    }
}
