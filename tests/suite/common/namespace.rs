//! Mount and process namespaces of a test's own, for daemons that must not meet the machine's.
//!
//! They live as long as their first process, which ends when this value is dropped or the test's process
//! dies, however it dies. The kernel then kills every process and drops every mount in them, so that
//! nothing can be left behind. The network is the machine's: servers on loopback are in reach.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::process::{bounded, output, read_until, succeed, wait_for};
use super::s3::scratch;

/// The first process; the demo's engine has the same.
const INIT: &str = include_str!("../../../scripts/namespace-init.sh");

/// The namespaces, and a directory on disk for whatever runs in them.
#[derive(Debug)]
pub(crate) struct Namespace {
    unshare: Child,
    init: u32,
    directory: Option<TempDir>,
}

/// A daemon inside the namespaces, by its pid there.
#[derive(Debug)]
pub(crate) struct Inside {
    name: &'static str,
    pid: String,
    log: PathBuf,
}

impl Namespace {
    /// Makes the namespaces. Needs root.
    pub(crate) fn enter() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("bucketvol-test-ns-")
            .tempdir_in(scratch())
            .expect("a directory for the namespaces");
        let mut unshare = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "--pid",
                "--mount-proc",
            ])
            .args(["--fork", "--kill-child", "sh", "-c", INIT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare(1) runs");
        let stdout = unshare.stdout.take().expect("it is piped");
        read_until(stdout, "ready", Duration::from_secs(20));
        let pid = unshare.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
            .expect("the kernel lists children");
        let init = children.trim().parse().expect("unshare has one child");
        Self {
            unshare,
            init,
            directory: Some(directory),
        }
    }

    /// A directory that both sides see under the same path.
    pub(crate) fn directory(&self) -> &Path {
        self.directory
            .as_ref()
            .expect("it is there until drop")
            .path()
    }

    /// A command inside, killed after `seconds`.
    pub(crate) fn command(&self, seconds: u32, program: &str) -> Command {
        let mut command = bounded(seconds, "nsenter");
        command.args(["--target", &self.init.to_string(), "--mount", "--pid", "--"]);
        command.arg(program).stdin(Stdio::null());
        command
    }

    /// Starts a daemon inside; its output goes to a log of its name. It ends with the namespaces.
    pub(crate) fn spawn(&self, name: &'static str, program: &str, arguments: &[String]) -> Inside {
        let log = self.directory().join(format!("{name}.log"));
        let pid_file = self.directory().join(format!("{name}.pid"));
        let _ = fs::remove_file(&pid_file);
        let file = fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("a log");
        let mut child = Command::new("nsenter")
            .args(["--target", &self.init.to_string(), "--mount", "--pid", "--"])
            .args([
                "sh",
                "-c",
                r#"echo $$ > "$0.new" && mv "$0.new" "$0" && exec "$@""#,
            ])
            .arg(&pid_file)
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .expect("nsenter(1) runs");
        wait_for(name, Duration::from_secs(10), || pid_file.exists());
        // nsenter ends when the daemon does; somebody has to wait for it.
        std::thread::spawn(move || child.wait());
        let pid = fs::read_to_string(&pid_file)
            .expect("the pid was written")
            .trim()
            .to_owned();
        Inside { name, pid, log }
    }

    /// Sends a signal to a daemon inside.
    pub(crate) fn signal(&self, daemon: &Inside, signal: &str) {
        output(self.command(10, "kill").args(["-s", signal, &daemon.pid]));
    }

    /// SIGKILL for a daemon inside and its children: none of them has a last word.
    pub(crate) fn kill_all(&self, daemon: &Inside) {
        // The children first: a keeper sees its worker end, and is gone before it starts another. It is not
        // stopped meanwhile, since nsenter(1) would stop with it.
        let script = r#"kill -s KILL $(cat "/proc/$0/task/$0/children") "$0""#;
        output(self.command(10, "sh").args(["-c", script, &daemon.pid]));
    }

    /// SIGKILL for a daemon's children, of which it has some or will have soon.
    pub(crate) fn kill_children(&self, daemon: &Inside) {
        let script = r#"until kill -s KILL $(cat "/proc/$0/task/$0/children") 2>/dev/null; do sleep 0.02; done"#;
        succeed(self.command(30, "sh").args(["-c", script, &daemon.pid]));
    }

    /// Likewise; and then at once, before there are others, what the shell is told with `argument` as `$1`.
    pub(crate) fn kill_children_and(&self, daemon: &Inside, then: &str, argument: &str) {
        let script = format!(r#"kill -s KILL $(cat "/proc/$0/task/$0/children"); {then}"#);
        succeed(
            self.command(30, "sh")
                .args(["-ec", &script, &daemon.pid, argument]),
        );
    }

    /// Whether the daemon runs; a zombie does not.
    pub(crate) fn is_running(&self, daemon: &Inside) -> bool {
        let stat = format!("/proc/{}/root/proc/{}/stat", self.init, daemon.pid);
        fs::read_to_string(stat).is_ok_and(|stat| {
            stat.rsplit_once(") ")
                .is_some_and(|(_, after)| !after.starts_with(['Z', 'X']))
        })
    }

    /// Waits until the daemon has ended.
    pub(crate) fn wait_until_ended(&self, daemon: &Inside, limit: Duration) {
        wait_for(daemon.name, limit, || !self.is_running(daemon));
    }

    /// The mount table inside.
    pub(crate) fn mounts(&self) -> String {
        fs::read_to_string(format!("/proc/{}/mountinfo", self.init)).expect("the mount table")
    }

    /// How many FUSE file systems are mounted below [`Self::directory`].
    pub(crate) fn fuse_mounts(&self) -> usize {
        let below = format!(" {}/", self.directory().display());
        let of_ours = |line: &&str| line.contains(" - fuse") && line.contains(&below);
        self.mounts().lines().filter(of_ours).count()
    }
}

impl Inside {
    /// What it has written so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show_logs(self.directory());
        }
        // The first process ends when its stdin closes, and the namespaces with it.
        drop(self.unshare.stdin.take());
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            if !matches!(self.unshare.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        if let Some(directory) = self.directory.take()
            && std::env::var_os("BUCKETVOL_KEEP").is_some()
        {
            report(&format!("kept {}", directory.keep().display()));
        }
    }
}

/// The last lines of every log, for the report of a failed test.
fn show_logs(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == "log") {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let end = lines[lines.len().saturating_sub(40)..].join("\n");
            report(&format!("--- the end of {}\n{end}", path.display()));
        }
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the test runner shows it when the test has failed"
)]
fn report(text: &str) {
    println!("{text}");
}
