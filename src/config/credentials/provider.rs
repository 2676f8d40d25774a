//! Resolves a [`CredentialSource`], and again when the file behind it changes.
//!
//! It never asks the network: no metadata service is ever an implicit source.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::trust::{self, Place};
use super::{Ambient, CredentialSource, Credentials, Environment, file, named, profile};
use crate::clock::Clock;
use crate::config::url::Scheme;
use crate::config::{OptionError, Options};

/// A file is looked at once in this time at most, however many requests are signed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// After a key was read once, a file that cannot be read is believed to be in the middle of its rotation
/// for this long.
const ROTATION_GRACE: Duration = Duration::from_secs(5);

/// Gives the credentials of one volume, request by request.
pub struct CredentialProvider {
    label: String,
    source: Source,
}

enum Source {
    /// As given; `None`: requests are not signed.
    Fixed(Option<Arc<Credentials>>),
    /// Read from files.
    Watched {
        reader: Reader,
        clock: Arc<dyn Clock>,
        state: Mutex<State>,
    },
}

/// What is read.
enum Reader {
    /// The first of these that exists.
    File {
        candidates: Vec<(PathBuf, file::Keeper)>,
        place: Place,
    },
    Profile {
        name: String,
        environment: Environment,
    },
}

/// What was last read, and when.
#[derive(Default)]
struct State {
    looked_at: Option<Duration>,
    stamp: Vec<Option<Stamp>>,
    answer: Option<Result<Arc<Credentials>, OptionError>>,
    failing_since: Option<Duration>,
}

/// Changes when a file does: modification time, size, inode.
type Stamp = (i64, i64, u64, u64);

impl CredentialProvider {
    /// The provider of a volume. Only what cannot become right by itself is an error here: a key that the
    /// environment lacks, or one of the daemon's own that must not go to the volume's endpoint. A file is
    /// read at the first [`current`](Self::current).
    pub fn new(
        options: &Options,
        ambient: &Ambient,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OptionError> {
        if options.location.scheme != Scheme::S3 {
            return Ok(Self::fixed(None));
        }
        let place = Place::of(options);
        let environment = &ambient.environment;
        let check_ambient = || match &ambient.trusted_endpoints {
            Some(trusted) => trust::check_ambient(&place, trusted),
            None => Ok(()),
        };
        match &options.credentials {
            CredentialSource::Anonymous => Ok(Self::fixed(None)),
            CredentialSource::Inline(credentials) => Ok(Self::fixed(Some(credentials.clone()))),
            CredentialSource::Env => {
                check_ambient()?;
                match from_environment(environment)? {
                    Some(credentials) => Ok(Self::of_environment(credentials)),
                    None => Err(OptionError(
                        "credentials=env: AWS_ACCESS_KEY_ID is not set in the environment of this process"
                            .to_owned(),
                    )),
                }
            }
            CredentialSource::File(name) => {
                let mut candidates = vec![(
                    ambient.credentials_dir.join(format!("{name}.toml")),
                    file::Keeper::Person,
                )];
                if let Some(dir) = environment.get("CREDENTIALS_DIRECTORY") {
                    candidates.push((Path::new(dir).join(name), file::Keeper::Systemd));
                }
                let reader = Reader::File { candidates, place };
                Ok(Self::watched(format!("{name} (file)"), reader, clock))
            }
            CredentialSource::Profile(name) => {
                // The profile's own endpoint was written by the operator too.
                let own = profile::load(name, environment).ok().flatten();
                let own = own
                    .as_ref()
                    .and_then(|p| p.get("endpoint_url"))
                    .map(String::from);
                if let Some(trusted) = &ambient.trusted_endpoints {
                    let trusted: Vec<String> = trusted.iter().cloned().chain(own).collect();
                    trust::check_ambient(&place, &trusted)?;
                }
                Ok(Self::of_profile(name, environment, clock))
            }
            CredentialSource::Default => {
                if let Some(credentials) = from_environment(environment)? {
                    check_ambient()?;
                    return Ok(Self::of_environment(credentials));
                }
                if ambient.trusted_endpoints.is_some() {
                    return Err(OptionError(format!(
                        "no credentials: the volume names none and the daemon's environment has no \
                         AWS_ACCESS_KEY_ID; say credentials=file:NAME with {}/NAME.toml, or \
                         credentials=anonymous",
                        ambient.credentials_dir.display()
                    )));
                }
                let name = environment.get("AWS_PROFILE").unwrap_or("default");
                if profile::load(name, environment)?.is_none() {
                    return Err(OptionError(format!(
                        "no credentials: AWS_ACCESS_KEY_ID is not set and there is no AWS profile {name:?}; \
                         say credentials=file:NAME, or credentials=anonymous for a public bucket"
                    )));
                }
                Ok(Self::of_profile(name, environment, clock))
            }
        }
    }

    /// Always these; `None`: requests are not signed.
    pub fn fixed(credentials: Option<Credentials>) -> Self {
        let label = if credentials.is_some() {
            "inline"
        } else {
            "anonymous"
        };
        Self {
            label: label.to_owned(),
            source: Source::Fixed(credentials.map(Arc::new)),
        }
    }

    fn of_environment(credentials: Credentials) -> Self {
        let source = Source::Fixed(Some(Arc::new(credentials)));
        Self {
            label: "environment".to_owned(),
            source,
        }
    }

    fn of_profile(name: &str, environment: &Environment, clock: Arc<dyn Clock>) -> Self {
        let reader = Reader::Profile {
            name: name.to_owned(),
            environment: environment.clone(),
        };
        Self::watched(format!("profile {name}"), reader, clock)
    }

    fn watched(label: String, reader: Reader, clock: Arc<dyn Clock>) -> Self {
        Self {
            label,
            source: Source::Watched {
                reader,
                clock,
                state: Mutex::default(),
            },
        }
    }

    /// What to sign the next request with; `None`: nothing. Costs a look at a file once a second.
    pub fn current(&self) -> Result<Option<Arc<Credentials>>, OptionError> {
        match &self.source {
            Source::Fixed(credentials) => Ok(credentials.as_ref().map(Arc::clone)),
            Source::Watched {
                reader,
                clock,
                state,
            } => state.lock().look(reader, clock.monotonic()).map(Some),
        }
    }

    /// Which credentials these are, in words that may be shown to anybody.
    pub fn describe(&self) -> String {
        self.label.clone()
    }
}

impl fmt::Debug for CredentialProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CredentialProvider")
            .field(&self.label)
            .finish()
    }
}

