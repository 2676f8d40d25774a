//! One entry: when a HEAD's answer is kept, which listing it answers, and its bytes. Pure.
//!
//! An object's metadata can be replaced without another ETag, by a copy onto itself; its time changes then, which a
//! HEAD says in whole seconds. Whatever is done to an object after it was looked at gets the time of the look or a
//! later one, by the store's own clock. So if its time was past already when the store answered, no other metadata
//! ever stand beside the same key, version, size and time.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::store::{Key, Metadata, Object, ObjectVersion, digest};

/// So much older than the answer an object has to be: more than the second that both are rounded by, and as much again
/// for the servers of one store, which may not have quite the same time.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// The form of an entry's bytes. Others are nobody's.
const FORM: u8 = 1;

/// Bytes of the checksum at an entry's end.
const SUM: usize = 4;

/// A bucket's name in the keys of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place([u8; 16]);

impl Place {
    pub(super) fn of(parts: &[impl AsRef<[u8]>]) -> Self {
        let digest = digest::of_parts(parts);
        Self(*digest.first_chunk().expect("it has 32 bytes"))
    }

    /// What the object at `key` is filed under: the objects of a directory stand together.
    pub(super) fn key(&self, key: &Key) -> Vec<u8> {
        [&self.0, key.as_str().as_bytes()].concat()
    }
}

/// What is kept of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    version: ObjectVersion,
    size: u64,
    pub(super) modified: SystemTime,
    pub(super) metadata: Metadata,
}

impl Entry {
    /// What is to be kept of a HEAD's answer; `None` if it may not hold.
    pub(super) fn of(object: &Object) -> Option<Self> {
        let holds = !object.version.is_any() && is_settled(object.modified, object.answered);
        holds.then(|| Self {
            version: object.version.clone(),
            size: object.size,
            modified: object.modified,
            metadata: object.metadata.clone(),
        })
    }

    /// Whether it is about what a listing says so of.
    pub(super) fn is_about(
        &self,
        version: &ObjectVersion,
        size: u64,
        modified: SystemTime,
    ) -> bool {
        // A listing gives milliseconds, a HEAD only seconds.
        self.version == *version && self.size == size && seconds(self.modified) == seconds(modified)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        // Only a time before 1970 cannot be written; what is empty is read as nothing.
        let mut bytes = postcard::to_extend(self, vec![FORM]).unwrap_or_default();
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// `None`: it is of another form, or damaged.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (said, sum) = bytes.split_at_checked(bytes.len().checked_sub(SUM)?)?;
        let is_whole = crc32c::crc32c(said).to_le_bytes() == *sum;
        match said.split_first()? {
            (&FORM, entry) if is_whole => postcard::from_bytes(entry).ok(),
            _ => None,
        }
    }
}

/// Whether what was answered at `answered` of an object that the store took at `modified`, both by the store's clock,
/// will hold for as long as it has that time.
fn is_settled(modified: SystemTime, answered: Option<SystemTime>) -> bool {
    let (Some(modified), Some(answered)) = (seconds(modified), answered.and_then(seconds)) else {
        return false;
    };
    // Without a time of its own an object has that of the epoch.
    modified > 0 && answered > modified.saturating_add(SETTLED_AFTER.as_secs())
}

