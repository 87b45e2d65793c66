//! The other parts: the windows of one layer's checkpoints, in the order of its spans, each behind
//! its length (u32, little endian).

use crate::layer::{LayerIndex, SpanStart};
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
}
