//! What a later process has to know of a connection of the kernel, kept in shared memory: what was agreed, how often
//! the kernel was told of each inode, and which requests were begun again after a crash.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::gate::Gate;
use super::handshake::{Agreement, Unanswered};
use super::mount::Attachment;
use super::mountinfo::Device;
use crate::fs::format::{Format, Formats};
use crate::fs::kept::table::{Table, unreadable};

/// Kinds of rows: what was agreed, how often the kernel was told of an inode, a request that was begun again (or waits,
/// where the kernel could not send it again), the highest number of a request, that the process has handed over.
const TERMS: u8 = 1;
const LOOKUPS: u8 = 2;
const REQUEST: u8 = 3;
const LAST: u8 = 4;
const EPOCH: u8 = 5;
const HANDED_OVER: u8 = 6;

/// A request that was in hand at a crash is to blame for it by so much, and by less if somebody else has killed the
/// process: the kernel may have, which ran out of memory. At the limit it is not begun again.
const BLAME_OF_CRASH: u8 = 4;
const BLAME_OF_KILL: u8 = 1;
const BLAME_MAX: u8 = 8;

/// Request numbers that pass before the highest is written down again.
const LAST_STEP: u64 = 1 << 11;

/// One connection's rows.
#[derive(Debug)]
pub struct Connection {
    table: Table,
    epoch: u64,
    /// What requests that were in hand at the last crash are to blame for.
    blamed: Mutex<HashMap<u64, u8>>,
    /// What each that was in hand then is to blame for at least.
    least_blame: u8,
    last_request: AtomicU64,
    /// The kernel can send again what is left unanswered.
    resends: AtomicBool,
    pub(super) gate: Gate,
}

/// What an earlier process has left of a connection.
#[derive(Debug)]
pub struct LeftConnection {
    /// What was agreed.
    pub terms: Terms,
    /// What it may have read and not answered, if the kernel cannot send that again.
    pub unanswered: Unanswered,
    /// How often the kernel was told of each inode.
    pub(super) lookups: Vec<(u64, u64)>,
}

/// What holds of a connection for as long as it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    mountpoint: Vec<u8>,
    major: u32,
    minor: u32,
    by_helper: bool,
    agreement: Agreement,
}

impl Terms {
    /// What the kernel and we have agreed on.
    pub fn agreement(&self) -> &Agreement {
        &self.agreement
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> PathBuf {
        OsString::from_vec(self.mountpoint.clone()).into()
    }

    /// The connection's place.
    pub fn attachment(&self) -> Result<Attachment, super::AttachError> {
        let device = Device {
            major: self.major,
            minor: self.minor,
        };
        Attachment::adopt(&self.mountpoint(), device, self.by_helper)
    }
}

impl Connection {
    /// A connection that nothing was said on.
    pub fn new(format: Format) -> io::Result<Self> {
        let table = Table::new(format)?;
        let epoch = Uuid::new_v4().as_u64_pair().0;
        table.put_number(EPOCH, 0, epoch)?;
        Ok(Self::of(table, epoch))
    }

    fn of(table: Table, epoch: u64) -> Self {
        Self {
            table,
            epoch,
            blamed: Mutex::default(),
            least_blame: 0,
            last_request: AtomicU64::new(0),
            resends: AtomicBool::new(false),
            gate: Gate::default(),
        }
    }

