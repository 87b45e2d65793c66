//! Prefetch: what earlier starts touched is fetched in that order, before it is asked for.
//!
//! It begins with the mount, before anybody asks: an image has a profile only where it was started
//! before, and the first read of a program comes within milliseconds of its start.
//!
//! A job is a stretch of one layer. It begins with the next span in order of first use and goes on
//! as long as the following spans are wanted as well, or what lies between is cheaper to fetch than
//! to ask again. Some jobs run at a time; a reader who wants a span that has not begun fetches it
//! by itself, and the job leaves it out.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::runtime::Runtime;

use crate::blob::ByteRange;
use crate::cache::PAGE_BYTES;
use crate::content::fetch::needed;
use crate::content::profile::Profile;
use crate::content::run::Why;
use crate::content::{Content, Layer};
use crate::layer::LayerIndex;

/// Jobs at a time: the spare time of one round trip is the next one's transfer.
const JOBS: usize = 4;

/// Compressed bytes of a job: the first readers of its end should not wait for all of it.
const JOB_BYTES: u64 = 1 << 20;

/// Most bytes that nobody wants between two wanted spans, however fast the link: other jobs run in
/// the time of a round trip, and on a fast link bandwidth x RTT would be half the image.
const GAP_BYTES_MAX: u64 = 16 << 10;

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
        let content = self.clone();
        runtime.spawn(async move {
            let jobs: Arc<[Job]> = content.plan(&profile).into();
            if jobs.is_empty() {
                return;
            }
            let bytes: u64 = jobs.iter().map(|job| content.compressed(job)).sum();
            tracing::debug!(
                jobs = jobs.len(),
                bytes,
                "prefetching what earlier starts used"
            );
            let next = Arc::new(AtomicUsize::new(0));
            let workers = JOBS.min(jobs.len());
            content.prefetching.store(workers, Relaxed);
            for _ in 0..workers {
                let (content, jobs, next) = (content.clone(), jobs.clone(), next.clone());
                tokio::spawn(async move {
                    while let Some(job) = jobs.get(next.fetch_add(1, Relaxed)) {
                        content.bring_absent(job).await;
                    }
                    content.prefetching.fetch_sub(1, Relaxed);
                });
            }
        });
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

    /// The absent spans of `profile` as jobs, first use first.
    fn plan(&self, profile: &Profile) -> Vec<Job> {
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
        jobs
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
