//! The `bucketvol` program as a script meets it: help, bad input, exit statuses. No mount is made here.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The issue's own limit for a refusal.
const REFUSAL_LIMIT: Duration = Duration::from_secs(25);

/// A secret that no output may hold.
const SECRET: &str = "hunter2-hunter2";

/// A place for one test: home, state and run directories of its own, and nothing of the environment's AWS.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("bucketvol-test-cli-")
            .tempdir()
            .expect("a directory");
        fs::create_dir(dir.path().join("mnt")).expect("a mount point");
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mount_point(&self) -> String {
        self.path("mnt").display().to_string()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .arg("--kill-after=5")
            .arg("60")
            .arg(env!("CARGO_BIN_EXE_bucketvol"))
            .args(arguments);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("AWS_") || name.starts_with("BUCKETVOL_") || name == "RUST_LOG" {
                command.env_remove(name.as_ref());
            }
        }
        command
            .env("HOME", self.path("home"))
            .env("XDG_STATE_HOME", self.path("state"))
            .env("XDG_CACHE_HOME", self.path("cache"));
        command.env("BUCKETVOL_RUN_DIR", self.path("run"));
        command
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("AWS_CONFIG_FILE", self.path("none"));
        command.env("AWS_SHARED_CREDENTIALS_FILE", self.path("none"));
        command
    }

    /// Runs a command that has to be refused: status 1, one line on stderr, nothing on stdout, no secret,
    /// in time, and nothing left behind.
    fn refused(&self, command: &mut Command) -> String {
        let start = Instant::now();
        let output = command.output().expect("bucketvol runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{command:?}\n{text}");
        assert!(
            start.elapsed() < REFUSAL_LIMIT,
            "{command:?} took {:?}",
            start.elapsed()
        );
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{command:?}");
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("bucketvol: "))
            .collect();
        assert!(!text.contains(SECRET), "{command:?}\n{text}");
        assert!(!text.contains("panicked"), "{command:?}\n{text}");
        assert_eq!(
            text.lines().count(),
            lines.len(),
            "only our own lines: {text}"
        );
        assert_eq!(lines.len(), 1, "{command:?}\n{text}");
        assert_eq!(
            fs::read_dir(self.path("mnt"))
                .expect("the mount point")
                .count(),
            0
        );
        assert!(!is_mounted(&self.path("mnt")), "{command:?} left a mount");
        lines[0].trim_start_matches("bucketvol: ").to_owned()
    }

    fn mount_is_refused(&self, url: &str, options: &str) -> String {
        let point = self.mount_point();
        // The way of a file keeps secrets out of the arguments, and with them the note about that.
        let mut command = self.command(&["mount", url, &point, "-o", options]);
        self.refused(
            command
                .env("AWS_ACCESS_KEY_ID", "AKTEST")
                .env("AWS_SECRET_ACCESS_KEY", SECRET),
        )
    }
}

