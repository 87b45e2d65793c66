//! Budget, pins, pruning by age, and verification: with real files.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::*;
use crate::cache::recency::REGION_BYTES;

const MIB: u64 = 1 << 20;

fn open_within(temp: &TempDir, budget: u64) -> Cache {
    Cache::open_within(&temp.path().join("root"), Some(budget)).unwrap()
}

fn held(cache: &Cache) -> u64 {
    cache
        .usage()
        .unwrap()
        .layers
        .iter()
        .map(|l| l.data_bytes)
        .sum()
}

fn read(pages: &Pages, start: u64, len: u64) -> Option<Vec<u8>> {
    let mut out = vec![0; len as usize];
    let range = ByteRange::new(start, start + len);
    match pages.read(range, &mut out, &mut Vec::new()).unwrap() {
        Presence::Read => Some(out),
        Presence::Absent => None,
    }
}

#[test]
fn a_layer_that_streams_in_leaves_the_budget_kept() {
    let temp = tempfile::tempdir().unwrap();
    let cache = open_within(&temp, 4 * MIB);
    let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
    let content = bytes(3 * MIB as usize);
    let first = store(&cache, &one, &content, b"i");
    cache.keep_within_budget();
    assert!(held(&cache) >= 3 * MIB);
    // What was read stays rather than what was not, whichever came first.
    let pages = first.pages().unwrap();
    assert_eq!(
        read(&pages, 2 * MIB, MIB).unwrap(),
        content[2 * MIB as usize..]
    );
    let second = store(&cache, &two, &content, b"i");
    // Who streams may still want to look at it.
    assert!(held(&cache) >= 6 * MIB);
    cache.keep_within_budget();
    assert!(held(&cache) <= 4 * MIB, "{}", held(&cache));
    assert!(read(&pages, 2 * MIB, MIB).is_some());
    assert!(read(&pages, 0, 4096).is_none(), "a hole is not bytes");
    assert!(pages.present_bytes() < 3 * MIB && !pages.is_present(ByteRange::new(0, 1)));
    // And the budget is kept while bytes are fetched again.
    let pages = second.pages().unwrap();
    for round in 0..8 {
        let at = round % 3 * MIB;
        pages
            .write(at, &content[at as usize..(at + MIB) as usize])
            .unwrap();
        // On a busy machine even these may be evicted before they are read, but never be others.
        if let Some(found) = read(&pages, at, MIB) {
            assert_eq!(found, content[at as usize..(at + MIB) as usize]);
        }
    }
    cache.trim();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while held(&cache) > 4 * MIB && std::time::Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    assert!(held(&cache) <= 4 * MIB + 64 * 1024, "{}", held(&cache));
}

#[test]
fn the_only_copy_of_a_layer_is_never_evicted() {
    let temp = tempfile::tempdir().unwrap();
    let cache = open_within(&temp, 0);
    let (blob, content) = (Digest::of(b"sole"), bytes(3 * MIB as usize));
    let mut layer = begin(&cache, &blob);
    layer.set_sole();
    layer.write(&content).unwrap();
    let stored = layer.commit(b"i").unwrap();
    assert!(stored.is_sole().unwrap());
    cache.keep_within_budget();
    assert_eq!(read_all(&stored.pages().unwrap()).unwrap(), content);
}

#[test]
fn an_index_may_be_kept_without_its_bytes() {
    let temp = tempfile::tempdir().unwrap();
    // There would be room for them.
    let (cache, blob) = (open_within(&temp, 64 * MIB), Digest::of(b"large"));
    let content = bytes(MIB as usize + 5);
    let mut layer = begin(&cache, &blob);
    layer.keep_index_only();
    layer.write(&content).unwrap();
    let stored = layer.commit(b"the index").unwrap();
    assert_eq!(stored.index().unwrap(), b"the index");
    let pages = stored.pages().unwrap();
    assert_eq!((pages.size(), pages.present_bytes()), (MIB + 5, 0));
    assert!(held(&cache) < MIB / 2, "{}", held(&cache));
    let at = MIB as usize;
    pages.write(MIB, &content[at..]).unwrap();
    assert_eq!(read(&pages, MIB, 5).unwrap(), content[at..]);
}

