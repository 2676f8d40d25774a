//! Versions of objects that were replaced, in buckets that keep them: who has the old one open reads on.

use std::time::{Duration, Instant};

use moka::sync::Cache;
use parking_lot::Mutex;

use super::Bucket;
use crate::store::counts::Verb;
use crate::store::retry::RetryPolicy;
use crate::store::{Key, ObjectVersion, StoreError, VersionId};

/// Versions whose ids are remembered.
const REMEMBERED: u64 = 1024;

/// A bucket that keeps no versions is not asked for them again for so long.
const BELIEVED_FOR: Duration = Duration::from_secs(600);

/// S3's id for what was written while a bucket kept no versions.
const UNVERSIONED: &str = "null";

/// What is known of a bucket's versions.
#[derive(Debug)]
pub(super) struct Versions {
    ids: Cache<(Key, ObjectVersion), VersionId>,
    /// When it turned out to keep none.
    none: Mutex<Option<Instant>>,
}

impl Default for Versions {
    fn default() -> Self {
        Self {
            ids: Cache::new(REMEMBERED),
            none: Mutex::default(),
        }
    }
}

impl Versions {
    /// The id of a version that was asked for before.
    pub(super) fn known(&self, key: &Key, version: &ObjectVersion) -> Option<VersionId> {
        self.ids.get(&(key.clone(), version.clone()))
    }

    fn has_none(&self) -> bool {
        let none = *self.none.lock();
        none.is_some_and(|since| since.elapsed() < BELIEVED_FOR)
    }
}

impl Bucket {
    /// The id of a version that is not an object's newest any more; `None`: the bucket does not have it, or does not
    /// say. `key` is whole.
    pub(super) async fn find_version(
        &self,
        key: &Key,
        version: &ObjectVersion,
    ) -> Result<Option<VersionId>, StoreError> {
        let versions = &self.inner.versions;
        if version.0.is_empty() || versions.has_none() {
            return Ok(None);
        }
        let listed = self.run(RetryPolicy::for_bytes(0), Verb::ListVersions, || {
            self.inner.store.list_versions(key)
        });
        let listed = match listed.await {
            Err(error) if error.is_transient() => return Err(error),
            listed => listed.unwrap_or_default(),
        };
        if listed.iter().all(|kept| &*kept.id.0 == UNVERSIONED) {
            *versions.none.lock() = Some(Instant::now());
        }
        let found = listed.into_iter().find(|kept| kept.version == *version);
        Ok(found.map(|kept| {
            let name = (key.clone(), kept.version);
            versions.ids.insert(name, kept.id.clone());
            kept.id
        }))
    }
}
