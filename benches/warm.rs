//! Warm speed, first walks, memory and mount times of both engines, against the same files in a
//! directory of the disk's own file system (ext4), interleaved, medians.
//!
//! ```text
//! RSMOUNT_BENCH_REGISTRY=HOST:PORT cargo bench --bench warm [-- PART...]
//! ```
//!
//! Parts: `walk`, `micro`, `data`, `programs`, `memory`, `million`; all but the last by default.
//! `RSMOUNT_BENCH_RUNS` says how many runs (10), `RSMOUNT_BENCH_IMAGE` which image is walked (gcc:12).
//! Each cell is the ratio to the base line of its row, and behind it the target. Peers are
//! fuse-overlayfs over the same directory and squashfuse, where they are installed. Needs root.
//!
//! The base line of the rows `+upper` is the kernel's overlayfs over the directory.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and ends where something is wrong"
)]

#[allow(dead_code, unreachable_pub, reason = "the tests use more of it")]
#[path = "../tests/support/layout.rs"]
mod layout;
#[path = "support/many.rs"]
mod many;
#[path = "support/micro.rs"]
mod micro;
#[path = "../tests/support/programs.rs"]
mod programs;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use layout::{FILE, Layer, Pack};
use programs::{PROGRAMS, run_in};
use serde_json::Value;
use tempfile::TempDir;

/// Length of the file of the part `data`.
const DATA_BYTES: usize = 512 << 20;

/// A pack that the registry has is not proven yet, which keeps the kernel engine away.
const KERNEL: [&str; 4] = ["--engine", "kernel", "--trust-index", "local"];

/// What the two engines have to reach, as a ratio to the base line.
#[derive(Clone, Copy)]
struct Targets {
    kernel: f64,
    fuse: f64,
    /// Whether more is better.
    speed: bool,
}

const fn time(kernel: f64, fuse: f64) -> Targets {
    Targets {
        kernel,
        fuse,
        speed: false,
    }
}

const fn speed(kernel: f64, fuse: f64) -> Targets {
    Targets {
        kernel,
        fuse,
        speed: true,
    }
}

/// Commands of the part `walk`; `$1` is the tree.
const WALKS: [(&str, &str); 5] = [
    ("find", "find \"$1\""),
    ("find -printf %s", "find \"$1\" -printf %s"),
    ("du", "du -s \"$1\""),
    ("ls -lR", "ls -lR \"$1\""),
    (
        "grep -r",
        "grep -r no-such-words-there \"$1/usr/share\" || true",
    ),
];

/// One tree that is measured.
struct Tree {
    name: &'static str,
    root: PathBuf,
}

struct Bench {
    scratch: TempDir,
    runs: usize,
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn rsmount(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rsmount"));
        command
            .env("RSMOUNT_CACHE_DIR", self.path("cache"))
            .env("RSMOUNT_RUN_DIR", self.path("run"))
            .env("RSMOUNT_LOG_FILE", self.path("log"));
        command
    }

    /// Mounts `image` at a directory of this name.
    fn mount(&self, name: &str, image: &str, options: &[&str]) -> PathBuf {
        let at = self.path(name);
        std::fs::create_dir_all(&at).unwrap();
        ok(self.rsmount().arg("-q").args(options).arg(image).arg(&at));
        at
    }

    fn umount(&self, at: &Path) {
        ok(self.rsmount().arg("umount").arg(at));
    }

