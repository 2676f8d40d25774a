//! A store in this process's memory, with S3's semantics to the letter.
//!
//! It is what `memory://` names and what the tests of everything above stand on: any key, markers with
//! or without a body, conditions on every verb, uploads in parts, paged listings.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, Range};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream;
use md5::{Digest as _, Md5};
use parking_lot::Mutex;

use super::digest::hex;
use super::{
    ByteStream, CopyOptions, KeptVersion, Key, ListEntry, ListPage, ListRequest, Metadata,
    MetadataDirective, Object, ObjectVersion, OpenUpload, PartTag, Precondition, Store, StoreError,
    UploadId, UploadPage, VersionId,
};
use crate::clock::{Clock, SystemClock};

/// Bytes arrive in pieces of at most this, as from a network.
const CHUNK: usize = 128 * 1024;

/// A bucket in memory.
#[derive(Debug)]
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    tags: Tags,
    keeps_versions: bool,
    state: Mutex<State>,
}

/// What the version of an object is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tags {
    /// Each write is another version.
    Write,
    /// The same bytes are the same version.
    Content,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<Key, Stored>,
    /// What was replaced or deleted, in the order in which that was.
    replaced: Vec<(Key, Stored)>,
    uploads: HashMap<UploadId, Upload>,
    /// Makes every version of every object a different one.
    writes: u64,
}

#[derive(Debug, Clone)]
struct Stored {
    body: Bytes,
    version: ObjectVersion,
    modified: SystemTime,
    metadata: Metadata,
}

#[derive(Debug)]
struct Upload {
    key: Key,
    begun: SystemTime,
    metadata: Metadata,
    parts: BTreeMap<u32, (PartTag, Bytes)>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            tags: Tags::Write,
            keeps_versions: false,
            state: Mutex::default(),
        }
    }

    /// Likewise, one that keeps what is replaced or deleted.
    pub fn keeping_versions(clock: Arc<dyn Clock>) -> Self {
        Self {
            keeps_versions: true,
            ..Self::new(clock)
        }
    }

    /// Likewise, one whose ETags are MD5 sums as those of most stores are: metadata can be replaced without another
    /// version.
    pub fn with_content_tags(clock: Arc<dyn Clock>) -> Self {
        Self {
            tags: Tags::Content,
            ..Self::new(clock)
        }
    }

    fn publish(
        &self,
        state: &mut State,
        key: &Key,
        body: Bytes,
        metadata: Metadata,
    ) -> ObjectVersion {
        state.writes += 1;
        let version = match self.tags {
            Tags::Write => format!("\"{:016x}-{}\"", state.writes, body.len()),
            Tags::Content => {
                format!("\"{}\"", hex(&Md5::digest(&body)))
            }
        };
        let version = ObjectVersion(Arc::from(version));
        let stored = Stored {
            body,
            version: version.clone(),
            modified: self.clock.wall(),
            metadata,
        };
        let replaced = state.objects.insert(key.clone(), stored);
        self.replaced(state, key, replaced);
        version
    }

    fn replaced(&self, state: &mut State, key: &Key, stored: Option<Stored>) {
        if self.keeps_versions {
            state
                .replaced
                .extend(stored.map(|stored| (key.clone(), stored)));
        }
    }

    /// The store of this name: the same for everybody in this process, and as long as the process.
    pub fn named(name: &str) -> Arc<Self> {
        static STORES: OnceLock<Mutex<BTreeMap<String, Arc<MemoryStore>>>> = OnceLock::new();
        let mut stores = STORES.get_or_init(Mutex::default).lock();
        let store = stores
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(Self::new(SystemClock::shared())));
        Arc::clone(store)
    }
}

impl State {
    fn find(&self, key: &Key) -> Result<&Stored, StoreError> {
        self.objects
            .get(key)
            .ok_or_else(|| StoreError::NotFound { key: key.clone() })
    }

    fn find_version(&self, key: &Key, version: &ObjectVersion) -> Result<&Stored, StoreError> {
        let stored = self.find(key)?;
        if stored.version != *version {
            return Err(StoreError::Precondition { key: key.clone() });
        }
        Ok(stored)
    }

    fn check(&self, key: &Key, condition: &Precondition) -> Result<(), StoreError> {
        match (condition, self.objects.get(key)) {
            (Precondition::Absent, Some(_)) => Err(StoreError::AlreadyExists { key: key.clone() }),
            (Precondition::Version(version), stored)
                if stored.is_none_or(|stored| stored.version != *version) =>
            {
                Err(StoreError::Precondition { key: key.clone() })
            }
            _ => Ok(()),
        }
    }

