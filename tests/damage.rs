//! Damage: every file of the cache and every message of a registry, spoilt in every way. A reader
//! gets the right bytes, or an error; never wrong bytes, and never nothing for ever.
//!
//! What the table does not hold: a file that was lent to the kernel is read by the kernel itself, and
//! has from then on the guarantee of the file system that it lies on, no more.
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

#[path = "support/faulty.rs"]
mod faulty;
#[path = "support/all.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rsmount::blob::retry::{Policy, Retry};
use rsmount::blob::{self, Blob, BoxFuture, ByteRange, ByteStream};
use rsmount::cache::{Cache, Presence};
use rsmount::content::first_contact::{self, Wanted};
use rsmount::content::{Content, Fill, LayerSource, Options, Outage, Profile};
use rsmount::layer::codec;
use rsmount::monitor::Silent;
use rsmount::oci::{Descriptor, Digest};
use rsmount::registry::{Registry, Settings, Source, Timeouts};
use support::layout::{self, FILE, Layer, Pack};
use support::place::{Mounted, Place, can_mount, long};

/// Bytes that hardly compress, different for each `seed`.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}

fn tar(seed: u64, len: usize) -> Vec<u8> {
    let name = format!("file-{seed}");
    Layer::new().file(&name, FILE, &noise(len, seed)).tar()
}

/// How something may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Every byte came, and was right.
    Right,
    /// It was mounted, and some reads failed with EIO.
    Eio,
    /// It was not mounted, or not fetched, in one line that says why.
    Refused,
}
use Outcome::{Eio, Refused, Right};

// ---- The cache's files ----------------------------------------------------------------------

/// What can happen to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Missing,
    Empty,
    Truncated,
    Flipped,
    /// It has the content of the same file of another layer, or of another document.
    Swapped,
    /// It was written by a version that this one does not know.
    OtherVersion,
}
const DAMAGES: [Damage; 6] = [
    Damage::Missing,
    Damage::Empty,
    Damage::Truncated,
    Damage::Flipped,
    Damage::Swapped,
    Damage::OtherVersion,
];

impl Damage {
    fn to(self, file: &Path, other: &Path) {
        let mut bytes = std::fs::read(file).unwrap();
        let middle = bytes.len() / 2;
        match self {
            Damage::Missing => return std::fs::remove_file(file).unwrap(),
            Damage::Empty => bytes.clear(),
            Damage::Truncated => bytes.truncate(middle),
            Damage::Flipped => {
                // Of the small files, what matters is the digest.
                let digest = bytes.windows(7).position(|w| w == b"sha256:");
                let json = digest.filter(|_| bytes.starts_with(b"{"));
                // Of a bitmap the middle may lie behind the last page.
                let third = bytes.len() / 3;
                // An empty file has no bit.
                match bytes.get_mut(json.map_or(third, |at| at + 9)) {
                    Some(byte) => *byte ^= 1,
                    None => bytes.push(1),
                }
            }
            Damage::Swapped => bytes = std::fs::read(other).unwrap(),
            // What a file begins with says what it is; a page store has its version above it.
            Damage::OtherVersion => match bytes.starts_with(b"{") {
                true => bytes = br#"{"schemaVersion":9,"version":9,"layers":{}}"#.to_vec(),
                false => bytes.iter_mut().take(8).for_each(|byte| *byte ^= 0x40),
            },
        }
        std::fs::write(file, bytes).unwrap();
    }
}

/// A file of the cache: what it is, which one, one like it, and for each damage what a mount without
/// a network makes of it. With a network every row is `Right`.
struct Row {
    what: &'static str,
    file: PathBuf,
    other: PathBuf,
    offline: [Outcome; 6],
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

/// The documents that hold `word`.
fn document(root: &Path, word: &str) -> PathBuf {
    let holds = |path: &PathBuf| {
        let bytes = std::fs::read(path).unwrap();
        bytes.windows(word.len()).any(|w| w == word.as_bytes())
    };
    files_below(&root.join("documents"))
        .into_iter()
        .find(holds)
        .unwrap()
}

fn rows(root: &Path) -> Vec<Row> {
    let layers = files_below(&root.join("layers/sha256"));
    let of_layer = |what, offline| Row {
        what,
        file: layers[0].join(what),
        other: layers[1].join(what),
        offline,
    };
    let (manifest, config) = (document(root, "\"layers\":["), document(root, "diff_ids"));
    let tag = files_below(&root.join("tags")).remove(0);
    vec![
        // Without an index nothing is known of a layer.
        of_layer(
            "index",
            [Refused, Refused, Refused, Refused, Refused, Refused],
        ),
        // A store that lacks a file is made anew, empty.
        of_layer("pages/data", [Eio, Eio, Eio, Eio, Eio, Eio]),
        of_layer("pages/sums", [Eio, Eio, Eio, Eio, Eio, Eio]),
        // Bits are hints: a page without one is absent, a bit without its page is found by the sum.
        // Swapped with those of a longer layer, all bits are set.
        of_layer("pages/present", [Eio, Eio, Eio, Eio, Right, Eio]),
        of_layer("pages/used", [Right; 6]),
        Row {
            what: "manifest",
            file: manifest.clone(),
            other: config.clone(),
            offline: [Refused; 6],
        },
        Row {
            what: "configuration",
            file: config,
            other: manifest,
            offline: [Refused; 6],
        },
        Row {
            what: "tag",
            other: root.join("locks/other-tag"),
            file: tag,
            offline: [Refused; 6],
        },
    ]
}

/// Mounts and reads all.
fn outcome(place: &Place, image: &str, offline: bool) -> Outcome {
    outcome_by(place, image, offline, "auto")
}

fn outcome_by(place: &Place, image: &str, offline: bool, engine: &str) -> Outcome {
    outcome_of(place, image, offline, engine, &LAYERS)
}

/// Mounts and reads `files`.
fn outcome_of(
    place: &Place,
    image: &str,
    offline: bool,
    engine: &str,
    files: &[(u64, usize)],
) -> Outcome {
    let mnt = place.mnt();
    let mut arguments = vec!["-q", "--on-outage", "eio", "--fill", "never"];
    arguments.extend(["--engine", engine]);
    if offline {
        arguments.push("--offline");
    }
    arguments.extend([image, mnt.to_str().unwrap()]);
    let output = place.run(&arguments);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
        assert!(!place.is_mounted());
        return Refused;
    }
    let mut outcome = Right;
    for &(seed, len) in files {
        match std::fs::read(mnt.join(format!("file-{seed}"))) {
            Ok(bytes) => assert!(bytes == noise(len, seed), "WRONG BYTES in file-{seed}"),
            Err(e) => {
                let eio = rustix::io::Errno::IO.raw_os_error();
                assert_eq!(e.raw_os_error(), Some(eio), "{e}");
                outcome = Eio;
            }
        }
    }
    drop(Mounted::adopt(place));
    outcome
}

