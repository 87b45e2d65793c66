//! The other parts: the windows of one layer's checkpoints, in the order of its spans, each behind
//! its length (u32, little endian). Their lengths are in the first part as well, so that a few can be
//! fetched by range.

use std::ops::Range;

use crate::blob::ByteRange;
use crate::layer::codec::WINDOW_PACKED_MAX;
use crate::layer::{LayerIndex, Span, SpanStart};
use crate::pack::PackError;
use crate::pack::reader::{Reader, put_bytes};

/// The windows of `index`.
pub fn encode(index: &LayerIndex) -> Vec<u8> {
    let mut out = Vec::new();
    for span in &index.spans {
        if let SpanStart::Window { window, .. } = &span.start {
            put_bytes(&mut out, window);
        }
    }
    out
}

/// The lengths of the windows of `index`, in order.
pub fn lengths(index: &LayerIndex) -> Vec<u32> {
    let of = |start: &SpanStart| match start {
        SpanStart::Window { window, .. } => Some(u32::try_from(window.len()).unwrap_or(u32::MAX)),
        SpanStart::Origin | SpanStart::Continue => None,
    };
    index.spans.iter().filter_map(|s| of(&s.start)).collect()
}

/// Where the windows of a layer are in its part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Which spans have one.
    spans: Vec<usize>,
    /// Where that of each begins, behind its length, and where it ends.
    windows: Vec<ByteRange>,
}

/// Bytes of a length before a window.
const LENGTH_BYTES: u64 = 4;

impl Places {
    /// For `index`, whose windows have these `lengths`, in a part of `size` bytes; `None` when these
    /// do not fit each other, or one is longer than a window can be.
    pub fn new(index: &LayerIndex, lengths: &[u32], size: u64) -> Option<Places> {
        let is_window = |n: &usize| matches!(index.spans[*n].start, SpanStart::Window { .. });
        let spans: Vec<usize> = (0..index.spans.len()).filter(is_window).collect();
        let mut end = 0;
        let place = |len: &u32| {
            let start = end + LENGTH_BYTES;
            end = start + u64::from(*len);
            ByteRange::new(start, end)
        };
        let windows: Vec<ByteRange> = lengths.iter().map(place).collect();
        let can_be = lengths.iter().all(|len| *len as usize <= WINDOW_PACKED_MAX);
        (can_be && windows.len() == spans.len() && end == size).then_some(Places { spans, windows })
    }

    /// Whether a part of `size` bytes can be all windows of `index`.
    pub fn can_be(index: &LayerIndex, size: u64) -> bool {
        let is_window = |span: &&Span| matches!(span.start, SpanStart::Window { .. });
        let windows = index.spans.iter().filter(is_window).count() as u64;
        size <= windows * (LENGTH_BYTES + WINDOW_PACKED_MAX as u64)
    }

    /// Those of `spans`: with the span, where it is in the part.
    pub fn of(&self, spans: &Range<usize>) -> impl Iterator<Item = (usize, ByteRange)> {
        let first = self.spans.partition_point(|span| *span < spans.start);
        let last = self.spans.partition_point(|span| *span < spans.end);
        let of = first..last.max(first);
        let windows = self.windows[of.clone()].iter().copied();
        self.spans[of].iter().copied().zip(windows)
    }
}

/// `index` with the windows of `bytes`. What a wrong window decodes to does not have its span's
/// digest.
pub fn restore(index: &LayerIndex, bytes: &[u8]) -> Result<LayerIndex, PackError> {
    let mut index = index.clone();
    let mut reader = Reader(bytes);
    for span in &mut index.spans {
        if let SpanStart::Window { window, .. } = &mut span.start {
            *window = reader.bytes()?.into();
        }
    }
    reader.end()?;
    Ok(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::meta::{tests::index, without_windows};

    #[test]
    fn windows_come_back() {
        let whole = index(12_288);
        let bytes = encode(&whole);
        let bare = without_windows(&whole);
        assert_ne!(bare, whole);
        assert_eq!(restore(&bare, &bytes), Ok(whole));
        assert!(restore(&bare, &bytes[1..]).is_err());
        assert!(restore(&bare, &[&bytes[..], b"x"].concat()).is_err());
    }

    #[test]
    fn a_window_is_found_by_its_span() {
        let whole = index(12_288);
        let (bytes, lengths) = (encode(&whole), lengths(&whole));
        let places = Places::new(&whole, &lengths, bytes.len() as u64).unwrap();
        assert_eq!(places.of(&(0..1)).count(), 0);
        let (span, place) = places.of(&(0..2)).next().unwrap();
        assert_eq!(span, 1);
        let window = &bytes[place.start() as usize..place.end() as usize];
        assert!(
            matches!(&whole.spans[1].start, SpanStart::Window { window: w, .. } if **w == *window)
        );
        assert_eq!(Places::new(&whole, &lengths, bytes.len() as u64 + 1), None);
        assert_eq!(Places::new(&whole, &[], bytes.len() as u64), None);
        let long = [WINDOW_PACKED_MAX as u32 + 1];
        assert_eq!(Places::new(&whole, &long, u64::from(long[0]) + 4), None);
        assert!(Places::can_be(&whole, bytes.len() as u64));
        assert!(!Places::can_be(&whole, u64::from(long[0]) + 4));
    }
}
