//! A store in time that a seed decides: every request takes a while before it takes effect, and another until it is
//! answered. With the runtime's clock paused that makes one order of all that happens, the same in every run.
//!
//! What is counted are points at which a process may die: a request is about to take effect, it has and is not
//! answered, a program was answered. From the point that was asked for on nothing happens any more.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bucketvol::clock::Clock;
use bucketvol::config::{Location, Scheme};
use bucketvol::store::{
    Bucket, ByteStream, ConditionalWrites, CopyOptions, KeptVersion, Key, ListPage, ListRequest,
    Metadata, Object, ObjectVersion, PartTag, Precondition, Store, StoreError, UploadId,
    UploadPage, VersionId,
};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Longest time that one half of a request takes, in milliseconds: far more than a timer's grain, so that two hardly
/// ever end at once, and less than anybody waits.
const HALF_MAX: u64 = 1500;

/// The runtime's clock.
#[derive(Debug)]
pub(crate) struct RuntimeClock(Instant);

impl RuntimeClock {
    pub(crate) fn shared() -> Arc<dyn Clock> {
        Arc::new(Self(Instant::now()))
    }
}

#[async_trait]
impl Clock for RuntimeClock {
    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600) + self.0.elapsed()
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    async fn sleep_until(&self, at: Duration) {
        tokio::time::sleep_until(self.0 + at).await;
    }
}

/// One process's life, as far as the store and its programs see it.
#[derive(Debug)]
pub(crate) struct Life {
    seed: u64,
    born: Instant,
    died: Notify,
    state: Mutex<LifeState>,
}

#[derive(Debug, Default)]
struct LifeState {
    points: u64,
    /// It dies when it has reached so many.
    dies_at: Option<u64>,
    is_dead: bool,
    requests: Vec<(Duration, String)>,
    /// How often each request was sent: each time it takes another time.
    sent: HashMap<String, u64>,
}

impl Life {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            seed,
            born: Instant::now(),
            died: Notify::new(),
            state: Mutex::default(),
        })
    }

    /// The store as this process reaches it.
    pub(crate) fn connect(self: &Arc<Self>, store: &Arc<dyn Store>) -> Arc<Bucket> {
        let location = Location {
            scheme: Scheme::Memory,
            bucket: "simulated".to_owned(),
            prefix: String::new(),
        };
        let store = SimulatedStore {
            inner: Arc::clone(store),
            life: Arc::clone(self),
        };
        Arc::new(Bucket::new(Arc::new(store), location))
    }

    /// It counts its points from here on, and dies at this one.
    pub(crate) fn begin(&self, dies_at: Option<u64>) {
        let mut state = self.state.lock();
        state.points = 0;
        state.dies_at = dies_at;
    }

    /// Points reached.
    pub(crate) fn points(&self) -> u64 {
        self.state.lock().points
    }

    /// Every request that took effect, and when. Those of one moment have no order.
    pub(crate) fn requests(&self) -> Vec<(Duration, String)> {
        let mut requests = self.state.lock().requests.clone();
        requests.sort();
        requests
    }

    /// Waits for its end.
    pub(crate) async fn died(&self) {
        self.died.notified().await;
    }

    /// A point at which it may die. Who calls it does not go on then.
    pub(crate) async fn point(&self) {
        {
            let mut state = self.state.lock();
            if !state.is_dead {
                state.points += 1;
                state.is_dead = Some(state.points) == state.dies_at;
            }
            if state.is_dead {
                self.died.notify_one();
            }
        }
        self.lives().await;
    }

    async fn lives(&self) {
        if self.state.lock().is_dead {
            std::future::pending::<()>().await;
        }
    }

    async fn pass(&self, what: impl Hash) {
        let mut hasher = DefaultHasher::new();
        (self.seed, what).hash(&mut hasher);
        tokio::time::sleep(Duration::from_millis(1 + hasher.finish() % HALF_MAX)).await;
        self.lives().await;
    }
}

#[derive(Debug)]
struct SimulatedStore {
    inner: Arc<dyn Store>,
    life: Arc<Life>,
}

impl SimulatedStore {
    async fn request<T>(&self, what: String, effect: impl Future<Output = T> + Send) -> T {
        let life = &self.life;
        life.lives().await;
        let time = {
            let mut state = life.state.lock();
            let sent = state.sent.entry(what.clone()).or_default();
            *sent += 1;
            *sent
        };
        life.pass((&what, time, "before")).await;
        life.point().await;
        let request = (life.born.elapsed(), what.clone());
        life.state.lock().requests.push(request);
        let answer = effect.await;
        life.point().await;
        life.pass((&what, time, "after")).await;
        answer
    }
}

