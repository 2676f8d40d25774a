//! What has to wait for what: changes that touch a common key run in the order they were entered, all
//! others in parallel.
//!
//! [`Schedule`] decides and does no I/O; [`Turnstile`] lets tasks wait for its decisions.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::store::Key;

/// The keys a change touches. Two footprints conflict if they share a key: whatever changes a key has to
/// come after everything that was entered before it and touches the key too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Footprint(Vec<Touch>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Touch {
    Key(Key),
    /// Every key that begins with this.
    Below(Key),
    /// This inode, whatever it is called meanwhile.
    Inode(u64),
}

impl Footprint {
    /// Exactly this key.
    pub(crate) fn key(key: Key) -> Self {
        Self(vec![Touch::Key(key)])
    }

    /// An inode: no two uploads of one run at once, though a rename gives them different keys.
    pub(crate) fn inode(ino: u64) -> Self {
        Self(vec![Touch::Inode(ino)])
    }

    /// This directory's marker and every key below it.
    pub(crate) fn below(directory: Key) -> Self {
        Self(vec![Touch::Below(directory)])
    }

    /// The keys of both.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    fn conflicts(&self, other: &Self) -> bool {
        self.0
            .iter()
            .any(|a| other.0.iter().any(|b| a.conflicts(b)))
    }
}

impl Touch {
    fn conflicts(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Inode(a), Self::Inode(b)) => a == b,
            (Self::Inode(_), _) | (_, Self::Inode(_)) => false,
            (Self::Key(a), Self::Key(b)) => a == b,
            (Self::Key(key), Self::Below(dir)) | (Self::Below(dir), Self::Key(key)) => {
                key.as_str().starts_with(dir.as_str())
            }
            (Self::Below(a), Self::Below(b)) => {
                a.as_str().starts_with(b.as_str()) || b.as_str().starts_with(a.as_str())
            }
        }
    }
}

/// The changes that were entered and are not done, in order.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    entered: BTreeMap<u64, Footprint>,
    next: u64,
}

impl Schedule {
    /// Enters a change behind all that are there.
    pub(crate) fn enter(&mut self, footprint: Footprint) -> u64 {
        let id = self.next;
        self.next += 1;
        self.entered.insert(id, footprint);
        id
    }

    /// Whether the change may run: nothing entered before it conflicts with it.
    pub(crate) fn may_run(&self, id: u64) -> bool {
        let Some(footprint) = self.entered.get(&id) else {
            return true;
        };
        !self
            .entered
            .range(..id)
            .any(|(_, earlier)| earlier.conflicts(footprint))
    }

    /// Takes a change out: it is done, or given up.
    pub(crate) fn leave(&mut self, id: u64) {
        self.entered.remove(&id);
    }
}

/// Lets tasks wait until their change may run.
#[derive(Debug, Default)]
pub(crate) struct Turnstile {
    schedule: Mutex<Schedule>,
    left: Notify,
}

/// The right to make one change; given back when dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    turnstile: Arc<Turnstile>,
    id: u64,
}

impl Turnstile {
    /// Waits for everything entered before that touches a common key.
    pub(crate) async fn enter(self: &Arc<Self>, footprint: Footprint) -> Turn {
        let id = self.schedule.lock().enter(footprint);
        let turn = Turn {
            turnstile: Arc::clone(self),
            id,
        };
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            // Registered before the look, so that a change that leaves in between is not missed.
            left.as_mut().enable();
            if self.schedule.lock().may_run(id) {
                return turn;
            }
            left.await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turnstile.schedule.lock().leave(self.id);
        self.turnstile.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(key: &str) -> Footprint {
        Footprint::key(Key::new(key))
    }

    fn below(dir: &str) -> Footprint {
        Footprint::below(Key::new(dir))
    }

    #[test]
    fn footprints_conflict_where_they_share_a_key() {
        for (a, b, conflict) in [
            (key("a"), key("a"), true),
            (key("a"), key("b"), false),
            (key("d/a"), below("d/"), true),
            (key("d"), below("d/"), false),
            (below("d/"), below("d/e/"), true),
            (below("d/"), below("e/"), false),
            (below("d/").and(below("e/")), key("e/x"), true),
            (
                key("a").and(Footprint::inode(7)),
                key("b").and(Footprint::inode(7)),
                true,
            ),
            (
                key("a").and(Footprint::inode(7)),
                key("b").and(Footprint::inode(8)),
                false,
            ),
        ] {
            assert_eq!(a.conflicts(&b), conflict, "{a:?} {b:?}");
            assert_eq!(b.conflicts(&a), conflict, "{b:?} {a:?}");
        }
    }

    proptest! {
        /// Running whatever may run, in any order: all get their turn, and no two that conflict are
        /// overtaken.
        #[test]
        fn nothing_overtakes_and_nothing_starves(
            keys in proptest::collection::vec((0u8..4, any::<bool>()), 1..20),
            picks in proptest::collection::vec(any::<prop::sample::Index>(), 20),
        ) {
            let mut schedule = Schedule::default();
            let footprints: Vec<Footprint> = keys
                .iter()
                .map(|(k, dir)| if *dir { below(&format!("{k}/")) } else { key(&format!("{k}/x")) })
                .collect();
            let mut waiting: Vec<u64> =
                footprints.iter().map(|f| schedule.enter(f.clone())).collect();
            let mut ran: Vec<u64> = Vec::new();
            for pick in picks.iter().take(keys.len()) {
                let ready: Vec<u64> =
                    waiting.iter().copied().filter(|id| schedule.may_run(*id)).collect();
                prop_assert!(!ready.is_empty());
                let id = *pick.get(&ready);
                schedule.leave(id);
                waiting.retain(|w| *w != id);
                ran.push(id);
            }
            prop_assert!(waiting.is_empty());
            for (i, later) in ran.iter().enumerate() {
                for earlier in &ran[i + 1..] {
                    if earlier < later {
                        let at = |id: u64| &footprints[usize::try_from(id).unwrap()];
                        prop_assert!(!at(*earlier).conflicts(at(*later)));
                    }
                }
            }
        }
    }
}
