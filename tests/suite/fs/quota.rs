use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bucketvol::config::options::WriteOptions;
use bucketvol::fs::{Allocation, FsError, SetAttr, Space};
use bucketvol::store::Bucket;

use super::together::Random;
use crate::common::fault_store::{Outage, faulty_bucket};
use crate::common::test_fs::{OpenFile, TestFs, pattern};

const SIZE: u64 = 10_000;

/// Somebody who asks for longer than this after a count is told of what other hosts have done.
const RECOUNT_AFTER: Duration = Duration::from_secs(5 * 60);

/// A volume of [`SIZE`] that has counted what there is.
async fn small_volume(bucket: Arc<Bucket>) -> TestFs {
    let fs = TestFs::tuned(bucket, |settings| settings.size = Some(SIZE)).await;
    counted(&fs).await;
    fs
}

async fn counted(fs: &TestFs) {
    fs.eventually(async || fs.space().is_counted).await;
}

/// Bytes and files that are used.
fn used(fs: &TestFs) -> (u64, u64) {
    let space = fs.space();
    (space.used_bytes, space.used_files)
}

fn over<T: std::fmt::Debug>(done: Result<T, FsError>) {
    assert!(matches!(done, Err(FsError::OverQuota(SIZE))), "{done:?}");
}

async fn truncate(fs: &TestFs, path: &str, size: u64) -> Result<(), FsError> {
    let change = SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    fs.setattr(path, change).await.map(|_| ())
}

#[tokio::test]
async fn what_would_exceed_the_size_is_refused_and_nothing_of_it_is_done() {
    const ZEROS: Allocation = Allocation {
        zero: true,
        keep_size: false,
    };
    const ROOM_BEYOND_THE_END: Allocation = Allocation {
        zero: false,
        keep_size: true,
    };
    let bucket = Arc::new(Bucket::memory());
    let fs = small_volume(Arc::clone(&bucket)).await;
    fs.put_object("there", &pattern(4_000)).await;
    let fs = {
        fs.close();
        small_volume(bucket).await
    };
    assert_eq!(used(&fs), (4_000, 1));
    let there = fs.open("there").await.unwrap();
    let file = fs.create("new").await.unwrap();
    file.write_at(0, pattern(6_000)).unwrap();
    assert_eq!(used(&fs), (SIZE, 2));

    over(file.write_at(5_999, b"of two bytes one would fit"));
    over(file.write_at(1 << 40, b"far away"));
    over(there.allocate(3_000, 1_001, ZEROS));
    over(truncate(&fs, "new", 6_001).await);
    over(there.copy_to(0, &file, 6_000, 10).await);
    over(fs.symlink("link", "target").await);
    assert!(file.read_all().await.unwrap() == pattern(6_000));
    assert!(there.read_all().await.unwrap() == pattern(4_000));
    assert_eq!(used(&fs), (SIZE, 2));

    file.write_at(5_000, [1; 1_000]).unwrap();
    there.allocate(0, SIZE, ROOM_BEYOND_THE_END).unwrap();
    fs.create("empty").await.unwrap().close().await.unwrap();
    fs.mkdir("directory").await.unwrap();
    assert_eq!(used(&fs), (SIZE, 3));
    fs.drained().await;
    assert_eq!(fs.keys().await, ["directory/", "empty", "new", "there"]);
    assert_eq!(used(&fs), (SIZE, 3));
}

on_each_store! {
    async fn what_is_cut_off_removed_or_replaced_can_be_used_again(fs: TestFs) {
        for name in ["cut", "emptied", "removed", "replaced", "stays"] {
            fs.put_object(name, &pattern(2_000)).await;
        }
        let fs = small_volume(Arc::clone(&fs.bucket)).await;
        assert_eq!(used(&fs), (SIZE, 5));
        truncate(&fs, "cut", 500).await.unwrap();
        assert_eq!(used(&fs), (8_500, 5));
        fs.open_truncated("emptied").await.unwrap().close().await.unwrap();
        assert_eq!(used(&fs), (6_500, 5));
        fs.unlink("removed").await.unwrap();
        assert_eq!(used(&fs), (4_500, 4));
        fs.rename("cut", "replaced").await.unwrap();
        assert_eq!(used(&fs), (2_500, 3));
        fs.rename("stays", "elsewhere").await.unwrap();
        assert_eq!(used(&fs), (2_500, 3));
        let file = fs.create("large").await.unwrap();
        over(file.write_at(0, pattern(7_501)));
        file.write_at(0, pattern(7_500)).unwrap();
        assert_eq!(used(&fs), (SIZE, 4));
        file.close().await.unwrap();
        fs.drained().await;
        assert_eq!(used(&fs), (SIZE, 4));
        let fs = fs.remounted().await;
        counted(&fs).await;
        assert_eq!(used(&fs), (SIZE, 4));
    }
}

