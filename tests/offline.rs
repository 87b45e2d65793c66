//! Mounting again: without a network, from what is known, and what `--pull` makes of a tag that moved.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "support/all.rs"]
mod support;

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::layout::{self, FILE, Layer, Pack};
use support::place::{Place, can_mount};
use support::registry::Registry;

/// What the tag stands for from now on.
fn tag(place: &Place, text: &str) {
    let layer = Layer::new().file("version", FILE, text.as_bytes());
    layout::write(&place.path("image"), &[layer.tar()], Pack::Gzip);
}

fn served() -> (Place, Registry) {
    let place = Place::new();
    tag(&place, "first");
    let registry = Registry::serve(place.path("image"));
    (place, registry)
}

/// The digest of what the tag stands for.
fn stands_for(place: &Place) -> String {
    let index = std::fs::read(place.path("image/index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    index["manifests"][0]["digest"].as_str().unwrap().to_owned()
}

fn version(place: &Place) -> String {
    std::fs::read_to_string(place.mnt().join("version")).unwrap()
}

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < deadline, "not {what} in 30 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_is_cached_is_mounted_with_the_cable_out() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    drop(place.mount_image(&registry.image(), &[]));
    registry.control.unplugged.store(true, SeqCst);
    for options in [&[][..], &["--offline"], &["--pull", "newer"]] {
        let mounted = place.mount_image(&registry.image(), options);
        assert_eq!(version(&place), "first", "{options:?}");
        assert_eq!(place.stats()["requests"], 0);
        drop(mounted);
    }
    let at = place.mnt();
    let refused = place.run(&["--pull", "always", &registry.image(), at.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert_eq!(String::from_utf8_lossy(&refused.stderr).lines().count(), 1);
    assert!(!place.is_mounted() && place.leftovers() == 0);
}

#[test]
fn what_is_not_cached_is_not_asked_for_offline() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    let at = place.mnt();
    let refused = place.run(&["--offline", &registry.image(), at.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("--offline") && said.lines().count() == 1,
        "{said}"
    );
    // An index without its data mounts, and a read of it fails rather than asks.
    drop(place.mount_image(&registry.image(), &[]));
    place.ok(&["cache", "prune", "--data"]);
    let before = registry.control.requests.load(SeqCst);
    let mounted = place.mount_image(&registry.image(), &["--offline"]);
    assert!(std::fs::read(mounted.path("version")).is_err());
    // Longer than a mount that may ask waits before it does.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(
        registry.control.requests.load(SeqCst),
        before,
        "offline is offline"
    );
}

#[test]
fn a_known_tag_is_asked_for_behind_the_mount_with_one_request() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    drop(place.mount_image(&registry.image(), &[]));
    let before = registry.control.requests.load(SeqCst);
    let mounted = place.mount_image(&registry.image(), &[]);
    let asked = || registry.control.requests.load(SeqCst) - before;
    wait_until("asked", || asked() > 0);
    assert_eq!(version(&place), "first");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(
        asked(),
        1,
        "one HEAD, and nothing more while nothing has changed"
    );
    assert_eq!(place.stats()["newer"], Value::Null);
    drop(mounted);
}

#[test]
fn a_tag_that_moved_is_reported_and_not_applied() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    drop(place.mount_image(&registry.image(), &[]));
    let old = stands_for(&place);
    tag(&place, "second");
    let new = stands_for(&place);
    assert_ne!(old, new);

    let mounted = place.mount_image(&registry.image(), &[]);
    assert_eq!(version(&place), "first", "a known tag mounts at once");
    wait_until("reported", || place.stats()["newer"] == *new);
    assert_eq!(place.stats()["digest"], *old);
    let listed: Value = serde_json::from_str(&place.ok(&["ps", "--json"])).unwrap();
    assert_eq!(listed[0]["newer"], *new, "{listed}");
    assert!(place.ok(&["ps"]).contains("newer exists"));
    let log = std::fs::read_to_string(place.path("log")).unwrap();
    assert!(log.contains("newer image") && log.contains(&new), "{log}");
    assert_eq!(version(&place), "first", "and stays as it is");
    drop(mounted);

    // Neither is it applied to the next mount that does not ask.
    let mounted = place.mount_image(&registry.image(), &["--offline"]);
    assert_eq!(version(&place), "first");
    drop(mounted);
    for pull in ["newer", "always"] {
        let mounted = place.mount_image(&registry.image(), &["--pull", pull]);
        assert_eq!(version(&place), "second", "{pull}");
        assert_eq!(place.stats()["digest"], *new);
        drop(mounted);
    }
    let mounted = place.mount_image(&registry.image(), &[]);
    assert_eq!(
        version(&place),
        "second",
        "what was asked for is what is known now"
    );
    drop(mounted);
}

#[test]
fn the_configuration_says_when_to_ask() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    drop(place.mount_image(&registry.image(), &[]));
    tag(&place, "second");
    let config = place.path("config/rsmount");
    std::fs::create_dir_all(&config).unwrap();
    std::fs::write(
        config.join("config.toml"),
        "pull = \"always\"\non_outage = 3\n",
    )
    .unwrap();
    let mount = |words: &[&str]| {
        let mut command = place.rsmount();
        command
            .env("XDG_CONFIG_HOME", place.path("config"))
            .args(words);
        let output = command
            .arg(registry.image())
            .arg(place.mnt())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let seen = version(&place);
        place.ok(&["umount", place.mnt().to_str().unwrap()]);
        seen
    };
    assert_eq!(
        mount(&["-q", "--pull", "missing"]),
        "first",
        "a flag says more"
    );
    assert_eq!(mount(&["-q"]), "second");
}
