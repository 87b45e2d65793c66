//! How fast the source is, measured while running: bytes a second, and the time to a first byte.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Until something was measured: 100 Mbit/s and 20 ms.
const BYTES_PER_SECOND: u64 = 12_500_000;
const FIRST_BYTE: Duration = Duration::from_millis(20);

/// Shorter answers say little about the bandwidth.
const MEASURED_BYTES_MIN: u64 = 64 << 10;

/// A running measurement.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: AtomicU64,
    first_byte_us: AtomicU64,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            bytes_per_second: AtomicU64::new(BYTES_PER_SECOND),
            first_byte_us: AtomicU64::new(FIRST_BYTE.as_micros() as u64),
        }
    }
}

impl Pace {
    /// An answer whose first byte took `first_byte` and whose `bytes` took `whole` after that.
    pub(super) fn saw(&self, first_byte: Duration, bytes: u64, whole: Duration) {
        let us = u64::try_from(first_byte.as_micros()).unwrap_or(u64::MAX);
        blend(&self.first_byte_us, us);
        if bytes >= MEASURED_BYTES_MIN {
            let rate = bytes as f64 / whole.as_secs_f64().max(1e-4);
            blend(&self.bytes_per_second, rate as u64);
        }
    }

    /// Bytes that come in `time`.
    pub(super) fn bytes_in(&self, time: Duration) -> u64 {
        (self.bytes_per_second.load(Relaxed) as f64 * time.as_secs_f64()) as u64
    }

    /// Bytes that are cheaper to fetch than to ask again for what follows them.
    pub(super) fn gap(&self) -> u64 {
        self.bytes_in(Duration::from_micros(self.first_byte_us.load(Relaxed)))
    }
}

/// A quarter of the news: answers vary, links do not.
fn blend(value: &AtomicU64, new: u64) {
    let old = value.load(Relaxed);
    value.store(old - old / 4 + new / 4, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_learns() {
        let pace = Pace::default();
        for _ in 0..40 {
            pace.saw(
                Duration::from_millis(5),
                1_000_000,
                Duration::from_millis(10),
            );
        }
        let gap = pace.gap();
        assert!((450_000..=550_000).contains(&gap), "{gap}");
        pace.saw(Duration::from_millis(5), 10, Duration::from_secs(1));
        assert!(pace.gap() > 450_000, "a short answer says little");
    }
}
