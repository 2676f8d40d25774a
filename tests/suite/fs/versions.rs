//! Buckets that keep what is replaced: who has it open reads on.

use std::sync::Arc;

use bucketvol::clock::SystemClock;
use bucketvol::config::{Location, Scheme};
use bucketvol::store::{Bucket, MemoryStore};

use crate::common::s3_server::S3Server;
use crate::common::test_fs::TestFs;

const SIZE: usize = 3 << 20;

fn all(byte: u8) -> Vec<u8> {
    vec![byte; SIZE]
}

async fn a_reader_keeps_what_it_has_opened(bucket: Bucket) {
    let fs = TestFs::on(Arc::new(bucket)).await;
    fs.put_object("a", &all(1)).await;
    fs.put_object("gone", &all(1)).await;
    let (file, gone) = (fs.open("a").await.unwrap(), fs.open("gone").await.unwrap());
    let other = fs.other_host().await;
    other.unlink("gone").await.unwrap();
    other.drained().await;
    for byte in [2, 3] {
        fs.put_object("a", &all(byte)).await;
    }
    assert!(file.read_all().await.unwrap() == all(1));
    assert!(gone.read_all().await.unwrap() == all(1));
    fs.let_ttl_pass();
    assert!(fs.read("a").await.unwrap() == all(3), "who opens it now");
    assert!(file.read_at(SIZE as u64 - 1, 10).await.unwrap() == [1]);
    assert_eq!(
        fs.bucket.requests().of("list_versions"),
        2,
        "one for each object"
    );
}

#[tokio::test]
async fn a_file_that_was_replaced_is_read_on_where_the_bucket_keeps_versions() {
    let store = MemoryStore::keeping_versions(SystemClock::shared());
    let location = Location {
        scheme: Scheme::Memory,
        bucket: "versions".to_owned(),
        prefix: "below".to_owned(),
    };
    a_reader_keeps_what_it_has_opened(Bucket::new(Arc::new(store), location)).await;
}

#[tokio::test]
async fn likewise_on_s3() {
    let server = S3Server::start_keeping_versions().await;
    a_reader_keeps_what_it_has_opened(server.bucket("some/prefix")).await;
}

#[tokio::test]
async fn a_bucket_that_keeps_no_versions_is_not_asked_for_each_that_is_gone() {
    let fs = TestFs::memory().await;
    for name in ["a", "b", "c"] {
        fs.put_object(name, b"old").await;
        let file = fs.open(name).await.unwrap();
        fs.put_object(name, b"new").await;
        assert!(file.read_all().await.is_err());
    }
    assert_eq!(fs.bucket.requests().of("list_versions"), 1);
}
