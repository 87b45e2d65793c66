//! `rsmount why`: which file made a reader wait, what that cost, and what avoids it.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "support/all.rs"]
mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::layout::{self, DIR, FILE, Layer, Pack};
use support::place::{Mounted, Place, can_mount};
use support::registry::Registry;

/// Bytes that hardly compress.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| random.u8(..)).collect()
}

/// Two layers: `below/a` and `above/b`, 4 MiB each.
fn served(pack: Pack) -> (Place, Registry) {
    let place = Place::new();
    let below = Layer::new()
        .dir("below", DIR)
        .file("below/a", FILE, &noise(4 << 20, 1));
    let above = Layer::new()
        .dir("above", DIR)
        .file("above/b", FILE, &noise(4 << 20, 2));
    layout::write(&place.path("image"), &[below.tar(), above.tar()], pack);
    let registry = Registry::serve(place.path("image"));
    (place, registry)
}

fn why(place: &Place) -> Value {
    let said = place.ok(&["why", "--json", place.mnt().to_str().unwrap()]);
    serde_json::from_str(&said).unwrap()
}

/// A mount of an image that is known, with nothing of its data here.
fn known<'a>(place: &'a Place, registry: &Registry) -> Mounted<'a> {
    drop(place.mount_image(&registry.image(), &[]));
    place.ok(&["cache", "prune", "--data"]);
    place.mount_image(&registry.image(), &["--fill", "never"])
}

/// A reader, and a registry that gives it nothing.
fn read_held(mounted: &Mounted<'_>, registry: &Registry) -> JoinHandle<std::io::Result<()>> {
    registry.control.held.store(true, SeqCst);
    let file = File::open(mounted.path("above/b")).unwrap();
    std::thread::spawn(move || file.read_exact_at(&mut [0; 100], 1 << 20))
}

#[test]
fn a_wait_is_shown_with_its_file_its_span_and_its_cost() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served(Pack::Gzip);
    let mounted = known(&place, &registry);
    let mnt = place.mnt();
    let mnt = mnt.to_str().unwrap();
    assert_eq!(why(&place)["stalls"], serde_json::json!([]));
    assert!(place.ok(&["why", mnt]).contains("no reader has waited"));

    let reader = read_held(&mounted, &registry);
    std::thread::sleep(Duration::from_millis(200));
    registry.control.held.store(false, SeqCst);
    reader.join().unwrap().unwrap();

    let shown = why(&place);
    let wait = &shown["stalls"][0];
    assert_eq!(wait["path"], "/above/b", "{shown}");
    // EROFS reads whole pages of the layer, where a file begins at a multiple of 512.
    let offset = wait["offset"].as_u64().unwrap();
    assert!((offset..offset + 4096).contains(&(1 << 20)), "{wait}");
    assert!(wait["waited_us"].as_u64() >= Some(190_000), "{wait}");
    assert_eq!(wait["cause"], "asked");
    assert_eq!(wait["requests"], 1);
    // The span begins at most a mebibyte before, and is at most 128 KiB long.
    assert!((1..2 << 20).contains(&wait["bytes"].as_u64().unwrap()));
    assert!(wait["span_first"].as_u64() > Some(0));
    assert_eq!(wait["avoidable"], "publish");
    assert_eq!(wait["failed"], false);
    let layers = place.stats()["layers"].clone();
    assert_eq!(wait["layer"], layers[1]["digest"]);
    let text = place.ok(&["why", mnt]);
    assert!(
        text.contains("/above/b") && text.contains("rsmount publish"),
        "{text}"
    );

    // Neither a read from the kernel's cache nor one of present bytes is a wait.
    let before = why(&place)["stalled_reads"].clone();
    let again = File::open(mounted.path("above/b")).unwrap();
    again.read_exact_at(&mut [0; 100], 1 << 20).unwrap();
    rustix::fs::fadvise(&again, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    again.read_exact_at(&mut [0; 100], 1 << 20).unwrap();
    assert_eq!(why(&place)["stalled_reads"], before);
}

#[test]
fn a_second_start_says_that_the_first_had_taught_it() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served(Pack::Plain);
    let read = |name: &str| {
        let file = File::open(place.mnt().join(name)).unwrap();
        file.read_exact_at(&mut [0; 4096], 0).unwrap();
    };
    let mounted = place.mount_image(&registry.image(), &["--fill", "never"]);
    read("below/a");
    drop(mounted);
    place.ok(&["cache", "prune", "--data"]);
    // What the first has taught is on its way when the reader comes, and has not come.
    registry.control.held.store(true, SeqCst);
    let mounted = place.mount_image(&registry.image(), &["--fill", "never"]);
    std::thread::scope(|scope| {
        // The scope waits for the reader, also when this fails.
        let _released = Released(&registry);
        scope.spawn(|| read("below/a"));
        why_until(&place, "somebody waits", |why| {
            why["waiting"][0].is_object()
        });
    });
    let shown = why(&place);
    assert_eq!(shown["stalls"][0]["path"], "/below/a", "{shown}");
    assert_eq!(shown["stalls"][0]["avoidable"], "profile_on_its_way");
    drop(mounted);
}

