//! Blocks that outlive the process on the host's disk.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bucketvol::clock::SystemClock;
use bucketvol::config::options::MinFree;
use bucketvol::fs::{BlockCache, BlockPlace, DiskCache};
use bucketvol::store::Bucket;

use crate::common::test_fs::{TestFs, pattern};

const MIB: usize = 1 << 20;
const NOTHING_LEFT_FREE: MinFree = MinFree::Bytes(0);

/// Processes of one host, one after the other: each has a memory of its own, and the disk together.
struct Host {
    dir: tempfile::TempDir,
    bucket: Arc<Bucket>,
    limit: u64,
    min_free: MinFree,
}

impl Host {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            bucket: Arc::new(Bucket::memory()),
            limit: 1 << 30,
            min_free: NOTHING_LEFT_FREE,
        }
    }

    async fn process(&self) -> TestFs {
        self.process_at(&["endpoint", "bucket", "who"]).await
    }

    async fn process_at(&self, place: &[&str]) -> TestFs {
        let (dir, clock) = (self.dir.path().join("blocks"), SystemClock::shared());
        let disk = DiskCache::open(dir, self.limit, self.min_free, clock);
        TestFs::tuned(Arc::clone(&self.bucket), |settings| {
            settings.cache = BlockCache::with_disk(64 << 20, Some(disk));
            settings.place = Some(BlockPlace::of(place));
        })
        .await
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = |dir: &Path| -> Vec<PathBuf> {
            let entries = std::fs::read_dir(dir).into_iter().flatten();
            entries.map(|entry| entry.unwrap().path()).collect()
        };
        let shards = entries(&self.dir.path().join("blocks"));
        shards.iter().flat_map(|shard| entries(shard)).collect()
    }
}

/// Reads a file, and says how many GETs that took.
async fn read(fs: &TestFs, name: &str, expected: &[u8]) -> u64 {
    let before = fs.bucket.requests().of("get");
    assert!(fs.read(name).await.unwrap() == expected, "{name}");
    fs.bucket.requests().of("get") - before
}

/// Nobody waits for the disk: what was read is there a little later.
async fn written(fs: &TestFs, bytes: usize) {
    let is_there = async || fs.status().cache_disk_bytes >= bytes as u64;
    fs.eventually(is_there).await;
}

#[tokio::test]
async fn what_one_process_has_read_the_next_one_need_not_fetch() {
    let host = Host::new();
    let (small, large) = (pattern(1000), pattern(9 * MIB + 5));
    let fs = host.process().await;
    fs.put_object("small", &small).await;
    fs.put_object("large", &large).await;
    assert!(read(&fs, "small", &small).await > 0);
    assert!(read(&fs, "large", &large).await > 0);
    written(&fs, small.len() + large.len()).await;

    let next = host.process().await;
    assert_eq!(read(&next, "small", &small).await, 0);
    assert_eq!(read(&next, "large", &large).await, 0);
    assert!(next.status().cache_disk_hits > 0);
    assert!(next.status().cache_disk_bytes >= large.len() as u64);
}

#[tokio::test]
async fn what_is_only_partly_on_the_disk_is_fetched_for_the_rest() {
    let host = Host::new();
    let bytes = pattern(6 * MIB);
    let fs = host.process().await;
    fs.put_object("file", &bytes).await;
    let file = fs.open("file").await.unwrap();
    for at in [MIB, 3 * MIB] {
        file.read_at(at as u64, 4096).await.unwrap();
    }
    written(&fs, 2 * 128 * 1024).await;
    let next = host.process().await;
    assert!(read(&next, "file", &bytes).await > 0);
    assert_eq!(next.status().cache_disk_hits, 2);
}

#[tokio::test]
async fn another_version_and_another_place_have_nothing_in_common() {
    let host = Host::new();
    let fs = host.process().await;
    let (old, new) = (vec![1; MIB], vec![2; MIB]);
    fs.put_object("file", &old).await;
    read(&fs, "file", &old).await;
    written(&fs, MIB).await;
    fs.put_object("file", &new).await;
    fs.let_ttl_pass();
    assert!(read(&fs, "file", &new).await > 0);
    written(&fs, 2 * MIB).await;
    assert!(read(&host.process().await, "file", &new).await == 0);
    for place in [
        ["endpoint", "bucket", "other"],
        ["endpoint", "bucketw", "ho"],
    ] {
        let other = host.process_at(&place).await;
        assert!(read(&other, "file", &new).await > 0, "{place:?}");
    }
}

