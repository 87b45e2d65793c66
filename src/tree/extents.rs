//! Where the data of a regular file stands, read from the stored tree.

use std::fmt;

use crate::layer::Extent;
use crate::tree::stored::{self, StoredExtent};

/// The extents of one file, sorted by offset in the file.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Extents<'a>(pub(super) &'a [StoredExtent]);

impl<'a> Extents<'a> {
    /// How many there are.
    pub fn len(self) -> usize {
        self.0.len()
    }

    /// Whether the file is one hole.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The first one.
    pub fn first(self) -> Option<Extent> {
        self.0.first().map(stored::extent)
    }

    /// Those that do not end before `offset` of the file, or there.
    pub fn from_offset(self, offset: u64) -> Extents<'a> {
        let ends_before = |stored: &StoredExtent| {
            let extent = stored::extent(stored);
            extent.file_offset.saturating_add(extent.len) <= offset
        };
        Extents(&self.0[self.0.partition_point(ends_before)..])
    }

    /// One after the other.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Extent> + ExactSizeIterator + Clone + 'a {
        self.0.iter().map(stored::extent)
    }
}

impl fmt::Debug for Extents<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
