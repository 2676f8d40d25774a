//! Logging: lines on stderr, filtered by `BUCKETVOL_LOG`, `RUST_LOG` or `--log-level`.
//!
//! What is logged never holds a secret: secrets have no text form in this program (`SecretString`), and
//! options are logged by their canonical pairs only.

use std::io::IsTerminal;

use tracing_subscriber::filter::EnvFilter;

/// fuser warns of each request that is not implemented, which an ordinary program causes all day.
const QUIET: &str = "fuser=error";

/// Starts logging. `level` is a word such as `debug` or a filter such as `bucketvol::store=debug`; without
/// it the environment decides, and without that `default`. A second call changes nothing.
pub fn start(level: Option<&str>, default: &str) -> Result<(), String> {
    let environment = ["BUCKETVOL_LOG", "RUST_LOG"].iter().find_map(|name| {
        std::env::var(name)
            .ok()
            .filter(|value| !value.trim().is_empty())
    });
    let filter = filter(level.or(environment.as_deref()).unwrap_or(default))?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // A mount in the background outlives its terminal: a log line that cannot be written is dropped,
        // where the default is to panic on stderr.
        .log_internal_errors(false)
        .finish();
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        // fuser and a few others speak `log`. It fails only if somebody listens already.
        let _ = tracing_log::LogTracer::init();
    }
    Ok(())
}

fn filter(words: &str) -> Result<EnvFilter, String> {
    let words = if words.contains("fuser") {
        words.to_owned()
    } else {
        format!("{words},{QUIET}")
    };
    EnvFilter::builder().parse(&words).map_err(|_| {
        format!("log level {words:?}: accepted is error, warn, info, debug, trace or a filter")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuser_is_quiet_unless_it_is_named() {
        assert!(filter("info").unwrap().to_string().contains("fuser=error"));
        assert!(
            !filter("info,fuser=debug")
                .unwrap()
                .to_string()
                .contains("fuser=error")
        );
        assert!(filter("=!=").is_err());
    }
}
