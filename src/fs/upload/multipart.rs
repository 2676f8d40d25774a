//! Multipart uploads leave no parts behind: invisible, and paid for.
//!
//! The journal knows of each from before its first part leaves until it is complete or aborted. One that came to
//! nothing, in this process or in one before, is abandoned: it is aborted in the background, and again if the store
//! refuses. Of one that the store began and the journal never heard of, `bucketvol doctor` tells.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::fs::error::FsError;
use crate::fs::filesystem::FileSystem;
use crate::fs::journal::record::Multipart;
use crate::fs::status::{Change, Pending};
use crate::fs::tree::Tree;
use crate::store::{COPY_AT_ONCE, CopyOptions, Key, ObjectVersion, UploadId};

/// Abandoned uploads that a volume keeps at most. A store that takes uploads and refuses to abort them could make any
/// number; beyond this the oldest are left to `bucketvol doctor`.
const ABANDONED_MAX: usize = 1000;

/// Multipart uploads that are to be aborted, by number: the upload queue's, from the inodes' numbers.
///
/// Lock order: after the tree's.
#[derive(Debug, Default)]
pub(crate) struct Abandoned(Mutex<BTreeMap<u64, ToAbort>>);

#[derive(Debug)]
struct ToAbort {
    multipart: Multipart,
    /// Why the last attempt failed.
    reason: Option<String>,
}

impl Abandoned {
    /// The numbers of all of them.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        self.0.lock().keys().copied().collect()
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// All of them, to show.
    pub(crate) fn pending(&self) -> Vec<Pending> {
        let abandoned = self.0.lock();
        let show = |abandoned: &ToAbort| Pending {
            key: abandoned.multipart.key.to_string(),
            change: Change::Parts,
            bytes: 0,
            reason: abandoned.reason.clone(),
        };
        abandoned.values().map(show).collect()
    }
}

impl FileSystem {
    /// Does `work`, which sends the parts of an upload that was begun, and completes it. The journal knows of the
    /// upload first; if `work` fails, the upload is abandoned.
    pub(super) async fn in_parts<T: Send>(
        &self,
        key: &Key,
        upload: &UploadId,
        work: impl Future<Output = Result<T, FsError>> + Send,
    ) -> Result<T, FsError> {
        let begun = Multipart {
            key: key.clone(),
            upload: upload.clone(),
        };
        if let Err(error) = self.journal.begin_multipart(begun.clone()) {
            // Nobody would know of it: now, or never.
            if let Err(error) = self.bucket.abort_multipart(key, upload).await {
                self.note_error(&format!("parts of {key:?} were left behind"), &error.into());
            }
            return Err(error.into());
        }
        let done = async {
            self.journal.sync().await?;
            work.await
        };
        let done = done.await;
        if done.is_ok() {
            self.end_multipart(upload);
        } else {
            let number = self.abandon_as(&mut self.tree.lock(), begun);
            let now = self.now();
            self.uploader.tell(|queue| queue.urgent(number, now));
        }
        done
    }

    /// Copies an object of `size` bytes inside the store; of an upload in parts that this takes, the journal knows.
    pub(super) async fn copy(
        &self,
        from: &Key,
        to: &Key,
        options: &CopyOptions,
        size: u64,
    ) -> Result<ObjectVersion, FsError> {
        if size <= COPY_AT_ONCE {
            return Ok(self.bucket.copy(from, to, options, size).await?);
        }
        self.copy_in_parts(from, to, options, size).await
    }

    async fn copy_in_parts(
        &self,
        from: &Key,
        to: &Key,
        options: &CopyOptions,
        size: u64,
    ) -> Result<ObjectVersion, FsError> {
        let copy = self.bucket.begin_copy(from, to, options, size).await?;
        self.in_parts(to, &copy.upload, async {
            Ok(self.bucket.finish_copy(&copy).await?)
        })
        .await
    }

    /// Keeps an upload that the journal knows until it is aborted. Returns its number, by which the queue is to be
    /// told.
    pub(crate) fn abandon_as(&self, tree: &mut Tree, multipart: Multipart) -> u64 {
        let number = tree.new_number();
        let mut abandoned = self.abandoned.0.lock();
        let reason = None;
        abandoned.insert(number, ToAbort { multipart, reason });
        let has_too_many = abandoned.len() > ABANDONED_MAX;
        let oldest = has_too_many.then(|| abandoned.pop_first()).flatten();
        drop(abandoned);
        if let Some((number, oldest)) = oldest {
            self.leave_parts(number, &oldest.multipart);
        }
        number
    }

