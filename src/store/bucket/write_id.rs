//! The mark that tells our own write from another's.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::store::Metadata;

/// The user metadata that carries it.
const NAME: &str = "bucketvol-write";

/// Names one attempt at a write. It travels as user metadata, which never show it.
///
/// A write that is tried until its end is known has one name; its attempts are numbered, for they may send different
/// bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteId(String);

impl Default for WriteId {
    fn default() -> Self {
        Self::new()
    }
}

impl WriteId {
    /// A mark that no other write has.
    pub fn new() -> Self {
        Self(Uuid::new_v4().simple().to_string())
    }

    /// The mark of the next attempt at the same write.
    pub fn again(&self) -> Self {
        let (write, attempt) = self.split();
        Self(format!("{write}.{}", attempt + 1))
    }

    /// A mark than which no other is longer.
    pub(in crate::store) fn longest() -> Self {
        Self(format!("{}.{}", Uuid::max().simple(), u64::MAX))
    }

    /// Whether both are attempts at the same write.
    pub fn is_of_the_write_of(&self, other: &Self) -> bool {
        self.split().0 == other.split().0
    }

    /// The write's name, and the attempt's number, from 1.
    fn split(&self) -> (&str, u64) {
        self.0
            .split_once('.')
            .and_then(|(write, attempt)| Some((write, attempt.parse().ok()?)))
            .unwrap_or((&self.0, 1))
    }

    /// The mark of these metadata, a new one if they have none, and the metadata with it.
    pub(super) fn stamp(mut metadata: Metadata) -> (Self, Metadata) {
        let id = Self::take(&mut metadata).unwrap_or_default();
        let metadata = id.mark(metadata);
        (id, metadata)
    }

    /// The same metadata with this mark: who writes them can tell later that it was this write.
    pub fn mark(&self, mut metadata: Metadata) -> Metadata {
        metadata.user.insert(NAME.to_owned(), self.0.clone());
        metadata
    }

    /// Takes the mark out.
    pub(super) fn take(metadata: &mut Metadata) -> Option<Self> {
        metadata.user.remove(NAME).map(Self)
    }

    /// The mark's text.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The mark of this text, if it can be one.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let id = Self(text.to_owned());
        Uuid::try_parse(id.split().0).ok()?;
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_at_one_write_differ_and_are_known_to_belong_together() {
        let first = WriteId::new();
        let (second, third) = (first.again(), first.again().again());
        assert!(first != second && second != third);
        assert!(first.is_of_the_write_of(&third) && third.is_of_the_write_of(&second));
        assert!(!third.is_of_the_write_of(&WriteId::new().again()));
        assert_eq!(WriteId::parse(third.as_str()), Some(third));
    }
}
