//! A store that fails when it is told to, and else does what the one inside it does.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bucketvol::clock::SystemClock;
use bucketvol::config::{Location, Scheme};
use bucketvol::store::{
    Bucket, ByteStream, ConditionalWrites, CopyOptions, KeptVersion, Key, ListPage, ListRequest,
    MemoryStore, Metadata, Object, ObjectVersion, PartTag, Precondition, Store, StoreError,
    UploadId, UploadPage, VersionId,
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use parking_lot::Mutex;

/// What every request is answered while it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outage {
    /// No right to anything.
    Denied,
    /// 503.
    Away,
}

/// What is to go wrong.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// So many writes (puts, parts, copies, deletes) are refused for want of permission.
    denied_writes: AtomicU32,
    /// So many writes succeed before the refusals begin.
    writes_before: AtomicU32,
    /// So many writes are answered before the next one never is.
    answered_writes: Mutex<Option<u32>>,
    /// No upload in parts may be given up.
    denies_aborts: AtomicBool,
    /// Nothing is answered any more.
    hangs: AtomicBool,
    outage: Mutex<Option<Outage>>,
    /// Every request is done so much later.
    delay: Mutex<Duration>,
    /// Every listing takes so much longer, and what it tells is of the middle of that time.
    list_delay: Mutex<Duration>,
    /// The bodies of so many GETs end in their middle.
    cut_bodies: AtomicU32,
    /// So many writes are answered before one is done whose answer is lost, and the store is away.
    answers_before: Mutex<Option<u32>>,
    /// The answers to so many writes are lost, done or not.
    lost_answers: AtomicU32,
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

    /// Answers `before` writes, and none after them until it is told otherwise.
    pub(crate) fn hang_after_writes(&self, before: u32) {
        *self.answered_writes.lock() = Some(before);
    }

    /// Refuses to give uploads in parts up, or not any more.
    pub(crate) fn deny_aborts(&self, denies: bool) {
        self.denies_aborts.store(denies, Ordering::SeqCst);
    }

    /// Answers every request so until it is told otherwise.
    pub(crate) fn out(&self, outage: Outage) {
        *self.outage.lock() = Some(outage);
    }

    /// Does every request so much later.
    pub(crate) fn delay(&self, delay: Duration) {
        *self.delay.lock() = delay;
    }

    /// Lets every listing take so much longer.
    pub(crate) fn delay_lists(&self, delay: Duration) {
        *self.list_delay.lock() = delay;
    }

    /// Ends the bodies of the next `count` GETs in their middle.
    pub(crate) fn cut_bodies(&self, count: u32) {
        self.cut_bodies.store(count, Ordering::SeqCst);
    }

    /// Loses the answers to the next `count` writes.
    pub(crate) fn lose_answers(&self, count: u32) {
        self.lost_answers.store(count, Ordering::SeqCst);
    }

    /// Answers `before` writes, does one more, loses its answer, and is away from then on.
    pub(crate) fn lose_an_answer_and_go(&self, before: u32) {
        *self.answers_before.lock() = Some(before);
    }

    /// Whether it was as [`Faults::lose_an_answer_and_go`] says.
    pub(crate) fn has_gone(&self) -> bool {
        *self.outage.lock() == Some(Outage::Away)
    }

    /// All is well from now on.
    pub(crate) fn end(&self) {
        self.deny_writes(0);
        self.hang(false);
        *self.answered_writes.lock() = None;
        self.deny_aborts(false);
        *self.outage.lock() = None;
        self.delay(Duration::ZERO);
        self.delay_lists(Duration::ZERO);
        self.cut_bodies(0);
        self.lose_answers(0);
        *self.answers_before.lock() = None;
    }

    async fn before_any(&self) -> Result<(), StoreError> {
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let delay = *self.delay.lock();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        match *self.outage.lock() {
            None => Ok(()),
            Some(Outage::Denied) => Err(denied()),
            Some(Outage::Away) => Err(away("slow down")),
        }
    }

    async fn before_write(&self) -> Result<(), StoreError> {
        let hangs = match &mut *self.answered_writes.lock() {
            Some(0) => true,
            Some(before) => {
                *before -= 1;
                false
            }
            None => false,
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        if take(&self.writes_before) || !take(&self.denied_writes) {
            return Ok(());
        }
        Err(denied())
    }

    fn after_write<T>(&self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        if take(&self.lost_answers) {
            return Err(away("the answer was lost"));
        }
        let mut before = self.answers_before.lock();
        match *before {
            Some(0) if done.is_ok() => {
                *before = None;
                self.out(Outage::Away);
                Err(away("the answer was lost"))
            }
            Some(more @ 1..) => {
                *before = Some(more - 1);
                done
            }
            _ => done,
        }
    }

    fn body(&self, stream: ByteStream, len: u64) -> ByteStream {
        if !take(&self.cut_bodies) {
            return stream;
        }
        let mut left = usize::try_from(len / 2).expect("it fits in memory");
        stream
            .map(move |piece| {
                piece.map(|mut piece| {
                    piece.truncate(left);
                    left -= piece.len();
                    piece
                })
            })
            .boxed()
    }
}

/// Takes one of what is left, if anything is.
fn take(count: &AtomicU32) -> bool {
    count
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
        .is_ok()
}

fn denied() -> StoreError {
    StoreError::Refused {
        place: "s3://faulty".to_owned(),
        reason: "access denied".to_owned(),
        mend: None,
        denied: true,
    }
}

fn away(reason: &str) -> StoreError {
    StoreError::Unavailable {
        place: "s3://faulty".to_owned(),
        reason: reason.to_owned(),
        retry_after: None,
    }
}

/// One process's connection to the store.
#[derive(Debug, Default)]
pub(crate) struct Connection(AtomicBool);

