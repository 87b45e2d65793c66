//! The cache under pressure: a budget smaller than the data, full and read-only file systems, and
//! readers, a fetcher and an evictor that race for one span from processes of their own.
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
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use rsmount::blob::ByteRange;
use rsmount::cache::{Begin, Cache, PAGE_BYTES, Pages, Presence};
use rsmount::oci::Digest;
use serde_json::Value;
use support::layout::{self, DIR, FILE, Layer, Pack};
use support::place::{Mounted, Place, can_mount, long};
use support::registry::Registry;

const MIB: usize = 1 << 20;

/// Bytes that hardly compress, different for each `seed`.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}

fn served(mebibytes: usize) -> (Place, Registry) {
    served_as(mebibytes, Pack::Gzip)
}

fn served_as(mebibytes: usize, pack: Pack) -> (Place, Registry) {
    let place = Place::new();
    let mut layer = Layer::new().dir("d", DIR);
    for n in 0..mebibytes / 2 {
        layer = layer.file(&format!("d/{n}"), FILE, &noise(2 * MIB, n as u64));
    }
    layout::write(&place.path("image"), &[layer.tar()], pack);
    let registry = Registry::serve(place.path("image"));
    (place, registry)
}

/// Reads a file past the page cache.
fn read_anew(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = File::open(path)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    std::fs::read(path)
}

fn du(place: &Place) -> Value {
    serde_json::from_str(&place.ok(&["cache", "du", "--json"])).unwrap()
}

#[test]
fn a_mount_keeps_within_its_budget_and_reads_all_of_its_bytes() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served(24);
    let mounted = place.mount_image(&registry.image(), &["--cache-size", "6MiB"]);
    for round in 0..2 {
        for n in 0..12 {
            let bytes = read_anew(&mounted.path(&format!("d/{n}"))).unwrap();
            assert!(bytes == noise(2 * MIB, n), "round {round}, file {n}");
        }
    }
    drop(mounted);
    let held = du(&place)["data_bytes"].as_u64().unwrap();
    // One look behind: what came since the last one.
    assert!(held <= 8 << 20, "{held} bytes are held");
    assert!(held > 2 << 20, "{held} bytes are held: hardly a cache");
}

/// With fewer descriptors than there are layers.
#[test]
fn a_cache_of_many_layers_is_evicted_and_looked_at() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served(2);
    let cache = Cache::open(&place.path("cache")).unwrap();
    for n in 0..150_u64 {
        let blob = Digest::of(&n.to_le_bytes());
        let Begin::New(mut layer) = cache.begin(&blob, 0).unwrap() else {
            panic!("known already");
        };
        layer.write(&noise(64 << 10, n)).unwrap();
        layer.commit(b"index").unwrap();
    }
    let before = du(&place)["data_bytes"].as_u64().unwrap();
    assert!(before > 150 * (64 << 10), "{before}");
    let few = |args: &[&str]| {
        let mut command = Command::new("sh");
        let script = "ulimit -n 120; exec \"$0\" \"$@\"";
        command.args(["-c", script, env!("CARGO_BIN_EXE_rsmount")]);
        for (name, value) in place.rsmount().get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let output = command.args(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    few(&["cache", "verify"]);
    few(&["cache", "du"]);
    let (image, mnt) = (registry.image(), place.mnt());
    few(&["-q", "--cache-size", "3MiB", &image, mnt.to_str().unwrap()]);
    let mounted = Mounted::adopt(&place);
    assert!(read_anew(&mounted.path("d/0")).unwrap() == noise(2 * MIB, 0));
    let deadline = Instant::now() + Duration::from_secs(20);
    while du(&place)["data_bytes"].as_u64().unwrap() > 5 << 20 {
        assert!(Instant::now() < deadline, "not evicted");
        std::thread::sleep(Duration::from_millis(50));
    }
    few(&["cache", "prune", "--data"]);
}

#[test]
fn a_pinned_image_stays_and_can_be_let_go() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served(4);
    let image = registry.image();
    let missing = place.run(&["cache", "pin", &image]);
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(said.contains("not in the cache"), "{said}");
    drop(place.mount_image(&image, &[]));
    place.ok(&["cache", "pin", &image]);
    assert_eq!(du(&place)["pins"][0]["image"], image.as_str());
    let text = place.ok(&["cache", "prune", "--all"]);
    assert!(text.contains("1 pinned layers stay"), "{text}");
    registry.control.unplugged.store(true, SeqCst);
    let mounted = place.mount_image(&image, &["--offline", "--cache-size", "1"]);
    assert!(read_anew(&mounted.path("d/1")).unwrap() == noise(2 * MIB, 1));
    assert_eq!(du(&place)["layers"][0]["in_use"], true);
    drop(mounted);
    place.ok(&["cache", "unpin", &image]);
    let again = place.run(&["cache", "unpin", &image]);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    place.ok(&["cache", "prune", "--all"]);
    assert_eq!(du(&place)["layers"].as_array().unwrap().len(), 0);
}