    /// Goes on with the rows of an earlier process; `was_killed` if somebody else has ended it.
    pub fn reopen(
        memory: OwnedFd,
        formats: Formats,
        was_killed: bool,
    ) -> io::Result<(Self, LeftConnection)> {
        let (table, rows) = Table::reopen(memory, formats)?;
        let (mut terms, mut epoch, mut last) = (None, None, 0);
        let (mut lookups, mut begun_again) = (Vec::new(), HashMap::new());
        let mut was_handed_over = false;
        let blame = match was_killed {
            true => BLAME_OF_KILL,
            false => BLAME_OF_CRASH,
        };
        for row in rows.iter() {
            match row.kind {
                TERMS => terms = Some(row.read()?),
                LOOKUPS => lookups.push((row.id, row.number()?)),
                REQUEST => {
                    let before = row.bytes.first().copied().unwrap_or(0);
                    begun_again.insert(row.id, before.saturating_add(blame));
                }
                LAST => last = row.number()?,
                EPOCH => epoch = Some(row.number()?),
                HANDED_OVER => was_handed_over = true,
                _ => return Err(unreadable()),
            }
        }
        let mut connection = Self::of(table, epoch.ok_or_else(unreadable)?);
        connection.least_blame = if was_handed_over { 0 } else { blame };
        let terms: Terms = terms.ok_or_else(unreadable)?;
        let mut unanswered = Unanswered {
            near: last,
            waiting: Vec::new(),
        };
        if terms.agreement.resends() {
            connection.resends.store(true, Ordering::Relaxed);
        } else {
            unanswered.waiting = begun_again.drain().map(|(request, _)| request).collect();
        }
        if was_handed_over {
            // What was in hand then is to blame for nothing.
            for (request, _) in begun_again.drain() {
                connection.note(connection.table.remove(REQUEST, request));
            }
            connection.note(connection.table.remove(HANDED_OVER, 0));
        }
        *connection.blamed.lock() = begun_again;
        connection.last_request.store(last, Ordering::Relaxed);
        let left = LeftConnection {
            terms,
            unanswered,
            lookups,
        };
        Ok((connection, left))
    }

    /// The connection is mounted, and this is what was agreed.
    pub fn establish(&self, attachment: &Attachment, agreement: &Agreement) -> io::Result<()> {
        let device = attachment.device();
        let terms = Terms {
            mountpoint: attachment.path().as_os_str().as_bytes().to_vec(),
            major: device.major,
            minor: device.minor,
            by_helper: attachment.is_by_helper(),
            agreement: agreement.clone(),
        };
        self.resends.store(agreement.resends(), Ordering::Relaxed);
        self.table.put_as(TERMS, 0, &terms)
    }

    /// From now on the rows are of this format.
    pub fn set_format(&self, format: Format) -> io::Result<()> {
        self.table.set_format(format)
    }

    /// This process is about to end by itself: what it has not answered is not what ends it.
    pub(super) fn hand_over(&self) {
        self.note(self.table.put(HANDED_OVER, 0, &[]));
    }

    /// Whether the kernel can send again what is left unanswered.
    pub(super) fn resends(&self) -> bool {
        self.resends.load(Ordering::Relaxed)
    }

    /// A number that no other connection has.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// A request has come.
    pub(super) fn note_request(&self, unique: u64) {
        let noted = self.last_request.load(Ordering::Relaxed);
        if unique >= noted + LAST_STEP
            && self
                .last_request
                .compare_exchange(noted, unique, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            self.note(self.table.put_number(LAST, 0, unique));
        }
    }

    /// A request that was in hand when the process before ended is begun again. `false`: it was so often in hand at a
    /// crash that it is not to bring this process down.
    pub(super) fn begin_again(&self, unique: u64) -> bool {
        let blame = self.blamed.lock().remove(&unique);
        let blame = blame.unwrap_or(self.least_blame);
        if blame >= BLAME_MAX {
            self.answered(unique);
            return false;
        }
        self.note(self.table.put(REQUEST, unique, &[blame]));
        true
    }

    /// A request waits for something, and others will come before it is answered: `true` if that has to be noted. A
    /// kernel that cannot send it again has nothing to find it by but its number.
    pub(super) fn begin_to_wait(&self, unique: u64) -> bool {
        let is_noted = !self.resends();
        if is_noted {
            self.note(self.table.put(REQUEST, unique, &[0]));
        }
        is_noted
    }

    /// What was left unanswered has failed.
    pub fn interrupted(&self, unanswered: &Unanswered) {
        for request in &unanswered.waiting {
            self.answered(*request);
        }
    }

    /// A request that was begun again, or noted because it waits, is answered.
    pub(super) fn answered(&self, unique: u64) {
        self.note(self.table.remove(REQUEST, unique));
    }

