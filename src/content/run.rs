//! One run: neighbouring spans through one stream and one decoder.
//!
//! Decoding can begin at some spans only, so the spans before the wanted one come along and are
//! kept, and the stream ends as soon as the wanted one has come out. Its decoder is parked, so that
//! a later span behind the same beginning goes on from there: no byte is fetched twice. A reader
//! that goes on where the last run ended is taken for a sequential one, and each of its runs is
//! twice as long as the one before.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lru::LruCache;

use crate::blob::ByteRange;
use crate::cache::FetchRight;
use crate::content::error::Error;
use crate::content::{Content, Layer};
use crate::layer::decode::SpanDecoder;
use crate::layer::{LayerIndex, SpanStart};

/// Decoders of one layer that are kept; each holds about 100 KiB.
const PARKED_MAX: NonZeroUsize = NonZeroUsize::new(8).unwrap();

/// Readers of one layer that are recognized as sequential.
const READERS_MAX: NonZeroUsize = NonZeroUsize::new(32).unwrap();

/// Longest run, in spans: 8 MiB of address space.
const AHEAD_MAX: usize = 64;

/// How long another process is waited for that fetches the same: it may have been stopped.
const OTHERS_PATIENCE: Duration = Duration::from_secs(30);

/// How often one looks whether it has done so.
const OTHERS_GLANCE: Duration = Duration::from_millis(5);

/// For whom a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// A reader waits.
    Demand,
    /// Nobody does yet.
    Background,
}

/// A decoder in the middle of what cannot be entered in the middle.
#[derive(Debug)]
struct Decoding {
    decoder: SpanDecoder,
    /// Spans that it can still give.
    spans: Range<usize>,
    /// Offset in the blob of the next byte that it needs.
    offset: u64,
}

/// Who decodes from one beginning holds this: two would fetch the same bytes.
type Slot = Arc<tokio::sync::Mutex<Option<Decoding>>>;

/// What is remembered of the runs of a layer.
#[derive(Debug)]
pub(super) struct Runs {
    /// Decoders by the span that they began with.
    slots: Mutex<LruCache<usize, Slot>>,
    /// Lengths of runs by the span that follows them.
    readers: Mutex<LruCache<usize, usize>>,
}

impl Default for Runs {
    fn default() -> Runs {
        Runs {
            slots: Mutex::new(LruCache::new(PARKED_MAX)),
            readers: Mutex::new(LruCache::new(READERS_MAX)),
        }
    }
}

impl Runs {
    fn slot(&self, start: usize) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.get_or_insert(start, Slot::default).clone()
    }

    /// How far a run that is asked for `wanted` should go.
    fn ahead(&self, wanted: &Range<usize>) -> usize {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let before = readers.pop(&wanted.start).unwrap_or(0);
        let len = wanted.len().max((2 * before).min(AHEAD_MAX));
        readers.put(wanted.start + len, len);
        wanted.start + len
    }
}

/// What a decoder for `wanted` can give: as far back as it must begin and as far on as it can go.
fn reach(index: &LayerIndex, wanted: &Range<usize>) -> Range<usize> {
    let start = index.decode_start(wanted.start);
    let more = index.spans[wanted.end..].iter();
    let more = more.take_while(|s| s.start == SpanStart::Continue).count();
    start..wanted.end + more
}

impl Content {
    /// Streams what the front of `left` needs, at least one span; takes from it each span that has
    /// been stored.
    pub(super) async fn run(
        &self,
        number: u32,
        left: &mut Range<usize>,
        why: Why,
    ) -> Result<(), Error> {
        let layer = self.layer(number)?;
        let index = &*layer.source.index;
        let _right = self.right_to(layer, left).await;
        if left.start == left.end {
            return Ok(());
        }
        let slot = layer.runs.slot(index.decode_start(left.start));
        let mut parked = slot.lock().await;
        // What the one before needed may have brought what is wanted here.
        while left.start < left.end && layer.has_span(left.start) {
            self.flights.landed(number, left.start);
            left.start += 1;
        }
        if left.start == left.end {
            return Ok(());
        }
        let ahead = match why {
            Why::Demand if !self.is_prefetching() => self.ahead(layer, left),
            Why::Demand | Why::Background => Ahead::none(self, number, left.end),
        };
        let end = ahead.spans.end;
        let kept = parked.take().filter(|d| d.spans.contains(&left.start));
        let (offset, spans) = match &kept {
            Some(kept) => (kept.offset, kept.spans.clone()),
            None => {
                let spans = reach(index, &(left.start..end));
                (index.spans[spans.start].compressed.start(), spans)
            }
        };
        let end = end.min(spans.end);
        let range = ByteRange::new(offset, index.spans[end - 1].compressed.end());
        self.tally.requests.fetch_add(1, Relaxed);
        let asked = Instant::now();
        let open = async {
            let stream = layer.source.blob.open(range).await?;
            Ok::<_, Error>((stream, asked.elapsed()))
        };
        let begin = async {
            match kept {
                Some(kept) => Ok(kept),
                None => Ok(Decoding {
                    decoder: self.decoder(layer, spans.clone()).await?,
                    spans,
                    offset,
                }),
            }
        };
        let ((mut stream, waited), mut decoding) = tokio::try_join!(open, begin)?;
        let receiving = self.pace.receive(waited);
        while let Some(piece) = stream.next().await {
            let piece = piece?;
            self.demand.heard();
            self.tally
                .fetched_bytes
                .fetch_add(piece.len() as u64, Relaxed);
            receiving.arrived(piece.len() as u64);
            decoding.offset += piece.len() as u64;
            tokio::task::block_in_place(|| self.decode(layer, &mut decoding, &piece, left))?;
        }
        drop(receiving);
        if decoding.spans.start < end {
            // The stream gave all its bytes, and the decoder says what is wrong with them.
            decoding.decoder.finish()?;
            return Err(Error::Abandoned);
        }
        if decoding.spans.start < decoding.spans.end {
            *parked = Some(decoding);
        }
        Ok(())
    }