/// Seeds and lengths of the layers' files.
const LAYERS: [(u64, usize); 2] = [(1, 300_000), (2, 700_000)];

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for path in files_below(from) {
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => drop(std::fs::copy(&path, &target).unwrap()),
        }
    }
}

fn served() -> (Place, support::registry::Registry) {
    let place = Place::new();
    let tars = LAYERS.map(|(seed, len)| tar(seed, len));
    layout::write(&place.path("image"), &tars, Pack::Gzip);
    let registry = support::registry::Registry::serve(place.path("image"));
    (place, registry)
}

fn assert_as_the_table_says(wrong: &[String]) {
    assert!(
        wrong.is_empty(),
        "not as the table says:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn damage_to_any_file_of_the_cache_is_found() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    let image = registry.image();
    assert_eq!(outcome(&place, &image, false), Right);
    let (cache, whole) = (place.path("cache"), place.path("whole"));
    let root = cache.join("v1");
    std::fs::write(root.join("locks/other-tag"), br#"{"key":"x"}"#).unwrap();
    copy(&cache, &whole);
    let mut wrong = Vec::new();
    for row in rows(&root) {
        for (at, damage) in DAMAGES.into_iter().enumerate() {
            for offline in [true, false] {
                std::fs::remove_dir_all(&cache).unwrap();
                copy(&whole, &cache);
                damage.to(&row.file, &row.other);
                let seen = outcome(&place, &image, offline);
                let expected = if offline { row.offline[at] } else { Right };
                if seen != expected {
                    wrong.push(format!(
                        "{} {damage:?} offline {offline}: {seen:?}",
                        row.what
                    ));
                }
            }
        }
    }
    assert_as_the_table_says(&wrong);
}

// ---- What is kept for speed, and what was said by a person -------------------------------------

/// The kinds of files that the table above does not hold, by their paths (`*` is any name). All of
/// them are hints, or are looked at by others than mounts: whatever happens to them, with and without a
/// network, by either engine, the outcome is `Right`.
///
/// A file that was lent to the kernel (`pages/data` beside `lent`) is no row: the kernel reads it as it
/// reads any file, and what rots in it after it was checked in this boot is found by whoever checks the
/// disk. It has ext4's guarantee, no more.
const KINDS: [&str; 13] = [
    // Indexes that were cut anew for what is hot, and from what.
    "layers/sha256/*/narrow",
    "layers/sha256/*/blocks",
    // That the file was lent, and that it was checked in this boot.
    "layers/sha256/*/lent",
    "layers/sha256/*/pages/checked",
    "layers/sha256/*/pages/used",
    "profiles/*",
    "derived/*.tree-*",
    "derived/*.erofs-*",
    "pins/*",
    "uppers/*",
    "uploads/*",
    "notes/*",
    "locks/*",
];

/// How the kinds end that only the kernel engine makes.
const OF_KERNEL: [&str; 4] = ["/lent", "/checked", ".erofs-*", "notes/*"];

/// The kinds of the table above.
const HELD: [&str; 6] = [
    "layers/sha256/*/index",
    "layers/sha256/*/pages/data",
    "layers/sha256/*/pages/sums",
    "layers/sha256/*/pages/present",
    "documents/*",
    "tags/*",
];

/// The kinds of the tables below, which need images of their own.
const APART: [&str; 8] = [
    "packs/*/0/data",
    "packs/*/0/sums",
    "packs/*/0/present",
    "packs/*/0/used",
    "denied/*",
    "blobs/*",
    "layers/sha256/*/sole",
    "tmp/*",
];

/// No directory of the cache is without a row.
fn assert_all_have_rows(root: &Path) {
    for path in files_below(root) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let mut kinds = KINDS.iter().chain(&HELD).chain(&APART);
        let known = kinds.any(|kind| kind.split('/').next() == Some(name));
        assert!(known, "no row for {name}: what does damage to it do?");
    }
}

fn is_like(path: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => path == pattern,
        Some((begin, rest)) => path.strip_prefix(begin).is_some_and(|path| {
            let ends = (0..=path.len()).filter(|at| !path[..*at].contains('/'));
            ends.into_iter().any(|at| is_like(&path[at..], rest))
        }),
    }
}

/// All files below `root`, relative to it.
fn all_files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for path in files_below(&directory) {
            match path.is_dir() {
                true => waiting.push(path),
                false => found.push(path.strip_prefix(root).unwrap().display().to_string()),
            }
        }
    }
    found.sort();
    found
}

