//! Dependent round trips of a packed start: how many answers have to be waited for, one after the
//! other, on a connection that is not there yet (which costs one as well).
#![allow(
    clippy::unwrap_used,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a test"
)]

#[path = "support/all.rs"]
mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::layout::{self, DIR, FILE, Layer, Pack};
use support::place::{Place, can_mount};
use support::registry::Registry;

/// How long a step takes: what is asked for at the same time arrives well within it.
const STEP_MS: u64 = 500;

/// An image whose pack was published by a start that read `d/hot`, and a cache that knows nothing.
fn published(platforms: usize) -> (Place, Registry) {
    let place = Place::new();
    let cold: Vec<u8> = (0..1 << 20).map(|_| fastrand::u8(..)).collect();
    let layer = Layer::new()
        .dir("d", DIR)
        .file("d/cold", FILE, &cold)
        .file("d/hot", FILE, b"hot");
    layout::write(&place.path("image"), &[layer.tar()], Pack::Gzip);
    if platforms > 1 {
        name_platforms(&place.path("image"));
    }
    let registry = Registry::serve(place.path("image"));
    read_hot(&place, &registry.image(), &[]);
    place.ok(&["-q", "publish", &registry.image()]);
    (place, registry)
}

/// Puts an index with two platforms before the layout's one manifest.
fn name_platforms(image: &Path) {
    let path = image.join("index.json");
    let mut top: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let manifest = &top["manifests"][0];
    let named = |architecture: &str| {
        json!({ "mediaType": manifest["mediaType"], "digest": manifest["digest"],
                "size": manifest["size"],
                "platform": { "os": "linux", "architecture": architecture } })
    };
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [named("s390x"), named(layout::host_architecture())],
    });
    let bytes = serde_json::to_vec(&index).unwrap();
    let digest = rsmount::oci::Digest::of(&bytes);
    std::fs::write(image.join("blobs/sha256").join(digest.hex()), &bytes).unwrap();
    top["manifests"][0] = json!({
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": digest.to_string(), "size": bytes.len(),
        "annotations": { "org.opencontainers.image.ref.name": "latest" },
    });
    std::fs::write(path, serde_json::to_vec(&top).unwrap()).unwrap();
}

fn read_hot(place: &Place, image: &str, options: &[&str]) {
    let options = [&["--fill", "never"], options].concat();
    let mounted = place.mount_image(image, &options);
    assert_eq!(std::fs::read(mounted.path("d/hot")).unwrap(), b"hot");
}

/// Steps of a start that knows nothing but what `known` leaves, until the hot file was read.
fn steps(place: &Place, registry: &Registry, image: &str, options: &[&str]) -> u64 {
    registry.control.count_steps(STEP_MS);
    read_hot(place, image, options);
    let steps = registry.control.steps();
    registry.control.count_steps(0);
    steps
}

fn forget(place: &Place, what: &str) {
    std::fs::remove_dir_all(place.path("cache").join(what)).unwrap();
}

#[test]
fn a_tag_of_one_platform_takes_four() {
    if !can_mount() {
        return;
    }
    let (place, registry) = published(1);
    forget(&place, "");
    // Connection; manifest; pack; hot pages. The configuration comes beside the last.
    assert_eq!(steps(&place, &registry, &registry.image(), &[]), 4);
}

#[test]
fn a_tag_of_many_platforms_takes_five() {
    if !can_mount() {
        return;
    }
    let (place, registry) = published(2);
    forget(&place, "");
    let steps = steps(&place, &registry, &registry.image(), &[]);
    assert!(steps <= 5, "{steps}");
}

#[test]
fn a_digest_takes_three() {
    if !can_mount() {
        return;
    }
    let (place, registry) = published(1);
    let known = place.ok(&["explain", "--json", &registry.image()]);
    let known: Value = serde_json::from_str(&known).unwrap();
    let repository = registry.image().replace(":latest", "");
    let image = format!("{repository}@{}", known["digest"].as_str().unwrap());
    forget(&place, "");
    let options = ["--trust-index", "registry"];
    let steps = steps(&place, &registry, &image, &options);
    assert!(steps <= 3, "{steps}");
}

#[test]
fn a_remembered_tag_takes_three_and_is_used_only_if_it_still_stands() {
    if !can_mount() {
        return;
    }
    for platforms in [1, 2] {
        let (place, registry) = published(platforms);
        forget(&place, "v1/layers");
        let newer = ["--pull", "newer"];
        let taken = steps(&place, &registry, &registry.image(), &newer);
        assert!(taken <= 3, "{taken} with {platforms} platforms");

        // The tag moves: what it stood for last is asked for, and not used.
        forget(&place, "v1/layers");
        let layer = Layer::new().dir("d", DIR).file("d/hot", FILE, b"new");
        layout::write(&place.path("image"), &[layer.tar()], Pack::Gzip);
        let options = ["--fill", "never", "--pull", "newer"];
        let mounted = place.mount_image(&registry.image(), &options);
        assert_eq!(std::fs::read(mounted.path("d/hot")).unwrap(), b"new");
    }
}
