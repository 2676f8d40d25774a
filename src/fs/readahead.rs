//! Which bytes to fetch before they are asked for. Pure: it sees the reads of one handle and answers with ranges.
//!
//! A handle is followed in several streams: what is read at two places in turn is not taken for random access. A stream
//! whose second read goes on where its first one ended gets a window of bytes to be kept ahead of the reader. The window
//! doubles each time the reader has to wait for what is in it, and never exceeds what was read in order: whoever leaves
//! the stream has had half of what was fetched at the least.
//!
//! Random access fetches what was asked for and nothing else.

use std::ops::Range;

use super::block::BLOCK_SIZE;

#[cfg(test)]
mod tests;

/// Streams of one handle that are followed at once. The one that was read longest ago is given up for a new one.
const STREAMS: usize = 4;

/// A stream is given up when so many reads of its handle went by without one of its own.
const IDLE_READS: u64 = 32;

/// An object of so many bytes is fetched whole when it is read from its start: on a line of 90 MB/s the bytes take
/// no longer than an answer from a store that is 15 ms away.
const WHOLE_MAX: u64 = 1 << 20;

/// The first window.
const WINDOW_MIN: u64 = 1 << 20;

/// The window of whoever never waits grows to this: its third part is as much as one request brings.
const WINDOW_STEADY: u64 = 12 << 20;

/// The largest window. With the store 100 ms away it keeps 600 MB/s on their way.
const WINDOW_MAX: u64 = 64 << 20;

/// A window is filled up when this part of it is missing, and no fewer bytes: requests are few and large.
const STEPS: u64 = 3;
const STEP_MIN: u64 = WINDOW_MIN / 2;

/// A read may begin this far behind the end of the last one of its stream, or end this far before it: the kernel's
/// own readahead threads overtake each other.
const SLACK: u64 = 4 * BLOCK_SIZE;

/// Where the bytes of a read were when it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// All of them in memory.
    Here,
    /// Some of them on their way, all others in memory.
    OnTheirWay,
    /// Some of them nowhere.
    Missing,
}

/// What a read is taken as a reason for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ahead {
    /// To be fetched.
    pub(crate) fetch: Option<Range<u64>>,
    /// Was to be fetched, and is not expected to be read any more.
    pub(crate) given_up: Vec<Range<u64>>,
}

/// What one handle has read so far.
#[derive(Debug, Default)]
pub(crate) struct Readahead {
    /// The one that was read last is the last.
    streams: Vec<Stream>,
    reads: u64,
}

/// Reads that go on where the one before ended.
#[derive(Debug)]
struct Stream {
    /// Where the last read ended.
    next: u64,
    /// Bytes read in order.
    run: u64,
    /// Bytes to keep ahead of the reader; 0: nothing shows yet that it is a stream.
    window: u64,
    /// Where what was asked for ahead of time ends.
    fetched_to: u64,
    /// The number of its last read.
    last_read: u64,
}

impl Readahead {
    /// Takes note of a read of an object of `size` bytes. At most `limit` bytes are to be fetched now (memory).
    pub(crate) fn observe(
        &mut self,
        read: &Range<u64>,
        size: u64,
        found: Found,
        limit: u64,
    ) -> Ahead {
        self.reads += 1;
        let mut ahead = Ahead::default();
        let of_stream = self.streams.iter().rposition(|s| s.is_continued_by(read));
        let mut stream = match of_stream {
            Some(at) => self.streams.remove(at),
            None => Stream::begin(read, size),
        };
        if of_stream.is_some() {
            stream.go_on(read, found);
        }
        stream.last_read = self.reads;
        ahead.fetch = stream.fetch(size, limit);
        let idle_since = self.reads.saturating_sub(IDLE_READS);
        let most = STREAMS - 1;
        let too_many = self.streams.len().saturating_sub(most);
        let idle = self.streams.iter().take_while(|s| s.last_read < idle_since);
        let gone = idle.count().max(too_many);
        let gone = self.streams.drain(..gone);
        ahead.given_up.extend(gone.filter_map(|s| s.unread()));
        self.streams.push(stream);
        ahead
    }

    /// Nobody reads any more: what was to be fetched, and is not expected to be read.
    pub(crate) fn give_up(&mut self) -> Vec<Range<u64>> {
        self.streams.drain(..).filter_map(|s| s.unread()).collect()
    }
}

impl Stream {
    fn begin(read: &Range<u64>, size: u64) -> Self {
        let is_small = read.start == 0 && size <= WHOLE_MAX;
        Self {
            next: read.end,
            run: read.end - read.start,
            window: if is_small { size } else { 0 },
            fetched_to: read.end,
            last_read: 0,
        }
    }

    fn is_continued_by(&self, read: &Range<u64>) -> bool {
        // Of one read nobody knows yet whether its neighbours follow: only what touches it tells.
        let slack = match self.window {
            0 => read.end - read.start,
            _ => SLACK,
        };
        read.start <= self.next.max(self.fetched_to) + slack && read.end + slack >= self.next
    }

    fn go_on(&mut self, read: &Range<u64>, found: Found) {
        let fresh = read.end.saturating_sub(self.next);
        if fresh == 0 {
            return;
        }
        self.next = read.end;
        self.run += fresh.min(read.end - read.start);
        let was_to_be_there = self.window > 0 && read.end <= self.fetched_to;
        self.window = match found {
            _ if self.window == 0 => WINDOW_MIN,
            Found::OnTheirWay if was_to_be_there => self.window * 2,
            // It was there and had to make room before it was read: less was needed, and is there.
            Found::Missing if was_to_be_there => self.window / 2,
            Found::Here => self.window.max((self.run / 2).min(WINDOW_STEADY)),
            _ => self.window,
        };
        let most = self.run.clamp(WINDOW_MIN, WINDOW_MAX);
        self.window = self.window.clamp(WINDOW_MIN, most);
    }

    /// What is to be fetched now.
    fn fetch(&mut self, size: u64, limit: u64) -> Option<Range<u64>> {
        if self.window == 0 {
            return None;
        }
        let start = self.next.max(self.fetched_to);
        let end = (self.next + self.window)
            .next_multiple_of(BLOCK_SIZE)
            .min(size);
        let missing = end.saturating_sub(start);
        let is_the_rest = end == size;
        if missing == 0 || (missing < (self.window / STEPS).max(STEP_MIN) && !is_the_rest) {
            return None;
        }
        let end = end.min(start.saturating_add(limit) / BLOCK_SIZE * BLOCK_SIZE);
        if end <= start {
            return None;
        }
        self.fetched_to = end;
        Some(start..end)
    }

    fn unread(self) -> Option<Range<u64>> {
        (self.next < self.fetched_to).then_some(self.next..self.fetched_to)
    }
}
