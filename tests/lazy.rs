//! Lazy mounts from a registry: what is fetched, who waits, and what happens without a network.
#![allow(
    clippy::unwrap_used,
    clippy::type_complexity,
    clippy::print_stderr,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a test"
)]

#[path = "support/all.rs"]
mod support;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use flate2::write::GzEncoder;
use rsmount::oci::Digest;
use support::layout::{self, DIR, FILE, Layer, Pack};
use support::place::{Mounted, Place, can_mount};
use support::registry::Registry;

/// `n` mebibytes that hardly compress, different for each `seed`.
fn noise(n: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut out = Vec::with_capacity(n << 20);
    while out.len() < n << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out
}

fn served(pack: Pack) -> (Place, Registry) {
    let place = Place::new();
    let layer = Layer::new()
        .dir("d", DIR)
        .file("d/a", FILE, &noise(6, 1))
        .file("d/b", FILE, &noise(6, 2))
        .file("small", FILE, b"small");
    layout::write(&place.path("image"), &[layer.tar()], pack);
    let registry = Registry::serve(place.path("image"));
    (place, registry)
}

fn mount<'a>(place: &'a Place, registry: &Registry, options: &[&str]) -> Mounted<'a> {
    place.mount_image(&registry.image(), options)
}

#[test]
fn first_contact_fetches_each_byte_once_and_a_second_mount_none() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served(Pack::Gzip);
    drop(mount(&place, &registry, &[]));
    let size: u64 = std::fs::read_dir(place.path("image/blobs/sha256"))
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len())
        .sum();
    assert!(registry.control.blob_bytes.load(SeqCst) <= size);
    let requests = registry.control.requests.load(SeqCst);
    registry.control.unplugged.store(true, SeqCst);
    let mounted = mount(&place, &registry, &[]);
    assert_eq!(std::fs::read(mounted.path("d/a")).unwrap(), noise(6, 1));
    assert_eq!(registry.control.requests.load(SeqCst), requests);
    drop(mounted);
    drop(mount(&place, &registry, &["--offline"]));
}

