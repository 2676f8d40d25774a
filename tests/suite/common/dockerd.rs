//! A real Docker engine of the test's own, in namespaces of its own: the machine's is never touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use parking_lot::Mutex;

use super::namespace::{Inside, Namespace};
use super::process::{bounded, fail, output, succeed, wait_for};

/// Where the engine listens, inside the namespaces.
const SOCKET: &str = "unix:///run/docker/engine.sock";

/// What the engine's containers are made of: the distribution's static busybox and a few directories.
pub(crate) const IMAGE: &str = "bucketvol-test";

/// How long the engine may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// An engine that runs; it and all its containers end with the value.
#[derive(Debug)]
pub(crate) struct Dockerd {
    // In this order: a control group can go once its processes have.
    namespace: Namespace,
    cgroup: Cgroup,
    /// What it is told beside what every engine of a test is.
    flags: &'static [&'static str],
    /// `None`: it has been stopped.
    process: Mutex<Option<Inside>>,
}

/// The control group under which the engine puts its containers, in every hierarchy.
#[derive(Debug)]
struct Cgroup(String);

impl Dockerd {
    /// Starts an engine and gives it one image, [`IMAGE`].
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Likewise, with further flags for dockerd.
    pub(crate) fn start_with(flags: &'static [&'static str]) -> Self {
        let namespace = Namespace::enter();
        let cgroup = Cgroup(format!("bucketvol-test-{}", uuid::Uuid::new_v4().simple()));
        let engine = Self {
            namespace,
            cgroup,
            flags,
            process: Mutex::default(),
        };
        engine.start_again();
        engine.import_image();
        engine
    }

    /// Ends dockerd by this signal, and waits until it has. What becomes of its containers is its own affair.
    pub(crate) fn stop(&self, signal: &str) {
        let process = self.process.lock().take().expect("it runs");
        self.namespace.signal(&process, signal);
        self.namespace.wait_until_ended(&process, PATIENCE);
    }

    /// Starts dockerd on what the one before has left, and waits until it answers.
    pub(crate) fn start_again(&self) {
        let process = self.spawn();
        wait_for("dockerd", PATIENCE, || {
            assert!(
                self.namespace.is_running(&process),
                "dockerd ended:\n{}",
                process.log()
            );
            output(&mut self.command(&["info"])).status.success()
        });
        *self.process.lock() = Some(process);
    }

    /// The namespaces, for a plugin to live in: mounts reach the engine only from there.
    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// `docker` with these arguments, which has to succeed; its stdout.
    pub(crate) fn docker(&self, arguments: &[&str]) -> String {
        succeed(&mut self.command(arguments))
    }

    /// `docker` with these arguments, which has to fail; what it said.
    pub(crate) fn docker_fails(&self, arguments: &[&str]) -> String {
        fail(&mut self.command(arguments))
    }

    /// A shell script in a fresh container with `volume` at /data; its stdout.
    pub(crate) fn run(&self, volume: &str, user: &str, script: &str) -> String {
        let mount = format!("{volume}:/data");
        self.docker(&[
            "run",
            "--rm",
            "--network",
            "none",
            "--user",
            user,
            "-v",
            &mount,
            IMAGE,
            "sh",
            "-ec",
            script,
        ])
    }

    /// What the engine itself knows of all its volumes, a line each: what it would forget of one that it was once told
    /// does not exist.
    pub(crate) fn known_of_volumes(&self) -> String {
        let names = self.docker(&["volume", "ls", "--quiet"]);
        let format = "{{.Name}} {{.Driver}} {{json .Labels}} {{json .Options}} {{.Mountpoint}} {{.CreatedAt}}";
        let mut inspect = self.command(&["volume", "inspect", "--format", format]);
        succeed(inspect.args(names.lines()))
    }

    /// What of a container `docker inspect` shows by this format.
    pub(crate) fn inspect(&self, container: &str, format: &str) -> String {
        self.docker(&["inspect", "--format", format, container])
    }

    /// Starts a container in the background with `volume` at /data; it sleeps until it is removed.
    pub(crate) fn start_container(&self, name: &str, volume: &str) {
        let mount = format!("{volume}:/data");
        self.docker(&[
            "run",
            "-d",
            "--name",
            name,
            "--network",
            "none",
            "-v",
            &mount,
            IMAGE,
            "sleep",
            "3600",
        ]);
    }

    /// `docker` with these arguments, ready to run.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.namespace.command(300, "docker");
        command.args(["--host", SOCKET]).args(arguments);
        command
    }

    /// `docker volume create`, which has to succeed.
    pub(crate) fn create_volume(&self, driver: &str, name: &str, options: &[String]) {
        self.docker(&create_arguments(driver, name, options));
    }

    /// `docker volume create` that has to fail; what it said.
    pub(crate) fn create_volume_fails(
        &self,
        driver: &str,
        name: &str,
        options: &[String],
    ) -> String {
        self.docker_fails(&create_arguments(driver, name, options))
    }

    fn spawn(&self) -> Inside {
        let data = self.namespace.directory().join("docker");
        let mut arguments = vec![
            "--data-root".to_owned(),
            data.display().to_string(),
            "--exec-root=/run/docker/exec".to_owned(),
            "--pidfile=/run/docker/engine.pid".to_owned(),
            format!("--host={SOCKET}"),
            format!("--cgroup-parent=/{}", self.cgroup.0),
            // Containers have no network, so the machine's needs no change.
            "--bridge=none".to_owned(),
            "--iptables=false".to_owned(),
            "--ip6tables=false".to_owned(),
            "--ip-forward=false".to_owned(),
            "--ip-masq=false".to_owned(),
        ];
        arguments.extend(self.flags.iter().map(|flag| (*flag).to_owned()));
        self.namespace.spawn("dockerd", "dockerd", &arguments)
    }

    fn import_image(&self) {
        let root = self.namespace.directory().join("image");
        for directory in ["bin", "tmp", "etc", "data", "seed/sub"] {
            fs::create_dir_all(root.join(directory)).expect("the image's directories");
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
        fs::write(root.join("seed/file"), "from the image\n").expect("a file of the image");
        fs::write(root.join("seed/sub/deep"), "deeper\n").expect("a file of the image");
        std::os::unix::fs::symlink("file", root.join("seed/link")).expect("a symlink");
        succeed(
            bounded(20, "chroot")
                .arg(&root)
                .args(["/bin/busybox", "--install", "-s", "/bin"]),
        );
        succeed(
            bounded(20, "chown")
                .args(["1000:1000"])
                .arg(root.join("seed/file")),
        );
        succeed(
            bounded(20, "chmod")
                .args(["0640"])
                .arg(root.join("seed/file")),
        );
        self.import(IMAGE, &root);
    }

    /// Makes an image of what is below `root`.
    pub(crate) fn import(&self, image: &str, root: &Path) {
        let archive = self.tar(root);
        let mut import = self.command(&["import", "-", image]);
        import.stdin(Stdio::from(fs::File::open(archive).expect("the archive")));
        succeed(&mut import);
    }

    fn tar(&self, root: &Path) -> PathBuf {
        let archive = self.namespace.directory().join("image.tar");
        succeed(
            bounded(60, "tar")
                .arg("-C")
                .arg(root)
                .arg("-cf")
                .arg(&archive)
                .arg("."),
        );
        archive
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let root = Path::new("/sys/fs/cgroup");
        // Version 2 has one hierarchy, right there; version 1 has a directory for each.
        let hierarchies = fs::read_dir(root).into_iter().flatten().flatten();
        for directory in hierarchies
            .map(|entry| entry.path())
            .chain([root.to_owned()])
        {
            remove_cgroup(&directory.join(&self.0));
        }
    }
}

/// Removes a control group and those in it: the files in it are the kernel's and need no removing.
fn remove_cgroup(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    // The kernel may still be burying the last process; scripts/leftovers.sh reports what stays.
    for _ in 0..50 {
        if fs::remove_dir(directory).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn create_arguments<'a>(driver: &'a str, name: &'a str, options: &'a [String]) -> Vec<&'a str> {
    let mut arguments = vec!["volume", "create", "-d", driver];
    for option in options {
        arguments.extend(["-o", option]);
    }
    arguments.push(name);
    arguments
}
