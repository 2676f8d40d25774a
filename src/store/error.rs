//! What can go wrong between us and a store.

use std::time::Duration;

use super::Key;

/// A request that a store did not do. Messages name the bucket or key and never hold a secret.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// There is no such object.
    #[error("no object {key:?}")]
    NotFound {
        /// The key asked for.
        key: Key,
    },
    /// The object is of another version than the request was based on.
    #[error("object {key:?} was changed by someone else")]
    Precondition {
        /// The key written or read.
        key: Key,
    },
    /// There is an object already where none was expected.
    #[error("object {key:?} is there already")]
    AlreadyExists {
        /// The key written.
        key: Key,
    },
    /// The store will not: the bucket, the credentials or the request are not right, and asking again
    /// changes nothing.
    #[error("{place}: {reason}{}", mend.as_deref().map(|m| format!(" ({m})")).unwrap_or_default())]
    Refused {
        /// The bucket or endpoint.
        place: String,
        /// What it said, in our words where we know them.
        reason: String,
        /// What a person can do about it.
        mend: Option<String>,
        /// Whether it was for want of permission.
        denied: bool,
    },
    /// The store cannot just now: it is away, overloaded, or the answer was lost on the way.
    #[error("{place}: {reason}")]
    Unavailable {
        /// The bucket or endpoint.
        place: String,
        /// What happened.
        reason: String,
        /// The store asked us to wait this long.
        retry_after: Option<Duration>,
    },
    /// This kind of store cannot do this at all.
    #[error("{place} cannot {verb}")]
    Unsupported {
        /// The bucket or endpoint.
        place: String,
        /// What was asked of it.
        verb: &'static str,
    },
}

impl StoreError {
    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
