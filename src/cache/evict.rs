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
use super::stores::{self, Owner};
use super::{CacheError, Root};

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
        let mut held = 0;
        stores::each(root, |store| {
            held += store.disk_bytes()?;
            Ok(())
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
    let held = evictor.look(root)?;
    let (owners, regions) = candidates(root)?;
    let mut doomed = vec![Vec::new(); owners.len()];
    for region in victims(evictor.marks, held, regions) {
        if let Some(of) = doomed.get_mut(region.store) {
            of.push(region);
        }
    }
    let mut freed = 0;
    for (owner, regions) in owners.iter().zip(&doomed) {
        if !regions.is_empty() {
            // What cannot be had of one store is no reason to leave the others as they are.
            let punched = punch(root, owner, regions, &mut freed);
            punched.unwrap_or_else(|error| tracing::warn!(%error, "not evicted"));
        }
    }
    evictor.look(root)?;
    Ok(freed)
}

/// What could go, and the stores that it is in. One store is open at a time: there may be thousands.
fn candidates(root: &Arc<Root>) -> Result<(Vec<Owner>, Vec<Region>), CacheError> {
    let (mut owners, mut regions) = (Vec::new(), Vec::new());
    stores::each(root, |store| {
        if store.is_held() {
            return Ok(());
        }
        let pages = match store.pages(root) {
            Ok(Some(pages)) => pages,
            Ok(None) => return Ok(()),
            Err(error) => {
                tracing::warn!(%error, "cannot be evicted");
                return Ok(());
            }
        };
        let region = |(number, (used_ms, bytes))| Region {
            used_ms,
            store: owners.len(),
            number,
            bytes,
        };
        regions.extend((0..).zip(pages.regions()).map(region));
        owners.push(store.owner);
        Ok(())
    })?;
    Ok((owners, regions))
}

/// Gives the disk space of `regions` back, unless their store is held by now.
fn punch(
    root: &Arc<Root>,
    owner: &Owner,
    regions: &[Region],
    freed: &mut u64,
) -> Result<(), CacheError> {
    let store = stores::find(root, owner)?.filter(|store| !store.is_held());
    let Some(store) = store else { return Ok(()) };
    let Some(pages) = store.pages(root)? else {
        return Ok(());
    };
    for region in regions {
        pages.evict(region.number)?;
        *freed += region.bytes;
    }
    Ok(())
}
