//! Packs: published beside an image that stays as it is, used by the next machine's first start,
//! kept apart, and ended when they lie. Needs docker-registry and skopeo.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "support/all.rs"]
mod support;

use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rsmount::blob::ByteRange;
use rsmount::content::Profile;
use rsmount::layer::{EntryKind, LayerPath};
use rsmount::oci::{Digest, Reference};
use rsmount::pack::hot::HotWriter;
use rsmount::pack::manifest::MANIFEST;
use rsmount::pack::{Meta, PackManifest};
use rsmount::registry::{Registry, Settings};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use support::docker_registry::DockerRegistry;
use support::layout::{self, DIR, FILE, Layer, Pack};
use support::place::{Place, can_mount};

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

/// An image in a registry that one test has for itself, which takes packs and ends with the test; its
/// name is without a tag.
fn pushed(place: &Place) -> Option<(DockerRegistry, String)> {
    if !can_mount() {
        return None;
    }
    let registry = DockerRegistry::serve(&place.path("registry"), false)?;
    let seed = u64::from(std::process::id()) << 8;
    let mut layer = Layer::new().dir("d", DIR);
    for (path, bytes) in files(seed) {
        layer = layer.file(path, FILE, &bytes);
    }
    let dir = place.path("image");
    layout::write(&dir, &[layer.tar()], Pack::Gzip);
    let image = registry.image("test/image");
    let copied = Command::new("skopeo")
        .args(["copy", "--quiet", "--dest-tls-verify=false"])
        .arg(format!("oci:{}:latest", dir.display()))
        .arg(format!("docker://{image}:1"))
        .status()
        .unwrap();
    assert!(copied.success());
    Some((registry, image))
}

/// One start that reads `d/hot`.
fn teach(place: &Place, image: &str) {
    let mounted = place.mount_image(&format!("{image}:1"), &["--fill", "never"]);
    std::fs::read(mounted.path("d/hot")).unwrap();
}

