//! What the server does for any driver: one that hangs, panics or talks nonsense.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bucketvol::plugin::{
    Caller, Deadlines, PluginError, PluginSocket, Scope, Stop, Volume, VolumeDriver, serve,
};
use parking_lot::Mutex;
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};

use super::rig::{Connection, eventually, request};

/// Does what the volume's name says, and keeps a diary.
#[derive(Default)]
struct Obedient {
    diary: Mutex<Vec<String>>,
    word: Notify,
}

impl Obedient {
    async fn obey(&self, name: &str) -> Result<(), PluginError> {
        match name {
            "hang" => std::future::pending().await,
            "panic" => panic!("as I was told"),
            "wait" => self.word.notified().await,
            "fail" => return Err(PluginError::Failed("disk of host h is full".into())),
            "mute" => return Err(PluginError::Failed(String::new())),
            _ => {}
        }
        Ok(())
    }
}

impl VolumeDriver for Obedient {
    fn scope(&self) -> Scope {
        Scope::Global
    }

    async fn create(
        &self,
        name: &str,
        options: BTreeMap<String, String>,
    ) -> Result<(), PluginError> {
        self.diary.lock().push(format!("create {name} {options:?}"));
        self.obey(name).await
    }

    async fn remove(&self, name: &str) -> Result<(), PluginError> {
        self.obey(name).await
    }

    async fn mount(&self, name: &str, _: &str, caller: &Caller) -> Result<PathBuf, PluginError> {
        self.obey(name).await?;
        self.diary.lock().push(format!(
            "mounted {name}, caller gone: {}",
            caller.has_gone()
        ));
        Ok(if name == "nowhere" {
            PathBuf::new()
        } else {
            "/m".into()
        })
    }

    async fn unmount(&self, name: &str, id: &str) -> Result<(), PluginError> {
        self.diary.lock().push(format!("unmount {name} {id}"));
        Ok(())
    }

    async fn path(&self, name: &str) -> Result<PathBuf, PluginError> {
        Ok(PathBuf::from(name))
    }

    async fn get(&self, name: &str) -> Result<Volume, PluginError> {
        let before_1970 = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        Ok(Volume {
            name: name.into(),
            created_at: Some(before_1970),
            ..Volume::default()
        })
    }

    async fn list(&self) -> Result<Vec<Volume>, PluginError> {
        Ok(vec![])
    }
}

struct Served {
    driver: Arc<Obedient>,
    dir: tempfile::TempDir,
}

impl Served {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let driver = Arc::new(Obedient::default());
        let socket = PluginSocket::bind(&dir.path().join("x.sock")).unwrap();
        let deadlines = Deadlines {
            long: Duration::from_millis(1200),
            short: Duration::from_millis(300),
        };
        tokio::spawn(serve(
            socket,
            Arc::clone(&driver),
            deadlines,
            std::future::pending(),
        ));
        Self { driver, dir }
    }

    async fn send(&self, call: &str, body: &str) -> Connection {
        let stream = UnixStream::connect(self.dir.path().join("x.sock"))
            .await
            .unwrap();
        let mut connection = Connection::over(stream);
        connection.send(&request(call, body.as_bytes())).await;
        connection
    }

    async fn call(&self, call: &str, body: &str) -> (u16, String) {
        self.send(call, body).await.answer().await.unwrap()
    }
}

