//! The second part: the pages that a start touches, first use first.
//!
//! One zstd frame that holds the ranges that meta lists, one after the other, flushed where a range
//! ends about every 256 KiB, so that the first pages can be used while the last are on their way.

use sha2::{Digest as _, Sha256};

use crate::blob::ByteRange;
use crate::cache::PAGE_BYTES;
use crate::content::profile::addresses_of;
use crate::layer::LayerIndex;
use crate::pack::PackError;
use crate::pack::manifest::PART_BYTES_MAX;

/// Bytes of pages after which the stream is flushed.
const FLUSH_BYTES: usize = 256 << 10;

/// Level of zstd: it is written once and read often.
const LEVEL: i32 = 19;

/// Longest range; the profile's are cut to this, so that a reader holds no more of one.
pub const RANGE_PAGES_MAX: u64 = 256;

/// Pages of one layer, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotRange {
    /// Which layer, base first.
    pub layer: u32,
    /// First page.
    pub page: u64,
    /// Number of pages.
    pub pages: u64,
    /// Digest of their bytes.
    pub sha256: [u8; 32],
}

impl HotRange {
    /// Its addresses in a layer of `size` bytes; the last page of a layer may be shorter.
    pub fn range(&self, size: u64) -> ByteRange {
        addresses_of(self.page, self.pages, size)
    }

    /// Itself, if it lies in one of `layers`.
    pub(super) fn checked(self, layers: &[LayerIndex]) -> Result<HotRange, PackError> {
        let size = layers
            .get(self.layer as usize)
            .map_or(0, |l| l.address_size);
        let pages = size.div_ceil(PAGE_BYTES);
        let inside = self
            .page
            .checked_add(self.pages)
            .is_some_and(|end| end <= pages);
        if inside && (1..=RANGE_PAGES_MAX).contains(&self.pages) {
            Ok(self)
        } else {
            Err(PackError("a hot range lies outside of its layer"))
        }
    }
}

/// Writes the part.
pub struct HotWriter {
    /// Absent when zstd could not be started.
    encoder: Option<zstd::stream::write::Encoder<'static, Vec<u8>>>,
    unflushed: usize,
    /// Longest part, in bytes.
    max: u64,
}

impl std::fmt::Debug for HotWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HotWriter")
            .field("unflushed", &self.unflushed)
            .finish_non_exhaustive()
    }
}

impl Default for HotWriter {
    /// As long as readers take it.
    fn default() -> HotWriter {
        HotWriter::within(PART_BYTES_MAX)
    }
}

impl HotWriter {
    /// The part has at most `max` bytes.
    fn within(max: u64) -> HotWriter {
        HotWriter {
            encoder: zstd::stream::write::Encoder::new(Vec::new(), LEVEL).ok(),
            unflushed: 0,
            max,
        }
    }

    /// Adds the bytes of the next range, unless the part might then be too long; whether it did.
    pub fn add(&mut self, bytes: &[u8]) -> Result<bool, PackError> {
        use std::io::Write as _;
        let encoder = self.encoder.as_mut().ok_or(UNCOMPRESSED)?;
        let waiting = zstd::zstd_safe::compress_bound(self.unflushed + bytes.len());
        if (encoder.get_ref().len() + waiting) as u64 > self.max {
            return Ok(false);
        }
        encoder.write_all(bytes).map_err(|_| UNCOMPRESSED)?;
        self.unflushed += bytes.len();
        if self.unflushed >= FLUSH_BYTES {
            encoder.flush().map_err(|_| UNCOMPRESSED)?;
            self.unflushed = 0;
        }
        Ok(true)
    }

    /// The part's bytes.
    pub fn finish(self) -> Result<Vec<u8>, PackError> {
        let encoder = self.encoder.ok_or(UNCOMPRESSED)?;
        encoder.finish().map_err(|_| UNCOMPRESSED)
    }
}

const UNCOMPRESSED: PackError = PackError("it could not be compressed");

/// Reads the part as it arrives.
pub struct HotReader {
    decoder: zstd::stream::raw::Decoder<'static>,
    /// Lengths of the ranges that are still to come, last first, with their digests.
    expected: Vec<(HotRange, usize)>,
    plain: Vec<u8>,
}

impl std::fmt::Debug for HotReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HotReader")
            .field("left", &self.expected.len())
            .finish_non_exhaustive()
    }
}

impl HotReader {
    /// For the ranges that meta lists.
    pub fn new(hot: &[HotRange], layers: &[LayerIndex]) -> Result<HotReader, PackError> {
        let len = |h: &HotRange| {
            let size = layers.get(h.layer as usize).map_or(0, |l| l.address_size);
            (*h, h.range(size).len() as usize)
        };
        let decoder = zstd::stream::raw::Decoder::new();
        Ok(HotReader {
            decoder: decoder.map_err(|_| PackError("zstd could not be started"))?,
            expected: hot.iter().rev().map(len).collect(),
            plain: Vec::new(),
        })
    }

    /// Takes the next bytes; `out` gets each range that they complete, verified.
    pub fn push(
        &mut self,
        mut bytes: &[u8],
        out: &mut dyn FnMut(&HotRange, &[u8]),
    ) -> Result<(), PackError> {
        use zstd::stream::raw::{InBuffer, Operation, OutBuffer};
        let mut buffer = vec![0; 128 << 10];
        loop {
            let mut input = InBuffer::around(bytes);
            let mut output = OutBuffer::around(&mut buffer[..]);
            let stepped = self.decoder.run(&mut input, &mut output);
            stepped.map_err(|_| PackError("its pages are not valid zstd"))?;
            let (consumed, written) = (input.pos(), output.pos());
            self.plain.extend_from_slice(&buffer[..written]);
            bytes = &bytes[consumed..];
            self.cut(out)?;
            // A full buffer may leave something inside of the decoder, and may not.
            if bytes.is_empty() && (written == 0 || written < buffer.len()) {
                return Ok(());
            }
            if consumed == 0 && written == 0 {
                return Err(PackError("its pages are not valid zstd"));
            }
        }
    }

