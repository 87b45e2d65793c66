//! First contact, codec and spans together: whatever the compression, the splits and the damage.

mod narrow;

use std::io::Write as _;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::blob::ByteRange;
use crate::layer::gzip::GzipError;
use crate::oci::{Compression, Digest};

/// Keeps the address space.
#[derive(Debug, Default)]
struct Kept(Vec<u8>);

impl AddressSink for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// A tar whose files repeat some words and some noise: matches near and far, and literals.
fn tar_of(files: usize, file_bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(files as u64);
    let mut builder = ::tar::Builder::new(Vec::new());
    for i in 0..files {
        let mut data = Vec::new();
        while data.len() < file_bytes {
            match random.u8(..3) {
                0 => data.extend((0..random.usize(1..200)).map(|_| random.u8(..))),
                1 if data.len() > 1000 => {
                    let at = random.usize(..data.len() - 300);
                    data.extend_from_within(at..at + 300);
                }
                _ => data.extend_from_slice(format!("fn word_{}() -> u{i};\n", i % 7).as_bytes()),
            }
        }
        let mut header = ::tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, format!("d/{i}"), &data[..])
            .unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Members or frames of `len` bytes.
fn pieces(bytes: &[u8], len: usize, pack: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    bytes.chunks(len).flat_map(pack).collect()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::bulk::compress(bytes, 3).unwrap()
}

fn options(blob: &[u8]) -> IngestOptions {
    IngestOptions {
        geometry: Geometry {
            entry_bytes: 64 << 10,
            span_bytes: 24 << 10,
        },
        ..IngestOptions::new(Digest::of(blob), blob.len() as u64)
    }
}

fn ingest(options: IngestOptions, blob: &[u8]) -> Result<(LayerIndex, Vec<u8>), LayerError> {
    let mut ingest = Ingest::new(options, Kept::default())?;
    ingest.push(blob)?;
    let (index, kept) = ingest.finish()?;
    Ok((index, kept.0))
}

/// Decodes spans one byte, or everything, at a time.
fn spans(
    index: &LayerIndex,
    range: Range<usize>,
    blob: &[u8],
    step: usize,
) -> Result<Vec<(usize, Vec<u8>)>, LayerError> {
    let mut decoder = SpanDecoder::new(index, range)?;
    let wanted = decoder.compressed();
    let mut out = Vec::new();
    for chunk in blob[wanted.start() as usize..wanted.end() as usize].chunks(step) {
        decoder.push(chunk, &mut |at, bytes| {
            out.push((at, bytes.to_vec()));
            Ok(())
        })?;
    }
    decoder.finish()?;
    Ok(out)
}

/// Every span alone (with what it continues), and all at once.
fn check_spans(index: &LayerIndex, tar: &[u8], blob: &[u8]) {
    let address = |at: usize| {
        let range = index.spans[at].address;
        &tar[range.start() as usize..range.end() as usize]
    };
    assert_eq!(
        index.spans.iter().map(|s| s.address.len()).sum::<u64>(),
        tar.len() as u64
    );
    for (at, step) in (0..index.spans.len()).zip([1000, usize::MAX, 1].into_iter().cycle()) {
        let out = spans(index, index.decode_start(at)..at + 1, blob, step).unwrap();
        for (at, bytes) in out {
            assert!(bytes == address(at), "span {at}");
        }
    }
    for step in [100, usize::MAX] {
        let out = spans(index, 0..index.spans.len(), blob, step).unwrap();
        assert_eq!(out.len(), index.spans.len());
        assert!(out.iter().all(|(at, bytes)| bytes == address(*at)));
    }
}

/// Blobs of one tar in every compression and arrangement, with the fewest spans they must have.
fn blobs(tar: &[u8]) -> Vec<(&'static str, Vec<u8>, usize)> {
    let skippable = [&[0x52, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..]].concat();
    let many = tar.len() / (64 << 10) / 3;
    vec![
        ("plain", tar.to_vec(), many),
        ("gzip", gzip(tar), many),
        ("gzip members", pieces(tar, 30_000, gzip), many),
        ("gzip large members", pieces(tar, 300_000, gzip), many),
        ("gzip stored", stored(tar), many),
        ("gzip padded", [gzip(tar), vec![0; 700]].concat(), many),
        (
            "gzip empty members",
            [gzip(b""), gzip(tar), gzip(b"")].concat(),
            many,
        ),
        ("zstd", zstd(tar), many),
        ("zstd frames", pieces(tar, 20_000, zstd), many),
        ("zstd frames of a span", pieces(tar, 64 << 10, zstd), many),
        (
            "zstd skippable",
            [skippable.clone(), zstd(tar), skippable].concat(),
            many,
        ),
    ]
}

/// One deflate stream of stored blocks.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn every_arrangement_gives_the_same_layer() {
    let tar = tar_of(40, 40_000);
    let (plain, _) = ingest(options(&tar), &tar).unwrap();
    assert_eq!(plain.entries.len(), 40);
    assert_eq!(plain.compression, Compression::None);
    for (name, blob, least) in blobs(&tar) {
        let diff_id = Some(Digest::of(&tar));
        let (index, kept) = ingest(
            IngestOptions {
                diff_id,
                ..options(&blob)
            },
            &blob,
        )
        .unwrap();
        assert!(kept == tar, "{name}");
        assert_eq!(index.entries, plain.entries, "{name}");
        assert_eq!(index.diff_id, Digest::of(&tar), "{name}");
        assert!(
            index.spans.len() >= least,
            "{name}: {} spans",
            index.spans.len()
        );
        check_spans(&index, &tar, &blob);
        let bytes = codec::encode(&index);
        assert_eq!(codec::decode(&bytes).as_ref(), Ok(&index), "{name}");
    }
}

