//! A driver on a socket, an engine that talks to it, and a mounter that does as it is told.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use bucketvol::clock::ManualClock;
use bucketvol::plugin::bucket::{
    BucketDriver, Limits, Mount, MountError, MountStatus, Mounter, Settings, VolumeName, VolumeSpec,
};
use bucketvol::plugin::{Deadlines, PluginSocket, Stop, serve};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Barrier, Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Short enough to test, in the proportions of the real ones.
const LIMITS: Limits = Limits {
    check: Duration::from_millis(300),
    mount: Duration::from_millis(1500),
    drain: Duration::from_millis(300),
    retry: Duration::from_millis(10),
    sweep: Duration::from_millis(20),
    awaited: Duration::from_millis(700),
};

/// A driver that is served, and what it stands on.
pub(crate) struct Rig {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) mounter: Arc<FakeMounter>,
    pub(crate) driver: Arc<BucketDriver>,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<io::Result<Stop>>,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(adjust: impl FnOnce(&mut Settings)) -> Self {
        Self::at(tempfile::tempdir().unwrap(), adjust)
    }

    fn at(dir: tempfile::TempDir, adjust: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::new(dir.path().join("state"));
        settings.limits = LIMITS;
        adjust(&mut settings);
        let mounter = Arc::new(FakeMounter {
            base: dir.path().join("mnt"),
            ..FakeMounter::default()
        });
        let as_dyn: Arc<dyn Mounter> = Arc::<FakeMounter>::clone(&mounter);
        let driver = BucketDriver::open(settings, as_dyn, ManualClock::shared()).unwrap();
        let socket = PluginSocket::bind(&dir.path().join("x.sock")).unwrap();
        let (stop, stopped) = oneshot::channel();
        let deadlines = Deadlines {
            long: Duration::from_secs(3),
            short: Duration::from_secs(2),
        };
        let served = tokio::spawn(serve(socket, Arc::clone(&driver), deadlines, async {
            let _ = stopped.await;
            Stop::End
        }));
        Self {
            dir,
            mounter,
            driver,
            stop: Some(stop),
            served,
        }
    }

    /// The daemon stops without a word to the driver, and another one starts.
    pub(crate) async fn restart(mut self) -> Self {
        self.stop().await;
        Self::at(self.dir, |_| {})
    }

    /// Stops serving; returns when that is done.
    pub(crate) async fn stop(&mut self) {
        drop(self.stop.take());
        timeout(Duration::from_secs(5), &mut self.served)
            .await
            .expect("serve ends")
            .unwrap()
            .unwrap();
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("x.sock")
    }

    pub(crate) fn record(&self, volume: &str) -> PathBuf {
        self.dir.path().join("state/volumes").join(volume)
    }

    pub(crate) fn mountpoint(&self, volume: &str) -> String {
        self.dir
            .path()
            .join("mnt")
            .join(volume)
            .to_str()
            .unwrap()
            .to_owned()
    }

    pub(crate) async fn connect(&self) -> Connection {
        Connection(UnixStream::connect(self.socket()).await.unwrap())
    }

    /// One call on a connection of its own: status and body.
    pub(crate) async fn raw(&self, call: &str, body: &[u8]) -> (u16, String) {
        let mut connection = self.connect().await;
        connection.send(&request(call, body)).await;
        connection.answer().await.expect("an answer")
    }

    /// One call, whose status has to be 200.
    pub(crate) async fn call(&self, call: &str, body: Value) -> Value {
        let (status, answer) = self.raw(call, format!("{body}\n").as_bytes()).await;
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str(&answer).unwrap()
    }

    pub(crate) async fn create(&self, name: &str, options: &str) -> Value {
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key.to_owned(), json!(value))
        };
        let opts: serde_json::Map<_, _> = options.split_whitespace().map(pair).collect();
        self.call("VolumeDriver.Create", json!({"Name": name, "Opts": opts}))
            .await
    }

    pub(crate) async fn created(&self, name: &str, options: &str) {
        assert_eq!(self.create(name, options).await, json!({"Err": ""}));
    }

    pub(crate) async fn mount(&self, name: &str, id: &str) -> Value {
        self.call("VolumeDriver.Mount", json!({"Name": name, "ID": id}))
            .await
    }

    pub(crate) async fn mounted(&self, name: &str, id: &str) {
        let expected = json!({"Mountpoint": self.mountpoint(name), "Err": ""});
        assert_eq!(self.mount(name, id).await, expected);
    }

    pub(crate) async fn unmounted(&self, name: &str, id: &str) {
        let answer = self
            .call("VolumeDriver.Unmount", json!({"Name": name, "ID": id}))
            .await;
        assert_eq!(answer, json!({"Err": ""}));
    }

    pub(crate) async fn remove(&self, name: &str) -> Value {
        self.call("VolumeDriver.Remove", json!({"Name": name}))
            .await
    }

    pub(crate) async fn get(&self, name: &str) -> Value {
        self.call("VolumeDriver.Get", json!({"Name": name})).await
    }

    pub(crate) async fn status(&self, name: &str) -> Value {
        self.get(name).await["Volume"]["Status"].clone()
    }

    pub(crate) async fn names(&self) -> Vec<String> {
        let listed = self.call("VolumeDriver.List", json!({})).await;
        let volumes = listed["Volumes"].as_array().unwrap().iter();
        volumes
            .map(|volume| volume["Name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Waits until `n` sessions live.
    pub(crate) async fn sessions(&self, n: usize) {
        eventually(&format!("{n} sessions"), || {
            self.mounter.live.load(SeqCst) == n
        })
        .await;
    }
}

/// The words of an answer that says no.
pub(crate) fn err(answer: &Value) -> &str {
    let err = answer["Err"].as_str().unwrap();
    assert!(!err.is_empty(), "{answer}");
    assert!(!err.contains('\n'), "one line: {err}");
    err
}

pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 5 s: {what}");
}

/// A request as dockerd 20.10.24 sends it.
pub(crate) fn request(call: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "POST /{call} HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\n\
         Accept: application/vnd.docker.plugins.v1.2+json\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// One connection of the engine's.
pub(crate) struct Connection(UnixStream);

impl Connection {
    pub(crate) fn over(stream: UnixStream) -> Self {
        Self(stream)
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// The next answer: status and body, after a look at its headers; `None` when the peer closed.
    pub(crate) async fn answer(&mut self) -> Option<(u16, String)> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let next = timeout(Duration::from_secs(5), self.0.read_u8())
                .await
                .expect("an answer in time");
            head.push(next.ok()?);
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        assert!(
            head.contains("content-type: application/vnd.docker.plugins.v1.2+json\r\n"),
            "{head}"
        );
        let status = head.strip_prefix("http/1.1 ").unwrap()[..3]
            .parse()
            .unwrap();
        let length = head
            .split("content-length: ")
            .nth(1)
            .unwrap()
            .split("\r\n")
            .next()
            .unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        self.0.read_exact(&mut body).await.unwrap();
        Some((status, String::from_utf8(body).unwrap()))
    }
}

/// What the next attempt to mount does.
pub(crate) enum Step {
    Fail(MountError),
    /// Waits for the word, then mounts.
    Hang(Arc<Notify>),
}

/// A mounter that counts, and fails when told to.
#[derive(Default)]
pub(crate) struct FakeMounter {
    base: PathBuf,
    /// Sessions that live, the most that ever did at once, and all there were.
    pub(crate) live: Arc<AtomicUsize>,
    pub(crate) most: AtomicUsize,
    pub(crate) total: AtomicUsize,
    pub(crate) attempts: AtomicUsize,
    pub(crate) steps: Mutex<VecDeque<Step>>,
    /// What a check answers; the outer `None` is never.
    pub(crate) check: Mutex<Option<Result<(), MountError>>>,
    pub(crate) check_hangs: AtomicBool,
    /// Checks wait for each other here.
    pub(crate) check_gate: Mutex<Option<Arc<Barrier>>>,
    pub(crate) switches: Arc<Switches>,
    pub(crate) specs: Mutex<Vec<VolumeSpec>>,
    /// The volumes that were to go on, and what the next ones have left.
    pub(crate) resumed: Mutex<Vec<String>>,
    pub(crate) left: Mutex<VecDeque<Result<bool, MountError>>>,
    /// Volumes that an earlier daemon left to containers.
    pub(crate) left_behind: Mutex<BTreeSet<String>>,
}

/// What mounts that exist do.
#[derive(Default)]
pub(crate) struct Switches {
    pub(crate) held: AtomicBool,
    pub(crate) dead: AtomicBool,
    pub(crate) covered: AtomicBool,
    pub(crate) dirty: AtomicU64,
    pub(crate) drains: AtomicUsize,
    pub(crate) drain_hangs: AtomicBool,
    /// Somebody writes as soon as a drain is done.
    pub(crate) written_after: AtomicBool,
    pub(crate) detach_error: Mutex<Option<MountError>>,
}

#[async_trait]
impl Mounter for FakeMounter {
    fn mountpoint(&self, name: &VolumeName) -> PathBuf {
        self.base.join(name.as_str())
    }

    async fn is_left_behind(&self, name: &VolumeName) -> bool {
        self.left_behind.lock().contains(name.as_str())
    }

    async fn check(&self, _: &VolumeSpec) -> Result<(), MountError> {
        if self.check_hangs.load(SeqCst) {
            std::future::pending::<()>().await;
        }
        let gate = self.check_gate.lock().clone();
        if let Some(gate) = gate {
            gate.wait().await;
        }
        self.check.lock().clone().unwrap_or(Ok(()))
    }

    async fn resume(&self, spec: &VolumeSpec) -> Result<bool, MountError> {
        self.resumed.lock().push(spec.name.to_string());
        match self.left.lock().pop_front() {
            Some(left) => left,
            None => Ok(false),
        }
    }

    async fn mount(&self, spec: &VolumeSpec) -> Result<Box<dyn Mount>, MountError> {
        self.attempts.fetch_add(1, SeqCst);
        let step = self.steps.lock().pop_front();
        match step {
            Some(Step::Fail(error)) => return Err(error),
            Some(Step::Hang(word)) => word.notified().await,
            None => sleep(Duration::from_millis(1)).await,
        }
        self.specs.lock().push(spec.clone());
        self.total.fetch_add(1, SeqCst);
        let live = self.live.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(live, SeqCst);
        Ok(Box::new(FakeMount {
            mountpoint: self.mountpoint(&spec.name),
            live: Arc::clone(&self.live),
            detached: AtomicBool::new(false),
            switches: Arc::clone(&self.switches),
        }))
    }
}

struct FakeMount {
    mountpoint: PathBuf,
    live: Arc<AtomicUsize>,
    detached: AtomicBool,
    switches: Arc<Switches>,
}

#[async_trait]
impl Mount for FakeMount {
    fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    fn is_alive(&self) -> bool {
        !self.detached.load(SeqCst) && !self.switches.dead.load(SeqCst)
    }

    fn is_attached(&self) -> bool {
        !self.switches.covered.load(SeqCst)
    }

    async fn is_held(&self) -> bool {
        self.switches.held.load(SeqCst)
    }

    async fn drain(&self, limit: Duration) -> Result<(), MountError> {
        self.switches.drains.fetch_add(1, SeqCst);
        if self.switches.drain_hangs.load(SeqCst) {
            sleep(limit * 100).await;
        }
        match self.switches.dirty.load(SeqCst) {
            0 => {
                if self.switches.written_after.swap(false, SeqCst) {
                    self.switches.dirty.store(1, SeqCst);
                }
                Ok(())
            }
            bytes => Err(MountError::Unavailable(format!(
                "{bytes} bytes are waiting for the store"
            ))),
        }
    }

    async fn detach(&self) -> Result<(), MountError> {
        sleep(Duration::from_millis(1)).await;
        if let Some(error) = self.switches.detach_error.lock().clone() {
            return Err(error);
        }
        if !self.detached.swap(true, SeqCst) {
            self.live.fetch_sub(1, SeqCst);
        }
        Ok(())
    }

    fn status(&self) -> MountStatus {
        MountStatus {
            dirty_bytes: self.switches.dirty.load(SeqCst),
            ..MountStatus::default()
        }
    }
}
