//! What readers will probably want: the pages that earlier starts touched, by file.
//!
//! Where a file is known to the kernel and such pages of it are here, they can be put into the
//! kernel's page cache before anybody asks ([`crate::fuse`] has the one who does it).

use std::sync::OnceLock;

use crate::blob::ByteRange;
use crate::cache::{PAGE_BYTES, Presence};
use crate::fs::read::overlap;
use crate::fs::{Error, ImageFs, ReadBuffer};
use crate::tree::{Ino, NodeKind};

/// Most bytes of one file that are pushed: a bound on what a profile of another program costs.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Addresses of layers, sorted by start, with their place in order of first use.
#[derive(Debug, Default)]
pub(super) struct Foreseen {
    layers: OnceLock<Vec<Vec<(ByteRange, usize)>>>,
}

impl Foreseen {
    fn of(&self, layer: u32) -> &[(ByteRange, usize)] {
        let layers = self.layers.get().map_or(&[][..], |layers| layers);
        layers.get(layer as usize).map_or(&[], |ranges| ranges)
    }
}

impl ImageFs {
    /// Says what will probably be read: layers and addresses in order of first use. Only the first
    /// call counts.
    pub fn foresee(&self, ranges: Vec<(u32, ByteRange)>) {
        let mut layers = vec![Vec::new(); self.content.address_sizes().count()];
        for (order, (layer, range)) in ranges.into_iter().enumerate() {
            if let Some(of) = layers.get_mut(layer as usize) {
                of.push((range, order));
            }
        }
        for of in &mut layers {
            of.sort_unstable_by_key(|(range, order)| (range.start(), *order));
        }
        let _first = self.foreseen.layers.set(layers);
    }

    /// All that was foreseen of a layer, in order of first use.
    pub(super) fn foreseen_addresses(&self, layer: u32) -> Vec<ByteRange> {
        let mut all = self.foreseen.of(layer).to_vec();
        all.sort_unstable_by_key(|(_, order)| *order);
        bounded(all)
    }

    /// Whether anything of file `ino` will probably be read.
    pub fn is_foreseen(&self, ino: u64) -> bool {
        let Some(ino) = Ino::from_raw(ino) else {
            return false;
        };
        let (layer, extents) = self.tree.extents(ino);
        let of = self.foreseen.of(layer.0);
        !of.is_empty()
            && extents.iter().any(|extent| {
                let first = of.partition_point(|(range, _)| range.end() <= extent.address);
                of.get(first)
                    .is_some_and(|(range, _)| range.start() < extent.address + extent.len)
            })
    }

    /// The whole pages of file `ino` that will probably be read, in order of first use.
    pub fn foreseen(&self, ino: u64) -> Vec<ByteRange> {
        let Ok((ino, node)) = self.node(ino) else {
            return Vec::new();
        };
        if node.kind != NodeKind::Regular {
            return Vec::new();
        }
        let (layer, extents) = self.tree.extents(ino);
        let of = self.foreseen.of(layer.0);
        let mut found = Vec::new();
        for extent in extents.iter() {
            let Some(address) = ByteRange::at(extent.address, extent.len) else {
                continue;
            };
            let first = of.partition_point(|(range, _)| range.end() <= address.start());
            for (range, order) in &of[first..] {
                let Some(both) = range.intersect(address) else {
                    break;
                };
                let start = extent.file_offset + (both.start() - address.start());
                let file = ByteRange::new(start, start + both.len());
                if let Some(pages) = whole_pages(file, node.size) {
                    found.push((*order, pages));
                }
            }
        }
        found.sort_unstable_by_key(|(order, _)| *order);
        bounded(found.into_iter().map(|(order, range)| (range, order)))
    }

    /// Reads foreseen bytes of a file if they are all here; they count as touched, because nobody
    /// will ask for what is in the kernel's cache.
    pub fn read_foreseen(
        &self,
        ino: u64,
        range: ByteRange,
        buffer: &mut ReadBuffer,
    ) -> Result<Presence, Error> {
        let (ino, _) = self.node(ino)?;
        let (layer, extents) = self.tree.extents(ino);
        let first = extents.from_offset(range.start()).first();
        let part = first.and_then(|extent| overlap(&extent, range));
        let Some((_, address)) = part.filter(|(part, _)| *part == range) else {
            return Ok(Presence::Absent);
        };
        let found = self
            .content
            .read_foreseen(layer.0, address, &mut buffer.scratch);
        Ok(buffer.in_place(found.map_err(|_| Error::Io)?))
    }
}

/// The first of `ranges`, in their order.
fn bounded(ranges: impl IntoIterator<Item = (ByteRange, usize)>) -> Vec<ByteRange> {
    let mut left = FILE_BYTES_MAX;
    let fits = |range: &ByteRange| {
        left = left.saturating_sub(range.len());
        left > 0
    };
    let ranges = ranges.into_iter().map(|(range, _)| range);
    ranges.take_while(fits).collect()
}

/// The pages of a file of `size` bytes that lie wholly in `range`; the last one may be shorter.
fn whole_pages(range: ByteRange, size: u64) -> Option<ByteRange> {
    let start = range.start().next_multiple_of(PAGE_BYTES);
    let end = match range.end() >= size {
        true => size,
        false => range.end() / PAGE_BYTES * PAGE_BYTES,
    };
    (start < end).then(|| ByteRange::new(start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_whole_but_for_the_last_of_a_file() {
        let pages = |start, end, size| whole_pages(ByteRange::new(start, end), size);
        assert_eq!(pages(0, 8192, 10_000), Some(ByteRange::new(0, 8192)));
        assert_eq!(
            pages(512, 12_800, 20_000),
            Some(ByteRange::new(4096, 12_288))
        );
        assert_eq!(
            pages(4096, 10_000, 10_000),
            Some(ByteRange::new(4096, 10_000))
        );
        assert_eq!(pages(512, 4608, 20_000), None);
        assert_eq!(pages(512, 900, 900), None, "its beginning is missing");
    }
}
