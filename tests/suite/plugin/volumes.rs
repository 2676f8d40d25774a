//! Create, Get, List, Remove: records, options, names, secrets.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use bucketvol::plugin::bucket::MountError;
use serde_json::json;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::rig::{Rig, Step, err, eventually};

#[tokio::test]
async fn volumes_survive_a_restart_as_they_were() {
    let rig = Rig::new();
    rig.created("b", "bucket=bbb prefix=x").await;
    rig.created(
        "a",
        "bucket=aaa access_key_id=AKIA secret_access_key=hush-hush-hush",
    )
    .await;
    let before = (rig.get("a").await, rig.get("b").await);
    let rig = rig.restart().await;
    assert_eq!(rig.names().await, ["a", "b"]);
    assert_eq!((rig.get("a").await, rig.get("b").await), before);
    rig.mounted("a", "1").await;
    let spec = rig.mounter.specs.lock()[0].clone();
    assert_eq!(json!(spec.id), before.0["Volume"]["Status"]["id"]);
    assert!(
        format!("{:?}", spec.options).contains("AKIA"),
        "the credentials came back too"
    );
}

#[tokio::test]
async fn a_damaged_record_keeps_its_volume_and_says_why_it_cannot_be_mounted() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    rig.created("w", "bucket=www").await;
    for file in fs::read_dir(rig.record("v")).unwrap() {
        fs::write(file.unwrap().path(), "{\"version\":1,\"id\":").unwrap();
    }
    let rig = rig.restart().await;
    assert_eq!(rig.names().await, ["v", "w"]);
    let got = rig.get("v").await;
    assert_eq!(
        (
            got["Err"].as_str(),
            got["Volume"]["Status"]["state"].as_str()
        ),
        (Some(""), Some("broken"))
    );
    let answer = rig.mount("v", "1").await;
    let text = err(&answer);
    assert!(
        text.contains("record.json") && text.contains("damaged"),
        "{text}"
    );
    assert!(text.contains("docker volume rm v first"), "{text}");
    assert!(err(&rig.create("v", "bucket=bbb").await).contains("docker volume rm v first"));
    assert_eq!(rig.remove("v").await, json!({"Err": ""}));
    rig.created("v", "bucket=bbb").await;
    rig.mounted("v", "1").await;
}

