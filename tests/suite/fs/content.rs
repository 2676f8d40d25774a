use bucketvol::fs::{FsError, SetAttr};

use crate::common::test_fs::{PART, TestFs, pattern};

on_each_store! {
    async fn what_is_written_is_the_object_when_the_file_is_closed(fs: TestFs) {
        let file = fs.create("a").await.unwrap();
        file.write_at(0, b"hello").unwrap();
        assert_eq!(fs.object("a").await, None);
        file.close().await.unwrap();
        assert_eq!(fs.object("a").await.as_deref(), Some(&b"hello"[..]));
    }
}

on_each_store! {
    async fn an_empty_file_is_an_empty_object(fs: TestFs) {
        fs.create("a").await.unwrap().close().await.unwrap();
        assert_eq!(fs.object("a").await.as_deref(), Some(&b""[..]));
        assert_eq!(fs.other_host().await.read("a").await.unwrap(), b"");
    }
}

on_each_store! {
    async fn fsync_uploads_and_the_file_stays_writable(fs: TestFs) {
        let file = fs.create("a").await.unwrap();
        file.write_at(0, b"one").unwrap();
        file.fsync().await.unwrap();
        assert_eq!(fs.object("a").await.as_deref(), Some(&b"one"[..]));
        file.write_at(3, b"two").unwrap();
        file.close().await.unwrap();
        assert_eq!(fs.object("a").await.as_deref(), Some(&b"onetwo"[..]));
    }
}

#[tokio::test]
async fn an_fsync_or_close_with_nothing_to_send_sends_nothing() {
    let fs = TestFs::memory().await;
    let file = fs.create("a").await.unwrap();
    file.write_at(0, b"x").unwrap();
    file.fsync().await.unwrap();
    let (done, requests) = fs
        .requests_of(async {
            file.fsync().await.unwrap();
            file.close().await
        })
        .await;
    done.unwrap();
    assert_eq!(requests, 0);
}

on_each_store! {
    async fn a_write_anywhere_keeps_the_other_bytes(fs: TestFs) {
        fs.write("a", pattern(300_000)).await.unwrap();
        let mut expected = pattern(300_000);
        let file = fs.open("a").await.unwrap();
        for at in [0, 1, 131_071, 131_072, 299_990] {
            file.write_at(at as u64, b"0123456789").unwrap();
            expected[at..at + 10].copy_from_slice(b"0123456789");
        }
        assert_eq!(file.read_all().await.unwrap(), expected);
        file.close().await.unwrap();
        assert_eq!(fs.object("a").await.unwrap(), expected);
    }
}

on_each_store! {
    async fn a_write_beyond_the_end_leaves_zeros_between(fs: TestFs) {
        fs.write("a", b"abc").await.unwrap();
        let file = fs.open("a").await.unwrap();
        file.write_at(6, b"d").unwrap();
        file.close().await.unwrap();
        assert_eq!(fs.object("a").await.as_deref(), Some(&b"abc\0\0\0d"[..]));
    }
}

on_each_store! {
    async fn truncation_cuts_and_zeros_follow_when_it_grows_again(fs: TestFs) {
        fs.write("a", b"0123456789").await.unwrap();
        let size = |size| SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        fs.setattr("a", size(4)).await.unwrap();
        fs.drained().await;
        assert_eq!(fs.object("a").await.as_deref(), Some(&b"0123"[..]));
        fs.setattr("a", size(8)).await.unwrap();
        fs.drained().await;
        assert_eq!(fs.object("a").await.as_deref(), Some(&b"0123\0\0\0\0"[..]));
        assert_eq!(fs.read("a").await.unwrap(), b"0123\0\0\0\0");
    }
}

on_each_store! {
    async fn opening_with_truncation_empties_the_object_at_close(fs: TestFs) {
        fs.write("a", b"long content").await.unwrap();
        let file = fs.open_truncated("a").await.unwrap();
        assert_eq!(fs.attr("a").await.unwrap().size, 0);
        file.write_at(0, b"new").unwrap();
        file.close().await.unwrap();
        assert_eq!(fs.object("a").await.as_deref(), Some(&b"new"[..]));
    }
}

on_each_store! {
    async fn a_second_handle_reads_what_the_first_has_written(fs: TestFs) {
        let writer = fs.create("a").await.unwrap();
        writer.write_at(0, b"seen").unwrap();
        let reader = fs.open("a").await.unwrap();
        assert_eq!(reader.read_all().await.unwrap(), b"seen");
    }
}