impl Connection {
    /// The process is dead: whatever of it still runs is not heard any more.
    pub(crate) fn cut(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct FaultStore {
    inner: Arc<dyn Store>,
    faults: Arc<Faults>,
    connection: Arc<Connection>,
}

impl FaultStore {
    /// Wraps `inner`.
    pub(crate) fn new(inner: Arc<dyn Store>) -> (Self, Arc<Faults>) {
        let faults = Arc::new(Faults::default());
        (
            Self {
                inner,
                faults: Arc::clone(&faults),
                connection: Arc::default(),
            },
            faults,
        )
    }

    /// The same store with the same faults, as one process reaches it.
    pub(crate) fn connect(inner: Arc<dyn Store>, faults: Arc<Faults>) -> (Self, Arc<Connection>) {
        let connection = Arc::<Connection>::default();
        (
            Self {
                inner,
                faults,
                connection: Arc::clone(&connection),
            },
            connection,
        )
    }

    async fn before_any(&self) -> Result<(), StoreError> {
        if self.connection.0.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.faults.before_any().await
    }

    async fn before_write(&self) -> Result<(), StoreError> {
        self.before_any().await?;
        self.faults.before_write().await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Store for FaultStore {
    fn conditional_writes(&self) -> Option<ConditionalWrites> {
        self.inner.conditional_writes()
    }

    fn key_max(&self) -> Option<usize> {
        self.inner.key_max()
    }

    async fn head(&self, key: &Key) -> Result<Object, StoreError> {
        self.before_any().await?;
        self.inner.head(key).await
    }

    async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        version: &ObjectVersion,
    ) -> Result<ByteStream, StoreError> {
        self.before_any().await?;
        let len = range.end - range.start;
        let stream = self.inner.get(key, range, version).await?;
        Ok(self.faults.body(stream, len))
    }

    async fn list_versions(&self, key: &Key) -> Result<Vec<KeptVersion>, StoreError> {
        self.before_any().await?;
        self.inner.list_versions(key).await
    }

    async fn get_version(
        &self,
        key: &Key,
        range: Range<u64>,
        version: &ObjectVersion,
        id: &VersionId,
    ) -> Result<ByteStream, StoreError> {
        self.before_any().await?;
        let len = range.end - range.start;
        let stream = self.inner.get_version(key, range, version, id).await?;
        Ok(self.faults.body(stream, len))
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.before_any().await?;
        let delay = *self.faults.list_delay.lock();
        if delay.is_zero() {
            return self.inner.list(request).await;
        }
        tokio::time::sleep(delay / 2).await;
        let page = self.inner.list(request).await;
        tokio::time::sleep(delay / 2).await;
        page
    }

    async fn put(
        &self,
        key: &Key,
        body: Bytes,
        metadata: &Metadata,
        condition: &Precondition,
    ) -> Result<ObjectVersion, StoreError> {
        self.before_write().await?;
        let done = self.inner.put(key, body, metadata, condition).await;
        self.faults.after_write(done)
    }

    async fn delete(&self, key: &Key, condition: &Precondition) -> Result<(), StoreError> {
        self.before_write().await?;
        let done = self.inner.delete(key, condition).await;
        self.faults.after_write(done)
    }

    async fn delete_batch(&self, keys: &[Key]) -> Result<Vec<(Key, StoreError)>, StoreError> {
        self.before_write().await?;
        let done = self.inner.delete_batch(keys).await;
        self.faults.after_write(done)
    }

    async fn copy(
        &self,
        from: &Key,
        to: &Key,
        options: &CopyOptions,
    ) -> Result<ObjectVersion, StoreError> {
        self.before_write().await?;
        let done = self.inner.copy(from, to, options).await;
        self.faults.after_write(done)
    }

    async fn create_multipart(
        &self,
        key: &Key,
        metadata: &Metadata,
    ) -> Result<UploadId, StoreError> {
        self.before_any().await?;
        self.inner.create_multipart(key, metadata).await
    }

    async fn put_part(
        &self,
        key: &Key,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartTag, StoreError> {
        self.before_write().await?;
        let done = self.inner.put_part(key, upload, number, body).await;
        self.faults.after_write(done)
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
        self.before_write().await?;
        let done = self
            .inner
            .copy_part(key, upload, number, from, range, version)
            .await;
        self.faults.after_write(done)
    }

    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &UploadId,
        parts: &[PartTag],
        condition: &Precondition,
    ) -> Result<ObjectVersion, StoreError> {
        self.before_write().await?;
        let done = self
            .inner
            .complete_multipart(key, upload, parts, condition)
            .await;
        self.faults.after_write(done)
    }

    async fn abort_multipart(&self, key: &Key, upload: &UploadId) -> Result<(), StoreError> {
        self.before_any().await?;
        if self.faults.denies_aborts.load(Ordering::SeqCst) {
            return Err(denied());
        }
        self.inner.abort_multipart(key, upload).await
    }

    async fn list_multipart(
        &self,
        prefix: &Key,
        after: Option<&(Key, UploadId)>,
    ) -> Result<UploadPage, StoreError> {
        self.before_any().await?;
        self.inner.list_multipart(prefix, after).await
    }
}

/// A bucket in memory whose store fails when it is told to.
pub(crate) fn faulty_bucket() -> (Arc<Bucket>, Arc<Faults>) {
    let clock = SystemClock::shared();
    let (store, faults) = FaultStore::new(Arc::new(MemoryStore::new(clock)));
    let location = Location {
        scheme: Scheme::Memory,
        bucket: "faulty".to_owned(),
        prefix: String::new(),
    };
    (Arc::new(Bucket::new(Arc::new(store), location)), faults)
}
