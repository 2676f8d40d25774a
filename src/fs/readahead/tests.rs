//! Readers, a store some way off, and what it takes them: all of it calculated.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::fs::block::{BlockSpan, block_bytes};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// Longest range that one request asks for, as in the cache.
const REQUEST_MAX: u64 = 4 * MIB;

/// A store: the time to an answer's first byte, and bytes per second of each connection and of all together.
#[derive(Clone, Copy)]
struct Line {
    round_trip: Duration,
    connection: f64,
    all: f64,
}

const NEAR: Line = Line {
    round_trip: Duration::from_millis(15),
    connection: 90e6,
    all: 1e9,
};
const FAR: Line = Line {
    round_trip: Duration::from_millis(100),
    ..NEAR
};

/// Reads of one handle of an object of `size` bytes.
struct Reader {
    line: Line,
    size: u64,
    limit: u64,
    readahead: Readahead,
    /// Seconds.
    now: f64,
    /// When all that was asked for so far has come at the latest, at the pace of the whole line.
    busy_until: f64,
    /// When each block is there.
    arrivals: BTreeMap<u64, f64>,
    /// Of those that were on their way at the last read.
    on_their_way: Vec<f64>,
    fetched: u64,
    wanted: BTreeSet<u64>,
    read: u64,
}

impl Reader {
    fn new(line: Line, size: u64) -> Self {
        Self {
            line,
            size,
            limit: 64 * MIB,
            readahead: Readahead::default(),
            now: 0.0,
            busy_until: 0.0,
            arrivals: BTreeMap::new(),
            on_their_way: Vec::new(),
            fetched: 0,
            wanted: BTreeSet::new(),
            read: 0,
        }
    }

    fn request(&mut self, range: &Range<u64>) {
        let mut missing = BlockSpan::over(range)
            .indices()
            .filter(|index| !self.arrivals.contains_key(index))
            .collect::<Vec<_>>();
        while !missing.is_empty() {
            let neighbours =
                (missing.iter().zip(missing[0]..)).take_while(|(at, next)| **at == *next);
            let most = usize::try_from(REQUEST_MAX / BLOCK_SIZE).unwrap();
            let run: Vec<u64> = missing.drain(..neighbours.count().min(most)).collect();
            let begun = self.now + self.line.round_trip.as_secs_f64();
            let mut at = begun;
            for index in run {
                let bytes = block_bytes(index, self.size);
                let len = bytes.end - bytes.start;
                self.fetched += len;
                self.busy_until = self.busy_until.max(begun) + len as f64 / self.line.all;
                at = (at + len as f64 / self.line.connection).max(self.busy_until);
                self.arrivals.insert(index, at);
                self.on_their_way.push(at);
            }
        }
    }

    fn read(&mut self, offset: u64, len: u64) {
        let range = offset..(offset + len).min(self.size);
        let blocks = BlockSpan::over(&range).indices();
        let arrivals = blocks.clone().map(|index| self.arrivals.get(&index));
        let found = arrivals.fold(Found::Here, |found, arrival| match arrival {
            None => Found::Missing,
            Some(at) if *at > self.now && found == Found::Here => Found::OnTheirWay,
            Some(_) => found,
        });
        self.on_their_way.retain(|at| *at > self.now);
        let on_their_way = self.on_their_way.len() as u64 * BLOCK_SIZE;
        let limit = self.limit.saturating_sub(on_their_way);
        let ahead = self.readahead.observe(&range, self.size, found, limit);
        self.request(&range);
        if let Some(fetch) = ahead.fetch {
            self.request(&fetch);
        }
        for given_up in ahead.given_up {
            self.cancel(&given_up);
        }
        for index in blocks {
            self.now = self.now.max(self.arrivals[&index]);
            self.wanted.insert(index);
        }
        self.read += range.end - range.start;
    }

