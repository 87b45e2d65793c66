//! From compressed bytes back to spans: decompress, verify each span whole, hand it out.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

use crate::blob::ByteRange;
use crate::layer::error::{LayerError, LayerErrorKind};
use crate::layer::gzip::GzipStream;
use crate::layer::index::{LayerIndex, Span, SpanStart};
use crate::layer::limit::SPAN_BYTES_MAX;
use crate::layer::window::unpack;
use crate::layer::zstd::ZstdStream;
use crate::oci::{Compression, Digest};

/// Memory that is reserved for a span before its first byte has come out, in bytes: what an index
/// says about lengths is not believed further than this.
const RESERVE_BYTES_MAX: u64 = 4 << 20;

/// Decodes neighbouring spans of one layer. Push exactly the bytes of [`Self::compressed`] in
/// order, then [`Self::finish`].
#[derive(Debug)]
pub struct SpanDecoder {
    layer: Digest,
    /// Position of `spans[0]` in the index.
    first: usize,
    spans: Vec<Span>,
    stream: Stream,
    /// Position in `spans` of the one that is being decoded.
    current: usize,
    /// Whether the current span has begun.
    begun: bool,
    /// Offset in the blob of the next byte that is pushed or taken from what was pushed.
    offset: u64,
    /// The byte before it: a span may begin in the last byte of the one before.
    last_byte: u8,
    /// Address bytes of the current span.
    out: Vec<u8>,
}

#[derive(Debug)]
enum Stream {
    Plain,
    Gzip(Box<GzipStream>),
    Zstd(Box<ZstdStream>),
}

/// Receives verified spans: the position in the index, and all its address bytes.
pub type SpanOut<'a> = dyn FnMut(usize, &[u8]) -> Result<(), LayerError> + 'a;

impl SpanDecoder {
    /// A decoder for `spans` of `index`: not empty, and beginning with one that decoding can begin
    /// with ([`LayerIndex::decode_start`]).
    pub fn new(index: &LayerIndex, spans: Range<usize>) -> Result<SpanDecoder, LayerError> {
        SpanDecoder::open(index, spans).map_err(|kind| kind.of(&index.blob))
    }

    fn open(index: &LayerIndex, range: Range<usize>) -> Result<SpanDecoder, LayerErrorKind> {
        let spans = index.spans.get(range.clone()).unwrap_or_default();
        let Some(first) = spans
            .first()
            .filter(|first| first.start != SpanStart::Continue)
        else {
            return Err(LayerErrorKind::Spans(range.start, range.end));
        };
        if let Some(at) = spans
            .iter()
            .position(|span| span.address.len() > SPAN_BYTES_MAX)
        {
            return Err(LayerErrorKind::SpanTooLong(range.start + at));
        }
        Ok(SpanDecoder {
            layer: index.blob.clone(),
            first: range.start,
            offset: first.compressed.start(),
            spans: spans.to_vec(),
            stream: match index.compression {
                Compression::None => Stream::Plain,
                Compression::Gzip => Stream::Gzip(Box::new(GzipStream::new()?)),
                Compression::Zstd => Stream::Zstd(Box::new(ZstdStream::new()?)),
            },
            current: 0,
            begun: false,
            last_byte: 0,
            out: Vec::new(),
        })
    }

    /// Gives a span the window that the index lacks, before anything is pushed. A wrong one decodes to
    /// what does not have the span's digest.
    pub fn set_window(&mut self, span: usize, bytes: &[u8]) {
        let at = span.checked_sub(self.first);
        if let Some(span) = at.and_then(|at| self.spans.get_mut(at))
            && let SpanStart::Window { window, .. } = &mut span.start
        {
            *window = bytes.into();
        }
    }

    /// Which bytes of the blob have to be pushed.
    pub fn compressed(&self) -> ByteRange {
        let start = self.spans.first().map_or(0, |span| span.compressed.start());
        ByteRange::new(
            start,
            self.spans
                .last()
                .map_or(start, |span| span.compressed.end()),
        )
    }

    /// Takes the next bytes and hands out the spans that they complete, each after its SHA-256 has
    /// matched. After an error of either side nothing more is to be pushed.
    pub fn push(&mut self, bytes: &[u8], out: &mut SpanOut<'_>) -> Result<(), LayerError> {
        let end = self.compressed().end();
        if bytes.len() as u64 > end.saturating_sub(self.offset) {
            return Err(self.wrong_length(self.current.min(self.spans.len() - 1)));
        }
        let mut rest = bytes;
        while self.current < self.spans.len() {
            if !self.begun && !self.begin(&mut rest)? {
                return Ok(());
            }
            if !self.decode(&mut rest)? {
                return Ok(());
            }
            self.hand_out(out)?;
        }
        self.advance(rest);
        Ok(())
    }

    /// Says that there is no more.
    pub fn finish(self) -> Result<(), LayerError> {
        if self.current < self.spans.len() {
            return Err(self.wrong_length(self.current));
        }
        Ok(())
    }

