//! What the rest of the program holds of a store: one volume's part of a bucket.
//!
//! Adds to a [`Store`]'s single attempts: the volume's prefix, deadlines, retries, the count of requests,
//! and the write id that tells our own lost success from another's change. Holds no state of a volume.

mod body;
mod multipart;
mod versions;
mod write_id;

use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

pub(crate) use self::multipart::COPY_AT_ONCE;
use self::versions::Versions;
pub use self::write_id::WriteId;
use super::counts::{Counters, RequestCounts, Verb};
use super::local::LocalStore;
use super::retry::RetryPolicy;
use super::s3::{Dialling, S3Store};
use super::{
    BucketAttributes, ByteStream, ConditionalWrites, CopyOptions, Key, ListEntry, ListPage,
    ListRequest, MemoryStore, Metadata, MetadataDirective, Object, ObjectVersion, Precondition,
    Store, StoreError,
};
use crate::clock::{Clock, SystemClock};
use crate::config::credentials::CredentialProvider;
use crate::config::options::EndpointOptions;
use crate::config::{Location, Scheme};

/// The most keys that one batch delete can name.
const KEYS_PER_BATCH: usize = 1000;

/// A volume's part of a bucket. Cheap to clone; clones count together.
///
/// Keys are relative to the volume's prefix.
#[derive(Debug, Clone)]
pub struct Bucket {
    inner: Arc<Inner>,
    /// What objects' HEADs have said to earlier processes too.
    attributes: Option<BucketAttributes>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<dyn Store>,
    location: Location,
    /// The location as errors spell it.
    place: String,
    /// What every key begins with: empty, or ending in a slash.
    prefix: String,
    counters: Arc<Counters>,
    versions: Versions,
}

impl Bucket {
    /// The bucket at `location`. Sends no request: [`Bucket::check`] does.
    ///
    /// `host_ca` is a PEM file of authorities to trust beside the system's.
    pub fn connect(
        location: &Location,
        endpoint: &EndpointOptions,
        host_ca: Option<&Path>,
        credentials: Arc<CredentialProvider>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StoreError> {
        Self::connect_resolving(location, endpoint, host_ca, credentials, clock, &[])
    }

    /// Like [`Bucket::connect`], with the addresses of some host names given: what curl calls
    /// `--resolve`.
    pub fn connect_resolving(
        location: &Location,
        endpoint: &EndpointOptions,
        host_ca: Option<&Path>,
        credentials: Arc<CredentialProvider>,
        clock: Arc<dyn Clock>,
        addresses: &[(String, SocketAddr)],
    ) -> Result<Self, StoreError> {
        let counters = Arc::<Counters>::default();
        let store: Arc<dyn Store> = match location.scheme {
            Scheme::S3 => Arc::new(S3Store::new(
                location,
                endpoint,
                Dialling { host_ca, addresses },
                credentials,
                clock,
                Arc::clone(&counters),
            )?),
            Scheme::File => Arc::new(LocalStore::open(Path::new(&location.bucket), clock)?),
            Scheme::Memory => MemoryStore::named(&location.bucket),
        };
        Ok(Self::counting(store, location.clone(), counters))
    }

    /// A bucket over any store.
    pub fn new(store: Arc<dyn Store>, location: Location) -> Self {
        Self::counting(store, location, Arc::default())
    }

    fn counting(store: Arc<dyn Store>, location: Location, counters: Arc<Counters>) -> Self {
        let prefix = match location.prefix.as_str() {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        let place = location.to_string();
        Self {
            inner: Arc::new(Inner {
                store,
                location,
                place,
                prefix,
                counters,
                versions: Versions::default(),
            }),
            attributes: None,
        }
    }

    /// The same bucket, with a memory for what HEADs say of metadata: see [`Bucket::list_known`].
    pub fn with_attributes(self, attributes: BucketAttributes) -> Self {
        Self {
            attributes: Some(attributes),
            ..self
        }
    }

    /// A fresh bucket in memory that nobody else sees.
    pub fn memory() -> Self {
        let location = Location {
            scheme: Scheme::Memory,
            bucket: "private".to_owned(),
            prefix: String::new(),
        };
        Self::new(Arc::new(MemoryStore::new(SystemClock::shared())), location)
    }

    /// Where it is.
    pub fn location(&self) -> &Location {
        &self.inner.location
    }

    /// Requests sent so far, repeated ones included.
    pub fn requests(&self) -> RequestCounts {
        self.inner.counters.snapshot()
    }

    /// Asks for one name: proves that endpoint, bucket, region and credentials go together.
    ///
    /// Answers within 10 seconds, whatever the store does.
    pub async fn check(&self) -> Result<(), StoreError> {
        let request = ListRequest {
            prefix: self.key(&Key::root()),
            delimiter: false,
            max_keys: 1,
            continuation: None,
        };
        self.run(RetryPolicy::for_check(), Verb::List, || {
            self.inner.store.list(&request)
        })
        .await?;
        Ok(())
    }

    /// Whether a write can be made to hold only if nobody else has written; `None`: nobody has tried yet.
    pub fn conditional_writes(&self) -> Option<ConditionalWrites> {
        self.inner.store.conditional_writes()
    }

    /// Whether the store takes an object at `key`, as long as that is.
    pub fn is_short_enough(&self, key: &Key) -> bool {
        let len = self.inner.prefix.len() + key.as_str().len();
        self.inner.store.key_max().is_none_or(|most| len <= most)
    }

    /// Size, version and metadata of an object, if there is one.
    pub async fn head(&self, key: &Key) -> Result<Option<Object>, StoreError> {
        Ok(self.head_written(key).await?.map(|(object, _)| object))
    }

    /// Like [`Bucket::head`], with the mark of the write that made the object.
    pub async fn head_written(
        &self,
        key: &Key,
    ) -> Result<Option<(Object, Option<WriteId>)>, StoreError> {
        match self.head_marked(&self.key(key)).await {
            Ok(found) => Ok(Some(found)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.strip_error(error)),
        }
    }

    /// The bytes of `range`, of exactly the version named: another one is
    /// [`StoreError::Precondition`]. A body that breaks off is resumed where it broke.
    ///
    /// `range` lies inside the object.
    pub async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        version: &ObjectVersion,
    ) -> Result<ByteStream, StoreError> {
        body::open(self.clone(), key.clone(), range, version.clone()).await
    }

    /// One page of a listing, in the order of the keys' bytes.
    pub async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        Ok(self.strip_page(self.list_whole(request).await?))
    }

