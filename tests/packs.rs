//! Packs: published beside an image that stays as it is, used by the next machine's first start,
//! kept apart, and ended when they lie. Needs the registry that `contrib/test` starts.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "support/all.rs"]
mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use rsmount::oci::{Digest, Reference};
use rsmount::pack::hot::HotWriter;
use rsmount::pack::manifest::MANIFEST;
use rsmount::pack::{HotRange, Meta, PackManifest};
use rsmount::registry::{Registry, Settings};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use support::layout::{self, DIR, FILE, Layer, Pack};
use support::place::{Place, can_mount, skip};

/// A registry that takes packs.
fn registry() -> Option<String> {
    let registry = std::env::var("RSMOUNT_TEST_REGISTRY").ok();
    if registry.is_none() {
        skip("RSMOUNT_TEST_REGISTRY is not set: use contrib/test");
    }
    registry.filter(|_| can_mount())
}

/// Bytes that hardly compress.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| random.u8(..)).collect()
}

/// The files `d/hot` (128 KiB), `d/cold` (4 MiB) and `d/late` (64 KiB).
fn files(seed: u64) -> [(&'static str, Vec<u8>); 3] {
    [
        ("d/cold", noise(4 << 20, seed + 1)),
        ("d/hot", noise(128 << 10, seed)),
        ("d/late", noise(64 << 10, seed + 2)),
    ]
}

/// Pushes an image of its own for one test; gives its name without a tag.
fn pushed(place: &Place, registry: &str, name: &str) -> String {
    let seed = u64::from(std::process::id()) << 8;
    let mut layer = Layer::new().dir("d", DIR);
    for (path, bytes) in files(seed) {
        layer = layer.file(path, FILE, &bytes);
    }
    let dir = place.path("image");
    layout::write(&dir, &[layer.tar()], Pack::Gzip);
    let image = format!("{registry}/packs-{}/{name}", std::process::id());
    let copied = Command::new("skopeo")
        .args(["copy", "--quiet", "--dest-tls-verify=false"])
        .arg(format!("oci:{}:latest", dir.display()))
        .arg(format!("docker://{image}:1"))
        .status()
        .unwrap();
    assert!(copied.success());
    image
}

/// One start that reads `d/hot`, and what it teaches.
fn publish(place: &Place, image: &str) -> Value {
    let mounted = place.mount_image(&format!("{image}:1"), &["--fill", "never"]);
    std::fs::read(mounted.path("d/hot")).unwrap();
    drop(mounted);
    let said = place.ok(&["-q", "publish", "--json", &format!("{image}:1")]);
    serde_json::from_str(&said).unwrap()
}

/// Nothing is known here any more.
fn forget(place: &Place) {
    std::fs::remove_dir_all(place.path("cache")).unwrap();
}

fn expected(name: &str) -> Vec<u8> {
    let all = files(u64::from(std::process::id()) << 8);
    all.into_iter().find(|(n, _)| *n == name).unwrap().1
}

#[test]
fn the_next_machine_starts_from_a_pack() {
    let Some(registry) = registry() else {
        return;
    };
    let place = Place::new();
    let image = pushed(&place, &registry, "start");
    let published = publish(&place, &image);
    assert!(
        published["hot_address_bytes"].as_u64() >= Some(128 << 10),
        "{published}"
    );
    forget(&place);

    let explained = place.ok(&["explain", "--json", &format!("{image}:1")]);
    let explained: Value = serde_json::from_str(&explained).unwrap();
    assert_eq!(explained["pack"]["used"], true, "{explained}");
    assert_eq!(explained["pack"]["digest"], published["pack"]);

    let mounted = place.mount_image(&format!("{image}:1"), &["--fill", "never"]);
    assert!(std::fs::read(mounted.path("d/hot")).unwrap() == expected("d/hot"));
    let stats = place.stats();
    assert!(
        stats["fetched_bytes"].as_u64() < Some(512 << 10),
        "not lazy: {stats}"
    );
    assert_eq!(stats["pack_proven"], "none");
    // What is not hot comes by span, with windows that are fetched when they are needed.
    assert!(std::fs::read(mounted.path("d/late")).unwrap() == expected("d/late"));
    assert!(std::fs::read(mounted.path("d/cold")).unwrap() == expected("d/cold"));
    drop(mounted);

    // Everything to mount again is here.
    let mounted = place.mount_image(&format!("{image}:1"), &["--offline"]);
    assert!(std::fs::read(mounted.path("d/cold")).unwrap() == expected("d/cold"));
}

#[test]
fn a_digest_promises_exact_bytes() {
    let Some(registry) = registry() else {
        return;
    };
    let place = Place::new();
    let image = pushed(&place, &registry, "digest");
    let published = publish(&place, &image);
    let by_digest = format!("{image}@{}", published["image"].as_str().unwrap());
    forget(&place);
    let explain = |options: &[&str]| -> Value {
        let args = [&["explain", "--json", &by_digest], options].concat();
        serde_json::from_str(&place.ok(&args)).unwrap()
    };
    assert_eq!(explain(&[])["pack"]["used"], false);
    assert_eq!(
        explain(&["--trust-index", "registry"])["pack"]["used"],
        true
    );
    for rule in ["signed", "local"] {
        assert_eq!(
            explain(&["--trust-index", rule])["pack"]["used"],
            false,
            "{rule}"
        );
    }
}

#[test]
fn the_fill_proves_a_pack() {
    let Some(registry) = registry() else {
        return;
    };
    let place = Place::new();
    let image = pushed(&place, &registry, "proof");
    publish(&place, &image);
    forget(&place);
    let mounted = place.mount_image(&format!("{image}:1"), &["--fill", "now"]);
    wait_until("proven", || place.stats()["pack_proven"] == "all");
    assert!(std::fs::read(mounted.path("d/cold")).unwrap() == expected("d/cold"));
    drop(mounted);
    let explained = place.ok(&["explain", "--json", &format!("{image}:1")]);
    let explained: Value = serde_json::from_str(&explained).unwrap();
    assert_eq!(explained["layers"][0]["by"], "index", "{explained}");
}

#[test]
fn a_lying_pack_is_kept_apart_and_found_out() {
    let Some(registry) = registry() else {
        return;
    };
    let place = Place::new();
    let image = pushed(&place, &registry, "lie");
    let published = publish(&place, &image);
    let digest = published["image"].as_str().unwrap().to_owned();
    lie(&image, &digest);
    forget(&place);
    let (by_tag, by_digest) = (format!("{image}:1"), format!("{image}@{digest}"));

    // By tag first: the registry's word. By digest after, in the same cache: never a byte of it.
    for order in [[true, false], [false, true]] {
        for tag in order {
            let name = if tag { &by_tag } else { &by_digest };
            let mounted = place.mount_image(name, &["--fill", "never"]);
            let right = std::fs::read(mounted.path("d/hot")).unwrap() == expected("d/hot");
            // Once the layer was streamed, nobody needs a pack of it.
            let pack_is_needed = tag && order[0];
            assert_eq!(right, !pack_is_needed, "tag: {tag} in {order:?}");
        }
        forget(&place);
    }

    // The proof finds it out: what could be read before cannot be read any more.
    let mounted = place.mount_image(&by_tag, &["--fill", "now"]);
    let path = mounted.path("d/hot");
    let _before = std::fs::read(&path);
    wait_until("poisoned", || !place.is_mounted());
    assert!(std::fs::read(&path).is_err());
    let shown: Value = serde_json::from_str(&place.ok(&["ps", "--json"])).unwrap();
    assert_eq!(shown[0]["state"], "poisoned", "{shown}");
    place.ok(&["umount", place.mnt().to_str().unwrap()]);
    drop(mounted);

    // It is on the list of those that are not used again.
    let mounted = place.mount_image(&by_tag, &[]);
    assert!(std::fs::read(mounted.path("d/hot")).unwrap() == expected("d/hot"));
}

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < deadline, "not {what} in 30 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Replaces the image's pack by one whose hot pages are other bytes, with right digests of those.
fn lie(image: &str, digest: &str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let reference: Reference = format!("{image}:1").parse().unwrap();
        let registry = Registry::new(&reference, Settings::default()).unwrap();
        let subject: Digest = digest.parse().unwrap();
        let tag = PackManifest::tag(&subject);
        let found = registry.resolve(&tag).await.unwrap();
        let honest = PackManifest::decode(&found.bytes, &subject).unwrap();
        let mut meta = Meta::decode(honest.inline.as_ref().unwrap()).unwrap();
        let size = meta.layers[0].address_size;
        let mut hot = HotWriter::default();
        let spoil = |range: &mut HotRange| {
            let bytes = vec![b'!'; range.range(size).len() as usize];
            range.sha256 = Sha256::digest(&bytes).into();
            hot.add(&bytes).unwrap();
        };
        meta.hot.iter_mut().for_each(spoil);
        let (meta, hot) = (meta.encode().unwrap(), hot.finish().unwrap());
        let windows = registry
            .blob_bytes(&honest.windows[0], 1 << 20)
            .await
            .unwrap();
        let lying = PackManifest::new(honest.subject, &meta, &hot, &[windows.to_vec()]);
        for blob in [meta, hot] {
            registry
                .push_blob(&Digest::of(&blob), blob.into())
                .await
                .unwrap();
        }
        let bytes = lying.encode();
        registry
            .push_manifest(&tag, MANIFEST, bytes.into())
            .await
            .unwrap();
    });
}
