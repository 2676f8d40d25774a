//! The commands. The composition root: the only place that knows both the plugin and the file system.
//!
//! One file a command; `compose` joins the layers, `mounter` mounts, `control` is how commands and the
//! processes that serve mounts talk.

mod background;
mod compose;
mod control;
mod doctor;
mod ending;
mod memory;
mod mount;
pub mod mounter;
mod mountpoint;
mod output;
mod pairs;
mod pending;
mod progress;
mod restart;
mod said;
mod serve;
mod signals;
mod status;
mod sync;
mod tracked;
mod unmount;
mod volume;
pub mod worker;

use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{Options, Scope};
use crate::fs::Format;
use crate::telemetry;

/// Where Docker looks for the plugin `bucketvol`.
const SOCKET: &str = "/run/docker/plugins/bucketvol.sock";

/// Object-storage buckets as Docker volumes and as ordinary mounts
#[derive(Debug, Parser)]
#[command(name = "bucketvol", version, arg_required_else_help = true)]
#[command(after_help = format!("Example:
  bucketvol mount s3://photos/2026 /mnt/photos -o endpoint=https://s3.example.com

{}", output::EXIT_STATUS))]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// What is logged to stderr: error, warn, info, debug, trace, or a filter [env: BUCKETVOL_LOG]
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::ServeArgs),
    Mount(mount::MountArgs),
    #[command(visible_alias = "umount")]
    Unmount(unmount::UnmountArgs),
    Sync(sync::SyncArgs),
    Pending(pending::PendingArgs),
    Status(status::StatusArgs),
    Restart(restart::RestartArgs),
    Volume(volume::VolumeArgs),
    Doctor(doctor::DoctorArgs),
}

/// Runs the command of this process's arguments; what goes wrong is said on stderr, once and on one line. `newest` is
/// the format of what this release leaves to the next.
pub fn run(newest: Format) -> ExitCode {
    // Usage errors end here, with status 2.
    let matches = command().get_matches();
    let arguments = match Arguments::from_arg_matches(&matches) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    match dispatch(arguments, newest) {
        Ok(code) => code,
        Err(error) => output::report(&error),
    }
}

/// The command line, with the table of options where options are said.
fn command() -> clap::Command {
    let with_options = |command: clap::Command, scope| {
        let help = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        command.after_long_help(format!(
            "Options for -o:\n{}\n{help}",
            Options::help_table(scope)
        ))
    };
    Arguments::command()
        .mut_subcommand("mount", |command| with_options(command, Scope::Mount))
        .mut_subcommand("volume", |command| {
            command.mut_subcommand("create", |command| with_options(command, Scope::Volume))
        })
}

fn dispatch(arguments: Arguments, newest: Format) -> Result<ExitCode> {
    let quiet = match arguments.command {
        Command::Serve(_) => "info",
        _ => "warn",
    };
    telemetry::start(arguments.log_level.as_deref(), quiet).map_err(|error| anyhow!(error))?;
    choose_tls_provider();
    let run_dir = control::run_dir();
    match arguments.command {
        Command::Mount(args) => mount::run(args, newest),
        Command::Serve(args) => serve::run(args, newest),
        Command::Unmount(args) => runtime()?.block_on(unmount::run(args, &run_dir)),
        Command::Sync(args) => runtime()?.block_on(sync::run(args, &run_dir)),
        Command::Pending(args) => runtime()?.block_on(pending::run(args, &run_dir)),
        Command::Status(args) => runtime()?.block_on(status::run(args, &run_dir)),
        Command::Restart(args) => runtime()?.block_on(restart::run(args, &run_dir)),
        Command::Volume(args) => runtime()?.block_on(volume::run(args)),
        Command::Doctor(args) => runtime()?.block_on(doctor::run(args)),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the async runtime")
}

/// Names ring as this process's TLS provider. The first call decides.
fn choose_tls_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_commands_help_has_an_example() {
        fn examples(command: &mut clap::Command, path: &str) {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Example"), "{path} has no example:\n{help}");
            for sub in command
                .get_subcommands_mut()
                .filter(|sub| sub.get_name() != "help")
            {
                let path = format!("{path} {}", sub.get_name());
                examples(sub, &path);
            }
        }
        let mut command = command();
        command.build();
        examples(&mut command, "bucketvol");
    }

    #[test]
    fn help_about_mounting_lists_every_option() {
        let mut command = command();
        let mount = command.find_subcommand_mut("mount").expect("mount");
        let help = mount.render_long_help().to_string();
        for key in [
            "endpoint",
            "secret_access_key",
            "cache_memory",
            "metadata_ttl",
        ] {
            assert!(help.contains(key), "{key}");
        }
    }
}