/// A file that cannot be punched keeps its bytes, and nobody else's.
#[test]
fn what_cannot_be_evicted_does_not_keep_the_rest() {
    let temp = tempfile::tempdir().unwrap();
    let (bad, good) = (Digest::of(b"bad"), Digest::of(b"good"));
    for blob in [&bad, &good] {
        store(&again(&temp), blob, &bytes(2 * MIB as usize), b"i");
    }
    let present = layer_path(&temp, &bad).join("pages/present");
    std::fs::remove_file(&present).unwrap();
    std::fs::create_dir(&present).unwrap();
    let cache = open_within(&temp, 0);
    cache.keep_within_budget();
    let usage = cache.usage().unwrap();
    let left = |blob: &Digest| {
        usage
            .layers
            .iter()
            .find(|l| l.blob == *blob)
            .unwrap()
            .data_bytes
    };
    assert!(left(&good) < MIB && left(&bad) > MIB, "{usage:?}");
}

#[test]
fn what_nobody_asked_for_has_room_below_the_low_watermark_only() {
    let temp = tempfile::tempdir().unwrap();
    let blob = Digest::of(b"blob");
    let stored = store(
        &open_within(&temp, 1 << 30),
        &blob,
        &bytes(3 * MIB as usize),
        b"i",
    );
    assert!(stored.pages().unwrap().room() > MIB);
    for (budget, room) in [(3 * MIB + MIB / 4, false), (30 * MIB, true)] {
        let layer = open_within(&temp, budget).layer(&blob).unwrap().unwrap();
        assert_eq!(layer.pages().unwrap().room() > 0, room, "{budget}");
    }
    let layer = again(&temp).layer(&blob).unwrap().unwrap();
    assert_eq!(layer.pages().unwrap().room(), u64::MAX, "no budget");
}

#[test]
fn what_is_pinned_or_lent_is_not_evicted() {
    let temp = tempfile::tempdir().unwrap();
    let cache = again(&temp);
    let blobs = [
        Digest::of(b"pinned"),
        Digest::of(b"lent"),
        Digest::of(b"free"),
    ];
    for blob in &blobs {
        store(&cache, blob, &bytes(2 * MIB as usize), b"i");
    }
    pin(&cache, "img", &[&blobs[0]]);
    std::fs::write(layer_path(&temp, &blobs[1]).join("lent"), b"").unwrap();
    let limited = open_within(&temp, 0);
    evict::now(&limited.root);
    let usage = limited.usage().unwrap();
    for layer in &usage.layers {
        let free = layer.blob == blobs[2];
        assert_eq!(layer.data_bytes < MIB, free, "{layer:?}");
        assert_eq!(layer.held.pinned, layer.blob == blobs[0]);
        assert_eq!(layer.held.lent, layer.blob == blobs[1]);
    }
    let pages = limited.layer(&blobs[0]).unwrap().unwrap().pages().unwrap();
    assert_eq!(read_all(&pages).unwrap(), bytes(2 * MIB as usize));
}

fn pin(cache: &Cache, name: &str, layers: &[&Digest]) -> Pin {
    let document = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        cache.put_document(&digest, bytes).unwrap();
        digest
    };
    let pin = Pin {
        image: name.to_owned(),
        digest: document(name.as_bytes()),
        documents: vec![document(name.as_bytes()), document(b"config")],
        layers: layers.iter().map(|d| (*d).clone()).collect(),
    };
    cache.pin(&pin).unwrap();
    pin
}

#[test]
fn pinned_images_survive_every_prune() {
    let (temp, cache) = open();
    let (kept, gone) = (Digest::of(b"kept"), Digest::of(b"gone"));
    for blob in [&kept, &gone] {
        store(&cache, blob, &bytes(10_000), b"i");
    }
    let pinned = pin(&cache, "kept/image", &[&kept]);
    let other = Digest::of(b"other");
    cache.put_document(&other, b"other").unwrap();
    cache.remember_tag("kept", "m", &pinned.digest).unwrap();
    cache.remember_tag("gone", "m", &other).unwrap();
    assert!(cache.pins().unwrap().iter().eq([&pinned]));
    let pruned = cache.prune_older(Duration::ZERO).unwrap();
    assert_eq!((pruned.layers, pruned.pinned), (1, 1));
    let pruned = cache.prune_all().unwrap();
    assert_eq!(pruned.pinned, 1);
    assert!(cache.layer(&gone).unwrap().is_none() && cache.document(&other).is_none());
    assert!(cache.tag("gone").is_none() && cache.tag("kept").is_some());
    assert!(pinned.documents.iter().all(|d| cache.document(d).is_some()));
    let pages = cache.layer(&kept).unwrap().unwrap().pages().unwrap();
    assert!(read_all(&pages).is_some());
    assert!(cache.unpin(&pinned.digest).unwrap() && !cache.unpin(&pinned.digest).unwrap());
    cache.prune_all().unwrap();
    assert!(cache.layer(&kept).unwrap().is_none());
    assert_eq!(
        (entries(&temp, "documents"), entries(&temp, "tags")),
        (0, 0)
    );
}

