//! Where deflate blocks begin: every one is a place where decoding could begin, given the 32 KiB
//! before it, which are addresses of the layer. With this list and the layer's bytes an index can be
//! cut anew without the blob.
//!
//! ```text
//! CRC32C u32, little endian, of what follows | for each block, as LEB128: address less the one
//! before, 8 x (bytes consumed less the one before) + bits
//! ```

/// Blocks that begin nearer to the last one, in bytes of address space, are left out.
pub(crate) const DISTANCE_MIN: u64 = 16 << 10;

/// The beginning of a deflate block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Its first output.
    pub address: u64,
    /// Bytes of the blob up to it, with the byte that it shares with the block before.
    pub consumed: u64,
    /// How many of the high bits of the last of these belong to it (0 to 7).
    pub bits: u8,
}

/// The bytes of a list in order of address.
pub fn encode(blocks: &[Block]) -> Vec<u8> {
    let mut out = vec![0; 4];
    let mut before = (0, 0);
    for block in blocks {
        put(&mut out, block.address.wrapping_sub(before.0));
        let consumed = block.consumed.wrapping_sub(before.1);
        put(&mut out, consumed << 3 | u64::from(block.bits & 7));
        before = (block.address, block.consumed);
    }
    let sum = crc32c::crc32c(&out[4..]);
    out[..4].copy_from_slice(&sum.to_le_bytes());
    out
}

/// The list that `bytes` hold; `None` when they are damaged.
pub fn decode(bytes: &[u8]) -> Option<Vec<Block>> {
    let (sum, mut rest) = bytes.split_first_chunk::<4>()?;
    if crc32c::crc32c(rest) != u32::from_le_bytes(*sum) {
        return None;
    }
    let mut blocks: Vec<Block> = Vec::new();
    let mut before = (0_u64, 0_u64);
    while !rest.is_empty() {
        let (address, packed) = (take(&mut rest)?, take(&mut rest)?);
        let block = Block {
            address: before.0.checked_add(address)?,
            consumed: before.1.checked_add(packed >> 3)?,
            bits: (packed & 7) as u8,
        };
        before = (block.address, block.consumed);
        blocks.push(block);
    }
    Some(blocks)
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, more) = rest.split_first()?;
        *rest = more;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_damage_is_found() {
        let block = |address, consumed, bits| Block {
            address,
            consumed,
            bits,
        };
        let blocks = [block(40_000, 9_001, 3), block(1 << 40, 1 << 39, 0)];
        let bytes = encode(&blocks);
        assert_eq!(decode(&bytes), Some(blocks.to_vec()));
        assert_eq!(decode(&encode(&[])), Some(Vec::new()));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert_eq!(decode(&damaged), None);
            assert_eq!(decode(&bytes[..at]), None);
        }
    }
}
