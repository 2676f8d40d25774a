//! Blocks of objects in memory, and on the host's disk where there is room for them.
//!
//! A block is fetched once however many ask for it, several neighbours in one range GET, and each is there
//! for its readers as soon as its own bytes are. A fetch that was begun goes on when its reader is gone, but for what was
//! read ahead and given up.
//!
//! moka keeps the blocks, by least recent use: its default policy drops what was just read ahead. It evicts
//! lazily, so each insert does its share of the work.

mod chunk;
mod disk;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use self::disk::{BlockPlace, DiskCache};
use super::block::{BLOCK_SIZE, BlockSpan, block_bytes};
use super::blocking::blocking;
use super::memory::{MemoryBudget, Reserved, Shares};
use super::readahead::Found;
use super::tree::IdleNames;
use crate::store::{Bucket, Key, ObjectVersion, StoreError};

/// Longest range one GET asks for: a longer run of missing blocks is several GETs side by side.
const REQUEST_MAX_BLOCKS: u64 = 4 * 1024 * 1024 / BLOCK_SIZE;

/// What is left of a GET when nobody wants it any more is fetched all the same if it is not more than this: to end it
/// costs the connection, and another one a round trip or three.
const LEFT_MIN_BLOCKS: usize = 8;

/// What moka needs for an entry beside the block's bytes (CRATES: 256 bytes).
const ENTRY_OVERHEAD: u32 = 256;

/// Names the content of one version of one object. A copy we made ourselves keeps it; no other object,
/// bucket or tenant ever has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// What a later process finds its blocks under; `None`: they are kept in memory alone.
    pub(crate) place: Option<BlockPlace>,
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

/// A block on its way, and the GET that brings it with its neighbours.
#[derive(Debug)]
struct InFlight {
    flight: Flight,
    run: Arc<Run>,
}

/// What neighbours that one GET brings have in common.
#[derive(Debug, Default)]
struct Run {
    /// Who had it read ahead does not expect to read it any more. Changes under the lock of the flights.
    is_given_up: AtomicBool,
}

/// The daemon's block cache, shared by all its volumes, and its one memory budget.
#[derive(Debug)]
pub struct BlockCache {
    memory: u64,
    blocks: Cache<BlockKey, Bytes>,
    disk: Option<Arc<DiskCache>>,
    flights: Mutex<HashMap<FlightKey, InFlight>>,
    next_content: AtomicU64,
    lookups: AtomicU64,
    hits: AtomicU64,
    budget: MemoryBudget,
    idle_names: Arc<IdleNames>,
}

impl BlockCache {
    /// A cache that keeps to `memory` bytes, of which it has seven sixteenths itself; the rest is for what moves.
    pub fn new(memory: u64) -> Arc<Self> {
        Self::with_disk(memory, None)
    }

    /// Likewise; what it fetches is kept on the host's disk too.
    pub fn with_disk(memory: u64, disk: Option<Arc<DiskCache>>) -> Arc<Self> {
        let shares = Shares::of(memory);
        Arc::new(Self {
            memory,
            blocks: Cache::builder()
                .eviction_policy(EvictionPolicy::lru())
                .weigher(|_, block: &Bytes| {
                    u32::try_from(block.len()).map_or(u32::MAX, |len| len + ENTRY_OVERHEAD)
                })
                .max_capacity(shares.at_rest)
                .build(),
            disk,
            flights: Mutex::new(HashMap::new()),
            next_content: AtomicU64::new(1),
            lookups: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            budget: MemoryBudget::new(&shares),
            idle_names: Arc::new(IdleNames::new(shares.names)),
        })
    }

    /// A name for content that was not seen before.
    pub(crate) fn new_content(&self) -> ContentId {
        ContentId(self.next_content.fetch_add(1, Ordering::Relaxed))
    }

    /// Bytes of memory that it keeps to.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// Bytes of blocks at rest.
    pub fn used_bytes(&self) -> u64 {
        self.blocks.weighted_size()
    }

    /// The names that the volumes keep for who may look them up again.
    pub(crate) fn idle_names(&self) -> Arc<IdleNames> {
        Arc::clone(&self.idle_names)
    }

