use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bucketvol::clock::{Clock, ManualClock};
use bucketvol::config::{Location, Scheme};
use bucketvol::fs::{DirEntry, SetAttr};
use bucketvol::store::{
    AttributeCache, Bucket, CopyOptions, Key, MemoryStore, Metadata, MetadataDirective,
    Precondition, Store,
};
use bytes::Bytes;
use tempfile::TempDir;

use crate::common::fault_store::faulty_bucket;
use crate::common::test_fs::{TestFs, directory_bucket};

const LIMIT: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// A host, and a store with a clock of its own whose ETags are the contents'.
struct Rig {
    store: Arc<MemoryStore>,
    /// The store's.
    clock: Arc<ManualClock>,
    dir: TempDir,
}

impl Rig {
    fn new() -> Self {
        let clock = ManualClock::shared();
        let of_store: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
        Self {
            store: Arc::new(MemoryStore::with_content_tags(of_store)),
            clock,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("cache/attributes")
    }

    /// Puts an object with this mode, past the file system.
    async fn put(&self, key: &str, bytes: &[u8], mode: &str) {
        let (key, metadata) = (Key::new(key), with_mode(mode));
        let body = Bytes::copy_from_slice(bytes);
        let put = self.store.put(&key, body, &metadata, &Precondition::None);
        put.await.unwrap();
    }

    /// Replaces an object's metadata: it keeps its ETag.
    async fn chmod(&self, key: &str, mode: &str) {
        let key = Key::new(key);
        let options = CopyOptions {
            source_version: None,
            metadata: MetadataDirective::Replace(with_mode(mode)),
        };
        let before = self.store.head(&key).await.unwrap().version;
        let after = self.store.copy(&key, &key, &options).await.unwrap();
        assert_eq!(before, after);
    }

    fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    /// A process of this host: another one is to come after its end.
    async fn process(&self) -> Process {
        self.process_on(Arc::clone(&self.store) as _, &self.path(), "bucket")
            .await
    }

    async fn process_on(&self, store: Arc<dyn Store>, path: &Path, bucket: &str) -> Process {
        let cache = AttributeCache::open(path.to_owned(), LIMIT);
        let location = Location {
            scheme: Scheme::Memory,
            bucket: bucket.to_owned(),
            prefix: String::new(),
        };
        let attributes = cache.of(&["https://store", bucket]);
        let bucket = Bucket::new(store, location).with_attributes(attributes);
        Process {
            fs: TestFs::on(Arc::new(bucket)).await,
            cache,
            path: path.to_owned(),
        }
    }

    /// One that asks for everything.
    async fn process_without_cache(&self) -> TestFs {
        let location = Location {
            scheme: Scheme::Memory,
            bucket: "bucket".to_owned(),
            prefix: String::new(),
        };
        let store = Arc::clone(&self.store) as _;
        TestFs::on(Arc::new(Bucket::new(store, location))).await
    }

    fn is_taken(&self) -> bool {
        is_taken(&self.path())
    }
}

/// Whether a process has the file.
fn is_taken(path: &Path) -> bool {
    std::fs::File::open(path).is_ok_and(|file| file.try_lock().is_err())
}

fn with_mode(mode: &str) -> Metadata {
    let user = [("mode".to_owned(), mode.to_owned())].into();
    Metadata {
        user,
        ..Metadata::default()
    }
}

struct Process {
    fs: TestFs,
    cache: Arc<AttributeCache>,
    path: PathBuf,
}

impl Process {
    /// Names and modes of the root, and how many HEADs it took to know them.
    async fn list(&self) -> (Vec<(String, u32)>, u64) {
        let heads = || self.fs.bucket.requests().of("head");
        let before = heads();
        let entries = self.fs.entries("").await.unwrap();
        let shown = |entry: &DirEntry| (entry.name.to_string(), entry.attr.mode);
        (entries.iter().map(shown).collect(), heads() - before)
    }

    /// Likewise, of the one file there is.
    async fn mode(&self) -> (u32, u64) {
        let (shown, heads) = self.list().await;
        let [(_, mode)] = &shown[..] else {
            panic!("{shown:?}")
        };
        (*mode, heads)
    }

