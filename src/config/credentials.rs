//! Who we are to a store: a reference that is resolved when it is needed, so that nothing secret has to
//! stand in a volume's record.
//!
//! [`CredentialProvider`] resolves it, and again when the file behind it changes.

mod ambient;
mod file;
mod profile;
mod provider;
mod trust;

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

pub use ambient::{Ambient, Environment};
pub use provider::CredentialProvider;

use super::OptionError;
use super::size::shown;

/// Where a volume's credentials come from.
#[derive(Debug, Clone, PartialEq)]
pub enum CredentialSource {
    /// Not said: the daemon's or the command line's default.
    Default,
    /// `AWS_ACCESS_KEY_ID` and its kin, from this process's environment.
    Env,
    /// A file of the host's credentials directory, by name.
    File(String),
    /// A profile of the AWS shared configuration files, by name.
    Profile(String),
    /// Requests are not signed.
    Anonymous,
    /// Given with the options themselves; Docker shows these to whoever may inspect the volume.
    Inline(Credentials),
}

/// An access key, ready to sign with.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Names the key; not a secret.
    pub access_key_id: String,
    /// Signs with it.
    pub secret_access_key: SecretString,
    /// Comes with temporary credentials.
    pub session_token: Option<SecretString>,
}

/// What the option accepts.
pub(super) const ACCEPTED: &str = "env, file:NAME, profile:NAME or anonymous";

impl CredentialSource {
    /// Reads the value of the option `credentials`. The error says what is wrong, without the key's name.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None => match text {
                "env" => Ok(Self::Env),
                "anonymous" => Ok(Self::Anonymous),
                "imds" | "ecs" | "web-identity" => Err(format!(
                    "{text} is not supported yet; {ACCEPTED} are (on a cloud machine: let its agent write \
                     an AWS profile and say profile:NAME)"
                )),
                "file" | "profile" => Err(format!("a name is missing: say {text}:NAME")),
                // A single short word is a slip; anything longer may be a key in the wrong place.
                word if is_plain_name(word) && word.len() <= 32 && !looks_like_a_key(word) => Err(
                    format!("{word:?} is none of {ACCEPTED} (did you mean file:{word}?)"),
                ),
                _ => Err(format!("accepted is {ACCEPTED}")),
            },
            Some(("file", name)) if is_plain_name(name) => Ok(Self::File(name.to_owned())),
            Some(("file", _)) => Err(
                "file:NAME is a name of letters, digits, '.', '_' and '-' inside the \
                                      host's credentials directory, not a path"
                    .to_owned(),
            ),
            Some(("profile", name)) if is_profile_name(name) => Ok(Self::Profile(name.to_owned())),
            Some(("profile", _)) => {
                Err("profile:NAME names a profile of ~/.aws/credentials".to_owned())
            }
            Some(_) => Err(format!("accepted is {ACCEPTED}")),
        }
    }
}

impl fmt::Display for CredentialSource {
    /// As the option's value; never a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Env => f.write_str("env"),
            Self::File(name) => write!(f, "file:{name}"),
            Self::Profile(name) => write!(f, "profile:{name}"),
            Self::Anonymous => f.write_str("anonymous"),
            Self::Inline(_) => f.write_str("inline"),
        }
    }
}

impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        let token = |c: &Self| {
            c.session_token
                .as_ref()
                .map(|t| t.expose_secret().to_owned())
        };
        self.access_key_id == other.access_key_id
            && self.secret_access_key.expose_secret() == other.secret_access_key.expose_secret()
            && token(self) == token(other)
    }
}