impl State {
    fn look(&mut self, reader: &Reader, now: Duration) -> Result<Arc<Credentials>, OptionError> {
        let fresh = self
            .looked_at
            .is_some_and(|at| now.saturating_sub(at) < LOOK_EVERY);
        if let (true, Some(answer)) = (fresh, &self.answer) {
            return answer.clone();
        }
        self.looked_at = Some(now);
        let stamp = reader.stamp();
        let changed = stamp != self.stamp || self.failing_since.is_some();
        if let (false, Some(answer @ Ok(_))) = (changed, &self.answer) {
            return answer.clone();
        }
        let mut read = reader.read().map(Arc::new);
        match (&read, &self.answer) {
            (Ok(_), _) => self.failing_since = None,
            (Err(_), Some(Ok(old))) => {
                let since = *self.failing_since.get_or_insert(now);
                if now.saturating_sub(since) < ROTATION_GRACE {
                    read = Ok(Arc::clone(old));
                }
            }
            (Err(_), _) => {}
        }
        self.stamp = stamp;
        self.answer = Some(read.clone());
        read
    }
}

impl Reader {
    fn stamp(&self) -> Vec<Option<Stamp>> {
        let stamp = |path: &Path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((
                metadata.mtime(),
                metadata.mtime_nsec(),
                metadata.size(),
                metadata.ino(),
            ))
        };
        match self {
            Self::File { candidates, .. } => {
                candidates.iter().map(|(path, _)| stamp(path)).collect()
            }
            Self::Profile { environment, .. } => profile::paths(environment)
                .iter()
                .map(|path| stamp(path))
                .collect(),
        }
    }

    fn read(&self) -> Result<Credentials, OptionError> {
        match self {
            Self::File { candidates, place } => {
                for (path, keeper) in candidates {
                    if let Some(credentials) = file::load(path, *keeper, place)? {
                        return Ok(credentials);
                    }
                }
                let path = candidates
                    .first()
                    .map(|(path, _)| named(path))
                    .unwrap_or_default();
                Err(OptionError(format!(
                    "there is no credentials file {path}: it holds access_key_id = \"…\" and \
                     secret_access_key = \"…\", mode 0600"
                )))
            }
            Self::Profile { name, environment } => match profile::load(name, environment)? {
                Some(profile) => profile.credentials(),
                None => {
                    let paths: Vec<String> = profile::paths(environment)
                        .iter()
                        .map(|path| named(path))
                        .collect();
                    Err(OptionError(format!(
                        "there is no AWS profile {name:?} in {}",
                        paths.join(" or ")
                    )))
                }
            },
        }
    }
}

