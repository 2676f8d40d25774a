//! Stores that refuse, fail, are slow or lose answers while nobody waits for them: when they are well again, what
//! was changed is in the bucket with nobody's help. Nothing is lost, and nothing is there twice.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bucketvol::fs::{Pending, SetAttr};

use crate::common::fault_store::{Faults, Outage, faulty_bucket};
use crate::common::test_fs::{PART, TestFs, pattern};

/// Longer than any operation asks a store again.
const GIVEN_UP: u32 = 90;

/// What files are made of.
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| pattern(PART + 7));

/// What a daemon finds that starts after another was killed.
#[derive(Debug, Clone, Copy)]
enum Crash {
    WithRoom,
    WithoutRoom,
}

const CRASHES: [Option<Crash>; 3] = [None, Some(Crash::WithRoom), Some(Crash::WithoutRoom)];

/// A volume, what its files are, and what can be done to its store.
struct Volume {
    fs: TestFs,
    faults: Arc<Faults>,
    files: BTreeMap<&'static str, Vec<u8>>,
    modes: BTreeMap<&'static str, u32>,
}

impl Volume {
    /// Files that are in the bucket.
    async fn new() -> Self {
        let (bucket, faults) = faulty_bucket();
        let fs = TestFs::tuned(bucket, |_| {}).await;
        let mut files = BTreeMap::new();
        for (name, len) in [
            ("changed", 300_000),
            ("mode", 10),
            ("gone", 20),
            ("from", 30),
            ("over", 40),
            ("under", 50),
            ("left", 60),
            ("right", 70),
            ("large", PART + 5),
        ] {
            files.insert(name, BYTES[..len].to_vec());
            fs.put_object(name, &files[name]).await;
        }
        Self {
            fs,
            faults,
            files,
            modes: BTreeMap::new(),
        }
    }

    /// A change of each kind. No time passes: all of them wait.
    async fn change(&mut self) {
        let fs = &self.fs;
        for (name, len) in [("new", 5), ("new large", PART + 7)] {
            self.files.insert(name, BYTES[..len].to_vec());
            fs.write(name, &self.files[name]).await.unwrap();
        }
        for (name, at) in [("changed", 100_000), ("large", 5)] {
            let file = fs.open(name).await.unwrap();
            file.write_at(at, b"here").unwrap();
            file.close().await.unwrap();
            let at = usize::try_from(at).unwrap();
            self.files.get_mut(name).unwrap()[at..at + 4].copy_from_slice(b"here");
        }
        let mode = SetAttr {
            mode: Some(0o600),
            ..SetAttr::default()
        };
        fs.setattr("mode", mode).await.unwrap();
        self.modes.insert("mode", 0o600);
        fs.unlink("gone").await.unwrap();
        self.files.remove("gone");
        for (from, to) in [
            ("from", "to"),
            ("under", "over"),
            ("left", "middle"),
            ("right", "left"),
            ("middle", "right"),
        ] {
            fs.rename(from, to).await.unwrap();
            let bytes = self.files.remove(from).unwrap();
            self.files.insert(to, bytes);
        }
    }

    /// Further changes of what was changed. No time passes here either.
    async fn change_again(&mut self) {
        let fs = &self.fs;
        for gone in ["new", "over", "mode"] {
            fs.unlink(gone).await.unwrap();
            self.files.remove(gone);
            self.modes.remove(gone);
        }
        for (from, to) in [("new large", "from"), ("to", "changed"), ("left", "mode")] {
            fs.rename(from, to).await.unwrap();
            let bytes = self.files.remove(from).unwrap();
            self.files.insert(to, bytes);
        }
        fs.write("right", b"anew").await.unwrap();
        self.files.insert("right", b"anew".to_vec());
        fs.write("new", b"another").await.unwrap();
        self.files.insert("new", b"another".to_vec());
    }

    /// The daemon is killed, and started again: with room on its disk for another journal, or without.
    async fn crash(self, crash: Crash) -> Self {
        let fs = match crash {
            Crash::WithRoom => self.fs.after_crash().await,
            Crash::WithoutRoom => self.fs.after_crash_without_room().await,
        };
        Self { fs, ..self }
    }

