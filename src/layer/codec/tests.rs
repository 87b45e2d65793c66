//! The index format: round trips, damage, lies.
#![allow(
    clippy::too_many_lines,
    clippy::type_complexity,
    reason = "tables of cases"
)]

use proptest::prelude::*;

use super::*;
use crate::blob::ByteRange;
use crate::layer::entry::{Entry, EntryKind, Extent, Timestamp, Whiteout, Xattr};
use crate::layer::index::{Span, SpanStart};
use crate::layer::limit::SYMLINK_BYTES_MAX;
use crate::layer::path::LayerPath;
use crate::oci::Digest;

fn path(text: &str) -> LayerPath {
    LayerPath::parse(text.as_bytes()).unwrap()
}

fn entry(name: &str, kind: EntryKind) -> Entry {
    Entry {
        path: path(name),
        kind,
        mode: 0o4755,
        uid: 1000,
        gid: u32::MAX,
        mtime: Timestamp {
            seconds: -77,
            nanoseconds: 999_999_999,
        },
        xattrs: vec![],
    }
}

/// One of everything.
fn sample() -> LayerIndex {
    let extent = |file_offset, address, len| Extent {
        file_offset,
        address,
        len,
    };
    let regular = |size, extents| EntryKind::Regular { size, extents };
    let xattr = |name: &str| Xattr {
        name: name.as_bytes().into(),
        value: [0, 255].into(),
    };
    let mut entries = vec![
        entry("", EntryKind::Directory),
        entry("a", regular(0, vec![])),
        entry("a/whole", regular(10, vec![extent(0, 512, 10)])),
        entry("a/hole", regular(1 << 40, vec![])),
        entry(
            "a/sparse",
            regular(99, vec![extent(3, 1000, 4), extent(90, 20, 9)]),
        ),
        entry(
            "a/link",
            EntryKind::HardLink {
                target: path("a/whole"),
            },
        ),
        entry(
            "z",
            EntryKind::Symlink {
                target: b"../\xff"[..].into(),
            },
        ),
        entry("c", EntryKind::CharDevice { major: 1, minor: 3 }),
        entry(
            "b",
            EntryKind::BlockDevice {
                major: u32::MAX,
                minor: 0,
            },
        ),
        entry("f", EntryKind::Fifo),
    ];
    entries[2].xattrs = vec![xattr("security.capability"), xattr("user.a")];
    entries[3].mtime = Timestamp {
        seconds: i64::MIN,
        nanoseconds: 0,
    };
    let span = |compressed, address, start| Span {
        compressed: ByteRange::new(compressed, 900),
        address: ByteRange::new(address, 3000),
        start,
        sha256: [7; 32],
    };
    let window = SpanStart::Window {
        bits: 3,
        window: [1, 2, 3].into(),
    };
    let byte = SpanStart::Window {
        bits: 0,
        window: [].into(),
    };
    let mut spans = vec![
        span(0, 0, SpanStart::Origin),
        span(100, 1000, window),
        span(200, 1500, SpanStart::Continue),
        span(300, 2000, byte),
        span(400, 2500, SpanStart::Origin),
    ];
    for at in 1..spans.len() {
        let start = spans[at].compressed.start();
        let shared = u64::from(at == 1);
        let before = spans[at - 1].clone();
        spans[at - 1].compressed = ByteRange::new(before.compressed.start(), start + shared);
        let end = spans[at].address.start();
        spans[at - 1].address = ByteRange::new(before.address.start(), end);
    }
    LayerIndex {
        blob: Digest::of(b"blob"),
        diff_id: format!("sha512:{}", "0f".repeat(64)).parse().unwrap(),
        compressed_size: 900,
        address_size: 3000,
        compression: Compression::Gzip,
        whiteouts: vec![Whiteout::Path(path("a/b")), Whiteout::Opaque(path(""))],
        entries,
        spans,
    }
}

#[test]
fn everything_comes_back() {
    let index = sample();
    let bytes = encode(&index);
    assert_eq!(decode(&bytes), Ok(index));
}

#[test]
fn every_damage_is_found() {
    let bytes = encode(&sample());
    for at in 0..bytes.len() {
        assert!(decode(&bytes[..at]).is_err(), "cut at {at}");
        let mut bad = bytes.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(decode(&bad).is_err(), "flipped at {at}");
    }
    assert!(decode(&[&bytes[..], b"x"].concat()).is_err());
    let mut newer = bytes;
    newer[8] = 2;
    assert_eq!(decode(&newer), Err(CodecError::Version(2)));
}

/// Encodes something that no pass could have made.
fn lie(change: impl FnOnce(&mut LayerIndex)) -> Result<LayerIndex, CodecError> {
    let mut index = sample();
    change(&mut index);
    decode(&encode(&index))
}

