//! What the files of a volume come to: their bytes, and how many they are, as this host sees them.
//!
//! A count goes through the store's listing page by page, while files are changed here and changes reach the bucket.
//! It finds out what the files came to when it began; what was changed since is added as it is changed. So what is
//! changed before its page has come is counted as it was then and there, and the listing is not asked about it any more,
//! nor about the keys at which it may turn up: it may have the object of before or of after.
//!
//! Directories count nothing. No I/O. The lock around it is the last in the order.

use std::collections::HashSet;
use std::time::Duration;

use super::tree::RESERVED;
use crate::store::Key;

/// How long a count is believed at least.
const RECOUNT_AFTER: Duration = Duration::from_secs(5 * 60);

/// And for how long each of its pages is: a volume that somebody watches all day costs no more than a request in this
/// time, however many objects it has.
const RECOUNT_AFTER_PER_PAGE: Duration = Duration::from_secs(30);

/// After this a count that failed, or that something came in the way of, may be tried again.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// A file that is about to change, as the ledger has to know it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counted<'a> {
    pub(crate) ino: u64,
    /// The key of its object, if it has one.
    pub(crate) object: Option<&'a Key>,
    /// Its bytes; `None`: it is no file, or has no name.
    pub(crate) bytes: Option<u64>,
}

/// The change would make the files larger together than they may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OverQuota {
    /// Bytes that all files may have together.
    pub(crate) limit: u64,
}

/// What the files come to.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    limit: Option<u64>,
    /// What the last count has found out, and all changes since it began; without one, the changes since the start.
    sum: Sum,
    /// A count has ended.
    is_counted: bool,
    /// The one that is under way.
    count: Option<Count>,
    ended: Duration,
    /// No count begins before.
    next: Duration,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    // Other hosts' changes are seen late: what is given back may never have been counted.
    bytes: i128,
    files: i128,
}

impl Sum {
    fn of(bytes: Option<u64>) -> Self {
        Self {
            bytes: bytes.unwrap_or_default().into(),
            files: bytes.is_some().into(),
        }
    }

    fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.files += other.files;
    }

    fn less(self, other: Self) -> Self {
        Self {
            bytes: self.bytes - other.bytes,
            files: self.files - other.files,
        }
    }
}

#[derive(Debug, Default)]
struct Count {
    sum: Sum,
    /// The last key of the pages that have come.
    listed: Option<Key>,
    /// Keys that are still to come and say nothing.
    ours: HashSet<Key>,
    /// Inodes that were counted, until all have been that are not as the bucket has them.
    began_with: Option<HashSet<u64>>,
    pages: u32,
    /// Objects were moved meanwhile that no key here tells of.
    is_disturbed: bool,
}

impl Ledger {
    /// A ledger of files that may have `limit` bytes together.
    pub(crate) fn new(limit: Option<u64>) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    /// Bytes of all files, and how many they are: as far as is known.
    pub(crate) fn used(&self) -> (u64, u64) {
        let sum = self.known();
        let shown = |count: i128| u64::try_from(count.max(0)).unwrap_or(u64::MAX);
        (shown(sum.bytes), shown(sum.files))
    }

    /// Whether that is more than what was found of it until now.
    pub(crate) fn is_counted(&self) -> bool {
        self.is_counted
    }

    fn known(&self) -> Sum {
        match &self.count {
            Some(count) if !self.is_counted => count.sum,
            _ => self.sum,
        }
    }

    /// Takes note of what a file is going to count, unless that is more than there may be.
    pub(crate) fn change(
        &mut self,
        file: Counted<'_>,
        bytes: Option<u64>,
    ) -> Result<(), OverQuota> {
        let more = Sum::of(bytes).less(Sum::of(file.bytes)).bytes;
        if let Some(limit) = self.limit
            && more > 0
            && self.known().bytes.max(0) + more > limit.into()
        {
            return Err(OverQuota { limit });
        }
        self.set(file, bytes);
        Ok(())
    }