    /// The kernel was told of an inode so many times; 0: it has forgotten it.
    pub(super) fn keep_lookups(&self, ino: u64, times: u64) {
        self.note(match times {
            0 => self.table.remove(LOOKUPS, ino),
            times => self.table.put_number(LOOKUPS, ino, times),
        });
    }

    fn note(&self, written: io::Result<()>) {
        if let Err(error) = written {
            tracing::error!(%error, "no memory for what a restart needs of a connection");
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.table.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crashed(connection: &Connection) -> Connection {
        let memory = connection.as_fd().try_clone_to_owned().unwrap();
        Connection::reopen(memory, Formats::default(), false)
            .unwrap()
            .0
    }

    fn connection_of(agreement: Agreement) -> Connection {
        let connection = Connection::new(Format::CURRENT).unwrap();
        let terms = Terms {
            mountpoint: b"/m".to_vec(),
            major: 0,
            minor: 7,
            by_helper: false,
            agreement,
        };
        connection.table.put_as(TERMS, 0, &terms).unwrap();
        connection
    }

    fn connection() -> Connection {
        connection_of(Agreement::that_resends())
    }

    #[test]
    fn a_request_in_hand_at_two_crashes_in_a_row_is_not_begun_a_third_time() {
        let second = crashed(&connection());
        assert!(second.begin_again(8) && second.begin_again(10));
        second.answered(10);
        let third = crashed(&second);
        assert!(!third.begin_again(8));
        assert!(third.begin_again(10));
        let fourth = crashed(&third);
        assert!(fourth.begin_again(8), "it was answered");
        assert!(!fourth.begin_again(10));
    }

    #[test]
    fn who_kills_the_process_is_rather_to_blame() {
        let killed = |connection: &Connection| {
            let memory = connection.as_fd().try_clone_to_owned().unwrap();
            Connection::reopen(memory, Formats::default(), true)
                .unwrap()
                .0
        };
        let mut process = killed(&connection());
        for _ in 1..BLAME_MAX {
            assert!(process.begin_again(8));
            process = killed(&process);
        }
        assert!(!process.begin_again(8));
    }

    #[test]
    fn a_process_that_hands_over_was_not_brought_down_by_its_requests() {
        let mut process = crashed(&connection());
        for _ in 0..5 {
            assert!(process.begin_again(8));
            process.hand_over();
            process = crashed(&process);
        }
        process = crashed(&process);
        assert!(process.begin_again(8));
    }

    #[test]
    fn where_the_kernel_sends_nothing_again_the_next_process_knows_what_waits() {
        let first = connection_of(Agreement::default());
        assert!(first.begin_to_wait(8) && first.begin_to_wait(10));
        first.answered(8);
        first.hand_over();
        let again = |connection: &Connection| {
            let memory = connection.as_fd().try_clone_to_owned().unwrap();
            Connection::reopen(memory, Formats::default(), false).unwrap()
        };
        // Until it is interrupted, the process after the next one has to know it too.
        for _ in 0..2 {
            assert_eq!(again(&first).1.unanswered.waiting, [10]);
        }
        let (second, left) = again(&first);
        second.interrupted(&left.unanswered);
        assert!(again(&second).1.unanswered.waiting.is_empty());
    }

    #[test]
    fn the_kernels_counts_and_the_epoch_go_on() {
        let first = connection();
        first.keep_lookups(5, 2);
        first.keep_lookups(6, 1);
        first.keep_lookups(6, 0);
        first.note_request(LAST_STEP * 3);
        let memory = first.as_fd().try_clone_to_owned().unwrap();
        let (second, left) = Connection::reopen(memory, Formats::default(), false).unwrap();
        assert_eq!(left.lookups, [(5, 2)]);
        assert_eq!(second.epoch(), first.epoch());
        assert_eq!(left.unanswered.near, LAST_STEP * 3);
        assert_eq!(left.terms.mountpoint(), PathBuf::from("/m"));
    }
}
