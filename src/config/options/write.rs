//! What waits for the bucket, and when changes leave for it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::OptionError;
use crate::config::size::{format_size, parse_size};

/// How changes come into the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteOptions {
    /// What waits for the bucket.
    pub durability: Durability,
    /// How long after its last close a changed file sets out; longer for one that is changed again and again.
    pub upload_delay: Duration,
    /// When a changed file that nobody closes or syncs sets out at the latest.
    pub max_dirty_age: Duration,
    /// What is done about a change that another host's change has overtaken.
    pub conflicts: Conflicts,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self {
            durability: Durability::Fsync,
            upload_delay: Duration::from_millis(100),
            max_dirty_age: Duration::from_secs(30),
            conflicts: Conflicts::KeepBoth,
        }
    }
}

/// What waits until the bucket has a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Closing a file and syncing it.
    Close,
    /// Syncing a file.
    Fsync,
    /// Nothing: syncing a file brings it onto this host's disk.
    Local,
}

impl Durability {
    /// Its word in an option.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Close => "close",
            Self::Fsync => "fsync",
            Self::Local => "local",
        }
    }

    /// The level of that word.
    pub(in crate::config) fn parse(word: &str) -> Option<Self> {
        [Self::Close, Self::Fsync, Self::Local]
            .into_iter()
            .find(|level| level.as_str() == word)
    }
}

/// What is done about a change that another host's change has overtaken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflicts {
    /// The other's stays; ours goes into the bucket beside it, under a name that says so.
    KeepBoth,
    /// The other's stays; ours waits on this host for somebody to decide.
    Fail,
    /// Ours replaces the other's.
    Overwrite,
}

impl Conflicts {
    /// Its word in an option.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeepBoth => "keep-both",
            Self::Fail => "fail",
            Self::Overwrite => "overwrite",
        }
    }

    /// The policy of that word.
    pub(in crate::config) fn parse(word: &str) -> Option<Self> {
        [Self::KeepBoth, Self::Fail, Self::Overwrite]
            .into_iter()
            .find(|policy| policy.as_str() == word)
    }
}

/// What staged bytes leave free of the disk they are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinFree {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the disk.
    Percent(u8),
}

impl MinFree {
    /// Bytes, of a disk of `total` bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => total / 100 * u64::from(percent),
        }
    }
}

impl fmt::Display for MinFree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => f.write_str(&format_size(*bytes)),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl FromStr for MinFree {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = match text.strip_suffix('%') {
            Some(percent) => Some(percent)
                .filter(|percent| percent.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|percent| percent.parse().ok())
                .filter(|percent| *percent < 100)
                .map(Self::Percent),
            None => parse_size(text).map(Self::Bytes),
        };
        parsed.ok_or_else(|| {
            OptionError(format!(
                "{text:?} is neither a size nor a percentage below 100%"
            ))
        })
    }
}
