//! The only place that spells a key.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A key, or the beginning of one. Any UTF-8 without NUL; a directory's ends in a slash.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key(Arc<str>);

impl Key {
    /// A key of exactly these bytes.
    pub fn new(key: impl Into<Arc<str>>) -> Self {
        Self(key.into())
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The directory that the volume's root is: the empty key.
    pub fn root() -> Self {
        Self::new("")
    }

    /// The key of a file called `segment` in the directory whose key (with its slash) is `self`.
    pub fn join_file(&self, segment: &str) -> Self {
        Self::new(format!("{}{segment}", self.0))
    }

    /// The key of a directory called `segment` in the directory whose key (with its slash) is `self`.
    pub fn join_dir(&self, segment: &str) -> Self {
        Self::new(format!("{}{segment}/", self.0))
    }

    /// Whether it is a directory's: the root's, or one that ends in a slash.
    pub fn is_dir(&self) -> bool {
        self.0.is_empty() || self.0.ends_with('/')
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
