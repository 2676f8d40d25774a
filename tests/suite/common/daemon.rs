//! `bucketvol serve` beside a test's own engine: same namespaces, state of its own, restarts at will.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use super::dockerd::Dockerd;
use super::namespace::{Inside, Namespace};
use super::process::{output, succeed, wait_for};
use super::s3::Account;

/// The plugin's socket, inside the namespaces, where the engine looks for it.
pub(crate) const SOCKET: &str = "/run/docker/plugins/bucketvol.sock";

/// How long the daemon may take to start or to drain.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon that runs inside an engine's namespaces and ends with them.
#[derive(Debug)]
pub(crate) struct Daemon<'a> {
    namespace: &'a Namespace,
    process: Inside,
    trusted: String,
}

impl<'a> Daemon<'a> {
    /// Starts the daemon with a credentials file `test` for `account`.
    pub(crate) fn start(engine: &'a Dockerd, account: &Account) -> Self {
        let namespace = engine.namespace();
        let credentials = namespace.directory().join("credentials");
        std::fs::create_dir_all(&credentials).expect("a directory for credentials");
        let file = credentials.join("test.toml");
        let text = format!(
            "access_key_id = \"{}\"\nsecret_access_key = \"{}\"\n",
            account.access_key_id, account.secret_access_key
        );
        std::fs::write(&file, text).expect("the credentials are written");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("they are ours");
        let trusted = account.endpoint.clone();
        let process = spawn(namespace, &trusted);
        let daemon = Self {
            namespace,
            process,
            trusted,
        };
        daemon.wait_until_ready();
        daemon
    }

    /// SIGTERM, which drains; then a new process on the same state.
    pub(crate) fn restart(&mut self) {
        self.stop("TERM");
        self.start_again();
    }

    /// SIGKILL for keeper and worker; then a new daemon on the same state.
    pub(crate) fn crash_and_restart(&mut self) {
        self.namespace.kill_all(&self.process);
        self.namespace.wait_until_ended(&self.process, PATIENCE);
        self.start_again();
    }

    /// SIGKILL for the worker alone: the keeper starts another one.
    pub(crate) fn kill_worker(&self) {
        self.namespace.kill_children(&self.process);
    }

    /// Likewise, and unmounts this before the next one is started.
    pub(crate) fn kill_worker_and_unmount(&self, mountpoint: &str) {
        let then = r#"umount --no-canonicalize --lazy "$1""#;
        self.namespace
            .kill_children_and(&self.process, then, mountpoint);
    }

    /// Ends the process by this signal and waits until it is gone.
    pub(crate) fn stop(&self, signal: &str) {
        self.namespace.signal(&self.process, signal);
        self.namespace.wait_until_ended(&self.process, PATIENCE);
    }

    /// `bucketvol` with these arguments, inside; its stdout.
    pub(crate) fn bucketvol(&self, arguments: &[&str]) -> String {
        let mut command = self.namespace.command(60, env!("CARGO_BIN_EXE_bucketvol"));
        succeed(command.args(arguments))
    }

    /// A call of the volume protocol, as the engine would make it; the answer's body.
    pub(crate) fn call(&self, method: &str, body: &str) -> String {
        succeed(
            self.namespace
                .command(120, "curl")
                .args([
                    "--silent",
                    "--show-error",
                    "--unix-socket",
                    SOCKET,
                    "--data",
                    body,
                ])
                .arg(format!("http://plugin/{method}")),
        )
    }

    /// What the daemon has logged.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until no volume is mounted: a drain may still be going on when the engine has its answer.
    pub(crate) fn wait_until_unmounted(&self) {
        wait_for("the last mount goes", PATIENCE, || {
            self.namespace.fuse_mounts() == 0
        });
    }

    fn start_again(&mut self) {
        self.process = spawn(self.namespace, &self.trusted);
        self.wait_until_ready();
    }

    fn wait_until_ready(&self) {
        let start = Instant::now();
        loop {
            assert!(
                self.namespace.is_running(&self.process),
                "it ended:\n{}",
                self.log()
            );
            let mut curl = self.namespace.command(10, "curl");
            curl.args([
                "--silent",
                "--fail",
                "--unix-socket",
                SOCKET,
                "--request",
                "POST",
            ]);
            if output(curl.arg("http://plugin/Plugin.Activate"))
                .status
                .success()
            {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "not ready:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn spawn(namespace: &Namespace, trusted: &str) -> Inside {
    let directory = |name: &str| namespace.directory().join(name).display().to_string();
    let arguments = [
        "serve".to_owned(),
        format!("--socket={SOCKET}"),
        format!("--state-dir={}", directory("state")),
        format!("--cache-dir={}", directory("cache")),
        format!("--base-dir={}", directory("mounts")),
        format!("--credentials-dir={}", directory("credentials")),
        format!("--trust-endpoint={trusted}"),
        // The machine's disk is full to whatever degree.
        "--min-free=64MiB".to_owned(),
    ];
    let program = env!("CARGO_BIN_EXE_bucketvol");
    namespace.spawn("bucketvol", program, &arguments)
}