impl Credentials {
    /// Puts a key together. `origin` says where it was found; the values are never repeated.
    pub(super) fn from_parts(
        origin: &str,
        access_key_id: Option<String>,
        secret_access_key: Option<String>,
        session_token: Option<String>,
    ) -> Result<Self, OptionError> {
        let refuse = |what: &str| Err(OptionError(format!("{origin}: {what}")));
        let (Some(access_key_id), Some(secret)) = (access_key_id, secret_access_key) else {
            return refuse(
                "an access key id and its secret belong together, and one of them is missing",
            );
        };
        for (name, value) in [
            ("access key id", Some(&access_key_id)),
            ("secret", Some(&secret)),
            ("session token", session_token.as_ref()),
        ] {
            // They travel in HTTP headers; a stray newline of `$(cat file)` would also change the signature.
            let fits =
                value.is_none_or(|v| !v.is_empty() && v.bytes().all(|b| b.is_ascii_graphic()));
            if !fits {
                return refuse(&format!(
                    "the {name} is empty or has a blank, a line break or a non-ASCII character in it"
                ));
            }
        }
        Ok(Self {
            access_key_id,
            secret_access_key: secret.into(),
            session_token: session_token.map(SecretString::from),
        })
    }
}

/// A file's name without a way out of its directory.
fn is_plain_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn is_profile_name(name: &str) -> bool {
    (1..=128).contains(&name.len()) && !name.chars().any(|c| c.is_control() || "[]".contains(c))
}

/// Whether a word has the shape of an access key rather than of a name.
fn looks_like_a_key(word: &str) -> bool {
    let count = |f: fn(&u8) -> bool| word.bytes().filter(f).count();
    word.len() >= 16 && count(u8::is_ascii_digit) + count(u8::is_ascii_uppercase) >= 6
}

/// A path or name for a message.
fn named(path: &std::path::Path) -> String {
    shown(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_word_or_a_reference_by_name() {
        for (text, source) in [
            ("env", CredentialSource::Env),
            ("anonymous", CredentialSource::Anonymous),
            ("file:prod", CredentialSource::File("prod".into())),
            (
                "profile:backup user",
                CredentialSource::Profile("backup user".into()),
            ),
        ] {
            assert_eq!(CredentialSource::parse(text), Ok(source.clone()), "{text}");
            assert_eq!(source.to_string(), text);
        }
    }

    #[test]
    fn a_source_that_cannot_be_is_told_what_can() {
        for (text, says) in [
            ("imds", "imds is not supported yet; env, file:NAME"),
            ("ecs", "not supported yet"),
            ("web-identity", "not supported yet"),
            ("file", "say file:NAME"),
            ("file:", "not a path"),
            ("file:../x", "not a path"),
            ("file:/etc/shadow", "not a path"),
            ("file:.hidden", "not a path"),
            ("profile:", "names a profile"),
            ("profile:a\nb", "names a profile"),
            ("prod", "did you mean file:prod?"),
            ("", "accepted is env"),
            ("s3:x", "accepted is env"),
        ] {
            let error = CredentialSource::parse(text).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_key_in_the_place_of_a_source_is_not_repeated() {
        for text in [
            "AKIAIOSFODNN7EXAMPLE:wJalrXUtnFEMI",
            "AKIAIOSFODNN7EXAMPLE",
            "wJalrXUtnFEMI/K7MDENG/bPx",
        ] {
            let error = CredentialSource::parse(text).expect_err(text);
            assert!(
                !error.contains("AKIA") && !error.contains("wJal"),
                "{error}"
            );
        }
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let key = Credentials::from_parts(
            "test",
            Some("AKIA".into()),
            Some("hunter2".into()),
            Some("tok3n".into()),
        )
        .unwrap();
        let text = format!("{:?}", CredentialSource::Inline(key));
        assert!(
            !text.contains("hunter2") && !text.contains("tok3n"),
            "{text}"
        );
    }

    #[test]
    fn a_key_that_cannot_travel_in_a_header_is_refused_unseen() {
        for (id, secret, token) in [
            ("AK\n", "s3cret", None),
            ("AK", "s3cret\n", None),
            ("AK", "s3crét", None),
            ("AK", "s3 cret", None),
            ("AK", "", None),
            ("AK", "s3cret", Some("tok\ten")),
        ] {
            let error = Credentials::from_parts(
                "the environment",
                Some(id.into()),
                Some(secret.into()),
                token.map(String::from),
            )
            .expect_err("refused")
            .to_string();
            assert!(error.starts_with("the environment: the "), "{error}");
            assert!(
                !error.contains("s3c") && !error.contains("tok\t"),
                "{error}"
            );
        }
        assert!(Credentials::from_parts("x", Some("AK".into()), None, None).is_err());
    }
}
