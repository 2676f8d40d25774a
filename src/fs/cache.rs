//! Blocks of objects in memory.
//!
//! A block is fetched once however many ask for it, several neighbours in one range GET, and each is there
//! for its readers as soon as its own bytes are. A fetch that was begun goes on when its reader is gone.
//!
//! moka keeps the blocks, by least recent use: its default policy drops what was just read ahead. It evicts
//! lazily, so each insert does its share of the work.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::block::{BLOCK_SIZE, BlockSpan, block_bytes};
use crate::store::{Bucket, Key, ObjectVersion, StoreError};

/// Longest range one GET asks for: a longer run of missing blocks is several GETs side by side.
const REQUEST_MAX_BLOCKS: u64 = 4 * 1024 * 1024 / BLOCK_SIZE;

/// What moka needs for an entry beside the block's bytes (CRATES: 256 bytes).
const ENTRY_OVERHEAD: u32 = 256;

/// The unit that a semaphore counts memory in.
const KIB: u64 = 1024;

/// Names the content of one version of one object. A copy we made ourselves keeps it; no other object,
/// bucket or tenant ever has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ContentId(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct BlockKey {
    content: ContentId,
    index: u64,
}

/// Where blocks come from: one version of one object.
#[derive(Debug, Clone)]
pub(crate) struct ObjectSource {
    pub(crate) bucket: Arc<Bucket>,
    pub(crate) key: Key,
    pub(crate) version: ObjectVersion,
    /// Bytes of the object.
    pub(crate) size: u64,
    pub(crate) content: ContentId,
}

/// A block on its way from one place. A rename gives the same content another place: whoever asks there does
/// not share the failure of one who still asked at the old one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct FlightKey {
    block: BlockKey,
    key: Key,
    version: ObjectVersion,
}

/// A block on its way; `None` until it is there.
type Flight = watch::Receiver<Option<Result<Bytes, StoreError>>>;

/// The daemon's block cache, shared by all its volumes, and its one memory budget.
#[derive(Debug)]
pub struct BlockCache {
    blocks: Cache<BlockKey, Bytes>,
    flights: Mutex<HashMap<FlightKey, Flight>>,
    next_content: AtomicU64,
    lookups: AtomicU64,
    hits: AtomicU64,
    /// KiB that may be on their way ahead of any reader.
    readahead: Arc<Semaphore>,
    /// KiB that upload parts may hold.
    upload: Arc<Semaphore>,
    upload_kib: u32,
}

impl BlockCache {
    /// A cache that keeps to `memory` bytes: half for blocks at rest, a quarter for blocks read ahead, a
    /// quarter for upload parts.
    pub fn new(memory: u64) -> Arc<Self> {
        let quarter_kib = u32::try_from((memory / 4 / KIB).max(1024)).unwrap_or(u32::MAX >> 4);
        let permits = usize::try_from(quarter_kib).expect("usize has at least 32 bits");
        Arc::new(Self {
            blocks: Cache::builder()
                .eviction_policy(EvictionPolicy::lru())
                .weigher(|_, block: &Bytes| {
                    u32::try_from(block.len()).map_or(u32::MAX, |len| len + ENTRY_OVERHEAD)
                })
                .max_capacity(memory / 2)
                .build(),
            flights: Mutex::new(HashMap::new()),
            next_content: AtomicU64::new(1),
            lookups: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            readahead: Arc::new(Semaphore::new(permits)),
            upload: Arc::new(Semaphore::new(permits)),
            upload_kib: quarter_kib,
        })
    }

    /// A name for content that was not seen before.
    pub(crate) fn new_content(&self) -> ContentId {
        ContentId(self.next_content.fetch_add(1, Ordering::Relaxed))
    }

    /// Bytes of blocks at rest.
    pub fn used_bytes(&self) -> u64 {
        self.blocks.weighted_size()
    }

    /// Blocks looked up, and those of them that were there.
    pub fn lookups_and_hits(&self) -> (u64, u64) {
        (
            self.lookups.load(Ordering::Relaxed),
            self.hits.load(Ordering::Relaxed),
        )
    }

    /// Waits for the memory of an upload's part. A part larger than the whole budget gets all of it.
    pub(crate) async fn reserve_upload(&self, bytes: u64) -> OwnedSemaphorePermit {
        let kib = u32::try_from(bytes.div_ceil(KIB))
            .unwrap_or(u32::MAX)
            .clamp(1, self.upload_kib);
        Arc::clone(&self.upload)
            .acquire_many_owned(kib)
            .await
            .expect("the semaphore is never closed")
    }

