//! `bucketvol doctor`: finds what is wrong with host, daemon and store; one line each, with its mend.
//!
//! It only looks; nothing is repaired.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::Args;

use super::control::client::local_client;
use super::{compose, control, mount, output, pairs};
use crate::clock::SystemClock;
use crate::config::{Ambient, Environment, Location, Scheme};
use crate::fs::fuse::mount::FS_TYPE;
use crate::fs::fuse::mountinfo::MountTable;
use crate::store::{Bucket, OpenUpload, StoreError};

/// Nothing local needs longer; what does hangs.
const LIMIT: Duration = Duration::from_secs(3);

/// Longer than the store's own limit, so that its words are heard.
const STORE_LIMIT: Duration = Duration::from_secs(20);

/// An upload in parts that is older is one that nobody is sending any more, most likely.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Pages of uploads that are looked at, each of up to a thousand.
const UPLOAD_PAGES: usize = 20;

/// Find what is wrong, and how to mend it
#[derive(Debug, Args)]
#[command(after_help = "Example:
  bucketvol doctor s3://photos/2026 -o endpoint=https://s3.example.com

One line each: ok, warn or fail. Exit status 1 if anything fails.")]
pub(super) struct DoctorArgs {
    /// A location to try, with -o as for mount
    pub(super) url: Option<String>,
    /// Options of the location
    #[arg(short = 'o', value_name = "KEY=VALUE,…", requires = "url")]
    pub(super) options: Vec<String>,
    /// The plugin's socket
    #[arg(long, value_name = "PATH", env = "BUCKETVOL_SOCKET", default_value = super::SOCKET)]
    pub(super) socket: PathBuf,
}

/// What came of one look.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Finding {
    Ok(String),
    /// Works, with a limit worth knowing.
    Warn(String),
    Fail(String),
}

use Finding::{Fail, Ok as Fine, Warn};

pub(super) async fn run(args: DoctorArgs) -> Result<ExitCode> {
    let mut findings = vec![("fuse", device()), ("kernel", kernel())];
    if !nix::unistd::geteuid().is_root() {
        findings.push(("fusermount3", fusermount()));
    }
    findings.push(("plugin", plugin(&args.socket).await));
    findings.push(("docker", docker(&args.socket)));
    findings.push(("namespace", namespace()));
    findings.push(("control", control_sockets()));
    findings.extend(
        stale_mounts()
            .await
            .into_iter()
            .map(|finding| ("mounts", finding)),
    );
    if let Some(url) = &args.url {
        let (finding, bucket) = store(url, &args.options).await;
        findings.push(("store", finding));
        if let Some(bucket) = bucket {
            findings.push(("uploads", uploads(&bucket).await));
        }
    }
    let failed = findings
        .iter()
        .any(|(_, finding)| matches!(finding, Fail(_)));
    for (what, finding) in findings {
        let (word, text) = match finding {
            Fine(text) => ("ok  ", text),
            Warn(text) => ("warn", text),
            Fail(text) => ("fail", text),
        };
        output::print(format_args!("{word} {what}: {text}"));
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn device() -> Finding {
    let device = Path::new("/dev/fuse");
    match fs::File::options().read(true).write(true).open(device) {
        Ok(_) => Fine("/dev/fuse can be opened".to_owned()),
        Err(error) if !device.exists() => Fail(format!(
            "/dev/fuse: {error}; modprobe fuse, or start the container with --device /dev/fuse"
        )),
        Err(error) => Fail(format!(
            "/dev/fuse: {error}; it needs mode 0666: chmod 0666 /dev/fuse"
        )),
    }
}

fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    judge_kernel(release.trim())
}

/// What a kernel's release means for us.
fn judge_kernel(release: &str) -> Finding {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (6, 9) {
        Fine(format!("Linux {release}"))
    } else if version >= (5, 10) {
        Warn(format!(
            "Linux {release}: below 6.9 a program that waits for the file system when the daemon crashes \
             can see EINTR"
        ))
    } else {
        Fail(format!(
            "Linux {release} is not supported: 5.10 or newer is"
        ))
    }
}

fn fusermount() -> Finding {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join("fusermount3"))
        .find(|file| file.is_file());
    let Some(program) = found else {
        return Fail("fusermount3 is not in PATH; install the package fuse3".to_owned());
    };
    let mode = fs::metadata(&program)
        .map(|m| m.permissions().mode())
        .unwrap_or_default();
    if mode & 0o4000 == 0 {
        let program = program.display();
        return Fail(format!(
            "{program} is not setuid; reinstall the package fuse3"
        ));
    }
    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if conf.lines().any(|line| line.trim() == "user_allow_other") {
        return Fine(format!("{} for mounts as this user", program.display()));
    }
    Warn(
        "other users, root and containers do not see this user's mounts; add user_allow_other to \
         /etc/fuse.conf"
            .to_owned(),
    )
}

