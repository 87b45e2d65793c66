//! Which pages are present: one bit a page, in memory and as little-endian 64-bit words in a file.
//! Pure: no I/O here.
//!
//! Bits are hints. Every page that is read is checked against its CRC32C, so a bit that is wrongly
//! set costs one look and a bit that is wrongly clear costs one fetch; neither can serve wrong
//! bytes. That is why relaxed atomics are enough.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of one word in the file.
pub(super) const WORD_BYTES: u64 = 8;

/// The bits of one layer.
#[derive(Debug)]
pub(super) struct Bitmap {
    words: Box<[AtomicU64]>,
    pages: u64,
}

/// The bits of `pages` that lie in word `word`.
pub(super) fn mask(word: u64, pages: &Range<u64>) -> u64 {
    let first = pages.start.saturating_sub(word * 64).min(64);
    let last = pages.end.saturating_sub(word * 64).min(64);
    if first >= last {
        return 0;
    }
    (u64::MAX >> (64 - (last - first))) << first
}

/// The words that hold the bits of `pages`.
pub(super) fn words_of(pages: &Range<u64>) -> Range<u64> {
    pages.start / 64..pages.end.div_ceil(64)
}

impl Bitmap {
    /// A bitmap of `pages` clear bits.
    pub(super) fn new(pages: u64) -> Bitmap {
        let words = (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Bitmap { words, pages }
    }

    fn word(&self, word: u64) -> u64 {
        self.words
            .get(word as usize)
            .map_or(0, |w| w.load(Ordering::Relaxed))
    }

    /// Takes the bits of `bits`, which stand in the file from word `first` on, for true. One that
    /// was set here and in the file in between is lost here, and found with the next look.
    pub(super) fn take(&self, first: u64, bits: &[u8]) {
        for (word, bytes) in (first..).zip(bits.as_chunks::<8>().0) {
            let valid = mask(word, &(0..self.pages));
            if let Some(slot) = self.words.get(word as usize) {
                slot.store(u64::from_le_bytes(*bytes) & valid, Ordering::Relaxed);
            }
        }
    }

    /// Sets or clears the bits of `pages`.
    pub(super) fn put(&self, pages: &Range<u64>, present: bool) {
        for word in words_of(pages) {
            let mask = mask(word, pages);
            match self.words.get(word as usize) {
                Some(slot) if present => slot.fetch_or(mask, Ordering::Relaxed),
                Some(slot) => slot.fetch_and(!mask, Ordering::Relaxed),
                None => 0,
            };
        }
    }

    /// Whether all of `pages` are present.
    pub(super) fn all(&self, pages: &Range<u64>) -> bool {
        words_of(pages).all(|word| {
            let mask = mask(word, pages);
            self.word(word) & mask == mask
        })
    }

    /// The runs of `pages` that are absent.
    pub(super) fn absent(&self, pages: &Range<u64>) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for page in pages.clone() {
            if self.word(page / 64) >> (page % 64) & 1 == 1 {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.end == page => run.end = page + 1,
                _ => runs.push(page..page + 1),
            }
        }
        runs
    }

    /// How many of `pages` are present.
    pub(super) fn count_in(&self, pages: &Range<u64>) -> u64 {
        let ones = |word| (self.word(word) & mask(word, pages)).count_ones();
        words_of(pages).map(|word| u64::from(ones(word))).sum()
    }

    /// How many pages are present.
    pub(super) fn count(&self) -> u64 {
        self.words
            .iter()
            .map(|w| u64::from(w.load(Ordering::Relaxed).count_ones()))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_cut_words() {
        assert_eq!(mask(0, &(0..64)), u64::MAX);
        assert_eq!(mask(0, &(1..3)), 0b110);
        assert_eq!(mask(1, &(1..3)), 0);
        assert_eq!(mask(1, &(10..65)), 1);
        assert_eq!(mask(0, &(63..200)), 1 << 63);
    }

    #[test]
    fn bits_are_set_found_and_cleared() {
        let bits = Bitmap::new(200);
        bits.put(&(60..130), true);
        assert!(bits.all(&(60..130)) && bits.all(&(64..128)) && !bits.all(&(59..61)));
        assert_eq!(bits.absent(&(0..200)), [0..60, 130..200]);
        bits.put(&(64..65), false);
        assert_eq!(bits.absent(&(60..131)), [64..65, 130..131]);
        assert_eq!((bits.count(), bits.count_in(&(63..66))), (69, 2));
        assert!(bits.all(&(5..5)));
    }

    #[test]
    fn bits_of_a_file_past_the_end_are_ignored() {
        let bits = Bitmap::new(65);
        bits.take(0, &[0xff; 64]);
        assert_eq!(bits.count(), 65);
        bits.take(9, &[0xff; 8]);
        assert!(!bits.all(&(64..66)));
    }
}