    /// The store is well again: after a while all is in the bucket, once, and nothing is left to do.
    async fn ends_well(self) {
        self.faults.end();
        self.fs.settled().await;
        let keys: Vec<&str> = self.files.keys().copied().collect();
        assert_eq!(self.fs.keys().await, keys);
        let other = self.fs.other_host().await;
        for (name, bytes) in &self.files {
            assert!(self.fs.read(name).await.unwrap() == *bytes, "{name}");
            assert!(
                other.read(name).await.unwrap() == *bytes,
                "{name} in the bucket"
            );
        }
        for (name, mode) in &self.modes {
            assert_eq!(other.attr(name).await.unwrap().mode, *mode, "{name}");
        }
        let next = self.fs.after_crash().await;
        assert_eq!(next.status().pending, [], "what is done is not done again");
        next.settled().await;
        assert_eq!(next.keys().await, keys);
    }
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_all_is_in_the_bucket_with_nobodys_help() {
    for outage in [Outage::Denied, Outage::Away] {
        let mut volume = Volume::new().await;
        volume.change().await;
        let keys = volume.fs.keys().await;
        volume.faults.out(outage);
        volume.fs.pass(60).await;
        let status = volume.fs.status();
        assert!(status.last_error.is_some());
        let is_shown = |pending: &&Pending| !pending.key.starts_with(".bucketvol/");
        let pending = status.pending.iter().filter(is_shown);
        assert_eq!(pending.count(), 10, "{:?}", status.pending);
        volume.faults.end();
        assert_eq!(volume.fs.keys().await, keys);
        volume.ends_well().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_that_begins_between_any_two_requests_loses_and_doubles_nothing() {
    for before in 0..40 {
        said(format_args!("denied after {before} writes"));
        let mut volume = Volume::new().await;
        volume.change().await;
        volume.faults.deny_writes_after(before, u32::MAX);
        volume.fs.pass(60).await;
        let was_hit = volume.fs.has_pending();
        volume.ends_well().await;
        if !was_hit {
            return;
        }
    }
    panic!("there are more requests than this looks at");
}

#[tokio::test(start_paused = true)]
async fn a_slow_store_takes_all_of_it_and_one_too_slow_takes_it_later() {
    for seconds in [3, 30] {
        let mut volume = Volume::new().await;
        volume.change().await;
        volume.faults.delay(Duration::from_secs(seconds));
        if seconds < 10 {
            volume.fs.settled().await;
        } else {
            volume.fs.pass(200).await;
        }
        volume.ends_well().await;
    }
}

#[tokio::test(start_paused = true)]
async fn bodies_that_end_early_do_not_get_into_what_is_uploaded() {
    for cut in [1, 2, 3, 7, 1000] {
        let mut volume = Volume::new().await;
        volume.faults.cut_bodies(cut);
        volume.change().await;
        volume.fs.pass(60).await;
        volume.ends_well().await;
    }
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_lost_while_the_store_is_there_are_found_out() {
    for lost in [1, 2, 3, 10] {
        let mut volume = Volume::new().await;
        volume.change().await;
        volume.faults.lose_answers(lost);
        volume.ends_well().await;
    }
}

/// A store that does the `n`-th write, loses the answer and is away until we give up, once or twice in a row,
/// with or without a crash in between.
async fn lose_an_answer(n: u32, again: Option<u32>, crash: Option<Crash>) -> bool {
    said(format_args!("write {n}, then {again:?}, {crash:?}"));
    let mut volume = Volume::new().await;
    volume.change().await;
    volume.faults.lose_an_answer_and_go(n);
    volume.fs.pass(GIVEN_UP).await;
    let was_hit = volume.faults.has_gone();
    if let Some(again) = again {
        volume.faults.end();
        volume.faults.lose_an_answer_and_go(again);
        if let Some(crash) = crash {
            volume = volume.crash(crash).await;
        }
        volume.fs.pass(GIVEN_UP).await;
    }
    if let Some(crash) = crash {
        volume.faults.end();
        volume = volume.crash(crash).await;
    }
    volume.ends_well().await;
    was_hit
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_and_an_outage_make_no_conflict_with_ourselves() {
    for crash in CRASHES {
        for n in 0..40 {
            if !lose_an_answer(n, None, crash).await {
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn answers_lost_twice_in_a_row_make_no_conflict_with_ourselves() {
    for crash in [None, Some(Crash::WithoutRoom)] {
        for n in 0..40 {
            for again in 0..2 {
                if !lose_an_answer(n, Some(again), crash).await {
                    break;
                }
            }
        }
    }
}

/// An upload that was done though nobody knows is no obstacle to what is done to the file next, nor does its object
/// come back under a name that was given up.
#[tokio::test(start_paused = true)]
async fn what_is_changed_after_a_lost_answer_ends_as_it_was_changed_last() {
    for n in 0..40 {
        said(format_args!("write {n}"));
        let mut volume = Volume::new().await;
        volume.change().await;
        volume.faults.lose_an_answer_and_go(n);
        volume.fs.pass(GIVEN_UP).await;
        let was_hit = volume.faults.has_gone();
        volume.faults.end();
        volume.change_again().await;
        volume.ends_well().await;
        if !was_hit {
            return;
        }
    }
    panic!("there are more writes than this looks at");
}

#[expect(clippy::print_stdout, reason = "shown when the test fails")]
fn said(what: std::fmt::Arguments<'_>) {
    println!("{what}");
}

/// The process that has sent it is gone, and the next one has not sent anything yet.
#[tokio::test(start_paused = true)]
async fn a_file_whose_upload_was_done_without_an_answer_can_be_read_after_a_crash() {
    for crashes in [&[Crash::WithRoom][..], &[Crash::WithoutRoom; 2]] {
        let mut volume = Volume::new().await;
        volume.change().await;
        let file = volume.fs.open("changed").await.unwrap();
        volume.faults.lose_an_answer_and_go(0);
        assert!(file.fsync().await.is_err());
        volume.fs.pass(GIVEN_UP).await;
        volume.faults.end();
        volume.faults.deny_writes(u32::MAX);
        for crash in crashes {
            volume = volume.crash(*crash).await;
        }
        assert!(volume.fs.read("changed").await.unwrap() == volume.files["changed"]);
        volume.ends_well().await;
    }
}

/// Nothing of the file is cached here, and the store is there again, but takes nothing yet.
#[tokio::test(start_paused = true)]
async fn a_file_whose_upload_was_done_without_an_answer_can_be_read() {
    let mut volume = Volume::new().await;
    volume.change().await;
    let file = volume.fs.open("mode").await.unwrap();
    volume.faults.lose_an_answer_and_go(0);
    assert!(file.fsync().await.is_err());
    volume.fs.pass(GIVEN_UP).await;
    volume.faults.end();
    volume.faults.deny_writes(u32::MAX);
    assert!(file.read_at(0, 100).await.unwrap() == volume.files["mode"]);
    volume.ends_well().await;
}
