//! When what was changed sets out for the bucket. No I/O; the clock is the caller's.
//!
//! A file goes `upload_delay` after its last close, and `max_dirty_age` after its first change at the
//! latest. A file that is changed again and again waits twice as long each time, so that a program that opens,
//! appends one line and closes does not upload the whole for every line.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// First pause after an upload that failed; it doubles.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// Longest pause after an upload that failed because the store was away.
const RETRY_LAST: Duration = Duration::from_secs(60);

/// Pause after an upload that the store refused: the same request would fail again, until somebody changes the
/// rights or the credentials.
const REFUSED_PAUSE: Duration = Duration::from_secs(300);

/// How an upload that failed may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The store was away: soon.
    Away,
    /// The store said no.
    Refused,
}

/// The inodes that are to be uploaded, and when.
#[derive(Debug)]
pub(crate) struct UploadQueue {
    delay: Duration,
    max_age: Duration,
    entries: HashMap<u64, Entry>,
    /// Those that wait, by when they are due.
    due: BTreeSet<(Duration, u64)>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    phase: Phase,
    /// The delay after the next close.
    delay: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Changed, and due then.
    Waiting { due: Duration, failures: u32 },
    /// On its way. `again`: changed meanwhile, and due then.
    Sending {
        again: Option<Duration>,
        failures: u32,
    },
    /// In the bucket since then. Kept for a while, to see whether it is changed again.
    Sent { at: Duration },
}

impl UploadQueue {
    /// A queue for a volume with this `upload_delay` and `max_dirty_age`.
    pub(crate) fn new(delay: Duration, max_age: Duration) -> Self {
        Self {
            delay,
            max_age,
            entries: HashMap::new(),
            due: BTreeSet::new(),
        }
    }

    /// The inode was changed. It is due when it is old, if nobody closes it before.
    pub(crate) fn changed(&mut self, ino: u64, now: Duration) {
        self.due_by(ino, now, now + self.max_age);
    }

    /// The inode was changed, and nobody has it open for writing any more.
    pub(crate) fn closed(&mut self, ino: u64, now: Duration) {
        let delay = self.entries.get(&ino).map_or(self.delay, |e| e.delay);
        self.due_by(ino, now, now + delay);
    }

    /// The inode is to go at once.
    pub(crate) fn urgent(&mut self, ino: u64, now: Duration) {
        self.due_by(ino, now, now);
    }

    fn due_by(&mut self, ino: u64, now: Duration, by: Duration) {
        let (delay, max_age) = (self.delay, self.max_age);
        let entry = self.entries.entry(ino).or_insert(Entry {
            phase: Phase::Waiting {
                due: by,
                failures: 0,
            },
            delay,
        });
        match &mut entry.phase {
            Phase::Waiting { due, failures } => {
                self.due.remove(&(*due, ino));
                // A store that is away is not asked more often because somebody writes.
                if *failures == 0 {
                    *due = by.min(*due);
                }
                self.due.insert((*due, ino));
            }
            Phase::Sending { again, .. } => *again = Some(again.map_or(by, |a| a.min(by))),
            Phase::Sent { at } => {
                entry.delay = if now.saturating_sub(*at) < max_age {
                    (entry.delay * 2).min(max_age)
                } else {
                    delay
                };
                entry.phase = Phase::Waiting {
                    due: by,
                    failures: 0,
                };
                self.due.insert((by, ino));
            }
        }
    }

    /// The inode that is due first, if it is due: it is on its way from now on.
    pub(crate) fn take(&mut self, now: Duration) -> Option<u64> {
        let (due, ino) = *self.due.first()?;
        if due > now {
            return None;
        }
        self.due.pop_first();
        let entry = self.entries.get_mut(&ino)?;
        if let Phase::Waiting { failures, .. } = entry.phase {
            entry.phase = Phase::Sending {
                again: None,
                failures,
            };
        }
        Some(ino)
    }

