//! The engine is restarted, killed and live-restored while there are volumes at each stage of their lives, and while
//! our worker is killed and replaced: it finds all of them as they were.
//!
//! What is at stake: an engine that starts asks for every volume it knows, and forgets labels and options of those that
//! it is told do not exist; it mounts again by old ids, and some mounts it never unmounts.

use std::time::Duration;

use crate::common::daemon::{Daemon, SOCKET};
use crate::common::dockerd::{Dockerd, IMAGE};
use crate::common::process::{succeed, wait_for};
use crate::common::s3::{Account, LocalS3};

const PATIENCE: Duration = Duration::from_secs(60);

/// What happens to our worker while there is no engine: the next one goes on while the engine looks for its volumes.
#[derive(Debug, Clone, Copy)]
enum Worker {
    Stays,
    IsKilled,
    IsReplaced,
}

/// How the engine ends, one time after the other.
const ENDS: [(&str, Worker); 5] = [
    ("TERM", Worker::Stays),
    ("KILL", Worker::Stays),
    ("TERM", Worker::IsKilled),
    ("KILL", Worker::IsKilled),
    ("KILL", Worker::IsReplaced),
];

/// Volumes of one bucket, each called by the stage it is at: never mounted; of a container that was never started; in
/// use; of a container that has ended.
const STAGES: [&str; 4] = ["bare", "created", "running", "stopped"];

/// What the containers of these stages do. The one that runs appends numbers to a file that it has open, and goes on
/// where the file ends when it is started again. It ends at the first write that fails.
const PROGRAMS: [(&str, &str); 3] = [
    ("created", "echo created >>/data/file"),
    (
        "running",
        "trap 'exit 0' TERM; exec 9>>/data/file; i=$(wc -l </data/file)
        while :; do echo $i >&9; echo $i >/data/last; i=$((i+1)); sleep 0.01; done",
    ),
    ("stopped", "echo started >>/data/file"),
];

/// An engine's volumes and containers, and what is expected of them.
struct Scene<'a> {
    engine: &'a Dockerd,
    daemon: &'a Daemon<'a>,
    account: &'a Account,
    /// What the engine knew of its volumes and of its containers' mounts at first.
    known: String,
    /// Where on the host the volume is that is in use.
    place: String,
}

