//! Many programs at once on one volume: whatever they get in each other's way, in the end the bucket is what
//! this host sees, and so does another one.

use std::sync::Arc;
use std::time::Duration;

use bucketvol::config::options::{Conflicts, WriteOptions};
use bucketvol::fs::{FsError, RenameMode};
use bucketvol::store::Bucket;

use crate::common::test_fs::{TestFs, pattern};

const PROGRAMS: u64 = 12;
const STEPS: u64 = 150;
const PATHS: [&str; 9] = ["a", "b", "c", "d/a", "d/b", "e/a", "e/b", "d/s/a", "e/s/a"];
const DIRECTORIES: [&str; 5] = ["d", "e", "d/s", "e/s", "f"];

/// Numbers that are the same in every run of one seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn path(&mut self) -> &'static str {
        self.of(&PATHS)
    }

    fn of(&mut self, choice: &[&'static str]) -> &'static str {
        choice[usize::try_from(self.below(choice.len() as u64)).unwrap()]
    }
}

/// What programs that share names do to each other: nothing else may go wrong.
pub(super) fn may_happen(error: &FsError) -> bool {
    matches!(
        error,
        FsError::NoEntry
            | FsError::Exists
            | FsError::Stale
            | FsError::IsDirectory
            | FsError::NotDirectory
            | FsError::NotEmpty
            | FsError::NotPermitted(_)
            | FsError::Invalid("a directory cannot be moved into itself")
    )
}

async fn step(fs: &TestFs, random: &mut Random) -> Result<(), FsError> {
    match random.below(14) {
        0..=3 => {
            let len = usize::try_from(random.below(200_000)).unwrap();
            fs.write(random.path(), pattern(len)).await
        }
        4 | 5 => {
            let file = fs.open(random.path()).await?;
            let written = file.write_at(random.below(100_000), b"changed");
            let synced = match written {
                Ok(()) => file.fsync().await,
                stale => stale,
            };
            file.close().await.and(synced)
        }
        6 => fs.unlink(random.path()).await,
        7 => fs.rename(random.path(), random.path()).await,
        8 => {
            let bytes = fs.read(random.path()).await?;
            assert!(bytes.len() <= 200_000);
            Ok(())
        }
        9 => {
            let exchange = RenameMode::Exchange;
            let (from, to) = match random.below(3) {
                0 => (random.path(), random.path()),
                _ => (random.of(&DIRECTORIES), random.of(&DIRECTORIES)),
            };
            fs.rename_as(from, to, exchange).await
        }
        10 => fs.rmdir(random.of(&DIRECTORIES)).await,
        11 => fs.link(random.path(), random.path()).await.map(drop),
        _ => {
            let (from, to) = (random.of(&DIRECTORIES), random.of(&DIRECTORIES));
            match fs.rename(from, to).await {
                Err(FsError::NotEmpty | FsError::NoEntry) => fs.mkdir(from).await.map(drop),
                done => done,
            }
        }
    }
}

async fn all_files(fs: &TestFs) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut pending = vec![String::new()];
    while let Some(directory) = pending.pop() {
        for name in fs.ls(&directory).await {
            let path = format!("{directory}{name}");
            if path.ends_with('/') {
                pending.push(path);
            } else {
                let bytes = fs.read(&path).await.unwrap();
                files.push((path, bytes));
            }
        }
    }
    files
}

async fn leave_the_bucket_equal_to_what_they_see(bucket: Arc<Bucket>) {
    // What nobody waits for sets out at once. Nobody else is at the bucket: every conflict is one with ourselves.
    let write = WriteOptions {
        upload_delay: Duration::ZERO,
        conflicts: Conflicts::Fail,
        ..WriteOptions::default()
    };
    let fs = Arc::new(TestFs::with(bucket, write).await);
    for directory in ["d", "e"] {
        fs.mkdir(directory).await.unwrap();
    }
    let programs = (1..=PROGRAMS).map(|seed| {
        let fs = Arc::clone(&fs);
        tokio::spawn(async move {
            let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            for _ in 0..STEPS {
                if random.below(8) == 0 {
                    fs.let_ttl_pass();
                }
                if let Err(error) = step(&fs, &mut random).await {
                    assert!(may_happen(&error), "seed {seed}: {error}");
                }
            }
        })
    });
    let all = futures_util::future::join_all(programs);
    let ended = tokio::time::timeout(Duration::from_secs(60), all)
        .await
        .expect("nobody waits for ever");
    for program in ended {
        program.unwrap();
    }
    fs.drain(Duration::from_secs(20)).await.unwrap();
    assert_eq!(fs.status().dirty_files, 0);
    fs.let_ttl_pass();
    assert!(all_files(&fs).await == all_files(&fs.other_host().await).await);
    assert!(
        fs.keys()
            .await
            .iter()
            .all(|key| !key.starts_with(".bucketvol/"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_in_each_others_way_leave_the_bucket_equal_to_what_they_see_in_memory() {
    leave_the_bucket_equal_to_what_they_see(Arc::new(Bucket::memory())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_in_each_others_way_leave_the_bucket_equal_to_what_they_see_on_s3() {
    let server = crate::common::s3_server::S3Server::start().await;
    leave_the_bucket_equal_to_what_they_see(Arc::new(server.bucket("p"))).await;
}