    /// A copy of `image` in a directory, and mounts of it by both engines and by peers.
    fn trees(&self, image: &str) -> Vec<Tree> {
        let kernel = self.mount("kernel", image, &KERNEL);
        let ext4 = self.path("ext4");
        ok(Command::new("cp")
            .arg("-a")
            .arg(kernel.join("."))
            .arg(&ext4));
        // By now the layers are checked; mounted again they are lent.
        std::thread::sleep(Duration::from_secs(10));
        self.umount(&kernel);
        let kernel = self.mount("kernel", image, &KERNEL);
        let fuse = self.mount(
            "fuse",
            image,
            &["--engine", "fuse", "--trust-index", "local"],
        );
        let mut trees = vec![
            tree("ext4", ext4.clone()),
            tree("kernel", kernel),
            tree("fuse", fuse),
        ];
        let peer = self.path("fuse-overlayfs");
        std::fs::create_dir_all(&peer).unwrap();
        let lower = format!("lowerdir={}", ext4.display());
        if runs(
            Command::new("fuse-overlayfs")
                .args(["-o", &lower])
                .arg(&peer),
        ) {
            trees.push(tree("fuse-overlayfs", peer));
        }
        let (image, peer) = (self.path("squash"), self.path("squashfuse"));
        std::fs::create_dir_all(&peer).unwrap();
        let mut make = Command::new("mksquashfs");
        make.arg(&ext4).arg(&image).args(["-quiet", "-no-progress"]);
        if runs(&mut make) && runs(Command::new("squashfuse").arg(&image).arg(&peer)) {
            trees.push(tree("squashfuse", peer));
        }
        trees
    }

    fn writable(&self, image: &str) -> Vec<Tree> {
        let overlay = self.path("overlay");
        for name in ["overlay", "ext4-upper", "ext4-work"] {
            std::fs::create_dir_all(self.path(name)).unwrap();
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            self.path("ext4").display(),
            self.path("ext4-upper").display(),
            self.path("ext4-work").display()
        );
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o", &options]);
        ok(mount.arg(&overlay));
        let with = |engine: &str| {
            let upper = self.path(&format!("{engine}-changes"));
            let options = ["--engine", engine, "--upper", upper.to_str().unwrap()];
            self.mount(&format!("{engine}-upper"), image, &options)
        };
        vec![
            tree("ext4", overlay),
            tree("kernel", with("kernel")),
            tree("fuse", with("fuse")),
        ]
    }

    /// Medians of `measure` for each tree.
    fn interleaved(&self, trees: &[Tree], mut measure: impl FnMut(&Tree) -> f64) -> Vec<f64> {
        let mut all = vec![Vec::new(); trees.len()];
        for _ in 0..self.runs {
            for (values, tree) in all.iter_mut().zip(trees) {
                values.push(measure(tree));
            }
        }
        all.into_iter().map(median).collect()
    }

    fn row(&self, (name, unit): (&str, &str), trees: &[Tree], values: &[f64], targets: Targets) {
        print!("  {name:30} {:>10.3} {unit:5}", values[0]);
        for (tree, value) in trees.iter().zip(values).skip(1) {
            let ratio = value / values[0];
            let target = match tree.name {
                "kernel" => Some(targets.kernel),
                "fuse" => Some(targets.fuse),
                _ => None,
            };
            let verdict = target.map_or(String::new(), |target| {
                let met = (ratio <= target) != targets.speed || ratio == target;
                let sign = if targets.speed { "≥" } else { "≤" };
                format!(" ({sign} {target}{})", if met { "" } else { " MISSED" })
            });
            print!("  {} {ratio:.2}{verdict}", tree.name);
        }
        println!();
    }

    fn walks(&self, image: &str) {
        let trees = self.trees(image);
        println!("warm walks of {image}");
        self.warm_walks(&trees, time(1.0, 2.5));
        println!("warm walks of {image}, +upper");
        let writable = self.writable(image);
        self.warm_walks(&writable, time(1.0, 2.5));
        self.daemon_time(&trees);
        writable.iter().chain(&trees[1..]).for_each(unmount);
        println!("first walks of {image}, bytes local");
        let trees = [
            tree("ext4", self.path("ext4")),
            tree("kernel", self.path("kernel")),
            tree("fuse", self.path("fuse")),
        ];
        for (name, script) in WALKS {
            let values = self.interleaved(&trees, |tree| {
                drop_caches();
                if tree.name != "ext4" {
                    self.mount(tree.name, image, &["--engine", tree.name]);
                }
                let seconds = walk(script, &tree.root);
                if tree.name != "ext4" {
                    self.umount(&tree.root);
                }
                seconds * 1e3
            });
            self.row((name, "ms"), &trees, &values, time(0.6, 1.5));
        }
    }