#[test]
fn pruning_by_age_leaves_what_is_young_or_in_use() {
    let (temp, cache) = open();
    let (young, old, used) = (
        Digest::of(b"young"),
        Digest::of(b"old"),
        Digest::of(b"used"),
    );
    for blob in [&young, &old, &used] {
        let stored = store(&cache, blob, &bytes(10_000), b"i");
        read_all(&stored.pages().unwrap()).unwrap();
    }
    let open = cache.layer(&used).unwrap().unwrap().pages().unwrap();
    for blob in [&old, &used] {
        let file = std::fs::File::options()
            .write(true)
            .open(layer_path(&temp, blob).join("pages/used"))
            .unwrap();
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(7200);
        file.set_modified(long_ago).unwrap();
    }
    let in_use = |blob: &Digest| {
        let usage = cache.usage().unwrap();
        let mut layers = usage.layers.iter();
        layers.find(|l| l.blob == *blob).unwrap().held.in_use
    };
    assert!(in_use(&used) && !in_use(&old));
    let pruned = cache.prune_older(Duration::from_secs(3600)).unwrap();
    assert_eq!(pruned.layers, 1);
    assert!(!layer_path(&temp, &old).join("pages").exists());
    assert!(layer_path(&temp, &old).join("index").exists());
    drop(open);
    assert_eq!(
        cache.prune_older(Duration::from_secs(3600)).unwrap().layers,
        1
    );
    assert!(layer_path(&temp, &young).join("pages").exists());
}

#[test]
fn verification_finds_and_mends() {
    let (temp, cache) = open();
    let (good, bad, worse) = (
        Digest::of(b"good"),
        Digest::of(b"bad"),
        Digest::of(b"worse"),
    );
    let content = bytes(3 * REGION_BYTES as usize / 2 + 5);
    for blob in [&good, &bad, &worse] {
        store(&cache, blob, &content, b"index");
    }
    pin(&cache, "image", &[&good]);
    cache.remember_tag("tag", "m", &good).unwrap();
    let clean = cache.verify().unwrap();
    assert_eq!(
        (clean.damaged(), clean.documents, clean.layers.len()),
        (0, 4, 3)
    );
    let pages = (content.len() as u64).div_ceil(PAGE_BYTES);
    assert!(clean.layers.iter().all(|l| l.pages == pages));

    let data = |blob, name| {
        let path = layer_path(&temp, blob).join(name);
        std::fs::File::options().write(true).open(path).unwrap()
    };
    data(&bad, "pages/data")
        .write_all_at(b"flip", 5000)
        .unwrap();
    data(&bad, "pages/sums").write_all_at(b"flip", 400).unwrap();
    data(&worse, "index").write_all_at(b"flip", 30).unwrap();
    let documents = temp.path().join("root/v1/documents");
    let one = std::fs::read_dir(&documents).unwrap().next().unwrap();
    std::fs::write(one.unwrap().path(), b"other").unwrap();
    std::fs::write(temp.path().join("root/v1/pins/x.json"), b"{}").unwrap();
    let found = cache.verify().unwrap();
    let of = |blob: &Digest| found.layers.iter().find(|l| l.blob == *blob).unwrap();
    assert_eq!((of(&good).pages_damaged, of(&bad).pages_damaged), (0, 2));
    assert!(of(&worse).index_damaged && !of(&bad).index_damaged);
    assert_eq!((found.documents_damaged, found.damaged()), (2, 5));

    let mended = cache.verify().unwrap();
    assert_eq!((mended.damaged(), mended.layers.len()), (0, 2));
    let pages = cache.layer(&bad).unwrap().unwrap().pages().unwrap();
    assert_eq!(pages.absent(ByteRange::new(0, pages.size())).len(), 2);
    assert!(cache.layer(&worse).unwrap().is_none());
}
