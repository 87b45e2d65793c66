//! Half-open byte ranges: pure arithmetic.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The bytes `start..end`; `start <= end` always holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// The bytes from `start` up to `end`. An `end` before `start` gives the empty range at `start`.
    pub fn new(start: u64, end: u64) -> ByteRange {
        ByteRange {
            start,
            end: end.max(start),
        }
    }

    /// `len` bytes from `start`; `None` when the end does not fit 64 bits.
    pub fn at(start: u64, len: u64) -> Option<ByteRange> {
        Some(ByteRange {
            start,
            end: start.checked_add(len)?,
        })
    }

    /// First byte.
    pub fn start(self) -> u64 {
        self.start
    }

    /// One past the last byte.
    pub fn end(self) -> u64 {
        self.end
    }

    /// Number of bytes.
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether there are no bytes in it.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Whether `other` lies wholly inside.
    pub fn contains(self, other: ByteRange) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The bytes in both; `None` when there are none.
    pub fn intersect(self, other: ByteRange) -> Option<ByteRange> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start < end).then_some(ByteRange { start, end })
    }

    /// Widened so that both ends are multiples of `unit` (a power of two).
    pub fn aligned(self, unit: u64) -> ByteRange {
        debug_assert!(unit.is_power_of_two());
        let end = self
            .end
            .checked_next_multiple_of(unit)
            .unwrap_or(!(unit - 1));
        ByteRange {
            start: self.start & !(unit - 1),
            end,
        }
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// Joins sorted ranges whose gap is at most `gap` bytes. Overlaps are joined always.
pub fn coalesce(ranges: impl IntoIterator<Item = ByteRange>, gap: u64) -> Vec<ByteRange> {
    let mut joined: Vec<ByteRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(gap) => {
                last.end = last.end.max(range.end);
            }
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_align_and_intersect() {
        let r = ByteRange::new(5000, 9000);
        assert_eq!(r.aligned(4096), ByteRange::new(4096, 12288));
        assert_eq!(
            r.intersect(ByteRange::new(0, 5001)),
            Some(ByteRange::new(5000, 5001))
        );
        assert_eq!(r.intersect(ByteRange::new(9000, 9001)), None);
        assert!(ByteRange::at(u64::MAX, 1).is_none());
    }

    #[test]
    fn near_ranges_are_joined() {
        let r = |a, b| ByteRange::new(a, b);
        assert_eq!(
            coalesce([r(0, 1), r(3, 4), r(9, 10)], 2),
            [r(0, 4), r(9, 10)]
        );
        assert_eq!(coalesce([r(0, 10), r(3, 4)], 0), [r(0, 10)]);
    }
}