#[test]
fn fill_stops_where_the_budget_says() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served_as(16, Pack::Plain);
    drop(place.mount_image(&registry.image(), &[]));
    place.ok(&["cache", "prune", "--data"]);
    let options = ["--fill", "now", "--cache-size", "8MiB"];
    let mounted = place.mount_image(&registry.image(), &options);
    let deadline = Instant::now() + Duration::from_secs(20);
    let log = || std::fs::read_to_string(place.path("log")).unwrap();
    while !log().contains("the fill ends here") && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(log().contains("the fill ends here"), "{}", log());
    let held = du(&place)["data_bytes"].as_u64().unwrap();
    assert!((1 << 20..=8 << 20).contains(&held), "{held} bytes are held");
    assert!(read_anew(&mounted.path("d/7")).unwrap() == noise(2 * MIB, 7));
}

/// A tmpfs in the place of the cache; gone with the test.
struct Disk<'a>(&'a Place);

impl<'a> Disk<'a> {
    fn mount(place: &'a Place, options: &str) -> Disk<'a> {
        std::fs::create_dir_all(place.path("cache")).unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "none"])
            .arg(place.path("cache"))
            .status();
        assert!(status.unwrap().success());
        Disk(place)
    }

    fn remount(&self, options: &str) {
        let remount = || {
            Command::new("mount")
                .args(["-o", &format!("remount,{options}")])
                .arg(self.0.path("cache"))
                .output()
                .unwrap()
        };
        // What another test has just started holds our open files until it runs its program, and a
        // file open for writing keeps a file system from becoming read-only.
        let end = Instant::now() + Duration::from_secs(10);
        let mut output = remount();
        while !output.status.success() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
            output = remount();
        }
        assert!(output.status.success(), "{output:?}");
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.0.path("cache"))
            .status();
    }
}

#[test]
fn a_full_disk_is_read_past() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served(12);
    let disk = Disk::mount(&place, "size=100m,mode=700,noexec");
    drop(place.mount_image(&registry.image(), &[]));
    place.ok(&["cache", "prune", "--data"]);
    disk.remount("size=3m");
    let mounted = place.mount_image(&registry.image(), &["--fill", "never"]);
    for _ in 0..2 {
        for n in 0..6 {
            assert!(read_anew(&mounted.path(&format!("d/{n}"))).unwrap() == noise(2 * MIB, n));
        }
    }
    drop(mounted);
}

#[test]
fn a_read_only_cache_is_read_and_what_it_lacks_is_read_past_it() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served(12);
    let disk = Disk::mount(&place, "size=200m,mode=700,noexec");
    let mounted = place.mount_image(&registry.image(), &[]);
    assert!(std::fs::read(mounted.path("d/0")).unwrap() == noise(2 * MIB, 0));
    drop(mounted);
    let layers = place.path("cache/v1/layers/sha256");
    let layer = std::fs::read_dir(layers).unwrap().next().unwrap().unwrap();
    let data = layer.path().join("pages/data");
    let data = File::options().write(true).open(data).unwrap();
    data.write_all_at(b"damage", 5 << 20).unwrap();
    drop(data);
    disk.remount("ro");
    let mounted = place.mount_image(&registry.image(), &[]);
    for n in 0..6 {
        assert!(read_anew(&mounted.path(&format!("d/{n}"))).unwrap() == noise(2 * MIB, n));
    }
    assert!(place.stats()["fetched_bytes"].as_u64().unwrap() > 0);
}

/// What this process is in a race, by its environment: a part is this same test, started again.
const PART: &str = "RSMOUNT_TEST_RACE";

/// Length of the span that all race for: pages of it lie in two regions of the store.
const SPAN: u64 = 2 * MIB as u64 - 3 * PAGE_BYTES + 100;

fn pages_of(cache: &Cache) -> Pages {
    let layer = cache.layer(&Digest::of(b"raced")).unwrap().unwrap();
    layer.pages().unwrap()
}

