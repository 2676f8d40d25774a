//! fallocate: room for bytes to come, and ranges of zeros.
//!
//! An object has every byte of its file, zeros too, so no range is ever less than allocated. Until they are uploaded,
//! zeros take no room on the host's disk.

use std::ops::Range;

use nix::libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};

use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::InodeState;
use crate::fs::staging::ContentSource;
use crate::fs::upload::plan::SIZE_MAX;

/// What fallocate(2) is asked to do with a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocation {
    /// The range becomes zeros; else the bytes that it has stay.
    pub zero: bool,
    /// The file keeps its size; else it ends at the end of the range if it did before.
    pub keep_size: bool,
}

impl Allocation {
    /// What the system call's `mode` means. `None`: ranges are moved, which is not done here, or it means nothing.
    pub fn from_mode(mode: i32) -> Option<Self> {
        const PUNCH_HOLE: i32 = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
        const ZERO_AND_KEEP_SIZE: i32 = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
        let (zero, keep_size) = match mode {
            0 => (false, false),
            FALLOC_FL_KEEP_SIZE => (false, true),
            FALLOC_FL_ZERO_RANGE => (true, false),
            PUNCH_HOLE | ZERO_AND_KEEP_SIZE => (true, true),
            _ => return None,
        };
        Some(Self { zero, keep_size })
    }
}

impl FileSystem {
    /// Does what fallocate(2) is asked. That the disk has room for bytes that are written there later is not promised.
    pub fn allocate(
        &self,
        fh: u64,
        offset: u64,
        len: u64,
        allocation: Allocation,
    ) -> Result<(), FsError> {
        let handle = self.handles.writable_file(fh)?;
        let end = offset.saturating_add(len);
        if end > SIZE_MAX {
            return Err(FsError::TooLarge(SIZE_MAX));
        }
        self.journal.check_room()?;
        let ino = handle.inode.ino;
        let mut state = handle.inode.state.lock();
        handle.check_lineage(&state)?;
        let before = state.change;
        let size = state.attr.size;
        // What may be refused comes first.
        if !allocation.keep_size && end > size {
            self.resize(ino, &mut state, end)?;
        }
        if allocation.zero {
            self.zero(ino, &mut state, offset..end.min(size))?;
        }
        self.keep_nameless(ino, &state);
        let is_changed = state.change != before;
        drop(state);
        if is_changed {
            self.changed(ino);
        }
        Ok(())
    }

    fn zero(&self, ino: u64, state: &mut InodeState, range: Range<u64>) -> Result<(), FsError> {
        if range.is_empty() || is_zeros(state, range.clone()) {
            return Ok(());
        }
        self.keep_base(state);
        let (size, time) = (state.attr.size, self.settings.clock.wall());
        let extents = self.staged(ino, state)?.stage_zeros(range)?;
        self.record_staged(ino, state, extents, (size, time))?;
        state.content_changed(size, time);
        Ok(())
    }
}

/// Whether nobody ever wrote to the range.
fn is_zeros(state: &InodeState, range: Range<u64>) -> bool {
    match (&state.staged, &state.remote) {
        (Some(staged), _) => {
            let sources = staged.sources(range);
            sources.iter().all(|(_, of)| *of == ContentSource::Zeros)
        }
        (None, remote) => remote
            .as_ref()
            .is_none_or(|remote| remote.size <= range.start),
    }
}

#[cfg(test)]
mod tests {
    use nix::libc::{FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE};

    use super::*;

    #[test]
    fn modes_mean_what_the_manual_says() {
        let (keep, punch, zero) = (
            FALLOC_FL_KEEP_SIZE,
            FALLOC_FL_PUNCH_HOLE,
            FALLOC_FL_ZERO_RANGE,
        );
        let allocation = |zero, keep_size| Some(Allocation { zero, keep_size });
        let table = [
            (0, allocation(false, false)),
            (keep, allocation(false, true)),
            (punch | keep, allocation(true, true)),
            (zero, allocation(true, false)),
            (zero | keep, allocation(true, true)),
            // A hole never changes the size.
            (punch, None),
            (punch | zero | keep, None),
            (FALLOC_FL_COLLAPSE_RANGE, None),
            (FALLOC_FL_INSERT_RANGE, None),
            (-1, None),
        ];
        for (mode, expected) in table {
            assert_eq!(Allocation::from_mode(mode), expected, "{mode:#x}");
        }
    }
}