    fn warm_walks(&self, trees: &[Tree], targets: Targets) {
        for (name, script) in WALKS {
            trees.iter().for_each(|tree| {
                walk(script, &tree.root);
            });
            let values = self.interleaved(trees, |tree| walk(script, &tree.root) * 1e3);
            self.row((name, "ms"), trees, &values, targets);
        }
    }

    /// Ticks of the daemons during ten warm walks.
    fn daemon_time(&self, trees: &[Tree]) {
        for tree in trees
            .iter()
            .filter(|t| ["kernel", "fuse"].contains(&t.name))
        {
            let pid = self.pid(&tree.root);
            let before = ticks(pid);
            for _ in 0..10 {
                walk(WALKS[0].1, &tree.root);
            }
            println!(
                "  CPU of the daemon, 10 x find     {} {} ticks of 10 ms (target 0)",
                tree.name,
                ticks(pid) - before
            );
        }
    }

    fn micro(&self, image: &str) {
        let trees = self.trees(image);
        println!("calls on {image}, warm");
        for (name, call, targets) in [
            ("stat", micro::stat as micro::Call, time(1.1, 1.2)),
            ("open+close", micro::open_close, time(1.1, 1.5)),
            (
                "open+read 6 KiB+close",
                micro::open_read_close,
                time(1.1, 1.5),
            ),
        ] {
            let files: Vec<Vec<PathBuf>> =
                trees.iter().map(|t| micro::files(&t.root, 2000)).collect();
            let mut at = 0;
            let values = self.interleaved(&trees, |_| {
                let files = &files[at % trees.len()];
                at += 1;
                micro::each(files, call);
                micro::each(files, call) * 1e6
            });
            self.row((name, "us"), &trees, &values, targets);
        }
        trees.iter().skip(1).for_each(unmount);
    }

    fn data(&self) {
        let layer = Layer::new().file("large", FILE, &micro::noise(DATA_BYTES));
        layout::write(&self.path("large"), &[layer.tar()], Pack::Plain);
        let image = format!("oci:{}", self.path("large").display());
        let trees = self.trees(&image);
        self.warm_data(&trees);
        trees.iter().skip(1).for_each(unmount);
        println!("the same, first read from the disk (kernel: lent; fuse: sums checked)");
        let values = self.interleaved(&trees[..3], |tree| {
            drop_caches();
            if tree.name != "ext4" {
                self.mount(tree.name, &image, &["--engine", tree.name]);
            }
            let rate = micro::sequential(&large(tree));
            if tree.name != "ext4" {
                self.umount(&tree.root);
            }
            rate
        });
        self.row(
            ("sequential, cold", "MB/s"),
            &trees[..3],
            &values,
            speed(0.75, 0.75),
        );
    }

    /// Reads of what the page cache has.
    ///
    /// What lies in pages of 4 KiB is read as fast as these happen to lie behind one another in memory: whoever
    /// fills the page cache first gets the scattered ones that earlier work left, whoever comes after it whole
    /// blocks, and reads twice as fast. So each has the page cache for itself; and all is measured once in the
    /// memory that there is, and once where what is free is whole blocks, as after a boot.
    fn warm_data(&self, trees: &[Tree]) {
        drop_caches();
        println!("a file of 512 MiB, warm, memory as it is");
        self.warm_reads(trees);
        let _taken = micro::take_fragments();
        println!("a file of 512 MiB, warm, memory in whole blocks");
        self.warm_reads(trees);
    }

