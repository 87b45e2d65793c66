//! The first part: indexes of all layers without windows, the profile, and the list of hot ranges.
//!
//! zstd of: the magic, the number of layers (u32), each index as `layer::codec` writes it behind
//! its length (u32), the profile behind its length, the number of hot ranges (u32), and each as
//! layer (u32), first page (u64), pages (u64), SHA-256; then, for each layer behind their length, the
//! lengths of its windows (u32 each); all little endian.

use crate::cache::PAGE_BYTES;
use crate::content::Profile;
use crate::layer::limit::ImageBudget;
use crate::layer::{LayerIndex, SpanStart, codec};
use crate::oci::manifest::LAYERS_MAX;
use crate::pack::reader::{Reader, put_bytes};
use crate::pack::{HotRange, PackError};

const MAGIC: &[u8; 8] = b"rsmpack\x01";

/// Most bytes of meta when unpacked: a million files take about 100 MiB.
pub const META_BYTES_MAX: usize = 256 << 20;

/// Most hot ranges: as many as a profile may have.
pub(crate) const HOT_MAX: u32 = 1 << 17;

/// Level of zstd: it is written once and read often; more gains nothing on indexes.
const LEVEL: i32 = 15;

/// What a mount needs before it is usable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// One index a layer, base first; windows are empty.
    pub layers: Vec<LayerIndex>,
    /// What a start touches, in order.
    pub profile: Profile,
    /// What the hot part holds, in its order.
    pub hot: Vec<HotRange>,
    /// Lengths of the windows of each layer; none at all in packs of earlier versions.
    pub windows: Vec<Vec<u32>>,
}

/// `index` without the windows of its checkpoints.
pub fn without_windows(index: &LayerIndex) -> LayerIndex {
    let mut index = index.clone();
    for span in &mut index.spans {
        if let SpanStart::Window { window, .. } = &mut span.start {
            *window = Box::default();
        }
    }
    index
}

impl Meta {
    /// The part's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, PackError> {
        let mut out = MAGIC.to_vec();
        let count = |n: usize| u32::try_from(n).map_err(|_| PackError("it is too large"));
        out.extend_from_slice(&count(self.layers.len())?.to_le_bytes());
        for layer in &self.layers {
            put_bytes(&mut out, &codec::encode(layer));
        }
        put_bytes(&mut out, &self.profile.encode());
        out.extend_from_slice(&count(self.hot.len())?.to_le_bytes());
        for range in &self.hot {
            out.extend_from_slice(&range.layer.to_le_bytes());
            out.extend_from_slice(&range.page.to_le_bytes());
            out.extend_from_slice(&range.pages.to_le_bytes());
            out.extend_from_slice(&range.sha256);
        }
        for lengths in &self.windows {
            let lengths = lengths.iter().flat_map(|len| len.to_le_bytes());
            put_bytes(&mut out, &lengths.collect::<Vec<u8>>());
        }
        zstd::bulk::compress(&out, LEVEL).map_err(|_| PackError("it could not be compressed"))
    }

    /// From the part's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Meta, PackError> {
        let plain = unpack(bytes)?;
        let mut reader = Reader(&plain);
        if reader.array::<8>()? != *MAGIC {
            return Err(PackError("its first part is of another kind or version"));
        }
        let count = reader.u32()?;
        if count as usize > LAYERS_MAX {
            return Err(PackError("it has too many layers"));
        }
        let mut layers = Vec::new();
        let budget = ImageBudget::default();
        for _ in 0..count {
            let layer = codec::decode(reader.bytes()?);
            let layer = layer.map_err(|_| PackError("an index in it is damaged"))?;
            let fits = budget.layer(&layer);
            fits.map_err(|_| PackError("its indexes need too much memory"))?;
            layers.push(layer);
        }
        let profile = Profile::decode(reader.bytes()?);
        let profile = profile.ok_or(PackError("the profile in it is damaged"))?;
        let count = reader.u32()?;
        if count > HOT_MAX {
            return Err(PackError("it has too many hot ranges"));
        }
        let mut hot = Vec::new();
        for _ in 0..count {
            let range = HotRange {
                layer: reader.u32()?,
                page: reader.u64()?,
                pages: reader.u64()?,
                sha256: reader.array()?,
            };
            hot.push(range.checked(&layers)?);
        }
        // No page is named twice, so a list is done with after at most all of them.
        let pages: u64 = layers.iter().map(pages_of).fold(0, u64::saturating_add);
        let hot_pages = hot.iter().map(|h| h.pages).fold(0, u64::saturating_add);
        let touched = profile.touches.iter().map(|t| t.pages);
        if hot_pages.max(touched.fold(0, u64::saturating_add)) > pages {
            return Err(PackError("it names more pages than its layers have"));
        }
        let mut windows = Vec::new();
        if reader.end().is_err() {
            for _ in &layers {
                let lengths = reader.bytes()?.as_chunks().0.iter();
                windows.push(lengths.map(|len| u32::from_le_bytes(*len)).collect());
            }
        }
        reader.end()?;
        Ok(Meta {
            layers,
            profile,
            hot,
            windows,
        })
    }
}

