//! Power loss: the cache lies on a file system that records every change (`tests/support/recorder.rs`),
//! is used in all the ways that change it, and is then rolled back to what a power cut at some moment
//! may have left: the changes up to there in order, or some of those that nobody had synced. From
//! each of these states the image is mounted again, and every node of its tree compared with the model
//! of what its layers say. `RSMOUNT_TEST_SEED` repeats a run's choices.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a test"
)]

#[path = "support/recorder.rs"]
mod recorder;
#[path = "support/all.rs"]
mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use recorder::{Change, Recorder};
use support::edge::{self, Layer};
use support::layout::{self, DIR, FILE, Pack};
use support::model::{self, Entry, Kind, Meta, Says};
use support::place::{Mounted, Place, can_mount, long};
use support::registry::Registry;
use support::seen::{self, Seen};

/// Files that are long enough for several spans.
const FILES: u64 = 6;
const FILE_BYTES: usize = 700_000;

fn noise(seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; FILE_BYTES];
    random.fill(&mut bytes);
    bytes
}

fn file_says(n: u64) -> Says {
    let bytes = noise(n);
    Says::Entry(Entry {
        path: format!("long/{n}").into_bytes(),
        kind: Kind::File(bytes.len() as u64, vec![(0, bytes)]),
        meta: meta(FILE),
    })
}

fn meta(of: layout::Meta) -> Meta {
    Meta {
        mode: of.mode,
        uid: 0,
        gid: 0,
        mtime: (i64::try_from(of.mtime).unwrap(), 0),
        xattrs: seen::Xattrs::new(),
    }
}

/// The layers of the image of edge cases (but what is long and empty), and one with long files above
/// them; and what they say.
fn image() -> (Vec<Vec<u8>>, Seen) {
    let edges = edge::image(|name| !name.contains("9 GiB"));
    let mut tars: Vec<_> = edges.iter().map(Layer::tar).collect();
    let mut says: Vec<Vec<Says>> = edges.into_iter().map(|layer| layer.says).collect();
    let mut layer = layout::Layer::new().dir("long", DIR);
    let mut said = vec![Says::Entry(Entry {
        path: b"long".to_vec(),
        kind: Kind::Directory,
        meta: meta(DIR),
    })];
    for n in 0..FILES {
        layer = layer.file(&format!("long/{n}"), FILE, &noise(n));
        said.push(file_says(n));
    }
    tars.push(layer.tar());
    says.push(said);
    (tars, model::merged(&says))
}

/// Reads pieces of the long files past the page cache.
fn read_pieces(place: &Place, random: &mut fastrand::Rng) {
    for _ in 0..12 {
        let n = random.u64(0..FILES);
        let file = File::open(place.mnt().join(format!("long/{n}"))).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let mut piece = vec![0; random.usize(1..60_000)];
        let at = random.usize(0..FILE_BYTES - piece.len());
        file.read_exact_at(&mut piece, at as u64).unwrap();
        assert!(piece == noise(n)[at..at + piece.len()]);
    }
}

/// Everything that changes a cache: a first contact, eviction, a profile, fetching by span, a fill until the
/// layers are whole (and, by the kernel engine, lent), a pack and its pages, pins, pruning, a note of
/// what the machine can do, an upper directory. Whether the kernel engine served what was whole.
fn live(place: &Place, registry: &Registry, engine: &str, random: &mut fastrand::Rng) -> bool {
    let (image, mnt) = (registry.image(), place.mnt());
    let mount = |options: &[&str]| {
        let engine = ["--engine", engine];
        place.mount_image(&image, &[options, &engine[..]].concat())
    };
    let mounted = mount(&["--fill", "never", "--cache-size", "1MiB"]);
    read_pieces(place, random);
    drop(mounted);
    place.ok(&["cache", "prune", "--data"]);
    let mounted = mount(&["--fill", "never"]);
    read_pieces(place, random);
    place.ok(&["-q", "publish", &image]);
    drop(mounted);
    let mounted = mount(&["--fill", "now"]);
    place.ok(&["cache", "pin", &image]);
    place.until_verified();
    read_pieces(place, random);
    let kernel = place.stats()["engine"] == "kernel";
    drop(mounted);
    place.ok(&["cache", "unpin", &image]);
    // Mounted whole, from what is kept; and written above.
    let upper = place.path("upper");
    let mounted = mount(&["--upper", upper.to_str().unwrap()]);
    std::fs::write(mnt.join("new"), b"new").unwrap();
    drop(mounted);
    place.ok(&["cache", "prune", "--data"]);
    // With a pack, from nothing.
    place.ok(&["cache", "prune", "--all"]);
    let mounted = mount(&["--fill", "never"]);
    read_pieces(place, random);
    drop(mounted);
    kernel
}