#[test]
fn checkpoints_are_windows_and_long_blocks_are_continued() {
    let tar = tar_of(20, 40_000);
    let kinds = |blob: &[u8]| {
        let (index, kept) = ingest(options(blob), blob).unwrap();
        check_spans(&index, &kept, blob);
        assert!(
            index
                .spans
                .iter()
                .all(|span| span.address.len() <= 24 << 10)
        );
        let is = |f: fn(&SpanStart) -> bool| index.spans.iter().filter(|s| f(&s.start)).count();
        let windows = is(|s| matches!(s, SpanStart::Window { .. }));
        (windows, is(|s| *s == SpanStart::Continue))
    };
    let (windows, continued) = kinds(&gzip(&tar));
    // A place to begin about every 64 KiB, and spans of 24 KiB in between.
    assert!(windows > 4 && continued > windows, "{windows} {continued}");
    // Zeros pack into blocks of many megabytes.
    let mut zeros = tar.clone();
    zeros.extend(vec![0; 16 << 20]);
    let (_, continued) = kinds(&gzip(&zeros));
    assert!(continued > 50, "{continued}");
    assert_eq!(kinds(&zstd(&tar)).0, 0);
}

#[test]
fn what_was_announced_must_be_what_comes() {
    let tar = tar_of(3, 300_000);
    let blob = gzip(&tar);
    let kind = |options, blob: &[u8]| ingest(options, blob).unwrap_err().kind;
    let good = options(&blob);
    assert!(ingest(good.clone(), &blob).is_ok());

    let other = Digest::of(b"x");
    let wrong = IngestOptions {
        blob: other.clone(),
        ..good.clone()
    };
    assert!(matches!(kind(wrong, &blob), LayerErrorKind::Blob(_)));
    let wrong = IngestOptions {
        diff_id: Some(other),
        ..good.clone()
    };
    assert!(matches!(kind(wrong, &blob), LayerErrorKind::DiffId(_)));
    for size in [good.size - 1, good.size + 1] {
        let wrong = IngestOptions {
            size,
            ..good.clone()
        };
        assert!(matches!(kind(wrong, &blob), LayerErrorKind::Size { .. }));
    }
    let small = IngestOptions {
        address_max: tar.len() as u64 - 1,
        ..good.clone()
    };
    assert!(matches!(kind(small, &blob), LayerErrorKind::TooLong(_)));
    let enough = IngestOptions {
        address_max: tar.len() as u64,
        ..good
    };
    assert!(ingest(enough, &blob).is_ok());
}

