//! Two hosts that change the same files at random: no update that a close or an fsync acknowledged is lost. It is in
//! the file, or in one beside it, or was overwritten by somebody who had read it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bucketvol::config::options::{Durability, WriteOptions};
use bucketvol::fs::FsError;
use bucketvol::store::Bucket;
use parking_lot::Mutex;

use super::together::Random;
use crate::common::test_fs::{OpenFile, TestFs};

const FILES: [&str; 3] = ["a", "b", "c"];

/// Updates of each host.
const UPDATES: u32 = 40;

/// How often both hosts are drained at most: what loses a conflict has another way to go.
const DRAINS: u32 = 20;

/// Each update is a word of its own, its number, which it appends or puts in the place of the first word.
type Update = u64;

/// Bytes of a word.
const WORD: u64 = 8;

fn text(updates: &[Update]) -> Vec<u8> {
    let words: Vec<String> = updates
        .iter()
        .map(|update| format!("{update:07};"))
        .collect();
    words.concat().into_bytes()
}

fn parse(bytes: &[u8]) -> Vec<Update> {
    let words = std::str::from_utf8(bytes).unwrap().split_terminator(';');
    let updates: Vec<Update> = words.map(|word| word.parse().unwrap()).collect();
    assert!(text(&updates) == bytes, "not whole words");
    updates
}

/// What the programs of both hosts have done, and were told.
#[derive(Debug, Default)]
struct Told {
    /// Updates so far.
    updates: Update,
    /// The contents that were made, each by one update.
    made: BTreeSet<Vec<Update>>,
    /// What each update has overwritten.
    overwrote: BTreeMap<Update, Update>,
    acknowledged: BTreeSet<Update>,
}

/// A program on one host. An update that fails is not acknowledged, and that is all there is to it.
struct Program<'a> {
    fs: &'a TestFs,
    told: &'a Mutex<Told>,
    random: Random,
}

impl Program<'_> {
    async fn run(mut self) {
        for _ in 0..UPDATES {
            if self.random.below(3) == 0 {
                self.fs.let_ttl_pass();
            }
            match self.update().await {
                Ok(()) | Err(FsError::Stale | FsError::Conflict { .. } | FsError::NoEntry) => {}
                Err(error) => panic!("{error}"),
            }
            self.dawdle().await;
        }
    }

    async fn update(&mut self) -> Result<(), FsError> {
        let name = FILES[usize::try_from(self.random.below(3)).unwrap()];
        let file = match self.fs.open(name).await {
            Err(FsError::NoEntry) => self.fs.create(name).await?,
            opened => opened?,
        };
        let written = self.write(&file).await;
        let closed = file.close().await;
        let update = written?;
        closed?;
        self.told.lock().acknowledged.insert(update);
        Ok(())
    }

    async fn write(&mut self, file: &OpenFile) -> Result<Update, FsError> {
        let mut content = parse(&file.read_all().await?);
        self.dawdle().await;
        let appends = content.is_empty() || self.random.below(3) > 0;
        let update = {
            let mut told = self.told.lock();
            told.updates += 1;
            told.updates
        };
        if appends {
            file.write_at(WORD * content.len() as u64, text(&[update]))?;
            content.push(update);
        } else {
            file.write_at(0, text(&[update]))?;
            self.told.lock().overwrote.insert(update, content[0]);
            content[0] = update;
        }
        self.told.lock().made.insert(content);
        self.dawdle().await;
        if self.random.below(2) == 0 {
            file.fsync().await?;
        }
        Ok(update)
    }

    /// Lets the other host's program go on.
    async fn dawdle(&mut self) {
        for _ in 0..self.random.below(8) {
            tokio::task::yield_now().await;
        }
    }
}

impl Told {
    /// No acknowledged update is lost, no object is anything but what one update made, and no two are the same.
    fn check(&self, objects: &BTreeMap<String, Vec<u8>>) {
        let mut present: BTreeSet<Update> = BTreeSet::new();
        let mut contents = BTreeSet::new();
        for (key, bytes) in objects {
            let name = key.split(".conflict-").next().unwrap();
            assert!(FILES.contains(&name), "{key}");
            let content = parse(bytes);
            // Of a file that was made, and written to no more.
            if content.is_empty() {
                continue;
            }
            assert!(
                self.made.contains(&content),
                "{key} is a mixture: {content:?}"
            );
            present.extend(&content);
            assert!(contents.insert(content), "{key} is there twice");
        }
        // The later have higher numbers than what they overwrote.
        for (update, overwritten) in self.overwrote.iter().rev() {
            if present.contains(update) {
                present.insert(*overwritten);
            }
        }
        let lost: Vec<_> = self.acknowledged.difference(&present).collect();
        assert!(lost.is_empty(), "lost: {lost:?}");
    }
}

async fn objects(fs: &TestFs) -> BTreeMap<String, Vec<u8>> {
    let mut objects = BTreeMap::new();
    for key in fs.keys().await {
        let bytes = fs.object(&key).await.unwrap();
        objects.insert(key, bytes);
    }
    objects
}

/// Returns how many files stand beside others.
async fn lose_nothing(bucket: Bucket, seed: u64) -> usize {
    said(seed);
    let bucket = Arc::new(bucket);
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut host = async || {
        let durability = match random.below(2) {
            0 => Durability::Close,
            _ => Durability::Fsync,
        };
        let write = WriteOptions {
            durability,
            ..WriteOptions::default()
        };
        let fs = TestFs::with(Arc::clone(&bucket), write).await;
        (fs, Random(random.below(u64::MAX) | 1))
    };
    let (one, first) = host().await;
    let (other, second) = host().await;
    let told = Mutex::default();
    let program = |fs, random| {
        let told = &told;
        Program { fs, told, random }.run()
    };
    tokio::join!(program(&one, first), program(&other, second));
    for _ in 0..DRAINS {
        for fs in [&one, &other] {
            // A conflict has its own way to be told.
            let _ = fs.drain(std::time::Duration::from_secs(20)).await;
        }
    }
    let objects = objects(&one).await;
    for fs in [&one, &other] {
        assert_eq!(fs.status().pending, []);
        fs.let_ttl_pass();
        assert!(
            fs.ls("").await.iter().eq(objects.keys()),
            "another host's names"
        );
        for (key, bytes) in &objects {
            assert!(
                fs.read(key).await.unwrap() == *bytes,
                "{key} is read otherwise"
            );
        }
    }
    told.lock().check(&objects);
    objects.len() - FILES.len()
}

#[expect(clippy::print_stdout, reason = "shown when the test fails")]
fn said(seed: u64) {
    println!("seed {seed}");
}

#[tokio::test]
async fn what_two_hosts_do_to_the_same_files_is_lost_nowhere_in_memory() {
    let mut beside = 0;
    for seed in 1..=50 {
        beside += lose_nothing(Bucket::memory(), seed).await;
    }
    assert!(beside > 0, "they were never in each other's way");
}

#[tokio::test]
async fn what_two_hosts_do_to_the_same_files_is_lost_nowhere_on_s3() {
    let mut beside = 0;
    for seed in 1..=8 {
        let server = crate::common::s3_server::S3Server::start().await;
        beside += lose_nothing(server.bucket("p"), seed).await;
    }
    assert!(beside > 0, "they were never in each other's way");
}