#[test]
fn concurrent_readers_of_a_span_share_one_request() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served(Pack::Plain);
    drop(mount(&place, &registry, &[]));
    place.ok(&["cache", "prune", "--data"]);
    let mounted = mount(&place, &registry, &[]);
    let before = registry.control.blob_requests.load(SeqCst);
    registry.control.held.store(true, SeqCst);
    let path = mounted.path("d/a");
    let readers: Vec<_> = (0..20)
        .map(|n| {
            let file = File::open(&path).unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                file.read_exact_at(&mut buffer, n * 8192).unwrap();
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    registry.control.held.store(false, SeqCst);
    readers.into_iter().for_each(|r| r.join().unwrap());
    let asked = registry.control.blob_requests.load(SeqCst) - before;
    assert!(
        (1..=2).contains(&asked),
        "{asked} requests for one span (and its neighbour)"
    );
}

#[test]
fn waiting_readers_do_not_slow_reads_of_present_bytes() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served(Pack::Plain);
    drop(mount(&place, &registry, &[]));
    place.ok(&["cache", "prune", "--data"]);
    let mounted = mount(&place, &registry, &[]);
    let mut present = vec![0; 64 << 10];
    let b = File::open(mounted.path("d/b")).unwrap();
    // All of `b` is present, and none of it in the page cache.
    assert!(std::fs::read(mounted.path("d/b")).unwrap() == noise(6, 2));
    rustix::fs::fadvise(&b, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let near_end = 5 << 20;
    registry.control.held.store(true, SeqCst);
    let a = std::sync::Arc::new(File::open(mounted.path("d/a")).unwrap());
    let waiting: Vec<_> = (0..1000)
        .map(|n| {
            let a = a.clone();
            let read = move || a.read_exact_at(&mut [0; 16], n * 4096).unwrap();
            std::thread::Builder::new()
                .stack_size(64 << 10)
                .spawn(read)
                .unwrap()
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let mut times = Vec::new();
    for n in 0..10 {
        let start = Instant::now();
        b.read_exact_at(&mut present, near_end + n * (64 << 10))
            .unwrap();
        times.push(start.elapsed());
    }
    registry.control.held.store(false, SeqCst);
    waiting.into_iter().for_each(|w| w.join().unwrap());
    times.sort();
    // The machine may be busy: the median says whether present bytes queue behind absent ones.
    assert!(times[5] < Duration::from_millis(10), "{times:?}");
}

#[test]
fn an_outage_is_waited_for_or_ends_in_an_error_as_asked() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served(Pack::Gzip);
    drop(mount(&place, &registry, &[]));
    place.ok(&["cache", "prune", "--data"]);
    registry.control.unplugged.store(true, SeqCst);
    let mounted = mount(&place, &registry, &["--on-outage", "1"]);
    let mut buffer = [0; 4096];
    let file = File::open(mounted.path("d/a")).unwrap();
    let failed = file.read_exact_at(&mut buffer, 0).unwrap_err();
    assert_eq!(
        failed.raw_os_error(),
        Some(rustix::io::Errno::IO.raw_os_error())
    );
    drop((file, mounted));
    let mounted = mount(&place, &registry, &[]);
    let file = File::open(mounted.path("d/a")).unwrap();
    let reader = std::thread::spawn(move || file.read_exact_at(&mut [0; 4096], 0));
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!reader.is_finished());
    registry.control.unplugged.store(false, SeqCst);
    reader.join().unwrap().unwrap();
}

#[test]
fn damaged_cache_files_never_give_wrong_bytes() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served(Pack::Gzip);
    drop(mount(&place, &registry, &[]));
    let layers = place.path("cache/v1/layers/sha256");
    let layer = std::fs::read_dir(layers)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let data = File::options()
        .write(true)
        .open(layer.join("pages/data"))
        .unwrap();
    data.write_all_at(b"flipped", 1 << 20).unwrap();
    data.write_all_at(&[0; 8192], 3 << 20).unwrap();
    drop(data);
    let mounted = mount(&place, &registry, &[]);
    assert!(std::fs::read(mounted.path("d/a")).unwrap() == noise(6, 1));
    assert!(std::fs::read(mounted.path("d/b")).unwrap() == noise(6, 2));
    assert!(
        place.stats()["fetched_bytes"].as_u64().unwrap() > 0,
        "damage was fetched again"
    );
}

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < deadline, "not {what} in 30 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_layer_that_has_become_whole_is_verified_once_and_marked() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served(Pack::Gzip);
    let is_verified = || place.stats()["layers"][0]["verified"] == true;
    let kept = || -> serde_json::Value {
        let shown = place.ok(&["cache", "du", "--json"]);
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        shown["layers"][0]["verified"].clone()
    };
    let mounted = mount(&place, &registry, &[]);
    assert!(
        is_verified(),
        "it streamed past, and its digests were right"
    );
    drop(mounted);
    place.ok(&["cache", "prune", "--data"]);
    assert_eq!(kept(), false);

    let mounted = mount(&place, &registry, &["--fill", "never"]);
    std::fs::read(mounted.path("d/a")).unwrap();
    assert!(!is_verified());
    drop(mounted);
    let mounted = mount(&place, &registry, &["--fill", "now"]);
    wait_until("verified", is_verified);
    assert_eq!(kept(), true);
    drop(mounted);

    // The mark stays, and what is damaged after it is found by whoever reads it, and takes it away.
    let mounted = mount(&place, &registry, &["--offline"]);
    assert!(is_verified());
    drop(mounted);
    let layers = std::fs::read_dir(place.path("cache/v1/layers/sha256"));
    let layer = layers.unwrap().next().unwrap().unwrap().path();
    let data = File::options().write(true).open(layer.join("pages/data"));
    data.unwrap().write_all_at(b"flipped", 1 << 20).unwrap();
    let mounted = mount(&place, &registry, &["--engine", "fuse", "--fill", "never"]);
    registry.control.held.store(true, SeqCst);
    let path = mounted.path("d/a");
    let reader = std::thread::spawn(move || std::fs::read(path).unwrap());
    wait_until("found", || !is_verified());
    registry.control.held.store(false, SeqCst);
    assert!(reader.join().unwrap() == noise(6, 1));
    wait_until("whole and verified again", is_verified);
}

/// Files of which a start reads a little, in a layer that is otherwise cold.
fn sparse_start(pack: Pack) -> (Place, Registry) {
    let place = Place::new();
    let mut layer = Layer::new().dir("d", DIR);
    for n in 0..12 {
        layer = layer.file(&format!("d/{n}"), FILE, &text(n));
    }
    let tar = layer.tar();
    layout::write_spoilt(
        &place.path("image"),
        std::slice::from_ref(&tar),
        pack,
        &|parts| {
            if pack == Pack::Gzip {
                // As everybody compresses; the fastest level makes one block of everything.
                let mut gz = GzEncoder::new(Vec::new(), flate2::Compression::default());
                gz.write_all(&tar).unwrap();
                parts.blobs = vec![gz.finish().unwrap()];
                parts.layer_digests = vec![Digest::of(&parts.blobs[0]).to_string()];
                parts.layer_sizes = vec![parts.blobs[0].len() as u64];
            }
        },
    );
    let registry = Registry::serve(place.path("image"));
    (place, registry)
}

/// A megabyte of words that compress, different for each `seed`.
fn text(seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let word = |_| format!("{} ", random.u32(..4000));
    (0..300_000).map(word).collect::<String>().into_bytes()[..1 << 20].to_vec()
}

