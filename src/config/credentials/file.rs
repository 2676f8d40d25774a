//! A credentials file: TOML with a key, and optionally a list of the places it may be used for.
//!
//! No message repeats a line of the file.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::trust::{self, Place};
use super::{Credentials, named};
use crate::config::OptionError;

/// Larger than any key; a device or a log file in the wrong place must not be read to its end.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Who wrote the directory a file lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keeper {
    /// A person: the file's mode has to be right.
    Person,
    /// systemd: the directory is closed, and a group bit is the mask of its access list.
    Systemd,
}

/// Reads a key file for use at `place`. `Ok(None)`: there is no such file.
pub(super) fn load(
    path: &Path,
    keeper: Keeper,
    place: &Place,
) -> Result<Option<Credentials>, OptionError> {
    let refuse = |what: String| OptionError(format!("credentials file {}: {what}", named(path)));
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refuse(error.to_string())),
    };
    let metadata = file.metadata().map_err(|error| refuse(error.to_string()))?;
    if !metadata.is_file() {
        return Err(refuse("not a regular file".to_owned()));
    }
    let me = nix::unistd::geteuid().as_raw();
    if metadata.uid() != me && metadata.uid() != 0 {
        let owner = metadata.uid();
        return Err(refuse(format!(
            "it belongs to uid {owner}: chown it to root or to uid {me}"
        )));
    }
    let forbidden = if keeper == Keeper::Systemd {
        0o007
    } else {
        0o077
    };
    if metadata.mode() & forbidden != 0 {
        let mode = metadata.mode() & 0o777;
        return Err(refuse(format!(
            "its mode {mode:04o} lets others at it: chmod 0600 {}",
            path.display()
        )));
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(refuse("too long to be a credentials file".to_owned()));
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|_| refuse("not readable as text".to_owned()))?;
    parse(&text, place).map(Some).map_err(refuse)
}

/// Reads a key file's text. The error is without the file's name.
fn parse(text: &str, place: &Place) -> Result<Credentials, String> {
    // The parser's own message quotes the line, and the line may be the secret's.
    let table: toml::Table = toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .and_then(|span| text.get(..span.start))
            .map_or(1, |t| t.lines().count().max(1));
        format!("not valid TOML near line {line} (values stand in quotes: access_key_id = \"…\")")
    })?;
    let mut parts = [None, None, None];
    let mut allow: Option<Vec<String>> = None;
    for (key, value) in table {
        let slot = match key.as_str() {
            "access_key_id" => 0,
            "secret_access_key" => 1,
            "session_token" => 2,
            "allow" => {
                allow = Some(value.try_into().map_err(|_| {
                    "allow is a list of texts: allow = [\"s3://bucket/*\"]".to_owned()
                })?);
                continue;
            }
            _ => {
                return Err(format!(
                    "unknown key {}; known are access_key_id, secret_access_key, session_token, allow",
                    crate::config::size::shown(&key)
                ));
            }
        };
        let toml::Value::String(value) = value else {
            return Err(format!("{key} is a text in quotes"));
        };
        parts[slot] = Some(value);
    }
    let [id, secret, token] = parts;
    let credentials =
        Credentials::from_parts("keys", id, secret, token).map_err(|e| e.to_string())?;
    if allow.is_some_and(|allow| !trust::is_allowed(place, &allow)) {
        return Err(
            "its allow list does not cover this volume's endpoint and bucket: add them, or use \
                    other credentials"
                .to_owned(),
        );
    }
    Ok(credentials)
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;
    use crate::config::{Options, Scope};

    fn place() -> Place {
        let pairs = [("bucket".to_owned(), "photos".to_owned())];
        Place::of(&Options::parse(pairs, Scope::Volume, None).unwrap())
    }

    #[test]
    fn a_file_holds_a_key_and_perhaps_a_token_and_a_list_of_places() {
        let text = "access_key_id = \"AK\"\nsecret_access_key = \"s3cret\"\nsession_token = \"tok\"\n\
                    allow = [\"s3://photos/*\"]\n";
        let credentials = parse(text, &place()).unwrap();
        assert_eq!(credentials.access_key_id, "AK");
        assert_eq!(credentials.secret_access_key.expose_secret(), "s3cret");
        assert_eq!(credentials.session_token.unwrap().expose_secret(), "tok");
    }

    #[test]
    fn a_bad_file_is_refused_without_repeating_it() {
        for (text, says) in [
            (
                "access_key_id = \"AK\"\nsecret_access_key = hunter2\n",
                "not valid TOML near line 2",
            ),
            ("hunter2", "not valid TOML near line 1"),
            (
                "access_key_id = \"AK\"\nsecret_access_key = 5\n",
                "secret_access_key is a text in quotes",
            ),
            ("access_key_id = \"AK\"\n", "belong together"),
            (
                "secret = \"hunter2\"\n",
                "unknown key \"secret\"; known are",
            ),
            ("allow = \"hunter2\"\n", "allow is a list"),
            (
                "access_key_id=\"AK\"\nsecret_access_key=\"hunter2\"\nallow=[\"s3://other/*\"]\n",
                "allow list does not cover",
            ),
            (
                "access_key_id=\"AK\"\nsecret_access_key=\"hunter2\"\nallow=[]\n",
                "allow list does not cover",
            ),
        ] {
            let error = parse(text, &place()).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