/// Mounts until the layers are whole and have been lent where the kernel can, and once more, so that
/// everything is kept that can be; whether the kernel can.
fn warm(place: &Place, image: &str) -> bool {
    let mut kernel = false;
    for round in 0..3 {
        let fill = if round == 0 { "now" } else { "never" };
        let mounted = place.mount_image(image, &["--fill", fill]);
        for file in files_below(&place.mnt()) {
            std::fs::read(file).unwrap();
        }
        place.until_verified();
        let is_kernel = place.stats()["engine"] == "kernel";
        let lent = || {
            let layers = files_below(&place.path("cache/v1/layers/sha256"));
            layers.iter().all(|l| l.join("pages/checked").exists())
        };
        // A start is left alone for two seconds, and what its first one touches is learned.
        std::thread::sleep(Duration::from_millis(1300));
        let deadline = Instant::now() + Duration::from_secs(30);
        while is_kernel && !lent() {
            assert!(Instant::now() < deadline, "not lent");
            std::thread::sleep(Duration::from_millis(20));
        }
        kernel |= is_kernel;
        drop(mounted);
    }
    kernel
}

/// What persons and commands say of an image.
fn say(place: &Place, image: &str) {
    place.ok(&["cache", "pin", image]);
    let opened = Cache::open(&place.path("cache")).unwrap();
    opened
        .remember_upload(image, "https://registry/upload")
        .unwrap();
    let digest = Digest::of(image.as_bytes());
    opened.remember_upper(&place.path(image), &digest).unwrap();
}

/// Spoils the mark of a layer that is whole, which stands behind the bits in `present`.
fn spoil_mark(present: &Path, damage: Damage) {
    let mut bytes = std::fs::read(present).unwrap();
    let mark = bytes.len() - 8;
    assert_eq!(bytes[mark..], *b"rsmwhole");
    match damage {
        Damage::Missing | Damage::Empty => bytes.truncate(mark),
        Damage::Truncated => bytes.truncate(mark + 4),
        Damage::Flipped => bytes[mark] ^= 1,
        // What it stands behind says less than it.
        Damage::Swapped => bytes[..mark].fill(0),
        Damage::OtherVersion => bytes[mark..].copy_from_slice(b"rsmwhol2"),
    }
    std::fs::write(present, bytes).unwrap();
}

#[test]
fn damage_to_what_only_saves_time_does_not_show() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let tars = LAYERS.map(|(seed, len)| tar(seed, len));
    layout::write(&place.path("image"), &tars, Pack::Gzip);
    // The same names, and other bytes at other places: whoever takes its files for those of the first
    // reads what is wrong.
    let others = LAYERS.map(|(seed, len)| {
        let name = format!("file-{seed}");
        let layer = Layer::new().file("before", FILE, &noise(50_000, seed + 20));
        layer.file(&name, FILE, &noise(len, seed + 10)).tar()
    });
    layout::write(&place.path("other"), &others, Pack::Gzip);
    let registry = support::registry::Registry::serve(place.path("image"));
    let other = support::registry::Registry::serve(place.path("other"));
    let image = registry.image();
    let (cache, whole) = (place.path("cache"), place.path("whole"));
    let root = cache.join("v1");
    let mut of_first: Vec<String> = Vec::new();
    let mut kernel = false;
    for name in [&image, &other.image()] {
        kernel |= warm(&place, name);
        say(&place, name);
        if of_first.is_empty() {
            of_first = all_files(&root);
        }
    }
    let all = all_files(&root);
    assert_all_have_rows(&root);
    for path in &all {
        let known = KINDS.iter().chain(&HELD).any(|kind| is_like(path, kind));
        assert!(known, "no row for {path}: what does damage to it do?");
    }
    copy(&cache, &whole);
    let mut wrong = Vec::new();
    for kind in KINDS {
        let Some(file) = of_first.iter().find(|path| is_like(path, kind)) else {
            let without = !kernel && OF_KERNEL.iter().any(|end| kind.ends_with(end));
            assert!(without, "there is no {kind}");
            continue;
        };
        let is_other = |path: &&String| is_like(path, kind) && !of_first.contains(*path);
        let other = all.iter().find(is_other).unwrap_or(file);
        for damage in DAMAGES {
            for offline in [true, false] {
                std::fs::remove_dir_all(&cache).unwrap();
                copy(&whole, &cache);
                damage.to(&root.join(file), &whole.join("v1").join(other));
                let engines: &[&str] = if offline {
                    &["fuse", "auto"]
                } else {
                    &["auto"]
                };
                for engine in engines {
                    let seen = outcome_by(&place, &image, offline, engine);
                    if seen != Right {
                        let when = format!("offline {offline} by {engine}");
                        wrong.push(format!("{file} {damage:?} {when}: {seen:?}"));
                    }
                }
            }
        }
    }
    let is_present = |path: &&String| path.ends_with("/present");
    let present = root.join(of_first.iter().find(is_present).unwrap());
    wrong.extend(damage_to_a_mark(&place, &image, &present));
    assert_as_the_table_says(&wrong);
}

/// What of damage to the mark in `present` shows.
fn damage_to_a_mark(place: &Place, image: &str, present: &Path) -> Vec<String> {
    let (cache, whole) = (place.path("cache"), place.path("whole"));
    let mut wrong = Vec::new();
    for damage in DAMAGES {
        std::fs::remove_dir_all(&cache).unwrap();
        copy(&whole, &cache);
        spoil_mark(present, damage);
        // Without its bits all of a layer is absent.
        let offline = damage != Damage::Swapped;
        let seen = outcome_by(place, image, offline, "fuse");
        if seen != Right {
            wrong.push(format!("the mark of a whole layer, {damage:?}: {seen:?}"));
        }
    }
    wrong
}

