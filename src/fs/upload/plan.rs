//! Which requests make an object equal to a file. Pure.

use std::ops::Range;

/// S3 takes 10 000 parts, numbered from 1.
pub(crate) const PARTS_MAX: u64 = 10_000;

/// Bytes of the largest object that S3 takes: 5 TiB.
pub(crate) const SIZE_MAX: u64 = 5 << 40;

/// A part that is not the last has at least this many bytes.
pub(crate) const PART_MIN: u64 = 5 * 1024 * 1024;

/// Parts grow in steps of this, so that most files of one size are cut alike.
const PART_STEP: u64 = 1024 * 1024;

/// The requests that make an object equal to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UploadPlan {
    /// One PUT of the whole.
    Put,
    /// A multipart upload; part `i` is the `i`-th range, numbered from 1.
    Multipart(Vec<Part>),
}

/// One part of a multipart upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// We send these bytes of the file.
    Send(Range<u64>),
    /// The store copies this range of the object the file is based on.
    Copy(Range<u64>),
}

impl UploadPlan {
    /// The plan for a file of `size` bytes of which `dirty` (in order, not overlapping) were written here.
    /// The rest, up to `base`, is the object's that the file is based on, if the store can copy ranges of
    /// it; beyond that it is zeros.
    pub(crate) fn new(size: u64, part_size: u64, dirty: &[Range<u64>], base: u64) -> Self {
        if size <= part_size {
            return Self::Put;
        }
        let part_size = part_size
            .max(size.div_ceil(PARTS_MAX).next_multiple_of(PART_STEP))
            .max(PART_MIN);
        let mut parts = Vec::new();
        let mut start = 0;
        while start < size {
            let range = start..(start + part_size).min(size);
            let clean = range.end <= base
                && !dirty
                    .iter()
                    .any(|d| d.start < range.end && range.start < d.end);
            parts.push(if clean {
                Part::Copy(range.clone())
            } else {
                Part::Send(range.clone())
            });
            start = range.end;
        }
        Self::Multipart(parts)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn up_to_a_part_it_is_one_put() {
        assert_eq!(UploadPlan::new(0, 8 * MIB, &[], 0), UploadPlan::Put);
        assert_eq!(
            UploadPlan::new(8 * MIB, 8 * MIB, &[], 8 * MIB),
            UploadPlan::Put
        );
    }

    #[test]
    fn a_small_change_of_a_large_object_sends_one_part() {
        let dirty = 20 * MIB..20 * MIB + 1;
        let UploadPlan::Multipart(parts) = UploadPlan::new(80 * MIB, 8 * MIB, &[dirty], 80 * MIB)
        else {
            panic!("multipart expected");
        };
        let sent: Vec<_> = parts
            .iter()
            .filter(|p| matches!(p, Part::Send(_)))
            .collect();
        assert_eq!(sent, [&Part::Send(16 * MIB..24 * MIB)]);
    }

    proptest! {
        /// Whatever was written, the parts make exactly the file, the store's limits hold, and no copied
        /// part holds a byte that is not the base's.
        #[test]
        fn the_parts_make_exactly_the_file(
            size in 0u64..200_000 * MIB,
            part_size in (5u64..64).prop_map(|m| m * MIB),
            base in 0u64..200_000 * MIB,
            dirty in proptest::collection::btree_map(0u64..200_000 * MIB, 1u64..1000 * MIB, 0..5),
        ) {
            let dirty: Vec<Range<u64>> = dirty.into_iter().map(|(at, len)| at..at + len).collect();
            match UploadPlan::new(size, part_size, &dirty, base) {
                UploadPlan::Put => prop_assert!(size <= part_size),
                UploadPlan::Multipart(parts) => {
                    prop_assert!(parts.len() as u64 <= PARTS_MAX);
                    let mut at = 0;
                    for (i, part) in parts.iter().enumerate() {
                        let (Part::Send(range) | Part::Copy(range)) = part;
                        prop_assert_eq!(range.start, at);
                        prop_assert!(range.end > at);
                        at = range.end;
                        if i + 1 < parts.len() {
                            prop_assert!(range.end - range.start >= PART_MIN);
                        }
                        if let Part::Copy(range) = part {
                            prop_assert!(range.end <= base);
                            for d in &dirty {
                                prop_assert!(d.end <= range.start || range.end <= d.start);
                            }
                        }
                    }
                    prop_assert_eq!(at, size);
                }
            }
        }
    }
}
