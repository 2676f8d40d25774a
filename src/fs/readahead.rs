//! Which bytes to fetch before they are asked for. Pure: it sees the reads of one handle and answers with
//! a range.
//!
//! Random access fetches exactly what was asked for. A window opens when a read goes on where the last one
//! ended, and doubles each time the reader has used half of it, up to [`WINDOW_MAX`].

use std::ops::Range;

use super::block::BLOCK_SIZE;

/// The first window: eight blocks, one round trip's worth of a slow line.
const WINDOW_MIN: u64 = 8 * BLOCK_SIZE;

/// The largest window per handle. At 100 ms to the store it keeps 320 MB/s on the way.
const WINDOW_MAX: u64 = 32 * 1024 * 1024;

/// A read may begin this far behind or before the last one's end and still belong to its stream: the
/// kernel's own readahead threads overtake each other.
const SLACK: u64 = 4 * BLOCK_SIZE;

/// What one handle has read so far.
#[derive(Debug, Default)]
pub(crate) struct Readahead {
    /// Where the last read of the stream ended.
    expected: u64,
    /// Bytes to keep ahead of the reader; 0 while the access looks random.
    window: u64,
    /// Where what was asked for ahead of time ends.
    fetched_to: u64,
}

impl Readahead {
    /// Takes note of a read and says what to fetch beyond it. `limit` bounds the window (memory).
    pub(crate) fn observe(
        &mut self,
        read: &Range<u64>,
        size: u64,
        limit: u64,
    ) -> Option<Range<u64>> {
        let starts_at_zero = read.start == 0 && self.expected == 0;
        let continues = read.start <= self.expected + SLACK
            && read.end + SLACK >= self.expected
            && self.expected > 0;
        if !continues {
            let restart = Self {
                expected: read.end,
                ..Self::default()
            };
            *self = restart;
            // A file opened and read from its start is nearly always read on.
            if !starts_at_zero {
                return None;
            }
        }
        self.expected = self.expected.max(read.end);

        let limit = limit.min(WINDOW_MAX);
        let ahead = self.fetched_to.saturating_sub(self.expected);
        if self.window > 0 && ahead > self.window / 2 {
            return None;
        }
        self.window = (self.window * 2).max(WINDOW_MIN).min(limit);
        let start = self.fetched_to.max(self.expected);
        let end = (self.expected + self.window)
            .div_ceil(BLOCK_SIZE)
            .saturating_mul(BLOCK_SIZE);
        let end = end.min(size);
        if start >= end {
            return None;
        }
        self.fetched_to = end;
        Some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 30;
    const KIB: u64 = 1024;

    fn run(reads: impl IntoIterator<Item = (u64, u64)>) -> Vec<Range<u64>> {
        let mut readahead = Readahead::default();
        reads
            .into_iter()
            .filter_map(|(at, len)| readahead.observe(&(at..at + len), SIZE, u64::MAX))
            .collect()
    }

    #[test]
    fn a_sequential_reader_is_always_ahead_of_itself_and_nothing_is_asked_for_twice() {
        let step = 128 * KIB;
        let ranges = run((0..400).map(|i| (i * step, step)));
        for pair in ranges.windows(2) {
            assert_eq!(pair[0].end, pair[1].start);
        }
        let longest = ranges.iter().map(|r| r.end - r.start).max().unwrap();
        assert!(longest >= WINDOW_MAX / 2, "the window opened to {longest}");
    }

    #[test]
    fn random_reads_fetch_nothing_beyond_themselves() {
        let reads =
            [(500, 4), (90, 4), (700, 4), (10, 4), (300, 4)].map(|(m, k)| (m << 20, k * KIB));
        assert_eq!(run(reads), []);
    }

    #[test]
    fn reads_that_overtake_each_other_are_still_one_stream() {
        let step = 128 * KIB;
        let order = [0, 2, 1, 3, 5, 4, 6, 8, 7, 9];
        let ranges = run(order.map(|i| (i * step, step)));
        assert!(ranges.last().unwrap().end > 16 * step);
    }

    #[test]
    fn it_stops_at_the_end_and_at_the_limit() {
        let mut readahead = Readahead::default();
        assert_eq!(readahead.observe(&(0..4096), 4096, u64::MAX), None);
        let mut readahead = Readahead::default();
        let range = readahead
            .observe(&(0..BLOCK_SIZE), SIZE, BLOCK_SIZE)
            .unwrap();
        assert_eq!(range, BLOCK_SIZE..2 * BLOCK_SIZE);
    }

    #[test]
    fn a_seek_begins_anew_without_a_window() {
        let mut readahead = Readahead::default();
        readahead.observe(&(0..BLOCK_SIZE), SIZE, u64::MAX);
        let far = SIZE / 2;
        assert_eq!(readahead.observe(&(far..far + 4096), SIZE, u64::MAX), None);
        assert!(
            readahead
                .observe(&(far + 4096..far + 8192), SIZE, u64::MAX)
                .is_some()
        );
    }
}