fn read_some(mounted: &Mounted<'_>) {
    for n in [2, 5, 7, 11] {
        let file = File::open(mounted.path(&format!("d/{n}"))).unwrap();
        let mut buffer = [0; 8192];
        file.read_exact_at(&mut buffer, 400_000 / 4096 * 4096)
            .unwrap();
        assert!(text(n)[400_000 / 4096 * 4096..][..8192] == buffer);
    }
}

/// Ends a mount, and waits until its worker has kept what it learned.
fn end(place: &Place, mounted: Mounted<'_>) {
    let shown = place.ok(&["ps", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let worker = format!("/proc/{}", shown[0]["pid"]);
    drop(mounted);
    while std::path::Path::new(&worker).exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_one_start_touched_comes_to_the_next_before_it_asks_and_little_else() {
    if !can_mount() {
        return;
    }
    for pack in [Pack::Gzip, Pack::Plain] {
        let (place, registry) = sparse_start(pack);
        // What streams past teaches where blocks begin; the start, what of it is hot.
        let mounted = mount(&place, &registry, &[]);
        read_some(&mounted);
        end(&place, mounted);
        place.ok(&["cache", "prune", "--data"]);

        let before = registry.control.blob_bytes.load(SeqCst);
        let mounted = mount(&place, &registry, &["--fill", "never"]);
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut last = 0;
        // Nobody has asked for anything: it comes by itself, and ends.
        while last == 0 || registry.control.blob_bytes.load(SeqCst) - before > last {
            assert!(Instant::now() < deadline, "nothing comes by itself");
            last = registry.control.blob_bytes.load(SeqCst) - before;
            std::thread::sleep(Duration::from_millis(300));
        }
        read_some(&mounted);
        let stats = place.stats();
        assert_eq!(stats["stalled_reads"], 0, "{pack:?}: {stats}");
        // 4 x 8 KiB, read ahead to 16 KiB, between blocks of up to 64 KiB; not 4 x 1 MiB.
        let most = 4 * if pack == Pack::Plain {
            32 << 10
        } else {
            100 << 10
        };
        let fetched = registry.control.blob_bytes.load(SeqCst) - before;
        assert!(fetched <= most, "{pack:?}: {fetched} bytes, not {most}");
    }
}

#[test]
fn two_mounts_of_one_cache_share_a_request() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served(Pack::Plain);
    drop(mount(&place, &registry, &[]));
    place.ok(&["cache", "prune", "--data"]);
    let second = place.path("second");
    std::fs::create_dir(&second).unwrap();
    let first = mount(&place, &registry, &["--fill", "never"]);
    let image = registry.image();
    let second = second.to_str().unwrap();
    place.ok(&["-q", "--fill", "never", &image, second]);
    let before = registry.control.blob_requests.load(SeqCst);
    registry.control.held.store(true, SeqCst);
    let roots = [first.path(""), second.into()];
    let readers = roots.map(|root| {
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            let file = File::open(root.join("d/a")).unwrap();
            file.read_exact_at(&mut buffer, 320 << 10).unwrap();
            buffer
        })
    });
    std::thread::sleep(Duration::from_millis(300));
    registry.control.held.store(false, SeqCst);
    for reader in readers {
        assert!(reader.join().unwrap() == noise(6, 1)[320 << 10..][..4096]);
    }
    let asked = registry.control.blob_requests.load(SeqCst) - before;
    place.ok(&["umount", second]);
    assert_eq!(asked, 1, "requests for one span in two processes");
}

#[test]
fn what_is_cheaper_to_fetch_whole_than_piece_by_piece_is() {
    if !can_mount() {
        return;
    }
    // A start that is known waits for what is not, and the rest may stay away.
    for known in [false, true] {
        let (place, registry) = sparse_start(Pack::Gzip);
        let mounted = mount(&place, &registry, &[]);
        if known {
            read_some(&mounted);
        }
        end(&place, mounted);
        place.ok(&["cache", "prune", "--data"]);
        // 40 round trips of 150 ms are longer than 6 MB take at 100 Mbit/s.
        registry.control.count_steps(150);
        let mounted = mount(&place, &registry, &[]);
        let elsewhere = File::open(mounted.path("d/9")).unwrap();
        elsewhere.read_exact_at(&mut [0; 16], 300_000).unwrap();
        let is_whole = || {
            let layer = &place.stats()["layers"][0];
            layer["present_bytes"] == layer["address_bytes"]
        };
        // Long before a fill would begin because it is quiet.
        let deadline = Instant::now() + Duration::from_secs(if known { 3 } else { 8 });
        while Instant::now() < deadline && !is_whole() {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(is_whole(), !known, "known: {known}");
        drop((elsewhere, mounted));
    }
}
