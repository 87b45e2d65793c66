//! The superblock and the device slots: everything before the inodes.

use crate::erofs::BLOCK_BYTES;
use crate::erofs::plan::Device;

const MAGIC: u32 = 0xE0F5_E1E2;
pub(super) const OFFSET: usize = 1024;
pub(super) const BYTES: usize = 128;
pub(super) const SLOT_BYTES: usize = 128;
/// Longest tag of a slot.
const TAG_BYTES: usize = 64;

/// `SB_CHKSUM | MTIME`.
const FEATURE_COMPAT: u32 = 0x3;
/// `CHUNKED_FILE | DEVICE_TABLE`.
const FEATURE_INCOMPAT: u32 = 0xC;

/// What the superblock tells of the image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Totals {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    /// Blocks of the image itself.
    pub(super) blocks: u32,
}

/// Everything up to the first inode.
pub(super) fn head(totals: Totals, devices: &[Device]) -> Vec<u8> {
    let mut head = vec![0; OFFSET + BYTES];
    let mut put = |at: usize, bytes: &[u8]| {
        head[OFFSET + at..OFFSET + at + bytes.len()].copy_from_slice(bytes);
    };
    put(0, &MAGIC.to_le_bytes());
    put(8, &FEATURE_COMPAT.to_le_bytes());
    put(12, &[BLOCK_BYTES.ilog2() as u8, 0]);
    put(14, &totals.root_nid.to_le_bytes());
    put(16, &totals.inodes.to_le_bytes());
    put(36, &totals.blocks.to_le_bytes());
    put(64, b"rsmount");
    put(80, &FEATURE_INCOMPAT.to_le_bytes());
    put(86, &(devices.len() as u16).to_le_bytes());
    put(88, &(((OFFSET + BYTES) / SLOT_BYTES) as u16).to_le_bytes());
    for device in devices {
        let start = head.len();
        let tag = device.tag.as_bytes();
        head.extend_from_slice(&tag[..tag.len().min(TAG_BYTES)]);
        head.resize(start + TAG_BYTES, 0);
        let blocks = u32::try_from(device.bytes / BLOCK_BYTES).unwrap_or(u32::MAX);
        head.extend_from_slice(&blocks.to_le_bytes());
        head.resize(start + SLOT_BYTES, 0);
    }
    head
}

/// Writes the checksum into `image`, of which at least the first 1,536 bytes are there: CRC32C,
/// without the last inversion, of one block from the superblock on, the checksum itself being 0.
pub(super) fn sign(image: &mut [u8]) {
    let sum = !crc32c::crc32c(&image[OFFSET..OFFSET + BLOCK_BYTES as usize]);
    image[OFFSET + 4..OFFSET + 8].copy_from_slice(&sum.to_le_bytes());
}
