//! Volumes and directories mounted as the daemon and the command line do it, over a store in memory.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bucketvol::cli::mounter::{FuseMounter, Host, mount_at};
use bucketvol::cli::worker::Worker;
use bucketvol::clock::SystemClock;
use bucketvol::config::credentials::{Ambient, Environment};
use bucketvol::config::options::MinFree;
use bucketvol::config::{Location, Options, Scheme};
use bucketvol::fs::{BlockCache, StagingBudget};
use bucketvol::plugin::bucket::{Mount, MountError, Mounter, VolumeName, VolumeSpec};
use futures_util::FutureExt;
use futures_util::future::join_all;
use nix::mount::MntFlags;
use uuid::Uuid;

use crate::session::{Place, off_runtime};

const LIMIT: Duration = Duration::from_secs(10);

fn host(place: &Place) -> Host {
    Host {
        state_dir: place.path().join("state"),
        ambient: Ambient::command_line(Environment::default()),
        staging: StagingBudget::new(1 << 30, MinFree::Bytes(0)),
        cache: BlockCache::new(1 << 20),
        attributes: None,
        clock: SystemClock::shared(),
        worker: Worker::alone(bucketvol::fs::Format::CURRENT),
    }
}

async fn mounter(place: &Place) -> FuseMounter {
    FuseMounter::open(&place.path().join("base"), host(place))
        .await
        .unwrap()
}

/// A volume in a bucket that only this test has.
fn volume(name: &str, scheme: Scheme, bucket: impl Into<String>) -> VolumeSpec {
    let location = Location {
        scheme,
        bucket: bucket.into(),
        prefix: String::new(),
    };
    VolumeSpec {
        id: Uuid::now_v7(),
        name: volume_name(name),
        options: Options::at(location),
    }
}

fn volume_name(name: &str) -> VolumeName {
    serde_json::from_value(name.into()).unwrap()
}

async fn make_dir(path: PathBuf) -> std::io::Result<()> {
    off_runtime(move || fs::create_dir(path)).await
}

async fn is_dir(path: PathBuf) -> bool {
    off_runtime(move || path.is_dir()).await
}