fn seconds(time: SystemTime) -> Option<u64> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.ok().map(|since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
    }

    fn object(modified: SystemTime, answered: Option<SystemTime>) -> Object {
        Object {
            size: 7,
            version: ObjectVersion(Arc::from("\"e\"")),
            modified,
            metadata: Metadata::default(),
            answered,
        }
    }

    #[test]
    fn an_answer_is_kept_if_the_object_was_older_by_the_stores_own_clock() {
        const TAKEN: u64 = 1_767_225_600_000;
        let seconds_later = |seconds: u64| Some(at(TAKEN + seconds * 1000));
        for (modified, answered, is_kept, why) in [
            (at(TAKEN), seconds_later(3), true, "three seconds"),
            (at(TAKEN), seconds_later(86_400), true, "a day"),
            (
                at(TAKEN),
                seconds_later(2),
                false,
                "two, of which one may be rounding",
            ),
            (at(TAKEN), seconds_later(1), false, "one"),
            (at(TAKEN), seconds_later(0), false, "the same second"),
            (
                at(TAKEN + 999),
                Some(at(TAKEN + 2999)),
                false,
                "two, whatever the milliseconds",
            ),
            (
                at(TAKEN + 999),
                Some(at(TAKEN + 3000)),
                true,
                "in whole seconds three",
            ),
            (
                at(TAKEN),
                None,
                false,
                "the store does not say what time it is",
            ),
            (
                at(TAKEN + 5000),
                seconds_later(0),
                false,
                "the store's servers disagree",
            ),
            (
                at(0),
                seconds_later(0),
                false,
                "the store does not say how old it is",
            ),
            // The host's own clock is not asked: these are a store's that is a year behind, and one in 1970.
            (
                at(TAKEN - 31_536_000_000),
                Some(at(TAKEN - 31_535_990_000)),
                true,
                "a year behind",
            ),
            (
                at(60_000),
                Some(at(64_000)),
                true,
                "a clock that begins anew",
            ),
        ] {
            let kept = Entry::of(&object(modified, answered));
            assert_eq!(kept.is_some(), is_kept, "{why}");
        }
    }

    #[test]
    fn a_version_that_is_not_known_is_not_kept() {
        let mut object = object(at(60_000), Some(at(90_000)));
        object.version = ObjectVersion::any();
        assert_eq!(Entry::of(&object), None);
    }

    #[test]
    fn an_entry_is_about_its_own_version_size_and_second() {
        let entry = Entry::of(&object(at(60_000), Some(at(90_000)))).unwrap();
        let version = |tag: &str| ObjectVersion(Arc::from(tag));
        assert!(entry.is_about(&version("\"e\""), 7, at(60_000)));
        assert!(entry.is_about(&version("\"e\""), 7, at(60_999)));
        assert!(!entry.is_about(&version("\"e\""), 7, at(61_000)));
        assert!(!entry.is_about(&version("\"e\""), 7, at(59_999)));
        assert!(!entry.is_about(&version("\"e\""), 8, at(60_000)));
        assert!(!entry.is_about(&version("\"f\""), 7, at(60_000)));
    }

    #[test]
    fn places_and_keys_do_not_run_together() {
        let key = |place: &[&str], key: &str| Place::of(place).key(&Key::new(key));
        assert_eq!(key(&["a", "b"], "k"), key(&["a", "b"], "k"));
        assert_ne!(key(&["a", "b"], "k"), key(&["ab"], "k"));
        assert_ne!(key(&["a", "b"], "k"), key(&["a", "c"], "k"));
        assert_ne!(key(&["a", "b"], "k"), key(&["a", "b"], "l"));
    }

    fn words() -> impl Strategy<Value = BTreeMap<String, String>> {
        proptest::collection::btree_map(any::<String>(), any::<String>(), 0..6)
    }

    proptest! {
        #[test]
        fn any_entry_survives_the_round_trip_and_no_damage_does(
            version in any::<String>(),
            size in any::<u64>(),
            since in 0_u64..4_000_000_000_000,
            user in words(),
            headers in words(),
            hit in any::<proptest::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let entry = Entry {
                version: ObjectVersion(Arc::from(version)),
                size,
                modified: at(since),
                metadata: Metadata { user, headers },
            };
            let mut bytes = entry.encode();
            prop_assert_eq!(Entry::decode(&bytes), Some(entry));
            prop_assert_eq!(Entry::decode(&bytes[1..]), None);
            let at = hit.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(Entry::decode(&bytes), None);
        }
    }
}
