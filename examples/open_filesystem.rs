//! A volume without a kernel, a container or a bucket: `cargo run --example open_filesystem`.
//!
//! [`FileSystem`] is the core that `bucketvol mount` and the Docker plugin serve. Here it is opened on a
//! store in memory, written and read by inode numbers, as the kernel would.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use bucketvol::clock::SystemClock;
use bucketvol::config::options::{MinFree, Ownership, WriteOptions};
use bucketvol::fs::{
    BlockCache, Caller, FileSystem, Formats, FsError, IfExists, Settings, StagingBudget,
};
use bucketvol::store::Bucket;

const ROOT: u64 = 1;

#[expect(clippy::print_stdout, reason = "an example shows what it did")]
#[tokio::main]
async fn main() -> Result<(), FsError> {
    let settings = Settings {
        ownership: Ownership {
            uid: 0,
            gid: 0,
            file_mode: 0o644,
            dir_mode: 0o755,
        },
        read_only: false,
        metadata_ttl: Duration::from_secs(1),
        size: None,
        xattr: Some(false),
        write: WriteOptions::default(),
        staging: StagingBudget::new(1 << 30, MinFree::Percent(10)),
        staging_slack: 16 << 20,
        fsync_timeout: Duration::from_secs(60),
        part_size: 8 * 1024 * 1024,
        concurrency: 64,
        staging_dir: std::env::temp_dir().join("bucketvol-example"),
        cache: BlockCache::new(64 * 1024 * 1024),
        place: None,
        clock: SystemClock::shared(),
        formats: Formats::default(),
    };
    let fs = FileSystem::open(Arc::new(Bucket::memory()), settings).await?;
    let caller = Caller {
        uid: 1000,
        gid: 1000,
    };

    let directory = fs.mkdir(ROOT, OsStr::new("notes"), 0o755, caller).await?;
    let (file, fh) = fs
        .create(
            directory.ino,
            OsStr::new("today.txt"),
            0o644,
            caller,
            IfExists::Fail,
        )
        .await?;
    fs.write(fh, 0, b"one file is one object\n")?;
    fs.fsync(fh).await?; // from here on the bucket has it
    let text = fs.read(fh, 0, 4096).await?.concat();
    fs.release(fh).await;

    println!(
        "inode {} says: {}",
        file.ino,
        String::from_utf8_lossy(&text).trim_end()
    );
    println!("requests: {:?}", fs.status().requests);
    fs.close();
    Ok(())
}