async fn detach(mount: Box<dyn Mount>) {
    mount.drain(LIMIT).await.unwrap();
    mount.detach().await.unwrap();
    assert!(!mount.is_alive());
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_one_place_share_their_files_and_leave_nothing_when_detached() {
    let place = Place::new();
    let mounter = mounter(&place).await;
    let bucket = Uuid::now_v7().to_string();
    let first = volume("first", Scheme::Memory, bucket.clone());
    let second = volume("second", Scheme::Memory, bucket);
    let other = volume("other", Scheme::Memory, Uuid::now_v7().to_string());
    mounter.check(&first).await.unwrap();
    let a = mounter.mount(&first).await.unwrap();
    let b = mounter.mount(&second).await.unwrap();
    let c = mounter.mount(&other).await.unwrap();
    assert_eq!(a.mountpoint(), mounter.mountpoint(&first.name));
    assert!(a.is_alive() && b.is_alive() && c.is_alive());
    assert!(!a.is_held().await);

    make_dir(a.mountpoint().join("new")).await.unwrap();
    assert!(is_dir(b.mountpoint().join("new")).await);
    assert!(!is_dir(c.mountpoint().join("new")).await);
    // Each has a page cache of its own: neither shows what the other has overwritten since.
    for text in ["one", "two", "six"] {
        let from = a.mountpoint().join("file");
        let to = b.mountpoint().join("file");
        let read = tokio::task::spawn_blocking(move || {
            fs::write(from, text).unwrap();
            fs::read_to_string(to).unwrap()
        });
        assert_eq!(read.await.unwrap(), text);
    }
    detach(a).await;
    assert!(is_dir(b.mountpoint().join("new")).await);
    detach(b).await;
    detach(c).await;

    mounter.close().await.unwrap();
    assert_eq!(place.mounts(), []);
    assert!(!place.path().join("base").exists());
    let left: Vec<_> = fs::read_dir(place.path().join("state")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_mounted_and_detached_at_the_same_time_do_not_get_in_each_others_way() {
    let place = Place::new();
    let mounter = mounter(&place).await;
    let bucket = Uuid::now_v7().to_string();
    for _ in 0..3 {
        let names = (0..12).map(|number| format!("v{number}"));
        let specs: Vec<_> = names
            .map(|name| volume(&name, Scheme::Memory, bucket.clone()))
            .collect();
        let mounts = join_all(specs.iter().map(|spec| mounter.mount(spec))).await;
        let mounts: Vec<_> = mounts.into_iter().map(Result::unwrap).collect();
        let new = Uuid::now_v7().to_string();
        make_dir(mounts[0].mountpoint().join(&new)).await.unwrap();
        for mount in &mounts {
            assert!(
                is_dir(mount.mountpoint().join(&new)).await,
                "one file system for all"
            );
        }
        join_all(mounts.into_iter().map(detach)).await;
        assert_eq!(place.visible(), 1);
    }
    mounter.close().await.unwrap();
    assert_eq!(place.mounts(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_whose_store_says_no_is_refused_by_name_and_leaves_nothing() {
    let place = Place::new();
    let mounter = mounter(&place).await;
    let missing = place.path().join("missing-bucket");
    let spec = volume("v", Scheme::File, missing.to_str().unwrap());
    for error in [
        mounter.check(&spec).await.unwrap_err(),
        mounter.mount(&spec).await.err().unwrap(),
    ] {
        assert!(matches!(error, MountError::Refused(_)), "{error}");
        assert!(error.to_string().contains("missing-bucket"), "{error}");
    }
    mounter.close().await.unwrap();
    assert_eq!(place.mounts(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_unmounted_behind_our_back_is_not_alive_and_can_be_mounted_again() {
    let place = Place::new();
    let mounter = mounter(&place).await;
    let spec = volume("v", Scheme::Memory, Uuid::now_v7().to_string());
    let lost = mounter.mount(&spec).await.unwrap();
    let dir = lost.mountpoint().to_path_buf();
    // Somebody still has it open, so that the session itself goes on.
    let path = dir.clone();
    let open = off_runtime(move || fs::File::open(path)).await.unwrap();
    nix::mount::umount2(&dir, MntFlags::MNT_DETACH).unwrap();
    assert!(!lost.is_attached());

    let again = mounter.mount(&spec).await.unwrap();
    drop(open);
    drop(lost);
    make_dir(dir.join("new")).await.unwrap();
    detach(again).await;
    mounter.close().await.unwrap();
    assert_eq!(place.mounts(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_nobody_waits_for_any_more_is_undone() {
    let place = Place::new();
    let mounter = mounter(&place).await;
    let spec = volume("v", Scheme::Memory, Uuid::now_v7().to_string());
    assert!(mounter.mount(&spec).now_or_never().is_none());
    let deadline = Instant::now() + LIMIT;
    let dir = mounter.mountpoint(&spec.name);
    // First it appears, then it goes; either may be over before we look.
    tokio::time::sleep(Duration::from_millis(300)).await;
    while place.mounts().iter().any(|mount| mount.mount_point == dir) {
        assert!(Instant::now() < deadline, "still mounted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    mounter.close().await.unwrap();
    assert_eq!(place.mounts(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_volume_does_not_make_its_writable_neighbour_so() {
    let place = Place::new();
    let mounter = mounter(&place).await;
    let bucket = Uuid::now_v7().to_string();
    let mut read_only = volume("ro", Scheme::Memory, bucket.clone());
    read_only.options.read_only = true;
    let ro = mounter.mount(&read_only).await.unwrap();
    let rw = mounter
        .mount(&volume("rw", Scheme::Memory, bucket))
        .await
        .unwrap();
    let error = make_dir(ro.mountpoint().join("new")).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    make_dir(rw.mountpoint().join("new")).await.unwrap();
    detach(ro).await;
    detach(rw).await;
    mounter.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_mounted_for_the_command_line_and_left_as_it_was_found() {
    let place = Place::new();
    let dir = place.dir("m");
    let spec = volume("v", Scheme::Memory, Uuid::now_v7().to_string());
    let mount = mount_at(&dir, &spec.options, host(&place)).await.unwrap();
    assert_eq!(mount.mountpoint(), dir);
    make_dir(dir.join("new")).await.unwrap();
    let error = mount_at(&dir, &spec.options, host(&place))
        .await
        .err()
        .unwrap();
    assert!(error.to_string().contains("already mounted"), "{error}");
    detach(mount).await;
    assert_eq!(place.mounts(), []);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
}
