//! Mount and Unmount: sessions, ids, hang-ups, stores that are away.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use bucketvol::plugin::bucket::{MountError, VolumeName};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::rig::{Rig, Step, err, eventually, request};

fn away() -> MountError {
    MountError::Unavailable("s3://bbb: connection refused".into())
}

fn denied() -> MountError {
    MountError::Refused("bucket bbb: 403 AccessDenied".into())
}

fn mount_request(name: &str, id: &str) -> Vec<u8> {
    request(
        "VolumeDriver.Mount",
        format!("{}\n", json!({"Name": name, "ID": id})).as_bytes(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixty_four_parallel_pairs_end_with_one_session_at_a_time_and_then_none() {
    let rig = Arc::new(Rig::new());
    rig.created("v", "bucket=bbb").await;
    let mut pairs = JoinSet::new();
    for n in 0..64 {
        let rig = Arc::clone(&rig);
        pairs.spawn(async move {
            let id = format!("{n:064x}");
            rig.mounted("v", &id).await;
            assert_eq!(
                rig.mounter.live.load(SeqCst),
                1,
                "a mounted volume has its session"
            );
            rig.unmounted("v", &id).await;
        });
    }
    while let Some(done) = pairs.join_next().await {
        done.unwrap();
    }
    rig.sessions(0).await;
    assert_eq!(rig.mounter.most.load(SeqCst), 1);
    assert_eq!(rig.status("v").await["state"], "not mounted");
}

#[tokio::test]
async fn containers_share_a_session_and_the_last_one_ends_it() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    rig.mounted("v", "1").await;
    rig.mounted("v", "2").await;
    rig.unmounted("v", "1").await;
    assert_eq!(rig.mounter.live.load(SeqCst), 1);
    assert_eq!(rig.mounter.switches.drains.load(SeqCst), 0);
    rig.unmounted("v", "2").await;
    assert_eq!(
        rig.mounter.live.load(SeqCst),
        0,
        "done when the answer is there"
    );
    assert_eq!(rig.mounter.switches.drains.load(SeqCst), 1);
    assert_eq!(rig.mounter.total.load(SeqCst), 1);
}

#[tokio::test]
async fn docker_cp_which_uses_the_containers_id_again_takes_nothing_from_the_container() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    rig.mounted("v", "container").await;
    rig.mounter.switches.held.store(true, SeqCst);
    for _ in 0..2 {
        rig.mounted("v", "container").await;
        rig.unmounted("v", "container").await;
    }
    sleep(Duration::from_millis(100)).await;
    assert_eq!(
        rig.mounter.live.load(SeqCst),
        1,
        "the container still has it mounted"
    );
    rig.mounter.switches.held.store(false, SeqCst);
    rig.unmounted("v", "container").await;
    rig.sessions(0).await;
    assert_eq!(rig.mounter.total.load(SeqCst), 1);
}

#[tokio::test]
async fn a_lost_unmount_does_not_keep_the_session_for_ever() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    rig.mounted("v", "same").await;
    // The engine crashed, and its next start uses the container's old id.
    rig.mounted("v", "same").await;
    rig.unmounted("v", "same").await;
    rig.sessions(0).await;
}

#[tokio::test]
async fn a_mount_that_containers_hold_stays_until_they_let_go() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    rig.mounted("v", "1").await;
    rig.mounter.switches.held.store(true, SeqCst);
    rig.unmounted("v", "1").await;
    sleep(Duration::from_millis(150)).await;
    assert_eq!(rig.mounter.live.load(SeqCst), 1);
    // A Mount in between uses the session further.
    rig.mounted("v", "2").await;
    assert_eq!(rig.mounter.total.load(SeqCst), 1);
    rig.mounter.switches.held.store(false, SeqCst);
    sleep(Duration::from_millis(400)).await;
    assert_eq!(rig.mounter.live.load(SeqCst), 1, "a holder is known again");
    rig.mounter.switches.held.store(true, SeqCst);
    rig.unmounted("v", "2").await;
    rig.mounter.switches.held.store(false, SeqCst);
    // Nobody says anything any more; it is found out.
    rig.sessions(0).await;
}

#[tokio::test]
async fn an_unmount_of_what_is_not_mounted_succeeds() {
    let rig = Rig::new();
    rig.unmounted("unknown", "1").await;
    rig.unmounted("../x", "1").await;
    rig.created("v", "bucket=bbb").await;
    rig.unmounted("v", "1").await;
    rig.mounted("v", "1").await;
    rig.unmounted("v", "never seen").await;
    assert_eq!(rig.mounter.live.load(SeqCst), 1);
}

#[tokio::test]
async fn a_mount_whose_caller_hung_up_is_undone() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    let word = Arc::new(Notify::new());
    rig.mounter
        .steps
        .lock()
        .push_back(Step::Hang(Arc::clone(&word)));
    let mut engine = rig.connect().await;
    engine.send(&mount_request("v", "1")).await;
    eventually("the attempt", || rig.mounter.attempts.load(SeqCst) == 1).await;
    drop(engine);
    sleep(Duration::from_millis(50)).await;
    word.notify_one();
    eventually("the mount", || rig.mounter.total.load(SeqCst) == 1).await;
    rig.sessions(0).await;
    rig.mounted("v", "2").await;
    assert_eq!(rig.status("v").await["holders"], 1);
}

