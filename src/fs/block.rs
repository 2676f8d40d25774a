//! Blocks: the unit in which an object's bytes are fetched and cached.

use std::ops::Range;

/// Bytes of a block.
///
/// The kernel's own readahead asks for 128 KiB at a time, so a read it makes costs one block and a random
/// 4 KiB read wastes no more than one; larger sequential requests are runs of blocks in one range GET.
pub(crate) const BLOCK_SIZE: u64 = 128 * 1024;

/// The blocks that a range of bytes touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockSpan {
    /// The first block's index.
    pub first: u64,
    /// One past the last block's index.
    pub end: u64,
}

impl BlockSpan {
    /// The blocks that hold `range`; empty for an empty range.
    pub(crate) fn over(range: &Range<u64>) -> Self {
        if range.is_empty() {
            return Self { first: 0, end: 0 };
        }
        Self {
            first: range.start / BLOCK_SIZE,
            end: range.end.div_ceil(BLOCK_SIZE),
        }
    }

    /// The indices, in order.
    pub(crate) fn indices(self) -> Range<u64> {
        self.first..self.end
    }

    /// The bytes of the blocks, cut off at the object's end.
    pub(crate) fn bytes(self, object_size: u64) -> Range<u64> {
        let start = (self.first * BLOCK_SIZE).min(object_size);
        start..(self.end * BLOCK_SIZE).min(object_size)
    }
}

/// The bytes of one block, cut off at the object's end.
pub(crate) fn block_bytes(index: u64, object_size: u64) -> Range<u64> {
    BlockSpan {
        first: index,
        end: index + 1,
    }
    .bytes(object_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_covers_exactly_the_blocks_touched() {
        let span = |range| BlockSpan::over(&range).indices();
        assert_eq!(span(0..0), 0..0);
        assert_eq!(span(0..1), 0..1);
        assert_eq!(span(BLOCK_SIZE - 1..BLOCK_SIZE), 0..1);
        assert_eq!(span(BLOCK_SIZE - 1..BLOCK_SIZE + 1), 0..2);
        assert_eq!(span(BLOCK_SIZE..2 * BLOCK_SIZE), 1..2);
    }

    #[test]
    fn the_last_block_ends_with_the_object() {
        assert_eq!(block_bytes(1, BLOCK_SIZE + 5), BLOCK_SIZE..BLOCK_SIZE + 5);
        assert_eq!(block_bytes(3, BLOCK_SIZE), BLOCK_SIZE..BLOCK_SIZE);
    }
}
