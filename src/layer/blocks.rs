//! Places in a deflate stream. Where a block begins decoding could begin, given the 32 KiB before
//! it, which are addresses of the layer; in the midst of a block it can only end. With this list and
//! the layer's bytes an index can be cut anew without the blob.
//!
//! ```text
//! CRC32C u32, little endian, of the version and what follows | for each place, as LEB128: address
//! less the one before, 16 x (bytes consumed less the one before) + bits, or + 8 in the midst
//! ```

/// Blocks that begin nearer to the last one, in bytes of address space, are left out.
pub(crate) const DISTANCE_MIN: u64 = 16 << 10;

/// In the midst of a block there is a place after so many bytes of address space. Each is a stop of
/// the decoder in the first pass; a hot run is fetched to the first place behind it.
pub(crate) const MIDST_BYTES: u64 = 32 << 10;

/// Most places of a layer, 24 bytes each in memory: enough for 32 GiB. What is hot behind the last is
/// fetched as first contact has cut it.
pub(crate) const PLACES_MAX: usize = 1 << 20;

/// Goes into the checksum, so that a list of another version is taken for damaged.
const VERSION: u32 = 2;

/// What is written for bits in the midst of a block.
const MIDST: u8 = 8;

/// A place in a deflate stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The first output behind it.
    pub address: u64,
    /// Bytes of the blob that the output before it needs; where a block begins, with the byte that
    /// it shares with the block before.
    pub consumed: u64,
    /// Where a block begins: how many of the high bits of the last of these bytes belong to it (0 to
    /// 7).
    pub block: Option<u8>,
}

/// The bytes of a list in order of address.
pub fn encode(places: &[Place]) -> Vec<u8> {
    let mut out = vec![0; 4];
    let mut before = (0, 0);
    for place in places {
        put(&mut out, place.address.wrapping_sub(before.0));
        let consumed = place.consumed.wrapping_sub(before.1);
        let how = place.block.map_or(MIDST, |bits| bits & 7);
        put(&mut out, consumed << 4 | u64::from(how));
        before = (place.address, place.consumed);
    }
    let sum = crc32c::crc32c_append(VERSION, &out[4..]);
    out[..4].copy_from_slice(&sum.to_le_bytes());
    out
}

/// The list that `bytes` hold; `None` when they are damaged.
pub fn decode(bytes: &[u8]) -> Option<Vec<Place>> {
    let (sum, mut rest) = bytes.split_first_chunk::<4>()?;
    if crc32c::crc32c_append(VERSION, rest) != u32::from_le_bytes(*sum) {
        return None;
    }
    let mut places: Vec<Place> = Vec::new();
    let mut before = (0_u64, 0_u64);
    while !rest.is_empty() {
        let (address, packed) = (take(&mut rest)?, take(&mut rest)?);
        let how = (packed & 15) as u8;
        let place = Place {
            address: before.0.checked_add(address)?,
            consumed: before.1.checked_add(packed >> 4)?,
            block: (how < MIDST).then_some(how),
        };
        before = (place.address, place.consumed);
        places.push(place);
    }
    Some(places)
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
        let place = |address, consumed, block| Place {
            address,
            consumed,
            block,
        };
        let places = [
            place(40_000, 9_001, Some(3)),
            place(72_768, 15_001, None),
            place(1 << 40, 1 << 39, Some(0)),
        ];
        let bytes = encode(&places);
        assert_eq!(decode(&bytes), Some(places.to_vec()));
        assert_eq!(decode(&encode(&[])), Some(Vec::new()));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert_eq!(decode(&damaged), None);
            assert_eq!(decode(&bytes[..at]), None);
        }
        // As the version before wrote it.
        let mut older = bytes.clone();
        older[..4].copy_from_slice(&crc32c::crc32c(&bytes[4..]).to_le_bytes());
        assert_eq!(decode(&older), None);
    }
}
