//! The mark that tells our own write from another's.

use uuid::Uuid;

use crate::store::Metadata;

/// The user metadata that carries it.
const NAME: &str = "bucketvol-write";

/// Names one write. It travels as user metadata and is never shown to the layers above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WriteId(String);

impl WriteId {
    pub(super) fn new() -> Self {
        Self(Uuid::new_v4().simple().to_string())
    }

    /// A new mark, and the metadata that carry it.
    pub(super) fn stamp(metadata: Metadata) -> (Self, Metadata) {
        let id = Self::new();
        let metadata = id.mark(metadata);
        (id, metadata)
    }

    /// The same metadata with this mark.
    pub(super) fn mark(&self, mut metadata: Metadata) -> Metadata {
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
