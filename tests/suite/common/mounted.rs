//! `bucketvol mount` as a user runs it: the program, a mount point, an S3 server, and the way back down.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::process::{
    bounded, children, describe, end, kill_all, output, read_until, send, succeed, wait_for,
};
use super::s3::{Account, scratch};

/// Debian's `nobody`: a user with no rights of its own.
pub(crate) const NOBODY: u32 = 65_534;

/// What is mounted.
#[derive(Debug)]
enum Source {
    Bucket { account: Account, prefix: String },
    Directory(PathBuf),
}

/// How long mounting and unmounting may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A mount that goes with the value.
#[derive(Debug)]
pub(crate) struct Mounted {
    process: Option<Child>,
    source: Source,
    options: &'static str,
    user: u32,
    remounts: u32,
    /// The program's state is on a disk of its own.
    has_own_disk: bool,
    /// What one mount learns of objects the next one knows.
    keeps_cache: bool,
    place: TempDir,
}

impl Mounted {
    /// Mounts `prefix` of the account's bucket, as root.
    pub(crate) fn by_root(account: &Account, prefix: &str) -> Self {
        Self::by(0, account, prefix)
    }

    /// Mounts the account's bucket as root, with further options.
    pub(crate) fn with(account: &Account, options: &'static str) -> Self {
        Self::start(0, bucket(account, ""), options, None)
    }

    /// Mounts the account's bucket as root; from now on what one mount has learnt of objects the next one knows.
    pub(crate) fn keeping_cache(account: &Account, options: &'static str) -> Self {
        let mut mounted = Self::with(account, options);
        mounted.keeps_cache = true;
        mounted.remount();
        mounted
    }

    /// Mounts a local directory that serves as the bucket, as root.
    pub(crate) fn of_directory(directory: &Path) -> Self {
        Self::start(0, Source::Directory(directory.to_owned()), "", None)
    }

    /// Likewise, with a disk of `mebibytes` for the program's state: see [`Mounted::disk`].
    pub(crate) fn with_disk(account: &Account, options: &'static str, mebibytes: u32) -> Self {
        Self::start(0, bucket(account, ""), options, Some(mebibytes))
    }

    /// A path on the disk that the program keeps its state on.
    pub(crate) fn disk(&self, relative: &str) -> PathBuf {
        self.place.path().join("home").join(relative)
    }

    /// Mounts `prefix` of the account's bucket as `user`: by fusermount3 unless that is root.
    pub(crate) fn by(user: u32, account: &Account, prefix: &str) -> Self {
        Self::start(user, bucket(account, prefix), "", None)
    }

    fn start(user: u32, source: Source, options: &'static str, disk: Option<u32>) -> Self {
        let place = tempfile::Builder::new()
            .prefix("bucketvol-test-mount-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(scratch())
            .expect("a place for the mount");
        for name in ["mnt", "local", "home", "run"] {
            let directory = place.path().join(name);
            fs::create_dir(&directory).expect("a directory");
            chown(&directory, Some(user), Some(user)).expect("the user owns it");
        }
        if let Some(mebibytes) = disk {
            let size = format!("size={mebibytes}m");
            let mut mount = bounded(10, "mount");
            mount.args(["-t", "tmpfs", "-o", &size, "bucketvol-test"]);
            succeed(mount.arg(place.path().join("home")));
        }
        // Where the program listens for `bucketvol unmount`: nobody else may reach in.
        let run = place.path().join("run");
        fs::set_permissions(run, Permissions::from_mode(0o700)).expect("it is closed");
        let mut mounted = Self {
            process: None,
            source,
            options,
            user,
            remounts: 0,
            has_own_disk: disk.is_some(),
            keeps_cache: false,
            place,
        };
        mounted.mount();
        mounted
    }

    /// A path below the mount point; the mount point itself for "".
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.place.path().join("mnt").join(relative)
    }

    /// A path on the local disk that the mount's user may write to.
    pub(crate) fn local(&self, relative: &str) -> PathBuf {
        self.place.path().join("local").join(relative)
    }

