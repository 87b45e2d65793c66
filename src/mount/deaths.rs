//! What the keeper makes of the deaths of its workers: whether and when the next one starts. Pure.
//!
//! A request that makes a worker fail is sent to the next one again, and would end that as well: so
//! workers that *fail* one after the other get more and more time between them, and then the mount
//! ends. Who is *killed* (SIGKILL: a person, the kernel for want of memory) has not failed. No request
//! does that, and the mount goes on however often it happens; only not faster than a machine without
//! memory can bear.

use std::time::{Duration, Instant};

/// Workers that fail one after the other before the keeper gives up: a request that ends every worker
/// must end as an error.
const FAILURES_MAX: u32 = 10;

/// A worker that has served as long as this has not failed by what ended the one before.
const WELL: Duration = Duration::from_secs(10);

/// Failures in a row after which the next start waits, and how long it waits at first.
const FAILURES_AT_ONCE: u32 = 4;
const WAIT_FIRST: Duration = Duration::from_millis(50);

/// Workers that may be killed in a moment without any waiting, and the pace after that: a start is some
/// hundredths of a second of work.
const KILLS_AT_ONCE: u32 = 10;
const KILLS_APART: Duration = Duration::from_millis(200);

/// The deaths so far.
#[derive(Debug)]
pub(super) struct Deaths {
    failures: u32,
    /// When as many workers as are started at once may be killed again.
    kills_forgotten: Instant,
}

/// How a worker came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Death {
    /// By somebody else.
    Killed,
    /// After it had served for so long; one that never served, after nothing.
    Failed(Duration),
}

impl Deaths {
    /// None yet.
    pub(super) fn none(now: Instant) -> Deaths {
        Deaths {
            failures: 0,
            kills_forgotten: now,
        }
    }

    /// How long the next start has to wait after another death; `None` when there is to be none.
    pub(super) fn after(&mut self, death: Death, now: Instant) -> Option<Duration> {
        match death {
            Death::Killed => {
                self.kills_forgotten = self.kills_forgotten.max(now) + KILLS_APART;
                let owed = self.kills_forgotten - now;
                Some(owed.saturating_sub(KILLS_APART * KILLS_AT_ONCE))
            }
            Death::Failed(served) => {
                if served >= WELL {
                    self.failures = 0;
                }
                self.failures += 1;
                let late = self.failures.saturating_sub(FAILURES_AT_ONCE);
                let wait = match late {
                    0 => Duration::ZERO,
                    _ => WAIT_FIRST * 2_u32.pow(late - 1),
                };
                (self.failures <= FAILURES_MAX).then_some(wait)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_again_and_again_is_given_up() {
        let now = Instant::now();
        let mut deaths = Deaths::none(now);
        let soon = Death::Failed(Duration::from_millis(3));
        let waits: Vec<_> = (0..=FAILURES_MAX)
            .map(|_| deaths.after(soon, now))
            .collect();
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(waits[..4], [ms(0); 4]);
        assert_eq!(waits[4..7], [ms(50), ms(100), ms(200)]);
        assert_eq!(waits[10], None);
        // One that served well was not ended by what ended those before it.
        let mut deaths = Deaths::none(now);
        for _ in 0..9 {
            deaths.after(soon, now);
        }
        assert_eq!(deaths.after(Death::Failed(WELL), now), ms(0));
    }

    #[test]
    fn who_is_killed_is_never_given_up_and_only_waits_for_the_pace() {
        let start = Instant::now();
        let mut deaths = Deaths::none(start);
        // A little slower than the pace: never a wait.
        for n in 0..300 {
            let now = start + (KILLS_APART + Duration::from_millis(1)) * n;
            assert_eq!(deaths.after(Death::Killed, now), Some(Duration::ZERO));
        }
        let mut deaths = Deaths::none(start);
        let at_once = (0..30).map(|_| deaths.after(Death::Killed, start));
        let waits: Vec<_> = at_once.collect();
        assert!(waits[..10].iter().all(|wait| *wait == Some(Duration::ZERO)));
        assert_eq!(waits[29], Some(KILLS_APART * 20));
    }
}
