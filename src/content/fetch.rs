//! What a fetch has to bring: from absent pages to runs of spans, and the policy for a source that
//! cannot be reached.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

use crate::blob::ByteRange;
use crate::cache::PAGE_BYTES;
use crate::content::error::Error;
use crate::content::flights::Done;
use crate::content::run::Why;
use crate::content::stalls::Bill;
use crate::content::{Content, Layer, Outage};

/// Threads of the network runtime: one that decodes while the other talks.
const THREADS: usize = 2;

/// The wait between tries during an outage grows up to this.
const OUTAGE_WAIT_MAX: Duration = Duration::from_secs(5);

/// Longer waits that a source asks for are cut to this, so that a reader notices its return.
const OUTAGE_ASKED_MAX: Duration = Duration::from_secs(60);

impl Content {
    /// Brings `range` of layer `layer`; returns at once and calls `done` when it can be read, or
    /// when it cannot be had.
    pub fn fetch(
        self: &Arc<Self>,
        layer: u32,
        range: ByteRange,
        done: Box<dyn FnOnce(Result<(), Arc<Error>>) + Send>,
    ) {
        let found = match self.layer(layer) {
            Ok(found) => found,
            Err(e) => return done(Err(Arc::new(e))),
        };
        if self.poisoned.load(Relaxed) {
            return done(Err(Arc::new(Error::Poisoned)));
        }
        let needed = needed(found, range);
        if needed.is_empty() {
            return done(Ok(()));
        }
        let runtime = match self.runtime() {
            Ok(runtime) => runtime,
            Err(e) => return done(Err(Arc::new(e))),
        };
        let (bill, done) = self.timed(found, range, done);
        let content = self.clone();
        let foreseen = self.foreseen.has(layer, &needed);
        self.demand.enter(foreseen);
        let done = Box::new(move |outcome| {
            content.demand.leave(foreseen);
            done(outcome);
        });
        let done = self.with_deadline(runtime, done);
        if let Some(done) = self.wait_for_hot(layer, range, &bill, done) {
            self.fetch_spans(layer, range, &bill, done);
        }
    }

    /// Brings the spans without which `range` cannot be read, and puts them on the reader's bill.
    pub(super) fn fetch_spans(
        self: &Arc<Self>,
        layer: u32,
        range: ByteRange,
        bill: &Bill,
        done: Done,
    ) {
        let found = match self.layer(layer) {
            Ok(found) => found,
            Err(e) => return done(Err(Arc::new(e))),
        };
        let needed = needed(found, range);
        if needed.is_empty() {
            return done(Ok(()));
        }
        let runtime = match self.runtime() {
            Ok(runtime) => runtime,
            Err(e) => return done(Err(Arc::new(e))),
        };
        bill.wait_for_spans();
        let fresh = runs(&self.flights.join(layer, &needed, done));
        bill.charge(&found.source.index, &fresh);
        for run in fresh {
            let content = self.clone();
            runtime.spawn(async move { content.bring(layer, run, Why::Demand).await });
        }
        self.begin_background(runtime);
    }

    /// Starts prefetch and fill, once.
    fn begin_background(self: &Arc<Self>, runtime: &Runtime) {
        let profile = self
            .profile
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(profile) = profile {
            self.prefetch(runtime, profile);
            self.fill(runtime);
        }
    }

    /// Starts what does not wait for a first reader.
    pub(super) fn begin(self: &Arc<Self>) -> Result<(), Error> {
        let runtime = self.runtime()?;
        self.begin_background(runtime);
        Ok(())
    }

    /// Threads that fetch, for [`Content::new`].
    pub fn new_runtime() -> std::io::Result<Runtime> {
        let mut builder = Builder::new_multi_thread();
        let builder = builder.worker_threads(THREADS);
        builder.thread_name("fetch").enable_all().build()
    }

    /// The threads that fetch; started by the first call.
    pub fn runtime(&self) -> Result<&Runtime, Error> {
        let start = || Content::new_runtime().map_err(|e| e.to_string());
        self.runtime
            .get_or_init(start)
            .as_ref()
            .map_err(|e| Error::Runtime(e.clone()))
    }