/// What is only true until the machine starts anew names the boot; here comes another one.
fn start_anew(directory: &Path) {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let (boot, next) = (boot.trim(), "11111111-2222-3333-4444-555555555555");
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            start_anew(&path);
            continue;
        }
        let may = path.ends_with("checked") || path.parent().unwrap().ends_with("notes");
        if let Some(text) = std::fs::read_to_string(&path).ok().filter(|_| may) {
            std::fs::write(&path, text.replace(boot, next)).unwrap();
        }
    }
}

fn kinds(changes: &[Change]) -> String {
    let count = |is: fn(&Change) -> bool| changes.iter().filter(|c| is(c)).count();
    let written: usize = changes
        .iter()
        .map(|c| match c {
            Change::Write { data, .. } => data.len(),
            _ => 0,
        })
        .sum();
    format!(
        "{} changes: {} writes of {written} bytes, {} punches, {} syncs",
        changes.len(),
        count(|c| matches!(c, Change::Write { .. })),
        count(|c| matches!(c, Change::Punch { .. })),
        count(|c| matches!(c, Change::Sync { .. })),
    )
}

fn seeded() -> (u64, fastrand::Rng) {
    let seed = std::env::var("RSMOUNT_TEST_SEED")
        .map_or_else(|_| fastrand::u64(..), |s| s.parse().unwrap());
    println!("seed {seed} (RSMOUNT_TEST_SEED)");
    (seed, fastrand::Rng::with_seed(seed))
}

