//! The kernel engine: when it is taken, what it lends, and what readers see when bytes are late, do not
//! come, or nobody is left to bring them. Never a zero or a wrong byte.
//!
//! That it shows what the fuse engine shows is for the tests of every mount: as root they run with the
//! kernel engine, and with `RSMOUNT_ENGINE=fuse` (as `contrib/test` does too) with the other.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "a test"
)]

#[path = "support/all.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use rustix::fs::Advice;
use serde_json::Value;
use support::layout::{self, DIR, FILE, Layer, Pack};
use support::place::{Mounted, Place, can_use_kernel, skip};
use support::registry::Registry;

const KERNEL: [&str; 2] = ["--engine", "kernel"];

/// Bytes that hardly compress, none of them 0, different for each `seed`.
fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8 | 1
    };
    (0..bytes).map(|_| next()).collect()
}

const BYTES: usize = 4 << 20;

fn served() -> (Place, Registry) {
    let place = Place::new();
    let layer = Layer::new()
        .dir("d", DIR)
        .file("d/a", FILE, &noise(BYTES, 1))
        .file("d/b", FILE, &noise(BYTES, 2));
    layout::write(&place.path("image"), &[layer.tar()], Pack::Plain);
    let registry = Registry::serve(place.path("image"));
    (place, registry)
}

/// Mounts it with the indexes known and the data gone.
fn absent<'a>(place: &'a Place, registry: &Registry, options: &[&str]) -> Mounted<'a> {
    drop(place.mount_image(&registry.image(), &KERNEL));
    place.ok(&["cache", "prune", "--data"]);
    let options = [&KERNEL[..], &["--fill", "never"], options].concat();
    place.mount_image(&registry.image(), &options)
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn listed(place: &Place) -> Value {
    serde_json::from_str(&place.ok(&["ps", "-a", "--json"])).unwrap()
}

/// Kills the worker, and with `keeper` whoever would start another one, without a chance to clean up.
fn kill_worker(place: &Place, keeper: bool) -> u64 {
    let listed = listed(place);
    let pid = listed[0]["pid"].as_u64().unwrap();
    let mut words = vec!["-9".to_owned()];
    if keeper {
        words.push(listed[0]["keeper"].to_string());
    }
    words.push(pid.to_string());
    assert!(Command::new("kill").args(words).status().unwrap().success());
    pid
}

/// Kills everybody.
fn kill_all(place: &Place) {
    kill_worker(place, true);
    until("everybody is dead", || listed(place)[0]["state"] == "dead");
}

fn errno(error: &io::Error) -> Option<rustix::io::Errno> {
    error
        .raw_os_error()
        .map(rustix::io::Errno::from_raw_os_error)
}

/// Reads a page; `None` when it is an I/O error. What comes is right.
fn page(file: &File, n: u64, expected: &[u8]) -> Option<()> {
    let mut found = [0; 4096];
    let at = usize::try_from(n).unwrap() * 4096;
    match file.read_exact_at(&mut found, n * 4096) {
        Ok(()) => assert!(found[..] == expected[at..at + 4096], "page {n}"),
        Err(e) => {
            assert_eq!(errno(&e), Some(rustix::io::Errno::IO), "page {n}: {e}");
            return None;
        }
    }
    Some(())
}

fn forget_pages(file: &File) {
    rustix::fs::fadvise(file, 0, None, Advice::DontNeed).unwrap();
}

#[test]
fn the_engine_is_the_one_that_is_possible_and_says_why() {
    if !can_use_kernel() {
        return;
    }
    let place = Place::new();
    let layers = [Layer::new().file("a", FILE, b"a").tar()];
    layout::write(&place.path("image"), &layers, Pack::Plain);
    for (wanted, engine, why) in [
        ("auto", "kernel", "self-test"),
        ("kernel", "kernel", "self-test"),
        ("fuse", "fuse", "asked for"),
    ] {
        let _mounted = place.mount("image", &["--engine", wanted]);
        let stats = place.stats();
        assert_eq!(stats["engine"], engine, "{wanted}");
        let said = stats["engine_why"].as_str().unwrap();
        assert!(said.contains(why), "{wanted}: {said}");
        assert_eq!(listed(&place)[0]["engine"], engine, "{wanted}");
    }
    let private = ["-o", "noallow_other"];
    let mounted = place.mount("image", &[&["--engine", "auto"], &private[..]].concat());
    assert_eq!(place.stats()["engine"], "fuse");
    drop(mounted);
    let image = format!("oci:{}", place.path("image").display());
    let mnt = place.mnt();
    let mut words = [&KERNEL[..], &private[..]].concat();
    words.extend([&image[..], mnt.to_str().unwrap()]);
    let refused = place.run(&words);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains("not possible here: EROFS cannot keep"),
        "{said}"
    );
    assert!(!place.is_mounted());
    assert_eq!(place.leftovers(), 0);
}

