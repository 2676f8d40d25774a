//! A program that goes on through the ends of one process after the other, in an order that a seed decides: it writes
//! files, renames one over another, removes them, and never finds anything but its own.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bucketvol::clock::Clock;
use bucketvol::config::options::WriteOptions;
use bucketvol::fs::FsError;
use bucketvol::store::{MemoryStore, Store};
use parking_lot::Mutex;

use super::together::Random;
use crate::common::simulated_store::{Life, RuntimeClock};
use crate::common::test_fs::{NOBODY_GIVES_UP, OpenFile, TestFs};

/// Processes that die under the program, in one run.
const LIVES: u64 = 12;
/// None lives longer than so many of the points at which it may die.
const LONGEST: u64 = 60;
/// Runs, when nobody asks for more by `BUCKETVOL_SEEDS`.
const SEEDS: u64 = 6;

/// The program. What is its own is what it has open: the kernel keeps that through the end of a process.
struct Dweller {
    random: Mutex<Random>,
    open: Mutex<Vec<OpenFile>>,
}

impl Dweller {
    async fn pause(&self) {
        let pause = self.random.lock().below(400);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    /// Goes on for as long as the process lives.
    async fn dwell(&self, fs: &TestFs, life: &Life) {
        self.close_all(fs).await;
        for number in 0_u64.. {
            for name in ["home/old", "home/new"] {
                self.write(fs, name, number).await;
                life.point().await;
                self.pause().await;
            }
            fs.rename("home/new", "home/old").await.unwrap();
            life.point().await;
            self.pause().await;
            self.read(fs, "home/old", &text("home/new", number)).await;
            self.pause().await;
            fs.unlink("home/old").await.unwrap();
            life.point().await;
            self.pause().await;
            assert_eq!(fs.ls("home").await, ["here"]);
        }
    }

    /// What a process before has not closed any more.
    async fn close_all(&self, fs: &TestFs) {
        let open = std::mem::take(&mut *self.open.lock());
        for file in open {
            fs.still_open(&file).close().await.unwrap();
        }
    }

    /// As `echo >name` does.
    async fn write(&self, fs: &TestFs, name: &str, number: u64) {
        let opened = match fs.open_truncated(name).await {
            Err(FsError::NoEntry) => fs.create(name).await,
            opened => opened,
        };
        let file = opened.unwrap();
        self.open.lock().push(fs.still_open(&file));
        file.write_at(0, text(name, number)).unwrap();
        self.open.lock().clear();
        file.close().await.unwrap();
    }

    /// As `cat` does.
    async fn read(&self, fs: &TestFs, name: &str, expected: &[u8]) {
        let file = fs.open(name).await.unwrap();
        self.open.lock().push(fs.still_open(&file));
        assert_eq!(file.read_all().await.unwrap(), expected);
        self.open.lock().clear();
        file.close().await.unwrap();
    }
}

fn text(name: &str, number: u64) -> Vec<u8> {
    format!("{name} {number}").into_bytes()
}

async fn simulate(seed: u64) {
    let time: Arc<dyn Clock> = RuntimeClock::shared();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Arc::clone(&time)));
    let mut life = Life::new(seed);
    let write = WriteOptions::default();
    let mut fs = TestFs::simulated(life.connect(&store), write, time).await;
    fs.mkdir("home").await.unwrap();
    fs.write("home/here", b"yes").await.unwrap();
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let dweller = Dweller {
        random: Mutex::new(Random(random.0 ^ 77)),
        open: Mutex::default(),
    };
    for number in 1..=LIVES {
        life.begin(Some(1 + random.below(LONGEST)));
        tokio::select! {
            () = dweller.dwell(&fs, &life) => unreachable!("it dwells on"),
            () = life.died() => {}
        }
        life = Life::new(seed * 1000 + number);
        fs.bucket = life.connect(&store);
        fs = fs.after_kill().await;
        let mut names = fs.ls("home").await;
        names.retain(|name| !["here", "old", "new"].contains(&name.as_str()));
        assert_eq!(names, [""; 0], "after {number} deaths");
    }
    dweller.close_all(&fs).await;
    for name in ["home/old", "home/new"] {
        match fs.unlink(name).await {
            Err(FsError::NoEntry) => {}
            done => done.unwrap(),
        }
    }
    fs.drain(NOBODY_GIVES_UP).await.unwrap();
    assert_eq!(fs.ls("home").await, ["here"]);
    assert_eq!(fs.keys().await, ["home/", "home/here"]);
}

#[test]
fn what_a_program_writes_renames_and_removes_through_many_deaths_is_its_own() {
    let asked = std::env::var("BUCKETVOL_SEEDS");
    let seeds = asked
        .ok()
        .and_then(|seeds| seeds.parse().ok())
        .unwrap_or(SEEDS);
    for seed in 1..=seeds {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let run = AssertUnwindSafe(|| runtime.block_on(simulate(seed)));
        std::panic::catch_unwind(run).unwrap_or_else(|_| panic!("again: seed {seed}"));
    }
}