    /// Aborts an abandoned upload. Nothing to do if the number is none's any more.
    pub(crate) async fn abort(&self, number: u64) -> Result<(), FsError> {
        let multipart = {
            let abandoned = self.abandoned.0.lock();
            abandoned.get(&number).map(|a| a.multipart.clone())
        };
        let Some(Multipart { key, upload }) = multipart else {
            return Ok(());
        };
        match self.bucket.abort_multipart(&key, &upload).await {
            Ok(()) => {
                self.forget_abandoned(number, &upload);
                Ok(())
            }
            Err(error) => {
                let error = FsError::from(error);
                self.note_error(&format!("abort of an upload of {key:?}"), &error);
                if let Some(abandoned) = self.abandoned.0.lock().get_mut(&number) {
                    abandoned.reason = Some(error.to_string());
                }
                Err(error)
            }
        }
    }

    /// Leaves the parts of abandoned uploads of this key where they are; `false` if there are none.
    pub(crate) fn leave_parts_at(&self, key: &Key) -> bool {
        let at_key: Vec<(u64, Multipart)> = {
            let abandoned = self.abandoned.0.lock();
            let at_key = abandoned.iter().filter(|(_, a)| a.multipart.key == *key);
            at_key.map(|(n, a)| (*n, a.multipart.clone())).collect()
        };
        for (number, multipart) in &at_key {
            self.leave_parts(*number, multipart);
        }
        !at_key.is_empty()
    }

    fn leave_parts(&self, number: u64, Multipart { key, upload }: &Multipart) {
        tracing::warn!(
            bucket = %self.bucket.location(), %key, upload = %upload.0,
            "parts of an upload stay in the bucket: `bucketvol doctor` says how to abort it",
        );
        self.forget_abandoned(number, upload);
    }

    fn forget_abandoned(&self, number: u64, upload: &UploadId) {
        self.abandoned.0.lock().remove(&number);
        self.end_multipart(upload);
        let now = self.now();
        self.uploader.tell(|queue| queue.settled(number, now));
    }

    fn end_multipart(&self, upload: &UploadId) {
        if let Err(error) = self.journal.end_multipart(upload) {
            tracing::warn!(bucket = %self.bucket.location(), %error, "journal");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::clock::SystemClock;
    use crate::config::Options;
    use crate::config::options::MinFree;
    use crate::fs::{BlockCache, Settings, StagingBudget};
    use crate::store::{Bucket, Metadata, MetadataDirective, Precondition};

    async fn opened(bucket: &Arc<Bucket>, directory: &Path) -> Arc<FileSystem> {
        let options = Options::at(bucket.location().clone());
        let settings = Settings::from_options(
            &options,
            directory.to_owned(),
            StagingBudget::new(u64::MAX, MinFree::Bytes(0)),
            BlockCache::new(1 << 20),
            SystemClock::shared(),
        );
        FileSystem::open(Arc::clone(bucket), settings)
            .await
            .unwrap()
    }

    /// Copies of more than 5 GiB, as if this were one.
    #[tokio::test]
    async fn a_copy_in_parts_leaves_nothing_behind_whether_it_ends_or_not() {
        let bucket = Arc::new(Bucket::memory());
        let directory = tempfile::tempdir().unwrap();
        let fs = opened(&bucket, directory.path()).await;
        let (from, to) = (Key::new("from"), Key::new("to"));
        let body = Bytes::from_static(b"as if it were large");
        let size = body.len() as u64;
        let put = bucket.put(&from, body, Metadata::default(), Precondition::None);
        let options = CopyOptions {
            source_version: Some(put.await.unwrap()),
            metadata: MetadataDirective::Copy,
        };
        fs.copy_in_parts(&from, &to, &options, size).await.unwrap();
        assert_eq!(bucket.head(&to).await.unwrap().unwrap().size, size);
        assert!(!fs.has_pending());

        let copy = bucket.begin_copy(&from, &to, &options, size).await.unwrap();
        let killed = fs.in_parts(
            &to,
            &copy.upload,
            std::future::pending::<Result<(), FsError>>(),
        );
        tokio::time::timeout(Duration::from_millis(50), killed)
            .await
            .unwrap_err();
        let open = bucket.list_multipart(None).await.unwrap().uploads;
        assert_eq!(open.len(), 1);
        fs.uploader.stop();
        drop(fs);
        let fs = opened(&bucket, directory.path()).await;
        fs.drain(Duration::from_secs(10)).await.unwrap();
        assert_eq!(bucket.list_multipart(None).await.unwrap().uploads, []);
        assert!(!fs.has_pending());
    }
}
