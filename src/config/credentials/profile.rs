//! Profiles of the shared files of the AWS tools: static keys, endpoint and region.
//!
//! Profiles that run a command or assume a role are named and refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Credentials, Environment, named};
use crate::config::OptionError;
use crate::config::size::shown;

/// One profile, of both files together; the credentials file wins.
pub(super) struct Profile {
    name: String,
    keys: BTreeMap<String, String>,
}

/// The shared files' paths: credentials, then configuration.
pub(super) fn paths(environment: &Environment) -> Vec<PathBuf> {
    [
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
        ("AWS_CONFIG_FILE", "config"),
    ]
    .into_iter()
    .filter_map(|(variable, file)| match environment.get(variable) {
        Some(path) => Some(PathBuf::from(path)),
        None => environment
            .get("HOME")
            .map(|home| Path::new(home).join(".aws").join(file)),
    })
    .collect()
}

/// Reads a profile. `Ok(None)`: neither file has it.
pub(super) fn load(name: &str, environment: &Environment) -> Result<Option<Profile>, OptionError> {
    let mut keys = BTreeMap::new();
    let mut found = false;
    let files = paths(environment);
    for (index, path) in files.iter().enumerate() {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(OptionError(format!("{}: {error}", named(path)))),
        };
        // No quotes and no escapes: a secret is the rest of its line. Indented lines belong to nested
        // tables (s3 =), which hold nothing of ours.
        let text: String = text
            .lines()
            .filter(|line| !line.starts_with([' ', '\t']))
            .flat_map(|l| [l, "\n"])
            .collect();
        let options = ini::ParseOption {
            enabled_quote: false,
            enabled_escape: false,
            ..Default::default()
        };
        let ini = ini::Ini::load_from_str_opt(&text, options).map_err(|error| {
            OptionError(format!(
                "{}: not valid near line {}",
                named(path),
                error.line
            ))
        })?;
        let is_config = index == 1;
        for (section, properties) in &ini {
            let Some(section) = section.map(str::trim) else {
                continue;
            };
            let section = match section.strip_prefix("profile ") {
                Some(rest) if is_config => rest.trim(),
                _ => section,
            };
            if section != name {
                continue;
            }
            found = true;
            for (key, value) in properties.iter() {
                keys.entry(key.trim().to_ascii_lowercase())
                    .or_insert_with(|| value.trim().to_owned());
            }
        }
    }
    Ok(found.then(|| Profile {
        name: name.to_owned(),
        keys,
    }))
}

impl Profile {
    /// A key's value; an empty one counts as not there.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.keys
            .get(key)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// The profile's static key.
    pub(super) fn credentials(&self) -> Result<Credentials, OptionError> {
        let origin = format!("profile {}", shown(&self.name));
        let own = |key: &str| self.get(key).map(String::from);
        let (id, secret) = (own("aws_access_key_id"), own("aws_secret_access_key"));
        if id.is_none() && secret.is_none() {
            const OTHER: [&str; 6] = [
                "credential_process",
                "role_arn",
                "source_profile",
                "sso_session",
                "sso_start_url",
                "web_identity_token_file",
            ];
            return Err(OptionError(
                match OTHER.iter().find(|key| self.get(key).is_some()) {
                    Some(key) => format!(
                        "{origin}: {key} is not supported yet; a profile with a static key is"
                    ),
                    None => format!("{origin} has no aws_access_key_id"),
                },
            ));
        }
        Credentials::from_parts(&origin, id, secret, own("aws_session_token"))
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn files(credentials: &str, config: &str) -> (tempfile::TempDir, Environment) {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("credentials"), credentials).unwrap();
        std::fs::write(path("config"), config).unwrap();
        let environment = [
            (
                "AWS_SHARED_CREDENTIALS_FILE".to_owned(),
                path("credentials"),
            ),
            ("AWS_CONFIG_FILE".to_owned(), path("config")),
        ];
        (dir, environment.into_iter().collect())
    }

    #[test]
    fn a_profile_is_found_in_either_file_and_the_credentials_file_wins() {
        let (_dir, environment) = files(
            "[default]\naws_access_key_id = AK1\naws_secret_access_key = a/b+c=\\\"#;\n",
            "[default]\naws_access_key_id = OTHER\nregion = eu-1\ns3 =\n  max_concurrent_requests = 5\n\
             [profile two]\naws_access_key_id = AK2\naws_secret_access_key = s2\naws_session_token = t2\n",
        );
        let default = load("default", &environment).unwrap().unwrap();
        let credentials = default.credentials().unwrap();
        assert_eq!(credentials.access_key_id, "AK1");
        assert_eq!(
            credentials.secret_access_key.expose_secret(),
            "a/b+c=\\\"#;"
        );
        assert_eq!(default.get("region"), Some("eu-1"));
        let two = load("two", &environment)
            .unwrap()
            .unwrap()
            .credentials()
            .unwrap();
        assert_eq!(two.session_token.unwrap().expose_secret(), "t2");
        assert!(load("three", &environment).unwrap().is_none());
    }

    #[test]
    fn a_profile_without_a_static_key_says_what_it_has_instead() {
        let (_dir, environment) = files(
            "[half]\naws_access_key_id = AK1\n",
            "[profile sso]\nsso_session = x\n[profile empty]\nregion = x\n",
        );
        for (name, says) in [
            ("sso", "sso_session is not supported"),
            ("empty", "no aws_access_key_id"),
            ("half", "belong together"),
        ] {
            let error = load(name, &environment)
                .unwrap()
                .unwrap()
                .credentials()
                .expect_err(name);
            assert!(error.to_string().contains(says), "{name}: {error}");
        }
    }

    #[test]
    fn a_broken_file_is_refused_without_repeating_it() {
        let (_dir, environment) = files("[default]\nhunter2\n", "");
        let error = load("default", &environment)
            .err()
            .expect("refused")
            .to_string();
        assert!(
            error.contains("not valid near line") && !error.contains("hunter2"),
            "{error}"
        );
    }

    #[test]
    fn no_files_mean_no_profile() {
        assert!(load("default", &Environment::default()).unwrap().is_none());
    }
}