/// What came with a pack lies beside the layers, and is checked as they are. Here it is all there is.
#[test]
fn damage_to_what_came_with_a_pack_is_found() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    let image = registry.image();
    assert_eq!(outcome_by(&place, &image, false, "fuse"), Right);
    place.ok(&["-q", "publish", &image]);
    let cache = place.path("cache");
    std::fs::remove_dir_all(&cache).unwrap();
    assert_eq!(outcome_by(&place, &image, false, "fuse"), Right);
    assert_eq!(outcome_by(&place, &image, true, "fuse"), Right);
    let all = all_files(&cache.join("v1"));
    let rows = [
        ("packs/*/0/data", [Eio; 6]),
        ("packs/*/0/sums", [Eio; 6]),
        ("packs/*/0/present", [Eio, Eio, Eio, Eio, Right, Eio]),
        ("packs/*/0/used", [Right; 6]),
    ];
    for (kind, alone) in rows {
        let file = all.iter().find(|path| is_like(path, kind));
        let file = file.unwrap_or_else(|| panic!("no {kind} in {all:?}"));
        let row = Apart {
            place: &place,
            image: &image,
            files: &LAYERS,
            what: kind,
            expected: [alone, [Right; 6]],
        };
        row.hold((file, &file.replace("/0/", "/1/")), |_| {}, |_, _| {});
    }
}

/// A table with one row: the same is done to a fresh copy of the cache for each damage, with and
/// without a network; `expected` has the outcomes without it, then those with it.
struct Apart<'a> {
    place: &'a Place,
    image: &'a str,
    files: &'a [(u64, usize)],
    what: &'static str,
    expected: [[Outcome; 6]; 2],
}

impl Apart<'_> {
    /// `file` and `other` are below the cache's root. `before` comes between damage and mount, with
    /// whether there is no network; `after` comes last, with what was done.
    fn hold(
        &self,
        (file, other): (&str, &str),
        before: impl Fn(bool),
        after: impl Fn(Damage, bool),
    ) {
        let (cache, whole) = (self.place.path("cache"), self.place.path("whole"));
        let _from_the_row_before = std::fs::remove_dir_all(&whole);
        copy(&cache, &whole);
        let mut wrong = Vec::new();
        for (offline, expected) in [true, false].into_iter().zip(self.expected) {
            for (damage, expected) in DAMAGES.into_iter().zip(expected) {
                std::fs::remove_dir_all(&cache).unwrap();
                copy(&whole, &cache);
                damage.to(&cache.join("v1").join(file), &whole.join("v1").join(other));
                before(offline);
                let seen = outcome_of(self.place, self.image, offline, "fuse", self.files);
                after(damage, offline);
                if seen != expected {
                    let what = self.what;
                    wrong.push(format!("{what} {damage:?} offline {offline}: {seen:?}"));
                }
            }
        }
        std::fs::remove_dir_all(&cache).unwrap();
        copy(&whole, &cache);
        assert_as_the_table_says(&wrong);
    }
}

/// A layer that was made here has its blob here, and nowhere else.
#[test]
fn damage_to_a_blob_that_no_registry_has_is_found() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    let image = registry.image();
    let blobs = place.path("cache/v1/blobs");
    let mut made = Vec::new();
    for (name, (seed, len)) in [("made:1", (3, 50_000)), ("made:2", (4, 60_000))] {
        let changes = place.path(name);
        let upper = ["--upper", changes.to_str().unwrap(), "--fill", "never"];
        let mounted = place.mount_image(&image, &upper);
        std::fs::write(mounted.path(&format!("file-{seed}")), noise(len, seed)).unwrap();
        place.ok(&["-q", "commit", place.mnt().to_str().unwrap(), name]);
        let new = |blob: &PathBuf| !made.contains(blob);
        let blob = files_below(&blobs).into_iter().find(new).unwrap();
        made.push(blob);
    }
    // All that is here of the layer is its blob; the others are here whole.
    place.ok(&["cache", "prune", "--data"]);
    assert_eq!(outcome(&place, &image, true), Eio);
    assert_eq!(outcome(&place, &image, false), Right);
    let below = |blob: &PathBuf| format!("blobs/{}", blob.file_name().unwrap().to_str().unwrap());
    let files = [LAYERS[0], LAYERS[1], (3, 50_000)];
    assert_eq!(outcome_of(&place, "made:1", true, "fuse", &files), Right);
    place.ok(&["cache", "prune", "--data"]);
    assert_eq!(outcome(&place, &image, false), Right);
    let row = Apart {
        place: &place,
        image: "made:1",
        files: &files,
        what: "blob",
        expected: [[Eio; 6], [Eio; 6]],
    };
    row.hold((&below(&made[0]), &below(&made[1])), |_| (), |_, _| ());
}

/// The mark that says that a layer is nowhere else keeps its data from going. What is in it does not
/// matter, that it is there does: without it and without the archive the data is lost to whoever prunes.
#[test]
fn damage_to_the_mark_of_a_sole_copy_loses_nothing_but_where_the_mark_is_gone() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    let (archive, away) = (place.path("image.tar"), place.path("away.tar"));
    let file = archive.to_str().unwrap();
    place.ok(&["-q", "save", "-o", file, &registry.image()]);
    std::fs::remove_dir_all(place.path("cache")).unwrap();
    place.ok(&["-q", "load", "-i", file, "--name", "loaded:1"]);
    let all = all_files(&place.path("cache/v1"));
    let marks: Vec<_> = all.iter().filter(|p| p.ends_with("/sole")).collect();
    assert_eq!(marks.len(), LAYERS.len());
    let row = Apart {
        place: &place,
        image: "loaded:1",
        files: &LAYERS,
        what: "sole",
        expected: [[Eio, Right, Right, Right, Right, Right], [Right; 6]],
    };
    let prune = |offline: bool| {
        place.ok(&["cache", "prune", "--data"]);
        if offline {
            std::fs::rename(&archive, &away).unwrap();
        }
    };
    let bring_back = |_, offline: bool| {
        if offline {
            std::fs::rename(&away, &archive).unwrap();
        }
    };
    row.hold((marks[0], marks[1]), prune, bring_back);
}

