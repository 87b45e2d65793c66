//! Prefetch: what earlier starts touched is fetched in that order, before it is asked for.
//!
//! It begins with the mount, before anybody asks: an image has a profile only where it was started
//! before, and the first read of a program comes within milliseconds of its start.
//!
//! A job is a stretch of one layer. It begins with the next span in order of first use and goes on
//! as long as the following spans are wanted as well, or what lies between is cheaper to fetch than
//! to ask again. Some jobs run at a time, each in requests for what comes in a short time: a reader
//! who wants a span that has not been asked for fetches it by itself, and the job leaves it out. While
//! a reader waits for what the profile does not name, nothing more is asked for.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::runtime::Runtime;

use crate::blob::ByteRange;
use crate::cache::PAGE_BYTES;
use crate::content::fetch::needed;
use crate::content::fill::{REQUEST_TIME, REQUESTS};
use crate::content::profile::Profile;
use crate::content::run::Why;
use crate::content::{Content, Layer};
use crate::layer::{LayerIndex, SpanStart};

/// Jobs at a time: the spare time of one round trip is the next one's transfer.
const JOBS: usize = 4;

/// Compressed bytes of a job, and most of a request, however fast the link.
const JOB_BYTES: u64 = 1 << 20;

/// Least of a request: below, asking costs more than it brings.
const REQUEST_BYTES_MIN: u64 = 64 << 10;

/// Most bytes that nobody wants between two wanted spans, however fast the link: other jobs run in
/// the time of a round trip, and on a fast link bandwidth x RTT would be half the image.
const GAP_BYTES_MAX: u64 = 16 << 10;

/// The spans that a profile names and that may not have come yet.
#[derive(Debug, Default)]
pub(super) struct Foreseen {
    spans: RwLock<HashSet<(u32, usize)>>,
    /// How many workers bring them.
    workers: AtomicUsize,
}

impl Foreseen {
    /// Whether all of `spans` are among them.
    pub(super) fn has(&self, layer: u32, spans: &[usize]) -> bool {
        if self.workers.load(Relaxed) == 0 {
            return false;
        }
        let of = self.spans.read().unwrap_or_else(PoisonError::into_inner);
        spans.iter().all(|span| of.contains(&(layer, *span)))
    }

    fn put(&self, spans: HashSet<(u32, usize)>) {
        *self.spans.write().unwrap_or_else(PoisonError::into_inner) = spans;
    }

    /// One of those that bring them has ended.
    fn ended(&self) {
        if self.workers.fetch_sub(1, Relaxed) == 1 {
            self.put(HashSet::new());
        }
    }
}

/// A stretch of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) layer: u32,
    pub(super) spans: Range<usize>,
}

impl Content {
    /// Starts to prefetch `profile` on `runtime`. Also the planning is done there: the caller may be
    /// a thread that answers the kernel.
    pub(super) fn prefetch(self: &Arc<Self>, runtime: &Runtime, profile: Profile) {
        if profile.touches.is_empty() {
            return;
        }
        let content = self.clone();
        // From now on the fill waits; the one who plans stands for those who will bring.
        content.foreseen.workers.store(1, Relaxed);
        runtime.spawn(async move {
            let (jobs, foreseen) = content.plan(&profile);
            let jobs: Arc<[Job]> = jobs.into();
            let bytes: u64 = jobs.iter().map(|job| content.compressed(job)).sum();
            tracing::debug!(
                jobs = jobs.len(),
                bytes,
                "prefetching what earlier starts used"
            );
            let next = Arc::new(AtomicUsize::new(0));
            let workers = JOBS.min(jobs.len());
            content.foreseen.put(foreseen);
            content.foreseen.workers.fetch_add(workers, Relaxed);
            for _ in 0..workers {
                let (content, jobs, next) = (content.clone(), jobs.clone(), next.clone());
                tokio::spawn(async move {
                    while let Some(job) = jobs.get(next.fetch_add(1, Relaxed)) {
                        content.bring_in_pieces(job).await;
                    }
                    content.foreseen.ended();
                });
            }
            content.foreseen.ended();
        });
    }

    /// Whether what a profile names is being brought: what follows it is known better than guessed.
    pub(super) fn is_prefetching(&self) -> bool {
        self.foreseen.workers.load(Relaxed) > 0
    }

