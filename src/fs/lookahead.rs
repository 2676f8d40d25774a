//! Names whose attributes are asked for before anybody looks them up.
//!
//! Who opens the files of a directory one after the other would wait for a HEAD of each. The names that come next
//! are asked about while he reads. What that may waste is bounded: of `n` lookups that had to ask and `h` that
//! found their answer here, at most `n + 2h` names are asked ahead; and it stays with names that were looked up
//! at all, in bursts, one directory at a time. Where most files that are looked up are read from their
//! beginning too, the bytes of small ones are fetched with their attributes.
//!
//! No I/O.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::Shared;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::ops::dir::DirStream;

/// Directories in which lookups are watched; the least recently used is forgotten.
const DIRECTORIES_MAX: u64 = 256;

/// Names that are asked ahead of one reader: as many GETs of small files fill a line 100 ms long, and their blocks are
/// 4 MiB.
const AHEAD_MAX: u32 = 32;

/// Pages of a directory's listing that lookups bring about. Whoever looks up names in a larger directory may never
/// come to the end of it.
const PAGES_MAX: u32 = 10;

/// Lookups that are further apart have nothing to do with each other: who looks at one file now and then pays for
/// that one alone.
const BURST: Duration = Duration::from_secs(1);

/// Names are asked ahead when so many lookups of one burst had to ask.
const MISSES_BEFORE_ASKING: u32 = 2;

/// A directory is listed when so many lookups of one burst had to ask: a listing costs as much as a dozen HEADs.
const MISSES_BEFORE_LISTING: u32 = 4;

/// So many files have to be read before the bytes of others are fetched ahead.
const READS_BEFORE_BYTES: u32 = 2;

/// So many names have to be asked for in vain before a listing that nobody called for is believed about names that
/// are not there. Who puts objects there and looks for each does not wait for the ttl; who searches does not ask for each.
const VAIN_BEFORE_ABSENT: u32 = 4;

/// The directories of a volume in which names are looked up.
#[derive(Debug)]
pub(crate) struct Lookaheads(moka::sync::Cache<u64, Arc<Lookahead>>);

impl Default for Lookaheads {
    fn default() -> Self {
        let cache = moka::sync::Cache::builder().max_capacity(DIRECTORIES_MAX);
        Self(cache.time_to_idle(Duration::from_secs(60)).build())
    }
}

impl Lookaheads {
    /// What is asked ahead in a directory, if it is watched.
    pub(crate) fn get(&self, directory: u64) -> Option<Arc<Lookahead>> {
        self.0.get(&directory)
    }

    /// A lookup in this directory has to ask: it is watched from now on.
    pub(crate) fn watch(&self, directory: u64) -> Arc<Lookahead> {
        self.0.get_with(directory, Arc::default)
    }
}

/// What is asked ahead in one directory.
#[derive(Debug, Default)]
pub(crate) struct Lookahead {
    asked: Mutex<Asked>,
    /// The listing that lookups bring about, page by page.
    pub(crate) listing: tokio::sync::Mutex<Listing>,
}

/// A listing that goes a page further with each lookup that has to ask.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) stream: DirStream,
    pages: u32,
    /// When the one before came to its end, and whether it told what is not there.
    last: Option<(Duration, bool)>,
}

impl Listing {
    /// Whether another page is to be asked for; of a new listing, which is to tell what is not there or need not.
    pub(crate) fn begin_page(&mut self, tells_absent: bool, now: Duration, ttl: Duration) -> bool {
        if self.pages == 0 {
            let is_as_good = |(ended, told_absent): (Duration, bool)| {
                now.saturating_sub(ended) < ttl && (told_absent || !tells_absent)
            };
            if self.last.is_some_and(is_as_good) {
                return false;
            }
            self.stream.is_uncalled = !tells_absent;
        }
        if self.pages >= PAGES_MAX {
            // What was listed so far is known; the stream itself is not needed any more.
            self.stream = DirStream::default();
            return false;
        }
        self.pages += 1;
        true
    }

    /// The page is there, or could not be had. The next one is the first again where there is nothing more.
    pub(crate) fn end_page(&mut self, is_there: bool, now: Duration) {
        let is_at_end = is_there && self.stream.is_at_end();
        if !is_there || is_at_end {
            let told = (now, !self.stream.is_uncalled);
            *self = Self {
                last: is_at_end.then_some(told),
                ..Self::default()
            };
        }
    }
}