#[tokio::test]
async fn a_file_that_lost_its_name_counts_nothing_though_it_is_open() {
    let fs = small_volume(Arc::new(Bucket::memory())).await;
    let file = fs.create("a").await.unwrap();
    file.write_at(0, pattern(10_000)).unwrap();
    fs.unlink("a").await.unwrap();
    assert_eq!(used(&fs), (0, 0));
    file.write_at(10_000, pattern(10_000)).unwrap();
    assert_eq!(used(&fs), (0, 0));
    fs.write("b", pattern(10_000)).await.unwrap();
    file.close().await.unwrap();
    fs.drained().await;
    assert_eq!(used(&fs), (SIZE, 1));
}

#[tokio::test]
async fn what_another_host_does_is_seen_when_somebody_asks_after_a_while() {
    let fs = small_volume(Arc::new(Bucket::memory())).await;
    fs.write("mine", pattern(1_000)).await.unwrap();
    fs.drained().await;
    let other = fs.other_host().await;
    other.write("theirs", pattern(9_000)).await.unwrap();
    fs.want_count();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(used(&fs), (1_000, 1), "it was counted just now");
    fs.clock.advance(RECOUNT_AFTER);
    fs.want_count();
    fs.eventually(async || used(&fs) == (SIZE, 2)).await;
    let file = fs.open("mine").await.unwrap();
    over(file.write_at(1_000, b"more"));

    other.unlink("theirs").await.unwrap();
    other.drained().await;
    fs.clock.advance(RECOUNT_AFTER);
    // Whoever is refused asks too.
    over(file.write_at(1_000, b"more"));
    fs.eventually(async || file.write_at(1_000, b"more").is_ok())
        .await;
    assert_eq!(used(&fs), (1_004, 1));
}

#[tokio::test]
async fn a_volume_that_nobody_asks_about_is_not_counted() {
    let bucket = Arc::new(Bucket::memory());
    let idle = TestFs::on(Arc::clone(&bucket)).await;
    idle.put_object("a", b"bytes").await;
    let rest = || tokio::time::sleep(Duration::from_millis(50));
    assert_eq!(idle.requests_of(rest()).await.1, 0);
    assert_eq!(idle.space(), Space::default());
    let asked = async {
        idle.want_count();
        idle.want_count();
        rest().await;
        idle.want_count();
        rest().await;
    };
    assert_eq!(idle.requests_of(asked).await.1, 1);
    assert_eq!(used(&idle), (5, 1));

    let limited = small_volume(bucket).await;
    let later = async {
        limited.clock.advance(RECOUNT_AFTER * 100);
        rest().await;
    };
    assert_eq!(limited.requests_of(later).await.1, 0);
}

#[tokio::test]
async fn nobody_waits_for_a_count_and_one_that_fails_is_made_up_for() {
    let (bucket, faults) = faulty_bucket();
    let seeding = TestFs::on(Arc::clone(&bucket)).await;
    seeding.put_object("there", &pattern(9_000)).await;
    let under_way = Duration::from_millis(400);
    faults.delay(under_way);
    let fs = TestFs::tuned(bucket, |settings| settings.size = Some(SIZE)).await;
    tokio::task::yield_now().await;
    faults.delay(Duration::ZERO);
    let file = fs.create("a").await.unwrap();
    // Of what is known there is room.
    file.write_at(0, pattern(5_000)).unwrap();
    assert_eq!(used(&fs), (5_000, 1));
    over(file.write_at(0, pattern(10_001)));
    assert!(!fs.space().is_counted, "it is under way");
    faults.out(Outage::Denied);
    tokio::time::sleep(under_way).await;
    assert_eq!(used(&fs), (5_000, 1));
    assert!(!fs.space().is_counted, "it has failed");
    faults.end();
    fs.clock.advance(Duration::from_secs(30));
    file.write_at(0, pattern(5_001)).unwrap();
    counted(&fs).await;
    assert_eq!(used(&fs), (14_001, 2));
    over(file.write_at(5_001, b"more"));
    file.write_at(0, b"in place").unwrap();
    truncate(&fs, "a", 999).await.unwrap();
    assert_eq!(used(&fs), (9_999, 2));
}

