//! Where first contact puts uncompressed bytes: buffers of a fixed size, with marks where spans
//! begin, handed on when full.

use crate::blob::ByteRange;
use crate::layer::blocks::{DISTANCE_MIN, MIDST_BYTES, PLACES_MAX, Place};
use crate::layer::error::LayerErrorKind;
use crate::layer::index::{Span, SpanStart};

/// Size of a buffer, in bytes: large enough that handing it on costs nothing, small enough that
/// the few that are under way stay in the processor's cache.
pub(crate) const PIECE_BYTES: usize = 512 << 10;

/// Some bytes of the address space.
#[derive(Debug)]
pub(crate) struct Piece {
    buffer: Box<[u8]>,
    filled: usize,
    /// Positions in the buffer before which a span begins; the first span is not marked.
    pub(crate) cuts: Vec<usize>,
}

impl Piece {
    pub(crate) fn new() -> Piece {
        Piece {
            buffer: vec![0; PIECE_BYTES].into(),
            filled: 0,
            cuts: Vec::new(),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }

    /// Makes it empty.
    pub(crate) fn clear(&mut self) {
        self.filled = 0;
        self.cuts.clear();
    }
}

/// Takes full pieces and gives empty ones.
pub(crate) trait Downstream {
    fn pass(&mut self, piece: Piece) -> Result<Piece, LayerErrorKind>;
}

/// Where a span begins, before its length and digest are known.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) compressed: u64,
    pub(crate) address: u64,
    pub(crate) start: SpanStart,
}

/// Collects bytes and heads of spans.
#[derive(Debug)]
pub(crate) struct Outlet<D> {
    /// Absent only while it is downstream.
    piece: Option<Piece>,
    pub(crate) address: u64,
    address_max: u64,
    /// Where the newest span begins that decoding can begin with.
    entry: u64,
    pub(crate) heads: Vec<Head>,
    /// Places in a deflate stream.
    pub(crate) places: Vec<Place>,
    /// Where the newest block begins that was noted.
    block: u64,
    pub(crate) down: D,
}

impl<D: Downstream> Outlet<D> {
    pub(crate) fn new(address_max: u64, down: D) -> Outlet<D> {
        let first = Head {
            compressed: 0,
            address: 0,
            start: SpanStart::Origin,
        };
        Outlet {
            piece: Some(Piece::new()),
            address: 0,
            address_max,
            entry: 0,
            heads: vec![first],
            places: Vec::new(),
            block: 0,
            down,
        }
    }

    /// At most `max` (not 0) bytes to write to, at least one. Say with [`Self::wrote`] how many
    /// were written.
    pub(crate) fn room(&mut self, max: u64) -> Result<&mut [u8], LayerErrorKind> {
        if self.piece.as_ref().is_none_or(|p| p.filled == PIECE_BYTES) {
            self.flush()?;
        }
        let piece = self.piece.as_mut().ok_or(LayerErrorKind::Ended)?;
        let max = usize::try_from(max)
            .unwrap_or(usize::MAX)
            .min(PIECE_BYTES - piece.filled);
        Ok(&mut piece.buffer[piece.filled..piece.filled + max])
    }

    /// `len` bytes were written to [`Self::room`].
    pub(crate) fn wrote(&mut self, len: usize) -> Result<(), LayerErrorKind> {
        if let Some(piece) = &mut self.piece {
            piece.filled += len;
        }
        self.address += len as u64;
        if self.address > self.address_max {
            return Err(LayerErrorKind::TooLong(self.address_max));
        }
        Ok(())
    }

    /// Length of the current span so far.
    pub(crate) fn span_len(&self) -> u64 {
        self.address - self.heads.last().map_or(0, |head| head.address)
    }

    /// Bytes since the newest place where decoding can begin.
    pub(crate) fn entry_len(&self) -> u64 {
        self.address - self.entry
    }

    /// A deflate block begins here, after `consumed` bytes, the last of which it shares if `bits` is
    /// not 0.
    pub(crate) fn block(&mut self, consumed: u64, bits: u8) {
        if self.block_len() >= DISTANCE_MIN {
            self.places
                .pop_if(|place| place.address == self.address && place.block.is_none());
            self.block = self.address;
            self.place(consumed, Some(bits));
        }
    }

    /// The decoder has stopped in the midst of a block, after `consumed` bytes.
    pub(crate) fn midst(&mut self, consumed: u64) {
        if self.place_len() >= MIDST_BYTES {
            self.place(consumed, None);
        }
    }

    fn place(&mut self, consumed: u64, block: Option<u8>) {
        self.places.push(Place {
            address: self.address,
            consumed,
            block,
        });
    }

    /// Whether more places are noted.
    pub(crate) fn has_places(&self) -> bool {
        self.places.len() < PLACES_MAX
    }

    /// Bytes since the newest block that was noted.
    pub(crate) fn block_len(&self) -> u64 {
        self.address - self.block
    }

    /// Bytes since the newest place that was noted.
    pub(crate) fn place_len(&self) -> u64 {
        self.address - self.places.last().map_or(0, |place| place.address)
    }

    /// Begins a span here. One that begins here already, as a continuation, is made such a one.
    pub(crate) fn cut(&mut self, compressed: u64, start: SpanStart) {
        if start != SpanStart::Continue {
            self.entry = self.address;
        }
        if self.span_len() == 0 {
            if let Some(head) = self.heads.last_mut()
                && head.start == SpanStart::Continue
            {
                (head.compressed, head.start) = (compressed, start);
            }
            return;
        }
        self.heads.push(Head {
            compressed,
            address: self.address,
            start,
        });
        if let Some(piece) = &mut self.piece {
            piece.cuts.push(piece.filled);
        }
    }

    /// Begins a span here that needs no history, unless the last place where decoding can begin is
    /// fewer than `least` bytes ago.
    pub(crate) fn cut_origin(&mut self, compressed: u64, least: u64) {
        if self.entry_len() >= least.max(1) {
            self.cut(compressed, SpanStart::Origin);
        }
    }

    /// Hands the last bytes on.
    pub(crate) fn flush(&mut self) -> Result<(), LayerErrorKind> {
        let piece = self.piece.take().ok_or(LayerErrorKind::Ended)?;
        self.piece = Some(self.down.pass(piece)?);
        Ok(())
    }
}

/// Makes spans of heads and digests, which are one for each head but a last one of no length.
pub(crate) fn spans(
    heads: Vec<Head>,
    sums: Vec<[u8; 32]>,
    compressed_size: u64,
    address_size: u64,
) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::with_capacity(sums.len());
    let mut heads = heads.into_iter().peekable();
    for sha256 in sums {
        let Some(head) = heads.next() else { break };
        let (mut compressed_end, mut address_end) = (compressed_size, address_size);
        if let Some(next) = heads.peek().filter(|next| next.address < address_size) {
            // A byte that two spans share belongs to both.
            let shared = matches!(next.start, SpanStart::Window { bits: 1.., .. });
            compressed_end = next.compressed + u64::from(shared);
            address_end = next.address;
        }
        spans.push(Span {
            compressed: ByteRange::new(head.compressed, compressed_end),
            address: ByteRange::new(head.address, address_end),
            start: head.start,
            sha256,
        });
    }
    spans
}