fn part(role: &str) {
    let root = std::env::var_os("RSMOUNT_TEST_RACE_CACHE").unwrap();
    let seconds: u64 = std::env::var("RSMOUNT_TEST_RACE_SECONDS")
        .unwrap()
        .parse()
        .unwrap();
    let budget = (role == "evict").then_some(0);
    let cache = Cache::open_within(Path::new(&root), budget).unwrap();
    let pages = pages_of(&cache);
    let content = noise(SPAN as usize, 7);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut random = fastrand::Rng::new();
    let (mut read, mut absent) = (0_u64, 0_u64);
    let (mut out, mut scratch) = (vec![0; SPAN as usize], Vec::new());
    while Instant::now() < end {
        match role {
            "fetch" => {
                for gone in pages.absent(ByteRange::new(0, SPAN)) {
                    let bytes = &content[gone.start() as usize..gone.end() as usize];
                    pages.write(gone.start(), bytes).unwrap();
                    absent += 1;
                }
                read += 1;
            }
            "evict" => {
                cache.trim();
                read += 1;
                std::thread::sleep(Duration::from_micros(random.u64(0..400)));
            }
            _ => {
                let start = random.u64(0..SPAN);
                let len = random.u64(1..=(SPAN - start).min(128 << 10));
                let out = &mut out[..len as usize];
                let range = ByteRange::new(start, start + len);
                match pages.read(range, out, &mut scratch).unwrap() {
                    Presence::Absent => absent += 1,
                    Presence::Read => {
                        read += 1;
                        let expected = &content[start as usize..(start + len) as usize];
                        assert!(out == expected, "wrong bytes at {start}, {len} long");
                    }
                }
            }
        }
    }
    let report = format!("{role} {read} {absent}\n");
    let name = format!("report-{}", std::process::id());
    std::fs::write(Path::new(&root).with_file_name(name), report).unwrap();
}

#[test]
fn readers_an_evictor_and_a_fetcher_race_for_one_span() {
    if let Ok(role) = std::env::var(PART) {
        return part(&role);
    }
    let place = Place::new();
    let cache = Cache::open(&place.path("cache")).unwrap();
    let Begin::New(mut new) = cache.begin(&Digest::of(b"raced"), 0).unwrap() else {
        panic!("the cache is new");
    };
    new.write(&noise(SPAN as usize, 7)).unwrap();
    new.commit(b"index").unwrap();
    let seconds = if long() { "60" } else { "5" };
    let start = |role: &&str| -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "readers_an_evictor_and_a_fetcher_race_for_one_span",
            ])
            .env(PART, role)
            .env("RSMOUNT_TEST_RACE_CACHE", place.path("cache"))
            .env("RSMOUNT_TEST_RACE_SECONDS", seconds)
            .spawn()
            .unwrap()
    };
    let parts: Vec<Child> = ["read", "read", "read", "read", "evict", "fetch"]
        .iter()
        .map(start)
        .collect();
    for mut part in parts {
        assert!(part.wait().unwrap().success(), "a part of the race failed");
    }
    let (mut reads, mut overtaken, mut fetched) = (0, 0, 0);
    for entry in std::fs::read_dir(place.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if !path
            .file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("report-")
        {
            continue;
        }
        let text = std::fs::read_to_string(path).unwrap();
        let words: Vec<&str> = text.split_whitespace().collect();
        let (done, absent): (u64, u64) = (words[1].parse().unwrap(), words[2].parse().unwrap());
        match words[0] {
            "read" => (reads, overtaken) = (reads + done, overtaken + absent),
            "fetch" => fetched += absent,
            _ => assert!(done > 0),
        }
    }
    // A race in which nobody met anybody shows nothing.
    assert!(
        reads > 1000 && overtaken > 10 && fetched > 10,
        "{reads} {overtaken} {fetched}"
    );
    println!("{reads} reads right, {overtaken} found bytes absent, {fetched} pieces stored anew");
}

/// A mount that knows its tree has not looked into its indexes yet.
#[test]
fn a_mount_outlives_its_cache_being_pruned() {
    if !can_mount() {
        return;
    }
    let (place, registry) = served(4);
    let image = registry.image();
    drop(place.mount_image(&image, &["--engine", "fuse"]));
    place.ok(&["cache", "prune", "--data"]);
    let mounted = place.mount_image(&image, &["--engine", "fuse", "--fill", "never"]);
    place.ok(&["cache", "prune", "--all"]);
    assert!(read_anew(&mounted.path("d/1")).unwrap() == noise(2 * MIB, 1));
}