    /// What is kept on the host's disk.
    pub fn disk(&self) -> Option<&DiskCache> {
        self.disk.as_deref()
    }

    /// Blocks looked up, and those of them that were there.
    pub fn lookups_and_hits(&self) -> (u64, u64) {
        (
            self.lookups.load(Ordering::Relaxed),
            self.hits.load(Ordering::Relaxed),
        )
    }

    /// Waits for the memory of an upload's part.
    pub(crate) async fn reserve_upload(&self, bytes: u64) -> Reserved {
        self.budget.upload(bytes).await
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
            found.push(self.blocks.get(&object.block_key(index)));
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
        let missing = self.missing(object, range);
        if missing.is_empty() {
            return;
        }
        if let Some(reserved) = self.budget.readahead(missing.len() as u64 * BLOCK_SIZE) {
            self.fly(object, missing.into_iter(), Some(Arc::new(reserved)));
        }
    }

    /// The blocks of `range` that are not here.
    fn missing(&self, object: &ObjectSource, range: &Range<u64>) -> Vec<u64> {
        let is_missing = |index: &u64| !self.blocks.contains_key(&object.block_key(*index));
        let indices = BlockSpan::over(range).indices();
        indices.filter(is_missing).collect()
    }

    /// Where the bytes of `range` are.
    pub(crate) fn find(&self, object: &ObjectSource, range: &Range<u64>) -> Found {
        let missing = self.missing(object, range);
        if missing.is_empty() {
            return Found::Here;
        }
        let flights = self.flights.lock();
        let is_on_its_way = |index: u64| flights.contains_key(&object.flight_key(index));
        match missing.into_iter().all(is_on_its_way) {
            true => Found::OnTheirWay,
            false => Found::Missing,
        }
    }

