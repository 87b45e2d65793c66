//! Spans in the index format. Ends are not written: a span ends where the next one begins.

use crate::blob::ByteRange;
use crate::layer::codec::CodecError;
use crate::layer::codec::wire::{Source, Target};
use crate::layer::index::{LayerIndex, Span, SpanStart};
use crate::oci::Compression;

const ORIGIN: u8 = 0;
const CONTINUE: u8 = 1;
/// Plus the number of bits.
const WINDOW: u8 = 2;

/// Fewest bytes of a span: address length, compressed start, kind, SHA-256.
const SPAN_BYTES_MIN: usize = 35;
/// Longest packed window: 32 KiB that cannot be compressed, and zstd's frame around them.
pub const WINDOW_PACKED_MAX: usize = 33 << 10;

/// Writes `spans`; their windows are returned, to stand behind the body.
pub(super) fn write_spans(to: &mut Target, spans: &[Span]) -> Vec<u8> {
    let mut windows = Vec::new();
    to.varint(spans.len() as u64);
    let mut before = 0;
    for span in spans {
        to.varint(span.address.len());
        to.varint(span.compressed.start().wrapping_sub(before));
        before = span.compressed.start();
        match &span.start {
            SpanStart::Origin => to.byte(ORIGIN),
            SpanStart::Continue => to.byte(CONTINUE),
            SpanStart::Window { bits, window } => {
                to.byte(WINDOW + bits);
                to.varint(window.len() as u64);
                windows.extend_from_slice(window);
            }
        }
        to.raw(&span.sha256);
    }
    windows
}

/// Reads spans, which must partition the address space of `index`.
pub(super) fn read_spans(
    from: &mut Source<'_>,
    mut windows: &[u8],
    index: &LayerIndex,
) -> Result<Vec<Span>, CodecError> {
    let count = from.count(SPAN_BYTES_MIN)?;
    let mut spans: Vec<Span> = Vec::with_capacity(count);
    let (mut address, mut compressed) = (0_u64, 0_u64);
    for _ in 0..count {
        let len = from.varint()?;
        let invalid = CodecError::Invalid("span");
        compressed = compressed
            .checked_add(from.varint()?)
            .ok_or(invalid.clone())?;
        let (start, shared) = read_start(from, &mut windows)?;
        let sha256 = from.raw(32)?.try_into().map_err(|_| CodecError::Length)?;
        let span = Span {
            compressed: ByteRange::new(compressed, index.compressed_size),
            address: ByteRange::at(address, len).ok_or(invalid.clone())?,
            start,
            sha256,
        };
        address = span.address.end();
        let end = compressed.saturating_add(shared.into());
        let possible = is_possible(&span, index.compression, spans.is_empty());
        if !possible || len == 0 || end > index.compressed_size {
            return Err(invalid);
        }
        if let Some(last) = spans.last_mut() {
            last.compressed = ByteRange::new(last.compressed.start(), end);
        }
        spans.push(span);
    }
    let plain = index.compression == Compression::None;
    if address != index.address_size || (plain && address != index.compressed_size) {
        return Err(CodecError::Invalid("address space"));
    }
    if !windows.is_empty() {
        return Err(CodecError::Length);
    }
    Ok(spans)
}

/// Whether `span` can occur in a blob so compressed.
fn is_possible(span: &Span, compression: Compression, first: bool) -> bool {
    if first && (span.start != SpanStart::Origin || span.compressed.start() != 0) {
        return false;
    }
    match (&span.start, compression) {
        (SpanStart::Origin, Compression::None) => span.compressed.start() == span.address.start(),
        (SpanStart::Origin, _) => true,
        (SpanStart::Continue, compression) => compression != Compression::None,
        (SpanStart::Window { .. }, compression) => compression == Compression::Gzip,
    }
}

/// How a span starts, and whether it shares its first byte with the span before.
fn read_start(from: &mut Source<'_>, windows: &mut &[u8]) -> Result<(SpanStart, bool), CodecError> {
    let kind = from.byte()?;
    match kind {
        ORIGIN => Ok((SpanStart::Origin, false)),
        CONTINUE => Ok((SpanStart::Continue, false)),
        WINDOW..=9 => {
            let len = from.len()?;
            if len > WINDOW_PACKED_MAX {
                return Err(CodecError::Invalid("window"));
            }
            let (window, rest) = windows.split_at_checked(len).ok_or(CodecError::Length)?;
            *windows = rest;
            let bits = kind - WINDOW;
            Ok((
                SpanStart::Window {
                    bits,
                    window: window.into(),
                },
                bits > 0,
            ))
        }
        _ => Err(CodecError::Invalid("span")),
    }
}
