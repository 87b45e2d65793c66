use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tempfile::TempDir;

use super::*;

fn open() -> (TempDir, Cache) {
    let temp = tempfile::tempdir().unwrap();
    let cache = Cache::open(&temp.path().join("root")).unwrap();
    (temp, cache)
}

fn again(temp: &TempDir) -> Cache {
    Cache::open(&temp.path().join("root")).unwrap()
}

fn begin(cache: &Cache, blob: &Digest) -> NewLayer {
    match cache.begin(blob, 0).unwrap() {
        Begin::New(layer) => layer,
        Begin::Known(_) => panic!("known already"),
    }
}

fn store(cache: &Cache, blob: &Digest, bytes: &[u8], index: &[u8]) -> StoredLayer {
    let mut layer = begin(cache, blob);
    // Pieces that fit no page, so that sums are made across them.
    bytes
        .chunks(1000)
        .for_each(|piece| layer.write(piece).unwrap());
    layer.commit(index).unwrap()
}

fn bytes(len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(len as u64);
    (0..len).map(|_| random.u8(..)).collect()
}

fn read_all(pages: &Pages) -> Option<Vec<u8>> {
    let mut out = vec![0; pages.size() as usize];
    match pages
        .read(ByteRange::new(0, pages.size()), &mut out, &mut Vec::new())
        .unwrap()
    {
        Presence::Read => Some(out),
        Presence::Absent => None,
    }
}

fn layer_path(temp: &TempDir, blob: &Digest) -> PathBuf {
    temp.path().join("root/v1/layers/sha256").join(blob.hex())
}

fn entries(temp: &TempDir, name: &str) -> usize {
    std::fs::read_dir(temp.path().join("root/v1").join(name))
        .unwrap()
        .count()
}

#[test]
fn a_layer_that_streamed_in_can_be_read_by_everybody() {
    for len in [0, 1, 4095, 4096, 4097, 300_000] {
        let (temp, cache) = open();
        let (blob, content) = (Digest::of(b"blob"), bytes(len));
        assert!(cache.layer(&blob).unwrap().is_none());
        store(&cache, &blob, &content, b"the index");
        let stored = again(&temp).layer(&blob).unwrap().unwrap();
        assert_eq!(stored.index().unwrap(), b"the index");
        assert_eq!(stored.address_size(), len as u64);
        let pages = stored.pages().unwrap();
        assert_eq!(read_all(&pages).unwrap(), content);
        assert_eq!(
            (pages.size(), pages.present_bytes()),
            (len as u64, len as u64)
        );
        assert!(matches!(cache.begin(&blob, 0).unwrap(), Begin::Known(_)));
        assert_eq!(entries(&temp, "tmp"), 0);
    }
}

#[test]
fn a_layer_that_is_dropped_leaves_nothing() {
    let (temp, cache) = open();
    let blob = Digest::of(b"blob");
    let mut layer = begin(&cache, &blob);
    layer.write(&bytes(10_000)).unwrap();
    assert_eq!(entries(&temp, "tmp"), 1);
    assert!(
        cache.try_begin(&blob, 0).unwrap().is_none(),
        "somebody streams it"
    );
    drop(layer);
    assert_eq!(entries(&temp, "tmp"), 0);
    assert!(cache.layer(&blob).unwrap().is_none());
    assert!(matches!(
        cache.try_begin(&blob, 0).unwrap(),
        Some(Begin::New(_))
    ));
}

#[test]
fn one_streams_and_the_others_wait() {
    let (temp, cache) = open();
    let (blob, streamed) = (Digest::of(b"blob"), AtomicUsize::new(0));
    thread::scope(|scope| {
        for cache in [cache.clone(), again(&temp), again(&temp), cache] {
            scope.spawn(|| {
                let cache = cache;
                if let Begin::New(mut layer) = cache.begin(&blob, 0).unwrap() {
                    streamed.fetch_add(1, Ordering::Relaxed);
                    layer.write(b"x").unwrap();
                    thread::sleep(std::time::Duration::from_millis(30));
                    layer.commit(b"i").unwrap();
                }
                assert_eq!(cache.layer(&blob).unwrap().unwrap().index().unwrap(), b"i");
            });
        }
    });
    assert_eq!(streamed.into_inner(), 1);
}