#[tokio::test]
async fn a_drivers_words_reach_the_person_bare() {
    let served = Served::new();
    for (call, body, answer) in [
        (
            "VolumeDriver.Remove",
            r#"{"Name":"fail"}"#,
            r#"{"Err":"disk of host h is full"}"#,
        ),
        (
            "VolumeDriver.Remove",
            r#"{"Name":"mute"}"#,
            r#"{"Err":"the volume driver gave no reason"}"#,
        ),
        (
            "VolumeDriver.Get",
            r#"{"Name":"v"}"#,
            r#"{"Volume":{"Name":"v"},"Err":""}"#,
        ),
        (
            "VolumeDriver.Capabilities",
            "{}",
            r#"{"Capabilities":{"Scope":"global"}}"#,
        ),
        ("VolumeDriver.List", "{}", r#"{"Volumes":[],"Err":""}"#),
    ] {
        assert_eq!(served.call(call, body).await, (200, answer.to_owned()));
    }
}

#[tokio::test]
async fn no_mount_point_is_an_error_and_not_the_containers_bundle() {
    let served = Served::new();
    for call in ["VolumeDriver.Mount", "VolumeDriver.Path"] {
        let (_, answer) = served.call(call, r#"{"Name":"nowhere","ID":"1"}"#).await;
        assert!(
            answer.starts_with(r#"{"Err":"the volume driver gave "#),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn a_driver_that_hangs_or_panics_is_answered_for() {
    let served = Served::new();
    for (call, name, status, words) in [
        (
            "VolumeDriver.Remove",
            "hang",
            504,
            "VolumeDriver.Remove was not done",
        ),
        (
            "VolumeDriver.Create",
            "hang",
            504,
            "VolumeDriver.Create was not done after 1 s",
        ),
        (
            "VolumeDriver.Create",
            "panic",
            500,
            "broke down in VolumeDriver.Create",
        ),
    ] {
        let (got, answer) = served.call(call, &format!(r#"{{"Name":"{name}"}}"#)).await;
        assert!(got == status && answer.contains(words), "{got} {answer}");
    }
    assert_eq!(
        served
            .call("VolumeDriver.Create", r#"{"Name":"v"}"#)
            .await
            .0,
        200
    );
}

#[tokio::test]
async fn a_mount_that_succeeds_for_nobody_is_followed_by_its_unmount() {
    let served = Served::new();
    let engine = served
        .send("VolumeDriver.Mount", r#"{"Name":"wait","ID":"7"}"#)
        .await;
    sleep(Duration::from_millis(100)).await;
    drop(engine);
    sleep(Duration::from_millis(100)).await;
    served.driver.word.notify_one();
    eventually("the unmount", || served.driver.diary.lock().len() == 2).await;
    assert_eq!(
        *served.driver.diary.lock(),
        ["mounted wait, caller gone: true", "unmount wait 7"]
    );
}

#[tokio::test]
async fn a_mount_that_was_answered_late_is_undone_too() {
    let served = Served::new();
    let (status, _) = served
        .call("VolumeDriver.Mount", r#"{"Name":"wait","ID":"7"}"#)
        .await;
    assert_eq!(status, 504);
    served.driver.word.notify_one();
    eventually("the unmount", || served.driver.diary.lock().len() == 2).await;
}

#[tokio::test]
async fn work_begun_for_a_caller_that_hung_up_is_finished() {
    let served = Served::new();
    drop(
        served
            .send("VolumeDriver.Create", r#"{"Name":"v","Opts":{"k":""}}"#)
            .await,
    );
    eventually("the creation", || !served.driver.diary.lock().is_empty()).await;
    assert_eq!(*served.driver.diary.lock(), [r#"create v {"k": ""}"#]);
}

#[tokio::test]
async fn at_a_hand_over_calls_in_hand_are_answered_and_later_ones_wait_for_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    let connect = async || Connection::over(UnixStream::connect(&path).await.unwrap());
    let socket = PluginSocket::bind(&path).unwrap().outlive();
    let [listener, file] = socket
        .descriptors()
        .unwrap()
        .map(|fd| fd.try_clone_to_owned().unwrap());
    let driver = Arc::new(Obedient::default());
    let (stop, stopped) = oneshot::channel();
    let served = tokio::spawn(serve(
        socket,
        Arc::clone(&driver),
        Deadlines::SOCKET,
        async move { stopped.await.unwrap() },
    ));
    let list = request("VolumeDriver.List", b"{}\n");
    let mut in_hand = connect().await;
    let mount = request("VolumeDriver.Mount", br#"{"Name":"wait","ID":"7"}"#);
    in_hand.send(&mount).await;
    let mut accepted = connect().await;
    sleep(Duration::from_millis(100)).await;
    let limit = Duration::from_secs(5);
    stop.send(Stop::HandOver { limit }).unwrap();
    sleep(Duration::from_millis(50)).await;
    let mut later = connect().await;
    later.send(&list).await;

    accepted.send(&list).await;
    assert_eq!(accepted.answer().await.unwrap().0, 200);
    driver.word.notify_one();
    assert_eq!(in_hand.answer().await.unwrap().0, 200);
    let stopped = timeout(limit, served).await.expect("it ends in time");
    assert_eq!(stopped.unwrap().unwrap(), Stop::HandOver { limit });

    let next = PluginSocket::taken_over(&path, listener, file);
    let (stop, stopped) = oneshot::channel();
    let served = tokio::spawn(serve(next, driver, Deadlines::SOCKET, async move {
        stopped.await.unwrap()
    }));
    assert_eq!(later.answer().await.unwrap().0, 200);
    stop.send(Stop::End).unwrap();
    served.await.unwrap().unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn a_call_that_takes_too_long_for_a_hand_over_is_broken_off() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    let socket = PluginSocket::bind(&path).unwrap().outlive();
    let (stop, stopped) = oneshot::channel();
    let driver = Arc::new(Obedient::default());
    let served = tokio::spawn(serve(socket, driver, Deadlines::SOCKET, async move {
        stopped.await.unwrap()
    }));
    let mut call = Connection::over(UnixStream::connect(&path).await.unwrap());
    let mount = request("VolumeDriver.Mount", br#"{"Name":"hang","ID":"7"}"#);
    call.send(&mount).await;
    sleep(Duration::from_millis(50)).await;
    let limit = Duration::from_millis(400);
    stop.send(Stop::HandOver { limit }).unwrap();
    served.await.unwrap().unwrap();
    assert!(path.exists());
}
