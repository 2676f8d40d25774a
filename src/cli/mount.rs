//! `bucketvol mount`: one location on one directory, in the foreground or behind the shell's back.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::control::server;
use super::ending::OneMount;
use super::said::{self, Said};
use super::signals::Signals;
use super::tracked::Held;
use super::worker::{self, KeeperArgs, Turn, Worker};
use super::{background, compose, output, pairs};
use crate::config::size::parse_duration;
use crate::config::{Ambient, Environment, Location, Options, Scheme, Scope};
use crate::fs::Format;
use crate::fs::fuse::mount::check_mountpoint;

/// How long it may take until the mount is usable or refused.
pub(super) const START_LIMIT: Duration = Duration::from_secs(22);

/// Mount a bucket, or a part of it, on an empty directory
#[derive(Debug, Args)]
#[command(after_help = "Example:
  bucketvol mount s3://photos/2026 /mnt/photos -o endpoint=https://s3.example.com,ro

`ready` on stdout says that the mount can be used. SIGTERM, SIGINT and `bucketvol unmount` bring every
change into the bucket and unmount; a second signal does not wait for that.")]
pub(super) struct MountArgs {
    /// What to mount: s3://BUCKET[/PREFIX], file:///DIR or memory://NAME
    pub(super) url: String,
    /// Where to mount it: an empty directory
    pub(super) dir: PathBuf,
    /// Options, as in `-o endpoint=https://s3.example.com,ro`; --help lists them all
    #[arg(short = 'o', value_name = "KEY=VALUE,…")]
    pub(super) options: Vec<String>,
    /// Return when the mount can be used; it goes on in the background
    #[arg(long)]
    pub(super) background: bool,
    /// How long a signal may drain before the unmount
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time)]
    pub(super) drain_timeout: Duration,
    /// Set by --background for the process behind: options come on stdin, where no process list shows them
    #[arg(long, hide = true)]
    pub(super) detached: bool,
    #[command(flatten)]
    pub(super) keeper: KeeperArgs,
}

/// A time span, for clap.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .ok_or_else(|| "accepted is a time span (500ms, 1m 30s) or plain seconds".to_owned())
}

/// The options of a command: what is said, then what the environment and the caller add to it.
pub(super) fn options(
    url: &str,
    mut said: Vec<(String, String)>,
    ambient: &Ambient,
) -> Result<Options> {
    let location = Location::parse(url)?;
    if location.scheme == Scheme::S3 {
        said.extend(ambient.default_options(&said));
    }
    for (key, id) in [
        ("uid", nix::unistd::geteuid().as_raw()),
        ("gid", nix::unistd::getegid().as_raw()),
    ] {
        if !said.iter().any(|(k, _)| k == key) {
            said.push((key.to_owned(), id.to_string()));
        }
    }
    Ok(Options::parse(said, Scope::Mount, Some(location))?)
}

pub(super) fn run(args: MountArgs, newest: Format) -> Result<ExitCode> {
    if args.background {
        // Refused here already: what is wrong with words needs no second process.
        let said = pairs::split(&args.options);
        let ambient = Ambient::command_line(Environment::of_this_process());
        options(&args.url, said.clone(), &ambient)?;
        check_mountpoint(&args.dir)?;
        return background::start(&args, &said);
    }
    if args.detached {
        background::leave_the_caller()?;
    }
    let keeper = args.keeper.clone();
    worker::run(&keeper, newest, |worker| {
        let said = said(&args, &worker)?;
        super::runtime()?.block_on(serve(args, said, worker))
    })
}

/// The options that were given to the first of all workers.
fn said(args: &MountArgs, worker: &Worker) -> Result<Said> {
    if let Some(said) = said::by_an_earlier_worker(worker)? {
        return Ok(said);
    }
    let said = match args.detached {
        true => said::receive()?,
        false => pairs::split(&args.options),
    };
    if !args.detached && said.iter().any(|(key, _)| crate::config::is_secret(key)) {
        output::say(
            "a secret among the arguments is shown by ps to every user of this host; \
             credentials=file:NAME or profile:NAME is not",
        );
    }
    said::keep(&said, worker)?;
    Ok(said)
}