#[test]
fn leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not() {
    let (temp, cache) = open();
    let tmp = temp.path().join("root/v1/tmp");
    std::fs::create_dir_all(tmp.join("1-dead/pages")).unwrap();
    std::fs::write(tmp.join("1-dead/pages/data"), b"x").unwrap();
    std::fs::write(tmp.join("stray"), b"x").unwrap();
    std::os::unix::fs::symlink("/", tmp.join("link")).unwrap();
    let mut living = begin(&cache, &Digest::of(b"blob"));
    let other = again(&temp);
    assert_eq!(entries(&temp, "tmp"), 1);
    living.write(b"abc").unwrap();
    living.commit(b"i").unwrap();
    let stored = other.layer(&Digest::of(b"blob")).unwrap().unwrap();
    assert_eq!(read_all(&stored.pages().unwrap()).unwrap(), b"abc");
}

#[test]
fn a_damaged_index_is_forgotten() {
    let (temp, cache) = open();
    let blob = Digest::of(b"blob");
    for (place, known) in [(30, true), (9, true), (25, true), (0, false)] {
        let stored = store(&cache, &blob, b"content", b"the index");
        let path = layer_path(&temp, &blob).join("index");
        let mut index = std::fs::read(&path).unwrap();
        index[place] ^= 1;
        std::fs::write(&path, index).unwrap();
        assert_eq!(cache.layer(&blob).unwrap().is_some(), known, "byte {place}");
        if known {
            assert!(
                matches!(stored.index(), Err(CacheError::Damaged { .. })),
                "byte {place}"
            );
        }
        assert!(cache.layer(&blob).unwrap().is_none(), "byte {place}");
    }
    let stored = store(&cache, &blob, b"content", b"the index");
    std::fs::write(layer_path(&temp, &blob).join("index"), b"short").unwrap();
    assert!(matches!(stored.index(), Err(CacheError::Damaged { .. })));
    assert!(matches!(stored.index(), Err(CacheError::Gone(_))));
    assert!(matches!(stored.pages(), Err(CacheError::Gone(_))));
}

#[test]
fn pruning_data_keeps_indexes_and_running_readers() {
    let (temp, cache) = open();
    let (blob, content) = (Digest::of(b"blob"), bytes(9000));
    let stored = store(&cache, &blob, &content, b"i");
    let running = stored.pages().unwrap();
    let pruned = cache.prune_data(false).unwrap();
    assert_eq!(pruned.layers, 1);
    assert!(pruned.bytes >= 9000);
    assert_eq!(cache.prune_data(false).unwrap(), Pruned::default());
    assert_eq!(read_all(&running).unwrap(), content);
    running.write(0, &content).unwrap();

    let stored = again(&temp).layer(&blob).unwrap().unwrap();
    assert_eq!(stored.index().unwrap(), b"i");
    let pages = stored.pages().unwrap();
    assert_eq!((pages.present_bytes(), pages.size()), (0, 9000));
    assert!(read_all(&pages).is_none());
    pages.write(0, &content).unwrap();
    assert_eq!(read_all(&pages).unwrap(), content);
    assert_eq!(entries(&temp, "tmp"), 0);
}

#[test]
fn stores_open_while_others_prune() {
    let (temp, cache) = open();
    let (blob, content) = (Digest::of(b"blob"), bytes(9000));
    let stored = store(&cache, &blob, &content, b"i");
    thread::scope(|scope| {
        scope.spawn(|| (0..100).for_each(|_| assert!(cache.prune_data(false).is_ok())));
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let pages = stored.pages().unwrap();
                    pages.write(4096, &content[4096..]).unwrap();
                    pages.write(0, &content[..4096]).unwrap();
                    assert_eq!(read_all(&pages).unwrap(), content);
                }
            });
        }
    });
    assert_eq!(entries(&temp, "tmp"), 0);
}

#[test]
fn pruning_all_leaves_an_empty_cache() {
    let (_temp, cache) = open();
    let blob = Digest::of(b"blob");
    store(&cache, &blob, b"content", b"i");
    cache.put_document(&Digest::of(b"d"), b"d").unwrap();
    cache.remember_tag("t", "m", &Digest::of(b"d")).unwrap();
    let usage = cache.usage().unwrap();
    assert_eq!((usage.layers.len(), usage.documents), (1, 1));
    assert_eq!(usage.layers[0].blob, blob);
    assert_eq!(usage.layers[0].index_bytes, 29);
    assert!(usage.layers[0].data_bytes >= 4096 && usage.document_bytes >= 1);
    assert_eq!(cache.prune_all().unwrap().layers, 1);
    assert_eq!(cache.usage().unwrap(), Usage::default());
    assert!(cache.layer(&blob).unwrap().is_none() && cache.tag("t").is_none());
    store(&cache, &blob, b"content", b"i");
}

