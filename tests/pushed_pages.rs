//! What earlier starts touched is in the kernel's page cache before anybody asks for it.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "a test")]

#[path = "support/all.rs"]
mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::layout::{self, FILE, Layer, Pack};
use support::place::{Mounted, Place, can_mount};

/// Not a multiple of the page size, so that the last page is a short one.
const BYTES: usize = (1 << 20) + 700;

/// What each start reads of the file: its middle and its end.
const READ: [std::ops::Range<usize>; 2] = [262_144..327_680, 1_000_000..BYTES];

fn content() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    (0..BYTES).map(|_| random.u8(1..)).collect()
}

fn image(place: &Place, content: &[u8]) -> String {
    let layer = Layer::new()
        .file(
            "before",
            FILE,
            b"so that pages of the file are not pages of the layer",
        )
        .file("file", FILE, content);
    layout::write(&place.path("image"), &[layer.tar()], Pack::Gzip);
    format!("oci:{}", place.path("image").display())
}

fn read(mounted: &Mounted<'_>, content: &[u8]) {
    let file = File::open(mounted.path("file")).unwrap();
    for range in READ {
        let mut buffer = vec![0; range.len()];
        file.read_exact_at(&mut buffer, range.start as u64).unwrap();
        assert!(buffer == content[range.clone()], "{range:?}");
    }
}

/// Ends a mount, and waits until its worker has kept what it learned.
fn end(place: &Place, mounted: Mounted<'_>) {
    let shown: Value = serde_json::from_str(&place.ok(&["ps", "--json"])).unwrap();
    let worker = format!("/proc/{}", shown[0]["pid"]);
    drop(mounted);
    while Path::new(&worker).exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until no more is pushed; gives how many bytes were.
fn pushed(place: &Place) -> u64 {
    let bytes = || place.stats()["pushed_bytes"].as_u64().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut last = 0;
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let now = bytes();
        if now > 0 && now == last {
            return now;
        }
        assert!(Instant::now() < deadline, "nothing is pushed");
        last = now;
    }
}

#[test]
fn what_a_start_has_read_the_next_one_does_not_ask_for() {
    if !can_mount() {
        return;
    }
    let (place, content) = (Place::new(), content());
    let image = image(&place, &content);
    let options = ["--engine", "fuse"];
    let first = place.mount_image(&image, &options);
    read(&first, &content);
    assert_eq!(place.stats()["pushed_bytes"], 0);
    assert!(place.stats()["reads"].as_u64() > Some(0));
    end(&place, first);

    let second = place.mount_image(&image, &options);
    assert_eq!(place.stats()["pushed_bytes"], 0, "the kernel knows no file");
    second.path("file").metadata().unwrap();
    let bytes = pushed(&place);
    // What was read, its pages whole, and what was read ahead.
    let wanted: usize = READ.iter().map(|range| range.len()).sum();
    assert!((wanted as u64..BYTES as u64).contains(&bytes), "{bytes}");
    read(&second, &content);
    assert_eq!(place.stats()["reads"], 0, "{}", place.stats());
    // The rest is as it was, and so is the length.
    assert!(std::fs::read(second.path("file")).unwrap() == content);
    end(&place, second);

    // A start that asks for nothing, because it was pushed, does not forget it.
    for _ in 0..4 {
        let next = place.mount_image(&image, &options);
        next.path("file").metadata().unwrap();
        assert!(pushed(&place) >= wanted as u64);
        read(&next, &content);
        end(&place, next);
    }
}

#[test]
fn damaged_pages_are_not_pushed() {
    if !can_mount() {
        return;
    }
    let (place, content) = (Place::new(), content());
    let image = image(&place, &content);
    let first = place.mount_image(&image, &["--engine", "fuse"]);
    read(&first, &content);
    end(&place, first);
    // The cache's file loses what was read.
    let data = find(&place.path("cache"), "data").unwrap();
    let file = File::options().write(true).open(data).unwrap();
    file.write_all_at(&vec![0; READ[0].len()], READ[0].start as u64 + 2048)
        .unwrap();
    let second = place.mount_image(&image, &["--engine", "fuse"]);
    second.path("file").metadata().unwrap();
    pushed(&place);
    read(&second, &content);
    assert!(place.stats()["reads"].as_u64() > Some(0));
    assert!(std::fs::read(second.path("file")).unwrap() == content);
}

/// A file of this name below `directory`.
fn find(directory: &Path, name: &str) -> Option<std::path::PathBuf> {
    std::fs::read_dir(directory).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => find(&path, name),
            false => path.ends_with(name).then_some(path),
        }
    })
}
