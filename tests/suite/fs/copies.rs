use std::sync::Arc;

use bucketvol::config::options::WriteOptions;
use bucketvol::fs::{FileSystem, FsError, RequestId, SetAttr};
use bucketvol::store::Bucket;

use crate::common::test_fs::{OpenFile, TestFs, pattern};

const MIB: u64 = 1 << 20;

/// As programs do: until nothing more is copied.
async fn copy_all(from: &OpenFile, to: &OpenFile) -> u64 {
    let mut at = 0;
    loop {
        let copied = from.copy_to(at, to, at, u64::MAX).await.unwrap();
        if copied == 0 {
            return at;
        }
        at += copied;
    }
}

async fn cut(fs: &TestFs, path: &str, size: u64) {
    let size = SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    fs.setattr(path, size).await.unwrap();
}

on_each_store! {
    async fn what_is_copied_is_what_was_there(fs: TestFs) {
        let len = 2 * MIB + 12_345;
        let mut expected = pattern(usize::try_from(len).unwrap());
        fs.put_object("from", &expected).await;
        let (from, to) = (fs.open("from").await.unwrap(), fs.create("to").await.unwrap());
        // Some of it is staged, some is in the object, some was never written.
        from.write_at(MIB, b"changed").unwrap();
        from.write_at(len + 100_000, b"end").unwrap();
        expected[1 << 20..][..7].copy_from_slice(b"changed");
        expected.resize(expected.len() + 100_000, 0);
        expected.extend(b"end");
        assert_eq!(copy_all(&from, &to).await, expected.len() as u64);
        assert!(to.read_all().await.unwrap() == expected);
        // The source goes on by itself.
        from.write_at(0, b"later").unwrap();
        to.close().await.unwrap();
        assert!(fs.object("to").await.unwrap() == expected);
    }
}

#[tokio::test]
async fn a_copy_lands_where_it_is_to_and_nowhere_else() {
    let fs = TestFs::memory().await;
    fs.write("from", b"0123456789").await.unwrap();
    fs.write("to", b"abcdefgh").await.unwrap();
    let (from, to) = (fs.open("from").await.unwrap(), fs.open("to").await.unwrap());
    assert_eq!(from.copy_to(2, &to, 3, 4).await.unwrap(), 4);
    assert_eq!(to.read_all().await.unwrap(), b"abc2345h");
    // Up to the end of the source, and from there on nothing.
    assert_eq!(from.copy_to(7, &to, 10, 100).await.unwrap(), 3);
    assert_eq!(to.read_all().await.unwrap(), b"abc2345h\0\x00789");
    for offset in [10, 11, u64::MAX] {
        assert_eq!(from.copy_to(offset, &to, 0, 100).await.unwrap(), 0);
    }
    assert_eq!(from.copy_to(0, &to, 0, 0).await.unwrap(), 0);
    // Within one file.
    assert_eq!(to.copy_to(3, &to, 20, 4).await.unwrap(), 4);
    assert_eq!(to.read_at(20, 10).await.unwrap(), b"2345");
    let mtime = fs.attr("to").await.unwrap().mtime;
    fs.clock.advance(std::time::Duration::from_secs(1));
    from.copy_to(0, &to, 0, 1).await.unwrap();
    assert!(fs.attr("to").await.unwrap().mtime > mtime);
}

#[tokio::test]
async fn one_request_copies_a_mebibyte_at_most() {
    let fs = TestFs::memory().await;
    fs.put_object("from", &vec![7; 3 << 20]).await;
    let (from, to) = (
        fs.open("from").await.unwrap(),
        fs.create("to").await.unwrap(),
    );
    assert_eq!(from.copy_to(0, &to, 0, 3 * MIB).await.unwrap(), MIB);
    assert_eq!(fs.attr("to").await.unwrap().size, MIB);
}

#[tokio::test]
async fn nothing_is_copied_to_a_file_that_is_open_for_reading() {
    let fs = TestFs::memory().await;
    fs.write("a", b"a").await.unwrap();
    let ino = fs.ino("a").await.unwrap();
    let read_only = fs.open_file(ino, false, false).await.unwrap();
    let from = fs.create("b").await.unwrap();
    let to = from.with_number(read_only);
    let copied = from.copy_to(0, &to, 0, 1).await;
    assert!(matches!(copied, Err(FsError::BadHandle)));
    let closed = from.with_number(77);
    let copied = closed.copy_to(0, &from, 0, 1).await;
    assert!(matches!(copied, Err(FsError::BadHandle)));
    assert!(matches!(
        from.copy_to(0, &from, u64::MAX - 1, 0).await,
        Ok(0)
    ));
}

/// The source is changed and cut off after the copy, and before the process that has done it could say so.
#[tokio::test]
async fn a_copy_that_was_done_and_comes_again_is_the_same_one() {
    let fs = TestFs::with(Arc::new(Bucket::memory()), WriteOptions::default()).await;
    fs.put_object("from", &pattern(70_000)).await;
    let (from, to) = (
        fs.open("from").await.unwrap(),
        fs.create("to").await.unwrap(),
    );
    let request = |unique| RequestId::new(77, unique);
    let first = request(2).scope(from.copy_to(100, &to, 0, MIB)).await;
    assert_eq!(first.unwrap(), 69_900);
    cut(&fs, "from", 50_000).await;
    let nothing = request(4).scope(from.copy_to(50_000, &to, 0, MIB)).await;
    assert_eq!(nothing.unwrap(), 0);
    let fs = fs.after_kill().await;
    assert!(fs.was_done(request(2)));
    assert_eq!(fs.copied_earlier(request(2), MIB), 69_900);
    assert!(!fs.was_done(request(4)), "it is asked again");
    let to = fs.still_open(&to);
    assert!(to.read_all().await.unwrap() == pattern(70_000)[100..]);
    // The journal was written anew: that it is done is known, not how much it was.
    let fs = fs.after_kill().await;
    assert!(fs.was_done(request(2)));
    assert_eq!(fs.copied_earlier(request(2), 69_900), 69_900);
    assert_eq!(u64::from(fs.copied_earlier(request(2), u64::MAX)), MIB);
    let read = FileSystem::read(&fs, to.fh, 0, 1 << 20).await.unwrap();
    assert!(read.concat() == pattern(70_000)[100..]);
}
