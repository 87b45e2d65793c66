//! How much the page stores may hold, and what goes first. Pure: no I/O here.

/// The low watermark, in parts of a hundred of the budget: eviction goes on until what is held is
/// below it, so that it runs seldom, and what nobody asked for is fetched only below it, so that
/// readers' bytes are never evicted for it.
const LOW_PERCENT: u64 = 85;

/// Looks at the disk between the watermarks: so often that little more than the budget is held.
const LOOKS: u64 = 4;

/// The bounds that follow from a budget, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Watermarks {
    /// Above this, eviction begins.
    pub(super) high: u64,
    /// Here it ends, and fill stops.
    pub(super) low: u64,
}

impl Watermarks {
    pub(super) fn of(budget: u64) -> Watermarks {
        let low = budget / 100 * LOW_PERCENT + budget % 100 * LOW_PERCENT / 100;
        Watermarks { high: budget, low }
    }

    /// After this many stored bytes it is time to look whether too much is held.
    pub(super) fn stride(&self) -> u64 {
        (self.high - self.low) / LOOKS
    }
}

/// A part of a store that could go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Region {
    /// When it was last used, in milliseconds since 1970. The first field: it decides.
    pub(super) used_ms: u64,
    /// Which store.
    pub(super) store: usize,
    /// Which region of it.
    pub(super) number: u64,
    /// What it holds, in bytes.
    pub(super) bytes: u64,
}

/// What has to go when `held` bytes are held: the least recently used of `regions`, until no more
/// than the low watermark is left; nothing up to the high one.
pub(super) fn victims(marks: Watermarks, held: u64, mut regions: Vec<Region>) -> Vec<Region> {
    if held <= marks.high {
        return Vec::new();
    }
    regions.retain(|region| region.bytes > 0);
    regions.sort_unstable_by_key(|r| (r.used_ms, r.store, r.number));
    let mut left = held;
    let needed = regions.iter().take_while(|region| {
        let more = left > marks.low;
        left = left.saturating_sub(region.bytes);
        more
    });
    let count = needed.count();
    regions.truncate(count);
    regions
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKS: Watermarks = Watermarks { high: 100, low: 85 };

    fn region(used_ms: u64, store: usize, number: u64, bytes: u64) -> Region {
        Region {
            used_ms,
            store,
            number,
            bytes,
        }
    }

    #[test]
    fn watermarks_follow_from_the_budget() {
        assert_eq!(Watermarks::of(100), MARKS);
        assert_eq!(Watermarks::of(0), Watermarks { high: 0, low: 0 });
        let most = Watermarks::of(u64::MAX);
        assert!(most.low > u64::MAX / 100 * 84 && most.low < most.high);
        assert_eq!(Watermarks::of(400).stride(), 15);
    }

    #[test]
    fn nothing_goes_up_to_the_high_watermark() {
        assert!(victims(MARKS, 100, vec![region(1, 0, 0, 100)]).is_empty());
    }

    #[test]
    fn the_least_recently_used_goes_first_and_no_more_than_needed() {
        let regions = vec![
            region(30, 0, 0, 10),
            region(10, 1, 7, 10),
            region(0, 2, 1, 0),
            region(20, 0, 1, 10),
            region(10, 1, 3, 10),
        ];
        let gone = victims(MARKS, 111, regions.clone());
        let named: Vec<_> = gone.iter().map(|r| (r.store, r.number)).collect();
        assert_eq!(named, [(1, 3), (1, 7), (0, 1)]);
        // More is held than could go (pinned, lent): all of it goes, and that is not enough.
        assert_eq!(victims(MARKS, 1000, regions).len(), 4);
        assert!(victims(MARKS, 1000, Vec::new()).is_empty());
    }
}