/// A pack that was found to lie is not used again, whatever is in the file that says so.
#[test]
fn damage_to_what_says_that_a_pack_lied_lets_it_in_only_where_the_file_is_gone() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    let image = registry.image();
    assert_eq!(outcome_by(&place, &image, false, "fuse"), Right);
    place.ok(&["-q", "publish", &image]);
    let cache = place.path("cache");
    std::fs::remove_dir_all(&cache).unwrap();
    assert_eq!(outcome_by(&place, &image, false, "fuse"), Right);
    let packs = cache.join("v1/packs");
    let pack = files_below(&packs).remove(0);
    let name = pack.file_name().unwrap().to_str().unwrap().to_owned();
    // Nothing else is here.
    std::fs::remove_dir_all(&cache).unwrap();
    drop(Cache::open(&cache).unwrap());
    let denied = format!("denied/{name}");
    let other = format!("denied/{}", "0".repeat(name.len()));
    std::fs::write(cache.join("v1").join(&denied), "").unwrap();
    std::fs::write(cache.join("v1").join(&other), "").unwrap();
    let row = Apart {
        place: &place,
        image: &image,
        files: &LAYERS,
        what: "denied",
        // Nothing is known without a network.
        expected: [[Refused; 6], [Right; 6]],
    };
    let is_used_as_told = |damage, offline: bool| {
        let used = files_below(&packs).contains(&pack);
        assert_eq!(used, !offline && damage == Damage::Missing, "{damage:?}");
    };
    row.hold((&denied, &other), |_| (), is_used_as_told);
}

/// What a process that died left under `tmp/` is never read, and goes.
#[test]
fn damage_to_what_was_left_unfinished_does_not_show() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    let image = registry.image();
    assert_eq!(outcome(&place, &image, false), Right);
    let root = place.path("cache/v1");
    let layers = files_below(&root.join("layers/sha256"));
    copy(&layers[0], &root.join("tmp/1-0000000000000001"));
    std::fs::create_dir(root.join("tmp/1-0000000000000002")).unwrap();
    copy(&layers[1], &root.join("tmp/1-0000000000000002/doomed"));
    std::fs::write(root.join("tmp/1-0000000000000003"), "no directory").unwrap();
    let left = all_files(&root)
        .into_iter()
        .filter(|p| p.starts_with("tmp/"));
    let left: Vec<_> = left.collect();
    assert!(left.len() >= 11, "{left:?}");
    let row = Apart {
        place: &place,
        image: &image,
        files: &LAYERS,
        what: "unfinished",
        expected: [[Right; 6], [Right; 6]],
    };
    let is_gone = |damage, _| {
        let there = files_below(&root.join("tmp"));
        assert!(there.is_empty(), "{damage:?}: {there:?}");
    };
    for (at, file) in left.iter().enumerate() {
        let other = &left[(at + 1) % left.len()];
        row.hold((file, other), |_| (), is_gone);
    }
}

// ---- Random damage, without mounts -----------------------------------------------------------

/// A blob in memory.
#[derive(Debug)]
struct Memory {
    digest: Digest,
    bytes: Vec<u8>,
}

impl Blob for Memory {
    fn digest(&self) -> &Digest {
        &self.digest
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn open(&self, range: ByteRange) -> BoxFuture<'_, Result<ByteStream, blob::Error>> {
        let part = self.bytes[range.start() as usize..range.end() as usize].to_vec();
        let pieces: Vec<_> = part
            .chunks(16 << 10)
            .map(|c| Ok(c.to_vec().into()))
            .collect();
        Box::pin(async move { Ok(Box::pin(futures_util::stream::iter(pieces)) as ByteStream) })
    }
}

fn wanted(blob: Arc<dyn Blob>, tar: &[u8]) -> Wanted {
    let descriptor = Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        digest: blob.digest().clone(),
        size: blob.size(),
        urls: Vec::new(),
        annotations: std::collections::BTreeMap::new(),
        platform: None,
    };
    Wanted {
        descriptor,
        diff_id: Digest::of(tar),
        blob,
        sole: false,
    }
}

/// Makes the layer known, and its content; the error is what a person would see.
fn content_of(cache: &Cache, wanted: &Wanted) -> Result<Arc<Content>, String> {
    let digest = wanted.blob.digest();
    let known = cache.layer(digest).map_err(|e| e.to_string())?;
    let known = known.and_then(|layer| Some((codec::decode(&layer.index().ok()?).ok()?, layer)));
    let (index, layer) = match known {
        Some(known) => known,
        None => {
            let runtime = Content::new_runtime().unwrap();
            let all = vec![wanted.clone()];
            let ingest = first_contact::ingest(cache, all, Arc::new(Silent));
            let layer = runtime
                .block_on(ingest)
                .map_err(|e| e.to_string())?
                .remove(0);
            (codec::decode(&layer.index().unwrap()).unwrap(), layer)
        }
    };
    let source = LayerSource {
        index: rsmount::content::LateIndex::from(Arc::new(index)),
        pages: Arc::new(layer.pages().map_err(|e| e.to_string())?),
        blob: wanted.blob.clone(),
        windows: None,
        prove: None,
    };
    let options = Options {
        outage: Outage::Eio,
        fill: Fill::Never,
        ..Options::default()
    };
    Ok(Content::new(
        vec![source],
        options,
        Profile::default(),
        None,
    ))
}

/// Reads a range as a file system does: what is absent is fetched, then read again.
fn read(content: &Arc<Content>, range: ByteRange) -> Result<Vec<u8>, String> {
    let mut out = vec![0; range.len() as usize];
    for _ in 0..16 {
        match content
            .read(0, range, &mut out, &mut Vec::new())
            .map_err(|e| e.to_string())?
        {
            Presence::Read => return Ok(out),
            Presence::Absent => {
                let (done, fetched) = mpsc::channel();
                let tell = move |outcome| drop(done.send(outcome));
                content.fetch(0, range, Box::new(tell));
                let outcome = fetched
                    .recv_timeout(Duration::from_secs(60))
                    .expect("it hangs");
                outcome.map_err(|e| e.to_string())?;
            }
        }
    }
    Err("absent again and again".to_owned())
}

