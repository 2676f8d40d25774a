//! [`bucketvol::fs::FileSystem`] without a kernel: each promise by itself.

/// Holds a promise on a store in memory, on an S3 server over a socket (below a prefix), and on a directory.
macro_rules! on_each_store {
    (async fn $name:ident($fs:ident: TestFs) $promise:block) => {
        mod $name {
            use super::*;

            async fn holds($fs: TestFs) $promise

            #[tokio::test]
            async fn in_memory() {
                holds(TestFs::memory().await).await;
            }

            #[tokio::test]
            async fn on_s3() {
                let server = crate::common::s3_server::S3Server::start().await;
                let bucket = server.bucket("some/prefix");
                holds(TestFs::on(std::sync::Arc::new(bucket)).await).await;
            }

            #[tokio::test]
            async fn in_a_directory() {
                let (bucket, _directory) = crate::common::test_fs::directory_bucket();
                holds(TestFs::on(std::sync::Arc::new(bucket)).await).await;
            }
        }
    };
}

// Names, listings and lookups, odd keys included.
mod lookups;
mod names;
// Reading and writing.
mod content;
mod crashes;
mod directories;
mod versions;
// Modes, owners, times.
mod attributes;
// What is known of objects from one process to the next.
mod attribute_cache;
// Their blocks, likewise.
mod disk_cache;
// Extended attributes.
mod xattrs;
// fallocate.
mod allocations;
// copy_file_range.
mod copies;
// The quota, and what df shows.
mod quota;
// unlink, rmdir, rename.
mod moves;
// link.
mod links;
// What two hosts on one bucket see of each other.
mod hosts;
// Random operations against a model, and what they once found.
mod model;
// Stores that refuse or hang: what is reported, what is kept.
mod faults;
// Uploads in parts that come to nothing.
mod parts;
// The same while nobody waits: what was changed reaches the bucket by itself, once.
mod stores;
// Many programs at once.
mod together;
// The same in an order that a seed decides, and a crash at every point of it.
mod simulation;
// A process goes on where another was killed.
mod restarts;
// And a program with it, through one end after the other.
mod dweller;
// Two hosts that change the same files at random.
mod rivals;
mod room;
