//! A connection comes to rest before its process hands it over: what was asked is answered, and what is asked from then
//! on waits for the next process. So nothing is lost where the kernel cannot send it again either.
//!
//! Needs root and /dev/fuse.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fs, io};

use bucketvol::fs::Format;
use bucketvol::fs::fuse::{
    Agreement, Connection, FuseAdapter, MountRequest, Served, Session, Unanswered,
};
use tokio::runtime::Handle;

use crate::common::fault_store::faulty_bucket;
use crate::common::test_fs::{TestFs, pattern};
use crate::session::Place;

const LIMIT: Duration = Duration::from_secs(10);

/// A mounted volume, which one process after the other serves; all of them are this one.
struct Mounted {
    fs: TestFs,
    session: Session,
    served: Served,
}

impl Mounted {
    async fn new(fs: TestFs, mountpoint: PathBuf) -> Self {
        let connection = Arc::new(Connection::new(Format::CURRENT).unwrap());
        let request = MountRequest {
            mountpoint,
            source: "memory".to_owned(),
            read_only: false,
        };
        let adapter = adapter(&fs, &connection);
        let session = Session::mount(adapter, request, LIMIT).await.unwrap();
        let served = Served::new(&session, &connection, &fs);
        Self {
            fs,
            session,
            served,
        }
    }

    /// Hands over, to a process that takes the kernel for one that cannot send again what it has no answer to.
    async fn handed_over(self) -> Self {
        self.served.hand_over().await;
        let device = self.session.device().as_fd().try_clone_to_owned().unwrap();
        let attachment = self.session.attachment().clone();
        let agreement = before_6_9(self.session.agreement());
        let connection = Arc::new(Connection::new(Format::CURRENT).unwrap());
        let adapter = adapter(&self.fs, &connection);
        // Far above any request so far: what was left unanswered would be interrupted.
        let unanswered = Unanswered {
            near: 20_000,
            ..Unanswered::default()
        };
        let device = device.into();
        let resumed =
            Session::resume(adapter, device, attachment, agreement, unanswered, LIMIT).await;
        let session = resumed.unwrap();
        let served = Served::new(&session, &connection, &self.fs);
        Self {
            session,
            served,
            ..self
        }
    }
}

fn adapter(fs: &TestFs, connection: &Arc<Connection>) -> FuseAdapter {
    FuseAdapter::new(Arc::clone(fs), Handle::current(), Arc::clone(connection))
}

fn before_6_9(agreement: &Agreement) -> Agreement {
    let mut said = serde_json::to_value(agreement).unwrap();
    // FUSE_HAS_RESEND, in the second flags of the kernel's INIT.
    said["request"][40 + 16] = 0.into();
    let agreement: Agreement = serde_json::from_value(said).unwrap();
    assert!(!agreement.resends());
    agreement
}

async fn joined<T: Send + 'static>(thread: JoinHandle<T>) -> T {
    let joined = tokio::task::spawn_blocking(|| thread.join().unwrap());
    tokio::time::timeout(LIMIT, joined).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_is_answered_and_what_is_asked_then_waits() {
    let place = Place::new();
    let dir = place.dir("m");
    let (bucket, faults) = faulty_bucket();
    let fs = TestFs::on(bucket).await;
    fs.put_object("a", &pattern(100_000)).await;
    fs.put_object("d/b", b"").await;
    let mounted = Mounted::new(fs, dir.clone()).await;
    faults.delay(Duration::from_millis(300));
    let requests = || mounted.fs.status().requests.values().sum::<u64>();
    let before_that = requests();
    // One request each.
    let before = looks_up(dir.join("a"));
    // The store has it in hand.
    mounted
        .fs
        .eventually(async || requests() > before_that)
        .await;
    mounted.served.hand_over().await;
    assert_eq!(joined(before).await.unwrap(), 100_000);

    let after = looks_up(dir.join("d"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!after.is_finished());
    let mounted = mounted.handed_over().await;
    joined(after).await.unwrap();
    mounted.session.detach().await.unwrap();
}

fn looks_up(path: PathBuf) -> JoinHandle<io::Result<u64>> {
    std::thread::spawn(move || Ok(fs::symlink_metadata(path)?.len()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_sends_nothing_again_has_nothing_interrupted() {
    const HAND_OVERS: u32 = 20;
    let place = Place::new();
    let dir = place.dir("m");
    let fs = TestFs::memory().await;
    let mut mounted = Mounted::new(fs, dir.clone()).await;
    let (stop, rounds) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let programs: Vec<_> = (0..3)
        .map(|n| {
            let (stop, rounds, dir) = (Arc::clone(&stop), Arc::clone(&rounds), dir.clone());
            std::thread::spawn(move || {
                while !stop.load(SeqCst) {
                    busy(&dir, n).unwrap();
                    rounds.fetch_add(1, SeqCst);
                }
            })
        })
        .collect();
    let deadline = Instant::now() + LIMIT * 3;
    for hand_over in 0..HAND_OVERS {
        let goal = rounds.load(SeqCst) + 1 + u64::from(hand_over % 3);
        while rounds.load(SeqCst) < goal && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        mounted = mounted.handed_over().await;
    }
    stop.store(true, SeqCst);
    for program in programs {
        joined(program).await;
    }
    mounted.session.detach().await.unwrap();
}

/// Asks much of the kernel that std does not ask again when it is interrupted.
fn busy(dir: &Path, n: u32) -> io::Result<()> {
    let (file, other) = (dir.join(format!("{n}")), dir.join(format!("{n}.other")));
    fs::write(&file, pattern(10_000))?;
    fs::rename(&file, &other)?;
    assert!(fs::read(&other)? == pattern(10_000));
    fs::metadata(&other)?;
    fs::read_dir(dir)?.try_for_each(|entry| entry.map(drop))?;
    fs::remove_file(&other)
}
