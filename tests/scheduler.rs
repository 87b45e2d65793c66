//! The order of fetching: demand, then what a profile names, then the background fill. By what was
//! asked of a registry and when, not by how long it took.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../benches/support/link.rs"]
#[allow(
    dead_code,
    clippy::expect_used,
    reason = "the benchmarks use the rest of it"
)]
mod link;
#[path = "support/all.rs"]
mod support;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use link::Link;
use support::layout::{self, DIR, FILE, Layer, Pack};
use support::place::{Mounted, Place, can_mount};
use support::registry::{Asked, Registry};

/// Of the slow link.
const MEGABITS: f64 = 40.0;

/// What such a link brings in 50 ms.
const IN_50_MS: u64 = (MEGABITS * 1e6 / 8.0 / 20.0) as u64;

/// As long as requests may take to arrive that should not come at all.
const SETTLED: Duration = Duration::from_millis(500);

/// Files of a megabyte each.
const FILES: u64 = 16;

/// Bytes that do not compress, different for each `seed`.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| random.u8(..)).collect()
}

/// An image of the files `d/0` to `d/15`, not compressed, and what serves it.
struct Served {
    place: Place,
    registry: Registry,
    blob: Vec<u8>,
    digest: String,
}

impl Served {
    fn new() -> Served {
        let place = Place::new();
        let mut layer = Layer::new().dir("d", DIR);
        for n in 0..FILES {
            layer = layer.file(&format!("d/{n}"), FILE, &noise(1 << 20, n));
        }
        let blob = layer.tar();
        layout::write(
            &place.path("image"),
            std::slice::from_ref(&blob),
            Pack::Plain,
        );
        let registry = Registry::serve(place.path("image"));
        let digest = rsmount::oci::Digest::of(&blob).to_string();
        Served {
            place,
            registry,
            blob,
            digest,
        }
    }

    /// A start that reads what `read` does, and teaches it; then nothing is here but that.
    fn teach(&self, read: impl FnOnce(&Mounted<'_>)) {
        let mounted = self.mount(&self.registry.image(), "never");
        read(&mounted);
        let shown = self.place.ok(&["ps", "--json"]);
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        let worker = format!("/proc/{}", shown[0]["pid"]);
        drop(mounted);
        wait_until("ended", || !std::path::Path::new(&worker).exists());
        self.place.ok(&["cache", "prune", "--data"]);
    }

    fn mount(&self, image: &str, fill: &str) -> Mounted<'_> {
        self.place.mount_image(image, &["--fill", fill])
    }

    /// The image's name through a slow link.
    fn slow(&self) -> String {
        let name = self.registry.image();
        let (host, path) = name.split_once('/').unwrap();
        let link = Link::new(host, Duration::from_millis(20), MEGABITS);
        format!("{}/{path}", link.address())
    }

    /// Requests for the layer, after the `before` that there were.
    fn asked(&self, before: usize) -> Vec<Asked> {
        let mut asked = self.registry.control.asked();
        asked.retain(|a| a.digest == self.digest);
        asked.split_off(before)
    }

    /// The bytes of the blob that file `n` is.
    fn place_of(&self, n: u64) -> Range<u64> {
        let begin = noise(64, n);
        let start = self.blob.windows(64).position(|w| w == begin).unwrap() as u64;
        start..start + (1 << 20)
    }

    fn hold(&self, range: Option<Range<u64>>) {
        *self.registry.control.held_range.lock().unwrap() = range;
    }

    fn is_whole(&self) -> bool {
        let layer = &self.place.stats()["layers"][0];
        layer["present_bytes"] == layer["address_bytes"]
    }
}

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < deadline, "not {what} in 60 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A reader of some bytes in the middle of file `n`.
fn reader(mounted: &Mounted<'_>, n: u64) -> JoinHandle<()> {
    let path = mounted.path(&format!("d/{n}"));
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        let file = File::open(path).unwrap();
        file.read_exact_at(&mut bytes, 512 << 10).unwrap();
        assert!(bytes == noise(1 << 20, n)[512 << 10..][..4096]);
    })
}

/// The middle of a file, where [`reader`] reads.
fn middle(file: &Range<u64>) -> Range<u64> {
    let at = file.start + (512 << 10);
    at..at + 4096
}

fn lengths(asked: &[Asked]) -> Vec<u64> {
    asked.iter().map(|a| a.range.end - a.range.start).collect()
}

