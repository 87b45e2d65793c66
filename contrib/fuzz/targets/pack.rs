//! A pack as a registry may send it: no panic, and what is accepted can be used: its windows are found,
//! its pages are cut out of the stream, its layers merge or say why not.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rsmount::layer::SpanDecoder;
use rsmount::oci::Digest;
use rsmount::pack::meta::without_windows;
use rsmount::pack::windows::{self, Places};
use rsmount::pack::{HotReader, Meta, PackManifest, PublicKey};
use rsmount::tree::Tree;
use std::sync::Arc;

const META_MAGIC: &[u8] = b"rsmpack\x01";
/// What an index begins with; the checksum of the rest follows, see `src/layer/codec.rs`.
const INDEX_HEAD: &[u8] = b"rsmlayer\x01\0\0\0";

/// A zstd frame (RFC 8878) of one block that is not compressed: a mutation of the input is then one of
/// what is in it.
fn frame(plain: &[u8]) -> Vec<u8> {
    let len = u32::try_from(plain.len()).expect("short");
    let block = (len << 3 | 1).to_le_bytes();
    let head = [0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    [&head[..], &len.to_le_bytes(), &block[..3], plain].concat()
}

/// Takes a piece off `bytes`, behind its length.
fn piece<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let Some((len, rest)) = bytes.split_first_chunk() else {
        return std::mem::take(bytes);
    };
    let (piece, rest) = rest.split_at(usize::from(u16::from_le_bytes(*len)).min(rest.len()));
    *bytes = rest;
    piece
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).expect("short").to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Meta made of pieces: indexes behind a checksum that matches, the profile, and all that follows.
fn meta(mut bytes: &[u8]) -> Vec<u8> {
    let mut plain = META_MAGIC.to_vec();
    let (count, rest) = bytes.split_first().unwrap_or((&0, &[]));
    bytes = rest;
    let count = u32::from(count % 4);
    plain.extend_from_slice(&count.to_le_bytes());
    for _ in 0..count {
        let index = piece(&mut bytes);
        let sum = crc32c::crc32c(index).to_le_bytes();
        put(&mut plain, &[INDEX_HEAD, &sum, index].concat());
    }
    put(&mut plain, piece(&mut bytes));
    plain.extend_from_slice(piece(&mut bytes));
    frame(&plain)
}

/// What a mount does with it; `stream` is what comes of its other parts.
fn mount(meta: &Meta, stream: &[u8]) {
    if let Ok(mut reader) = HotReader::new(&meta.hot, &meta.layers) {
        let pieces = stream.chunks(stream.len() / 3 + 1);
        let fed = pieces.map(|piece| reader.push(piece, &mut |_, _| {}));
        if fed.collect::<Result<Vec<()>, _>>().is_ok() {
            let _ = reader.finish();
        }
    }
    for touch in &meta.profile.touches {
        if let Some(layer) = meta.layers.get(touch.layer as usize) {
            assert!(touch.range(layer.address_size).end() <= layer.address_size);
        }
    }
    for (n, layer) in meta.layers.iter().enumerate() {
        assert_eq!(&without_windows(layer).spans.len(), &layer.spans.len());
        let size = stream.len() as u64;
        let lengths = meta.windows.get(n).map_or(&[][..], |l| &l[..]);
        if let Some(places) = Places::new(layer, lengths, size) {
            for (span, place) in places.of(&(0..layer.spans.len())) {
                assert!(span < layer.spans.len() && place.end() <= size);
            }
        }
        let Ok(whole) = windows::restore(layer, stream) else {
            continue;
        };
        for span in 0..whole.spans.len().min(8) {
            let Ok(mut decoder) = SpanDecoder::new(&whole, whole.decode_start(span)..span + 1) else {
                continue;
            };
            let _ = decoder.push(stream, &mut |_, _| Ok(()));
            let _ = decoder.finish();
        }
    }
    let layers: Vec<_> = meta.layers.iter().cloned().map(Arc::new).collect();
    if let Err(error) = Tree::merge(&layers) {
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

/// The first byte says what the rest is: a manifest, meta as it is, or pieces of meta and a stream.
fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else {
        return;
    };
    match kind % 3 {
        0 => {
            let about = Digest::of(b"image");
            if let Ok(pack) = PackManifest::decode(rest, &about) {
                let again = PackManifest::decode(&pack.encode(), &about);
                assert_eq!(again.as_ref(), Ok(&pack));
                let key = "ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
                let _ = pack.signed(&[key.parse::<PublicKey>().expect("a key")]);
            }
        }
        1 => {
            if let Ok(meta) = Meta::decode(rest) {
                mount(&meta, rest);
            }
        }
        _ => {
            let mut rest = rest;
            let parts = piece(&mut rest);
            if let Ok(meta) = Meta::decode(&meta(parts)) {
                mount(&meta, rest);
            }
        }
    }
});