    fn upload(&mut self, key: &Key, upload: &UploadId) -> Result<&mut Upload, StoreError> {
        match self.uploads.get_mut(upload) {
            Some(found) if found.key == *key => Ok(found),
            _ => Err(no_such_upload(key)),
        }
    }

    fn add_part(
        &mut self,
        key: &Key,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartTag, StoreError> {
        self.writes += 1;
        let tag = PartTag(format!("\"{:016x}\"", self.writes));
        self.upload(key, upload)?
            .parts
            .insert(number, (tag.clone(), body));
        Ok(tag)
    }
}

fn no_such_upload(key: &Key) -> StoreError {
    StoreError::Refused {
        place: "memory".into(),
        reason: format!("there is no such upload of {:?}", key.as_str()),
        mend: None,
        denied: false,
    }
}

/// The part of `body` that `range` names, as far as there is one.
fn slice(key: &Key, body: &Bytes, range: &Range<u64>) -> Result<Bytes, StoreError> {
    let bound = |at: u64| usize::try_from(at).ok().filter(|at| *at <= body.len());
    match (bound(range.start), bound(range.end)) {
        (Some(start), Some(end)) if start <= end => Ok(body.slice(start..end)),
        _ => Err(StoreError::Precondition { key: key.clone() }),
    }
}

fn in_chunks(mut rest: Bytes) -> ByteStream {
    let mut chunks = Vec::with_capacity(rest.len() / CHUNK + 1);
    while !rest.is_empty() {
        chunks.push(Ok(rest.split_to(rest.len().min(CHUNK))));
    }
    stream::iter(chunks).boxed()
}

#[async_trait]
impl Store for MemoryStore {
    async fn head(&self, key: &Key) -> Result<Object, StoreError> {
        let state = self.state.lock();
        let stored = state.find(key)?;
        Ok(Object {
            size: stored.body.len() as u64,
            version: stored.version.clone(),
            modified: stored.modified,
            metadata: stored.metadata.clone(),
            answered: Some(self.clock.wall()),
        })
    }

    async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
        version: &ObjectVersion,
    ) -> Result<ByteStream, StoreError> {
        let state = self.state.lock();
        let found = &state.find_version(key, version)?.body;
        Ok(in_chunks(slice(key, found, &range)?))
    }

    async fn list_versions(&self, key: &Key) -> Result<Vec<KeptVersion>, StoreError> {
        let state = self.state.lock();
        let replaced = state.replaced.iter().rev().filter(|(at, _)| at == key);
        let kept = replaced.map(|(_, stored)| stored);
        let newest = state.objects.get(key).filter(|_| self.keeps_versions);
        let all = newest.into_iter().chain(kept);
        let version = |stored: &Stored| KeptVersion {
            // A version's tag is as good an id as any.
            id: VersionId(Arc::clone(&stored.version.0)),
            version: stored.version.clone(),
            size: stored.body.len() as u64,
        };
        Ok(all.map(version).collect())
    }

    async fn get_version(
        &self,
        key: &Key,
        range: Range<u64>,
        version: &ObjectVersion,
        id: &VersionId,
    ) -> Result<ByteStream, StoreError> {
        let state = self.state.lock();
        let mut kept = state.replaced.iter().filter(|(at, _)| at == key);
        let found = kept.find(|(_, stored)| stored.version.0 == id.0 && stored.version == *version);
        match found {
            Some((_, stored)) => Ok(in_chunks(slice(key, &stored.body, &range)?)),
            None => Err(StoreError::NotFound { key: key.clone() }),
        }
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        let state = self.state.lock();
        let prefix = request.prefix.as_str();
        let mut page = ListPage::default();
        // A continuation is the last entry shown. One that is a folded prefix stands for all below it.
        let mut from = match &request.continuation {
            None => Bound::Included(request.prefix.clone()),
            Some(last) => after(last, prefix, request.delimiter),
        };
        let mut last = None;
        while let Some((key, stored)) = state.objects.range((from, Bound::Unbounded)).next() {
            let Some(rest) = key.as_str().strip_prefix(prefix) else {
                break;
            };
            if page.entries.len() >= request.max_keys.max(1) {
                page.continuation = last;
                break;
            }
            let entry = match rest.find('/') {
                Some(slash) if request.delimiter => {
                    ListEntry::Prefix(Key::new(&key.as_str()[..=prefix.len() + slash]))
                }
                _ => ListEntry::Object {
                    key: key.clone(),
                    size: stored.body.len() as u64,
                    version: stored.version.clone(),
                    modified: stored.modified,
                    metadata: None,
                },
            };
            let shown = match &entry {
                ListEntry::Prefix(key) | ListEntry::Object { key, .. } => key.as_str().to_owned(),
            };
            from = after(&shown, prefix, request.delimiter);
            last = Some(shown);
            page.entries.push(entry);
        }
        Ok(page)
    }