/// The key of the environment, if it has one.
fn from_environment(environment: &Environment) -> Result<Option<Credentials>, OptionError> {
    let own = |name: &str| environment.get(name).map(String::from);
    let (id, secret) = (own("AWS_ACCESS_KEY_ID"), own("AWS_SECRET_ACCESS_KEY"));
    if id.is_none() && secret.is_none() {
        return Ok(None);
    }
    Credentials::from_parts("the environment", id, secret, own("AWS_SESSION_TOKEN")).map(Some)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::clock::ManualClock;
    use crate::config::Scope;

    fn options(pairs: &[(&str, &str)]) -> Options {
        let bucket = [("bucket", "photos")];
        let pairs = bucket
            .iter()
            .chain(pairs)
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Options::parse(pairs, Scope::Volume, None).unwrap()
    }

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn keys() -> Environment {
        environment(&[
            ("AWS_ACCESS_KEY_ID", "AKENV"),
            ("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ])
    }

    fn daemon(dir: &Path, trusted: &[&str], environment: Environment) -> Ambient {
        let trusted: Vec<String> = trusted.iter().map(|t| (*t).to_owned()).collect();
        Ambient::daemon(dir, &trusted, environment).unwrap()
    }

    fn provider(
        pairs: &[(&str, &str)],
        ambient: &Ambient,
    ) -> Result<CredentialProvider, OptionError> {
        CredentialProvider::new(&options(pairs), ambient, ManualClock::shared())
    }

    fn write_key(path: &Path, id: &str, extra: &str) {
        let text = format!("access_key_id = \"{id}\"\nsecret_access_key = \"hunter2\"\n{extra}");
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn id(provider: &CredentialProvider) -> String {
        provider
            .current()
            .unwrap()
            .expect("signed")
            .access_key_id
            .clone()
    }

    #[test]
    fn the_daemons_environment_goes_to_amazon_and_to_trusted_endpoints_only() {
        let none = Path::new("/nonexistent");
        let ambient = daemon(none, &["https://s3.example.com"], keys());
        for source in [&[][..], &[("credentials", "env")]] {
            assert_eq!(id(&provider(source, &ambient).unwrap()), "AKENV");
            let trusted = [source, &[("endpoint", "https://s3.example.com")]].concat();
            assert_eq!(id(&provider(&trusted, &ambient).unwrap()), "AKENV");
            let strange = [source, &[("endpoint", "https://evil.example")]].concat();
            let error = provider(&strange, &ambient)
                .expect_err("refused")
                .to_string();
            assert!(
                error.contains("--trust-endpoint https://evil.example"),
                "{error}"
            );
            assert!(!error.contains("hunter2"), "{error}");
        }
        let named_by_environment = environment(&[
            ("AWS_ACCESS_KEY_ID", "AKENV"),
            ("AWS_SECRET_ACCESS_KEY", "hunter2"),
            ("AWS_ENDPOINT_URL", "https://evil.example"),
        ]);
        let ambient = daemon(none, &[], named_by_environment);
        assert!(provider(&[("endpoint", "https://evil.example")], &ambient).is_ok());
    }

    #[test]
    fn a_command_sends_its_own_credentials_where_its_user_says() {
        let ambient = Ambient::command_line(keys());
        let provider = provider(&[("endpoint", "http://minio:9000")], &ambient).unwrap();
        assert_eq!(
            (id(&provider), provider.describe()),
            ("AKENV".into(), "environment".into())
        );
    }

    #[test]
    fn no_credentials_at_all_is_an_error_that_names_the_mend() {
        let empty = Environment::default;
        let error = provider(&[], &daemon(Path::new("/creds"), &[], empty())).expect_err("none");
        assert!(error.to_string().contains("/creds/NAME.toml"), "{error}");
        let error = provider(&[], &Ambient::command_line(empty())).expect_err("none");
        assert!(
            error.to_string().contains("credentials=anonymous"),
            "{error}"
        );
        let half = environment(&[("AWS_ACCESS_KEY_ID", "AK")]);
        let error = provider(&[], &Ambient::command_line(half)).expect_err("half");
        assert!(error.to_string().contains("belong together"), "{error}");
    }

    #[test]
    fn anonymous_and_inline_need_nothing_around_them() {
        let ambient = daemon(Path::new("/nonexistent"), &[], Environment::default());
        let anonymous = provider(&[("credentials", "anonymous")], &ambient).unwrap();
        assert_eq!(
            (anonymous.current(), anonymous.describe()),
            (Ok(None), "anonymous".to_owned())
        );
        let inline = [
            ("endpoint", "http://x"),
            ("ak_id", "AKIN"),
            ("ak_secret", "hunter2"),
        ];
        let inline = provider(&inline, &ambient).unwrap();
        assert_eq!(
            (id(&inline), inline.describe()),
            ("AKIN".into(), "inline".into())
        );
        assert!(!format!("{inline:?}").contains("hunter2"));
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_chmod_to_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prod.toml");
        write_key(&path, "AK1", "");
        let ambient = daemon(dir.path(), &[], Environment::default());
        for mode in [0o640, 0o604, 0o660] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = provider(&[("credentials", "file:prod")], &ambient)
                .unwrap()
                .current();
            let error = error.expect_err("refused").to_string();
            assert!(
                error.contains("chmod 0600") && error.contains("prod.toml"),
                "{error}"
            );
        }
        let missing = provider(&[("credentials", "file:other")], &ambient)
            .unwrap()
            .current();
        assert!(
            missing
                .expect_err("missing")
                .to_string()
                .contains("no credentials file")
        );
    }

    #[test]
    fn a_file_of_systemd_is_found_when_the_directory_has_none() {
        let dir = tempfile::tempdir().unwrap();
        write_key(&dir.path().join("prod"), "AKSYSTEMD", "");
        let around = environment(&[("CREDENTIALS_DIRECTORY", dir.path().to_str().unwrap())]);
        let ambient = daemon(Path::new("/nonexistent"), &[], around);
        let provider = provider(&[("credentials", "file:prod")], &ambient).unwrap();
        assert_eq!(
            (id(&provider), provider.describe()),
            ("AKSYSTEMD".into(), "prod (file)".into())
        );
    }

    #[test]
    fn a_files_allow_list_binds_it_to_places() {
        let dir = tempfile::tempdir().unwrap();
        write_key(
            &dir.path().join("prod.toml"),
            "AK1",
            "allow = [\"https://minio/photos\"]\n",
        );
        let ambient = daemon(dir.path(), &[], Environment::default());
        let at = |endpoint| {
            provider(
                &[("credentials", "file:prod"), ("endpoint", endpoint)],
                &ambient,
            )
            .unwrap()
            .current()
        };
        assert!(at("https://minio").is_ok());
        assert!(
            at("https://evil")
                .expect_err("refused")
                .to_string()
                .contains("allow list")
        );
    }

    #[test]
    fn a_rotated_file_is_used_within_a_second_without_a_remount() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prod.toml");
        write_key(&path, "AK1", "");
        let clock = ManualClock::shared();
        let ambient = daemon(dir.path(), &[], Environment::default());
        let options = options(&[("credentials", "file:prod")]);
        let shared: Arc<dyn Clock> = Arc::clone(&clock) as Arc<dyn Clock>;
        let provider = CredentialProvider::new(&options, &ambient, shared).unwrap();
        assert_eq!(id(&provider), "AK1");
        write_key(&path, "AK-two", "");
        assert_eq!(id(&provider), "AK1", "looked at once a second only");
        clock.advance(LOOK_EVERY);
        assert_eq!(id(&provider), "AK-two");

        // A file caught half-written is forgiven for a moment; one that stays broken is not.
        std::fs::write(&path, "access_key_id = \"AK").unwrap();
        clock.advance(LOOK_EVERY);
        assert_eq!(id(&provider), "AK-two");
        clock.advance(ROTATION_GRACE);
        assert!(provider.current().is_err());
        write_key(&path, "AK3", "");
        clock.advance(LOOK_EVERY);
        assert_eq!(id(&provider), "AK3");
    }

    #[test]
    fn a_profile_of_the_daemon_follows_the_rule_of_its_environment() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        std::fs::write(
            &path,
            "[backup]\naws_access_key_id=AKP\naws_secret_access_key=hunter2\nendpoint_url=http://own:9000\n",
        )
        .unwrap();
        let around = environment(&[("AWS_SHARED_CREDENTIALS_FILE", path.to_str().unwrap())]);
        let ambient = daemon(Path::new("/nonexistent"), &[], around);
        let source = ("credentials", "profile:backup");
        let own = provider(&[source, ("endpoint", "http://own:9000")], &ambient).unwrap();
        assert_eq!(
            (id(&own), own.describe()),
            ("AKP".into(), "profile backup".into())
        );
        assert!(provider(&[source, ("endpoint", "https://evil.example")], &ambient).is_err());
        let missing = provider(&[("credentials", "profile:none")], &ambient)
            .unwrap()
            .current();
        assert!(
            missing
                .expect_err("missing")
                .to_string()
                .contains("no AWS profile \"none\"")
        );
    }
}
