//! The one table that maps failures to errno.

use fuser::Errno;

use crate::fs::FsError;
use crate::fs::name::NameError;
use crate::store::StoreError;

impl From<&FsError> for Errno {
    fn from(error: &FsError) -> Self {
        // No `_` arm: a new variant has to choose here.
        match error {
            FsError::NoEntry => Self::ENOENT,
            FsError::Exists => Self::EEXIST,
            FsError::NotDirectory => Self::ENOTDIR,
            FsError::IsDirectory => Self::EISDIR,
            FsError::NotEmpty => Self::ENOTEMPTY,
            FsError::Invalid(_) => Self::EINVAL,
            FsError::NotPermitted(_) => Self::EPERM,
            FsError::TooManyLinks(_) => Self::EMLINK,
            FsError::Unsupported(_) => Self::EOPNOTSUPP,
            FsError::NoAttribute => Self::ENODATA,
            FsError::MetadataFull => Self::ENOSPC,
            FsError::Name(NameError::TooLong | NameError::KeyTooLong) => Self::ENAMETOOLONG,
            FsError::Name(NameError::NotAKey | NameError::UnknownHash) => Self::EILSEQ,
            FsError::Name(NameError::Dots) => Self::EINVAL,
            FsError::BadHandle => Self::EBADF,
            FsError::ReadOnly => Self::EROFS,
            FsError::Reserved => Self::EPERM,
            FsError::TooLarge(_) => Self::EFBIG,
            FsError::OverQuota(_) => Self::EDQUOT,
            // The kernel looks the name up afresh and tries again.
            FsError::Stale => Self::ESTALE,
            // Another host replaced the object; what was written here is kept.
            FsError::Conflict { .. } => Self::ESTALE,
            FsError::TimedOut(_) => Self::EIO,
            FsError::Store(error) => store_errno(error),
            FsError::Staging(error) => match error.raw_os_error() {
                // The disk of the host is full.
                Some(code) => Self::from_i32(code),
                None if error.kind() == std::io::ErrorKind::StorageFull => Self::ENOSPC,
                None => Self::EIO,
            },
            FsError::NoRoom(_) => Self::ENOSPC,
        }
    }
}

fn store_errno(error: &StoreError) -> Errno {
    match error {
        // Whoever can give "not found" a meaning did so; what is left is a block that is gone.
        StoreError::NotFound { .. } => Errno::EIO,
        StoreError::Precondition { .. } | StoreError::AlreadyExists { .. } => Errno::ESTALE,
        StoreError::Refused { denied: true, .. } => Errno::EACCES,
        StoreError::Refused { denied: false, .. } | StoreError::Unavailable { .. } => Errno::EIO,
        StoreError::Unsupported { .. } => Errno::EOPNOTSUPP,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn programs_see_the_errno_they_know_how_to_handle() {
        let denied = StoreError::Refused {
            place: "s3://b".into(),
            reason: "access denied".into(),
            mend: None,
            denied: true,
        };
        for (error, errno) in [
            (FsError::NoEntry, Errno::ENOENT),
            (FsError::Stale, Errno::ESTALE),
            (FsError::OverQuota(1 << 30), Errno::EDQUOT),
            (FsError::from(denied), Errno::EACCES),
            (
                FsError::from(io::Error::from_raw_os_error(28)),
                Errno::ENOSPC,
            ),
            (FsError::Name(NameError::TooLong), Errno::ENAMETOOLONG),
        ] {
            assert_eq!(Errno::from(&error).code(), errno.code(), "{error}");
        }
    }
}