/// One start that reads `d/hot`, and what it teaches.
fn publish(place: &Place, image: &str) -> Value {
    teach(place, image);
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
    let place = Place::new();
    let Some((_registry, image)) = pushed(&place) else {
        return;
    };
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
    let place = Place::new();
    let Some((_registry, image)) = pushed(&place) else {
        return;
    };
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
    let place = Place::new();
    let Some((_registry, image)) = pushed(&place) else {
        return;
    };
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

/// Packs that no mount can be made of: the image is mounted as if there were none, and so is it the
/// next time.
#[test]
fn a_pack_that_makes_no_mount_keeps_nobody_from_mounting() {
    let place = Place::new();
    let Some((_registry, image)) = pushed(&place) else {
        return;
    };
    let published = publish(&place, &image);
    let digest = published["image"].as_str().unwrap();
    let name = format!("{image}:1");
    // More than any disk holds, and names that lead nowhere.
    let huge = |meta: &mut Meta, _: &mut HotWriter| {
        let layer = &mut meta.layers[0];
        layer.address_size = 1 << 62;
        layer.entries.clear();
        layer.spans.truncate(1);
        layer.spans[0].address = ByteRange::new(0, 1 << 62);
        layer.spans[0].compressed = ByteRange::new(0, layer.compressed_size);
        meta.hot.clear();
        meta.profile = Profile::default();
    };
    let broken = |meta: &mut Meta, _: &mut HotWriter| {
        let link = EntryKind::HardLink {
            target: LayerPath::parse(b"nowhere").unwrap(),
        };
        let mut entry = meta.layers[0].entries[0].clone();
        (entry.path, entry.kind) = (LayerPath::parse(b"link").unwrap(), link);
        meta.layers[0].entries.push(entry);
        meta.hot.clear();
        meta.profile = Profile::default();
    };
    for change in [&broken as Change<'_>, &huge] {
        republish(&image, digest, change);
        forget(&place);
        for _ in 0..2 {
            let mounted = place.mount_image(&name, &["--fill", "never"]);
            assert!(std::fs::read(mounted.path("d/hot")).unwrap() == expected("d/hot"));
        }
    }
}

/// A name that was given to a digest is as strict as the digest.
#[test]
fn a_name_given_here_is_nobodys_word() {
    let place = Place::new();
    let Some((_registry, image)) = pushed(&place) else {
        return;
    };
    let published = publish(&place, &image);
    let digest = published["image"].as_str().unwrap().to_owned();
    lie(&image, &digest);
    forget(&place);
    let by_digest = format!("{image}@{digest}");
    place.ok(&["-q", "pull", &by_digest]);
    place.ok(&["tag", &by_digest, "local/alias:1"]);
    let pack = &explain(&place, &["local/alias:1"])["pack"];
    assert_eq!(pack["trusted"], false, "{pack}");
    assert!(pack["why"].as_str().unwrap().contains("digest"), "{pack}");
}

/// What is evicted before it was compared is no lie.
#[test]
fn a_pack_is_proven_where_the_layer_has_no_room() {
    let place = Place::new();
    let Some((_registry, image)) = pushed(&place) else {
        return;
    };
    publish(&place, &image);
    forget(&place);
    let name = format!("{image}:1");
    let options = ["--fill", "now", "--cache-size", "1MiB"];
    let mounted = place.mount_image(&name, &options);
    wait_until("proven", || place.stats()["pack_proven"] == "all");
    for name in ["d/hot", "d/cold", "d/late"] {
        assert!(std::fs::read(mounted.path(name)).unwrap() == expected(name));
    }
    drop(mounted);
    assert_eq!(explain(&place, &[&name])["layers"][0]["by"], "index");
}

#[test]
fn a_lying_pack_is_kept_apart_and_found_out() {
    let place = Place::new();
    let Some((_registry, image)) = pushed(&place) else {
        return;
    };
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
            let hot = std::fs::read(mounted.path("d/hot")).unwrap();
            // Once the layer was streamed, nobody needs a pack of it.
            let pack_is_needed = tag && order[0];
            assert_eq!(
                hot == expected("d/hot"),
                !pack_is_needed,
                "tag: {tag} in {order:?}"
            );
            if !pack_is_needed {
                for name in ["d/cold", "d/late"] {
                    assert!(std::fs::read(mounted.path(name)).unwrap() == expected(name));
                }
            }
        }
        forget(&place);
    }

    // Both at the same time: each has its own pages.
    let first = place.mount_image(&by_tag, &["--fill", "never"]);
    let _lies = std::fs::read(first.path("d/hot")).unwrap();
    let second = place.path("second");
    std::fs::create_dir(&second).unwrap();
    let at = second.to_str().unwrap();
    place.ok(&["-q", "--fill", "never", &by_digest, at]);
    let right = std::fs::read(second.join("d/hot")).unwrap() == expected("d/hot");
    place.ok(&["umount", at]);
    assert!(right, "the strict mount beside the other");
    drop(first);
    forget(&place);

    // The proof finds it out: what could be read before cannot be read any more.
    let mounted = place.mount_image(&by_tag, &["--fill", "now"]);
    let path = mounted.path("d/hot");
    let _before = std::fs::read(&path);
    wait_until("poisoned", || !place.is_mounted());
    assert!(std::fs::read(&path).is_err());
    // The process says it with its last act.
    wait_until("shown", || {
        let shown: Value = serde_json::from_str(&place.ok(&["ps", "--json"])).unwrap();
        shown[0]["state"] == "poisoned"
    });
    place.ok(&["umount", place.mnt().to_str().unwrap()]);
    drop(mounted);

    // It is on the list of those that are not used again.
    let mounted = place.mount_image(&by_tag, &[]);
    assert!(std::fs::read(mounted.path("d/hot")).unwrap() == expected("d/hot"));
}

