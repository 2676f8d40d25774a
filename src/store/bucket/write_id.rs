//! The mark that tells our own write from another's.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::store::Metadata;

/// The user metadata that carries it.
const NAME: &str = "bucketvol-write";

/// Names one write. It travels as user metadata, which never show it.
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
        Uuid::try_parse(text).ok().map(|_| Self(text.to_owned()))
    }
}