/// One value longer than EROFS has room for.
#[test]
fn what_erofs_cannot_hold_is_served_by_fuse() {
    if !can_use_kernel() {
        return;
    }
    let place = Place::new();
    let long = vec![7; 64 << 10];
    let layer = Layer::new().file_with_xattrs("long", FILE, &[("user.long", &long)]);
    layout::write(&place.path("image"), &[layer.tar()], Pack::Plain);
    let mounted = place.mount("image", &["--engine", "auto"]);
    assert_eq!(place.stats()["engine"], "fuse");
    let mut value = vec![0; 64 << 10];
    let len = rustix::fs::getxattr(mounted.path("long"), "user.long", &mut value[..]);
    assert_eq!((len, value), (Ok(64 << 10), long));
}

/// How many layers were checked in this boot.
fn checked(place: &Place) -> usize {
    let layers = std::fs::read_dir(place.path("cache/v1/layers/sha256")).unwrap();
    let layers = layers.map(|layer| layer.unwrap().path());
    let checked = |layer: &PathBuf| layer.join("pages/checked").exists();
    layers
        .filter(checked)
        .inspect(|layer| assert!(layer.join("lent").exists()))
        .count()
}

#[test]
fn whole_layers_are_lent_and_then_need_nobody() {
    if !can_use_kernel() {
        return;
    }
    let (place, registry) = served();
    let first = place.mount_image(&registry.image(), &KERNEL);
    until("the layer is checked", || checked(&place) == 1);
    assert!(std::fs::read(first.path("d/a")).unwrap() == noise(BYTES, 1));
    assert!(
        place.stats()["reads"].as_u64() > Some(0),
        "this mount's is not lent"
    );
    drop(first);

    let mounted = place.mount_image(&registry.image(), &KERNEL);
    assert!(std::fs::read(mounted.path("d/a")).unwrap() == noise(BYTES, 1));
    assert_eq!(
        place.stats()["reads"],
        0,
        "the kernel reads the file itself"
    );
    // The file is unlinked, and stays what it is for who has it.
    place.ok(&["cache", "prune", "--data"]);
    kill_all(&place);
    assert!(std::fs::read(mounted.path("d/b")).unwrap() == noise(BYTES, 2));
    drop(mounted);
    assert!(!place.is_mounted());
    assert_eq!(place.leftovers(), 0);
    // Nothing vouches for the file that is there now.
    let mounted = place.mount_image(&registry.image(), &KERNEL);
    assert!(std::fs::read(mounted.path("d/a")).unwrap() == noise(BYTES, 1));
    assert!(place.stats()["reads"].as_u64() > Some(0));
}

