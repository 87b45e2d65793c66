//! Verified bytes that the page store does not hold: the two parts of a page in which one span
//! ends and the next begins, until both have come, and whole pieces when the disk is full.
//!
//! Spans are not page aligned, so a page store alone could not hold the edges of a span that came
//! without its neighbour. Kept here they can be read at once; when the neighbour comes the page
//! is completed and stored.
//!
//! A neighbour may never come, and readers of pieces far apart leave two edges a piece: without a
//! bound these were 3 % of all that was ever read. What was not used for longest makes room. Its
//! span is then absent again as far as that edge goes, and is fetched once more when somebody wants
//! it, or by the next pass of the fill.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::blob::ByteRange;
use crate::cache::{PAGE_BYTES, Pages, Presence};
use crate::content::error::Error;

/// Pages kept in memory when the disk is full: enough for the reads of one span at a time.
const OVERFLOW_PAGES: std::num::NonZeroUsize = std::num::NonZeroUsize::new(2048).unwrap();

/// Pages of one mount of which edges are kept: those of two thousand spans whose neighbours have not
/// come, or 8 MiB.
const EDGES: u64 = 4096;

/// As many pages any layer may have, so that spans that come at the same time find each other's edges.
const EDGES_MIN: usize = 256;

/// The part of a page that one span gave.
#[derive(Debug, Clone)]
struct Edge {
    range: ByteRange,
    bytes: Box<[u8]>,
}

#[derive(Debug)]
struct Kept {
    /// By page; no more than `edges_max`.
    edges: LruCache<u64, Vec<Edge>>,
    overflow: LruCache<u64, Box<[u8]>>,
}

/// What one layer has in memory.
#[derive(Debug)]
pub(super) struct Fringe {
    size: u64,
    edges_max: usize,
    kept: Mutex<Kept>,
    used: AtomicBool,
}

impl Fringe {
    /// For a layer of `size` bytes in an image whose layers have `total`.
    pub(super) fn new(size: u64, total: u64) -> Fringe {
        let share = u128::from(EDGES) * u128::from(size) / u128::from(total.max(1));
        let edges_max = usize::try_from(share).unwrap_or(usize::MAX);
        Fringe::keeping(size, edges_max.max(EDGES_MIN))
    }

    fn keeping(size: u64, edges_max: usize) -> Fringe {
        let kept = Kept {
            // Few layers need as many as they may have: nothing is allocated for them beforehand.
            edges: LruCache::unbounded(),
            overflow: LruCache::new(OVERFLOW_PAGES),
        };
        Fringe {
            size,
            edges_max,
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
            while kept.edges.len() >= self.edges_max && !kept.edges.contains(&number) {
                kept.edges.pop_lru();
            }
            let edges = kept.edges.get_or_insert_mut(number, Vec::new);
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
            self.lock().edges.pop(&number);
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

    /// Whether pages are here that the cache could not store.
    pub(super) fn has_overflowed(&self) -> bool {
        self.used.load(Ordering::Acquire) && !self.lock().overflow.is_empty()
    }

    /// As when others need all the room; how many pages gave way.
    #[cfg(test)]
    pub(super) fn forget_edges(&self) -> usize {
        let mut kept = self.lock();
        let count = kept.edges.len();
        kept.edges.clear();
        count
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Begin, Cache};
    use crate::oci::Digest;

    const SPAN: u64 = 10_000;

    /// Empty pages of a layer of so many spans, none of which begins or ends with a page but the first.
    fn pages(cache: &Cache, spans: u64) -> Pages {
        let Begin::New(mut new) = cache.begin(&Digest::of(b"blob"), 4).unwrap() else {
            panic!("nobody has it");
        };
        new.keep_index_only();
        for _ in 0..spans {
            new.write(&[0; SPAN as usize]).unwrap();
        }
        new.commit(b"index").unwrap().pages().unwrap()
    }

    fn span(n: u64) -> ByteRange {
        ByteRange::at(n * SPAN, SPAN).unwrap()
    }

    fn bytes(n: u64) -> Vec<u8> {
        (0..SPAN).map(|at| (n * 7 + at) as u8).collect()
    }

    /// Whether all of a span can be read, and is right.
    fn is_there(fringe: &Fringe, pages: &Pages, n: u64) -> bool {
        let (mut out, mut scratch) = (vec![0; SPAN as usize], Vec::new());
        let found = fringe.read(pages, span(n), &mut out, &mut scratch).unwrap() == Presence::Read;
        assert!(!found || out == bytes(n), "wrong bytes of span {n}");
        found
    }

    #[test]
    fn edges_whose_neighbours_never_come_do_not_pile_up() {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::open(temp.path()).unwrap();
        let pages = pages(&cache, 101);
        let fringe = Fringe::keeping(101 * SPAN, 20);
        for n in (1..101).step_by(2) {
            fringe.store(&pages, span(n), &bytes(n));
            assert!(is_there(&fringe, &pages, n));
            assert!(fringe.lock().edges.len() <= 20);
        }
        assert!(is_there(&fringe, &pages, 91), "the last ones are kept");
        assert!(!is_there(&fringe, &pages, 1), "the first ones were");
        // What comes once more is as good as what came first.
        for n in 0..101 {
            fringe.store(&pages, span(n), &bytes(n));
            assert!(is_there(&fringe, &pages, n));
        }
        assert!((1..100).all(|n| is_there(&fringe, &pages, n)));
        assert_eq!(fringe.lock().edges.len(), 0, "all pages are whole");
    }

    #[test]
    fn layers_share_what_a_mount_may_keep() {
        let (small, large) = (Fringe::new(1, 1 << 30), Fringe::new((1 << 30) - 1, 1 << 30));
        assert_eq!(small.edges_max, EDGES_MIN);
        assert_eq!(large.edges_max, EDGES as usize - 1);
        assert_eq!(Fringe::new(0, 0).edges_max, EDGES_MIN);
    }
}