    /// When the next one is due.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Nothing of the inode is left to send, whoever has sent it.
    pub(crate) fn settled(&mut self, ino: u64, now: Duration) {
        let Some(entry) = self.entries.get_mut(&ino) else {
            return;
        };
        match &mut entry.phase {
            Phase::Waiting { due, .. } => {
                self.due.remove(&(*due, ino));
                entry.phase = Phase::Sent { at: now };
            }
            Phase::Sending { again, .. } => *again = None,
            Phase::Sent { .. } => {}
        }
        self.forget_old(now);
    }

    /// The upload has ended well. A change that came meanwhile is still to be sent.
    pub(crate) fn sent(&mut self, ino: u64, now: Duration) {
        let Some(entry) = self.entries.get_mut(&ino) else {
            return;
        };
        let had_failed = matches!(entry.phase, Phase::Sending { failures: 1.., .. });
        match entry.phase {
            Phase::Sending {
                again: Some(due), ..
            } => {
                entry.phase = Phase::Waiting { due, failures: 0 };
                self.due.insert((due, ino));
            }
            Phase::Sending { again: None, .. } => entry.phase = Phase::Sent { at: now },
            Phase::Waiting { .. } | Phase::Sent { .. } => {}
        }
        if had_failed {
            // The store is back, or has changed its mind.
            self.retry_all(now);
        }
        self.forget_old(now);
    }

    /// The upload failed: it begins again after a pause.
    pub(crate) fn failed(&mut self, ino: u64, failure: Failure, now: Duration) {
        let Some(entry) = self.entries.get_mut(&ino) else {
            return;
        };
        let Phase::Sending { failures, again } = entry.phase else {
            return;
        };
        let due = match (failure, again) {
            (Failure::Away, _) => {
                let pause = RETRY_FIRST.saturating_mul(1 << failures.min(10));
                now + pause.min(RETRY_LAST)
            }
            // It has changed since: the answer may be another.
            (Failure::Refused, Some(again)) => again,
            (Failure::Refused, None) => now + REFUSED_PAUSE,
        };
        entry.phase = Phase::Waiting {
            due,
            failures: failures + 1,
        };
        self.due.insert((due, ino));
    }

    /// All that waits for a store that was away or said no is due now.
    fn retry_all(&mut self, now: Duration) {
        for (ino, entry) in &mut self.entries {
            if let Phase::Waiting { due, failures } = &mut entry.phase
                && *failures > 0
            {
                self.due.remove(&(*due, *ino));
                *due = now;
                self.due.insert((now, *ino));
            }
        }
    }

