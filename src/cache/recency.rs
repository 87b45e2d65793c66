//! When each region of a page store was last used: the file `used`, milliseconds since 1970 as
//! little-endian 64-bit words, one a region. All processes that use the store write to it, seldom.
//!
//! A hint: a file that is missing or damaged makes eviction choose badly, nothing else. Zero means
//! that nobody has used the region since it came, which is how a layer's first stream leaves it.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::directory::Directory;

/// Length of a region in bytes: the unit of eviction. About a span, so that what is evicted costs
/// one request to bring back; more would drag along what is in use, less would cost more words.
pub(super) const REGION_BYTES: u64 = 1 << 20;

/// Name of the file beside `data`.
pub(super) const USED: &str = "used";

/// A region that is in use is noted this often: a write into the page cache, not a sync.
const NOTED_EVERY_MS: u64 = 250;

const WORD_BYTES: u64 = 8;

/// The uses of one store, as this process saw and noted them.
#[derive(Debug)]
pub(super) struct Recency {
    /// Absent where the file cannot be made (a read-only or full file system).
    file: Option<File>,
    noted: Box<[AtomicU64]>,
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

impl Recency {
    /// Of the store of `size` bytes in `directory`; the file is made if it is missing.
    pub(super) fn open(directory: &Directory, size: u64) -> Recency {
        let noted = (0..size.div_ceil(REGION_BYTES)).map(|_| AtomicU64::new(0));
        Recency {
            file: directory.ensure_file(USED).ok(),
            noted: noted.collect(),
        }
    }

    /// Bytes `range` are being used.
    pub(super) fn touch(&self, range: &Range<u64>) {
        let Some(file) = &self.file else { return };
        let now = now_ms();
        for region in range.start / REGION_BYTES..range.end.div_ceil(REGION_BYTES) {
            let Some(noted) = self.noted.get(region as usize) else {
                return;
            };
            if now.saturating_sub(noted.load(Relaxed)) < NOTED_EVERY_MS {
                continue;
            }
            noted.store(now, Relaxed);
            // A note that cannot be made is a hint that is missing.
            let _ = file.write_all_at(&now.to_le_bytes(), region * WORD_BYTES);
        }
    }

    /// When each region was last used by anybody; a time in the future counts as now.
    pub(super) fn all(&self) -> Vec<u64> {
        let mut words = vec![0; self.noted.len() * WORD_BYTES as usize];
        if let Some(file) = &self.file {
            super::pages::read_up_to(file, &mut words, 0);
        }
        let now = now_ms();
        let words = words.as_chunks().0.iter();
        words
            .map(|word| u64::from_le_bytes(*word).min(now))
            .collect()
    }
}

/// When a store was last used, from the times of its file; `None` when that cannot be known.
pub(super) fn last_use(store: &Directory) -> Option<SystemTime> {
    let stat = store.stat(USED).ok().flatten()?;
    let seconds = Duration::from_secs(u64::try_from(stat.st_mtime).ok()?);
    UNIX_EPOCH.checked_add(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_noted_by_region_and_seen_by_others() {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open_root(temp.path()).unwrap();
        let open = || Recency::open(&directory, 3 * REGION_BYTES + 1);
        let (one, two) = (open(), open());
        assert_eq!(one.all(), [0; 4]);
        let before = now_ms();
        one.touch(&(REGION_BYTES - 1..REGION_BYTES + 1));
        two.touch(&(3 * REGION_BYTES..3 * REGION_BYTES + 1));
        two.touch(&(9 * REGION_BYTES..10 * REGION_BYTES));
        let seen = open().all();
        assert!(seen[0] >= before && seen[1] >= before && seen[3] >= before);
        assert_eq!((seen[2], &seen), (0, &two.all()));
        std::fs::write(temp.path().join(USED), [0xff; 11]).unwrap();
        assert!(open().all().iter().all(|used| *used <= now_ms()));
    }
}
