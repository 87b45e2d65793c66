//! Stored indexes: no panic on any bytes, also behind a checksum that matches; and what was written is
//! what is read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rsmount::layer::codec::{decode, encode};
use rsmount::layer::{AddressSink, Geometry, Ingest, IngestOptions, LayerIndex};
use rsmount::oci::Digest;
use std::io;

/// Magic and version, as `src/layer/codec.rs` describes them; the checksum of the rest follows.
const HEAD: &[u8] = b"rsmlayer\x01\0\0\0";
const SUMMED_FROM: usize = HEAD.len() + 4;

struct Nowhere;

impl AddressSink for Nowhere {
    fn write(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

fn ingest(blob: &[u8]) -> Option<LayerIndex> {
    let mut options = IngestOptions::new(Digest::of(blob), blob.len() as u64);
    options.address_max = 4 << 20;
    options.geometry = Geometry {
        entry_bytes: 64 << 10,
        span_bytes: 16 << 10,
    };
    let mut pass = Ingest::new(options, Nowhere).ok()?;
    pass.push(blob).ok()?;
    pass.finish().ok().map(|(index, _)| index)
}

fn decode_summed(rest: &[u8]) -> Option<LayerIndex> {
    let sum = crc32c::crc32c(rest).to_le_bytes();
    decode(&[HEAD, &sum, rest].concat()).ok()
}

/// The bytes are an index themselves, and after the first two, which damage one, a blob that gives one.
fuzz_target!(|bytes: &[u8]| {
    let _ = decode(bytes);
    if let Some(index) = decode_summed(bytes) {
        assert_eq!(decode(&encode(&index)).as_ref(), Ok(&index));
    }
    let [at, mask, blob @ ..] = bytes else { return };
    let Some(index) = ingest(blob) else { return };
    let mut stored = encode(&index);
    assert_eq!(decode(&stored).as_ref(), Ok(&index));
    let at = SUMMED_FROM + usize::from(*at) * 8 % (stored.len() - SUMMED_FROM);
    stored[at] ^= mask;
    let _ = decode_summed(&stored[SUMMED_FROM..]);
});