#[test]
fn a_read_that_failed_is_shown_as_one() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served(Pack::Gzip);
    drop(place.mount_image(&registry.image(), &[]));
    place.ok(&["cache", "prune", "--data"]);
    registry.control.unplugged.store(true, SeqCst);
    let mounted = place.mount_image(&registry.image(), &["--on-outage", "1"]);
    let file = File::open(mounted.path("below/a")).unwrap();
    file.read_exact_at(&mut [0; 100], 0).unwrap_err();
    let shown = why(&place);
    assert_eq!(shown["stalls"][0]["failed"], true, "{shown}");
    registry.control.unplugged.store(false, SeqCst);
}

/// Lets a registry that is held go on when dropped.
struct Released<'a>(&'a Registry);

impl Drop for Released<'_> {
    fn drop(&mut self) {
        self.0.control.held.store(false, SeqCst);
    }
}

/// Asks until `is` holds of what it hears.
fn why_until(place: &Place, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let shown = why(place);
        if is(&shown) {
            return shown;
        }
        assert!(Instant::now() < deadline, "never {what}: {shown}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_wait_that_goes_on_is_shown_with_what_is_the_matter() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served(Pack::Gzip);
    let mounted = known(&place, &registry);
    let mnt = place.mnt();
    let mnt = mnt.to_str().unwrap();
    assert_eq!(why(&place)["waiting"], serde_json::json!([]));

    let reader = read_held(&mounted, &registry);
    let shown = why_until(&place, "somebody waits", |why| {
        why["waiting"][0].is_object()
    });
    let wait = &shown["waiting"][0];
    assert_eq!(wait["path"], "/above/b", "{shown}");
    let offset = wait["offset"].as_u64().unwrap();
    assert!((offset..offset + 4096).contains(&(1 << 20)), "{wait}");
    assert_eq!(shown["stalls"], serde_json::json!([]), "{shown}");
    // It goes on, and nothing comes.
    let longer = why_until(&place, "silent", |why| why["trouble"].is_string());
    assert!(longer["waiting"][0]["waited_us"].as_u64() > wait["waited_us"].as_u64());
    assert_eq!(longer["trouble"], "the source gives nothing");
    let stats = place.stats();
    assert_eq!(stats["state"], "stalled", "{stats}");
    // A read ahead may have joined the one.
    assert!(stats["waiting_reads"].as_u64() >= Some(1), "{stats}");
    assert!(
        stats["waiting_longest_ms"].as_u64() >= Some(1000),
        "{stats}"
    );
    assert_eq!(stats["stalled_reads"], 0, "{stats}");
    let text = place.ok(&["why", mnt]);
    let said = text.lines().next().unwrap();
    assert!(
        said.contains("for the network now (the source gives nothing)"),
        "{text}"
    );
    assert!(text.contains("/above/b"), "{text}");
    assert!(place.ok(&["stats", mnt]).contains("by now"));

    // What is the matter is said in the words of who was asked.
    registry.control.unplugged.store(true, SeqCst);
    registry.control.held.store(false, SeqCst);
    let other = File::open(mounted.path("below/a")).unwrap();
    let other = std::thread::spawn(move || other.read_exact_at(&mut [0; 100], 0));
    let named = |why: &Value| {
        let trouble = why["trouble"].as_str();
        trouble.is_some_and(|text| text != "the source gives nothing")
    };
    let shown = why_until(&place, "an outage with a cause", named);
    let waits = shown["waiting"].as_array().unwrap();
    assert!(waits.iter().any(|w| w["path"] == "/below/a"), "{shown}");
    registry.control.unplugged.store(false, SeqCst);
    for reader in [reader, other] {
        reader.join().unwrap().unwrap();
    }
    let shown = why_until(&place, "done", |why| {
        why["waiting"] == serde_json::json!([])
    });
    assert_eq!(shown["trouble"], Value::Null, "{shown}");
    assert!(!shown["stalls"].as_array().unwrap().is_empty());
    assert_eq!(place.stats()["waiting_reads"], 0);
}

#[test]
fn without_a_mount_there_is_one_line() {
    let place = Place::new();
    let output = place.run(&["why", place.mnt().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("no image is mounted here"), "{said}");
}
