//! Windows of checkpoints that an index lacks, because it is a pack's: fetched by range when a span
//! needs them, at the same time as the span itself.
//!
//! Nothing says that such a window is right but the digest of the span that is decoded with it. One
//! that is wrong is forgotten and fetched again.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::blob::BoxFuture;
use crate::content::error::Error;
use crate::content::{Content, Layer};
use crate::layer::SpanStart;
use crate::layer::decode::SpanDecoder;

/// What came: windows by their span, and how many bytes and requests that took.
#[derive(Debug, Default)]
pub struct Brought {
    /// Windows.
    pub windows: Vec<(usize, Bytes)>,
    /// Bytes that were fetched.
    pub bytes: u64,
    /// Requests that were made.
    pub requests: u64,
}

/// Brings the windows of the checkpoints among some neighbouring spans.
pub type BringWindows =
    Arc<dyn Fn(Range<usize>) -> BoxFuture<'static, Result<Brought, Error>> + Send + Sync>;

/// Those of one layer that have come.
#[derive(Debug, Default)]
pub(super) struct Windows(Mutex<HashMap<usize, Bytes>>);

impl Windows {
    fn get(&self, span: usize) -> Option<Bytes> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&span).cloned()
    }

    fn put(&self, windows: Vec<(usize, Bytes)>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(windows);
    }

    /// Something was wrong with what was decoded by them.
    pub(super) fn forget(&self) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *known = HashMap::new();
    }
}

impl Content {
    /// A decoder for `spans` of a layer, with the windows that it needs.
    pub(super) async fn decoder(
        &self,
        layer: &Layer,
        spans: Range<usize>,
    ) -> Result<SpanDecoder, Error> {
        let index = &*layer.source.index;
        let mut decoder = SpanDecoder::new(index, spans.clone())?;
        let Some(bring) = &layer.source.windows else {
            return Ok(decoder);
        };
        let is_window = |n: &usize| matches!(index.spans[*n].start, SpanStart::Window { .. });
        let needed: Vec<usize> = spans.filter(is_window).collect();
        let absent = |n: &&usize| layer.windows.get(**n).is_none();
        if let Some(first) = needed.iter().find(absent) {
            let last = needed.iter().rfind(absent).unwrap_or(first);
            let brought = bring(*first..last + 1).await?;
            self.count_fetched(brought.bytes);
            (0..brought.requests).for_each(|_| self.count_request());
            layer.windows.put(brought.windows);
        }
        for span in needed {
            let window = layer.windows.get(span).ok_or(Error::Abandoned)?;
            decoder.set_window(span, &window);
        }
        Ok(decoder)
    }
}
