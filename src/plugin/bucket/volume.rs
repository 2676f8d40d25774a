//! Docker's nouns: names of volumes, the ids it gives to mounts, and what becomes of a volume.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Mount, MountError};

/// A volume's name: it becomes a directory's, so the engine's word for it is not enough.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct VolumeName(String);

/// A file's name may have that many bytes.
const MAX_NAME: usize = 255;

impl VolumeName {
    /// A name that is safe as a directory's: `[A-Za-z0-9][A-Za-z0-9_.-]*`, up to 255 characters.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        let mut chars = name.chars();
        let Some(first) = chars.next() else {
            return Err(NameError::Empty);
        };
        if name.len() > MAX_NAME {
            return Err(NameError::TooLong(
                name.chars().take(32).collect(),
                name.len(),
            ));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if let Some(c) = name.chars().find(|c| !allowed(*c)) {
            return Err(NameError::Character(name.to_owned(), c));
        }
        if !first.is_ascii_alphanumeric() {
            return Err(NameError::Start(name.to_owned(), first));
        }
        Ok(Self(name.to_owned()))
    }

    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for VolumeName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        Self::parse(&name)
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that no volume can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is nothing.
    #[error("a volume's name must not be empty")]
    Empty,
    /// More than a directory's name can hold: the beginning, and the length in bytes.
    #[error("volume name {0:?}... has {1} bytes, at most {MAX_NAME} are possible")]
    TooLong(String, usize),
    /// `/` and NUL among others.
    #[error(
        "volume name {0:?} contains {1:?}: only letters, digits, '_', '.' and '-' are possible"
    )]
    Character(String, char),
    /// `..` and hidden names among others.
    #[error("volume name {0:?} begins with {1:?}: it must begin with a letter or a digit")]
    Start(String, char),
}

/// What the engine calls one use of a volume by one container. It repeats and it lies (docker cp,
/// crashes): a hint, never a count.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MountId(pub String);

/// What Docker believes about one volume.
#[derive(Default)]
pub(super) enum VolumeState {
    #[default]
    Unmounted,
    /// `holders` may repeat or lie: an empty set only makes the mount a candidate to detach.
    Mounted {
        mount: Arc<dyn Mount>,
        holders: BTreeSet<MountId>,
    },
    /// The unmount failed; the reason is kept for the next caller instead of mounting over it.
    Stuck {
        mount: Arc<dyn Mount>,
        error: MountError,
    },
    /// Its record is gone; whoever waited for it has to be told so.
    Removed,
}

impl VolumeState {
    /// The session, whatever is to become of it.
    pub(super) fn mount(&self) -> Option<&Arc<dyn Mount>> {
        match self {
            Self::Mounted { mount, .. } | Self::Stuck { mount, .. } => Some(mount),
            Self::Unmounted | Self::Removed => None,
        }
    }

    /// The session, if no container is known to use it.
    pub(super) fn candidate(&self) -> Option<&Arc<dyn Mount>> {
        match self {
            Self::Mounted { mount, holders } if holders.is_empty() => Some(mount),
            Self::Stuck { mount, .. } => Some(mount),
            Self::Mounted { .. } | Self::Unmounted | Self::Removed => None,
        }
    }
}

impl fmt::Debug for VolumeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unmounted => f.write_str("Unmounted"),
            Self::Mounted { holders, .. } => f
                .debug_struct("Mounted")
                .field("holders", holders)
                .finish_non_exhaustive(),
            Self::Stuck { error, .. } => f
                .debug_struct("Stuck")
                .field("error", error)
                .finish_non_exhaustive(),
            Self::Removed => f.write_str("Removed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ordinary_names_are_accepted() {
        let longest = "a".repeat(255);
        let anonymous = "0123456789abcdef".repeat(4);
        for name in [
            "v",
            "7",
            "my_app.data-1",
            "a..b",
            "Project_volume",
            &longest,
            &anonymous,
        ] {
            assert_eq!(VolumeName::parse(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn each_violation_has_its_own_words() {
        let long = "n".repeat(300);
        for (name, words) in [
            ("", "must not be empty"),
            (long.as_str(), "has 300 bytes, at most 255"),
            ("a/b", "contains '/'"),
            ("../../etc/x", "contains '/'"),
            ("..", "begins with '.'"),
            (".hidden", "begins with '.'"),
            ("-v", "begins with '-'"),
            ("_v", "begins with '_'"),
            ("a\0b", r"contains '\0'"),
            ("a b", "contains ' '"),
            ("a:b", "contains ':'"),
            ("vol\u{fc}men", "contains '\u{fc}'"),
            ("a\nb", r"contains '\n'"),
        ] {
            let err = VolumeName::parse(name).unwrap_err().to_string();
            assert!(err.contains(words), "{name:?}: {err}");
            assert!(!err.contains(['\0', '\n']), "{err:?} is one line");
        }
    }

    #[test]
    fn a_name_from_a_file_is_checked_too() {
        assert!(serde_json::from_str::<VolumeName>(r#""../x""#).is_err());
    }

    proptest! {
        #[test]
        fn an_accepted_name_is_one_segment_of_a_path(name in "\\PC{0,300}|[a-z./\\-_]{0,12}") {
            if let Ok(name) = VolumeName::parse(&name) {
                let path = std::path::Path::new("/base").join(name.as_str());
                prop_assert_eq!(path.parent(), Some(std::path::Path::new("/base")));
                prop_assert_eq!(path.components().count(), 3);
                prop_assert!(name.as_str().len() <= 255);
            }
        }
    }
}