    /// Goes to the current span's first byte and prepares the stream; false when more bytes are
    /// needed for it.
    fn begin(&mut self, rest: &mut &[u8]) -> Result<bool, LayerError> {
        let at = self.first + self.current;
        let (start, how) = {
            let span = &self.spans[self.current];
            (span.compressed.start(), span.start.clone())
        };
        // A continued span goes on where the one before has stopped reading.
        if how != SpanStart::Continue {
            let skip = start.saturating_sub(self.offset).min(rest.len() as u64) as usize;
            self.advance(&rest[..skip]);
            *rest = &rest[skip..];
            if self.offset < start {
                return Ok(false);
            }
        }
        let mut byte = 0;
        if let SpanStart::Window { bits: 1.., .. } = how {
            match self.offset - start {
                0 => {
                    let Some((first, others)) = rest.split_first() else {
                        return Ok(false);
                    };
                    byte = *first;
                    self.advance(&[byte]);
                    *rest = others;
                }
                1 => byte = self.last_byte,
                _ => return Err(self.error(LayerErrorKind::Spans(at, at + 1))),
            }
        } else if how != SpanStart::Continue && self.offset != start {
            return Err(self.error(LayerErrorKind::Spans(at, at + 1)));
        }
        self.start(&how, byte).map_err(|kind| self.error(kind))?;
        let len = self.spans[self.current].address.len();
        self.out.clear();
        self.out.reserve(len.min(RESERVE_BYTES_MAX) as usize);
        self.begun = true;
        Ok(true)
    }

    /// Prepares the stream.
    fn start(&mut self, how: &SpanStart, byte: u8) -> Result<(), LayerErrorKind> {
        let at = self.first + self.current;
        match (&mut self.stream, how) {
            (_, SpanStart::Continue) | (Stream::Plain, SpanStart::Origin) => {}
            (Stream::Gzip(gzip), SpanStart::Origin) => gzip.restart()?,
            (Stream::Zstd(zstd), SpanStart::Origin) => zstd.restart()?,
            (Stream::Gzip(gzip), SpanStart::Window { bits, window }) => {
                let window = unpack(window).ok_or(LayerErrorKind::Window(at))?;
                gzip.resume(*bits, byte, &window)?;
            }
            (_, SpanStart::Window { .. }) => return Err(LayerErrorKind::Spans(at, at + 1)),
        }
        Ok(())
    }

    /// Decodes until the current span is complete; false when more bytes are needed for it.
    fn decode(&mut self, rest: &mut &[u8]) -> Result<bool, LayerError> {
        let span = &self.spans[self.current];
        let len = span.address.len() as usize;
        // No byte that the next span begins with is read before that span begins.
        let limit = span.compressed.end();
        while self.out.len() < len {
            let filled = self.out.len();
            self.out.resize(len.min(filled + STEP_BYTES), 0);
            let most = limit.saturating_sub(self.offset).min(rest.len() as u64) as usize;
            let (input, room) = (&rest[..most], &mut self.out[filled..]);
            let (room_len, stepped) = (room.len(), self.stream.step(input, room));
            let (consumed, written) = stepped.map_err(|kind| self.error(kind))?;
            self.out.truncate(filled + written);
            self.advance(&input[..consumed]);
            *rest = &rest[consumed..];
            if consumed == most && written < room_len {
                if self.offset >= limit {
                    return Err(self.wrong_length(self.current));
                }
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn hand_out(&mut self, out: &mut SpanOut<'_>) -> Result<(), LayerError> {
        let at = self.first + self.current;
        if Sha256::digest(&self.out)[..] != self.spans[self.current].sha256 {
            return Err(self.error(LayerErrorKind::SpanDigest(at)));
        }
        self.current += 1;
        self.begun = false;
        out(at, &self.out)
    }

    fn advance(&mut self, bytes: &[u8]) {
        self.offset += bytes.len() as u64;
        self.last_byte = bytes.last().copied().unwrap_or(self.last_byte);
    }

    fn wrong_length(&self, at: usize) -> LayerError {
        let len = self.spans[at].address.len();
        self.error(LayerErrorKind::SpanLength(self.first + at, len))
    }

    fn error(&self, kind: LayerErrorKind) -> LayerError {
        kind.of(&self.layer)
    }
}

/// Most output of one step, so that a span that lies about its length costs little.
const STEP_BYTES: usize = 256 << 10;

impl Stream {
    /// Bytes consumed and written.
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<(usize, usize), LayerErrorKind> {
        match self {
            Stream::Plain => {
                let n = input.len().min(output.len());
                output[..n].copy_from_slice(&input[..n]);
                Ok((n, n))
            }
            Stream::Gzip(gzip) => {
                let step = gzip.step(input, output, false)?;
                Ok((step.consumed, step.written))
            }
            Stream::Zstd(zstd) => {
                let step = zstd.step(input, output)?;
                Ok((step.consumed, step.written))
            }
        }
    }
}