fn pages_of(layer: &LayerIndex) -> u64 {
    layer.address_size.div_ceil(PAGE_BYTES)
}

fn unpack(bytes: &[u8]) -> Result<Vec<u8>, PackError> {
    use std::io::Read;
    let decoder = zstd::stream::read::Decoder::with_buffer(bytes);
    let mut plain = Vec::new();
    let read = decoder.and_then(|d| d.take(META_BYTES_MAX as u64 + 1).read_to_end(&mut plain));
    match read {
        Ok(n) if n <= META_BYTES_MAX => Ok(plain),
        Ok(_) => Err(PackError("its first part is too long")),
        Err(_) => Err(PackError("its first part is not valid zstd")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::blob::ByteRange;
    use crate::content::profile::Touch;
    use crate::layer::Span;
    use crate::oci::{Compression, Digest};

    pub(in crate::pack) fn index(size: u64) -> LayerIndex {
        let span = |n: u64, start| Span {
            compressed: ByteRange::new(n * 100, n * 100 + 100),
            address: ByteRange::new(n * size / 2, (n + 1) * size / 2),
            start,
            sha256: [n as u8; 32],
        };
        let window = SpanStart::Window {
            bits: 0,
            window: b"window".as_slice().into(),
        };
        LayerIndex {
            blob: Digest::of(b"blob"),
            diff_id: Digest::of(b"tar"),
            compressed_size: 200,
            address_size: size,
            compression: Compression::Gzip,
            whiteouts: Vec::new(),
            entries: Vec::new(),
            spans: vec![span(0, SpanStart::Origin), span(1, window)],
        }
    }

    pub(in crate::pack) fn meta() -> Meta {
        let hot = HotRange {
            layer: 0,
            page: 1,
            pages: 2,
            sha256: [7; 32],
        };
        let touch = Touch {
            layer: 0,
            page: 1,
            pages: 2,
            at_ms: 0,
            starts: 0,
        };
        Meta {
            layers: vec![without_windows(&index(12_288))],
            profile: Profile {
                touches: vec![touch],
                command: Vec::new(),
            },
            hot: vec![hot],
            windows: vec![vec![6]],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = meta().encode().unwrap();
        assert_eq!(Meta::decode(&bytes), Ok(meta()));
        // As earlier versions wrote it.
        let bare = Meta {
            windows: Vec::new(),
            ..meta()
        };
        assert_eq!(Meta::decode(&bare.encode().unwrap()), Ok(bare));
    }

    #[test]
    fn damage_is_found_and_nothing_outside_is_believed() {
        let bytes = meta().encode().unwrap();
        for cut in 0..bytes.len() {
            assert!(Meta::decode(&bytes[..cut]).is_err(), "{cut}");
        }
        for (layer, page, pages) in [(1, 0, 1), (0, 3, 1), (0, 2, 2), (0, 1, 0), (0, u64::MAX, 2)] {
            let mut lying = meta();
            (lying.hot[0].layer, lying.hot[0].page, lying.hot[0].pages) = (layer, page, pages);
            assert!(Meta::decode(&lying.encode().unwrap()).is_err(), "{page}");
        }
    }

    #[test]
    fn no_more_pages_are_named_than_there_are() {
        let mut all = meta();
        all.hot = (0..3)
            .map(|page| HotRange {
                page,
                pages: 1,
                ..all.hot[0]
            })
            .collect();
        all.profile.touches[0].pages = 3;
        assert_eq!(Meta::decode(&all.encode().unwrap()), Ok(all.clone()));
        let more = Err(PackError("it names more pages than its layers have"));
        let mut overlapping = all.clone();
        overlapping.hot.push(overlapping.hot[0]);
        assert_eq!(Meta::decode(&overlapping.encode().unwrap()), more);
        for pages in [4, u64::MAX] {
            let mut touched = all.clone();
            touched.profile.touches[0].pages = pages;
            assert_eq!(Meta::decode(&touched.encode().unwrap()), more);
        }
    }

    #[test]
    fn what_it_unpacks_to_is_bounded() {
        let zeros = zstd::bulk::compress(&vec![0; META_BYTES_MAX + 1], 1).unwrap();
        assert!(zeros.len() < 64 << 10, "a bomb");
        let long = Err(PackError("its first part is too long"));
        assert_eq!(Meta::decode(&zeros), long);
        // A list of nothing, of which each item takes eight times its place in memory.
        let profile = format!(
            r#"{{"version":1,"touches":[],"command":[{}""]}}"#,
            r#""","#.repeat(3 << 20)
        );
        assert!(Profile::decode(profile.as_bytes()).is_none());
        let mut many = meta();
        many.layers = vec![many.layers[0].clone(); LAYERS_MAX + 1];
        let layers = Err(PackError("it has too many layers"));
        assert_eq!(Meta::decode(&many.encode().unwrap()), layers);
    }
}
