use bucketvol::fs::{Allocation, FsError};

use crate::common::test_fs::{OpenFile, TestFs, pattern};

const HOLE: Allocation = Allocation {
    zero: true,
    keep_size: true,
};
const ZEROS: Allocation = Allocation {
    zero: true,
    keep_size: false,
};
const ROOM: Allocation = Allocation {
    zero: false,
    keep_size: false,
};
const ROOM_BEYOND_THE_END: Allocation = Allocation {
    zero: false,
    keep_size: true,
};

async fn is(file: &OpenFile, expected: &[u8]) {
    assert!(file.read_all().await.unwrap() == expected);
}

on_each_store! {
    async fn a_hole_is_zeros_here_and_in_the_bucket(fs: TestFs) {
        let mut expected = pattern(300_000);
        fs.put_object("a", &expected).await;
        let file = fs.open("a").await.unwrap();
        // Some of it is in the object, some is staged.
        file.write_at(100_000, [1; 50_000]).unwrap();
        expected[100_000..150_000].fill(1);
        file.allocate(120_000, 100_000, HOLE).unwrap();
        expected[120_000..220_000].fill(0);
        is(&file, &expected).await;
        file.write_at(130_000, b"again").unwrap();
        expected[130_000..130_005].copy_from_slice(b"again");
        // It ends with the file.
        file.allocate(290_000, 1 << 40, HOLE).unwrap();
        expected[290_000..].fill(0);
        is(&file, &expected).await;
        file.close().await.unwrap();
        assert!(fs.object("a").await.unwrap() == expected);
    }
}

#[tokio::test]
async fn room_makes_a_file_longer_and_changes_no_byte() {
    let fs = TestFs::memory().await;
    fs.write("a", b"bytes").await.unwrap();
    let file = fs.open("a").await.unwrap();
    file.allocate(0, 3, ROOM).unwrap();
    file.allocate(2, 100, ROOM_BEYOND_THE_END).unwrap();
    is(&file, b"bytes").await;
    file.allocate(2, 6, ROOM).unwrap();
    is(&file, b"bytes\0\0\0").await;
    file.allocate(3, 7, ZEROS).unwrap();
    is(&file, b"byt\0\0\0\0\0\0\0").await;
    file.close().await.unwrap();
    assert_eq!(fs.object("a").await.unwrap(), b"byt\0\0\0\0\0\0\0");
}

#[tokio::test]
async fn what_changes_nothing_sends_nothing() {
    let fs = TestFs::memory().await;
    fs.put_object("a", &[7; 100]).await;
    let file = fs.open("a").await.unwrap();
    let work = async {
        file.allocate(0, 100, ROOM).unwrap();
        file.allocate(0, 1 << 30, ROOM_BEYOND_THE_END).unwrap();
        file.allocate(100, 1 << 30, HOLE).unwrap();
        file.close().await.unwrap();
        fs.drained().await;
    };
    assert_eq!(fs.requests_of(work).await.1, 0);
}

#[tokio::test]
async fn a_hole_survives_the_death_of_the_daemon_and_of_the_host() {
    let fs = TestFs::memory().await;
    fs.put_object("a", &[7; 100_000]).await;
    let file = fs.open("a").await.unwrap();
    file.allocate(10, 90_000, HOLE).unwrap();
    let mut expected = vec![7; 100_000];
    expected[10..90_010].fill(0);
    let fs = fs.after_crash().await;
    assert!(fs.read("a").await.unwrap() == expected);
    fs.drained().await;
    assert!(fs.object("a").await.unwrap() == expected);
}

#[tokio::test]
async fn only_who_may_write_allocates() {
    let fs = TestFs::memory().await;
    fs.put_object("a", b"bytes").await;
    let fh = fs
        .open_file(fs.ino("a").await.unwrap(), false, false)
        .await
        .unwrap();
    let refused = fs.allocate(fh, 0, 1, HOLE);
    assert!(matches!(refused, Err(FsError::BadHandle)), "{refused:?}");
    let file = fs.open("a").await.unwrap();
    let too_large = file.allocate(u64::MAX, 1, ROOM);
    assert!(
        matches!(too_large, Err(FsError::TooLarge(_))),
        "{too_large:?}"
    );
}