    /// What has not come yet does not come.
    fn cancel(&mut self, range: &Range<u64>) {
        for index in BlockSpan::over(range).indices() {
            let is_late = self.arrivals.get(&index).is_some_and(|at| *at > self.now);
            if is_late && !self.wanted.contains(&index) {
                self.arrivals.remove(&index);
                let bytes = block_bytes(index, self.size);
                self.fetched -= bytes.end - bytes.start;
            }
        }
    }

    fn sequential(&mut self, from: u64, bytes: u64, step: u64) {
        for offset in (from..from + bytes).step_by(usize::try_from(step).unwrap()) {
            self.read(offset, step);
        }
    }

    /// Bytes fetched for each byte read.
    fn amplification(&self) -> f64 {
        self.fetched as f64 / self.read as f64
    }

    /// Bytes per second.
    fn pace(&self) -> f64 {
        self.read as f64 / self.now
    }
}

/// Places of no order, the same in every run.
fn places(count: u64, align: u64, size: u64) -> Vec<u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % (size / align) * align
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn a_sequential_reader_is_limited_by_the_line_whether_the_store_is_near_or_far() {
    for (line, least) in [(NEAR, 0.65), (FAR, 0.5)] {
        let mut reader = Reader::new(line, GIB / 2);
        reader.sequential(0, GIB / 2, 128 * KIB);
        assert_eq!(reader.fetched, GIB / 2);
        // So much can be on its way: what each request waits for counts too.
        let request = REQUEST_MAX as f64 / line.connection;
        let in_flight = reader.limit as f64 / (line.round_trip.as_secs_f64() + request);
        let ideal = line.all.min(in_flight);
        assert!(
            reader.pace() > least * ideal,
            "{} of {ideal}",
            reader.pace()
        );
    }
}

#[test]
fn reads_of_every_size_are_a_stream() {
    for step in [4 * KIB, 16 * KIB, 100 * KIB, MIB] {
        let mut reader = Reader::new(NEAR, 256 * MIB);
        reader.sequential(0, 256 * MIB / step * step, step);
        assert!(reader.pace() > 3e8, "{step}: {}", reader.pace());
        assert!(reader.amplification() < 1.01);
    }
}

#[test]
fn random_reads_fetch_nothing_beyond_their_blocks() {
    let mut reader = Reader::new(NEAR, GIB);
    for offset in places(200, 256 * KIB, GIB) {
        reader.read(offset, 256 * KIB);
    }
    assert!(reader.amplification() <= 1.0);
    let mut reader = Reader::new(NEAR, GIB);
    for offset in places(200, 4 * KIB, GIB) {
        reader.read(offset, 4 * KIB);
    }
    assert!(reader.fetched <= 200 * BLOCK_SIZE);
}

#[test]
fn a_stride_and_a_way_back_are_no_streams() {
    let mut reader = Reader::new(NEAR, GIB);
    for number in 0..200 {
        reader.read(number * 4 * MIB, 128 * KIB);
    }
    for number in (0..200).rev() {
        reader.read(512 * MIB + number * 128 * KIB, 128 * KIB);
    }
    assert!(reader.amplification() <= 1.0, "{}", reader.amplification());
}

#[test]
fn two_streams_in_turn_are_as_quick_as_one() {
    let mut alone = Reader::new(NEAR, GIB);
    alone.sequential(0, 256 * MIB, 128 * KIB);
    let mut reader = Reader::new(NEAR, GIB);
    for number in 0..1024 {
        reader.read(number * 128 * KIB, 128 * KIB);
        reader.read(GIB / 2 + number * 128 * KIB, 128 * KIB);
    }
    assert!(reader.pace() > 0.8 * alone.pace(), "{}", reader.pace());
    assert!(reader.amplification() < 1.45, "{}", reader.amplification());
}

#[test]
fn reads_that_overtake_each_other_are_one_stream() {
    let mut reader = Reader::new(NEAR, 256 * MIB);
    for number in 0..256_u64 {
        for other in [0, 2, 1, 4, 3, 6, 5, 7] {
            reader.read((number * 8 + other) * 128 * KIB, 128 * KIB);
        }
    }
    assert_eq!(reader.fetched, 256 * MIB);
    assert!(reader.pace() > 3e8, "{}", reader.pace());
}

