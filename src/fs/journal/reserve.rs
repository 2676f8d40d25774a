//! Room on the disk that the journal's file has beyond its end: when the disk is full, names can still be removed and
//! uploads can end, which is what makes room.
//!
//! The room is allocated and no part of the file's length, so nobody reads it. A file system that cannot allocate is
//! one without a reserve.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;

/// Bytes of the reserve: some hundred thousand removals.
const RESERVE: u64 = 64 << 20;

/// Of a small file system it is no more than this part.
const PART_OF_DISK: u64 = 16;

/// When the disk was full, the next look for room is so many bytes of records later; who wants to write looks at once.
const LOOK_AGAIN: u64 = 64 << 10;

/// The reserve of one journal's file.
#[derive(Debug)]
pub(super) struct Reserve {
    /// Bytes that it is to have.
    size: u64,
    /// Where it ends; `u64::MAX` where there is no reserve to have.
    until: u64,
    /// Where the end of the records has to be for the next look.
    look_at: u64,
}

impl Reserve {
    /// None yet, for a file at `path`.
    pub(super) fn of(path: &Path) -> Self {
        let disk = path.parent().and_then(|directory| statvfs(directory).ok());
        let total = disk.map_or(u64::MAX, |disk| {
            disk.blocks().saturating_mul(disk.fragment_size())
        });
        Self {
            size: size_of_reserve(total),
            until: 0,
            look_at: 0,
        }
    }

    /// The records end at `end` by now. Keeps the reserve up if there is room for it.
    pub(super) fn used(&mut self, file: &File, end: u64) {
        if end >= self.look_at && self.replenish(file, end).is_err() {
            self.look_at = end + LOOK_AGAIN;
        }
    }

    /// Makes sure that at least half of the reserve is there, and all of it if something has to be done for that.
    pub(super) fn replenish(&mut self, file: &File, end: u64) -> io::Result<()> {
        if is_enough(self.size, self.until.saturating_sub(end)) {
            return Ok(());
        }
        let signed = |bytes: u64| i64::try_from(bytes).map_err(io::Error::other);
        let keep_len = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        // What an earlier process has reserved is still there: then half of it takes no more room.
        for size in [self.size, self.size / 2] {
            match fallocate(file, keep_len, signed(end)?, signed(size.max(1))?) {
                Ok(()) => self.until = end + size,
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => self.until = u64::MAX,
                Err(Errno::ENOSPC | Errno::EDQUOT) => continue,
                Err(errno) => return Err(errno.into()),
            }
            return Ok(());
        }
        Err(Errno::ENOSPC.into())
    }
}

/// Bytes of the reserve on a file system of `total` bytes.
fn size_of_reserve(total: u64) -> u64 {
    RESERVE.min(total / PART_OF_DISK)
}

/// Whether a reserve of `size` with `left` bytes is one that may be used for more than to make room.
fn is_enough(size: u64, left: u64) -> bool {
    left >= size / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_disk_has_a_small_reserve_and_half_of_it_is_enough_to_go_on() {
        assert_eq!(size_of_reserve(1 << 40), 64 << 20);
        assert_eq!(size_of_reserve(160 << 20), 10 << 20);
        assert!(is_enough(100, 50) && !is_enough(100, 49));
    }
}
