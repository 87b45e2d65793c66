//! The index on disk and in artifacts: `encode` and `decode`. What is decoded may come from a
//! stranger, so every number is checked, and a damaged index is an error, never a surprise.
//!
//! ```text
//! magic "rsmlayer" | version u32 | CRC32C u32 of all that follows
//! | length of the body u64 | length of the packed body u64 | packed body (zstd) | windows
//! ```
//!
//! Numbers in the header are little-endian. The body is a sequence of LEB128 varints and bytes,
//! most of them as differences to what stands before; windows are packed already and stand behind
//! it one after the other.

mod parts;
mod spans;
#[cfg(test)]
mod tests;
mod wire;

use crate::layer::codec::parts::{read_parts, write_parts};
pub use crate::layer::codec::spans::WINDOW_PACKED_MAX;
use crate::layer::codec::spans::{read_spans, write_spans};
use crate::layer::codec::wire::{Source, Target};
use crate::layer::index::LayerIndex;
use crate::layer::limit::{INDEX_BYTES_MAX, LimitError};
use crate::layer::path::PathError;
use crate::oci::Compression;

/// Version of the format. A reader of another version makes the index anew.
pub const VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"rsmlayer";
/// Up to and with the checksum.
const SUMMED_FROM: usize = 16;
const HEADER_BYTES: usize = 32;
/// Longest body, in bytes: names and attributes that have nothing in common are as long there as in memory,
/// and a quarter more has room for the spans of the longest layer.
const BODY_BYTES_MAX: u64 = INDEX_BYTES_MAX + INDEX_BYTES_MAX / 4;
/// zstd level of the body: of its few hundred kilobytes, more takes longer and saves 1 %.
const LEVEL: i32 = 6;

/// Why bytes are not an index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Something else.
    #[error("not a layer index")]
    Magic,
    /// Another version.
    #[error("layer index of version {0} (this reads {VERSION})")]
    Version(u32),
    /// Damaged.
    #[error("layer index is damaged (its checksum does not match)")]
    Checksum,
    /// Shorter or longer than it says.
    #[error("layer index has a wrong length")]
    Length,
    /// A value that cannot be.
    #[error("layer index has an invalid {0}")]
    Invalid(&'static str),
    /// A name that is not a path.
    #[error("layer index: {0}")]
    Path(#[from] PathError),
    /// Too much in it.
    #[error("layer index: {0}")]
    Limit(#[from] LimitError),
}

/// The bytes of `index`.
pub fn encode(index: &LayerIndex) -> Vec<u8> {
    let mut body = Target::default();
    body.digest(&index.blob);
    body.digest(&index.diff_id);
    body.varint(index.compressed_size);
    body.varint(index.address_size);
    body.byte(match index.compression {
        Compression::None => 0,
        Compression::Gzip => 1,
        Compression::Zstd => 2,
    });
    write_parts(&mut body, &index.whiteouts, &index.entries);
    let windows = write_spans(&mut body, &index.spans);
    let body = body.into_bytes();
    // Compression into a buffer of the bound's size fails only for want of memory, and then the
    // allocator has ended the process before.
    let packed = zstd::bulk::compress(&body, LEVEL).unwrap_or_default();

    let mut bytes = Vec::with_capacity(HEADER_BYTES + packed.len() + windows.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&(packed.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&packed);
    bytes.extend_from_slice(&windows);
    let sum = crc32c::crc32c(&bytes[SUMMED_FROM..]);
    bytes[SUMMED_FROM - 4..SUMMED_FROM].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The index that `bytes` hold, as [`encode`] has written it. What comes out keeps all promises of
/// [`LayerIndex`]; whether it is true is for digests to say.
pub fn decode(bytes: &[u8]) -> Result<LayerIndex, CodecError> {
    let (body, windows) = open(bytes)?;
    let mut body = Source::new(&body);
    let blob = body.digest()?;
    let diff_id = body.digest()?;
    let compressed_size = body.varint()?;
    let address_size = body.varint()?;
    let compression = match body.byte()? {
        0 => Compression::None,
        1 => Compression::Gzip,
        2 => Compression::Zstd,
        _ => return Err(CodecError::Invalid("compression")),
    };
    let (whiteouts, entries) = read_parts(&mut body, address_size)?;
    let mut index = LayerIndex {
        blob,
        diff_id,
        compressed_size,
        address_size,
        compression,
        whiteouts,
        entries,
        spans: Vec::new(),
    };
    index.spans = read_spans(&mut body, windows, &index)?;
    body.end()?;
    Ok(index)
}

/// Whether `bytes` are what [`encode`] has written, as far as version and checksum say: much less
/// work than [`decode`].
pub fn check(bytes: &[u8]) -> Result<(), CodecError> {
    sizes(bytes).map(|_| ())
}

/// Lengths of the body, unpacked and packed, of bytes that have their checksum.
fn sizes(bytes: &[u8]) -> Result<(u64, u64), CodecError> {
    if !bytes.starts_with(MAGIC) {
        return Err(CodecError::Magic);
    }
    let header = bytes.get(..HEADER_BYTES).ok_or(CodecError::Length)?;
    let u32_at =
        |at| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let u64_at = |at| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    if u32_at(8) != VERSION {
        return Err(CodecError::Version(u32_at(8)));
    }
    if u32_at(12) != crc32c::crc32c(&bytes[SUMMED_FROM..]) {
        return Err(CodecError::Checksum);
    }
    Ok((u64_at(16), u64_at(24)))
}

/// Checks the header and unpacks the body; the windows stand behind it.
fn open(bytes: &[u8]) -> Result<(Vec<u8>, &[u8]), CodecError> {
    let (body_len, packed_len) = sizes(bytes)?;
    let rest = &bytes[HEADER_BYTES..];
    if body_len > BODY_BYTES_MAX || packed_len > rest.len() as u64 {
        return Err(CodecError::Length);
    }
    let (packed, windows) = rest.split_at(packed_len as usize);
    let body = zstd::bulk::decompress(packed, body_len as usize)
        .map_err(|_| CodecError::Invalid("body"))?;
    if body.len() as u64 != body_len {
        return Err(CodecError::Length);
    }
    Ok((body, windows))
}