/// The poisoned mount: bytes that were read before, names, and what the kernel remembers of both.
#[test]
fn nothing_of_a_poisoned_mount_can_be_read_any_more() {
    let place = Place::new();
    let Some((_registry, image)) = pushed(&place) else {
        return;
    };
    let published = publish(&place, &image);
    let lying = lie(&image, published["image"].as_str().unwrap());
    forget(&place);
    let by_tag = format!("{image}:1");
    let mounted = place.mount_image(&by_tag, &["--fill", "auto"]);
    let path = mounted.path("d/hot");
    let open = std::fs::File::open(&path).unwrap();
    let mut before = vec![0; 4096];
    open.read_exact_at(&mut before, 0).unwrap();
    assert!(before.iter().all(|b| *b == b'!'), "the pack lies");
    // The fill begins when readers have been quiet; it finds the pack out.
    wait_until("poisoned", || !place.is_mounted());
    // The pages are in the kernel's cache, and an open file holds them: both are out of reach.
    assert!(open.read_exact_at(&mut before, 0).is_err(), "a second read");
    assert!(std::fs::metadata(&path).is_err());
    assert!(std::fs::read(&path).is_err());
    // The process says it with its last act.
    wait_until("shown", || {
        let shown: Value = serde_json::from_str(&place.ok(&["ps", "--json"])).unwrap();
        shown[0]["state"] == "poisoned"
    });
    drop(open);
    place.ok(&["umount", place.mnt().to_str().unwrap()]);
    drop(mounted);

    // On the deny list, whatever rule asks, and although the registry still offers it.
    for rule in ["tag", "registry"] {
        let explained = explain(&place, &["--trust-index", rule, &by_tag]);
        assert_eq!(explained["pack"]["digest"], lying, "{explained}");
        assert_eq!(explained["pack"]["trusted"], false);
        let why = explained["pack"]["why"].as_str().unwrap();
        assert!(why.contains("found to lie"), "{why}");
    }
}

/// The process of the one mount there is, once it is not `before`.
fn worker(place: &Place, before: Option<&Value>) -> Value {
    let mut pid = Value::Null;
    wait_until("served", || {
        let listed: Value = serde_json::from_str(&place.ok(&["ps", "--json"])).unwrap();
        pid = listed[0]["pid"].clone();
        listed[0]["state"] == "ready" && before != Some(&pid)
    });
    pid
}

/// Kills the process that serves, after another mount has streamed the layers: the tree could be made
/// without the pack by now, and what was read of it is remembered all the same.
#[test]
fn another_worker_goes_on_with_the_pack_and_finds_it_out() {
    let place = Place::new();
    let Some((_registry, image)) = pushed(&place) else {
        return;
    };
    let published = publish(&place, &image);
    let digest = published["image"].as_str().unwrap().to_owned();
    let lying: Digest = lie(&image, &digest).parse().unwrap();
    forget(&place);
    let (by_tag, by_digest) = (format!("{image}:1"), format!("{image}@{digest}"));
    let mounted = place.mount_image(&by_tag, &["--fill", "auto"]);
    let path = mounted.path("d/hot");
    assert!(
        std::fs::read(&path).unwrap() != expected("d/hot"),
        "the pack lies"
    );
    let second = place.path("second");
    std::fs::create_dir(&second).unwrap();
    let at = second.to_str().unwrap();
    place.ok(&["-q", "--fill", "never", &by_digest, at]);
    place.ok(&["umount", at]);
    let before = worker(&place, None);
    kill(&before);
    worker(&place, Some(&before));
    wait_until("poisoned", || !place.is_mounted());
    assert!(std::fs::read(&path).is_err());
    place.ok(&["umount", place.mnt().to_str().unwrap()]);
    drop(mounted);

    // One that was found out by another mount is ended, also where nothing is streamed.
    forget(&place);
    let mounted = place.mount_image(&by_tag, &["--fill", "never"]);
    assert!(std::fs::read(&path).unwrap() != expected("d/hot"));
    std::fs::write(place.path("cache/v1/denied").join(lying.hex()), "").unwrap();
    wait_until("poisoned", || !place.is_mounted());
    place.ok(&["umount", place.mnt().to_str().unwrap()]);
    drop(mounted);

    // And is not gone on with.
    forget(&place);
    let mounted = place.mount_image(&by_tag, &["--fill", "never"]);
    assert!(std::fs::read(&path).unwrap() != expected("d/hot"));
    std::fs::write(place.path("cache/v1/denied").join(lying.hex()), "").unwrap();
    kill(&worker(&place, None));
    wait_until("ended", || !place.is_mounted());
    assert!(std::fs::read(&path).is_err());
    wait_until("shown", || {
        let shown: Value = serde_json::from_str(&place.ok(&["ps", "--json"])).unwrap();
        shown[0]["state"] == "poisoned"
    });
    place.ok(&["umount", place.mnt().to_str().unwrap()]);
    drop(mounted);
}