/// The second mount finds tree and EROFS image; what is damaged of them is made anew.
#[test]
fn a_known_image_is_mounted_from_what_is_kept() {
    if !can_use_kernel() {
        return;
    }
    let (place, registry) = served();
    drop(place.mount_image(&registry.image(), &KERNEL));
    let derived = || -> Vec<PathBuf> {
        let found = std::fs::read_dir(place.path("cache/v1/derived")).unwrap();
        found.map(|entry| entry.unwrap().path()).collect()
    };
    assert_eq!(
        derived().len(),
        2,
        "a tree and an EROFS image: {:?}",
        derived()
    );
    let when = |path: &PathBuf| path.metadata().unwrap().modified().unwrap();
    let kept: Vec<_> = derived().iter().map(when).collect();
    for engine in ["kernel", "fuse"] {
        let mounted = place.mount_image(&registry.image(), &["--engine", engine]);
        assert_eq!(std::fs::read_dir(mounted.path("d")).unwrap().count(), 2);
        assert!(std::fs::read(mounted.path("d/a")).unwrap() == noise(BYTES, 1));
    }
    assert_eq!(derived().iter().map(when).collect::<Vec<_>>(), kept);
    for path in derived() {
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(b"flipped", 1030).unwrap();
    }
    for engine in ["kernel", "fuse"] {
        let mounted = place.mount_image(&registry.image(), &["--engine", engine]);
        assert_eq!(place.stats()["engine"], engine);
        assert_eq!(std::fs::read_dir(mounted.path("d")).unwrap().count(), 2);
        assert!(std::fs::read(mounted.path("d/b")).unwrap() == noise(BYTES, 2));
    }
    assert_eq!(derived().len(), 2);
}

/// EROFS reads ahead what is asked for while bytes are absent, and as far as a disk once they are local.
#[test]
fn erofs_reads_ahead_what_is_local() {
    if !can_use_kernel() {
        return;
    }
    let (place, registry) = served();
    let before = read_aheads();
    // Mounts of other tests may be among these; none of them has such a setting by itself.
    let new = |fits: fn(u64) -> bool| {
        let now = read_aheads();
        let mut new = now.iter().filter(|(name, _)| !before.contains_key(*name));
        new.any(|(_, kib)| fits(*kib))
    };
    let first = place.mount_image(&registry.image(), &KERNEL);
    until("the layer is checked", || checked(&place) == 1);
    // What the first start needs is known then, so that the next one does not look for it.
    assert!(std::fs::read(first.path("d/a")).unwrap() == noise(BYTES, 1));
    drop(first);
    // A mount that another test makes in the same moment, with a runtime directory of its own, keeps this one
    // from telling which is its own: then it is made once more.
    until("what is local is read ahead far", || {
        let _local = place.mount_image(&registry.image(), &KERNEL);
        new(|kib| kib >= 1024)
    });
    drop(absent(&place, &registry, &[]));
    let lazily = [&KERNEL[..], &["--fill", "never"]].concat();
    until("what is absent is read ahead a little", || {
        let _absent = place.mount_image(&registry.image(), &lazily);
        new(|kib| kib == 16)
    });
}

/// What EROFS mounts over files read ahead, in KiB, by the names of their backing devices.
fn read_aheads() -> BTreeMap<String, u64> {
    let devices = std::fs::read_dir("/sys/class/bdi").unwrap();
    let kib = |device: std::fs::DirEntry| {
        let name = device.file_name().into_string().ok()?;
        let text = std::fs::read_to_string(device.path().join("read_ahead_kb")).ok()?;
        let kib = text.trim().parse().ok()?;
        name.starts_with("erofs-").then_some((name, kib))
    };
    devices.filter_map(|device| kib(device.ok()?)).collect()
}

