//! A source that has asked to be left alone (429 and 503 with `Retry-After`): readers go on asking as
//! it wishes, and what nobody waits for is not asked for until then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A source that asks for less than this is asked for nothing unneeded for as long anyway.
const QUIET_MIN: Duration = Duration::from_secs(1);

/// And no wish is believed beyond this: a fill that stands still for a day is an outage.
const QUIET_MAX: Duration = Duration::from_secs(600);

/// Until when one source wants to be left alone. Clones share it.
#[derive(Debug, Clone)]
pub struct Busy {
    since: Instant,
    until_ms: Arc<AtomicU64>,
}

impl Default for Busy {
    fn default() -> Busy {
        Busy {
            since: Instant::now(),
            until_ms: Arc::default(),
        }
    }
}

impl Busy {
    /// It has asked for `wait`.
    pub fn asked(&self, wait: Duration) {
        let until = self.since.elapsed() + wait.clamp(QUIET_MIN, QUIET_MAX);
        let until = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.until_ms.fetch_max(until, Relaxed);
    }

    /// How long it still wants to be left alone; `None` when it does not.
    pub fn left(&self) -> Option<Duration> {
        let until = Duration::from_millis(self.until_ms.load(Relaxed));
        until
            .checked_sub(self.since.elapsed())
            .filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_wish_counts_within_bounds() {
        let busy = Busy::default();
        assert_eq!(busy.left(), None);
        busy.asked(Duration::from_secs(100));
        busy.clone().asked(Duration::from_secs(5));
        let left = busy.left().unwrap();
        assert!(left > Duration::from_secs(90) && left <= Duration::from_secs(100));
        busy.asked(Duration::from_secs(1 << 40));
        assert!(busy.left().unwrap() <= QUIET_MAX);
        let other = Busy::default();
        other.asked(Duration::ZERO);
        assert!(other.left().unwrap() <= QUIET_MIN);
    }
}
