//! Lending files to the kernel, what is kept of images, and notes of this boot: with real files.

use std::os::unix::fs::FileExt;

use super::*;

const BOOT: &str = "the boot";

fn data_of(temp: &TempDir) -> std::fs::File {
    let path = layer_path(temp, &Digest::of(b"one")).join("pages/data");
    std::fs::File::options().write(true).open(path).unwrap()
}

/// Whether a megabyte of [`bytes`] can be lent now.
fn lend(layer: &StoredLayer, pages: &Pages) -> bool {
    let diff_id = Digest::of(&bytes(1 << 20));
    layer.make_lendable(BOOT, pages, &diff_id).unwrap() == Whole::Verified
}

#[test]
fn a_file_is_lent_after_one_whole_check_in_this_boot() {
    let (temp, cache) = open();
    let layer = store(&cache, &Digest::of(b"one"), &bytes(1 << 20), b"i");
    let pages = layer.pages().unwrap();
    assert!(layer.lendable(BOOT).is_none());
    assert!(lend(&layer, &pages));
    assert!(layer.lendable(BOOT).is_some());
    assert!(layer.lendable("another").is_none());
    assert!(layer_path(&temp, &Digest::of(b"one")).join("lent").exists());
    // Nobody takes a byte away, also who looked for candidates before.
    pages.evict(0).unwrap();
    assert!(pages.is_present(ByteRange::new(0, 1 << 20)));
}

#[test]
fn what_was_found_damaged_since_is_not_lent() {
    let (temp, cache) = open();
    let content = bytes(1 << 20);
    let layer = store(&cache, &Digest::of(b"one"), &content, b"i");
    let pages = layer.pages().unwrap();
    assert!(lend(&layer, &pages));
    data_of(&temp).write_all_at(b"flipped", 300_000).unwrap();
    assert!(read_all(&pages).is_none());
    assert!(layer.lendable(BOOT).is_none());
    let page = 300_000 / 4096 * 4096;
    let mended = &content[page..page + 4096];
    pages.write(page as u64, mended).unwrap();
    assert!(layer.lendable(BOOT).is_some());
    // Who died between the two marks has given nothing away, and could have.
    std::fs::remove_file(layer_path(&temp, &Digest::of(b"one")).join("lent")).unwrap();
    assert!(cache.usage().unwrap().layers[0].held.lent);
}

#[test]
fn what_is_damaged_or_not_whole_is_not_lent() {
    let (temp, cache) = open();
    let content = bytes(1 << 20);
    let layer = store(&cache, &Digest::of(b"one"), &content, b"i");
    data_of(&temp).write_all_at(b"flipped", 300_000).unwrap();
    let pages = layer.pages().unwrap();
    assert!(!lend(&layer, &pages), "damaged");
    assert!(!lend(&layer, &pages), "not whole");
    let page = 300_000 / 4096 * 4096;
    pages
        .write(page as u64, &content[page..page + 4096])
        .unwrap();
    assert!(lend(&layer, &pages));
}

/// The file that comes instead of a pruned one may even have its inode number.
#[test]
fn another_file_is_not_lent_for_the_one_that_was_checked() {
    let (_temp, cache) = open();
    let layer = store(&cache, &Digest::of(b"one"), &bytes(1 << 20), b"i");
    let old = layer.pages().unwrap();
    assert!(lend(&layer, &old));
    cache.prune_data(true).unwrap();
    assert!(layer.lendable(BOOT).is_none());
    let new = layer.pages().unwrap();
    assert!(layer.lendable(BOOT).is_none());
    assert!(!lend(&layer, &old), "not this store's");
    assert!(!lend(&layer, &new), "empty");
}

#[test]
fn what_was_derived_is_found_whole_or_not_at_all() {
    let (temp, cache) = open();
    let (key, content) = (Digest::of(b"manifest"), bytes(700_000));
    let mut write = |out: &mut dyn std::io::Write| out.write_all(&content);
    cache.derive(None, "tree-1", &mut write).unwrap();
    assert!(cache.derived(&key, "tree-1", &mut |_| {}).is_none());
    cache.derive(Some(&key), "tree-1", &mut write).unwrap();
    let mut seen = Vec::new();
    let found = cache.derived(&key, "tree-1", &mut |piece| seen.extend_from_slice(piece));
    assert_eq!((found.unwrap().bytes, &seen), (700_000, &content));
    assert!(cache.derived(&key, "tree-2", &mut |_| {}).is_none());
    let name = format!("derived/sha256-{}.tree-1", key.hex());
    let path = temp.path().join("root/v1").join(name);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"flipped", 5000).unwrap();
    assert!(cache.derived(&key, "tree-1", &mut |_| {}).is_none());
    assert!(!path.exists(), "it is made anew");
    assert_eq!(entries(&temp, "tmp"), 0);
}

#[test]
fn a_note_holds_for_its_key() {
    let (_temp, cache) = open();
    cache.put_note("test", "boot 1", "passed").unwrap();
    assert_eq!(cache.note("test", "boot 1").as_deref(), Some("passed"));
    assert_eq!(cache.note("test", "boot 2"), None);
    assert_eq!(cache.note("other", "boot 1"), None);
}