#[tokio::test]
async fn the_next_process_counts_what_is_here_and_what_is_there() {
    let bucket = Arc::new(Bucket::memory());
    let fs = small_volume(Arc::clone(&bucket)).await;
    for name in ["cut", "moved", "removed", "still"] {
        fs.write(name, pattern(1_000)).await.unwrap();
    }
    fs.drained().await;
    truncate(&fs, "cut", 10).await.unwrap();
    fs.rename("moved", "here").await.unwrap();
    let removed = fs.open("removed").await.unwrap();
    fs.unlink("removed").await.unwrap();
    let new = fs.create("new").await.unwrap();
    new.write_at(0, pattern(500)).unwrap();
    let expected = (10 + 1_000 + 1_000 + 500, 4);
    assert_eq!(used(&fs), expected);
    let fs = fs.after_kill().await;
    counted(&fs).await;
    assert_eq!(used(&fs), expected);
    let new = fs.still_open(&new);
    over(new.write_at(500, pattern(8_000)));
    new.write_at(500, pattern(7_490)).unwrap();
    fs.still_open(&removed).close().await.unwrap();
    let fs = fs.after_crash().await;
    counted(&fs).await;
    assert_eq!(used(&fs), (SIZE, 4));
    fs.drained().await;
    assert_eq!(used(&fs), (SIZE, 4));
    assert_eq!(in_bucket(&fs).await, (SIZE, 4));
}

async fn in_bucket(fs: &TestFs) -> (u64, u64) {
    let mut sum = (0, 0);
    for key in fs.keys().await {
        if !key.ends_with('/') && !key.starts_with(".bucketvol/") {
            sum.0 += fs.object(&key).await.unwrap().len() as u64;
            sum.1 += 1;
        }
    }
    sum
}

/// Objects in more pages of a listing than one.
const OBJECTS: u64 = 2_500;

fn name(number: u64) -> String {
    format!("{number:04}")
}

/// Bytes of an object.
fn bytes_of(number: u64) -> u64 {
    number % 40
}

/// A volume of so many objects, all names known here, on a store that takes its time to list them; and what there
/// is.
async fn large_volume() -> (TestFs, BTreeMap<String, u64>) {
    let (bucket, faults) = faulty_bucket();
    let fs = TestFs::with(bucket, WriteOptions::default()).await;
    let mut model = BTreeMap::new();
    for number in 0..OBJECTS {
        let bytes = bytes_of(number);
        let body = pattern(usize::try_from(bytes).unwrap());
        fs.put_object(&name(number), &body).await;
        model.insert(name(number), bytes);
    }
    fs.entries("").await.unwrap();
    faults.delay_lists(Duration::from_millis(40));
    (fs, model)
}

/// A program that does what comes into its mind.
struct Program {
    random: Random,
    fs: TestFs,
    model: BTreeMap<String, u64>,
    open: Vec<OpenFile>,
}

impl Program {
    /// Few names, so that what was done is met again.
    fn name(&mut self) -> String {
        let number = self.random.below(60);
        name(number * (OBJECTS + 100) / 60)
    }

    async fn step(&mut self) {
        let path = self.name();
        let before = self.model.get(&path).copied();
        match (self.random.below(6), before) {
            (0, Some(_)) => {
                if self.random.below(2) == 0 {
                    self.open.push(self.fs.open(&path).await.unwrap());
                }
                self.fs.unlink(&path).await.unwrap();
                self.model.remove(&path);
            }
            (1 | 2, Some(bytes)) => {
                let to = self.name();
                if to == path {
                    return;
                }
                self.fs.rename(&path, &to).await.unwrap();
                self.model.remove(&path);
                self.model.insert(to, bytes);
            }
            (3, Some(_)) => {
                let size = self.random.below(50);
                truncate(&self.fs, &path, size).await.unwrap();
                self.model.insert(path, size);
            }
            (4, Some(bytes)) => {
                let file = self.fs.open(&path).await.unwrap();
                file.write_at(bytes, b"more").unwrap();
                file.close().await.unwrap();
                self.model.insert(path, bytes + 4);
            }
            (5, _) => {
                let fs = Arc::clone(&self.fs);
                tokio::spawn(async move { fs.drain(Duration::from_secs(20)).await });
            }
            (_, None) => {
                self.fs.write(&path, b"new").await.unwrap();
                self.model.insert(path, 3);
            }
            _ => {}
        }
        if self.random.below(3) == 0 {
            let wait = Duration::from_millis(self.random.below(4));
            tokio::time::sleep(wait).await;
        }
    }