/// Resolves when a question has been answered, or given up.
pub(crate) type Answered = Shared<oneshot::Receiver<()>>;

/// To be dropped when the question has been answered.
pub(crate) type Asking = oneshot::Sender<()>;

#[derive(Debug, Default)]
struct Asked {
    /// When a lookup had to ask last.
    missed: Option<Duration>,
    /// Lookups of this burst that had to ask.
    misses: u32,
    /// Those of them that found nothing.
    vain: u32,
    /// Lookups that found their answer here.
    hits: u32,
    /// Files that were read from their beginning.
    reads: u32,
    /// Names that may be asked for.
    credit: u32,
    /// What was asked for that nobody has looked up yet, and when.
    ahead: BTreeMap<Arc<str>, (Duration, Answered)>,
}

/// What a lookup finds of a name that may have been asked ahead.
#[derive(Debug)]
pub(crate) struct Ahead {
    /// How long ago it was asked for.
    pub(crate) age: Duration,
    pub(crate) answered: Answered,
}

impl Lookahead {
    /// A name is looked up: what was asked ahead of it, which counts for one lookup.
    pub(crate) fn take(&self, name: &str, now: Duration) -> Option<Ahead> {
        let (since, answered) = self.asked.lock().ahead.remove(name)?;
        let age = now.saturating_sub(since);
        Some(Ahead { age, answered })
    }

    /// A lookup had to ask itself. Returns whether the directory is worth a listing.
    pub(crate) fn missed(&self, now: Duration) -> bool {
        let mut asked = self.asked.lock();
        let is_far = |before: Duration| now.saturating_sub(before) > BURST;
        if asked.missed.is_none_or(is_far) {
            *asked = Asked {
                ahead: std::mem::take(&mut asked.ahead),
                ..Asked::default()
            };
        }
        asked.missed = Some(now);
        asked.misses = asked.misses.saturating_add(1);
        if asked.misses >= MISSES_BEFORE_ASKING {
            asked.earn(1);
        }
        asked.misses >= MISSES_BEFORE_LISTING
    }

    /// A lookup has asked for what is not there.
    pub(crate) fn missed_in_vain(&self) {
        let mut asked = self.asked.lock();
        asked.vain = asked.vain.saturating_add(1);
    }

    /// Whether a listing is to be believed about what is not there.
    pub(crate) fn is_searched(&self) -> bool {
        self.asked.lock().vain >= VAIN_BEFORE_ABSENT
    }

    /// A lookup has found its answer here, which was asked for `age` ago and is believed for `ttl`. One that had to wait
    /// for a good part of that is far enough ahead.
    pub(crate) fn hit(&self, age: Duration, ttl: Duration) {
        let mut asked = self.asked.lock();
        asked.hits = asked.hits.saturating_add(1);
        asked.earn(if age < ttl / 4 { 2 } else { 1 });
    }

    /// A file of the directory is read from its beginning.
    pub(crate) fn read(&self) {
        let mut asked = self.asked.lock();
        asked.reads = asked.reads.saturating_add(1);
    }

    /// Whether most files that are looked up are read.
    pub(crate) fn is_read(&self) -> bool {
        let asked = self.asked.lock();
        let found = asked
            .misses
            .saturating_sub(asked.vain)
            .saturating_add(asked.hits);
        asked.reads >= READS_BEFORE_BYTES && asked.reads >= found / 2
    }

    /// Those of `names` that are to be asked for now: whoever asks drops what comes with each when he has the answer.
    /// What was asked for and not looked up while it was believed is forgotten.
    pub(crate) fn ask(
        &self,
        names: impl IntoIterator<Item = Arc<str>>,
        now: Duration,
        ttl: Duration,
    ) -> Vec<(Arc<str>, Asking)> {
        let mut asked = self.asked.lock();
        asked
            .ahead
            .retain(|_, (since, _)| now.saturating_sub(*since) < ttl);
        let mut to_ask = Vec::new();
        for name in names {
            let in_hand = u32::try_from(asked.ahead.len()).unwrap_or(u32::MAX);
            if asked.credit == 0 || in_hand >= AHEAD_MAX {
                break;
            }
            if asked.ahead.contains_key(&name) {
                continue;
            }
            asked.credit -= 1;
            let (asking, answered) = oneshot::channel();
            let entry = (now, answered.shared());
            asked.ahead.insert(Arc::clone(&name), entry);
            to_ask.push((name, asking));
        }
        to_ask
    }

