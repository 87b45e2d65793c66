//! Verified bytes that the page store does not hold: the two parts of a page in which one span
//! ends and the next begins, until both have come, and whole pieces when the disk is full.
//!
//! Spans are not page aligned, so a page store alone could not hold the edges of a span that came
//! without its neighbour. Kept here they can be read at once; when the neighbour comes the page
//! is completed and stored.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::blob::ByteRange;
use crate::cache::{PAGE_BYTES, Pages, Presence};
use crate::content::error::Error;

/// Pages kept in memory when the disk is full: enough for the reads of one span at a time.
const OVERFLOW_PAGES: std::num::NonZeroUsize = std::num::NonZeroUsize::new(2048).unwrap();

/// The part of a page that one span gave.
#[derive(Debug, Clone)]
struct Edge {
    range: ByteRange,
    bytes: Box<[u8]>,
}

#[derive(Debug)]
struct Kept {
    edges: HashMap<u64, Vec<Edge>>,
    overflow: LruCache<u64, Box<[u8]>>,
}

/// What one layer has in memory.
#[derive(Debug)]
pub(super) struct Fringe {
    size: u64,
    kept: Mutex<Kept>,
    used: AtomicBool,
}

impl Fringe {
    pub(super) fn new(size: u64) -> Fringe {
        let kept = Kept {
            edges: HashMap::new(),
            overflow: LruCache::new(OVERFLOW_PAGES),
        };
        Fringe {
            size,
            kept: Mutex::new(kept),
            used: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn page(&self, number: u64) -> ByteRange {
        ByteRange::new(
            number * PAGE_BYTES,
            ((number + 1) * PAGE_BYTES).min(self.size),
        )
    }

    /// Keeps the verified bytes of one span: whole pages in `pages`, the edges here.
    pub(super) fn store(&self, pages: &Pages, span: ByteRange, bytes: &[u8]) {
        let first_whole = span.start().next_multiple_of(PAGE_BYTES).min(span.end());
        let last_whole = if span.end() == self.size {
            span.end()
        } else {
            (span.end() / PAGE_BYTES * PAGE_BYTES).max(first_whole)
        };
        let part = |from: u64, to: u64| {
            &bytes[(from - span.start()) as usize..(to - span.start()) as usize]
        };
        if first_whole < last_whole {
            self.store_pages(pages, first_whole, part(first_whole, last_whole));
        }
        for (from, to) in [(span.start(), first_whole), (last_whole, span.end())] {
            if from < to {
                self.store_edge(pages, ByteRange::new(from, to), part(from, to));
            }
        }
    }

    fn store_pages(&self, pages: &Pages, address: u64, bytes: &[u8]) {
        let Err(error) = pages.write(address, bytes) else {
            return;
        };
        tracing::warn!(%error, "bytes are kept in memory because the cache cannot store them");
        let mut kept = self.lock();
        for (number, page) in (address / PAGE_BYTES..).zip(bytes.chunks(PAGE_BYTES as usize)) {
            kept.overflow.put(number, page.into());
        }
        self.used.store(true, Ordering::Release);
    }

    fn store_edge(&self, pages: &Pages, range: ByteRange, bytes: &[u8]) {
        let number = range.start() / PAGE_BYTES;
        let page = self.page(number);
        if pages.is_present(page) {
            return;
        }
        let whole = {
            let mut kept = self.lock();
            let edges = kept.edges.entry(number).or_default();
            if edges.iter().all(|e| e.range != range) {
                edges.push(Edge {
                    range,
                    bytes: bytes.into(),
                });
                edges.sort_by_key(|e| e.range);
            }
            self.used.store(true, Ordering::Release);
            join(page, edges)
        };
        if let Some(whole) = whole {
            self.store_pages(pages, page.start(), &whole);
            self.lock().edges.remove(&number);
        }
    }

    /// Reads page by page from `pages` and from here.
    pub(super) fn read(
        &self,
        pages: &Pages,
        range: ByteRange,
        out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<Presence, Error> {
        if !self.used.load(Ordering::Acquire) {
            return Ok(Presence::Absent);
        }
        let mut at = range.start();
        while at < range.end() {
            let page = self.page(at / PAGE_BYTES);
            let part = ByteRange::new(at, page.end().min(range.end()));
            let from = (at - range.start()) as usize;
            let out = &mut out[from..from + part.len() as usize];
            let found = pages.read(part, out, scratch)? == Presence::Read || self.copy(part, out);
            if !found {
                return Ok(Presence::Absent);
            }
            at = part.end();
        }
        Ok(Presence::Read)
    }

    /// Copies a part of one page, if it is here.
    fn copy(&self, part: ByteRange, out: &mut [u8]) -> bool {
        let number = part.start() / PAGE_BYTES;
        let mut kept = self.lock();
        if let Some(page) = kept.overflow.get(&number) {
            let from = (part.start() - number * PAGE_BYTES) as usize;
            out.copy_from_slice(&page[from..from + out.len()]);
            return true;
        }
        let Some(edges) = kept.edges.get(&number) else {
            return false;
        };
        let mut covered = part.start();
        for edge in edges {
            if let Some(both) = edge.range.intersect(part)
                && both.start() == covered
            {
                let from = (both.start() - edge.range.start()) as usize;
                let to = (both.start() - part.start()) as usize;
                let len = both.len() as usize;
                out[to..to + len].copy_from_slice(&edge.bytes[from..from + len]);
                covered = both.end();
            }
        }
        covered == part.end()
    }

    /// Whether `part`, which lies within one page, can be read from here.
    pub(super) fn has(&self, part: ByteRange) -> bool {
        self.used.load(Ordering::Acquire) && self.copy(part, &mut vec![0; part.len() as usize])
    }
}

/// The whole page, when its edges cover it.
fn join(page: ByteRange, edges: &[Edge]) -> Option<Vec<u8>> {
    let mut whole = Vec::with_capacity(page.len() as usize);
    for edge in edges {
        if edge.range.start() != page.start() + whole.len() as u64 {
            return None;
        }
        whole.extend_from_slice(&edge.bytes);
    }
    (whole.len() as u64 == page.len()).then_some(whole)
}
