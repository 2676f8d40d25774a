//! What surrounds a process: its environment, its credentials directory, and whom its operator trusts.
//!
//! Taken once at the start and passed down, so that a test (or the daemon, after clearing its variables)
//! decides what is there.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::profile;
use crate::config::OptionError;
use crate::config::endpoint::parse_endpoint;

/// The variables of the environment that matter here. Its debug output shows names only.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// This process's own.
    pub fn of_this_process() -> Self {
        let known = ["HOME", "CREDENTIALS_DIRECTORY", "XDG_CONFIG_HOME"];
        let text = std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        text.filter(|(name, _)| name.starts_with("AWS_") || known.contains(&name.as_str()))
            .collect()
    }

    /// A variable's value; an empty one counts as not set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    fn first(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.get(name))
    }

    /// The endpoint that the AWS tools would use for S3.
    pub(super) fn endpoint(&self) -> Option<&str> {
        self.first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(pairs: T) -> Self {
        Self(pairs.into_iter().collect())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What credentials may be resolved from, and how far those of this process itself may travel.
#[derive(Debug, Clone)]
pub struct Ambient {
    pub(super) environment: Environment,
    pub(super) credentials_dir: PathBuf,
    /// `Some`: this process works for others, and its own credentials go only to the provider's own
    /// endpoint and to these, normalized.
    pub(super) trusted_endpoints: Option<Vec<String>>,
}

impl Ambient {
    /// The daemon's: whoever may create a volume chooses the endpoint, so the daemon's own credentials go
    /// to Amazon, to the endpoints of its environment, and to those of `trusted_endpoints`.
    pub fn daemon(
        credentials_dir: impl Into<PathBuf>,
        trusted_endpoints: &[String],
        environment: Environment,
    ) -> Result<Self, OptionError> {
        let mut trusted = trusted_endpoints
            .iter()
            .map(|url| parse_endpoint(url))
            .collect::<Result<Vec<_>, _>>()?;
        for name in ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"] {
            if let Some(url) = environment.get(name) {
                trusted.push(parse_endpoint(url).map_err(|e| OptionError(format!("{name}: {e}")))?);
            }
        }
        let credentials_dir = credentials_dir.into();
        Ok(Self {
            environment,
            credentials_dir,
            trusted_endpoints: Some(trusted),
        })
    }

    /// A command's: the person who types it chooses the endpoint and owns the credentials.
    pub fn command_line(environment: Environment) -> Self {
        let config = environment
            .get("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| {
                environment
                    .get("HOME")
                    .map(|home| Path::new(home).join(".config"))
            });
        let credentials_dir = match config {
            Some(config) if !nix::unistd::geteuid().is_root() => {
                config.join("bucketvol/credentials.d")
            }
            _ => PathBuf::from("/etc/bucketvol/credentials.d"),
        };
        Self {
            environment,
            credentials_dir,
            trusted_endpoints: None,
        }
    }

    /// What the AWS tools would take from the environment or the profile for an `s3://` location where
    /// `said` has no word about it: options to add to those of a command.
    pub fn default_options(&self, said: &[(String, String)]) -> Vec<(String, String)> {
        let value = |names: &[&str]| {
            said.iter()
                .find(|(key, _)| names.contains(&key.as_str()))
                .map(|(_, value)| value.as_str())
        };
        let profile = match value(&["credentials"]) {
            Some(source) => source.strip_prefix("profile:"),
            None => Some(self.environment.get("AWS_PROFILE").unwrap_or("default")),
        };
        // A broken profile is an error of whoever needs it, and that is not decided here.
        let profile =
            profile.and_then(|name| profile::load(name, &self.environment).ok().flatten());
        let mut defaults = Vec::new();
        if value(&["endpoint", "endpoint_url", "bucket"]).is_none() {
            let endpoint = self
                .environment
                .endpoint()
                .or_else(|| profile.as_ref()?.get("endpoint_url"));
            if let Some(url) = endpoint {
                defaults.push(("endpoint".to_owned(), url.to_owned()));
            }
        }
        if value(&["region"]).is_none() {
            let region = self
                .environment
                .first(&["AWS_REGION", "AWS_DEFAULT_REGION"]);
            if let Some(region) = region.or_else(|| profile.as_ref()?.get("region")) {
                defaults.push(("region".to_owned(), region.to_owned()));
            }
        }
        defaults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn debug_output_names_variables_and_shows_no_value() {
        let text = format!("{:?}", environment(&[("AWS_SECRET_ACCESS_KEY", "hunter2")]));
        assert_eq!(text, r#"{"AWS_SECRET_ACCESS_KEY"}"#);
    }

    #[test]
    fn a_command_takes_endpoint_and_region_from_the_environment_unless_said() {
        let ambient = Ambient::command_line(environment(&[
            ("AWS_ENDPOINT_URL", "http://a:1"),
            ("AWS_ENDPOINT_URL_S3", "http://b:2"),
            ("AWS_DEFAULT_REGION", "mars-1"),
        ]));
        assert_eq!(
            ambient.default_options(&[]),
            [pair("endpoint", "http://b:2"), pair("region", "mars-1")]
        );
        assert_eq!(
            ambient.default_options(&[pair("endpoint_url", "http://c"), pair("region", "x")]),
            []
        );
    }

    #[test]
    fn a_command_takes_endpoint_and_region_from_its_profile() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        std::fs::write(
            &config,
            "[default]\nregion = eu-1\n[profile lab]\nregion=lab-1\nendpoint_url=http://lab:9000\n",
        )
        .unwrap();
        let ambient = Ambient::command_line(environment(&[
            ("AWS_CONFIG_FILE", config.to_str().unwrap()),
            ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent"),
        ]));
        assert_eq!(ambient.default_options(&[]), [pair("region", "eu-1")]);
        assert_eq!(
            ambient.default_options(&[pair("credentials", "profile:lab")]),
            [pair("endpoint", "http://lab:9000"), pair("region", "lab-1")]
        );
        assert_eq!(
            ambient.default_options(&[pair("credentials", "anonymous")]),
            []
        );
    }
}