    /// How many names it can come to that are to be asked for, or are in hand.
    pub(crate) fn reach(&self) -> usize {
        let asked = self.asked.lock();
        asked.ahead.len() + asked.credit.min(AHEAD_MAX) as usize
    }
}

impl Asked {
    fn earn(&mut self, credit: u32) {
        self.credit = self.credit.saturating_add(credit).min(AHEAD_MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    const TTL: Duration = Duration::from_secs(1);

    /// A directory of 1000 names, and what lookups in it have cost.
    #[derive(Default)]
    struct Reader {
        lookahead: Lookahead,
        now: Duration,
        misses: usize,
        hits: usize,
        asked: usize,
    }

    impl Reader {
        fn name(number: usize) -> Arc<str> {
            Arc::from(format!("{number:04}"))
        }

        /// Looks a name up that nobody has, `after` the lookup before.
        fn look(&mut self, number: usize, after: Duration) {
            self.now += after;
            let name = Self::name(number);
            match self.lookahead.take(&name, self.now) {
                Some(ahead) if ahead.age < TTL => {
                    self.lookahead.hit(ahead.age, TTL);
                    self.hits += 1;
                }
                _ => {
                    self.lookahead.missed(self.now);
                    self.misses += 1;
                }
            }
            let reach = self.lookahead.reach();
            let names = (number + 1..1000).take(reach).map(Self::name);
            self.asked += self.lookahead.ask(names, self.now, TTL).len();
        }
    }

    #[test]
    fn who_goes_through_a_directory_waits_for_few_answers() {
        for (millis, misses_max) in [(1, 3), (15, 3), (100, 40), (400, 100), (900, 600)] {
            let mut reader = Reader::default();
            for number in 0..1000 {
                reader.look(number, Duration::from_millis(millis));
            }
            let found = (reader.misses, reader.asked);
            assert!(reader.misses <= misses_max, "{millis} ms: {found:?}");
            assert!(reader.asked <= 1100, "{millis} ms: {found:?}");
        }
    }

    #[test]
    fn who_looks_at_a_file_now_and_then_has_nothing_asked_ahead() {
        let mut reader = Reader::default();
        for number in 0..100 {
            reader.look(number * 7 % 1000, BURST * 2);
        }
        assert_eq!((reader.misses, reader.asked), (100, 0));
    }

    #[test]
    fn what_was_asked_ahead_is_one_lookups_alone() {
        let lookahead = Lookahead::default();
        lookahead.missed(Duration::ZERO);
        lookahead.missed(Duration::ZERO);
        let asked = lookahead.ask([Reader::name(1), Reader::name(2)], Duration::ZERO, TTL);
        assert_eq!(asked.len(), 1, "one for the second that had to ask");
        let ahead = lookahead.take("0001", Duration::ZERO).unwrap();
        assert!(ahead.answered.clone().now_or_never().is_none());
        drop(asked);
        assert!(ahead.answered.now_or_never().is_some());
        assert!(lookahead.take("0001", Duration::ZERO).is_none());
    }

    #[test]
    fn bytes_are_fetched_ahead_where_files_are_read_and_not_where_they_are_looked_at() {
        let lookahead = Lookahead::default();
        for _ in 0..2 {
            lookahead.missed(Duration::ZERO);
            assert!(!lookahead.is_read());
            lookahead.read();
        }
        assert!(lookahead.is_read());
        for _ in 0..4 {
            lookahead.hit(Duration::ZERO, TTL);
        }
        assert!(!lookahead.is_read(), "2 of 6");
        lookahead.missed(Duration::ZERO);
        lookahead.missed_in_vain();
        lookahead.read();
        assert!(lookahead.is_read(), "3 of 6 that are there");
    }

    proptest! {
        #[test]
        fn whatever_is_looked_up_the_waste_is_bounded(
            looks in proptest::collection::vec((0_usize..1000, 0_u64..2000), 1..300)
        ) {
            let mut reader = Reader::default();
            let most = Cell::new(0);
            for (number, after) in looks {
                reader.look(number, Duration::from_millis(after));
                let in_hand = reader.lookahead.asked.lock().ahead.len();
                most.set(most.get().max(in_hand));
                prop_assert!(reader.asked <= reader.misses + 2 * reader.hits);
            }
            prop_assert!(most.get() <= AHEAD_MAX as usize);
        }
    }
}
