//! `rsmount bench`: every mode is what it says, and what it prints is whole.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "support/all.rs"]
mod support;

use std::process::Output;
use std::sync::atomic::Ordering::SeqCst;

use serde_json::Value;
use support::layout::{self, DIR, FILE, Layer, Pack};
use support::place::{Place, can_mount};
use support::registry::Registry;

/// An image whose only program is busybox's: enough to read a file.
fn served(place: &Place) -> Option<Registry> {
    let Ok(busybox) = std::fs::read("/bin/busybox") else {
        support::place::skip("needs busybox (package busybox-static)");
        return None;
    };
    let mut random = fastrand::Rng::with_seed(3);
    let noise: Vec<u8> = (0..4 << 20).map(|_| random.u8(..)).collect();
    let program = layout::Meta {
        mode: 0o755,
        ..FILE
    };
    let layer = Layer::new()
        .dir("bin", DIR)
        .dir("proc", DIR)
        .dir("tmp", DIR)
        .file("bin/busybox", program, &busybox)
        .file("noise", FILE, &noise);
    layout::write(&place.path("image"), &[layer.tar()], Pack::Gzip);
    Some(Registry::serve(place.path("image")))
}

const READS: &[&str] = &[
    "/bin/busybox",
    "dd",
    "if=/noise",
    "of=/tmp/x",
    "bs=4096",
    "count=1",
];

/// `rsmount -q bench WORDS IMAGE -- COMMAND`, with its caches in `scratch` of the place.
fn bench(place: &Place, image: &str, words: &[&str], command: &[&str]) -> Output {
    let scratch = place.path("scratch");
    std::fs::create_dir_all(&scratch).unwrap();
    let scratch = scratch.to_str().unwrap();
    let before = ["-q", "bench", "--scratch", scratch];
    place.run(&[&before, words, &[image, "--"], command].concat())
}

/// Nothing is left of a measurement.
fn assert_clean(place: &Place) {
    let left = std::fs::read_dir(place.path("scratch")).unwrap().count();
    assert_eq!((left, place.leftovers()), (0, 0));
}

#[test]
fn the_modes_are_what_they_say() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let Some(registry) = served(&place) else {
        return;
    };
    let report = place.path("report.html");
    let words = [
        "--json",
        "--runs",
        "2",
        "--report",
        report.to_str().unwrap(),
    ];
    let output = bench(&place, &registry.image(), &words, READS);
    assert!(output.status.success(), "{output:?}");
    let measured: Value = serde_json::from_slice(&output.stdout).unwrap();
    let compressed = measured["compressed_bytes"].as_u64().unwrap();
    let fetched = |name: &str| {
        let modes = measured["modes"].as_array().unwrap();
        let mode = modes.iter().find(|m| m["mode"] == name).unwrap();
        mode["median"]["fetched_bytes"].as_u64().unwrap()
    };
    assert_eq!(fetched("first-contact"), compressed);
    assert!(
        (1..compressed / 2).contains(&fetched("indexed")),
        "{measured}"
    );
    assert!(fetched("profiled") > 0);
    assert_eq!(fetched("warm"), 0);
    assert_eq!(
        measured["left_out"][0]["mode"], "packed",
        "nobody has published"
    );
    for row in measured["modes"].as_array().unwrap() {
        assert_eq!(row["starts"].as_array().unwrap().len(), 2);
        let time = |name: &str| row["median"][name].as_f64().unwrap();
        assert!(time("resolved_ms") <= time("usable_ms"));
        assert!(time("usable_ms") <= time("ready_ms"));
    }
    let page = std::fs::read_to_string(&report).unwrap();
    assert!(page.contains("<svg") && page.contains("first-contact") && page.contains("</html>"));
    assert_clean(&place);
}

#[test]
fn with_a_pack_a_packed_start_is_measured() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let Some(registry) = served(&place) else {
        return;
    };
    drop(place.mount_image(&registry.image(), &[]));
    place.ok(&["-q", "publish", &registry.image()]);
    let words = ["--runs", "1", "--modes", "packed"];
    let output = bench(&place, &registry.image(), &words, READS);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("packed") && text.contains("SPREAD"), "{text}");
    assert_clean(&place);
}

#[test]
fn what_cannot_be_measured_is_one_line_and_leaves_nothing() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let Some(registry) = served(&place) else {
        return;
    };
    let image = registry.image();
    let warm = ["--runs", "1", "--modes", "warm"];
    let failed = bench(&place, &image, &warm, &["/bin/busybox", "false"]);
    let wrong = bench(&place, &image, &["--report", "x.png"], READS);
    registry.control.unplugged.store(true, SeqCst);
    let away = bench(&place, &image, &warm, READS);
    for output in [failed, wrong, away] {
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    assert_clean(&place);
}
