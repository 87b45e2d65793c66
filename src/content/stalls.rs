//! Which readers had to wait, for what, and what that cost: a bounded list of the longest waits.
//!
//! Written when a wait ends, never by a read of present bytes. Layers and addresses are noted, not
//! files: whoever shows the list knows the tree, and looks the files up then.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::blob::ByteRange;
use crate::content::flights::Done;
use crate::content::{Content, Layer};
use crate::layer::LayerIndex;

/// Longest list. When it is full, the shortest wait makes room for a longer one.
const STALLS_MAX: usize = 512;

/// What a reader waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It asked the source itself.
    Asked,
    /// Somebody else had asked for the same spans.
    Joined,
    /// The pages were on their way with a pack.
    Pack,
}

/// One wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stall {
    /// When it began, since the mount.
    pub at: Duration,
    /// How long it was.
    pub waited: Duration,
    /// Which layer, base first.
    pub layer: u32,
    /// The addresses of that layer that were read.
    pub range: ByteRange,
    /// The spans that hold them, as positions in the layer's index.
    pub spans: Range<usize>,
    /// What was waited for.
    pub cause: Cause,
    /// Streams that were opened for it.
    pub requests: u64,
    /// Compressed bytes from where decoding begins to the end of what was needed, in those streams.
    pub bytes: u64,
    /// Whether the reader got an error in the end.
    pub failed: bool,
}

/// The longest waits of one mount.
#[derive(Debug)]
pub(super) struct Stalls {
    since: Instant,
    kept: Mutex<Vec<Stall>>,
}

impl Default for Stalls {
    fn default() -> Stalls {
        Stalls {
            since: Instant::now(),
            kept: Mutex::default(),
        }
    }
}

impl Stalls {
    fn note(&self, stall: Stall) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < STALLS_MAX {
            return kept.push(stall);
        }
        let shortest = (0..kept.len()).min_by_key(|&n| kept[n].waited);
        if let Some(shortest) = shortest.filter(|&n| kept[n].waited < stall.waited) {
            kept[shortest] = stall;
        }
    }

    /// In the order in which the waits began.
    fn list(&self) -> Vec<Stall> {
        let mut list = {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.clone()
        };
        list.sort_by_key(|stall| stall.at);
        list
    }
}

/// What a wait has asked for, told by whoever asks.
#[derive(Debug, Default)]
pub(super) struct Bill {
    requests: AtomicU64,
    bytes: AtomicU64,
    /// Set when spans are waited for, rather than pages of a pack.
    spans: AtomicU64,
}

impl Bill {
    /// The reader waits for spans.
    pub(super) fn wait_for_spans(&self) {
        self.spans.store(1, Relaxed);
    }

    /// `runs` are asked for because of it.
    pub(super) fn charge(&self, index: &LayerIndex, runs: &[Range<usize>]) {
        let cost = |run: &Range<usize>| {
            let begin = &index.spans[index.decode_start(run.start)];
            let end = index.spans[run.end - 1].compressed.end();
            end.saturating_sub(begin.compressed.start())
        };
        self.requests.store(runs.len() as u64, Relaxed);
        self.bytes.store(runs.iter().map(cost).sum(), Relaxed);
    }

    fn cause(&self) -> Cause {
        match (self.spans.load(Relaxed), self.requests.load(Relaxed)) {
            (0, _) => Cause::Pack,
            (_, 0) => Cause::Joined,
            _ => Cause::Asked,
        }
    }
}

impl Content {
    /// The longest waits so far, in the order in which they began.
    pub fn stalls(&self) -> Vec<Stall> {
        self.stalls.list()
    }

    /// `done`, and a note of how long it took until it was called.
    pub(super) fn timed(
        self: &Arc<Self>,
        layer: &Layer,
        range: ByteRange,
        done: Done,
    ) -> (Arc<Bill>, Done) {
        let bill = Arc::new(Bill::default());
        let (content, began, charged) = (self.clone(), Instant::now(), bill.clone());
        let (number, spans) = (layer.number, layer.source.index.spans_of(range));
        let timed = move |outcome: Result<(), Arc<crate::content::Error>>| {
            let waited = began.elapsed();
            content.tally.stalled(waited);
            content.stalls.note(Stall {
                at: began.saturating_duration_since(content.stalls.since),
                waited,
                layer: number,
                range,
                spans,
                cause: charged.cause(),
                requests: charged.requests.load(Relaxed),
                bytes: charged.bytes.load(Relaxed),
                failed: outcome.is_err(),
            });
            done(outcome);
        };
        (bill, Box::new(timed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stall(at: u64, waited: u64) -> Stall {
        Stall {
            at: Duration::from_millis(at),
            waited: Duration::from_millis(waited),
            layer: 0,
            range: ByteRange::new(0, 1),
            spans: 0..1,
            cause: Cause::Asked,
            requests: 1,
            bytes: 1,
            failed: false,
        }
    }

    #[test]
    fn the_longest_waits_are_kept_in_the_order_in_which_they_began() {
        let stalls = Stalls::default();
        for n in 0..STALLS_MAX as u64 + 100 {
            stalls.note(stall(2000 - n, n));
        }
        let list = stalls.list();
        assert_eq!(list.len(), STALLS_MAX);
        assert!(list.iter().all(|s| s.waited >= Duration::from_millis(100)));
        assert!(list.is_sorted_by_key(|s| s.at));
        stalls.note(stall(0, 50));
        assert_eq!(
            stalls.list(),
            list,
            "a short one does not push out a long one"
        );
    }
}