    fn cut(&mut self, out: &mut dyn FnMut(&HotRange, &[u8])) -> Result<(), PackError> {
        let mut at = 0;
        while let Some((range, len)) = self.expected.last() {
            let Some(bytes) = self.plain.get(at..at + len) else {
                break;
            };
            if Sha256::digest(bytes)[..] != range.sha256 {
                return Err(PackError("pages do not have their digest"));
            }
            out(range, bytes);
            at += len;
            self.expected.pop();
        }
        self.plain.drain(..at);
        if self.expected.is_empty() && !self.plain.is_empty() {
            return Err(PackError("it has more pages than it lists"));
        }
        Ok(())
    }

    /// Says that there is no more.
    pub fn finish(self) -> Result<(), PackError> {
        match self.expected[..] {
            [] => Ok(()),
            _ => Err(PackError("pages are missing at its end")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::meta::tests::index;

    fn pages(seed: u8, len: usize) -> Vec<u8> {
        (0..len).map(|i| (i as u8).wrapping_mul(seed)).collect()
    }

    fn part() -> (Vec<HotRange>, Vec<LayerIndex>, Vec<u8>) {
        let size = 600 * PAGE_BYTES + 100;
        let (mut hot, mut writer) = (Vec::new(), HotWriter::default());
        for (seed, (page, pages_of)) in [(3, 2), (600, 1), (100, 256), (0, 1)]
            .into_iter()
            .enumerate()
        {
            let mut range = HotRange {
                layer: 0,
                page,
                pages: pages_of,
                sha256: [0; 32],
            };
            let bytes = pages(seed as u8 + 1, range.range(size).len() as usize);
            range.sha256 = Sha256::digest(&bytes).into();
            writer.add(&bytes).unwrap();
            hot.push(range);
        }
        (hot, vec![index(size)], writer.finish().unwrap())
    }

    #[test]
    fn ranges_come_out_as_they_went_in_however_they_arrive() {
        let (hot, layers, bytes) = part();
        for step in [1, 1000, bytes.len()] {
            let mut reader = HotReader::new(&hot, &layers).unwrap();
            let mut seen = Vec::new();
            for chunk in bytes.chunks(step) {
                let mut out = |range: &HotRange, bytes: &[u8]| seen.push((*range, bytes.len()));
                reader.push(chunk, &mut out).unwrap();
            }
            reader.finish().unwrap();
            let lens: Vec<usize> = seen.iter().map(|(_, len)| *len).collect();
            assert_eq!(lens, [8192, 100, 256 * 4096, 4096]);
            assert!(seen.iter().map(|(range, _)| range).eq(&hot));
        }
    }

    #[test]
    fn a_part_ends_before_it_is_longer_than_readers_take() {
        let size = 64 * PAGE_BYTES;
        let mut random = fastrand::Rng::with_seed(1);
        let mut noise = || {
            let mut bytes = vec![0; size as usize];
            random.fill(&mut bytes);
            bytes
        };
        let max = 5 * size;
        let mut writer = HotWriter::within(max);
        let mut hot = Vec::new();
        loop {
            let bytes = noise();
            if !writer.add(&bytes).unwrap() {
                break;
            }
            hot.push(HotRange {
                layer: 0,
                page: 64 * hot.len() as u64,
                pages: 64,
                sha256: Sha256::digest(&bytes).into(),
            });
        }
        assert_eq!(hot.len(), 4);
        let part = writer.finish().unwrap();
        assert!(part.len() as u64 <= max);
        let mut reader = HotReader::new(&hot, &[index(10 * size)]).unwrap();
        reader.push(&part, &mut |_, _| {}).unwrap();
        reader.finish().unwrap();

        // It is the part that must not be too long, not what it unpacks to.
        let mut writer = HotWriter::within(max);
        assert!((0..50).all(|_| writer.add(&vec![b'z'; size as usize]).unwrap()));
    }

    #[test]
    fn pages_that_fill_a_buffer_are_pages() {
        let bytes = vec![b'!'; 256 << 10];
        let range = HotRange {
            layer: 0,
            page: 0,
            pages: 64,
            sha256: Sha256::digest(&bytes).into(),
        };
        let mut writer = HotWriter::default();
        writer.add(&bytes).unwrap();
        let part = writer.finish().unwrap();
        let layers = [index(256 << 10)];
        for step in 1..=part.len() {
            let mut reader = HotReader::new(&[range], &layers).unwrap();
            let mut came = 0;
            for chunk in part.chunks(step) {
                reader
                    .push(chunk, &mut |_, bytes| came += bytes.len())
                    .unwrap();
            }
            reader.finish().unwrap();
            assert_eq!(came, bytes.len());
        }
    }

    #[test]
    fn wrong_missing_and_further_pages_are_refused() {
        let (hot, layers, bytes) = part();
        let read = |hot: &[HotRange], bytes: &[u8]| {
            let mut reader = HotReader::new(hot, &layers)?;
            reader.push(bytes, &mut |_, _| {})?;
            reader.finish()
        };
        assert_eq!(read(&hot, &bytes), Ok(()));
        assert!(read(&hot, &bytes[..bytes.len() - 1]).is_err());
        assert!(read(&hot[..3], &bytes).is_err());
        let mut lying = hot.clone();
        lying[1].sha256[5] ^= 1;
        assert!(read(&lying, &bytes).is_err());
        assert!(read(&hot, b"no zstd at all").is_err());
    }
}
