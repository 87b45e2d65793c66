//! An index cut anew for what is hot: narrow where a profile says that bytes will be wanted, wide
//! elsewhere. Needs no blob, only the list of places and the layer's own bytes.
//!
//! A hot run gets a place to begin at the last block before it and an end at the first place behind
//! it, which is in the midst of a block unless another run needs the rest of that. Windows made here
//! hold all of their 32 KiB, because which bytes are referred to is not known without the blob;
//! elsewhere every other place to begin goes, so that the whole stays within the budget of an index.
//! Pure: whoever calls gives the bytes.
//!
//! Rejected: one run of all hot ranges between whose blocks lie less than 16 KiB compressed. Blocks are
//! long (about 115 KiB of a gzip layer, 43 KiB compressed), so most hot ranges share theirs, and the
//! indexes of a python image came to 1.1 % instead of 1.5 %; but its start fetched 9.0 MB instead of
//! 7.6 MB: what costs that was not found out.
//!
//! zstd layers stay as they are. Where there are many frames, each is a place to begin already. Into
//! a frame there is no way: a block goes on with the entropy tables and the repeated offsets of the one
//! before (RFC 8878, 3.1.1.3), which no decoder takes from outside as a deflate decoder takes a window.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};

use crate::blob::ByteRange;
use crate::blob::range::coalesce;
use crate::layer::blocks::Place;
use crate::layer::index::{LayerIndex, Span, SpanStart};
use crate::layer::inflate::WINDOW_BYTES;
use crate::layer::window::pack_whole;
use crate::oci::Compression;

/// Hot ranges that are nearer to each other, in bytes of address space, are one run: fetching what
/// lies between costs about what another window does.
const GAP_BYTES: u64 = 48 << 10;

/// A place to begin that is no farther before a run is good enough.
const NEAR_BYTES: u64 = 32 << 10;

/// Continued spans that begin nearer to a new cut go: where the decoder was then is known to a few
/// bytes only.
const BLUR_BYTES: u64 = 4 << 10;

/// Farthest distance between places to begin where nothing is hot, in bytes of address space.
const COLD_ENTRY_BYTES: u64 = 2 << 20;

/// Uncompressed layers are cut at pages.
const PAGE_BYTES: u64 = 4096;

/// Gives bytes of the layer, if they are there.
pub type Read<'a> = dyn FnMut(ByteRange) -> Option<Vec<u8>> + 'a;

/// Where a span begins.
struct Cut {
    compressed: u64,
    start: SpanStart,
}

/// `base` cut anew for `hot`, in any order; `None` when bytes that have to be read are not there, or
/// nothing could be gained (zstd frames cannot be entered).
pub fn narrow(
    base: &LayerIndex,
    places: &[Place],
    hot: &[ByteRange],
    read: &mut Read<'_>,
) -> Option<LayerIndex> {
    let mut hot: Vec<ByteRange> = hot.iter().copied().filter(|r| !r.is_empty()).collect();
    hot.sort_unstable();
    let runs = coalesce(hot, GAP_BYTES);
    let mut cuts = Cuts::of(base);
    for (n, &run) in runs.iter().enumerate() {
        let next = runs.get(n + 1).map(|next| next.start());
        match base.compression {
            Compression::None => cuts.pages(run, base.address_size),
            Compression::Gzip => cuts.blocks(run, next, places, read)?,
            Compression::Zstd => return None,
        }
    }
    cuts.thin(base.address_size);
    let mut index = LayerIndex {
        spans: Vec::new(),
        ..base.clone()
    };
    index.spans = cuts.spans(base, read)?;
    Some(index)
}

struct Cuts {
    at: BTreeMap<u64, Cut>,
    /// Places to begin that hot runs need.
    kept: BTreeSet<u64>,
}

impl Cuts {
    fn of(base: &LayerIndex) -> Cuts {
        let cut = |span: &Span| {
            let cut = Cut {
                compressed: span.compressed.start(),
                start: span.start.clone(),
            };
            (span.address.start(), cut)
        };
        Cuts {
            at: base.spans.iter().map(cut).collect(),
            kept: BTreeSet::new(),
        }
    }

    fn pages(&mut self, run: ByteRange, size: u64) {
        let run = run.aligned(PAGE_BYTES);
        for address in [run.start(), run.end()] {
            if address < size {
                self.at.entry(address).or_insert(Cut {
                    compressed: address,
                    start: SpanStart::Origin,
                });
            }
        }
    }

