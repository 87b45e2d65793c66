//! Reading a regular file: which bytes of which layer, or which zeros.
//!
//! A file is a sorted list of extents in one layer; what no extent covers is a hole. Nearly every
//! read lies in one extent: its bytes stay where the page store has read them, whole pages with their
//! sums, and are copied once, into the kernel. Any other read is put together piece by piece, and
//! stops at the first that is absent, which the caller may have fetched before it asks again.

use std::ops::Range;

use crate::blob::ByteRange;
use crate::cache::Presence;
use crate::fs::{Error, ImageFs};
use crate::layer::Extent;
use crate::tree::NodeKind;

/// Buffers that a thread uses again for every read.
#[derive(Debug, Default)]
pub struct ReadBuffer {
    /// Put together, when `found` is empty.
    pub(super) joined: Vec<u8>,
    /// What a page store has read.
    pub(super) scratch: Vec<u8>,
    /// Where in `scratch` the bytes of the last read are, if they are there.
    found: Option<Range<usize>>,
}

impl ReadBuffer {
    /// The bytes of the last successful read.
    pub fn bytes(&self) -> &[u8] {
        match &self.found {
            Some(at) => &self.scratch[at.clone()],
            None => &self.joined,
        }
    }

    /// The bytes are in `scratch`, if they are anywhere.
    pub(super) fn in_place(&mut self, found: Option<Range<usize>>) -> Presence {
        self.found = found;
        match self.found {
            Some(_) => Presence::Read,
            None => Presence::Absent,
        }
    }

    /// `len` zeros to be put together, and room for what is read meanwhile.
    pub(super) fn join(&mut self, len: u64) -> (&mut [u8], &mut Vec<u8>) {
        self.found = None;
        self.joined.clear();
        self.joined.resize(len as usize, 0);
        (&mut self.joined, &mut self.scratch)
    }
}

/// Bytes of a layer that have to be fetched before a read can be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Absent {
    /// Which layer.
    pub layer: u32,
    /// Which addresses of it.
    pub range: ByteRange,
}

/// How a read ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// [`ReadBuffer::bytes`] has them.
    Read,
    /// Fetch this, then ask again.
    Absent(Absent),
}

impl ImageFs {
    /// Reads up to `size` bytes at `offset` of file `ino` into `buffer`; fewer only at the end of
    /// the file. Never waits.
    pub fn read(
        &self,
        ino: u64,
        offset: u64,
        size: u32,
        buffer: &mut ReadBuffer,
    ) -> Result<Outcome, Error> {
        let (inode, node) = self.node(ino)?;
        match node.kind {
            NodeKind::Regular => {}
            NodeKind::Directory => return Err(Error::IsADirectory),
            _ => return Err(Error::NotARegularFile),
        }
        let end = node.size.min(offset.saturating_add(u64::from(size)));
        let len = end.saturating_sub(offset);
        let wanted = ByteRange::new(offset, offset.saturating_add(len));
        let (layer, extents) = self.tree.extents(inode);
        let first = extents.from_offset(offset).first();
        let part = first.and_then(|extent| overlap(&extent, wanted));
        if let Some((part, address)) = part
            && part == wanted
        {
            let found = self.content.read_in(layer.0, address, &mut buffer.scratch);
            if buffer.in_place(found.map_err(|_| Error::Io)?) == Presence::Read {
                self.counters.count_read_bytes(len);
                return Ok(Outcome::Read);
            }
        }
        let (joined, scratch) = buffer.join(len);
        let outcome = self.read_piece(ino, offset, joined, scratch)?;
        if outcome == Outcome::Read {
            self.counters.count_read_bytes(len);
        }
        Ok(outcome)
    }

    /// Reads the bytes at `offset` of the regular file `ino` into `out`, which holds zeros and does
    /// not reach beyond the end of the file. Never waits.
    pub(super) fn read_piece(
        &self,
        ino: u64,
        offset: u64,
        out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<Outcome, Error> {
        let (ino, _) = self.node(ino)?;
        let wanted = ByteRange::new(offset, offset.saturating_add(out.len() as u64));
        let (layer, extents) = self.tree.extents(ino);
        for extent in extents.from_offset(wanted.start()).iter() {
            let Some((part, address)) = overlap(&extent, wanted) else {
                break;
            };
            let at = (part.start() - wanted.start()) as usize;
            let out = &mut out[at..at + part.len() as usize];
            match self.content.read(layer.0, address, out, scratch) {
                Ok(Presence::Read) => {}
                Ok(Presence::Absent) => {
                    return Ok(Outcome::Absent(Absent {
                        layer: layer.0,
                        range: address,
                    }));
                }
                Err(_) => return Err(Error::Io),
            }
        }
        Ok(Outcome::Read)
    }
}

/// The part of `wanted` that `extent` covers: as file offsets and as addresses.
pub(super) fn overlap(extent: &Extent, wanted: ByteRange) -> Option<(ByteRange, ByteRange)> {
    let file = ByteRange::at(extent.file_offset, extent.len)?;
    let part = file.intersect(wanted)?;
    let address = ByteRange::at(
        extent.address + (part.start() - extent.file_offset),
        part.len(),
    )?;
    Some((part, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extent_covers_part_of_a_read() {
        let extent = Extent {
            file_offset: 100,
            address: 1536,
            len: 50,
        };
        let (part, address) = overlap(&extent, ByteRange::new(120, 4096)).unwrap();
        assert_eq!(part, ByteRange::new(120, 150));
        assert_eq!(address, ByteRange::new(1556, 1586));
        assert!(overlap(&extent, ByteRange::new(150, 200)).is_none());
    }
}