    /// The bytes of `range`, which lies inside the object. Does not wait if all blocks are there.
    pub(crate) async fn read(
        self: &Arc<Self>,
        object: &ObjectSource,
        range: Range<u64>,
    ) -> Result<Vec<Bytes>, StoreError> {
        let span = BlockSpan::over(&range);
        let mut found = Vec::with_capacity(usize::try_from(span.end - span.first).unwrap_or(0));
        for index in span.indices() {
            found.push(self.blocks.get(&BlockKey {
                content: object.content,
                index,
            }));
        }
        self.lookups
            .fetch_add(found.len() as u64, Ordering::Relaxed);
        let hits = found.iter().filter(|block| block.is_some()).count() as u64;
        self.hits.fetch_add(hits, Ordering::Relaxed);

        let mut flights = HashMap::new();
        if hits < found.len() as u64 {
            let missing = span
                .indices()
                .zip(&found)
                .filter(|(_, block)| block.is_none());
            flights = self.fly(object, missing.map(|(index, _)| index), None);
        }
        let mut bytes = Vec::with_capacity(found.len());
        for (index, block) in span.indices().zip(found) {
            let block = match block {
                Some(block) => block,
                None => match flights.remove(&index) {
                    Some(flight) => land(flight, object).await?,
                    // It landed between our look and our question.
                    None => continue_with(self, object, index).await?,
                },
            };
            bytes.push(slice(&block, index, &range));
        }
        Ok(bytes)
    }

    /// Takes in the whole of an object that we have just made.
    pub(crate) fn keep(&self, content: ContentId, body: &Bytes) {
        let block = usize::try_from(BLOCK_SIZE).expect("usize has at least 32 bits");
        for (index, bytes) in (0..).zip(body.chunks(block)) {
            // A copy: a slice would keep all of the body in memory.
            let bytes = Bytes::copy_from_slice(bytes);
            self.blocks.insert(BlockKey { content, index }, bytes);
        }
        self.blocks.run_pending_tasks();
    }

    /// Begins to fetch what of `range` is missing, if there is memory for it.
    pub(crate) fn prefetch(self: &Arc<Self>, object: &ObjectSource, range: &Range<u64>) {
        let span = BlockSpan::over(range);
        let missing: Vec<u64> = span
            .indices()
            .filter(|index| {
                !self.blocks.contains_key(&BlockKey {
                    content: object.content,
                    index: *index,
                })
            })
            .collect();
        let kib = u32::try_from(missing.len() as u64 * BLOCK_SIZE / KIB).unwrap_or(u32::MAX);
        if kib == 0 {
            return;
        }
        if let Ok(permit) = Arc::clone(&self.readahead).try_acquire_many_owned(kib) {
            self.fly(object, missing.into_iter(), Some(Arc::new(permit)));
        }
    }

    /// Bytes that may still be read ahead now.
    pub(crate) fn readahead_room(&self) -> u64 {
        self.readahead.available_permits() as u64 * KIB
    }

    /// Joins the flights of these blocks, and starts those that nobody has started. A block that turns out
    /// to be there is not among the flights returned.
    fn fly(
        self: &Arc<Self>,
        object: &ObjectSource,
        indices: impl Iterator<Item = u64>,
        permit: Option<Arc<OwnedSemaphorePermit>>,
    ) -> HashMap<u64, Flight> {
        let mut joined = HashMap::new();
        let mut runs: Vec<Vec<Landing>> = Vec::new();
        {
            let mut flights = self.flights.lock();
            for index in indices {
                let block = BlockKey {
                    content: object.content,
                    index,
                };
                let key = FlightKey {
                    block,
                    key: object.key.clone(),
                    version: object.version.clone(),
                };
                if let Some(flight) = flights.get(&key) {
                    joined.insert(index, flight.clone());
                    continue;
                }
                if self.blocks.contains_key(&block) {
                    continue;
                }
                let (landed, flight) = watch::channel(None);
                flights.insert(key.clone(), flight.clone());
                joined.insert(index, flight);
                let landing = Landing {
                    cache: Arc::clone(self),
                    key,
                    landed,
                };
                match runs.last_mut() {
                    Some(run)
                        if run.last().is_some_and(|l| l.key.block.index + 1 == index)
                            && (run.len() as u64) < REQUEST_MAX_BLOCKS =>
                    {
                        run.push(landing);
                    }
                    _ => runs.push(vec![landing]),
                }
            }
        }
        for run in runs {
            let (object, permit) = (object.clone(), permit.clone());
            tokio::spawn(async move {
                fetch(&object, run).await;
                drop(permit);
            });
        }
        joined
    }
}

