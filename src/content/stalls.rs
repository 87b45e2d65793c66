//! Which readers had to wait, for what, and what that cost: a bounded list of the longest waits, and those
//! that wait now.
//!
//! Written when a wait begins and ends, never by a read of present bytes. Layers and addresses are noted, not
//! files: whoever shows the list knows the tree, and looks the files up then.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    /// How long it was; of one that goes on, how long it has been.
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

/// A wait that goes on.
#[derive(Debug, Clone)]
struct Wait {
    began: Instant,
    layer: u32,
    range: ByteRange,
    spans: Range<usize>,
    bill: Arc<Bill>,
}

/// The longest waits of one mount, and those that go on.
#[derive(Debug)]
pub(super) struct Stalls {
    since: Instant,
    kept: Mutex<Vec<Stall>>,
    /// By numbers in the order in which they began.
    going_on: Mutex<BTreeMap<u64, Wait>>,
    /// The next of these numbers.
    next: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Stalls {
    fn default() -> Stalls {
        Stalls {
            since: Instant::now(),
            kept: Mutex::default(),
            going_on: Mutex::default(),
            next: AtomicU64::new(0),
        }
    }
}

impl Stalls {
    fn begin(&self, wait: Wait) -> u64 {
        let number = self.next.fetch_add(1, Relaxed);
        lock(&self.going_on).insert(number, wait);
        number
    }

    /// The wait `number` is over.
    fn end(&self, number: u64, failed: bool) -> Option<Stall> {
        let ended = lock(&self.going_on).remove(&number)?;
        let mut stall = self.stall(&ended);
        stall.failed = failed;
        self.note(stall.clone());
        Some(stall)
    }

    /// What a wait is by now.
    fn stall(&self, wait: &Wait) -> Stall {
        Stall {
            at: wait.began.saturating_duration_since(self.since),
            waited: wait.began.elapsed(),
            layer: wait.layer,
            range: wait.range,
            spans: wait.spans.clone(),
            cause: wait.bill.cause(),
            requests: wait.bill.requests.load(Relaxed),
            bytes: wait.bill.bytes.load(Relaxed),
            failed: false,
        }
    }

    /// How many go on, and for how long the longest does.
    pub(super) fn waiting(&self) -> (u64, Duration) {
        let going_on = lock(&self.going_on);
        let first = going_on.values().next();
        let longest = first.map_or(Duration::ZERO, |wait| wait.began.elapsed());
        (going_on.len() as u64, longest)
    }

    /// Those that go on and have for the longest, in the order in which they began.
    fn list_waiting(&self) -> Vec<Stall> {
        let waits: Vec<Wait> = lock(&self.going_on)
            .values()
            .take(STALLS_MAX)
            .cloned()
            .collect();
        waits.iter().map(|wait| self.stall(wait)).collect()
    }

    fn note(&self, stall: Stall) {
        let mut kept = lock(&self.kept);
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
        let mut list = lock(&self.kept).clone();
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

    /// The waits that go on and have for the longest, in the order in which they began.
    pub fn waiting(&self) -> Vec<Stall> {
        self.stalls.list_waiting()
    }

    /// `done`, and a note of how long it took until it was called.
    pub(super) fn timed(
        self: &Arc<Self>,
        layer: &Layer,
        range: ByteRange,
        done: Done,
    ) -> (Arc<Bill>, Done) {
        let (content, bill) = (self.clone(), Arc::new(Bill::default()));
        let number = self.stalls.begin(Wait {
            began: Instant::now(),
            layer: layer.number,
            range,
            spans: layer.source.index.spans_of(range),
            bill: bill.clone(),
        });
        let timed = move |outcome: Result<(), Arc<crate::content::Error>>| {
            if let Some(stall) = content.stalls.end(number, outcome.is_err()) {
                content.tally.stalled(stall.waited);
            }
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
    fn a_wait_goes_on_until_it_ends() {
        let stalls = Stalls::default();
        let began = |range| {
            stalls.begin(Wait {
                began: Instant::now(),
                layer: 1,
                range,
                spans: 0..2,
                bill: Arc::default(),
            })
        };
        let first = began(ByteRange::new(0, 4096));
        let second = began(ByteRange::new(8192, 12288));
        assert_eq!(stalls.waiting().0, 2);
        let ended = stalls.end(first, true).unwrap();
        assert!(ended.failed && ended.range == ByteRange::new(0, 4096));
        assert!(stalls.end(first, true).is_none(), "it ends once");
        let left = stalls.list_waiting();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].range, ByteRange::new(8192, 12288));
        assert_eq!(stalls.list(), [ended]);
        assert!(stalls.end(second, false).is_some());
        assert_eq!(stalls.waiting(), (0, Duration::ZERO));
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
