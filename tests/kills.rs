//! Programs that know nothing of mounts work on them while the workers below are killed and replaced:
//! `fio` verifies the sums in the blocks of a file that it has written itself, and `g++` of an image
//! builds a program in it. Neither sees an error, and every byte is right. By both engines, with layers
//! that the kernel cannot read by itself.
//!
//! Needs `fio`, and for the compiler the image `gcc:12` (`RSMOUNT_TEST_REGISTRY`, `RSMOUNT_TEST_IMAGES`);
//! says so loudly where it is skipped.
#![allow(
    clippy::unwrap_used,
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
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::layout::{self, DIR, FILE, Layer, Pack};
use support::place::{self, Place, can_mount, can_use_kernel, long};
use support::registry::Registry;

const MIB: u64 = 1 << 20;

/// Far more than a last round of verifying or building takes; a reader that waits for what never comes
/// fails then.
const PATIENCE: Duration = Duration::from_secs(300);

/// Those that this machine has.
fn engines() -> Vec<&'static str> {
    match can_use_kernel() {
        true => vec!["fuse", "kernel"],
        false => vec!["fuse"],
    }
}

/// Has the kernel forget what it has read, so that a worker is needed for it again. What EROFS has read
/// lies a second time below it, in the files of the layers, which nobody can name.
fn forget_all() {
    std::fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
}

/// The worker of the one mount in `place`.
fn worker(place: &Place) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let listed: Value = serde_json::from_str(&place.ok(&["ps", "--json"])).unwrap();
        if let Some(pid) = listed[0]["pid"].as_u64() {
            return pid;
        }
        assert!(Instant::now() < deadline, "nobody serves");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a thread has found out, which is to end now.
fn end<T>(thread: JoinHandle<T>, what: &str) -> T {
    let deadline = Instant::now() + PATIENCE;
    while !thread.is_finished() {
        assert!(Instant::now() < deadline, "{what} does not come to an end");
        std::thread::sleep(Duration::from_millis(10));
    }
    thread.join().unwrap()
}