    /// Like [`Bucket::list`], with the metadata of the objects of which an earlier HEAD's answer still holds.
    pub async fn list_known(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let mut page = self.list_whole(request).await?;
        if let Some(attributes) = &self.attributes {
            attributes.complete(&mut page.entries).await;
        }
        Ok(self.strip_page(page))
    }

    /// A page with whole keys.
    async fn list_whole(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let request = ListRequest {
            prefix: self.key(&request.prefix),
            ..request.clone()
        };
        self.run(RetryPolicy::for_bytes(0), Verb::List, || {
            self.inner.store.list(&request)
        })
        .await
    }

    fn strip_page(&self, mut page: ListPage) -> ListPage {
        page.entries.retain_mut(|entry| match entry {
            ListEntry::Prefix(key) | ListEntry::Object { key, .. } => match self.strip(key) {
                Some(relative) => {
                    *key = relative;
                    true
                }
                // A store that answers with another's keys is not to be believed.
                None => false,
            },
        });
        page
    }

    /// Creates or replaces an object in one request.
    pub async fn put(
        &self,
        key: &Key,
        body: Bytes,
        metadata: Metadata,
        condition: Precondition,
    ) -> Result<ObjectVersion, StoreError> {
        let full = self.key(key);
        let (id, metadata) = WriteId::stamp(metadata);
        let policy = RetryPolicy::for_bytes(body.len() as u64);
        let store = &self.inner.store;
        self.write(policy, Verb::Put, &full, &id, || {
            store.put(&full, body.clone(), &metadata, &condition)
        })
        .await
    }

    /// Removes an object; one that is not there is no error.
    pub async fn delete(&self, key: &Key, condition: Precondition) -> Result<(), StoreError> {
        let full = self.key(key);
        self.run(RetryPolicy::for_bytes(0), Verb::Delete, || {
            self.inner.store.delete(&full, &condition)
        })
        .await
    }

    /// Removes objects; returns those that are still there, each with its reason.
    pub async fn delete_many(&self, keys: &[Key]) -> Result<Vec<(Key, StoreError)>, StoreError> {
        let mut left = Vec::new();
        for batch in keys.chunks(KEYS_PER_BATCH) {
            let batch: Vec<Key> = batch.iter().map(|key| self.key(key)).collect();
            let failed = self
                .run(RetryPolicy::for_bytes(64 * 1024), Verb::DeleteBatch, || {
                    self.inner.store.delete_batch(&batch)
                })
                .await?;
            left.extend(
                failed
                    .into_iter()
                    .filter_map(|(key, error)| Some((self.strip(&key)?, self.strip_error(error)))),
            );
        }
        Ok(left)
    }