async fn serve(args: MountArgs, said: Said, worker: Arc<Worker>) -> Result<ExitCode> {
    // From here on a signal is ours: one in the middle of the mount must not leave half of it behind.
    let signals = Signals::install(&worker)?;
    worker.beat();
    let ambient = Ambient::command_line(Environment::of_this_process());
    let options = options(&args.url, said, &ambient)?;
    let attributes = compose::attributes_of(&options);
    let work = compose::mount_at(&args.dir, &options, &ambient, &worker, attributes.clone());
    let mount = tokio::select! {
        mount = tokio::time::timeout(START_LIMIT, work) => match mount {
            Ok(mount) => mount.with_context(|| format!("mount {}", options.location))?,
            Err(_) => bail!("mount {}: not ready after {START_LIMIT:?}", options.location),
        },
        () = signals.first() => bail!("mount {}: stopped by a signal", options.location),
    };
    let mount = OneMount::new(Held::new(mount, &options, None));
    let closing = CancellationToken::new();
    worker.ready();
    let control = server::start("mount", Arc::clone(&mount) as _, &worker, closing.clone());
    if worker.turn() == Turn::First {
        output::print("ready");
    }
    let ended = tokio::select! {
        ended = mount.run(signals.first(), signals.second(), args.drain_timeout) => Some(ended),
        () = signals.hand_over() => None,
    };
    closing.cancel();
    if let Some(control) = control {
        let _ = control.await;
    }
    worker.stopping();
    // A hand-over does not wait for it.
    if let (Some(_), Some(attributes)) = (&ended, &attributes) {
        compose::keep_attributes(attributes).await;
    }
    match ended {
        Some(ended) => ended.map(|()| ExitCode::SUCCESS),
        None => worker.leave().await,
    }
}

/// Reads a child's lines until the one that says it is usable. `false`: it ended without it.
pub(super) fn wait_for_ready(stdout: impl Read) -> bool {
    io::BufReader::new(stdout)
        .lines()
        .map_while(io::Result::ok)
        .any(|line| line == "ready")
}

/// Where this user's mounts keep what outlives them: logs, and bytes on their way.
pub(super) fn state_dir() -> Result<PathBuf> {
    own_dir("XDG_STATE_HOME", "/var/lib", ".local/state")
        .context("neither XDG_STATE_HOME nor HOME is set: say -o state_dir=DIR")
}

/// Where they keep what can be asked for again.
pub(super) fn cache_dir() -> Option<PathBuf> {
    own_dir("XDG_CACHE_HOME", "/var/cache", ".cache")
}

/// This user's directory of a kind, by the XDG base directory specification; root's is the system's.
fn own_dir(variable: &str, of_root: &str, at_home: &str) -> Option<PathBuf> {
    let own = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = match own(variable) {
        Some(base) => base,
        None if nix::unistd::geteuid().is_root() => PathBuf::from(of_root),
        None => own("HOME")?.join(at_home),
    };
    Some(base.join("bucketvol"))
}

/// A directory's name for a file's: `/mnt/a` is `mnt-a`.
pub(super) fn file_name_of(dir: &Path) -> String {
    let name: String = dir
        .to_string_lossy()
        .trim_start_matches('/')
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' || c == '_' {
                c
            } else {
                '-'
            }
        })
        .collect();
    name.chars()
        .rev()
        .take(200)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ambient(pairs: &[(&str, &str)]) -> Ambient {
        Ambient::command_line(
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn a_commands_options_are_completed_from_the_environment_and_the_caller() {
        let ambient = ambient(&[
            ("AWS_ENDPOINT_URL", "http://minio:9000"),
            ("AWS_REGION", "lab"),
        ]);
        let options = options("s3://photos", vec![], &ambient).unwrap();
        assert_eq!(options.endpoint.url.as_deref(), Some("http://minio:9000"));
        assert_eq!(options.endpoint.region.as_deref(), Some("lab"));
        assert!(options.endpoint.path_style);
        assert_eq!(options.ownership.uid, nix::unistd::geteuid().as_raw());
    }

    #[test]
    fn what_is_said_wins_over_the_environment() {
        let ambient = ambient(&[("AWS_ENDPOINT_URL", "http://minio:9000")]);
        let said = pairs::split(&["endpoint=https://other,uid=7".to_owned()]);
        let options = options("s3://photos", said, &ambient).unwrap();
        assert_eq!(options.endpoint.url.as_deref(), Some("https://other"));
        assert_eq!(options.ownership.uid, 7);
    }

    #[test]
    fn an_endpoint_of_the_environment_is_not_for_other_kinds_of_store() {
        let ambient = ambient(&[
            ("AWS_ENDPOINT_URL", "http://minio:9000"),
            ("AWS_REGION", "lab"),
        ]);
        assert_eq!(
            options("memory://x", vec![], &ambient)
                .unwrap()
                .endpoint
                .url,
            None
        );
    }

    #[test]
    fn ready_is_a_line_of_its_own() {
        assert!(wait_for_ready(&b"already\nready\nmore"[..]));
        assert!(!wait_for_ready(&b"not ready\n"[..]));
    }

    #[test]
    fn a_directory_gives_a_name_for_its_log() {
        assert_eq!(file_name_of(Path::new("/mnt/a b/c")), "mnt-a-b-c");
    }
}
