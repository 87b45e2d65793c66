//! Indexes cut anew: they decode the same, and are narrow where it is hot.

use super::*;
use crate::layer::narrow as cut;

/// Compressed bytes of the spans that hold `hot`, each from where decoding can begin.
fn fetched(index: &LayerIndex, hot: &[ByteRange]) -> u64 {
    let mut spans = std::collections::BTreeSet::new();
    for range in hot {
        for span in index.spans_of(*range) {
            spans.extend(index.decode_start(span)..=span);
        }
    }
    spans
        .iter()
        .map(|span| index.spans[*span].compressed.len())
        .sum()
}

/// Every span, from where decoding can begin.
fn check_each(index: &LayerIndex, tar: &[u8], blob: &[u8]) {
    for at in 0..index.spans.len() {
        let range = index.spans[at].address;
        let all = spans(index, index.decode_start(at)..at + 1, blob, 1 << 20).unwrap();
        let (last, bytes) = all.last().unwrap();
        let expected = &tar[range.start() as usize..range.end() as usize];
        assert!(*last == at && bytes == expected, "span {at}");
    }
    let all = spans(index, 0..index.spans.len(), blob, 10_007).unwrap();
    assert!(all.iter().flat_map(|(_, bytes)| bytes).eq(tar));
}

#[test]
fn an_index_cut_anew_decodes_the_same_and_is_narrow_where_it_is_hot() {
    let tar = tar_of(12, 300_000);
    let blobs = [
        gzip(&tar),
        pieces(&tar, 700_000, gzip),
        [gzip(&tar), vec![0; 512]].concat(),
        tar.clone(),
    ];
    let mut random = fastrand::Rng::with_seed(5);
    for blob in blobs {
        let wide = IngestOptions::new(Digest::of(&blob), blob.len() as u64);
        let mut pass = Ingest::new(wide, Kept::default()).unwrap();
        blob.chunks(10_000).for_each(|c| pass.push(c).unwrap());
        let (base, starts, kept) = pass.finish_with_places().unwrap();
        let starts = blocks::decode(&blocks::encode(&starts)).unwrap();
        assert_eq!(starts.is_empty(), base.compression == Compression::None);
        let mut read = |r: ByteRange| Some(kept.0[r.start() as usize..r.end() as usize].to_vec());
        for runs in [0, 1, 6] {
            let run = |_| {
                let at = random.u64(..tar.len() as u64 - 9000) / 4096 * 4096;
                ByteRange::new(at, at + random.u64(1..9000))
            };
            let hot: Vec<ByteRange> = (0..runs).map(run).collect();
            let index = cut::narrow(&base, &starts, &hot, &mut read).unwrap();
            assert_eq!(codec::decode(&codec::encode(&index)).as_ref(), Ok(&index));
            check_each(&index, &tar, &blob);
            if runs > 1 {
                let (before, now) = (fetched(&base, &hot), fetched(&index, &hot));
                assert!(now * 4 < before * 3, "{now} of {before} for {runs} runs");
            }
            // What was cut anew can be cut anew.
            let again = cut::narrow(&index, &starts, &hot, &mut read).unwrap();
            check_each(&again, &tar, &blob);
        }
        let hot = [ByteRange::new(1_850_001, 1_855_000)];
        assert!(cut::narrow(&base, &starts, &hot, &mut |_| None).is_none());
        // Behind the last block begins none.
        let end = tar.len() as u64;
        let hot = [ByteRange::new(1000, 2000), ByteRange::new(end - 600, end)];
        let index = cut::narrow(&base, &starts, &hot, &mut read).unwrap();
        check_each(&index, &tar, &blob);
    }
}

#[test]
fn a_hot_run_ends_in_the_midst_of_a_block_unless_another_needs_the_rest() {
    // What compresses well: blocks have so many symbols, and these stand for many bytes.
    let mut random = fastrand::Rng::with_seed(3);
    let line = |_| {
        format!(
            "a line with {} in it, much the same as others\n",
            random.u8(..)
        )
    };
    let text: Vec<u8> = (0..60_000).map(line).collect::<String>().into_bytes();
    let mut header = ::tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    let mut builder = ::tar::Builder::new(Vec::new());
    builder.append_data(&mut header, "text", &text[..]).unwrap();
    let tar = builder.into_inner().unwrap();
    let blob = gzip(&tar);
    let wide = IngestOptions::new(Digest::of(&blob), blob.len() as u64);
    let mut pass = Ingest::new(wide, Kept::default()).unwrap();
    blob.chunks(10_000).for_each(|c| pass.push(c).unwrap());
    let (base, places, kept) = pass.finish_with_places().unwrap();
    let mut read = |r: ByteRange| Some(kept.0[r.start() as usize..r.end() as usize].to_vec());
    // A place to end and, in the same block, one that ends farther behind than runs are joined.
    let long = |pair: &&[Place]| {
        pair[0].block.is_some() && pair[1..].iter().all(|place| place.block.is_none())
    };
    let block = places.windows(4).find(long).unwrap();
    let mut ends = |hot: &[ByteRange]| {
        let index = cut::narrow(&base, &places, hot, &mut read).unwrap();
        check_each(&index, &tar, &blob);
        let mut ends = index.spans.iter().map(|span| span.address.end());
        ends.any(|end| end == block[1].address)
    };
    let first = ByteRange::new(block[0].address + 10, block[1].address - 10);
    let second = ByteRange::new(block[3].address - 600, block[3].address - 10);
    assert!(ends(&[first]));
    assert!(!ends(&[first, second]));
}