fn kill(pid: &Value) {
    let status = Command::new("kill").args(["-9", &pid.to_string()]).status();
    assert!(status.unwrap().success());
}

fn explain(place: &Place, words: &[&str]) -> Value {
    let args = [&["explain", "--json"], words].concat();
    serde_json::from_str(&place.ok(&args)).unwrap()
}

/// A key pair in the place; gives the names of its files and its fingerprint.
fn key(place: &Place, name: &str) -> (String, String, String) {
    let file = place.path(name).to_str().unwrap().to_owned();
    let said = place.ok(&["key", "generate", "--json", &file]);
    let said: Value = serde_json::from_str(&said).unwrap();
    let fingerprint = said[0]["fingerprint"].as_str().unwrap().to_owned();
    (file.clone(), format!("{file}.pub"), fingerprint)
}

#[test]
fn a_signed_pack_is_used_for_a_digest_by_who_trusts_its_key() {
    let place = Place::new();
    let Some((_registry, image)) = pushed(&place) else {
        return;
    };
    let (secret, public, fingerprint) = key(&place, "ours");
    let (_, stranger, _) = key(&place, "theirs");
    teach(&place, &image);
    let name = format!("{image}:1");
    let said = place.ok(&["-q", "publish", "--json", "--key", &secret, &name]);
    let published: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(published["signer"].as_str(), Some(&*fingerprint));
    // What others start from is not replaced by less.
    let worse = place.run(&["-q", "publish", &name]);
    let said = String::from_utf8(worse.stderr).unwrap();
    assert!(
        worse.status.code() == Some(1) && said.contains("is signed"),
        "{said}"
    );
    forget(&place);
    let worse = place.run(&["-q", "publish", "--key", &secret, &name]);
    let said = String::from_utf8(worse.stderr).unwrap();
    assert!(
        worse.status.code() == Some(1) && said.contains("hot pages"),
        "{said}"
    );
    assert_eq!(
        place.run(&["publish", "--offline", &name]).status.code(),
        Some(1)
    );
    forget(&place);
    let by_digest = format!("{image}@{}", published["image"].as_str().unwrap());

    let pack = |words: &[&str]| explain(&place, words)["pack"].clone();
    let strict = pack(&[&by_digest]);
    assert_eq!(strict["used"], false, "no key is trusted: {strict}");
    assert_eq!(
        strict["signers"][0].as_str(),
        Some(&*fingerprint),
        "found, and shown"
    );
    assert_eq!(
        pack(&["--trusted-key", &stranger, &by_digest])["used"],
        false
    );
    for rule in ["tag", "signed", "registry"] {
        let used = pack(&["--trust-index", rule, "--trusted-key", &public, &by_digest]);
        assert_eq!(used["used"], true, "{rule}: {used}");
        assert!(used["why"].as_str().unwrap().contains(&fingerprint));
    }
    let local = [
        "--trust-index",
        "local",
        "--trusted-key",
        &public,
        &by_digest,
    ];
    assert_eq!(pack(&local)["used"], false);
    forget(&place);

    // And mounted so: lazily, from the pack.
    let options = ["--fill", "never", "--trusted-key", &public];
    let mounted = place.mount_image(&by_digest, &options);
    assert!(std::fs::read(mounted.path("d/hot")).unwrap() == expected("d/hot"));
    let stats = place.stats();
    assert!(stats["fetched_bytes"].as_u64() < Some(512 << 10), "{stats}");
    drop(mounted);
    // Once more without a network, by the same rule, and not by a stricter one.
    let offline = ["--offline", "--trusted-key", &public];
    drop(place.mount_image(&by_digest, &offline));
    let refused = place.run(&["--offline", &by_digest, place.mnt().to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
}

#[test]
fn the_configuration_names_keys_and_the_rule() {
    let place = Place::new();
    let Some((_registry, image)) = pushed(&place) else {
        return;
    };
    let (secret, public, fingerprint) = key(&place, "ours");
    teach(&place, &image);
    let name = format!("{image}:1");
    place.ok(&["-q", "publish", "--key", &secret, &name]);
    forget(&place);
    let config = place.path("config/rsmount");
    std::fs::create_dir_all(&config).unwrap();
    std::fs::copy(public, config.join("team.pub")).unwrap();
    let explain = |text: &str, words: &[&str]| -> Value {
        std::fs::write(config.join("config.toml"), text).unwrap();
        let mut command = place.rsmount();
        command.env("XDG_CONFIG_HOME", place.path("config"));
        let output = command.args(["explain", "--json"]).args(words).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        let explained: Value = serde_json::from_slice(&output.stdout).unwrap();
        explained["pack"].clone()
    };
    let trusting = "trust_index = \"signed\"\ntrusted_keys = [\"team.pub\"]\n";
    let used = explain(trusting, &[&name]);
    assert_eq!(
        (&used["rule"], &used["used"]),
        (&"signed".into(), &true.into())
    );
    assert!(used["why"].as_str().unwrap().contains(&fingerprint));
    // A flag says more than a file.
    let used = explain(trusting, &["--trust-index", "local", &name]);
    assert_eq!(
        (&used["rule"], &used["used"]),
        (&"local".into(), &false.into())
    );
    let none = explain("trust_index = \"signed\"\n", &[&name]);
    assert_eq!(none["used"], false, "{none}");
}

#[test]
fn a_pack_that_was_changed_after_it_was_signed_is_refused() {
    let place = Place::new();
    let Some((_registry, image)) = pushed(&place) else {
        return;
    };
    let (secret, public, _) = key(&place, "ours");
    teach(&place, &image);
    let name = format!("{image}:1");
    let said = place.ok(&["-q", "publish", "--json", "--key", &secret, &name]);
    let published: Value = serde_json::from_str(&said).unwrap();
    let digest = published["image"].as_str().unwrap().to_owned();
    // Other pages, and the signature of the honest ones.
    lie(&image, &digest);
    forget(&place);
    let by_digest = format!("{image}@{digest}");
    for image in [&name, &by_digest] {
        let mounted = place.mount_image(image, &["--fill", "never", "--trusted-key", &public]);
        assert!(std::fs::read(mounted.path("d/hot")).unwrap() == expected("d/hot"));
        drop(mounted);
        forget(&place);
    }
    let why = explain(&place, &["--trusted-key", &public, &name])["pack"]["why"].clone();
    assert!(why.as_str().unwrap().contains("changed"), "{why}");
}

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < deadline, "not {what} in 30 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Replaces the image's pack by one whose hot pages are other bytes, with right digests of those, and
/// with the signatures of the honest one; gives its digest.
fn lie(image: &str, digest: &str) -> String {
    republish(image, digest, &|meta, hot| {
        let size = meta.layers[0].address_size;
        for range in &mut meta.hot {
            let bytes = vec![b'!'; range.range(size).len() as usize];
            range.sha256 = Sha256::digest(&bytes).into();
            hot.add(&bytes).unwrap();
        }
    })
}

/// What is changed of a pack.
type Change<'a> = &'a dyn Fn(&mut Meta, &mut HotWriter);

/// Replaces the image's pack by one that was changed; gives its digest.
fn republish(image: &str, digest: &str, change: Change<'_>) -> String {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let reference: Reference = format!("{image}:1").parse().unwrap();
        let registry = Registry::new(&reference, Settings::default()).unwrap();
        let subject: Digest = digest.parse().unwrap();
        let tag = PackManifest::tag(&subject);
        let found = registry.resolve(&tag).await.unwrap();
        let honest = PackManifest::decode(&found.bytes, &subject).unwrap();
        let mut meta = Meta::decode(honest.inline.as_ref().unwrap()).unwrap();
        let mut hot = HotWriter::default();
        change(&mut meta, &mut hot);
        let (meta, hot) = (meta.encode().unwrap(), hot.finish().unwrap());
        let windows = registry
            .blob_bytes(&honest.windows[0], 1 << 20)
            .await
            .unwrap();
        let mut lying = PackManifest::new(honest.subject, &meta, &hot, &[windows.to_vec()]);
        lying.signatures = honest.signatures;
        for blob in [meta, hot] {
            registry
                .push_blob(&Digest::of(&blob), blob.into())
                .await
                .unwrap();
        }
        let bytes = lying.encode();
        let digest = Digest::of(&bytes).to_string();
        registry
            .push_manifest(&tag, MANIFEST, bytes.into())
            .await
            .unwrap();
        digest
    })
}

