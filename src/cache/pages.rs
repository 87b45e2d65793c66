//! The page store of one layer: `data` (a sparse file in the layout of the address space), `sums`
//! (CRC32C of each 4 KiB page, little endian) and `present` (one bit a page, see `bitmap`).
//!
//! Order of writing: data, then sums, then bits. Every page that is read is checked against its
//! sum, so a hole, a flipped bit, a truncated file or a bit that is set too early reads as
//! [`Presence::Absent`], never as wrong bytes. A page of zeros does not have the sum 0, so what a
//! power cut left unwritten cannot pass either.
//! The last page is filled up with zeros in `data` and for its sum.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::FallocateFlags;

use super::bitmap::{Bitmap, WORD_BYTES, words_of};
use super::directory::Directory;
use super::lock::{self, Borrowed};
use super::recency::{REGION_BYTES, Recency};
use super::trio::{DATA, PRESENT, SUMS, Trio};
use super::{ByteRange, CacheError, Root, evict, lend, whole};

/// Length of a page in bytes: the unit of presence and of checking.
pub const PAGE_BYTES: u64 = 4096;

/// Bytes of one sum in `sums`.
pub(super) const SUM_BYTES: u64 = 4;

/// The largest address space of a layer: 16 TiB, more than any disk that a cache lies on, and small
/// enough that the bitmap (512 MiB) can still be allocated and no page arithmetic overflows.
pub const ADDRESS_BYTES_MAX: u64 = 16 << 40;

/// Whether bytes were there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Presence {
    /// They were, their sums have matched, and they were copied.
    Read,
    /// Some of them are not there (any more); nothing was promised about the buffer.
    Absent,
}

/// What [`Pages::verify`] has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct CheckedPages {
    pub(super) pages: u64,
    pub(super) damaged: u64,
}

/// The pages of one layer. Any number of threads and processes may use the same store.
#[derive(Debug)]
pub struct Pages {
    data: File,
    sums: File,
    pub(super) present: File,
    /// Where messages say that it is.
    pub(super) path: PathBuf,
    bits: Bitmap,
    size: u64,
    /// Set when bits could not be cleared in the file: what this process knows is then truer.
    deaf: AtomicBool,
    recency: Recency,
    /// Whose budget they count for.
    root: Option<Arc<Root>>,
    /// flock does not tell threads of one description apart: this does.
    changing: Mutex<()>,
}

impl Pages {
    /// The store in `directory` of a layer of `size` bytes.
    pub(super) fn new(directory: &Directory, trio: Trio, size: u64) -> Pages {
        let Trio {
            data,
            sums,
            present,
        } = trio;
        let bits = Bitmap::new(size.div_ceil(PAGE_BYTES));
        let path = directory.path_of("");
        let pages = Pages {
            data,
            sums,
            present,
            path,
            bits,
            size,
            deaf: AtomicBool::new(false),
            recency: Recency::open(directory, size),
            root: None,
            changing: Mutex::new(()),
        };
        pages.look_again(&(0..size.div_ceil(PAGE_BYTES)));
        pages
    }

    /// The same, in use by a mount: what it stores counts for the budget of `root`, and others can
    /// see that it is in use as long as it lives.
    pub(super) fn in_use(mut self, root: &Arc<Root>) -> Pages {
        // Where locks cannot be had, `cache du` and `prune` take the store for an idle one.
        let _ = lock::shared(&self.data);
        self.root = Some(root.clone());
        self
    }

    /// Length of the address space in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Does something with the file while nobody else changes what is present.
    pub(super) fn locked<T>(&self, action: impl FnOnce(&File) -> T) -> Result<T, CacheError> {
        let _thread = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let _process = Borrowed::wait(&self.present)
            .map_err(|e| CacheError::io("lock", &self.path.join(PRESENT), e))?;
        Ok(action(&self.data))
    }

    /// Bytes that may be stored although nobody has asked for them: up to the low watermark of the
    /// cache's budget.
    pub fn room(&self) -> u64 {
        self.root
            .as_ref()
            .map_or(u64::MAX, |root| evict::room(root))
    }