/// The files of a cache that are damaged at random, by kind. Within a kind they are in an order in which
/// names have the last word, as they come from ports: so a seed finds the same files again.
struct Targets {
    kinds: Vec<(&'static str, Vec<String>)>,
    /// The kinds that are still to come before each comes again.
    deck: Vec<usize>,
    /// How often each kind was changed.
    hits: Vec<usize>,
}

impl Targets {
    /// Those below `root`; none of them is of no kind.
    fn of(root: &Path) -> Targets {
        let all = KINDS.iter().chain(&HELD).chain(&APART);
        let mut kinds: Vec<_> = all.map(|kind| (*kind, Vec::new())).collect();
        for path in all_files(root) {
            // Of a pack the tables have the first layer, and what was left unfinished may be any tree.
            let is_left = |kind: &str| kind == "tmp/*" && path.starts_with("tmp/");
            let is_of = |kind: &str| is_left(kind) || is_like(&path, &kind.replace("/0/", "/*/"));
            let of = kinds.iter_mut().find(|(kind, _)| is_of(kind));
            let (_, files) = of.unwrap_or_else(|| panic!("no kind for {path}"));
            files.push(path);
        }
        for (_, files) in &mut kinds {
            files.sort_by_key(|path| (root.join(path).metadata().unwrap().len(), path.clone()));
        }
        Targets::from(kinds)
    }

    /// Only the kinds that are `wanted`.
    fn only(self, wanted: impl Fn(&str) -> bool) -> Targets {
        let kinds = self.kinds.into_iter();
        Targets::from(kinds.filter(|(kind, _)| wanted(kind)).collect())
    }

    fn from(kinds: Vec<(&'static str, Vec<String>)>) -> Targets {
        Targets {
            deck: Vec::new(),
            hits: vec![0; kinds.len()],
            kinds,
        }
    }

    /// The kinds that have no file.
    fn missing(&self) -> Vec<&'static str> {
        let missing = self.kinds.iter().filter(|(_, files)| files.is_empty());
        missing.map(|(kind, _)| *kind).collect()
    }

    /// Changes a file below `root` in a random way; says how. Every kind has its turn.
    fn damage(&mut self, random: &mut fastrand::Rng, root: &Path) -> String {
        if self.deck.is_empty() {
            let there = 0..self.kinds.len();
            self.deck = there.filter(|k| !self.kinds[*k].1.is_empty()).collect();
            random.shuffle(&mut self.deck);
        }
        let kind = self.deck.pop().unwrap();
        let of = |kind: usize, random: &mut fastrand::Rng| {
            let files = &self.kinds[kind].1;
            root.join(&files[random.usize(0..files.len())])
        };
        let file = of(kind, random);
        let others: Vec<_> = (0..self.kinds.len())
            .filter(|k| !self.kinds[*k].1.is_empty())
            .collect();
        let other = of(others[random.usize(0..others.len())], random);
        // How much chance one takes depends on the length of the file.
        let how = random_damage(&mut random.fork(), &file, &other);
        self.hits[kind] += usize::from(how.is_some());
        how.unwrap_or_else(|| "nothing".to_owned())
    }