    /// What was to be fetched of `range` need not come, unless somebody waits for it.
    pub(crate) fn give_up(&self, object: &ObjectSource, range: &Range<u64>) {
        let flights = self.flights.lock();
        for index in BlockSpan::over(range).indices() {
            if let Some(in_flight) = flights.get(&object.flight_key(index)) {
                in_flight.run.is_given_up.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Whether nobody wants these blocks any more; nobody finds them on their way then.
    fn is_unwanted(&self, run: &Run, left: &mut [Landing]) -> bool {
        if left.len() <= LEFT_MIN_BLOCKS || !run.is_given_up.load(Ordering::Relaxed) {
            return false;
        }
        let mut flights = self.flights.lock();
        // The map's own is one.
        let is_awaited = |landing: &Landing| landing.landed.receiver_count() > 1;
        if !run.is_given_up.load(Ordering::Relaxed) || left.iter().any(is_awaited) {
            return false;
        }
        for landing in left {
            flights.remove(&landing.key);
            landing.is_listed = false;
        }
        true
    }

    /// Bytes that may still be read ahead now.
    pub(crate) fn readahead_room(&self) -> u64 {
        self.budget.readahead_room()
    }

    /// Joins the flights of these blocks, and starts those that nobody has started: into memory that is reserved to
    /// read ahead, or for who waits. A block that turns out to be there is not among the flights returned.
    fn fly(
        self: &Arc<Self>,
        object: &ObjectSource,
        indices: impl Iterator<Item = u64>,
        ahead: Option<Arc<Reserved>>,
    ) -> HashMap<u64, Flight> {
        let mut joined = HashMap::new();
        let mut runs: Vec<(Arc<Run>, Vec<Landing>)> = Vec::new();
        {
            let mut flights = self.flights.lock();
            for index in indices {
                let key = object.flight_key(index);
                if let Some(in_flight) = flights.get(&key) {
                    in_flight.run.is_given_up.store(false, Ordering::Relaxed);
                    joined.insert(index, in_flight.flight.clone());
                    continue;
                }
                if self.blocks.contains_key(&key.block) {
                    continue;
                }
                let goes_on = |(_, landings): &&mut (Arc<Run>, Vec<Landing>)| {
                    let is_next = |last: &Landing| last.key.block.index + 1 == index;
                    landings.last().is_some_and(is_next)
                        && (landings.len() as u64) < REQUEST_MAX_BLOCKS
                };
                if runs.last_mut().filter(goes_on).is_none() {
                    runs.push((Arc::default(), Vec::new()));
                }
                let Some((run, landings)) = runs.last_mut() else {
                    continue;
                };
                let (landed, flight) = watch::channel(None);
                joined.insert(index, flight.clone());
                let run = Arc::clone(run);
                flights.insert(key.clone(), InFlight { flight, run });
                landings.push(Landing {
                    cache: Arc::clone(self),
                    key,
                    landed,
                    is_listed: true,
                });
            }
        }
        for (run, landings) in runs {
            let (cache, object, ahead) = (Arc::clone(self), object.clone(), ahead.clone());
            tokio::spawn(async move {
                let _reserved = match ahead {
                    Some(reserved) => reserved,
                    None => {
                        let bytes = landings.len() as u64 * BLOCK_SIZE;
                        Arc::new(cache.budget.demand(bytes).await)
                    }
                };
                fetch(&object, &run, landings).await;
            });
        }
        joined
    }
}

impl ObjectSource {
    fn block_key(&self, index: u64) -> BlockKey {
        BlockKey {
            content: self.content,
            index,
        }
    }

    fn flight_key(&self, index: u64) -> FlightKey {
        FlightKey {
            block: self.block_key(index),
            key: self.key.clone(),
            version: self.version.clone(),
        }
    }
}

/// The promise to bring one block. Dropping it unkept tells the waiters so.
struct Landing {
    cache: Arc<BlockCache>,
    key: FlightKey,
    landed: watch::Sender<Option<Result<Bytes, StoreError>>>,
    /// Who asks for the block finds it on its way.
    is_listed: bool,
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
        if self.is_listed {
            self.cache.flights.lock().remove(&self.key);
        }
    }
}

/// Brings a run of neighbouring blocks: what the disk has, and each run of what it does not have by one GET.
async fn fetch(object: &ObjectSource, run: &Run, landings: Vec<Landing>) {
    let cache = landings.first().map(|first| Arc::clone(&first.cache));
    let disk = cache.as_ref().and_then(|cache| cache.disk.as_ref());
    match disk.filter(|_| object.place.is_some()) {
        None => get(object, run, landings).await,
        Some(disk) => {
            let missing = land_from_disk(disk, object, landings).await;
            let gets = missing.into_iter().map(|run_of| get(object, run, run_of));
            futures_util::future::join_all(gets).await;
        }
    }
}

/// Returns the runs of blocks between those that the disk has.
async fn land_from_disk(
    disk: &Arc<DiskCache>,
    object: &ObjectSource,
    landings: Vec<Landing>,
) -> Vec<Vec<Landing>> {
    let indices: Vec<u64> = landings.iter().map(|l| l.key.block.index).collect();
    let (disk, source) = (Arc::clone(disk), object.clone());
    let found = blocking(move || Ok(disk.read(&source, &indices))).await;
    let mut found: HashMap<u64, Bytes> = found.unwrap_or_default().into_iter().collect();
    let (mut runs, mut missing) = (Vec::new(), Vec::new());
    for landing in landings {
        match found.remove(&landing.key.block.index) {
            Some(block) => {
                landing.land(Ok(block));
                runs.push(std::mem::take(&mut missing));
            }
            None => missing.push(landing),
        }
    }
    runs.push(missing);
    runs.retain(|run| !run.is_empty());
    runs
}

/// One GET for a run of neighbouring blocks.
async fn get(object: &ObjectSource, run: &Run, landings: Vec<Landing>) {
    let mut landings = landings.into_iter();
    let (Some(first), Some(last)) = (landings.as_slice().first(), landings.as_slice().last())
    else {
        return;
    };
    let cache = Arc::clone(&first.cache);
    let span = BlockSpan {
        first: first.key.block.index,
        end: last.key.block.index + 1,
    };
    let got = object
        .bucket
        .get(&object.key, span.bytes(object.size), &object.version)
        .await;
    let mut body = match got {
        Ok(body) => body,
        Err(error) => return landings.for_each(|landing| landing.land(Err(error.clone()))),
    };
    let mut pieces = BytesMut::new();
    while let Some(first) = landings.as_slice().first() {
        let range = block_bytes(first.key.block.index, object.size);
        let len = usize::try_from(range.end - range.start).expect("a block fits in memory");
        pieces.reserve(len.saturating_sub(pieces.len()));
        while pieces.len() < len {
            if cache.is_unwanted(run, landings.as_mut_slice()) {
                return;
            }
            let error = match body.next().await {
                Some(Ok(bytes)) => {
                    pieces.extend_from_slice(&bytes);
                    continue;
                }
                Some(Err(error)) => error,
                None => cut_short(object),
            };
            return landings.for_each(|landing| landing.land(Err(error.clone())));
        }
        // Copied out, so that a block never holds on to more memory than its own.
        let block = Bytes::copy_from_slice(&pieces.split_to(len));
        if let Some(landing) = landings.next() {
            if let Some(disk) = &cache.disk {
                disk.keep(object, landing.key.block.index, &block);
            }
            landing.land(Ok(block));
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
        if let Some(block) = cache.blocks.get(&object.block_key(index)) {
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

    const MIB: u64 = 1 << 20;

    /// An object of 8 MiB.
    async fn large(cache: &BlockCache) -> ObjectSource {
        let (bucket, key) = (Arc::new(Bucket::memory()), Key::new("large"));
        let body = Bytes::from(vec![7; 8 << 20]);
        let put = bucket.put(&key, body, Metadata::default(), Precondition::None);
        let version = put.await.unwrap();
        ObjectSource {
            bucket,
            key,
            version,
            size: 8 * MIB,
            content: cache.new_content(),
            place: None,
        }
    }

    async fn nothing_is_on_its_way(cache: &BlockCache) {
        for _ in 0..1000 {
            if cache.flights.lock().is_empty() {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("it never ends");
    }

    #[tokio::test]
    async fn what_was_read_ahead_and_given_up_does_not_come_and_can_be_read_all_the_same() {
        let cache = BlockCache::new(64 * MIB);
        let object = large(&cache).await;
        cache.prefetch(&object, &(0..4 * MIB));
        assert_eq!(cache.find(&object, &(MIB..2 * MIB)), Found::OnTheirWay);
        cache.give_up(&object, &(0..4 * MIB));
        nothing_is_on_its_way(&cache).await;
        assert_eq!(cache.used_bytes(), 0);
        assert_eq!(cache.find(&object, &(MIB..2 * MIB)), Found::Missing);
        let read = cache.read(&object, MIB..2 * MIB).await.unwrap();
        assert_eq!(read.concat(), vec![7; 1 << 20]);
        assert_eq!(cache.find(&object, &(MIB..2 * MIB)), Found::Here);
    }

    #[tokio::test]
    async fn what_somebody_waits_for_comes_though_it_was_given_up() {
        let cache = BlockCache::new(64 * MIB);
        let object = large(&cache).await;
        cache.prefetch(&object, &(0..4 * MIB));
        let read = async {
            let read = cache.read(&object, 3 * MIB..4 * MIB).await.unwrap();
            assert_eq!(read.concat(), vec![7; 1 << 20]);
        };
        let give_up = async {
            cache.give_up(&object, &(0..4 * MIB));
            nothing_is_on_its_way(&cache).await;
        };
        futures_util::join!(read, give_up);
        assert_eq!(cache.find(&object, &(0..4 * MIB)), Found::Here);
    }

    #[tokio::test]
    async fn a_read_goes_on_while_uploads_have_all_the_memory_they_can_get() {
        let cache = BlockCache::new(16 * MIB);
        let object = large(&cache).await;
        let _all = cache.reserve_upload(1 << 40).await;
        cache.prefetch(&object, &(0..4 * MIB));
        assert_eq!(cache.find(&object, &(0..MIB)), Found::Missing);
        let read = cache.read(&object, 0..8 * MIB).await.unwrap();
        assert_eq!(read.concat(), vec![7; 8 << 20]);
    }

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
            place: None,
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
