//! The mounted tree is the tree that umoci unpacks: entry by entry, by `contrib/oracle`.
//!
//! Needs root and the registry that `contrib/test` starts. `RSMOUNT_TEST_IMAGES` says which images.

#[allow(dead_code, reason = "each test uses its own part")]
#[path = "support/images.rs"]
mod images;
#[path = "support/mounted.rs"]
mod mounted;

use images::scratch;
use mounted::{Mounted, RSMOUNT};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// What umoci made of an image, to compare mounts with.
struct Unpacked {
    _scratch: TempDir,
    root: PathBuf,
    began: u64,
}

impl Unpacked {
    fn new(image: &str) -> Unpacked {
        let scratch = scratch();
        let (root, began) = images::unpack(image, scratch.path());
        Unpacked {
            _scratch: scratch,
            root,
            began,
        }
    }

    /// umoci gives directories that no layer names the wall clock; `--invented-after` is for these.
    fn assert_equals(&self, image: &str, mounted: &Mounted) {
        let oracle = images::in_repository("contrib/oracle");
        let [oracle, root, mountpoint] =
            [&oracle, &self.root, mounted.path()].map(|path: &Path| path.to_str().expect("plain"));
        let began = self.began.to_string();
        let printed = images::run(oracle, &["--invented-after", &began, root, mountpoint]);
        assert!(printed.ends_with(" 0 differences\n"), "{image}: {printed}");
    }
}

fn prune_data(cache: &Path) {
    let cache = cache.to_str().expect("plain");
    images::run(RSMOUNT, &["cache", "prune", "--data", "--cache-dir", cache]);
}

/// First contact into an empty cache; a mount from the cache; a lazy one after the data is gone.
fn check(image: &str, unpacked: &Unpacked) {
    let cache = scratch();
    for _ in ["first contact", "cached"] {
        unpacked.assert_equals(image, &Mounted::new(image, cache.path()));
    }
    prune_data(cache.path());
    let mounted = Mounted::new(image, cache.path());
    unpacked.assert_equals(image, &mounted);
    let stats = mounted.stats();
    assert_eq!(stats["verify_failures"], 0, "{image}: {stats}");
    assert!(
        stats["fetched_bytes"].as_u64() > Some(0),
        "{image} was not lazy: {stats}"
    );
}

#[test]
fn images_as_they_were_pushed() {
    let Some(registry) = images::registry("images_as_they_were_pushed") else {
        return;
    };
    for name in images::wanted() {
        let image = format!("{registry}/library/{name}");
        check(&image, &Unpacked::new(&image));
    }
}

/// umoci does not read zstd, so every form is compared with what it made of the gzip'ed original.
#[test]
fn recompressed_layers() {
    let Some(registry) = images::registry("recompressed_layers") else {
        return;
    };
    let original = Unpacked::new(&format!("{registry}/library/python:3.11"));
    for form in ["zstd", "zstd-frames", "multi-member", "none"] {
        check(&images::recompressed(&registry, form), &original);
    }
}

/// With the index known and the data gone, looking at everything but contents fetches nothing.
#[test]
fn a_listing_fetches_nothing() {
    let Some(registry) = images::registry("a_listing_fetches_nothing") else {
        return;
    };
    let image = format!("{registry}/library/python:3.11");
    let cache = scratch();
    drop(Mounted::new(&image, cache.path()));
    prune_data(cache.path());
    let mounted = Mounted::new(&image, cache.path());
    images::run("ls", &["-lR", mounted.path().to_str().expect("plain")]);
    let stats = mounted.stats();
    let present: u64 = layers(&stats)
        .map(|layer| layer["present_bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(present, 0, "{stats}");
}

fn layers(stats: &serde_json::Value) -> impl Iterator<Item = &serde_json::Value> {
    stats["layers"]
        .as_array()
        .expect("stats lists the layers")
        .iter()
}