/// What is in order, and short, is not what the window was made for.
#[test]
fn columns_after_a_footer_cost_little_more_than_themselves() {
    let mut reader = Reader::new(NEAR, GIB);
    reader.read(GIB - 8, 8);
    reader.read(GIB - 60 * KIB, 60 * KIB - 8);
    for column in 0..20 {
        reader.sequential(column * 40 * MIB, 4 * MIB, 128 * KIB);
    }
    assert!(reader.amplification() < 2.0, "{}", reader.amplification());
    assert!(reader.pace() > 5e7, "{}", reader.pace());
}

/// A fault brings what is around it: kernels read before and after it, from a place of their own.
#[test]
fn faults_of_a_mapping_here_and_there_fetch_what_the_kernel_asks_for() {
    let mut reader = Reader::new(NEAR, GIB);
    for fault in places(100, 4 * KIB, GIB - 2 * MIB) {
        let around = fault.saturating_sub(512 * KIB) / (4 * KIB) * (4 * KIB);
        reader.sequential(around, 128 * KIB, 128 * KIB);
    }
    assert!(reader.fetched <= 2 * 100 * BLOCK_SIZE);
}

#[test]
fn a_small_object_is_there_after_one_answer() {
    let mut reader = Reader::new(FAR, 900 * KIB);
    reader.read(0, 16 * KIB);
    reader.sequential(16 * KIB, 884 * KIB, 16 * KIB);
    assert!(reader.now < 0.12, "{}", reader.now);
}

#[test]
fn what_a_reader_has_left_is_given_up_and_so_is_the_rest_when_he_closes() {
    let mut readahead = Readahead::default();
    let mut fetched = 0;
    let mut observe = |offset: u64, len: u64| {
        let ahead = readahead.observe(&(offset..offset + len), GIB, Found::OnTheirWay, u64::MAX);
        fetched = ahead.fetch.map_or(fetched, |range| range.end);
        (ahead.given_up, fetched)
    };
    for number in 0..64 {
        observe(number * 128 * KIB, 128 * KIB);
    }
    let mut given_up = Vec::new();
    for elsewhere in 1..=STREAMS as u64 {
        let (more, fetched) = observe(elsewhere * 100 * MIB, 4 * KIB);
        given_up.extend(more.into_iter().map(|range| (range, fetched)));
    }
    let [(range, fetched)] = &given_up[..] else {
        panic!("{given_up:?}");
    };
    assert_eq!(*range, 8 * MIB..*fetched);
    assert!(range.end > 12 * MIB);
    assert_eq!(readahead.give_up(), []);
    readahead.observe(&(0..4096), MIB, Found::Missing, u64::MAX);
    let rest = 4096..MIB;
    assert_eq!(readahead.give_up(), vec![rest]);
}

#[test]
fn memory_bounds_what_is_on_its_way() {
    let mut reader = Reader::new(FAR, GIB);
    reader.limit = 4 * MIB;
    reader.sequential(0, 64 * MIB, 128 * KIB);
    assert!(reader.fetched <= 64 * MIB + 4 * MIB);
    let mut readahead = Readahead::default();
    for number in 0..32 {
        let read = number * BLOCK_SIZE..(number + 1) * BLOCK_SIZE;
        assert_eq!(readahead.observe(&read, GIB, Found::Missing, 0).fetch, None);
    }
}

#[test]
fn a_window_that_had_to_make_room_is_made_smaller() {
    let mut readahead = Readahead::default();
    let mut observe = |number: u64, found: Found| {
        let read = number * BLOCK_SIZE..(number + 1) * BLOCK_SIZE;
        readahead.observe(&read, GIB, found, u64::MAX);
        readahead.streams[0].window
    };
    for number in 0..100 {
        observe(number, Found::OnTheirWay);
    }
    let before = observe(100, Found::Here);
    assert_eq!(observe(101, Found::Missing), before / 2);
}