    async fn put(
        &self,
        key: &Key,
        body: Bytes,
        metadata: &Metadata,
        condition: &Precondition,
    ) -> Result<ObjectVersion, StoreError> {
        let mut state = self.state.lock();
        state.check(key, condition)?;
        Ok(self.publish(&mut state, key, body, metadata.clone()))
    }

    async fn delete(&self, key: &Key, condition: &Precondition) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        if state.objects.contains_key(key) {
            state.check(key, condition)?;
            let removed = state.objects.remove(key);
            self.replaced(&mut state, key, removed);
        }
        Ok(())
    }

    async fn delete_batch(&self, keys: &[Key]) -> Result<Vec<(Key, StoreError)>, StoreError> {
        let mut state = self.state.lock();
        for key in keys {
            let removed = state.objects.remove(key);
            self.replaced(&mut state, key, removed);
        }
        Ok(Vec::new())
    }

    async fn copy(
        &self,
        from: &Key,
        to: &Key,
        options: &CopyOptions,
    ) -> Result<ObjectVersion, StoreError> {
        let mut state = self.state.lock();
        let source = match &options.source_version {
            Some(version) => state.find_version(from, version)?,
            None => state.find(from)?,
        };
        let body = source.body.clone();
        let metadata = match &options.metadata {
            MetadataDirective::Copy => source.metadata.clone(),
            MetadataDirective::Replace(metadata) => metadata.clone(),
        };
        Ok(self.publish(&mut state, to, body, metadata))
    }

    async fn create_multipart(
        &self,
        key: &Key,
        metadata: &Metadata,
    ) -> Result<UploadId, StoreError> {
        let mut state = self.state.lock();
        state.writes += 1;
        let id = UploadId(format!("upload-{}", state.writes));
        let upload = Upload {
            key: key.clone(),
            begun: self.clock.wall(),
            metadata: metadata.clone(),
            parts: BTreeMap::new(),
        };
        state.uploads.insert(id.clone(), upload);
        Ok(id)
    }

    async fn put_part(
        &self,
        key: &Key,
        upload: &UploadId,
        number: u32,
        body: Bytes,
    ) -> Result<PartTag, StoreError> {
        self.state.lock().add_part(key, upload, number, body)
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
        let mut state = self.state.lock();
        let body = slice(from, &state.find_version(from, version)?.body, &range)?;
        state.add_part(key, upload, number, body)
    }

    async fn complete_multipart(
        &self,
        key: &Key,
        upload: &UploadId,
        parts: &[PartTag],
        condition: &Precondition,
    ) -> Result<ObjectVersion, StoreError> {
        let mut state = self.state.lock();
        let begun = state.upload(key, upload)?;
        let mut body = BytesMut::new();
        for (number, tag) in (1..).zip(parts) {
            match begun.parts.get(&number) {
                Some((sent, bytes)) if sent == tag => body.extend_from_slice(bytes),
                _ => {
                    return Err(StoreError::Refused {
                        place: "memory".into(),
                        reason: format!("part {number} of {:?} was never sent", key.as_str()),
                        mend: None,
                        denied: false,
                    });
                }
            }
        }
        state.check(key, condition)?;
        let metadata = state.uploads.remove(upload).map(|begun| begun.metadata);
        let metadata = metadata.unwrap_or_default();
        Ok(self.publish(&mut state, key, body.freeze(), metadata))
    }

    async fn abort_multipart(&self, _key: &Key, upload: &UploadId) -> Result<(), StoreError> {
        self.state.lock().uploads.remove(upload);
        Ok(())
    }

    async fn list_multipart(
        &self,
        prefix: &Key,
        after: Option<&(Key, UploadId)>,
    ) -> Result<UploadPage, StoreError> {
        let state = self.state.lock();
        let is_asked_for = |(_, upload): &(&UploadId, &Upload)| {
            let key = upload.key.as_str();
            key.starts_with(prefix.as_str())
        };
        let begun = state.uploads.iter().filter(is_asked_for);
        let begun = begun.map(|(id, upload)| OpenUpload {
            key: upload.key.clone(),
            upload: id.clone(),
            begun: upload.begun,
        });
        Ok(UploadPage::of(begun.collect(), after))
    }
}

/// Where a listing goes on after the entry `shown`.
fn after(shown: &str, prefix: &str, delimiter: bool) -> Bound<Key> {
    let folded = delimiter && shown.len() > prefix.len() && shown.ends_with('/');
    if folded {
        // '0' is the byte after '/': the first key that can follow all those below the folded prefix.
        Bound::Included(Key::new(format!("{}0", &shown[..shown.len() - 1])))
    } else {
        Bound::Excluded(Key::new(shown))
    }
}