fn asks_for(asked: &[Asked], bytes: &Range<u64>) -> bool {
    let mut ranges = asked.iter().map(|a| &a.range);
    ranges.any(|r| r.start < bytes.end && bytes.start < r.end)
}

/// As many as `count` requests come, and no more.
fn assert_comes_to(served: &Served, before: usize, count: usize, what: &str) {
    wait_until(what, || served.asked(before).len() >= count);
    std::thread::sleep(SETTLED);
    assert_eq!(served.asked(before).len(), count, "{what}");
}

/// Once the link was measured, no request asks for more than comes in so long a time, but for what
/// measuring is off.
fn assert_little(asked: &[Asked], most: u64) {
    let mut later = lengths(&asked[asked.len() / 2..]);
    later.sort_unstable();
    let median = later[later.len() / 2];
    assert!(median <= most * 3 / 2, "{median}, not {most}: {later:?}");
    // On a busy machine a pause looks like a burst behind it.
    assert!(later[later.len() * 3 / 4] <= 3 * most, "{later:?}");
}

#[test]
fn a_fill_asks_for_little_and_for_nothing_while_a_reader_waits() {
    if !can_mount() {
        return;
    }
    let served = Served::new();
    served.teach(|_| ());
    let before = served.asked(0).len();
    let image = served.slow();
    let control = &served.registry.control;
    // The image's documents are not what is held.
    served.place.ok(&["inspect", &image]);
    control.held.store(true, SeqCst);
    let mounted = served.mount(&image, "now");
    assert_comes_to(&served, before, 2, "two at a time");

    let last = middle(&served.place_of(FILES - 1));
    let waiting = reader(&mounted, FILES - 1);
    wait_until("asked by the reader", || {
        asks_for(&served.asked(before), &last)
    });
    assert_eq!(served.asked(before).len(), 3);
    served.hold(Some(last));
    control.held.store(false, SeqCst);
    std::thread::sleep(SETTLED);
    assert_comes_to(&served, before, 3, "nothing more while a reader waits");
    assert!(!waiting.is_finished() && !served.is_whole());

    served.hold(None);
    waiting.join().unwrap();
    wait_until("whole", || served.is_whole());
    assert_little(&served.asked(before), IN_50_MS);
}

#[test]
fn a_prefetch_asks_for_little_and_gives_way_to_what_it_does_not_know() {
    if !can_mount() {
        return;
    }
    let served = Served::new();
    // Every other file is read.
    served.teach(|mounted| {
        for n in (0..FILES).step_by(2) {
            std::fs::read(mounted.path(&format!("d/{n}"))).unwrap();
        }
    });
    let before = served.asked(0).len();
    let image = served.slow();
    let control = &served.registry.control;
    served.place.ok(&["inspect", &image]);
    control.held.store(true, SeqCst);
    let mounted = served.mount(&image, "now");
    // Also with `--fill now`: the profile comes before the fill.
    assert_comes_to(&served, before, 4, "four at a time");

    // What it has not come to yet is fetched for a reader at once, beside it.
    let foreseen = middle(&served.place_of(FILES - 2));
    assert!(!asks_for(&served.asked(before), &foreseen));
    let first = reader(&mounted, FILES - 2);
    wait_until("asked", || asks_for(&served.asked(before), &foreseen));
    // And so is what it does not know; then it asks for nothing.
    let unforeseen = middle(&served.place_of(FILES - 1));
    let second = reader(&mounted, FILES - 1);
    wait_until("asked", || asks_for(&served.asked(before), &unforeseen));
    let asked = served.asked(before).len();
    assert_eq!(asked, 6);
    served.hold(Some(unforeseen));
    control.held.store(false, SeqCst);
    first.join().unwrap();
    assert_comes_to(&served, before, asked, "nothing more while a reader waits");
    assert!(!second.is_finished());

    served.hold(None);
    second.join().unwrap();
    let wanted: Vec<_> = (0..FILES).step_by(2).map(|n| served.place_of(n)).collect();
    let came = |file: &Range<u64>| {
        let asked = served.asked(before);
        let part = |a: &Asked| {
            a.range
                .end
                .min(file.end)
                .saturating_sub(a.range.start.max(file.start))
        };
        asked.iter().map(part).sum::<u64>() >= (1 << 20) - 8192
    };
    wait_until("prefetched", || wanted.iter().all(&came));
    let asked = served.asked(before);
    wait_until("whole", || served.is_whole());
    // Half of what a fill's request asks for, because there are twice as many.
    assert_little(&asked, IN_50_MS / 2);
}