    /// Copies an object of `size` bytes inside the store; in parts where one request cannot.
    pub async fn copy(
        &self,
        from: &Key,
        to: &Key,
        options: &CopyOptions,
        size: u64,
    ) -> Result<ObjectVersion, StoreError> {
        if size > COPY_AT_ONCE {
            return self.copy_in_parts(from, to, options, size).await;
        }
        let (from, full) = (self.key(from), self.key(to));
        let policy = RetryPolicy::for_copy(size);
        let store = &self.inner.store;
        match &options.metadata {
            // The copy carries the source's write id: a second attempt repeats the same act on an
            // unchanged source, and needs no telling apart.
            MetadataDirective::Copy => {
                self.run(policy, Verb::Copy, || store.copy(&from, &full, options))
                    .await
            }
            MetadataDirective::Replace(metadata) => {
                let (id, metadata) = WriteId::stamp(metadata.clone());
                let options = CopyOptions {
                    source_version: options.source_version.clone(),
                    metadata: MetadataDirective::Replace(metadata),
                };
                self.write(policy, Verb::Copy, &full, &id, || {
                    store.copy(&from, &full, &options)
                })
                .await
            }
        }
    }

    /// Replaces what travels beside an object's bytes, if it is still of `version`.
    pub async fn replace_metadata(
        &self,
        key: &Key,
        size: u64,
        version: &ObjectVersion,
        metadata: Metadata,
    ) -> Result<ObjectVersion, StoreError> {
        let options = CopyOptions {
            source_version: Some(version.clone()),
            metadata: MetadataDirective::Replace(metadata),
        };
        self.copy(key, key, &options, size).await
    }

    /// The whole key in the bucket.
    fn key(&self, key: &Key) -> Key {
        if self.inner.prefix.is_empty() {
            return key.clone();
        }
        Key::new(format!("{}{key}", self.inner.prefix))
    }

    /// The key as the volume knows it.
    fn strip(&self, key: &Key) -> Option<Key> {
        if self.inner.prefix.is_empty() {
            return Some(key.clone());
        }
        key.as_str().strip_prefix(&self.inner.prefix).map(Key::new)
    }

    fn strip_error(&self, error: StoreError) -> StoreError {
        let strip = |key: Key| self.strip(&key).unwrap_or(key);
        match error {
            StoreError::NotFound { key } => StoreError::NotFound { key: strip(key) },
            StoreError::Precondition { key } => StoreError::Precondition { key: strip(key) },
            StoreError::AlreadyExists { key } => StoreError::AlreadyExists { key: strip(key) },
            other => other,
        }
    }

    /// Sends a request as often as `policy` allows, and counts each attempt.
    async fn run<T, F, Fut>(
        &self,
        policy: RetryPolicy,
        verb: Verb,
        mut attempt: F,
    ) -> Result<T, StoreError>
    where
        F: FnMut() -> Fut + Send,
        Fut: Future<Output = Result<T, StoreError>> + Send,
        T: Send,
    {
        let counters = &self.inner.counters;
        policy
            .run(&self.inner.place, |_| {
                counters.count(verb);
                attempt()
            })
            .await
            .map_err(|error| self.strip_error(error))
    }

    /// Sends a conditional write as often as `policy` allows.
    ///
    /// An attempt that got no clear answer may have been done all the same. If a later one then finds
    /// its condition broken, the write id at the key says whether it was broken by ourselves.
    async fn write<F, Fut>(
        &self,
        policy: RetryPolicy,
        verb: Verb,
        full: &Key,
        id: &WriteId,
        mut attempt: F,
    ) -> Result<ObjectVersion, StoreError>
    where
        F: FnMut() -> Fut + Send,
        Fut: Future<Output = Result<ObjectVersion, StoreError>> + Send,
    {
        let counters = &self.inner.counters;
        let mut attempts = 0_u32;
        let result = policy
            .run(&self.inner.place, |before| {
                attempts = before + 1;
                counters.count(verb);
                attempt()
            })
            .await;
        let error = match result {
            Ok(version) => return Ok(version),
            Err(error) => error,
        };
        // Only a transient failure leads to a second attempt, so a first one that failed was clear.
        if attempts > 1
            && !error.is_transient()
            && let Ok((object, Some(written))) = self.head_marked(full).await
            && written == *id
        {
            return Ok(object.version);
        }
        Err(self.strip_error(error))
    }

    /// HEAD of a whole key, with the write id taken out of the metadata.
    async fn head_marked(&self, full: &Key) -> Result<(Object, Option<WriteId>), StoreError> {
        let counters = &self.inner.counters;
        let mut object = RetryPolicy::for_bytes(0)
            .run(&self.inner.place, |_| {
                counters.count(Verb::Head);
                self.inner.store.head(full)
            })
            .await?;
        let id = WriteId::take(&mut object.metadata);
        if let Some(attributes) = &self.attributes {
            attributes.learn(full, &object);
        }
        Ok((object, id))
    }
}