/// Megabytes of words that compress, different for each `seed`.
fn text(megabytes: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut words = Vec::with_capacity((megabytes << 20) + 8);
    while words.len() < megabytes << 20 {
        words.extend_from_slice(format!("{} ", random.u32(..4000)).as_bytes());
    }
    words.truncate(megabytes << 20);
    words
}

#[test]
fn of_a_pack_s_windows_those_come_that_are_needed() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let cold = text(24, 2);
    let layer = Layer::new()
        .file("hot", FILE, &text(1, 1))
        .file("cold", FILE, &cold);
    let tar = layer.tar();
    let spoil = |parts: &mut layout::Parts| {
        // As everybody compresses; the fastest level makes one block of everything.
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut gz, &tar).unwrap();
        parts.blobs = vec![gz.finish().unwrap()];
        parts.layer_digests = vec![Digest::of(&parts.blobs[0]).to_string()];
        parts.layer_sizes = vec![parts.blobs[0].len() as u64];
    };
    layout::write_spoilt(
        &place.path("image"),
        std::slice::from_ref(&tar),
        Pack::Gzip,
        &spoil,
    );
    let registry = support::registry::Registry::serve(place.path("image"));
    let image = registry.image();
    let mounted = place.mount_image(&image, &["--fill", "never"]);
    std::fs::read(mounted.path("hot")).unwrap();
    drop(mounted);
    let said = place.ok(&["-q", "publish", "--json", &image]);
    let published: Value = serde_json::from_str(&said).unwrap();
    let all = published["window_bytes"].as_u64().unwrap();
    assert!(all > 100_000, "{published}");
    forget(&place);

    let mounted = place.mount_image(&image, &["--fill", "never"]);
    assert!(std::fs::read(mounted.path("hot")).unwrap() == text(1, 1));
    let known = registry.control.asked().len();
    let before = place.stats()["fetched_bytes"].as_u64().unwrap();
    let file = std::fs::File::open(mounted.path("cold")).unwrap();
    let mut bytes = [0; 4096];
    let mut windows_asked = 0;
    for at in [5 << 20, 17 << 20] {
        file.read_exact_at(&mut bytes, at).unwrap();
        assert!(bytes == cold[at as usize..][..4096]);
        let asked = registry.control.asked();
        let of_windows = asked[known..]
            .iter()
            .filter(|a| std::fs::metadata(blob_of(&place, &a.digest)).unwrap().len() == all);
        let lengths: Vec<u64> = of_windows.map(|a| a.range.end - a.range.start).collect();
        windows_asked = lengths.iter().sum();
        assert!(lengths.iter().all(|len| *len <= 33 << 10), "{lengths:?}");
    }
    assert!(
        windows_asked > 0 && windows_asked <= 2 * (33 << 10),
        "{windows_asked} of {all}"
    );
    let fetched = place.stats()["fetched_bytes"].as_u64().unwrap() - before;
    let asked: u64 = registry.control.asked()[known..]
        .iter()
        .map(|a| a.range.end - a.range.start)
        .sum();
    assert_eq!(fetched, asked, "windows are counted as well");
}

fn blob_of(place: &Place, digest: &str) -> std::path::PathBuf {
    place.path("image/blobs").join(digest.replacen(':', "/", 1))
}