    fn check(&self, when: &str) {
        let bytes = self.model.values().sum();
        let files = self.model.len() as u64;
        assert_eq!(used(&self.fs), (bytes, files), "{when}");
    }
}

/// Each is an object.
#[tokio::test]
async fn each_name_of_a_file_counts() {
    let fs = small_volume(Arc::new(Bucket::memory())).await;
    fs.write("a", pattern(4_000)).await.unwrap();
    let ino = fs.link("a", "b").await.unwrap();
    assert_eq!(used(&fs), (8_000, 2));
    over(fs.link("a", "c").await);
    assert_eq!(
        (fs.ls("").await, fs.nlink(ino)),
        (vec!["a".into(), "b".into()], 2)
    );
    fs.unlink("b").await.unwrap();
    assert_eq!(used(&fs), (4_000, 1));
    fs.drained().await;
    fs.link("a", "b").await.unwrap();
    truncate(&fs, "a", 5_000).await.unwrap();
    fs.drained().await;
    assert_eq!(used(&fs), (SIZE, 2));
    fs.unlink("a").await.unwrap();
    assert_eq!(used(&fs), (5_000, 1));
    fs.write("c", pattern(1_000)).await.unwrap();
    fs.rename("c", "b").await.unwrap();
    assert_eq!(used(&fs), (1_000, 1));
    let fs = fs.remounted().await;
    counted(&fs).await;
    assert_eq!(used(&fs), (1_000, 1));
}

#[tokio::test]
async fn a_count_is_exact_though_files_are_changed_and_uploaded_meanwhile() {
    for seed in 1..=12_u64 {
        let (fs, model) = large_volume().await;
        let mut program = Program {
            random: Random(seed * 0x9e37_79b9),
            fs,
            model,
            open: Vec::new(),
        };
        for _ in 0..30 {
            program.step().await;
        }
        program.fs.want_count();
        let mut steps = 0;
        while !program.fs.space().is_counted {
            program.step().await;
            steps += 1;
        }
        assert!(steps > 2, "it was not meanwhile");
        program.check(&format!("seed {seed}, {steps} steps"));
        for _ in 0..30 {
            program.step().await;
            program.check(&format!("seed {seed}, later"));
        }
        program.open.clear();
        program.fs.drained().await;
        program.check(&format!("seed {seed}, drained"));
        program.fs.close();
    }
}

#[tokio::test]
async fn a_count_that_a_renamed_directory_comes_in_the_way_of_is_made_again() {
    let (bucket, faults) = faulty_bucket();
    let fs = TestFs::with(bucket, WriteOptions::default()).await;
    for number in 0..OBJECTS {
        fs.put_object(&format!("m/{}", name(number)), b"bytes")
            .await;
    }
    let expected = (OBJECTS * 5, OBJECTS);
    faults.delay(Duration::from_millis(5));
    fs.want_count();
    tokio::time::sleep(Duration::from_millis(12)).await;
    assert!(!fs.space().is_counted);
    // Before what was listed, and behind it.
    for to in ["a", "z"] {
        fs.rename("m", to).await.unwrap();
        fs.drained().await;
        fs.rename(to, "m").await.unwrap();
        fs.drained().await;
    }
    faults.end();
    fs.clock.advance(Duration::from_secs(30));
    fs.want_count();
    fs.eventually(async || used(&fs) == expected).await;
    fs.clock.advance(RECOUNT_AFTER);
    fs.want_count();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(used(&fs), expected);
}

#[tokio::test]
async fn after_a_change_is_given_up_the_files_are_counted_again() {
    let (bucket, faults) = faulty_bucket();
    let fs = small_volume(bucket).await;
    fs.write("a", pattern(1_000)).await.unwrap();
    fs.drained().await;
    fs.write("a", pattern(3_000)).await.unwrap();
    faults.deny_writes(1_000);
    assert!(fs.drain(Duration::from_secs(1)).await.is_err());
    assert_eq!(used(&fs), (3_000, 1));
    let key = bucketvol::store::Key::new("a");
    fs.discard(&key).await.unwrap();
    fs.clock.advance(Duration::from_secs(30));
    fs.want_count();
    fs.eventually(async || used(&fs) == (1_000, 1)).await;
}