#[tokio::test]
async fn nobody_retries_for_a_caller_that_hung_up() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    rig.mounter
        .steps
        .lock()
        .extend((0..10_000).map(|_| Step::Fail(away())));
    let mut engine = rig.connect().await;
    engine.send(&mount_request("v", "1")).await;
    eventually("some attempts", || rig.mounter.attempts.load(SeqCst) >= 2).await;
    drop(engine);
    sleep(Duration::from_millis(50)).await;
    rig.mounter.steps.lock().clear();
    let attempts = rig.mounter.attempts.load(SeqCst);
    sleep(Duration::from_millis(700)).await;
    assert_eq!(rig.mounter.attempts.load(SeqCst), attempts);
    assert_eq!(rig.mounter.total.load(SeqCst), 0);
}

#[tokio::test]
async fn lookups_answer_at_once_while_a_mount_hangs() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    rig.created("w", "bucket=www").await;
    let word = Arc::new(Notify::new());
    rig.mounter
        .steps
        .lock()
        .push_back(Step::Hang(Arc::clone(&word)));
    let mut engine = rig.connect().await;
    engine.send(&mount_request("v", "1")).await;
    eventually("the attempt", || rig.mounter.attempts.load(SeqCst) == 1).await;
    let started = Instant::now();
    for _ in 0..20 {
        assert_eq!(rig.get("v").await["Volume"]["Name"], "v");
        assert_eq!(rig.names().await, ["v", "w"]);
        rig.call("VolumeDriver.Path", json!({"Name": "v"})).await;
        rig.call("VolumeDriver.Capabilities", json!({})).await;
        rig.call("Plugin.Activate", json!({})).await;
    }
    assert!(
        started.elapsed() < Duration::from_millis(1000),
        "100 calls in {:?}",
        started.elapsed()
    );
    // Other volumes do not wait either.
    rig.mounted("w", "1").await;
    word.notify_one();
    assert_eq!(engine.answer().await.unwrap().0, 200);
}

#[tokio::test]
async fn a_store_that_is_briefly_away_delays_the_mount() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    rig.mounter
        .steps
        .lock()
        .extend((0..4).map(|_| Step::Fail(away())));
    rig.mounted("v", "1").await;
    assert_eq!(rig.mounter.attempts.load(SeqCst), 5);
    assert_eq!(
        rig.status("v").await.get("last_error"),
        None,
        "what is over is not shown"
    );
}

#[tokio::test]
async fn a_store_that_stays_away_is_an_error_with_cause_and_mend_before_the_engine_gives_up() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb prefix=p").await;
    rig.mounter
        .steps
        .lock()
        .extend((0..10_000).map(|_| Step::Fail(away())));
    let answer = rig.mount("v", "1").await;
    let text = err(&answer);
    for words in [
        "volume v (s3://bbb/p)",
        "connection refused",
        "tried for",
        "docker volume rm first",
    ] {
        assert!(text.contains(words), "{text}");
    }
    assert_eq!(
        rig.status("v").await["last_error"],
        "s3://bbb: connection refused"
    );
    assert_eq!(answer.get("Mountpoint"), None);
}

#[tokio::test]
async fn a_definite_no_is_not_retried() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    rig.mounter.steps.lock().push_back(Step::Fail(denied()));
    let answer = rig.mount("v", "1").await;
    assert!(
        err(&answer).contains("volume v (s3://bbb): bucket bbb: 403 AccessDenied; "),
        "{answer}"
    );
    assert_eq!(rig.mounter.attempts.load(SeqCst), 1);
    rig.mounted("v", "1").await;
}

#[tokio::test]
async fn an_attempt_that_hangs_is_given_up_in_time_and_undone_later() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    let word = Arc::new(Notify::new());
    rig.mounter
        .steps
        .lock()
        .push_back(Step::Hang(Arc::clone(&word)));
    let (first, second) = tokio::join!(rig.mount("v", "1"), async {
        sleep(Duration::from_millis(50)).await;
        rig.mount("v", "2").await
    });
    assert!(err(&first).contains("not mounted after 1 s"), "{first}");
    assert!(
        err(&second).contains("another call is busy with it"),
        "{second}"
    );
    word.notify_one();
    eventually("the late mount", || rig.mounter.total.load(SeqCst) == 1).await;
    rig.sessions(0).await;
    rig.mounted("v", "3").await;
}

#[tokio::test]
async fn a_drain_that_fails_delays_no_unmount_and_goes_on_behind_it() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    rig.mounted("v", "1").await;
    rig.mounter.switches.dirty.store(4096, SeqCst);
    rig.mounter.switches.drain_hangs.store(true, SeqCst);
    let started = Instant::now();
    rig.unmounted("v", "1").await;
    assert!(
        started.elapsed() < Duration::from_millis(1500),
        "{:?}",
        started.elapsed()
    );
    rig.mounter.switches.drain_hangs.store(false, SeqCst);
    sleep(Duration::from_millis(100)).await;
    assert_eq!(
        rig.mounter.live.load(SeqCst),
        1,
        "bytes that are not in the bucket keep the session"
    );
    assert_eq!(rig.status("v").await["mount"]["dirty_bytes"], 4096);
    rig.mounter.switches.dirty.store(0, SeqCst);
    rig.sessions(0).await;
}