#[tokio::test]
async fn what_is_damaged_on_the_disk_is_fetched_again() {
    let host = Host::new();
    let bytes = pattern(5 * MIB);
    let fs = host.process().await;
    fs.put_object("file", &bytes).await;
    read(&fs, "file", &bytes).await;
    written(&fs, bytes.len()).await;
    for path in host.files() {
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(b"damage", 300_000).unwrap();
    }
    let next = host.process().await;
    assert!(read(&next, "file", &bytes).await > 0);
    // What was fetched has taken its place.
    let is_mended = async || read(&host.process().await, "file", &bytes).await == 0;
    fs.eventually(is_mended).await;
}

#[tokio::test]
async fn it_keeps_to_its_limit_whatever_is_read() {
    let host = Host {
        limit: 8 << 20,
        ..Host::new()
    };
    let fs = host.process().await;
    let bytes = pattern(MIB);
    for number in 0..40 {
        let name = number.to_string();
        fs.put_object(&name, &bytes).await;
        read(&fs, &name, &bytes).await;
    }
    let on_disk = || -> u64 {
        let len = |path: &PathBuf| std::fs::metadata(path).map_or(0, |about| about.len());
        host.files().iter().map(len).sum()
    };
    // It looks after every 4 MiB, and one may have come since.
    fs.eventually(async || (1..=13 << 20).contains(&on_disk()))
        .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(on_disk() <= 13 << 20, "{}", on_disk());
    let next = host.process().await;
    for number in 0..40 {
        read(&next, &number.to_string(), &bytes).await;
    }
}

#[tokio::test]
async fn what_was_read_lately_stays_when_others_go() {
    let host = Host {
        limit: 8 << 20,
        ..Host::new()
    };
    let bytes = pattern(MIB);
    let fs = host.process().await;
    for number in 0..6 {
        fs.put_object(&number.to_string(), &bytes).await;
    }
    for name in ["0", "1", "2", "3"] {
        read(&fs, name, &bytes).await;
    }
    written(&fs, 4 * MIB).await;
    for path in host.files() {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    assert_eq!(read(&host.process().await, "2", &bytes).await, 0);

    // Five more MiB do not have room beside these.
    let fs = host.process().await;
    fs.put_object("large", &pattern(5 * MIB)).await;
    read(&fs, "large", &pattern(5 * MIB)).await;
    let all_but_one = 4 + 2 - 1;
    fs.eventually(async || {
        host.files().len() == all_but_one && fs.status().cache_disk_bytes >= 8 << 20
    })
    .await;
    let next = host.process().await;
    assert_eq!(read(&next, "2", &bytes).await, 0);
    let mut fetched = 0;
    for name in ["0", "1", "3"] {
        fetched += u32::from(read(&next, name, &bytes).await > 0);
    }
    assert!(fetched > 0, "something had to go");
}

#[tokio::test]
async fn a_disk_that_others_need_gets_nothing() {
    let host = Host {
        min_free: MinFree::Percent(99),
        ..Host::new()
    };
    let fs = host.process().await;
    let bytes = pattern(20 * MIB);
    fs.put_object("file", &bytes).await;
    read(&fs, "file", &bytes).await;
    let mut most = 0;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        most = most.max(fs.status().cache_disk_bytes);
    }
    assert!(most <= 8 << 20, "{most}");
}

#[tokio::test]
async fn where_nothing_can_be_kept_all_goes_on_without() {
    let host = Host::new();
    std::fs::write(host.dir.path().join("blocks"), b"no directory").unwrap();
    let bytes = pattern(5 * MIB);
    let fs = host.process().await;
    fs.put_object("file", &bytes).await;
    for fs in [fs, host.process().await] {
        assert!(read(&fs, "file", &bytes).await > 0);
        assert_eq!(fs.status().cache_disk_bytes, 0);
    }
}
