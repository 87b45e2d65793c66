//! A blob of any compression: what one pass accepts can be decoded span by span to the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rsmount::layer::{AddressSink, Geometry, Ingest, IngestOptions, LayerIndex, SpanDecoder};
use rsmount::oci::Digest;
use std::io;

/// What a bomb may grow to here. The real limit is tested elsewhere.
const ADDRESS_BYTES_MAX: u64 = 4 << 20;
/// Many checkpoints even in small inputs.
const SPAN_BYTES: u64 = 16 << 10;

#[derive(Default)]
struct Collected(Vec<u8>);

impl AddressSink for Collected {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

fn ingest(blob: &[u8], cut: usize) -> Option<(LayerIndex, Vec<u8>)> {
    let mut options = IngestOptions::new(Digest::of(blob), blob.len() as u64);
    options.address_max = ADDRESS_BYTES_MAX;
    options.geometry = Geometry {
        entry_bytes: 4 * SPAN_BYTES,
        span_bytes: SPAN_BYTES,
    };
    let mut pass = Ingest::new(options, Collected::default()).ok()?;
    for piece in blob.chunks(cut) {
        pass.push(piece).ok()?;
    }
    pass.finish()
        .ok()
        .map(|(index, collected)| (index, collected.0))
}

/// The first byte says how the rest is cut.
fuzz_target!(|bytes: &[u8]| {
    let Some((cut, blob)) = bytes.split_first() else {
        return;
    };
    let Some((index, expected)) = ingest(blob, usize::from(*cut) * 64 + 1) else {
        return;
    };
    for span in 0..index.spans.len() {
        let start = index.decode_start(span);
        let mut decoder = SpanDecoder::new(&index, start..span + 1).expect("own index");
        let range = decoder.compressed();
        let (from, to) = (range.start() as usize, range.end() as usize);
        let mut decoded = Vec::new();
        decoder
            .push(&blob[from..to], &mut |_, bytes| {
                decoded = bytes.to_vec();
                Ok(())
            })
            .expect("own span");
        decoder.finish().expect("a whole span");
        let address = index.spans[span].address;
        assert_eq!(
            decoded,
            expected[address.start() as usize..address.end() as usize]
        );
    }
});
