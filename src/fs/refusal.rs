//! Who is refused at the root of a volume, and what would help.
//!
//! The kernel decides by the attributes that it was told. Before it refuses somebody it asks for them once more, though
//! it still believes them: by that a refusal is known here.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::attr::{Attr, Caller};

/// What of a mode lets somebody make and remove names in a directory.
const WRITE_AND_SEARCH: u32 = 0o3;

/// What the kernel believes of the root.
#[derive(Debug, Default)]
pub(crate) struct RootWatch {
    /// Until then, in nanoseconds of the volume's clock.
    believed_until: AtomicU64,
    has_said: AtomicBool,
}

impl RootWatch {
    /// The kernel was told the root's attributes at `now`, and believes them for `ttl`.
    pub(crate) fn told(&self, now: Duration, ttl: Duration) {
        let until = nanos(now.saturating_add(ttl));
        self.believed_until.store(until, Ordering::Relaxed);
    }

    /// Whether a question for them at `now` is one that the kernel asks before it refuses somebody.
    pub(crate) fn is_refusal(&self, now: Duration) -> bool {
        nanos(now) < self.believed_until.load(Ordering::Relaxed)
    }

    /// Whether this is the first time that it would be said: nobody needs to hear it twice.
    pub(crate) fn is_first(&self) -> bool {
        !self.has_said.swap(true, Ordering::Relaxed)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What to tell the operator of a caller who was refused at a root of these attributes; `None`: he may write there.
/// Options decide the attributes of a root that has none of its own in the bucket.
pub(crate) fn hint(root: &Attr, has_own_attributes: bool, caller: Caller) -> Option<String> {
    let Caller { uid, gid } = caller;
    let granted = if uid == root.uid {
        root.mode >> 6
    } else if gid == root.gid {
        root.mode >> 3
    } else {
        root.mode
    };
    if uid == 0 || granted & WRITE_AND_SEARCH == WRITE_AND_SEARCH {
        return None;
    }
    let mend = if has_own_attributes {
        format!("`chown {uid}:{gid}` on it, by root, mends that for good")
    } else {
        format!(
            "the options uid={uid},gid={gid} (of a volume: when it is created) or one `chown` by root mend that"
        )
    };
    let (owner, group, mode) = (root.uid, root.gid, root.mode);
    Some(format!(
        "uid {uid} was refused at the root of the volume, which is {owner}:{group} with mode {mode:04o}: {mend}"
    ))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::store::FileKind;

    #[test]
    fn who_cannot_write_is_told_what_would_help() {
        let owner = Caller { uid: 5, gid: 6 };
        let root = |mode| Attr::new(FileKind::Directory, mode, owner, SystemTime::UNIX_EPOCH);
        for (mode, uid, gid, is_refused) in [
            (0o755, 0, 0, false),
            (0o755, 5, 6, false),
            (0o755, 7, 6, true),
            (0o775, 7, 6, false),
            (0o777, 7, 7, false),
            (0o776, 7, 7, true),
            (0o077, 5, 6, true),
        ] {
            let hint = hint(&root(mode), false, Caller { uid, gid });
            assert_eq!(hint.is_some(), is_refused, "{mode:o} {uid}:{gid}");
        }
        let text = |has_own| hint(&root(0o755), has_own, Caller { uid: 7, gid: 8 }).unwrap();
        assert_eq!(
            text(false),
            "uid 7 was refused at the root of the volume, which is 5:6 with mode 0755: \
             the options uid=7,gid=8 (of a volume: when it is created) or one `chown` by root mend that"
        );
        assert!(text(true).ends_with("`chown 7:8` on it, by root, mends that for good"));
    }

    #[test]
    fn a_question_is_a_refusal_if_the_kernel_believes_what_it_asks_for() {
        let watch = RootWatch::default();
        let at = Duration::from_millis;
        assert!(!watch.is_refusal(at(0)));
        watch.told(at(500), at(1000));
        assert!(watch.is_refusal(at(501)) && watch.is_refusal(at(1499)));
        assert!(!watch.is_refusal(at(1500)));
        watch.told(at(2000), Duration::MAX);
        assert!(watch.is_refusal(at(1_000_000_000)));
        assert!(watch.is_first() && !watch.is_first());
    }
}
