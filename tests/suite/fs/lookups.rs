//! What lookups cost that come one after the other in a directory.

use std::time::Duration;

use bucketvol::fs::FsError;
use tokio::time::Instant;

use crate::common::fault_store::faulty_bucket;
use crate::common::test_fs::TestFs;

const FILES: u64 = 300;
const ROUND_TRIP: Duration = Duration::from_millis(15);

/// A directory of files, known to nobody here, in a store a round trip away.
async fn distant(tune: impl FnOnce(&mut bucketvol::fs::Settings)) -> TestFs {
    let (bucket, faults) = faulty_bucket();
    let fs = TestFs::tuned(bucket, tune).await;
    for number in 0..FILES {
        fs.put_object(&path(number), b"small").await;
    }
    faults.delay(ROUND_TRIP);
    fs
}

fn path(number: u64) -> String {
    format!("d/file-{number}")
}

#[tokio::test(start_paused = true)]
async fn who_reads_the_files_of_a_directory_one_by_one_waits_for_few_of_them() {
    let fs = distant(|_| {}).await;
    let began = Instant::now();
    let read = async {
        for number in 0..FILES {
            assert_eq!(fs.read(&path(number)).await.unwrap(), b"small");
        }
    };
    let (_, requests) = fs.requests_of(read).await;
    let round_trips = began.elapsed().as_millis() / ROUND_TRIP.as_millis();
    // He reads file-9 after file-8, and does not find it after file-89: some names are jumped to.
    assert!(round_trips <= u128::from(FILES) * 2 / 5, "{round_trips}");
    assert!(requests <= 2 * FILES + 50, "{requests}");
}

#[tokio::test(start_paused = true)]
async fn who_looks_at_the_files_of_a_directory_one_by_one_has_none_of_their_bytes_fetched() {
    let fs = distant(|_| {}).await;
    let began = Instant::now();
    for number in 0..FILES {
        fs.ino(&path(number)).await.unwrap();
    }
    let round_trips = began.elapsed().as_millis() / ROUND_TRIP.as_millis();
    assert!(round_trips <= u128::from(FILES) / 3, "{round_trips}");
    assert_eq!(fs.bucket.requests().of("get"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_few_lookups_in_a_directory_ask_for_little_more() {
    let fs = distant(|_| {}).await;
    let look = async {
        for number in [17, 3, 250] {
            fs.ino(&path(number)).await.unwrap();
            tokio::time::sleep(ROUND_TRIP * 3).await;
        }
    };
    let (_, requests) = fs.requests_of(look).await;
    // The directory itself, and a HEAD and a LIST for each.
    assert!(requests <= 3 + 6, "{requests}");
}

#[tokio::test(start_paused = true)]
async fn names_that_are_not_there_cost_a_listing_together() {
    let fs = distant(|_| {}).await;
    let look = async {
        for number in 0..100 {
            let found = fs.ino(&format!("d/{number}.so")).await;
            assert!(matches!(found, Err(FsError::NoEntry)));
        }
    };
    let (_, requests) = fs.requests_of(look).await;
    assert!(requests <= 30, "{requests}");
}

#[tokio::test(start_paused = true)]
async fn who_puts_objects_and_looks_for_each_finds_it_at_once() {
    let fs = distant(|_| {}).await;
    for number in FILES..FILES + 20 {
        fs.put_object(&path(number), b"small").await;
        assert_eq!(fs.read(&path(number)).await.unwrap(), b"small");
    }
}

#[tokio::test(start_paused = true)]
async fn who_wants_to_be_told_what_is_true_now_is_told_nothing_older() {
    let fs = distant(|settings| settings.metadata_ttl = Duration::ZERO).await;
    let look = async {
        for number in 0..20 {
            fs.ino(&path(number)).await.unwrap();
            tokio::time::sleep(ROUND_TRIP * 3).await;
        }
    };
    let (_, requests) = fs.requests_of(look).await;
    // Of the directory a LIST each time, and a HEAD of its marker; of the file a HEAD and a LIST.
    assert!(requests >= 20 * 3, "{requests}");
    fs.put_object("d/new", b"").await;
    fs.ino("d/new").await.unwrap();
}