    /// Takes note of what a file counts from now on, whatever that comes to.
    pub(crate) fn set(&mut self, file: Counted<'_>, bytes: Option<u64>) {
        self.keep(file);
        let change = Sum::of(bytes).less(Sum::of(file.bytes));
        self.sum.add(change);
        if let Some(count) = &mut self.count {
            count.sum.add(change);
        }
    }

    /// A file is going to be elsewhere, or is not as the bucket has it: a count takes it as it is here.
    pub(crate) fn keep(&mut self, file: Counted<'_>) {
        if let Some(count) = &mut self.count {
            count.keep(file);
        }
    }

    /// What a count finds at these keys says nothing: what is there was counted, or is as good as gone.
    pub(crate) fn pass_over(&mut self, keys: impl IntoIterator<Item = Key>) {
        let Some(count) = &mut self.count else { return };
        for key in keys {
            if count.is_ahead(&key) {
                count.ours.insert(key);
            }
        }
    }

    /// Objects are being moved that may be nobody's here: a count that is under way may find them twice, or not at all.
    pub(crate) fn disturb(&mut self) {
        if let Some(count) = &mut self.count {
            count.is_disturbed = true;
        }
    }

    /// What the files come to is not known any more.
    pub(crate) fn doubt(&mut self) {
        self.disturb();
        self.next = self.next.min(self.ended + RETRY_AFTER);
    }

    /// Whether a count is due.
    pub(crate) fn is_due(&self, now: Duration) -> bool {
        self.count.is_none() && now >= self.next
    }

    /// A count begins. What is not as the bucket has it is to be kept now, up to [`Ledger::began`]; nothing may get
    /// another name meanwhile.
    pub(crate) fn begin(&mut self) {
        self.count = Some(Count {
            began_with: Some(HashSet::new()),
            ..Count::default()
        });
    }

    /// See [`Ledger::begin`].
    pub(crate) fn began(&mut self) {
        if let Some(count) = &mut self.count {
            count.began_with = None;
        }
    }

    /// A page of the listing has come.
    pub(crate) fn page(&mut self, objects: impl IntoIterator<Item = (Key, u64)>) {
        let Some(count) = &mut self.count else { return };
        count.pages += 1;
        for (key, bytes) in objects {
            if is_file(&key) && !count.ours.remove(&key) {
                count.sum.add(Sum::of(Some(bytes)));
            }
            count.listed = Some(key);
        }
    }

    /// It was the last one.
    pub(crate) fn end(&mut self, now: Duration) {
        let Some(count) = self.count.take() else {
            return;
        };
        self.ended = now;
        self.next = now + RETRY_AFTER;
        if count.is_disturbed && self.is_counted {
            return;
        }
        if !count.is_disturbed {
            let by_pages = RECOUNT_AFTER_PER_PAGE.saturating_mul(count.pages);
            self.next = now.saturating_add(by_pages.max(RECOUNT_AFTER));
        }
        self.is_counted = true;
        self.sum = count.sum;
    }

    /// No page has come.
    pub(crate) fn fail(&mut self, now: Duration) {
        self.count = None;
        self.ended = now;
        self.next = now + RETRY_AFTER;
    }
}

impl Count {
    fn is_ahead(&self, key: &Key) -> bool {
        self.listed.as_ref().is_none_or(|listed| key > listed)
    }

    fn keep(&mut self, file: Counted<'_>) {
        // What is on its way, and has its object aside, is known.
        let is_ours_now = file
            .object
            .is_some_and(|key| is_file(key) && self.is_ahead(key) && self.ours.insert(key.clone()));
        let is_news = match &mut self.began_with {
            Some(began_with) => began_with.insert(file.ino),
            // What has no object was new when the count began, or was made since.
            None => is_ours_now,
        };
        if is_news {
            self.sum.add(Sum::of(file.bytes));
        }
    }
}

/// Whether the object of this key is a file's.
fn is_file(key: &Key) -> bool {
    let below_ours = key
        .as_str()
        .strip_prefix(RESERVED)
        .is_some_and(|rest| rest.starts_with('/'));
    !below_ours && !key.is_dir()
}

#[cfg(test)]
mod tests;