fn regular(size: u64, extents: Vec<Extent>) -> Entry {
    entry("x", EntryKind::Regular { size, extents })
}

#[test]
fn entries_that_lie_are_refused() {
    let extent = |file_offset, address, len| Extent {
        file_offset,
        address,
        len,
    };
    for bad in [
        regular(10, vec![extent(0, 2995, 10)]), // outside the layer
        regular(10, vec![extent(0, u64::MAX, 10)]), // wraps around
        regular(9, vec![extent(0, 0, 10)]),     // longer than the file
        regular(20, vec![extent(5, 0, 5), extent(0, 100, 5)]), // order
        regular(20, vec![extent(0, 0, 5), extent(3, 100, 5)]), // overlap
        regular(20, vec![extent(0, 0, 5), extent(9, 100, 0)]), // empty
        regular(u64::MAX, vec![]),              // longer than a file can be
        entry("x", EntryKind::Symlink { target: [].into() }),
        entry(
            "x",
            EntryKind::Symlink {
                target: [b'a', 0].into(),
            },
        ),
        entry(
            "x",
            EntryKind::Symlink {
                target: vec![b'a'; SYMLINK_BYTES_MAX + 1].into(),
            },
        ),
        entry("", EntryKind::Fifo),
        Entry {
            mode: 0o10000,
            ..regular(0, vec![])
        },
        Entry {
            mtime: Timestamp {
                seconds: 0,
                nanoseconds: 1_000_000_000,
            },
            ..regular(0, vec![])
        },
    ] {
        let shown = format!("{bad:?}");
        assert!(lie(|index| index.entries.push(bad)).is_err(), "{shown}");
    }
    let xattr = |name: &[u8], len| Xattr {
        name: name.into(),
        value: vec![0; len].into(),
    };
    let twice = vec![xattr(b"a", 1), xattr(b"a", 1)];
    for xattrs in [
        twice,
        vec![xattr(b"", 1)],
        vec![xattr(b"a", (64 << 10) + 1)],
    ] {
        assert!(lie(|index| index.entries[0].xattrs = xattrs).is_err());
    }
    assert!(lie(|index| index.whiteouts[0] = Whiteout::Path(path(""))).is_err());
}

#[test]
fn spans_that_lie_are_refused() {
    let range = ByteRange::new;
    assert!(lie(|index| index.spans[0].start = SpanStart::Continue).is_err());
    assert!(lie(|index| index.spans[0].compressed = range(1, 101)).is_err());
    assert!(lie(|index| index.spans[2].address = range(1500, 1500)).is_err());
    assert!(lie(|index| index.spans[4].address = range(2500, 2999)).is_err());
    assert!(lie(|index| index.spans[4].address = range(1, u64::MAX)).is_err());
    assert!(lie(|index| index.spans[4].compressed = range(901, 950)).is_err());
    assert!(lie(|index| index.spans[4].compressed = range(1, 900)).is_err());
    assert!(lie(|index| index.spans.clear()).is_err());
    assert!(lie(|index| index.compression = Compression::Zstd).is_err());
    assert!(lie(|index| index.compression = Compression::None).is_err());
    let window = vec![0; 40 << 10].into();
    assert!(lie(|index| index.spans[1].start = SpanStart::Window { bits: 1, window }).is_err());
}

/// Gives `body` the header that it would have.
fn sealed(body: &[u8], claimed: u64, windows: &[u8]) -> Vec<u8> {
    let packed = zstd::bulk::compress(body, 1).unwrap();
    let (claimed, len) = (claimed.to_le_bytes(), (packed.len() as u64).to_le_bytes());
    let rest = [&claimed[..], &len, &packed, windows].concat();
    let sum = crc32c::crc32c(&rest).to_le_bytes();
    [&MAGIC[..], &VERSION.to_le_bytes(), &sum, &rest].concat()
}

#[test]
fn a_body_that_is_too_long_is_refused() {
    let body = vec![0; 100];
    assert_eq!(
        decode(&sealed(&body, BODY_BYTES_MAX + 1, b"")),
        Err(CodecError::Length)
    );
    assert!(decode(&sealed(&body, 99, b"")).is_err());
    assert_eq!(decode(&sealed(&body, 101, b"")), Err(CodecError::Length));
}

proptest! {
    #[test]
    fn noise_in_the_body_is_never_a_panic(
        at: prop::sample::Index,
        noise: Vec<u8>,
        windows: Vec<u8>,
    ) {
        let bytes = encode(&sample());
        let (mut body, _) = open(&bytes).unwrap();
        let at = at.index(body.len());
        for (old, new) in body[at..].iter_mut().zip(&noise) {
            *old = *new;
        }
        let _ = decode(&sealed(&body, body.len() as u64, &windows));
        let _ = decode(&sealed(&noise, noise.len() as u64, &windows));
        let _ = decode(&noise);
    }
}
