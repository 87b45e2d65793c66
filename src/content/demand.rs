//! Readers who wait: what is fetched for nobody in particular gives way to them.
//!
//! A profile gives way to readers that want something else. One that wants what the profile names
//! fetches it at once and by itself, if it is not on its way already, and the prefetch goes on: what
//! follows is what that reader will want next, and a start whose reader is ahead of its profile would
//! wait for every single span.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// A reader who waits for so long without a byte from the source is stalled.
const STALLED: Duration = Duration::from_secs(1);

/// How often one looks whether it is quiet.
pub(super) const GLANCE: Duration = Duration::from_millis(20);

/// Whether readers wait, and since when none does.
#[derive(Debug)]
pub(super) struct Demand {
    since: Instant,
    waiting: AtomicUsize,
    /// Those of them that wait for what no profile has named.
    unforeseen: AtomicUsize,
    /// Told when the last of these goes.
    calm: Notify,
    last_ms: AtomicU64,
    /// When bytes came, or somebody began to wait for them.
    heard_ms: AtomicU64,
}

impl Default for Demand {
    fn default() -> Demand {
        Demand {
            since: Instant::now(),
            waiting: AtomicUsize::new(0),
            unforeseen: AtomicUsize::new(0),
            calm: Notify::new(),
            last_ms: AtomicU64::new(0),
            heard_ms: AtomicU64::new(0),
        }
    }
}

impl Demand {
    /// Somebody waits; for what is being prefetched anyway, or not.
    pub(super) fn enter(&self, foreseen: bool) {
        if !foreseen {
            self.unforeseen.fetch_add(1, Relaxed);
        }
        if self.waiting.fetch_add(1, Relaxed) == 0 {
            self.heard();
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The source has given something.
    pub(super) fn heard(&self) {
        self.heard_ms.store(self.now_ms(), Relaxed);
    }

    /// Whether somebody waits and nothing comes.
    pub(super) fn is_stalled(&self) -> bool {
        let silence = self.now_ms().saturating_sub(self.heard_ms.load(Relaxed));
        self.waiting.load(Relaxed) > 0 && u128::from(silence) >= STALLED.as_millis()
    }

    /// Whoever has entered so waits no longer.
    pub(super) fn leave(&self, foreseen: bool) {
        if !foreseen && self.unforeseen.fetch_sub(1, Relaxed) == 1 {
            self.calm.notify_waiters();
        }
        self.last_ms.store(self.now_ms(), Relaxed);
        self.waiting.fetch_sub(1, Relaxed);
    }

    /// Whether nobody waits, and nobody did for as long as `quiet`.
    pub(super) fn is_quiet(&self, quiet: Duration) -> bool {
        let last = Duration::from_millis(self.last_ms.load(Relaxed));
        self.waiting.load(Relaxed) == 0 && self.since.elapsed().saturating_sub(last) >= quiet
    }

    /// Waits until nobody waits for what no profile has named.
    pub(super) async fn calm(&self) {
        loop {
            // Made before the look, so that it hears of what comes after.
            let calmed = self.calm.notified();
            if self.unforeseen.load(Relaxed) == 0 {
                return;
            }
            calmed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_quiet_when_nobody_waits_and_nobody_did() {
        let demand = Demand::default();
        assert!(demand.is_quiet(Duration::ZERO));
        assert!(!demand.is_quiet(Duration::from_secs(60)));
        demand.enter(true);
        assert!(!demand.is_quiet(Duration::ZERO));
        demand.leave(true);
        assert!(demand.is_quiet(Duration::ZERO));
    }

    #[tokio::test]
    async fn it_is_calm_when_nobody_waits_for_what_was_not_foreseen() {
        let demand = Demand::default();
        demand.enter(true);
        demand.calm().await;
        demand.enter(false);
        let calm = demand.calm();
        tokio::pin!(calm);
        tokio::select! {
            biased;
            () = &mut calm => panic!("somebody waits"),
            () = std::future::ready(()) => {}
        }
        demand.leave(false);
        calm.await;
    }
}
