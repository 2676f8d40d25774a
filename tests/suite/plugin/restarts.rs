//! A daemon that goes on with the mounts of another: what it is told by nobody.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use tokio::time::sleep;

use super::rig::{Rig, eventually};

#[tokio::test]
async fn after_a_restart_the_first_mount_makes_a_session_of_its_own() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    rig.mounted("v", "1").await;
    let rig = rig.restart().await;
    rig.unmounted("v", "1").await;
    rig.mounted("v", "1").await;
    assert_eq!(rig.mounter.total.load(SeqCst), 1);
}

#[tokio::test]
async fn a_start_mounts_what_a_dead_daemon_left_to_containers_until_they_let_go() {
    let rig = Rig::new();
    for name in ["left", "idle"] {
        rig.created(name, &format!("bucket={name}")).await;
    }
    rig.mounter.left_behind.lock().insert("left".to_owned());
    rig.mounter.switches.held.store(true, SeqCst);
    rig.driver.heal().await;
    assert_eq!(
        rig.mounter.live.load(SeqCst),
        1,
        "only what was left behind"
    );
    rig.mounted("left", "1").await;
    rig.unmounted("left", "1").await;
    assert_eq!(
        rig.mounter.total.load(SeqCst),
        1,
        "a Mount joins the session"
    );
    rig.mounter.switches.held.store(false, SeqCst);
    eventually("the detach", || rig.mounter.live.load(SeqCst) == 0).await;
}

/// A daemon that has gone on with the mount of `v`.
async fn gone_on() -> Rig {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    rig.mounter.left_behind.lock().insert("v".to_owned());
    rig.driver.heal().await;
    rig
}

/// The engine has been answered, and has not started the container yet.
#[tokio::test]
async fn a_mount_of_the_daemon_before_is_waited_for_by_the_container_that_is_to_have_it() {
    let rig = gone_on().await;
    // Many looks of the sweeper's, and the end of another container.
    rig.unmounted("v", "another").await;
    sleep(Duration::from_millis(200)).await;
    assert_eq!(rig.mounter.live.load(SeqCst), 1);
    rig.mounter.switches.held.store(true, SeqCst);
    sleep(Duration::from_millis(800)).await;
    assert_eq!(rig.mounter.live.load(SeqCst), 1);
    rig.mounter.switches.held.store(false, SeqCst);
    rig.sessions(0).await;
}

#[tokio::test]
async fn a_mount_of_the_daemon_before_that_nobody_comes_for_goes() {
    let rig = gone_on().await;
    assert_eq!(rig.mounter.live.load(SeqCst), 1);
    rig.sessions(0).await;
}