/// Who looks how long a small read of bytes that the kernel has forgotten takes, again and again.
struct Watch {
    stop: Arc<AtomicBool>,
    longest: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Watch {
    fn start(file: PathBuf) -> Watch {
        let (stop, longest) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (ends, most) = (stop.clone(), longest.clone());
        let thread = std::thread::spawn(move || {
            let file = File::open(file).unwrap();
            let pages = file.metadata().unwrap().len() / 4096;
            let mut random = fastrand::Rng::new();
            let mut piece = [0; 4096];
            while !ends.load(SeqCst) {
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
                let began = Instant::now();
                let at = random.u64(0..pages) * 4096;
                file.read_exact_at(&mut piece, at).unwrap();
                let took = u64::try_from(began.elapsed().as_micros()).unwrap();
                most.fetch_max(took, SeqCst);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Watch {
            stop,
            longest,
            thread,
        }
    }

    fn finish(self) {
        self.stop.store(true, SeqCst);
        end(self.thread, "a small read");
    }
}

/// Kills the worker of `place` at random moments, and has it replaced now and then; prints how long the
/// watch stood still each time. Whoever reads needs the worker each time.
fn kill_and_replace(place: &Place, watch: &Watch, what: &str) {
    // More than a worker may fail by itself, and as quickly.
    let (kills, upgrades, nap) = match long() {
        true => (200, 20, 400),
        false => (14, 2, 150),
    };
    let mut random = fastrand::Rng::new();
    println!("{what}: seed {}", random.get_seed());
    let (mut killed, mut replaced) = (Vec::new(), Vec::new());
    for round in 0..kills + upgrades {
        forget_all();
        std::thread::sleep(Duration::from_millis(random.u64(0..nap)));
        let before = worker(place);
        watch.longest.store(0, SeqCst);
        let upgrade = round % (kills / upgrades + 1) == 0;
        if upgrade {
            place.ok(&["upgrade", place.mnt().to_str().unwrap()]);
        } else {
            let pid = rustix::process::Pid::from_raw(i32::try_from(before).unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while worker(place) == before {
            assert!(Instant::now() < deadline, "nobody took over");
            std::thread::sleep(Duration::from_millis(2));
        }
        // A read that began before its end is counted.
        std::thread::sleep(Duration::from_millis(50));
        let stood = watch.longest.load(SeqCst);
        if upgrade {
            replaced.push(stood);
        } else {
            killed.push(stood);
        }
    }
    let reads = place.stats()["reads"].as_u64();
    assert!(reads > Some(0), "the last worker was not needed");
    for (how, mut waits) in [("killed", killed), ("replaced", replaced)] {
        waits.sort_unstable();
        let ms = |us: u64| us as f64 / 1000.0;
        println!(
            "{what}, {how} {} times; readers stood still: median {:.1} ms, maximum {:.1} ms",
            waits.len(),
            ms(waits[waits.len() / 2]),
            ms(waits[waits.len() - 1])
        );
    }
}

/// A file of blocks that carry their sums.
fn written_by_fio(directory: &Path) -> Option<Vec<u8>> {
    let file = directory.join("fio.dat");
    let output = fio("write", &file).args(["--do_verify=0"]).output().ok()?;
    assert!(output.status.success(), "{output:?}");
    Some(std::fs::read(file).unwrap())
}

fn fio(how: &str, file: &Path) -> Command {
    let mut fio = Command::new("fio");
    fio.args(["--name=blocks", "--size=24m", "--bs=16k", "--verify=crc32c"]);
    // It would be left in the working directory.
    fio.arg("--verify_state_save=0");
    fio.arg(format!("--rw={how}"))
        .arg(format!("--filename={}", file.display()));
    fio
}

#[test]
fn fio_verifies_on_while_workers_are_killed() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let Some(blocks) = written_by_fio(place.dir.path()) else {
        return place::skip("needs fio");
    };
    let layer = Layer::new().dir("d", DIR).file("d/fio.dat", FILE, &blocks);
    layout::write(&place.path("image"), &[layer.tar()], Pack::Plain);
    let registry = Registry::serve(place.path("image"));
    drop(place.mount_image(&registry.image(), &[]));
    for engine in engines() {
        place.ok(&["cache", "prune", "--data"]);
        verify_under_kills(&place, &registry.image(), engine, blocks.len() as u64);
    }
}

fn verify_under_kills(place: &Place, image: &str, engine: &str, bytes: u64) {
    // With too little room for the file, and past the page cache where that is possible, so that its
    // readers need the worker.
    let options = ["--engine", engine, "--cache-size", "8MiB"];
    let mounted = place.mount_image(image, &options);
    let file = mounted.path("d/fio.dat");
    let stop = Arc::new(AtomicBool::new(false));
    let (stops, at) = (stop.clone(), file.clone());
    // EROFS over files knows no O_DIRECT.
    let direct = format!("--direct={}", u8::from(engine == "fuse"));
    let verifying = std::thread::spawn(move || {
        let mut rounds = 0;
        while !stops.load(SeqCst) {
            let mut fio = fio("randread", &at);
            fio.args(["--readonly", &direct, "--verify_fatal=1", "--numjobs=2"]);
            fio.args(["--ioengine=psync", "--group_reporting"]);
            let output = fio.output().unwrap();
            assert!(output.status.success(), "{output:?}");
            rounds += 1;
        }
        rounds
    });
    let watch = Watch::start(file);
    kill_and_replace(place, &watch, &format!("fio --verify by {engine}"));
    watch.finish();
    stop.store(true, SeqCst);
    let rounds = end(verifying, "fio");
    println!("fio verified {} MiB by {engine}", rounds * 2 * bytes / MIB);
    assert!(rounds > 0);
    assert_eq!(place.stats()["engine"], engine);
}

const PROGRAM: &str = r#"
#include <algorithm>
#include <iostream>
#include <map>
#include <regex>
#include <string>
int main() {
    std::map<std::string, int> seen;
    std::string text = "one two three two one two";
    std::regex word("[a-z]+");
    for (std::sregex_iterator i(text.begin(), text.end(), word), end; i != end; ++i) seen[i->str()]++;
    for (auto &[word, times] : seen) std::cout << word << times << ' ';
}
"#;

/// Where compilers lie in the image below `root`.
fn compilers(root: &Path) -> Vec<PathBuf> {
    let places = ["lib/gcc", "libexec/gcc", "include/c++"];
    let both = ["usr", "usr/local"];
    let all = both
        .iter()
        .flat_map(|top| places.map(|place| root.join(top).join(place)));
    all.filter(|place| place.is_dir()).collect()
}

/// The files below `directory`.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files.extend(files_below(&entry.path()));
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    files
}

#[test]
fn a_build_goes_on_while_workers_are_killed() {
    if !can_mount() {
        return;
    }
    let images = std::env::var("RSMOUNT_TEST_IMAGES").unwrap_or_default();
    let registry = std::env::var("RSMOUNT_TEST_REGISTRY").ok();
    let given = registry.filter(|_| images.split_whitespace().any(|image| image == "gcc:12"));
    let Some(registry) = given else {
        return place::skip("needs the image gcc:12; use contrib/test --full");
    };
    let scratch = std::env::var_os("RSMOUNT_TEST_SCRATCH").unwrap_or_else(|| "/var/tmp".into());
    let place = Place::in_directory(tempfile::tempdir_in(scratch).unwrap());
    let image = format!("{registry}/library/gcc:12");
    for engine in engines() {
        place.ok(&["cache", "prune", "--data"]);
        build_under_kills(&place, &image, engine);
    }
}

fn build_under_kills(place: &Place, image: &str, engine: &str) {
    // With too little room for the layers: none is whole, which the kernel would read by itself.
    let lazy = ["--tmp", "--cache-size", "400MiB", "--fill", "never"];
    let mounted = place.mount_image(image, &[&lazy[..], &["--engine", engine]].concat());
    std::fs::write(mounted.path("tmp/words.cc"), PROGRAM).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (stops, root) = (stop.clone(), place.mnt());
    let building = std::thread::spawn(move || {
        let mut builds = 0;
        while !stops.load(SeqCst) || builds == 0 {
            let mut build = Command::new("chroot");
            build
                .arg(&root)
                .args(["/bin/sh", "-ec"])
                .stdin(Stdio::null());
            build.arg("cd /tmp; g++ -O1 -std=c++17 -o words words.cc; ./words");
            build.env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
            let output = build.output().unwrap();
            assert!(output.status.success(), "{output:?}");
            assert_eq!(String::from_utf8_lossy(&output.stdout), "one2 three1 two3 ");
            builds += 1;
        }
        builds
    });
    let all = compilers(&place.mnt());
    // Not what the build runs: pages of that are in use, and so stay.
    let other = all.iter().flat_map(|place| files_below(place));
    let other = other.filter(|path| !path.ends_with("cc1plus"));
    let longest = other.max_by_key(|path| path.metadata().unwrap().len());
    let watch = Watch::start(longest.unwrap());
    kill_and_replace(place, &watch, &format!("a g++ build by {engine}"));
    watch.finish();
    stop.store(true, SeqCst);
    let builds = end(building, "the build");
    println!("{builds} builds by {engine}, each with the right program");
    assert_eq!(place.stats()["engine"], engine);
}