#[tokio::test]
async fn a_file_above_a_part_goes_up_in_parts_and_comes_back_whole() {
    let fs = TestFs::memory().await;
    let bytes = pattern(2 * PART + 12_345);
    fs.write("big", &bytes).await.unwrap();
    assert!(
        fs.bucket.requests().of("put_part") >= 3,
        "{:?}",
        fs.bucket.requests()
    );
    assert!(fs.object("big").await.unwrap() == bytes);
    assert!(fs.other_host().await.read("big").await.unwrap() == bytes);
}

#[tokio::test]
async fn a_small_change_of_a_large_file_sends_one_part_and_copies_the_rest() {
    let fs = TestFs::memory().await;
    let mut bytes = pattern(4 * PART);
    fs.write("big", &bytes).await.unwrap();
    let before = fs.bucket.requests();
    let file = fs.open("big").await.unwrap();
    file.write_at(PART as u64 + 7, b"changed").unwrap();
    file.close().await.unwrap();
    bytes[PART + 7..PART + 14].copy_from_slice(b"changed");
    assert!(fs.object("big").await.unwrap() == bytes);
    let after = fs.bucket.requests();
    assert_eq!(after.of("put_part") - before.of("put_part"), 1);
}

on_each_store! {
    async fn bytes_written_while_an_upload_runs_are_in_the_next_one(fs: TestFs) {
        let file = fs.create("a").await.unwrap();
        file.write_at(0, pattern(PART * 2)).unwrap();
        let (synced, ()) = tokio::join!(file.fsync(), async {
            tokio::task::yield_now().await;
            file.write_at(10, b"later").unwrap();
        });
        synced.unwrap();
        file.close().await.unwrap();
        let mut expected = pattern(PART * 2);
        expected[10..15].copy_from_slice(b"later");
        assert!(fs.object("a").await.unwrap() == expected);
    }
}

on_each_store! {
    async fn a_handle_that_was_opened_for_reading_does_not_write(fs: TestFs) {
        fs.write("a", b"x").await.unwrap();
        let ino = fs.ino("a").await.unwrap();
        let fh = fs.open_file(ino, false, false).await.unwrap();
        assert!(matches!(fs.write_to(fh, b"x"), Err(FsError::BadHandle)));
    }
}

#[tokio::test]
async fn no_staging_file_is_left_when_all_is_uploaded() {
    let fs = TestFs::memory().await;
    fs.write("a", pattern(100_000)).await.unwrap();
    let staging = fs.staging_dir().join("staging");
    assert_eq!(std::fs::read_dir(staging.join("files")).unwrap().count(), 0);
    fs.close();
    assert!(!staging.exists());
}

#[tokio::test]
async fn a_block_is_fetched_once_however_many_read_it() {
    let fs = TestFs::memory().await;
    fs.put_object("a", &pattern(100_000)).await;
    let file = fs.open("a").await.unwrap();
    let before = fs.bucket.requests().of("get");
    let reads = (0..50).map(|i| file.read_at(i * 100, 100));
    for bytes in futures_util::future::join_all(reads).await {
        assert_eq!(bytes.unwrap().len(), 100);
    }
    assert_eq!(fs.bucket.requests().of("get") - before, 1);
}

#[tokio::test]
async fn a_random_read_fetches_the_blocks_it_touches_and_no_more() {
    let fs = TestFs::memory().await;
    fs.put_object("a", &pattern(8 * 1024 * 1024)).await;
    let file = fs.open("a").await.unwrap();
    let before = fs.bucket.requests().of("get");
    for at in [5u64, 2, 7, 1] {
        file.read_at(at * 1024 * 1024 + 77, 4096).await.unwrap();
    }
    assert_eq!(fs.bucket.requests().of("get") - before, 4);
    assert!(
        fs.status().cache_bytes < 5 * 130 * 1024,
        "{}",
        fs.status().cache_bytes
    );
}

#[tokio::test]
async fn a_sequential_reader_costs_few_requests() {
    let fs = TestFs::memory().await;
    let bytes = pattern(16 * 1024 * 1024);
    fs.put_object("a", &bytes).await;
    let file = fs.open("a").await.unwrap();
    let before = fs.bucket.requests().of("get");
    let mut read = Vec::new();
    while read.len() < bytes.len() {
        read.extend(file.read_at(read.len() as u64, 128 * 1024).await.unwrap());
    }
    assert!(read == bytes);
    let requests = fs.bucket.requests().of("get") - before;
    assert!(requests <= 16, "{requests} requests for 128 reads");
}