    fn warm_reads(&self, trees: &[Tree]) {
        let rows = [
            (
                "sequential",
                micro::sequential as micro::Measure,
                speed(0.95, 0.4),
            ),
            ("random 4 KiB, 1 thread", micro::random_1, speed(0.95, 0.9)),
            ("random 4 KiB, 4 threads", micro::random_4, speed(0.95, 0.9)),
            ("mmap touch, second pass", micro::touch, speed(0.8, 0.1)),
        ];
        let mut placed: Vec<Vec<[f64; 2]>> = vec![Vec::new(); trees.len()];
        let mut values = vec![vec![Vec::new(); trees.len()]; rows.len()];
        for _ in 0..self.runs {
            for (at, tree) in trees.iter().enumerate() {
                drop_caches();
                // The second time the kernel marks pages as often used, which costs once.
                micro::sequential(&large(tree));
                micro::sequential(&large(tree));
                for (values, (_, measure, _)) in values.iter_mut().zip(rows) {
                    values[at].push(measure(&large(tree)));
                }
                placed[at].push(micro::placed(&large(tree)));
            }
        }
        for (values, (name, _, targets)) in values.into_iter().zip(rows) {
            let values: Vec<f64> = values.into_iter().map(median).collect();
            self.row((name, "MB/s"), trees, &values, targets);
        }
        for (name, of) in [
            ("folios, mean KiB", 0),
            ("contiguous in memory, mean KiB", 1),
        ] {
            print!("  {name:30}");
            for (placed, tree) in placed.iter().zip(trees) {
                let kib = placed.iter().map(|placed| placed[of]).collect();
                print!("  {} {:.0}", tree.name, median(kib));
            }
            println!();
        }
    }

    fn programs(&self, registry: &str) {
        println!("programs in a chroot, second run");
        for program in PROGRAMS {
            let image = format!("{registry}/library/{}", program.image);
            if !["python:3.11", "gcc:12", "openjdk:17", "node:18"].contains(&program.image)
                || !runs(&mut inspect(&image))
            {
                continue;
            }
            let bench = Bench {
                scratch: scratch(),
                runs: self.runs,
            };
            let trees = bench.trees(&image);
            let ours = &trees[..3];
            ours.iter()
                .for_each(|tree| drop(run_in(&tree.root, program)));
            let values = bench.interleaved(ours, |tree| {
                let began = Instant::now();
                assert!(run_in(&tree.root, program).contains(program.says));
                began.elapsed().as_secs_f64() * 1e3
            });
            bench.row((program.image, "ms"), ours, &values, time(1.05, 1.15));
            trees.iter().skip(1).for_each(unmount);
        }
    }

    fn record(&self, at: &Path) -> Value {
        let text = ok(self.rsmount().args(["ps", "--json"]));
        let mounts: Value = serde_json::from_str(&text).unwrap();
        let mut mounts = mounts.as_array().unwrap().iter();
        let of = mounts.find(|m| m["mountpoint"] == at.to_str().unwrap());
        of.unwrap().clone()
    }

    fn pid(&self, at: &Path) -> u64 {
        self.record(at)["pid"].as_u64().unwrap()
    }

    /// Private megabytes of a mount: its worker's and its keeper's.
    fn private(&self, at: &Path) -> f64 {
        let record = self.record(at);
        let pids = [&record["pid"], &record["keeper"]];
        pids.into_iter()
            .filter_map(Value::as_u64)
            .map(private_mb)
            .sum()
    }

    /// Private memory and mount times of an image with so many files.
    fn memory(&self, files: usize) {
        let dir = self.path(&format!("many-{files}"));
        many::write(&dir, files);
        let image = format!("oci:{}", dir.display());
        for engine in ["kernel", "fuse"] {
            let options = ["--engine", engine];
            let _none_yet = std::fs::remove_dir_all(self.path("cache"));
            let peak = Peak::watch();
            let first = self.mount("first", &image, &options);
            ok(Command::new("find").arg(&first).stdout(Stdio::null()));
            let peak = peak.most_mb();
            self.umount(&first);
            let times = (0..self.runs).map(|_| {
                let began = Instant::now();
                let at = self.mount("first", &image, &options);
                let ms = began.elapsed().as_secs_f64() * 1e3;
                self.umount(&at);
                ms
            });
            let usable = median(times.collect());
            let first = self.mount("first", &image, &options);
            ok(Command::new("find").arg(&first).stdout(Stdio::null()));
            let idle = self.private(&first);
            let second = self.mount("second", &image, &options);
            let further = self.private(&first) + self.private(&second) - idle;
            println!(
                "  {files} files, {engine}: usable in {usable:.1} ms (target {}), private \
                 {idle:.1} MB idle (15), {further:.1} MB a further mount (3), {peak:.1} MB at \
                 the peak of a first contact and a find (40)",
                if files > 100_000 { 50 } else { 20 }
            );
            self.umount(&second);
            self.umount(&first);
        }
    }
}

