//! Pages that are on their way with a pack: a reader who wants one waits for it instead of fetching
//! the spans around it.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::blob::ByteRange;
use crate::cache::PAGE_BYTES;
use crate::content::Content;
use crate::content::error::Error;
use crate::content::fetch::needed;
use crate::content::flights::Done;
use crate::content::profile::pages_of;
use crate::content::stalls::Bill;

/// Somebody who waits for pages that are on their way.
struct Waiter {
    layer: u32,
    range: ByteRange,
    bill: Arc<Bill>,
    done: Done,
}

/// The pages that are on their way.
#[derive(Default)]
pub(super) struct Hot {
    /// False in most mounts, and again when all have come.
    coming: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pages: HashSet<(u32, u64)>,
    waiters: Vec<Waiter>,
}

impl fmt::Debug for Hot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hot")
            .field("coming", &self.coming)
            .finish_non_exhaustive()
    }
}

impl Hot {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content {
    /// Says that `ranges` (layer, addresses) will come by [`Content::hot_came`].
    pub fn expect_hot(&self, ranges: impl Iterator<Item = (u32, ByteRange)>) {
        let mut state = self.hot.lock();
        for (layer, range) in ranges {
            state
                .pages
                .extend(pages_of(range).map(|page| (layer, page)));
        }
        self.hot
            .coming
            .store(!state.pages.is_empty(), Ordering::Release);
    }

    /// Stores pages of a pack, which were verified, and wakes who waits for them.
    pub fn hot_came(&self, layer: u32, range: ByteRange, bytes: &[u8]) -> Result<(), Error> {
        let of = self.layer(layer)?;
        let whole = bytes.len() as u64 == range.len() && range.start().is_multiple_of(PAGE_BYTES);
        if !whole {
            return Err(Error::Abandoned);
        }
        of.fringe.store(&of.source.pages, range, bytes);
        self.demand.heard();
        let ready = {
            let mut state = self.hot.lock();
            for page in pages_of(range) {
                state.pages.remove(&(layer, page));
            }
            let of_layer = |w: &mut Waiter| w.layer == layer && needed(of, w.range).is_empty();
            state.waiters.extract_if(.., of_layer).collect::<Vec<_>>()
        };
        for waiter in ready {
            (waiter.done)(Ok(()));
        }
        Ok(())
    }

    /// No more will come: who still waits is served as if there were no pack.
    pub fn hot_ended(self: &Arc<Self>) {
        let left = {
            let mut state = self.hot.lock();
            self.hot.coming.store(false, Ordering::Release);
            state.pages = HashSet::new();
            std::mem::take(&mut state.waiters)
        };
        for waiter in left {
            self.fetch_spans(waiter.layer, waiter.range, &waiter.bill, waiter.done);
        }
    }

    /// Waits for `range` if all that is absent of it is on its way; gives `done` back if not.
    pub(super) fn wait_for_hot(
        &self,
        layer: u32,
        range: ByteRange,
        bill: &Arc<Bill>,
        done: Done,
    ) -> Option<Done> {
        if !self.hot.coming.load(Ordering::Acquire) {
            return Some(done);
        }
        let Ok(of) = self.layer(layer) else {
            return Some(done);
        };
        let mut state = self.hot.lock();
        let absent = of.source.pages.absent(range);
        let mut pages = absent.iter().flat_map(|range| pages_of(*range));
        // Pages that came since the reader looked are no reason to wait.
        if absent.is_empty() || !pages.all(|page| state.pages.contains(&(layer, page))) {
            return Some(done);
        }
        state.waiters.push(Waiter {
            layer,
            range,
            bill: bill.clone(),
            done,
        });
        None
    }
}