#[test]
fn late_bytes_are_waited_for() {
    if !can_use_kernel() {
        return;
    }
    let (place, registry) = served();
    let mounted = absent(&place, &registry, &[]);
    registry.control.held.store(true, SeqCst);
    let readers: Vec<_> = (0..8)
        .map(|n| {
            let file = File::open(mounted.path("d/a")).unwrap();
            std::thread::spawn(move || page(&file, n * 100, &noise(BYTES, 1)))
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    assert!(readers.iter().all(|reader| !reader.is_finished()));
    registry.control.held.store(false, SeqCst);
    assert!(readers.into_iter().all(|r| r.join().unwrap().is_some()));
    assert!(place.stats()["stalled_reads"].as_u64() > Some(0));
}

#[test]
fn a_killed_reader_leaves_at_once_and_spoils_nothing() {
    if !can_use_kernel() {
        return;
    }
    let (place, registry) = served();
    let mounted = absent(&place, &registry, &[]);
    registry.control.held.store(true, SeqCst);
    let a = mounted.path("d/a");
    let cat = || {
        let mut command = Command::new("cat");
        command.arg(&a).stdout(Stdio::null()).spawn().unwrap()
    };
    let mut readers: Vec<_> = (0..4).map(|_| cat()).collect();
    std::thread::sleep(Duration::from_millis(200));
    for reader in &mut readers {
        reader.kill().unwrap();
        assert!(!reader.wait().unwrap().success());
    }
    registry.control.held.store(false, SeqCst);
    assert!(std::fs::read(&a).unwrap() == noise(BYTES, 1));
}

#[test]
fn an_outage_is_an_error_and_heals() {
    if !can_use_kernel() {
        return;
    }
    let (place, registry) = served();
    let mounted = absent(&place, &registry, &["--on-outage", "eio"]);
    let (a, expected) = (File::open(mounted.path("d/a")).unwrap(), noise(BYTES, 1));
    assert!(page(&a, 0, &expected).is_some());
    registry.control.unplugged.store(true, SeqCst);
    assert!(page(&a, 0, &expected).is_some(), "what is cached is there");
    assert!(page(&a, 700, &expected).is_none());
    // A mapping gets SIGBUS for it, which a program of its own may die of.
    let map = format!(
        "import mmap, sys; f = open(sys.argv[1], 'rb'); \
         m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); print(m[{}])",
        1000 * 4096
    );
    let mapped = Command::new("python3")
        .args(["-c", &map])
        .arg(mounted.path("d/a"))
        .output()
        .unwrap();
    assert_eq!(mapped.status.signal(), Some(7), "{mapped:?}");
    registry.control.unplugged.store(false, SeqCst);
    for n in 0..1024 {
        assert!(
            page(&a, n, &expected).is_some(),
            "page {n} stays unreadable"
        );
    }
}

#[test]
fn a_worker_that_is_killed_leaves_errors_and_no_wrong_bytes() {
    if !can_use_kernel() {
        return;
    }
    let (place, registry) = served();
    let mounted = absent(&place, &registry, &[]);
    let (a, expected) = (File::open(mounted.path("d/a")).unwrap(), noise(BYTES, 1));
    for n in 0..16 {
        assert!(page(&a, n, &expected).is_some());
    }
    registry.control.held.store(true, SeqCst);
    let waiting: Vec<_> = (0..4)
        .map(|n| {
            let file = File::open(mounted.path("d/b")).unwrap();
            std::thread::spawn(move || page(&file, n * 200, &noise(BYTES, 2)))
        })
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    kill_all(&place);
    assert!(waiting.into_iter().all(|w| w.join().unwrap().is_none()));
    for n in 0..1024 {
        let cached = page(&a, n, &expected).is_some();
        assert!(cached || n >= 16, "page {n} was cached");
    }
    // Names and attributes are the kernel's.
    assert_eq!(std::fs::read_dir(mounted.path("d")).unwrap().count(), 2);
    forget_pages(&a);
    assert!(page(&a, 1000, &expected).is_none());
    drop((a, mounted));
    assert!(!place.is_mounted());
    assert_eq!(place.leftovers(), 0);
    registry.control.held.store(false, SeqCst);
    let again = place.mount_image(&registry.image(), &KERNEL);
    assert!(std::fs::read(again.path("d/a")).unwrap() == expected);
}

/// With the keeper alive another worker goes on: who waited gets right bytes, twice.
#[test]
fn another_worker_takes_over_without_an_error() {
    if !can_use_kernel() {
        return;
    }
    let (place, registry) = served();
    let mounted = absent(&place, &registry, &[]);
    for round in 0..2 {
        registry.control.held.store(true, SeqCst);
        let waiting: Vec<_> = (0..4)
            .map(|n| {
                let file = File::open(mounted.path("d/b")).unwrap();
                let page_at = round * 500 + n * 100;
                std::thread::spawn(move || page(&file, page_at, &noise(BYTES, 2)))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(200));
        let before = kill_worker(&place, false);
        registry.control.held.store(false, SeqCst);
        assert!(waiting.into_iter().all(|w| w.join().unwrap().is_some()));
        until("the next one serves", || {
            let listed = listed(&place);
            listed[0]["pid"] != before && listed[0]["state"] == "ready"
        });
    }
    assert!(std::fs::read(mounted.path("d/a")).unwrap() == noise(BYTES, 1));
    assert_eq!(place.stats()["engine"], "kernel");
    drop(mounted);
    assert_eq!(place.leftovers(), 0);
}

/// A reader compares every page, and waits for one that is absent when the worker is killed under it.
#[test]
fn a_stream_that_breaks_off_is_right_up_to_there() {
    if !can_use_kernel() {
        return;
    }
    let (place, registry) = served();
    let mounted = absent(&place, &registry, &[]);
    let files = [("d/a", 1), ("d/b", 2)].map(|(name, seed)| {
        let file = File::open(mounted.path(name)).unwrap();
        (file, noise(BYTES, seed))
    });
    // The first span is there; somewhere behind it bytes are missing.
    page(&files[0].0, 0, &files[0].1).unwrap();
    registry.control.held.store(true, SeqCst);
    let reader = std::thread::spawn(move || {
        let pages = (BYTES / 4096) as u64;
        let mut all = files
            .iter()
            .flat_map(|file| (0..pages).map(move |n| (file, n)));
        all.position(|((file, expected), n)| page(file, n, expected).is_none())
    });
    std::thread::sleep(Duration::from_millis(300));
    kill_all(&place);
    let right = reader.join().unwrap();
    registry.control.held.store(false, SeqCst);
    assert!(right.is_some_and(|pages| pages > 0), "{right:?}");
    drop(mounted);
}

/// A control group that may have 256 MiB; gone when dropped.
struct Group(PathBuf);

impl Group {
    fn new() -> Option<Group> {
        let parent = Path::new("/sys/fs/cgroup/memory");
        let group = parent.join(format!("rsmount-test-{}", std::process::id()));
        let made = std::fs::create_dir(&group)
            .and_then(|()| std::fs::write(group.join("memory.limit_in_bytes"), "268435456"));
        if made.is_err() {
            skip("needs a memory controller of cgroup v1 that it may write");
            let _none = std::fs::remove_dir(&group);
            return None;
        }
        Some(Group(group))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        until("the group is empty", || {
            std::fs::remove_dir(&self.0).is_ok()
        });
    }
}

/// More than the group may have is read through it, while it holds most of that by itself; the worker
/// is inside too, where it has the least room.
#[test]
fn reads_go_on_in_a_group_that_is_short_of_memory() {
    if !can_use_kernel() {
        return;
    }
    let Some(group) = Group::new() else { return };
    let place = Place::new();
    let (bytes, files) = (64 << 20, 5);
    let mut layer = Layer::new();
    let mut expected = BTreeMap::new();
    for seed in 1..=files {
        let content = noise(bytes, seed);
        expected.insert(seed, rsmount::oci::Digest::of(&content));
        layer = layer.file(&format!("f{seed}"), FILE, &content);
    }
    layout::write(&place.path("image"), &[layer.tar()], Pack::Plain);
    let mounted = place.mount("image", &KERNEL);
    let read = |group: &Path| {
        let script = r#"
            echo $$ > "$1/cgroup.procs"
            python3 -c 'import time; hog = bytearray(b"x") * (150 << 20); time.sleep(600)' >/dev/null &
            trap "kill $!" EXIT
            sha256sum "$2"/f? && sha256sum "$2"/f?
        "#;
        let began = Instant::now();
        let out = Command::new("bash")
            .args(["-euc", script, "sh"])
            .args([group, &place.mnt()])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        let sums = String::from_utf8(out.stdout).unwrap();
        assert_eq!(sums.lines().count(), 10, "{sums}");
        for (n, line) in sums.lines().enumerate() {
            let seed = n as u64 % files + 1;
            assert!(line.starts_with(expected[&seed].hex()), "{line}");
        }
        began.elapsed().as_secs_f64()
    };
    let free = read(place.dir.path());
    let worker = listed(&place)[0]["pid"].to_string();
    std::fs::write(group.0.join("cgroup.procs"), worker).unwrap();
    let short = read(&group.0);
    println!(
        "{short:.2} s, {:.2} times as long as with all memory",
        short / free
    );
    let control = std::fs::read_to_string(group.0.join("memory.oom_control")).unwrap();
    assert!(control.contains("oom_kill 0"), "{control}");
    drop(mounted);
}