    /// Waits until no other process fetches what is in `left`, and takes from it what one has brought
    /// meanwhile: two mounts of one image share their requests.
    async fn right_to(&self, layer: &Layer, left: &mut Range<usize>) -> Option<FetchRight> {
        let (since, spans) = (Instant::now(), &layer.source.index.spans);
        let mut waited = false;
        loop {
            let right = layer.source.pages.try_fetch(ByteRange::new(
                spans[left.start].address.start(),
                spans[left.end - 1].address.end(),
            ));
            while waited && left.start < left.end && layer.has_pages_of(left.start) {
                self.flights.landed(layer.number, left.start);
                left.start += 1;
            }
            if right.is_some() || left.start == left.end || since.elapsed() > OTHERS_PATIENCE {
                return right;
            }
            waited = true;
            tokio::time::sleep(OTHERS_GLANCE).await;
        }
    }

    /// Takes on what a sequential reader of `wanted` will ask for next: not what is there, and not
    /// what somebody else is bringing.
    fn ahead(&self, layer: &Layer, wanted: &Range<usize>) -> Ahead<'_> {
        let mut ahead = Ahead::none(self, layer.number, wanted.end);
        for span in wanted.end..until(layer, wanted) {
            if self.flights.claim(layer.number, &[span]).is_empty() {
                break;
            }
            ahead.spans.end = span + 1;
        }
        ahead
    }

    fn decode(
        &self,
        layer: &Layer,
        decoding: &mut Decoding,
        piece: &[u8],
        left: &mut Range<usize>,
    ) -> Result<(), Error> {
        let index = &layer.source.index;
        let spans = &mut decoding.spans;
        let pushed = decoding.decoder.push(piece, &mut |span, bytes| {
            layer
                .fringe
                .store(&layer.source.pages, index.spans[span].address, bytes);
            spans.start = span + 1;
            if left.contains(&span) {
                left.start = span + 1;
            }
            self.flights.landed(layer.number, span);
            Ok(())
        });
        pushed.map_err(|e| {
            self.tally.verify_failures.fetch_add(1, Relaxed);
            layer.windows.forget();
            Error::Layer(e)
        })
    }
}

/// Spans that were taken on beyond those that somebody waits for. Whoever has come to wait for one
/// meanwhile is woken in any case, and asks again if it did not come.
struct Ahead<'a> {
    content: &'a Content,
    layer: u32,
    spans: Range<usize>,
}

impl<'a> Ahead<'a> {
    fn none(content: &'a Content, layer: u32, at: usize) -> Ahead<'a> {
        let spans = at..at;
        Ahead {
            content,
            layer,
            spans,
        }
    }
}

impl Drop for Ahead<'_> {
    fn drop(&mut self) {
        for span in self.spans.clone() {
            self.content.flights.landed(self.layer, span);
        }
    }
}

/// Where a run for `wanted` ends: not in the middle of what is wanted, and not in what is there.
fn until(layer: &Layer, wanted: &Range<usize>) -> usize {
    let spans = layer.source.index.spans.len();
    let ahead = layer.runs.ahead(wanted).min(spans);
    (wanted.end..ahead)
        .find(|&span| layer.has_span(span))
        .unwrap_or(ahead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequential_reader_gets_longer_runs() {
        let runs = Runs::default();
        assert_eq!(runs.ahead(&(10..11)), 11);
        assert_eq!(runs.ahead(&(50..51)), 51, "somebody else");
        assert_eq!(runs.ahead(&(11..12)), 13);
        assert_eq!(runs.ahead(&(13..14)), 17);
        assert_eq!(runs.ahead(&(14..15)), 15, "not where a run has ended");
        let mut at = 17;
        for _ in 0..10 {
            at = runs.ahead(&(at..at + 1));
        }
        assert_eq!(runs.ahead(&(at..at + 1)), at + AHEAD_MAX);
    }
}
