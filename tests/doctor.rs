//! `rsmount doctor` and `rsmount index`: what a machine has, and what is known of an image.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "support/all.rs"]
mod support;

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering::SeqCst;

use serde_json::Value;
use support::layout::{self, DIR, FILE, Layer, Pack};
use support::place::{Place, can_mount};
use support::registry::Registry;

fn checks(output: &std::process::Output) -> Vec<Value> {
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    all.as_array().unwrap().clone()
}

fn check<'a>(all: &'a [Value], name: &str) -> &'a Value {
    let found = all.iter().find(|check| check["name"] == name);
    found.unwrap_or_else(|| panic!("no check {name}"))
}

#[test]
fn a_machine_that_can_mount_is_well() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let output = place.run(&["doctor", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let all = checks(&output);
    for name in [
        "kernel",
        "/dev/fuse",
        "fusermount3",
        "overlayfs",
        "EROFS",
        "user namespaces",
        "cache",
        "cache files",
        "runtimes",
    ] {
        let verdict = &check(&all, name)["verdict"];
        assert!(verdict == "ok" || verdict == "warn", "{name}: {verdict}");
    }
    // One line a check, the words and the names aligned.
    let text = place.ok(&["doctor"]);
    assert_eq!(text.lines().count(), all.len(), "{text}");
    assert!(
        text.lines().all(|line| line[4..].starts_with("  ")),
        "{text}"
    );
}

#[test]
fn what_needs_to_be_and_is_not_fails_and_says_what_to_do() {
    let place = Place::new();
    let cache = place.path("cache");
    std::fs::create_dir(&cache).unwrap();
    std::fs::set_permissions(&cache, PermissionsExt::from_mode(0o777)).unwrap();
    let output = place.run(&["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let all = checks(&output);
    let found = check(&all, "cache");
    assert_eq!(found["verdict"], "fail", "{found}");
    assert!(found["advice"].as_str().unwrap().contains("--cache-dir"));
}

#[test]
fn a_registry_is_asked_for_an_image_or_by_its_host() {
    let place = Place::new();
    let layer = Layer::new().file("a", FILE, b"a");
    layout::write(&place.path("image"), &[layer.tar()], Pack::Gzip);
    let registry = Registry::serve(place.path("image"));
    let verdict = |word: &str| {
        let all = checks(&place.run(&["doctor", "--json", word]));
        check(&all, "registry")["verdict"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let image = registry.image();
    let host = image.split('/').next().unwrap();
    assert_eq!(verdict(&image), "ok");
    assert_eq!(verdict(host), "ok");
    assert_eq!(verdict(&image.replace("latest", "none")), "fail");
    registry.control.unplugged.store(true, SeqCst);
    assert_eq!(verdict(host), "fail");
}

#[test]
fn an_index_is_built_without_a_mount_and_shown() {
    let place = Place::new();
    let layers = [
        Layer::new().dir("d", DIR).file("d/a", FILE, &[7; 3 << 20]),
        Layer::new().whiteout("d/a").file("b", FILE, b"b"),
    ];
    let tars: Vec<Vec<u8>> = layers.into_iter().map(Layer::tar).collect();
    layout::write(&place.path("image"), &tars, Pack::Plain);
    let registry = Registry::serve(place.path("image"));
    let image = registry.image();
    let show = |words: &[&str]| -> Value {
        let said = place.ok(&[words, &["--json", &image]].concat());
        serde_json::from_str(&said).unwrap()
    };
    let before = show(&["index", "show"]);
    assert_eq!(before["layers"][0]["index"], Value::Null, "{before}");
    assert_eq!(before["layers"][0]["size"], tars[0].len());
    assert!(
        registry.control.blob_bytes.load(SeqCst) < 10_000,
        "shown, not fetched"
    );

    let built = show(&["-q", "index", "build"]);
    let index = &built["layers"][0]["index"];
    assert_eq!(index["compression"], "none");
    assert_eq!(index["address_bytes"], tars[0].len());
    assert_eq!(index["entries"], 2);
    assert_eq!(built["layers"][1]["index"]["whiteouts"], 1);
    // Spans of at most 128 KiB, each of which can be begun with.
    assert!(index["spans"].as_u64() >= Some(24), "{index}");
    assert_eq!(index["spans"], index["checkpoints"]);
    registry.control.unplugged.store(true, SeqCst);
    assert_eq!(show(&["index", "show", "--offline"]), built);
    let text = place.ok(&["index", "show", &image]);
    assert!(
        text.contains("together") && text.contains("CHECKPOINTS"),
        "{text}"
    );
}
