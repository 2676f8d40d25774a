//! What is asked of a mount and only its file system knows.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::filesystems;
use crate::fs::{Change, FileSystem, FsError, Pending};
use crate::plugin::bucket::{MountError, MountStatus, PendingChange, Salvage};
use crate::store::{ConditionalWrites, Key};

/// Brings every pending change into the bucket.
pub(super) async fn drain(filesystem: &Arc<FileSystem>, limit: Duration) -> Result<(), MountError> {
    let drained = filesystem.drain(limit).await;
    drained.map_err(|error| fs_error(filesystem, &error))
}

/// Does what a person decided about a change that does not get into the bucket.
pub(super) async fn salvage(
    filesystem: &Arc<FileSystem>,
    key: &str,
    how: &Salvage,
) -> Result<Vec<Range<u64>>, MountError> {
    let key = Key::new(key);
    let done = match how {
        Salvage::Export(to) => filesystem.export(&key, to).await,
        Salvage::Discard => filesystem.discard(&key).await.map(|()| Vec::new()),
    };
    done.map_err(|error| match error {
        FsError::NoEntry => MountError::Refused(format!(
            "no change of {:?} is pending: bucketvol pending ls shows those that are",
            key.as_str()
        )),
        error => fs_error(filesystem, &error),
    })
}

/// What there is to say about it.
pub(super) fn status(filesystem: &FileSystem) -> MountStatus {
    let status = filesystem.status();
    let used = Some(status.space).filter(|space| space.is_counted);
    MountStatus {
        dirty_bytes: status.dirty_bytes,
        dirty_files: status.dirty_files,
        cache_bytes: status.cache_bytes,
        cache_disk_bytes: status.cache_disk_bytes,
        cache_hits: status.cache_hits,
        cache_lookups: status.cache_lookups,
        size: status.space.size,
        used_bytes: used.map(|space| space.used_bytes),
        used_files: used.map(|space| space.used_files),
        journal_bytes: status.journal_bytes,
        journal_synced_bytes: status.journal_synced_bytes,
        conditional_writes: status
            .conditional_writes
            .map(|writes| in_words(writes).to_owned()),
        requests: status.requests,
        last_error: status.last_error,
        unshowable_names: status.unshowable_names,
        pending_changes: status.pending_changes,
        pending: status.pending.into_iter().map(pending_change).collect(),
    }
}

fn in_words(writes: ConditionalWrites) -> &'static str {
    match writes {
        ConditionalWrites::Checked => "checked by the store",
        ConditionalWrites::OnlyAbsence => {
            "checked by the store for new names; otherwise looked at first, and another host may write in between"
        }
        ConditionalWrites::LookedAt => "looked at first: another host may write in between",
    }
}

fn pending_change(pending: Pending) -> PendingChange {
    let change = match pending.change {
        Change::Content => "content",
        Change::Attributes => "attributes",
        Change::Name => "name",
        Change::Removal => "removal",
        Change::Parts => "parts",
    };
    PendingChange {
        key: pending.key,
        change: change.to_owned(),
        bytes: pending.bytes,
        reason: pending.reason,
    }
}

/// The volume's place is in the text: an errno's words alone help nobody.
fn fs_error(filesystem: &FileSystem, error: &FsError) -> MountError {
    filesystems::fs_error(filesystem.bucket().location(), error)
}
