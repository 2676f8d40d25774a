//! `bucketvol volume`: the plugin's volumes without Docker, in the words Docker itself uses.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::control::client::local_client;
use super::status::plain_table;
use super::{output, pairs};

/// The engine's own patience for the slowest call.
const LIMIT: Duration = Duration::from_secs(120);

/// List, create, show and remove volumes without Docker
#[derive(Debug, Args)]
#[command(after_help = "Example:
  bucketvol volume create photos -o bucket=photos,prefix=2026,endpoint=https://s3.example.com")]
pub(super) struct VolumeArgs {
    #[command(subcommand)]
    pub(super) action: Action,
    /// The plugin's socket
    #[arg(long, global = true, value_name = "PATH", env = "BUCKETVOL_SOCKET", default_value = super::SOCKET)]
    pub(super) socket: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// List the volumes
    #[command(after_help = "Example:\n  bucketvol volume ls")]
    Ls,
    /// Make a volume
    #[command(after_help = "Example:
  bucketvol volume create photos -o bucket=photos,credentials=file:prod

Docker finds it by `docker run --volume-driver bucketvol -v photos:/data …`.")]
    Create {
        /// The volume's name
        name: String,
        /// Options, as `docker volume create` takes them
        #[arg(short = 'o', value_name = "KEY=VALUE,…")]
        options: Vec<String>,
    },
    /// Show one volume as JSON
    #[command(after_help = "Example:\n  bucketvol volume inspect photos")]
    Inspect {
        /// The volume's name
        name: String,
    },
    /// Forget volumes; the buckets keep their objects
    #[command(after_help = "Example:\n  bucketvol volume rm photos")]
    Rm {
        /// The volumes' names
        #[arg(required = true)]
        names: Vec<String>,
    },
}

pub(super) async fn run(args: VolumeArgs) -> Result<ExitCode> {
    let plugin = Plugin {
        http: local_client(&args.socket)?,
        socket: &args.socket,
    };
    match args.action {
        Action::Ls => list(&plugin).await?,
        Action::Create { name, options } => {
            let mut said = serde_json::Map::new();
            for (key, value) in pairs::split(&options) {
                if said.insert(key.clone(), Value::String(value)).is_some() {
                    bail!("option {key} is said twice");
                }
            }
            plugin
                .call("Create", &json!({ "Name": name, "Opts": said }))
                .await?;
            output::print(name);
        }
        Action::Inspect { name } => {
            let answer = plugin.call("Get", &json!({ "Name": name })).await?;
            output::print(serde_json::to_string_pretty(&answer["Volume"])?);
        }
        Action::Rm { names } => {
            for name in names {
                plugin.call("Remove", &json!({ "Name": name })).await?;
                output::print(name);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(plugin: &Plugin<'_>) -> Result<()> {
    let answer = plugin.call("List", &json!({})).await?;
    let volumes: Vec<[String; 2]> = answer["Volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|volume| {
            ["Name", "Mountpoint"].map(|key| volume[key].as_str().unwrap_or("-").to_owned())
        })
        .collect();
    if std::io::stdout().is_terminal() {
        let mut table = plain_table(&["NAME", "MOUNTPOINT"]);
        table.add_rows(volumes);
        output::print(table.trim_fmt());
    } else {
        for [name, mountpoint] in volumes {
            output::print(format_args!("{name}\t{mountpoint}"));
        }
    }
    Ok(())
}

/// The daemon, asked as Docker asks it.
struct Plugin<'a> {
    http: reqwest::Client,
    socket: &'a Path,
}

impl Plugin<'_> {
    async fn call(&self, method: &str, body: &Value) -> Result<Value> {
        let socket = self.socket.display();
        let request = self
            .http
            .post(format!("http://plugin/VolumeDriver.{method}"))
            .timeout(LIMIT)
            .body(format!("{body}\n"));
        let response = request.send().await.with_context(|| {
            format!(
                "no daemon answers on {socket}: start one with bucketvol serve, or say --socket"
            )
        })?;
        let answer: Value = response
            .json()
            .await
            .with_context(|| format!("{socket} does not speak the volume protocol"))?;
        match answer["Err"].as_str() {
            None | Some("") => Ok(answer),
            Some(error) => bail!("{error}"),
        }
    }
}