/// The promise to bring one block. Dropping it unkept tells the waiters so.
struct Landing {
    cache: Arc<BlockCache>,
    key: FlightKey,
    landed: watch::Sender<Option<Result<Bytes, StoreError>>>,
}

impl Landing {
    fn land(self, block: Result<Bytes, StoreError>) {
        if let Ok(block) = &block {
            // Before the flight ends: whoever finds no flight must find the block.
            self.cache.blocks.insert(self.key.block, block.clone());
            self.cache.blocks.run_pending_tasks();
        }
        self.landed.send_replace(Some(block));
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.cache.flights.lock().remove(&self.key);
    }
}

/// One GET for a run of neighbouring blocks.
async fn fetch(object: &ObjectSource, run: Vec<Landing>) {
    let mut landings = run.into_iter();
    let (Some(first), Some(last)) = (landings.as_slice().first(), landings.as_slice().last())
    else {
        return;
    };
    let span = BlockSpan {
        first: first.key.block.index,
        end: last.key.block.index + 1,
    };
    let mut failure = None;
    match object
        .bucket
        .get(&object.key, span.bytes(object.size), &object.version)
        .await
    {
        Ok(mut body) => {
            let mut block = BytesMut::new();
            for landing in landings.by_ref() {
                let range = block_bytes(landing.key.block.index, object.size);
                let len = usize::try_from(range.end - range.start).expect("a block fits in memory");
                block.reserve(len.saturating_sub(block.len()));
                while block.len() < len && failure.is_none() {
                    match body.next().await {
                        Some(Ok(bytes)) => block.extend_from_slice(&bytes),
                        Some(Err(error)) => failure = Some(error),
                        None => failure = Some(cut_short(object)),
                    }
                }
                match &failure {
                    // Copied out, so that a block never holds on to more memory than its own.
                    None => landing.land(Ok(Bytes::copy_from_slice(&block.split_to(len)))),
                    Some(error) => landing.land(Err(error.clone())),
                }
            }
        }
        Err(error) => failure = Some(error),
    }
    if let Some(error) = failure {
        for landing in landings {
            landing.land(Err(error.clone()));
        }
    }
}

async fn land(mut flight: Flight, object: &ObjectSource) -> Result<Bytes, StoreError> {
    match flight.wait_for(Option::is_some).await {
        Ok(landed) => landed.clone().unwrap_or_else(|| Err(cut_short(object))),
        Err(_) => Err(cut_short(object)),
    }
}

/// A block that another reader brought while we looked.
async fn continue_with(
    cache: &Arc<BlockCache>,
    object: &ObjectSource,
    index: u64,
) -> Result<Bytes, StoreError> {
    // Bounded: under memory pressure a block can be evicted before we get to it.
    for _ in 0..3 {
        if let Some(block) = cache.blocks.get(&BlockKey {
            content: object.content,
            index,
        }) {
            return Ok(block);
        }
        if let Some(flight) = cache
            .fly(object, std::iter::once(index), None)
            .remove(&index)
        {
            return land(flight, object).await;
        }
    }
    Err(cut_short(object))
}

fn cut_short(object: &ObjectSource) -> StoreError {
    StoreError::Unavailable {
        place: object.bucket.location().to_string(),
        reason: format!("the body of {:?} ended early", object.key.as_str()),
        retry_after: None,
    }
}

/// The part of block `index` that lies in `range`.
fn slice(block: &Bytes, index: u64, range: &Range<u64>) -> Bytes {
    let start = index * BLOCK_SIZE;
    let at = |offset: u64| {
        usize::try_from(offset.clamp(start, start + block.len() as u64) - start)
            .expect("an offset inside a block")
    };
    block.slice(at(range.start)..at(range.end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Metadata, Precondition};

    #[tokio::test]
    async fn who_asks_at_the_new_place_of_a_renamed_object_does_not_fail_with_who_asked_at_the_old()
    {
        let bucket = Arc::new(Bucket::memory());
        let key = Key::new("new");
        let version = bucket
            .put(
                &key,
                "bytes".into(),
                Metadata::default(),
                Precondition::None,
            )
            .await
            .unwrap();
        let cache = BlockCache::new(1 << 20);
        let moved = ObjectSource {
            bucket,
            key,
            version,
            size: 5,
            content: cache.new_content(),
        };
        let gone = ObjectSource {
            key: Key::new("old"),
            ..moved.clone()
        };
        let (old, new) = futures_util::join!(cache.read(&gone, 0..5), cache.read(&moved, 0..5));
        assert!(old.is_err());
        assert_eq!(new.unwrap(), [Bytes::from_static(b"bytes")]);
    }
}