#[tokio::test]
async fn what_was_written_after_the_drain_is_drained_too() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    rig.mounted("v", "1").await;
    rig.mounter.switches.written_after.store(true, SeqCst);
    rig.unmounted("v", "1").await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(rig.mounter.live.load(SeqCst), 1);
    rig.mounter.switches.dirty.store(0, SeqCst);
    rig.sessions(0).await;
}

#[tokio::test]
async fn a_drain_under_way_does_not_delay_the_next_mount() {
    let rig = Arc::new(Rig::new());
    rig.created("v", "bucket=bbb").await;
    rig.mounted("v", "1").await;
    rig.mounter.switches.drain_hangs.store(true, SeqCst);
    let unmount = tokio::spawn({
        let rig = Arc::clone(&rig);
        async move { rig.unmounted("v", "1").await }
    });
    eventually("the drain", || {
        rig.mounter.switches.drains.load(SeqCst) == 1
    })
    .await;
    let started = Instant::now();
    rig.mounted("v", "2").await;
    assert!(
        started.elapsed() < Duration::from_millis(200),
        "{:?}",
        started.elapsed()
    );
    unmount.await.unwrap();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(rig.mounter.live.load(SeqCst), 1);
    assert_eq!(rig.mounter.total.load(SeqCst), 1);
}

#[tokio::test]
async fn a_session_that_ended_or_lost_its_mount_point_is_replaced() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    rig.mounted("v", "1").await;
    rig.mounter.switches.dead.store(true, SeqCst);
    rig.mounted("v", "2").await;
    assert_eq!(rig.mounter.total.load(SeqCst), 2);
    rig.mounter.switches.dead.store(false, SeqCst);
    rig.mounter.switches.covered.store(true, SeqCst);
    rig.mounted("v", "3").await;
    assert_eq!(rig.mounter.total.load(SeqCst), 3);
}

#[tokio::test]
async fn a_mount_that_cannot_be_detached_is_never_mounted_over() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    rig.mounted("v", "1").await;
    *rig.mounter.switches.detach_error.lock() = Some(MountError::Refused("umount2: EPERM".into()));
    rig.unmounted("v", "1").await;
    assert_eq!(rig.status("v").await["state"], "unmount failed");
    assert!(
        err(&rig.mount("v", "2").await).contains("an earlier mount is in the way: umount2: EPERM")
    );
    *rig.mounter.switches.detach_error.lock() = None;
    rig.mounted("v", "3").await;
    assert_eq!(rig.mounter.most.load(SeqCst), 1);
}

#[tokio::test]
async fn a_shutdown_detaches_what_no_container_has_whatever_the_ids_say() {
    let rig = Rig::new();
    for name in ["a", "b"] {
        rig.created(name, &format!("bucket={name}{name}{name}"))
            .await;
        rig.mounted(name, "leaked").await;
    }
    let stopped = rig.driver.shutdown(Duration::from_secs(1)).await;
    assert_eq!(stopped.detached.len(), 2);
    assert_eq!(rig.mounter.live.load(SeqCst), 0);
    assert!(err(&rig.mount("a", "late").await).contains("the daemon is stopping"));
}

#[tokio::test]
async fn a_shutdown_leaves_what_containers_have_and_says_what_is_not_in_the_bucket() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    rig.mounted("v", "1").await;
    let v = VolumeName::parse("v").unwrap();
    rig.mounter.switches.held.store(true, SeqCst);
    let stopped = rig.driver.shutdown(Duration::from_millis(300)).await;
    assert_eq!((&stopped.left, &stopped.dirty), (&vec![v.clone()], &vec![]));
    rig.mounter.switches.dirty.store(1, SeqCst);
    rig.mounter.switches.drain_hangs.store(true, SeqCst);
    let started = Instant::now();
    let stopped = rig.driver.shutdown(Duration::from_millis(300)).await;
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(stopped.dirty, [v]);
    assert_eq!(rig.mounter.live.load(SeqCst), 1);
}

#[tokio::test]
async fn a_stop_lets_the_mount_in_hand_be_answered() {
    let mut rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    let word = Arc::new(Notify::new());
    rig.mounter
        .steps
        .lock()
        .push_back(Step::Hang(Arc::clone(&word)));
    let mut engine = rig.connect().await;
    engine.send(&mount_request("v", "1")).await;
    eventually("the attempt", || rig.mounter.attempts.load(SeqCst) == 1).await;
    tokio::spawn(async move {
        sleep(Duration::from_millis(200)).await;
        word.notify_one();
    });
    rig.stop().await;
    let mountpoint = rig.mountpoint("v");
    assert_eq!(
        engine.answer().await,
        Some((200, format!(r#"{{"Mountpoint":"{mountpoint}","Err":""}}"#)))
    );
}