fn tree(name: &'static str, root: PathBuf) -> Tree {
    Tree { name, root }
}

/// The one file of the part `data`.
fn large(tree: &Tree) -> PathBuf {
    tree.root.join("large")
}

fn unmount(tree: &Tree) {
    let _not_mounted = Command::new("umount").arg("-l").arg(&tree.root).status();
}

/// Seconds that `script` takes.
fn walk(script: &str, root: &Path) -> f64 {
    let mut command = Command::new("sh");
    command.args(["-ec", script, "sh"]).arg(root);
    let began = Instant::now();
    let status = command.stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "{script}");
    began.elapsed().as_secs_f64()
}

fn inspect(image: &str) -> Command {
    let mut command = Command::new("skopeo");
    let url = format!("docker://{image}");
    command.args(["inspect", "--raw", "--tls-verify=false", &url]);
    command
}

/// Runs a command that has to succeed; gives what it printed.
fn ok(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {complained}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether a command is there and succeeds.
fn runs(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null());
    let status = quiet.stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn drop_caches() {
    // Pages that have still to be written stay.
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// User and system time of a process, in clock ticks (proc(5), stat).
fn ticks(pid: u64) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split(' ').collect();
    fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap()
}

/// Private memory of a process in megabytes.
fn private_mb(pid: u64) -> f64 {
    try_private_mb(pid).unwrap()
}

fn try_private_mb(pid: u64) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let lines = text.lines().filter(|line| line.starts_with("Private_"));
    let kib = lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    Some(kib.sum::<f64>() * 1024.0 / 1e6)
}

/// Private memory of the workers that start while this looks, at its most. Nothing else may mount then.
struct Peak {
    ended: Arc<AtomicBool>,
    most: JoinHandle<f64>,
}

impl Peak {
    fn watch() -> Peak {
        let ended = Arc::new(AtomicBool::new(false));
        let (end, before) = (ended.clone(), workers());
        let most = std::thread::spawn(move || {
            let mut most: f64 = 0.0;
            while !end.load(Relaxed) {
                let new = workers().into_iter().filter(|pid| !before.contains(pid));
                most = new.filter_map(try_private_mb).fold(most, f64::max);
                std::thread::sleep(Duration::from_millis(2));
            }
            most
        });
        Peak { ended, most }
    }

    fn most_mb(self) -> f64 {
        self.ended.store(true, Relaxed);
        self.most.join().unwrap()
    }
}

/// The processes that serve mounts, of whomever.
fn workers() -> Vec<u64> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    let serves = |pid: &u64| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(b"rsmount\0worker")
    };
    pids.filter(serves).collect()
}

/// Not in /tmp, which may be in memory.
fn scratch() -> TempDir {
    TempDir::with_prefix_in("rsmount-bench.", "/var/tmp").unwrap()
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn main() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED warm: it mounts, and chroots: run it as root");
        return;
    }
    let chosen: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    let wanted = |part: &str| match chosen.is_empty() {
        true => part != "million",
        false => chosen.iter().any(|c| c == part),
    };
    let runs = setting("RSMOUNT_BENCH_RUNS", "10").parse().unwrap();
    let bench = || Bench {
        scratch: scratch(),
        runs,
    };
    let registry = std::env::var("RSMOUNT_BENCH_REGISTRY").ok();
    match &registry {
        Some(registry) => {
            let name = setting("RSMOUNT_BENCH_IMAGE", "gcc:12");
            let image = format!("{registry}/library/{name}");
            if wanted("walk") {
                bench().walks(&image);
            }
            if wanted("micro") {
                bench().micro(&image);
            }
            if wanted("programs") {
                bench().programs(registry);
            }
        }
        None => println!("SKIPPED walk, micro, programs: RSMOUNT_BENCH_REGISTRY is not set"),
    }
    if wanted("data") {
        bench().data();
    }
    for (part, files) in [("memory", 40_000), ("million", 1_000_000)] {
        if wanted(part) {
            println!("an image of many files");
            bench().memory(files);
        }
    }
}
