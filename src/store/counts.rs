//! How many requests were sent, by verb.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Requests sent so far, by verb; every attempt counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct RequestCounts(pub BTreeMap<&'static str, u64>);

impl RequestCounts {
    /// Requests of all verbs.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Requests of one verb.
    pub fn of(&self, verb: &str) -> u64 {
        self.0.get(verb).copied().unwrap_or(0)
    }
}

/// What a request does, as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Head,
    Get,
    List,
    ListVersions,
    Put,
    Delete,
    DeleteBatch,
    Copy,
    CreateMultipart,
    PutPart,
    CopyPart,
    CompleteMultipart,
    AbortMultipart,
    ListMultipart,
}

impl Verb {
    const ALL: [Self; 14] = [
        Self::Head,
        Self::Get,
        Self::List,
        Self::ListVersions,
        Self::Put,
        Self::Delete,
        Self::DeleteBatch,
        Self::Copy,
        Self::CreateMultipart,
        Self::PutPart,
        Self::CopyPart,
        Self::CompleteMultipart,
        Self::AbortMultipart,
        Self::ListMultipart,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Get => "get",
            Self::List => "list",
            Self::ListVersions => "list_versions",
            Self::Put => "put",
            Self::Delete => "delete",
            Self::DeleteBatch => "delete_batch",
            Self::Copy => "copy",
            Self::CreateMultipart => "create_multipart",
            Self::PutPart => "put_part",
            Self::CopyPart => "copy_part",
            Self::CompleteMultipart => "complete_multipart",
            Self::AbortMultipart => "abort_multipart",
            Self::ListMultipart => "list_multipart",
        }
    }
}

/// Counts as requests are sent.
#[derive(Debug, Default)]
pub(super) struct Counters([AtomicU64; Verb::ALL.len()]);

impl Counters {
    pub(super) fn count(&self, verb: Verb) {
        self.0[verb as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The verbs that were used at all.
    pub(super) fn snapshot(&self) -> RequestCounts {
        let counts = Verb::ALL
            .into_iter()
            .map(|verb| (verb.name(), self.0[verb as usize].load(Ordering::Relaxed)));
        RequestCounts(counts.filter(|(_, count)| *count > 0).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_is_counted_under_its_own_name() {
        let counters = Counters::default();
        for verb in Verb::ALL {
            counters.count(verb);
        }
        counters.count(Verb::Get);
        let counts = counters.snapshot();
        assert_eq!(counts.0.len(), Verb::ALL.len());
        assert_eq!(
            (counts.of("get"), counts.of("list"), counts.of("nothing")),
            (2, 1, 0)
        );
        assert_eq!(counts.total(), 15);
    }
}