#[tokio::test]
async fn a_record_of_a_later_release_keeps_its_volume() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    fs::write(rig.record("v").join("record.json"), r#"{"version":99}"#).unwrap();
    let rig = rig.restart().await;
    assert_eq!(rig.names().await, ["v"]);
    let error = rig.status("v").await["last_error"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(error.contains("format 99"), "{error}");
}

#[tokio::test]
async fn creating_the_same_again_is_a_success_and_something_else_is_not() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb prefix=p").await;
    rig.created("v", "prefix=p bucket=bbb").await;
    let answer = rig.create("v", "bucket=bbb prefix=q").await;
    let text = err(&answer);
    assert!(
        text.contains(r#"prefix is "p" and not "q""#) && text.contains("docker volume rm v first"),
        "{text}"
    );
    assert_eq!(rig.status("v").await["store"], "s3://bbb/p");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn volumes_created_at_once_are_all_there_and_one_name_is_one_volume() {
    let rig = Arc::new(Rig::new());
    let mut creating = JoinSet::new();
    for n in 0..32 {
        let rig = Arc::clone(&rig);
        creating.spawn(async move {
            rig.created(
                &format!("v{:02}", n / 2),
                &format!("bucket=bbb{:02}", n / 2),
            )
            .await;
        });
    }
    while let Some(done) = creating.join_next().await {
        done.unwrap();
    }
    assert_eq!(rig.names().await.len(), 16);
    let rig = Arc::into_inner(rig).unwrap().restart().await;
    assert_eq!(rig.names().await.len(), 16);
}

#[tokio::test]
async fn a_store_that_says_no_refuses_the_volume_and_nothing_is_left() {
    let rig = Rig::new();
    *rig.mounter.check.lock() = Some(Err(MountError::Refused(
        "bucket bbb: 404 NoSuchBucket".into(),
    )));
    let answer = rig.create("v", "bucket=bbb").await;
    assert_eq!(
        err(&answer),
        "volume v (s3://bbb): bucket bbb: 404 NoSuchBucket"
    );
    assert_eq!(rig.names().await, Vec::<String>::new());
    assert_eq!(
        fs::read_dir(rig.dir.path().join("state/volumes"))
            .unwrap()
            .count(),
        0
    );
    rig.created("v", "bucket=bbb check=false").await;
}

#[tokio::test]
async fn a_store_that_is_away_is_a_warning_until_the_first_mount() {
    let rig = Rig::new();
    *rig.mounter.check.lock() = Some(Err(MountError::Unavailable("b: connection refused".into())));
    rig.created("v", "bucket=bbb").await;
    rig.mounter.check_hangs.store(true, SeqCst);
    let started = Instant::now();
    rig.created("w", "bucket=www").await;
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
    for (name, cause) in [("v", "connection refused"), ("w", "no answer after")] {
        let warning = rig.status(name).await["warnings"][0]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(
            warning.contains("could not be asked") && warning.contains(cause),
            "{warning}"
        );
    }
    rig.mounted("v", "1").await;
    assert_eq!(rig.status("v").await.get("warnings"), None);
}

#[tokio::test]
async fn volumes_inside_each_other_are_refused_by_name() {
    let rig = Rig::new();
    rig.created("outer", "bucket=bbb prefix=p").await;
    rig.created("twin", "bucket=bbb prefix=p").await;
    let answer = rig.create("inner", "bucket=bbb prefix=p/q").await;
    assert!(
        err(&answer).contains("volume outer") && err(&answer).contains("overlap=allow"),
        "{answer}"
    );
    rig.created("inner", "bucket=bbb prefix=p/q overlap=allow")
        .await;
    rig.created("reader", "bucket=bbb ro").await;
    let answer = rig
        .create("other", "bucket=bbb prefix=p uid=7 overlap=allow")
        .await;
    assert!(
        err(&answer).contains("say the same") && err(&answer).contains("uid"),
        "{answer}"
    );
    assert_eq!(rig.names().await, ["inner", "outer", "reader", "twin"]);
}

#[tokio::test]
async fn of_two_volumes_inside_each_other_created_at_once_one_is_refused() {
    let rig = Rig::new();
    *rig.mounter.check_gate.lock() = Some(Arc::new(Barrier::new(2)));
    let (outer, inner) = tokio::join!(
        rig.create("outer", "bucket=bbb"),
        rig.create("inner", "bucket=bbb prefix=p")
    );
    let refused = [outer, inner]
        .iter()
        .filter(|answer| answer["Err"] != "")
        .count();
    assert_eq!(refused, 1);
    assert_eq!(rig.names().await.len(), 1);
}

#[tokio::test]
async fn names_that_are_no_names_get_one_clear_line() {
    let rig = Rig::new();
    for name in [
        "",
        "a/b",
        "..",
        "../../etc/x",
        ".hidden",
        "a\0b",
        "a b",
        "vol:ume",
        &"n".repeat(300),
    ] {
        let create = rig.create(name, "bucket=bbb").await;
        assert!(err(&create).contains("name"), "{create}");
        assert!(err(&rig.get(name).await).contains("no such volume"));
        assert!(err(&rig.mount(name, "1").await).contains("no such volume"));
        assert!(err(&rig.remove(name).await).contains("no such volume"));
    }
    assert_eq!(
        fs::read_dir(rig.dir.path().join("state/volumes"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
async fn no_secret_is_in_any_answer() {
    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG";
    let rig = Rig::new();
    let options = format!("bucket=bbb access_key_id=AKIA secret_access_key={SECRET}");
    let leaking = || MountError::Refused(format!("403 for ?X-Amz-Secret={SECRET}"));
    let mut answers = Vec::new();
    *rig.mounter.check.lock() = Some(Err(leaking()));
    answers.push(rig.create("v", &options).await);
    *rig.mounter.check.lock() = Some(Err(MountError::Unavailable(format!("{SECRET} is away"))));
    answers.push(rig.create("v", &options).await);
    answers.push(rig.create("v", &format!("{options}2 region=r")).await);
    answers.push(rig.create("w", "bucket=bbb").await);
    answers.push(
        rig.create(
            "x",
            &format!("bucket=xxx nonsense=1 access_key_id=A secret_access_key={SECRET}"),
        )
        .await,
    );
    answers.push(rig.get("v").await);
    rig.mounter.steps.lock().push_back(Step::Fail(leaking()));
    answers.push(rig.mount("v", "1").await);
    answers.push(rig.get("v").await);
    rig.mounted("v", "1").await;
    *rig.mounter.switches.detach_error.lock() = Some(leaking());
    rig.unmounted("v", "1").await;
    answers.push(rig.get("v").await);
    answers.push(rig.mount("v", "2").await);
    answers.push(rig.call("VolumeDriver.List", json!({})).await);
    for answer in answers {
        assert!(!answer.to_string().contains(SECRET), "{answer}");
    }
    let status = rig.status("v").await;
    assert_eq!(status["credentials"], "inline");
    let warning = status["warnings"][0].as_str().unwrap();
    assert!(
        warning.contains("secret_access_key can be read by everybody"),
        "{warning}"
    );
}

#[tokio::test]
async fn a_daemon_may_refuse_inline_credentials() {
    let rig = Rig::with(|settings| settings.deny_inline_credentials = true);
    let answer = rig
        .create(
            "v",
            "bucket=bbb access_key_id=A secret_access_key=hush-hush",
        )
        .await;
    assert!(
        err(&answer).contains("secret_access_key")
            && err(&answer).contains("credentials=file:NAME"),
        "{answer}"
    );
    rig.created("v", "bucket=bbb").await;
}

#[tokio::test]
async fn removing_forgets_the_volume_whoever_still_has_it_mounted() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    let first = rig.status("v").await["id"].clone();
    rig.mounted("v", "leaked").await;
    rig.mounter.switches.held.store(true, SeqCst);
    rig.mounter.switches.dirty.store(1, SeqCst);
    assert_eq!(rig.remove("v").await, json!({"Err": ""}));
    assert_eq!(rig.mounter.switches.drains.load(SeqCst), 1);
    assert_eq!(rig.mounter.live.load(SeqCst), 0);
    assert!(!rig.record("v").exists());
    assert!(err(&rig.get("v").await).contains("no such volume"));
    assert!(err(&rig.remove("v").await).contains("no such volume"));
    rig.created("v", "bucket=ccc").await;
    assert_ne!(
        rig.status("v").await["id"],
        first,
        "state belongs to an id, not to a name"
    );
}

#[tokio::test]
async fn what_a_removed_volume_has_left_goes_into_the_bucket_by_the_next_daemon() {
    let rig = Rig::new();
    rig.created(
        "v",
        "bucket=bbb access_key_id=AKIA secret_access_key=hush-hush",
    )
    .await;
    rig.mounter.left.lock().push_back(Ok(true));
    assert_eq!(rig.remove("v").await, json!({"Err": ""}));
    eventually("it goes on", || !rig.mounter.resumed.lock().is_empty()).await;
    let records = |rig: &Rig| fs::read_dir(rig.record("")).unwrap().count();
    assert_eq!((rig.names().await.len(), records(&rig)), (0, 1));
    // The daemon before takes no note of anything any more.
    rig.driver.shutdown(Duration::from_secs(1)).await;
    let rig = rig.restart().await;
    let away = MountError::Unavailable("the store is away".to_owned());
    rig.mounter.left.lock().push_back(Err(away));
    assert!(rig.names().await.is_empty());
    rig.driver.resume().await;
    eventually("nothing is left of it", || records(&rig) == 0).await;
    assert_eq!(*rig.mounter.resumed.lock(), ["v", "v"]);
}

#[tokio::test]
async fn a_directory_of_the_host_is_a_volume_only_where_the_operator_allows_it() {
    let local = tempfile::tempdir().unwrap();
    let allowed = local.path().join("allowed");
    fs::create_dir_all(allowed.join("data")).unwrap();
    fs::create_dir(local.path().join("secret")).unwrap();
    std::os::unix::fs::symlink("../secret", allowed.join("out")).unwrap();
    std::os::unix::fs::symlink("../tomorrow", allowed.join("dangling")).unwrap();
    let url = |path: &str| format!("url=file://{}/{path}", local.path().display());

    let rig = Rig::new();
    assert!(err(&rig.create("v", &url("allowed/data")).await).contains("--allow-local"));

    let rig = Rig::with(|settings| settings.allow_local = vec![allowed.clone()]);
    rig.created("v", &url("allowed/data")).await;
    for path in [
        "secret",
        "allowed/out",
        "allowed/dangling",
        "allowed/dangling/x",
        "allowed-not",
        "allowed/../secret",
    ] {
        let answer = rig.create("w", &url(path)).await;
        assert_ne!(answer["Err"], "", "{path}");
    }
    rig.mounted("v", "1").await;
    rig.unmounted("v", "1").await;
    // A container has the directory, and may put a link in its place.
    fs::remove_dir(allowed.join("data")).unwrap();
    std::os::unix::fs::symlink("../secret", allowed.join("data")).unwrap();
    assert!(err(&rig.mount("v", "2").await).contains("--allow-local"));
}