    async fn bring_in_pieces(self: &Arc<Self>, job: &Job) {
        let Some(layer) = self.layers.get(job.layer as usize) else {
            return;
        };
        let mut at = job.spans.start;
        while at < job.spans.end {
            self.demand.calm().await;
            // All requests together ask for as much as those of a fill.
            let bytes = self.pace.bytes_in(REQUEST_TIME) * REQUESTS as u64 / JOBS as u64;
            let bytes = bytes.clamp(REQUEST_BYTES_MIN, JOB_BYTES);
            let spans = piece(&layer.source.index, at..job.spans.end, bytes);
            at = spans.end;
            let piece = Job {
                layer: job.layer,
                spans,
            };
            self.bring_absent(&piece).await;
        }
    }

    /// Compressed bytes of a job, from where decoding begins.
    pub(super) fn compressed(&self, job: &Job) -> u64 {
        let Some(layer) = self.layers.get(job.layer as usize) else {
            return 0;
        };
        let index = &layer.source.index;
        let start = index.spans[index.decode_start(job.spans.start)].compressed;
        let end = index.spans[job.spans.end - 1].compressed.end();
        end.saturating_sub(start.start())
    }

    /// Brings the spans of a job that are neither present nor on their way.
    pub(super) async fn bring_absent(self: &Arc<Self>, job: &Job) {
        let Ok(layer) = self.layer(job.layer) else {
            return;
        };
        while let Some(wait) = layer.source.blob.busy() {
            tokio::time::sleep(wait).await;
        }
        let absent: Vec<usize> = job
            .spans
            .clone()
            .filter(|&span| !layer.has_span(span))
            .collect();
        for run in super::fetch::runs(&self.flights.claim(job.layer, &absent)) {
            self.clone().bring(job.layer, run, Why::Background).await;
        }
    }

    /// The absent spans of `profile` as jobs, first use first, and as a set.
    fn plan(&self, profile: &Profile) -> (Vec<Job>, HashSet<(u32, usize)>) {
        let gap = self.pace.gap().min(GAP_BYTES_MAX);
        let mut wanted: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); self.layers.len()];
        let mut order = Vec::new();
        for touch in &profile.touches {
            let Some(layer) = self.layers.get(touch.layer as usize) else {
                continue;
            };
            let range = touch.range(layer.source.pages.size());
            for span in needed(layer, range) {
                if wanted[touch.layer as usize].insert(span) {
                    order.push((touch.layer, span));
                }
            }
        }
        let foreseen = order.iter().copied().collect();
        let mut jobs = Vec::new();
        for (layer, span) in order {
            let left = &mut wanted[layer as usize];
            if !left.contains(&span) {
                continue;
            }
            let index = &self.layers[layer as usize].source.index;
            let spans = stretch(index, left, span, gap);
            left.retain(|wanted| !spans.contains(wanted));
            jobs.push(Job { layer, spans });
        }
        (jobs, foreseen)
    }
}

impl Layer {
    /// Whether the pages that lie wholly within a span are present; false for one that has none. What
    /// another process has of the pages at its ends is not known here.
    pub(super) fn has_pages_of(&self, span: usize) -> bool {
        let address = self.source.index.spans[span].address;
        let end = match address.end() == self.source.pages.size() {
            true => address.end(),
            false => address.end() / PAGE_BYTES * PAGE_BYTES,
        };
        let inner = ByteRange::new(address.start().next_multiple_of(PAGE_BYTES), end);
        !inner.is_empty() && self.source.pages.is_present(inner)
    }

    /// Whether all of a span can be read.
    pub(super) fn has_span(&self, span: usize) -> bool {
        needed(self, self.source.index.spans[span].address).is_empty()
    }
}

/// The front of `spans` that a request for about `bytes` brings, at least one span. It ends where
/// another can begin, if it can: elsewhere what follows goes on with its decoder.
fn piece(index: &LayerIndex, spans: Range<usize>, bytes: u64) -> Range<usize> {
    let far = index.spans[spans.start].compressed.start() + bytes;
    let mut entry = None;
    for span in spans.start + 1..spans.end {
        if index.spans[span].compressed.end() > far {
            return spans.start..entry.unwrap_or(span);
        }
        if index.spans[span].start != SpanStart::Continue {
            entry = Some(span);
        }
    }
    spans
}

/// From `first` on, as long as something of `wanted` follows within `gap` compressed bytes.
fn stretch(index: &LayerIndex, wanted: &BTreeSet<usize>, first: usize, gap: u64) -> Range<usize> {
    let compressed = |span: usize| index.spans[span].compressed;
    let start = compressed(index.decode_start(first)).start();
    let mut end = first + 1;
    for &span in wanted.range(end..) {
        let skipped = compressed(span)
            .start()
            .saturating_sub(compressed(end - 1).end());
        if skipped > gap || compressed(span).end().saturating_sub(start) > JOB_BYTES {
            break;
        }
        end = span + 1;
    }
    first..end
}