fn is_mounted(path: &Path) -> bool {
    let path = path.canonicalize().expect("it is there");
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    table
        .lines()
        .any(|line| line.split(' ').nth(4) == path.to_str())
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn the_help_of_every_command_shows_an_example() {
    let place = Place::new();
    for command in [
        &["--help"][..],
        &["serve", "--help"],
        &["mount", "--help"],
        &["unmount", "--help"],
        &["umount", "--help"],
        &["sync", "--help"],
        &["status", "--help"],
        &["restart", "--help"],
        &["volume", "--help"],
        &["volume", "ls", "--help"],
        &["volume", "create", "--help"],
        &["volume", "inspect", "--help"],
        &["volume", "rm", "--help"],
        &["doctor", "--help"],
        // Short help too.
        &["mount", "-h"],
    ] {
        let output = place.command(command).output().expect("bucketvol runs");
        assert!(output.status.success(), "{command:?}");
        let help = String::from_utf8_lossy(&output.stdout);
        assert!(
            help.contains("Example") && help.contains("bucketvol "),
            "{command:?}:\n{help}"
        );
    }
}

#[test]
fn wrong_usage_is_status_2() {
    let place = Place::new();
    for command in [
        &[][..],
        &["mount"],
        &["mount", "s3://b"],
        &["sync"],
        &["sync", "/mnt", "--all"],
        &["restart", "/mnt", "--serve"],
        &["unmount", "/mnt", "--lazy", "--timeout", "5"],
        &["unmount", "/mnt", "--timeout", "soon"],
        &["serve", "--cache-memory", "1"],
        &["nonsense"],
    ] {
        let output = place.command(command).output().expect("bucketvol runs");
        assert_eq!(
            output.status.code(),
            Some(2),
            "{command:?}\n{}",
            text(&output)
        );
        assert!(output.stdout.is_empty(), "{command:?}");
    }
}

#[test]
fn a_bad_location_or_option_is_one_line_that_names_it() {
    let place = Place::new();
    for (url, options, says) in [
        ("photos", "", "is not a URL"),
        ("oss://photos", "", "not supported yet"),
        ("s3://", "", "bucket's name is missing"),
        ("s3://photos/../x", "", "'..' are refused"),
        ("s3://AK:hunter2-hunter2@photos", "", "credentials in a URL"),
        (
            "s3://photos",
            "endpont=https://h",
            "unknown option \"endpont\": did you mean \"endpoint\"?",
        ),
        (
            "s3://photos",
            "secret_acess_key=hunter2-hunter2",
            "did you mean \"secret_access_key\"?",
        ),
        (
            "s3://photos",
            "file_mode=rw",
            "option file_mode=\"rw\": accepted is octal",
        ),
        ("s3://photos", "ro,rw", "ro and rw contradict"),
        ("s3://photos", "bucket=other", "contradicts the URL"),
        (
            "s3://photos",
            "credentials=imds",
            "imds is not supported yet",
        ),
        (
            "s3://photos",
            "credentials=file:none,endpoint=http://127.0.0.1:9",
            "no credentials file",
        ),
        (
            "s3://photos",
            "credentials=profile:none,endpoint=http://127.0.0.1:9",
            "no AWS profile",
        ),
    ] {
        let said = place.mount_is_refused(url, options);
        assert!(said.contains(says), "{url} {options}: {said}");
    }
}

#[test]
fn a_directory_that_cannot_be_mounted_on_is_one_line_that_names_it() {
    let place = Place::new();
    fs::create_dir(place.path("full")).expect("a directory");
    fs::write(place.path("full/file"), b"in the way").expect("a file");
    for (name, says) in [
        ("missing", "missing"),
        ("full", "not empty"),
        ("full/file", "full/file"),
    ] {
        let dir = place.path(name).display().to_string();
        for background in [&[][..], &["--background"]] {
            let arguments = [&["mount", "memory://x", &dir][..], background].concat();
            let said = place.refused(&mut place.command(&arguments));
            assert!(said.contains(says) && said.contains(&dir), "{name}: {said}");
        }
    }
    let said = place.refused(&mut place.command(&["mount", "memory://x", "/proc"]));
    assert!(said.contains("/proc") && said.contains("mounted"), "{said}");
}

#[test]
fn no_credentials_at_all_is_one_line_with_the_mend() {
    let place = Place::new();
    let said = place.refused(&mut place.command(&["mount", "s3://photos", &place.mount_point()]));
    assert!(
        said.contains("no credentials") && said.contains("credentials=anonymous"),
        "{said}"
    );
}

#[test]
fn a_credentials_file_that_others_can_read_is_refused() {
    let place = Place::new();
    let secrets = place.path("secrets");
    fs::create_dir(&secrets).expect("a directory");
    let file = secrets.join("prod");
    fs::write(
        &file,
        format!("access_key_id = \"AK\"\nsecret_access_key = \"{SECRET}\"\n"),
    )
    .expect("a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("its mode");
    let point = place.mount_point();
    let options = "credentials=file:prod,endpoint=http://127.0.0.1:9";
    let mut command = place.command(&["mount", "s3://photos", &point, "-o", options]);
    let said = place.refused(command.env("CREDENTIALS_DIRECTORY", &secrets));
    assert!(said.contains("chmod 0600"), "{said}");
}

#[test]
fn a_store_that_cannot_be_reached_is_one_line_that_names_it_in_time() {
    let place = Place::new();
    // Nobody listens there: the listener is gone, and its port is not given out again at once.
    let port = TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("its number")
        .port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let said = place.mount_is_refused("s3://photos", &format!("endpoint={endpoint}"));
    assert!(
        said.contains("photos") || said.contains(&endpoint),
        "{said}"
    );

    // One that accepts and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", silent.local_addr().expect("its address"));
    let said = place.mount_is_refused("s3://photos", &format!("endpoint={endpoint}"));
    assert!(
        said.contains("photos") || said.contains(&endpoint),
        "{said}"
    );
}

#[test]
fn an_unmount_or_sync_of_what_is_not_mounted_is_one_line() {
    let place = Place::new();
    let point = place.mount_point();
    let said = place.refused(&mut place.command(&["unmount", &point]));
    assert!(
        said.contains("is not mounted") && said.contains(&point),
        "{said}"
    );
    let said = place.refused(&mut place.command(&["umount", "/proc"]));
    assert!(said.contains("a mount of proc"), "{said}");
    for arguments in [
        &["restart"][..],
        &["restart", "--serve"],
        &["restart", &point],
    ] {
        let said = place.refused(&mut place.command(arguments));
        assert!(said.contains("of this user serves"), "{said}");
    }
    let said = place.refused(&mut place.command(&["sync", &point]));
    assert!(
        said.contains("no process") && said.contains(&point),
        "{said}"
    );
}

#[test]
fn a_volume_command_without_a_daemon_says_how_to_start_one() {
    let place = Place::new();
    let socket = place.path("none.sock").display().to_string();
    for action in [
        &["ls"][..],
        &["inspect", "v"],
        &["rm", "v"],
        &["create", "v", "-o", "bucket=photos"],
    ] {
        let arguments = [&["volume", "--socket", &socket][..], action].concat();
        let said = place.refused(&mut place.command(&arguments));
        assert!(
            said.contains("bucketvol serve") && said.contains(&socket),
            "{said}"
        );
    }
}

#[test]
fn doctor_says_each_thing_in_one_line_and_fails_for_a_store_it_cannot_use() {
    let place = Place::new();
    let socket = place.path("none.sock").display().to_string();
    let arguments = [
        "doctor",
        "--socket",
        &socket,
        "s3://photos",
        "-o",
        "endpoint=http://127.0.0.1:9",
    ];
    let output = place
        .command(&arguments)
        .env("AWS_ACCESS_KEY_ID", "AKTEST")
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .output()
        .expect("bucketvol runs");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let said = String::from_utf8_lossy(&output.stdout);
    for line in said.lines() {
        assert!(
            ["ok  ", "warn", "fail"]
                .iter()
                .any(|word| line.starts_with(word)),
            "{line}"
        );
    }
    assert!(said.contains("fail store: "), "{said}");
    assert!(!text(&output).contains(SECRET));
}