impl<'a> Scene<'a> {
    fn set(engine: &'a Dockerd, daemon: &'a Daemon<'a>, account: &'a Account) -> Self {
        for stage in STAGES {
            let mut create = engine.command(&["volume", "create", "--driver", "bucketvol"]);
            create.args(["--label", &format!("stage={stage}"), "--label", "kept"]);
            for option in account.options() {
                create.args(["--opt", &option]);
            }
            create.args(["--opt", &format!("prefix={stage}"), stage]);
            succeed(&mut create);
        }
        for (name, script) in PROGRAMS {
            let volume = format!("{name}:/data");
            let create = ["create", "--network=none", "--name", name, "-v", &volume];
            let command = [IMAGE, "sh", "-ec", script];
            engine.docker(&[&create[..], &command].concat());
        }
        engine.docker(&["start", "--attach", "stopped"]);
        engine.docker(&["start", "running"]);
        let mut scene = Self {
            engine,
            daemon,
            account,
            known: String::new(),
            place: engine.docker(&["volume", "inspect", "-f", "{{.Mountpoint}}", "running"]),
        };
        scene.known = scene.known_now();
        for stage in STAGES {
            assert!(scene.known.contains(&format!("{stage} bucketvol ")));
            assert!(scene.known.contains(&format!(r#""stage":"{stage}""#)));
        }
        scene.writes_on(0);
        scene
    }

    fn known_now(&self) -> String {
        // Without the place on the host, which the engine forgets of containers that do not run.
        let format =
            "{{range .Mounts}}{{.Type}} {{.Name}} {{.Driver}} {{.Destination}} {{.RW}}{{end}}";
        let mounts = PROGRAMS.map(|(name, _)| self.engine.inspect(name, format));
        format!("{}\n{}", self.engine.known_of_volumes(), mounts.join("\n"))
    }

    /// The engine ends, and something may happen to the worker.
    fn end(&self, signal: &str, worker: Worker) {
        self.engine.stop(signal);
        match worker {
            Worker::Stays => {}
            Worker::IsKilled => self.daemon.kill_worker(),
            Worker::IsReplaced => {
                let said = self.daemon.bucketvol(&["restart"]);
                assert!(said.contains("is replaced by"), "{said}");
            }
        }
    }

    /// The engine comes back.
    fn begin(&self) {
        self.engine.start_again();
        assert_eq!(self.known_now(), self.known);
    }

    /// How many numbers the container that runs has written, as it is seen beside the engine.
    fn written(&self) -> usize {
        let mut cat = self.engine.namespace().command(30, "cat");
        numbers(&succeed(cat.arg(format!("{}/file", self.place))))
    }

    /// Waits until the container that runs has written more than this.
    fn writes_on(&self, before: usize) {
        wait_for("the container writes", PATIENCE, || self.written() > before);
    }

    fn mounts(&self) -> usize {
        self.engine.namespace().fuse_mounts()
    }

    /// Uses every volume once more, stops and removes everything.
    fn strike(self, written: usize) {
        let Self {
            engine, account, ..
        } = &self;
        engine.run("bare", "0:0", "echo bare >/data/file");
        for name in ["created", "stopped"] {
            engine.docker(&["start", "--attach", name]);
        }
        engine.docker(&["stop", "running"]);
        assert_eq!(engine.inspect("running", "{{.State.ExitCode}}"), "0");
        // The engine has its answer once all of it is in the bucket.
        let stored = |stage: &str| {
            let bytes = account.get(&format!("{stage}/file"));
            String::from_utf8(bytes.unwrap_or_default()).expect("a text")
        };
        assert_eq!(stored("bare"), "bare\n");
        assert_eq!(stored("created"), "created\n");
        assert_eq!(stored("stopped"), "started\nstarted\n");
        assert!(numbers(&stored("running")) > written);
        self.daemon.wait_until_unmounted();
        for (name, _) in PROGRAMS {
            engine.docker(&["rm", name]);
        }
        for stage in STAGES {
            engine.docker(&["volume", "rm", stage]);
        }
        assert_eq!(engine.docker(&["volume", "ls", "--quiet"]), "");
        assert_eq!(self.mounts(), 0);
    }
}

/// How many numbers there are, which have to be those from 0 in their order.
fn numbers(text: &str) -> usize {
    assert!(text.is_empty() || text.ends_with(|c: char| c == '\n' || c.is_ascii_digit()));
    for (number, line) in text.lines().enumerate() {
        assert_eq!(line, number.to_string());
    }
    text.lines().count()
}

#[test]
fn an_engine_that_comes_back_finds_its_volumes_as_they_were() {
    let (s3, engine) = (LocalS3::start(), Dockerd::start());
    let daemon = Daemon::start(&engine, s3.account());
    let scene = Scene::set(&engine, &daemon, s3.account());
    let mut written = 0;
    for (signal, worker) in ENDS {
        written = scene.written();
        scene.end(signal, worker);
        scene.begin();
        // Its containers have ended with it, or with the next one. Only of one that was told to stop we have heard.
        assert_eq!(engine.inspect("running", "{{.State.Running}}"), "false");
        if signal == "TERM" {
            assert_eq!(scene.mounts(), 0, "{}", daemon.log());
        }
        engine.docker(&["start", "running"]);
        assert_eq!(scene.mounts(), 1, "{}", daemon.log());
        scene.writes_on(written);
    }
    scene.strike(written);
}

#[test]
fn a_container_that_outlives_its_engine_keeps_its_volume_until_it_is_stopped() {
    let (s3, engine) = (LocalS3::start(), Dockerd::start_with(&["--live-restore"]));
    let daemon = Daemon::start(&engine, s3.account());
    let scene = Scene::set(&engine, &daemon, s3.account());
    let process = "{{.State.Running}} {{.State.Pid}} {{.State.StartedAt}}";
    let before = engine.inspect("running", process);
    for (signal, worker) in ENDS {
        scene.end(signal, worker);
        scene.writes_on(scene.written());
        scene.begin();
        assert_eq!(engine.inspect("running", process), before);
        scene.writes_on(scene.written());
        engine.docker(&["exec", "running", "cat", "/data/last"]);
        assert_eq!(scene.mounts(), 1, "{}", daemon.log());
    }
    let written = scene.written();
    scene.strike(written);
}

/// The engine sends a call once more when its connection has broken, and the second time without a body: whatever such a
/// Get is answered, it would take the volume for gone.
#[test]
fn a_look_that_our_end_interrupts_costs_no_label() {
    let (s3, engine) = (LocalS3::start(), Dockerd::start());
    let _daemon = Daemon::start(&engine, s3.account());
    let namespace = engine.namespace();
    // Between the engine and us, so that it can be seen when a call is on its way.
    let relay = |to: &str| {
        let listen = "UNIX-LISTEN:/run/docker/plugins/relay.sock,fork,unlink-early,mode=600";
        let arguments = ["-v", listen, to].map(str::to_owned);
        namespace.spawn("socat", "socat", &arguments)
    };
    let there = relay(&format!("UNIX-CONNECT:{SOCKET}"));
    let mut create = engine.command(&["volume", "create", "--driver", "relay", "--label", "kept"]);
    for option in s3.account().options() {
        create.args(["--opt", &option]);
    }
    succeed(create.arg("vol"));
    let known = engine.known_of_volumes();
    namespace.signal(&there, "KILL");
    let calls = there.log().matches(".Get").count();

    // It takes the call, and ends without an answer. From then on the call reaches us, but not what was asked.
    let nowhere = relay("OPEN:/dev/null");
    std::thread::scope(|scope| {
        let look = scope.spawn(|| engine.docker_fails(&["volume", "inspect", "vol"]));
        wait_for("the call", PATIENCE, || {
            nowhere.log().matches(".Get").count() > calls
        });
        namespace.signal(&nowhere, "KILL");
        relay(&format!("UNIX-CONNECT:{SOCKET}"));
        let said = look.join().expect("docker runs");
        assert!(!said.contains("no such volume"), "{said}");
    });
    assert_eq!(engine.known_of_volumes(), known);
}