    /// Brings neighbouring spans, trying again as far as that makes sense, and tells the waiters.
    pub(super) async fn bring(self: Arc<Self>, layer: u32, run: Range<usize>, why: Why) {
        let mut left = Left {
            content: self.clone(),
            layer,
            spans: run,
        };
        let mut patience = Patience::new(self.options.outage);
        while !left.spans.is_empty() {
            let before = left.spans.start;
            let outcome = self.run(layer, &mut left.spans, why).await;
            let Err(error) = outcome.and_then(|()| match left.spans.start > before {
                true => Ok(()),
                false => Err(Error::Abandoned),
            }) else {
                self.look_whole(layer);
                self.tally.asked();
                continue;
            };
            if left.spans.start > before {
                patience = Patience::new(self.options.outage);
            }
            if matches!(error, Error::Layer(_)) && self.is_elsewhere(layer, left.spans.start) {
                tracing::warn!(%error, "asking elsewhere");
                continue;
            }
            let Some(wait) = patience.after(&error) else {
                // Before the waiters hear: then nobody waits any more.
                self.tally.asked();
                return left.fail(error);
            };
            tracing::warn!(%error, "trying again");
            self.tally.outage_begins(error.to_string());
            tokio::time::sleep(wait).await;
            self.tally.outage_ends();
        }
    }
}

impl Content {
    /// What came of a span is wrong; whether somebody else is left who can be asked for it.
    fn is_elsewhere(&self, layer: u32, span: usize) -> bool {
        let Ok(layer) = self.layer(layer) else {
            return false;
        };
        let span = layer.source.index.spans.get(span);
        span.is_some_and(|span| layer.source.blob.distrust(span.compressed))
    }
}

/// Spans whose waiters have not heard yet. They do, whatever becomes of the fetch.
struct Left {
    content: Arc<Content>,
    layer: u32,
    spans: Range<usize>,
}

impl Left {
    fn fail(&mut self, error: Error) {
        let error = Arc::new(error);
        for span in std::mem::take(&mut self.spans) {
            self.content.flights.failed(self.layer, span, &error);
        }
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        if !self.spans.is_empty() {
            self.fail(Error::Abandoned);
        }
    }
}

/// How often and how long to try again.
#[derive(Debug)]
struct Patience {
    outage: Outage,
    since: Instant,
    failures: u32,
    damaged: bool,
}

impl Patience {
    fn new(outage: Outage) -> Patience {
        Patience {
            outage,
            since: Instant::now(),
            failures: 0,
            damaged: false,
        }
    }

    /// How long to wait after `error`; `None` when it is final.
    fn after(&mut self, error: &Error) -> Option<Duration> {
        match error {
            // Wrong bytes may have been damaged on the way: once more, then they are wrong.
            Error::Layer(_) if !self.damaged => {
                self.damaged = true;
                return Some(Duration::ZERO);
            }
            Error::Blob(e) if e.is_transient() => {}
            _ => return None,
        }
        self.failures += 1;
        let wait = Duration::from_millis(100) * 2u32.saturating_pow(self.failures.min(10));
        let asked = match error {
            Error::Blob(e) => e.retry_after.unwrap_or_default().min(OUTAGE_ASKED_MAX),
            _ => Duration::ZERO,
        };
        let wait = wait.min(OUTAGE_WAIT_MAX).max(asked);
        match self.outage {
            Outage::Wait => Some(wait),
            Outage::Eio => None,
            Outage::Seconds(n) => {
                let left = Duration::from_secs(n).checked_sub(self.since.elapsed())?;
                Some(wait.min(left))
            }
        }
    }
}

/// The spans without which `range` cannot be read.
pub(super) fn needed(layer: &Layer, range: ByteRange) -> Vec<usize> {
    let source = &layer.source;
    let mut spans = Vec::new();
    for absent in source.pages.absent(range) {
        let mut at = absent.start().max(range.start());
        let end = absent.end().min(range.end());
        while at < end {
            let page_end = (at / PAGE_BYTES + 1) * PAGE_BYTES;
            let part = ByteRange::new(at, page_end.min(end));
            let of = source.index.spans_of(part);
            if spans.last().is_none_or(|last| *last + 1 < of.end) && !layer.fringe.has(part) {
                spans.extend(of);
            }
            at = part.end();
        }
    }
    spans.sort_unstable();
    spans.dedup();
    spans
}

/// Neighbours joined.
pub(super) fn runs(spans: &[usize]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for &span in spans {
        match runs.last_mut() {
            Some(run) if run.end == span => run.end += 1,
            _ => runs.push(span..span + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_run() {
        assert_eq!(runs(&[1, 2, 5]), [1..3, 5..6]);
        assert!(runs(&[]).is_empty());
    }
}