    /// It ends in good order: the file is free.
    async fn end(self) {
        self.cache.flush(PATIENCE).await;
        self.fs.close();
        let Self { fs, cache, path } = self;
        drop(cache);
        drop(fs);
        for _ in 0..1000 {
            if !is_taken(&path) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it does not let go of {}", path.display());
    }
}

const LATER: Duration = Duration::from_secs(10);

/// A directory's listing says them.
#[tokio::test]
async fn attributes_that_a_listing_says_are_not_asked_for() {
    let (bucket, _directory) = directory_bucket();
    let fs = TestFs::on(Arc::new(bucket)).await;
    for mode in [0o600, 0o640, 0o755] {
        let name = format!("{mode:o}");
        fs.write(&name, b"x").await.unwrap();
        let mode = SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        };
        fs.setattr(&name, mode).await.unwrap();
    }
    fs.drained().await;
    let other = fs.other_host().await;
    let heads = || other.bucket.requests().0.get("head").copied();
    let before = heads();
    let entries = other.entries("").await.unwrap();
    for entry in &entries {
        assert_eq!(format!("{:o}", entry.attr.mode), *entry.name);
    }
    assert_eq!((entries.len(), heads()), (3, before));
}

#[tokio::test]
async fn the_next_process_lists_a_directory_with_its_attributes_and_sends_no_head() {
    const FILES: usize = 2500;
    let rig = Rig::new();
    for number in 0..FILES {
        rig.put(&format!("{number:05}"), b"x", "33184").await;
    }
    rig.pass(LATER);
    let first = rig.process().await;
    let (shown, heads) = first.list().await;
    assert_eq!((shown.len(), heads), (FILES, FILES as u64));
    assert!(shown.iter().all(|(_, mode)| *mode == 0o640));
    first.end().await;

    let second = rig.process().await;
    let before = second.fs.bucket.requests().total();
    let (again, heads) = second.list().await;
    assert_eq!(again, shown);
    assert_eq!(heads, 0);
    // Its three pages.
    assert_eq!(second.fs.bucket.requests().total() - before, 3);
    // What is shown of one of them is what a HEAD says, its times included.
    let asking = rig.process_without_cache().await;
    let known = second.fs.attr("00007").await.unwrap();
    assert_eq!(known, asking.attr("00007").await.unwrap());
}

#[tokio::test]
async fn directories_with_a_marker_cost_no_head_either() {
    let rig = Rig::new();
    for name in ["a/", "b/"] {
        rig.put(name, b"", "16832").await;
    }
    rig.put("b/file", b"x", "33184").await;
    rig.pass(LATER);
    let first = rig.process().await;
    let (shown, _) = first.list().await;
    first.end().await;
    let second = rig.process().await;
    let (again, heads) = second.list().await;
    assert_eq!(again, [("a".to_owned(), 0o700), ("b".to_owned(), 0o700)]);
    assert_eq!((again, heads), (shown, 0));
}

#[tokio::test]
async fn metadata_that_another_host_replaced_are_seen_though_the_etag_is_the_same() {
    let rig = Rig::new();
    rig.put("a", b"x", "33184").await;
    rig.pass(LATER);
    let first = rig.process().await;
    assert_eq!(first.mode().await, (0o640, 1));
    rig.chmod("a", "33152").await;
    // In the life of one process, and in the next.
    first.fs.let_ttl_pass();
    assert_eq!(first.mode().await, (0o600, 1));
    first.end().await;
    rig.chmod("a", "33188").await;
    rig.pass(LATER);
    let second = rig.process().await;
    assert_eq!(second.mode().await, (0o644, 1));
    second.end().await;
    assert_eq!(rig.process().await.mode().await, (0o644, 0));
}

#[tokio::test]
async fn what_was_looked_at_within_two_seconds_of_its_making_is_looked_at_again() {
    for seconds in 0..3 {
        let rig = Rig::new();
        rig.put("a", b"x", "33184").await;
        rig.pass(Duration::from_secs(seconds));
        let first = rig.process().await;
        assert_eq!(first.mode().await, (0o640, 1));
        first.end().await;
        // The same second: neither the ETag nor the time says that anything has changed.
        if seconds == 0 {
            rig.chmod("a", "33152").await;
        }
        rig.pass(LATER);
        let second = rig.process().await;
        let expected = if seconds == 0 { 0o600 } else { 0o640 };
        assert_eq!(second.mode().await, (expected, 1), "{seconds} s");
    }
}

#[tokio::test]
async fn a_replaced_object_is_asked_for_its_own_attributes() {
    let rig = Rig::new();
    rig.put("a", b"x", "33184").await;
    rig.pass(LATER);
    let first = rig.process().await;
    assert_eq!(first.mode().await, (0o640, 1));
    first.end().await;
    rig.put("a", b"y", "33152").await;
    rig.pass(LATER);
    let second = rig.process().await;
    assert_eq!(second.mode().await, (0o600, 1));
    second.end().await;
    // The first content again, of another time.
    rig.put("a", b"x", "33188").await;
    assert_eq!(rig.process().await.mode().await, (0o644, 1));
}

#[tokio::test]
async fn our_own_chmod_is_what_the_next_process_shows() {
    let rig = Rig::new();
    rig.put("a", b"x", "33184").await;
    rig.pass(LATER);
    let first = rig.process().await;
    assert_eq!(first.mode().await, (0o640, 1));
    let change = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    first.fs.setattr("a", change).await.unwrap();
    first.fs.drained().await;
    first.fs.let_ttl_pass();
    assert_eq!(first.mode().await, (0o600, 0));
    first.end().await;
    rig.pass(LATER);
    assert_eq!(rig.process().await.mode().await, (0o600, 1));
}

#[tokio::test]
async fn a_store_whose_objects_keep_their_time_is_always_asked() {
    let rig = Rig::new();
    let (bucket, _directory) = directory_bucket();
    let attributes = AttributeCache::open(rig.path(), LIMIT).of(&["directory"]);
    let bucket = Arc::new(bucket.with_attributes(attributes));
    let fs = TestFs::on(Arc::clone(&bucket)).await;
    fs.put_object("a", b"x").await;
    assert_eq!(fs.entries("").await.unwrap()[0].attr.mode, 0o644);
    let key = Key::new("a");
    let object = bucket.head(&key).await.unwrap().unwrap();
    let replaced = bucket.replace_metadata(&key, 1, &object.version, with_mode("33152"));
    assert_eq!(replaced.await.unwrap(), object.version);
    let next = fs.other_host().await;
    assert_eq!(next.entries("").await.unwrap()[0].attr.mode, 0o600);
}

#[tokio::test]
async fn objects_of_two_buckets_with_equal_keys_and_etags_do_not_meet() {
    let rig = Rig::new();
    let other = Rig::new();
    rig.put("a", b"x", "33184").await;
    other.put("a", b"x", "33152").await;
    rig.pass(LATER);
    other.pass(LATER);
    for heads in [1, 0] {
        for (rig_of, name, mode) in [(&rig, "one", 0o640), (&other, "two", 0o600)] {
            let store = Arc::clone(&rig_of.store);
            let process = rig.process_on(store, &rig.path(), name).await;
            assert_eq!(process.mode().await, (mode, heads), "{name}");
            process.end().await;
        }
    }
}

#[tokio::test]
async fn a_damaged_cache_is_begun_anew() {
    let rig = Rig::new();
    rig.put("a", b"x", "33184").await;
    rig.pass(LATER);
    for garbage in [b"garbage".to_vec(), vec![7; 1 << 20]] {
        std::fs::create_dir_all(rig.path().parent().unwrap()).unwrap();
        std::fs::write(rig.path(), &garbage).unwrap();
        let first = rig.process().await;
        assert_eq!(first.mode().await, (0o640, 1));
        first.end().await;
        let aside = rig.path().with_extension("damaged");
        assert_eq!(std::fs::read(aside).unwrap(), garbage);
        let second = rig.process().await;
        assert_eq!(second.mode().await, (0o640, 0));
        second.end().await;
    }
}

#[tokio::test]
async fn where_nothing_can_be_kept_and_where_another_process_has_the_file_all_goes_on_without() {
    let rig = Rig::new();
    rig.put("a", b"x", "33184").await;
    rig.pass(LATER);
    let in_the_way = rig.dir.path().join("file");
    std::fs::write(&in_the_way, b"").unwrap();
    for _ in 0..2 {
        let store = Arc::clone(&rig.store);
        let path = in_the_way.join("attributes");
        let process = rig.process_on(store, &path, "bucket").await;
        assert_eq!(process.mode().await, (0o640, 1));
    }

    let first = rig.process().await;
    assert_eq!(first.mode().await, (0o640, 1));
    first.cache.flush(PATIENCE).await;
    let beside = rig.process().await;
    assert_eq!(beside.mode().await, (0o640, 1));
    first.end().await;
    // Its turn has come.
    beside.fs.eventually(async || rig.is_taken()).await;
}

#[tokio::test(start_paused = true)]
async fn attributes_that_have_to_be_asked_for_are_asked_for_side_by_side_but_not_all_at_once() {
    const FILES: u32 = 250;
    const AT_ONCE: u32 = 16;
    let (bucket, faults) = faulty_bucket();
    let fs = TestFs::tuned(bucket, |settings| {
        settings.concurrency = AT_ONCE as usize;
    })
    .await;
    for number in 0..FILES {
        fs.put_object(&format!("{number:03}"), b"x").await;
    }
    faults.delay(Duration::from_secs(1));
    let began = tokio::time::Instant::now();
    assert_eq!(fs.entries("").await.unwrap().len(), FILES as usize);
    // The listing's second, and theirs.
    assert_eq!(
        began.elapsed().as_secs(),
        u64::from(1 + FILES.div_ceil(AT_ONCE))
    );
}
