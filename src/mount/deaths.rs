//! What the keeper makes of the deaths of its workers: whether and when the next one starts. Pure.
//!
//! A request that makes a worker fail is sent to the next one again, and would end that as well: so
//! workers that *fail* one after the other get more and more time between them, and then the mount
//! ends. Who is *killed* (SIGKILL: a person, the kernel for want of memory) has not failed, and the mount
//! goes on; only not faster than a machine without memory can bear. But a request that makes every
//! worker take memory without end is answered by the kernel in the same way: so many that are killed as
//! soon as they serve, one after the other, end the mount as well.

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

/// A worker that is killed before it has served as long as this may have been killed for what it was
/// asked first.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Such in a row before the keeper gives up. At the pace above that is a third of a minute: longer than
/// the kernel takes to find memory elsewhere, or than anybody kills by hand.
const KILLED_AT_ONCE_MAX: u32 = 100;

/// The deaths so far.
#[derive(Debug)]
pub(super) struct Deaths {
    failures: u32,
    /// In a row, as soon as they served.
    killed_at_once: u32,
    /// When as many workers as are started at once may be killed again.
    kills_forgotten: Instant,
}

/// How a worker came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Death {
    /// By somebody else, after it had served for so long; one that never served, after nothing.
    Killed(Duration),
    /// By itself, likewise.
    Failed(Duration),
}

impl Deaths {
    /// None yet.
    pub(super) fn none(now: Instant) -> Deaths {
        Deaths {
            failures: 0,
            killed_at_once: 0,
            kills_forgotten: now,
        }
    }

    /// The last worker lived when another one took over from it: whatever it was asked did not end it.
    pub(super) fn last_one_lived(&mut self) {
        self.killed_at_once = 0;
    }

    /// How long the next start has to wait after another death; `None` when there is to be none.
    pub(super) fn after(&mut self, death: Death, now: Instant) -> Option<Duration> {
        let (Death::Killed(served) | Death::Failed(served)) = death;
        if served >= WELL {
            self.failures = 0;
        }
        if served >= AT_ONCE {
            self.killed_at_once = 0;
        }
        match death {
            Death::Killed(served) => {
                self.killed_at_once += u32::from(served < AT_ONCE);
                self.kills_forgotten = self.kills_forgotten.max(now) + KILLS_APART;
                let owed = self.kills_forgotten - now;
                let wait = owed.saturating_sub(KILLS_APART * KILLS_AT_ONCE);
                (self.killed_at_once <= KILLED_AT_ONCE_MAX).then_some(wait)
            }
            Death::Failed(_) => {
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
        // One that served well was not ended by what ended those before it, whatever ended it.
        for (last, next) in [(Death::Failed(WELL), 1), (Death::Killed(WELL), 0)] {
            let mut deaths = Deaths::none(now);
            for _ in 0..9 {
                deaths.after(soon, now);
            }
            assert_eq!(deaths.after(last, now), ms(0));
            assert_eq!(deaths.failures, next);
        }
    }

    #[test]
    fn who_has_served_and_is_killed_only_waits_for_the_pace() {
        let start = Instant::now();
        let killed = Death::Killed(AT_ONCE);
        let mut deaths = Deaths::none(start);
        // A little slower than the pace: never a wait.
        for n in 0..300 {
            let now = start + (KILLS_APART + Duration::from_millis(1)) * n;
            assert_eq!(deaths.after(killed, now), Some(Duration::ZERO));
        }
        let mut deaths = Deaths::none(start);
        let at_once = (0..30).map(|_| deaths.after(killed, start));
        let waits: Vec<_> = at_once.collect();
        assert!(waits[..10].iter().all(|wait| *wait == Some(Duration::ZERO)));
        assert_eq!(waits[29], Some(KILLS_APART * 20));
    }

    #[test]
    fn who_is_killed_at_once_each_time_is_given_up() {
        let now = Instant::now();
        let mut deaths = Deaths::none(now);
        let at_once = Death::Killed(AT_ONCE / 2);
        for _ in 0..KILLED_AT_ONCE_MAX {
            assert!(deaths.after(at_once, now).is_some());
        }
        // Others in between begin a new row.
        assert!(deaths.after(Death::Killed(AT_ONCE), now).is_some());
        for _ in 0..KILLED_AT_ONCE_MAX {
            assert!(deaths.after(at_once, now).is_some());
        }
        deaths.last_one_lived();
        for _ in 0..KILLED_AT_ONCE_MAX {
            assert!(deaths.after(at_once, now).is_some());
        }
        assert_eq!(deaths.after(at_once, now), None);
    }
}