    fn assert_all_were_hit(&self) {
        for ((kind, files), hits) in self.kinds.iter().zip(&self.hits) {
            assert!(*hits > 0 || files.is_empty(), "{kind} was never damaged");
        }
    }
}

/// Changes a file in a random way; says how, or nothing when it is not there.
fn random_damage(random: &mut fastrand::Rng, file: &Path, other: &Path) -> Option<String> {
    let mut bytes = std::fs::read(file).ok()?;
    let at = random.usize(0..=bytes.len());
    let how = random.u8(0..8);
    match how {
        0 => std::fs::remove_file(file).unwrap(),
        1 => bytes.truncate(at),
        2 => bytes
            .iter_mut()
            .skip(at)
            .take(1)
            .for_each(|b| *b ^= 1 << random.u8(0..8)),
        3 => bytes.iter_mut().skip(at).take(4096).for_each(|b| *b = 0),
        4 => bytes
            .iter_mut()
            .skip(at)
            .take(300)
            .for_each(|b| *b = random.u8(..)),
        5 => bytes = std::fs::read(other).unwrap_or_default(),
        6 => bytes.rotate_left(at),
        _ => bytes.extend(std::iter::repeat_n(random.u8(..), random.usize(1..9000))),
    }
    if how != 0 {
        std::fs::write(file, bytes).unwrap();
    }
    Some(format!("{} ({how} at {at})", file.display()))
}

/// Chance, the same again for the same seed.
fn chance() -> (u64, fastrand::Rng) {
    let seed = std::env::var("RSMOUNT_TEST_SEED")
        .map_or_else(|_| fastrand::u64(..), |s| s.parse().unwrap());
    println!("seed {seed} (RSMOUNT_TEST_SEED)");
    (seed, fastrand::Rng::with_seed(seed))
}

#[test]
fn no_random_damage_gives_wrong_bytes() {
    let trials = if long() { 10_000 } else { 300 };
    let (seed, mut random) = chance();
    let temp = tempfile::tempdir().unwrap();
    let (whole, cache) = (temp.path().join("whole"), temp.path().join("cache"));
    let layers = [(1, 90_000), (2, 150_000)].map(|(seed, len)| {
        let tar = tar(seed, len);
        let bytes = layout::compress(&tar, if seed == 1 { Pack::Gzip } else { Pack::Zstd });
        let digest = Digest::of(&bytes);
        let blob: Arc<dyn Blob> = Arc::new(Memory { digest, bytes });
        (wanted(blob, &tar), tar)
    });
    for (wanted, _) in &layers {
        content_of(&Cache::open(&whole).unwrap(), wanted).unwrap();
    }
    let mut targets = Targets::of(&whole.join("v1")).only(|kind| kind.starts_with("layers/"));
    let mut errors = 0;
    for trial in 0..trials {
        let _ = std::fs::remove_dir_all(&cache);
        copy(&whole, &cache);
        let how: Vec<String> = (0..random.usize(1..4))
            .map(|_| targets.damage(&mut random, &cache.join("v1")))
            .collect();
        let opened = Cache::open(&cache).unwrap();
        for (wanted, tar) in &layers {
            let Ok(content) = content_of(&opened, wanted) else {
                errors += 1;
                continue;
            };
            for _ in 0..4 {
                let start = random.u64(0..tar.len() as u64);
                let end = random.u64(start..=tar.len() as u64);
                match read(&content, ByteRange::new(start, end)) {
                    Ok(bytes) => assert!(
                        bytes == tar[start as usize..end as usize],
                        "WRONG BYTES: seed {seed}, trial {trial}, {how:?}"
                    ),
                    Err(_) => errors += 1,
                }
            }
        }
    }
    targets.assert_all_were_hit();
    println!("{trials} trials, {errors} errors, no wrong byte");
}

// ---- Random damage to any file, with mounts ---------------------------------------------------

/// An image, and the files that it has.
type Known = (String, Vec<(u64, usize)>);

/// Names of images that no registry has: one that was made here, and one that came in an archive.
const NOWHERE: [&str; 2] = ["made:1", "loaded:1"];

/// A cache with files of all kinds: of a layer that was made here, of one that is whole, of one that came
/// in an archive, of a pack, and of what was said of them; and whether of the kernel engine.
fn everything(
    place: &Place,
    images: [&str; 3],
    [others, loaded]: [&[(u64, usize)]; 2],
) -> (Vec<Known>, bool) {
    let [image, other, third] = images;
    let root = place.path("cache/v1");
    let archive = place.path("third.tar").display().to_string();
    place.ok(&["-q", "save", "-o", &archive, third]);
    assert_eq!(outcome_of(place, other, false, "fuse", others), Right);
    place.ok(&["-q", "publish", other]);
    std::fs::remove_dir_all(place.path("cache")).unwrap();
    let kernel = warm(place, image);
    let made = (3, 50_000);
    let changes = place.path("changes");
    let upper = ["--upper", changes.to_str().unwrap(), "--fill", "never"];
    let mounted = place.mount_image(image, &upper);
    std::fs::write(mounted.path("file-3"), noise(made.1, made.0)).unwrap();
    place.ok(&["-q", "commit", place.mnt().to_str().unwrap(), NOWHERE[0]]);
    drop(mounted);
    assert_eq!(outcome_of(place, other, false, "fuse", others), Right);
    place.ok(&["-q", "load", "-i", &archive, "--name", NOWHERE[1]]);
    say(place, image);
    std::fs::write(root.join("denied/").join("0".repeat(64)), "").unwrap();
    let first = files_below(&root.join("layers/sha256")).remove(0);
    copy(&first, &root.join("tmp/1-0000000000000001"));
    let all = [LAYERS[0], LAYERS[1], made];
    let known = vec![
        (image.to_owned(), LAYERS.to_vec()),
        (other.to_owned(), others.to_vec()),
        (NOWHERE[0].to_owned(), all.to_vec()),
        (NOWHERE[1].to_owned(), loaded.to_vec()),
    ];
    (known, kernel)
}

/// Any files of the cache are changed in any way, and whatever is then mounted has the right bytes, or
/// EIO, or is refused in a line; where there is a network, only what no registry has can be lost.
#[test]
fn no_random_damage_to_any_file_gives_wrong_bytes() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served();
    let others = [(5, 60_000), (6, 120_000)];
    let tars = others.map(|(seed, len)| tar(seed, len));
    layout::write(&place.path("other"), &tars, Pack::Gzip);
    let other = support::registry::Registry::serve(place.path("other"));
    let loaded = [(7, 40_000)];
    layout::write(
        &place.path("third"),
        &loaded.map(|(seed, len)| tar(seed, len)),
        Pack::Gzip,
    );
    let third = support::registry::Registry::serve(place.path("third"));
    let (image, other, third) = (registry.image(), other.image(), third.image());
    let (known, kernel) = everything(&place, [&image, &other, &third], [&others, &loaded]);
    let (cache, whole) = (place.path("cache"), place.path("whole"));
    let mut targets = Targets::of(&cache.join("v1"));
    for kind in targets.missing() {
        let without = !kernel && OF_KERNEL.iter().any(|end| kind.ends_with(end));
        assert!(without, "there is no {kind}");
    }
    copy(&cache, &whole);
    let (_, mut random) = chance();
    let trials = if long() { 2000 } else { 20 };
    let mut seen = [0; 3];
    for trial in 0..trials {
        std::fs::remove_dir_all(&cache).unwrap();
        copy(&whole, &cache);
        let (image, of_image) = &known[random.usize(0..known.len())];
        let offline = random.bool();
        for _ in 0..random.usize(1..6) {
            let how = targets.damage(&mut random, &cache.join("v1"));
            println!("{trial}: {how}");
        }
        println!("{trial}: {image}, offline {offline}");
        let outcome = outcome_of(&place, image, offline, "fuse", of_image);
        assert!(outcome == Right || offline || NOWHERE.contains(&&**image));
        seen[outcome as usize] += 1;
    }
    targets.assert_all_were_hit();
    println!("{trials} trials: right, EIO, refused {seen:?}");
}

// ---- The registry's messages -----------------------------------------------------------------

use faulty::{FAULTS, Fault, Faulty, Message};

