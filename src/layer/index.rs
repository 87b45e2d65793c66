//! The index of a layer: everything that has to be known to list it and to read any part of it.

use crate::blob::ByteRange;
use crate::layer::entry::{Entry, Whiteout};
use crate::oci::{Compression, Digest};

/// Target distance, in bytes of address space, between places where decoding can begin. A window
/// costs up to 32 KiB. Measured on a python image (96 MB of gzip), indexes and fetch of a first
/// import: 2 MiB 0.5 % and 18.3 %, 1 MiB 0.7 % and 14.4 %, 512 KiB 1.2 % and 12.6 %.
pub const ENTRY_BYTES: u64 = 1 << 20;

/// Longest span in bytes of address space. Between two places where decoding can begin there are
/// several spans, each with its own digest (about 40 bytes), so that decoding can stop as soon as
/// what is wanted has come out and is verified.
pub const SPAN_BYTES: u64 = 128 << 10;

/// How finely a layer is cut, in bytes of address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Target distance between places where decoding can begin.
    pub entry_bytes: u64,
    /// Longest span.
    pub span_bytes: u64,
}

impl Default for Geometry {
    fn default() -> Geometry {
        Geometry {
            entry_bytes: ENTRY_BYTES,
            span_bytes: SPAN_BYTES,
        }
    }
}

impl Geometry {
    /// No place to begin but the start, and one span: the base line of the benchmark.
    pub const WHOLE: Geometry = Geometry {
        entry_bytes: u64::MAX,
        span_bytes: u64::MAX,
    };
}

/// Position of a span in [`LayerIndex::spans`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanId(pub u32);

/// How decoding of a span begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpanStart {
    /// At a place that needs no history: an uncompressed slice, a gzip member's header, or a zstd
    /// frame, at the first byte of `compressed`.
    Origin,
    /// In the middle of a deflate stream, at a block boundary.
    Window {
        /// `0..8`: how many of the high bits of the first byte of `compressed` belong to the block;
        /// 0 when the block begins with the first byte.
        bits: u8,
        /// The 32 KiB (or fewer, near a member's start) of address space before the span, with
        /// bytes that nothing refers to set to 0; compressed with zstd.
        window: Box<[u8]>,
    },
    /// Not on its own: decode from the nearest earlier span that is not `Continue` (a long zstd
    /// frame, or a deflate block longer than a span).
    Continue,
}

/// A piece of the address space that is fetched, decoded and verified as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The bytes of the blob that have to be fed to the decoder, from this span's own start on.
    /// Neighbours may share a byte.
    pub compressed: ByteRange,
    /// The addresses that come out. Spans partition `0..address_size` in order.
    pub address: ByteRange,
    /// How to begin.
    pub start: SpanStart,
    /// SHA-256 of the address bytes.
    pub sha256: [u8; 32],
}

/// Everything known about one layer blob. Immutable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerIndex {
    /// Digest of the blob as stored by the registry.
    pub blob: Digest,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Length of the blob in bytes.
    pub compressed_size: u64,
    /// Length of the uncompressed tar in bytes.
    pub address_size: u64,
    /// What the blob's bytes turned out to be.
    pub compression: Compression,
    /// What is hidden of lower layers; applied before all `entries`.
    pub whiteouts: Vec<Whiteout>,
    /// What is added, in tar order.
    pub entries: Vec<Entry>,
    /// Partition of the address space.
    pub spans: Vec<Span>,
}

impl LayerIndex {
    /// The spans that hold any byte of `range`, as half-open positions in [`Self::spans`].
    pub fn spans_of(&self, range: ByteRange) -> std::ops::Range<usize> {
        let first = self
            .spans
            .partition_point(|s| s.address.end() <= range.start());
        let last = self
            .spans
            .partition_point(|s| s.address.start() < range.end());
        first..last.max(first)
    }

    /// Where decoding must begin to get span `span`: itself, unless it is [`SpanStart::Continue`].
    /// An index that was decoded from disk begins with a span that is not, so this ends.
    pub fn decode_start(&self, span: usize) -> usize {
        (0..=span)
            .rev()
            .find(|&i| !matches!(self.spans[i].start, SpanStart::Continue))
            .unwrap_or(0)
    }
}