    /// How many bytes of the address space are present, as far as the bits say.
    pub fn present_bytes(&self) -> u64 {
        self.look_again(&(0..self.size.div_ceil(PAGE_BYTES)));
        (self.bits.count() * PAGE_BYTES).min(self.size)
    }

    /// Whether all pages of `range` are present, as far as the bits say.
    pub fn is_present(&self, range: ByteRange) -> bool {
        let Ok(pages) = self.pages_of(range) else {
            return false;
        };
        self.look_again(&pages);
        self.bits.all(&pages)
    }

    /// What is absent of the pages of `range`: whole pages, but cut at the end of the address
    /// space. Nothing for a range that lies outside.
    pub fn absent(&self, range: ByteRange) -> Vec<ByteRange> {
        let Ok(pages) = self.pages_of(range) else {
            return Vec::new();
        };
        self.look_again(&pages);
        let bytes = |run: Range<u64>| {
            ByteRange::new(
                run.start * PAGE_BYTES,
                (run.end * PAGE_BYTES).min(self.size),
            )
        };
        self.bits.absent(&pages).into_iter().map(bytes).collect()
    }

    /// Copies `range` to `out`, which has its length, if every page of it is present and has its
    /// sum. Pages that do not are absent from then on. `scratch` is kept by the caller between
    /// calls so that no read allocates. A disk that cannot be read is a disk without the bytes.
    ///
    /// # Errors
    ///
    /// [`CacheError::Range`] when `range` does not lie in the address space or `out` differs in
    /// length.
    pub fn read(
        &self,
        range: ByteRange,
        out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<Presence, CacheError> {
        if out.len() as u64 != range.len() {
            return Err(self.range_error(range));
        }
        Ok(match self.read_in(range, scratch)? {
            Some(found) => {
                out.copy_from_slice(&scratch[found]);
                Presence::Read
            }
            None => Presence::Absent,
        })
    }

    /// The same in place: where in `buffer` the bytes are. Sums are of whole pages, so whole pages are
    /// read there; `buffer` only ever grows, so no read of the usual length touches it twice.
    ///
    /// # Errors
    ///
    /// [`CacheError::Range`] when `range` does not lie in the address space.
    pub fn read_in(
        &self,
        range: ByteRange,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Range<usize>>, CacheError> {
        let pages = self.pages_of(range)?;
        if range.is_empty() {
            return Ok(Some(0..0));
        }
        // Also what is absent: it is about to be fetched.
        self.recency.touch(&(range.start()..range.end()));
        Ok(self.check_in(&pages, buffer).then(|| {
            let skip = (range.start() - pages.start * PAGE_BYTES) as usize;
            skip..skip + range.len() as usize
        }))
    }

    /// Reads `pages` to the beginning of `buffer`, without counting as a use: whether they were all
    /// present and had their sums.
    pub(super) fn check_in(&self, pages: &Range<u64>, buffer: &mut Vec<u8>) -> bool {
        if !self.bits.all(pages) {
            self.look_again(pages);
            if !self.bits.all(pages) {
                return false;
            }
        }
        let data_len = ((pages.end - pages.start) * PAGE_BYTES) as usize;
        let need = data_len + ((pages.end - pages.start) * SUM_BYTES) as usize;
        if buffer.len() < need {
            buffer.resize(need, 0);
        }
        let (data, sums) = buffer[..need].split_at_mut(data_len);
        let whole = read_up_to(&self.data, data, pages.start * PAGE_BYTES)
            .min(read_up_to(&self.sums, sums, pages.start * SUM_BYTES) * 1024);
        let mut damaged = false;
        let summed = data
            .as_chunks::<{ PAGE_BYTES as usize }>()
            .0
            .iter()
            .zip(sums.as_chunks().0);
        for (page, (bytes, sum)) in (pages.start..).zip(summed) {
            let read = (page - pages.start + 1) * PAGE_BYTES <= whole as u64;
            if !read || crc32c::crc32c(bytes) != u32::from_le_bytes(*sum) {
                self.clear(page);
                damaged = true;
            }
        }
        !damaged
    }

    /// Stores verified bytes: data, then sums, then bits. `address` is a multiple of
    /// [`PAGE_BYTES`], and so is the length unless the bytes end with the address space.
    ///
    /// # Errors
    ///
    /// [`CacheError::Range`] when they do not fit, [`CacheError::Full`] when the disk is full: the
    /// bits are then as before, and the caller still has its bytes.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), CacheError> {
        let range = ByteRange::new(address, address.saturating_add(bytes.len() as u64));
        let pages = self.pages_of(range)?;
        let ends_well = range.end().is_multiple_of(PAGE_BYTES) || range.end() == self.size;
        if !address.is_multiple_of(PAGE_BYTES) || !ends_well {
            return Err(self.range_error(range));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let (whole, rest) = bytes.as_chunks::<{ PAGE_BYTES as usize }>();
        let mut sums: Vec<u8> = whole
            .iter()
            .flat_map(|page| crc32c::crc32c(page).to_le_bytes())
            .collect();
        self.put(&self.data, whole.as_flattened(), address, DATA)?;
        if !rest.is_empty() {
            let mut last = [0; PAGE_BYTES as usize];
            last[..rest.len()].copy_from_slice(rest);
            self.put(&self.data, &last, range.end() - rest.len() as u64, DATA)?;
            sums.extend(crc32c::crc32c(&last).to_le_bytes());
        }
        self.put(&self.sums, &sums, pages.start * SUM_BYTES, SUMS)?;
        self.recency.touch(&(range.start()..range.end()));
        self.change(&pages, true)
            .map_err(|e| CacheError::io("write", &self.path.join(PRESENT), e))?;
        if let Some(root) = &self.root {
            evict::stored(root, range.len());
        }
        Ok(())
    }

    /// Of each region when it was last used, in milliseconds since 1970, and how many bytes of it
    /// are present.
    pub(super) fn regions(&self) -> Vec<(u64, u64)> {
        let all = 0..self.size.div_ceil(PAGE_BYTES);
        self.look_again(&all);
        let bytes = |number| self.bits.count_in(&self.region(number)) * PAGE_BYTES;
        let used = self.recency.all().into_iter();
        (0..).zip(used).map(|(n, used)| (used, bytes(n))).collect()
    }

    /// The pages of region `number`.
    fn region(&self, number: u64) -> Range<u64> {
        let end = (number + 1) * REGION_BYTES;
        number * (REGION_BYTES / PAGE_BYTES)..end.min(self.size).div_ceil(PAGE_BYTES)
    }

    /// Gives the disk space of region `number` back.
    pub(super) fn evict(&self, number: u64) -> Result<(), CacheError> {
        self.punch(&self.region(number))
    }

    /// Clears the bits of `pages`, then gives their disk space back.
    fn punch(&self, pages: &Range<u64>) -> Result<(), CacheError> {
        let _thread = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |e: std::io::Error| CacheError::io("punch", &self.path.join(DATA), e);
        let _process = Borrowed::wait(&self.present).map_err(|e| failed(e.into()))?;
        if lend::is_kept(&self.data) {
            return Ok(());
        }
        self.put_bits(pages, false).map_err(failed)?;
        let bytes = (pages.end - pages.start) * PAGE_BYTES;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.data, flags, pages.start * PAGE_BYTES, bytes)
            .map_err(|e| failed(e.into()))
    }

    /// Looks at every page that is present, clears the bits of those that do not have their sum, and
    /// with `punch` gives back the disk space of what no bit stands for.
    pub(super) fn verify(&self, punch: bool) -> Result<CheckedPages, CacheError> {
        let mut checked = CheckedPages::default();
        let mut scratch = Vec::new();
        for number in 0..self.size.div_ceil(REGION_BYTES) {
            let region = self.region(number);
            self.look_again(&region);
            for at in region.clone().filter(|at| self.bits.all(&(*at..at + 1))) {
                checked.pages += 1;
                if !self.check_in(&(at..at + 1), &mut scratch) {
                    checked.damaged += 1;
                }
            }
            if punch {
                for absent in self.bits.absent(&region) {
                    self.punch(&absent)?;
                }
            }
        }
        Ok(checked)
    }

    fn put(&self, file: &File, bytes: &[u8], offset: u64, name: &str) -> Result<(), CacheError> {
        file.write_all_at(bytes, offset)
            .map_err(|e| CacheError::io("write", &self.path.join(name), e))
    }

    /// Page `page` does not have its sum. Somebody may have stored it anew since it was read, so it
    /// is looked at again where nobody can be in between the bits of a store and its pages.
    fn clear(&self, page: u64) {
        let _thread = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(_process) = Borrowed::wait(&self.present) else {
            return;
        };
        let (mut bytes, mut sum) = ([0; PAGE_BYTES as usize], [0; SUM_BYTES as usize]);
        let read = read_up_to(&self.data, &mut bytes, page * PAGE_BYTES) == bytes.len()
            && read_up_to(&self.sums, &mut sum, page * SUM_BYTES) == sum.len();
        if read && crc32c::crc32c(&bytes) == u32::from_le_bytes(sum) {
            return;
        }
        if self.put_bits(&(page..page + 1), false).is_err() {
            self.deaf.store(true, Relaxed);
        }
    }

    /// Changes bits in the file, under the store's lock because words are shared with other
    /// processes, and in memory.
    fn change(&self, pages: &Range<u64>, present: bool) -> std::io::Result<()> {
        let _thread = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let _process = Borrowed::wait(&self.present)?;
        self.put_bits(pages, present)
    }

    /// The same for who holds both locks.
    fn put_bits(&self, pages: &Range<u64>, present: bool) -> std::io::Result<()> {
        if !present {
            self.bits.put(pages, false);
            whole::unmark(&self.present, self.size)?;
        }
        let words = words_of(pages);
        let mut stored = vec![0; ((words.end - words.start) * WORD_BYTES) as usize];
        read_up_to(&self.present, &mut stored, words.start * WORD_BYTES);
        for (word, bytes) in words.clone().zip(stored.as_chunks_mut().0) {
            let mask = super::bitmap::mask(word, pages);
            let bits = u64::from_le_bytes(*bytes);
            *bytes = if present { bits | mask } else { bits & !mask }.to_le_bytes();
        }
        self.present
            .write_all_at(&stored, words.start * WORD_BYTES)?;
        if present {
            self.bits.take(words.start, &stored);
        }
        Ok(())
    }

    /// Takes over what other processes have filled and evicted in the meantime.
    fn look_again(&self, pages: &Range<u64>) {
        /// Read at once: the bits of 128 MiB. A page cache hit either way.
        const PIECE_BYTES: u64 = 4096;
        if self.deaf.load(Relaxed) {
            return;
        }
        let words = words_of(pages);
        let mut piece = [0; PIECE_BYTES as usize];
        for first in words.clone().step_by((PIECE_BYTES / WORD_BYTES) as usize) {
            let len = ((words.end - first) * WORD_BYTES).min(PIECE_BYTES) as usize;
            let read = read_up_to(&self.present, &mut piece[..len], first * WORD_BYTES);
            self.bits.take(first, &piece[..read]);
        }
    }

    /// The pages that hold any byte of `range`.
    fn pages_of(&self, range: ByteRange) -> Result<Range<u64>, CacheError> {
        if range.end() > self.size {
            return Err(self.range_error(range));
        }
        if range.is_empty() {
            return Ok(0..0);
        }
        Ok(range.start() / PAGE_BYTES..range.end().div_ceil(PAGE_BYTES))
    }

    fn range_error(&self, range: ByteRange) -> CacheError {
        CacheError::Range {
            start: range.start(),
            end: range.end(),
            size: self.size,
        }
    }
}

/// Reads until `out` is full, the file ends or the disk fails: how many bytes came.
pub(super) fn read_up_to(file: &File, out: &mut [u8], offset: u64) -> usize {
    let mut done = 0;
    while done < out.len() {
        match file.read_at(&mut out[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    done
}

#[cfg(test)]
mod tests;