#[test]
fn documents_are_verified_whenever_they_are_read() {
    let (temp, cache) = open();
    let digest = Digest::of(b"document");
    assert!(cache.document(&digest).is_none());
    assert!(matches!(
        cache.put_document(&digest, b"other"),
        Err(CacheError::Digest(_))
    ));
    cache.put_document(&digest, b"document").unwrap();
    cache.put_document(&digest, b"document").unwrap();
    assert_eq!(again(&temp).document(&digest).unwrap(), b"document");
    let path = temp
        .path()
        .join(format!("root/v1/documents/sha256-{}", digest.hex()));
    std::fs::write(&path, b"documenT").unwrap();
    assert!(cache.document(&digest).is_none());
    assert!(!path.exists());
    let long = vec![0; DOCUMENT_BYTES_MAX + 1];
    let refused = cache.put_document(&Digest::of(&long), &long);
    assert!(matches!(refused, Err(CacheError::TooLarge { .. })));
}

#[test]
fn tags_are_remembered_by_their_whole_key() {
    let (temp, cache) = open();
    let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
    assert_eq!(cache.tag("a/b:c linux/amd64"), None);
    cache.remember_tag("a/b:c linux/amd64", "m", &one).unwrap();
    cache.remember_tag("a/b:c linux/amd64", "n", &two).unwrap();
    let tag = again(&temp).tag("a/b:c linux/amd64").unwrap();
    assert_eq!(
        tag,
        RememberedTag {
            media_type: "n".into(),
            digest: two,
            sources: Vec::new(),
        }
    );
    assert_eq!(cache.tag("a/b:c linux/arm64"), None);
    let file = format!("{}.json", Digest::of(b"other").hex());
    let tags = temp.path().join("root/v1/tags");
    let from = tags.join(format!("{}.json", Digest::of(b"a/b:c linux/amd64").hex()));
    std::fs::rename(from, tags.join(file)).unwrap();
    assert_eq!(cache.tag("other"), None, "the file is of another key");
}

#[test]
fn a_root_that_others_may_change_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("deep/root");
    Cache::open(&root).unwrap();
    let mode = std::fs::metadata(&root).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o770)).unwrap();
    let refused = Cache::open(&root).unwrap_err();
    assert!(
        matches!(refused, CacheError::Writable { mode: 0o770, .. }),
        "{refused}"
    );
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
    Cache::open(&root).unwrap();
    // Only root can give a directory away.
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&root, Some(12345), None).unwrap();
        let refused = Cache::open(&root).unwrap_err();
        assert!(
            matches!(refused, CacheError::Foreign { owner: 12345, .. }),
            "{refused}"
        );
    }
}

#[test]
fn what_cannot_fit_is_refused_before_it_is_fetched() {
    let (temp, cache) = open();
    let refused = cache.begin(&Digest::of(b"blob"), u64::MAX).unwrap_err();
    assert!(refused.is_full(), "{refused}");
    assert_eq!(entries(&temp, "tmp"), 0);
    assert!(cache.free_bytes().unwrap() > 0);
}

#[test]
fn the_only_copy_of_a_layer_keeps_its_data() {
    let (_temp, cache) = open();
    let (blob, data) = (Digest::of(b"blob"), bytes(9000));
    let layer = store(&cache, &blob, &data, b"index");
    layer.set_sole(true).unwrap();
    let pruned = cache.prune_data(false).unwrap();
    assert_eq!((pruned.layers, pruned.kept), (0, 1));
    let pages = cache.layer(&blob).unwrap().unwrap().pages().unwrap();
    assert!(pages.present_bytes() > 0);
    drop(pages);
    layer.set_sole(false).unwrap();
    layer.set_sole(true).unwrap();
    assert_eq!(cache.prune_data(true).unwrap().layers, 1);
    assert!(layer.is_sole().unwrap());
    layer.set_sole(false).unwrap();
    assert_eq!(cache.prune_data(false).unwrap().kept, 0);
}

#[test]
fn remembered_tags_are_listed_and_forgotten() {
    let (_temp, cache) = open();
    let digest = Digest::of(b"d");
    cache.remember_tag("b", "m", &digest).unwrap();
    let sources = vec!["c".to_owned()];
    let tag = crate::cache::RememberedTag {
        media_type: "m".into(),
        digest,
        sources,
    };
    cache.remember("a", tag.clone()).unwrap();
    let listed = cache.tags().unwrap();
    let keys: Vec<&str> = listed.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["a", "b"]);
    assert_eq!(listed[0].1, tag);
    assert!(cache.forget_tag("a").unwrap() && !cache.forget_tag("a").unwrap());
    assert_eq!((cache.tag("a"), cache.tags().unwrap().len()), (None, 1));
}

mod budget;
mod lend;
