//! The process that serves a mount is killed, or replaced by a newer one: no reader sees an error,
//! every byte is right. With the keeper dead as well, reads fail and nothing hangs.
#![allow(
    clippy::unwrap_used,
    clippy::type_complexity,
    clippy::print_stderr,
    clippy::print_stdout,
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
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::layout::{self, DIR, FILE, Layer, Pack};
use support::place::{Place, can_mount, long, private_kib, sanitized, skip};
use support::registry::Registry;

const MIB: usize = 1 << 20;
const FILES: u64 = 6;
const FILE_BYTES: usize = 2 * MIB;

/// Bytes that hardly compress, different for each `seed`.
fn noise(seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; FILE_BYTES];
    random.fill(&mut bytes);
    bytes
}

fn served() -> (Place, Registry) {
    let place = Place::new();
    let mut layer = Layer::new().dir("d", DIR);
    for n in 0..FILES {
        layer = layer.file(&format!("d/{n}"), FILE, &noise(n));
    }
    layout::write(&place.path("image"), &[layer.tar()], Pack::Gzip);
    let registry = Registry::serve(place.path("image"));
    (place, registry)
}

/// The record of the one mount there is, as soon as there is one.
fn record(place: &Place) -> Value {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let records: Vec<Value> = std::fs::read_dir(place.path("run"))
            .unwrap()
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let json = path.extension().is_some_and(|e| e == "json");
                serde_json::from_slice(&std::fs::read(path).ok().filter(|_| json)?).ok()
            })
            .collect();
        if let [record] = &records[..] {
            return record.clone();
        }
        let log = || std::fs::read_to_string(place.path("log")).unwrap();
        assert!(Instant::now() < deadline, "no record\n{}", log());
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn kill(how: &str, pid: &Value) {
    let status = Command::new("kill").args([how, &pid.to_string()]).status();
    assert!(status.unwrap().success());
}

