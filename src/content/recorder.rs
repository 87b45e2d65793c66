//! Recording what readers touch first. Once a page is known, a read of it costs one atomic load a
//! page; after the recording has ended, one load in all.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::blob::ByteRange;
use crate::cache::PAGE_BYTES;
use crate::content::profile::{Profile, TOUCHES_MAX, Touch, pages_of};

/// How long after the mount first uses are recorded: a start is over by then.
pub const RECORDED: Duration = Duration::from_secs(60);

/// What one mount's readers have touched.
#[derive(Debug)]
pub(super) struct Recorder {
    since: Instant,
    on: AtomicBool,
    /// A bit for each page of each layer.
    seen: Vec<Box<[AtomicU64]>>,
    touches: Mutex<Vec<Touch>>,
}

impl Recorder {
    /// For layers of these sizes in bytes.
    pub(super) fn new(sizes: impl Iterator<Item = u64>) -> Recorder {
        let bits = |size: u64| {
            let words = size.div_ceil(PAGE_BYTES).div_ceil(64);
            (0..words).map(|_| AtomicU64::new(0)).collect()
        };
        Recorder {
            since: Instant::now(),
            on: AtomicBool::new(true),
            seen: sizes.map(bits).collect(),
            touches: Mutex::default(),
        }
    }

    /// Notes that `range` of layer `layer` was read.
    pub(super) fn touch(&self, layer: u32, range: ByteRange) {
        if !self.on.load(Relaxed) || range.is_empty() {
            return;
        }
        let Some(seen) = self.seen.get(layer as usize) else {
            return;
        };
        let mut fresh: Option<(u64, u64)> = None;
        for page in pages_of(range) {
            let Some(word) = seen.get((page / 64) as usize) else {
                break;
            };
            let bit = 1 << (page % 64);
            let is_new = word.load(Relaxed) & bit == 0 && word.fetch_or(bit, Relaxed) & bit == 0;
            fresh = match (fresh, is_new) {
                (Some((first, count)), true) => Some((first, count + 1)),
                (None, true) => Some((page, 1)),
                (Some(run), false) => {
                    self.note(layer, run);
                    None
                }
                (None, false) => None,
            };
        }
        if let Some(run) = fresh {
            self.note(layer, run);
        }
    }

    fn note(&self, layer: u32, (page, pages): (u64, u64)) {
        let age = self.since.elapsed();
        let mut touches = self.touches.lock().unwrap_or_else(PoisonError::into_inner);
        if age > RECORDED || touches.len() >= TOUCHES_MAX {
            self.on.store(false, Relaxed);
            return;
        }
        if let Some(last) = touches.last_mut()
            && last.layer == layer
            && last.page + last.pages == page
        {
            last.pages += pages;
            return;
        }
        touches.push(Touch {
            layer,
            page,
            pages,
            at_ms: u32::try_from(age.as_millis()).unwrap_or(u32::MAX),
            starts: 0,
        });
    }

    /// How many ranges were touched so far.
    pub(super) fn len(&self) -> usize {
        let touches = self.touches.lock().unwrap_or_else(PoisonError::into_inner);
        touches.len()
    }

    /// What was touched so far.
    pub(super) fn profile(&self) -> Profile {
        let touches = self.touches.lock().unwrap_or_else(PoisonError::into_inner);
        Profile {
            touches: touches.clone(),
            command: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_uses_are_kept_in_order() {
        let recorder = Recorder::new([1 << 20, 300].into_iter());
        recorder.touch(0, ByteRange::new(8192, 8193));
        recorder.touch(0, ByteRange::new(12288, 20480));
        recorder.touch(1, ByteRange::new(0, 300));
        recorder.touch(0, ByteRange::new(0, 40960));
        recorder.touch(0, ByteRange::new(0, 40960));
        recorder.touch(7, ByteRange::new(0, 1));
        let touches = recorder.profile().touches;
        let seen: Vec<_> = touches.iter().map(|t| (t.layer, t.page, t.pages)).collect();
        assert_eq!(seen, [(0, 2, 3), (1, 0, 1), (0, 0, 2), (0, 5, 5)]);
    }
}