/// What the answers lead to when one of them is spoilt once, and when all of them are.
fn expected(message: Message, fault: Fault) -> (Outcome, Outcome) {
    use Fault::*;
    match (message, fault) {
        // Only ranges have a range.
        (Message::Manifest | Message::Config | Message::Layer, OtherRange) => (Right, Right),
        // What a layer's first stream lacks is asked for as a range, which is not spoilt here.
        (Message::Layer, Short | Reset | Trickling) => (Right, Right),
        // One that is gone is gone: nobody asks again.
        (Message::Range, Missing) => (Eio, Eio),
        (_, Missing) => (Refused, Refused),
        // By tag nothing says how a manifest must be but its form.
        (Message::Manifest, Empty | Truncated | Flipped | Swapped) => (Refused, Refused),
        // A small blob, or a whole layer, that is shorter than its manifest says or has another
        // digest is not what was pushed.
        (Message::Config | Message::Layer, Empty | Truncated | Flipped | Swapped) => {
            (Refused, Refused)
        }
        (Message::Manifest | Message::Config | Message::Layer, Endless) => (Refused, Refused),
        // An answer that is no answer to the question.
        (Message::Range, Empty | Endless | OtherRange) => (Eio, Eio),
        // A range that is wrong is asked for once more.
        (Message::Range, _) => (Right, Eio),
        (_, _) => (Right, Refused),
    }
}

/// Resolves, streams or reads all there is, with quick retries and short patience.
fn fetch_all(faulty: &Faulty, cache: &Path, tars: &[Vec<u8>], lazily: bool) -> Outcome {
    let reference: rsmount::oci::ImageName = faulty.image().parse().unwrap();
    let rsmount::oci::ImageName::Registry(reference) = reference else {
        panic!("a registry's name");
    };
    let quick = Policy {
        attempts: 3,
        wait_first: Duration::from_millis(5),
        wait_max: Duration::from_millis(50),
    };
    let settings = Settings {
        credentials: Source::Anonymous,
        timeouts: Timeouts {
            connect: Duration::from_millis(500),
            header: Duration::from_millis(150),
            idle: Duration::from_millis(150),
            ..Timeouts::default()
        },
        retry: quick,
        ..Settings::default()
    };
    let registry = Registry::new(&reference, settings).unwrap();
    let runtime = Content::new_runtime().unwrap();
    let resolved = runtime.block_on(async {
        let top = registry.resolve("latest").await.ok()?;
        let parsed = rsmount::oci::Manifest::parse(&top.bytes, top.media_type.as_deref()).ok()?;
        let rsmount::oci::Manifest::Image(manifest) = parsed else {
            return None;
        };
        let config = registry.blob_bytes(&manifest.config, 1 << 20).await.ok()?;
        rsmount::oci::ImageConfig::parse(&config).ok()?;
        Some(manifest)
    });
    let Some(manifest) = resolved else {
        return Refused;
    };
    let cache = Cache::open(cache).unwrap();
    let mut outcome = Right;
    for (descriptor, tar) in manifest.layers.iter().zip(tars) {
        let blob: Arc<dyn Blob> = Arc::new(Retry::new(registry.blob(descriptor), quick));
        let Ok(content) = content_of(&cache, &wanted(blob, tar)) else {
            assert!(!lazily, "the index is there");
            return Refused;
        };
        // Backwards, so that nothing is read ahead.
        for start in (0..tar.len()).step_by(1 << 20).rev() {
            let start = start as u64;
            let range = ByteRange::new(start, (start + (1 << 20)).min(tar.len() as u64));
            let expected = &tar[start as usize..range.end() as usize];
            match read(&content, range) {
                Ok(bytes) => assert!(bytes == expected, "WRONG BYTES"),
                Err(_) => outcome = Eio,
            }
        }
    }
    outcome
}

/// What so many spoilt answers to `message` lead to, in a cache that knows the indexes where ranges are meant.
fn spoil(
    faulty: &Faulty,
    (message, fault, times): (Message, Fault, u32),
    cache: &Path,
    tars: &[Vec<u8>],
) -> Outcome {
    let _none_yet = std::fs::remove_dir_all(cache);
    let lazily = message == Message::Range;
    faulty.good();
    if lazily {
        assert_eq!(fetch_all(faulty, cache, tars, false), Right);
        Cache::open(cache).unwrap().prune_data(true).unwrap();
    }
    faulty.spoil(message, fault, times);
    let began = Instant::now();
    let seen = fetch_all(faulty, cache, tars, lazily);
    let lasted = began.elapsed();
    assert!(
        lasted < Duration::from_secs(30),
        "{message:?} {fault:?} hangs"
    );
    seen
}

#[test]
fn every_answer_of_a_registry_is_checked() {
    let temp = tempfile::tempdir().unwrap();
    // One that is a single span, and one of several.
    let tars = [(1, 300_000), (2, 5_000_000)].map(|(seed, len)| tar(seed, len));
    // Plain, so that any part of it can be asked for.
    layout::write(&temp.path().join("image"), &tars, Pack::Plain);
    let faulty = Faulty::serve(temp.path().join("image"));
    let mut wrong = Vec::new();
    for message in [
        Message::Manifest,
        Message::Config,
        Message::Layer,
        Message::Range,
    ] {
        for fault in FAULTS {
            for always in [false, true] {
                let (once, all) = expected(message, fault);
                let (expected, times) = if always { (all, u32::MAX) } else { (once, 1) };
                let play = || {
                    spoil(
                        &faulty,
                        (message, fault, times),
                        &temp.path().join("cache"),
                        &tars,
                    )
                };
                // The patience is short here: on a busy machine the spoilt answer may come after it, and is
                // asked for again, which is another row.
                let mut seen = play();
                if seen != expected {
                    seen = play();
                }
                if seen != expected {
                    let when = if always { "always" } else { "once" };
                    wrong.push(format!(
                        "{message:?} {fault:?} {when}: {seen:?}, not {expected:?}"
                    ));
                }
            }
        }
    }
    assert_as_the_table_says(&wrong);
}