/// Waits for a record of another process than `before`, and gives it.
fn successor(place: &Place, before: &Value) -> Value {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let now = record(place);
        if now["pid"] != before["pid"] {
            return now;
        }
        let log = || std::fs::read_to_string(place.path("log")).unwrap();
        assert!(Instant::now() < deadline, "nobody took over\n{}", log());
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn uncached(file: &File) {
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// Threads that read random pieces past the page cache and compare every byte.
struct Readers {
    stop: Arc<AtomicBool>,
    /// Microseconds of the longest read since it was last taken.
    longest: Arc<AtomicU64>,
    threads: Vec<JoinHandle<u64>>,
}

impl Readers {
    fn start(directory: &Path, count: u64) -> Readers {
        let stop = Arc::new(AtomicBool::new(false));
        let longest = Arc::new(AtomicU64::new(0));
        let thread = |seed| {
            let (stop, longest) = (stop.clone(), longest.clone());
            let directory = directory.to_owned();
            std::thread::spawn(move || read_on(&directory, seed, &stop, &longest))
        };
        Readers {
            threads: (0..count).map(thread).collect(),
            stop,
            longest,
        }
    }

    /// Ends them; how many pieces they have read.
    fn finish(self) -> u64 {
        self.stop.store(true, SeqCst);
        let pieces = self.threads.into_iter().map(|t| t.join().unwrap());
        pieces.sum()
    }
}

fn read_on(directory: &Path, seed: u64, stop: &AtomicBool, longest: &AtomicU64) -> u64 {
    let mut random = fastrand::Rng::with_seed(seed);
    let contents: Vec<Vec<u8>> = (0..FILES).map(noise).collect();
    let open = |n| File::open(directory.join(format!("d/{n}"))).unwrap();
    // Half of them keep their files open over all that happens.
    let kept: Vec<File> = (0..FILES).map(open).collect();
    let mut buffer = vec![0; 64 << 10];
    let mut pieces = 0;
    while !stop.load(SeqCst) {
        let n = random.usize(0..contents.len());
        let fresh;
        let file = match seed % 2 {
            0 => &kept[n],
            _ => {
                fresh = open(n as u64);
                &fresh
            }
        };
        let len = random.usize(1..=buffer.len());
        let at = random.usize(0..=FILE_BYTES - len);
        uncached(file);
        let began = Instant::now();
        file.read_exact_at(&mut buffer[..len], at as u64)
            .unwrap_or_else(|e| panic!("reader {seed}: {e}"));
        let took = u64::try_from(began.elapsed().as_micros()).unwrap();
        longest.fetch_max(took, SeqCst);
        assert!(buffer[..len] == contents[n][at..at + len], "reader {seed}");
        pieces += 1;
    }
    pieces
}

/// Median and maximum, printed.
fn print_waits(what: &str, mut waits: Vec<u64>) {
    waits.sort_unstable();
    let ms = |us: u64| us as f64 / 1000.0;
    println!(
        "{what}: {} times; the longest read of each: median {:.1} ms, maximum {:.1} ms",
        waits.len(),
        ms(waits[waits.len() / 2]),
        ms(waits[waits.len() - 1]),
    );
}

/// That a keeper has little memory of its own.
fn assert_is_small(keeper: &Value) {
    let private = private_kib(keeper.as_u64().unwrap());
    println!("the keeper has {private} KiB of its own");
    if sanitized() {
        skip("the keeper's memory is a sanitizer's as well: it is not compared with its limit");
        return;
    }
    // Of which most is what the loader relocates in a program that was not optimized.
    assert!(private <= 4096, "the keeper has {private} KiB of its own");
}

#[test]
fn no_reader_notices_that_workers_are_killed_and_replaced() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    drop(place.mount_image(&registry.image(), &[]));
    place.ok(&["cache", "prune", "--data"]);
    let options = ["--cache-size", "8MiB"];
    let mounted = place.mount_image(&registry.image(), &options);
    let keeper = record(&place)["keeper"].clone();
    let descriptors = || {
        let held = std::fs::read_dir(format!("/proc/{keeper}/fd")).unwrap();
        held.count()
    };
    let (kills, upgrades) = if long() { (200, 20) } else { (10, 2) };
    let readers = Readers::start(&place.mnt(), 4);
    let mut random = fastrand::Rng::new();
    println!("seed {}", random.get_seed());
    let (mut killed, mut replaced) = (Vec::new(), Vec::new());
    let mut held = 0;
    for round in 0..kills + upgrades {
        std::thread::sleep(Duration::from_millis(random.u64(0..300)));
        let before = record(&place);
        readers.longest.store(0, SeqCst);
        if round % (kills / upgrades + 1) == 0 {
            let text = place.ok(&["upgrade", place.mnt().to_str().unwrap()]);
            assert!(text.contains("took over from"), "{text}");
            replaced.push(readers.longest.load(SeqCst));
        } else {
            kill("-9", &before["pid"]);
        }
        let after = successor(&place, &before);
        assert_eq!(after["keeper"], keeper);
        assert_eq!(after["since"], before["since"]);
        let listed: Value = serde_json::from_str(&place.ok(&["ps", "--json"])).unwrap();
        assert_eq!(listed[0]["pid"], after["pid"]);
        assert_eq!(place.stats()["image"], registry.image().as_str());
        if killed.len() + replaced.len() <= round {
            killed.push(readers.longest.load(SeqCst));
        }
        held = held.max(descriptors());
    }
    let pieces = readers.finish();
    assert!(pieces > 50, "{pieces} pieces were read");
    print_waits("killed", killed);
    print_waits("replaced", replaced);
    assert_eq!(descriptors(), held, "the keeper's descriptors stay as few");
    assert!(held < 16, "{held} descriptors");
    println!("{pieces} pieces read");
    assert_is_small(&keeper);
    drop(mounted);
    assert_eq!(place.leftovers(), 0);
    let deadline = Instant::now() + Duration::from_secs(10);
    while Path::new(&format!("/proc/{keeper}/fd/0")).exists() {
        assert!(Instant::now() < deadline, "the keeper goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn who_waits_for_bytes_gets_them_from_the_next_worker() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    drop(place.mount_image(&registry.image(), &[]));
    place.ok(&["cache", "prune", "--data"]);
    let mounted = place.mount_image(&registry.image(), &["--fill", "never"]);
    registry.control.held.store(true, SeqCst);
    let waiting: Vec<_> = (0..20_u64)
        .map(|n| {
            let file = File::open(mounted.path(&format!("d/{}", n % FILES))).unwrap();
            let at = n * 97 * 1024;
            std::thread::spawn(move || {
                let mut buffer = vec![0; 5000];
                file.read_exact_at(&mut buffer, at).unwrap();
                assert!(buffer == noise(n % FILES)[at as usize..at as usize + 5000]);
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    for _ in 0..2 {
        let before = record(&place);
        kill("-9", &before["pid"]);
        successor(&place, &before);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(waiting.iter().all(|w| !w.is_finished()));
    registry.control.held.store(false, SeqCst);
    waiting.into_iter().for_each(|w| w.join().unwrap());
}

#[test]
fn a_writable_mount_goes_on_and_its_throw_away_changes_end_with_it() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    let mounted = place.mount_image(&registry.image(), &["--tmp"]);
    let mut written = File::create(mounted.path("d/new")).unwrap();
    for part in ["one ", "two ", "three"] {
        written.write_all(part.as_bytes()).unwrap();
        let before = record(&place);
        kill("-9", &before["pid"]);
        let after = successor(&place, &before);
        assert_eq!(after["upper"], before["upper"]);
        let file = File::open(mounted.path("d/3")).unwrap();
        let mut buffer = vec![0; FILE_BYTES];
        uncached(&file);
        file.read_exact_at(&mut buffer, 0).unwrap();
        assert!(buffer == noise(3));
    }
    drop(written);
    assert_eq!(
        std::fs::read(mounted.path("d/new")).unwrap(),
        b"one two three"
    );
    let upper = PathBuf::from(record(&place)["upper"].as_str().unwrap());
    assert!(upper.exists());
    // A worker that somebody has taken over could have made it.
    let made = place.path("cache/rsmount");
    std::fs::copy(env!("CARGO_BIN_EXE_rsmount"), &made).unwrap();
    let mut upgrade = place.rsmount_at(&made);
    let refused = upgrade.args(["upgrade", "--all"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains("where workers may write"), "{said}");
    place.ok(&["upgrade", "--all", "--json"]);
    assert_eq!(
        std::fs::read(mounted.path("d/new")).unwrap(),
        b"one two three"
    );
    drop(mounted);
    assert!(!upper.exists());
    assert_eq!(place.leftovers(), 0);
}

#[test]
fn without_a_keeper_reads_fail_and_the_rest_is_cleaned_up() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    let mounted = place.mount_image(&registry.image(), &[]);
    let file = File::open(mounted.path("d/0")).unwrap();
    let alive = record(&place);
    kill("-9", &alive["keeper"]);
    // Its worker serves on.
    assert!(std::fs::read(mounted.path("d/1")).unwrap() == noise(1));
    let refused = place.run(&["upgrade", place.mnt().to_str().unwrap()]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("the keeper of this mount is gone"), "{said}");
    kill("-9", &alive["pid"]);
    std::thread::sleep(Duration::from_millis(200));
    let failed = file.read_exact_at(&mut [0; 16], 0).unwrap_err();
    let notconn = rustix::io::Errno::NOTCONN.raw_os_error();
    assert!(
        [
            Some(notconn),
            Some(rustix::io::Errno::CONNABORTED.raw_os_error()),
            // What EROFS makes of either.
            Some(rustix::io::Errno::IO.raw_os_error()),
        ]
        .contains(&failed.raw_os_error()),
        "{failed}"
    );
    let all: Value = serde_json::from_str(&place.ok(&["ps", "-a", "--json"])).unwrap();
    assert_eq!(all[0]["state"], "dead");
    let shown = place.run(&["ps"]);
    assert!(
        String::from_utf8_lossy(&shown.stderr).contains("umount"),
        "{shown:?}"
    );
    drop((file, mounted));
    assert_eq!(place.leftovers(), 0);
}

#[test]
fn what_nobody_can_take_over_fails_and_does_not_hang() {
    if !can_mount() {
        return;
    }
    let (place, _registry) = served();
    // EROFS would find the bytes in the kernel's cache of its device, which is below the file's.
    let mounted = place.mount("image", &["--engine", "fuse"]);
    let file = File::open(mounted.path("d/0")).unwrap();
    // From an archive that is gone: the cache knows all that is needed.
    std::fs::remove_dir_all(place.path("image")).unwrap();
    let before = record(&place);
    kill("-9", &before["pid"]);
    let after = successor(&place, &before);
    let mut buffer = vec![0; FILE_BYTES];
    uncached(&file);
    file.read_exact_at(&mut buffer, 0).unwrap();
    assert!(buffer == noise(0));
    // And now it does not.
    std::fs::remove_dir_all(place.path("cache")).unwrap();
    kill("-9", &after["pid"]);
    uncached(&file);
    let failed = file.read_exact_at(&mut buffer, 0);
    assert!(failed.is_err(), "bytes came from nowhere");
    drop((file, mounted));
}

#[test]
fn a_signal_to_the_keeper_ends_the_mount() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    let mounted = place.mount_image(&registry.image(), &[]);
    kill("-TERM", &record(&place)["keeper"]);
    let deadline = Instant::now() + Duration::from_secs(10);
    while place.leftovers() > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!place.is_mounted());
    assert_eq!(place.leftovers(), 0);
    drop(mounted);
}

#[test]
fn a_signal_that_comes_while_nobody_serves_ends_the_mount() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    for naps in [0, 1, 5, 20] {
        let mounted = place.mount_image(&registry.image(), &[]);
        let alive = record(&place);
        kill("-9", &alive["pid"]);
        std::thread::sleep(Duration::from_millis(naps));
        kill("-TERM", &alive["keeper"]);
        let deadline = Instant::now() + Duration::from_secs(10);
        while place.leftovers() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!place.is_mounted(), "after {naps} ms");
        assert_eq!(place.leftovers(), 0);
        drop(mounted);
    }
}

/// Files below `directory`.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap();
    let below = |path: PathBuf| match path.is_dir() {
        true => files_below(&path),
        false => vec![path],
    };
    entries.flat_map(|e| below(e.unwrap().path())).collect()
}

#[test]
fn a_tree_that_is_cut_short_while_it_is_in_use_is_made_anew() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    // More names than the pages that were read already hold.
    let mut layer = Layer::new();
    for n in 0..4000 {
        let directory = format!("d{n}");
        layer = layer.dir(&directory, DIR);
        layer = layer.file(&format!("{directory}/file"), FILE, directory.as_bytes());
    }
    layout::write(&place.path("image"), &[layer.tar()], Pack::Plain);
    let options = ["--engine", "fuse"];
    drop(place.mount("image", &options));
    // Now it is used from where it is kept.
    let mounted = place.mount("image", &options);
    let before = record(&place);
    let kept = files_below(&place.path("cache"));
    let is_tree = |path: &&PathBuf| path.to_str().unwrap().contains(".tree-");
    let tree: Vec<_> = kept.iter().filter(is_tree).collect();
    let [tree] = tree[..] else {
        panic!("{kept:?}");
    };
    File::options()
        .write(true)
        .open(tree)
        .unwrap()
        .set_len(0)
        .unwrap();
    for n in 0..4000 {
        let path = mounted.path(&format!("d{n}/file"));
        assert_eq!(std::fs::read_to_string(path).unwrap(), format!("d{n}"));
    }
    let after = successor(&place, &before);
    assert_ne!(after["pid"], before["pid"]);
    drop(mounted);
    // What was made anew is kept.
    let mounted = place.mount("image", &options);
    assert_eq!(std::fs::read_dir(mounted.path("")).unwrap().count(), 4000);
}