    /// Unmounts by SIGTERM, which has to end well, and mounts anew with no memory of before.
    pub(crate) fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    /// SIGKILL for keeper and worker: the program has no last word.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("it is mounted");
        kill_all(&mut process);
    }

    /// SIGKILL for the worker alone: the keeper starts another one.
    pub(crate) fn kill_worker(&self) {
        let keeper = self.process.as_ref().expect("it is mounted").id();
        let mut workers = Vec::new();
        wait_for("a worker", PATIENCE, || {
            workers = children(keeper);
            !workers.is_empty()
        });
        for worker in workers {
            kill(worker, Signal::SIGKILL).expect("a signal");
        }
    }

    /// The keeper's pid.
    pub(crate) fn keeper(&self) -> u32 {
        self.process.as_ref().expect("it is mounted").id()
    }

    /// The worker, if there is one just now.
    pub(crate) fn worker(&self) -> Option<Pid> {
        children(self.keeper()).first().copied()
    }

    /// SIGKILL for the worker; then `done` is called, and only then there may be another worker.
    pub(crate) fn without_worker(&self, done: impl FnOnce(&Path)) {
        let keeper = self.process.as_ref().expect("it is mounted");
        send(keeper, Signal::SIGSTOP);
        self.kill_worker();
        done(&self.path(""));
        send(keeper, Signal::SIGCONT);
    }

    /// `bucketvol restart`: when it returns, another worker serves.
    pub(crate) fn replace_worker(&self) {
        let restarted = output(self.bucketvol(120).arg("restart").arg(self.path("")));
        assert!(
            restarted.status.success(),
            "{}\n{}",
            describe(&restarted),
            self.log()
        );
    }

    /// Clears the dead mount away and mounts again on the state that the killed program left.
    pub(crate) fn mount_after_kill(&mut self) {
        succeed(bounded(10, "umount").arg("--lazy").arg(self.path("")));
        self.remounts -= 1;
        self.mount();
    }

    /// Ends the mount by SIGTERM, which has to end well.
    pub(crate) fn unmount(&mut self) {
        let mut process = self.process.take().expect("it is mounted");
        let went = end(&mut process, PATIENCE);
        assert!(
            went,
            "SIGTERM did not end the mount with status 0:\n{}",
            self.log()
        );
        assert!(!self.is_mounted(), "it ended and left its mount behind");
    }

    /// Waits for the program to end by itself after somebody else unmounted; whether it ended well.
    pub(crate) fn ended_by_itself(&mut self) -> bool {
        let mut process = self.process.take().expect("it is mounted");
        let start = std::time::Instant::now();
        while start.elapsed() < PATIENCE {
            if let Ok(Some(status)) = process.try_wait() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        end(&mut process, PATIENCE);
        false
    }

    /// Whether the kernel's mount table has the mount point.
    pub(crate) fn is_mounted(&self) -> bool {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
        let point = self.path("");
        let point = point
            .to_str()
            .expect("a path in ASCII")
            .trim_end_matches('/');
        table
            .lines()
            .any(|line| line.split(' ').nth(4) == Some(point))
    }

    /// A shell script in the mount as the mount's user; `$LOCAL` is a directory on the local disk.
    pub(crate) fn sh(&self, script: &str) -> String {
        self.sh_as(self.user, script)
    }

    /// A shell script in the mount as another user.
    pub(crate) fn sh_as(&self, user: u32, script: &str) -> String {
        succeed(&mut self.script(user, script))
    }

    /// Whether the shell script succeeds.
    pub(crate) fn sh_fails(&self, user: u32, script: &str) -> bool {
        !output(&mut self.script(user, script)).status.success()
    }

    /// `bucketvol` with these arguments, as the mount's user.
    pub(crate) fn bucketvol(&self, seconds: u32) -> Command {
        let mut command = as_user(self.user, seconds, self.program());
        self.environment(&mut command);
        command
    }

    /// Requests that the mount has sent so far, by verb, once everything is in the bucket.
    pub(crate) fn requests(&self) -> BTreeMap<String, u64> {
        serde_json::from_value(self.status()["requests"].clone()).expect("a number for each verb")
    }

    /// What `status` says of the mount, when all is in the bucket.
    pub(crate) fn status(&self) -> serde_json::Value {
        succeed(self.bucketvol(60).arg("sync").arg(self.path("")));
        let status = succeed(self.bucketvol(60).args(["status", "--json"]));
        let status: Vec<serde_json::Value> = serde_json::from_str(&status).expect("JSON");
        // Other mounts of root's may be there.
        let mut mounts = status.iter().map(|process| &process["mounts"][0]);
        let ours = |mount: &&serde_json::Value| {
            let point = mount["mountpoint"].as_str();
            point.is_some_and(|point| self.path("").starts_with(point))
        };
        let mount = mounts.find(ours).expect("it is mounted");
        mount.clone()
    }

    /// What the program has said on stderr.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.place.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn script(&self, user: u32, script: &str) -> Command {
        let mut command = as_user(user, 240, "sh");
        // By the user's own foot: a mount of another user is closed to root.
        command.args(["-ec", &format!("cd \"$MOUNT\"\n{script}")]);
        command
            .env("MOUNT", self.path(""))
            .env("LOCAL", self.local(""))
            .stdin(Stdio::null());
        self.environment(&mut command);
        command
    }

    fn mount(&mut self) {
        let (url, endpoint) = match &self.source {
            Source::Bucket { account, prefix } => (
                format!("s3://{}/{prefix}", account.bucket),
                format!("endpoint={},region={},", account.endpoint, account.region),
            ),
            Source::Directory(directory) => {
                (format!("file://{}", directory.display()), String::new())
            }
        };
        self.remounts += 1;
        // A state directory for each mount: what is remembered has to come from the bucket.
        let state = self
            .place
            .path()
            .join(format!("home/state-{}", self.remounts));
        fs::create_dir_all(&state).expect("a directory");
        chown(&state, Some(self.user), Some(self.user)).expect("the user owns it");
        let cache = match self.keeps_cache {
            true => self.place.path().join("home/cache/kept"),
            false => state.join("cache"),
        };
        let mut options = format!(
            "{endpoint}state_dir={},cache_dir={}",
            state.display(),
            cache.display()
        );
        if !self.options.is_empty() {
            options = format!("{options},{}", self.options);
        }
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.place.path().join("log"))
            .expect("a log");
        let mut command = match self.user {
            0 => Command::new(self.program()),
            user => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", &user.to_string(), "--regid", &user.to_string()]);
                command.args(["--clear-groups", "--"]).arg(self.program());
                command
            }
        };
        command
            .arg("mount")
            .arg(url)
            .arg(self.path(""))
            .args(["-o", &options]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        self.environment(&mut command);
        let mut process = command.spawn().expect("bucketvol runs");
        let stdout = process.stdout.take().expect("it is piped");
        self.process = Some(process);
        read_until(stdout, "ready", PATIENCE);
        assert!(self.is_mounted(), "it said ready without a mount");
    }

    /// The program where every user can reach it: a checkout may be below a home that is closed to others.
    fn program(&self) -> PathBuf {
        let built = Path::new(env!("CARGO_BIN_EXE_bucketvol"));
        if self.user == 0 {
            return built.to_owned();
        }
        let copy = self.place.path().join("bucketvol");
        if !copy.exists() {
            fs::copy(built, &copy).expect("the program is copied");
        }
        copy
    }

    fn environment(&self, command: &mut Command) {
        let home = self.place.path().join("home");
        command
            .env("HOME", &home)
            .env("XDG_STATE_HOME", home.join("state"))
            .env("XDG_CACHE_HOME", home.join("cache"))
            .env("XDG_RUNTIME_DIR", self.place.path().join("run"))
            .env_remove("AWS_PROFILE")
            // A worker that hangs is found out soon.
            .env("BUCKETVOL_WATCHDOG", "4s")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("LC_ALL", "C.UTF-8");
        if let Source::Bucket { account, .. } = &self.source {
            command
                .env("AWS_ACCESS_KEY_ID", &account.access_key_id)
                .env("AWS_SECRET_ACCESS_KEY", &account.secret_access_key);
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if std::thread::panicking() {
            report(&format!("--- what bucketvol said\n{}", self.log()));
        }
        if let Some(mut process) = self.process.take() {
            end(&mut process, Duration::from_secs(20));
        }
        if self.is_mounted() {
            let _ = bounded(10, "umount")
                .arg("--lazy")
                .arg(self.path(""))
                .status();
        }
        if self.has_own_disk {
            let mut umount = bounded(10, "umount");
            let _ = umount.arg("--lazy").arg(self.disk("")).status();
        }
    }
}

fn bucket(account: &Account, prefix: &str) -> Source {
    Source::Bucket {
        account: account.clone(),
        prefix: prefix.to_owned(),
    }
}

/// A bounded command as another user.
fn as_user(user: u32, seconds: u32, program: impl AsRef<OsStr>) -> Command {
    if user == 0 {
        return bounded(seconds, program);
    }
    let mut command = bounded(seconds, "setpriv");
    command.args(["--reuid", &user.to_string(), "--regid", &user.to_string()]);
    command.args(["--clear-groups", "--"]).arg(program);
    command
}

#[expect(
    clippy::print_stdout,
    reason = "the test runner shows it when the test has failed"
)]
fn report(text: &str) {
    println!("{text}");
}