fn rolled_back(engine: &str, pack: Pack) {
    if !can_mount() {
        return;
    }
    let (seed, mut random) = seeded();
    let (tars, expected) = image();
    let place = Place::new();
    layout::write(&place.path("image"), &tars, pack);
    let registry = Registry::serve(place.path("image"));
    let cache = place.path("cache");
    std::fs::create_dir(&cache).unwrap();
    let recorder = Recorder::mount(&cache);
    let kernel = live(&place, &registry, engine, &mut random);
    let changes = recorder.changes();
    drop(recorder);
    println!("{engine}, {pack:?}: {}", kinds(&changes));
    assert!(changes.iter().any(|c| matches!(c, Change::Punch { .. })));
    // The mark of a file that was lent to the kernel.
    let marked = |c: &Change| matches!(c, Change::Mode { mode, .. } if mode & 0o1000 != 0);
    let lent = changes.iter().any(marked);
    assert_eq!(lent, kernel, "whether a file was lent");
    let states = if long() { 400 } else { 12 };
    let (mut wrong, mut complete) = (Vec::new(), 0);
    for state in 0..states {
        let end = random.usize(0..=changes.len());
        let (how, files) = match state % 2 {
            0 => ("in order", recorder::prefix(&changes[..end])),
            _ => {
                let left = recorder::after_power_cut(&changes[..end], &mut random);
                ("in any order", left)
            }
        };
        let what = format!("{engine}, {pack:?}, seed {seed}, state {state}: {end} changes {how}");
        std::fs::remove_dir_all(&cache).unwrap();
        files.write_to(&cache);
        start_anew(&cache);
        let mnt = place.mnt();
        let options = ["-q", "--fill", "never", "--engine", engine];
        let output =
            place.run(&[&options[..], &[&registry.image(), mnt.to_str().unwrap()]].concat());
        if !output.status.success() {
            wrong.push(format!("{what}: not mounted: {output:?}"));
            continue;
        }
        let look = std::panic::catch_unwind(|| seen::look(&mnt));
        match look {
            Err(_) => wrong.push(format!("{what}: a read failed")),
            Ok(found) => {
                let all = seen::differences(&expected, &found);
                wrong.extend(all.iter().map(|d| format!("{what}: {d}")));
            }
        }
        complete += u32::from(place.stats()["fetched_bytes"] == 0);
        drop(Mounted::adopt(&place));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!(
        "{engine}, {pack:?}: {states} states ({complete} of them held all bytes), no refusal, \
         no wrong byte"
    );
}

#[test]
fn a_power_cut_leaves_nothing_wrong() {
    rolled_back("fuse", Pack::Gzip);
}

#[test]
fn a_power_cut_under_the_kernel_engine_leaves_nothing_wrong() {
    rolled_back("auto", Pack::Plain);
}

/// Of what was loaded or committed there is no other copy: once the command has ended, no power cut
/// takes any of it.
#[test]
fn what_is_only_here_outlasts_a_power_cut() {
    if !can_mount() {
        return;
    }
    let (seed, mut random) = seeded();
    let (tars, expected) = image();
    let place = Place::new();
    layout::write(&place.path("image"), &tars, Pack::Gzip);
    let registry = Registry::serve(place.path("image"));
    let archive = place.path("archive");
    let archive = archive.to_str().unwrap();
    let saved = ["-q", "save", "--format", "oci-archive", "-o", archive];
    place.ok(&[&saved[..], &[&registry.image()]].concat());
    drop(registry);
    let cache = place.path("cache");
    std::fs::remove_dir_all(&cache).unwrap();
    std::fs::create_dir(&cache).unwrap();
    let recorder = Recorder::mount(&cache);
    place.ok(&["-q", "load", "-i", archive, "--name", "loaded:1"]);
    let loaded = recorder.changes().len();
    let upper = place.path("upper");
    let upper = upper.to_str().unwrap();
    let mounted = place.mount_image("loaded:1", &["--engine", "fuse", "--upper", upper]);
    std::fs::write(place.mnt().join("new"), noise(99)).unwrap();
    drop(mounted);
    place.ok(&["commit", "-q", upper, "mine:1"]);
    let committed = recorder.changes().len();
    let mounted = place.mount_image("mine:1", &["--engine", "fuse"]);
    let mine = seen::look(&place.mnt());
    drop(mounted);
    let changes = recorder.changes();
    drop(recorder);
    assert!(loaded < committed && committed < changes.len());
    let mut wrong = Vec::new();
    let states = if long() { 200 } else { 12 };
    for state in 0..states {
        let (name, from, expected) = match state % 2 {
            0 => ("loaded:1", loaded, &expected),
            _ => ("mine:1", committed, &mine),
        };
        // Most is lost at the moment when the command ends.
        let end = match state % 4 {
            0 | 1 => from,
            _ => random.usize(from..=changes.len()),
        };
        let what = format!("{name}, seed {seed}, state {state}: {end} changes");
        std::fs::remove_dir_all(&cache).unwrap();
        recorder::after_power_cut(&changes[..end], &mut random).write_to(&cache);
        start_anew(&cache);
        let mnt = place.mnt();
        let output = place.run(&["-q", "--engine", "fuse", name, mnt.to_str().unwrap()]);
        if !output.status.success() {
            wrong.push(format!("{what}: not mounted: {output:?}"));
            continue;
        }
        match std::panic::catch_unwind(|| seen::look(&mnt)) {
            Err(_) => wrong.push(format!("{what}: a read failed")),
            Ok(found) => {
                let all = seen::differences(expected, &found);
                wrong.extend(all.iter().map(|d| format!("{what}: {d}")));
            }
        }
        drop(Mounted::adopt(&place));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{states} states, all of what is only here");
}
