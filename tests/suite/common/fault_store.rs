//! A store that fails when it is told to, and else does what the one inside it does.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use async_trait::async_trait;
use bucketvol::store::{
    ByteStream, CopyOptions, Key, ListPage, ListRequest, Metadata, Object, ObjectVersion, PartTag,
    Precondition, Store, StoreError, UploadId,
};
use bytes::Bytes;

/// What is to go wrong.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// So many writes (puts, parts, copies, deletes) are refused for want of permission.
    denied_writes: AtomicU32,
    /// So many writes succeed before the refusals begin.
    writes_before: AtomicU32,
    /// Nothing is answered any more.
    hangs: AtomicBool,
}

impl Faults {
    /// Refuses the next `count` writes.
    pub(crate) fn deny_writes(&self, count: u32) {
        self.deny_writes_after(0, count);
    }

    /// Lets `before` writes through, then refuses `count`.
    pub(crate) fn deny_writes_after(&self, before: u32, count: u32) {
        self.writes_before.store(before, Ordering::SeqCst);
        self.denied_writes.store(count, Ordering::SeqCst);
    }

    /// Answers nothing until it is told otherwise.
    pub(crate) fn hang(&self, hangs: bool) {
        self.hangs.store(hangs, Ordering::SeqCst);
    }

    async fn before_any(&self) {
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    async fn before_write(&self) -> Result<(), StoreError> {
        self.before_any().await;
        let take = |count: &AtomicU32| {
            count
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                .is_ok()
        };
        if take(&self.writes_before) || !take(&self.denied_writes) {
            return Ok(());
        }
        Err(StoreError::Refused {
            place: "s3://faulty".to_owned(),
            reason: "access denied".to_owned(),
            mend: None,
            denied: true,
        })
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct FaultStore {
    inner: Arc<dyn Store>,
    faults: Arc<Faults>,
}

impl FaultStore {
    /// Wraps `inner`.
    pub(crate) fn new(inner: Arc<dyn Store>) -> (Self, Arc<Faults>) {
        let faults = Arc::new(Faults::default());
        (
            Self {
                inner,
                faults: Arc::clone(&faults),
            },
            faults,
        )
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Store for FaultStore {
    async fn head(&self, key: &Key) -> Result<Object, StoreError> {
        self.faults.before_any().await;
        self.inner.head(key).await
    }

    async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        version: &ObjectVersion,
    ) -> Result<ByteStream, StoreError> {
        self.faults.before_any().await;
        self.inner.get(key, range, version).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.faults.before_any().await;
        self.inner.list(request).await
    }

    async fn put(
        &self,
        key: &Key,
        body: Bytes,
        metadata: &Metadata,
        condition: &Precondition,
    ) -> Result<ObjectVersion, StoreError> {
        self.faults.before_write().await?;
        self.inner.put(key, body, metadata, condition).await
    }

    async fn delete(&self, key: &Key, condition: &Precondition) -> Result<(), StoreError> {
        self.faults.before_write().await?;
        self.inner.delete(key, condition).await
    }

    async fn delete_batch(&self, keys: &[Key]) -> Result<Vec<(Key, StoreError)>, StoreError> {
        self.faults.before_write().await?;
        self.inner.delete_batch(keys).await
    }

    async fn copy(
        &self,
        from: &Key,
        to: &Key,
        options: &CopyOptions,
    ) -> Result<ObjectVersion, StoreError> {
        self.faults.before_write().await?;
        self.inner.copy(from, to, options).await
    }

    async fn create_multipart(
        &self,
        key: &Key,
        metadata: &Metadata,
    ) -> Result<UploadId, StoreError> {
        self.faults.before_any().await;
        self.inner.create_multipart(key, metadata).await
    }

    async fn put_part(
        &self,
        key: &Key,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartTag, StoreError> {
        self.faults.before_write().await?;
        self.inner.put_part(key, upload, number, body).await
    }

    async fn copy_part(
        &self,
        key: &Key,
        upload: &UploadId,
        number: u32,
        from: &Key,
        range: Range<u64>,
        version: &ObjectVersion,
    ) -> Result<PartTag, StoreError> {
        self.faults.before_write().await?;
        self.inner
            .copy_part(key, upload, number, from, range, version)
            .await
    }

    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &UploadId,
        parts: &[PartTag],
        condition: &Precondition,
    ) -> Result<ObjectVersion, StoreError> {
        self.faults.before_write().await?;
        self.inner
            .complete_multipart(key, upload, parts, condition)
            .await
    }

    async fn abort_multipart(&self, key: &Key, upload: &UploadId) -> Result<(), StoreError> {
        self.faults.before_any().await;
        self.inner.abort_multipart(key, upload).await
    }
}
