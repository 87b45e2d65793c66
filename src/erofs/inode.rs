//! Inodes: how long each is with what stands behind it, and its bytes.

use crate::erofs::plan::{Body, Device};
use crate::erofs::{BLOCK_BYTES, NO_BLOCK, xattr};
use crate::layer::Extent;
use crate::tree::{Ino, LayerId, Node, NodeKind, Tree};

/// An extended inode without what follows it.
pub(super) const INODE_BYTES: usize = 64;

/// `i_format`: extended (bit 0), and the layout of the data from bit 1 on.
const EXTENDED: u16 = 1;
const FLAT_PLAIN: u16 = 0;
const FLAT_INLINE: u16 = 2;
const CHUNK_BASED: u16 = 4;

/// `EROFS_CHUNK_FORMAT_INDEXES`: each chunk has an index of 8 bytes.
const INDEXES: u32 = 0x20;
pub(super) const INDEX_BYTES: usize = 8;
/// The chunk format has 5 bits for the logarithm of a chunk's blocks.
const CHUNK_BITS_MAX: u32 = 31;

/// Most chunks of a file that is not composed: half a megabyte of indexes.
const CHUNKS_MAX: u64 = 1 << 16;

/// `EROFS_FT_*`.
pub(super) fn file_type(kind: NodeKind) -> u8 {
    match kind {
        NodeKind::Regular => 1,
        NodeKind::Directory => 2,
        NodeKind::CharDevice => 3,
        NodeKind::BlockDevice => 4,
        NodeKind::Fifo => 5,
        NodeKind::Symlink => 7,
    }
}

/// `S_IFMT` bits (inode(7)).
fn format_bits(kind: NodeKind) -> u32 {
    match kind {
        NodeKind::Regular => 0o100_000,
        NodeKind::Directory => 0o040_000,
        NodeKind::CharDevice => 0o020_000,
        NodeKind::BlockDevice => 0o060_000,
        NodeKind::Fifo => 0o010_000,
        NodeKind::Symlink => 0o120_000,
    }
}

/// Logarithm of the blocks of a chunk for a file of `size` bytes with these extents; `None` when the
/// file has to be composed.
pub(super) fn chunk_bits(size: u64, extents: impl Iterator<Item = Extent>) -> Option<u32> {
    let whole = size.div_ceil(BLOCK_BYTES).next_power_of_two().ilog2();
    // Bits that a chunk's bounds must not have: of every place where an extent begins or ends, but
    // for the end of the file.
    let mut bounds = 0;
    for extent in extents {
        bounds |= extent.file_offset;
        let end = extent.file_offset + extent.len;
        if end < size {
            bounds |= end;
        }
        if !extent.address.is_multiple_of(BLOCK_BYTES) {
            return None;
        }
    }
    let block_bits = BLOCK_BYTES.ilog2();
    let bits = match bounds {
        0 => whole,
        _ => bounds.trailing_zeros().checked_sub(block_bits)?.min(whole),
    };
    let bits = bits.min(CHUNK_BITS_MAX);
    (chunks(size, bits) <= CHUNKS_MAX).then_some(bits)
}

/// How many chunks a file has.
pub(super) fn chunks(size: u64, bits: u32) -> u64 {
    size.div_ceil(BLOCK_BYTES << bits)
}

/// Adds the inode and what stands behind it to `out`.
pub(super) fn write(tree: &Tree, (ino, node): (Ino, &Node), body: &Body, out: &mut Vec<u8>) {
    let start = out.len();
    let xattr_bytes = body.xattr_bytes;
    let (layout, union) = match body.data {
        Data::None => (FLAT_PLAIN, NO_BLOCK),
        Data::Blocks { first } => (FLAT_PLAIN, first),
        Data::Inline => (FLAT_INLINE, 0),
        Data::Chunks { bits } | Data::Composed { bits, .. } => (CHUNK_BASED, INDEXES | bits),
        Data::Special => (FLAT_PLAIN, encode_rdev(node.rdev)),
    };
    let put = |out: &mut Vec<u8>, bytes: &[u8]| out.extend_from_slice(bytes);
    put(out, &(EXTENDED | layout << 1).to_le_bytes());
    put(out, &xattr::count(xattr_bytes).to_le_bytes());
    put(
        out,
        &((format_bits(node.kind) | node.mode) as u16).to_le_bytes(),
    );
    put(out, &[0; 2]);
    put(out, &body.size.to_le_bytes());
    put(out, &union.to_le_bytes());
    put(out, &(ino.get() as u32).to_le_bytes());
    put(out, &node.uid.to_le_bytes());
    put(out, &node.gid.to_le_bytes());
    put(out, &node.mtime.seconds.to_le_bytes());
    put(out, &node.mtime.nanoseconds.to_le_bytes());
    put(out, &node.nlink.to_le_bytes());
    put(out, &[0; 16]);
    xattr::write(tree, ino, out);
    match body.data {
        Data::Inline => put(out, tree.symlink_target(ino).unwrap_or_default()),
        Data::Chunks { bits } => {
            out.resize(start + (out.len() - start).next_multiple_of(INDEX_BYTES), 0);
            let (layer, extents) = tree.extents(ino);
            write_chunks(node.size, bits, layer, extents.iter(), out);
        }
        Data::Composed { bits, address } => {
            out.resize(start + (out.len() - start).next_multiple_of(INDEX_BYTES), 0);
            let (layer, _) = tree.extents(ino);
            let whole = Extent {
                file_offset: 0,
                address,
                len: node.size,
            };
            write_chunks(node.size, bits, layer, std::iter::once(whole), out);
        }
        Data::None | Data::Blocks { .. } | Data::Special => {}
    }
}