#[test]
fn damage_is_an_error() {
    let tar = tar_of(3, 30_000);
    let refused = |blob: Vec<u8>| {
        let error = ingest(options(&blob), &blob).expect_err("damaged");
        assert!(error.to_string().starts_with("layer sha256:"), "{error}");
        error.kind
    };
    let gz = gzip(&tar);
    for end in [1, 5, 100, gz.len() - 9, gz.len() - 1] {
        let kind = refused(gz[..end].to_vec());
        let truncated = matches!(kind, LayerErrorKind::Gzip(GzipError::Truncated));
        assert!(truncated || end == 1, "{end}: {kind}");
    }
    for at in [0, 2, 3, 1000, gz.len() - 8, gz.len() - 4] {
        let mut bad = gz.clone();
        bad[at] ^= 0x20;
        refused(bad);
    }
    refused([&gz[..], b"x"].concat());
    refused([&gz[..], &[0, 1]].concat());
    refused([&gz[..], &[0x1f]].concat());

    let checksummed = {
        let mut encoder = ::zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.write_all(&tar).unwrap();
        encoder.finish().unwrap()
    };
    assert!(ingest(options(&checksummed), &checksummed).is_ok());
    let end = checksummed.len();
    for at in [6, 1000, end - 1] {
        let mut bad = checksummed.clone();
        bad[at] ^= 0x20;
        refused(bad);
        refused(checksummed[..at].to_vec());
    }
    refused([&checksummed[..], b"x"].concat());
    refused([&checksummed[..], &[0; 8]].concat());
    refused(tar[..700].to_vec());
}

#[test]
fn a_window_beyond_the_limit_is_refused() {
    // A frame header (RFC 8878, 3.1.1.1): no content size, window of 2^28, one empty raw block.
    let frame = |log: u8| [0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3, 1, 0, 0];
    let max = zstd::WINDOW_LOG_MAX as u8;
    let ok = frame(max);
    assert!(ingest(options(&ok), &ok).is_ok());
    let bad = frame(max + 1);
    assert!(ingest(options(&bad), &bad).is_err());
}

#[test]
fn empty_blobs_are_empty_layers() {
    for blob in [vec![], gzip(b""), zstd(b"")] {
        let (index, kept) = ingest(options(&blob), &blob).unwrap();
        assert!(kept.is_empty() && index.spans.is_empty() && index.entries.is_empty());
        assert_eq!(codec::decode(&codec::encode(&index)), Ok(index));
    }
}

#[test]
fn spans_are_verified_before_they_are_handed_out() {
    let tar = tar_of(20, 40_000);
    for (name, blob, _) in blobs(&tar) {
        let (index, _) = ingest(options(&blob), &blob).unwrap();
        let mut bad = blob.clone();
        let middle = index.spans[index.spans.len() / 2].compressed;
        bad[((middle.start() + middle.end()) / 2) as usize] ^= 0x10;
        let all = 0..index.spans.len();
        let mut decoder = SpanDecoder::new(&index, all.clone()).unwrap();
        let wanted = decoder.compressed();
        let pushed = decoder.push(
            &bad[wanted.start() as usize..wanted.end() as usize],
            &mut |at, bytes| {
                let range = index.spans[at].address;
                assert!(bytes == &tar[range.start() as usize..range.end() as usize]);
                Ok(())
            },
        );
        assert!(pushed.is_err() || decoder.finish().is_err(), "{name}");

        let short = spans(&index, all, &blob, 1 << 20).unwrap();
        assert_eq!(short.len(), index.spans.len());
        let mut decoder = SpanDecoder::new(&index, 0..1).unwrap();
        let wanted = decoder.compressed().len() as usize;
        assert!(
            decoder
                .push(&blob[..wanted / 2], &mut |_, _| Ok(()))
                .is_ok()
        );
        assert!(decoder.finish().is_err(), "{name}");
        let mut decoder = SpanDecoder::new(&index, 0..1).unwrap();
        assert!(
            decoder
                .push(&vec![0; wanted + 1], &mut |_, _| Ok(()))
                .is_err(),
            "{name}"
        );
    }
}

