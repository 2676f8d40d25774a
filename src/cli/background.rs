//! `mount --background`: the same program once more, in a session of its own.
//!
//! It is started anew, not forked: a fork of a process with threads keeps only one of them. Options go
//! through a pipe, since arguments and environments can be read by others.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;

use anyhow::{Context, Result, bail};

use super::mount::{self, MountArgs, START_LIMIT};
use super::{output, said, worker};
use crate::fs::fuse::mount::check_mountpoint;

/// What a child is given beyond the time it gives itself.
const SLACK: std::time::Duration = std::time::Duration::from_secs(2);

/// Starts the mount in the background and returns when it can be used.
pub(super) fn start(args: &MountArgs, said: &[(String, String)]) -> Result<ExitCode> {
    let dir = check_mountpoint(&args.dir)?;
    let logs = mount::state_dir()?.join("log");
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&logs)
        .with_context(|| format!("{}", logs.display()))?;
    let log_path = logs.join(format!("{}.log", mount::file_name_of(&dir)));
    let log = File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&log_path)
        .with_context(|| format!("{}", log_path.display()))?;
    let program = worker::program().context("this program's own path")?;
    let mut child = Command::new(program)
        .arg("mount")
        .arg(&args.url)
        .arg(&dir)
        .arg("--detached")
        .arg(format!(
            "--drain-timeout={}",
            humantime::format_duration(args.drain_timeout)
        ))
        .args(args.keeper.to_arguments())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("the process in the background")?;
    let ready = send_options(&mut child, said).and_then(|()| wait(&mut child));
    if ready.is_ok() {
        return Ok(ExitCode::SUCCESS);
    }
    // It may be in the middle of the mount: it is asked to end, so that it takes the mount with it.
    let said = end(child, &log_path);
    let _ = fs::remove_file(&log_path);
    match (said, ready) {
        (Some(said), _) => {
            output::say(said);
            Ok(ExitCode::FAILURE)
        }
        (None, Err(error)) => Err(error),
        (None, Ok(())) => Ok(ExitCode::FAILURE),
    }
}

/// The step out of the caller's session and directory.
pub(super) fn leave_the_caller() -> Result<()> {
    // It fails for a process that leads a group already: a worker, which is in its keeper's session.
    let _ = nix::unistd::setsid();
    std::env::set_current_dir("/").context("/")
}

fn send_options(child: &mut Child, said: &[(String, String)]) -> Result<()> {
    let stdin = child.stdin.take().context("the child's stdin")?;
    said::send(said, stdin)
}

fn wait(child: &mut Child) -> Result<()> {
    let stdout = child.stdout.take().context("the child's stdout")?;
    let (tell, told) = mpsc::sync_channel(1);
    std::thread::spawn(move || tell.send(mount::wait_for_ready(stdout)));
    match told.recv_timeout(START_LIMIT + SLACK) {
        Ok(true) => Ok(()),
        Ok(false) => bail!("the process in the background ended before the mount was ready"),
        Err(_) => bail!("the mount was not ready in time"),
    }
}

/// Ends the child; what it had to say, without our name in front.
fn end(mut child: Child, log: &std::path::Path) -> Option<String> {
    if let (Ok(None), Ok(pid)) = (child.try_wait(), i32::try_from(child.id())) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGTERM,
        );
        for _ in 0..20 {
            if !matches!(child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(SLACK / 20);
        }
        let _ = child.kill();
    }
    let _ = child.wait();
    let text = fs::read_to_string(log).ok()?;
    let last = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("bucketvol: "))?;
    Some(last.to_owned())
}
