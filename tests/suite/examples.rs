//! The examples do what their first lines say.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// The example's program, built already unless this binary was built alone.
fn example(name: &str) -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let path = here
        .parent()
        .and_then(Path::parent)
        .unwrap()
        .join("examples")
        .join(name);
    if !path.exists() {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--example", name])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(built.success());
    }
    path
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn call(socket: &Path, endpoint: &str, body: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let length = body.len();
    let request = format!(
        "POST /{endpoint} HTTP/1.1\r\nHost:\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.rsplit("\r\n\r\n").next().unwrap().to_owned()
}

#[test]
fn a_file_system_is_opened_written_and_read_without_a_kernel() {
    let output = Command::new(example("open_filesystem")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("says: one file is one object"), "{text}");
}

#[test]
fn a_driver_of_forty_lines_is_a_plugin() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("memory.sock");
    let _running = Running(
        Command::new(example("memory_driver"))
            .arg(&socket)
            // It is killed: its volumes stay where it made them.
            .env("TMPDIR", directory.path())
            .spawn()
            .unwrap(),
    );
    let limit = Instant::now() + Duration::from_secs(10);
    while UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < limit, "it does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    let activated = call(&socket, "Plugin.Activate", "");
    assert!(
        activated.contains(r#"{"Implements":["VolumeDriver"]}"#),
        "{activated}"
    );
    call(
        &socket,
        "VolumeDriver.Create",
        "{\"Name\":\"v\",\"Opts\":null}\n",
    );
    let listed = call(&socket, "VolumeDriver.List", "{}\n");
    assert!(listed.contains(r#""Name":"v""#), "{listed}");
    let mounted = call(
        &socket,
        "VolumeDriver.Mount",
        "{\"Name\":\"v\",\"ID\":\"1\"}\n",
    );
    let path = mounted.split('"').nth(3).unwrap();
    assert!(Path::new(path).is_dir(), "{mounted}");
}
