//! The wire: exact answers, broken requests, connections.

use std::time::{Duration, Instant};

use super::rig::{Rig, request};

#[tokio::test]
async fn the_engines_own_bytes_get_the_exact_answers() {
    let rig = Rig::new();
    let mountpoint = rig.mountpoint("photos");
    let id = "4".repeat(64);
    let use_it = format!("{{\"Name\":\"photos\",\"ID\":\"{id}\"}}\n");
    for (call, body, answer) in [
        ("Plugin.Activate", "", r#"{"Implements":["VolumeDriver"]}"#),
        (
            "VolumeDriver.Capabilities",
            "{}\n",
            r#"{"Capabilities":{"Scope":"local"}}"#,
        ),
        (
            "VolumeDriver.Capabilities",
            "",
            r#"{"Capabilities":{"Scope":"local"}}"#,
        ),
        ("VolumeDriver.List", "{}\n", r#"{"Volumes":[],"Err":""}"#),
        (
            "VolumeDriver.Get",
            "{\"Name\":\"photos\"}\n",
            r#"{"Err":"no such volume: \"photos\""}"#,
        ),
        (
            "VolumeDriver.Create",
            "{\"Name\":\"photos\",\"Opts\":{\"bucket\":\"bbb\"}}\n",
            r#"{"Err":""}"#,
        ),
        (
            "VolumeDriver.Mount",
            &use_it,
            &format!(r#"{{"Mountpoint":"{mountpoint}","Err":""}}"#),
        ),
        (
            "VolumeDriver.Path",
            "{\"Name\":\"photos\"}\n",
            &format!(r#"{{"Mountpoint":"{mountpoint}","Err":""}}"#),
        ),
        (
            "VolumeDriver.List",
            "",
            &format!(
                r#"{{"Volumes":[{{"Name":"photos","Mountpoint":"{mountpoint}","CreatedAt":"2026-01-01T00:00:00Z"}}],"Err":""}}"#
            ),
        ),
        ("VolumeDriver.Unmount", &use_it, r#"{"Err":""}"#),
        (
            "VolumeDriver.Remove",
            "{\"Name\":\"photos\"}\n",
            r#"{"Err":""}"#,
        ),
        ("VolumeDriver.List", "{}\n", r#"{"Volumes":[],"Err":""}"#),
    ] {
        assert_eq!(
            rig.raw(call, body.as_bytes()).await,
            (200, answer.to_owned()),
            "{call} {body}"
        );
    }
}

#[tokio::test]
async fn get_describes_a_volume_as_the_engine_can_read_it() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb prefix=p").await;
    rig.mounted("v", "1").await;
    let (_, answer) = rig.raw("VolumeDriver.Get", b"{\"Name\":\"v\"}\n").await;
    let beginning = format!(
        r#"{{"Volume":{{"Name":"v","Mountpoint":"{}","CreatedAt":"2026-01-01T00:00:00Z","Status":{{"#,
        rig.mountpoint("v")
    );
    assert!(
        answer.starts_with(&beginning) && answer.ends_with(r#"}},"Err":""}"#),
        "{answer}"
    );
    let status = rig.status("v").await;
    assert_eq!(status["state"], "mounted");
    assert_eq!(status["store"], "s3://bbb/p");
    assert_eq!(status["holders"], 1);
    assert_eq!(status["mount"]["dirty_bytes"], 0);
}

#[tokio::test]
async fn null_options_and_unknown_fields_are_read() {
    let rig = Rig::new();
    let (status, answer) = rig
        .raw(
            "VolumeDriver.Create",
            b"{\"Name\":\"v\",\"Opts\":null,\"New\":[1]}\n",
        )
        .await;
    // The driver was asked; what it misses is the bucket.
    assert_eq!(status, 200);
    assert!(
        answer.contains("volume v: ") && answer.contains("bucket"),
        "{answer}"
    );
}

#[tokio::test]
async fn the_empty_retry_after_a_lost_connection_is_refused_by_every_call_that_names_a_volume() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    for verb in ["Create", "Path", "Mount", "Unmount", "Remove"] {
        let call = format!("VolumeDriver.{verb}");
        for body in ["", "\n"] {
            let (status, answer) = rig.raw(&call, body.as_bytes()).await;
            assert_eq!(status, 400);
            assert!(
                answer.starts_with(&format!(r#"{{"Err":"{call} came with an empty body"#)),
                "{answer}"
            );
        }
    }
    assert_eq!(rig.names().await, ["v"]);
}

/// The engine would take any answer for word that the volume is gone, and forget its labels.
#[tokio::test]
async fn the_empty_retry_of_a_get_is_not_answered() {
    let rig = Rig::new();
    rig.created("v", "bucket=bbb").await;
    for body in ["", "\n"] {
        let mut engine = rig.connect().await;
        engine
            .send(&request("VolumeDriver.Get", body.as_bytes()))
            .await;
        assert_eq!(engine.answer().await, None);
    }
    assert_eq!(rig.get("v").await["Volume"]["Name"], "v");
}

#[tokio::test]
async fn what_is_no_call_gets_an_err_and_harms_nobody() {
    let rig = Rig::new();
    let huge = format!("{{\"Name\":\"{}\"}}", "v".repeat(2 << 20));
    let deep = "[".repeat(100_000);
    for (call, body, expected) in [
        ("VolumeDriver.Create", "{\"Name\":", 400),
        ("VolumeDriver.Create", "{}\n", 400),
        ("VolumeDriver.Create", "null", 400),
        ("VolumeDriver.Create", "{\"Name\":null,\"Opts\":null}", 400),
        (
            "VolumeDriver.Create",
            "{\"Name\":\"v\",\"Opts\":{\"a\":1}}",
            400,
        ),
        (
            "VolumeDriver.Create",
            "{\"Name\":\"v\",\"Opts\":\"a\"}",
            400,
        ),
        ("VolumeDriver.Mount", "{\"Name\":\"v\"}", 400),
        ("VolumeDriver.Get", "\u{fffd}\0", 400),
        ("VolumeDriver.Get", &deep, 400),
        ("VolumeDriver.Get", &huge, 413),
        ("VolumeDriver.Explode", "{}", 404),
        ("", "{}", 404),
        ("volumedriver.get", "{\"Name\":\"v\"}", 404),
    ] {
        let (status, answer) = rig.raw(call, body.as_bytes()).await;
        assert_eq!(status, expected, "{call}: {answer}");
        assert!(
            answer.starts_with(r#"{"Err":""#) && answer.len() < 400,
            "{answer}"
        );
    }
    let mut connection = rig.connect().await;
    connection
        .send(b"GET /VolumeDriver.List HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    let expected = r#"{"Err":"/VolumeDriver.List takes POST, not GET"}"#;
    assert_eq!(connection.answer().await, Some((405, expected.to_owned())));
    assert_eq!(rig.names().await, Vec::<String>::new());
}

#[tokio::test]
async fn an_answer_ends_its_connection_so_that_no_idle_one_breaks_at_a_restart() {
    let rig = Rig::new();
    for (body, status) in [("{}\n", 200), ("nonsense", 400)] {
        let mut connection = rig.connect().await;
        let call = if status == 200 {
            "VolumeDriver.List"
        } else {
            "VolumeDriver.Get"
        };
        connection.send(&request(call, body.as_bytes())).await;
        assert_eq!(connection.answer().await.unwrap().0, status);
        assert_eq!(connection.answer().await, None);
    }
}

#[tokio::test]
async fn a_stop_waits_for_no_idle_connection_and_takes_the_socket_away() {
    let mut rig = Rig::new();
    let mut silent = rig.connect().await;
    let mut half_a_request = rig.connect().await;
    half_a_request.send(b"POST /VolumeDriver.List HTT").await;
    let started = Instant::now();
    rig.stop().await;
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    assert!(!rig.socket().exists());
    assert_eq!(silent.answer().await, None);
}
