//! From addresses of layers back to files: for messages about bytes that were fetched.

use crate::blob::ByteRange;
use crate::fs::ImageFs;
use crate::tree::Ino;

/// A part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePart {
    /// A path of it, with a leading slash; bytes, as layers have them.
    pub path: Vec<u8>,
    /// Which bytes of the file.
    pub range: ByteRange,
}

impl ImageFs {
    /// The file whose bytes come first in each of `wanted` (layer and addresses), in that order;
    /// `None` for what no file of the merged tree has. Compares each with every file: for a list
    /// that a person asks for, not for a read.
    pub fn files_at(&self, wanted: &[(u32, ByteRange)]) -> Vec<Option<FilePart>> {
        /// First address, file, part of the file.
        type First = (u64, Ino, ByteRange);
        let mut found: Vec<Option<First>> = vec![None; wanted.len()];
        for ino in (1..=self.tree.len() as u64).filter_map(Ino::from_raw) {
            let (layer, extents) = self.tree.extents(ino);
            for extent in extents.iter() {
                let Some(address) = ByteRange::at(extent.address, extent.len) else {
                    continue;
                };
                for (found, (of, range)) in found.iter_mut().zip(wanted) {
                    if *of != layer.0 {
                        continue;
                    }
                    let Some(both) = range.intersect(address) else {
                        continue;
                    };
                    if found.is_none_or(|(first, ..)| both.start() < first) {
                        let start = extent.file_offset + (both.start() - address.start());
                        let part = ByteRange::new(start, start + both.len());
                        *found = Some((both.start(), ino, part));
                    }
                }
            }
        }
        let named = |(_, ino, range)| {
            let path = self.tree.path(ino)?;
            Some(FilePart { path, range })
        };
        found.into_iter().map(|f| f.and_then(named)).collect()
    }
}