/// A key without what is different in each run.
fn spelled(key: &Key) -> &str {
    match key.as_str().strip_prefix(".bucketvol/") {
        Some(rest) => rest.split('/').next().unwrap_or_default(),
        None => key.as_str(),
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Store for SimulatedStore {
    fn conditional_writes(&self) -> Option<ConditionalWrites> {
        self.inner.conditional_writes()
    }

    fn key_max(&self) -> Option<usize> {
        self.inner.key_max()
    }

    async fn head(&self, key: &Key) -> Result<Object, StoreError> {
        let what = format!("HEAD {}", spelled(key));
        self.request(what, self.inner.head(key)).await
    }

    async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        version: &ObjectVersion,
    ) -> Result<ByteStream, StoreError> {
        let what = format!("GET {} {range:?}", spelled(key));
        self.request(what, self.inner.get(key, range, version))
            .await
    }

    async fn list_versions(&self, key: &Key) -> Result<Vec<KeptVersion>, StoreError> {
        let what = format!("LIST versions {}", spelled(key));
        self.request(what, self.inner.list_versions(key)).await
    }

    async fn get_version(
        &self,
        key: &Key,
        range: Range<u64>,
        version: &ObjectVersion,
        id: &VersionId,
    ) -> Result<ByteStream, StoreError> {
        let what = format!("GET {} of {} {range:?}", id.0, spelled(key));
        self.request(what, self.inner.get_version(key, range, version, id))
            .await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let what = format!("LIST {} {}", request.prefix, request.delimiter);
        self.request(what, self.inner.list(request)).await
    }

    async fn put(
        &self,
        key: &Key,
        body: Bytes,
        metadata: &Metadata,
        condition: &Precondition,
    ) -> Result<ObjectVersion, StoreError> {
        let what = format!("PUT {} {}", spelled(key), body.len());
        let effect = self.inner.put(key, body, metadata, condition);
        self.request(what, effect).await
    }

    async fn delete(&self, key: &Key, condition: &Precondition) -> Result<(), StoreError> {
        let what = format!("DELETE {}", spelled(key));
        self.request(what, self.inner.delete(key, condition)).await
    }

    async fn delete_batch(&self, keys: &[Key]) -> Result<Vec<(Key, StoreError)>, StoreError> {
        let mut spelled: Vec<&str> = keys.iter().map(spelled).collect();
        spelled.sort_unstable();
        let what = format!("DELETE {spelled:?}");
        self.request(what, self.inner.delete_batch(keys)).await
    }

    async fn copy(
        &self,
        from: &Key,
        to: &Key,
        options: &CopyOptions,
    ) -> Result<ObjectVersion, StoreError> {
        let what = format!("COPY {} {}", spelled(from), spelled(to));
        self.request(what, self.inner.copy(from, to, options)).await
    }

    async fn create_multipart(
        &self,
        key: &Key,
        metadata: &Metadata,
    ) -> Result<UploadId, StoreError> {
        let what = format!("CREATE {}", spelled(key));
        self.request(what, self.inner.create_multipart(key, metadata))
            .await
    }

    async fn put_part(
        &self,
        key: &Key,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartTag, StoreError> {
        let what = format!("PART {} {number}", spelled(key));
        let effect = self.inner.put_part(key, upload, number, body);
        self.request(what, effect).await
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
        let what = format!("COPY PART {} {number}", spelled(key));
        let effect = self
            .inner
            .copy_part(key, upload, number, from, range, version);
        self.request(what, effect).await
    }

    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &UploadId,
        parts: &[PartTag],
        condition: &Precondition,
    ) -> Result<ObjectVersion, StoreError> {
        let what = format!("COMPLETE {}", spelled(key));
        let effect = self.inner.complete_multipart(key, upload, parts, condition);
        self.request(what, effect).await
    }

    async fn abort_multipart(&self, key: &Key, upload: &UploadId) -> Result<(), StoreError> {
        let what = format!("ABORT {}", spelled(key));
        self.request(what, self.inner.abort_multipart(key, upload))
            .await
    }

    async fn list_multipart(
        &self,
        prefix: &Key,
        after: Option<&(Key, UploadId)>,
    ) -> Result<UploadPage, StoreError> {
        let what = format!("UPLOADS {}", spelled(prefix));
        self.request(what, self.inner.list_multipart(prefix, after))
            .await
    }
}
