//! copy_file_range: from one file of the volume to another, past the program that asks for it.
//!
//! It is a read and a write: what is copied at once is in memory once, and in the journal as one record.

use std::time::Duration;

use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::request::RequestId;

/// Most bytes that one request copies, as the kernel's largest write has: who asks for more is told how many were
/// copied, and asks again.
const COPY_MAX: u32 = 1024 * 1024;

/// How long the source is read at most: a request that is never answered leaves its caller unkillable.
const READ_DEADLINE: Duration = Duration::from_secs(60);

/// A place in an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilePlace {
    /// The handle.
    pub fh: u64,
    /// Bytes from the file's beginning.
    pub offset: u64,
}

impl FileSystem {
    /// Copies up to `len` bytes and returns how many; none at the end of the source. They are safe on this host's
    /// disk then, not yet in the bucket. That two ranges of one file do not overlap is the kernel's to check.
    pub async fn copy_range(
        &self,
        from: FilePlace,
        to: FilePlace,
        len: u64,
    ) -> Result<u32, FsError> {
        self.handles.writable_file(to.fh)?;
        let read = self.read(from.fh, from.offset, at_once(len));
        let bytes = tokio::time::timeout(READ_DEADLINE, read)
            .await
            .map_err(|_| FsError::TimedOut(READ_DEADLINE))??
            .concat();
        if bytes.is_empty() {
            return Ok(0);
        }
        self.room_for(bytes.len() as u64).await?;
        self.write(to.fh, to.offset, &bytes)?;
        Ok(u32::try_from(bytes.len()).expect("it was asked for fewer"))
    }

    /// How many of `len` bytes an earlier process has copied for a request that comes again. The source may be another
    /// by now. If that process was not the one before this, all that could be were: the kernel asks for no more than
    /// the source has.
    pub fn copied_earlier(&self, request: RequestId, len: u64) -> u32 {
        let copied = self.written_earlier(request);
        copied.map_or(at_once(len), at_once)
    }
}

fn at_once(len: u64) -> u32 {
    u32::try_from(len).map_or(COPY_MAX, |len| len.min(COPY_MAX))
}