#[test]
fn spans_that_cannot_be_decoded_are_refused() {
    let blob = zstd(&tar_of(20, 40_000));
    let (mut index, _) = ingest(options(&blob), &blob).unwrap();
    assert_eq!(index.spans[1].start, SpanStart::Continue);
    for range in [1..2, 0..0, 0..99_999, 99_999..99_999] {
        assert!(SpanDecoder::new(&index, range).is_err());
    }
    let max = limit::SPAN_BYTES_MAX;
    index.spans[0].address = crate::blob::ByteRange::new(0, max + 1);
    let error = SpanDecoder::new(&index, 0..1).unwrap_err();
    assert!(matches!(error.kind, LayerErrorKind::SpanTooLong(0)));
}

/// A sink that tells when it is dropped, and may fail.
struct Told(Arc<AtomicBool>, bool);

impl AddressSink for Told {
    fn write(&mut self, _: &[u8]) -> std::io::Result<()> {
        if self.1 {
            Err(std::io::Error::other("full"))
        } else {
            Ok(())
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn an_unfinished_pass_ends_its_thread() {
    let blob = tar_of(50, 40_000);
    for pushed in [0, 10, blob.len() / 2, blob.len()] {
        let dropped = Arc::new(AtomicBool::new(false));
        let mut ingest = Ingest::new(options(&blob), Told(dropped.clone(), false)).unwrap();
        ingest.push(&blob[..pushed]).unwrap();
        drop(ingest);
        assert!(dropped.load(Ordering::SeqCst));
    }
}

#[test]
fn errors_of_the_sink_come_back() {
    for blob in [tar_of(50, 40_000), tar_of(1, 1000)] {
        let mut ingest = Ingest::new(options(&blob), Told(Arc::default(), true)).unwrap();
        let error = match ingest.push(&blob) {
            Ok(()) => ingest.finish().map(|(index, _)| index).unwrap_err(),
            Err(error) => {
                assert!(matches!(
                    ingest.push(b"x").unwrap_err().kind,
                    LayerErrorKind::Ended
                ));
                assert!(ingest.finish().is_err());
                error
            }
        };
        assert!(matches!(error.kind, LayerErrorKind::Sink(_)), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn splits_do_not_matter(seed: u64, which in 0..11_usize) {
        let tar = tar_of(12, 40_000);
        let (_, blob, _) = blobs(&tar).swap_remove(which);
        let (whole, _) = ingest(options(&blob), &blob).unwrap();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut ingest = Ingest::new(options(&blob), Kept::default()).unwrap();
        let mut rest = &blob[..];
        while !rest.is_empty() {
            let most = [1, 3, 600, 70_000, 1 << 20][random.usize(..5)].min(rest.len());
            let (now, later) = rest.split_at(random.usize(1..=most));
            ingest.push(now).unwrap();
            rest = later;
        }
        let (index, kept) = ingest.finish().unwrap();
        prop_assert!(kept.0 == tar);
        check_spans(&index, &tar, &blob);
        // A continued span begins where the decoder happened to have stopped reading, so
        // everything but that is the same.
        prop_assert_eq!(index.entries, whole.entries);
        let shape = |spans: Vec<Span>| {
            spans.into_iter().map(|s| (s.address, s.start, s.sha256)).collect::<Vec<_>>()
        };
        prop_assert_eq!(shape(index.spans), shape(whole.spans));
    }

    #[test]
    fn noise_is_never_a_panic(head in 0..4_usize, noise: Vec<u8>) {
        let gz = gzip(&noise);
        let starts: [&[u8]; 4] = [b"", &gz[..10], &[0x28, 0xb5, 0x2f, 0xfd], &gz[..gz.len() / 2]];
        let blob = [starts[head], &noise].concat();
        let _ = ingest(options(&blob), &blob);
    }
}
