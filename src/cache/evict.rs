//! Eviction: what the page stores hold is kept within a budget, by punching the least recently used
//! regions out of their files.
//!
//! Who may run: one thread of one process at a time, under the lock file `evict`. Who may go on
//! meanwhile: everybody. Under its store's lock a region loses first its bits and then its pages.
//!
//! # Rejected: an epoch that readers hold
//!
//! Readers could hold a lock shared while they copy, so that nothing is punched under them. But each
//! page that is read is checked against its sum, and a hole has not the sum of anything but a page
//! of zeros, whose bytes it then has. So a read that was overtaken finds its bytes absent and fetches
//! them again, and no read pays two system calls for what happens once in a million.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::budget::{Region, Watermarks, victims};
use super::lock::Lock;
use super::stores::{self, Store};
use super::{CacheError, Pages, Root};

/// Lock file.
const LOCK_NAME: &str = "evict";

/// `held` before anybody has looked.
const UNKNOWN: u64 = u64::MAX;

/// The budget, and how near it is.
#[derive(Debug)]
pub(super) struct Evictor {
    marks: Watermarks,
    /// Bytes that all stores held when this process last looked.
    held: AtomicU64,
    /// Bytes that this process has stored since.
    stored: AtomicU64,
    running: AtomicBool,
}

impl Evictor {
    pub(super) fn new(budget: u64) -> Evictor {
        Evictor {
            marks: Watermarks::of(budget),
            held: AtomicU64::new(UNKNOWN),
            stored: AtomicU64::new(0),
            running: AtomicBool::new(false),
        }
    }

    fn look(&self, root: &Root) -> Result<u64, CacheError> {
        self.stored.store(0, Relaxed);
        let stores = stores::all(root)?;
        let held = stores.iter().try_fold(0, |sum, store| {
            Ok::<u64, CacheError>(sum + store.disk_bytes()?)
        })?;
        self.held.store(held, Relaxed);
        Ok(held)
    }
}

/// Notes that `bytes` were stored, and starts to evict on a thread of its own when that is due.
pub(super) fn stored(root: &Arc<Root>, bytes: u64) {
    let Some(evictor) = &root.evictor else { return };
    let stored = evictor.stored.fetch_add(bytes, Relaxed) + bytes;
    if stored >= evictor.marks.stride() {
        soon(root);
    }
}

/// Evicts on a thread of its own if too much is held, unless that thread runs already.
pub(super) fn soon(root: &Arc<Root>) {
    let Some(evictor) = &root.evictor else { return };
    if evictor.running.swap(true, Relaxed) {
        return;
    }
    let root = root.clone();
    let started = std::thread::Builder::new()
        .name("evict".into())
        .spawn(move || {
            now(&root);
            if let Some(evictor) = &root.evictor {
                evictor.running.store(false, Relaxed);
            }
        });
    if started.is_err() {
        evictor.running.store(false, Relaxed);
    }
}

/// Evicts at once if too much is held. What cannot be evicted is tried again with the next bytes.
pub(super) fn now(root: &Arc<Root>) {
    match run(root) {
        Ok(0) => {}
        Ok(bytes) => tracing::debug!(bytes, "evicted"),
        Err(error) => tracing::warn!(%error, "the cache holds more than it may"),
    }
}

/// Bytes that may be stored although nobody has asked for them: up to the low watermark.
pub(super) fn room(root: &Root) -> u64 {
    let Some(evictor) = &root.evictor else {
        return u64::MAX;
    };
    let held = match evictor.held.load(Relaxed) {
        UNKNOWN => evictor.look(root).unwrap_or(UNKNOWN),
        held => held,
    };
    let held = held.saturating_add(evictor.stored.load(Relaxed));
    evictor.marks.low.saturating_sub(held)
}

fn run(root: &Arc<Root>) -> Result<u64, CacheError> {
    let Some(evictor) = &root.evictor else {
        return Ok(0);
    };
    if evictor.look(root)? <= evictor.marks.high {
        return Ok(0);
    }
    let lock = root.locks.ensure_file(LOCK_NAME)?;
    let failed = |e| CacheError::io("lock", &root.locks.path_of(LOCK_NAME), e);
    // Another process is at it; who stores more looks again.
    let Some(_evicting) = Lock::attempt(lock).map_err(failed)? else {
        return Ok(0);
    };
    let stores = stores::all(root)?;
    let held = evictor.look(root)?;
    let (pages, regions) = candidates(root, &stores)?;
    let victims = victims(evictor.marks, held, regions);
    let mut freed = 0;
    for region in victims {
        if let Some(pages) = pages.get(region.store).and_then(Option::as_ref) {
            pages.evict(region.number)?;
            freed += region.bytes;
        }
    }
    evictor.look(root)?;
    Ok(freed)
}

/// What could go, and the stores that it is in.
fn candidates(
    root: &Arc<Root>,
    stores: &[Store],
) -> Result<(Vec<Option<Pages>>, Vec<Region>), CacheError> {
    let mut regions = Vec::new();
    let mut opened = Vec::with_capacity(stores.len());
    for (store, of) in stores.iter().enumerate() {
        let pages = match of.pinned || of.sole || of.lent {
            true => None,
            false => of.pages(root)?,
        };
        let used = pages.as_ref().map(Pages::regions).unwrap_or_default();
        let region = |(number, (used_ms, bytes))| Region {
            used_ms,
            store,
            number,
            bytes,
        };
        regions.extend((0..).zip(used).map(region));
        opened.push(pages);
    }
    Ok((opened, regions))
}
