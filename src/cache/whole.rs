//! Layers that are whole: that all their pages are, together, the layer is seen once, by the digest of
//! its uncompressed tar, and remembered.
//!
//! The mark stands behind the bits in `present`, and is cut off by whoever clears a bit: a page that
//! was evicted, or did not have its sum, takes it away. So it says as little about rot as a bit does,
//! and what rots after it is found by the pages' sums.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::bitmap::WORD_BYTES;
use super::pages::{PAGE_BYTES, Pages, read_up_to};
use super::{ByteRange, CacheError};
use crate::oci::Digest;
use crate::oci::digest::Verifier;

const MARK: &[u8; 8] = b"rsmwhole";

/// Looked at at once.
const PIECE_BYTES: u64 = 256 << 10;

/// What a look at all pages of a layer has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    /// They are the layer.
    Verified,
    /// Some are absent or damaged.
    Incomplete,
    /// They have their sums, and are not the layer.
    Different,
}

/// Where the mark of a layer of `size` bytes begins.
fn place(size: u64) -> u64 {
    size.div_ceil(PAGE_BYTES).div_ceil(64) * WORD_BYTES
}

/// Marks a layer of `size` bytes whose bits are all set.
pub(super) fn mark(present: &File, size: u64) -> io::Result<()> {
    present.write_all_at(MARK, place(size))?;
    present.sync_all()
}

/// Takes the mark away, before a bit is cleared.
pub(super) fn unmark(present: &File, size: u64) -> io::Result<()> {
    match present.metadata()?.len() > place(size) {
        true => present.set_len(place(size)),
        false => Ok(()),
    }
}

impl Pages {
    /// Whether all pages are present, and were once seen to be the layer.
    pub fn is_verified(&self) -> bool {
        let mut mark = [0; MARK.len()];
        let read = read_up_to(&self.present, &mut mark, place(self.size()));
        read == mark.len() && mark == *MARK && self.is_complete()
    }

    /// Whether all pages are present, as far as the bits say.
    pub fn is_complete(&self) -> bool {
        self.is_present(ByteRange::new(0, self.size()))
    }

    /// Looks at every page, and, unless that was done before, whether all of them together have
    /// `diff_id`, the digest of the uncompressed tar; then they are marked.
    pub fn verify_whole(&self, diff_id: &Digest) -> Result<Whole, CacheError> {
        let mut verifier = (!self.is_verified()).then(|| Verifier::new(diff_id.clone()));
        let mut buffer = Vec::new();
        for start in (0..self.size()).step_by(PIECE_BYTES as usize) {
            let end = (start + PIECE_BYTES).min(self.size());
            let pages = start / PAGE_BYTES..end.div_ceil(PAGE_BYTES);
            if !self.check_in(&pages, &mut buffer) {
                return Ok(Whole::Incomplete);
            }
            if let Some(verifier) = &mut verifier {
                verifier.update(&buffer[..(end - start) as usize]);
            }
        }
        let Some(verifier) = verifier else {
            return Ok(Whole::Verified);
        };
        if verifier.finish().is_err() {
            return Ok(Whole::Different);
        }
        // What is looked at under the lock cannot be evicted meanwhile.
        let marked = self.locked(|_| match self.is_complete() {
            true => mark(&self.present, self.size()).map(|()| Whole::Verified),
            false => Ok(Whole::Incomplete),
        })?;
        marked.map_err(|e| CacheError::io("mark", &self.path.join("present"), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Begin, Cache, StoredLayer};

    const SIZE: u64 = 3 * PIECE_BYTES + 100;

    fn bytes() -> Vec<u8> {
        (0..SIZE).map(|n| (n / 7) as u8).collect()
    }

    fn stored(cache: &Cache) -> StoredLayer {
        let Begin::New(mut new) = cache.begin(&Digest::of(b"blob"), 0).unwrap() else {
            panic!("known already");
        };
        new.write(&bytes()).unwrap();
        new.commit(b"index").unwrap()
    }

    #[test]
    fn what_streamed_past_is_marked_and_what_lost_a_page_is_not() {
        let place = tempfile::tempdir().unwrap();
        let cache = Cache::open(place.path()).unwrap();
        let stored = stored(&cache);
        let pages = stored.pages().unwrap();
        assert!(pages.is_verified());
        pages.evict(0).unwrap();
        assert!(!pages.is_verified() && !stored.pages().unwrap().is_verified());
        let diff_id = Digest::of(&bytes());
        assert_eq!(pages.verify_whole(&diff_id).unwrap(), Whole::Incomplete);
        // All pages again: but nobody has seen that they are the layer.
        pages.write(0, &bytes()).unwrap();
        assert!(pages.is_complete() && !pages.is_verified());
        let other = Digest::of(b"another");
        assert_eq!(pages.verify_whole(&other).unwrap(), Whole::Different);
        assert!(!pages.is_verified());
        assert_eq!(pages.verify_whole(&diff_id).unwrap(), Whole::Verified);
        assert!(stored.pages().unwrap().is_verified(), "for everybody");
    }

    #[test]
    fn damage_after_the_mark_is_found_and_takes_it_away() {
        let place = tempfile::tempdir().unwrap();
        let cache = Cache::open(place.path()).unwrap();
        let stored = stored(&cache);
        let found = cache.layer(&Digest::of(b"blob")).unwrap().unwrap();
        let data = found.path().join("pages/data");
        let data = File::options().write(true).open(data).unwrap();
        data.write_all_at(b"flipped", PIECE_BYTES).unwrap();
        let pages = stored.pages().unwrap();
        assert!(pages.is_verified(), "nobody has looked");
        let whole = pages.verify_whole(&Digest::of(&bytes())).unwrap();
        assert_eq!(whole, Whole::Incomplete);
        assert!(!stored.pages().unwrap().is_verified());
    }
}