async fn plugin(socket: &Path) -> Finding {
    let shown = socket.display();
    match fs::symlink_metadata(socket) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Warn(format!(
                "no plugin at {shown}; bucketvol serve starts it (mounts need none)"
            ));
        }
        Err(error) => return Warn(format!("{shown}: {error}; the plugin is root's")),
        Ok(_) => {}
    }
    let Ok(client) = local_client(socket) else {
        return Fail(format!("{shown}: no client for it"));
    };
    let answer = client
        .post("http://plugin/Plugin.Activate")
        .timeout(LIMIT)
        .send()
        .await;
    let text = match answer {
        Ok(answer) => answer.text().await.unwrap_or_default(),
        Err(_) if !nix::unistd::geteuid().is_root() => {
            return Warn(format!(
                "{shown}: only root can ask the plugin; run doctor as root"
            ));
        }
        Err(_) => {
            return Fail(format!(
                "nobody answers on {shown}, and every docker volume command waits 15 s for it; start \
                 bucketvol serve, or remove the file"
            ));
        }
    };
    if text.contains("VolumeDriver") {
        return Fine(format!("the plugin answers on {shown}"));
    }
    Fail(format!(
        "{shown} is no volume plugin; stop what listens there"
    ))
}

fn docker(socket: &Path) -> Finding {
    let Some(dir) = socket.parent() else {
        return Fine("the socket's directory is /".to_owned());
    };
    if dir.is_dir() {
        return Fine(format!("Docker looks for plugins in {}", dir.display()));
    }
    Warn(format!(
        "{} does not exist; bucketvol serve makes it, Docker looks there",
        dir.display()
    ))
}

/// Mounts made in a namespace of our own never reach Docker.
fn namespace() -> Finding {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt"));
    match (namespace("self"), namespace("1")) {
        (Ok(own), Ok(init)) if own == init => Fine("mounts made here are the host's".to_owned()),
        (Ok(_), Ok(_)) => Warn(
            "this is a mount namespace of its own: if the daemon runs here too, Docker sees its mounts only \
             with shared propagation (no Private*, Protect* or MountFlags in the unit; run containers with \
             --pid host and a bind of type rshared)"
                .to_owned(),
        ),
        _ => Warn("/proc/1 is not ours to look at, so it is not known whether mounts made here reach Docker".to_owned()),
    }
}

