//! Descriptors as numbers: which belong to whom, and how many there may be.
//!
//! A worker finds its descriptors at 3 and up. What the keeper holds lies above that range, so that making
//! the worker's numbers never overwrites one that is still to be given.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The first descriptor that is passed on, SD_LISTEN_FDS_START.
pub(super) const FIRST_PASSED: RawFd = 3;

/// The most descriptors that one datagram can carry, the kernel's SCM_MAX_FD.
pub(super) const DATAGRAM_MAX: usize = 253;

/// Numbers that are left for the keeper's own files and for one full datagram. A datagram whose descriptors
/// do not all fit would lose some of them without a word.
const RESERVE: usize = DATAGRAM_MAX + 67;

/// Takes a descriptor by the number that the kernel, or a keeper before us, told us.
///
/// The caller knows that the number is open and nobody else's: it comes from a control message just received,
/// from fcntl(F_DUPFD), or from an environment that is read once in the life of a process.
pub(super) fn own(number: RawFd) -> OwnedFd {
    #[expect(
        unsafe_code,
        reason = "descriptors come as numbers; this is the one place that takes them"
    )]
    // SAFETY: the number is open and owned by nobody else, as every caller has just made sure.
    unsafe {
        OwnedFd::from_raw_fd(number)
    }
}

/// Takes a descriptor that an environment names. One that is not open is an error.
pub(super) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // Asked by name, since a number that is not open must not be owned.
    std::fs::symlink_metadata(format!("/proc/self/fd/{number}"))?;
    let fd = own(number);
    set_inheritable(fd.as_fd(), false)?;
    Ok(fd)
}

/// The same open file by a number of `lowest` or above, closed by execve(2).
pub(super) fn lift(fd: BorrowedFd<'_>, lowest: RawFd) -> io::Result<OwnedFd> {
    Ok(own(fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(lowest))?))
}

/// Whether execve(2) leaves the descriptor open.
pub(super) fn set_inheritable(fd: BorrowedFd<'_>, inheritable: bool) -> io::Result<()> {
    let flags = match inheritable {
        true => FdFlag::empty(),
        false => FdFlag::FD_CLOEXEC,
    };
    fcntl(fd, FcntlArg::F_SETFD(flags))?;
    Ok(())
}

/// Raises the limit of open files as far as it goes, and says how many of `wanted` descriptors can be held.
pub(super) fn make_room(wanted: usize) -> io::Result<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    };
    Ok(room(limit, wanted))
}

/// How many of `wanted` descriptors can be held below a limit of open files: each has its own number and,
/// while a worker is started, one of the worker's.
fn room(limit: u64, wanted: usize) -> usize {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    wanted.min(limit.saturating_sub(RESERVE) / 2)
}

/// The number that shows in logs and in another process's view of this descriptor.
pub(super) fn number(fd: &OwnedFd) -> RawFd {
    fd.as_raw_fd()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_as_large_as_the_limit_of_open_files_allows() {
        for (limit, wanted, held) in [
            (1 << 20, 4096, 4096),
            (u64::MAX, 4096, 4096),
            (4096, 4096, 1888),
            (1024, 4096, 352),
            (1024, 10, 10),
            (64, 4096, 0),
        ] {
            assert_eq!(room(limit, wanted), held, "limit {limit}");
        }
    }

    #[test]
    fn a_descriptor_that_is_not_open_is_not_taken() {
        assert!(inherited(1_000_000).is_err());
    }
}