    fn blocks(
        &mut self,
        run: ByteRange,
        next_run: Option<u64>,
        places: &[Place],
        read: &mut Read<'_>,
    ) -> Option<()> {
        let (before, behind) =
            places.split_at(places.partition_point(|p| p.address <= run.start()));
        let before = before.iter().rfind(|place| place.block.is_some());
        let entry = self.entry_before(run.start());
        let near = run.start().saturating_sub(NEAR_BYTES);
        match before.filter(|place| place.address > entry && entry < near) {
            None => {
                self.kept.insert(entry);
            }
            Some(place) => self.enter(place, read)?,
        }
        let behind = &behind[behind.partition_point(|p| p.address < run.end())..];
        let block = behind.iter().find(|place| place.block.is_some());
        // Who wants more of this block has to have all before that anyhow.
        let is_shared = next_run.is_some_and(|next| block.is_none_or(|block| next < block.address));
        let Some(end) = (if is_shared { block } else { behind.first() }) else {
            // It lasts to the end of the layer.
            return Some(());
        };
        let next = self.at.range(run.end()..).next().map(|(at, _)| *at);
        if next.is_none_or(|next| end.address + BLUR_BYTES < next) {
            self.insert(end.address, end.consumed, SpanStart::Continue);
        }
        Some(())
    }

    /// The nearest place to begin at or before `address`; an index has one at 0.
    fn entry_before(&self, address: u64) -> u64 {
        let mut before = self.at.range(..=address).rev();
        let entry = before.find(|(_, cut)| cut.start != SpanStart::Continue);
        entry.map_or(0, |(at, _)| *at)
    }

    fn enter(&mut self, block: &Place, read: &mut Read<'_>) -> Option<()> {
        let bits = block.block?;
        let from = block.address.saturating_sub(WINDOW_BYTES as u64);
        let window = pack_whole(&read(ByteRange::new(from, block.address))?)?;
        let compressed = block.consumed - u64::from(bits > 0);
        self.insert(
            block.address,
            compressed,
            SpanStart::Window { bits, window },
        );
        self.kept.insert(block.address);
        Some(())
    }

    fn insert(&mut self, address: u64, compressed: u64, start: SpanStart) {
        let blurred = address.saturating_sub(BLUR_BYTES)..=address + BLUR_BYTES;
        let gone: Vec<u64> = self
            .at
            .range(blurred)
            .filter(|(_, cut)| cut.start == SpanStart::Continue)
            .map(|(at, _)| *at)
            .collect();
        gone.iter().for_each(|at| drop(self.at.remove(at)));
        let cut = Cut { compressed, start };
        self.at.entry(address).or_insert(cut);
    }

    /// Makes places to begin that no hot run needs continuations, as far as the next is not too far.
    fn thin(&mut self, size: u64) {
        let is_entry = |(_, cut): &(&u64, &Cut)| cut.start != SpanStart::Continue;
        let entries: Vec<u64> = self.at.iter().filter(is_entry).map(|(at, _)| *at).collect();
        let mut last = 0;
        for (n, &at) in entries.iter().enumerate() {
            let next = entries.get(n + 1).copied().unwrap_or(size);
            let needed = self.kept.contains(&at) || next - last > COLD_ENTRY_BYTES;
            match self.at.get_mut(&at) {
                Some(cut) if !needed => {
                    let SpanStart::Window { bits, .. } = cut.start else {
                        last = at;
                        continue;
                    };
                    // The shared byte is now the end of the block before.
                    cut.compressed += u64::from(bits > 0);
                    cut.start = SpanStart::Continue;
                }
                _ => last = at,
            }
        }
    }

    /// Spans between the cuts; what has no digest yet is read and hashed.
    fn spans(self, base: &LayerIndex, read: &mut Read<'_>) -> Option<Vec<Span>> {
        let mut spans: Vec<Span> = Vec::with_capacity(self.at.len());
        let mut cuts = self.at.into_iter().peekable();
        while let Some((start, cut)) = cuts.next() {
            let (end, compressed_end) = match cuts.peek() {
                None => (base.address_size, base.compressed_size),
                Some((at, next)) => {
                    let shared = matches!(next.start, SpanStart::Window { bits: 1.., .. });
                    (*at, next.compressed + u64::from(shared))
                }
            };
            if compressed_end < cut.compressed || end <= start {
                return None;
            }
            let address = ByteRange::new(start, end);
            spans.push(Span {
                compressed: ByteRange::new(cut.compressed, compressed_end),
                address,
                start: cut.start,
                sha256: digest(base, address, read)?,
            });
        }
        Some(spans)
    }
}

fn digest(base: &LayerIndex, address: ByteRange, read: &mut Read<'_>) -> Option<[u8; 32]> {
    let same = base.spans.get(base.spans_of(address).start);
    match same.filter(|span| span.address == address) {
        Some(span) => Some(span.sha256),
        None => Some(Sha256::digest(read(address)?).into()),
    }
}