/// Where the data of an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Data {
    /// Nowhere: it is empty.
    None,
    /// In blocks of the image, from this one on.
    Blocks { first: u32 },
    /// Behind the inode.
    Inline,
    /// In a device, chunk by chunk.
    Chunks { bits: u32 },
    /// In a device, put together at this address.
    Composed { bits: u32, address: u64 },
    /// It has none: a device or a pipe.
    Special,
}

fn write_chunks(
    size: u64,
    bits: u32,
    layer: LayerId,
    extents: impl Iterator<Item = Extent>,
    out: &mut Vec<u8>,
) {
    let chunk = BLOCK_BYTES << bits;
    let mut extents = extents.peekable();
    for n in 0..chunks(size, bits) {
        let at = n * chunk;
        while extents.next_if(|e| e.file_offset + e.len <= at).is_some() {}
        let inside = extents.peek().filter(|e| e.file_offset <= at);
        let (device, block) = match inside {
            Some(e) => {
                let block = (e.address + (at - e.file_offset)) / BLOCK_BYTES;
                // `Image::plan` has seen that the device is not longer than blocks can count.
                (
                    Device::slot(layer),
                    u32::try_from(block).unwrap_or(NO_BLOCK),
                )
            }
            None => (0, NO_BLOCK),
        };
        // The high half of a block number is only read of images with 48-bit addresses, but for a
        // hole all bits have to be set.
        let high = if inside.is_some() { 0 } else { u16::MAX };
        out.extend_from_slice(&high.to_le_bytes());
        out.extend_from_slice(&device.to_le_bytes());
        out.extend_from_slice(&block.to_le_bytes());
    }
}

/// The kernel's 32-bit device encoding (`new_encode_dev`): 12 bits major, 20 bits minor.
fn encode_rdev((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(file_offset: u64, address: u64, len: u64) -> Extent {
        Extent {
            file_offset,
            address,
            len,
        }
    }

    #[test]
    fn an_ordinary_file_is_one_chunk() {
        for (size, bits) in [(1, 0), (512, 0), (513, 1), (5000, 4), (1 << 40, 31)] {
            assert_eq!(
                chunk_bits(size, [extent(0, 1536, size)].into_iter()),
                Some(bits)
            );
            assert_eq!(chunks(size, bits), 1);
        }
        assert_eq!(
            chunk_bits(3 << 40, [extent(0, 512, 3 << 40)].into_iter()),
            Some(31)
        );
        assert_eq!(chunks(3 << 40, 31), 3);
    }

    #[test]
    fn holes_make_chunks_smaller() {
        let sparse = [extent(4096, 1024, 8192), extent(1 << 20, 9216, 100)];
        assert_eq!(chunk_bits((1 << 20) + 100, sparse.into_iter()), Some(3));
        let mut out = Vec::new();
        write_chunks((1 << 20) + 100, 3, LayerId(2), sparse.into_iter(), &mut out);
        let index = |n: usize| &out[n * 8..n * 8 + 8];
        assert_eq!(index(0), [255, 255, 0, 0, 255, 255, 255, 255]);
        assert_eq!(index(1), [0, 0, 3, 0, 2, 0, 0, 0]);
        assert_eq!(index(2), [0, 0, 3, 0, 10, 0, 0, 0]);
        assert_eq!(index(3), [255, 255, 0, 0, 255, 255, 255, 255]);
        assert_eq!(index(256), [0, 0, 3, 0, 18, 0, 0, 0]);
        assert_eq!(out.len(), 257 * 8);
    }

    #[test]
    fn what_no_block_begins_with_is_composed() {
        assert_eq!(chunk_bits(1000, [extent(100, 512, 10)].into_iter()), None);
        assert_eq!(chunk_bits(1000, [extent(512, 513, 488)].into_iter()), None);
        assert_eq!(chunk_bits(2000, [extent(0, 512, 10)].into_iter()), None);
        let far = 9 << 30;
        assert_eq!(
            chunk_bits(far, [extent(far - 512, 512, 512)].into_iter()),
            None
        );
        assert_eq!(chunk_bits(far, [].into_iter()), Some(25));
    }
}