fn control_sockets() -> Finding {
    let dir = control::run_dir();
    match control::check_run_dir(&dir) {
        Ok(()) => Fine(format!("control sockets in {}", dir.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Fine(format!(
            "nothing is mounted by this user ({} is not there)",
            dir.display()
        )),
        Err(error) => Fail(format!("{error}; remove it, so that it can be made anew")),
    }
}

/// Mounts of ours that nobody serves.
async fn stale_mounts() -> Vec<Finding> {
    let Ok(table) = MountTable::of_self() else {
        return vec![Warn("/proc/self/mountinfo cannot be read".to_owned())];
    };
    let ours: Vec<PathBuf> = table
        .entries()
        .iter()
        .filter(|entry| entry.fs_type == FS_TYPE)
        .map(|entry| entry.mount_point.clone())
        .collect();
    let count = ours.len();
    let mut findings = Vec::new();
    for path in ours {
        let shown = path.display().to_string();
        // In a thread of its own: one that hangs is left behind.
        // The kernel answers a stat of a dead mount from its cache for a while; statfs it passes on.
        let look = tokio::task::spawn_blocking(move || nix::sys::statvfs::statvfs(&path));
        match tokio::time::timeout(LIMIT, look).await {
            Err(_) => findings.push(Fail(format!(
                "{shown} does not answer; look at bucketvol status, or bucketvol unmount --lazy {shown}"
            ))),
            Ok(Ok(Err(nix::errno::Errno::ENOTCONN))) => {
                findings.push(Fail(format!("{shown} is dead; bucketvol unmount --lazy {shown}")));
            }
            Ok(_) => {}
        }
    }
    if findings.is_empty() {
        findings.push(Fine(format!("{count} mounted, none dead")));
    }
    findings
}

/// Whether the store can be used, and the bucket if it can.
async fn store(url: &str, options: &[String]) -> (Finding, Option<Bucket>) {
    let ambient = Ambient::command_line(Environment::of_this_process());
    let options = match mount::options(url, pairs::split(options), &ambient) {
        Ok(options) => options,
        Err(error) => return (Fail(output::one_line(&error)), None),
    };
    let location = &options.location;
    match tokio::time::timeout(STORE_LIMIT, compose::check_store(&options, &ambient)).await {
        Ok(Ok(bucket)) => {
            let credentials = &options.credentials;
            let said = format!("{location} can be listed, with credentials {credentials}");
            (Fine(said), Some(bucket))
        }
        Ok(Err(error)) => (Fail(output::one_line(&error)), None),
        Err(_) => {
            let said = format!("{location}: no answer in {STORE_LIMIT:?}; check the endpoint");
            (Fail(said), None)
        }
    }
}

/// Uploads in parts that somebody began and nobody ended.
async fn uploads(bucket: &Bucket) -> Finding {
    let location = bucket.location();
    match tokio::time::timeout(STORE_LIMIT, open_uploads(bucket)).await {
        Ok(Ok((uploads, is_all))) => {
            judge_uploads(location, &uploads, is_all, SystemClock::shared().wall())
        }
        Ok(Err(StoreError::Unsupported { .. })) => Warn(format!(
            "{location} does not say which uploads in parts were never ended"
        )),
        Ok(Err(error)) => Warn(format!(
            "which uploads in parts were never ended is not known: {error}"
        )),
        Err(_) => Warn(format!(
            "which uploads in parts were never ended is not known: no answer in {STORE_LIMIT:?}"
        )),
    }
}

/// The uploads that have not ended, as far as a few pages tell, and whether these are all.
async fn open_uploads(bucket: &Bucket) -> Result<(Vec<OpenUpload>, bool), StoreError> {
    let mut uploads = Vec::new();
    let mut after = None;
    for _ in 0..UPLOAD_PAGES {
        let page = bucket.list_multipart(after.as_ref()).await?;
        uploads.extend(page.uploads);
        after = page.continuation;
        if after.is_none() {
            return Ok((uploads, true));
        }
    }
    Ok((uploads, false))
}

/// What uploads that have not ended mean for who pays for the bucket.
fn judge_uploads(
    location: &Location,
    uploads: &[OpenUpload],
    is_all: bool,
    now: SystemTime,
) -> Finding {
    let is_old = |open: &&OpenUpload| now.duration_since(open.begun).is_ok_and(|age| age > DAY);
    let old = uploads.iter().filter(is_old);
    let count = old.clone().count();
    let Some(oldest) = old.min_by_key(|open| open.begun) else {
        return Fine("no upload in parts is older than a day".to_owned());
    };
    let key = match location.prefix.as_str() {
        "" => oldest.key.to_string(),
        prefix => format!("{prefix}/{}", oldest.key),
    };
    let mend = match location.scheme {
        Scheme::S3 => format!(
            "abort it (aws s3api abort-multipart-upload --bucket {} --key '{key}' --upload-id '{}'), or all by a \
             lifecycle rule of the bucket, AbortIncompleteMultipartUpload after 1 day",
            location.bucket, oldest.upload.0
        ),
        Scheme::File | Scheme::Memory => "remove what the store keeps of them".to_owned(),
    };
    Warn(format!(
        "{}{count} uploads in parts are older than a day, and their parts take room that nobody sees; the oldest is \
         of {key:?}, begun {}; if nobody is sending it, {mend}",
        if is_all { "" } else { "at least " },
        humantime::format_rfc3339_seconds(oldest.begun),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Key, UploadId};

    #[test]
    fn kernels_are_judged_by_their_first_two_numbers() {
        for release in ["6.9.0-amd64", "6.12.3", "7.0"] {
            assert!(matches!(judge_kernel(release), Fine(_)), "{release}");
        }
        for release in ["6.8.12-1-pve", "5.10.0-28-amd64"] {
            assert!(matches!(judge_kernel(release), Warn(_)), "{release}");
        }
        for release in ["5.4.0", "", "odd"] {
            assert!(matches!(judge_kernel(release), Fail(_)), "{release}");
        }
    }

    #[test]
    fn of_uploads_that_are_old_the_oldest_is_named_with_its_mend() {
        let now = SystemTime::UNIX_EPOCH + 100 * DAY;
        let location = Location {
            scheme: Scheme::S3,
            bucket: "photos".to_owned(),
            prefix: "2026".to_owned(),
        };
        let begun = |days: u32, upload: &str| OpenUpload {
            key: Key::new("d/a"),
            upload: UploadId(upload.to_owned()),
            begun: now - days * DAY - Duration::from_secs(1),
        };
        let judge = |uploads: &[OpenUpload], is_all| judge_uploads(&location, uploads, is_all, now);
        assert!(matches!(judge(&[begun(0, "young")], true), Fine(_)));
        let all = [begun(0, "young"), begun(3, "old"), begun(7, "oldest")];
        let Warn(text) = judge(&all, true) else {
            panic!("a warning was expected");
        };
        for words in [
            "2 uploads",
            "1970-04-03T23:59:59Z",
            "--bucket photos --key '2026/d/a' --upload-id 'oldest'",
            "AbortIncompleteMultipartUpload",
        ] {
            assert!(text.contains(words), "{words} is not in {text}");
        }
        assert!(matches!(judge(&all, false), Warn(text) if text.starts_with("at least 2 ")));
    }

    #[tokio::test]
    async fn a_store_is_asked_for_uploads_that_were_never_ended() {
        let bucket = Bucket::memory();
        let key = Key::new("a");
        let begun = bucket.create_multipart(&key, crate::store::Metadata::default());
        begun.await.unwrap();
        let (uploads, is_all) = open_uploads(&bucket).await.unwrap();
        assert_eq!((uploads.len(), is_all), (1, true));
        assert!(
            matches!(super::uploads(&bucket).await, Fine(_)),
            "it is not a day old"
        );
    }

    #[tokio::test]
    async fn a_socket_without_a_listener_is_a_failure_or_not_ours_to_ask() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("plugin.sock");
        assert!(matches!(plugin(&socket).await, Warn(_)));
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(!matches!(plugin(&socket).await, Fine(_)));
    }
}