    /// What nobody changes any more need not be remembered: never more than twice as many entries as are of
    /// use.
    fn forget_old(&mut self, now: Duration) {
        const FEW: usize = 64;
        if self.entries.len() > FEW && self.entries.len() > 2 * self.due.len() {
            let max_age = self.max_age;
            self.entries.retain(|_, entry| match entry.phase {
                Phase::Sent { at } => now.saturating_sub(at) < max_age,
                Phase::Waiting { .. } | Phase::Sending { .. } => true,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DELAY: Duration = Duration::from_millis(100);
    const MAX_AGE: Duration = Duration::from_secs(30);

    fn queue() -> UploadQueue {
        UploadQueue::new(DELAY, MAX_AGE)
    }

    #[test]
    fn a_closed_file_goes_after_the_delay_and_an_open_one_when_it_is_old() {
        let mut queue = queue();
        queue.changed(1, Duration::ZERO);
        queue.changed(2, Duration::ZERO);
        queue.changed(2, DELAY * 5);
        queue.closed(1, DELAY * 2);
        assert_eq!(queue.next_due(), Some(DELAY * 3));
        assert_eq!(queue.take(DELAY * 2), None);
        assert_eq!(queue.take(DELAY * 3), Some(1));
        assert_eq!(queue.next_due(), Some(MAX_AGE), "its first change counts");
    }

    #[test]
    fn a_file_that_is_closed_again_and_again_goes_ever_more_rarely() {
        let mut queue = queue();
        let mut now = Duration::ZERO;
        let mut uploads = 0;
        // A line a second, for ten minutes.
        for _ in 0..600 {
            queue.changed(1, now);
            queue.closed(1, now);
            now += Duration::from_secs(1);
            while let Some(ino) = queue.take(now) {
                queue.sent(ino, now);
                uploads += 1;
            }
        }
        assert!(uploads < 40, "{uploads} uploads");
    }

    #[test]
    fn a_store_that_is_away_is_asked_after_pauses_that_grow_and_end() {
        let mut queue = queue();
        queue.urgent(1, Duration::ZERO);
        let mut now = Duration::ZERO;
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(queue.take(now), Some(1));
            queue.failed(1, Failure::Away, now);
            queue.changed(1, now);
            let due = queue.next_due().unwrap();
            assert_eq!(due - now, Duration::from_secs(expected));
            now = due;
        }
        assert_eq!(queue.take(now), Some(1));
        queue.failed(1, Failure::Refused, now);
        assert_eq!(queue.next_due(), Some(now + REFUSED_PAUSE));
    }

    #[test]
    fn when_one_upload_goes_well_again_all_that_failed_are_tried_at_once() {
        let mut queue = queue();
        for ino in [1, 2] {
            queue.urgent(ino, Duration::ZERO);
            assert_eq!(queue.take(Duration::ZERO), Some(ino));
            queue.failed(ino, Failure::Refused, Duration::ZERO);
        }
        assert_eq!(queue.take(REFUSED_PAUSE), Some(1));
        queue.failed(2, Failure::Away, REFUSED_PAUSE);
        queue.sent(1, REFUSED_PAUSE);
        assert_eq!(queue.take(REFUSED_PAUSE), Some(2));
    }

    #[test]
    fn files_that_are_long_done_are_forgotten() {
        let mut queue = queue();
        for ino in 0..10_000 {
            let now = MAX_AGE * u32::try_from(ino).unwrap();
            queue.urgent(ino, now);
            assert_eq!(queue.take(now), Some(ino));
            queue.sent(ino, now);
        }
        assert!(queue.entries.len() < 200);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Changed(u64),
        Closed(u64),
        Wait(u64),
        Take,
        Sent,
        Failed,
    }

    proptest! {
        /// Whatever happens: a change is never forgotten, and nothing is on its way twice.
        #[test]
        fn every_change_sets_out(events in proptest::collection::vec(prop_oneof![
            (0..4_u64).prop_map(Event::Changed),
            (0..4_u64).prop_map(Event::Closed),
            (0..40_000_u64).prop_map(Event::Wait),
            Just(Event::Take),
            Just(Event::Sent),
            Just(Event::Failed),
        ], 0..80)) {
            let mut queue = queue();
            let mut now = Duration::ZERO;
            // For each inode: changes not yet picked up; and those on their way.
            let (mut dirty, mut sending) = ([false; 4], Vec::new());
            for event in events {
                match event {
                    Event::Changed(ino) => {
                        queue.changed(ino, now);
                        dirty[usize::try_from(ino).unwrap()] = true;
                    }
                    Event::Closed(ino) => {
                        queue.closed(ino, now);
                        dirty[usize::try_from(ino).unwrap()] = true;
                    }
                    Event::Wait(millis) => now += Duration::from_millis(millis),
                    Event::Take => {
                        if let Some(ino) = queue.take(now) {
                            prop_assert!(!sending.contains(&ino));
                            sending.push(ino);
                            dirty[usize::try_from(ino).unwrap()] = false;
                        }
                    }
                    Event::Sent => {
                        if let Some(ino) = sending.pop() {
                            queue.sent(ino, now);
                        }
                    }
                    Event::Failed => {
                        if let Some(ino) = sending.pop() {
                            queue.failed(ino, Failure::Away, now);
                            dirty[usize::try_from(ino).unwrap()] = true;
                        }
                    }
                }
            }
            for ino in sending {
                queue.sent(ino, now);
            }
            now += MAX_AGE * 4;
            let mut taken = [false; 4];
            while let Some(ino) = queue.take(now) {
                taken[usize::try_from(ino).unwrap()] = true;
                queue.sent(ino, now);
            }
            for (dirty, taken) in dirty.iter().zip(taken) {
                prop_assert!(!dirty || taken);
            }
        }
    }
}
